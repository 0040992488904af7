//! What a name in a directory leads to.

use crate::acl::EXECUTE;
use crate::dirent::{Dirent, check_name};
use crate::namespace::{Namespace, Values};
use crate::once::Outcome;
use crate::outside::Outside;
use corefs_kv::{Isolation, KvEngine, Transaction};
use corefs_wire::control::meta::{AttrReplyT, LookupT};
use corefs_wire::{ErrorCode, InodeId, Result};

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// The attributes of `name` in `parent`. `NotFound`, `NoSuchInode` (the parent), `NotDirectory`, `PermissionDenied`.
    pub async fn lookup(&self, request: &LookupT) -> Result<AttrReplyT> {
        check_name(&request.name)?;
        let parent = InodeId(request.parent);
        let keys = [self.keys.inode(parent), self.keys.dirent(parent, &request.name)];
        self.reading(async |txn: &mut E::Txn| {
            let mut values = Values::new(txn.get_many(&keys, Isolation::Snapshot).await?);
            self.may(txn, &request.caller, parent, &values.directory()?, EXECUTE).await?;
            let Dirent { inode, kind } = values.dirent()?.ok_or(ErrorCode::NotFound)?;
            Outcome::of(self.stat(txn, inode, Some(kind)).await?).attr_reply()
        })
        .await
    }
}
