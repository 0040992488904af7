//! Every key of the namespace, in one table.
//!
//! A key is the format version (1 byte), the file system's id (4 bytes), a letter for the table, then what the table
//! says. Integers are big-endian, so that keys sort as their numbers.
//!
//! | letter | after it | value | written |
//! |---|---|---|---|
//! | `A` | lane: u8 | the lane's next block of inode ids: u64, little-endian | read and set |
//! | `B` | inode: u64 | the bytes of a small file and their checksum (`inline`) | set |
//! | `C` | directory: u64 | how many entries (low 64 bits) and subdirectories (high): one 128-bit little-endian number | atomic ADD |
//! | `D` | directory: u64, name | [`Dirent`](crate::dirent::Dirent) | set |
//! | `E` | inode: u64, name | the extended attribute's value, as it is | set |
//! | `F` | slot: u8 | how many inodes, a share of it: i64, little-endian | atomic ADD |
//! | `G` | inode: u64 | [`Garbage`](crate::gc::Garbage): nobody names it any more | set |
//! | `I` | inode: u64 | [`Inode`](crate::inode::Inode) | set |
//! | `K` | inode: u64 | [`Locks`](crate::lock::Locks): the advisory locks on it | set |
//! | `L` | client: u64, incarnation: u32 | [`Mark`](crate::mark::Mark): below which sequence it is done, or that its lease ended | atomic MAX, set |
//! | `P` | client: u64 | empty, or the mark of a sweep: this client may have sessions or locks | set |
//! | `R` | client: u64, incarnation: u32, sequence: u64 | [`Outcome`](crate::once::Outcome) of that request | set |
//! | `S` | inode: u64, session: u64 | [`Session`](crate::session::Session) | set |
//! | `T` | directory: u64 | when its entries last changed (ns): u64, little-endian | atomic MAX |
//! | `V` | | version of this file system's format: u8 | set once |
//! | `X` | inode: u64 | empty: its chunks are being trimmed | set |
//!
//! Inode 1 is the root, 2 the trash ([`trash`](crate::trash)), if there ever was one; others come from [blocks](crate::inode_alloc).
//!
//! `C` and `T` are apart from `I` because every create and unlink changes them: as atomics under their own keys they
//! conflict with nothing, so any number of clients fill one directory at once.

use corefs_kv::KeyRange;
use corefs_wire::{ClientId, Error, ErrorCode, InodeId, Result};

/// The first byte of every key.
pub const FORMAT: u8 = 1;

/// The tables' letters.
pub mod table {
    pub const ID_LANE: u8 = b'A';
    pub const INLINE: u8 = b'B';
    pub const DIRECTORY_COUNTS: u8 = b'C';
    pub const DIRENT: u8 = b'D';
    pub const XATTR: u8 = b'E';
    pub const INODE_COUNT: u8 = b'F';
    pub const GARBAGE: u8 = b'G';
    pub const INODE: u8 = b'I';
    pub const LOCKS: u8 = b'K';
    pub const LOW_WATER: u8 = b'L';
    pub const CLIENT: u8 = b'P';
    pub const REPLY: u8 = b'R';
    pub const SESSION: u8 = b'S';
    pub const DIRECTORY_TOUCHED: u8 = b'T';
    pub const FORMATTED: u8 = b'V';
    pub const TRIMMING: u8 = b'X';
}

/// Over how many keys the count of inodes is spread, so that no single one takes every create.
pub const COUNT_SLOTS: u8 = 16;

/// Builds the keys of one file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keys {
    prefix: [u8; 5],
}

/// A key taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Key {
    IdLane(u8),
    Inline(InodeId),
    DirectoryCounts(InodeId),
    Dirent(InodeId, Vec<u8>),
    Xattr(InodeId, Vec<u8>),
    InodeCount(u8),
    Garbage(InodeId),
    Inode(InodeId),
    Locks(InodeId),
    LowWater(ClientId, u32),
    Client(ClientId),
    Reply(ClientId, u32, u64),
    Session(InodeId, u64),
    DirectoryTouched(InodeId),
    Formatted,
    Trimming(InodeId),
}

impl Keys {
    /// The keys of file system `fs`: several can share a store.
    pub const fn new(fs: u32) -> Self {
        let [a, b, c, d] = fs.to_be_bytes();
        Self { prefix: [FORMAT, a, b, c, d] }
    }

    fn key(&self, table: u8, parts: &[&[u8]]) -> Vec<u8> {
        let length = self.prefix.len() + 1 + parts.iter().map(|part| part.len()).sum::<usize>();
        let mut key = Vec::with_capacity(length);
        key.extend_from_slice(&self.prefix);
        key.push(table);
        parts.iter().for_each(|part| key.extend_from_slice(part));
        key
    }

    pub fn id_lane(&self, lane: u8) -> Vec<u8> {
        self.key(table::ID_LANE, &[&[lane]])
    }

    /// The bytes of a file that keeps them with its inode.
    pub fn inline(&self, inode: InodeId) -> Vec<u8> {
        self.key(table::INLINE, &[&inode.0.to_be_bytes()])
    }

    pub fn directory_counts(&self, directory: InodeId) -> Vec<u8> {
        self.key(table::DIRECTORY_COUNTS, &[&directory.0.to_be_bytes()])
    }

    pub fn dirent(&self, directory: InodeId, name: &[u8]) -> Vec<u8> {
        self.key(table::DIRENT, &[&directory.0.to_be_bytes(), name])
    }

    /// Every entry of a directory.
    pub fn dirents(&self, directory: InodeId) -> KeyRange {
        KeyRange::prefix(&self.dirent(directory, b""))
    }

    pub fn xattr(&self, inode: InodeId, name: &[u8]) -> Vec<u8> {
        self.key(table::XATTR, &[&inode.0.to_be_bytes(), name])
    }

    /// Every extended attribute of an inode.
    pub fn xattrs(&self, inode: InodeId) -> KeyRange {
        KeyRange::prefix(&self.xattr(inode, b""))
    }

    pub fn locks(&self, inode: InodeId) -> Vec<u8> {
        self.key(table::LOCKS, &[&inode.0.to_be_bytes()])
    }

    /// The share of the count that `inode` is counted in.
    pub fn inode_count(&self, inode: InodeId) -> Vec<u8> {
        self.key(table::INODE_COUNT, &[&[(inode.0 % u64::from(COUNT_SLOTS)) as u8]])
    }

    pub fn garbage(&self, inode: InodeId) -> Vec<u8> {
        self.key(table::GARBAGE, &[&inode.0.to_be_bytes()])
    }

    pub fn inode(&self, inode: InodeId) -> Vec<u8> {
        self.key(table::INODE, &[&inode.0.to_be_bytes()])
    }

    pub fn low_water(&self, client: ClientId, incarnation: u32) -> Vec<u8> {
        self.key(table::LOW_WATER, &[&client.0.to_be_bytes(), &incarnation.to_be_bytes()])
    }

    /// Low-water marks of a client's incarnations below `below` (all of them: `None`).
    pub fn low_waters(&self, client: ClientId, below: Option<u32>) -> KeyRange {
        self.of_client(table::LOW_WATER, client, below)
    }

    pub fn client(&self, client: ClientId) -> Vec<u8> {
        self.key(table::CLIENT, &[&client.0.to_be_bytes()])
    }

    pub fn reply(&self, client: ClientId, incarnation: u32, sequence: u64) -> Vec<u8> {
        let parts: [&[u8]; 3] =
            [&client.0.to_be_bytes(), &incarnation.to_be_bytes(), &sequence.to_be_bytes()];
        self.key(table::REPLY, &parts)
    }

    /// Remembered replies of one incarnation with sequences from `from` to below `below`.
    pub fn replies_between(&self, client: ClientId, incarnation: u32, from: u64, below: u64) -> KeyRange {
        KeyRange::new(self.reply(client, incarnation, from), self.reply(client, incarnation, below))
    }

    /// Remembered replies of a client's incarnations below `below` (all of them: `None`).
    pub fn replies(&self, client: ClientId, below: Option<u32>) -> KeyRange {
        self.of_client(table::REPLY, client, below)
    }

    fn of_client(&self, table: u8, client: ClientId, below: Option<u32>) -> KeyRange {
        let begin = self.key(table, &[&client.0.to_be_bytes()]);
        match below {
            Some(incarnation) => {
                let end = self.key(table, &[&client.0.to_be_bytes(), &incarnation.to_be_bytes()]);
                KeyRange::new(begin, end)
            }
            None => KeyRange::prefix(&begin),
        }
    }

    pub fn session(&self, inode: InodeId, session: u64) -> Vec<u8> {
        self.key(table::SESSION, &[&inode.0.to_be_bytes(), &session.to_be_bytes()])
    }

    /// Every session of an inode.
    pub fn sessions(&self, inode: InodeId) -> KeyRange {
        KeyRange::prefix(&self.key(table::SESSION, &[&inode.0.to_be_bytes()]))
    }

    pub fn directory_touched(&self, directory: InodeId) -> Vec<u8> {
        self.key(table::DIRECTORY_TOUCHED, &[&directory.0.to_be_bytes()])
    }

    pub fn formatted(&self) -> Vec<u8> {
        self.key(table::FORMATTED, &[])
    }

    pub fn trimming(&self, inode: InodeId) -> Vec<u8> {
        self.key(table::TRIMMING, &[&inode.0.to_be_bytes()])
    }

    /// Every key of a table.
    pub fn table(&self, table: u8) -> KeyRange {
        KeyRange::prefix(&self.key(table, &[]))
    }

    /// Every key of the file system.
    pub fn all(&self) -> KeyRange {
        KeyRange::prefix(&self.prefix)
    }

    /// Whether any entry of a directory, or anything that attributes are made of, can be in a range.
    pub fn holds_names(&self, range: &KeyRange) -> bool {
        let tables = [table::DIRENT, table::INODE, table::DIRECTORY_COUNTS, table::DIRECTORY_TOUCHED];
        let meets = |table: KeyRange| range.begin < table.end && table.begin < range.end;
        tables.into_iter().any(|letter| meets(self.table(letter)))
    }

    /// Takes a key apart: [`ErrorCode::Corrupt`] for one that isn't of this table's making.
    pub fn parse(&self, key: &[u8]) -> Result<Key> {
        let bad = || Error::new(ErrorCode::Corrupt, format!("not a key of the namespace: {key:02x?}"));
        let rest = key.strip_prefix(self.prefix.as_slice()).ok_or_else(bad)?;
        let (&letter, mut rest) = rest.split_first().ok_or_else(bad)?;
        let mut number = |width: usize| -> Result<u64> {
            let (head, tail) = rest.split_at_checked(width).ok_or_else(bad)?;
            rest = tail;
            Ok(head.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte)))
        };
        let parsed = match letter {
            table::ID_LANE => Key::IdLane(number(1)? as u8),
            table::INLINE => Key::Inline(InodeId(number(8)?)),
            table::DIRECTORY_COUNTS => Key::DirectoryCounts(InodeId(number(8)?)),
            table::DIRENT => {
                let directory = InodeId(number(8)?);
                return if rest.is_empty() { Err(bad()) } else { Ok(Key::Dirent(directory, rest.to_vec())) };
            }
            table::XATTR => {
                let inode = InodeId(number(8)?);
                return if rest.is_empty() { Err(bad()) } else { Ok(Key::Xattr(inode, rest.to_vec())) };
            }
            table::LOCKS => Key::Locks(InodeId(number(8)?)),
            table::INODE_COUNT => Key::InodeCount(number(1)? as u8),
            table::GARBAGE => Key::Garbage(InodeId(number(8)?)),
            table::INODE => Key::Inode(InodeId(number(8)?)),
            table::LOW_WATER => Key::LowWater(ClientId(number(8)?), number(4)? as u32),
            table::CLIENT => Key::Client(ClientId(number(8)?)),
            table::REPLY => Key::Reply(ClientId(number(8)?), number(4)? as u32, number(8)?),
            table::SESSION => Key::Session(InodeId(number(8)?), number(8)?),
            table::DIRECTORY_TOUCHED => Key::DirectoryTouched(InodeId(number(8)?)),
            table::FORMATTED => Key::Formatted,
            table::TRIMMING => Key::Trimming(InodeId(number(8)?)),
            _ => return Err(bad()),
        };
        if rest.is_empty() { Ok(parsed) } else { Err(bad()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: Keys = Keys::new(7);
    const INODE: InodeId = InodeId(0x0102_0304_0506_0708);
    const CLIENT: ClientId = ClientId(9);

    /// Stored data depend on these bytes: they change only with [`FORMAT`].
    #[test]
    fn keys_are_golden_and_read_back() {
        let id = [1, 2, 3, 4, 5, 6, 7, 8];
        let client = [0, 0, 0, 0, 0, 0, 0, 9];
        let golden: Vec<(Vec<u8>, Key, u8, Vec<u8>)> = vec![
            (KEYS.id_lane(3), Key::IdLane(3), b'A', vec![3]),
            (KEYS.inline(INODE), Key::Inline(INODE), b'B', id.to_vec()),
            (KEYS.directory_counts(INODE), Key::DirectoryCounts(INODE), b'C', id.to_vec()),
            (KEYS.dirent(INODE, b"na"), Key::Dirent(INODE, b"na".to_vec()), b'D', [&id[..], b"na"].concat()),
            (
                KEYS.xattr(INODE, b"user.a"),
                Key::Xattr(INODE, b"user.a".to_vec()),
                b'E',
                [&id[..], b"user.a"].concat(),
            ),
            (KEYS.inode_count(INODE), Key::InodeCount(8), b'F', vec![8]),
            (KEYS.garbage(INODE), Key::Garbage(INODE), b'G', id.to_vec()),
            (KEYS.inode(INODE), Key::Inode(INODE), b'I', id.to_vec()),
            (KEYS.locks(INODE), Key::Locks(INODE), b'K', id.to_vec()),
            (
                KEYS.low_water(CLIENT, 2),
                Key::LowWater(CLIENT, 2),
                b'L',
                [&client[..], &[0, 0, 0, 2]].concat(),
            ),
            (KEYS.client(CLIENT), Key::Client(CLIENT), b'P', client.to_vec()),
            (
                KEYS.reply(CLIENT, 2, 0x0A0B),
                Key::Reply(CLIENT, 2, 0x0A0B),
                b'R',
                [&client[..], &[0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0x0A, 0x0B]].concat(),
            ),
            (
                KEYS.session(INODE, 5),
                Key::Session(INODE, 5),
                b'S',
                [&id[..], &[0, 0, 0, 0, 0, 0, 0, 5]].concat(),
            ),
            (KEYS.directory_touched(INODE), Key::DirectoryTouched(INODE), b'T', id.to_vec()),
            (KEYS.formatted(), Key::Formatted, b'V', vec![]),
            (KEYS.trimming(INODE), Key::Trimming(INODE), b'X', id.to_vec()),
        ];
        for (key, parsed, letter, rest) in golden {
            assert_eq!(key, [&[1, 0, 0, 0, 7, letter][..], &rest].concat(), "{parsed:?}");
            assert_eq!(KEYS.parse(&key), Ok(parsed));
            assert!(KEYS.all().contains(&key) && KEYS.table(letter).contains(&key));
            assert!(Keys::new(8).parse(&key).is_err());
        }
    }

    #[test]
    fn foreign_keys_are_refused() {
        for bad in [&b""[..], &[1, 0, 0, 0, 7], &[1, 0, 0, 0, 7, b'Z'], &[1, 0, 0, 0, 7, b'I', 1], b"mgmtd"] {
            assert_eq!(KEYS.parse(bad).unwrap_err().code, ErrorCode::Corrupt, "{bad:?}");
        }
        let mut long = KEYS.inode(INODE);
        long.push(0);
        assert!(KEYS.parse(&long).is_err());
        assert!(KEYS.parse(&KEYS.dirent(INODE, b"")).is_err());
    }

    #[test]
    fn ranges_with_names_are_told_from_others() {
        assert!(!KEYS.holds_names(&KEYS.xattrs(INODE)) && !KEYS.holds_names(&KEYS.replies(CLIENT, None)));
        assert!(KEYS.holds_names(&KEYS.dirents(INODE)) && KEYS.holds_names(&KEYS.all()));
        assert!(!KEYS.holds_names(&Keys::new(8).all()));
    }

    #[test]
    fn ranges_hold_what_they_say() {
        assert!(KEYS.dirents(INODE).contains(&KEYS.dirent(INODE, &[0xFF; 255])));
        assert!(!KEYS.dirents(INODE).contains(&KEYS.dirent(InodeId(INODE.0 + 1), b"a")));
        let below = KEYS.replies_between(CLIENT, 2, 3, 10);
        assert!(below.contains(&KEYS.reply(CLIENT, 2, 9)) && !below.contains(&KEYS.reply(CLIENT, 2, 10)));
        assert!(!below.contains(&KEYS.reply(CLIENT, 1, 9)) && !below.contains(&KEYS.reply(CLIENT, 2, 2)));
        let older = KEYS.replies(CLIENT, Some(2));
        assert!(
            older.contains(&KEYS.reply(CLIENT, 1, u64::MAX)) && !older.contains(&KEYS.reply(CLIENT, 2, 0))
        );
        assert!(KEYS.low_waters(CLIENT, None).contains(&KEYS.low_water(CLIENT, u32::MAX)));
    }
}
