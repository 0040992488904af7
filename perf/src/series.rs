//! What was done in each second of a run: recorded by each core for itself, joined at the end.

use crate::histogram::{Counts, Latencies};
use crate::live::{Live, TICK};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// Most intervals of a run: each is of a second up to half an hour, and of more seconds in longer runs, so that a day takes
/// no more memory than that.
const INTERVALS_MAX: u64 = 1800;
/// A last interval that is shorter is none.
const SCRAP: Duration = Duration::from_millis(200);

/// Intervals of a run, or of several runs one after the other.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Series {
    /// By the clock on the wall; `None`: nothing was recorded.
    began: Option<SystemTime>,
    /// By their beginning since then.
    intervals: BTreeMap<Duration, Interval>,
}

/// What was done in a part of a run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Interval {
    pub length: Duration,
    pub errors: u64,
    pub counts: Counts,
}

/// An interval in a report. Latencies are in microseconds, null where nothing was done.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Point {
    /// Seconds since the series began.
    pub at: f64,
    pub seconds: f64,
    pub operations: u64,
    pub errors: u64,
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    pub max: Option<f64>,
}

/// A series as a report has it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Points {
    /// Seconds since 1970.
    pub began: f64,
    pub points: Vec<Point>,
}

impl Series {
    pub fn began(&self) -> Option<SystemTime> {
        self.began
    }

    /// Each interval and how long after the beginning it began.
    pub fn intervals(&self) -> impl Iterator<Item = (Duration, &Interval)> {
        self.intervals.iter().map(|(at, interval)| (*at, interval))
    }

    /// Adds what another core did in the same run.
    pub fn join(&mut self, other: Self) {
        self.began = self.began.or(other.began);
        for (at, interval) in other.intervals {
            let ours = self.intervals.entry(at).or_default();
            ours.length = ours.length.max(interval.length);
            ours.errors += interval.errors;
            ours.counts.merge(&interval.counts);
        }
    }

    /// Adds a run that began later.
    pub fn extend(&mut self, later: Self) {
        let (Some(ours), Some(theirs)) = (self.began, later.began) else {
            return self.join(later);
        };
        // A clock that was set back must not put one run into the other.
        let end = self.intervals.last_key_value().map_or(Duration::ZERO, |(at, last)| *at + last.length);
        let after = theirs.duration_since(ours).unwrap_or_default().max(end);
        let moved = later.intervals.into_iter().map(|(at, interval)| (after + at, interval));
        self.intervals.extend(moved);
    }

    /// Everything that was recorded, as one.
    pub fn latencies(&self) -> Latencies {
        let mut all = Latencies::new();
        self.intervals.values().for_each(|interval| all.add(&interval.counts));
        all
    }

    /// For a report; `None` when there is nothing to show.
    pub fn points(&self) -> Option<Points> {
        let began = self.began?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut latencies = Latencies::new();
        let point = |(at, interval): (&Duration, &Interval)| {
            latencies.clear();
            latencies.add(&interval.counts);
            Point {
                at: rounded(*at),
                seconds: rounded(interval.length),
                operations: latencies.count(),
                errors: interval.errors,
                p50: latencies.quantile_us(0.5),
                p99: latencies.quantile_us(0.99),
                max: latencies.max_us(),
            }
        };
        Some(Points { began: rounded(began), points: self.intervals.iter().map(point).collect() })
    }
}

/// Milliseconds are enough.
fn rounded(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1e3
}

/// One core's latencies as they come. Costs one comparison an operation beside the histogram, and a look over the histogram
/// each second.
#[derive(Clone, Debug)]
pub struct Recorder {
    series: Series,
    /// Ticks of an interval.
    ticks: u64,
    /// The tick that is under way, and when it ends.
    tick: u64,
    end: Duration,
    current: Latencies,
    errors: u64,
    clamped: u64,
}

impl Recorder {
    /// Of a run of this length, whose measured part begins then; `None`: nobody knows how long, and it is one interval.
    pub fn new(began: SystemTime, length: Option<Duration>) -> Self {
        let ticks = length.map_or(u64::MAX, |length| (length.as_secs() / INTERVALS_MAX).max(1));
        Self {
            series: Series { began: Some(began), intervals: BTreeMap::new() },
            ticks,
            tick: 0,
            end: TICK,
            current: Latencies::new(),
            errors: 0,
            clamped: 0,
        }
    }

    /// Counts operations that ended `at` after the beginning; not before earlier ones.
    #[inline]
    pub fn record(&mut self, at: Duration, latency_ns: u64, count: u64, live: &Live) {
        if at >= self.end {
            self.turn(at, live);
        }
        self.current.record_n(latency_ns, count);
    }

    /// Counts failures, of which there is no latency.
    pub fn fail(&mut self, at: Duration, count: u64, live: &Live) {
        if at >= self.end {
            self.turn(at, live);
        }
        self.errors += count;
    }

    /// Ends ticks up to that of `at`. Those in which nothing ended are there too: a stall is zeros, not a gap.
    fn turn(&mut self, at: Duration, live: &Live) {
        live.show(self.tick, &self.current);
        self.keep();
        let tick = at.as_secs() / TICK.as_secs();
        for empty in self.tick + 1..tick {
            self.tick = empty;
            self.keep();
        }
        self.tick = tick;
        self.end = TICK * (tick as u32 + 1);
    }

    fn keep(&mut self) {
        let interval = self.tick / self.ticks;
        let start = TICK * (interval.saturating_mul(self.ticks) as u32);
        let length = TICK * ((self.tick + 1) as u32) - start;
        let kept = self.series.intervals.entry(start).or_default();
        kept.length = length;
        kept.errors += std::mem::take(&mut self.errors);
        kept.counts.merge(&self.current.counts());
        self.clamped += self.current.clamped();
        self.current.clear();
    }

    /// The last interval ends with the run. What is hardly one belongs to the one before: of a few milliseconds no rate can be told.
    fn trim(&mut self, end: Duration) {
        let intervals = &mut self.series.intervals;
        let Some(mut last) = intervals.last_entry() else { return };
        let start = *last.key();
        let length = end.saturating_sub(start).min(last.get().length);
        if !length.is_zero() {
            last.get_mut().length = length;
        }
        if length < SCRAP && intervals.len() > 1 {
            let scrap = intervals.remove(&start).unwrap_or_default();
            if let Some(mut before) = intervals.last_entry() {
                let before = before.get_mut();
                before.length += length;
                before.errors += scrap.errors;
                before.counts.merge(&scrap.counts);
            }
        }
    }

    /// What was recorded until `end` after the beginning, and how many latencies were clamped.
    pub fn finish(mut self, end: Duration) -> (Series, Latencies) {
        let last = end.saturating_sub(Duration::from_nanos(1)).as_secs() / TICK.as_secs();
        self.keep();
        while self.tick < last {
            self.tick += 1;
            self.keep();
        }
        self.trim(end);
        let mut latencies = self.series.latencies();
        latencies.note_clamped(self.clamped);
        (self.series, latencies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn recorder(length: Option<u64>) -> Recorder {
        Recorder::new(SystemTime::UNIX_EPOCH, length.map(Duration::from_secs))
    }

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn shape(series: &Series) -> Vec<(u64, u64, u64)> {
        let all = series.intervals();
        all.map(|(at, i)| (at.as_millis() as u64, i.length.as_millis() as u64, i.counts.total())).collect()
    }

    #[test]
    fn seconds_are_told_apart_and_a_stall_is_zeros() {
        let (live, mut recorder) = (Live::default(), recorder(Some(5)));
        for (ms, count) in [(10, 3), (999, 2), (1000, 5), (4200, 7)] {
            recorder.record(at(ms), ms * MS, count, &live);
        }
        recorder.fail(at(4300), 2, &live);
        let (series, latencies) = recorder.finish(at(4500));
        assert_eq!(
            shape(&series),
            [(0, 1000, 5), (1000, 1000, 5), (2000, 1000, 0), (3000, 1000, 0), (4000, 500, 7)]
        );
        assert_eq!(latencies.count(), 17);
        let points = series.points().unwrap().points;
        assert_eq!((points[4].errors, points[4].seconds, points[2].p50), (2, 0.5, None));
        assert!(points[1].p50.unwrap() >= 999_000.0 && points[1].operations == 5);
        // A loop that ends a little late has no interval for that.
        let mut late = Recorder::new(SystemTime::UNIX_EPOCH, Some(at(2000)));
        [500, 1500, 2010].into_iter().for_each(|ms| late.record(at(ms), MS, 1, &live));
        assert_eq!(shape(&late.finish(at(2030)).0), [(0, 1000, 1), (1000, 1030, 2)]);
        // A core with nothing to do at all has the same seconds.
        let idle = Recorder::new(SystemTime::UNIX_EPOCH, Some(at(5000))).finish(at(4500)).0;
        assert_eq!(shape(&idle).len(), 5);
    }

    #[test]
    fn long_runs_have_wider_intervals_and_unknown_ones_a_single() {
        let (live, mut long, mut unknown) = (Live::default(), recorder(Some(7200)), recorder(None));
        for second in 0..7200 {
            long.record(at(second * 1000 + 1), MS, 1, &live);
            unknown.record(at(second * 1000 + 1), MS, 1, &live);
        }
        let (series, _) = long.finish(at(7_200_000));
        assert_eq!(shape(&series).len() as u64, INTERVALS_MAX);
        assert!(shape(&series).iter().all(|interval| interval.1 == 4000 && interval.2 == 4));
        let (series, latencies) = unknown.finish(at(7_200_000));
        assert_eq!(shape(&series), [(0, 7_200_000, 7200)]);
        assert_eq!(latencies.count(), 7200);
    }

    #[test]
    fn cores_join_and_rounds_follow_each_other() {
        let live = Live::default();
        let run = |began: u64, count: u64| {
            let began = SystemTime::UNIX_EPOCH + Duration::from_secs(began);
            let mut recorder = Recorder::new(began, Some(at(2000)));
            recorder.record(at(100), MS, count, &live);
            recorder.record(at(1100), 2 * MS, count, &live);
            recorder.finish(at(2000)).0
        };
        let mut all = run(100, 3);
        all.join(run(100, 4));
        assert_eq!(shape(&all), [(0, 1000, 7), (1000, 1000, 7)]);
        all.extend(run(110, 5));
        all.extend(run(90, 6));
        let expected = [(0, 7), (1000, 7), (10_000, 5), (11_000, 5), (12_000, 6), (13_000, 6)];
        assert_eq!(shape(&all), expected.map(|(at, count)| (at, 1000, count)));
        assert_eq!(all.latencies().count(), 36);
        let mut none = Series::default();
        assert_eq!(none.points(), None);
        none.extend(all.clone());
        assert_eq!((none.began(), shape(&none).len()), (all.began(), 6));
    }

    #[test]
    fn what_was_clamped_is_still_known() {
        let (live, mut recorder) = (Live::default(), recorder(Some(2)));
        recorder.record(at(1), u64::MAX, 2, &live);
        recorder.record(at(1500), u64::MAX, 1, &live);
        assert_eq!(recorder.finish(at(2000)).1.clamped(), 3);
    }
}
