//! The namespace: every name, inode, length and session of a file system, kept in a transactional key-value store.
//!
//! A [`Namespace`] has no state of its own but a block of unused inode numbers: any number of servers run over one
//! store, and nothing is cached that could be stale. Operations are async over traits; only [`server`] knows a runtime.
//!
//! Invariants that hold after every commit ([`check`] verifies them):
//! - every entry leads to an inode of the entry's kind, and a file's link count is the number of its entries;
//! - directories form one tree under the root, each pointing back at the one directory that names it;
//! - an inode without names waits in the garbage queue, and its number is never given out again;
//! - a truncation that has begun is listed until its chunks are cut.
//!
//! | module | says |
//! |---|---|
//! | [`key`] | every key, in one table |
//! | [`encoding`], [`inode`], [`dirent`], [`session`] | what the values hold |
//! | [`outside`] | what is needed of the world: clock, randomness, chunks, leases |
//! | [`namespace`], [`once`], [`mark`] | the frame of every operation: one round of reads, one commit, exactly once |
//! | [`ops`] | the operations, one file each |
//! | [`acl`], [`posix_acl`], `lists` | who may do what: by mode bits, by access control lists, and where those are stored |
//! | [`lock`] | advisory locks on ranges of files |
//! | `inline` | bytes of small files, kept with their inodes |
//! | [`length`] | truncation in three steps; lengths of files that are being written |
//! | [`inode_alloc`], [`chain_pick`] | numbers and layouts of new files |
//! | [`gate`], [`at_once`] | one task at a time does the same thing; several do many |
//! | [`gc`], [`sweep`] | what happens in the background: chunks removed, dead clients settled |
//! | [`watch`] | what lately changed, for clients that believe what they heard for long |
//! | [`check`] | verifies everything above |
//! | [`server`] | the process: endpoint, upkeep, clean stop |

pub mod acl;
pub mod at_once;
pub mod chain_pick;
pub mod check;
pub mod dirent;
pub mod encoding;
pub mod gate;
pub mod gc;
mod inline;
pub mod inode;
pub mod inode_alloc;
pub mod key;
pub mod length;
mod lists;
pub mod lock;
pub mod mark;
pub mod namespace;
pub mod once;
pub mod ops;
pub mod outside;
pub mod posix_acl;
pub mod server;
pub mod session;
pub mod sweep;
pub mod trash;
pub mod watch;

pub use namespace::Namespace;
pub use outside::{ChunkService, ClientLeases, Clock, Outside, Random, Space};
pub use server::{MetaOptions, MetaServer, MetaThread};
