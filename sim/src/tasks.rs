//! Tasks that wait in virtual time: what managers and metadata servers are made of, which are async over traits.
//!
//! Nothing runs by itself: whoever turns the clock fires the timers that are due and has the tasks run. They run in the order in which
//! they were woken, so that everything follows from what the world does.

use corefs_engine::event::Nanos;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// A millisecond.
pub const MILLI: Nanos = 1_000_000;

/// Virtual time, and who waits for what moment of it. Clones are the same.
#[derive(Clone, Default)]
pub struct Timers(Rc<Moments>);

#[derive(Default)]
struct Moments {
    now: Cell<Nanos>,
    next: Cell<u64>,
    /// Moments that nobody has been told of yet, with their tickets.
    fresh: RefCell<Vec<(Nanos, u64)>>,
    /// Those who sleep. One that isn't here any more has been fired.
    asleep: RefCell<BTreeMap<u64, Option<Waker>>>,
}

impl Timers {
    pub fn now(&self) -> Nanos {
        self.0.now.get()
    }

    pub fn set_now(&self, now: Nanos) {
        self.0.now.set(now);
    }

    /// Resolves when so much time has passed.
    pub fn sleep(&self, duration: Nanos) -> Sleep {
        let ticket = self.0.next.get();
        self.0.next.set(ticket + 1);
        self.0.asleep.borrow_mut().insert(ticket, None);
        self.0.fresh.borrow_mut().push((self.now() + duration, ticket));
        Sleep { timers: self.clone(), ticket }
    }

    /// The moments that were asked for since the last call.
    pub fn take_fresh(&self) -> Vec<(Nanos, u64)> {
        self.0.fresh.take()
    }

    /// The moment of a ticket has come.
    pub fn fire(&self, ticket: u64) {
        if let Some(waker) = self.0.asleep.borrow_mut().remove(&ticket).flatten() {
            waker.wake();
        }
    }
}

/// The future of [`Timers::sleep`].
pub struct Sleep {
    timers: Timers,
    ticket: u64,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match self.timers.0.asleep.borrow_mut().get_mut(&self.ticket) {
            None => Poll::Ready(()),
            Some(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.timers.0.asleep.borrow_mut().remove(&self.ticket);
    }
}

/// Whose a task is: it dies with its process, and stands still with it.
pub type Owner = usize;

/// Where one task leaves something for another. Clones are the same.
pub struct Slot<T>(Rc<SlotState<T>>);

struct SlotState<T> {
    value: RefCell<Option<T>>,
    waker: RefCell<Option<Waker>>,
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Rc::new(SlotState { value: RefCell::new(None), waker: RefCell::new(None) }))
    }
}

impl<T> Slot<T> {
    /// The first to come is taken; later ones are too late.
    pub fn put(&self, value: T) {
        self.0.value.borrow_mut().get_or_insert(value);
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
    }

    /// Waits until there is something.
    pub fn take(&self) -> impl Future<Output = T> + use<T> {
        let state = Rc::clone(&self.0);
        std::future::poll_fn(move |context| match state.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                *state.waker.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        })
    }
}

/// Tasks that were woken, in that order. Shared by the type of wakers, never by threads.
type Ready = Arc<Mutex<Vec<u64>>>;

struct Bell {
    task: u64,
    ready: Ready,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).push(self.task);
    }
}

struct Task {
    owner: Owner,
    waker: Waker,
    future: Job,
}

type Job = Pin<Box<dyn Future<Output = ()>>>;

/// Lets tasks begin others. Clones are the same.
#[derive(Clone, Default)]
pub struct Spawner(Rc<RefCell<Vec<(Owner, Job)>>>);

impl Spawner {
    /// Begins when the tasks run, or go on running.
    pub fn spawn(&self, owner: Owner, future: impl Future<Output = ()> + 'static) {
        self.0.borrow_mut().push((owner, Box::pin(future)));
    }
}

/// All tasks of a world.
#[derive(Default)]
pub struct Tasks {
    next: u64,
    spawner: Spawner,
    tasks: BTreeMap<u64, Task>,
    ready: Ready,
    /// Owners that stand still, and their tasks that were woken meanwhile.
    still: BTreeSet<Owner>,
    held: Vec<u64>,
}

impl Tasks {
    pub fn spawner(&self) -> Spawner {
        self.spawner.clone()
    }

    /// Begins at the next [`run`](Self::run).
    pub fn spawn(&mut self, owner: Owner, future: impl Future<Output = ()> + 'static) {
        self.begin(owner, Box::pin(future));
    }

    fn begin(&mut self, owner: Owner, future: Job) {
        let task = self.next;
        self.next += 1;
        let waker = Waker::from(Arc::new(Bell { task, ready: Arc::clone(&self.ready) }));
        waker.wake_by_ref();
        self.tasks.insert(task, Task { owner, waker, future });
    }

    /// All tasks of a process end where they are.
    pub fn kill(&mut self, owner: Owner) {
        let (dead, alive) = mem::take(&mut self.tasks).into_iter().partition(|(_, task)| task.owner == owner);
        self.tasks = alive;
        self.still.remove(&owner);
        self.spawner.0.borrow_mut().retain(|(of, _)| *of != owner);
        drop::<BTreeMap<u64, Task>>(dead);
    }

    /// A process stands still, or goes on.
    pub fn stand_still(&mut self, owner: Owner, still: bool) {
        if still {
            self.still.insert(owner);
        } else if self.still.remove(&owner) {
            let held = mem::take(&mut self.held);
            self.ready.lock().unwrap_or_else(PoisonError::into_inner).extend(held);
        }
    }

    /// Runs all tasks that were woken, until none is.
    pub fn run(&mut self) {
        loop {
            let fresh = self.spawner.0.take();
            fresh.into_iter().for_each(|(owner, future)| self.begin(owner, future));
            let woken = mem::take(&mut *self.ready.lock().unwrap_or_else(PoisonError::into_inner));
            if woken.is_empty() {
                return;
            }
            for id in woken {
                let Some(task) = self.tasks.get_mut(&id) else { continue };
                if self.still.contains(&task.owner) {
                    self.held.push(id);
                    continue;
                }
                let waker = task.waker.clone();
                if task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                    self.tasks.remove(&id);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns the clock to the end.
    fn all(tasks: &mut Tasks, timers: &Timers) {
        let mut due = BTreeSet::new();
        loop {
            tasks.run();
            due.extend(timers.take_fresh());
            let Some((at, ticket)) = due.pop_first() else { return };
            timers.set_now(at);
            timers.fire(ticket);
        }
    }

    #[test]
    fn tasks_sleep_stand_still_and_die() {
        let (mut tasks, timers, log) =
            (Tasks::default(), Timers::default(), Rc::new(RefCell::new(Vec::new())));
        for owner in 0..3 {
            let (timers, log) = (timers.clone(), Rc::clone(&log));
            tasks.spawn(owner, async move {
                for round in 0..3 {
                    timers.sleep(10 + owner as u64).await;
                    log.borrow_mut().push((owner, round, timers.now()));
                }
            });
        }
        tasks.stand_still(1, true);
        tasks.run();
        tasks.kill(2);
        all(&mut tasks, &timers);
        assert_eq!(log.take(), [(0, 0, 10), (0, 1, 20), (0, 2, 30)]);
        tasks.stand_still(1, false);
        all(&mut tasks, &timers);
        assert_eq!(log.take(), [(1, 0, 41), (1, 1, 52), (1, 2, 63)]);
        assert!(tasks.tasks.is_empty());
    }
}
