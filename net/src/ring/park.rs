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
//! Without step 3 it hangs, rarely. The pending read survives from one park to the next: a read that was never
//! needed is not cancelled. A signal left over from an earlier park wakes once for nothing, which is harmless.
//!
//! Nothing that the ring has in flight may complete by somebody's write to another eventfd: see [`Alarm`].

use super::{Alarm, Completion, Ring};
use crate::bell::Bell;
use corefs_wire::{Error, ErrorCode, Result};
use futures_lite::FutureExt;
use glommio::io::BufferedFile;
use io_uring::IoUring;
use std::future::Future;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::pin::Pin;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

type PendingRead = Pin<Box<dyn Future<Output = (BufferedFile, bool)>>>;

pub struct Parking {
    pub alarm: Alarm,
    /// glommio's read of the signal, kept across parks.
    pending: Option<PendingRead>,
    pub busy_poll: Duration,
}

impl Parking {
    pub fn new(ring: &IoUring, busy_poll: Duration) -> Result<Self> {
        let alarm = Alarm::new()?;
        ring.submitter()
            .register_eventfd(alarm.fd())
            .map_err(|error| Error::new(ErrorCode::Os, format!("registering an eventfd: {error}")))?;
        // SAFETY: nobody else uses the completion queue of a ring that is just being set up.
        unsafe { ring.completion_shared() }.disable_eventfd();
        Ok(Self { alarm, pending: None, busy_poll })
    }

    /// Resolves when the signal has been raised since the last time; `false` if it can't be read.
    async fn signalled(&mut self) -> bool {
        if self.pending.is_none() {
            match self.alarm.try_clone_fd() {
                // glommio closes what it reads, so it gets a descriptor of its own.
                // SAFETY: the descriptor is fresh and owned by nobody else.
                Ok(copy) => {
                    self.pending = Some(read(unsafe { BufferedFile::from_raw_fd(copy.into_raw_fd()) }))
                }
                Err(_) => return false,
            }
        }
        let Some(pending) = &mut self.pending else { return false };
        let (file, ok) = pending.as_mut().await;
        self.pending = ok.then(|| read(file));
        ok
    }
}

/// A read of the counter, which resets it. Nothing is asked of the kernel before it is first polled.
fn read(file: BufferedFile) -> PendingRead {
    Box::pin(async move {
        let ok = file.read_at(0, 8).await.is_ok();
        (file, ok)
    })
}

/// Lets every other ready task of the executor run once, whichever queue it is in. A driver that only yields within its own
/// task queue starves the others until glommio's preemption timer.
pub async fn breathe() {
    glommio::executor().yield_task_queue_now().await;
}

impl Ring {
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
            breathe().await;
        }
        self.parking.alarm.lie_down();
        self.ring.completion().enable_eventfd();
        let result = self.sleep(bell, out).await;
        self.parking.alarm.get_up();
        self.ring.completion().disable_eventfd();
        result
    }

    fn is_called(&self, bell: &Bell) -> bool {
        bell.is_rung() || self.parking.alarm.is_raised()
    }

    async fn sleep(&mut self, bell: &Bell, out: &mut Vec<Completion>) -> Result<()> {
        fence(Ordering::SeqCst);
        self.enter(0)?;
        self.turn(out)?;
        if !out.is_empty() || self.is_called(bell) {
            return Ok(());
        }
        self.counters.parks += 1;
        let rung = async {
            bell.wait().await;
            true
        };
        if self.parking.signalled().or(rung).await {
            return Ok(());
        }
        Err(Error::new(ErrorCode::Os, "the ring's eventfd can't be read"))
    }
}
