//! The transaction that every backend of ours shares: buffers writes, reads through them, collects conflicts.

use crate::bounds;
use crate::contract::*;
use crate::mutation::Mutation;
use crate::overlay::{Overlay, Seen};
use crate::retry::pause_before;
use crate::store::{Commit, RangeRead, ReadBatch, Store};
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
        let batch =
            ReadBatch { keys: unknown.map(|(key, _)| key.as_ref().to_vec()).collect(), ranges: Vec::new() };
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

    /// One page of the snapshot's pairs in `rest`, and the part of `rest` that it covers.
    async fn base_page(
        &mut self,
        rest: &KeyRange,
        limit: usize,
        direction: Direction,
    ) -> Result<(KeyRange, RangePage)> {
        let read = RangeRead { range: rest.clone(), limit, direction };
        let batch = ReadBatch { keys: Vec::new(), ranges: vec![read] };
        let found = self.store.read(&mut self.snapshot, batch).await?;
        let missing = || Error::new(ErrorCode::BadFrame, "no page for a range");
        let page = found.pages.into_iter().next().ok_or_else(missing)?;
        let covered = match page.pairs.last() {
            Some((last, _)) if page.more => covered_upto(rest, last, direction),
            None if page.more => return Err(Error::new(ErrorCode::BadFrame, "an empty page that says more")),
            _ => rest.clone(),
        };
        Ok((covered, page))
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

    async fn range(
        &mut self,
        range: &KeyRange,
        limit: usize,
        direction: Direction,
        isolation: Isolation,
    ) -> Result<RangePage> {
        self.start_read()?;
        bounds::check_range(range)?;
        if limit == 0 {
            return Err(Error::new(ErrorCode::InvalidArgument, "a range read needs a limit of at least 1"));
        }
        self.overlay.check_range(range)?;
        let mut found = RangePage::default();
        let mut rest = range.clone();
        // The transaction's own clears may hide whole pages, so a page of the snapshot may leave nothing.
        while found.pairs.is_empty() && !rest.is_empty() {
            let (covered, page) = self.base_page(&rest, limit, direction).await?;
            rest = match direction {
                Direction::Forward => KeyRange::new(covered.end.as_slice(), rest.end.as_slice()),
                Direction::Reverse => KeyRange::new(rest.begin.as_slice(), covered.begin.as_slice()),
            };
            found.pairs = self.overlay.merge(&covered, page, direction);
            found.more = !rest.is_empty();
        }
        if found.pairs.len() > limit {
            found.pairs.truncate(limit);
            found.more = true;
        }
        if isolation == Isolation::Serializable {
            self.conflict(
                match found.pairs.last() {
                    Some((last, _)) if found.more => covered_upto(range, last, direction),
                    _ => range.clone(),
                },
                true,
            );
        }
        Ok(found)
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
