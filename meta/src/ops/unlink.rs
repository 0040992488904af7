//! A name of anything but a directory goes.

use crate::acl::{CHANGE, may_take};
use crate::dirent::check_name;
use crate::gc::Garbage;
use crate::inode::Inode;
use crate::namespace::{Namespace, Values};
use crate::once::{Attempt, Outcome};
use crate::outside::Outside;
use corefs_kv::{Isolation, KvEngine, Transaction};
use corefs_wire::control::Call;
use corefs_wire::control::meta::{EmptyT, UnlinkT};
use corefs_wire::{ErrorCode, InodeId, Result};

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// Removes the entry. A file that loses its last name is removed in the background, once nobody has it open.
    /// `NotFound`, `NoSuchInode` (the directory), `IsDirectory`, `PermissionDenied`, `NotPermitted` (sticky directories).
    pub async fn unlink(&self, request: &UnlinkT) -> Result<EmptyT> {
        check_name(&request.name)?;
        let parent = InodeId(request.parent);
        let entry = self.keys.dirent(parent, &request.name);
        let keys = [self.keys.inode(parent), entry.clone()];
        self.once(UnlinkT::OP, &request.caller, &keys, async |txn: &mut E::Txn, mut values: Values| {
            let directory = values.directory()?;
            self.may(txn, &request.caller, parent, &directory, CHANGE).await?;
            let dirent = values.dirent()?.ok_or(ErrorCode::NotFound)?;
            if dirent.is_directory() {
                return Err(ErrorCode::IsDirectory.into());
            }
            let inode = self.inode(txn, dirent.inode, Isolation::Serializable).await?;
            may_take(&request.caller, &directory, &inode)?;
            let now = self.outside.now();
            self.drop_name(txn, dirent.inode, inode, now);
            txn.clear(&entry);
            self.touch_directory(txn, parent, now, -1, 0);
            Ok(Attempt::Changed(Outcome::default()))
        })
        .await?;
        Ok(EmptyT::default())
    }

    /// Takes one name from an inode that isn't a directory: what is left of it is stored.
    pub(crate) fn drop_name(&self, txn: &mut E::Txn, id: InodeId, mut inode: Inode, now: i64) {
        inode.nlink = inode.nlink.saturating_sub(1);
        inode.ctime = now;
        match (inode.nlink, inode.is_file()) {
            (0, true) => {
                txn.set(&self.keys.garbage(id), &Garbage::Waiting.encode());
                self.put(txn, id, &inode);
            }
            // Nothing else has chunks, or sessions that could hold it.
            (0, false) => {
                self.clear_inode(txn, id, &inode);
            }
            _ => self.put(txn, id, &inode),
        }
    }
}
