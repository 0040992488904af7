//! The handle: connecting, the lease, routing kept fresh, and the inodes in use.

use crate::file::{CreateOptions, File, OpenOptions};
use crate::fs::Fs;
use crate::meta::Meta;
use crate::{Attr, Changes, Credentials};
use corefs_net::{Address, Node, Pool, Secret};
use corefs_wire::control::Call;
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{ClientId, InodeId, Result, Uuid};
use std::rc::Rc;
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
    /// How long an operation is retried before its error is given to the caller.
    pub deadline: Duration,
    /// Most bytes that wait to be written behind the caller, per file; 0: every write is direct.
    pub write_behind: usize,
}

impl ClientOptions {
    pub fn new(managers: Vec<Address>, secret: Option<Secret>) -> Self {
        Self {
            managers,
            secret,
            name: String::from("client"),
            pool_bytes: 64 << 20,
            busy_poll: Duration::from_micros(50),
            deadline: Duration::from_secs(30),
            write_behind: 4 << 20,
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
    /// Blocks of the data path.
    pub reads: u64,
    pub read_frames: u64,
    pub read_retries: u64,
    pub checksum_mismatches: u64,
    pub updates: u64,
    pub update_retries: u64,
    pub meta_calls: u64,
    pub meta_retries: u64,
    pub routing_fetches: u64,
}

/// A client of one cluster on one executor; clones are handles of the same. `!Send`.
#[derive(Clone)]
pub struct Client {}

#[allow(unused_variables)]
impl Client {
    /// Learns the cluster, gets a lease and routing, and keeps both fresh until [`close`](Self::close).
    /// `Unreachable` when no manager answers before the deadline; `AuthenticationFailed`, `WrongCluster`, `VersionMismatch`.
    pub async fn connect(options: ClientOptions) -> Result<Self> {
        todo!()
    }

    /// A client inside a server. Nothing is fetched before it is needed.
    pub fn connect_internal(options: InternalOptions) -> Self {
        todo!()
    }

    /// Sets routing unless it is older than what we have.
    pub fn set_routing(&self, routing: RoutingInfo) {
        todo!()
    }

    pub fn routing(&self) -> Rc<RoutingInfo> {
        todo!()
    }

    pub fn node(&self) -> &Node {
        todo!()
    }

    pub fn pool(&self) -> Pool {
        todo!()
    }

    pub fn cluster(&self) -> Uuid {
        todo!()
    }

    pub fn id(&self) -> ClientId {
        todo!()
    }

    pub fn counters(&self) -> Counters {
        todo!()
    }

    /// One call to whichever manager leads.
    pub async fn manager<C: Call>(&self, request: &C) -> Result<C::Reply> {
        todo!()
    }

    /// The metadata calls, without regard to files that are open here.
    pub fn meta(&self) -> Meta {
        todo!()
    }

    /// The namespace by path, on behalf of `who`.
    pub fn fs(&self, who: Credentials) -> Fs {
        todo!()
    }

    /// The attributes; of a file that is open here with what was written to it.
    pub async fn get_attr(&self, who: &Credentials, inode: InodeId) -> Result<Attr> {
        todo!()
    }

    /// Looks up a name; as [`get_attr`](Self::get_attr) of what it finds.
    pub async fn lookup(&self, who: &Credentials, parent: InodeId, name: &[u8]) -> Result<Attr> {
        todo!()
    }

    /// Changes attributes; what was written here before is written before.
    pub async fn set_attr(&self, who: &Credentials, inode: InodeId, changes: Changes) -> Result<Attr> {
        todo!()
    }

    /// Opens a file that exists. `IsDirectory`, `NotSupported` for other kinds.
    pub async fn open(&self, who: &Credentials, inode: InodeId, options: OpenOptions) -> Result<File> {
        todo!()
    }

    /// Creates a file and opens it for writing, or opens what is there unless `exclusive`.
    /// Says whether it was created.
    pub async fn create(
        &self,
        who: &Credentials,
        parent: InodeId,
        name: &[u8],
        options: CreateOptions,
    ) -> Result<(File, bool)> {
        todo!()
    }

    /// Writes what is buffered, ends open sessions and the lease. Other handles fail afterwards.
    pub async fn close(&self) -> Result<()> {
        todo!()
    }
}
