//! The role: a metadata server on one executor.
//!
//! It keeps nothing: any number may run over one store. It registers with the managers, hears of new routing with each
//! heartbeat, answers clients, and cleans up in the background.

use crate::namespace::Namespace;
use crate::outside::{ChunkService, ClientLeases, Clock, Outside, Random, Space};
use crate::gc::{GcCursor, GcLimits};
use corefs_client::{Client, InternalOptions};
use corefs_kv::KvEngine;
use corefs_net::{
    Address, Identity, Node, NodeConfig, Request, Responder, Role, Secret, Service, process,
};
use corefs_wire::control::{Call, Message, meta, mgmtd, process as process_messages};
use corefs_wire::layout::Layout;
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{ClientId, Error, ErrorCode, InodeId, Result, Uuid};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The file system of a store; 0 is the managers' part of it.
const FILE_SYSTEM: u32 = 1;
/// Buffers: replies and requests here have no bulk data (bytes).
const POOL_BYTES: usize = 4 << 20;
/// How long chunk operations on behalf of the namespace are retried.
const CHUNK_DEADLINE: Duration = Duration::from_secs(20);
/// Pause between rounds of cleaning up when there is little to do.
const HOUSE: Duration = Duration::from_millis(500);
/// Dead clients are looked for every so many rounds.
const SWEEP_ROUNDS: u32 = 6;
/// Until the first answer of a manager it is asked this often.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long what the managers say about space is believed.
const SPACE_AGE: Duration = Duration::from_secs(1);

/// How a metadata server is started.
#[derive(Clone, Debug)]
pub struct MetaOptions {
    pub listen: Address,
    pub managers: Vec<Address>,
    pub secret: Option<Secret>,
}

/// A running metadata server.
pub struct MetaServer<E> {
    node: Node,
    address: Address,
    namespace: Rc<Namespace<E, World>>,
    stopping: Rc<Cell<bool>>,
}

impl<E: KvEngine> MetaServer<E> {
    /// Brings a server up on the current executor. Waits for a manager and for the store as long as it takes.
    ///
    /// Errors: `AddressInUse`, `BadConfig` (beyond loopback without a secret), `BadFormat` for a store of another version,
    /// and what the handshake with a manager refuses for good.
    pub async fn start(options: MetaOptions, engine: E) -> Result<Self> {
        let incarnation = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
        let identity =
            Identity { role: Role::Meta, id: 0, incarnation, cluster: Uuid::NIL, secret: options.secret.clone() };
        let node = Node::start(NodeConfig { pool_bytes: POOL_BYTES, ..NodeConfig::new(identity) })?;
        match Self::settle(&node, &options, incarnation, engine).await {
            Ok(server) => Ok(server),
            Err(error) => {
                node.shutdown().await;
                Err(error)
            }
        }
    }

    async fn settle(node: &Node, options: &MetaOptions, incarnation: u64, engine: E) -> Result<Self> {
        let address = node.listen(&options.listen)?;
        let lease = first_lease(node, &options.managers).await?;
        let client = Client::connect_internal(InternalOptions {
            node: node.clone(),
            client: ClientId(lease.client),
            incarnation: lease.incarnation,
            managers: options.managers.clone(),
            deadline: CHUNK_DEADLINE,
        });
        let world = World { client: client.clone(), space: Cell::new(None) };
        let namespace = Rc::new(Namespace::new(engine, FILE_SYSTEM, world));
        namespace.format().await?;
        let answers = Rc::new(Answers {
            namespace: Rc::clone(&namespace),
            started: Instant::now(),
            requests: RefCell::default(),
        });
        node.serve(Rc::new(Dispatch(answers)));
        let server = Self { node: node.clone(), address, namespace, stopping: Rc::default() };
        // Clients find this server through the managers, so it isn't ready before they know it.
        let pause = server.register(&client, incarnation).await?;
        server.keep_registered(client, incarnation, lease, pause);
        server.keep_house();
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Answers what is in progress, and ends.
    pub async fn stop(self) -> Result<()> {
        self.stopping.set(true);
        self.node.shutdown().await;
        Ok(())
    }

    /// One heartbeat; returns when the next is due.
    async fn register(&self, client: &Client, incarnation: u64) -> Result<Duration> {
        beat(client, &self.address, incarnation).await
    }

    fn keep_registered(&self, client: Client, incarnation: u64, lease: mgmtd::ClientLeaseT, first: Duration) {
        let (stopping, address, node) = (Rc::clone(&self.stopping), self.address.clone(), self.node.clone());
        glommio::spawn_local(async move {
            let mut pause = first;
            while !stopping.get() {
                node.sleep(pause).await;
                if let Err(error) = beat(&client, &address, incarnation).await {
                    tracing::warn!("telling the managers that this server is there: {error}");
                }
                // Its updates are recognisable by this number while the lease lasts.
                if let Err(error) = client.manager(&renewal(lease.client)).await {
                    tracing::debug!("renewing the lease: {error}");
                }
                pause = first;
            }
        })
        .detach();
    }

    fn keep_house(&self) {
        let (stopping, namespace, node) = (Rc::clone(&self.stopping), Rc::clone(&self.namespace), self.node.clone());
        glommio::spawn_local(async move {
            let mut cursor = GcCursor::default();
            let mut round = 0u32;
            while !stopping.get() {
                let more = clean_up(&namespace, &mut cursor, round).await;
                round = round.wrapping_add(1);
                if !more {
                    node.sleep(HOUSE).await;
                }
            }
        })
        .detach();
    }
}

/// Gets a client number from whichever manager leads.
async fn first_lease(node: &Node, managers: &[Address]) -> Result<mgmtd::ClientLeaseT> {
    let request = renewal(0);
    let mut said = false;
    loop {
        for manager in managers {
            match node.ask(manager, &request, Duration::from_secs(3)).await {
                Ok(lease) => return Ok(lease),
                Err(error) if error.class() == corefs_wire::Class::Fatal => return Err(error.of(manager)),
                Err(error) if !said => {
                    tracing::warn!("waiting for a manager: {}", error.of(manager));
                    said = true;
                }
                Err(_) => {}
            }
        }
        node.sleep(ASK_AGAIN).await;
    }
}

fn renewal(client: u64) -> mgmtd::RenewClientT {
    let mut request = mgmtd::RenewClientT::default();
    (request.client, request.name) = (client, "meta".into());
    request
}

async fn beat(client: &Client, address: &Address, incarnation: u64) -> Result<Duration> {
    let routing_version = client.routing().version;
    let mut request = mgmtd::RegisterMetaT::default();
    request.address = address.to_string();
    (request.incarnation, request.routing_version) = (incarnation, routing_version);
    let reply = client.manager(&request).await?;
    if let Some(routing) = &reply.routing {
        client.set_routing(RoutingInfo::from_message(routing)?);
    }
    Ok(Duration::from_millis(u64::from(reply.lease_ms / 3).max(10)))
}

/// One round of everything that happens in the background. Says whether there is more to do at once.
async fn clean_up<E: KvEngine>(namespace: &Namespace<E, World>, cursor: &mut GcCursor, round: u32) -> bool {
    if let (_, Err(error)) = namespace.finish_trims().await {
        tracing::warn!("finishing truncations: {error}");
    }
    if round.is_multiple_of(SWEEP_ROUNDS)
        && let Err(error) = namespace.settle_dead_clients().await
    {
        tracing::warn!("settling dead clients: {error}");
    }
    match namespace.collect_garbage(cursor, GcLimits::default()).await {
        Ok(collected) => {
            if let Some(error) = &collected.error {
                tracing::warn!("{} inodes could not be removed now: {error}", collected.failed);
            }
            collected.more && collected.removed > 0
        }
        Err(error) => {
            tracing::warn!("removing what nobody names: {error}");
            false
        }
    }
}

/// The world outside the namespace, reached through the native client.
pub struct World {
    client: Client,
    space: Cell<Option<(Instant, Space)>>,
}

impl Clock for World {
    fn now(&self) -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |before| -before),
        }
    }
}

impl Random for World {
    fn random(&self) -> u64 {
        getrandom::u64().unwrap_or_else(|error| panic!("the kernel has no random numbers: {error}"))
    }
}

impl ChunkService for World {
    async fn truncate_chunks(&self, inode: InodeId, layout: &Layout, length: u64, epoch: u32) -> Result<()> {
        self.client.truncate_chunks(inode, layout, length, epoch).await
    }

    async fn remove_chunks(&self, inode: InodeId, layout: &Layout, length: u64) -> Result<()> {
        self.client.remove_chunks(inode, layout, length).await
    }

    async fn inode_length(&self, inode: InodeId, layout: &Layout) -> Result<u64> {
        self.client.inode_length(inode, layout).await
    }

    fn routing(&self) -> Rc<RoutingInfo> {
        self.client.routing()
    }

    async fn space(&self) -> Result<Space> {
        if let Some((at, space)) = self.space.get()
            && at.elapsed() < SPACE_AGE
        {
            return Ok(space);
        }
        let status = self.client.manager(&mgmtd::GetStatusT::default()).await?;
        let slices = || status.nodes.iter().flat_map(|node| &node.slices);
        let total: u64 = slices().map(|slice| slice.capacity).sum();
        let used: u64 = slices().map(|slice| slice.used.min(slice.capacity)).sum();
        let copies = u64::from(status.replicas.max(1));
        let space = Space { total: total / copies, free: (total - used) / copies };
        self.space.set(Some((Instant::now(), space)));
        Ok(space)
    }
}

impl ClientLeases for World {
    async fn alive(&self, clients: &[ClientId]) -> Result<Vec<bool>> {
        let mut request = mgmtd::CheckClientsT::default();
        request.clients = clients.iter().map(|client| client.0).collect();
        let reply = self.client.manager(&request).await?;
        if reply.alive.len() != clients.len() {
            return Err(Error::mismatch(
                ErrorCode::BadFrame,
                clients.len() as u64,
                reply.alive.len() as u64,
                "a manager answered for another number of clients",
            ));
        }
        Ok(reply.alive)
    }
}

/// Answers requests.
struct Answers<E> {
    namespace: Rc<Namespace<E, World>>,
    started: Instant,
    /// By operation: how many succeeded, and how many didn't.
    requests: RefCell<BTreeMap<&'static str, (u64, u64)>>,
}

/// Starts a task for each request.
struct Dispatch<E>(Rc<Answers<E>>);

impl<E: KvEngine> Service for Dispatch<E> {
    fn request(&self, request: Request, responder: Responder) {
        let answers = Rc::clone(&self.0);
        glommio::spawn_local(async move {
            match answers.answer(&request).await {
                Ok(body) => responder.ok(&body, None),
                Err(error) => responder.err(&error),
            }
        })
        .detach();
    }
}

impl<E: KvEngine> Answers<E> {
    async fn answer(&self, request: &Request) -> Result<Vec<u8>> {
        let namespace = &*self.namespace;
        macro_rules! dispatch {
            ($($call:ty => $operation:ident),* $(,)?) => {
                match request.op {
                    $(<$call>::OP => {
                        let asked = <$call>::decode(&request.body)?;
                        let outcome = namespace.$operation(&asked).await;
                        self.count(<$call>::NAME, outcome.is_ok());
                        Ok(outcome?.encode())
                    })*
                    process_messages::GetProcessT::OP => Ok(self.process().encode()),
                    other => {
                        let what = "not an operation of a metadata server";
                        Err(Error::mismatch(ErrorCode::UnknownOperation, 0, other.into(), what))
                    }
                }
            };
        }
        dispatch! {
            meta::LookupT => lookup,
            meta::GetAttrT => get_attr,
            meta::CreateT => create,
            meta::OpenT => open,
            meta::CloseT => close,
            meta::SyncLengthT => sync_length,
            meta::ReadDirT => read_dir,
            meta::UnlinkT => unlink,
            meta::RmDirT => rmdir,
            meta::RenameT => rename,
            meta::LinkT => link,
            meta::ReadLinkT => read_link,
            meta::SetAttrT => set_attr,
            meta::StatFsT => statfs,
        }
    }

    fn count(&self, name: &'static str, good: bool) {
        let mut requests = self.requests.borrow_mut();
        let (succeeded, failed) = requests.entry(name).or_default();
        *(if good { succeeded } else { failed }) += 1;
    }

    fn process(&self) -> process_messages::ProcessT {
        let requests = self.requests.borrow();
        let counters = requests.iter().flat_map(|(name, (good, bad))| {
            [((*name).to_owned(), *good), (format!("{name}.errors"), *bad)]
        });
        process::report("meta", self.started.elapsed(), counters)
    }
}

const _: fn() = || {
    fn outside<T: Outside>() {}
    outside::<World>();
};
