//! FoundationDB: the store of a cluster of many machines, replicated, with any number of clients.
//!
//! - [`shim`] opens the client library on first use, so that one binary runs with and without it
//! - [`network`] is the one thread of a process that talks to FoundationDB
//! - [`fault`] says what its error codes mean here
//!
//! # How the contract maps
//! | contract | FoundationDB |
//! |---|---|
//! | snapshot | a read version; all reads are snapshot reads at it, with the client's own cache off |
//! | conflict ranges | given explicitly with the commit, both kinds |
//! | versionstamps, atomic operations | its own mutations |
//! | unknown commit | `commit_unknown_result`, and any commit that wasn't answered: see [`retry`](crate::retry) |
//! | five seconds, ten megabytes | its own bounds; [`Txn`](crate::txn::Txn) refuses earlier, and the same for every backend |
//!
//! Read-your-writes and the collecting of conflicts are `Txn`'s, as for all backends, not the client library's: so that there is one
//! code that decides what conflicts, which the other backends test with faults on demand (docs/adr/0012).
//!
//! # Keys
//! Everything of a cluster lies under `corefs/NAME/`, so that several clusters, and other programs, share one FoundationDB. The
//! limits of keys leave room for that ([`NAME_MAX`]).

pub mod fault;
pub mod network;
pub mod shim;

use crate::bounds::{PAGE_BYTES_MAX, PAGE_PAIRS_MAX, PREFIX_MAX};
use crate::contract::{Atomic, Committed, Direction, KeyRange, RangePage, RangeRead, Versionstamp};
use crate::mutation::Mutation;
use crate::prng::Prng;
use crate::store::{Commit, Found, ReadBatch, Store};
use corefs_net::executor;
use corefs_wire::limits::{KV_KEY_MAX, KV_TRANSACTION_SECONDS};
use corefs_wire::{Error, ErrorCode, Result};
use fault::{During, Predicates};
use foundationdb::future::FdbValues;
use foundationdb::options::{
    ConflictRangeType, DatabaseOption, MutationType, StreamingMode, TransactionOption,
};
use foundationdb::{Database, FdbError, FdbResult, RangeOption, Transaction as Handle};
use std::cell::RefCell;
use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Bytes of a cluster's name at most.
pub const NAME_MAX: usize = PREFIX_MAX - "corefs//".len();
/// Bytes of a key at most: `KEY_SIZE_LIMIT` of FoundationDB.
const FDB_KEY_MAX: usize = 10_000;
const _: () = assert!(KV_KEY_MAX + PREFIX_MAX < FDB_KEY_MAX, "a name leaves room for the longest key");
/// How long any call may take: a transaction has no longer either. Without it a call would wait for as long as the servers
/// are away.
const CALL_MILLISECONDS: i32 = 1000 * KV_TRANSACTION_SECONDS as i32;

struct Shared {
    database: Database,
    /// Before every key.
    prefix: Vec<u8>,
    /// The cluster file, for messages.
    place: String,
    random: RefCell<Prng>,
    start: Instant,
}

impl Drop for Shared {
    fn drop(&mut self) {
        network::end_first();
    }
}

/// A handle of one cluster's part of a FoundationDB; clones share it.
#[derive(Clone)]
pub struct Fdb(Rc<Shared>);

/// The right to read at one version: a transaction of FoundationDB's that nothing is written in.
pub struct View {
    handle: Handle,
    version: u64,
}

impl Fdb {
    /// Opens the part `name` of the FoundationDB that `cluster_file` leads to, and asks it for a version, so that what is
    /// wrong is said now. The network thread is pinned to `core`, if it doesn't run yet.
    ///
    /// Errors: `BadConfig` when the library, the file or the name won't do; `KvUnavailable` when nobody answers.
    pub async fn open(cluster_file: &Path, name: &str, core: usize) -> Result<Self> {
        check_name(name)?;
        let bad =
            |what: String| Error::new(ErrorCode::BadConfig, format!("{}: {what}", cluster_file.display()));
        std::fs::File::open(cluster_file)
            .map_err(|error| bad(format!("FoundationDB's cluster file: {error}")))?;
        let path =
            cluster_file.to_str().ok_or_else(|| bad("the name of a cluster file must be UTF-8".into()))?;
        network::start(core)?;
        let database = Database::from_path(path).map_err(|error| bad(error.to_string()))?;
        let timeout = DatabaseOption::TransactionTimeout(CALL_MILLISECONDS);
        database.set_option(timeout).map_err(|error| bad(error.to_string()))?;
        let mut seed = Prng::new(u64::from(std::process::id()));
        let store = Self(Rc::new(Shared {
            database,
            prefix: format!("corefs/{name}/").into_bytes(),
            place: cluster_file.display().to_string(),
            random: RefCell::new(Prng::new(seed.draw())),
            start: Instant::now(),
        }));
        let answered = store.snapshot().await;
        answered.map_err(|error| {
            let hint = format!(
                "is FoundationDB running, and of the version of this machine's client library ({})?",
                shim::client_version()
            );
            Error::new(error.code, format!("{}; {hint}", error.message))
        })?;
        Ok(store)
    }

    /// A transaction of FoundationDB's, in which nothing is both read and written.
    fn handle(&self) -> Result<Handle> {
        let handle = self.0.database.create_trx().map_err(|error| self.error(error, During::Read))?;
        // What it would remember, `Txn` does.
        let option = TransactionOption::ReadYourWritesDisable;
        handle.set_option(option).map_err(|error| self.error(error, During::Read))?;
        Ok(handle)
    }

    fn key(&self, key: &[u8]) -> Vec<u8> {
        [self.0.prefix.as_slice(), key].concat()
    }

    fn error(&self, error: FdbError, during: During) -> Error {
        let predicates = Predicates {
            maybe_committed: error.is_maybe_committed(),
            retryable_not_committed: error.is_retryable_not_committed(),
        };
        let code = fault::translate(error.code(), predicates, during);
        let what = format!("FoundationDB of {}: {error} ({})", self.0.place, error.code());
        Error::new(code, what)
    }

    fn read_error(&self, error: FdbError) -> Error {
        self.error(error, During::Read)
    }

    /// Versions are positive.
    fn version(&self, version: i64) -> Result<u64> {
        let negative = |_| Error::new(ErrorCode::KvIo, "FoundationDB gave a negative version");
        u64::try_from(version).map_err(negative)
    }

    /// Asks for one page.
    fn ask_page(
        &self,
        handle: &Handle,
        read: &RangeRead,
    ) -> impl Future<Output = FdbResult<FdbValues>> + use<> {
        let (begin, end) = (self.key(&read.range.begin), self.key(&read.range.end));
        let option = RangeOption {
            limit: Some(read.limit.min(PAGE_PAIRS_MAX)),
            target_bytes: PAGE_BYTES_MAX,
            mode: StreamingMode::Exact,
            reverse: read.direction == Direction::Reverse,
            ..RangeOption::from((begin.as_slice(), end.as_slice()))
        };
        handle.get_range(&option, 1, true)
    }

    fn page(&self, values: &FdbValues) -> Result<RangePage> {
        let foreign = || Error::new(ErrorCode::Corrupt, "FoundationDB gave a key that was not asked for");
        let own = |pair: &foundationdb::future::FdbKeyValue| {
            let key = pair.key().strip_prefix(self.0.prefix.as_slice()).ok_or_else(foreign)?;
            Ok((key.to_vec(), pair.value().to_vec()))
        };
        let pairs: Vec<_> = values.iter().map(own).collect::<Result<_>>()?;
        if pairs.is_empty() && values.more() {
            return Err(Error::new(ErrorCode::KvUnavailable, "FoundationDB gave an empty page"));
        }
        Ok(RangePage { pairs, more: values.more() })
    }

    /// All reads of a batch at once, on `handle`.
    async fn read_on(&self, handle: &Handle, batch: &ReadBatch<'_>) -> Result<Found> {
        let failed = |error| self.read_error(error);
        let gets: Vec<_> = batch.keys.iter().map(|key| handle.get(&self.key(key), true)).collect();
        let asked = |read: &RangeRead| (!read.range.is_empty()).then(|| self.ask_page(handle, read));
        let asked: Vec<_> = batch.ranges.iter().map(asked).collect();
        let mut found = Found::default();
        for value in gets {
            found.values.push(value.await.map_err(failed)?.map(|value| value.to_vec()));
        }
        for page in asked {
            found.pages.push(match page {
                Some(page) => self.page(&page.await.map_err(failed)?)?,
                None => RangePage::default(),
            });
        }
        Ok(found)
    }

    fn conflict(&self, handle: &Handle, range: &KeyRange, kind: ConflictRangeType) -> Result<()> {
        let (begin, end) = (self.key(&range.begin), self.key(&range.end));
        handle.add_conflict_range(&begin, &end, kind).map_err(|error| self.read_error(error))
    }

    fn mutate(&self, handle: &Handle, mutation: &Mutation) {
        match mutation {
            Mutation::Set { key, value } => handle.set(&self.key(key), value),
            Mutation::Clear { key } => handle.clear(&self.key(key)),
            Mutation::ClearRange(range) => handle.clear_range(&self.key(&range.begin), &self.key(&range.end)),
            Mutation::Atomic { operation, key, operand } => {
                let operation = match operation {
                    Atomic::Add => MutationType::Add,
                    Atomic::Max => MutationType::Max,
                };
                handle.atomic_op(&self.key(key), operand, operation);
            }
            Mutation::StampedKey { key, stamp_at, value } => {
                let key = with_place(self.key(key), self.0.prefix.len() + stamp_at);
                handle.atomic_op(&key, value, MutationType::SetVersionstampedKey);
            }
            Mutation::StampedValue { key, stamp_at, value } => {
                let value = with_place(value.clone(), *stamp_at);
                handle.atomic_op(&self.key(key), &value, MutationType::SetVersionstampedValue);
            }
        }
    }
}

/// FoundationDB wants to be told behind the bytes, in four of its own, where its stamp goes.
fn with_place(mut bytes: Vec<u8>, stamp_at: usize) -> Vec<u8> {
    let stamp_at = u32::try_from(stamp_at).expect("keys and values are far shorter than 4 GiB");
    bytes.extend_from_slice(&stamp_at.to_le_bytes());
    bytes
}

/// A name that can be part of keys and of addresses. `BadConfig` says what is wrong.
pub fn check_name(name: &str) -> Result<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(fits) {
        let what = format!(
            "{name:?} can't name a cluster in FoundationDB: 1 to {NAME_MAX} letters, digits, '-', '_' and '.'"
        );
        return Err(Error::new(ErrorCode::BadConfig, what));
    }
    Ok(())
}

impl Store for Fdb {
    type Snapshot = View;

    fn version(snapshot: &View) -> u64 {
        snapshot.version
    }

    fn now(&self) -> Duration {
        self.0.start.elapsed()
    }

    async fn snapshot(&self) -> Result<View> {
        let handle = self.handle()?;
        let version = handle.get_read_version().await.map_err(|error| self.read_error(error))?;
        Ok(View { handle, version: self.version(version)? })
    }

    async fn read(&self, snapshot: &mut Option<View>, batch: ReadBatch<'_>) -> Result<Found> {
        if let Some(view) = snapshot {
            return self.read_on(&view.handle, &batch).await;
        }
        let handle = self.handle()?;
        // The reads wait for this version inside of the client, so that it costs nothing to ask for it.
        let version = handle.get_read_version();
        let found = self.read_on(&handle, &batch).await?;
        let version = version.await.map_err(|error| self.read_error(error))?;
        *snapshot = Some(View { handle, version: self.version(version)? });
        Ok(found)
    }

    async fn commit(&self, commit: Commit) -> Result<Committed> {
        let handle = self.handle()?;
        // Without a version nothing was read, and nothing can conflict.
        if commit.read_version != 0 {
            let version = i64::try_from(commit.read_version);
            handle.set_read_version(
                version.map_err(|_| Error::new(ErrorCode::InvalidArgument, "no such version"))?,
            );
            commit
                .read_conflicts
                .iter()
                .try_for_each(|range| self.conflict(&handle, range, ConflictRangeType::Read))?;
        }
        commit
            .write_conflicts
            .iter()
            .try_for_each(|range| self.conflict(&handle, range, ConflictRangeType::Write))?;
        commit.mutations.iter().for_each(|mutation| self.mutate(&handle, mutation));
        // Asking costs a trip through the client's thread, and hardly anybody stamps anything.
        let stamped = |mutation: &Mutation| {
            matches!(mutation, Mutation::StampedKey { .. } | Mutation::StampedValue { .. })
        };
        let stamp = commit.mutations.iter().any(stamped).then(|| handle.get_versionstamp());
        let committed = handle.commit().await.map_err(|error| self.error(*error, During::Commit))?;
        // It has happened; an error now only means that it can't be said when, whatever its code means otherwise.
        let when = |error| Error::new(ErrorCode::KvUnknownCommit, self.error(error, During::Commit).message);
        let version = committed.committed_version().map_err(when)?;
        let unknown = |error: Error| Error::new(ErrorCode::KvUnknownCommit, error.message);
        let versionstamp = match stamp {
            Some(stamp) => Some(Versionstamp::parse(&stamp.await.map_err(when)?).map_err(unknown)?),
            None => None,
        };
        Ok(Committed { version: self.version(version).map_err(unknown)?, versionstamp })
    }

    async fn pause(&self, duration: Duration) {
        executor::sleep(duration).await;
    }

    fn random(&self) -> u64 {
        self.0.random.borrow_mut().draw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_into_keys() {
        assert!(
            ["corefs", "up-0123456789abcdef", "a.b_c-D", &"x".repeat(NAME_MAX)]
                .map(check_name)
                .iter()
                .all(Result::is_ok)
        );
        for name in ["", "a/b", "\u{e4}", "a b", &"x".repeat(NAME_MAX + 1)] {
            assert_eq!(check_name(name).unwrap_err().code, ErrorCode::BadConfig, "{name}");
        }
    }

    #[test]
    fn the_place_of_a_stamp_follows_the_bytes() {
        assert_eq!(with_place(vec![9, 9], 0x0102), [9, 9, 2, 1, 0, 0]);
    }
}
