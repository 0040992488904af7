//! A name moves, replaces another, or two are exchanged.

use crate::acl::{CHANGE, WRITE, may_take};
use crate::dirent::{Dirent, check_name};
use crate::inode::Inode;
use crate::namespace::{Namespace, Values};
use crate::once::{Attempt, Outcome};
use crate::ops::unlink::{check_hold, unlinked};
use crate::outside::Outside;
use corefs_kv::{Isolation, KvEngine, Transaction};
use corefs_wire::control::Call;
use corefs_wire::control::meta::{CallerT, RenameT, UnlinkedT};
use corefs_wire::{Error, ErrorCode, InodeId, ROOT_INODE, Result};
use std::cell::Cell;

/// Flags, as of renameat2(2).
pub const NOREPLACE: u32 = 1;
pub const EXCHANGE: u32 = 2;

/// Directories above one another that a rename looks at before it calls the tree damaged. Deeper trees exist only by
/// chains of relative calls: paths end at PATH_MAX / 2.
const DEPTH_MAX: usize = 1 << 16;

/// One side of a rename: a directory, the name in it, and what the name leads to.
struct Side {
    parent: InodeId,
    directory: Inode,
    entry: Vec<u8>,
    dirent: Dirent,
    inode: Inode,
}

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// Renames as rename(2) and renameat2(2) do. Two names of one inode: nothing happens. A replaced file is removed
    /// as by unlink; a replaced directory must be empty.
    ///
    /// `WouldLoop` when a directory would come under itself; `NotFound`, `NoSuchInode` (a directory), `Exists` (NOREPLACE), `NotEmpty`, `IsDirectory`,
    /// `NotDirectory`, `PermissionDenied`, `NotPermitted` (sticky directories).
    pub async fn rename(&self, request: &RenameT) -> Result<UnlinkedT> {
        check_name(&request.name)?;
        check_hold(&request.hold)?;
        check_name(&request.new_name)?;
        if request.flags & !(NOREPLACE | EXCHANGE) != 0 || request.flags == NOREPLACE | EXCHANGE {
            let what = "flags that rename doesn't know, or that exclude each other";
            return Err(Error::mismatch(ErrorCode::InvalidArgument, 0, request.flags.into(), what));
        }
        let (from, to) = (InodeId(request.parent), InodeId(request.new_parent));
        let keys = [
            self.keys.inode(from),
            self.keys.inode(to),
            self.keys.dirent(from, &request.name),
            self.keys.dirent(to, &request.new_name),
        ];
        // Of an attempt here, which isn't known to have been the one that happened if there were others elsewhere.
        let moved = Cell::new(InodeId(0));
        let outcome =
            self.once(RenameT::OP, &request.caller, &keys, async |txn: &mut E::Txn, mut values: Values| {
                let (old_directory, new_directory) = (values.directory()?, values.directory()?);
                self.may(txn, &request.caller, from, &old_directory, CHANGE).await?;
                self.may(txn, &request.caller, to, &new_directory, CHANGE).await?;
                let old_dirent = values.dirent()?.ok_or(ErrorCode::NotFound)?;
                let new_dirent = values.dirent()?;
                match (request.flags, new_dirent) {
                    (NOREPLACE, Some(_)) => return Err(ErrorCode::Exists.into()),
                    (EXCHANGE, None) => return Err(ErrorCode::NotFound.into()),
                    _ => {}
                }
                if request.flags != EXCHANGE && !request.caller.repeated {
                    moved.set(old_dirent.inode);
                }
                if new_dirent.is_some_and(|dirent| dirent.inode == old_dirent.inode) {
                    return Ok(Attempt::Unchanged(Outcome::default()));
                }
                let side = |parent, directory, entry: &[u8], dirent, inode| Side {
                    parent,
                    directory,
                    entry: entry.to_vec(),
                    dirent,
                    inode,
                };
                let inode = self.inode(txn, old_dirent.inode, Isolation::Serializable).await?;
                let old = side(from, old_directory, &keys[2], old_dirent, inode);
                self.may_move(txn, &request.caller, &old, to).await?;
                if old_dirent.is_directory() {
                    self.must_not_contain(txn, old_dirent.inode, from, to).await?;
                }
                let Some(dirent) = new_dirent else {
                    self.move_name(txn, old, to, &keys[3]);
                    return Ok(Attempt::Changed(Outcome::default()));
                };
                let inode = self.inode(txn, dirent.inode, Isolation::Serializable).await?;
                let new = side(to, new_directory, &keys[3], dirent, inode);
                match request.flags {
                    EXCHANGE => {
                        self.may_move(txn, &request.caller, &new, from).await?;
                        if dirent.is_directory() {
                            self.must_not_contain(txn, dirent.inode, to, from).await?;
                        }
                        self.exchange(txn, old, new);
                        Ok(Attempt::Changed(Outcome::default()))
                    }
                    _ => self.replace(txn, request, old, new).await.map(Attempt::Changed),
                }
            });
        let mut reply = unlinked(&outcome.await?);
        reply.moved = moved.get().0;
        Ok(reply)
    }

    /// Walks from `to` up to the root: `WouldLoop` when `moved`, which now hangs in `from`, is on the way. Every record on
    /// the way is read serializably and a moved directory's own record is always rewritten, so of two renames that
    /// together would close a loop one conflicts.
    async fn must_not_contain(
        &self,
        txn: &mut E::Txn,
        moved: InodeId,
        from: InodeId,
        to: InodeId,
    ) -> Result<()> {
        if from == to {
            return Ok(());
        }
        let mut at = to;
        for _ in 0..DEPTH_MAX {
            if at == moved {
                return Err(ErrorCode::WouldLoop.into());
            }
            if at == ROOT_INODE {
                return Ok(());
            }
            at = self.inode(txn, at, Isolation::Serializable).await?.parent;
        }
        Err(Error::new(ErrorCode::Corrupt, format!("{to} doesn't hang under the root")))
    }

    /// The new name was free.
    fn move_name(&self, txn: &mut E::Txn, old: Side, to: InodeId, new_entry: &[u8]) {
        let now = self.outside.now();
        let directories = i64::from(old.dirent.is_directory());
        txn.clear(&old.entry);
        self.hang(txn, old.dirent, old.inode, to, new_entry, now);
        if old.parent == to {
            self.touch_directory(txn, to, now, 0, 0);
        } else {
            self.touch_directory(txn, old.parent, now, -1, -directories);
            self.touch_directory(txn, to, now, 1, directories);
        }
    }

    /// The new name led to something else, which goes.
    async fn replace(&self, txn: &mut E::Txn, request: &RenameT, old: Side, new: Side) -> Result<Outcome> {
        let caller = &request.caller;
        may_take(caller, &new.directory, &new.inode)?;
        match (old.dirent.is_directory(), new.dirent.is_directory()) {
            (true, false) => return Err(ErrorCode::NotDirectory.into()),
            (false, true) => return Err(ErrorCode::IsDirectory.into()),
            (true, true) => self.must_be_empty(txn, new.dirent.inode).await?,
            (false, false) => {}
        }
        let now = self.outside.now();
        let directories = i64::from(old.dirent.is_directory());
        txn.clear(&old.entry);
        let held = self.hold_unlinked(txn, caller, &request.hold, new.dirent.inode, &new.inode, now);
        match new.dirent.is_directory() {
            true => self.clear_directory(txn, new.dirent.inode, &new.inode),
            false => self.drop_name(txn, new.dirent.inode, new.inode, now),
        }
        self.hang(txn, old.dirent, old.inode, new.parent, &new.entry, now);
        self.touch_directory(txn, old.parent, now, -1, -directories);
        if old.parent != new.parent {
            // One directory came and one went.
            self.touch_directory(txn, new.parent, now, 0, 0);
        }
        Ok(held)
    }

    /// Both names stay and lead to each other's inode.
    fn exchange(&self, txn: &mut E::Txn, old: Side, new: Side) {
        let now = self.outside.now();
        let balance = i64::from(new.dirent.is_directory()) - i64::from(old.dirent.is_directory());
        let balance = if old.parent == new.parent { 0 } else { balance };
        self.touch_directory(txn, old.parent, now, 0, balance);
        self.touch_directory(txn, new.parent, now, 0, -balance);
        self.hang(txn, old.dirent, old.inode, new.parent, &new.entry, now);
        self.hang(txn, new.dirent, new.inode, old.parent, &old.entry, now);
    }

    /// Lets `entry` of `parent` lead to an inode, and a directory point back.
    pub(crate) fn hang(
        &self,
        txn: &mut E::Txn,
        dirent: Dirent,
        mut inode: Inode,
        parent: InodeId,
        entry: &[u8],
        now: i64,
    ) {
        inode.ctime = now;
        if inode.is_directory() {
            inode.parent = parent;
        }
        self.put(txn, dirent.inode, &inode);
        txn.set(entry, &dirent.encode());
    }

    /// Sticky directories, and: a directory that changes its parent must be writable itself, for its `..` changes.
    async fn may_move(&self, txn: &mut E::Txn, caller: &CallerT, side: &Side, to: InodeId) -> Result<()> {
        may_take(caller, &side.directory, &side.inode)?;
        if side.dirent.is_directory() && side.parent != to {
            self.may(txn, caller, side.dirent.inode, &side.inode, WRITE).await?;
        }
        Ok(())
    }
}
