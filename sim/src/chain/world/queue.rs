//! What is going to happen: the earliest first, and of the same moment what was put in first.

use super::Nanos;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Large things stay where they are while the order is kept among their numbers.
pub(super) struct Queue<T> {
    /// When, a number that rises with each, and its place in `waiting`.
    order: BinaryHeap<Reverse<(Nanos, u64, usize)>>,
    waiting: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { order: BinaryHeap::new(), waiting: Vec::new(), free: Vec::new() }
    }
}

impl<T> Queue<T> {
    /// `number` is another one each time.
    pub(super) fn push(&mut self, at: Nanos, number: u64, thing: T) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.waiting.push(None);
            self.waiting.len() - 1
        });
        self.waiting[place] = Some(thing);
        self.order.push(Reverse((at, number, place)));
    }

    pub(super) fn pop(&mut self) -> Option<(Nanos, T)> {
        let Reverse((at, _, place)) = self.order.pop()?;
        self.free.push(place);
        Some((at, self.waiting[place].take()?))
    }
}
