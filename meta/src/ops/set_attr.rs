//! Mode, owner, times and size.

use crate::acl::{WRITE, chmod_bits, may_chown, must_own};
use crate::inode::{Inode, MODE_BITS, SETGID, SETUID, Stat};
use crate::length::{Resized, finish};
use crate::namespace::{Namespace, Values};
use crate::once::{Attempt, Outcome};
use crate::outside::Outside;
use corefs_kv::{Isolation, KvEngine, Transaction};
use corefs_wire::control::Call;
use corefs_wire::control::meta::{AttrReplyT, CallerT, SetAttrFieldsT, SetAttrT};
use corefs_wire::{Error, ErrorCode, InodeId, Result};

/// Bits of `mask`: which of the fields are set, and to what.
pub mod bits {
    pub const MODE: u32 = 1;
    pub const UID: u32 = 2;
    pub const GID: u32 = 4;
    pub const SIZE: u32 = 8;
    pub const ATIME: u32 = 16;
    pub const MTIME: u32 = 32;
    pub const ATIME_NOW: u32 = 64;
    pub const MTIME_NOW: u32 = 128;
    pub const CTIME: u32 = 256;
    pub const ALL: u32 = 511;
    /// Times that a caller who may only write can set.
    pub const NOW: u32 = ATIME_NOW | MTIME_NOW;
}

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// Changes what `mask` names, all or nothing. A size of a file truncates or extends it (see
    /// [`length`](crate::length)). `NotPermitted`, `PermissionDenied`, `FileTooLarge`, `IsDirectory`, `InvalidArgument`.
    pub async fn set_attr(&self, request: &SetAttrT) -> Result<AttrReplyT> {
        let id = InodeId(request.inode);
        let set = &request.set;
        let keys = [self.keys.inode(id)];
        let outcome =
            self.once(SetAttrT::OP, &request.caller, &keys, async |txn: &mut E::Txn, mut values: Values| {
                let mut inode = values.expect_inode()?;
                if set.mask == 0 {
                    return Ok(Attempt::Unchanged(Outcome::of(self.stat(txn, id, Some(inode.kind)).await?)));
                }
                let now = self.outside.now();
                let mut trim = false;
                if set.mask & bits::SIZE != 0 {
                    inode.file_layout()?;
                    self.may(txn, &request.caller, id, &inode, WRITE).await?;
                    match self.resize(txn, id, &mut inode, set.size, now).await? {
                        Resized::Done => {}
                        Resized::Trim => trim = true,
                        Resized::Blocked => return Ok(Attempt::Trimming(id)),
                    }
                }
                let writable = set.mask & bits::NOW != 0
                    && self.may(txn, &request.caller, id, &inode, WRITE).await.is_ok();
                let mode = inode.mode;
                apply(&request.caller, &mut inode, set, now, writable)?;
                if inode.mode != mode {
                    self.list_follows(txn, id, &inode).await?;
                }
                self.put(txn, id, &inode);
                let stat = self.stat_after(txn, id, inode, set.mask).await?;
                Ok(Attempt::Changed(Outcome { trim, ..Outcome::of(stat) }))
            });
        outcome.await?.attr_reply()
    }

    /// What the inode will be like. A directory's explicit time of modification replaces the one of its entries, which
    /// is why that one is cleared; the change time of now covers it.
    async fn stat_after(&self, txn: &mut E::Txn, id: InodeId, mut inode: Inode, mask: u32) -> Result<Stat> {
        finish(&mut inode);
        if !inode.is_directory() {
            return Ok(Stat::new(id, inode));
        }
        if mask & (bits::MTIME | bits::MTIME_NOW) != 0 {
            txn.clear(&self.keys.directory_touched(id));
        }
        let keys = [self.keys.directory_touched(id), self.keys.directory_counts(id)];
        let mut values = Values::new(txn.get_many(&keys, Isolation::Snapshot).await?);
        Ok(Stat { id, inode, directory: values.directory_state()? })
    }
}

/// Everything but the size, which has its own rules. `writable`: the caller may write the inode. Nothing is changed when
/// it fails.
pub(crate) fn apply(
    caller: &CallerT,
    inode: &mut Inode,
    set: &SetAttrFieldsT,
    now: i64,
    writable: bool,
) -> Result<()> {
    if set.mask & !bits::ALL != 0 {
        let (known, found) = (bits::ALL.into(), set.mask.into());
        return Err(Error::mismatch(ErrorCode::InvalidArgument, known, found, "unknown attributes"));
    }
    let mask = set.mask & !outdated(inode, set);
    if mask & !bits::CTIME == 0 && mask != set.mask {
        return Ok(());
    }
    let has = |bit: u32| mask & bit != 0;
    check_times(caller, inode, mask, writable)?;
    if has(bits::UID | bits::GID) {
        let uid = if has(bits::UID) { set.uid } else { inode.uid };
        let gid = if has(bits::GID) { set.gid } else { inode.gid };
        may_chown(caller, inode, uid, gid)?;
    }
    if has(bits::MODE) {
        must_own(caller, inode)?;
    }
    if has(bits::UID | bits::GID) {
        inode.uid = if has(bits::UID) { set.uid } else { inode.uid };
        inode.gid = if has(bits::GID) { set.gid } else { inode.gid };
        drop_set_ids(inode);
    }
    if has(bits::MODE) {
        inode.mode = chmod_bits(caller, inode, set.mode & MODE_BITS);
    }
    if has(bits::ATIME | bits::ATIME_NOW) {
        inode.atime = if has(bits::ATIME_NOW) { now } else { set.atime };
    }
    if has(bits::MTIME | bits::MTIME_NOW) {
        inode.mtime = if has(bits::MTIME_NOW) { now } else { set.mtime };
    }
    if mask != 0 {
        inode.ctime = if has(bits::CTIME) { set.ctime } else { now };
    }
    Ok(())
}

/// What somebody else has set since the caller decided: a client whose file is open may report its changes late.
fn outdated(inode: &Inode, set: &SetAttrFieldsT) -> u32 {
    let Some(known) = &set.known else { return 0 };
    let differs = |differs: bool, bits: u32| if differs { bits } else { 0 };
    differs(known.mode & MODE_BITS != inode.mode & MODE_BITS, bits::MODE)
        | differs(known.uid != inode.uid, bits::UID)
        | differs(known.gid != inode.gid, bits::GID)
        | differs(known.atime != inode.atime, bits::ATIME | bits::ATIME_NOW)
        | differs(known.mtime != inode.mtime, bits::MTIME | bits::MTIME_NOW)
}

/// utimensat(2): a time of one's own choice needs the owner; the present only needs permission to write. A change time of
/// one's own choice is for mounts that cache it.
fn check_times(caller: &CallerT, inode: &Inode, mask: u32, writable: bool) -> Result<()> {
    if mask & bits::CTIME != 0 && !caller.privileged {
        return Err(Error::new(ErrorCode::NotPermitted, "the change time isn't set by hand"));
    }
    if mask & (bits::ATIME | bits::MTIME) != 0 {
        return must_own(caller, inode);
    }
    if mask & bits::NOW != 0 && !writable && must_own(caller, inode).is_err() {
        return Err(ErrorCode::PermissionDenied.into());
    }
    Ok(())
}

/// A program that runs as its owner or group doesn't keep that under a new one. Directories keep their set-group-id,
/// and so does what isn't executable by the group (where the bit never meant that).
fn drop_set_ids(inode: &mut Inode) {
    if inode.is_directory() {
        return;
    }
    inode.mode &= !SETUID;
    if inode.mode & 0o010 != 0 {
        inode.mode &= !SETGID;
    }
}
