//! The ordered transactional store that metadata and managers keep everything in.
//!
//! A backend of ours (memory, embedded, remote) is a [`store::Store`]; [`txn::Txn`] makes transactions of it, so that
//! read-your-writes, conflict ranges and limits are the same code for all of them. Pure modules are marked *.
//!
//! | module | says |
//! |---|---|
//! | [`contract`] * | [`KvEngine`] and [`Transaction`]: what every backend owes |
//! | [`retry`] | the only retry loop, and what to do about a commit whose outcome is unknown |
//! | [`store`] *, [`txn`] | the seam below our backends, and the transaction above it |
//! | [`bounds`] *, [`mutation`] *, [`overlay`] *, [`resolver`] * | limits, single steps, read-your-writes, conflicts |
//! | [`window`] *, [`clock`] | how long versions are remembered, and what time it is |
//! | [`mem`] | deterministic store in memory, with faults |
//! | [`embedded`] | durable store of one process, on redb |
//! | `remote` (feature) | client and server of `corefs kv`: the embedded store of another process |
//! | `fdb` (feature) | FoundationDB, for clusters of many machines |
//! | [`conformance`] | the suite that every backend passes |
//! | [`prng`] * | the seeded generator of faults, jitter and tests |

pub mod bounds;
pub mod clock;
pub mod conformance;
pub mod contract;
pub mod embedded;
#[cfg(feature = "fdb")]
pub mod fdb;
pub mod mem;
pub mod mutation;
pub mod overlay;
pub mod prng;
#[cfg(feature = "remote")]
pub mod remote;
pub mod resolver;
pub mod retry;
pub mod store;
pub mod txn;
pub mod window;

pub use contract::*;
pub use embedded::Embedded;
#[cfg(feature = "fdb")]
pub use fdb::Fdb;
pub use mem::Mem;
