//! One value from the commit thread to a future on any executor.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

struct State<T> {
    value: Option<T>,
    waker: Option<Waker>,
    sender_gone: bool,
}

type Shared<T> = Arc<Mutex<State<T>>>;

/// A panic while the lock is held can only come from a waker; the state is whole all the same.
fn lock<T>(shared: &Shared<T>) -> MutexGuard<'_, State<T>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct Sender<T>(Shared<T>);

/// Resolves to the value, or `None` when the sender was dropped without sending.
pub struct Receiver<T>(Shared<T>);

pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Mutex::new(State { value: None, waker: None, sender_gone: false }));
    (Sender(shared.clone()), Receiver(shared))
}

impl<T> Sender<T> {
    /// Sends, and wakes the receiver (when the sender is dropped, which is now).
    pub fn send(self, value: T) {
        lock(&self.0).value = Some(value);
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let waker = {
            let mut state = lock(&self.0);
            state.sender_gone = true;
            state.waker.take()
        };
        // Outside the lock: waking may run the receiver on this very thread.
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for Receiver<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = lock(&self.0);
        if state.value.is_some() || state.sender_gone {
            return Poll::Ready(state.value.take());
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::block_on;

    #[test]
    fn crosses_threads() {
        for round in 0..200 {
            let (sender, receiver) = channel();
            let thread = std::thread::spawn(move || sender.send(round));
            assert_eq!(block_on(receiver), Some(round));
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_sender_that_gives_up_is_noticed() {
        let (sender, receiver) = channel::<()>();
        let thread = std::thread::spawn(move || drop(sender));
        assert_eq!(block_on(receiver), None);
        thread.join().unwrap();
    }
}
