//! The cluster manager: membership, chains, routing, leases.
//!
//! | module | says |
//! |---|---|
//! | [`cluster`] | everything that is decided, pure |
//! | [`clock`] | time, passed in |

pub mod clock;
pub mod cluster;
