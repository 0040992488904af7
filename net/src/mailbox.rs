//! The bounded way into an executor from other threads.
//!
//! The queue is crossbeam's. A sender that finds nobody told yet signals an eventfd, on which the receiver keeps a read in
//! flight on its ring: so mail completes like any I/O, and wakes a parked executor. One signal announces a burst.
//!
//! This is the only file of `net` with anything shared between threads.

use crate::ring::{Completion, File, Ring, Source, Token, eventfd};
use corefs_wire::Result;
use crossbeam_queue::ArrayQueue;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

struct Shared<T> {
    queue: ArrayQueue<T>,
    /// The receiver has been signalled and hasn't started to look yet.
    told: AtomicBool,
    signal: OwnedFd,
}

/// Puts values in, from any thread. Clones feed the same mailbox.
pub struct Sender<T: Send>(Arc<Shared<T>>);

/// Takes values out, on the one executor that owns it.
pub struct Receiver<T: Send> {
    shared: Arc<Shared<T>>,
    /// Where the kernel puts the counter; boxed because a read is in flight on it, leaked if it still is at the end.
    counter: Box<u64>,
    armed: bool,
    token: Token,
}

/// A mailbox of at most `bound` values. `payload` is for the receiver's token.
pub fn mailbox<T: Send>(bound: usize, payload: u64) -> Result<(Sender<T>, Receiver<T>)> {
    let shared =
        Arc::new(Shared { queue: ArrayQueue::new(bound), told: AtomicBool::new(false), signal: eventfd()? });
    let token = Token::new(Source::MAILBOX, payload);
    Ok((Sender(Arc::clone(&shared)), Receiver { shared, counter: Box::new(0), armed: false, token }))
}

impl<T: Send> Sender<T> {
    /// Puts `value` in and wakes the receiver, or gives it back when the mailbox is full.
    pub fn try_send(&self, value: T) -> Result<(), T> {
        self.0.queue.push(value)?;
        // The swap comes after the push and pairs with the receiver's: either it sees the value, or we tell it.
        if !self.0.told.swap(true, Ordering::AcqRel) {
            let one = 1u64.to_ne_bytes();
            // SAFETY: writes eight bytes of ours to our own descriptor. The counter can't overflow: it grows by one for
            // each time the receiver looked.
            unsafe { libc::write(self.0.signal.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
        Ok(())
    }
}

impl<T: Send> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Send> Receiver<T> {
    /// Keeps the read of the signal in flight. Call it each turn; it does nothing while the read is there.
    pub fn arm(&mut self, ring: &mut Ring) {
        if !self.armed {
            self.armed = true;
            let to = (&raw mut *self.counter).cast();
            // SAFETY: the box is not touched while the read is in flight, and outlives it (see `drop`).
            unsafe { ring.read(File::Plain(self.shared.signal.as_raw_fd()), to, 8, 0, self.token) };
        }
    }

    /// The read of the signal has completed; [`pop`](Self::pop) until it is empty, then [`arm`](Self::arm).
    pub fn complete(&mut self, completion: Completion) {
        debug_assert_eq!(completion.token, self.token);
        self.armed = false;
        self.shared.told.swap(false, Ordering::AcqRel);
    }

    pub fn pop(&mut self) -> Option<T> {
        self.shared.queue.pop()
    }

    /// Whether nothing waits. A receiver that stops popping before this is true must come back by itself.
    pub fn is_empty(&self) -> bool {
        self.shared.queue.is_empty()
    }
}

impl<T: Send> Drop for Receiver<T> {
    fn drop(&mut self) {
        if self.armed {
            // A read may still be in flight if the ring outlives us: eight bytes are cheaper than a write into freed memory.
            Box::leak(std::mem::take(&mut self.counter));
        }
    }
}
