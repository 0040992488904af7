//! The snapshots that transactions read from, by version.
//!
//! A redb read transaction is a snapshot, but while one lives redb can't reuse any page freed since: so one is
//! opened only when somebody asks for the newest version, shared by all who ask for the same, and closed when the last
//! of them is done, or five seconds after anybody was given it, whether they are done or not.

use super::format::{ABOUT, PAIRS, VERSION_ROW, open, translate};
use crate::bounds::TRANSACTION_AGE_MAX;
use crate::clock::Clock;
use crate::contract::{Direction, RangePage, RangeRead};
use crate::store::{Found, ReadBatch, fill_page};
use corefs_wire::{Error, ErrorCode, Result};
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Versions open at once. Live transactions spread over as many commits as happen while they run.
pub const SNAPSHOTS_MAX: usize = 512;

type Pairs = ReadOnlyTable<&'static [u8], &'static [u8]>;

struct Held {
    pairs: Arc<Pairs>,
    users: usize,
    /// When it was last given to somebody.
    given: Duration,
}

struct State {
    /// Or why there is none any more.
    database: Result<Arc<Database>>,
    /// The newest durable version.
    newest: u64,
    held: BTreeMap<u64, Held>,
}

/// Shared by the handles and the commit thread.
pub struct Snapshots {
    state: Mutex<State>,
    clock: Clock,
}

/// The right to read at one version.
pub struct Snapshot {
    version: u64,
    snapshots: Arc<Snapshots>,
}

impl Snapshot {
    pub fn version(&self) -> u64 {
        self.version
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let mut state = self.snapshots.lock();
        let newest = state.newest;
        if let Some(held) = state.held.get_mut(&self.version) {
            held.users -= 1;
            if held.users == 0 && self.version != newest {
                state.held.remove(&self.version);
            }
        }
    }
}

impl Snapshots {
    pub fn new(database: Arc<Database>, newest: u64, clock: Clock) -> Self {
        Self { state: Mutex::new(State { database: Ok(database), newest, held: BTreeMap::new() }), clock }
    }

    /// No code that may panic runs under the lock with the state half changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest version; everything acknowledged before this call is in it.
    pub fn take(self: &Arc<Self>) -> Result<Snapshot> {
        let now = self.clock.now();
        let mut state = self.lock();
        let database = state.database.clone()?;
        let newest = state.newest;
        let version = if state.held.contains_key(&newest) {
            newest
        } else {
            state.expire(now);
            if state.held.len() >= SNAPSHOTS_MAX {
                let (limit, actual) = (SNAPSHOTS_MAX as u64, state.held.len() as u64);
                let what = "too many versions are being read";
                return Err(Error::mismatch(ErrorCode::KvUnavailable, limit, actual, what));
            }
            // A commit that is durable but not yet announced may be in it: it is known by the version it holds.
            let (version, pairs) = open_newest(&database)?;
            state.held.entry(version).or_insert(Held { pairs: Arc::new(pairs), users: 0, given: now });
            version
        };
        let held = state.held.get_mut(&version).expect("it was there or has been put there");
        held.users += 1;
        held.given = now;
        Ok(Snapshot { version, snapshots: self.clone() })
    }

    /// `version` is durable. Snapshots that nobody uses are closed.
    pub fn announce(&self, version: u64) {
        let now = self.clock.now();
        let mut state = self.lock();
        state.newest = version;
        state.held.retain(|held_version, held| held.users > 0 || *held_version >= version);
        state.expire(now);
    }

    pub fn newest(&self) -> u64 {
        self.lock().newest
    }

    /// Versions open now.
    pub fn open_versions(&self) -> usize {
        self.lock().held.len()
    }

    /// Gives up the database: no more snapshots, and no more reads from those there are, because of `why`. The first
    /// reason stays.
    pub fn close(&self, why: Error) {
        let (database, held) = {
            let mut state = self.lock();
            let why = state.database.as_ref().map_or_else(Clone::clone, |_| why);
            (std::mem::replace(&mut state.database, Err(why)), std::mem::take(&mut state.held))
        };
        drop(held);
        drop(database);
    }

    pub fn read(&self, version: u64, batch: &ReadBatch<'_>) -> Result<Found> {
        let pairs = {
            let state = self.lock();
            if let Err(why) = &state.database {
                return Err(why.clone());
            }
            let held = state.held.get(&version).ok_or_else(|| too_old(version))?;
            if version != state.newest && self.clock.now().saturating_sub(held.given) > TRANSACTION_AGE_MAX {
                return Err(too_old(version));
            }
            held.pairs.clone()
        };
        let get = |key: &&[u8]| {
            let stored = pairs.get(*key).map_err(translate)?;
            stored.map(|stored| open(key, stored.value()).map(<[u8]>::to_vec)).transpose()
        };
        Ok(Found {
            values: batch.keys.iter().map(get).collect::<Result<_>>()?,
            pages: batch.ranges.iter().map(|read| page(&pairs, read)).collect::<Result<_>>()?,
        })
    }
}

fn too_old(version: u64) -> Error {
    Error::mismatch(ErrorCode::KvTooOld, 0, version, "the snapshot is gone")
}

impl State {
    fn expire(&mut self, now: Duration) {
        let newest = self.newest;
        self.held.retain(|version, held| {
            *version >= newest || now.saturating_sub(held.given) <= TRANSACTION_AGE_MAX
        });
    }
}

fn open_newest(database: &Database) -> Result<(u64, Pairs)> {
    let read = database.begin_read().map_err(translate)?;
    let about = read.open_table(ABOUT).map_err(translate)?;
    let version = about.get(VERSION_ROW).map_err(translate)?.map(|row| row.value());
    let version = version.ok_or_else(|| Error::new(ErrorCode::Corrupt, "the store has lost its version"))?;
    Ok((version, read.open_table(PAIRS).map_err(translate)?))
}

type Guard<'a> = redb::AccessGuard<'a, &'static [u8]>;
type StoredPair<'a> = Result<(Guard<'a>, Guard<'a>), redb::StorageError>;

fn page(pairs: &Pairs, read: &RangeRead) -> Result<RangePage> {
    if read.range.is_empty() {
        return Ok(RangePage::default());
    }
    let (begin, end) = (read.range.begin.as_slice(), read.range.end.as_slice());
    let found = ReadableTable::range::<&[u8]>(pairs, begin..end).map_err(translate)?;
    let pair = |found: StoredPair<'_>| {
        let (key, stored) = found.map_err(translate)?;
        Ok((key.value().to_vec(), open(key.value(), stored.value())?.to_vec()))
    };
    match read.direction {
        Direction::Forward => fill_page(found.map(pair), read.limit),
        Direction::Reverse => fill_page(found.rev().map(pair), read.limit),
    }
}
