//! Connecting: who we are, our lease, the first routing.

use super::{Client, ClientOptions, Inner, InternalOptions, keep, status};
use crate::ground::Ground;
use crate::meta::Meta;
use crate::route::pace::Hedge;
use crate::storage::Storage;
use crate::wait::Waiters;
use corefs_net::handshake::{Identity, Role};
use corefs_net::process::boot_ms;
use corefs_net::{Node, NodeConfig};
use corefs_wire::control::Call;
use corefs_wire::control::mgmtd::{ClientLeaseT, RenewClientT, StatusT};
use corefs_wire::{Class, ClientId, Error, ErrorCode, Result, Uuid};
use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::time::Duration;

pub async fn connect(options: ClientOptions) -> Result<Client> {
    let node = endpoint(&options)?;
    let client = match begin(node.clone(), &options).await {
        Ok(client) => client,
        Err(error) => {
            node.shutdown().await;
            return Err(error);
        }
    };
    keep::start(&client.0);
    Ok(client)
}

pub async fn ask_managers<C: Call>(options: ClientOptions, request: &C) -> Result<C::Reply> {
    without_lease(options, async |ground| ground.manager(request).await).await
}

pub async fn ask_status(options: ClientOptions) -> Result<StatusT> {
    without_lease(options, status::whole).await
}

async fn without_lease<T>(options: ClientOptions, work: impl AsyncFnOnce(&Ground) -> Result<T>) -> Result<T> {
    let node = endpoint(&options)?;
    let ground = Ground::new(node.clone(), options.managers, options.deadline, seed());
    let result = work(&ground).await;
    node.shutdown().await;
    result
}

/// Where a client's connections end.
fn endpoint(options: &ClientOptions) -> Result<Node> {
    if options.managers.is_empty() {
        return Err(Error::new(ErrorCode::BadConfig, "no manager's address was given"));
    }
    let identity = Identity {
        role: Role::Client,
        // The lease that gives us a number comes over a connection that needs an identity: updates and calls carry it.
        id: 0,
        incarnation: crate::inode::now() as u64,
        cluster: Uuid::NIL,
        secret: options.secret.clone(),
    };
    let mut config = NodeConfig::new(identity);
    config.pool_bytes = options.pool_bytes;
    config.ring.busy_poll = options.busy_poll;
    config.transport = options.transport;
    // One more than the pool lets in: the message that ends a shard always finds room.
    config.mailbox = crate::pool::MAILBOX + 1;
    Node::start(config)
}

async fn begin(node: Node, options: &ClientOptions) -> Result<Client> {
    let ground = Ground::new(node, options.managers.clone(), options.deadline, seed());
    let storage = Storage::new(Rc::new(ground), options.hedge);
    let client = make(storage, options.name.clone(), options.write_behind, true);
    let lease = client.0.renew(ClientId(0)).await?;
    let ground = &client.0.ground;
    let until = ground.now() + options.deadline;
    loop {
        let outcome = ground.fetch_once(Duration::from_millis(500)).await;
        if ground.generation() > 0 {
            break;
        }
        if ground.now() > until {
            let not_ready = || Error::new(ErrorCode::NotReady, "the managers have no routing yet");
            return Err(outcome.err().unwrap_or_else(not_ready));
        }
        ground.node.sleep(Duration::from_millis(50)).await;
    }
    let (ours, leased) = (client.cluster(), lease.cluster.as_slice());
    if leased != ours.0 {
        return Err(Error::new(
            ErrorCode::WrongCluster,
            format!("the managers disagree about cluster {ours}"),
        ));
    }
    Ok(client)
}

pub fn internal(options: InternalOptions) -> Client {
    let InternalOptions { node, client: id, incarnation, managers, deadline } = options;
    let ground = Rc::new(Ground::new(node, managers, deadline, seed()));
    // It reads next to nothing.
    let client = make(Storage::new(ground, Hedge::Off), String::new(), 0, false);
    client.0.set_client(id, incarnation);
    client
}

fn make(storage: Rc<Storage>, name: String, write_behind: usize, owns_node: bool) -> Client {
    let ground = storage.ground();
    let meta = Meta::new(Rc::clone(&ground));
    Client(Rc::new(Inner {
        ground,
        storage,
        meta,
        inodes: Default::default(),
        unheld: Default::default(),
        names_gone: Default::default(),
        guess: Default::default(),
        write_behind,
        held: Cell::new(0),
        relief: Waiters::default(),
        orphans: Default::default(),
        watch: Default::default(),
        moved: std::cell::RefCell::default(),
        unlocked: Waiters::default(),
        lock_waiters: Cell::new(0),
        name,
        lease: Cell::new(Duration::from_secs(10)),
        // One inside a server has no lease, and needs none.
        leased_until: Cell::new(if owns_node { 0 } else { u64::MAX }),
        leasing: Cell::new(false),
        leases: Waiters::default(),
        lease_failure: Default::default(),
        ends: Default::default(),
        owns_node,
    }))
}

impl Inner {
    pub(super) fn set_client(&self, client: ClientId, incarnation: u32) {
        self.storage.set_client(client, incarnation);
        self.meta.set_client(client, incarnation);
    }

    /// Whether our lease still runs, as far as we know: others may take us for dead a little later.
    #[inline]
    pub fn has_lease(&self) -> bool {
        boot_ms() < self.leased_until.get()
    }

    /// Renews our lease, or gets a new one when it has ended. Who comes while that is being done waits for it.
    pub(crate) async fn have_lease(&self) -> Result<()> {
        if self.leasing.replace(true) {
            self.leases.next().await;
            return self.lease_failure.borrow().clone().map_or(Ok(()), Err);
        }
        let _leasing = Leasing(self);
        let outcome = self.renew_or_begin().await;
        *self.lease_failure.borrow_mut() = outcome.as_ref().err().cloned();
        outcome
    }

    async fn renew_or_begin(&self) -> Result<()> {
        let id = self.client();
        let Err(error) = self.renew(id).await else { return Ok(()) };
        self.ground.check_open()?;
        tracing::warn!(%error, client = %id, "the client's lease was not renewed");
        match error.code == ErrorCode::LeaseExpired || error.class() == Class::Fatal {
            true => self.renew(ClientId(0)).await.map(drop),
            false => Err(error),
        }
    }

    /// Renews our lease, or gets one if `client` is 0, and takes what the manager says.
    async fn renew(&self, client: ClientId) -> Result<ClientLeaseT> {
        let mut request = RenewClientT::default();
        request.client = client.0;
        request.name.clone_from(&self.name);
        // Counted from before the question: the manager counts from when it hears it.
        let asked = boot_ms();
        let lease = self.ground.manager(&request).await?;
        self.lease.set(Duration::from_millis(u64::from(lease.lease_ms).max(100)));
        self.leased_until.set(asked + u64::from(lease.lease_ms));
        self.set_client(ClientId(lease.client), lease.incarnation);
        Ok(lease)
    }

    pub(super) fn lease(&self) -> Duration {
        self.lease.get()
    }
}

/// Ends also when whoever renews is dropped.
struct Leasing<'a>(&'a Inner);

impl Drop for Leasing<'_> {
    fn drop(&mut self) {
        self.0.leasing.set(false);
        self.0.leases.wake_all();
    }
}

/// Chance of this process's own: the standard library seeds its hashers from the kernel.
fn seed() -> u64 {
    RandomState::new().hash_one(std::process::id())
}
