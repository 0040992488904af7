//! The two kinds of executor under a ring, and what tasks ask of whichever they run on: [`spawn`], [`sleep`].
//!
//! - [`run_alone`]: client shards. The thread is theirs, and it sleeps in their ring.
//! - [`builder`]: control roles, which have glommio's timers, queues and threads. Parking is by `Ring::park`.
//!
//! How a glommio executor must be set up to carry a ring: glommio (0.9) goes to sleep with runnable tasks when its preemption timer fires between being armed and the first look
//! at the task queues: `run_task_queues` then reports that it ran nothing, which its caller takes for having nothing to
//! run. A thread that is scheduled out in that window for longer than the timer hits it. With `Latency::Matters` of
//! 0.2, 0.5 and 1 ms on a core shared with three busy threads that took 8, 15 and 11 seconds, and the sleeper wakes only
//! when some I/O of glommio's own completes by accident. So:
//!
//! - executors are made by [`builder`], which puts the timer off for good;
//! - no task queue asks for a latency (`Latency::NotImportant`), because the shortest latency becomes the timer;
//! - the turn loop, which may stay runnable for hours, lets glommio look at its own I/O and timers itself, once a
//!   millisecond: [`Ring::breathe`](crate::Ring::breathe).

mod alone;

pub(crate) use alone::current;
pub use alone::run as run_alone;

use glommio::{LocalExecutorBuilder, Placement};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// Longer than any executor lives.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// An executor for a thread that drives a ring; name and spawn it as any other.
pub fn builder(placement: Placement) -> LocalExecutorBuilder {
    LocalExecutorBuilder::new(placement).preempt_timer(NEVER)
}

/// A task of this thread. Dropping it cancels the task; [`detach`](Self::detach) lets it run.
pub enum Task<T> {
    Alone(async_executor::Task<T>),
    Glommio(glommio::Task<T>),
}

impl<T> Task<T> {
    pub fn detach(self) {
        match self {
            Self::Alone(task) => task.detach(),
            Self::Glommio(task) => drop(task.detach()),
        }
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match self.get_mut() {
            Self::Alone(task) => Pin::new(task).poll(context),
            Self::Glommio(task) => Pin::new(task).poll(context),
        }
    }
}

/// Starts a task on this thread's executor.
pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    match current() {
        Some(alone) => Task::Alone(alone.tasks.spawn(future)),
        None => Task::Glommio(glommio::spawn_local(future)),
    }
}

/// Resolves after `duration`, by a timer of its own: [`Node::sleep`](crate::Node::sleep) is for many short waits.
pub async fn sleep(duration: Duration) {
    // Not held while it sleeps: a task that keeps its executor alive is never dropped with it.
    let alone = current().is_some();
    if alone {
        alone::sleep(duration).await;
    } else {
        glommio::timer::sleep(duration).await;
    }
}

/// Pins the calling thread to a core, if the kernel lets us; says so if not.
pub fn pin(core: usize) {
    if !core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        tracing::warn!(core, "the thread could not be pinned: it runs where the kernel puts it");
    }
}
