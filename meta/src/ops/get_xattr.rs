//! One extended attribute.

use crate::namespace::{Namespace, Values};
use crate::ops::set_xattr::{check_attribute_name, may_read};
use crate::outside::Outside;
use corefs_kv::{Isolation, KvEngine, Transaction};
use corefs_wire::control::meta::{GetXattrReplyT, GetXattrT};
use corefs_wire::{ErrorCode, InodeId, Result};

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// The value, as it was set. `NoSuchAttribute`, `NoSuchInode`, `PermissionDenied`, `NotSupported` (an unknown namespace).
    pub async fn get_xattr(&self, request: &GetXattrT) -> Result<GetXattrReplyT> {
        check_attribute_name(&request.name)?;
        let id = InodeId(request.inode);
        let keys = [self.keys.inode(id), self.keys.xattr(id, &request.name)];
        self.reading(async |txn: &mut E::Txn| {
            let mut values = Values::new(txn.get_many(&keys, Isolation::Snapshot).await?);
            let inode = values.expect_inode()?;
            self.may_read_attribute(txn, &request.caller, id, &inode, &request.name).await?;
            let mut reply = GetXattrReplyT::default();
            reply.value = values.raw().ok_or(ErrorCode::NoSuchAttribute)?;
            Ok(reply)
        })
        .await
    }

    async fn may_read_attribute(
        &self,
        txn: &mut E::Txn,
        caller: &corefs_wire::control::meta::CallerT,
        id: InodeId,
        inode: &crate::inode::Inode,
        name: &[u8],
    ) -> Result<()> {
        match may_read(caller, inode, name)? {
            Some(wanted) => self.may(txn, caller, id, inode, wanted).await,
            None => Ok(()),
        }
    }
}
