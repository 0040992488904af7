//! Advisory locks of the programs of this machine. Others' are the metadata server's to know.
//!
//! The table lives on the thread of the mount's one client shard.

use corefs_client::{Client, Credentials, Lock, LockKind};
use corefs_wire::{Error, ErrorCode, InodeId, Result};
use std::cell::RefCell;
use std::collections::HashSet;

/// All bytes of a file, as the kernel names them: offsets are signed.
const WHOLE: (u64, u64) = (0, i64::MAX as u64);

thread_local! {
    /// Who may hold locks: closing a file asks nobody about files on which nobody here has taken any.
    static HOLDERS: RefCell<HashSet<(InodeId, u64)>> = RefCell::default();
}

/// The lock that the kernel asks about. `InvalidArgument` for a kind it doesn't have.
pub fn lock_of(start: u64, end: u64, kind: i32, pid: u32) -> Result<Lock> {
    let kind = match kind {
        libc::F_RDLCK => LockKind::Shared,
        libc::F_WRLCK => LockKind::Exclusive,
        libc::F_UNLCK => LockKind::Unlock,
        _ => return Err(Error::new(ErrorCode::InvalidArgument, format!("no kind of lock: {kind}"))),
    };
    Ok(Lock { start, end, kind, pid })
}

/// The kernel's number of a kind.
pub fn kind_of(kind: LockKind) -> i32 {
    match kind {
        LockKind::Exclusive => libc::F_WRLCK,
        LockKind::Shared => libc::F_RDLCK,
        _ => libc::F_UNLCK,
    }
}

/// Takes, changes or gives back a lock. `waiter`: the thread that waits for it, if it does.
pub async fn set(
    client: &Client,
    who: &Credentials,
    inode: InodeId,
    owner: u64,
    lock: &Lock,
    waiter: Option<u32>,
) -> Result<()> {
    if lock.kind != LockKind::Unlock {
        HOLDERS.with_borrow_mut(|holders| holders.insert((inode, owner)));
    }
    match waiter {
        None => client.lock(who, inode, owner, lock).await,
        Some(thread) => client.lock_waiting(who, inode, owner, lock, || is_interrupted(thread)).await,
    }
}

/// Gives back whatever an owner holds of a file.
pub async fn release(client: &Client, inode: InodeId, owner: u64) -> Result<()> {
    if !HOLDERS.with_borrow_mut(|holders| holders.remove(&(inode, owner))) {
        return Ok(());
    }
    let lock = Lock { start: WHOLE.0, end: WHOLE.1, kind: LockKind::Unlock, pid: 0 };
    client.lock(&Credentials::root(), inode, owner, &lock).await
}

/// The supplementary groups of a thread; none when it is gone.
pub fn groups_of(thread: u32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    line.split_whitespace().filter_map(|group| group.parse().ok()).collect()
}

/// Whether a signal waits for a thread that would handle it. fuser doesn't pass the kernel's word about it on
/// (FUSE_INTERRUPT), so that whoever waits for a lock couldn't even be killed. A thread that is gone, or of another pid
/// namespace (0), tells nothing: it waits on.
fn is_interrupted(thread: u32) -> bool {
    let status = match thread {
        0 => return false,
        thread => std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default(),
    };
    has_signal(&status)
}

/// Of the masks in proc_pid_status(5): pending for the thread or its process, and neither blocked nor ignored.
fn has_signal(status: &str) -> bool {
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        u64::from_str_radix(line.trim(), 16).unwrap_or(0)
    };
    (mask("SigPnd:") | mask("ShdPnd:")) & !mask("SigBlk:") & !mask("SigIgn:") != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_signals_that_would_be_handled_count() {
        let status = |pending: &str, shared: &str| {
            format!(
                "Name:\tx\nSigQ:\t1/9\nSigPnd:\t{pending}\nShdPnd:\t{shared}\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001000\n"
            )
        };
        assert!(has_signal(&status("0000000000000100", "0000000000000000")));
        assert!(has_signal(&status("0000000000000000", "0000000000004002")));
        assert!(!has_signal(&status("0000000000000002", "0000000000001000")));
        assert!(!has_signal(""));
    }

    #[test]
    fn kinds_are_the_kernel_s() {
        for kind in [libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK] {
            assert_eq!(kind_of(lock_of(1, 2, kind, 3).unwrap().kind), kind);
        }
        assert!(lock_of(0, 0, 77, 0).is_err());
    }
}
