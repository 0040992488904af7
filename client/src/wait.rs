//! How tasks of one executor wait for something to change.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Whoever waits for the next change of something. Many may, unlike with a `Bell`; each then looks for itself.
#[derive(Default)]
pub struct Waiters {
    changes: Cell<u64>,
    tickets: Cell<u64>,
    /// By ticket: who came first is woken first, and who waits no longer is found.
    wakers: RefCell<BTreeMap<u64, Waker>>,
}

impl Waiters {
    /// Something has changed: everybody looks again.
    pub fn wake_all(&self) {
        self.changes.set(self.changes.get() + 1);
        // Taken out first: a waker may run code that waits here again.
        for waker in self.wakers.take().into_values() {
            waker.wake();
        }
    }

    /// Something has changed that is enough for one: who came first looks again, and says so on if there is more.
    pub fn wake_first(&self) {
        let first = self.wakers.borrow_mut().pop_first();
        if let Some((_, waker)) = first {
            waker.wake();
        }
    }

    pub fn is_empty(&self) -> bool {
        self.wakers.borrow().is_empty()
    }

    /// Resolves at the first change after this call that is for everybody, or for this one.
    pub fn next(&self) -> Change<'_> {
        Change { of: self, since: self.changes.get(), ticket: 0, registered: None }
    }
}

/// The future of [`Waiters::next`].
pub struct Change<'a> {
    of: &'a Waiters,
    since: u64,
    /// 0: none yet.
    ticket: u64,
    registered: Option<Waker>,
}

impl Future for Change<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let called = self.ticket != 0 && !self.of.wakers.borrow().contains_key(&self.ticket);
        if called || self.of.changes.get() != self.since {
            return Poll::Ready(());
        }
        if !self.registered.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            if self.ticket == 0 {
                self.of.tickets.set(self.of.tickets.get() + 1);
                self.ticket = self.of.tickets.get();
            }
            // What is replaced may run code when it is dropped: not inside of the borrow.
            let before = self.of.wakers.borrow_mut().insert(self.ticket, context.waker().clone());
            drop(before);
            self.registered = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if self.ticket != 0 {
            let gone = self.of.wakers.borrow_mut().remove(&self.ticket);
            drop(gone);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, poll_once};

    #[test]
    fn everybody_hears_of_a_change_once() {
        let waiters = Waiters::default();
        let (mut one, mut two) = (waiters.next(), waiters.next());
        assert!(block_on(poll_once(&mut one)).is_none() && block_on(poll_once(&mut two)).is_none());
        assert!(block_on(poll_once(&mut one)).is_none());
        assert_eq!(waiters.wakers.borrow().len(), 2, "polling again doesn't register again");
        waiters.wake_all();
        assert!(block_on(poll_once(one)).is_some() && block_on(poll_once(two)).is_some());
        assert!(waiters.is_empty() && block_on(poll_once(waiters.next())).is_none());
        assert!(waiters.is_empty(), "who waits no longer is forgotten");
    }
    #[test]
    fn who_came_first_is_called_alone() {
        let waiters = Waiters::default();
        let [mut one, mut two, mut three] = [(); 3].map(|()| waiters.next());
        for waiter in [&mut one, &mut two, &mut three] {
            assert!(block_on(poll_once(waiter)).is_none());
        }
        waiters.wake_first();
        assert!(block_on(poll_once(&mut two)).is_none() && block_on(poll_once(&mut one)).is_some());
        drop(two);
        waiters.wake_first();
        assert!(block_on(poll_once(&mut three)).is_some(), "who waits no longer isn't called");
        waiters.wake_first();
    }
}
