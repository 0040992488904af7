//! The snapshots that transactions read from, by version.
//!
//! A version is read from the [`Layer`] that was the newest when it was. While one lives redb can't reuse any page freed since its tree
//! was written, and the rows of a version stay in memory: so a version is held only once somebody asks for it, shared by all who ask for the
//! same, and let go when the last of them is done, or five seconds after anybody was given it, whether they are done or not.

use super::layer::Layer;
use crate::bounds::TRANSACTION_AGE_MAX;
use crate::clock::Clock;
use crate::store::{Found, ReadBatch};
use corefs_wire::{Error, ErrorCode, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Versions open at once. Live transactions spread over as many commits as happen while they run.
pub const SNAPSHOTS_MAX: usize = 512;

struct Held {
    layer: Arc<Layer>,
    users: usize,
    /// When it was last given to somebody.
    given: Duration,
}

struct State {
    /// Or why there is none any more.
    layer: Result<Arc<Layer>>,
    /// The newest durable version, which is of that layer.
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
        let gone = {
            let mut state = self.snapshots.lock();
            let newest = state.newest;
            let Some(held) = state.held.get_mut(&self.version) else { return };
            held.users -= 1;
            if held.users == 0 && self.version != newest { state.held.remove(&self.version) } else { None }
        };
        // A layer may have thousands of rows: not under the lock.
        drop(gone);
    }
}

impl Snapshots {
    pub fn new(layer: Arc<Layer>, newest: u64, clock: Clock) -> Self {
        Self { state: Mutex::new(State { layer: Ok(layer), newest, held: BTreeMap::new() }), clock }
    }

    /// No code that may panic runs under the lock with the state half changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest version; everything acknowledged before this call is in it.
    pub fn take(self: &Arc<Self>) -> Result<Snapshot> {
        let now = self.clock.now();
        // Dropped when the lock is free again.
        let mut _gone = Vec::new();
        let mut state = self.lock();
        let layer = state.layer.clone()?;
        let version = state.newest;
        if !state.held.contains_key(&version) {
            _gone = state.expire(now);
            if state.held.len() >= SNAPSHOTS_MAX {
                let (limit, actual) = (SNAPSHOTS_MAX as u64, state.held.len() as u64);
                let what = "too many versions are being read";
                return Err(Error::mismatch(ErrorCode::KvUnavailable, limit, actual, what));
            }
        }
        let held = state.held.entry(version).or_insert_with(|| Held { layer, users: 0, given: now });
        held.users += 1;
        held.given = now;
        Ok(Snapshot { version, snapshots: self.clone() })
    }

    /// `version` is durable, in the layer there is or in a new one. Snapshots that nobody uses are closed.
    pub fn announce(&self, version: u64, layer: Option<Arc<Layer>>) {
        let now = self.clock.now();
        let gone = {
            let mut state = self.lock();
            state.newest = version;
            let replaced = match (&mut state.layer, layer) {
                (Ok(newest), Some(layer)) => Some(std::mem::replace(newest, layer)),
                _ => None,
            };
            let unused = state.held.extract_if(..version, |_, held| held.users == 0);
            let unused: Vec<Held> = unused.map(|(_, held)| held).collect();
            (replaced, unused, state.expire(now))
        };
        // Not under the lock, as in `drop`.
        drop(gone);
    }

    /// The oldest version that is read, or will be.
    pub fn oldest(&self) -> u64 {
        let state = self.lock();
        state.held.keys().next().map_or(state.newest, |held| state.newest.min(*held))
    }

    pub fn newest(&self) -> u64 {
        self.lock().newest
    }

    /// Versions open now.
    pub fn open_versions(&self) -> usize {
        self.lock().held.len()
    }

    /// Gives up the layers: no more snapshots, and no more reads from those there are, because of `why`. The first
    /// reason stays.
    pub fn close(&self, why: Error) {
        let (layer, held) = {
            let mut state = self.lock();
            let why = state.layer.as_ref().map_or_else(Clone::clone, |_| why);
            (std::mem::replace(&mut state.layer, Err(why)), std::mem::take(&mut state.held))
        };
        drop(held);
        drop(layer);
    }

    pub fn read(&self, version: u64, batch: &ReadBatch<'_>) -> Result<Found> {
        let layer = {
            let state = self.lock();
            if let Err(why) = &state.layer {
                return Err(why.clone());
            }
            let held = state.held.get(&version).ok_or_else(|| too_old(version))?;
            if version != state.newest && self.clock.now().saturating_sub(held.given) > TRANSACTION_AGE_MAX {
                return Err(too_old(version));
            }
            held.layer.clone()
        };
        layer.read(version, batch)
    }
}

pub(super) fn too_old(version: u64) -> Error {
    Error::mismatch(ErrorCode::KvTooOld, 0, version, "the snapshot is gone")
}

impl State {
    /// Ends the right to read at versions that were given out too long ago. What they held is the caller's to drop, outside the lock.
    #[must_use]
    fn expire(&mut self, now: Duration) -> Vec<Held> {
        let old = |_: &u64, held: &mut Held| now.saturating_sub(held.given) > TRANSACTION_AGE_MAX;
        self.held.extract_if(..self.newest, old).map(|(_, held)| held).collect()
    }
}
