//! Appends: bytes wait here without a place, and get one together when they leave, behind everything that anybody wrote or was
//! given. So appends of many clients never meet, and a program that appends lines pays for a place once in a while.
//!
//! Until they leave, the file looks from here as if nobody else appended: length and attributes count them, and reads have them leave
//! first. One batch of a file is on its way at a time, so the appends of a client keep their order. The bytes are copied once more than
//! those of writes, because only the place says whose cell's buffer they belong into; they count among what is held behind all files.
//!
//! A session that was given a place keeps it from others until the session ends, so it may not end before the bytes are stored and in
//! what it reports. A batch that failed leaves a gap of zeros, unless storage was full: then certainly nothing arrives later, and the place
//! is given up.

use super::File;
use super::read::cells;
use crate::Credentials;
use crate::client::{Inner, Orphan};
use crate::inode::Inode;
use corefs_wire::{Error, ErrorCode, Result};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// Bytes that wait at most, before they leave without being asked to.
const BATCH_MAX: usize = 1 << 20;
/// Times that one batch asks for another place, as others truncate the file.
const PLACES_MAX: usize = 16;

/// What was appended to a file and isn't stored yet.
#[derive(Default)]
pub struct Appends {
    waiting: RefCell<Vec<u8>>,
    since: Cell<Option<Duration>>,
    believed: Cell<Believed>,
    /// Bytes, ever: those taken, and those that are stored or failed.
    taken: Cell<u64>,
    done: Cell<u64>,
    flying: Cell<bool>,
    /// The session whose place is being filled; 0: none.
    by: Cell<u64>,
    /// A session that was begun for appends alone; 0: none.
    own: Cell<u64>,
}

/// Where whoever appended took the bytes that wait to be.
#[derive(Clone, Copy, Default)]
struct Believed {
    /// The lowest offset.
    from: u64,
    /// Each began where the one before ended.
    even: bool,
}

impl Appends {
    /// Whether anything waits or is on its way.
    #[inline]
    pub fn pending(&self) -> bool {
        self.taken.get() != self.done.get()
    }

    /// Bytes that haven't asked for a place yet.
    pub fn waiting(&self) -> usize {
        self.waiting.borrow().len()
    }

    pub fn waiting_since(&self) -> Option<Duration> {
        self.since.get()
    }

    fn take(&self, believed: u64, data: &[u8], now: Duration) {
        let mut waiting = self.waiting.borrow_mut();
        let before = self.believed.get();
        self.believed.set(match waiting.len() {
            0 => Believed { from: believed, even: true },
            len => Believed {
                from: before.from.min(believed),
                even: before.even && before.from + len as u64 == believed,
            },
        });
        waiting.extend_from_slice(data);
        self.taken.set(self.taken.get() + data.len() as u64);
        self.since.set(self.since.get().or(Some(now)));
    }

    fn leave(&self) -> (Vec<u8>, Believed) {
        self.since.set(None);
        (self.waiting.take(), self.believed.get())
    }
}

impl File {
    /// Writes all of `data` at the end of the file, wherever that is: behind all that anybody wrote, and in one piece unless the file is
    /// truncated meanwhile. Buffered appends return before they have a place and report errors later, at the next write, sync or close.
    pub async fn append(&self, data: &[u8]) -> Result<()> {
        self.append_believing(self.inode.length.get(), data).await
    }

    /// As [`append`](Self::append), for a caller who has its own idea of where the file ends and keeps the bytes there in a cache: when it
    /// was wrong it hears of it (see [`Client::on_moved`](crate::Client::on_moved)).
    pub async fn append_believing(&self, believed: u64, data: &[u8]) -> Result<()> {
        let end = self.inode.length.get();
        if self.check_write(end, data.len())?.is_empty() {
            return Ok(());
        }
        let (client, inode) = (&self.client.0, &self.inode);
        let _writing = self.begin_write(0).await?;
        client.admit(inode).await?;
        while inode.appends.waiting() > 0 && inode.appends.waiting() + data.len() > BATCH_MAX {
            client.launch_appends(inode);
            inode.progress.next().await;
        }
        inode.appends.take(believed, data, client.ground.now());
        client.held.set(client.held.get() + data.len());
        inode.wrote(inode.length.get() + data.len() as u64);
        if self.direct {
            client.settle_appends(inode).await;
            return self.check_failures();
        }
        if inode.appends.waiting() >= BATCH_MAX {
            client.launch_appends(inode);
        }
        Ok(())
    }
}

impl Inner {
    /// Waits until everything that was appended before now is stored, or failed to be.
    pub async fn settle_appends(self: &Rc<Self>, inode: &Rc<Inode>) {
        let until = inode.appends.taken.get();
        while inode.appends.done.get() < until {
            self.launch_appends(inode);
            inode.progress.next().await;
        }
    }

    /// Waits until no place of this session is being filled. It must not be given another.
    pub async fn leave_place(&self, inode: &Inode, session: u64) {
        while inode.appends.by.get() == session {
            inode.progress.next().await;
        }
    }

    /// Sends what waits, unless something is on its way.
    pub fn launch_appends(self: &Rc<Self>, inode: &Rc<Inode>) {
        if inode.appends.waiting() == 0 || inode.appends.flying.replace(true) {
            return;
        }
        let (inner, inode) = (Rc::clone(self), Rc::clone(inode));
        let flight = async move {
            let (bytes, believed) = inode.appends.leave();
            let outcome = inner.put(&inode, &bytes, believed).await;
            let appends = &inode.appends;
            appends.done.set(appends.done.get() + bytes.len() as u64);
            appends.flying.set(false);
            appends.by.set(0);
            inner.held.set(inner.held.get() - bytes.len());
            let own = appends.own.take();
            if own != 0
                && let Err(error) = inner.end_session(&inode, own, &Credentials::root(), 0).await
            {
                tracing::debug!(%error, inode = %inode.id(), "ending the session of an append");
                if inode.sessions.has(own) {
                    inode.handles.set(inode.handles.get() + 1);
                    let orphan = Orphan { inode: Rc::clone(&inode), session: own, who: Credentials::root() };
                    inner.orphans.borrow_mut().push(orphan);
                }
            }
            if let Err(error) = outcome {
                tracing::warn!(%error, inode = %inode.id(), "appended bytes were not stored");
                inode.fail(error);
                inode.recede();
            }
            inode.progress.wake_all();
            inner.relief.wake_all();
        };
        corefs_net::executor::spawn(flight).detach();
    }

    /// Stores a batch in a place of its own; what a truncation kept out gets another place.
    async fn put(&self, inode: &Inode, bytes: &[u8], believed: Believed) -> Result<()> {
        let mut done = 0;
        'place: for _ in 0..PLACES_MAX {
            let rest = &bytes[done..];
            let (start, epoch) = self.place(inode, rest.len() as u64).await?;
            let end = start + rest.len() as u64;
            if !believed.even || believed.from + done as u64 != start {
                self.moved(inode, believed.from.min(start));
            }
            for range in cells(start..end, inode.cell) {
                let at = (range.start - start) as usize;
                let len = (range.end - range.start) as usize;
                let stored = async {
                    let mut buffer = self.storage.buffer(len).await?;
                    let to = buffer.get_mut().ok_or(ErrorCode::Internal)?;
                    to[..len].copy_from_slice(&rest[at..at + len]);
                    self.store_under(inode, epoch, range.start, buffer, 0..len).await
                };
                match stored.await {
                    Ok(()) => {
                        inode.stored(range.end, epoch);
                        done += len;
                    }
                    Err(error) if error.code == ErrorCode::StaleLayout => {
                        self.learn_epoch(inode, epoch).await?;
                        if inode.attr.get().size <= start {
                            // What was stored of it was cut off again.
                            done = 0;
                        }
                        continue 'place;
                    }
                    Err(error) => {
                        if error.code != ErrorCode::NoSpace {
                            inode.reaches(end, epoch);
                        }
                        return Err(error);
                    }
                }
            }
            return Ok(());
        }
        let what = format!("{} was truncated again and again", inode.id());
        Err(Error::new(ErrorCode::StaleLayout, what))
    }

    /// A place for `count` bytes, and its truncate epoch.
    async fn place(&self, inode: &Inode, count: u64) -> Result<(u64, u32)> {
        for _ in 0..PLACES_MAX {
            self.current(inode).await?;
            let session = match inode.sessions.any() {
                Some(session) => session,
                // Every handle has ended its own.
                None => {
                    let of = self.client();
                    let (attr, number) =
                        self.meta.open(&Credentials::root(), inode.id(), true, false).await?;
                    inode.absorb(&attr);
                    inode.sessions.begun(number, of);
                    inode.appends.own.set(number);
                    continue;
                }
            };
            inode.appends.by.set(session.name);
            let (at_least, epoch) = (inode.known_end(), inode.epoch.get());
            match self.meta.append(inode.id(), session.number, count, at_least, epoch).await {
                Ok((attr, None)) => {
                    inode.absorb(&attr);
                    if inode.inline.get() && inode.epoch.get() == epoch {
                        // They would be too many, or somebody else appends, too.
                        self.move_out(inode).await?;
                    }
                    // Or truncated meanwhile. The next question names the new epoch.
                }
                Ok((attr, Some(start))) => {
                    inode.absorb(&attr);
                    let end = start.checked_add(count).filter(|_| start >= at_least);
                    let Some(end) = end else {
                        let what = "a place for an append that overlaps what is there";
                        return Err(Error::mismatch(ErrorCode::BadFrame, at_least, start, what));
                    };
                    if inode.epoch.get() == epoch {
                        inode.length.set(inode.length.get().max(end + inode.appends.waiting() as u64));
                    }
                    return Ok((start, epoch));
                }
                Err(error) if error.code == ErrorCode::NoSuchSession => {
                    inode.sessions.lapsed(session.name);
                }
                Err(error) => return Err(error),
            }
        }
        let what = format!("{} was truncated again and again", inode.id());
        Err(Error::new(ErrorCode::StaleLayout, what))
    }
}
