//! Sleeping inside glommio until the ring has something to say.
//!
//! A completion of a DEFER_TASKRUN ring wakes nobody who polls the ring's descriptor: it marks the ring and signals the
//! eventfd registered with it. So the eventfd is what glommio waits for, by an ordinary read on its own ring. Signals
//! are disabled while the executor is busy, so that they cost nothing. The order that loses no wake-up:
//!
//! 1. enable the eventfd, say that we are asleep;
//! 2. full fence;
//! 3. **look again**: run deferred work, reap, look at the bell and the alarm. Anything there: disable, go on. What
//!    arrived while signals were disabled is found here; what arrives from here on signals;
//! 4. sleep until the eventfd's read or the bell; disable.
//!
//! Without step 3 it hangs, rarely. The read is a small task of its own and survives from one park to the next (each poll of
//! a pending glommio read adds a waker to its list, so the turn loop must not poll it itself at every park). A signal
//! left over from an earlier park wakes once for nothing, which is harmless.
//!
//! Nothing that the ring has in flight may complete by somebody's write to another eventfd: see [`Alarm`].

use super::{Alarm, Completion, Ring};
use crate::bell::Bell;
use corefs_wire::{Error, ErrorCode, Result};
use futures_lite::FutureExt;
use glommio::Task;
use glommio::io::BufferedFile;
use io_uring::IoUring;
use std::cell::Cell;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

/// How long glommio's own timers and I/O wait at most while the turn loop is busy. A poll costs some 5 us.
const POLL_EVERY: Duration = Duration::from_millis(1);

pub struct Parking {
    pub alarm: Alarm,
    /// Rung by the reader when the eventfd was signalled.
    signalled: Bell,
    /// Reads the eventfd, again and again; started by the first park, ended with the ring.
    reader: Option<Task<()>>,
    broken: Rc<Cell<bool>>,
    pub busy_poll: Duration,
    /// When glommio last looked at its own I/O.
    polled: Instant,
    /// Runs between the last look at the ring and the enabling of signals, where the race is.
    #[cfg(test)]
    pub window: Option<Box<dyn FnMut()>>,
    /// Leaves out step 3, to show that the tests would notice.
    #[cfg(test)]
    pub blind: bool,
}

impl Parking {
    pub fn new(busy_poll: Duration) -> Result<Self> {
        Ok(Self {
            alarm: Alarm::new()?,
            signalled: Bell::new(),
            reader: None,
            broken: Rc::default(),
            busy_poll,
            polled: Instant::now(),
            #[cfg(test)]
            window: None,
            #[cfg(test)]
            blind: false,
        })
    }

    /// Registers the eventfd, disabled, and starts its reader, if that wasn't done yet.
    fn read_signals(&mut self, ring: &mut IoUring) -> Result<()> {
        if self.broken.get() {
            return Err(Error::new(ErrorCode::Os, "the ring's eventfd can't be read"));
        }
        if self.reader.is_none() {
            ring.submitter()
                .register_eventfd(self.alarm.fd())
                .map_err(|error| Error::new(ErrorCode::Os, format!("registering an eventfd: {error}")))?;
            ring.completion().disable_eventfd();
            // glommio closes what it reads, so it gets a descriptor of its own.
            let copy = self.alarm.try_clone_fd()?;
            // SAFETY: the descriptor is fresh and owned by nobody else.
            let file = unsafe { BufferedFile::from_raw_fd(copy.into_raw_fd()) };
            let (signalled, broken) = (self.signalled.clone(), Rc::clone(&self.broken));
            self.reader = Some(glommio::spawn_local(async move {
                // Each read resets the counter, and waits until it isn't zero.
                while file.read_at(0, 8).await.is_ok() {
                    signalled.ring();
                }
                broken.set(true);
                signalled.ring();
            }));
        }
        Ok(())
    }
}

/// Lets every other ready task of the executor run once, whichever queue it is in. A driver that only yields within its own
/// task queue starves the others.
pub async fn breathe() {
    glommio::executor().yield_task_queue_now().await;
}

impl Ring {
    /// What a turn loop does that has more to do: lets every other ready task run once, and from time to time glommio look
    /// at its own timers and I/O, which it otherwise does only when no task is ready (see [`executor`](crate::executor)).
    pub async fn breathe(&mut self) -> Result<()> {
        breathe().await;
        if self.parking.polled.elapsed() >= POLL_EVERY {
            self.parking.read_signals(&mut self.ring)?;
            self.parking.signalled.take();
            self.parking.alarm.signal();
            // While this task waits, glommio runs out of tasks and polls; the read of the signal is among what it finds.
            self.parking.signalled.wait().await;
            self.parking.polled = Instant::now();
        }
        Ok(())
    }

    /// Returns when something has completed (appended to `out`), `bell` has been rung or the alarm raised; may return for
    /// nothing. Polls for a while, letting other tasks run, then sleeps. Needs a glommio executor.
    pub async fn park(&mut self, bell: &Bell, out: &mut Vec<Completion>) -> Result<()> {
        let started = Instant::now();
        loop {
            self.turn(out)?;
            if !out.is_empty() || self.is_called(bell) {
                return Ok(());
            }
            if started.elapsed() >= self.parking.busy_poll {
                break;
            }
            self.breathe().await?;
        }
        self.parking.read_signals(&mut self.ring)?;
        #[cfg(test)]
        self.parking.window.as_mut().into_iter().for_each(|window| window());
        self.parking.signalled.take();
        self.parking.alarm.lie_down();
        self.ring.completion().enable_eventfd();
        let result = self.sleep(bell, out).await;
        self.parking.alarm.get_up();
        self.parking.polled = Instant::now();
        self.ring.completion().disable_eventfd();
        result
    }

    fn is_called(&self, bell: &Bell) -> bool {
        bell.is_rung() || self.parking.alarm.is_raised()
    }

    async fn sleep(&mut self, bell: &Bell, out: &mut Vec<Completion>) -> Result<()> {
        fence(Ordering::SeqCst);
        if self.looks_again() {
            self.enter(0)?;
            self.turn(out)?;
            if !out.is_empty() || self.is_called(bell) {
                return Ok(());
            }
        }
        self.counters.parks += 1;
        bell.wait().or(self.parking.signalled.wait()).await;
        Ok(())
    }

    #[cfg(not(test))]
    const fn looks_again(&self) -> bool {
        true
    }

    #[cfg(test)]
    fn looks_again(&self) -> bool {
        !self.parking.blind
    }
}
