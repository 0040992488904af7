//! The contract of the ordered transactional store, shaped on FoundationDB's so that its backend maps one to one.
//!
//! Keys and values are byte strings; keys are ordered as bytes. A transaction reads one snapshot, buffers its
//! writes, and commits optimistically: it fails with `KvConflict` when anything that it read serializably was
//! written after its snapshot. What FoundationDB does is meant wherever a sentence here is not precise enough.
//!
//! | error | class | means |
//! |---|---|---|
//! | `KvConflict` | retry | another transaction wrote what this one read; nothing of this one happened |
//! | `KvUnknownCommit` | retry | the commit happened or not: see [`retry`](crate::retry) |
//! | `KvTooOld` | retry | the snapshot is older than five seconds; nothing happened |
//! | `KvUnavailable` | retry | the store can't be reached or is at a bound; nothing happened |
//! | `KvTooLarge` | fatal | a key, value or transaction beyond [`limits`](corefs_wire::limits) |
//! | `KvUnreadable` | fatal | a read of something whose bytes are only known after the commit (a versionstamp) |
//! | `InvalidArgument` | fatal | a reversed range, a limit of zero, a key at or after `0xFF` |
//! | `Corrupt`, `KvIo` | fatal | the store is damaged, or its disk failed |

use corefs_wire::{Error, ErrorCode, Result};
use std::time::Duration;

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Keys must sort before this one: FoundationDB keeps the rest for itself. It may end a range.
pub const KEYS_END: &[u8] = &[0xFF];

/// A store of one cluster or one process. Clones are handles of the same store.
#[allow(async_fn_in_trait)] // executors are single-threaded: futures need not be Send
pub trait KvEngine: Clone + 'static {
    type Txn: Transaction;

    /// A transaction that has read nothing yet. Its snapshot is taken by its first read.
    fn begin(&self) -> Self::Txn;

    /// A clock that only goes forward; its zero means nothing.
    fn now(&self) -> Duration;

    /// The pause before attempt `attempt` (1 is the first retry) of a transaction that failed: grows with the
    /// number, jittered, on the engine's own clock. Only [`retry`](crate::retry) calls it.
    async fn backoff(&self, attempt: u32);
}

/// Whether a read takes part in conflict detection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isolation {
    /// The commit fails if what was read has been written since.
    Serializable,
    /// Same snapshot, same read-your-writes, no conflict.
    Snapshot,
}

/// Which end of the range a page starts at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    Forward,
    /// Pairs in descending order of keys, from the range's end.
    Reverse,
}

/// An operation on a stored value that needs no read and so conflicts with nothing: two transactions may add to
/// one counter at once. Numbers are little-endian and as wide as the operand; an absent value counts as zeros, a
/// shorter one is extended with zeros, a longer one is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Atomic {
    /// Addition modulo 2^(8 x width): two's complement, so that negative numbers subtract.
    Add,
    /// The larger, compared **unsigned**. An absent value is replaced by the operand.
    Max,
}

/// Keys from `begin` (inclusive) to `end` (exclusive).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeyRange {
    pub begin: Vec<u8>,
    pub end: Vec<u8>,
}

impl KeyRange {
    pub fn new(begin: impl Into<Vec<u8>>, end: impl Into<Vec<u8>>) -> Self {
        Self { begin: begin.into(), end: end.into() }
    }

    /// Every key that starts with `prefix`, `prefix` itself included.
    pub fn prefix(prefix: &[u8]) -> Self {
        Self::new(prefix, strictly_after_prefix(prefix))
    }

    /// Only `key`.
    pub fn single(key: &[u8]) -> Self {
        Self::new(key, next_key(key))
    }

    /// Whether it is one key alone, as [`Self::single`] makes it.
    pub fn is_single(&self) -> bool {
        self.end.split_last().is_some_and(|(last, key)| *last == 0 && key == self.begin)
    }

    /// Everything.
    pub fn all() -> Self {
        Self::new([], KEYS_END)
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        self.begin.as_slice() <= key && key < self.end.as_slice()
    }

    pub fn is_empty(&self) -> bool {
        self.begin >= self.end
    }

    /// The part of the range that follows `key` in direction `direction`: the next page after one that ended there.
    #[must_use]
    pub fn after(&self, key: &[u8], direction: Direction) -> Self {
        match direction {
            Direction::Forward => Self::new(next_key(key), self.end.as_slice()),
            Direction::Reverse => Self::new(self.begin.as_slice(), key),
        }
    }
}

/// The first key after `key`: itself and a zero byte.
pub fn next_key(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}

/// The first key after every key that starts with `prefix`; [`KEYS_END`] when there is none.
pub fn strictly_after_prefix(prefix: &[u8]) -> Vec<u8> {
    let kept = prefix.iter().rposition(|&byte| byte != 0xFF).map_or(0, |last| last + 1);
    let mut end = prefix[..kept].to_vec();
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end = KEYS_END.to_vec(),
    }
    end
}

/// One page asked for. The limit is at least 1 (`usize::MAX`: as many as the engine puts in a page).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeRead {
    pub range: KeyRange,
    pub limit: usize,
    pub direction: Direction,
}

/// One page of a range.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RangePage {
    /// In the order asked for.
    pub pairs: Vec<Pair>,
    /// Whether the range may hold pairs beyond this page: continue with [`KeyRange::after`] the last key. A page
    /// ends at the limit given, or earlier at the engine's own bound of bytes; it is never empty with `more`.
    pub more: bool,
}

/// FoundationDB's ten bytes: the commit's version (8 bytes, big-endian), then the transaction's place among those
/// of that version (2 bytes, big-endian). Unique, and ordered as the commits are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Versionstamp(pub [u8; Versionstamp::LEN]);

impl Versionstamp {
    /// Bytes of a stamp.
    pub const LEN: usize = 10;

    pub fn new(version: u64, order: u16) -> Self {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&version.to_be_bytes());
        bytes[8..].copy_from_slice(&order.to_be_bytes());
        Self(bytes)
    }

    pub fn version(&self) -> u64 {
        u64::from_be_bytes(std::array::from_fn(|at| self.0[at]))
    }

    pub fn order(&self) -> u16 {
        u16::from_be_bytes([self.0[8], self.0[9]])
    }

    /// Reads ten bytes taken from a key or value.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let wrong_length = |_| {
            let (expected, actual) = (Self::LEN as u64, bytes.len() as u64);
            Error::mismatch(ErrorCode::InvalidArgument, expected, actual, "a versionstamp has ten bytes")
        };
        bytes.try_into().map(Self).map_err(wrong_length)
    }
}

/// What a successful commit gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Committed {
    /// The version at which the writes became visible; for a transaction that wrote nothing, of its snapshot (0
    /// when it read nothing either).
    pub version: u64,
    /// The stamp that its versionstamped keys and values carry. `None` when nothing was written; a store may also leave it out when
    /// nothing was stamped.
    pub versionstamp: Option<Versionstamp>,
}

/// One transaction. Dropping it abandons it: nothing was written anywhere.
///
/// **Read your writes**: reads see the snapshot with this transaction's own sets, clears and atomics applied.
///
/// **Conflicts**: a serializable read adds exactly what it returned: the keys of a get, and of a range the part
/// up to the last pair returned (the whole range when `more` is false, absent keys included: no phantoms). A get
/// of a key that this transaction itself set or cleared adds nothing. Every write adds its key or range to what
/// other transactions may conflict with. Writes alone never conflict.
///
/// **Errors of writes** (too large, not allowed) are returned by the next read and by the commit.
///
/// **Limits** are those of [`wire::limits`](corefs_wire::limits): keys of 9,900 bytes, 100 KB values, 10 MB a transaction
/// (keys, values and conflict ranges, as FoundationDB counts them: [`bounds`](crate::bounds)), five seconds from its first read.
#[allow(async_fn_in_trait)] // executors are single-threaded: futures need not be Send
pub trait Transaction {
    /// The version of the snapshot, taken now if no read has done so. Not less than that of any commit whose
    /// success anybody had been told before this was called.
    async fn read_version(&mut self) -> Result<u64>;

    /// The value of `key`, `None` when absent.
    async fn get(&mut self, key: &[u8], isolation: Isolation) -> Result<Option<Vec<u8>>>;

    /// The values of several keys in one round trip, in their order.
    async fn get_many<K: AsRef<[u8]>>(
        &mut self,
        keys: &[K],
        isolation: Isolation,
    ) -> Result<Vec<Option<Vec<u8>>>>;

    /// A page of each of several ranges in one round trip, in their order.
    async fn range_many(&mut self, reads: &[RangeRead], isolation: Isolation) -> Result<Vec<RangePage>>;

    /// One page of at most `limit` pairs.
    async fn range(
        &mut self,
        range: &KeyRange,
        limit: usize,
        direction: Direction,
        isolation: Isolation,
    ) -> Result<RangePage> {
        let read = RangeRead { range: range.clone(), limit, direction };
        Ok(self.range_many(&[read], isolation).await?.pop().unwrap_or_default())
    }

    fn set(&mut self, key: &[u8], value: &[u8]);

    fn clear(&mut self, key: &[u8]);

    /// Clears every key of `range`; nothing when it is empty.
    fn clear_range(&mut self, range: &KeyRange);

    /// Applies `operation` at the commit. Reading the key afterwards shows the result over the snapshot (and, when
    /// serializable, conflicts as any read).
    fn atomic(&mut self, operation: Atomic, key: &[u8], operand: &[u8]);

    /// Sets the key `prefix` + versionstamp + `suffix`. Keys that begin with `prefix` and could be that key can't be
    /// read any more by this transaction (`KvUnreadable`).
    fn set_versionstamped_key(&mut self, prefix: &[u8], suffix: &[u8], value: &[u8]);

    /// Sets `key` to `prefix` + versionstamp + `suffix`; it can't be read any more by this transaction.
    fn set_versionstamped_value(&mut self, key: &[u8], prefix: &[u8], suffix: &[u8]);

    /// As if `range` had been read serializably, at the version of this transaction's other reads. (Where there are
    /// none and `read_version` was not called either, that is the version of the commit: nothing can conflict.)
    fn add_read_conflict_range(&mut self, range: &KeyRange);

    /// As if `range` had been written, without writing.
    fn add_write_conflict_range(&mut self, range: &KeyRange);

    /// Writes everything or nothing. A transaction that wrote nothing and has no write conflict always succeeds
    /// and asks nobody: its reads are those of one snapshot.
    async fn commit(self) -> Result<Committed>
    where
        Self: Sized;

    fn add_read_conflict_key(&mut self, key: &[u8]) {
        self.add_read_conflict_range(&KeyRange::single(key));
    }

    fn add_write_conflict_key(&mut self, key: &[u8]) {
        self.add_write_conflict_range(&KeyRange::single(key));
    }

    /// Adds to a little-endian 64-bit counter.
    fn add_i64(&mut self, key: &[u8], delta: i64) {
        self.atomic(Atomic::Add, key, &delta.to_le_bytes());
    }

    /// Raises a little-endian unsigned 64-bit value to at least `value`.
    fn max_u64(&mut self, key: &[u8], value: u64) {
        self.atomic(Atomic::Max, key, &value.to_le_bytes());
    }

    /// The pairs of a range in as many pages as it takes, at most `limit` pairs in all.
    async fn range_all(&mut self, range: &KeyRange, limit: usize, isolation: Isolation) -> Result<Vec<Pair>> {
        let mut pairs: Vec<Pair> = Vec::new();
        let mut rest = range.clone();
        while pairs.len() < limit {
            let page = self.range(&rest, limit - pairs.len(), Direction::Forward, isolation).await?;
            pairs.extend(page.pairs);
            match pairs.last() {
                Some((last, _)) if page.more => rest = rest.after(last, Direction::Forward),
                _ => break,
            }
        }
        Ok(pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_after_their_last_key() {
        assert_eq!(KeyRange::prefix(b"ab"), KeyRange::new(*b"ab", *b"ac"));
        assert_eq!(KeyRange::prefix(&[1, 0xFF, 0xFF]), KeyRange::new([1, 0xFF, 0xFF], [2]));
        assert_eq!(KeyRange::prefix(&[]), KeyRange::all());
    }

    #[test]
    fn stamps_sort_as_their_versions() {
        let stamps = [Versionstamp::new(1, 0), Versionstamp::new(1, 1), Versionstamp::new(256, 0)];
        assert!(stamps.is_sorted());
        assert_eq!((stamps[2].version(), stamps[1].order()), (256, 1));
        assert_eq!(Versionstamp::parse(&stamps[1].0), Ok(stamps[1]));
        assert!(Versionstamp::parse(&[0; 9]).is_err());
    }
}
