//! Several futures of one task, run together.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Up to so many of any kind, each wake-up polls all that are under way.
const FEW: usize = 16;

enum Slot<F: Future> {
    Running(F),
    Done(Option<F::Output>),
}

/// Runs all of `futures`; their results in order.
///
/// Everything is polled once, which starts it. Afterwards, of few futures all are polled at each wake-up; of many only
/// the first that isn't done: these cost n polls and not n squared.
pub fn all<F: Future>(futures: impl IntoIterator<Item = F>) -> All<F> {
    let slots: Vec<Slot<F>> = futures.into_iter().map(Slot::Running).collect();
    All { slots: Box::into_pin(slots.into_boxed_slice()), first: 0, started: false }
}

/// The future of [`all`].
pub struct All<F: Future> {
    slots: Pin<Box<[Slot<F>]>>,
    /// All before it are done.
    first: usize,
    started: bool,
}

/// Polls a slot that is running; whether it is done.
fn poll<F: Future>(slot: Pin<&mut Slot<F>>, context: &mut Context<'_>) -> bool {
    // SAFETY: structural pinning: the future inside stays where it is until it is replaced, which drops it in place.
    let slot = unsafe { slot.get_unchecked_mut() };
    match slot {
        Slot::Done(_) => true,
        Slot::Running(future) => {
            // SAFETY: the future lies in a pinned slot.
            match unsafe { Pin::new_unchecked(future) }.poll(context) {
                Poll::Pending => false,
                Poll::Ready(output) => {
                    *slot = Slot::Done(Some(output));
                    true
                }
            }
        }
    }
}

impl<F: Future> All<F> {
    fn slot(&mut self, at: usize) -> Pin<&mut Slot<F>> {
        // SAFETY: an element of a pinned slice is pinned; nothing is moved.
        unsafe { self.slots.as_mut().map_unchecked_mut(|slots| &mut slots[at]) }
    }
}

impl<F: Future> Future for All<F> {
    type Output = Vec<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let len = self.slots.len();
        if !self.started || len <= FEW {
            self.started = true;
            for at in self.first..len {
                poll(self.slot(at), context);
            }
        }
        while self.first < len {
            let at = self.first;
            if !poll(self.slot(at), context) {
                return Poll::Pending;
            }
            self.first += 1;
        }
        // SAFETY: outputs are taken out of slots whose futures are gone; outputs aren't pinned.
        let slots = unsafe { self.slots.as_mut().get_unchecked_mut() };
        let take = |slot: &mut Slot<F>| match slot {
            Slot::Done(output) => output.take(),
            Slot::Running(_) => None,
        };
        Poll::Ready(slots.iter_mut().filter_map(take).collect())
    }
}

impl<F: Future> Unpin for All<F> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::Waiters;
    use futures_lite::future::{block_on, poll_once};
    use std::cell::Cell;

    #[test]
    fn results_come_in_order_whoever_ends_first() {
        for many in [3usize, 40] {
            let waiters: Vec<Waiters> = (0..many).map(|_| Waiters::default()).collect();
            let begun = Cell::new(0);
            let futures = waiters.iter().enumerate().map(|(at, waiters)| {
                let begun = &begun;
                async move {
                    begun.set(begun.get() + 1);
                    waiters.next().await;
                    at
                }
            });
            let mut joined = all(futures);
            assert!(block_on(poll_once(&mut joined)).is_none());
            assert_eq!(begun.get(), many);
            for waiters in waiters.iter().rev() {
                assert!(block_on(poll_once(&mut joined)).is_none());
                waiters.wake_all();
            }
            assert_eq!(block_on(joined), (0..many).collect::<Vec<_>>());
        }
        assert!(block_on(all(Vec::<std::future::Ready<()>>::new())).is_empty());
    }
}
