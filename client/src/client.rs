//! The handle: connecting, and the inodes in use.

mod connect;
mod ends;
mod keep;
mod namespace;
mod status;

use crate::Credentials;
use crate::fs::Fs;
use crate::ground::Ground;
use crate::guess::Guess;
use crate::inode::Inode;
use crate::lately::Lately;
use crate::meta::Meta;
use crate::route::pace::Hedge;
use crate::storage::Storage;
use crate::wait::Waiters;
use crate::watch::Watch;
use corefs_net::transport::Choice as Transport;
use corefs_net::{Address, Bell, Buffer, Node, Pool, Secret};
use corefs_wire::control::Call;
use corefs_wire::control::mgmtd::StatusT;
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{ClientId, Error, InodeId, Result, Uuid};
use ends::Ends;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::rc::{Rc, Weak};
use std::time::Duration;

/// How to reach a cluster, and what this client may use.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The managers; one that answers is enough.
    pub managers: Vec<Address>,
    pub secret: Option<Secret>,
    /// Shown in the cluster's status.
    pub name: String,
    /// Arena for data in flight (bytes).
    pub pool_bytes: usize,
    /// How long the executor polls before it sleeps.
    pub busy_poll: Duration,
    /// By what connections to storage nodes and others go.
    pub transport: Transport,
    /// How long an operation is retried before its error is given to the caller.
    pub deadline: Duration,
    /// Most bytes that wait to be written behind the caller, per file; 0: every write is direct. All files together hold
    /// at most half of the pool.
    pub write_behind: usize,
    /// When a read is asked for at a second replica, too.
    pub hedge: Hedge,
}

impl ClientOptions {
    pub fn new(managers: Vec<Address>, secret: Option<Secret>) -> Self {
        Self {
            managers,
            secret,
            name: String::from("client"),
            pool_bytes: 64 << 20,
            busy_poll: Duration::ZERO,
            transport: Transport::Auto,
            deadline: Duration::from_secs(30),
            write_behind: 4 << 20,
            hedge: Hedge::Auto,
        }
    }
}

/// A client inside a server: it has no lease, and may be told the routing instead of fetching it.
#[derive(Clone)]
pub struct InternalOptions {
    /// The process's endpoint, shared with its other work.
    pub node: Node,
    /// Who the updates are from: unique in the cluster, as long as this incarnation lives.
    pub client: ClientId,
    pub incarnation: u32,
    /// Asked for routing when an error says that ours is old; may be empty: then [`Client::set_routing`] alone brings it.
    pub managers: Vec<Address>,
    pub deadline: Duration,
}

/// What a client has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Reads of one chunk each, and the frames that carried them.
    pub reads: u64,
    pub read_frames: u64,
    pub read_retries: u64,
    /// Reads that a second replica was asked for because the first was late, and those that it answered first.
    pub hedged_reads: u64,
    pub hedges_won: u64,
    pub checksum_mismatches: u64,
    pub updates: u64,
    pub update_retries: u64,
    pub meta_calls: u64,
    pub meta_retries: u64,
    pub routing_fetches: u64,
}

/// A client of one cluster on one executor; clones are handles of the same. `!Send`.
#[derive(Clone)]
pub struct Client(pub(crate) Rc<Inner>);

pub(crate) struct Inner {
    pub ground: Rc<Ground>,
    pub storage: Rc<Storage>,
    pub meta: Meta,
    /// Inodes that are open, and some that were a moment ago.
    pub inodes: RefCell<HashMap<InodeId, Weak<Inode>>>,
    /// Of those, the ones that may be open and that nothing but a session for writing holds.
    pub unheld: RefCell<BTreeSet<InodeId>>,
    /// Files that lost a name to this client lately: an open that was under way then couldn't be named among those to keep.
    pub names_gone: RefCell<Lately<InodeId>>,
    /// Which new files are likely to stay small.
    pub guess: Guess,
    /// Most bytes held behind one file.
    pub write_behind: usize,
    /// Bytes held behind all files.
    pub held: Cell<usize>,
    /// Changes when some of them were stored.
    pub relief: Waiters,
    /// Handles that were dropped and must be closed.
    pub orphans: RefCell<Vec<Orphan>>,
    /// Hears of what others change, if names and attributes are remembered.
    pub watch: OnceCell<Rc<Watch>>,
    /// Told of appends that went elsewhere than whoever appended believed.
    moved: RefCell<Option<Rc<Moved>>>,
    /// Changes when a lock was given back here.
    pub unlocked: Waiters,
    /// Who waits for one.
    pub lock_waiters: Cell<u32>,
    name: String,
    lease: Cell<Duration>,
    /// CLOCK_BOOTTIME (ms).
    leased_until: Cell<u64>,
    /// It is being renewed.
    leasing: Cell<bool>,
    /// Changes when that has ended, whichever way.
    leases: Waiters,
    lease_failure: RefCell<Option<Error>>,
    /// Sessions that nobody uses any more and that are still to be ended.
    pub ends: Rc<Ends>,
    /// The endpoint is ours to shut down.
    owns_node: bool,
}

/// Of which file, and from which byte on its end is otherwise.
type Moved = dyn Fn(InodeId, u64);

/// What is left of a handle that was dropped without being closed.
pub(crate) struct Orphan {
    pub inode: Rc<Inode>,
    pub session: u64,
    pub who: Credentials,
}

impl Client {
    /// Learns the cluster, gets a lease and routing, and keeps both fresh until [`close`](Self::close).
    /// `Unreachable` when no manager answers before the deadline; `AuthenticationFailed`, `WrongCluster`, `VersionMismatch`.
    pub async fn connect(options: ClientOptions) -> Result<Self> {
        connect::connect(options).await
    }

    /// One call to whichever manager leads, for who wants nothing else: without a lease and without routing, so also of a cluster
    /// that has no chains yet. Errors: those of [`connect`](Self::connect), and of the call.
    pub async fn ask_managers<C: Call>(options: ClientOptions, request: &C) -> Result<C::Reply> {
        connect::ask_managers(options, request).await
    }

    /// The whole [status](Self::status), from whichever manager leads, also of a cluster that has no chains yet.
    pub async fn ask_status(options: ClientOptions) -> Result<StatusT> {
        connect::ask_status(options).await
    }

    /// A client inside a server. Nothing is fetched before it is needed.
    pub fn connect_internal(options: InternalOptions) -> Self {
        connect::internal(options)
    }

    /// Sets routing unless it is older than what we have.
    pub fn set_routing(&self, routing: RoutingInfo) {
        self.0.ground.install(routing);
    }

    /// Rung when an error said that routing is old: for servers that bring it by [`set_routing`](Self::set_routing).
    pub fn routing_wanted(&self) -> Bell {
        self.0.ground.wanted.clone()
    }

    pub fn routing(&self) -> Rc<RoutingInfo> {
        self.0.ground.routing()
    }

    pub fn node(&self) -> &Node {
        &self.0.ground.node
    }

    pub fn pool(&self) -> Pool {
        self.0.ground.pool.clone()
    }

    /// A buffer of the pool, as soon as there is one. `Overloaded` when there is none before the patience ends.
    pub async fn buffer(&self, len: usize) -> Result<Buffer> {
        self.0.storage.buffer(len).await
    }

    pub fn cluster(&self) -> Uuid {
        self.0.ground.routes.borrow().info().cluster
    }

    pub fn id(&self) -> ClientId {
        self.0.client()
    }

    pub fn counters(&self) -> Counters {
        *self.0.ground.counters.borrow()
    }

    /// One call to whichever manager leads.
    pub async fn manager<C: Call>(&self, request: &C) -> Result<C::Reply> {
        self.0.ground.manager(request).await
    }

    /// How the cluster is, as the manager sees it: all pages of it.
    pub async fn status(&self) -> Result<StatusT> {
        status::whole(&self.0.ground).await
    }

    /// The metadata calls, without regard to files that are open here.
    pub fn meta(&self) -> Meta {
        self.0.meta.clone()
    }

    /// The namespace by path, on behalf of `who`.
    pub fn fs(&self, who: Credentials) -> Fs {
        Fs::new(self.clone(), who)
    }

    /// Has `told` hear of appends that went elsewhere than [`File::append_believing`](crate::File::append_believing) was told: of which
    /// file, and from which byte on a cache of it is wrong. It is called before these bytes are stored, and must not wait.
    pub fn on_moved(&self, told: impl Fn(InodeId, u64) + 'static) {
        self.0.moved.replace(Some(Rc::new(told)));
    }

    /// Runs `work` beside whoever calls, for as long as it takes. Of a pool's client it isn't among the work that is bounded.
    pub fn detach(&self, work: impl Future<Output = ()> + 'static) {
        corefs_net::executor::spawn(work).detach();
    }

    /// Writes what is buffered, ends open sessions and the lease. Other handles fail afterwards.
    pub async fn close(&self) -> Result<()> {
        keep::close(&self.0).await
    }
}

impl Inner {
    /// By which number others know us. It changes when our lease was lost.
    #[inline]
    pub fn client(&self) -> ClientId {
        self.storage.client().0
    }

    /// Has a session ended in the background that no handle is left for, and that has nothing to tell.
    pub fn end_later(&self, inode: InodeId, session: u64) {
        self.ends.add(&self.meta, inode, session);
    }

    /// The inode, if it is open here.
    pub fn live(&self, inode: InodeId) -> Option<Rc<Inode>> {
        self.inodes.borrow().get(&inode).and_then(Weak::upgrade)
    }

    pub fn moved(&self, inode: &Inode, from: u64) {
        let told = self.moved.borrow().clone();
        if let Some(told) = told {
            told(inode.id(), from);
        }
    }

    /// All inodes that are open.
    pub fn all_live(&self) -> Vec<Rc<Inode>> {
        self.inodes.borrow().values().filter_map(Weak::upgrade).collect()
    }
}
