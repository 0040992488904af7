//! One suite that every backend passes: what the [contract](crate::contract) promises, and nothing else.
//!
//! A backend's test gives a [`Bench`] and calls [`check_all`]. Every check panics with what it found.

mod conflicts;
mod limits;
mod model;
mod reads;
mod writes;

pub use model::{Load, check_serializable};

use crate::contract::*;
use corefs_wire::{ErrorCode, Result};
use std::fmt::Debug;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

/// Where the suite gets its engines from.
#[allow(async_fn_in_trait)] // executors are single-threaded: futures need not be Send
pub trait Bench {
    type Engine: KvEngine;

    /// What is printed when it has passed.
    const NAME: &str;

    /// An empty store that nobody else uses.
    async fn fresh(&self) -> Self::Engine;

    /// Lets `duration` pass on the clock of the store and of its transactions. `false`: can't.
    async fn pass(&self, engine: &Self::Engine, duration: Duration) -> bool;
}

/// Runs everything. Prints what it has to skip, and at the end what passed: `ci/test` shows these lines.
pub async fn check_all<B: Bench>(bench: &B) {
    reads::check(bench).await;
    writes::check(bench).await;
    conflicts::check(bench).await;
    limits::check(bench).await;
    for seed in 0..4 {
        check_serializable(&bench.fresh().await, seed, Load::default()).await;
    }
    println!("conformance: passed on {}", B::NAME);
}

/// Runs futures side by side on the calling task; their results in order.
pub async fn join_all<T>(futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    enum Slot<F, T> {
        Running(F),
        Done(T),
    }
    let mut slots: Vec<Slot<Pin<Box<_>>, T>> =
        futures.into_iter().map(|f| Slot::Running(Box::pin(f))).collect();
    poll_fn(|context| {
        let mut running = false;
        for slot in &mut slots {
            if let Slot::Running(future) = slot {
                match future.as_mut().poll(context) {
                    Poll::Ready(value) => *slot = Slot::Done(value),
                    Poll::Pending => running = true,
                }
            }
        }
        if running { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    let done = |slot| match slot {
        Slot::Done(value) => value,
        Slot::Running(_) => unreachable!("the loop above ends when nothing runs"),
    };
    slots.into_iter().map(done).collect()
}

#[track_caller]
fn expect_code<T: Debug>(outcome: Result<T>, code: ErrorCode) {
    match outcome {
        Err(error) if error.code == code => {}
        other => panic!("expected {}, got {other:?}", code.name()),
    }
}

/// Sets the pairs in a transaction of their own.
async fn put<E: KvEngine>(engine: &E, pairs: &[(&[u8], &[u8])]) {
    let mut txn = engine.begin();
    for (key, value) in pairs {
        txn.set(key, value);
    }
    txn.commit().await.expect("nothing is in the way of a blind write");
}

/// The value of `key` now.
async fn get<E: KvEngine>(engine: &E, key: &[u8]) -> Option<Vec<u8>> {
    engine.begin().get(key, Isolation::Snapshot).await.expect("a plain read")
}

/// All keys of `range` as the transaction sees them.
async fn keys<T: Transaction>(txn: &mut T, range: &KeyRange) -> Vec<Vec<u8>> {
    let pairs = txn.range_all(range, usize::MAX, Isolation::Snapshot).await.expect("a plain range read");
    pairs.into_iter().map(|(key, _)| key).collect()
}
