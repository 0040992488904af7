//! Who wrote what last: optimistic concurrency control as FoundationDB's resolvers do it. Pure.
//!
//! A commit conflicts when anything that it read was written after its read version. What is remembered of the commits of the
//! last seconds lies in [`Age`]s: each holds what was written last within it, key by key, and ranges as a step function. Somebody who
//! read a moment ago asks only the newest one or two, and an age is forgotten whole.
//! A commit that read before what was forgotten can't be judged and is too old.
//!
//! Invariants: versions recorded never fall, so all of an age are at most those of the next; ages that are wholly at or before `oldest`
//! are gone.

use crate::contract::KeyRange;
use crate::store::Commit;
use corefs_wire::{Error, ErrorCode, Result};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

/// Keys and steps in an age. Few enough that its tree stays in a core's cache; many enough that ages are few.
const AGE_MAX: usize = 8192;

/// What a commit writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written<'a> {
    Key(&'a [u8]),
    Range(&'a KeyRange),
}

#[derive(Debug)]
pub struct Resolver {
    /// The newest last.
    ages: VecDeque<Age>,
    oldest: u64,
    newest: u64,
}

/// Some time of writing.
#[derive(Default, Debug)]
struct Age {
    newest: u64,
    keys: BTreeMap<Box<[u8]>, u64>,
    ranges: Steps,
}

/// The newest write to every key by ranges: the first key of each step, and its version. A step ends where the next begins; before the
/// first one nothing was written.
#[derive(Default, Debug)]
struct Steps(BTreeMap<Box<[u8]>, u64>);

impl Steps {
    fn at(&self, key: &[u8]) -> u64 {
        if self.0.is_empty() {
            return 0;
        }
        let upto = (Bound::Unbounded, Bound::Included(key));
        self.0.range::<[u8], _>(upto).next_back().map_or(0, |(_, version)| *version)
    }

    /// In a range that isn't empty.
    fn newest(&self, range: &KeyRange) -> u64 {
        let inside = (Bound::Excluded(range.begin.as_slice()), Bound::Excluded(range.end.as_slice()));
        let inside = self.0.range::<[u8], _>(inside).map(|(_, version)| *version);
        inside.fold(self.at(&range.begin), u64::max)
    }

    /// `range`, which isn't empty, was written at `version`.
    fn record(&mut self, range: &KeyRange, version: u64) {
        let after = self.at(&range.end);
        let inside = (Bound::Included(range.begin.as_slice()), Bound::Excluded(range.end.as_slice()));
        let covered: Vec<Box<[u8]>> = self.0.range::<[u8], _>(inside).map(|(key, _)| key.clone()).collect();
        for key in covered {
            self.0.remove(&key);
        }
        self.0.insert(range.begin.as_slice().into(), version);
        self.0.entry(range.end.as_slice().into()).or_insert(after);
    }
}

impl Age {
    fn len(&self) -> usize {
        self.keys.len() + self.ranges.0.len()
    }

    /// The newest write in it to any key of a range that isn't empty; 0: none.
    fn newest_write(&self, range: &KeyRange) -> u64 {
        if range.is_single() {
            let key = range.begin.as_slice();
            return self.keys.get(key).copied().unwrap_or(0).max(self.ranges.at(key));
        }
        let inside = (Bound::Included(range.begin.as_slice()), Bound::Excluded(range.end.as_slice()));
        let inside = self.keys.range::<[u8], _>(inside).map(|(_, version)| *version);
        inside.fold(self.ranges.newest(range), u64::max)
    }
}

impl Resolver {
    /// A resolver that knows nothing of what was written at or before `version`: whatever was read before it is too
    /// old.
    pub fn new(version: u64) -> Self {
        Self { ages: VecDeque::new(), oldest: version, newest: version }
    }

    /// The oldest read version that can still commit.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Keys and steps held: the memory in use.
    pub fn len(&self) -> usize {
        self.ages.iter().map(Age::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `commit` may happen now: `KvConflict`, `KvTooOld`, or yes.
    pub fn check(&self, commit: &Commit) -> Result<()> {
        if commit.read_version == 0 || commit.read_conflicts.is_empty() {
            return Ok(());
        }
        let read = commit.read_version;
        if read < self.oldest {
            let what = "the read version is too old to commit";
            return Err(Error::mismatch(ErrorCode::KvTooOld, self.oldest, read, what));
        }
        for age in self.ages.iter().rev().take_while(|age| age.newest > read) {
            for range in commit.read_conflicts.iter().filter(|range| !range.is_empty()) {
                let written = age.newest_write(range);
                if written > read {
                    let what = "what the transaction read was written since";
                    return Err(Error::mismatch(ErrorCode::KvConflict, read, written, what));
                }
            }
        }
        Ok(())
    }

    /// A commit of that version writes this.
    pub fn record(&mut self, written: Written<'_>, version: u64) {
        assert!(version >= self.newest, "versions of commits never fall");
        self.newest = version;
        if self.ages.back().is_none_or(|age| age.len() >= AGE_MAX) {
            self.ages.push_back(Age::default());
        }
        let Some(age) = self.ages.back_mut() else { return };
        age.newest = version;
        let written = match written {
            Written::Range(range) if range.is_single() => Written::Key(&range.begin),
            written => written,
        };
        match written {
            // Counters are written by every commit, and are there already.
            Written::Key(key) => match age.keys.get_mut(key) {
                Some(newest) => *newest = version,
                None => drop(age.keys.insert(key.into(), version)),
            },
            Written::Range(range) if range.is_empty() => {}
            Written::Range(range) => age.ranges.record(range, version),
        }
    }

    /// Read versions below `version` become too old.
    pub fn forget_before(&mut self, version: u64) {
        self.oldest = self.oldest.max(version);
        while self.ages.front().is_some_and(|age| age.newest <= self.oldest) {
            self.ages.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prng::Prng;

    fn read(version: u64, begin: &[u8], end: &[u8]) -> Commit {
        Commit {
            read_version: version,
            read_conflicts: vec![KeyRange::new(begin, end)],
            ..Default::default()
        }
    }

    #[test]
    fn reads_conflict_with_later_writes_only() {
        let mut resolver = Resolver::new(10);
        resolver.record(Written::Key(b"k"), 11);
        assert!(resolver.check(&read(11, b"k", b"l")).is_ok());
        assert_eq!(resolver.check(&read(10, b"a", b"z")).unwrap_err().code, ErrorCode::KvConflict);
        assert!(resolver.check(&read(10, b"a", b"k")).is_ok());
        assert!(resolver.check(&read(10, b"k\0", b"z")).is_ok());
        assert_eq!(resolver.check(&read(9, b"x", b"z")).unwrap_err().code, ErrorCode::KvTooOld);
        assert!(resolver.check(&read(0, b"k", b"l")).is_ok(), "a blind write never conflicts");
    }

    /// Against the plainest model: the newest version of each of 32 keys. Sweeping must change no answer.
    /// Against the plainest model: the newest version of each of 32 keys. What is forgotten must change no answer, and where an age
    /// ends mustn't either.
    #[test]
    fn agrees_with_a_model() {
        let mut random = Prng::new(5);
        let mut resolver = Resolver::new(0);
        let mut model = [0u64; 32];
        for version in 1..20_000u64 {
            let begin = random.below(32) as u8;
            let end = (begin + random.below(6) as u8).min(31);
            match end == begin + 1 {
                true => resolver.record(Written::Key(&[begin]), version),
                false => resolver.record(Written::Range(&KeyRange::new([begin], [end])), version),
            }
            model[begin as usize..end as usize].fill(version);
            // As if the age were full.
            if random.below(8) == 0 {
                resolver.ages.push_back(Age { newest: version, ..Age::default() });
            }
            resolver.forget_before(version.saturating_sub(40));
            let begin = random.below(32) as u8;
            let end = (begin + 1 + random.below(6) as u8).min(32);
            let read_version = resolver.oldest().max(1) + random.below(41);
            let newest = model[begin as usize..end as usize].iter().copied().max().unwrap_or(0);
            let range = match end == begin + 1 && random.below(2) == 0 {
                true => KeyRange::single(&[begin]),
                false => KeyRange::new([begin], [end]),
            };
            let commit = Commit { read_version, read_conflicts: vec![range], ..Commit::default() };
            assert_eq!(resolver.check(&commit).is_err(), newest > read_version, "version {version}");
        }
        assert!(resolver.ages.len() <= 41, "{} ages", resolver.ages.len());
    }

    #[test]
    fn what_is_old_goes_away() {
        let mut resolver = Resolver::new(0);
        for version in 1..100_000u64 {
            resolver.record(Written::Key(&version.to_be_bytes()), version);
            resolver.forget_before(version.saturating_sub(100));
        }
        assert!(resolver.len() <= 2 * AGE_MAX, "{} keys for a window of 100 writes", resolver.len());
    }
}
