//! Where a symlink points.

use crate::namespace::Namespace;
use crate::outside::Outside;
use corefs_kv::{Isolation, KvEngine};
use corefs_wire::control::meta::{Kind, ReadLinkReplyT, ReadLinkT};
use corefs_wire::{ErrorCode, InodeId, Result};

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// The target's bytes. `NotSymlink`, `NoSuchInode`.
    pub async fn read_link(&self, request: &ReadLinkT) -> Result<ReadLinkReplyT> {
        let id = InodeId(request.inode);
        self.reading(async |txn: &mut E::Txn| {
            let inode = self.inode(txn, id, Isolation::Snapshot).await?;
            if inode.kind != Kind::Symlink {
                return Err(ErrorCode::NotSymlink.into());
            }
            let mut reply = ReadLinkReplyT::default();
            reply.target = inode.target;
            Ok(reply)
        })
        .await
    }
}
