//! One at a time, by key: tasks of one executor that want to do the same thing wait for whoever is doing it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Keys that somebody is inside of, and who waits for each.
#[derive(Debug)]
pub struct Gate<K>(RefCell<BTreeMap<K, Vec<Waker>>>);

impl<K> Default for Gate<K> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

/// Inside the gate until dropped.
#[derive(Debug)]
pub struct Pass<'a, K: Ord + Copy> {
    gate: &'a Gate<K>,
    key: K,
}

impl<K: Ord + Copy> Gate<K> {
    /// Waits until nobody else is inside under `key`.
    pub async fn enter(&self, key: K) -> Pass<'_, K> {
        poll_fn(|context| {
            let mut inside = self.0.borrow_mut();
            match inside.get_mut(&key) {
                Some(waiting) => {
                    waiting.push(context.waker().clone());
                    Poll::Pending
                }
                None => {
                    inside.insert(key, Vec::new());
                    Poll::Ready(())
                }
            }
        })
        .await;
        Pass { gate: self, key }
    }
}

impl<K: Ord + Copy> Drop for Pass<'_, K> {
    fn drop(&mut self) {
        let waiting = self.gate.0.borrow_mut().remove(&self.key);
        waiting.into_iter().flatten().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, yield_now, zip};
    use std::cell::Cell;

    #[test]
    fn one_at_a_time_for_each_key() {
        let (gate, inside) = (Gate::default(), Cell::new(0));
        let visit = async |key: u8, most: u32| {
            for _ in 0..10 {
                let _pass = gate.enter(key).await;
                inside.set(inside.get() + 1);
                yield_now().await;
                assert!(inside.get() <= most);
                inside.set(inside.get() - 1);
            }
        };
        block_on(zip(visit(1, 1), zip(visit(1, 1), visit(1, 1))));
        block_on(zip(visit(1, 2), zip(visit(2, 2), visit(1, 2))));
        assert!(gate.0.borrow().is_empty());
    }
}
