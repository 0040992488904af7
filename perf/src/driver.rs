//! Runs a workload on whatever holds the bytes: lanes that keep operations in flight on each core, and the conductor
//! that watches the cores, takes CPU times around the measured part and adds everything up.

use crate::cpu::CpuTime;
use crate::histogram::Latencies;
use crate::progress::{Progress, Unit, Watch};
use crate::report::Tally;
use crate::workload::{Direction, Offsets, Pattern, Schedule, Until, Workload};
use corefs_wire::{Error, ErrorCode, Result};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

/// How long a lane rests after an error, so that a dead server isn't hammered.
const ERROR_PAUSE: Duration = Duration::from_millis(10);
/// How often the conductor looks up.
const LOOK: Duration = Duration::from_millis(50);
/// A core tells how far it is after so many bytes: a shared counter costs, even if it is only added to.
const TELL_BYTES: u64 = 4 << 20;
/// Blocks read back together after a verified write.
const READ_BACK: usize = 16;

/// A file that a workload runs on, as one core sees it.
#[allow(async_fn_in_trait)] // Used with concrete types on one thread only.
pub trait Target {
    /// Reads `length` bytes at each of the offsets; `each` gets the position in `offsets` and what came.
    async fn read(&self, offsets: &[u64], length: usize, each: &mut dyn FnMut(usize, Result<&[u8]>));
    /// Writes `length` bytes at `offset`, made by `fill`; returns when they are acknowledged.
    async fn write(&self, offset: u64, length: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<()>;
    /// Makes what was written, and the file's length, durable.
    async fn sync(&self) -> Result<()>;
    async fn pause(&self, duration: Duration);
}

/// What a running workload shows to other threads, and hears from them.
#[derive(Default, Debug)]
pub struct Live {
    bytes: AtomicU64,
    stop: AtomicBool,
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
}

/// The first generation of a run: later than those of any earlier run, so that a lost write can't hide behind equal bytes.
pub fn fresh_generation() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (since.as_millis() as u64) << 20
}

/// One core's share of a run.
pub struct CoreRun {
    workload: Arc<Workload>,
    live: Arc<Live>,
    pattern: Pattern,
    generation: u64,
    begin: Instant,
    /// Completions (closed loop) or due times (open loop) in this range are counted.
    counted: Range<Instant>,
    offsets: RefCell<Offsets>,
    schedule: RefCell<Option<Schedule>>,
    tally: RefCell<Tally>,
    /// With `verify`: what each written block must hold; `None` when its write failed and it may hold either.
    written: RefCell<BTreeMap<u64, Option<u64>>>,
    writing: RefCell<BTreeSet<u64>>,
    writes: Cell<u64>,
    untold: Cell<u64>,
}

impl CoreRun {
    /// The share of `core`, from `begin` on.
    pub fn new(
        workload: &Arc<Workload>,
        core: u32,
        begin: Instant,
        generation: u64,
        live: &Arc<Live>,
    ) -> Self {
        let counted = match workload.until {
            Until::Elapsed { warmup, measured } => begin + warmup..begin + warmup + measured,
            // Long enough for any file, short enough for Instant.
            Until::Once => begin..begin + Duration::from_secs(1 << 30),
        };
        let verify_errors = workload.verify.then_some(0);
        Self {
            workload: Arc::clone(workload),
            live: Arc::clone(live),
            pattern: Pattern::new(workload.seed),
            generation,
            begin,
            counted,
            offsets: RefCell::new(workload.offsets(core)),
            schedule: RefCell::new(workload.schedule()),
            tally: RefCell::new(Tally { verify_errors, latencies: Latencies::new(), ..Tally::default() }),
            written: RefCell::default(),
            writing: RefCell::default(),
            writes: Cell::new(0),
            untold: Cell::new(0),
        }
    }

    /// Keeps one batch in flight until the run is over. Run [`Workload::lanes`] of these at once.
    pub async fn lane(&self, target: &impl Target) {
        if let Some(early) = self.begin.checked_duration_since(Instant::now()) {
            target.pause(early).await;
        }
        let mut offsets = Vec::with_capacity(self.workload.batch as usize);
        loop {
            let Some(start) = self.wait_until_due(target).await else { return };
            offsets.clear();
            self.draw(&mut offsets);
            if offsets.is_empty() {
                return;
            }
            let failed = match self.workload.direction {
                Direction::Read => self.read(target, &offsets, start).await,
                Direction::Write => self.write(target, offsets[0], start).await,
            };
            if failed {
                target.pause(ERROR_PAUSE).await;
            }
        }
    }

    /// The time that the next batch counts from: now, or when it was due. `None` when the run is over.
    async fn wait_until_due(&self, target: &impl Target) -> Option<Instant> {
        let due = self.schedule.borrow_mut().as_mut().map(Schedule::next_due);
        let now = Instant::now();
        let start = match due {
            None => now,
            Some(due) => {
                let due = self.begin + due;
                if let Some(early) = due.checked_duration_since(now) {
                    // Don't sleep into a time that isn't measured.
                    target.pause(early.min(self.counted.end.saturating_duration_since(now))).await;
                }
                due
            }
        };
        (start.max(now) < self.counted.end && !self.live.stopped()).then_some(start)
    }

    fn draw(&self, out: &mut Vec<u64>) {
        let mut offsets = self.offsets.borrow_mut();
        let mut writing = self.writing.borrow_mut();
        let exclusive = self.workload.verify && self.workload.direction == Direction::Write;
        while out.len() < self.workload.batch as usize {
            let Some(offset) = offsets.next() else { return };
            // Two writes of one block at once may end in either order, so what it must hold would be unknown. There are
            // several blocks for each lane, so another one is found soon.
            if exclusive && !writing.insert(offset) {
                continue;
            }
            out.push(offset);
        }
    }

    async fn read(&self, target: &impl Target, offsets: &[u64], start: Instant) -> bool {
        let block = self.workload.block as usize;
        let mut good = 0;
        let mut errors = Vec::new();
        let mut mismatches = 0;
        target
            .read(offsets, block, &mut |number, outcome| match outcome {
                Ok(bytes) if bytes.len() != block => {
                    let what = format!("{} of {block} bytes at offset {}", bytes.len(), offsets[number]);
                    errors.push(Error::new(ErrorCode::InvalidArgument, what));
                }
                Ok(bytes) => {
                    good += 1;
                    if self.workload.verify && !self.pattern.fits(offsets[number], bytes) {
                        mismatches += 1;
                    }
                }
                Err(error) => errors.push(error),
            })
            .await;
        let failed = !errors.is_empty();
        self.count(start, good, mismatches, errors);
        failed
    }

    async fn write(&self, target: &impl Target, offset: u64, start: Instant) -> bool {
        self.writes.set(self.writes.get() + 1);
        let generation = self.generation + self.writes.get();
        let mut fill = |bytes: &mut [u8]| self.pattern.fill(offset, generation, bytes);
        let outcome = target.write(offset, self.workload.block as usize, &mut fill).await;
        if self.workload.verify {
            self.writing.borrow_mut().remove(&offset);
            self.written.borrow_mut().insert(offset, outcome.is_ok().then_some(generation));
        }
        let failed = outcome.is_err();
        self.count(start, u64::from(!failed), 0, outcome.err().into_iter().collect());
        failed
    }

    fn count(&self, start: Instant, good: u64, mismatches: u64, errors: Vec<Error>) {
        let now = Instant::now();
        let mut tally = self.tally.borrow_mut();
        let open = self.workload.rate.is_some();
        if self.counted.contains(if open { &start } else { &now }) {
            tally.operations += good;
            tally.bytes += good * self.workload.block;
            tally.latencies.record_n((now - start).as_nanos() as u64, good);
            tally.elapsed = now - self.counted.start;
        }
        // What is wrong is wrong at any time.
        tally.errors += errors.len() as u64;
        note_mismatches(&mut tally, mismatches);
        if tally.first_error.is_none() {
            tally.first_error = errors.first().map(Error::to_string);
        }
        let untold = self.untold.get() + good * self.workload.block;
        self.untold.set(if untold >= TELL_BYTES { self.tell(untold) } else { untold });
    }

    fn tell(&self, bytes: u64) -> u64 {
        self.live.add(bytes);
        0
    }

    /// After the lanes have ended: makes writes durable, reads them back if asked to, and gives the figures.
    pub async fn finish(&self, target: &impl Target) -> Tally {
        if self.workload.direction == Direction::Write {
            let outcome = target.sync().await;
            self.note(outcome.err());
            if self.workload.until == Until::Once {
                // A write-once run is over when everything is durable.
                let mut tally = self.tally.borrow_mut();
                tally.elapsed = self.begin.elapsed();
            }
            self.read_back(target).await;
        }
        let mut tally = self.tally.take();
        if let Until::Elapsed { measured, .. } = self.workload.until
            && !self.live.stopped()
        {
            // A closed loop's window is what was asked for; an open loop ends with its last operation.
            tally.elapsed = if self.workload.rate.is_some() { tally.elapsed.max(measured) } else { measured };
        }
        tally
    }

    async fn read_back(&self, target: &impl Target) {
        let written: Vec<(u64, Option<u64>)> =
            self.written.borrow().iter().map(|(at, what)| (*at, *what)).collect();
        for part in written.chunks(READ_BACK) {
            let offsets: Vec<u64> = part.iter().map(|(offset, _)| *offset).collect();
            let mut wrong = 0;
            let mut error = None;
            target
                .read(&offsets, self.workload.block as usize, &mut |number, outcome| {
                    let (offset, generation) = part[number];
                    match outcome {
                        Err(why) => error = Some(why),
                        Ok(bytes) => {
                            let found = self.pattern.check(offset, bytes).ok();
                            let whole = bytes.len() as u64 == self.workload.block;
                            // A write that failed may have left the old bytes: those of another run even.
                            wrong += u64::from(generation.is_some() && (!whole || found != generation));
                        }
                    }
                })
                .await;
            note_mismatches(&mut self.tally.borrow_mut(), wrong);
            self.note(error);
        }
    }

    fn note(&self, error: Option<Error>) {
        if let Some(error) = error {
            let mut tally = self.tally.borrow_mut();
            tally.errors += 1;
            tally.first_error.get_or_insert_with(|| error.to_string());
        }
    }
}

fn note_mismatches(tally: &mut Tally, mismatches: u64) {
    if mismatches > 0 {
        *tally.verify_errors.get_or_insert(0) += mismatches;
    }
}

/// CPU time used so far by the client's side and by the servers; `None` where nobody can tell.
pub type Meter<'a> = dyn FnMut() -> (Option<CpuTime>, Option<CpuTime>) + 'a;

/// Waits for the figures of all cores, with a bar, and adds CPU times around the measured part.
pub fn conduct(
    workload: &Workload,
    begin: Instant,
    live: &Live,
    meter: &mut Meter<'_>,
    watch: Watch,
    what: &str,
    cores: &Receiver<Result<Tally>>,
) -> Result<Tally> {
    let (warmup, end) = match workload.until {
        Until::Elapsed { warmup, measured } => (warmup, Some(warmup + measured)),
        Until::Once => (Duration::ZERO, None),
    };
    let mut progress = match end {
        Some(end) => Progress::new(watch, what, end.as_millis() as u64, Unit::Milliseconds),
        None => Progress::new(watch, what, workload.working_set, Unit::Bytes),
    };
    let (mut before, mut after) = (None, None);
    let mut all = Tally::default();
    let mut left = workload.cores;
    while left > 0 {
        match cores.recv_timeout(LOOK) {
            Ok(core) => {
                all.join(core?);
                left -= 1;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::new(
                    ErrorCode::Internal,
                    "a core of the measurement ended without its figures",
                ));
            }
        }
        let elapsed = Instant::now().saturating_duration_since(begin);
        if before.is_none() && elapsed >= warmup {
            before = Some(meter());
        }
        if after.is_none() && end.is_some_and(|end| elapsed >= end) {
            after = Some(meter());
        }
        progress.at(if end.is_some() { elapsed.as_millis() as u64 } else { live.bytes() });
    }
    let after = after.unwrap_or_else(meter);
    if let Some(before) = before {
        let since = |after: Option<CpuTime>, before: Option<CpuTime>| Some(after?.since(before?));
        (all.client, all.server) = (since(after.0, before.0), since(after.1, before.1));
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
