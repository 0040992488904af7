//! Writes: held behind the caller until a cell is full or somebody asks for them, or direct.

use super::File;
use super::read::cells;
use crate::Credentials;
use crate::behind::{Extent, Fit};
use crate::client::{Inner, Orphan};
use crate::inode::Inode;
use crate::join;
use crate::sessions::gone;
use crate::storage::Update;
use corefs_net::Buffer;
use corefs_wire::data::UpdateKind;
use corefs_wire::{Error, ErrorCode, Result};
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// Times that one write learns a new truncate epoch before it gives up.
pub(super) const EPOCHS_MAX: usize = 16;
/// Pieces of one direct write that are under way at once.
const PIECES_MAX: usize = 16;

/// A write is under way until it is dropped.
pub(super) struct Writing<'a> {
    file: &'a File,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let writing = &self.file.writing;
        writing.set(writing.get() - 1);
        let (count, end) = self.file.inode.under_way.get();
        self.file.inode.under_way.set(if count == 1 { (0, 0) } else { (count - 1, end) });
    }
}

impl File {
    /// Writes all of `data`. Buffered writes return before they are durable and report errors later, at the next
    /// write, sync or close.
    pub async fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let range = self.check_write(offset, data.len())?;
        if range.is_empty() {
            return Ok(());
        }
        let (client, inode) = (&self.client.0, &self.inode);
        if inode.appends.pending() {
            client.settle_appends(inode).await;
        }
        let _writing = self.begin_write(range.end).await?;
        self.make_room(range.end).await?;
        // What is written directly is part of the file when it is stored: nobody reads zeros there before.
        if self.direct {
            inode.touched()
        } else {
            inode.wrote(range.end)
        }
        if !self.direct {
            return client.write_behind(inode, range, data).await;
        }
        let piece = async |range: Range<u64>, at: usize| {
            let len = (range.end - range.start) as usize;
            let mut buffer = client.storage.buffer(len).await?;
            buffer.get_mut().ok_or(ErrorCode::Internal)?.copy_from_slice(&data[at..at + len]);
            client.store(inode, range.start, buffer, 0..len).await
        };
        client.write_direct(inode, range, piece).await
    }

    /// Writes all of a buffer of the client's pool, directly and without copying it.
    pub async fn write_buffer(&self, offset: u64, data: Buffer) -> Result<()> {
        let range = self.check_write(offset, data.len())?;
        if range.is_empty() {
            return Ok(());
        }
        let (client, inode) = (&self.client.0, &self.inode);
        if inode.appends.pending() {
            client.settle_appends(inode).await;
        }
        let _writing = self.begin_write(range.end).await?;
        self.make_room(range.end).await?;
        inode.touched();
        let piece = async |range: Range<u64>, at: usize| {
            let len = (range.end - range.start) as usize;
            client.store(inode, range.start, data.clone(), at..at + len).await
        };
        client.write_direct(inode, range, piece).await
    }

    /// Makes sure that there is a session that will report what is written: a [`finish`](Self::finish) may have ended it.
    /// The session lasts at least as long as what is returned. Appends that come meanwhile land behind `end`.
    pub(super) async fn begin_write(&self, end: u64) -> Result<Writing<'_>> {
        self.writing.set(self.writing.get() + 1);
        let (count, most) = self.inode.under_way.get();
        self.inode.under_way.set((count + 1, most.max(end)));
        let writing = Writing { file: self };
        if self.session.get() == 0 {
            // Whether this handle may write was asked when it was opened.
            let root = Credentials::root();
            let of = self.client.0.client();
            let (attr, session) = self.client.0.meta.open(&root, self.inode.id(), true, false).await?;
            self.inode.absorb(&attr);
            self.inode.sessions.begun(session, of);
            self.revived.set(true);
            if self.session.get() == 0 {
                self.session.set(session);
            } else {
                // Another write was as fast: one of the two is enough.
                self.inode.handles.set(self.inode.handles.get() + 1);
                let orphan = Orphan { inode: Rc::clone(&self.inode), session, who: root };
                self.client.0.orphans.borrow_mut().push(orphan);
            }
        }
        Ok(writing)
    }

    pub(super) fn check_write(&self, offset: u64, len: usize) -> Result<Range<u64>> {
        self.client.0.ground.check_open()?;
        if !self.writable {
            return Err(Error::new(ErrorCode::NotPermitted, "the file was opened for reading"));
        }
        self.check_failures()?;
        if self.inode.sessions.is_gone() {
            return Err(gone(self.inode.id()));
        }
        let most = self.inode.place.layout.size_max();
        match offset.checked_add(len as u64) {
            Some(end) if end <= most => Ok(offset..end),
            _ => Err(Error::mismatch(
                ErrorCode::FileTooLarge,
                most,
                offset,
                "the write ends past the largest file",
            )),
        }
    }
}

impl Inner {
    async fn write_direct(
        self: &Rc<Self>,
        inode: &Rc<Inode>,
        range: Range<u64>,
        piece: impl AsyncFn(Range<u64>, usize) -> Result<u32>,
    ) -> Result<()> {
        if inode.behind.borrow().overlaps(&range) {
            self.settle_range(inode, &range).await;
        }
        let start = range.start;
        if !range.is_empty() && start / u64::from(inode.cell) == (range.end - 1) / u64::from(inode.cell) {
            // A single piece has arrived or it hasn't: nothing to note meanwhile, and no memory to ask for.
            let end = range.end;
            return match piece(range, 0).await {
                Ok(epoch) => {
                    inode.stored(end, epoch);
                    Ok(())
                }
                Err(error) => {
                    inode.recede();
                    Err(error)
                }
            };
        }
        let mut cells = cells(range, inode.cell);
        loop {
            let group: Vec<Range<u64>> = cells.by_ref().take(PIECES_MAX).collect();
            if group.is_empty() {
                return Ok(());
            }
            // Where each piece that is stored ends, and under which epoch. The file ends behind the last of those before which nothing is missing.
            let landed = RefCell::new(vec![None; group.len()]);
            let next = Cell::new(0);
            let written = join::all(group.into_iter().enumerate().map(async |(index, range)| {
                let end = range.end;
                let epoch = piece(range.clone(), (range.start - start) as usize).await?;
                landed.borrow_mut()[index] = Some((end, epoch));
                while let Some((end, epoch)) = landed.borrow().get(next.get()).copied().flatten() {
                    inode.stored(end, epoch);
                    next.set(next.get() + 1);
                }
                Ok(())
            }));
            if let Some(error) = written.await.into_iter().find_map(Result::err) {
                // What did arrive stays, with a gap before it: nothing else may be made longer over it.
                landed.into_inner().into_iter().flatten().for_each(|(end, epoch)| inode.stored(end, epoch));
                inode.recede();
                return Err(error);
            }
        }
    }

    /// Stores bytes of one cell, under the newest truncate epoch; which one that was. The inode has to be told that they are
    /// [`stored`](Inode::stored).
    async fn store(&self, inode: &Inode, start: u64, buffer: Buffer, bytes: Range<usize>) -> Result<u32> {
        for _ in 0..EPOCHS_MAX {
            let epoch = inode.epoch.get();
            match self.store_under(inode, epoch, start, buffer.clone(), bytes.clone()).await {
                Err(error) if error.code == ErrorCode::StaleLayout => self.learn_epoch(inode, epoch).await?,
                outcome => return outcome.map(|()| epoch),
            }
        }
        let what = format!("{} was truncated again and again", inode.id());
        Err(Error::new(ErrorCode::StaleLayout, what))
    }

    /// As [`store`](Self::store), under this truncate epoch and no other: `StaleLayout` when there is a newer one. Nothing is stored
    /// without a session: the file may be gone, and nobody would collect these bytes.
    pub(super) async fn store_under(
        &self,
        inode: &Inode,
        epoch: u32,
        start: u64,
        buffer: Buffer,
        bytes: Range<usize>,
    ) -> Result<()> {
        if epoch != inode.epoch.get() {
            // Whether bytes go to chunks is a matter of the epoch, too: a chunk that isn't there would take them under any.
            return Err(ErrorCode::StaleLayout.into());
        }
        if inode.inline.get() {
            return self.store_inline(inode, epoch, start, &buffer[bytes]).await;
        }
        self.current(inode).await?;
        let chunk_size = u64::from(inode.place.layout.chunk_size);
        let update = Update {
            index: (start / chunk_size) as u32,
            kind: UpdateKind::Write,
            epoch,
            offset: (start % chunk_size) as u32,
            length: bytes.len() as u32,
        };
        self.storage.update(&inode.place, update, Some((buffer, bytes))).await.map(drop)
    }

    /// Somebody else truncated the file: these bytes come after that.
    pub(super) async fn learn_epoch(&self, inode: &Inode, known: u32) -> Result<()> {
        if inode.epoch.get() != known {
            return Ok(());
        }
        inode.absorb(&self.meta.get_attr(&Credentials::root(), inode.id()).await?);
        if inode.epoch.get() == known {
            // The chunks know before the metadata does: only for a moment.
            self.ground.node.sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn write_behind(self: &Rc<Self>, inode: &Rc<Inode>, range: Range<u64>, data: &[u8]) -> Result<()> {
        let start = range.start;
        for cell in cells(range, inode.cell) {
            self.admit(inode).await?;
            let at = (cell.start - start) as usize;
            let bytes = &data[at..at + (cell.end - cell.start) as usize];
            self.take(inode, cell.clone(), bytes).await?;
            if inode.behind.borrow().is_full(cell.start) {
                self.launch(inode, cell.start / u64::from(inode.cell));
            }
        }
        Ok(())
    }

    /// Waits until more bytes may be held, for this file and altogether.
    pub(super) async fn admit(self: &Rc<Self>, inode: &Rc<Inode>) -> Result<()> {
        let most = self.ground.pool.capacity() / 2;
        loop {
            self.ground.check_open()?;
            if self.held.get() >= most {
                for inode in self.all_live() {
                    self.launch_all(&inode);
                    self.launch_appends(&inode);
                }
                self.relief.next().await;
            } else if inode.behind.borrow().bytes() >= self.write_behind {
                if inode.behind.borrow().flying() == 0 {
                    self.launch_all(inode);
                }
                inode.progress.next().await;
            } else {
                return Ok(());
            }
        }
    }

    /// Takes bytes of one cell.
    async fn take(self: &Rc<Self>, inode: &Rc<Inode>, range: Range<u64>, bytes: &[u8]) -> Result<()> {
        loop {
            let fit = inode.behind.borrow().fit(&range);
            let wanted = match fit {
                Fit::Into(at) => {
                    let mut behind = inode.behind.borrow_mut();
                    let buffer = behind.extend(&range).and_then(|extent| extent.buffer.get_mut());
                    buffer.ok_or(ErrorCode::Internal)?[at..at + bytes.len()].copy_from_slice(bytes);
                    return Ok(());
                }
                Fit::Apart => {
                    self.launch(inode, range.start / u64::from(inode.cell));
                    continue;
                }
                Fit::New => range.clone(),
                Fit::Grow(ref all) => all.start..all.start + 4 * (all.end - all.start),
            };
            let (skip, capacity) = room(&wanted, &range, inode.cell);
            let buffer = self.storage.buffer(capacity).await?;
            // Waiting for the buffer may have changed everything.
            if inode.behind.borrow().fit(&range) == fit {
                self.resize(inode, &range, skip, buffer);
            }
        }
    }

    /// Gives a cell's extent a new buffer, or begins one of `range`.
    fn resize(&self, inode: &Inode, range: &Range<u64>, skip: usize, mut buffer: Buffer) {
        let mut behind = inode.behind.borrow_mut();
        let before = behind.bytes();
        let capacity = buffer.len();
        let cell = range.start / u64::from(inode.cell);
        let extent = match behind.remove(cell) {
            None => {
                let len = (range.end - range.start) as usize;
                Extent { start: range.start, len, skip, buffer, capacity }
            }
            Some(old) => {
                // `skip` is the place of the first byte of both together.
                let at = skip + (old.start - range.start.min(old.start)) as usize;
                if let Some(bytes) = buffer.get_mut() {
                    bytes[at..at + old.len].copy_from_slice(&old.buffer[old.skip..old.skip + old.len]);
                }
                Extent { start: old.start, len: old.len, skip: at, buffer, capacity }
            }
        };
        behind.insert(extent, self.ground.now());
        self.held.set(self.held.get() + behind.bytes() - before);
    }

    /// Sends everything of a file that waits.
    pub fn launch_all(self: &Rc<Self>, inode: &Rc<Inode>) {
        let cells = inode.behind.borrow().cells();
        cells.into_iter().for_each(|cell| self.launch(inode, cell));
    }

    /// Sends what waits in a cell.
    pub fn launch(self: &Rc<Self>, inode: &Rc<Inode>, cell: u64) {
        let Some((number, extent)) = inode.behind.borrow_mut().launch(cell) else { return };
        let (inner, inode) = (Rc::clone(self), Rc::clone(inode));
        corefs_net::executor::spawn(async move { inner.fly(&inode, number, extent).await }).detach();
    }

    pub(super) async fn fly(&self, inode: &Inode, number: u64, extent: Extent<Buffer>) {
        while !inode.behind.borrow().may_fly(number) {
            inode.progress.next().await;
        }
        let Extent { start, len, skip, buffer, .. } = extent;
        let outcome = self.store(inode, start, buffer, skip..skip + len).await;
        if let Ok(epoch) = outcome {
            inode.stored(start + len as u64, epoch);
        }
        if let Err(error) = &outcome {
            tracing::warn!(%error, inode = %inode.id(), "bytes written behind the caller were not stored");
        }
        self.land(inode, number, outcome.err());
    }

    /// A flight has ended.
    pub(super) fn land(&self, inode: &Inode, number: u64, error: Option<Error>) {
        let mut behind = inode.behind.borrow_mut();
        let before = behind.bytes();
        behind.land(number);
        self.held.set(self.held.get() + behind.bytes() - before);
        drop(behind);
        if let Some(error) = error {
            inode.fail(error);
            inode.recede();
        }
        inode.progress.wake_all();
        self.relief.wake_all();
    }
}

/// A buffer for `wanted` in a cell: where the first byte goes, and how large it is. From a quarter of a cell on it covers
/// the whole cell, since more is likely to come.
fn room(wanted: &Range<u64>, written: &Range<u64>, cell: u32) -> (usize, usize) {
    let len = (wanted.end - wanted.start) as usize;
    let cell_start = written.start / u64::from(cell) * u64::from(cell);
    if len >= cell as usize / 4 {
        ((wanted.start - cell_start) as usize, cell as usize)
    } else {
        (0, len.next_power_of_two().max(corefs_net::buffer::BLOCK_MIN))
    }
}
