//! What was committed since the tree was last written: every row by key, with the versions of it that somebody may still read. Pure.
//!
//! Invariants: versions of a row rise; of those at or before the oldest version that is read, only the newest is kept. A row that isn't
//! here is as the tree has it.

use crate::contract::KeyRange;
use rustc_hash::{FxBuildHasher, FxHashSet};
use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::ops::Bound;

/// What a group does to one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    Set(Vec<u8>),
    Remove,
    /// The same, of a key that the tree is known not to have.
    Forget,
}

/// The changes of one group, each key once.
pub type Changes = BTreeMap<Vec<u8>, Change>;

/// `None`: removed.
type Value = Option<Box<[u8]>>;

struct Row {
    version: u64,
    value: Value,
    /// What it was before, the oldest first.
    older: Vec<(u64, Value)>,
    /// Whether the tree may have the key.
    below: bool,
}

#[derive(Default)]
pub struct Recent {
    rows: BTreeMap<Box<[u8]>, Row>,
    /// Hashes of all keys that were ever put here: most keys that are asked for weren't, and this says so without a search. Who chooses keys
    /// that collide gets the search.
    known: FxHashSet<u64>,
    /// Rows of versions before it may be gone.
    oldest: u64,
}

impl Row {
    /// What a reader at `version` sees; `None`: what the tree has.
    fn at(&self, version: u64) -> Option<Option<&[u8]>> {
        if self.version <= version {
            return Some(self.value.as_deref());
        }
        let (_, value) = self.older.iter().rev().find(|(older, _)| *older <= version)?;
        Some(value.as_deref())
    }

    /// Forgets what no reader at `oldest` or later sees.
    fn prune(&mut self, oldest: u64) {
        let seen = match self.version <= oldest {
            true => self.older.len(),
            false => self.older.iter().rposition(|(version, _)| *version <= oldest).unwrap_or(0),
        };
        self.older.drain(..seen);
    }
}

impl Recent {
    /// The oldest version that can still be read.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// The value of `key` at `version`, the inner `None` when it was removed; the outer one: ask the tree.
    pub fn get(&self, key: &[u8], version: u64) -> Option<Option<&[u8]>> {
        if !self.known.contains(&FxBuildHasher.hash_one(key)) {
            return None;
        }
        self.rows.get(key)?.at(version)
    }

    /// Rows of a range that isn't empty as they were at `version`, in the order of their keys.
    pub fn range(
        &self,
        range: &KeyRange,
        version: u64,
    ) -> impl DoubleEndedIterator<Item = (&[u8], Option<&[u8]>)> {
        let bounds = (Bound::Included(range.begin.as_slice()), Bound::Excluded(range.end.as_slice()));
        let rows = self.rows.range::<[u8], _>(bounds);
        rows.filter_map(move |(key, row)| row.at(version).map(|value| (key.as_ref(), value)))
    }

    /// Every row as it is now, in the order of their keys. Removed ones only where the tree may have them.
    pub fn newest(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let rows = self.rows.iter().filter(|(_, row)| row.below || row.value.is_some());
        rows.map(|(key, row)| (key.as_ref(), row.value.as_deref()))
    }

    /// Takes in a change at `version`, which is newer than all before. Nobody will read at a version before `oldest`.
    pub fn put(&mut self, key: Vec<u8>, change: Change, version: u64, oldest: u64) {
        self.oldest = self.oldest.max(oldest);
        let forgotten = change == Change::Forget;
        let value = match change {
            Change::Set(value) => Some(value.into_boxed_slice()),
            Change::Remove | Change::Forget => None,
        };
        let unknown = self.known.insert(FxBuildHasher.hash_one(key.as_slice()));
        let row = if unknown { None } else { self.rows.get_mut(key.as_slice()) };
        let Some(row) = row else {
            if !forgotten {
                let row = Row { version, value, older: Vec::new(), below: true };
                self.rows.insert(key.into_boxed_slice(), row);
            }
            return;
        };
        assert!(version > row.version, "a key changes once in a version, and versions rise");
        let before = (row.version, std::mem::replace(&mut row.value, value));
        row.older.push(before);
        row.version = version;
        row.below &= !forgotten;
        row.prune(oldest);
        let unseen = row.older.iter().all(|(_, value)| value.is_none());
        if !row.below && row.value.is_none() && unseen {
            self.rows.remove(key.as_slice());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(recent: &mut Recent, key: &[u8], value: u8, version: u64, oldest: u64) {
        recent.put(key.to_vec(), Change::Set(vec![value]), version, oldest);
    }

    #[test]
    fn readers_see_their_version() {
        let mut recent = Recent::default();
        set(&mut recent, b"k", 1, 11, 10);
        set(&mut recent, b"k", 2, 12, 10);
        recent.put(b"k".to_vec(), Change::Remove, 13, 10);
        assert_eq!(recent.get(b"k", 10), None);
        assert_eq!(recent.get(b"k", 11), Some(Some([1].as_slice())));
        assert_eq!(recent.get(b"k", 12), Some(Some([2].as_slice())));
        assert_eq!(recent.get(b"k", 20), Some(None));
        assert_eq!(recent.range(&KeyRange::all(), 11).count(), 1);
        assert_eq!(recent.range(&KeyRange::all(), 10).count(), 0);
        assert_eq!(recent.newest().collect::<Vec<_>>(), [(b"k".as_slice(), None)]);
    }

    #[test]
    fn what_nobody_reads_is_dropped() {
        let mut recent = Recent::default();
        for version in 11..100 {
            set(&mut recent, b"hot", version as u8, version, version - 1);
            assert_eq!(recent.get(b"hot", version - 1).is_some(), version > 11);
        }
        assert!(recent.rows[b"hot".as_slice()].older.len() <= 1);
        // A reader holds on to version 99.
        for version in 100..120 {
            set(&mut recent, b"hot", version as u8, version, 99);
        }
        assert_eq!(recent.get(b"hot", 99), Some(Some([99].as_slice())));
        assert_eq!(recent.rows[b"hot".as_slice()].older.len(), 20);
    }

    #[test]
    fn rows_that_the_tree_never_had_leave_nothing() {
        let mut recent = Recent::default();
        set(&mut recent, b"reply", 1, 11, 10);
        recent.put(b"reply".to_vec(), Change::Forget, 12, 11);
        assert_eq!(recent.get(b"reply", 11), Some(Some([1].as_slice())), "somebody reads at 11");
        assert_eq!(recent.newest().count(), 0, "the tree needn't know");
        let mut recent = Recent::default();
        set(&mut recent, b"reply", 1, 11, 10);
        recent.put(b"reply".to_vec(), Change::Forget, 13, 12);
        assert!(!recent.rows.is_empty(), "the value is what readers at 12 see");
        recent.put(b"reply".to_vec(), Change::Forget, 14, 13);
        assert!(recent.rows.is_empty());
        recent.put(b"reply".to_vec(), Change::Forget, 15, 14);
        assert!(recent.rows.is_empty());
    }
}
