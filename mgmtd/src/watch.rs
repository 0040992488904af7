//! How the tasks of a manager wait for each other: all on one executor, so nothing here is shared between threads.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Something that happens again and again, and any number of tasks that wait for the next time.
#[derive(Clone, Default)]
pub struct Watch(Rc<Moments>);

#[derive(Default)]
struct Moments {
    count: Cell<u64>,
    next_ticket: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, Waker>>,
}

impl Watch {
    /// Now it happened: everybody who waits goes on.
    pub fn happened(&self) {
        self.0.count.set(self.0.count.get() + 1);
        // Taken out first: a woken task may wait again at once.
        let waiting = std::mem::take(&mut *self.0.waiting.borrow_mut());
        waiting.into_values().for_each(Waker::wake);
    }

    /// Resolves when it has happened since this was called.
    pub fn next(&self) -> Next {
        let ticket = self.0.next_ticket.get();
        self.0.next_ticket.set(ticket + 1);
        Next { watch: self.clone(), since: self.0.count.get(), ticket }
    }
}

/// The future of [`Watch::next`].
pub struct Next {
    watch: Watch,
    since: u64,
    ticket: u64,
}

impl Future for Next {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let moments = &self.watch.0;
        if moments.count.get() != self.since {
            return Poll::Ready(());
        }
        moments.waiting.borrow_mut().insert(self.ticket, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Next {
    fn drop(&mut self) {
        // Whoever gave up must not be remembered: nothing may happen for a long time.
        self.watch.0.waiting.borrow_mut().remove(&self.ticket);
    }
}

/// One task at a time: whoever holds the [`Turn`].
#[derive(Clone, Default)]
pub struct Gate {
    taken: Rc<Cell<bool>>,
    freed: Watch,
}

impl Gate {
    pub async fn enter(&self) -> Turn {
        while self.taken.replace(true) {
            self.freed.next().await;
        }
        Turn(self.clone())
    }
}

/// Lets the next task in when dropped.
pub struct Turn(Gate);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.taken.set(false);
        self.0.freed.happened();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, poll_once};

    #[test]
    fn all_who_wait_hear_of_it_and_later_ones_wait_on() {
        let watch = Watch::default();
        let (mut first, mut second) = (watch.next(), watch.next());
        assert!(block_on(poll_once(&mut first)).is_none());
        watch.happened();
        assert!(block_on(poll_once(&mut first)).is_some() && block_on(poll_once(&mut second)).is_some());
        assert!(block_on(poll_once(watch.next())).is_none());
        assert!(watch.0.waiting.borrow().is_empty(), "those who gave up are forgotten");
    }

    #[test]
    fn one_at_a_time() {
        let gate = Gate::default();
        let turn = block_on(gate.enter());
        let mut second = Box::pin(gate.enter());
        assert!(block_on(poll_once(&mut second)).is_none());
        drop(turn);
        assert!(block_on(poll_once(&mut second)).is_some());
    }
}
