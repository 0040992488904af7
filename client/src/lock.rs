//! Advisory locks on ranges of files, kept by the metadata servers as long as this client's lease lasts.

use crate::{Client, Credentials};
use corefs_net::executor::sleep;
use corefs_wire::control::meta::LockT;
use corefs_wire::{ErrorCode, InodeId, Result};
use futures_lite::FutureExt;
use std::time::Duration;

pub use corefs_wire::control::meta::LockKind;

/// Pauses of who waits for a lock that another client holds: short at first, since most locks are held for moments.
const WAIT_MIN: Duration = Duration::from_millis(1);
const WAIT_MAX: Duration = Duration::from_millis(100);

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
            pause = (pause * 2).min(WAIT_MAX);
        }
    }
}
