//! The storage server: slices of disks, the targets in them, and one pinned executor per core that owns them.
//!
//! | module | is |
//! |---|---|
//! | [`store`] | the chunk store of one slice; pure |
//! | [`chain`] | chain replication as one replica sees it; pure |
//! | [`target`], [`targets`], [`slice`] | both together behind one `handle(now, event, &mut outputs)`; pure |
//! | [`repair`], [`scrub`] | damaged blocks made whole from other replicas, and the walk that finds them; pure |
//! | [`event`] | what a shard tells its targets, and what they ask of it |
//! | [`block`] | whole checksum blocks made of payloads and old blocks; pure |
//! | [`server`] | a storage node: shards on pinned cores, and the control endpoint that keeps them in the cluster |
//! | [`shard`] | one core's server: ring, sockets, disks, targets, and the turn that drives them |
//! | [`mesh`] | the only way between cores: control messages |
//! | [`disk`] | files and block devices under O_DIRECT on the shard's ring, and the bare bound |

pub mod block;
pub mod chain;
pub mod disk;
pub mod event;
pub mod mesh;
pub mod repair;
pub mod scrub;
pub mod server;
pub mod shard;
pub mod slice;
pub mod store;
pub mod target;
pub mod targets;

pub use server::{Options, StorageServer};
