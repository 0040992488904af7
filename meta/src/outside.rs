//! What the namespace needs from the world beyond its store. Servers give the real thing, tests and the simulator
//! their own; no runtime's type is here.

use corefs_wire::layout::Layout;
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{ClientId, InodeId, Result};
use std::rc::Rc;
use std::time::Duration;

/// Wall-clock time.
pub trait Clock {
    /// Nanoseconds since the epoch, UTC.
    fn now(&self) -> i64;
}

/// Numbers that nobody else gets: session numbers, seeds of layouts.
pub trait Random {
    fn random(&self) -> u64;
}

/// Room on the storage servers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Space {
    /// Bytes a file system could hold, replication taken off.
    pub total: u64,
    pub free: u64,
}

/// The chunks of inodes, on the storage servers. Every call is idempotent, covers all chains of the layout and all
/// chunks that are really there (whatever the inode's length says), and returns when every replica has done it, or, where it may
/// stop early, as much of it as it says.
#[allow(async_fn_in_trait)] // executors are single-threaded: futures need not be Send
pub trait ChunkService {
    /// Cuts the file to `length` bytes under truncate epoch `epoch`. What it cuts refuses writes of older epochs from then
    /// on; a chunk whose own epoch is newer stays as it is.
    async fn truncate_chunks(&self, inode: InodeId, layout: &Layout, length: u64, epoch: u32) -> Result<()>;

    /// Writes the file's first bytes, fewer than a chunk has, under epoch `epoch`; a chunk whose own epoch is newer stays as it is.
    async fn write_first_chunk(
        &self,
        inode: InodeId,
        layout: &Layout,
        bytes: &[u8],
        epoch: u32,
    ) -> Result<()>;

    /// Removes chunks for about as long as `slice`, and says whether none is left; the inode number is never used again.
    async fn remove_chunks(&self, inode: InodeId, layout: &Layout, slice: Duration) -> Result<bool>;

    /// The end of the last byte that any chunk holds.
    async fn inode_length(&self, inode: InodeId, layout: &Layout) -> Result<u64>;

    /// The newest routing known here: layouts of new files are picked from it.
    fn routing(&self) -> Rc<RoutingInfo>;

    async fn space(&self) -> Result<Space>;
}

/// Which clients still live, as the managers know it.
#[allow(async_fn_in_trait)]
pub trait ClientLeases {
    /// For each client whether its lease runs. An error means that nobody knows: then nobody is dead.
    async fn alive(&self, clients: &[ClientId]) -> Result<Vec<bool>>;
}

/// All of it together.
pub trait Outside: Clock + Random + ChunkService + ClientLeases + 'static {}

impl<T: Clock + Random + ChunkService + ClientLeases + 'static> Outside for T {}
