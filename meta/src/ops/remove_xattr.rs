//! An extended attribute goes.

use crate::namespace::{Namespace, Values};
use crate::once::{Attempt, Outcome};
use crate::ops::set_xattr::{check_attribute_name, is_list};
use crate::outside::Outside;
use corefs_kv::{Isolation, KvEngine, Transaction};
use corefs_wire::control::Call;
use corefs_wire::control::meta::{EmptyT, RemoveXattrT};
use corefs_wire::{ErrorCode, InodeId, Result};

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// `NoSuchAttribute`, and as [`set_xattr`](Self::set_xattr). Removing an access control list leaves the mode as it is.
    pub async fn remove_xattr(&self, request: &RemoveXattrT) -> Result<EmptyT> {
        check_attribute_name(&request.name)?;
        let id = InodeId(request.inode);
        let row = self.keys.xattr(id, &request.name);
        let keys = [self.keys.inode(id), row.clone()];
        let op = RemoveXattrT::OP;
        self.once(op, &request.caller, &keys, async |txn: &mut E::Txn, mut values: Values| {
            let (mut inode, found) = (values.expect_inode()?, values.raw());
            self.may_set_attribute(txn, &request.caller, id, &inode, &request.name).await?;
            if found.is_none() {
                return Err(ErrorCode::NoSuchAttribute.into());
            }
            if is_list(&request.name) {
                self.set_list(txn, &request.caller, id, &mut inode, &request.name, None)?;
            }
            txn.clear(&row);
            let rest = txn.range_all(&self.keys.xattrs(id), 1, Isolation::Serializable).await?;
            inode.marks.xattrs = !rest.is_empty();
            inode.ctime = self.outside.now();
            self.put(txn, id, &inode);
            Ok(Attempt::Changed(Outcome::default()))
        })
        .await?;
        Ok(EmptyT::default())
    }
}
