//! The turn: gather completions as events, let the targets decide, perform it all together, rest when idle.

use super::Shard;
use super::ops::Op;
use crate::event::{Event, Nanos};
use crate::mesh::ShardMessage;
use corefs_net::{Carrier, Source, Token};
use corefs_wire::Result;
use std::ptr;
use std::time::{Duration, Instant};

/// How long a shard that is told to stop waits for what is under way (nanoseconds).
const DRAIN_NANOS: Nanos = 10_000_000_000;
/// How long of that it waits for successors alone (nanoseconds).
const SUCCESSORS_NANOS: Nanos = 2_000_000_000;
/// The longest that it sleeps: whatever might be forgotten happens by then.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// How far the end has come.
pub(super) enum Ending {
    No,
    /// Told to stop: answers when nothing is left to write, or at that time.
    Draining {
        until: Nanos,
        answers: Vec<crate::mesh::Answer<()>>,
    },
    /// Leave the loop.
    Now,
}

/// CLOCK_BOOTTIME: the clock of leases, which goes on while a machine sleeps.
pub fn boottime() -> Nanos {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a plain system call (without entering the kernel) into a local of the right type.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec as Nanos * 1_000_000_000 + time.tv_nsec as Nanos
}

impl Shard {
    /// Runs until it is told to stop, or until its ring is unusable. The thread is the shard's alone: it blocks in its ring.
    pub fn run(self) -> Result<()> {
        self.run_telling(|_| ())
    }

    /// As [`run`](Self::run); `tell` hears of the end before what is in flight is waited for, which takes long where a disk hangs.
    pub fn run_telling(mut self, tell: impl FnOnce(&Result<()>)) -> Result<()> {
        let result = self.turns();
        tell(&result);
        self.dispose();
        result
    }

    fn turns(&mut self) -> Result<()> {
        loop {
            self.rest()?;
            self.turn();
            if matches!(self.ending, Ending::Now) {
                return Ok(());
            }
        }
    }

    /// Gathers what has completed, and waits for that if nothing else is to be done.
    pub(super) fn rest(&mut self) -> Result<()> {
        let rest = self.may_rest();
        if rest {
            self.arm_timer();
        }
        self.disks.gather(&mut self.ring, rest, &mut self.carrier, &mut self.completions)
    }

    /// One turn.
    pub(super) fn turn(&mut self) {
        self.desk.now = boottime();
        self.desk.counters.turns += 1;
        // First: whoever was told something by another core, and then asks, finds it done.
        if self.ring.heard_alarm() {
            self.read_mail();
        }
        if !self.joining.is_empty() {
            self.take_joining();
        }
        let mut completions = std::mem::take(&mut self.completions);
        let mut each = completions.drain(..).peekable();
        while let Some(completion) = each.next() {
            match completion.token.source() {
                source if Carrier::owns(source) => self.carrier.complete(completion, &mut self.desk),
                Source::DISK => {
                    self.upcoming = each.peek().map_or(ptr::null(), |next| self.memory_of(next));
                    self.disk_done(completion);
                }
                _ => self.timer = None,
            }
        }
        drop(each);
        self.completions = completions;
        self.end_silent_slices();
        self.carrier.advance(Instant::now(), &mut self.desk);
        self.perform();
        self.desk.feed(|conn| self.carrier.queued(conn));
        self.desk.tell(Event::TurnEnd);
        self.perform();
        if !self.desk.links.sendable.is_empty() {
            self.send_forwards();
            self.perform();
        }
        for conn in self.desk.resume.drain(..) {
            self.carrier.resume(conn);
        }
        for conn in self.desk.hang_up.drain(..) {
            self.carrier.close(conn);
        }
        self.carrier.flush(&mut self.ring);
        self.check_ending();
    }

    fn may_rest(&self) -> bool {
        !self.carrier.has_work() && !matches!(self.ending, Ending::Now)
    }

    /// Makes sure that something completes when the next deadline comes.
    fn arm_timer(&mut self) {
        let now = boottime();
        let tick = self.carrier.next_tick().map(|at| at.saturating_duration_since(Instant::now()));
        let due = self.desk.targets.next_deadline().map(|at| Duration::from_nanos(at.saturating_sub(now)));
        let ending = match &self.ending {
            Ending::Draining { until, .. } => Some(Duration::from_nanos(until.saturating_sub(now)).min(TICK)),
            _ => None,
        };
        let joining = (!self.joining.is_empty()).then_some(TICK);
        let Some(wait) = [tick, due, ending, joining, self.patience_ends(now)].into_iter().flatten().min()
        else {
            return;
        };
        let wait = wait.clamp(Duration::from_micros(100), SLEEP_MAX);
        let at = now + wait.as_nanos() as Nanos;
        if self.timer.is_none_or(|armed| armed > at) {
            self.timer = Some(at);
            self.ring.timeout(wait, Token::new(Source::TIMER, 0));
        }
    }

    fn read_mail(&mut self) {
        while let Some(message) = self.mailbox.pop() {
            self.desk.counters.cross_core_messages += 1;
            match message {
                ShardMessage::Routing(routing) => self.take_routing(*routing),
                ShardMessage::Lease { until } => self.desk.tell(Event::Leased { until }),
                ShardMessage::Report(answer) => {
                    self.end_dead_links();
                    self.end_lost_slices();
                    answer.send(self.report());
                }
                ShardMessage::AddDisk { disk, slices, answer } => self.add_disk(disk, slices, answer),
                ShardMessage::Scrub { rate } => drop(self.desk.targets.scrub_now(rate)),
                ShardMessage::Drain(answer) => {
                    self.desk.targets.drain();
                    self.carrier.stop_listening(&mut self.ring);
                    match &mut self.ending {
                        // Told once more, as when another shard has failed: it has its time from the first.
                        Ending::Draining { answers, .. } => answers.push(answer),
                        _ => {
                            let until = self.desk.now + DRAIN_NANOS;
                            self.ending = Ending::Draining { until, answers: vec![answer] };
                        }
                    }
                }
                ShardMessage::Abort => self.ending = Ending::Now,
            }
        }
    }

    /// Another shard's flush may have lost what was written here, though nothing has been flushed here since.
    fn end_lost_slices(&mut self) {
        let lost: Vec<_> = self.disks.lost().collect();
        for (slice, error) in lost {
            self.desk.tell(Event::WriteFailed { slice, error });
        }
    }

    fn check_ending(&mut self) {
        let Ending::Draining { until, answers } = &mut self.ending else { return };
        let late = self.desk.now >= *until;
        let quiet = self.desk.ops.is_empty() || self.desk.now + DRAIN_NANOS >= *until + SUCCESSORS_NANOS;
        let drained = self.desk.targets.is_drained() && quiet;
        if !drained && !late {
            return;
        }
        if !drained {
            tracing::warn!("stopping with work under way; it is taken up again at the next start");
        }
        // The last replies leave; nobody waits for peers to say goodbye.
        let sent = self.carrier.connections().into_iter().all(|conn| self.carrier.is_sent(conn));
        if !sent && !late {
            return;
        }
        answers.drain(..).for_each(|answer| answer.send(()));
        self.ending = Ending::Now;
    }

    /// Gives all plans back: the store insists.
    pub(super) fn dispose(&mut self) {
        self.ring.drain();
        self.disks.drain();
        let mut plans = Vec::new();
        for op in self.desk.ops.drain() {
            match op {
                Op::Read(read) => plans.extend(read.plan.map(|plan| (read.slice, plan))),
                Op::Update(update) => {
                    let slice = update.slice;
                    plans.extend(update.plan.map(|plan| (slice, plan)));
                }
            }
        }
        plans.extend(self.upkeep_plans());
        for (slice, plan) in plans {
            self.desk.tell(Event::ReadEnded { slice, plan });
        }
        self.desk.targets.dispose();
    }
}

/// How often a shard looks whether it has stopped, or a disk has been opened.
const TICK: Duration = Duration::from_millis(10);
