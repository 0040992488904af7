//! Which replica to ask and what to do after an error. Pure: time and randomness are passed in.
//!
//! | module | decides |
//! |---|---|
//! | [`cache`] | chain and owner of a chunk, from the newest routing that we have |
//! | [`select`] | which serving replica answers a read |
//! | [`tracker`] | after each error: where and when to try again, or to give up |
//! | [`pace`] | when another replica is asked for a read that is late, too |
//! | [`rng`] | the random numbers of both, from a seed |

pub mod cache;
pub mod pace;
pub mod rng;
pub mod select;
pub mod tracker;

pub use cache::{Cache, ChainIndex, ChainRoute, OwnerIndex, Replica, Stripe};
pub use rng::Rng;
pub use tracker::{At, Next, Refresh, Tracker, Work};
