//! The metadata server as a process: an endpoint that answers requests, and tasks that keep the namespace tidy.
//!
//! Everything runs on the current executor. Each request is a task of its own, so that the commits of many share
//! the store's flushes; nothing is kept between requests but what lately changed, so any number of servers run and any may be killed.

mod desk;
mod roads;
mod thread;
mod upkeep;
mod watch;

pub use roads::Roads;
pub use thread::MetaThread;

use crate::key::Keys;
use crate::namespace::Namespace;
use crate::watch::{Changes, Noting};
use corefs_client::{Client, InternalOptions};
use corefs_kv::KvEngine;
use corefs_kv::prng::Prng;
use corefs_net::{Address, Identity, Node, NodeConfig, Request, Responder, Role, Secret, Service};
use corefs_wire::{Class, ClientId, Error, ErrorCode, Result, Uuid};
use desk::{Desk, FrontDesk};
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use upkeep::Upkeep;
use watch::Watchers;

/// The number of the one file system that a cluster has so far; keys have room for more.
pub const FILE_SYSTEM: u32 = 1;

/// Arena for data of the server's own calls: removing and measuring chunks carries none, lists are small.
const POOL_BYTES: usize = 4 << 20;
/// Ids of servers' internal clients have this bit; the managers number others from below.
const INTERNAL_CLIENT: u64 = 1 << 63;

/// How long chunks are tried to be cut, removed or measured before whoever asked is told of the failure.
const CHUNK_PATIENCE: Duration = Duration::from_secs(20);
/// Between attempts to reach managers or store at the start.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// How a metadata server is started.
#[derive(Clone, Debug)]
pub struct MetaOptions {
    /// Where it listens, and where others reach it.
    pub listen: Address,
    /// The managers; one that answers is enough.
    pub managers: Vec<Address>,
    pub secret: Option<Secret>,
}

impl MetaOptions {
    fn identity(&self, cluster: Uuid, incarnation: u64) -> Identity {
        Identity { role: Role::Meta, id: 0, incarnation, cluster, secret: self.secret.clone() }
    }
}

/// What the server's parts share.
struct Shared<E> {
    node: Node,
    client: Client,
    namespace: Namespace<Noting<E>, Roads>,
    watchers: Rc<Watchers>,
    /// Where others reach it.
    address: Address,
    incarnation: u64,
    stopping: Cell<bool>,
    upkeep: Upkeep,
}

/// A running metadata server.
pub struct MetaServer<E> {
    shared: Rc<Shared<E>>,
}

impl<E: KvEngine> MetaServer<E> {
    /// Brings a server up on the current executor, waiting for a manager and for the store as long as it takes. When it
    /// returns, the file system is there, requests are answered, and the managers tell clients about it.
    ///
    /// Errors: `AddressInUse`, `BadConfig`, `BadFormat` for a file system of another version, and what the managers'
    /// handshake refuses for good (`AuthenticationFailed`, `VersionMismatch`).
    pub async fn start(options: MetaOptions, engine: E) -> Result<Self> {
        // Whoever connects is told the cluster, so it has to be known before the listener is there.
        let cluster = learn_cluster(&options).await?;
        Self::start_in(cluster, options, engine).await
    }

    /// As [`start`](Self::start), when the managers' cluster is known.
    async fn start_in(cluster: Uuid, options: MetaOptions, engine: E) -> Result<Self> {
        let incarnation = wall_ns();
        let identity = options.identity(cluster, incarnation);
        let node = Node::start(NodeConfig { pool_bytes: POOL_BYTES, ..NodeConfig::new(identity) })?;
        match Self::settle(&node, &options, engine, incarnation).await {
            Ok(server) => Ok(server),
            Err(error) => {
                shut_down(&node).await;
                Err(error)
            }
        }
    }

    async fn settle(node: &Node, options: &MetaOptions, engine: E, incarnation: u64) -> Result<Self> {
        let address = node.listen(&options.listen)?;
        let mut random = Prng::new(seed()?);
        let client = Client::connect_internal(InternalOptions {
            node: node.clone(),
            client: ClientId(random.draw() | INTERNAL_CLIENT),
            incarnation: 1,
            managers: options.managers.clone(),
            deadline: CHUNK_PATIENCE,
        });
        let roads = Roads::new(client.clone(), random);
        let changes = Changes::default();
        let watchers = Watchers::new(changes.clone(), incarnation);
        let engine = Noting::new(engine, Keys::new(FILE_SYSTEM), changes);
        let shared = Rc::new(Shared {
            node: node.clone(),
            client,
            namespace: Namespace::new(engine, FILE_SYSTEM, roads),
            watchers,
            address,
            incarnation,
            stopping: Cell::new(false),
            upkeep: Upkeep::default(),
        });
        let name = "preparing the file system";
        insistently(node, name, async || shared.namespace.format().await).await?;
        node.serve(Rc::new(FrontDesk::new(Desk::new(Rc::clone(&shared)))));
        // Clients find this server through the managers, so it isn't ready before they know it.
        let lease = insistently(node, "registering", async || shared.register().await).await?;
        upkeep::start(&shared, lease);
        Ok(Self { shared })
    }

    /// Where others reach it.
    pub fn address(&self) -> &Address {
        &self.shared.address
    }

    pub fn namespace(&self) -> &Namespace<Noting<E>, Roads> {
        &self.shared.namespace
    }

    /// Answers what is in progress, and ends. Requests that arrive meanwhile are told to go elsewhere.
    pub async fn stop(self) -> Result<()> {
        self.shared.stopping.set(true);
        self.shared.watchers.end();
        shut_down(&self.shared.node).await;
        Ok(())
    }
}

/// Does something until it succeeds or fails for good, and says once that it has to wait.
async fn insistently<T>(node: &Node, what: &str, mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let mut said = false;
    loop {
        match attempt().await {
            Err(error) if error.class() != Class::Fatal => {
                if !said {
                    tracing::warn!(%error, "{what}: not yet");
                    said = true;
                }
                node.sleep(ASK_AGAIN).await;
            }
            outcome => return outcome.map_err(|error| error.of(what)),
        }
    }
}

/// Asks whichever manager answers first.
async fn learn_cluster(options: &MetaOptions) -> Result<Uuid> {
    let identity = options.identity(Uuid::NIL, wall_ns());
    let node = Node::start(NodeConfig { pool_bytes: POOL_BYTES, ..NodeConfig::new(identity) })?;
    let outcome = insistently(&node, "asking the managers for their cluster", async || {
        let mut failure = Error::new(ErrorCode::BadConfig, "no manager's address was given");
        for manager in &options.managers {
            match node.within(Duration::from_secs(2), node.connection(manager)).await {
                Ok(conn) => match node.peer(conn) {
                    Some(peer) if peer.cluster != Uuid::NIL => return Ok(peer.cluster),
                    _ => failure = Error::new(ErrorCode::NotReady, "it knows no cluster yet").of(manager),
                },
                Err(error) => failure = error.of(manager),
            }
        }
        Err(failure)
    });
    let outcome = outcome.await;
    node.shutdown().await;
    outcome
}

/// Ends the endpoint, and lets go of what answered: it holds the endpoint and the store.
async fn shut_down(node: &Node) {
    node.shutdown().await;
    node.serve(Rc::new(Gone));
}

/// Answers for a server that has stopped.
struct Gone;

impl Service for Gone {
    fn request(&self, _request: Request, responder: Responder) {
        responder.err(&Error::new(ErrorCode::ShuttingDown, "this metadata server has stopped"));
    }
}

/// Wall-clock time, nanoseconds since the epoch; 0 on a machine that thinks it is earlier.
fn wall_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(0)
}

fn seed() -> Result<u64> {
    getrandom::u64().map_err(|error| Error::new(ErrorCode::Os, format!("getrandom: {error}")))
}
