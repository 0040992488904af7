//! An empty directory goes, or a whole tree.

use crate::acl::{CHANGE, may_take};
use crate::dirent::check_name;
use crate::namespace::{Namespace, Values};
use crate::once::{Attempt, Outcome};
use crate::outside::Outside;
use crate::trash::TRASH_INODE;
use corefs_kv::{Direction, Isolation, KvEngine, Transaction};
use corefs_wire::control::Call;
use corefs_wire::control::meta::{EmptyT, RmDirT};
use corefs_wire::{Error, ErrorCode, InodeId, Result};

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// Removes a directory without entries; with `tree`, which is root's alone, one with all that is below it, see [`trash`](crate::trash).
    /// `NotEmpty`, `NotFound`, `NoSuchInode` (the parent), `NotDirectory`, `PermissionDenied`, `NotPermitted`, `InvalidArgument` (a tree in the trash).
    pub async fn rmdir(&self, request: &RmDirT) -> Result<EmptyT> {
        check_name(&request.name)?;
        let parent = InodeId(request.parent);
        if request.tree && parent == TRASH_INODE {
            return Err(Error::new(ErrorCode::InvalidArgument, "what is in the trash goes by itself"));
        }
        let entry = self.keys.dirent(parent, &request.name);
        let keys = [self.keys.inode(parent), entry.clone(), self.keys.inode(TRASH_INODE)];
        let keys = &keys[..if request.tree { 3 } else { 2 }];
        self.once(RmDirT::OP, &request.caller, keys, async |txn: &mut E::Txn, mut values: Values| {
            let directory = values.directory()?;
            self.may(txn, &request.caller, parent, &directory, CHANGE).await?;
            let dirent = values.dirent()?.ok_or(ErrorCode::NotFound)?;
            if !dirent.is_directory() {
                return Err(ErrorCode::NotDirectory.into());
            }
            let inode = self.inode(txn, dirent.inode, Isolation::Serializable).await?;
            may_take(&request.caller, &directory, &inode)?;
            let now = self.outside.now();
            if request.tree {
                if request.caller.uid != 0 {
                    return Err(Error::new(ErrorCode::NotPermitted, "only root removes whole trees at once"));
                }
                self.throw_away(txn, values.inode()?, dirent, inode, now);
            } else {
                self.must_be_empty(txn, dirent.inode).await?;
                self.clear_directory(txn, dirent.inode, &inode);
            }
            txn.clear(&entry);
            self.touch_directory(txn, parent, now, -1, -1);
            Ok(Attempt::Changed(Outcome::default()))
        })
        .await?;
        Ok(EmptyT::default())
    }

    /// `NotEmpty` unless the directory has no entry, and conflicts with every entry that comes.
    pub(crate) async fn must_be_empty(&self, txn: &mut E::Txn, directory: InodeId) -> Result<()> {
        let children = self.keys.dirents(directory);
        let page = txn.range(&children, 1, Direction::Forward, Isolation::Serializable).await?;
        if page.pairs.is_empty() { Ok(()) } else { Err(ErrorCode::NotEmpty.into()) }
    }
}
