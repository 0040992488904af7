//! Holes of files: made, found; and copies within the cluster.

use super::File;
use super::read::cells;
use super::write::EPOCHS_MAX;
use crate::storage::Update;
use crate::{Credentials, join};
use corefs_wire::data::{LIST_MAX, ListEntry, UpdateKind};
use corefs_wire::limits::{FRAME_DATA_MAX, INLINE_MAX};
use corefs_wire::{Error, ErrorCode, Result};
use std::collections::BTreeMap;
use std::ops::Range;

/// Chunks that are removed at once.
const UPDATES: usize = 16;

/// The chunks that are there from an index on, up to where they are known.
struct Known {
    /// Bytes of each.
    chunks: BTreeMap<u32, u32>,
    /// Chunks up to this index would be listed if they were there.
    until: u32,
}

impl File {
    /// Makes the range read as zeros and gives its whole chunks back; the length stays.
    pub async fn punch(&self, range: Range<u64>) -> Result<()> {
        self.check_writable()?;
        let (client, inode) = (&self.client.0, &self.inode);
        client.settle_appends(inode).await;
        let range = range.start..range.end.min(inode.length.get());
        if range.is_empty() {
            return Ok(());
        }
        let _writing = self.begin_write(range.end).await?;
        client.settle_range(inode, &range).await;
        if self.is_inline().await? {
            // Behind what can be kept, there are zeros anyway; and what was cut meanwhile stays cut.
            self.write_zeros(range.start..range.end.min(inode.length.get()).min(INLINE_MAX as u64)).await?;
            inode.touched();
            return Ok(());
        }
        let size = u64::from(inode.place.layout.chunk_size);
        let mut from = (range.start / size) as u32;
        let last = ((range.end - 1) / size) as u32;
        while from <= last {
            let known = self.chunks(from).await?;
            let (mut whole, mut parts) = (Vec::new(), Vec::new());
            for (index, length) in known.chunks.range(from..=last.min(known.until)) {
                let start = u64::from(*index) * size;
                let held = start..start + u64::from(*length);
                let cut = held.start.max(range.start)..held.end.min(range.end);
                if cut == held {
                    whole.push(*index);
                } else if !cut.is_empty() {
                    parts.push(cut);
                }
            }
            for group in whole.chunks(UPDATES) {
                let removals = group.iter().map(|index| self.remove_chunk(*index));
                join::all(removals).await.into_iter().collect::<Result<()>>()?;
            }
            for part in parts {
                self.write_zeros(part).await?;
            }
            match known.until.checked_add(1) {
                Some(next) => from = next,
                None => break,
            }
        }
        inode.touched();
        Ok(())
    }

    /// Removes a chunk under the newest truncate epoch: it may be written again.
    async fn remove_chunk(&self, index: u32) -> Result<()> {
        let (client, inode) = (&self.client.0, &*self.inode);
        for _ in 0..EPOCHS_MAX {
            client.current(inode).await?;
            let epoch = inode.epoch.get();
            let update = Update { index, kind: UpdateKind::Remove, epoch, offset: 0, length: 0 };
            match client.storage.update(&inode.place, update, None).await {
                Err(error) if error.code == ErrorCode::NoSuchChunk => return Ok(()),
                // Somebody else truncated or extended the file, and what was written since is there.
                Err(error) if error.code == ErrorCode::StaleLayout => {
                    client.learn_epoch(inode, epoch).await?
                }
                outcome => return outcome.map(drop),
            }
        }
        let what = format!("{} was truncated again and again", inode.id());
        Err(Error::new(ErrorCode::StaleLayout, what))
    }

    async fn write_zeros(&self, range: Range<u64>) -> Result<()> {
        for cell in cells(range, self.inode.cell) {
            let zeros = vec![0; (cell.end - cell.start) as usize];
            self.write_at(cell.start, &zeros).await?;
        }
        Ok(())
    }

    /// Makes the file at least `length` bytes long. Room is not set aside: a later write may find none.
    pub async fn extend(&self, length: u64) -> Result<()> {
        self.check_writable()?;
        let (most, inode) = (self.inode.place.layout.size_max(), &self.inode);
        if length > most {
            let what = "the file would be too large";
            return Err(Error::mismatch(ErrorCode::FileTooLarge, most, length, what));
        }
        self.client.0.settle_appends(inode).await;
        if length > inode.length.get() {
            let _writing = self.begin_write(length).await?;
            // Reported with the writes of this session, as if the last byte had been one of them.
            inode.wrote(length);
            inode.reaches(length, inode.epoch.get());
            if inode.inline.get() {
                // A file that has no chunks is as long as its server knows, whoever moves its bytes out.
                self.client.0.push(inode, &self.who).await?;
            }
        }
        Ok(())
    }

    fn check_writable(&self) -> Result<()> {
        match self.writable {
            false => Err(Error::new(ErrorCode::NotPermitted, "the file was opened for reading")),
            true => self.client.0.ground.check_open(),
        }
    }

    /// The first byte at or after `offset` that was written, as far as chunks tell; `PastEnd` when only a hole follows.
    pub async fn find_data(&self, offset: u64) -> Result<u64> {
        let length = self.settled_length(offset).await?;
        if self.is_inline().await? {
            return if offset < INLINE_MAX as u64 { Ok(offset) } else { Err(ErrorCode::PastEnd.into()) };
        }
        let size = u64::from(self.inode.place.layout.chunk_size);
        let mut from = (offset / size) as u32;
        loop {
            let known = self.chunks(from).await?;
            for (index, held) in known.chunks.range(from..=known.until) {
                let start = u64::from(*index) * size;
                let found = start.max(offset);
                if *held > 0 && start + u64::from(*held) > offset && found < length {
                    return Ok(found);
                }
            }
            match known.until.checked_add(1) {
                Some(next) if u64::from(next) * size < length => from = next,
                _ => return Err(ErrorCode::PastEnd.into()),
            }
        }
    }

    /// The first byte at or after `offset` that nobody wrote, the end of the file at the latest; `PastEnd` beyond it.
    pub async fn find_hole(&self, offset: u64) -> Result<u64> {
        let length = self.settled_length(offset).await?;
        if self.is_inline().await? {
            return Ok(length.min(INLINE_MAX as u64).max(offset));
        }
        let size = u64::from(self.inode.place.layout.chunk_size);
        let mut at = (offset / size) as u32;
        loop {
            let known = self.chunks(at).await?;
            loop {
                let start = u64::from(at) * size;
                if start >= length {
                    return Ok(length);
                }
                let held = u64::from(known.chunks.get(&at).copied().unwrap_or(0));
                if held < size {
                    return Ok((start + held).max(offset).min(length));
                }
                match at.checked_add(1) {
                    Some(next) if at < known.until => at = next,
                    Some(next) => {
                        at = next;
                        break;
                    }
                    None => return Ok(length),
                }
            }
        }
    }

    /// Whether the bytes are kept with the inode: then no chunk tells of holes. Somebody else may have moved them out.
    async fn is_inline(&self) -> Result<bool> {
        if self.inode.inline.get() {
            let attr = self.client.0.meta.get_attr(&Credentials::root(), self.inode.id()).await?;
            self.inode.absorb(&attr);
        }
        Ok(self.inode.inline.get())
    }

    async fn settled_length(&self, offset: u64) -> Result<u64> {
        self.client.0.settle(&self.inode).await;
        let length = self.inode.length.get();
        if offset < length { Ok(length) } else { Err(ErrorCode::PastEnd.into()) }
    }

    /// A page of what every chain of the file holds, from index `from` on.
    async fn chunks(&self, from: u32) -> Result<Known> {
        let (storage, place) = (&self.client.0.storage, &self.inode.place);
        let chains = storage.chains(place).await?;
        let mut known = Known { chunks: BTreeMap::new(), until: u32::MAX };
        for group in chains.chunks(UPDATES) {
            for page in join::all(group.iter().map(|chain| storage.list(place, *chain, from))).await {
                known.take(&page?);
            }
        }
        Ok(known)
    }

    /// Copies up to `length` bytes of `from` here, and says how many there were.
    pub async fn copy_range(&self, offset: u64, from: &File, at: u64, length: u64) -> Result<u64> {
        let mut done = 0;
        while done < length {
            let want = (length - done).min(FRAME_DATA_MAX as u64) as usize;
            let data = match from.read_at(at + done, want).await {
                Err(_) if done > 0 => break,
                data => data?,
            };
            if data.is_empty() {
                break;
            }
            match self.write_at(offset + done, &data).await {
                Err(error) if done == 0 => return Err(error),
                // What was copied counts: who goes on from there meets the error again.
                Err(_) => break,
                Ok(()) => done += data.len() as u64,
            }
        }
        Ok(done)
    }
}

impl Known {
    fn take(&mut self, page: &[ListEntry]) {
        if let (LIST_MAX.., Some(last)) = (page.len(), page.last()) {
            self.until = self.until.min(last.index.get());
        }
        self.chunks.extend(page.iter().map(|entry| (entry.index.get(), entry.length.get())));
    }
}
