//! Attributes of many inodes at once.

use crate::inode::Stat;
use crate::namespace::Namespace;
use crate::outside::Outside;
use corefs_kv::KvEngine;
use corefs_wire::control::meta::{AttrResultT, GetAttrReplyT, GetAttrT};
use corefs_wire::limits::ATTR_BATCH_MAX;
use corefs_wire::{Error, ErrorCode, InodeId, Result};

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// Each inode with its own result, at one snapshot. `InvalidArgument` for more than [`ATTR_BATCH_MAX`].
    pub async fn get_attr(&self, request: &GetAttrT) -> Result<GetAttrReplyT> {
        if request.inodes.len() > ATTR_BATCH_MAX {
            let (most, found) = (ATTR_BATCH_MAX as u64, request.inodes.len() as u64);
            return Err(Error::mismatch(ErrorCode::InvalidArgument, most, found, "too many inodes at once"));
        }
        let wanted: Vec<_> = request.inodes.iter().map(|id| (InodeId(*id), None)).collect();
        let stats = self.reading(async |txn: &mut E::Txn| self.stats(txn, &wanted).await).await?;
        let mut reply = GetAttrReplyT::default();
        reply.results = stats.iter().map(Option::as_ref).map(result).collect();
        Ok(reply)
    }
}

fn result(stat: Option<&Stat>) -> AttrResultT {
    let mut result = AttrResultT::default();
    match stat {
        Some(stat) => result.attr = Some(Box::new(stat.to_message())),
        None => result.status = ErrorCode::NoSuchInode as u32,
    }
    result
}
