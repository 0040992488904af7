//! The transaction that every backend of ours shares: buffers writes, reads through them, collects conflicts.

use crate::bounds;
use crate::contract::*;
use crate::mutation::Mutation;
use crate::overlay::{Overlay, Seen};
use crate::retry::pause_before;
use crate::store::{Commit, ReadBatch, Store};
use corefs_wire::{Error, ErrorCode, Result};
use std::time::Duration;

/// One transaction over a [`Store`].
pub struct Txn<S: Store> {
    store: S,
    snapshot: Option<S::Snapshot>,
    /// When the first read was asked for.
    started: Option<Duration>,
    /// What of the writes reads have to know, and how many of them it knows: most transactions read first and write then, and need
    /// none.
    overlay: Overlay,
    overlaid: usize,
    commit: Commit,
    /// Of mutations and conflict ranges so far.
    bytes: usize,
    /// The first write that was refused.
    refused: Option<Error>,
}

impl<S: Store> KvEngine for S {
    type Txn = Txn<S>;

    fn begin(&self) -> Txn<S> {
        Txn::new(self.clone())
    }

    fn now(&self) -> Duration {
        Store::now(self)
    }

    async fn backoff(&self, attempt: u32) {
        let random = self.random();
        self.pause(pause_before(attempt, random)).await;
    }
}

impl<S: Store> Txn<S> {
    pub fn new(store: S) -> Self {
        let commit = Commit::default();
        Self {
            store,
            snapshot: None,
            started: None,
            overlay: Overlay::default(),
            overlaid: 0,
            commit,
            bytes: 0,
            refused: None,
        }
    }

    /// What every read does first: reports a refused write, and the transaction's age.
    fn start_read(&mut self) -> Result<()> {
        if let Some(error) = &self.refused {
            return Err(error.clone());
        }
        let now = self.store.now();
        let started = *self.started.get_or_insert(now);
        bounds::check_age(now.saturating_sub(started))?;
        for mutation in &self.commit.mutations[self.overlaid..] {
            self.overlay.lay(mutation);
        }
        self.overlaid = self.commit.mutations.len();
        Ok(())
    }

    fn mutate(&mut self, mutation: Mutation) {
        if self.refused.is_some() {
            return;
        }
        self.bytes += bounds::mutation_bytes(&mutation);
        match bounds::check_mutation(&mutation).and_then(|()| bounds::check_size(self.bytes)) {
            Ok(()) => self.commit.mutations.push(mutation),
            Err(error) => self.refused = Some(error),
        }
    }

    fn conflict(&mut self, range: KeyRange, reads: bool) {
        if range.is_empty() || self.refused.is_some() {
            return;
        }
        self.bytes += bounds::range_bytes(&range);
        match bounds::check_range(&range).and_then(|()| bounds::check_size(self.bytes)) {
            Ok(()) if reads => self.commit.read_conflicts.push(range),
            Ok(()) => self.commit.write_conflicts.push(range),
            Err(error) => self.refused = Some(error),
        }
    }

    /// The values of the keys that the overlay doesn't know, from the snapshot, in the order of `seen`.
    async fn ask_snapshot<K: AsRef<[u8]>>(
        &mut self,
        keys: &[K],
        seen: &[Seen],
    ) -> Result<Vec<Option<Vec<u8>>>> {
        let unknown = keys.iter().zip(seen).filter(|(_, seen)| **seen == Seen::AskSnapshot);
        let batch = ReadBatch { keys: unknown.map(|(key, _)| key.as_ref()).collect(), ranges: Vec::new() };
        if batch.keys.is_empty() {
            return Ok(Vec::new());
        }
        let asked = batch.keys.len();
        let values = self.store.read(&mut self.snapshot, batch).await?.values;
        if values.len() != asked {
            let (expected, actual) = (asked as u64, values.len() as u64);
            return Err(Error::mismatch(
                ErrorCode::BadFrame,
                expected,
                actual,
                "values other than asked for",
            ));
        }
        Ok(values)
    }

    /// The snapshot's next pairs of all walks that have found nothing yet and aren't at their end. Returns whether there were any.
    async fn walk_on(&mut self, walks: &mut [Walk<'_>]) -> Result<bool> {
        let open = |walk: &Walk<'_>| walk.found.pairs.is_empty() && !walk.rest.is_empty();
        let mut going: Vec<&mut Walk<'_>> = walks.iter_mut().filter(|walk| open(walk)).collect();
        if going.is_empty() {
            return Ok(false);
        }
        let ranges =
            going.iter().map(|walk| RangeRead { range: walk.rest.clone(), ..walk.read.clone() }).collect();
        let batch = ReadBatch { keys: Vec::new(), ranges };
        let pages = self.store.read(&mut self.snapshot, batch).await?.pages;
        if pages.len() != going.len() {
            let (expected, actual) = (going.len() as u64, pages.len() as u64);
            return Err(Error::mismatch(ErrorCode::BadFrame, expected, actual, "pages other than asked for"));
        }
        for (walk, page) in going.iter_mut().zip(pages) {
            walk.take(page, &self.overlay)?;
        }
        Ok(true)
    }
}

/// A range that is being read.
struct Walk<'a> {
    read: &'a RangeRead,
    /// What is still to be read.
    rest: KeyRange,
    found: RangePage,
}

impl Walk<'_> {
    /// Takes in a page of the snapshot's pairs of `rest`.
    fn take(&mut self, page: RangePage, overlay: &Overlay) -> Result<()> {
        let direction = self.read.direction;
        let covered = match page.pairs.last() {
            Some((last, _)) if page.more => covered_upto(&self.rest, last, direction),
            None if page.more => return Err(Error::new(ErrorCode::BadFrame, "an empty page that says more")),
            _ => self.rest.clone(),
        };
        self.rest = match direction {
            Direction::Forward => KeyRange::new(covered.end.as_slice(), self.rest.end.as_slice()),
            Direction::Reverse => KeyRange::new(self.rest.begin.as_slice(), covered.begin.as_slice()),
        };
        self.found.pairs = overlay.merge(&covered, page, direction);
        self.found.more = !self.rest.is_empty();
        if self.found.pairs.len() > self.read.limit {
            self.found.pairs.truncate(self.read.limit);
            self.found.more = true;
        }
        Ok(())
    }

    /// The part of the range that was read.
    fn covered(&self) -> KeyRange {
        match self.found.pairs.last() {
            Some((last, _)) if self.found.more => covered_upto(&self.read.range, last, self.read.direction),
            _ => self.read.range.clone(),
        }
    }
}

/// The part of `range` that a page which ended with the pair of `last` has read.
fn covered_upto(range: &KeyRange, last: &[u8], direction: Direction) -> KeyRange {
    match direction {
        Direction::Forward => KeyRange::new(range.begin.as_slice(), next_key(last)),
        Direction::Reverse => KeyRange::new(last, range.end.as_slice()),
    }
}

impl<S: Store> Transaction for Txn<S> {
    async fn read_version(&mut self) -> Result<u64> {
        self.start_read()?;
        if self.snapshot.is_none() {
            self.snapshot = Some(self.store.snapshot().await?);
        }
        Ok(self.snapshot.as_ref().map_or(0, S::version))
    }

    async fn get(&mut self, key: &[u8], isolation: Isolation) -> Result<Option<Vec<u8>>> {
        Ok(self.get_many(&[key], isolation).await?.pop().flatten())
    }

    async fn get_many<K: AsRef<[u8]>>(
        &mut self,
        keys: &[K],
        isolation: Isolation,
    ) -> Result<Vec<Option<Vec<u8>>>> {
        self.start_read()?;
        keys.iter().try_for_each(|key| bounds::check_key(key.as_ref()))?;
        let seen: Vec<Seen> =
            keys.iter().map(|key| self.overlay.look_up(key.as_ref())).collect::<Result<_>>()?;
        let mut asked = self.ask_snapshot(keys, &seen).await?.into_iter();
        let mut values = Vec::with_capacity(keys.len());
        for (key, seen) in keys.iter().map(AsRef::as_ref).zip(seen) {
            values.push(match seen {
                Seen::Known(value) => value,
                Seen::AskSnapshot => {
                    if isolation == Isolation::Serializable {
                        self.conflict(KeyRange::single(key), true);
                    }
                    self.overlay.finish(key, asked.next().flatten())
                }
            });
        }
        Ok(values)
    }

    async fn range_many(&mut self, reads: &[RangeRead], isolation: Isolation) -> Result<Vec<RangePage>> {
        self.start_read()?;
        let mut walks = Vec::with_capacity(reads.len());
        for read in reads {
            bounds::check_range(&read.range)?;
            if read.limit == 0 {
                let what = "a range read needs a limit of at least 1";
                return Err(Error::new(ErrorCode::InvalidArgument, what));
            }
            self.overlay.check_range(&read.range)?;
            walks.push(Walk { read, rest: read.range.clone(), found: RangePage::default() });
        }
        // The transaction's own clears may hide whole pages, so a page of the snapshot may leave nothing.
        while self.walk_on(&mut walks).await? {}
        if isolation == Isolation::Serializable {
            walks.iter().for_each(|walk| self.conflict(walk.covered(), true));
        }
        Ok(walks.into_iter().map(|walk| walk.found).collect())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.mutate(Mutation::Set { key: key.to_vec(), value: value.to_vec() });
    }

    fn clear(&mut self, key: &[u8]) {
        self.mutate(Mutation::Clear { key: key.to_vec() });
    }

    fn clear_range(&mut self, range: &KeyRange) {
        if range.begin != range.end {
            self.mutate(Mutation::ClearRange(range.clone()));
        }
    }

    fn atomic(&mut self, operation: Atomic, key: &[u8], operand: &[u8]) {
        self.mutate(Mutation::Atomic { operation, key: key.to_vec(), operand: operand.to_vec() });
    }

    fn set_versionstamped_key(&mut self, prefix: &[u8], suffix: &[u8], value: &[u8]) {
        let key = [prefix, &[0; Versionstamp::LEN], suffix].concat();
        self.mutate(Mutation::StampedKey { key, stamp_at: prefix.len(), value: value.to_vec() });
    }

    fn set_versionstamped_value(&mut self, key: &[u8], prefix: &[u8], suffix: &[u8]) {
        let value = [prefix, &[0; Versionstamp::LEN], suffix].concat();
        self.mutate(Mutation::StampedValue { key: key.to_vec(), stamp_at: prefix.len(), value });
    }

    fn add_read_conflict_range(&mut self, range: &KeyRange) {
        self.conflict(range.clone(), true);
    }

    fn add_read_conflict_key(&mut self, key: &[u8]) {
        self.conflict(KeyRange::single(key), true);
    }

    fn add_write_conflict_range(&mut self, range: &KeyRange) {
        self.conflict(range.clone(), false);
    }

    async fn commit(mut self) -> Result<Committed> {
        if let Some(error) = self.refused {
            return Err(error);
        }
        let version = self.snapshot.as_ref().map_or(0, S::version);
        if self.commit.mutations.is_empty() && self.commit.write_conflicts.is_empty() {
            return Ok(Committed { version, versionstamp: None });
        }
        if let Some(started) = self.started {
            bounds::check_age(self.store.now().saturating_sub(started))?;
        }
        self.commit.read_version = version;
        // The conflict ranges say all that the snapshot is still needed for.
        drop(self.snapshot.take());
        self.store.commit(self.commit).await
    }
}
