//! The bounded way into an executor from other threads.
//!
//! The queue is crossbeam's. Whoever puts something in raises the [`Alarm`] of the ring whose executor owns the
//! mailbox; that wakes it if it is parked, and costs no system call if it isn't. Besides the alarm this is the only file of
//! `net` with anything shared between threads.

use crate::ring::Alarm;
use crossbeam_queue::ArrayQueue;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

struct Shared<T> {
    queue: ArrayQueue<T>,
    /// The receiver is gone.
    closed: AtomicBool,
    alarm: Alarm,
}

/// Why a value was given back.
#[derive(PartialEq, Eq, Debug)]
pub enum Refused<T> {
    /// The mailbox is full: the receiver is behind.
    Full(T),
    /// Nobody will ever look again.
    Closed(T),
}

/// Puts values in, from any thread. Clones feed the same mailbox.
pub struct Sender<T: Send>(Arc<Shared<T>>);

/// Takes values out, on the one executor that owns it: in each turn after `Ring::heard_alarm`, and until it is empty
/// before the ring parks.
pub struct Receiver<T: Send>(Arc<Shared<T>>);

/// A mailbox of at most `bound` values for the executor that `alarm` wakes.
pub fn mailbox<T: Send>(bound: usize, alarm: Alarm) -> (Sender<T>, Receiver<T>) {
    let shared = Shared { queue: ArrayQueue::new(bound), closed: AtomicBool::new(false), alarm };
    let shared = Arc::new(shared);
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<T: Send> Sender<T> {
    /// Puts `value` in and wakes the receiver, or gives it back when the mailbox is full or nobody looks any more.
    pub fn try_send(&self, value: T) -> Result<(), Refused<T>> {
        if self.0.closed.load(Ordering::SeqCst) {
            return Err(Refused::Closed(value));
        }
        self.0.queue.push(value).map_err(Refused::Full)?;
        if self.0.closed.load(Ordering::SeqCst) {
            // The receiver left while we pushed, perhaps after it had emptied the queue: somebody must.
            while self.0.queue.pop().is_some() {}
            return Ok(());
        }
        self.0.alarm.raise();
        Ok(())
    }
}

impl<T: Send> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Send> Receiver<T> {
    pub fn pop(&mut self) -> Option<T> {
        self.0.queue.pop()
    }

    /// Whether nothing waits. A receiver that stops popping before this is true must come back by itself.
    pub fn is_empty(&self) -> bool {
        self.0.queue.is_empty()
    }
}

impl<T: Send> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::SeqCst);
        // Values may hold what others wait for: they are dropped now, not with the last sender.
        while self.pop().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bell::Bell;
    use crate::executor::builder;
    use crate::ring::{Ring, RingConfig};
    use glommio::Placement;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn mail_from_many_threads_wakes_the_sleeper_and_arrives_in_order_of_each() {
        const THREADS: u64 = 3;
        const EACH: u64 = 3000;
        builder(Placement::Unbound).make().unwrap().run(async {
            let config = RingConfig { busy_poll: Duration::ZERO, ..RingConfig::default() };
            let mut ring = Ring::new(&config).unwrap();
            let (sender, mut receiver) = mailbox::<(u64, u64)>(16, ring.alarm());
            let send = |thread: u64| {
                let sender = sender.clone();
                thread::spawn(move || {
                    for n in 0..EACH {
                        while sender.try_send((thread, n)).is_err() {
                            thread::yield_now();
                        }
                    }
                })
            };
            let threads: Vec<_> = (0..THREADS).map(send).collect();
            let (mut next, mut completions, bell) = ([0; THREADS as usize], Vec::new(), Bell::new());
            while next != [EACH; THREADS as usize] {
                // A lost wake-up would hang here.
                ring.park(&bell, &mut completions).await.unwrap();
                ring.heard_alarm();
                while let Some((thread, n)) = receiver.pop() {
                    assert_eq!(n, next[thread as usize]);
                    next[thread as usize] += 1;
                }
            }
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            assert!(receiver.is_empty());
        });
    }

    #[test]
    fn a_full_or_abandoned_mailbox_gives_the_value_back() {
        let ring = Ring::new(&RingConfig::default()).unwrap();
        let (sender, receiver) = mailbox(2, ring.alarm());
        let value = Arc::new(());
        assert_eq!([sender.try_send(value.clone()), sender.try_send(value.clone())], [Ok(()), Ok(())]);
        assert_eq!(sender.try_send(value.clone()), Err(Refused::Full(value.clone())));
        drop(receiver);
        assert_eq!(Arc::strong_count(&value), 1, "what nobody took is dropped");
        assert_eq!(sender.try_send(value.clone()), Err(Refused::Closed(value)));
    }
}
