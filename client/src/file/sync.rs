//! Flush, sync, truncate, close.

use super::File;
use crate::client::{Inner, Orphan};
use crate::inode::{Inode, Unsynced};
use crate::meta::{Piece, Written};
use crate::sessions::gone;
use crate::{Attr, Changes, Credentials};
use corefs_wire::limits::INLINE_MAX;
use corefs_wire::{Class, Error, ErrorCode, Result};
use std::rc::Rc;

/// Times that one report finds its session forgotten before it gives up.
const LAPSES_MAX: usize = 3;

impl File {
    /// Waits until everything written so far is in storage; reports what went wrong.
    pub async fn flush(&self) -> Result<()> {
        self.client.0.settle(&self.inode).await;
        self.check_failures()
    }

    /// fsync: as flush, and the length and times are durable too.
    pub async fn sync(&self) -> Result<()> {
        self.flush().await?;
        self.client.0.push(&self.inode, &self.who).await
    }

    /// What close(2) of one of perhaps several descriptors asks for: as sync, so that others see what was written, and in the
    /// same step the session ends, since mostly nobody writes through this handle again. Who does begins another.
    pub async fn finish(&self) -> Result<()> {
        let (client, inode, session) = (&self.client.0, &self.inode, self.session.get());
        let shared = self.revived.get() || self.writing.get() > 0;
        if session == 0 || shared || !inode.has_news() {
            return self.sync().await;
        }
        self.session.set(0);
        let ended = client.end_written(inode, session, &self.who, 0).await;
        let failures = self.check_failures();
        if inode.sessions.has(session) {
            self.keep_session(session);
        }
        failures.and(ended)
    }

    /// A session that was to be ended, and could not be.
    fn keep_session(&self, session: u64) {
        if self.session.get() == 0 {
            return self.session.set(session);
        }
        // A write was as fast, and has begun another.
        self.inode.handles.set(self.inode.handles.get() + 1);
        let orphan = Orphan { inode: Rc::clone(&self.inode), session, who: Credentials::root() };
        self.client.0.orphans.borrow_mut().push(orphan);
    }

    /// Cuts or extends the file to `length` bytes.
    pub async fn truncate(&self, length: u64) -> Result<()> {
        let changes = Changes { size: Some(length), ..Changes::default() };
        self.client.set_attr(&self.who, self.inode.id(), changes).await.map(drop)
    }

    /// As sync, and the session ends.
    pub async fn close(self) -> Result<()> {
        self.closed.set(true);
        let outcome = close_handle(&self.client.0, &self.inode, self.session.get(), &self.who).await;
        self.check_failures().and(outcome)
    }
}

/// What closing does, for handles and for what is left of dropped ones. Ends the session even if bytes were lost; while no server can be
/// reached that goes on in the background, so that what was written isn't lost and the session not left behind.
pub async fn close_handle(
    inner: &Rc<Inner>,
    inode: &Rc<Inode>,
    session: u64,
    who: &Credentials,
) -> Result<()> {
    let outcome = match session {
        0 => Ok(()),
        session => inner.end_written(inode, session, who, 1).await,
    };
    if session != 0 && inode.sessions.has(session) {
        let orphan = Orphan { inode: Rc::clone(inode), session, who: who.clone() };
        inner.orphans.borrow_mut().push(orphan);
        return outcome;
    }
    inode.handles.set(inode.handles.get().saturating_sub(1));
    let hold = if inode.handles.get() == 0 { inode.sessions.take_hold() } else { 0 };
    inner.end_later(inode.id(), hold);
    outcome
}

/// Bytes on their way with the end of a session. If nobody waits for that any more, whether they were stored isn't known, and nobody may wait for them.
struct Aloft<'a> {
    inner: &'a Inner,
    inode: &'a Inode,
    number: u64,
}

impl Drop for Aloft<'_> {
    fn drop(&mut self) {
        let what = "nobody waited for a file's close";
        self.inner.land(self.inode, self.number, Some(Error::new(ErrorCode::Interrupted, what)));
    }
}

impl Inner {
    /// Waits until everything that was written before now is stored, or failed to be.
    pub async fn settle(self: &Rc<Self>, inode: &Rc<Inode>) {
        if inode.appends.pending() {
            self.settle_appends(inode).await;
        }
        if !inode.behind.borrow().is_empty() {
            self.settle_range(inode, &(0..u64::MAX)).await;
        }
    }

    /// Tells the metadata servers the length and times of what was stored.
    pub(crate) async fn push(&self, inode: &Inode, who: &Credentials) -> Result<()> {
        if let Some(changes) = inode.to_tell() {
            let outcome = self.meta.set_attr(who, inode.id(), changes).await;
            answered(inode, &changes, &outcome);
            inode.absorb(&outcome?);
        }
        let unsynced = inode.unsynced.get();
        if unsynced == Unsynced::default() {
            return Ok(());
        }
        let written = written(inode, unsynced);
        for _ in 0..LAPSES_MAX {
            self.current(inode).await?;
            // Whoever wrote may have ended his session, and nobody could be told.
            let Some(session) = inode.sessions.any() else {
                let attr = self.report_alone(inode, who, written, None).await?;
                synced(inode, &attr, unsynced);
                return Ok(());
            };
            match self.meta.sync_length(who, inode.id(), session.number, written, false).await {
                Err(error) if error.code == ErrorCode::NoSuchSession => inode.sessions.lapsed(session.name),
                attr => {
                    synced(inode, &attr?, unsynced);
                    return Ok(());
                }
            }
        }
        Err(ErrorCode::NoSuchSession.into())
    }

    /// Ends a session of a handle when everything written so far is stored, or with what is left of it.
    async fn end_written(
        self: &Rc<Self>,
        inode: &Rc<Inode>,
        name: u64,
        who: &Credentials,
        leaving: u32,
    ) -> Result<()> {
        if let Some((number, extent)) = self.carry(inode) {
            let bytes = &extent.buffer[extent.skip..extent.skip + extent.len];
            let piece = Piece { start: extent.start, bytes };
            let aloft = Aloft { inner: self, inode, number };
            let outcome = self.end_session_with(inode, name, who, leaving, Some(piece)).await;
            std::mem::forget(aloft);
            if outcome.is_ok() {
                self.land(inode, number, None);
                return outcome;
            }
            // Whatever it was, these bytes have another way.
            let (inner, inode) = (Rc::clone(self), Rc::clone(inode));
            corefs_net::executor::spawn(async move { inner.fly(&inode, number, extent).await }).detach();
        }
        self.settle(inode).await;
        self.end_session(inode, name, who, leaving).await
    }

    /// Ends a session of a handle, and reports what was written. `leaving`: handles that go with it.
    pub(super) async fn end_session(
        &self,
        inode: &Rc<Inode>,
        name: u64,
        who: &Credentials,
        leaving: u32,
    ) -> Result<()> {
        self.end_session_with(inode, name, who, leaving, None).await
    }

    /// The same in one step with the last bytes. When that fails, nothing has happened, or they may be written again.
    async fn end_session_with(
        &self,
        inode: &Rc<Inode>,
        name: u64,
        who: &Credentials,
        leaving: u32,
        piece: Option<Piece<'_>>,
    ) -> Result<()> {
        self.keep_for_others(inode, name, leaving).await?;
        // From here on nothing may wait for this session to end, nor append by it. What it was given a place for is reported with it.
        let Some(session) = inode.sessions.take(name) else {
            if piece.is_some() {
                return Err(ErrorCode::NoSuchSession.into());
            }
            return if inode.sessions.is_gone() { Err(gone(inode.id())) } else { Ok(()) };
        };
        self.leave_place(inode, name).await;
        let unsynced = inode.unsynced.get();
        let written = Written { piece, ..written(inode, unsynced) };
        let pending = inode.to_tell();
        // The change time that was shown here stays, so that nobody takes the close for another change.
        let shown = (who.privileged && inode.has_news()).then(|| inode.attr().ctime);
        let changes = match (pending, shown) {
            (None, None) => None,
            (pending, ctime) => Some(Changes { ctime, ..pending.unwrap_or_default() }),
        };
        self.learn_kind(inode);
        if unsynced == Unsynced::default() && changes.is_none() && piece.is_none() {
            self.end_later(inode.id(), session.number);
            return Ok(());
        }
        let mut outcome = self.meta.close(who, inode.id(), session.number, written, changes).await;
        if piece.is_some() && outcome.is_err() {
            inode.sessions.put_back(session);
            return outcome.map(drop);
        }
        let forgotten = |outcome: &Result<Attr>| {
            outcome.as_ref().is_err_and(|error| error.code == ErrorCode::NoSuchSession)
        };
        if forgotten(&outcome) {
            // Our lease had run out and somebody settled the session; what we know about the length may still be news.
            outcome = self.report_alone(inode, who, written, changes).await;
        }
        if let Some(pending) = &pending {
            answered(inode, pending, &outcome);
        }
        if let Err(error) = &outcome
            && !matches!(error.code, ErrorCode::NoSuchInode | ErrorCode::NoSuchSession)
        {
            // Whoever asks for it again ends it, and reports.
            inode.sessions.put_back(session);
        }
        synced(inode, &outcome?, unsynced);
        Ok(())
    }

    /// What has become of a file that was made here.
    fn learn_kind(&self, inode: &Inode) {
        if let Some(kind) = inode.kind.take() {
            self.guess.learn(kind, inode.length.get() <= INLINE_MAX as u64);
        }
    }

    /// Before a session ends that alone keeps a file which may have no name any more, while handles stay: those need one that does.
    async fn keep_for_others(&self, inode: &Rc<Inode>, name: u64, leaving: u32) -> Result<()> {
        let nameless = inode.sessions.is_nameless() || inode.attr.get().nlink == 0;
        if !nameless || inode.handles.get() <= leaving || !inode.sessions.keeps_it_alone(name) {
            return Ok(());
        }
        match self.hold(inode).await {
            // Our lease had run out. What there is to report will say so.
            Err(error) if error.code == ErrorCode::NoSuchInode => Ok(()),
            held => held,
        }
    }

    /// Reports by a session that is begun for nothing else.
    async fn report_alone(
        &self,
        inode: &Inode,
        who: &Credentials,
        written: Written<'_>,
        changes: Option<Changes>,
    ) -> Result<Attr> {
        let (attr, number) = self.meta.open(&Credentials::root(), inode.id(), true, false).await?;
        inode.absorb(&attr);
        let outcome = self.meta.close(who, inode.id(), number, written, changes).await;
        if outcome.is_err() {
            self.end_later(inode.id(), number);
        }
        outcome
    }
}

/// Changes that waited were sent: they wait on if nobody can say whether they were made.
fn answered(inode: &Inode, changes: &Changes, outcome: &Result<Attr>) {
    if outcome.as_ref().err().is_none_or(|error| error.class() == Class::Fatal) {
        inode.told(changes, outcome.as_ref().ok());
    }
}

fn written(inode: &Inode, unsynced: Unsynced) -> Written<'static> {
    Written { length: unsynced.end, mtime: unsynced.mtime, epoch: inode.epoch.get(), piece: None }
}

pub(super) fn synced(inode: &Inode, attr: &Attr, pushed: Unsynced) {
    inode.absorb(attr);
    inode.synced(pushed, attr);
}
