//! Which versions may still be read and committed from: the newest, and those superseded less than five seconds
//! ago. Pure.

use crate::bounds::{TRANSACTION_AGE_MAX, VERSIONS_REMEMBERED_MAX};
use std::collections::VecDeque;
use std::time::Duration;

/// The versions that are no longer the newest, oldest first, with what a store keeps for each.
#[derive(Debug)]
pub struct Window<T> {
    versions: VecDeque<(u64, Duration, T)>,
}

impl<T> Default for Window<T> {
    fn default() -> Self {
        Self { versions: VecDeque::new() }
    }
}

impl<T> Window<T> {
    /// Versions superseded and not yet forgotten.
    pub fn len(&self) -> usize {
        self.versions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.versions.is_empty()
    }

    /// `version` stopped being the newest at `now`.
    pub fn superseded(&mut self, version: u64, now: Duration, kept: T) {
        self.versions.push_back((version, now, kept));
    }

    /// The next version to be forgotten: gives the oldest version that remains, and what was kept for the one that
    /// goes.
    pub fn pop_expired(&mut self, now: Duration) -> Option<(u64, T)> {
        let since = self.versions.front()?.1;
        let expired = now.saturating_sub(since) > TRANSACTION_AGE_MAX;
        if expired || self.versions.len() > VERSIONS_REMEMBERED_MAX { self.pop_oldest() } else { None }
    }

    /// The same, whatever its age: for stores at a bound of memory.
    pub fn pop_oldest(&mut self) -> Option<(u64, T)> {
        self.versions.pop_front().map(|(version, _, kept)| (version + 1, kept))
    }
}
