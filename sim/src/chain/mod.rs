//! Chains of replicas under message loss, power cuts of single nodes and of all, and restarts.
//!
//! Each node runs the very machine of a shard ([`Targets`](corefs_engine::targets::Targets): chain, store, group commit) over
//! a simulated disk; the network delays, reorders and loses messages; clients write, cut, remove and read chunks and
//! retry under the same tag until they are answered. Chains keep their members (a node that was cut comes back);
//! their version rises with each restart. What must hold is in [`truth`]. Everything follows from one seed.

pub mod node;
pub mod truth;
pub mod world;

pub use truth::Counts;
pub use world::{Canary, Config, run};
