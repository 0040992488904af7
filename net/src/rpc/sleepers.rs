//! Tasks that wait for a time, looked through by a coarse tick: no timer for each of them.

use slab::Slab;
use std::task::Waker;
use std::time::Instant;

#[derive(Default)]
pub struct Sleepers(Slab<(Instant, Option<Waker>)>);

impl Sleepers {
    pub fn insert(&mut self, until: Instant) -> usize {
        self.0.insert((until, None))
    }

    pub fn remove(&mut self, key: usize) {
        self.0.remove(key);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the time has come; else `waker` is called when it does.
    pub fn poll(&mut self, key: usize, now: Instant, waker: &Waker) -> bool {
        let (until, waiting) = &mut self.0[key];
        *waiting = Some(waker.clone());
        *until <= now
    }

    pub fn wake(&mut self, now: Instant) {
        for (_, (until, waker)) in &mut self.0 {
            if *until <= now
                && let Some(waker) = waker.take()
            {
                waker.wake();
            }
        }
    }

    /// Ends all waits.
    pub fn wake_all(&mut self, now: Instant) {
        self.0.iter_mut().for_each(|(_, (until, _))| *until = now);
        self.wake(now);
    }
}
