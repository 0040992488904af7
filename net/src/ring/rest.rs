//! Sleeping in the kernel, in the ring's own wait: for a loop that has its thread to itself.
//!
//! The wait hands over what is queued, runs the ring's deferred work and sleeps until something has completed, all in one system
//! call. So there is no race between looking and sleeping, nothing to enable, and no second ring to wake through. What that
//! spares is measured in docs/adr/0007-threads-that-rest-in-their-ring.md.
//!
//! What is no entry of the ring, as completions of an RDMA device, is looked at [beside](Beside) it for as long as the thread is awake, and made to wake the ring only when
//! the thread is about to sleep.
//!
//! Other threads wake the sleeper by the [`Alarm`](super::Alarm): its eventfd is read by the ring itself. That is sound only
//! because no eventfd is registered with such a ring (see `alarm.rs`), so a ring either rests or parks, all its life.

use super::{Completion, DriveRing, File, Ring, Source, Token};
use corefs_wire::Result;
use std::os::fd::RawFd;
use std::time::Instant;

/// The read of the alarm's eventfd.
pub const LISTENING: Token = Token::new(Source::RING, 1);

/// The poll of a ring of drives.
const WATCHING: Token = Token::new(Source::RING, 2);

/// What a core looks at beside its ring while it is awake, and what has to wake the ring when it sleeps.
pub trait Beside {
    /// Whether something has come that no completion tells of. Asked again and again by a core that polls, so it costs no system call.
    fn look(&mut self) -> bool;

    /// The thread is about to sleep: has whatever comes from now on wake `ring`. `false` if something has come meanwhile; then nobody sleeps.
    fn lie_down(&mut self, ring: &mut Ring) -> bool;
}

/// Nothing: completions tell of everything.
impl Beside for () {
    fn look(&mut self) -> bool {
        false
    }

    fn lie_down(&mut self, _: &mut Ring) -> bool {
        true
    }
}

/// What the ring itself has in flight, so that something wakes it.
#[derive(Default)]
pub struct Resting {
    /// The alarm's eventfd is being read.
    listening: bool,
    /// Where to. Boxed: the kernel writes here while the ring may move.
    count: Box<u64>,
    /// A ring of drives is being polled.
    watching: bool,
}

impl Resting {
    /// An entry of the ring's own has completed.
    pub fn completed(&mut self, token: Token) {
        match token {
            LISTENING => self.listening = false,
            WATCHING => self.watching = false,
            _ => {}
        }
    }
}

impl Ring {
    /// Hands what is queued to the kernel and returns when something has completed (appended to `out`), has come `beside` the ring, or the alarm is raised;
    /// may return for nothing. Polls for as long as the configuration says, then blocks the thread.
    pub fn rest(&mut self, beside: &mut impl Beside, out: &mut Vec<Completion>) -> Result<()> {
        if self.spin(beside, out)? {
            return Ok(());
        }
        if !beside.lie_down(self) {
            return self.turn(out);
        }
        self.listen();
        self.parking.alarm.lie_down();
        let raised = self.parking.alarm.is_raised();
        let slept = if raised { Ok(()) } else { self.sleep_in_kernel() };
        self.parking.alarm.get_up();
        slept?;
        self.turn(out)
    }

    /// Looks for something to do for as long as the configuration says; whether there is. Without polling, what is beside is looked at once, and the ring isn't,
    /// because the wait is a look at it, too.
    fn spin(&mut self, beside: &mut impl Beside, out: &mut Vec<Completion>) -> Result<bool> {
        if self.parking.busy_poll.is_zero() {
            let found = beside.look();
            if found {
                self.turn(out)?;
            }
            return Ok(found);
        }
        let started = Instant::now();
        let watching = self.resting.watching;
        loop {
            self.turn(out)?;
            let woken = self.parking.alarm.is_raised() || self.resting.watching != watching;
            if !out.is_empty() || woken || beside.look() {
                return Ok(true);
            }
            if started.elapsed() >= self.parking.busy_poll {
                return Ok(false);
            }
            std::hint::spin_loop();
        }
    }

    /// As [`rest`](Self::rest), for a core that has drives with rings of their own: returns when something of theirs has completed, too.
    /// While transfers are in flight that are polled for, it doesn't sleep, since nothing would wake it.
    pub fn rest_with_drives(
        &mut self,
        drives: &mut [DriveRing],
        beside: &mut impl Beside,
        out: &mut Vec<Completion>,
    ) -> Result<()> {
        loop {
            for drive in &mut *drives {
                drive.turn(out)?;
            }
            if !drives.iter().any(DriveRing::must_be_asked) {
                break;
            }
            self.turn(out)?;
            if !out.is_empty() || self.parking.alarm.is_raised() || beside.look() {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        if !out.is_empty() {
            return self.turn(out);
        }
        for fd in drives.iter().filter_map(DriveRing::readable) {
            self.watch(fd);
        }
        self.rest(beside, out)?;
        for drive in drives {
            drive.turn(out)?;
        }
        Ok(())
    }

    /// Has the ring of drives that are not polled wake this one. It is one-shot, and completes at once if something is there already, so
    /// nothing is missed between the last look and the sleep. There is one such ring at most.
    fn watch(&mut self, fd: RawFd) {
        if !std::mem::replace(&mut self.resting.watching, true) {
            self.when_readable(fd, WATCHING);
        }
    }

    /// Makes sure that the alarm's eventfd is being read.
    fn listen(&mut self) {
        if !std::mem::replace(&mut self.resting.listening, true) {
            let (fd, to) = (self.parking.alarm.fd(), (&raw mut *self.resting.count).cast());
            // SAFETY: the box outlives the ring's transfers: the ring is drained before its fields are dropped.
            unsafe { self.read(File::Plain(fd), to, size_of::<u64>() as u32, 0, LISTENING) };
        }
    }

    /// One call that hands over what is queued and sleeps, unless something has completed already.
    fn sleep_in_kernel(&mut self) -> Result<()> {
        let here = !self.early.is_empty() || !self.ring.completion().is_empty();
        if here && self.queued() == 0 {
            return Ok(());
        }
        self.counters.parks += u64::from(!here);
        self.submit(u32::from(!here))
    }
}
