//! Many lives of chains, one a seed, on several cores; and what they amount to.

use crate::chain::{Config, Counts, run};
use serde_json::{Map, Value, json};
use std::cell::Cell;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

/// What a life must at least have seen to count: virtual milliseconds, answered operations, faults.
pub const LEAST: (u64, u64, u64) = (60_000, 1_000, 3);

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// The seed whose life this thread is at: whoever panics says which it was.
pub fn seed_here() -> Option<u64> {
    SEED.get()
}

/// The one command that replays a seed.
pub fn replay(seed: u64) -> String {
    format!("cargo run --release -p corefs-sim -- --seed {seed}")
}

/// What many lives were like.
pub struct Lives {
    /// One of each life, by seed.
    pub counts: Vec<(u64, Counts)>,
    /// The first seed that failed, and how.
    pub failure: Option<(u64, String)>,
    /// Seconds that it took, and that all cores together worked on it.
    pub took_s: f64,
    pub worked_s: f64,
}

/// Seconds that this thread has had a core, as the kernel counts them.
fn worked_s() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split_whitespace().next()?.parse::<f64>().ok()? / 1e9)
}

/// One life; too quiet a one fails. In those of odd seeds nodes hear of routing without waiting for their heartbeats.
pub fn live(seed: u64, config: Config) -> Result<Counts, String> {
    let config = Config { news: config.news || !seed.is_multiple_of(2), ..config };
    let counts = run(seed, config)?;
    let had = (counts.milliseconds, counts.operations(), counts.faults);
    if had.0 < LEAST.0 || had.1 < LEAST.1 || had.2 < LEAST.2 {
        return Err(format!(
            "seed {seed}: too quiet a life: {} ms, {} operations answered, {} faults; wanted are {LEAST:?}",
            had.0, had.1, had.2
        ));
    }
    Ok(counts)
}

/// Lives of the seeds from `first` on, `jobs` at a time, until one fails. `progress` hears how many are over.
pub fn all(first: u64, seeds: u64, jobs: usize, config: Config, progress: impl Fn(u64) + Sync) -> Lives {
    let began = Instant::now();
    let (next, over) = (AtomicU64::new(0), AtomicU64::new(0));
    let lives = Mutex::new(Lives { counts: Vec::new(), failure: None, took_s: 0.0, worked_s: 0.0 });
    let work = || {
        let (began, worked) = (Instant::now(), worked_s());
        loop {
            let position = next.fetch_add(1, Ordering::Relaxed);
            if position >= seeds {
                break;
            }
            let seed = first + position;
            SEED.set(Some(seed));
            let life = live(seed, config);
            SEED.set(None);
            let mut lives = lives.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match life {
                Ok(counts) => lives.counts.push((seed, counts)),
                Err(what) => {
                    // Nothing new is begun; of those under way the first one counts.
                    next.store(seeds, Ordering::Relaxed);
                    if lives.failure.as_ref().is_none_or(|(failed, _)| seed < *failed) {
                        lives.failure = Some((seed, what));
                    }
                }
            }
            drop(lives);
            progress(over.fetch_add(1, Ordering::Relaxed) + 1);
        }
        let worked = worked_s().zip(worked).map(|(now, before)| now - before);
        let mut lives = lives.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        lives.worked_s += worked.unwrap_or_else(|| began.elapsed().as_secs_f64());
    };
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(work);
        }
    });
    let mut lives = lives.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    lives.took_s = began.elapsed().as_secs_f64();
    lives.counts.sort_unstable_by_key(|(seed, _)| *seed);
    lives
}

/// One count over all lives.
struct Row {
    name: &'static str,
    least: u64,
    median: u64,
    most: u64,
    sum: u64,
    /// Lives in which it happened at all.
    lives: usize,
}

impl Lives {
    fn rows(&self) -> Vec<Row> {
        let lists: Vec<_> = self.counts.iter().map(|(_, counts)| counts.list()).collect();
        let row = |(at, (name, _)): (usize, &(&'static str, u64))| {
            let mut values: Vec<u64> = lists.iter().map(|list| list[at].1).collect();
            values.sort_unstable();
            Row {
                name,
                least: values.first().copied().unwrap_or(0),
                median: values.get(values.len() / 2).copied().unwrap_or(0),
                most: values.last().copied().unwrap_or(0),
                sum: values.iter().sum(),
                lives: values.iter().filter(|value| **value > 0).count(),
            }
        };
        Counts::default().list().iter().enumerate().map(row).collect()
    }

    fn simulated_s(&self) -> f64 {
        self.counts.iter().map(|(_, counts)| counts.milliseconds as f64 / 1000.0).sum()
    }

    /// Simulated seconds in a second of one core.
    pub fn speed(&self) -> f64 {
        self.simulated_s() / self.worked_s.max(1e-9)
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a string can't fail.
        let mut line = |text: std::fmt::Arguments<'_>| {
            let _infallible = writeln!(out, "{text}");
        };
        line(format_args!(
            "{:<22} {:>9} {:>9} {:>9} {:>12} {:>9}",
            "of one life", "least", "median", "most", "sum", "in lives"
        ));
        for row in self.rows() {
            let share = row.lives as f64 * 100.0 / self.counts.len().max(1) as f64;
            line(format_args!(
                "{:<22} {:>9} {:>9} {:>9} {:>12} {share:>8.1}%",
                row.name, row.least, row.median, row.most, row.sum
            ));
        }
        line(format_args!(
            "{} lives clean, {:.0} simulated seconds in {:.1} s, {:.0} a second and core",
            self.counts.len(),
            self.simulated_s(),
            self.took_s,
            self.speed()
        ));
        out
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let mut rows = Map::new();
        for row in self.rows() {
            let Row { name, least, median, most, sum, lives } = row;
            let value = json!({ "least": least, "median": median, "most": most, "sum": sum, "lives": lives });
            rows.insert(name.into(), value);
        }
        let failure = self.failure.as_ref();
        json!({
            "lives": self.counts.len(),
            "failed_seed": failure.map(|(seed, _)| seed),
            "failure": failure.map(|(_, what)| what),
            "replay": failure.map(|(seed, _)| replay(*seed)),
            "simulated_s": self.simulated_s(),
            "took_s": self.took_s,
            "simulated_s_per_core_s": self.speed(),
            "counts": rows,
        })
    }
}
