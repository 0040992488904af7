//! Advisory locks of the programs of this machine. Others' are the metadata server's to know.
//!
//! The table lives on the thread of the mount's one client shard.

use corefs_client::{Client, Credentials, Lock, LockKind};
use corefs_wire::{Class, Error, ErrorCode, InodeId, Result};
use fuser::FileHandle;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

/// All bytes of a file, as the kernel names them: offsets are signed.
const WHOLE: (u64, u64) = (0, i64::MAX as u64);
/// Between attempts to give locks back.
const PAUSE: Duration = Duration::from_millis(500);
/// How often somebody looks whether his locks have been given back.
const LOOK: Duration = Duration::from_millis(5);

/// Somebody who may hold locks of a file.
#[derive(Clone, Copy)]
struct Holder {
    /// Through which open file the last was asked for.
    handle: FileHandle,
    /// How many were asked for or granted: what is given back is nothing that came later.
    asked: u64,
    /// An attempt is on its way that nobody waits for: a lock taken meanwhile would go with the others.
    releasing: bool,
}

thread_local! {
    /// Who may hold locks: closing a file asks nobody about files on which nobody here has taken any.
    static HOLDERS: RefCell<BTreeMap<(InodeId, u64), Holder>> = RefCell::default();
}

/// Notes that somebody may hold a lock from now on.
fn note(inode: InodeId, owner: u64, handle: FileHandle) {
    HOLDERS.with_borrow_mut(|holders| {
        let before =
            holders.get(&(inode, owner)).map_or((0, false), |holder| (holder.asked, holder.releasing));
        let holder = Holder { handle, asked: before.0 + 1, releasing: before.1 };
        holders.insert((inode, owner), holder);
    });
}

fn holder(inode: InodeId, owner: u64) -> Option<Holder> {
    HOLDERS.with_borrow(|holders| holders.get(&(inode, owner)).copied())
}

/// Nothing is held any more of what was asked for so far.
fn forget(inode: InodeId, owner: u64, asked: u64) {
    HOLDERS.with_borrow_mut(|holders| {
        if holders.get(&(inode, owner)).is_some_and(|holder| holder.asked == asked) {
            holders.remove(&(inode, owner));
        }
    });
}

fn set_releasing(inode: InodeId, owner: u64, releasing: bool) {
    HOLDERS.with_borrow_mut(|holders| {
        if let Some(holder) = holders.get_mut(&(inode, owner)) {
            holder.releasing = releasing;
        }
    });
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
    (inode, handle): (InodeId, FileHandle),
    owner: u64,
    lock: &Lock,
    waiter: Option<u32>,
) -> Result<()> {
    let takes = lock.kind != LockKind::Unlock;
    if takes {
        while holder(inode, owner).is_some_and(|holder| holder.releasing) {
            client.node().sleep(LOOK).await;
        }
        note(inode, owner, handle);
    }
    let outcome = match waiter {
        None => client.lock(who, inode, owner, lock).await,
        Some(thread) => client.lock_waiting(who, inode, owner, lock, || is_interrupted(thread)).await,
    };
    // Its process may have closed the file through another descriptor while it waited, and so have given back all that it had then.
    if takes && outcome.is_ok() {
        note(inode, owner, handle);
    }
    outcome
}

/// Gives back whatever an owner holds of a file. When no server can be reached, that goes on in the background.
pub async fn release(client: &Client, inode: InodeId, owner: u64) -> Result<()> {
    let Some(holder) = holder(inode, owner) else { return Ok(()) };
    let outcome = unlock(client, inode, owner).await;
    match &outcome {
        Err(error) if error.class() != Class::Fatal => {
            client.detach(insist(client.clone(), inode, owner, holder.asked));
        }
        _ => forget(inode, owner, holder.asked),
    }
    outcome
}

/// The last descriptor of an open file went. What is held through it no process can give back any more: locks of open files
/// (F_OFD_SETLK), of whose end the kernel tells nothing.
pub async fn release_handle(client: &Client, inode: InodeId, handle: FileHandle) -> Result<()> {
    let left: Vec<u64> = HOLDERS.with_borrow(|holders| {
        let of_file = holders.range((inode, 0)..=(inode, u64::MAX));
        of_file.filter(|(_, holder)| holder.handle == handle).map(|((_, owner), _)| *owner).collect()
    });
    let mut outcome = Ok(());
    for owner in left {
        outcome = outcome.and(release(client, inode, owner).await);
    }
    outcome
}

async fn unlock(client: &Client, inode: InodeId, owner: u64) -> Result<()> {
    let lock = Lock { start: WHOLE.0, end: WHOLE.1, kind: LockKind::Unlock, pid: 0 };
    client.lock(&Credentials::root(), inode, owner, &lock).await
}

/// Gives back what was asked for so far, whenever that succeeds, unless the owner has asked for more since.
async fn insist(client: Client, inode: InodeId, owner: u64, asked: u64) {
    loop {
        client.node().sleep(PAUSE).await;
        if holder(inode, owner).is_none_or(|holder| holder.asked != asked || holder.releasing) {
            return;
        }
        set_releasing(inode, owner, true);
        let outcome = unlock(&client, inode, owner).await;
        set_releasing(inode, owner, false);
        match outcome {
            Err(error) if error.code == ErrorCode::ShuttingDown => return,
            Err(error) if error.class() != Class::Fatal => {
                tracing::debug!(%error, %inode, "giving back a lock");
            }
            _ => return forget(inode, owner, asked),
        }
    }
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
