//! Who wrote what last: optimistic concurrency control as FoundationDB's resolvers do it. Pure.
//!
//! A step function over the key space says, for the commits of the last seconds, the version of the newest write to
//! each key. A commit conflicts when any range that it read was written after its read version. The
//! function forgets below `oldest`; a commit that read before that can't be judged and is too old.
//!
//! Invariants: `steps` maps the first key of a step to its version, the step ends where the next begins; what lies
//! before the first step was last written at or before `oldest`. Versions recorded never fall.

use crate::contract::KeyRange;
use crate::store::Commit;
use corefs_wire::{Error, ErrorCode, Result};
use std::collections::BTreeMap;
use std::ops::Bound;

#[derive(Debug)]
pub struct Resolver {
    steps: BTreeMap<Vec<u8>, u64>,
    oldest: u64,
    newest: u64,
    /// Where sweeping goes on.
    cursor: Vec<u8>,
}

/// Steps looked at for each write recorded. A write makes at most two, so that sweeping keeps up.
const SWEPT_PER_WRITE: usize = 4;

impl Resolver {
    /// A resolver that knows nothing of what was written at or before `version`: whatever was read before it is too
    /// old.
    pub fn new(version: u64) -> Self {
        Self { steps: BTreeMap::new(), oldest: version, newest: version, cursor: Vec::new() }
    }

    /// The oldest read version that can still commit.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Steps held: the memory in use.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether `commit` may happen now: `KvConflict`, `KvTooOld`, or yes.
    pub fn check(&self, commit: &Commit) -> Result<()> {
        if commit.read_version == 0 || commit.read_conflicts.is_empty() {
            return Ok(());
        }
        if commit.read_version < self.oldest {
            let (oldest, read) = (self.oldest, commit.read_version);
            return Err(Error::mismatch(
                ErrorCode::KvTooOld,
                oldest,
                read,
                "the read version is too old to commit",
            ));
        }
        for range in &commit.read_conflicts {
            let written = self.newest_write(range);
            if written > commit.read_version {
                let what = "what the transaction read was written since";
                return Err(Error::mismatch(ErrorCode::KvConflict, commit.read_version, written, what));
            }
        }
        Ok(())
    }

    /// The version of the newest write to any key of `range`, at least `oldest` when none is known.
    fn newest_write(&self, range: &KeyRange) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let inside = (Bound::Excluded(range.begin.as_slice()), Bound::Excluded(range.end.as_slice()));
        let inside = self.steps.range::<[u8], _>(inside).map(|(_, version)| *version);
        inside.fold(self.step_at(&range.begin), u64::max)
    }

    fn step_at(&self, key: &[u8]) -> u64 {
        let upto = (Bound::Unbounded, Bound::Included(key));
        self.steps.range::<[u8], _>(upto).next_back().map_or(self.oldest, |(_, version)| *version)
    }

    /// Every key of `range` was written at `version`.
    pub fn record(&mut self, range: &KeyRange, version: u64) {
        assert!(version >= self.newest, "versions of commits never fall");
        self.newest = version;
        if range.is_empty() {
            return;
        }
        let after = self.step_at(&range.end);
        let inside = (Bound::Included(range.begin.as_slice()), Bound::Excluded(range.end.as_slice()));
        let mut covered: Vec<Vec<u8>> =
            self.steps.range::<[u8], _>(inside).map(|(key, _)| key.clone()).collect();
        for key in covered.drain(..) {
            self.steps.remove(&key);
        }
        self.steps.insert(range.begin.clone(), version);
        self.steps.entry(range.end.clone()).or_insert(after);
        self.sweep(SWEPT_PER_WRITE);
    }

    /// Read versions below `version` become too old.
    pub fn forget_before(&mut self, version: u64) {
        self.oldest = self.oldest.max(version);
    }

    /// Looks at the next `count` steps and drops those that no longer tell anything: at or below `oldest`, as is the
    /// one before them.
    fn sweep(&mut self, count: usize) {
        let before = (Bound::Unbounded, Bound::Excluded(self.cursor.as_slice()));
        let mut previous = self.steps.range::<[u8], _>(before).next_back().map_or(self.oldest, |(_, v)| *v);
        let from = (Bound::Included(self.cursor.as_slice()), Bound::Unbounded);
        let mut steps = self.steps.range::<[u8], _>(from);
        let mut useless = Vec::new();
        for _ in 0..count {
            let Some((key, version)) = steps.next() else { break };
            if *version <= self.oldest && previous <= self.oldest {
                useless.push(key.clone());
            }
            previous = *version;
        }
        let next = steps.next().map(|(key, _)| key.clone());
        self.cursor = next.unwrap_or_default();
        for key in useless {
            self.steps.remove(&key);
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
        resolver.record(&KeyRange::single(b"k"), 11);
        assert!(resolver.check(&read(11, b"k", b"l")).is_ok());
        assert_eq!(resolver.check(&read(10, b"a", b"z")).unwrap_err().code, ErrorCode::KvConflict);
        assert!(resolver.check(&read(10, b"a", b"k")).is_ok());
        assert!(resolver.check(&read(10, b"k\0", b"z")).is_ok());
        assert_eq!(resolver.check(&read(9, b"x", b"z")).unwrap_err().code, ErrorCode::KvTooOld);
        assert!(resolver.check(&read(0, b"k", b"l")).is_ok(), "a blind write never conflicts");
    }

    /// Against the plainest model: the newest version of each of 32 keys. Sweeping must change no answer.
    #[test]
    fn agrees_with_a_model() {
        let mut random = Prng::new(5);
        let mut resolver = Resolver::new(0);
        let mut model = [0u64; 32];
        for version in 1..5000u64 {
            let begin = random.below(32) as u8;
            let end = (begin + random.below(6) as u8).min(31);
            resolver.record(&KeyRange::new([begin], [end]), version);
            model[begin as usize..end as usize].fill(version);
            resolver.forget_before(version.saturating_sub(40));
            let begin = random.below(32) as u8;
            let end = (begin + 1 + random.below(6) as u8).min(32);
            let read_version = resolver.oldest().max(1) + random.below(41);
            let newest = model[begin as usize..end as usize].iter().copied().max().unwrap_or(0);
            let conflict = resolver.check(&read(read_version, &[begin], &[end])).is_err();
            assert_eq!(conflict, newest > read_version, "version {version}");
        }
        assert!(resolver.len() <= 33);
    }

    #[test]
    fn old_steps_go_away() {
        let mut resolver = Resolver::new(0);
        for version in 1..20_000u64 {
            resolver.record(&KeyRange::single(&version.to_be_bytes()), version);
            resolver.forget_before(version.saturating_sub(100));
        }
        assert!(resolver.len() < 1000, "{} steps for a window of 100 writes", resolver.len());
    }
}
