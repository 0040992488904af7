//! How one local task tells another that there is something to do: a flag and the waker of whoever waits.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// A doorbell between tasks of one executor. Ringing it twice before it is heard is ringing it once.
/// Clones share the bell; one task at a time may wait for it.
#[derive(Clone, Default)]
pub struct Bell(Rc<State>);

#[derive(Default)]
struct State {
    rung: Cell<bool>,
    waiting: RefCell<Option<Waker>>,
    echo: Option<Bell>,
}

impl Bell {
    pub fn new() -> Self {
        Self::default()
    }

    /// A bell that also rings `other` whenever it is rung.
    pub fn echo(other: &Self) -> Self {
        Self(Rc::new(State { echo: Some(other.clone()), ..State::default() }))
    }

    /// Makes the present or the next [`wait`](Self::wait) return.
    pub fn ring(&self) {
        if !self.0.rung.replace(true)
            && let Some(waker) = self.0.waiting.borrow_mut().take()
        {
            waker.wake();
        }
        if let Some(other) = &self.0.echo {
            other.ring();
        }
    }

    pub fn is_rung(&self) -> bool {
        self.0.rung.get()
    }

    /// Whether it was rung since the last time; silences it.
    pub fn take(&self) -> bool {
        self.0.rung.replace(false)
    }

    /// Resolves when the bell has been rung. Doesn't silence it: [`take`](Self::take) does.
    pub fn wait(&self) -> Heard<'_> {
        Heard(self)
    }
}

/// The future of [`Bell::wait`].
pub struct Heard<'a>(&'a Bell);

impl Future for Heard<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let state = &self.0.0;
        if state.rung.get() {
            return Poll::Ready(());
        }
        let mut waiting = state.waiting.borrow_mut();
        match &mut *waiting {
            Some(waker) => waker.clone_from(context.waker()),
            empty => *empty = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, poll_once};

    #[test]
    fn is_heard_once_however_often_it_rang() {
        let bell = Bell::new();
        assert!(block_on(poll_once(bell.wait())).is_none());
        bell.ring();
        bell.ring();
        assert!(block_on(poll_once(bell.wait())).is_some());
        assert!(bell.take() && !bell.take());
        assert!(block_on(poll_once(bell.wait())).is_none());
    }
}
