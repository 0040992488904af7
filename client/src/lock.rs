//! Advisory locks on ranges of files, kept by the metadata servers as long as this client's lease lasts.

use crate::{Client, Credentials};
use corefs_net::executor::sleep;
use corefs_wire::control::meta::LockT;
use corefs_wire::{Error, ErrorCode, InodeId, Result};
use futures_lite::FutureExt;
use std::cell::Cell;
use std::time::Duration;

pub use corefs_wire::control::meta::LockKind;

/// Pauses of who waits for a lock that another client holds: short at first, since most locks are held for moments.
const WAIT_MIN: Duration = Duration::from_millis(1);
const WAIT_MAX: Duration = Duration::from_millis(100);
/// As many may wait that long; of twice as many each waits twice as long, so that the servers are asked no more often.
const WAITERS: u32 = 64;
/// Nobody else may wait then: `TooManyLocks`.
const WAITERS_MAX: u32 = 16 << 10;

/// The bytes from `start` to `end`, both included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lock {
    pub start: u64,
    pub end: u64,
    pub kind: LockKind,
    pub pid: u32,
}

impl Lock {
    pub(crate) fn to_message(self) -> LockT {
        let mut message = LockT::default();
        (message.start, message.end) = (self.start, self.end);
        (message.kind, message.pid) = (self.kind, self.pid);
        message
    }

    pub(crate) fn from_message(lock: &LockT) -> Self {
        Self { start: lock.start, end: lock.end, kind: lock.kind, pid: lock.pid }
    }
}

impl Client {
    /// Takes, changes or gives back a lock of `owner`, a number of the caller's for a process or an open file. `Locked` when
    /// another owner's is in the way.
    pub async fn lock(&self, who: &Credentials, inode: InodeId, owner: u64, lock: &Lock) -> Result<()> {
        let outcome = self.0.meta.set_lock(who, inode, owner, lock).await;
        if lock.kind != LockKind::Exclusive {
            self.0.unlocked.wake_all();
        }
        if let Some(live) = self.0.live(inode) {
            live.doubt();
        }
        outcome
    }

    /// As [`lock`](Self::lock), but waits for whoever is in the way; `Interrupted` once `give_up` says so. Waiters are not
    /// served in order, and circles of them not found.
    pub async fn lock_waiting(
        &self,
        who: &Credentials,
        inode: InodeId,
        owner: u64,
        lock: &Lock,
        give_up: impl Fn() -> bool,
    ) -> Result<()> {
        let waiters = &self.0.lock_waiters;
        let _waiting = Waiting::begin(waiters)?;
        let mut pause = WAIT_MIN;
        loop {
            let change = self.0.unlocked.next();
            match self.lock(who, inode, owner, lock).await {
                Err(error) if error.code == ErrorCode::Locked => {}
                outcome => return outcome,
            }
            if give_up() {
                return Err(ErrorCode::Interrupted.into());
            }
            change.or(sleep(pause)).await;
            pause = (pause * 2).min(WAIT_MAX * (1 + waiters.get() / WAITERS));
        }
    }
}

/// One who waits, until it is dropped.
struct Waiting<'a>(&'a Cell<u32>);

impl<'a> Waiting<'a> {
    fn begin(waiters: &'a Cell<u32>) -> Result<Self> {
        if waiters.get() >= WAITERS_MAX {
            let (most, found) = (WAITERS_MAX.into(), waiters.get().into());
            return Err(Error::mismatch(ErrorCode::TooManyLocks, most, found, "too many wait for locks"));
        }
        waiters.set(waiters.get() + 1);
        Ok(Self(waiters))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
