//! Who may do what: mode bits, owners, the sticky bit; pure. Where an inode has an access control list, that list takes the
//! place of the mode bits ([`posix_acl`](crate::posix_acl)). POSIX.1-2017, section 4.5 (file access permissions).
//!
//! A privileged caller has had its checks made by the kernel of its mount, or is root there.

use crate::inode::{Inode, SETGID, STICKY};
use corefs_wire::control::meta::CallerT;
use corefs_wire::{ErrorCode, Result};

pub const READ: u32 = 4;
pub const WRITE: u32 = 2;
pub const EXECUTE: u32 = 1;
/// To change a directory's entries.
pub const CHANGE: u32 = WRITE | EXECUTE;

pub(crate) fn exempt(caller: &CallerT) -> bool {
    caller.privileged || caller.uid == 0
}

/// Whether the caller is in `group`, as its own or one of its others.
pub fn in_group(caller: &CallerT, group: u32) -> bool {
    caller.gid == group || caller.groups.contains(&group)
}

/// `PermissionDenied` unless the caller has all of `wanted`. Only the first class that fits counts: an owner whose
/// bits forbid it is refused even when the group's allow it.
pub fn may(caller: &CallerT, inode: &Inode, wanted: u32) -> Result<()> {
    let granted = match caller {
        _ if exempt(caller) => return Ok(()),
        _ if caller.uid == inode.uid => inode.mode >> 6,
        _ if in_group(caller, inode.gid) => inode.mode >> 3,
        _ => inode.mode,
    };
    if granted & wanted == wanted { Ok(()) } else { Err(ErrorCode::PermissionDenied.into()) }
}

/// `NotPermitted` unless the caller owns the inode.
pub fn must_own(caller: &CallerT, inode: &Inode) -> Result<()> {
    if exempt(caller) || caller.uid == inode.uid { Ok(()) } else { Err(ErrorCode::NotPermitted.into()) }
}

/// In a sticky directory an entry is removed or renamed only by the owner of either.
pub fn may_take(caller: &CallerT, directory: &Inode, entry: &Inode) -> Result<()> {
    let free = directory.mode & STICKY == 0 || caller.uid == directory.uid || caller.uid == entry.uid;
    if free || exempt(caller) { Ok(()) } else { Err(ErrorCode::NotPermitted.into()) }
}

/// chown(2): only the privileged give files away; an owner may change to a group of their own.
pub fn may_chown(caller: &CallerT, inode: &Inode, uid: u32, gid: u32) -> Result<()> {
    let keeps_owner = uid == inode.uid && caller.uid == inode.uid;
    let group_fits = gid == inode.gid || in_group(caller, gid);
    if exempt(caller) || keeps_owner && group_fits { Ok(()) } else { Err(ErrorCode::NotPermitted.into()) }
}

/// The mode after chmod(2) by this caller: set-group-id is lost by callers outside of the group.
pub fn chmod_bits(caller: &CallerT, inode: &Inode, mode: u32) -> u32 {
    let keeps = inode.is_directory() || exempt(caller) || in_group(caller, inode.gid);
    if keeps { mode } else { mode & !SETGID }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::control::meta::Kind;

    fn caller(uid: u32, gid: u32) -> CallerT {
        let mut caller = CallerT::default();
        (caller.uid, caller.gid) = (uid, gid);
        caller
    }

    fn inode(mode: u32) -> Inode {
        Inode { mode, uid: 10, gid: 20, ..Inode::new(Kind::File, 0) }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let denied = Err(ErrorCode::PermissionDenied);
        let check = |caller: &CallerT, mode, wanted| may(caller, &inode(mode), wanted).map_err(|e| e.code);
        assert_eq!(check(&caller(10, 0), 0o077, READ), denied);
        assert_eq!(check(&caller(11, 20), 0o707, READ), denied);
        assert_eq!(check(&caller(11, 21), 0o770, READ), denied);
        assert_eq!(check(&caller(10, 0), 0o300, CHANGE), Ok(()));
        assert_eq!(check(&caller(10, 0), 0o200, CHANGE), denied);
        let mut grouped = caller(11, 21);
        grouped.groups = vec![1, 20];
        assert_eq!(check(&grouped, 0o040, READ), Ok(()));
        assert_eq!(check(&caller(0, 0), 0, READ), Ok(()));
        let mut privileged = caller(11, 21);
        privileged.privileged = true;
        assert_eq!(check(&privileged, 0, READ), Ok(()));
    }

    #[test]
    fn sticky_directories_protect_entries() {
        let directory = Inode { uid: 1, mode: STICKY | 0o777, ..Inode::new(Kind::Directory, 0) };
        let take = |uid| may_take(&caller(uid, 0), &directory, &inode(0)).is_ok();
        assert_eq!([take(1), take(10), take(2), take(0)], [true, true, false, true]);
        let open = Inode { mode: 0o777, ..directory.clone() };
        assert!(may_take(&caller(2, 0), &open, &inode(0)).is_ok());
    }

    #[test]
    fn owners_change_groups_and_give_nothing_away() {
        let chown = |caller: &CallerT, uid, gid| may_chown(caller, &inode(0), uid, gid).is_ok();
        assert!(chown(&caller(10, 30), 10, 30) && chown(&caller(10, 0), 10, 20));
        assert!(!chown(&caller(10, 0), 10, 30) && !chown(&caller(10, 0), 11, 20));
        assert!(!chown(&caller(11, 30), 10, 30) && chown(&caller(0, 0), 99, 99));
        assert_eq!(chmod_bits(&caller(10, 21), &inode(0), 0o2755), 0o755);
        assert_eq!(chmod_bits(&caller(10, 20), &inode(0), 0o2755), 0o2755);
    }
}
