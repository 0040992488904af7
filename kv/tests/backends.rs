//! The conformance suite on every backend of ours, and what is particular to each.

use corefs_kv::clock::{Clock, Hand};
use corefs_kv::conformance::{Bench, Load, check_all, check_serializable};
use corefs_kv::embedded::Options;
use corefs_kv::mem::Faults;
use corefs_kv::{Embedded, Mem};
use futures_lite::future::block_on;
use std::cell::RefCell;
use std::time::Duration;
use tempfile::TempDir;

struct MemBench(Faults);

impl Bench for MemBench {
    type Engine = Mem;
    const NAME: &str = "memory";

    async fn fresh(&self) -> Mem {
        Mem::with_faults(1, self.0)
    }

    async fn pass(&self, engine: &Mem, duration: Duration) -> bool {
        engine.advance(duration);
        true
    }
}

#[test]
fn mem() {
    block_on(check_all(&MemBench(Faults::default())));
    block_on(check_all(&MemBench(Faults { yields: 500, ..Faults::default() })));
}

#[test]
fn mem_in_a_storm_of_faults_is_still_serializable() {
    for seed in 0..50 {
        let engine = Mem::with_faults(seed, Faults::STORM);
        block_on(async {
            check_serializable(&engine, seed, Load { transactions: 40, ..Load::default() }).await;
        });
    }
}

/// The embedded store with a log that holds that much.
struct EmbeddedBench<const LOG_BYTES: u64> {
    directories: RefCell<Vec<TempDir>>,
    hand: RefCell<Option<Hand>>,
}

/// What a process has.
const LOG_BYTES: u64 = 2 << 20;
/// A few commits: the tree is written all the time.
const SMALL_LOG_BYTES: u64 = 16 << 10;

impl<const LOG_BYTES: u64> Default for EmbeddedBench<LOG_BYTES> {
    fn default() -> Self {
        Self { directories: RefCell::default(), hand: RefCell::default() }
    }
}

impl<const LOG_BYTES: u64> Bench for EmbeddedBench<LOG_BYTES> {
    type Engine = Embedded;
    const NAME: &str = "embedded";

    async fn fresh(&self) -> Embedded {
        let directory = tempfile::tempdir().unwrap();
        let (clock, hand) = Clock::standing();
        let engine =
            Embedded::open(directory.path(), Options { clock, log_bytes: LOG_BYTES, ..Options::default() })
                .unwrap();
        self.directories.borrow_mut().push(directory);
        *self.hand.borrow_mut() = Some(hand);
        engine
    }

    async fn pass(&self, _: &Embedded, duration: Duration) -> bool {
        self.hand.borrow().as_ref().unwrap().advance(duration);
        true
    }
}

#[test]
fn embedded() {
    block_on(check_all(&EmbeddedBench::<LOG_BYTES>::default()));
}

#[test]
fn embedded_with_a_small_log() {
    block_on(check_all(&EmbeddedBench::<SMALL_LOG_BYTES>::default()));
}
