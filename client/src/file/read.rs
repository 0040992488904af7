//! Reads of files: clamped to the length, cut into cells, widened to whole blocks, put together.

use super::File;
use crate::client::Inner;
use crate::inode::Inode;
use crate::join;
use corefs_net::Buffer;
use corefs_net::buffer::BLOCK_MAX;
use corefs_wire::Result;
use corefs_wire::limits::BLOCK;
use std::ops::Range;
use std::rc::Rc;

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

impl File {
    /// At most `length` bytes at `offset`: fewer only at the end of the file. Holes are zeros.
    pub async fn read_at(&self, offset: u64, length: usize) -> Result<Data> {
        let inode = &*self.inode;
        let end = offset.saturating_add(length as u64).min(inode.length.get());
        if offset >= end {
            return Ok(Data::default());
        }
        let range = offset..end;
        if inode.behind.borrow().overlaps(&range) {
            Box::pin(self.client.0.settle_range(&self.inode, &range)).await;
        }
        let cell = u64::from(inode.cell);
        if offset / cell == (end - 1) / cell {
            self.client.0.read_cell(inode, range).await
        } else {
            Box::pin(self.client.0.read_cells(inode, range)).await
        }
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

/// Many reads at once, of any files of one client: each `(file, offset, length)` with its own result, in order.
pub async fn read_batch(reads: &[(&File, u64, usize)]) -> Vec<Result<Data>> {
    join::started(reads.iter().map(|(file, offset, length)| file.read_at(*offset, *length))).await
}

impl Inner {
    /// A range that lies in one cell, and below the file's length.
    #[inline]
    async fn read_cell(&self, inode: &Inode, range: Range<u64>) -> Result<Data> {
        let block = BLOCK as u64;
        let chunk_size = u64::from(inode.place.layout.chunk_size);
        let start = range.start / block * block;
        let end = range.end.next_multiple_of(block);
        // Cells and chunks are whole blocks, so widening stays inside; the index fits because lengths are bounded.
        let (index, inside) = ((start / chunk_size) as u32, (start % chunk_size) as u32);
        let buffer = self.storage.read(&inode.place, index, inside, (end - start) as u32).await?;
        Ok(Data::pooled(buffer, (range.start - start) as usize, (range.end - range.start) as usize))
    }

    /// A range that lies in several cells, read side by side and copied together.
    async fn read_cells(&self, inode: &Inode, range: Range<u64>) -> Result<Data> {
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut out = match len <= BLOCK_MAX {
            true => Bytes::Pooled { buffer: self.storage.buffer(len).await?, start: 0, len },
            false => Bytes::Owned(vec![0; len]),
        };
        let bytes = match &mut out {
            Bytes::Pooled { buffer, .. } => buffer.get_mut().unwrap_or_default(),
            Bytes::Owned(bytes) => bytes.as_mut_slice(),
            Bytes::None => &mut [],
        };
        let mut cells = cells(range, inode.cell);
        let mut rest = bytes;
        loop {
            let group: Vec<Range<u64>> = cells.by_ref().take(PIECES_MAX).collect();
            if group.is_empty() {
                return Ok(Data(out));
            }
            for data in join::all(group.into_iter().map(|range| self.read_cell(inode, range))).await {
                let data = data?;
                let (here, after) = rest.split_at_mut(data.len());
                here.copy_from_slice(&data);
                rest = after;
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
