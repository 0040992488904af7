//! The proving ground: the very code of the services over a virtual clock, network and disk, from one seed.
//!
//! | module | is |
//! |---|---|
//! | [`prng`] | seeded randomness |
//! | [`tasks`] | virtual time, and what is async in it |
//! | [`disk`] | a disk that loses power between any two operations |
//! | [`store`] | the chunk store under power cuts, against a model |
//! | [`chain`] | whole clusters under every kind of fault |
//! | [`lives`] | many lives of chains, and what they amount to |
//! | [`recording`] | power-cut images of a recorded run of a real disk |

pub mod chain;
pub mod disk;
pub mod lives;
pub mod prng;
pub mod recording;
pub mod store;
pub mod tasks;
