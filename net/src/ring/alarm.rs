//! How other threads wake the executor of a ring.
//!
//! The alarm writes to the very eventfd that the parked executor awaits. It must not go through an eventfd of its own that the
//! ring reads or polls: the ring would have to signal its eventfd from within the write of the other, which Linux
//! puts off (as of 6.18) by a grace period the first time, about 18 ms, and then never does again; the sleeper is lost.
//!
//! Two flags, both sequentially consistent: the raiser says *raised* and then looks whether anybody is *asleep*; the sleeper
//! says *asleep* and then looks whether it was *raised*. One of the two sees the other. A busy executor costs the
//! raiser no system call.

use corefs_wire::Result;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Wakes one ring's executor, from any thread.
#[derive(Clone)]
pub struct Alarm(Arc<Shared>);

struct Shared {
    signal: OwnedFd,
    raised: AtomicBool,
    asleep: AtomicBool,
}

impl Alarm {
    pub(super) fn new() -> Result<Self> {
        // SAFETY: a plain system call; the descriptor it returns is ours.
        let signal = unsafe {
            match libc::eventfd(0, libc::EFD_CLOEXEC) {
                -1 => return Err(std::io::Error::last_os_error().into()),
                fd => OwnedFd::from_raw_fd(fd),
            }
        };
        Ok(Self(Arc::new(Shared { signal, raised: AtomicBool::new(false), asleep: AtomicBool::new(false) })))
    }

    /// Makes the executor hear: what the caller did before is visible to it then.
    pub fn raise(&self) {
        // Whoever raised it first and wasn't heard yet has woken the sleeper.
        if self.0.raised.swap(true, Ordering::SeqCst) {
            return;
        }
        if self.0.asleep.swap(false, Ordering::SeqCst) {
            self.signal();
        }
    }

    /// Completes the executor's read of the eventfd.
    pub(super) fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: writes eight bytes of ours to our own descriptor. The counter grows by one at a time and is read again and
        // again, so it can't overflow and the write can't block.
        unsafe { libc::write(self.fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Whether it was raised since the last time; silences it. Look at what others may have left after this, not before.
    pub(super) fn heard(&self) -> bool {
        self.is_raised() && self.0.raised.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.0.raised.load(Ordering::SeqCst)
    }

    /// From here on a raise signals.
    pub(super) fn lie_down(&self) {
        self.0.asleep.store(true, Ordering::SeqCst);
    }

    pub(super) fn get_up(&self) {
        self.0.asleep.store(false, Ordering::SeqCst);
    }

    pub(super) fn fd(&self) -> RawFd {
        self.0.signal.as_raw_fd()
    }

    /// A descriptor of its own for the same eventfd.
    pub(super) fn try_clone_fd(&self) -> std::io::Result<OwnedFd> {
        self.0.signal.try_clone()
    }
}
