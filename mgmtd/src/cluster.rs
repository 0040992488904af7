//! What the leading manager knows and decides. Pure: time is passed in; no I/O, no clock, no thread, no randomness.
//! Everything derives `Clone, Eq, Hash`, so that a simulator or a model checker drives the very code that runs.
//!
//! | module | says |
//! |---|---|
//! | [`state`] | nodes, targets, chains, tables: what is stored, and how a node joins it |
//! | [`formation`] | how large a cluster is to be, and when chains are made |
//! | [`placement`] | which node, slice and position each replica of each chain gets |
//! | [`liveness`] | who was heard of when: leases of nodes, metadata servers and clients |
//! | [`cuts`] | nodes that live and can't reach each other, and which of the two gives way |
//! | [`domains`] | what fails together, and which chains lose two copies then |
//! | [`lease`] | which manager leads |
//! | [`transition`] | the declared state table of targets |
//! | [`reconfigure`] | the table applied to what is known, and why nothing is lost |
//! | [`moves`] | which targets move, so that nodes and disks can come and go |
//! | [`routing`] | the [`RoutingInfo`](corefs_wire::routing::RoutingInfo) that all of this amounts to |
//! | [`problems`] | what is wrong, and what to type |

pub mod cuts;
pub mod domains;
pub mod formation;
pub mod lease;
pub mod liveness;
pub mod moves;
pub mod placement;
pub mod problems;
pub mod reconfigure;
pub mod routing;
pub mod state;
pub mod transition;
