//! The chunk store under power cuts.
//!
//! A [`Run`] does random work on a tiny slice, so that the journal wraps, checkpoints and space reuse happen all
//! the time and the slice is often full; cuts the power between any two disk operations; recovers; compares
//! everything with a [model](model::Model) of what the flushed log says; and goes on. Everything follows from one
//! seed.

pub mod model;
pub mod open;
pub mod verify;

mod early;
mod reuse;
mod run;
mod step;

pub use reuse::Way;
pub use run::{Canary, Counts, Failure, Run, run};
