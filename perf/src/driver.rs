//! Runs a workload on whatever holds the bytes: lanes that keep operations in flight on each core, and the conductor
//! that watches the cores, takes CPU times around the measured part and adds everything up.

use crate::cpu::CpuTime;
use crate::progress::{Progress, Unit, Watch};
use crate::report::Tally;
use crate::series::Recorder;
use crate::workload::{Direction, Kinds, Offsets, Pattern, Schedule, Until, Workload};
use corefs_wire::{Error, ErrorCode, Result};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

pub use crate::live::Live;

/// How long a lane rests after an error, so that a dead server isn't hammered.
const ERROR_PAUSE: Duration = Duration::from_millis(10);
/// How long after its end an open loop goes on with what was due before.
const OVERTIME: Duration = Duration::from_secs(10);
/// How often the conductor looks up.
const LOOK: Duration = Duration::from_millis(50);
/// A core tells how far it is after so many bytes: a shared counter costs, even if it is only added to.
const TELL_BYTES: u64 = 4 << 20;
/// Blocks read back together after a verified write, and most bytes of them.
const READ_BACK: u64 = 16;
const READ_BACK_BYTES: u64 = 16 << 20;

/// The file that a workload runs on, as one core sees it, or all its files: offsets are in the space of all
/// ([`Workload::place`]), and no range that is asked for lies in two.
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

/// The first generation of a run: later than those of any earlier run, so that a lost write can't hide behind equal bytes.
pub fn fresh_generation() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    generation_at(since)
}

const fn generation_at(since_1970: Duration) -> u64 {
    (since_1970.as_millis() as u64) << 20
}

/// No write is older: it is the autumn of 2023, when there was no corefs.
const EARLIEST: u64 = generation_at(Duration::from_secs(1_700_000_000));
/// Clocks of those who wrote may have been so much ahead of ours.
const AHEAD: u64 = generation_at(Duration::from_secs(86_400));

/// One core's share of a run.
pub struct CoreRun {
    workload: Arc<Workload>,
    live: Arc<Live>,
    /// The generations of this core's writes are this one and every so many-th after it.
    generation: u64,
    /// What whoever wrote before, or writes now, can have written.
    generations: Range<u64>,
    begin: Instant,
    /// Completions (closed loop) or due times (open loop) in this range are counted.
    counted: Range<Instant>,
    offsets: RefCell<Offsets>,
    kinds: RefCell<Kinds>,
    schedule: RefCell<Option<Schedule>>,
    /// What was counted; of a mixed run the reads, and then the writes.
    sides: RefCell<Vec<Side>>,
    /// With `verify`: what each written block must hold; `None` when its write failed and it may hold either.
    written: RefCell<BTreeMap<u64, Option<u64>>>,
    writing: RefCell<BTreeSet<u64>>,
    writes: Cell<u64>,
    untold: Cell<u64>,
}

struct Side {
    tally: Tally,
    recorder: Recorder,
}

impl Side {
    fn finish(mut self, end: Duration) -> Tally {
        (self.tally.series, self.tally.latencies) = self.recorder.finish(end);
        self.tally
    }
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
        let (counted, length) = match workload.until {
            Until::Elapsed { warmup, measured } => {
                (begin + warmup..begin + warmup + measured, Some(measured))
            }
            // Long enough for any file, short enough for Instant.
            Until::Once => (begin..begin + Duration::from_secs(1 << 30), None),
        };
        let (now, clock) = (Instant::now(), SystemTime::now());
        let began = clock + counted.start.saturating_duration_since(now);
        let verify_errors = workload.verify.then_some(0);
        let side = || Side {
            tally: Tally { verify_errors, ..Tally::default() },
            recorder: Recorder::new(began, length),
        };
        let mixed = matches!(workload.direction, Direction::Mixed { .. });
        Self {
            workload: Arc::clone(workload),
            live: Arc::clone(live),
            generation: generation + u64::from(core),
            generations: EARLIEST..fresh_generation() + AHEAD,
            begin,
            counted,
            offsets: RefCell::new(workload.offsets(core)),
            kinds: RefCell::new(workload.kinds(core)),
            schedule: RefCell::new(workload.schedule()),
            sides: RefCell::new((0..if mixed { 2 } else { 1 }).map(|_| side()).collect()),
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
            let kind = self.kinds.borrow_mut().draw();
            self.draw(kind, &mut offsets);
            if offsets.is_empty() {
                return;
            }
            let failed = match kind {
                Direction::Read => self.read(target, &offsets, start).await,
                _ => self.write(target, offsets[0], start).await,
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
        let Some(due) = due else {
            return (now < self.counted.end && !self.live.stopped()).then_some(now);
        };
        let due = self.begin + due;
        if let Some(early) = due.checked_duration_since(now) {
            // Don't sleep into a time that isn't measured.
            target.pause(early.min(self.counted.end.saturating_duration_since(now))).await;
        }
        if due >= self.counted.end || self.live.stopped() {
            return None;
        }
        if now < self.counted.end + OVERTIME {
            // Also what is late for the end: else the slower the system, the fewer of its waits would count.
            return Some(due);
        }
        self.never_started(due, now);
        None
    }

    /// This batch and all that were due after it: they have waited until now at least.
    fn never_started(&self, due: Instant, now: Instant) {
        let (mut schedule, mut kinds) = (self.schedule.borrow_mut(), self.kinds.borrow_mut());
        let later = std::iter::from_fn(|| schedule.as_mut().map(|schedule| self.begin + schedule.next_due()));
        let all = std::iter::once(due).chain(later).take_while(|due| *due < self.counted.end);
        for due in all.filter(|due| *due >= self.counted.start) {
            let kind = kinds.draw();
            let count = if kind == Direction::Read { u64::from(self.workload.batch) } else { 1 };
            let mut sides = self.sides.borrow_mut();
            let Side { tally, recorder } = side(&mut sides, kind);
            tally.never_started += count;
            let at = now.saturating_duration_since(self.counted.start);
            recorder.record(at, (now - due).as_nanos() as u64, count, &self.live);
        }
    }

    fn draw(&self, kind: Direction, out: &mut Vec<u64>) {
        let mut offsets = self.offsets.borrow_mut();
        let exclusive = self.workload.verify && kind != Direction::Read;
        if !exclusive {
            out.extend(offsets.by_ref().take(self.workload.batch as usize));
            return;
        }
        // Two writes of one block at once may end in either order, so what it must hold would be unknown. There are several
        // blocks for each lane, so another one is found soon.
        let mut writing = self.writing.borrow_mut();
        if let Some(offset) = offsets.next_free(|offset| writing.contains(&offset)) {
            writing.insert(offset);
            out.push(offset);
        }
    }

    async fn read(&self, target: &impl Target, offsets: &[u64], start: Instant) -> bool {
        let block = self.workload.block as usize;
        let mut good = 0;
        let mut errors = Vec::new();
        let mut mismatches = 0;
        // Only mixed runs, whose batches are of one, read what they write.
        let known = self.known(offsets[0]);
        target
            .read(offsets, block, &mut |number, outcome| match outcome {
                Ok(bytes) if bytes.len() != block => {
                    let what = format!("{} of {block} bytes at offset {}", bytes.len(), offsets[number]);
                    errors.push(Error::new(ErrorCode::InvalidArgument, what));
                }
                Ok(bytes) => {
                    good += 1;
                    mismatches +=
                        u64::from(self.workload.verify && !self.fits(offsets[number], known, bytes));
                }
                Err(error) => errors.push(error),
            })
            .await;
        let failed = !errors.is_empty();
        self.count(Direction::Read, start, good, mismatches, errors);
        failed
    }

    /// What a slot must hold now; `None` when nobody can say: it wasn't written in this run, or just is.
    fn known(&self, offset: u64) -> Option<u64> {
        if self.workload.direction == Direction::Read || self.writing.borrow().contains(&offset) {
            return None;
        }
        self.written.borrow().get(&offset).copied().flatten()
    }

    /// Whether these are the bytes of a slot, which held `before` when they were asked for.
    fn fits(&self, offset: u64, before: Option<u64>, bytes: &[u8]) -> bool {
        let (pattern, place) = self.pattern(offset);
        match before.filter(|_| self.known(offset) == before) {
            // Nobody wrote there meanwhile: older bytes are as wrong as others.
            Some(generation) => pattern.holds(place, generation, bytes),
            None => pattern.fits(place, bytes, &self.generations),
        }
    }

    /// The pattern of the file that a byte of the space is in, and where in the file it is.
    fn pattern(&self, offset: u64) -> (Pattern, u64) {
        let (file, place) = self.workload.place(offset);
        (Pattern::of_file(self.workload.seed, file), place)
    }

    async fn write(&self, target: &impl Target, offset: u64, start: Instant) -> bool {
        self.writes.set(self.writes.get() + 1);
        // No two cores have a generation in common.
        let generation = self.generation + self.writes.get() * u64::from(self.workload.cores);
        let (pattern, place) = self.pattern(offset);
        let mut fill = |bytes: &mut [u8]| pattern.fill(place, generation, bytes);
        let outcome = target.write(offset, self.workload.block as usize, &mut fill).await;
        if self.workload.verify {
            self.writing.borrow_mut().remove(&offset);
            self.written.borrow_mut().insert(offset, outcome.is_ok().then_some(generation));
        }
        let failed = outcome.is_err();
        self.count(Direction::Write, start, u64::from(!failed), 0, outcome.err().into_iter().collect());
        failed
    }

    fn count(&self, kind: Direction, start: Instant, good: u64, mismatches: u64, errors: Vec<Error>) {
        let now = Instant::now();
        let mut sides = self.sides.borrow_mut();
        let Side { tally, recorder } = side(&mut sides, kind);
        let open = self.workload.rate.is_some();
        let at = now.saturating_duration_since(self.counted.start);
        if self.counted.contains(if open { &start } else { &now }) {
            tally.operations += good;
            tally.bytes += good * self.workload.block;
            recorder.record(at, (now - start).as_nanos() as u64, good, &self.live);
            tally.elapsed = at;
        }
        // What is wrong is wrong at any time.
        note_mismatches(tally, mismatches);
        if !errors.is_empty() {
            tally.errors += errors.len() as u64;
            recorder.fail(at, errors.len() as u64, &self.live);
            self.live.fail(errors.len() as u64);
            tally.first_error.get_or_insert_with(|| errors[0].to_string());
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
        if self.workload.direction.writes() {
            let outcome = target.sync().await;
            self.note(outcome.err());
            if self.workload.until == Until::Once {
                // A write-once run is over when everything is durable.
                self.sides.borrow_mut().iter_mut().for_each(|side| side.tally.elapsed = self.begin.elapsed());
            }
            self.read_back(target).await;
        }
        let mut sides = self.sides.take();
        let mut elapsed = sides.iter().map(|side| side.tally.elapsed).max().unwrap_or_default();
        if let Until::Elapsed { measured, .. } = self.workload.until
            && !self.live.stopped()
        {
            // A closed loop's window is what was asked for; an open loop ends with its last operation.
            elapsed = if self.workload.rate.is_some() { elapsed.max(measured) } else { measured };
        }
        sides.iter_mut().for_each(|side| side.tally.elapsed = elapsed);
        let mut sides = sides.into_iter().map(|side| side.finish(elapsed));
        let mut tally = sides.next().unwrap_or_default();
        tally.writes = sides.next().map(Box::new);
        tally
    }

    async fn read_back(&self, target: &impl Target) {
        let written: Vec<(u64, Option<u64>)> =
            self.written.borrow().iter().map(|(at, what)| (*at, *what)).collect();
        // Large blocks one by one: that many at once would be all the memory there is.
        let together = (READ_BACK_BYTES / self.workload.block).clamp(1, READ_BACK);
        for part in written.chunks(together as usize) {
            let offsets: Vec<u64> = part.iter().map(|(offset, _)| *offset).collect();
            let mut wrong = 0;
            let mut error = None;
            target
                .read(&offsets, self.workload.block as usize, &mut |number, outcome| {
                    let (offset, generation) = part[number];
                    match outcome {
                        Err(why) => error = Some(why),
                        Ok(bytes) => {
                            let (pattern, place) = self.pattern(offset);
                            let whole = bytes.len() as u64 == self.workload.block;
                            // A write that failed may have left the old bytes: those of another run even.
                            let right = |generation| whole && pattern.holds(place, generation, bytes);
                            wrong += u64::from(generation.is_some_and(|generation| !right(generation)));
                        }
                    }
                })
                .await;
            if let Some(side) = self.sides.borrow_mut().last_mut() {
                note_mismatches(&mut side.tally, wrong);
            }
            self.note(error);
        }
    }

    /// An error of the end, which is one of the writes.
    fn note(&self, error: Option<Error>) {
        if let Some(error) = error
            && let Some(Side { tally, .. }) = self.sides.borrow_mut().last_mut()
        {
            tally.errors += 1;
            tally.first_error.get_or_insert_with(|| error.to_string());
        }
    }
}

fn side(sides: &mut [Side], kind: Direction) -> &mut Side {
    let at = if kind == Direction::Read { 0 } else { sides.len() - 1 };
    &mut sides[at]
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
    live.begin();
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
        // An open loop may go on with what was due, until its cores end.
        let goes_on = workload.rate.is_some() && !workload.verify;
        if after.is_none() && !goes_on && end.is_some_and(|end| elapsed >= end) {
            after = Some(meter());
        }
        let done = if end.is_some() { elapsed.as_millis() as u64 } else { live.bytes() };
        // What is measured is over while cores read back what they wrote.
        let measured = elapsed.min(end.unwrap_or(elapsed)).saturating_sub(warmup);
        progress.tell(done, || live.line(measured));
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
