//! The one place that knows how a glommio executor must be set up to carry a ring.
//!
//! glommio (0.9) goes to sleep with runnable tasks when its preemption timer fires between being armed and the first look
//! at the task queues: `run_task_queues` then reports that it ran nothing, which its caller takes for having nothing to
//! run. A thread that is scheduled out in that window for longer than the timer hits it. With `Latency::Matters` of
//! 0.2, 0.5 and 1 ms on a core shared with three busy threads that took 8, 15 and 11 seconds, and the sleeper wakes only
//! when some I/O of glommio's own completes by accident. So:
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
