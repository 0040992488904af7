//! How long a read is waited for before another replica is asked, too, and how often that may be. Pure.
//!
//! Who is asked, too, is not slower than the slowest hundredth of the reads of this core lately, so about one read in a hundred is
//! asked for twice, and none of them waits for much longer than the rest. What is slow for a read of some blocks is not for one of a
//! mebibyte: each kind has a [`Tail`] of its own.
//!
//! A read that was answered by the second replica counts with the time that it took in the end, which is longer than what it was waited
//! for: so the share of the reads that take longer is seen as it is, and the estimate finds its way up as well as down.

use corefs_wire::{Error, ErrorCode, Result};
use std::time::Duration;

/// Nobody is asked, too, earlier than this: below, a core that was busy for a moment looks like a replica that is late.
pub const FLOOR: Duration = Duration::from_millis(1);
/// From here on an attempt is given up anyway.
pub const CEILING: Duration = Duration::from_millis(200);
/// One second request for so many reads.
const READS_PER_HEDGE: u64 = 20;
/// Second requests that may be saved up: what waits for one replica when it stops.
const SAVED_MAX: u64 = 256;
/// Reads after which the time is first estimated; and after how many more each time.
const FIRST: u32 = 100;
const EACH: u32 = 1024;
/// Bytes of a read of the first kind, at most.
const SMALL: usize = 32 << 10;

/// When a second replica is asked for a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Hedge {
    Off,
    /// After the time that 99% of recent reads took.
    #[default]
    Auto,
    After(Duration),
}

impl std::str::FromStr for Hedge {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::new(ErrorCode::BadConfig, format!("hedge `{text}`: expected off, auto, or a time as 5ms"))
        };
        let parse = |number: &str, unit: u64| {
            let nanos = number.parse::<u64>().ok().filter(|number| *number > 0)?.checked_mul(unit)?;
            Some(Self::After(Duration::from_nanos(nanos)))
        };
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            _ => [("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000)]
                .into_iter()
                .find_map(|(unit, nanos)| parse(text.strip_suffix(unit)?, nanos))
                .ok_or_else(wrong),
        }
    }
}

impl std::fmt::Display for Hedge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Auto => f.write_str("auto"),
            Self::After(time) => write!(f, "{}us", time.as_micros()),
        }
    }
}

/// The pace of one core's reads.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pace {
    /// Whether latencies are looked at.
    learns: bool,
    small: Tail,
    large: Tail,
    allowance: Allowance,
}

impl Pace {
    pub fn new(hedge: Hedge) -> Self {
        let tail = Tail::new(match hedge {
            Hedge::Off | Hedge::Auto => CEILING,
            Hedge::After(time) => time,
        });
        let learns = hedge == Hedge::Auto;
        Self { learns, small: tail.clone(), large: tail, allowance: Allowance::default() }
    }

    /// How long a read of so many bytes is waited for. `None`: until it is given up.
    #[inline]
    pub fn delay(&self, length: usize) -> Option<Duration> {
        let tail = if length <= SMALL { &self.small } else { &self.large };
        (tail.delay < CEILING).then_some(tail.delay)
    }

    /// A read of so many bytes that another replica could have answered has taken so long.
    #[inline]
    pub fn took(&mut self, length: usize, time: Duration) {
        if self.learns {
            let tail = if length <= SMALL { &mut self.small } else { &mut self.large };
            tail.took(time);
        }
    }

    /// Whether a second replica may be asked now, after so many `reads`; if so, that is one.
    pub fn allows(&mut self, reads: u64) -> bool {
        self.allowance.take(reads)
    }
}

/// Steps of a quarter of a power of two from [`FLOOR`] to beyond [`CEILING`].
const STEPS: usize = 32;
/// What the first four steps are wide.
const STEP: u64 = FLOOR.as_micros() as u64 / 4;

/// How the slow ones of recent reads are distributed. Older ones count for less: all are halved with each estimate.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Tail {
    seen: u32,
    /// How many are seen at the next estimate.
    next: u32,
    /// Of them, by how long they took, those above [`FLOOR`].
    slow: [u32; STEPS],
    delay: Duration,
}

impl Tail {
    const fn new(delay: Duration) -> Self {
        Self { seen: 0, next: FIRST, slow: [0; STEPS], delay }
    }

    #[inline]
    fn took(&mut self, time: Duration) {
        if time >= FLOOR {
            self.took_long(time);
        }
        self.seen += 1;
        if self.seen >= self.next {
            self.estimate();
        }
    }

    #[cold]
    fn took_long(&mut self, time: Duration) {
        self.slow[step(time)] += 1;
    }

    #[cold]
    fn estimate(&mut self) {
        let mut longer = 0;
        let over = (0..STEPS).rev().find(|step| {
            longer += self.slow[*step];
            longer > self.seen / 100
        });
        self.delay = over.map_or(FLOOR, |step| end_of(step).min(CEILING));
        self.slow.iter_mut().for_each(|count| *count /= 2);
        self.seen /= 2;
        self.next = self.seen + EACH;
    }
}

/// The step of a time that is not below [`FLOOR`].
fn step(time: Duration) -> usize {
    let quarters = u64::try_from(time.as_micros()).unwrap_or(u64::MAX) / STEP;
    let power = quarters.max(4).ilog2() - 2;
    let step = power as usize * 4 + (quarters >> power) as usize % 4;
    step.min(STEPS - 1)
}

/// The first time that is above a step.
fn end_of(step: usize) -> Duration {
    Duration::from_micros(((step as u64 % 4 + 5) << (step / 4)) * STEP)
}

/// Bounds what is asked for twice, however slow everything is.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Allowance {
    /// Reads that have not paid for anything yet, and how many there had been when they were counted.
    saved: u64,
    reads: u64,
}

impl Allowance {
    fn take(&mut self, reads: u64) -> bool {
        let more = reads.saturating_sub(self.reads);
        self.reads = reads;
        self.saved = (self.saved + more).min(SAVED_MAX * READS_PER_HEDGE);
        let enough = self.saved >= READS_PER_HEDGE;
        if enough {
            self.saved -= READS_PER_HEDGE;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: f64) -> Duration {
        Duration::from_secs_f64(millis / 1000.0)
    }

    #[test]
    fn steps_follow_each_other() {
        for at in 0..STEPS {
            let end = end_of(at);
            assert_eq!(step(end - Duration::from_micros(1)), at, "{end:?}");
            assert_eq!(step(end), (at + 1).min(STEPS - 1), "{end:?}");
        }
        assert_eq!((step(FLOOR), step(Duration::MAX)), (0, STEPS - 1));
        assert!(end_of(STEPS - 2) > CEILING);
    }

    #[test]
    fn the_slowest_hundredth_is_waited_for_no_longer() {
        let mut pace = Pace::new(Hedge::Auto);
        assert_eq!(pace.delay(4096), None, "nothing is known");
        (0..FIRST).for_each(|_| pace.took(4096, ms(0.2)));
        assert_eq!((pace.delay(4096), pace.delay(1 << 20)), (Some(FLOOR), None));
        // One in fifty takes 7 ms.
        (0..5000).for_each(|at| pace.took(4096, if at % 50 == 0 { ms(7.0) } else { ms(0.2) }));
        assert_eq!(pace.delay(4096), Some(ms(8.0)));
        // One in two hundred.
        (0..20_000).for_each(|at| pace.took(4096, if at % 200 == 0 { ms(7.0) } else { ms(0.2) }));
        assert_eq!(pace.delay(4096), Some(FLOOR));
        // All of them, for longer than they are waited for at all.
        (0..5000).for_each(|_| pace.took(4096, ms(300.0)));
        assert_eq!(pace.delay(4096), None);
    }

    #[test]
    fn answers_of_second_replicas_dont_hide_that_the_first_are_slow() {
        let mut pace = Pace::new(Hedge::Auto);
        (0..2000).for_each(|_| pace.took(4096, ms(0.2)));
        // From now on three in a hundred take 20 ms, but none is waited for longer than it must be.
        for at in 0..50_000 {
            let cut = pace.delay(4096).map_or(ms(20.0), |delay| (delay + ms(0.2)).min(ms(20.0)));
            pace.took(4096, if at % 33 == 0 { cut } else { ms(0.2) });
        }
        assert!(pace.delay(4096).is_some_and(|delay| delay > ms(16.0)), "{:?}", pace.delay(4096));
    }

    #[test]
    fn one_in_twenty_is_asked_for_twice_at_most() {
        let mut pace = Pace::new(Hedge::After(ms(1.0)));
        let mut hedges = 0;
        for reads in 0..10_000 {
            hedges += u64::from(pace.allows(reads));
            assert!(hedges * READS_PER_HEDGE <= reads);
        }
        assert!(hedges > 480);
        let burst = (0..1000).filter(|_| pace.allows(1_000_000)).count();
        assert_eq!(burst as u64, SAVED_MAX, "what was saved up is bounded");
    }

    #[test]
    fn what_flags_say() {
        for (text, hedge) in [
            ("off", Hedge::Off),
            ("auto", Hedge::Auto),
            ("5ms", Hedge::After(ms(5.0))),
            ("1s", Hedge::After(ms(1000.0))),
        ] {
            assert_eq!(text.parse(), Ok(hedge));
            assert_eq!(hedge.to_string().parse(), Ok(hedge));
        }
        for wrong in ["", "on", "5", "ms", "0ms", "-1ms", "99999999999999999999s", "99999999999999s"] {
            assert!(wrong.parse::<Hedge>().is_err(), "{wrong}");
        }
        assert_eq!(Pace::new(Hedge::Off).delay(1), None);
        let mut fixed = Pace::new(Hedge::After(ms(5.0)));
        (0..5000).for_each(|_| fixed.took(1, ms(50.0)));
        assert_eq!(fixed.delay(1), Some(ms(5.0)));
    }
}
