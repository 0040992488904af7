//! Whole clusters: chains of replicas whose members die, come back and are filled, managers, and metadata servers.
//!
//! Each node runs the very machine of a shard ([`Targets`](corefs_engine::targets::Targets): chain, store, group commit,
//! resync) over a simulated disk, with a clock of its own that drifts and leaps. Three managers run, each the very
//! [`Primary`](corefs_mgmtd::Primary) of a real one: they are elected, store changes, and answer what nodes ask, over the deterministic
//! key-value store, which takes time, conflicts, isn't reached, and sometimes doesn't say what it did. Metadata servers with the very
//! [`Namespace`](corefs_meta::Namespace) work over the same store.
//!
//! The network delays, reorders, repeats and loses messages, and is cut now and then, one way or both; nodes lose power, with what they
//! had not flushed, one at a time or all together; they stand still for a while and go on; their disks are slow, fail, aren't there, or
//! return other bytes than were written; the other processes die, stand still, and lose their store. Clients write, cut, remove and read
//! chunks, and retry under the same tag until they are answered; others make and move names. What must hold of chunks is in [`truth`],
//! what of names in `names`; the world adds that never two heads of a chain hold a lease, that routing never goes back, and that
//! everything is whole again when the faults have stopped. Everything follows from one seed.
//!
//! | file | is |
//! |---|---|
//! | `world` and what is in it | what happens when: time, the network, faults |
//! | `node`, `manager`, `names` | the processes |
//! | `kv`, `wire` | the road to the key-value store, and calls between tasks |
//! | `truth`, `register` | what must hold |

mod config;
mod kv;
pub mod manager;
mod names;
pub mod node;
pub mod register;
pub mod truth;
mod wire;
pub mod world;

pub use config::{Canary, Config};
pub use truth::Counts;
pub use world::run;
