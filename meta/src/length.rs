//! How long a file is: truncation in three steps, and what writers report.
//!
//! # Truncation
//! 1. Commit the new length as `trim_to`, and list the inode as trimming. Everybody still sees the old length and
//!    epoch, so nobody can write under the new epoch into what is about to be cut.
//! 2. Cut the chunks under `epoch + 1`. From then on they refuse writes of the old epoch.
//! 3. Commit length = `trim_to`, `epoch + 2`, and take the inode off the list.
//!
//! The truncation happens, for everybody else, at step 3; its caller is answered after it. Whoever dies in between has
//! promised nothing yet, and leaves a note: the next one who wants to change the length finishes it first, and the
//! background does so otherwise. Each step may be done twice, by several at once and late: writes are made under odd
//! epochs and cuts under even ones, so a cut that arrives after step 3 finds the chunks written since to be newer and is
//! refused there; and step 3 checks that it is still the same truncation.
//!
//! An inode that nobody has open for writing, and that isn't made shorter, has nothing to cut: then one commit does it all.
//!
//! # What writers report
//! A client says how far it wrote, and under which epoch. Under the present epoch it is believed: length =
//! max(length, reported). Under an older one it may have been cut or not, depending on which came first at each
//! chunk; then the chains are asked what they hold, which is right whatever happened.

use crate::inode::{Inode, Stat};
use crate::key::{Key, table};
use crate::namespace::{Namespace, Values};
use crate::once::{Attempt, Outcome};
use crate::outside::Outside;
use crate::session::Session;
use corefs_kv::{Direction, Isolation, KvEngine, Transaction, retry};
use corefs_wire::control::meta::{CallerT, InlineT};
use corefs_wire::layout::Layout;
use corefs_wire::{Error, ErrorCode, InodeId, Result};
use std::cell::Cell;

/// What [`Namespace::resize`] did to the transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resized {
    /// The inode has its new length.
    Done,
    /// Step 1 is in the transaction; 2 and 3 have to follow its commit.
    Trim,
    /// Another truncation has to be finished first.
    Blocked,
}

/// What a client says about its writes in a session.
pub(crate) struct Report<'a> {
    pub op: u16,
    pub caller: &'a CallerT,
    pub inode: InodeId,
    pub session: u64,
    /// The end of the last byte written, 0: nothing was.
    pub length: u64,
    /// The truncate epoch of those writes, 0: the session's.
    pub epoch: u32,
    /// When they were made (ns), 0: leave the time alone.
    pub mtime: i64,
    /// Bytes to write now.
    pub inline: Option<&'a InlineT>,
    /// Bytes that are kept with the inode go to chunks.
    pub move_out: bool,
}

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// Sets the length in `inode`, which was read serializably and is stored by the caller.
    pub(crate) async fn resize(
        &self,
        txn: &mut E::Txn,
        id: InodeId,
        inode: &mut Inode,
        length: u64,
        now: i64,
    ) -> Result<Resized> {
        check_length(inode.file_layout()?, length)?;
        cutting_epoch(inode)?;
        if inode.trim_to.is_some() {
            return Ok(Resized::Blocked);
        }
        (inode.mtime, inode.ctime) = (now, now);
        if inode.inline {
            self.resize_inline(txn, id, inode, length).await?;
            return Ok(Resized::Done);
        }
        if length >= inode.size && !self.has_writers(txn, id).await? {
            inode.size = length;
            return Ok(Resized::Done);
        }
        inode.trim_to = Some(length);
        txn.set(&self.keys.trimming(id), &[]);
        Ok(Resized::Trim)
    }

    /// Whether anybody may have written what the inode's length doesn't say yet.
    pub(crate) async fn has_writers(&self, txn: &mut E::Txn, id: InodeId) -> Result<bool> {
        let sessions = txn.range_all(&self.keys.sessions(id), usize::MAX, Isolation::Serializable).await?;
        for (_, value) in sessions {
            if Session::decode(&value)?.write {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Steps 2 and 3 of the truncation that `id` is in, if it is in one; or of moving its bytes out, which is much the same.
    pub async fn finish_trim(&self, id: InodeId) -> Result<()> {
        let _alone = self.trimming.enter(id).await;
        let found = self
            .reading(async |txn: &mut E::Txn| {
                let value = txn.get(&self.keys.inode(id), Isolation::Snapshot).await?;
                let Some(inode) = value.as_deref().map(Inode::decode).transpose()? else { return Ok(None) };
                let Some(length) = inode.trim_to else { return Ok(None) };
                let bytes = match inode.inline {
                    true => Some(self.inline(txn, id, Isolation::Snapshot).await?),
                    false => None,
                };
                Ok(Some((inode, length, bytes)))
            })
            .await?;
        let Some((inode, length, bytes)) = found else { return Ok(()) };
        let (epoch, cutting) = (inode.epoch, cutting_epoch(&inode)?);
        let layout = inode.file_layout()?;
        match bytes {
            Some(bytes) => self.outside.write_first_chunk(id, layout, bytes.bytes(), cutting).await?,
            None => self.outside.truncate_chunks(id, layout, length, cutting).await?,
        }
        retry::run_repeatable(&self.kv, async |txn: &mut E::Txn| {
            let value = txn.get(&self.keys.inode(id), Isolation::Serializable).await?;
            let Some(mut inode) = value.as_deref().map(Inode::decode).transpose()? else { return Ok(()) };
            if inode.trim_to != Some(length) || inode.epoch != epoch {
                // Somebody else finished it; there may even be another one by now.
                return Ok(());
            }
            if inode.inline {
                txn.clear(&self.keys.inline(id));
            }
            finish(&mut inode);
            self.put(txn, id, &inode);
            txn.clear(&self.keys.trimming(id));
            Ok(())
        })
        .await
    }

    /// Finishes the truncations that nobody came back for. Returns how many were listed, and the first error: one
    /// that fails doesn't keep the others waiting.
    pub async fn finish_trims(&self) -> (usize, Result<()>) {
        let mut rest = self.keys.table(table::TRIMMING);
        let (mut listed, mut outcome) = (0, Ok(()));
        loop {
            let page = self
                .reading(async |txn: &mut E::Txn| {
                    txn.range(&rest, 256, Direction::Forward, Isolation::Snapshot).await
                })
                .await;
            let page = match page {
                Ok(page) => page,
                Err(error) => return (listed, outcome.and(Err(error))),
            };
            for (key, _) in &page.pairs {
                listed += 1;
                if let Ok(Key::Trimming(id)) = self.keys.parse(key) {
                    outcome = outcome.and(self.finish_trim(id).await);
                }
            }
            match page.pairs.last() {
                Some((last, _)) if page.more => rest = rest.after(last, Direction::Forward),
                _ => return (listed, outcome),
            }
        }
    }

    /// Takes in what a client reports, and lets `end` do what else belongs into the same transaction; it says whether
    /// that was anything.
    pub(crate) async fn report(
        &self,
        report: &Report<'_>,
        end: impl AsyncFn(&mut E::Txn, &mut Inode, i64) -> Result<bool>,
    ) -> Result<Outcome> {
        // What the chains hold, and under which epoch they were asked.
        let held: Cell<Option<(u32, u64)>> = Cell::new(None);
        let keys = [self.keys.inode(report.inode), self.keys.session(report.inode, report.session)];
        let body = async |txn: &mut E::Txn, mut values: Values| {
            let mut inode = values.expect_inode()?;
            let session = values.session()?.filter(|session| session.client.0 == report.caller.client);
            let session = session.ok_or_else(|| no_session(report))?;
            let before = inode.clone();
            let now = self.outside.now();
            if inode.trim_to.is_some() && (report.inline.is_some() || report.move_out) {
                return Ok(Attempt::Trimming(report.inode));
            }
            if let Some(piece) = report.inline {
                self.write_inline(txn, report, piece, &session, &mut inode).await?;
            }
            if session.write && report.length > 0 {
                match reported_length(report, &session, &inode, held.get())? {
                    Reported::Length(length) => inode.size = inode.size.max(length),
                    Reported::Trimming => return Ok(Attempt::Trimming(report.inode)),
                    Reported::AskLength => return Ok(Attempt::AskLength),
                }
            }
            // The latest writer's time wins, and any write's time over one in the future.
            let newer = report.mtime > inode.mtime || inode.mtime > now;
            if session.write && report.mtime != 0 && newer {
                inode.mtime = report.mtime;
            }
            let ended = end(txn, &mut inode, now).await?;
            // Bytes that are others are a change, too.
            let changed = inode != before || report.inline.is_some();
            if changed {
                // A client may choose the time that it has shown since its change; others may have made later changes.
                let chosen = inode.ctime != before.ctime;
                inode.ctime = if chosen { inode.ctime.max(before.ctime) } else { now };
            }
            let moves = report.move_out && session.write && inode.inline;
            let trim = moves && self.begin_move_out(txn, report.inode, &mut inode).await?;
            let changed = changed || moves;
            if changed {
                self.put(txn, report.inode, &inode);
            }
            if moves {
                // As it is when that is done.
                finish(&mut inode);
            }
            let outcome = Outcome { trim, ..Outcome::of(Stat::new(report.inode, inode)) };
            Ok(if changed || ended { Attempt::Changed(outcome) } else { Attempt::Unchanged(outcome) })
        };
        loop {
            let attempt = self.attempt(report.op, report.caller, &keys, &body).await;
            match attempt.map_err(|error| ended(error, || no_session(report)))? {
                Attempt::Changed(outcome) | Attempt::Unchanged(outcome) => {
                    if outcome.trim {
                        self.finish_trim(report.inode).await?;
                    }
                    return Ok(outcome);
                }
                Attempt::Trimming(inode) => self.finish_trim(inode).await?,
                Attempt::AskLength => held.set(self.ask_length(report.inode).await?),
            }
        }
    }

    /// What the chains hold of a file, and the epoch in which they were asked; `None` when it is gone.
    pub(crate) async fn ask_length(&self, id: InodeId) -> Result<Option<(u32, u64)>> {
        let inode = self
            .reading(async |txn: &mut E::Txn| match self.inode(txn, id, Isolation::Snapshot).await {
                Ok(inode) => Ok(Some(inode)),
                Err(error) if error.code == ErrorCode::NoSuchInode => Ok(None),
                Err(error) => Err(error),
            })
            .await?;
        let Some(inode) = inode else { return Ok(None) };
        let layout = inode.file_layout()?;
        let length = match inode.has_no_chunks() {
            true => 0,
            false => self.outside.inode_length(id, layout).await?.min(layout.size_max()),
        };
        Ok(Some((inode.epoch, length)))
    }
}

/// What a report makes of the inode's length.
enum Reported {
    Length(u64),
    Trimming,
    AskLength,
}

fn reported_length(
    report: &Report<'_>,
    session: &Session,
    inode: &Inode,
    held: Option<(u32, u64)>,
) -> Result<Reported> {
    check_length(inode.file_layout()?, report.length)?;
    if inode.trim_to.is_some() {
        return Ok(Reported::Trimming);
    }
    let epoch = if report.epoch == 0 { session.epoch } else { report.epoch };
    Ok(match held {
        _ if epoch == inode.epoch => Reported::Length(report.length),
        _ if epoch > inode.epoch => {
            let what = "an epoch that the file hasn't reached";
            return Err(Error::mismatch(ErrorCode::InvalidArgument, inode.epoch.into(), epoch.into(), what));
        }
        // Whatever it wrote lies within the length that is known.
        _ if report.length <= inode.size => Reported::Length(report.length),
        Some((asked, length)) if asked == inode.epoch => Reported::Length(length),
        _ => Reported::AskLength,
    })
}

/// Sessions end with their client's lease: who hears of that can begin another.
pub(crate) fn ended(error: Error, no_session: impl FnOnce() -> Error) -> Error {
    if error.code == ErrorCode::LeaseExpired { no_session() } else { error }
}

fn no_session(report: &Report<'_>) -> Error {
    let what = format!("{} has no session {:x} of this client", report.inode, report.session);
    Error::new(ErrorCode::NoSuchSession, what)
}

/// `FileTooLarge` for a length that the layout can't hold.
pub(crate) fn check_length(layout: &Layout, length: u64) -> Result<()> {
    if length <= layout.size_max() {
        return Ok(());
    }
    Err(Error::mismatch(ErrorCode::FileTooLarge, layout.size_max(), length, "the file would be too large"))
}

/// The epoch under which chunks are cut; the last ones are kept for removal.
pub(crate) fn cutting_epoch(inode: &Inode) -> Result<u32> {
    let used_up = || Error::new(ErrorCode::FileTooLarge, "the file was truncated 2^31 times");
    inode.epoch.checked_add(3).map(|_| inode.epoch + 1).ok_or_else(used_up)
}

/// Step 3, or what an inode will be like after it. The epoch was checked when the truncation began.
pub(crate) fn finish(inode: &mut Inode) {
    if let Some(length) = inode.trim_to.take() {
        inode.size = length;
        inode.epoch += 2;
        inode.inline = false;
    }
}
