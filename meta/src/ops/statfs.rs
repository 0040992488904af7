//! Space and files of the whole file system.

use crate::key::table;
use crate::namespace::Namespace;
use crate::outside::Outside;
use corefs_kv::{Isolation, KvEngine, Transaction};
use corefs_wire::control::meta::{StatFsReplyT, StatFsT};
use corefs_wire::limits::BLOCK;
use corefs_wire::{Error, ErrorCode, Result};

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// Space as the storage servers last said; files as of now.
    pub async fn statfs(&self, _request: &StatFsT) -> Result<StatFsReplyT> {
        let space = self.outside.space().await?;
        let files = self.reading(async |txn: &mut E::Txn| self.inode_total(txn).await).await?;
        let mut reply = StatFsReplyT::default();
        (reply.total, reply.free) = (space.total, space.free);
        reply.files = u64::try_from(files).unwrap_or(0);
        reply.block_size = BLOCK as u32;
        reply.chunk_size = self.outside.routing().chunk_size;
        Ok(reply)
    }

    /// How many inodes there are, as counted.
    pub(crate) async fn inode_total(&self, txn: &mut E::Txn) -> Result<i64> {
        let slots = self.keys.table(table::INODE_COUNT);
        let mut total = 0;
        for (_, value) in txn.range_all(&slots, usize::MAX, Isolation::Snapshot).await? {
            let bad = |_| Error::new(ErrorCode::Corrupt, "a count of inodes can't be read");
            total += i64::from_le_bytes(value.as_slice().try_into().map_err(bad)?);
        }
        Ok(total)
    }
}
