//! What a running workload shows to other threads, and hears from them.

use crate::draw;
use crate::histogram::Latencies;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Cores show what they did once in this time, and a series has a point for it.
pub const TICK: Duration = Duration::from_secs(1);
/// Cores end a tick with their next operation, so the figures of a tick are whole a little later.
const LATE: Duration = Duration::from_millis(150);
/// Ticks that are remembered one by one.
const RECENT: usize = 4;

/// What a running workload shows to other threads, and hears from them.
#[derive(Default, Debug)]
pub struct Live {
    bytes: AtomicU64,
    errors: AtomicU64,
    stop: AtomicBool,
    board: Mutex<Board>,
}

/// What cores have shown of this run.
#[derive(Default, Debug)]
struct Board {
    latencies: Latencies,
    /// Operations of the latest ticks.
    recent: BTreeMap<u64, u64>,
}

impl Live {
    /// Ends the run soon; what was measured until then is reported.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Bytes done so far, roughly.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Something went wrong, so often.
    pub fn fail(&self, errors: u64) {
        self.errors.fetch_add(errors, Ordering::Relaxed);
    }

    /// Another run begins: nothing has been done yet.
    pub fn begin(&self) {
        self.bytes.store(0, Ordering::Relaxed);
        self.errors.store(0, Ordering::Relaxed);
        let mut board = self.board();
        board.latencies.clear();
        board.recent.clear();
    }

    /// What a core did in a tick. Once a tick and core: a lock costs nothing then.
    pub fn show(&self, tick: u64, latencies: &Latencies) {
        let mut board = self.board();
        board.latencies.merge(latencies);
        *board.recent.entry(tick).or_insert(0) += latencies.count();
        while board.recent.len() > RECENT {
            board.recent.pop_first();
        }
    }

    /// One line on how it goes, so long after the first tick began: operations in the latest whole tick, latencies since
    /// the beginning, errors. Empty before there is anything to say.
    pub fn line(&self, elapsed: Duration) -> String {
        let ticks = elapsed.saturating_sub(LATE).as_secs() / TICK.as_secs();
        let Some(latest) = ticks.checked_sub(1) else { return String::new() };
        let board = self.board();
        let operations = board.recent.get(&latest).copied().unwrap_or(0);
        let time = |quantile| board.latencies.quantile_us(quantile).map_or("-".into(), draw::time);
        let iops = draw::count(operations as f64 / TICK.as_secs_f64());
        let errors = match self.errors.load(Ordering::Relaxed) {
            1 => "1 error".into(),
            errors => format!("{errors} errors"),
        };
        format!(": {iops} IOPS, p50 {}, p99 {}, {errors}", time(0.5), time(0.99))
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        // Counters have no broken state.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_all_cores_did_in_the_latest_whole_tick() {
        let live = Live::default();
        let mut latencies = Latencies::new();
        latencies.record_n(100_000, 600);
        assert_eq!(live.line(Duration::from_millis(1100)), "");
        live.show(0, &latencies);
        live.show(0, &latencies);
        live.fail(1);
        assert_eq!(live.line(Duration::from_millis(1200)), ": 1200 IOPS, p50 100us, p99 100us, 1 error");
        latencies.record_n(5_000_000, 40);
        live.show(1, &latencies);
        let line = live.line(Duration::from_millis(2300));
        assert!(line.starts_with(": 640 IOPS, p50 100us, p99 5.0"), "{line}");
        // A stall shows.
        assert!(live.line(Duration::from_millis(3300)).starts_with(": 0.0 IOPS"));
        (2..100).for_each(|tick| live.show(tick, &latencies));
        assert_eq!(live.board().recent.len(), RECENT);
        live.begin();
        assert_eq!(live.line(Duration::from_millis(1200)), ": 0.0 IOPS, p50 -, p99 -, 0 errors");
    }
}
