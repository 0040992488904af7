//! Bytes of small files, kept beside their inodes: reading one asks no other server, and writing one waits for no other flush.
//!
//! A file keeps its bytes so if whoever makes it asks for that, until it is to grow beyond [`INLINE_MAX`]. One row holds them from the
//! first on, with their CRC-32C, which comes from whoever wrote them and goes to whoever reads them. What lies behind them, below the file's
//! size, is zeros. The row is read and written only together with its inode, and a write names the inode's epoch, so whatever happens to
//! the file happens before or after it. No chunk of such a file is anywhere.
//!
//! # Moving out
//! Bytes that have to go to chunks go there for good, in three steps like those of a truncation (see [`length`](crate::length)), and
//! by the same road: to the size that the file has.
//! 1. Commit that size as `trim_to`, and list the inode as trimming. From then on nobody writes the row.
//! 2. Write the bytes as the first chunk, under `epoch + 1`.
//! 3. Commit `epoch + 2`, and that the file has chunks; the row goes.
//!
//! Step 2 may be done by several at once and late, since all of them write the same: until step 3 there is nothing else, and after it a
//! chunk that was written, cut or removed under a newer epoch refuses it. A file without bytes has nothing to move: then one commit does it.

use crate::encoding::{Reader, Writer};
use crate::inode::Inode;
use crate::length::{Report, cutting_epoch};
use crate::namespace::Namespace;
use crate::outside::Outside;
use crate::session::Session;
use corefs_kv::{Isolation, KvEngine, Transaction};
use corefs_wire::checksum::crc32c;
use corefs_wire::control::meta::InlineT;
use corefs_wire::limits::INLINE_MAX;
use corefs_wire::{Error, ErrorCode, InodeId, Result};

const VERSION: u8 = 1;

/// The row: bytes from the file's first on, and their CRC-32C.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Inline {
    bytes: Vec<u8>,
    crc: u32,
}

impl Inline {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn encode(&self) -> Vec<u8> {
        Writer::new(VERSION).varint(self.crc.into()).bytes(&self.bytes).finish()
    }

    /// `Corrupt` for bytes that don't match their checksum, or that are too many.
    pub fn decode(value: &[u8]) -> Result<Self> {
        let (mut reader, _) = Reader::new("file's bytes", value, VERSION)?;
        let (crc, bytes) = (reader.varint32()?, reader.bytes()?);
        if bytes.len() > INLINE_MAX || crc32c(bytes) != crc {
            return Err(reader.corrupt());
        }
        reader.end()?;
        Ok(Self { bytes: bytes.to_vec(), crc })
    }

    pub fn to_message(&self) -> InlineT {
        let mut message = InlineT::default();
        message.bytes = self.bytes.clone();
        message.crc = self.crc;
        message
    }

    /// Takes in a piece that was [checked](check_piece).
    fn write(&mut self, piece: &InlineT) {
        let start = piece.start as usize;
        let end = start + piece.bytes.len();
        if start == 0 && end >= self.bytes.len() {
            // The checksum of whoever wrote it.
            *self = Self { bytes: piece.bytes.clone(), crc: piece.crc };
            return;
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[start..end].copy_from_slice(&piece.bytes);
        self.crc = crc32c(&self.bytes);
    }

    fn cut(&mut self, length: u64) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length < self.bytes.len() {
            self.bytes.truncate(length);
            self.crc = crc32c(&self.bytes);
        }
    }
}

/// Where a piece ends. `InvalidArgument` for one that is empty or can't be kept so, `ChecksumMismatch` for one that was altered on its way.
pub(crate) fn check_piece(piece: &InlineT) -> Result<u64> {
    let most = INLINE_MAX as u64;
    if piece.bytes.is_empty() {
        return Err(Error::new(ErrorCode::InvalidArgument, "no bytes for an inode"));
    }
    let end = piece.start.checked_add(piece.bytes.len() as u64).filter(|end| *end <= most);
    let too_far = || {
        let what = "bytes beyond what is kept with an inode";
        Error::mismatch(ErrorCode::InvalidArgument, most, piece.start, what)
    };
    let end = end.ok_or_else(too_far)?;
    let found = crc32c(&piece.bytes);
    if found != piece.crc {
        let what = "bytes for an inode were altered on their way";
        return Err(Error::mismatch(ErrorCode::ChecksumMismatch, piece.crc.into(), found.into(), what));
    }
    Ok(end)
}

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// The bytes that are kept with an inode; none of one that has no row.
    pub(crate) async fn inline(&self, txn: &mut E::Txn, id: InodeId, isolation: Isolation) -> Result<Inline> {
        let value = txn.get(&self.keys.inline(id), isolation).await?;
        let row = value.as_deref().map(Inline::decode).transpose();
        row.map(Option::unwrap_or_default).map_err(|error| error.of(id))
    }

    fn put_inline(&self, txn: &mut E::Txn, id: InodeId, row: &Inline) {
        match row.bytes.is_empty() {
            true => txn.clear(&self.keys.inline(id)),
            false => txn.set(&self.keys.inline(id), &row.encode()),
        }
    }

    /// Writes a piece of a report. `MovedOut` when the inode has another epoch, or keeps no bytes.
    pub(crate) async fn write_inline(
        &self,
        txn: &mut E::Txn,
        report: &Report<'_>,
        piece: &InlineT,
        session: &Session,
        inode: &mut Inode,
    ) -> Result<()> {
        let end = check_piece(piece)?;
        if !session.write {
            return Err(Error::new(ErrorCode::NotPermitted, "a session for reading"));
        }
        let epoch = if report.epoch == 0 { session.epoch } else { report.epoch };
        if !inode.inline || epoch != inode.epoch {
            let what = if inode.inline { "the file was truncated" } else { "the file has chunks" };
            let error = Error::mismatch(ErrorCode::MovedOut, inode.epoch.into(), epoch.into(), what);
            return Err(error.of(report.inode));
        }
        // What nothing is left of needn't be read.
        let mut row = match piece.start == 0 && end >= inode.size || inode.size == 0 {
            true => Inline::default(),
            false => self.inline(txn, report.inode, Isolation::Serializable).await?,
        };
        row.write(piece);
        self.put_inline(txn, report.inode, &row);
        inode.size = inode.size.max(end);
        Ok(())
    }

    /// Gives an inode that keeps its bytes another length. What was written under the old epoch comes before it.
    pub(crate) async fn resize_inline(
        &self,
        txn: &mut E::Txn,
        id: InodeId,
        inode: &mut Inode,
        length: u64,
    ) -> Result<()> {
        if length < inode.size {
            let mut row = match length {
                0 => Inline::default(),
                _ => self.inline(txn, id, Isolation::Serializable).await?,
            };
            row.cut(length);
            self.put_inline(txn, id, &row);
        }
        // Whoever writes may have a length to report that nobody knows of yet.
        if length < inode.size || self.has_writers(txn, id).await? {
            inode.epoch = cutting_epoch(inode)? + 1;
        }
        inode.size = length;
        Ok(())
    }

    /// Begins to move the bytes out, and says whether steps 2 and 3 have to follow.
    pub(crate) async fn begin_move_out(
        &self,
        txn: &mut E::Txn,
        id: InodeId,
        inode: &mut Inode,
    ) -> Result<bool> {
        cutting_epoch(inode)?;
        let bytes = match inode.size {
            0 => Inline::default(),
            _ => self.inline(txn, id, Isolation::Serializable).await?,
        };
        inode.trim_to = Some(inode.size);
        if bytes.bytes.is_empty() {
            crate::length::finish(inode);
            return Ok(false);
        }
        txn.set(&self.keys.trimming(id), &[]);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn piece(start: u64, bytes: &[u8]) -> InlineT {
        let mut piece = InlineT::default();
        (piece.start, piece.bytes, piece.crc) = (start, bytes.to_vec(), crc32c(bytes));
        piece
    }

    #[test]
    fn rows_are_golden_and_damage_is_seen() {
        let mut row = Inline::default();
        row.write(&piece(0, b"123456789"));
        // The check value of CRC-32C.
        assert_eq!(row.crc, 0xE306_9283);
        let value = row.encode();
        assert_eq!(value, b"\x01\x83\xA5\x9A\x98\x0E\x09123456789");
        assert_eq!(Inline::decode(&value).as_ref(), Ok(&row));
        for at in 0..value.len() {
            let mut damaged = value.clone();
            damaged[at] ^= 0x10;
            assert!(Inline::decode(&damaged).is_err(), "byte {at}");
            assert!(Inline::decode(&value[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn pieces_are_checked() {
        assert_eq!(check_piece(&piece(16_380, b"abcd")), Ok(16_384));
        assert_eq!(check_piece(&piece(16_381, b"abcd")).unwrap_err().code, ErrorCode::InvalidArgument);
        assert_eq!(check_piece(&piece(9, b"")).unwrap_err().code, ErrorCode::InvalidArgument);
        assert_eq!(check_piece(&piece(u64::MAX, b"abcd")).unwrap_err().code, ErrorCode::InvalidArgument);
        let mut altered = piece(0, b"abcd");
        altered.bytes[3] = b'e';
        assert_eq!(check_piece(&altered).unwrap_err().code, ErrorCode::ChecksumMismatch);
    }

    proptest! {
        /// A row does what a plain array of zeros would do.
        #[test]
        fn rows_hold_what_was_written(
            steps in prop::collection::vec((any::<bool>(), 0usize..300, prop::collection::vec(any::<u8>(), 0..100)), 0..20)
        ) {
            let (mut row, mut model) = (Inline::default(), Vec::new());
            for (cuts, at, bytes) in steps {
                if cuts {
                    row.cut(at as u64);
                    model.truncate(at);
                } else {
                    row.write(&piece(at as u64, &bytes));
                    let end = at + bytes.len();
                    model.resize(model.len().max(end), 0);
                    model[at..end].copy_from_slice(&bytes);
                }
                prop_assert_eq!(&row.bytes, &model);
                prop_assert_eq!(&Inline::decode(&row.encode()).unwrap(), &row);
            }
        }
    }
}
