//! The store as the namespace sees it: what a transaction changed is noted when it has been committed.
//!
//! What changed is read off the keys that were written, so that no operation can forget to say it. Who asked for it is read off the row that
//! remembers the reply.

use super::changes::{Changes, Draft, What};
use crate::key::{Key, Keys};
use corefs_kv::{Atomic, Committed, Isolation, KeyRange, KvEngine, RangePage, RangeRead, Transaction};
use corefs_wire::{Class, ErrorCode, Result};
use std::time::Duration;

/// A store whose changes of one file system are noted.
#[derive(Clone)]
pub struct Noting<E> {
    engine: E,
    keys: Keys,
    changes: Changes,
}

impl<E: KvEngine> Noting<E> {
    pub fn new(engine: E, keys: Keys, changes: Changes) -> Self {
        Self { engine, keys, changes }
    }

    /// The store below.
    pub fn engine(&self) -> &E {
        &self.engine
    }

    pub fn changes(&self) -> &Changes {
        &self.changes
    }
}

impl<E: KvEngine> KvEngine for Noting<E> {
    type Txn = NotingTxn<E>;

    fn begin(&self) -> NotingTxn<E> {
        let draft = self.changes.begin(self.engine.now());
        let (txn, engine) = (self.engine.begin(), self.engine.clone());
        NotingTxn { txn, engine, keys: self.keys, draft, writes: false }
    }

    fn now(&self) -> Duration {
        self.engine.now()
    }

    async fn backoff(&self, attempt: u32) {
        self.engine.backoff(attempt).await;
    }
}

/// A transaction of [`Noting`].
pub struct NotingTxn<E: KvEngine> {
    txn: E::Txn,
    engine: E,
    keys: Keys,
    draft: Draft,
    writes: bool,
}

impl<E: KvEngine> NotingTxn<E> {
    fn wrote(&mut self, key: &[u8]) {
        self.writes = true;
        if !self.draft.is_noting() {
            return;
        }
        match self.keys.parse(key) {
            Ok(Key::Dirent(parent, name)) => self.draft.add(What::Name(parent, name)),
            Ok(
                Key::Inode(inode)
                | Key::Inline(inode)
                | Key::Xattr(inode, _)
                // Counts change with it.
                | Key::DirectoryTouched(inode),
            ) => self.draft.add(What::Inode(inode)),
            Ok(Key::Reply(client, ..)) => self.draft.is_by(client),
            _ => {}
        }
    }
}

impl<E: KvEngine> Transaction for NotingTxn<E> {
    async fn read_version(&mut self) -> Result<u64> {
        self.txn.read_version().await
    }

    async fn get(&mut self, key: &[u8], isolation: Isolation) -> Result<Option<Vec<u8>>> {
        self.txn.get(key, isolation).await
    }

    async fn get_many<K: AsRef<[u8]>>(
        &mut self,
        keys: &[K],
        isolation: Isolation,
    ) -> Result<Vec<Option<Vec<u8>>>> {
        self.txn.get_many(keys, isolation).await
    }

    async fn range_many(&mut self, reads: &[RangeRead], isolation: Isolation) -> Result<Vec<RangePage>> {
        self.txn.range_many(reads, isolation).await
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.wrote(key);
        self.txn.set(key, value);
    }

    fn clear(&mut self, key: &[u8]) {
        self.wrote(key);
        self.txn.clear(key);
    }

    fn clear_range(&mut self, range: &KeyRange) {
        self.writes = true;
        if self.draft.is_noting() && self.keys.holds_names(range) {
            self.draft.add_everything();
        }
        self.txn.clear_range(range);
    }

    fn atomic(&mut self, operation: Atomic, key: &[u8], operand: &[u8]) {
        self.wrote(key);
        self.txn.atomic(operation, key, operand);
    }

    fn set_versionstamped_key(&mut self, prefix: &[u8], suffix: &[u8], value: &[u8]) {
        self.writes = true;
        self.draft.add_everything();
        self.txn.set_versionstamped_key(prefix, suffix, value);
    }

    fn set_versionstamped_value(&mut self, key: &[u8], prefix: &[u8], suffix: &[u8]) {
        self.wrote(key);
        self.txn.set_versionstamped_value(key, prefix, suffix);
    }

    fn add_read_conflict_range(&mut self, range: &KeyRange) {
        self.txn.add_read_conflict_range(range);
    }

    fn add_write_conflict_range(&mut self, range: &KeyRange) {
        self.txn.add_write_conflict_range(range);
    }

    async fn commit(self) -> Result<Committed> {
        let Self { txn, engine, mut draft, writes, .. } = self;
        if writes {
            draft.commit_begins(engine.now());
        }
        let outcome = txn.commit().await;
        match &outcome {
            Ok(_) => draft.committed(),
            Err(error) if error.class() == Class::Retry && error.code != ErrorCode::KvUnknownCommit => {
                draft.failed();
            }
            Err(_) => draft.unknown(engine.now()),
        }
        outcome
    }
}
