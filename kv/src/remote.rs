//! The embedded store of another process of this machine, and how `corefs kv` serves it.
//!
//! | module | is |
//! |---|---|
//! | [`client`] | a [`Store`](crate::store::Store) whose every read and commit is one call |
//! | [`server`] | answers those calls from an [`Embedded`](crate::Embedded) |
//! | [`codec`] * | their messages |
//!
//! A transaction takes its read version along with its first read, so that a transaction of one read and one commit is
//! two round trips. **It is still one copy**: the server's disk.

pub mod client;
pub mod codec;
pub mod server;

pub use client::Client;
pub use server::Server;
