//! Names of extended attributes.

use crate::acl::exempt;
use crate::key::Key;
use crate::namespace::Namespace;
use crate::outside::Outside;
use corefs_kv::{Isolation, KvEngine, Transaction};
use corefs_wire::control::meta::{ListXattrReplyT, ListXattrT, XattrNameT};
use corefs_wire::{InodeId, Result};

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// All names, in order; `trusted.` ones are for the privileged only. `NoSuchInode`.
    pub async fn list_xattr(&self, request: &ListXattrT) -> Result<ListXattrReplyT> {
        let id = InodeId(request.inode);
        self.reading(async |txn: &mut E::Txn| {
            let inode = self.inode(txn, id, Isolation::Snapshot).await?;
            let mut reply = ListXattrReplyT::default();
            if !inode.marks.xattrs {
                return Ok(reply);
            }
            for (key, _) in txn.range_all(&self.keys.xattrs(id), usize::MAX, Isolation::Snapshot).await? {
                let Key::Xattr(_, name) = self.keys.parse(&key)? else { continue };
                if exempt(&request.caller) || !name.starts_with(b"trusted.") {
                    let mut shown = XattrNameT::default();
                    shown.name = name;
                    reply.names.push(shown);
                }
            }
            Ok(reply)
        })
        .await
    }
}
