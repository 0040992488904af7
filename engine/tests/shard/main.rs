//! Real shards over real sockets and files.

mod chains;
mod crowded;
mod disks;
mod faults;
mod filling;
mod harness;
mod repair;
mod single;
mod steady;
mod stopped;

/// Counts, for `steady`.
#[global_allocator]
static HEAP: corefs_net::heap::Counting = corefs_net::heap::Counting;
