//! A value that several local tasks wait for and that comes once.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Clones share the value to come.
pub struct Latch<T>(Rc<RefCell<State<T>>>);

struct State<T> {
    value: Option<T>,
    waiting: Vec<Waker>,
}

impl<T> Clone for Latch<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T: Clone> Latch<T> {
    pub fn new() -> Self {
        Self(Rc::new(RefCell::new(State { value: None, waiting: Vec::new() })))
    }

    /// The first value stays.
    pub fn set(&self, value: T) {
        let mut state = self.0.borrow_mut();
        state.value.get_or_insert(value);
        state.waiting.drain(..).for_each(Waker::wake);
    }

    pub fn is_set(&self) -> bool {
        self.0.borrow().value.is_some()
    }

    pub async fn get(&self) -> T {
        poll_fn(|context| {
            let mut state = self.0.borrow_mut();
            if let Some(value) = &state.value {
                return Poll::Ready(value.clone());
            }
            if !state.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                state.waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}
