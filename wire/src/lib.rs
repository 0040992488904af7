//! The language of corefs: everything two processes must agree on, and nothing else.
//!
//! Pure: no I/O, no clock, no thread, no randomness. Data frames are fixed layouts cast by zerocopy; control
//! messages are FlatBuffers, always verified. Integers are little-endian on the wire and on disk.
//!
//! | module | says |
//! |---|---|
//! | [`id`] | the names of things: nodes, targets, chains, chunks, update tags |
//! | [`limits`] | every bound of every queue, message and name |
//! | [`error`] | stable error numbers and what a caller does about each class |
//! | [`checksum`] | CRC-32C of blocks, frames and records |
//! | [`frame`] | the header before every message |
//! | [`data`] | bodies of the data path: reads, chain updates |
//! | [`resync`] | what is said while one replica fills another |
//! | [`layout`] | which chunk, and which chain, holds a byte of a file |
//! | [`routing`] | which node and shard owns a target |
//! | [`control`] | typed control messages and their operation codes |

// Generated code names the allocator's crate.
extern crate alloc;

pub mod checksum;
pub mod control;
pub mod data;
pub mod error;
pub mod frame;
pub mod id;
pub mod layout;
pub mod limits;
pub mod resync;
pub mod routing;
pub mod version;

#[rustfmt::skip]
#[allow(clippy::all, warnings)]
mod generated;

pub use error::{Class, Error, ErrorCode, Result};
pub use id::*;
