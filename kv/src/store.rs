//! The seam between the shared transaction ([`Txn`](crate::txn::Txn)) and a backend of ours: reads at a version, and
//! one-shot commits.

use crate::bounds::{PAGE_BYTES_MAX, PAGE_PAIRS_MAX, mutation_bytes, range_bytes};
use crate::contract::{Committed, KeyRange, Pair, RangePage, RangeRead};
use crate::mutation::Mutation;
use corefs_wire::Result;
use std::time::Duration;

/// Gets and ranges that are read in one round trip at one version.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ReadBatch<'a> {
    pub keys: Vec<&'a [u8]>,
    pub ranges: Vec<RangeRead>,
}

/// What a [`ReadBatch`] found: as many values and pages as it had keys and ranges, in its order.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Found {
    pub values: Vec<Option<Vec<u8>>>,
    pub pages: Vec<RangePage>,
}

/// A finished transaction on its way to the store.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Commit {
    /// The version that `read_conflicts` were read at. 0: nothing was read, so nothing can conflict.
    pub read_version: u64,
    pub read_conflicts: Vec<KeyRange>,
    /// Besides what the mutations write.
    pub write_conflicts: Vec<KeyRange>,
    pub mutations: Vec<Mutation>,
}

impl Commit {
    /// What counts towards the limit of a transaction.
    pub fn bytes(&self) -> usize {
        let conflicts = self.read_conflicts.iter().chain(&self.write_conflicts).map(range_bytes);
        self.mutations.iter().map(mutation_bytes).chain(conflicts).sum()
    }
}

/// What a backend does; [`Txn`](crate::txn::Txn) makes transactions of it.
#[allow(async_fn_in_trait)] // executors are single-threaded: futures need not be Send
pub trait Store: Clone + 'static {
    /// The right to read at one version. Dropping it lets the store forget that version.
    type Snapshot;

    fn version(snapshot: &Self::Snapshot) -> u64;

    /// A clock that only goes forward; its zero means nothing.
    fn now(&self) -> Duration;

    /// The newest version.
    async fn snapshot(&self) -> Result<Self::Snapshot>;

    /// Reads at `snapshot`; where there is none yet, the store takes the newest one along with the read, and leaves
    /// it there.
    async fn read(&self, snapshot: &mut Option<Self::Snapshot>, batch: ReadBatch<'_>) -> Result<Found>;

    /// All of it or nothing. The snapshot that it read at has been dropped.
    async fn commit(&self, commit: Commit) -> Result<Committed>;

    async fn pause(&self, duration: Duration);

    /// A number for jitter. Need not be good.
    fn random(&self) -> u64;
}

/// A page of the first `limit` pairs, or fewer when they get large.
pub fn fill_page(pairs: impl Iterator<Item = Result<Pair>>, limit: usize) -> Result<RangePage> {
    let mut page = RangePage::default();
    let mut bytes = 0;
    for pair in pairs {
        if page.pairs.len() >= limit.min(PAGE_PAIRS_MAX) || bytes >= PAGE_BYTES_MAX {
            page.more = true;
            break;
        }
        let (key, value) = pair?;
        bytes += key.len() + value.len();
        page.pairs.push((key, value));
    }
    Ok(page)
}
