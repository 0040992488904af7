//! All chunks of an inode: lengths, truncation, removal. Everything is idempotent and retried until the client's deadline.

use crate::client::Client;
use corefs_wire::layout::Layout;
use corefs_wire::{InodeId, Result};

#[allow(unused_variables)]
impl Client {
    /// The end of the last byte that the chains hold (bytes); 0 when they hold nothing.
    pub async fn inode_length(&self, inode: InodeId, layout: &Layout) -> Result<u64> {
        todo!()
    }

    /// Removes or cuts what lies past `length`, so that writes of an epoch below `epoch` can't bring it back.
    pub async fn truncate_chunks(
        &self,
        inode: InodeId,
        layout: &Layout,
        length: u64,
        epoch: u32,
    ) -> Result<()> {
        todo!()
    }

    /// Removes all chunks of an inode that is gone for good. Chunks past `length_hint` are found and removed too.
    pub async fn remove_chunks(&self, inode: InodeId, layout: &Layout, length_hint: u64) -> Result<()> {
        todo!()
    }
}
