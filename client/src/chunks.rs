//! All chunks of an inode: lengths, truncation, removal. Everything is idempotent and retried until the client's deadline.

use crate::client::Client;
use crate::join;
use crate::storage::{Place, Update};
use corefs_wire::data::{LIST_MAX, ListEntry, UpdateKind};
use corefs_wire::layout::Layout;
use corefs_wire::{ChainId, ErrorCode, InodeId, Result};
use std::time::Duration;

/// Updates under way for one inode.
const UPDATES: usize = 16;
/// Above every epoch that a writer can name: what was removed for good is not written again.
const EPOCH_LAST: u32 = u32::MAX;

impl Client {
    /// The end of the last byte that the chains hold (bytes); 0 when they hold nothing.
    pub async fn inode_length(&self, inode: InodeId, layout: &Layout) -> Result<u64> {
        let place = Place::new(inode, *layout);
        let end = |entry: &ListEntry| {
            let start = u64::from(entry.index.get()) * u64::from(layout.chunk_size);
            if entry.length.get() == 0 { 0 } else { start + u64::from(entry.length.get()) }
        };
        let mut length = 0;
        for chain in self.0.storage.chains(&place).await? {
            let mut from = Some(0);
            while let Some(at) = from {
                let page = self.0.storage.list(&place, chain, at).await?;
                length = page.iter().map(end).fold(length, u64::max);
                from = after(&page);
            }
        }
        Ok(length)
    }

    /// Removes or cuts what lies past `length`, so that writes of an epoch below `epoch` can't bring it back.
    pub async fn truncate_chunks(
        &self,
        inode: InodeId,
        layout: &Layout,
        length: u64,
        epoch: u32,
    ) -> Result<()> {
        let chunk_size = u64::from(layout.chunk_size);
        let (last, keep) = ((length / chunk_size) as u32, (length % chunk_size) as u32);
        let update = |entry: &ListEntry| {
            let index = entry.index.get();
            let update = Update { index, kind: UpdateKind::Remove, epoch, offset: 0, length: 0 };
            if index == last && keep > 0 {
                // A chunk that is shorter anyway learns the epoch and stays as it is.
                let length = entry.length.get().min(keep);
                return Update { kind: UpdateKind::Truncate, length, ..update };
            }
            update
        };
        self.each_chunk(inode, layout, last, None, update).await.map(drop)
    }

    /// Writes the first bytes of a file, which fit a chunk, under `epoch`; a chunk of a newer one stays as it is.
    pub async fn write_first_chunk(
        &self,
        inode: InodeId,
        layout: &Layout,
        bytes: &[u8],
        epoch: u32,
    ) -> Result<()> {
        let mut buffer = self.0.storage.buffer(bytes.len()).await?;
        buffer.get_mut().ok_or(ErrorCode::Internal)?[..bytes.len()].copy_from_slice(bytes);
        let length = bytes.len() as u32;
        let update = Update { index: 0, kind: UpdateKind::Write, epoch, offset: 0, length };
        let place = Place::new(inode, *layout);
        match self.0.storage.update(&place, update, Some((buffer, 0..bytes.len()))).await {
            Err(error) if error.code == ErrorCode::StaleLayout => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// Removes the chunks of an inode that is gone for good, for about as long as `slice`. Returns whether none is left.
    pub async fn remove_chunks(&self, inode: InodeId, layout: &Layout, slice: Duration) -> Result<bool> {
        let remove = |entry: &ListEntry| Update {
            index: entry.index.get(),
            kind: UpdateKind::Remove,
            epoch: EPOCH_LAST,
            offset: 0,
            length: 0,
        };
        self.each_chunk(inode, layout, 0, Some(self.0.ground.now() + slice), remove).await
    }

    /// Updates every chunk from index `from` on that any chain holds, as far as it gets by the time `until`: whether it got to the end.
    async fn each_chunk(
        &self,
        inode: InodeId,
        layout: &Layout,
        from: u32,
        until: Option<Duration>,
        update: impl Fn(&ListEntry) -> Update,
    ) -> Result<bool> {
        let place = Place::new(inode, *layout);
        let mut all = true;
        let chains = self.0.storage.chains(&place).await?;
        for group in chains.chunks(UPDATES) {
            let one = |chain: &ChainId| self.each_chunk_of(&place, *chain, from, until, &update);
            for outcome in join::all(group.iter().map(one)).await {
                all &= outcome?;
            }
        }
        Ok(all)
    }

    async fn each_chunk_of(
        &self,
        place: &Place,
        chain: ChainId,
        from: u32,
        until: Option<Duration>,
        update: impl Fn(&ListEntry) -> Update,
    ) -> Result<bool> {
        let mut from = Some(from);
        while let Some(at) = from {
            let page = self.0.storage.list(place, chain, at).await?;
            for group in page.chunks(UPDATES) {
                if until.is_some_and(|until| self.0.ground.now() >= until) {
                    return Ok(false);
                }
                let updates = group.iter().map(|entry| self.0.storage.update(place, update(entry), None));
                for outcome in join::all(updates).await {
                    match outcome {
                        // The chunk was written after a later truncation: not ours to touch any more.
                        Err(error) if error.code == ErrorCode::StaleLayout => (),
                        outcome => drop(outcome?),
                    }
                }
            }
            from = after(&page);
        }
        Ok(true)
    }
}

/// Where the page after this one begins; `None` if there is none.
fn after(page: &[ListEntry]) -> Option<u32> {
    if page.len() < LIST_MAX {
        return None;
    }
    page.last().and_then(|entry| entry.index.get().checked_add(1))
}
