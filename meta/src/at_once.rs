//! Many things at once, but not too many.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// The results of all futures, of which at most `concurrency` run at a time; in order of completion.
pub async fn all_of<F: Future>(futures: impl Iterator<Item = F>, concurrency: usize) -> Vec<F::Output> {
    let mut waiting = futures.map(Box::pin);
    let mut running: Vec<Pin<Box<F>>> = waiting.by_ref().take(concurrency).collect();
    let mut results = Vec::new();
    poll_fn(|context| {
        let mut at = 0;
        while at < running.len() {
            match running[at].as_mut().poll(context) {
                Poll::Pending => at += 1,
                Poll::Ready(result) => {
                    results.push(result);
                    drop(running.swap_remove(at));
                    running.extend(waiting.next());
                }
            }
        }
        if running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    results
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, yield_now};
    use std::cell::Cell;

    #[test]
    fn all_run_and_not_too_many_at_once() {
        let (running, most) = (Cell::new(0), Cell::new(0));
        let futures = (0..20).map(|number| {
            let (running, most) = (&running, &most);
            async move {
                running.set(running.get() + 1);
                most.set(running.get().max(most.get()));
                for _ in 0..number % 3 {
                    yield_now().await;
                }
                running.set(running.get() - 1);
                number
            }
        });
        let mut results = block_on(all_of(futures, 4));
        results.sort_unstable();
        assert!(results.into_iter().eq(0..20));
        assert_eq!(most.get(), 4);
    }
}
