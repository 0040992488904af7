//! The native client: everything that reads or writes corefs goes through here.
//!
//! A [`Client`] lives on one executor and is a cheap handle there; several in a process (one a core) know nothing of
//! each other. Other threads come in through a [`ClientPool`].
//!
//! | module | is |
//! |---|---|
//! | [`client`] | the handle: connecting, lease, routing kept fresh, inodes in use |
//! | [`route`] | which replica to ask and what to do after an error; pure |
//! | [`storage`] | chunks: reads batched per owner, updates tagged and retried, lists |
//! | [`meta`] | typed calls to the metadata servers, recognisable when sent again |
//! | [`attr`] | what the namespace says about an inode |
//! | [`file`] | open files: one shared length per inode, write-behind, direct I/O |
//! | `lately` | what happened while an answer was on its way |
//! | `guess` | which new files are likely to stay small |
//! | [`lock`] | advisory locks, and waiting for them |
//! | [`fs`] | the namespace by path, copying in and out |
//! | [`chunks`] | lengths, truncation and removal of all chunks of an inode, for the metadata servers |
//! | `watch` | remembers names and attributes until it hears that others changed them |
//! | [`wait`] | how tasks of one executor wait for something to change |
//! | [`pool`] | client shards on threads of their own, and the doors to them |

pub mod attr;
mod behind;
pub mod chunks;
pub mod client;
pub mod file;
pub mod fs;
mod ground;
mod guess;
mod inode;
mod join;
mod lately;
pub mod lock;
pub mod meta;
pub mod pool;
pub mod route;
mod servers;
mod sessions;
pub mod storage;
pub mod wait;
mod watch;

pub use attr::{Attr, Changes, Credentials, Entry, Kind, Known, Marks, Space, Time, has_set_ids};
pub use client::{Client, ClientOptions, Counters, InternalOptions};
pub use file::{CreateOptions, Data, File, OpenOptions, read_batch};
pub use fs::Fs;
pub use lock::{Lock, LockKind};
pub use meta::{Created, Meta, NewInode, Page, Piece, RENAME_EXCHANGE, RENAME_NOREPLACE, Unlinked, Written};
pub use pool::{ClientPool, PoolOptions};
pub use route::pace::Hedge;
