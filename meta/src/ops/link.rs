//! One more name.

use crate::acl::CHANGE;
use crate::dirent::{Dirent, check_name};
use crate::inode::Stat;
use crate::namespace::{Namespace, Values};
use crate::once::{Attempt, Outcome};
use crate::outside::Outside;
use corefs_kv::{KvEngine, Transaction};
use corefs_wire::control::Call;
use corefs_wire::control::meta::{AttrReplyT, LinkT};
use corefs_wire::limits::LINK_MAX;
use corefs_wire::{Error, ErrorCode, InodeId, Result};

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// Gives an inode another name. `NotPermitted` for directories, `TooManyLinks` at [`LINK_MAX`], `Exists`, `NoSuchInode`
    /// (also for an inode whose last name is gone).
    pub async fn link(&self, request: &LinkT) -> Result<AttrReplyT> {
        check_name(&request.name)?;
        let (id, parent) = (InodeId(request.inode), InodeId(request.parent));
        let entry = self.keys.dirent(parent, &request.name);
        let keys = [self.keys.inode(parent), entry.clone(), self.keys.inode(id)];
        let outcome =
            self.once(LinkT::OP, &request.caller, &keys, async |txn: &mut E::Txn, mut values: Values| {
                let directory = values.directory()?;
                let exists = values.dirent()?.is_some();
                let mut inode = values.expect_inode()?;
                if inode.is_directory() {
                    return Err(Error::new(ErrorCode::NotPermitted, "a directory has one name"));
                }
                if exists {
                    return Err(ErrorCode::Exists.into());
                }
                self.may(txn, &request.caller, parent, &directory, CHANGE).await?;
                match inode.nlink {
                    0 => return Err(Error::new(ErrorCode::NoSuchInode, "its last name is gone")),
                    LINK_MAX.. => return Err(ErrorCode::TooManyLinks.into()),
                    _ => inode.nlink += 1,
                }
                let now = self.outside.now();
                inode.ctime = now;
                self.put(txn, id, &inode);
                txn.set(&entry, &Dirent { inode: id, kind: inode.kind }.encode());
                self.touch_directory(txn, parent, now, 1, 0);
                Ok(Attempt::Changed(Outcome::of(Stat::new(id, inode))))
            });
        outcome.await?.attr_reply()
    }
}
