//! Files that keep their bytes with their inodes: reads and writes of them are calls to the metadata servers.
//!
//! Whether a file does is told with its attributes, and can end at any time, by whoever makes it longer. Then the servers refuse what is
//! written to it so (`MovedOut`), and it is written to chunks; nothing is lost or done twice, because its truncate epoch rises, too.

use super::File;
use super::sync::synced;
use crate::Credentials;
use crate::behind::Extent;
use crate::client::Inner;
use crate::inode::{Inode, Unsynced};
use crate::meta::{Piece, Written};
use corefs_net::Buffer;
use corefs_wire::limits::INLINE_MAX;
use corefs_wire::{Error, ErrorCode, Result};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Times that one call finds its session forgotten before it gives up.
const LAPSES_MAX: usize = 3;
/// How long bytes that came with an open are read from.
const AHEAD_MAX: Duration = Duration::from_secs(1);

/// Bytes that came with an open: from the first on, zeros behind them.
pub(crate) struct Ahead {
    bytes: Vec<u8>,
    came: Instant,
    /// Of the inode, then.
    edition: u64,
}

/// What waited behind a file and goes with the end of a session: a flight, and its bytes.
pub(crate) type Carried = (u64, Extent<Buffer>);

impl File {
    /// Keeps what came with the open. Nothing was done to the file here meanwhile.
    pub(crate) fn read_ahead(&self, bytes: Vec<u8>) {
        let edition = self.inode.edition.get();
        self.ahead.replace(Some(Ahead { bytes, came: Instant::now(), edition }));
    }

    /// The bytes of a range below the file's length, if they came with the open and are still right.
    pub(super) fn known_ahead(&self, range: &Range<u64>) -> Option<Vec<u8>> {
        let ahead = self.ahead.borrow();
        let ahead = ahead.as_ref()?;
        let fresh = ahead.edition == self.inode.edition.get() && ahead.came.elapsed() < AHEAD_MAX;
        fresh.then(|| piece_of(&ahead.bytes, range))
    }

    /// As [`read_at`](Self::read_at), of bytes that nothing waits of here; `None` if they have moved out.
    pub(super) async fn read_inline(&self, range: Range<u64>) -> Result<Option<Vec<u8>>> {
        let (attr, bytes) = self.client.0.meta.look(&Credentials::root(), self.inode.id()).await?;
        self.inode.absorb(&attr);
        let end = range.end.min(self.inode.length.get()).max(range.start);
        Ok(bytes.map(|bytes| piece_of(&bytes, &(range.start..end))))
    }

    /// Before bytes are written that end here: has those that are kept with the inode moved out if the file becomes too long for that.
    pub(super) async fn make_room(&self, end: u64) -> Result<()> {
        match self.inode.inline.get() && end > INLINE_MAX as u64 {
            true => self.client.0.move_out(&self.inode).await,
            false => Ok(()),
        }
    }
}

/// `range` of a file that begins with `bytes` and goes on with zeros.
fn piece_of(bytes: &[u8], range: &Range<u64>) -> Vec<u8> {
    let mut piece = vec![0; (range.end - range.start) as usize];
    let start = usize::try_from(range.start).unwrap_or(usize::MAX);
    if let Some(known) = bytes.get(start..) {
        let count = known.len().min(piece.len());
        piece[..count].copy_from_slice(&known[..count]);
    }
    piece
}

impl Inner {
    /// Writes bytes to an inode that keeps them, under this truncate epoch and no other. `StaleLayout` when it has another by now, or they
    /// are to go to chunks.
    pub(super) async fn store_inline(
        &self,
        inode: &Inode,
        epoch: u32,
        start: u64,
        bytes: &[u8],
    ) -> Result<()> {
        if start + bytes.len() as u64 > INLINE_MAX as u64 {
            self.move_out(inode).await?;
            return Err(ErrorCode::StaleLayout.into());
        }
        let unsynced = Unsynced { end: 0, ..inode.unsynced.get() };
        let piece = Some(Piece { start, bytes });
        let written = Written { mtime: unsynced.mtime, epoch, piece, ..Written::default() };
        match self.tell(inode, written, false).await {
            Ok(attr) => {
                synced(inode, &attr, unsynced);
                Ok(())
            }
            Err(error) if error.code == ErrorCode::MovedOut => {
                Err(Error::new(ErrorCode::StaleLayout, error.message))
            }
            Err(error) => Err(error),
        }
    }

    /// Has the bytes of an inode moved to chunks.
    pub(super) async fn move_out(&self, inode: &Inode) -> Result<()> {
        let unsynced = inode.unsynced.get();
        let written = Written { length: unsynced.end, epoch: inode.epoch.get(), ..Written::default() };
        let attr = self.tell(inode, written, true).await?;
        inode.absorb(&attr);
        if let Some(kind) = inode.kind.take() {
            self.guess.learn(kind, false);
        }
        match attr.marks.inline {
            true => {
                Err(Error::new(ErrorCode::Internal, "a metadata server moves no bytes out").of(inode.id()))
            }
            false => Ok(()),
        }
    }

    /// A report by any session, or by one that is begun for nothing else.
    async fn tell(&self, inode: &Inode, written: Written<'_>, move_out: bool) -> Result<crate::Attr> {
        let root = Credentials::root();
        for _ in 0..LAPSES_MAX {
            self.current(inode).await?;
            let Some(session) = inode.sessions.any() else {
                let (attr, number) = self.meta.open(&root, inode.id(), true, false).await?;
                inode.absorb(&attr);
                let outcome = self.meta.sync_length(&root, inode.id(), number, written, move_out).await;
                self.end_later(inode.id(), number);
                return outcome;
            };
            match self.meta.sync_length(&root, inode.id(), session.number, written, move_out).await {
                // Its lease had run out, or its handle ended it meanwhile.
                Err(error) if error.code == ErrorCode::NoSuchSession => inode.sessions.lapsed(session.name),
                outcome => return outcome,
            }
        }
        Err(ErrorCode::NoSuchSession.into())
    }

    /// All that waits of an inode that keeps its bytes, if it can go with the end of a session. It counts as on its way.
    pub(super) fn carry(&self, inode: &Inode) -> Option<Carried> {
        let mut behind = inode.behind.borrow_mut();
        let fits = inode.inline.get() && behind.end() <= INLINE_MAX as u64;
        match fits && behind.flying() == 0 && !inode.appends.pending() {
            true => behind.launch(0),
            false => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_follow_what_is_kept() {
        assert_eq!(piece_of(b"abc", &(1..5)), b"bc\0\0");
        assert_eq!(piece_of(b"abc", &(3..4)), b"\0");
        assert_eq!(piece_of(b"abc", &(u64::MAX - 1..u64::MAX)), b"\0");
        assert_eq!(piece_of(b"abc", &(0..0)), b"");
    }
}
