//! The log in front of the tree: what makes a group durable before the tree has it.
//!
//! A file of records, one a group, each at the next multiple of [`BLOCK`] bytes and filled up with zeros to the one after, so that no
//! block is written again that an acknowledged commit lies in:
//!
//! ```text
//!  0        4        8               16              24       28       32
//!  +--------+--------+---------------+---------------+--------+--------+---------------------- - -
//!  | magic  | CRC    | life          | version       | bytes  | rows   | rows: key length (4), value length (4), key, value
//!  +--------+--------+---------------+---------------+--------+--------+---------------------- - -
//! ```
//!
//! Numbers are little-endian; the CRC-32C covers everything after it up to `bytes` bytes of rows; a value length of [`REMOVED`] says that
//! the key is removed.
//!
//! Records go into one of two areas, the second behind the first, until one doesn't fit or those in it are old. Then all that was logged sets out for the tree, and
//! records go into the other area from its beginning meanwhile, over old ones: those of the time before, which the tree has by then. So a
//! reader has to know which records are of now, wherever they lie. Those of the number of the **life** that the tree names (a random one
//! for each opening) and of versions above the tree's are, each once, and none between them and the tree's is missing. Records of other lives
//! are of versions below: the tree was durable with more than they have before this life wrote any. A life's first record is the first of
//! the file. Only there another life's is believed: what lies behind the last record may be the inside of an old one, and hold whatever people
//! keep in attributes of their files.
//!
//! **What may be wrong at the end.** A record is only written when the one before is durable. So after a power cut at most the last one
//! is torn, nobody was told of it, and it is dropped. A record that can't be read while a later one can, or while the head of one shows that
//! it was later than the next, was durable once: the log is damaged, and what was acknowledged is lost, which is an error and not the end of
//! the log. Damage to the very last record, or to the heads of the last ones, looks like a torn one. A first record of another life above the tree's
//! version tells that the tree is older than the log: a copy from before, or one that redb put back to the commit before a damaged one.

use super::recent::{Change, Changes};
use super::{LOG_FILE, STORE_FILE};
use corefs_wire::checksum::crc32c;
use corefs_wire::{Error, ErrorCode, Result};
use redb::StorageBackend;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Records begin at multiples of it. What drives and page caches write at once is at most as large.
pub const BLOCK: usize = 4096;
const MAGIC: u32 = u32::from_le_bytes(*b"KVlg");
const HEADER: usize = 32;
/// Where what the CRC covers begins.
const COVERED: usize = 8;
const REMOVED: u32 = u32::MAX;
/// The file grows by so much (bytes): its length changes seldom, and flushes needn't write it.
const GROWTH: u64 = 1 << 20;
/// A longer file is no log of ours (bytes), and isn't read into memory. A record is shorter, so that its length fits into four bytes.
const LENGTH_MAX: u64 = 1 << 30;

/// A log that is being written.
pub struct Log {
    file: Box<dyn StorageBackend>,
    life: u64,
    /// Where the area begins that records go into.
    area: u64,
    /// Where the next record goes.
    at: u64,
    length: u64,
    /// What an area takes.
    limit: u64,
    record: Vec<u8>,
}

impl Log {
    /// A log whose records before are needed no more: the tree that is durable has them, and names `life`.
    /// `limit`: bytes of both areas together.
    pub fn begin(file: Box<dyn StorageBackend>, life: u64, limit: u64) -> Result<Self> {
        let length = file.len()?;
        let limit = limit.min(LENGTH_MAX) / 2 / BLOCK as u64 * BLOCK as u64;
        Ok(Self { file, life, area: 0, at: 0, length, limit, record: Vec::new() })
    }

    /// Makes what a group did at `version` durable, if there is room: else nothing was written. After an error nobody knows
    /// whether the record is there.
    pub fn append(&mut self, version: u64, changes: &Changes) -> Result<Room> {
        self.encode(version, changes);
        let end = self.at + self.record.len() as u64;
        if end > self.area + self.limit {
            return Ok(if self.record.len() as u64 > self.limit { Room::Never } else { Room::Elsewhere });
        }
        if end > self.length {
            let length = end.next_multiple_of(GROWTH);
            self.file.set_len(length)?;
            // Written once: else the file system would note with each flush that another part of a hole was filled.
            self.file.write(self.length, &vec![0; (length - self.length) as usize])?;
            self.length = length;
        }
        self.file.write(self.at, &self.record)?;
        self.file.sync_data()?;
        self.at = end;
        Ok(Room::Taken)
    }

    /// Bytes of this area that are written.
    pub fn used(&self) -> u64 {
        self.at - self.area
    }

    /// Records begin anew. The tree must be durable with everything.
    pub fn start_over(&mut self) {
        (self.area, self.at) = (0, 0);
    }

    /// Records go into the other area from now on. The tree must be durable with all that is in that one.
    pub fn turn(&mut self) {
        self.area = if self.area == 0 { self.limit } else { 0 };
        self.at = self.area;
    }

    fn encode(&mut self, version: u64, changes: &Changes) {
        let record = &mut self.record;
        record.clear();
        record.resize(HEADER, 0);
        for (key, change) in changes {
            let value = match change {
                Change::Set(value) => Some(value),
                Change::Remove | Change::Forget => None,
            };
            // Both are far below 4 GiB: the contract's limits.
            record.extend_from_slice(&(key.len() as u32).to_le_bytes());
            record.extend_from_slice(&value.map_or(REMOVED, |value| value.len() as u32).to_le_bytes());
            record.extend_from_slice(key);
            record.extend_from_slice(value.map_or(&[], Vec::as_slice));
        }
        let bytes = (record.len() - HEADER) as u32;
        record[..4].copy_from_slice(&MAGIC.to_le_bytes());
        record[8..16].copy_from_slice(&self.life.to_le_bytes());
        record[16..24].copy_from_slice(&version.to_le_bytes());
        record[24..28].copy_from_slice(&bytes.to_le_bytes());
        record[28..32].copy_from_slice(&(changes.len() as u32).to_le_bytes());
        let crc = crc32c(&record[COVERED..]);
        record[4..8].copy_from_slice(&crc.to_le_bytes());
        record.resize(record.len().next_multiple_of(BLOCK), 0);
    }
}

/// What became of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// It is durable.
    Taken,
    /// It doesn't fit into what is left of this area.
    Elsewhere,
    /// It is larger than an area.
    Never,
}

/// What a log holds above a tree.
pub struct Waiting {
    bytes: Vec<u8>,
    /// Where the rows of each record lie, by its version.
    records: BTreeMap<u64, Range<usize>>,
}

/// The head of a record.
struct Header {
    life: u64,
    version: u64,
    /// Of its rows; `None` when its checksum is wrong.
    bytes: Option<usize>,
}

impl Waiting {
    /// Reads what `life` (0: none) has logged above `version`, which is the tree's. `Corrupt` when something in between is missing, or the
    /// log is of a later time than the tree.
    pub fn read(file: &dyn StorageBackend, life: u64, version: u64) -> Result<Self> {
        let length = file.len()?;
        if length > LENGTH_MAX {
            let what = "the log is longer than any that is written";
            return Err(Error::mismatch(ErrorCode::Corrupt, LENGTH_MAX, length, what));
        }
        let mut bytes = vec![0; length as usize];
        file.read(0, &mut bytes)?;
        let mut records = BTreeMap::new();
        if let Some(first) = header(&bytes, 0).filter(|first| first.bytes.is_some() && first.life != life)
            && first.version > version
        {
            let what = format!(
                "the tree ({STORE_FILE}) is older than the log: it has version {version}, and the log begins with {}, of a later life of the store. \
                 Restore the store from a backup, all its files together. (If this is one of a store that was stopped in order, remove {LOG_FILE}, \
                 which isn't of that one)",
                first.version
            );
            return Err(Error::mismatch(ErrorCode::Corrupt, version, first.version, what));
        }
        let mut unread = version;
        let mut at = 0;
        while at < bytes.len() {
            let Some(header) = header(&bytes, at) else {
                at += BLOCK;
                continue;
            };
            // Nobody can guess the number of a life; 0 is none's.
            if life == 0 || header.life != life {
                at += BLOCK;
                continue;
            }
            let Some(length) = header.bytes else {
                unread = unread.max(header.version);
                at += BLOCK;
                continue;
            };
            let rows = at + HEADER..at + HEADER + length;
            at = rows.end.next_multiple_of(BLOCK);
            if header.version > version {
                records.insert(header.version, rows);
            }
        }
        let newest = records.last_key_value().map_or(version, |(newest, _)| *newest);
        // Versions are keys, so that many of them in that span are all of it. Only the one after the newest may have been torn.
        let newest = if unread > newest.saturating_add(1) { unread } else { newest };
        if newest - version != records.len() as u64 {
            let what = format!(
                "the log is damaged: the tree has version {version}, and of the commits up to {newest} that were acknowledged since, \
                 some can't be read any more. Restore the store from a backup"
            );
            return Err(Error::mismatch(ErrorCode::Corrupt, newest - version, records.len() as u64, what));
        }
        Ok(Self { bytes, records })
    }

    /// The version of the last record.
    pub fn newest(&self) -> Option<u64> {
        self.records.last_key_value().map(|(version, _)| *version)
    }

    /// Every row of all records, in the order in which they were written. `None`: removed.
    pub fn rows(&self) -> impl Iterator<Item = Result<(&[u8], Option<&[u8]>)>> {
        self.records.values().flat_map(|place| Rows { rest: &self.bytes[place.clone()] })
    }
}

/// That of the record at `at`, if one begins there.
fn header(bytes: &[u8], at: usize) -> Option<Header> {
    let record = bytes.get(at..)?;
    let word = |at: usize| record.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word));
    let long = |at: usize| record.get(at..)?.first_chunk().map(|long| u64::from_le_bytes(*long));
    if word(0)? != MAGIC {
        return None;
    }
    let (crc, bytes) = (word(4)?, word(24)? as usize);
    let whole = record.get(COVERED..HEADER + bytes).is_some_and(|covered| crc == crc32c(covered));
    Some(Header { life: long(8)?, version: long(16)?, bytes: whole.then_some(bytes) })
}

struct Rows<'a> {
    rest: &'a [u8],
}

impl<'a> Rows<'a> {
    fn take(&mut self, length: u32) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length as usize).ok_or_else(malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    fn row(&mut self) -> Result<(&'a [u8], Option<&'a [u8]>)> {
        let (lengths, rest) = self.rest.split_first_chunk::<8>().ok_or_else(malformed)?;
        self.rest = rest;
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| lengths[at + byte]));
        let key = self.take(word(0))?;
        let value = if word(4) == REMOVED { None } else { Some(self.take(word(4))?) };
        Ok((key, value))
    }
}

impl<'a> Iterator for Rows<'a> {
    type Item = Result<(&'a [u8], Option<&'a [u8]>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let row = self.row();
        if row.is_err() {
            self.rest = &[];
        }
        Some(row)
    }
}

/// The checksum was right, so whoever wrote it wrote something else than we do.
fn malformed() -> Error {
    Error::new(ErrorCode::Corrupt, "a record of the log has rows that end early")
}

/// The file of the log isn't there, and the tree needs it.
pub fn missing() -> Error {
    let what = format!(
        "{LOG_FILE} is missing, and with it what was acknowledged last. Restore the store from a backup, all its files together"
    );
    Error::new(ErrorCode::Corrupt, what)
}

/// A log in a file of its own.
#[derive(Debug)]
pub struct LogFile(File);

impl LogFile {
    /// That of the store in `directory`, if there is one.
    pub fn open(directory: &Path) -> Result<Option<Self>> {
        match OpenOptions::new().read(true).write(true).open(directory.join(LOG_FILE)) {
            Ok(file) => Ok(Some(Self(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub fn create(directory: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        Ok(Self(options.read(true).write(true).create_new(true).open(directory.join(LOG_FILE))?))
    }
}

impl StorageBackend for LogFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redb::backends::InMemoryBackend;
    use std::sync::Arc;

    const LIFE: u64 = 0x1234;

    #[derive(Clone, Debug)]
    struct Disk(Arc<InMemoryBackend>);

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }
        fn set_len(&self, length: u64) -> io::Result<()> {
            self.0.set_len(length)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.0.write(offset, data)
        }
    }

    fn changes(number: u8) -> Changes {
        let set = Change::Set(vec![number; usize::from(number) * 100]);
        Changes::from([(vec![number], set), (b"gone".to_vec(), Change::Remove)])
    }

    /// A log with records of those versions, and its disk.
    fn written(versions: std::ops::Range<u64>, limit: u64) -> (Log, Disk) {
        let disk = Disk(Arc::new(InMemoryBackend::new()));
        let mut log = Log::begin(Box::new(disk.clone()), LIFE, limit).unwrap();
        for version in versions {
            if log.append(version, &changes(version as u8)).unwrap() != Room::Taken {
                log.turn();
                assert_eq!(log.append(version, &changes(version as u8)).unwrap(), Room::Taken);
            }
        }
        (log, disk)
    }

    fn read(disk: &Disk, version: u64) -> Result<Vec<u64>> {
        let waiting = Waiting::read(disk, LIFE, version)?;
        let rows: Vec<_> = waiting.rows().collect::<Result<_>>()?;
        let versions: Vec<u64> = waiting.records.keys().copied().collect();
        let expected = versions.iter().flat_map(|version| changes(*version as u8));
        for ((key, value), (expected, change)) in rows.into_iter().zip(expected) {
            assert_eq!((key, value.is_none()), (expected.as_slice(), change == Change::Remove));
        }
        Ok(versions)
    }

    fn flip(disk: &Disk, at: u64) {
        let mut byte = [0];
        disk.read(at, &mut byte).unwrap();
        disk.write(at, &[byte[0] ^ 1]).unwrap();
    }

    #[test]
    fn records_above_the_tree_are_read() {
        let (_, disk) = written(11..20, 1 << 20);
        assert_eq!(read(&disk, 10).unwrap(), (11..20).collect::<Vec<_>>());
        assert_eq!(read(&disk, 17).unwrap(), [18, 19]);
        assert_eq!(read(&disk, 19).unwrap(), [0; 0]);
        assert_eq!(read(&disk, 1_000).unwrap(), [0; 0]);
        assert_eq!(Waiting::read(&disk, LIFE + 1, 19).unwrap().newest(), None, "another life's");
    }

    #[test]
    fn a_log_of_another_life_is_never_later_than_the_tree() {
        let (_, disk) = written(11..20, 1 << 20);
        for life in [0, LIFE + 1] {
            let error = Waiting::read(&disk, life, 10).err().unwrap();
            assert!(
                error.code == ErrorCode::Corrupt && error.message.contains("older than the log"),
                "{error}"
            );
            assert_eq!(Waiting::read(&disk, life, 11).unwrap().newest(), None, "it isn't below the first");
        }
    }

    #[test]
    fn what_looks_like_a_record_inside_another_is_not_believed() {
        // Forged by somebody who knows everything but the number of the life.
        let forged = |life: u64, version: u64, flipped: bool| {
            let disk = Disk(Arc::new(InMemoryBackend::new()));
            let mut log = Log::begin(Box::new(disk.clone()), life, 1 << 20).unwrap();
            assert_eq!(log.append(version, &changes(1)).unwrap(), Room::Taken);
            if flipped {
                flip(&disk, 100);
            }
            let mut block = vec![0; BLOCK];
            disk.read(0, &mut block).unwrap();
            block
        };
        for life in [0, LIFE + 1, u64::MAX] {
            for (version, flipped) in [(20, false), (21, true), (u64::MAX, false), (u64::MAX, true)] {
                let (_, disk) = written(11..20, 1 << 20);
                disk.write(12 * BLOCK as u64, &forged(life, version, flipped)).unwrap();
                assert_eq!(read(&disk, 10).unwrap(), (11..20).collect::<Vec<_>>());
                for closed in [0, LIFE + 2] {
                    assert_eq!(
                        Waiting::read(&disk, closed, 19).unwrap().newest(),
                        None,
                        "{version} of {life}"
                    );
                }
            }
        }
    }

    #[test]
    fn damage_to_the_last_records_is_an_error_while_their_heads_can_be_read() {
        let (_, disk) = written(11..15, 1 << 20);
        for record in [2, 3] {
            flip(&disk, record * BLOCK as u64 + 200);
        }
        assert_eq!(read(&disk, 10).unwrap_err().code, ErrorCode::Corrupt);
        assert_eq!(read(&disk, 13).unwrap(), [0; 0], "one might have been torn");
    }

    #[test]
    fn a_torn_end_is_dropped_and_damage_before_it_is_an_error() {
        for (version, at) in [(11, 0), (14, 3)] {
            let (_, disk) = written(11..15, 1 << 20);
            flip(&disk, at * BLOCK as u64 + 200);
            match version {
                14 => assert_eq!(read(&disk, 10).unwrap(), [11, 12, 13]),
                _ => {
                    let error = read(&disk, 10).unwrap_err();
                    assert_eq!(error.code, ErrorCode::Corrupt);
                    assert!(error.message.contains("backup"), "{error}");
                    assert_eq!(read(&disk, 14).unwrap(), [0; 0], "the tree has them all");
                }
            }
        }
    }

    #[test]
    fn a_tree_that_is_older_than_the_log_is_an_error() {
        let (_, disk) = written(11..15, 1 << 20);
        assert_eq!(read(&disk, 9).unwrap_err().code, ErrorCode::Corrupt);
    }

    /// Two records fit into an area.
    const AREAS: u64 = 4 * BLOCK as u64;

    #[test]
    fn both_areas_are_read_wherever_the_records_lie() {
        for (end, tree) in [(13, 10), (14, 10), (15, 10), (16, 12), (17, 12), (18, 14), (18, 15)] {
            let (_, disk) = written(11..end, AREAS);
            assert_eq!(read(&disk, tree).unwrap(), (tree + 1..end).collect::<Vec<_>>(), "{end} over {tree}");
        }
    }

    #[test]
    fn records_that_were_written_over_are_no_damage_and_missing_ones_are() {
        // 15 and 16 lie where 11 and 12 were.
        let (_, disk) = written(11..17, AREAS);
        assert_eq!(read(&disk, 11).unwrap_err().code, ErrorCode::Corrupt);
        // The last one was torn.
        flip(&disk, BLOCK as u64 + 100);
        assert_eq!(read(&disk, 12).unwrap(), [13, 14, 15]);
        // The last one of the other area isn't the end.
        flip(&disk, 3 * BLOCK as u64 + 100);
        assert_eq!(read(&disk, 12).unwrap_err().code, ErrorCode::Corrupt);
        assert_eq!(read(&disk, 14).unwrap(), [15], "the tree has it");
    }

    #[test]
    fn the_areas_never_take_more_than_the_limit() {
        let (log, _) = written(11..40, AREAS + BLOCK as u64 + 5);
        assert_eq!(log.limit, 2 * BLOCK as u64);
        assert!(log.at <= AREAS);
        let none = Log::begin(Box::new(Disk(Arc::new(InMemoryBackend::new()))), LIFE, 0);
        assert_eq!(none.unwrap().append(11, &changes(1)).unwrap(), Room::Never);
    }

    #[test]
    fn every_flipped_byte_of_a_record_is_noticed() {
        let (_, disk) = written(11..12, 1 << 20);
        let covered = HEADER
            + changes(11)
                .iter()
                .map(|(key, change)| match change {
                    Change::Set(value) => 8 + key.len() + value.len(),
                    _ => 8 + key.len(),
                })
                .sum::<usize>();
        for at in 0..covered {
            flip(&disk, at as u64);
            match Waiting::read(&disk, LIFE, 10) {
                Ok(waiting) => assert_eq!(waiting.newest(), None, "byte {at}"),
                // Its version seems to be a much later one.
                Err(error) => {
                    assert!(error.code == ErrorCode::Corrupt && (17..24).contains(&at), "byte {at}: {error}")
                }
            }
            flip(&disk, at as u64);
        }
        assert_eq!(read(&disk, 10).unwrap(), [11]);
    }

    /// The bytes are for ever.
    #[test]
    fn golden_bytes() {
        let disk = Disk(Arc::new(InMemoryBackend::new()));
        let mut log = Log::begin(Box::new(disk.clone()), 0x0102_0304_0506_0708, 2 * BLOCK as u64).unwrap();
        let changes =
            Changes::from([(b"a".to_vec(), Change::Set(b"xy".to_vec())), (b"b".to_vec(), Change::Remove)]);
        assert_eq!(log.append(7, &changes).unwrap(), Room::Taken);
        let mut bytes = [0; 56];
        disk.read(0, &mut bytes).unwrap();
        assert_eq!(&bytes[..4], b"KVlg");
        assert_eq!(&bytes[8..32], [8, 7, 6, 5, 4, 3, 2, 1, 7, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(&bytes[32..52], b"\x01\0\0\0\x02\0\0\0axy\x01\0\0\0\xFF\xFF\xFF\xFFb");
        assert_eq!(bytes[4..8], crc32c(&bytes[8..52]).to_le_bytes());
    }
}
