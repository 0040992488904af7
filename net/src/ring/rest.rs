//! Sleeping in the kernel, in the ring's own wait: for a loop that has its thread to itself.
//!
//! The wait hands over what is queued, runs the ring's deferred work and sleeps until something has completed, all in one system
//! call. So there is no race between looking and sleeping, nothing to enable, and no second ring to wake through. What that
//! spares is measured in docs/adr/0007-threads-that-rest-in-their-ring.md.
//!
//! Other threads wake the sleeper by the [`Alarm`](super::Alarm): its eventfd is read by the ring itself. That is sound only
//! because no eventfd is registered with such a ring (see `alarm.rs`), so a ring either rests or parks, all its life.

use super::{Completion, File, Ring, Source, Token};
use corefs_wire::Result;
use std::time::Instant;

/// The read of the alarm's eventfd.
pub const LISTENING: Token = Token::new(Source::RING, 1);

/// Whether the alarm's eventfd is being read, and where to.
#[derive(Default)]
pub struct Resting {
    listening: bool,
    /// Boxed: the kernel writes here while the ring may move.
    count: Box<u64>,
}

impl Resting {
    /// The read has completed.
    pub fn heard(&mut self) {
        self.listening = false;
    }
}

impl Ring {
    /// Hands what is queued to the kernel and returns when something has completed (appended to `out`) or the alarm is raised;
    /// may return for nothing. Polls for as long as the configuration says, then blocks the thread.
    pub fn rest(&mut self, out: &mut Vec<Completion>) -> Result<()> {
        if !self.parking.busy_poll.is_zero() {
            let started = Instant::now();
            loop {
                self.turn(out)?;
                if !out.is_empty() || self.parking.alarm.is_raised() {
                    return Ok(());
                }
                if started.elapsed() >= self.parking.busy_poll {
                    break;
                }
                std::hint::spin_loop();
            }
        }
        self.listen();
        self.parking.alarm.lie_down();
        let raised = self.parking.alarm.is_raised();
        let slept = if raised { Ok(()) } else { self.sleep_in_kernel() };
        self.parking.alarm.get_up();
        slept?;
        self.turn(out)
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
