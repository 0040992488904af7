//! Reads of files: clamped to the length, cut into cells, widened to whole blocks, put together.

use super::File;
use crate::client::Inner;
use crate::inode::Inode;
use crate::join;
use crate::storage::{Asking, Unfinished, read_entry};
use corefs_net::Buffer;
use corefs_net::buffer::BLOCK_MAX;
use corefs_wire::data::ReadEntry;
use corefs_wire::limits::BLOCK;
use corefs_wire::{ErrorCode, Result};
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// Pieces of one read that are under way at once.
const PIECES_MAX: usize = 16;

/// Bytes that were read; derefs to them. Gives its memory back to the client's pool when dropped.
#[derive(Debug, Default)]
pub struct Data(Bytes);

#[derive(Debug, Default)]
enum Bytes {
    #[default]
    None,
    Pooled {
        buffer: Buffer,
        start: usize,
        len: usize,
    },
    Owned(Vec<u8>),
}

impl Data {
    fn pooled(buffer: Buffer, start: usize, len: usize) -> Self {
        assert!(start + len <= buffer.len());
        Self(Bytes::Pooled { buffer, start, len })
    }

    pub fn into_vec(self) -> Vec<u8> {
        match self.0 {
            Bytes::Owned(bytes) => bytes,
            other => Self(other).to_vec(),
        }
    }
}

impl std::ops::Deref for Data {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::None => &[],
            Bytes::Pooled { buffer, start, len } => &buffer[*start..*start + *len],
            Bytes::Owned(bytes) => bytes,
        }
    }
}

/// A read as far as it gets without waiting for anything.
enum Started<'a> {
    /// Nothing has to be asked for.
    Known(Data),
    Asked(Asked<'a>),
    /// Of these bytes; something has to be waited for first.
    Later(Range<u64>),
}

/// A read of bytes of one cell that is under way.
struct Asked<'a> {
    asking: Asking<'a>,
    /// Which of the blocks' bytes were meant.
    start: usize,
    len: usize,
}

impl File {
    /// At most `length` bytes at `offset`: fewer only at the end of the file. Holes are zeros.
    pub async fn read_at(&self, offset: u64, length: usize) -> Result<Data> {
        match self.start_read(offset, length) {
            Started::Known(data) => Ok(data),
            Started::Asked(Asked { mut asking, start, len }) => match (&mut asking).await {
                Ok(buffer) => Ok(Data::pooled(buffer, start, len)),
                Err(unfinished) => Box::pin(self.finish_read(asking, unfinished, start, len)).await,
            },
            Started::Later(range) => Box::pin(self.read_patiently(range)).await,
        }
    }

    #[inline]
    fn start_read(&self, offset: u64, length: usize) -> Started<'_> {
        let inode = &*self.inode;
        if inode.appends.pending() {
            // Where the file ends is open.
            return Started::Later(offset..offset.saturating_add(length as u64));
        }
        let end = offset.saturating_add(length as u64).min(inode.length.get());
        if offset >= end {
            return Started::Known(Data::default());
        }
        let range = offset..end;
        if inode.inline.get() {
            return Started::Later(range);
        }
        let cell = u64::from(inode.cell);
        if offset / cell != (end - 1) / cell || inode.behind.borrow().overlaps(&range) {
            return Started::Later(range);
        }
        let (entry, start) = blocks_of(inode, &range);
        match self.client.0.storage.ask_at_once(&inode.place, entry, None) {
            Some(asking) => Started::Asked(Asked { asking, start, len: (end - offset) as usize }),
            None => Started::Later(range),
        }
    }

    #[cold]
    async fn finish_read(
        &self,
        asking: Asking<'_>,
        unfinished: Unfinished,
        start: usize,
        len: usize,
    ) -> Result<Data> {
        let (place, entry) = (asking.place, asking.entry);
        // Its owner is not to be found busy with it.
        drop(asking);
        let buffer = self.client.0.storage.finish(place, entry, unfinished).await?;
        self.client.0.check_holes(&self.inode).await?;
        Ok(Data::pooled(buffer, start, len))
    }

    async fn read_patiently(&self, mut range: Range<u64>) -> Result<Data> {
        let (client, inode) = (&self.client.0, &*self.inode);
        if inode.appends.pending() {
            client.settle_appends(&self.inode).await;
        }
        range.end = range.end.min(inode.length.get());
        if range.is_empty() {
            return Ok(Data::default());
        }
        if inode.behind.borrow().overlaps(&range) {
            client.settle_range(&self.inode, &range).await;
        }
        if inode.inline.get() {
            let known = match self.known_ahead(&range) {
                None => self.read_inline(range.clone()).await?,
                known => known,
            };
            if let Some(bytes) = known {
                return Ok(Data(Bytes::Owned(bytes)));
            }
            range.end = range.end.min(inode.length.get());
            if range.is_empty() {
                return Ok(Data::default());
            }
        }
        let cell = u64::from(inode.cell);
        let data = if range.start / cell == (range.end - 1) / cell {
            client.read_cell(inode, range).await?
        } else {
            client.read_cells(inode, range).await?
        };
        client.check_holes(&self.inode).await?;
        Ok(data)
    }

    /// The same into memory of the caller; returns how many bytes there were.
    pub async fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < out.len() {
            let want = (out.len() - done).min(BLOCK_MAX);
            let data = self.read_at(offset.saturating_add(done as u64), want).await?;
            out[done..done + data.len()].copy_from_slice(&data);
            done += data.len();
            if data.len() < want {
                break;
            }
        }
        Ok(done)
    }
}

/// One read of a batch.
enum Slot<'a> {
    Asked(&'a File, Asked<'a>),
    /// The road of those that had to wait, or failed at first.
    Later(Pin<Box<dyn Future<Output = Result<Data>> + 'a>>),
    Done(Result<Data>),
    Taken,
}

impl<'a> Slot<'a> {
    #[inline]
    fn start(file: &'a File, offset: u64, length: usize) -> Self {
        match file.start_read(offset, length) {
            Started::Known(data) => Self::Done(Ok(data)),
            Started::Asked(asked) => Self::Asked(file, asked),
            Started::Later(range) => Self::Later(Box::pin(file.read_patiently(range))),
        }
    }

    /// Whether its replica is so late that another was asked, too.
    fn is_hedged(&self) -> bool {
        matches!(self, Self::Asked(_, asked) if asked.asking.is_hedged())
    }

    /// Whether it is done.
    #[inline]
    fn poll(&mut self, context: &mut Context<'_>) -> bool {
        if let Self::Asked(_, asked) = self {
            let Poll::Ready(ended) = Pin::new(&mut asked.asking).poll(context) else { return false };
            let Self::Asked(file, Asked { asking, start, len }) = std::mem::replace(self, Self::Taken) else {
                unreachable!("it was so a line ago")
            };
            *self = match ended {
                Ok(buffer) => Self::Done(Ok(Data::pooled(buffer, start, len))),
                Err(unfinished) => Self::Later(Box::pin(file.finish_read(asking, unfinished, start, len))),
            };
        }
        if let Self::Later(rest) = self {
            let Poll::Ready(data) = rest.as_mut().poll(context) else { return false };
            *self = Self::Done(data);
        }
        true
    }
}

/// Many reads at once, of any files of one client: each `(file, offset, length)` with its own result, in order.
///
/// All are asked for at once. At a wake-up only the first that isn't done is looked at, so that n reads cost n looks;
/// those that fail are asked for again when their turn comes. When one is late, the others are looked at, too: they may wait for the
/// same replica.
pub async fn read_batch(reads: &[(&File, u64, usize)]) -> Vec<Result<Data>> {
    let mut slots: Vec<Slot<'_>> =
        reads.iter().map(|(file, offset, length)| Slot::start(file, *offset, *length)).collect();
    let (mut first, mut begun, mut late) = (0, false, false);
    poll_fn(|context| {
        if !std::mem::replace(&mut begun, true) {
            // Asked for already but for these.
            for slot in slots.iter_mut().filter(|slot| matches!(slot, Slot::Later(_))) {
                slot.poll(context);
            }
        }
        while let Some(slot) = slots.get_mut(first) {
            if !slot.poll(context) {
                if slot.is_hedged() && !std::mem::replace(&mut late, true) {
                    for slot in &mut slots[first + 1..] {
                        slot.poll(context);
                    }
                }
                return Poll::Pending;
            }
            first += 1;
        }
        Poll::Ready(())
    })
    .await;
    let result = |slot| match slot {
        Slot::Done(result) => result,
        _ => Err(ErrorCode::Internal.into()),
    };
    slots.into_iter().map(result).collect()
}

impl Inner {
    /// Tells holes that were just read from a file that somebody else has removed, whose chunks are gone, too: `NoSuchInode`. Chunks go
    /// after their inode, so a file that is still there had a hole there; from then on it is held, and nobody has to be asked again for as
    /// long as our lease lasts.
    async fn check_holes(&self, inode: &Rc<Inode>) -> Result<()> {
        let missed = inode.place.missed.replace(false);
        if !missed {
            return Ok(());
        }
        match inode.sessions.keep_it() || inode.sessions.is_gone() {
            true => self.current(inode).await,
            false => self.hold(inode).await,
        }
    }

    /// A range that lies in one cell, and below the file's length.
    #[inline]
    async fn read_cell(&self, inode: &Inode, range: Range<u64>) -> Result<Data> {
        let (entry, start) = blocks_of(inode, &range);
        let buffer = self.storage.read(&inode.place, entry, None).await?;
        Ok(Data::pooled(buffer, start, (range.end - range.start) as usize))
    }

    /// A range that lies in several cells, read side by side.
    async fn read_cells(&self, inode: &Inode, range: Range<u64>) -> Result<Data> {
        let block = BLOCK as u64;
        let whole = range.start / block * block..range.end.next_multiple_of(block);
        let few = cells(whole.clone(), inode.cell).nth(PIECES_MAX).is_none();
        if few && whole.end - whole.start <= BLOCK_MAX as u64 {
            let buffer = self.read_side_by_side(inode, whole.clone()).await?;
            let (start, len) = ((range.start - whole.start) as usize, (range.end - range.start) as usize);
            return Ok(Data::pooled(buffer, start, len));
        }
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut out = vec![0; len];
        let mut rest = out.as_mut_slice();
        let mut cells = cells(range, inode.cell);
        loop {
            let group: Vec<Range<u64>> = cells.by_ref().take(PIECES_MAX).collect();
            if group.is_empty() {
                return Ok(Data(Bytes::Owned(out)));
            }
            for data in join::all(group.into_iter().map(|range| self.read_cell(inode, range))).await {
                let data = data?;
                let (here, after) = rest.split_at_mut(data.len());
                here.copy_from_slice(&data);
                rest = after;
            }
        }
    }

    /// Whole blocks of several cells, each into its part of one buffer.
    async fn read_side_by_side(&self, inode: &Inode, whole: Range<u64>) -> Result<Buffer> {
        let len = (whole.end - whole.start) as usize;
        let mut rest = Some(self.storage.buffer(len).await?);
        let parts = cells(whole, inode.cell).map(|range| {
            let (part, behind) = rest.take()?.split((range.end - range.start) as usize);
            rest = Some(behind);
            Some((range, part))
        });
        let parts: Option<Vec<(Range<u64>, Buffer)>> = parts.collect();
        drop(rest);
        let read = async |(range, part)| {
            let (entry, _) = blocks_of(inode, &range);
            self.storage.read(&inode.place, entry, Some(part)).await
        };
        let read = join::all(parts.ok_or(ErrorCode::Internal)?.into_iter().map(read)).await;
        match Buffer::join(read.into_iter().collect::<Result<_>>()?) {
            Ok(buffer) => Ok(buffer),
            // Some of it came from a second attempt, or is a hole.
            Err(parts) => {
                let mut buffer = self.storage.buffer(len).await?;
                let mut to = buffer.get_mut().ok_or(ErrorCode::Internal)?;
                for part in parts {
                    let (here, behind) = to.split_at_mut(part.len());
                    here.copy_from_slice(&part);
                    to = behind;
                }
                Ok(buffer)
            }
        }
    }

    /// Waits until no byte of the range that was written before now is still held.
    pub async fn settle_range(self: &Rc<Self>, inode: &Rc<Inode>, range: &Range<u64>) {
        let waiting: Vec<u64> = inode.behind.borrow().waiting_cells(range).collect();
        waiting.into_iter().for_each(|cell| self.launch(inode, cell));
        let last = inode.behind.borrow().last_flight();
        while inode.behind.borrow().awaits(range, last) {
            inode.progress.next().await;
        }
    }
}

/// The whole blocks that hold bytes of one cell, and where in them these begin.
#[inline]
fn blocks_of(inode: &Inode, range: &Range<u64>) -> (ReadEntry, usize) {
    let block = BLOCK as u64;
    let chunk_size = u64::from(inode.place.layout.chunk_size);
    let start = range.start / block * block;
    let end = range.end.next_multiple_of(block);
    // Cells and chunks are whole blocks, so widening stays inside; the index fits because lengths are bounded.
    let (index, inside) = ((start / chunk_size) as u32, (start % chunk_size) as u32);
    let entry = read_entry(&inode.place, index, inside, (end - start) as u32);
    (entry, (range.start - start) as usize)
}

/// Cuts a range of a file at the boundaries of cells.
pub fn cells(range: Range<u64>, cell: u32) -> impl Iterator<Item = Range<u64>> {
    let cell = u64::from(cell);
    let mut start = range.start;
    std::iter::from_fn(move || {
        (start < range.end).then(|| {
            let end = ((start / cell + 1) * cell).min(range.end);
            std::mem::replace(&mut start, end)..end
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_cover_the_range_once() {
        assert_eq!(cells(5..20, 8).collect::<Vec<_>>(), [5..8, 8..16, 16..20]);
        assert!(cells(8..16, 8).eq(std::iter::once(8..16)));
        assert_eq!(cells(8..8, 8).count(), 0);
    }
}
