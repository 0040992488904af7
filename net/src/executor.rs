//! The one place that knows how a glommio executor must be set up to carry a ring.
//!
//! glommio (0.9) goes to sleep with runnable tasks when its preemption timer has fired between arming it and the first
//! look at the task queues: it then finds that it ran nothing and takes that for having nothing to run. The window is
//! short, but a thread that is scheduled out in it for longer than the timer hits it: with a timer of 0.5 ms
//! (`Latency::Matters(500 us)`) and two busy cores that took less than a second, and the sleeper wakes only when some I/O
//! completes by accident. So:
//!
//! - executors are made by [`builder`], which puts the timer off for good;
//! - no task queue asks for a latency (`Latency::NotImportant`), because the shortest latency becomes the timer;
//! - the turn loop, which may stay runnable for hours, lets glommio look at its own I/O and timers itself, once a
//!   millisecond: [`Ring::breathe`](crate::Ring::breathe).

use glommio::{LocalExecutorBuilder, Placement};
use std::time::Duration;

/// Longer than any executor lives.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// An executor for a thread that drives a ring; name and spawn it as any other.
pub fn builder(placement: Placement) -> LocalExecutorBuilder {
    LocalExecutorBuilder::new(placement).preempt_timer(NEVER)
}
