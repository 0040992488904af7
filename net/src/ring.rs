//! The one io_uring of a core: disk, sockets, timers and wake-ups of an executor complete here.
//!
//! A [`Ring`] belongs plainly to the turn loop of its executor and is lent as `&mut Ring` to whoever queues entries. A turn
//! queues entries, [`Ring::turn`] hands them to the kernel in one call and collects what has completed. When there is nothing
//! left to do, [`Ring::rest`] waits in a thread that is the loop's alone, [`Ring::park`] among other tasks of an executor.
//!
//! Invariants
//! - An entry that was pushed completes exactly once (multishot entries: until a completion without the MORE flag),
//!   under the token it was pushed with. Entries beyond the queue's room wait in order; none is refused.
//! - Memory that an entry names is not touched by its owner until that completion. Dropping the ring cancels what is in
//!   flight and waits for it, so drop it before the memory.
//! - The kernel is entered only when entries are queued or the kernel asks (deferred work, completions that overflowed).

mod alarm;
mod drive;
mod file;
mod operations;
mod park;
mod rest;
mod setup;
mod token;

pub use alarm::Alarm;
pub use drive::{Begun, DriveRing, STATUS, Wakes, drive_status};
pub use file::File;
pub use operations::{Sync, Try};
pub use park::breathe;
pub use rest::Beside;
pub use token::{Source, Token};

use crate::buffer::Pool;
use corefs_wire::{Error, ErrorCode, Result};
use file::FileTable;
use io_uring::types::Timespec;
use io_uring::{IoUring, squeue};
use park::Parking;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// `IORING_ENTER_GETEVENTS`: run deferred work and flush overflowed completions, even when nothing is awaited.
const GETEVENTS: u32 = 1;
/// How long a ring that is dropped waits for what is in flight, which may be a drive's: longer than the kernel, which resets a drive after
/// 30 s. Whoever drops it gives memory back that the kernel may still write to.
const DRAIN: Duration = Duration::from_secs(60);

/// How a ring is set up.
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// Entries that can be queued before the kernel is entered; a power of two.
    pub entries: u32,
    /// Completions the kernel can leave before it holds them back; a power of two.
    pub completions: u32,
    /// Slots of the table of registered files; 0 for none.
    pub files: u32,
    /// How long [`Ring::rest`] and [`Ring::park`] poll before they sleep.
    pub busy_poll: Duration,
}

impl Default for RingConfig {
    /// No polling: on cores that servers and clients share, whoever spins takes the time of whoever has work. On a core of
    /// its own, 50 us of polling spare one request in flight most of a wake-up (35 to 250 us).
    fn default() -> Self {
        Self { entries: 1024, completions: 8192, files: 64, busy_poll: Duration::ZERO }
    }
}

/// What became of an entry. `result` is as of the system call: negative errors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    pub token: Token,
    pub result: i32,
    pub flags: u32,
}

impl Completion {
    /// The result as a count, or the error.
    #[inline]
    pub fn check(&self) -> std::io::Result<usize> {
        usize::try_from(self.result).map_err(|_| std::io::Error::from_raw_os_error(-self.result))
    }

    /// Whether a multishot entry lives on.
    #[inline]
    pub fn more(&self) -> bool {
        io_uring::cqueue::more(self.flags)
    }
}

/// What a ring has done so far.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct RingCounters {
    /// System calls.
    pub enters: u64,
    pub submissions: u64,
    pub completions: u64,
    /// Times that the executor was let sleep.
    pub parks: u64,
}

/// The ring of one executor. `!Send`.
pub struct Ring {
    /// First, so that it is torn down before the memory it knows.
    ring: IoUring,
    /// Entries that found no room in the submission queue, oldest first.
    waiting: VecDeque<squeue::Entry>,
    /// Completions reaped while making room, before anybody asked.
    early: Vec<Completion>,
    /// Times of queued timeouts, which the kernel copies when it takes the entry.
    #[allow(clippy::vec_box)]
    // Their addresses are in the queue: they must not move when the list grows.
    timespecs: Vec<Box<Timespec>>,
    in_flight: usize,
    files: FileTable,
    /// The registered region: its arena is kept alive.
    region: Option<Pool>,
    parking: Parking,
    resting: rest::Resting,
    counters: RingCounters,
}

impl Ring {
    /// A ring for the calling thread. `Os` if the kernel refuses even the plainest kind.
    pub fn new(config: &RingConfig) -> Result<Self> {
        let ring = setup::build(config)?;
        let parking = Parking::new(config.busy_poll)?;
        let files = FileTable::register(&ring.submitter(), config.files);
        Ok(Self {
            ring,
            waiting: VecDeque::new(),
            early: Vec::new(),
            timespecs: Vec::new(),
            in_flight: 0,
            files,
            region: None,
            parking,
            resting: rest::Resting::default(),
            counters: RingCounters::default(),
        })
    }

    /// Queues any entry; entries complete under `token`.
    ///
    /// # Safety
    /// What the entry points to must stay valid, and unobserved where the kernel writes, until its completion.
    pub unsafe fn push(&mut self, entry: squeue::Entry, token: Token) {
        let entry = entry.user_data(token.0);
        self.in_flight += 1;
        self.counters.submissions += 1;
        // SAFETY: the caller's promise covers the entry until it completes.
        if self.waiting.is_empty() && unsafe { self.ring.submission().push(&entry) }.is_ok() {
            return;
        }
        self.waiting.push_back(entry);
        // A failure shows again, and is reported, in the next turn.
        let _ = self.submit(0);
    }

    /// Hands what is queued to the kernel and appends what has completed to `out`. Never blocks.
    /// An error means that the ring is unusable.
    pub fn turn(&mut self, out: &mut Vec<Completion>) -> Result<()> {
        out.append(&mut self.early);
        if self.queued() > 0 || self.kernel_asks() {
            self.submit(0)?;
            out.append(&mut self.early);
        }
        self.reap_into(out);
        Ok(())
    }

    /// As [`turn`](Self::turn), but blocks the thread until something has completed. For loops without an executor, which
    /// have no mailbox either: the alarm doesn't end it.
    pub fn wait(&mut self, out: &mut Vec<Completion>) -> Result<()> {
        let before = out.len();
        self.turn(out)?;
        while out.len() == before && self.in_flight > 0 {
            self.enter(1)?;
            self.turn(out)?;
        }
        Ok(())
    }

    /// Entries pushed that have not completed.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub fn counters(&self) -> RingCounters {
        self.counters
    }

    /// For other threads, to wake the executor of this ring.
    pub fn alarm(&self) -> Alarm {
        self.parking.alarm.clone()
    }

    /// Puts something else in the place of its descriptor, so that the kernel takes nothing any more.
    #[cfg(test)]
    pub(crate) fn break_it(&self) {
        use std::os::fd::AsRawFd;
        let other = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: a plain system call; the ring's memory stays mapped, and the descriptor is closed as that of the other file.
        assert!(unsafe { libc::dup2(other.as_raw_fd(), self.ring.as_raw_fd()) } >= 0);
    }

    /// Whether the alarm was raised since the last time: look into the mailboxes then.
    pub fn heard_alarm(&self) -> bool {
        self.parking.alarm.heard()
    }

    /// Sets how long [`rest`](Self::rest) and [`park`](Self::park) poll before they sleep.
    pub fn set_busy_poll(&mut self, busy_poll: Duration) {
        self.parking.busy_poll = busy_poll;
    }

    /// Registers the pool's arena, so that reads and writes in it need no page look-up. `false`, and a line in the log, if
    /// the kernel refuses (it counts against the memlock limit): everything works all the same.
    pub fn register_pool(&mut self, pool: &Pool) -> bool {
        assert!(self.region.is_none(), "one region a ring");
        let registered = setup::register_region(&self.ring.submitter(), pool.region());
        if registered {
            self.region = Some(pool.clone());
        }
        registered
    }

    /// Cancels everything in flight and waits until it has completed; completions are thrown away.
    pub fn drain(&mut self) {
        let (mut discarded, until) = (Vec::new(), Instant::now() + DRAIN);
        while Instant::now() < until {
            if self.in_flight == 0 {
                return;
            }
            self.cancel_all();
            if self.turn(&mut discarded).is_err() {
                break;
            }
            discarded.clear();
            if self.in_flight > 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        tracing::error!(in_flight = self.in_flight, "the ring was dropped with operations in flight");
    }

    fn queued(&mut self) -> usize {
        self.ring.submission().len() + self.waiting.len()
    }

    /// Deferred work is waiting for an enter, or completions overflowed.
    fn kernel_asks(&mut self) -> bool {
        let queue = self.ring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Submits everything that is queued, as far as the kernel takes it; the rest stays for the next turn. Then waits for so
    /// many completions.
    fn submit(&mut self, mut want: u32) -> Result<()> {
        loop {
            let before = self.queued();
            self.enter(want)?;
            want = 0;
            // SAFETY: each entry was pushed under the promise of `push`, which holds until it completes.
            while let Some(entry) = self.waiting.front()
                && unsafe { self.ring.submission().push(entry) }.is_ok()
            {
                self.waiting.pop_front();
            }
            if self.ring.submission().is_empty() {
                self.timespecs.clear();
                return Ok(());
            }
            if self.queued() == before {
                return Ok(());
            }
        }
    }

    fn enter(&mut self, want: u32) -> Result<()> {
        self.counters.enters += 1;
        let queued = self.ring.submission().len() as u32;
        // SAFETY: no argument block is passed, and the count is the queue's own.
        let result = unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, want, GETEVENTS, None) };
        match result {
            Ok(_) => Ok(()),
            // Interrupted, or short of memory or room for completions: reap, and try again next time.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {
                let mut early = std::mem::take(&mut self.early);
                self.reap_into(&mut early);
                self.early = early;
                Ok(())
            }
            Err(error) => Err(Error::new(ErrorCode::Os, format!("io_uring_enter: {error}"))),
        }
    }

    fn reap_into(&mut self, out: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            let completion =
                Completion { token: Token(entry.user_data()), result: entry.result(), flags: entry.flags() };
            self.in_flight -= usize::from(!completion.more());
            if completion.token.source() != Source::RING {
                self.counters.completions += 1;
                out.push(completion);
            } else {
                self.resting.completed(completion.token);
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.drain();
    }
}

#[cfg(test)]
mod tests;
