//! A thread with one ring and nothing else: its tasks run until none is ready, then the ring sleeps in the kernel.
//!
//! What glommio gives besides (three rings of its own, file I/O, shares of task queues) nobody needs on a client's shard: see
//! docs/adr/0007-threads-that-rest-in-their-ring.md.
//!
//! A round: the pump takes what has completed, which wakes tasks; all of them run; what they queued leaves in one call, which
//! sleeps when nothing is left to do. A waker may be used on any thread: it raises the alarm of the ring.

use crate::ring::Alarm;
use crate::rpc::Pump;
use async_executor::LocalExecutor;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// The executor of a thread, while it runs.
pub struct Alone {
    pub tasks: LocalExecutor<'static>,
    timers: RefCell<BTreeMap<TimerKey, Waker>>,
    timers_made: Cell<u64>,
    /// Drives the ring, from the start of the thread's endpoint to its end.
    pump: RefCell<Option<Pump>>,
    rouse: Arc<Rouse>,
}

/// When it goes off, and a number that tells timers of one time apart.
type TimerKey = (Instant, u64);

/// Gets the thread going again.
struct Rouse {
    thread: Thread,
    alarm: OnceLock<Alarm>,
    /// The turn loop has ended: nobody hears the alarm any more, and the thread parks.
    deaf: AtomicBool,
}

impl Wake for Rouse {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        match self.alarm.get() {
            Some(alarm) => {
                alarm.raise();
                if self.deaf.load(Ordering::SeqCst) {
                    self.thread.unpark();
                }
            }
            None => self.thread.unpark(),
        }
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Alone>>> = const { RefCell::new(None) };
}

/// The executor of this thread, if it is one of these.
pub fn current() -> Option<Rc<Alone>> {
    CURRENT.with_borrow(Clone::clone)
}

/// Takes the mark off the thread however its work ends.
struct Marked;

impl Drop for Marked {
    fn drop(&mut self) {
        CURRENT.take();
    }
}

/// Runs `root`, and whatever it spawns, until it is done. At most one endpoint may live on the thread.
pub fn run<T: 'static>(root: impl Future<Output = T> + 'static) -> T {
    let rouse = Arc::new(Rouse {
        thread: std::thread::current(),
        alarm: OnceLock::new(),
        deaf: AtomicBool::new(false),
    });
    let alone = Rc::new(Alone {
        tasks: LocalExecutor::new(),
        timers: RefCell::default(),
        timers_made: Cell::new(0),
        pump: RefCell::new(None),
        rouse: Arc::clone(&rouse),
    });
    let nested = CURRENT.replace(Some(Rc::clone(&alone)));
    assert!(nested.is_none(), "one executor a thread");
    let _marked = Marked;
    let waker = Waker::from(Arc::clone(&rouse));
    let mut main = pin!(alone.tasks.run(root));
    loop {
        let mut pump = alone.pump.take();
        if let Some(pump) = &mut pump {
            pump.take();
        }
        alone.fire();
        let outcome = main.as_mut().poll(&mut Context::from_waker(&waker));
        match (pump, outcome) {
            (_, Poll::Ready(value)) => return value,
            (Some(mut pump), Poll::Pending) => {
                if pump.end_turn(alone.next_timer()) {
                    *alone.pump.borrow_mut() = Some(pump);
                } else {
                    rouse.deaf.store(true, Ordering::SeqCst);
                    // Whoever didn't see that had raised the alarm before, and what it did is seen by the next poll.
                    let _ = rouse.alarm.get().is_some_and(Alarm::is_raised);
                }
            }
            (None, Poll::Pending) if alone.pump.borrow().is_some() => {}
            (None, Poll::Pending) => match alone.next_timer() {
                Some(at) => std::thread::park_timeout(at.saturating_duration_since(Instant::now())),
                None => std::thread::park(),
            },
        }
    }
}

/// Resolves after `duration`; only within [`run`].
pub async fn sleep(duration: Duration) {
    let Some(number) = with(|alone| alone.timers_made.replace(alone.timers_made.get() + 1)) else { return };
    let timer = Timer((Instant::now() + duration, number));
    poll_fn(|context| {
        if timer.0.0 <= Instant::now() {
            return Poll::Ready(());
        }
        with(|alone| alone.timers.borrow_mut().insert(timer.0, context.waker().clone()));
        Poll::Pending
    })
    .await
}

/// A wait that leaves the list however it ends.
struct Timer(TimerKey);

impl Drop for Timer {
    fn drop(&mut self) {
        with(|alone| alone.timers.borrow_mut().remove(&self.0));
    }
}

/// Tasks don't hold the executor, which holds them.
fn with<T>(work: impl FnOnce(&Alone) -> T) -> Option<T> {
    CURRENT.with_borrow(|current| current.as_deref().map(work))
}

impl Alone {
    /// Gives the thread its endpoint's turn loop.
    pub fn drive(&self, pump: Pump) {
        let first = self.rouse.alarm.set(pump.alarm()).is_ok();
        assert!(first, "one endpoint a thread");
        *self.pump.borrow_mut() = Some(pump);
    }

    fn next_timer(&self) -> Option<Instant> {
        self.timers.borrow().first_key_value().map(|((at, _), _)| *at)
    }

    /// Wakes those whose time has come.
    fn fire(&self) {
        if self.timers.borrow().is_empty() {
            return;
        }
        let now = Instant::now();
        let mut timers = self.timers.borrow_mut();
        while let Some(first) = timers.first_entry()
            && first.key().0 <= now
        {
            first.remove().wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::executor::{run_alone, sleep, spawn};
    use crate::{Identity, Node, NodeConfig, Role};
    use corefs_wire::Uuid;
    use futures_lite::future::{pending, yield_now, zip};
    use std::rc::Rc;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    #[test]
    fn tasks_run_timers_go_off_in_their_order_and_threads_wake_it() {
        let (tell, heard) = mpsc::channel();
        let outcome = run_alone(async move {
            let order = |text: &'static str, after: u64| {
                let tell = tell.clone();
                spawn(async move {
                    sleep(Duration::from_millis(after)).await;
                    tell.send(text).unwrap();
                })
            };
            zip(order("second", 20), zip(order("first", 1), order("at once", 0))).await;
            let (give, take) = async_channel_of_one();
            let thread = std::thread::spawn(move || give(7));
            let found = take.await;
            thread.join().unwrap();
            yield_now().await;
            found
        });
        assert_eq!(outcome, 7);
        assert_eq!(heard.iter().collect::<Vec<_>>(), ["at once", "first", "second"]);
    }

    /// A value that another thread sends, for a task: by nothing but a waker.
    fn async_channel_of_one() -> (impl FnOnce(u32) + Send, impl Future<Output = u32>) {
        use std::sync::{Arc, Mutex};
        use std::task::{Poll, Waker};
        let slot: Arc<Mutex<(Option<u32>, Option<Waker>)>> = Arc::default();
        let theirs = Arc::clone(&slot);
        let give = move |value| {
            let mut slot = theirs.lock().unwrap();
            slot.0 = Some(value);
            slot.1.take().into_iter().for_each(Waker::wake);
        };
        let take = std::future::poll_fn(move |context| {
            let mut slot = slot.lock().unwrap();
            slot.1 = Some(context.waker().clone());
            slot.0.map_or(Poll::Pending, Poll::Ready)
        });
        (give, take)
    }

    #[test]
    fn what_still_waits_is_dropped_with_the_executor() {
        let (given, kept) = (Rc::new(()), Rc::new(()));
        let (held, slept) = (Rc::clone(&given), Rc::clone(&kept));
        run_alone(async move {
            spawn(async move {
                pending::<()>().await;
                drop(held);
            })
            .detach();
            spawn(async move {
                sleep(Duration::from_secs(3600)).await;
                drop(slept);
            })
            .detach();
            yield_now().await;
        });
        assert_eq!((Rc::strong_count(&given), Rc::strong_count(&kept)), (1, 1));
    }

    #[test]
    fn a_thread_whose_ring_has_failed_is_still_woken() {
        const ROUNDS: u32 = 50;
        let found = run_alone(async move {
            let identity =
                Identity { role: Role::Client, id: 1, incarnation: 1, cluster: Uuid([1; 16]), secret: None };
            let node = Node::start(NodeConfig { pool_bytes: 1 << 20, ..NodeConfig::new(identity) }).unwrap();
            super::current().unwrap().pump.borrow().as_ref().unwrap().break_ring();
            node.stopped().await;
            let mut found = 0;
            for round in 0..ROUNDS {
                let (give, take) = async_channel_of_one();
                let thread = std::thread::spawn(move || give(round));
                found += u32::from(take.await == round);
                thread.join().unwrap();
            }
            found
        });
        assert_eq!(found, ROUNDS);
    }

    #[test]
    fn an_abandoned_wait_leaves_no_timer() {
        run_alone(async {
            let started = Instant::now();
            futures_lite::future::or(sleep(Duration::from_secs(3600)), sleep(Duration::from_millis(1))).await;
            assert!(super::current().unwrap().next_timer().is_none() && started.elapsed().as_secs() < 3600);
        });
    }
}
