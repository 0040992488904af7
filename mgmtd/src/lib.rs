//! The cluster manager: membership, chains, routing, leases.
//!
//! Any number of managers run over one key-value store; one leads. All that is decided is decided in [`cluster`], which is
//! pure; everything else carries its decisions between the store and those who ask.
//!
//! | module | says |
//! |---|---|
//! | [`cluster`] | what the primary knows and decides; no I/O, time passed in |
//! | [`rows`] | every key and value in the store |
//! | [`primary`] | memory and store in step: how anything changes |
//! | [`election`] | who leads |
//! | [`ops`] | what others ask, one file an operation |
//! | [`clock`], [`watch`] | time, and tasks that wait for each other |

pub mod clock;
pub mod cluster;
pub mod election;
pub mod ops;
pub mod primary;
pub mod rows;
#[cfg(feature = "server")]
pub mod server;
pub mod watch;

pub use clock::Clock;
pub use primary::{Primary, Settings};
#[cfg(feature = "server")]
pub use server::{ManagerOptions, ManagerServer};
