//! Runs tasks interleaved as a seed says: the same seed gives the same interleaving.

use corefs_kv::prng::Prng;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// A bound that only a deadlock reaches.
const POLLS_MAX: u64 = 10_000_000;

/// Polls the tasks in a random order until all are done. Tasks yield only by asking to be polled again at once.
pub fn run(seed: u64, mut tasks: Vec<Pin<Box<dyn Future<Output = ()>>>>) {
    let mut random = Prng::new(seed);
    let mut context = Context::from_waker(Waker::noop());
    let mut polls = 0;
    while !tasks.is_empty() {
        let at = random.below(tasks.len() as u64) as usize;
        if let Poll::Ready(()) = tasks[at].as_mut().poll(&mut context) {
            drop(tasks.swap_remove(at));
        }
        polls += 1;
        assert!(polls < POLLS_MAX, "seed {seed}: {} tasks don't end", tasks.len());
    }
}
