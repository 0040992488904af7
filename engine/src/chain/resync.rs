//! The walk of a predecessor over all its chunks that makes its successor hold the same: compare a range, fill what differs,
//! go on; at the end hand over the table of duplicates.
//!
//! Bounded: one range is compared at a time, and few chunks are under way. It keeps nothing: when it is begun again, under a
//! new chain version or by another predecessor, ranges that are equal by now cost one question each.
//!
//! Updates that come meanwhile go to the successor as to any other, so what was compared stays equal.

use crate::event::{Nanos, Told};
use crate::store::Entry;
use corefs_wire::limits::{COMPARE_CHUNKS_MAX, FILLS_MAX};
use corefs_wire::{ChunkId, TargetId, UpdateTag};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Bytes a second at which a node fills others, unless it is told otherwise. What that costs readers is in docs/performance.md.
pub const RATE_DEFAULT: u64 = 50 << 20;
/// Bytes that are sent, checked and written at once: for as long as that takes, nobody reads from the shard (docs/performance.md).
const PART: u32 = 32 << 10;
/// Chunks of all targets of a shard under way together.
const SHARD_FILLS_MAX: usize = 2 * FILLS_MAX;

/// How fast a shard may fill others. A bucket that holds a tenth of a second, and may be overdrawn by one chunk: what a chunk
/// takes is spent when it begins, so that those under way together don't come in bursts.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pace {
    /// Bytes a second.
    rate: u64,
    level: i64,
    since: Nanos,
    /// Chunks under way.
    filling: usize,
    /// Most bytes of a part, and most chunks of a range.
    pub part: u32,
    pub range: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self::new(RATE_DEFAULT, PART, COMPARE_CHUNKS_MAX)
    }
}

impl Pace {
    pub fn new(rate: u64, part: u32, range: usize) -> Self {
        Self { rate: rate.max(1), level: 0, since: 0, filling: 0, part, range: range.min(COMPARE_CHUNKS_MAX) }
    }

    /// With ranges as large as frames allow.
    pub fn of_rate(rate: u64) -> Self {
        Self { rate: rate.max(1), ..Self::default() }
    }

    /// Whether another chunk may begin; else when to ask again.
    pub fn admits(&mut self, now: Nanos) -> Result<(), Nanos> {
        const WAIT: Nanos = 5_000_000;
        let elapsed = now.saturating_sub(self.since);
        let more = u128::from(self.rate) * u128::from(elapsed) / 1_000_000_000;
        if more > 0 {
            let most = (self.rate / 10).max(1) as i64;
            self.level = self.level.saturating_add(i64::try_from(more).unwrap_or(i64::MAX)).min(most);
            self.since = now;
        }
        match self.filling < SHARD_FILLS_MAX {
            true if self.level > 0 => Ok(()),
            true => {
                let debt = u128::from(self.level.unsigned_abs()) + 1;
                Err(now + WAIT.max((debt * 1_000_000_000 / u128::from(self.rate)) as Nanos))
            }
            false => Err(now + WAIT),
        }
    }

    pub fn spend(&mut self, bytes: u32) {
        self.level -= i64::from(bytes);
    }

    /// A chunk of so many bytes begins.
    pub fn begin(&mut self, bytes: u32) {
        self.filling += 1;
        self.spend(bytes);
    }

    pub fn end(&mut self) {
        self.filling = self.filling.checked_sub(1).expect("no more chunks end than began");
    }
}

/// How far a walk has come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Progress {
    /// Chunks compared so far, of how many.
    pub compared: u64,
    pub to_compare: u64,
    pub sent_chunks: u64,
    pub sent_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    /// The next range is to be compared.
    Compare,
    Comparing,
    /// What differs in the range is sent.
    Fill,
    /// Rows are to be handed over.
    Rows,
    Handing {
        last: Option<UpdateTag>,
        finish: bool,
    },
    /// The successor has everything, and says so to the manager.
    Done,
}

/// The walk. See the module's documentation.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Resync {
    pub to: TargetId,
    pub chain_version: u64,
    pub stage: Stage,
    /// The number of the present question or pause.
    pub ticket: u64,
    /// The present range, both ends included, and how many chunks of ours were in it.
    pub from: ChunkId,
    pub last: ChunkId,
    pub chunks: u64,
    work: VecDeque<ChunkId>,
    under_way: BTreeSet<ChunkId>,
    /// The last row that was handed over.
    pub row: Option<UpdateTag>,
    pub progress: Progress,
}

impl Resync {
    pub fn new(to: TargetId, chain_version: u64, to_compare: u64) -> Self {
        Self {
            to,
            chain_version,
            stage: Stage::Compare,
            ticket: 0,
            from: ChunkId::default(),
            last: ChunkId::MAX,
            chunks: 0,
            work: VecDeque::new(),
            under_way: BTreeSet::new(),
            row: None,
            progress: Progress { to_compare, ..Progress::default() },
        }
    }

    /// The answer to a comparison: our chunks of the range as they are now are `ours`. False for one that makes no sense.
    pub fn compared(&mut self, told: Told, ours: impl FnOnce(ChunkId) -> Vec<Entry>) -> bool {
        match told {
            Told::Equal => {}
            Told::Differs { covered, entries, .. } if (self.from..=self.last).contains(&covered) => {
                self.last = covered;
                let ours = ours(covered);
                let mut theirs: BTreeMap<ChunkId, Entry> =
                    entries.into_iter().map(|entry| (entry.chunk, entry)).collect();
                let mut work = BTreeSet::new();
                for entry in ours {
                    if theirs.remove(&entry.chunk).is_none_or(|theirs| theirs.digest != entry.digest) {
                        work.insert(entry.chunk);
                    }
                }
                work.extend(theirs.values().filter(|entry| !entry.removed).map(|entry| entry.chunk));
                self.work = work.into_iter().collect();
            }
            Told::Differs { .. } | Told::Taken => return false,
        }
        self.stage = Stage::Fill;
        true
    }

    /// Whether another chunk waits to be sent.
    pub fn has_work(&self) -> bool {
        !self.work.is_empty() && self.under_way.len() < FILLS_MAX
    }

    pub fn take_work(&mut self) -> Option<ChunkId> {
        let chunk = self.work.pop_front()?;
        self.under_way.insert(chunk);
        Some(chunk)
    }

    /// A chunk is filled.
    pub fn filled(&mut self, chunk: ChunkId) {
        self.under_way.remove(&chunk);
    }

    /// Goes on to the next range when this one is done; says whether it is.
    pub fn end_range(&mut self) -> bool {
        if !self.work.is_empty() || !self.under_way.is_empty() {
            return false;
        }
        self.progress.compared += self.chunks;
        self.progress.to_compare = self.progress.to_compare.max(self.progress.compared);
        self.stage = match self.last.next() {
            Some(next) => {
                self.from = next;
                Stage::Compare
            }
            None => Stage::Rows,
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::InodeId;

    fn entry(index: u32, digest: u64, removed: bool) -> Entry {
        let chunk = ChunkId::new(InodeId(1), index);
        Entry { chunk, version: 1, epoch: 0, length: 1, mapped: 1, removed, digest }
    }

    #[test]
    fn a_range_is_done_when_all_that_differs_is_filled() {
        let mut resync = Resync::new(TargetId(2), 5, 4);
        (resync.stage, resync.chunks) = (Stage::Comparing, 4);
        let ours = vec![entry(1, 10, false), entry(2, 20, false), entry(3, 30, true), entry(4, 40, false)];
        let entries = vec![entry(1, 10, false), entry(2, 99, false), entry(5, 50, false), entry(6, 60, true)];
        let covered = ChunkId::new(InodeId(1), 8);
        assert!(resync.compared(Told::Differs { covered, entries, permit: 0 }, |_| ours));
        let mut work = Vec::new();
        while resync.has_work() {
            work.push(resync.take_work().unwrap().index);
        }
        assert_eq!(work, [2, 3, 4, 5], "what differs, what they lack, what they have too much");
        assert!(!resync.end_range());
        work.iter().for_each(|index| resync.filled(ChunkId::new(InodeId(1), *index)));
        assert!(resync.end_range());
        assert_eq!((resync.stage, resync.from), (Stage::Compare, covered.next().unwrap()));
        resync.last = ChunkId::MAX;
        assert!(resync.compared(Told::Equal, |_| Vec::new()) && resync.end_range());
        assert_eq!(resync.stage, Stage::Rows);
    }

    #[test]
    fn nonsense_is_no_answer() {
        let mut resync = Resync::new(TargetId(2), 5, 0);
        (resync.from, resync.last) = (ChunkId::new(InodeId(5), 0), ChunkId::new(InodeId(6), 0));
        let differs = |inode| Told::Differs {
            covered: ChunkId::new(InodeId(inode), 0),
            entries: Vec::new(),
            permit: 0,
        };
        assert!(!resync.compared(differs(4), |_| Vec::new()) && !resync.compared(differs(7), |_| Vec::new()));
        assert!(!resync.compared(Told::Taken, |_| Vec::new()));
        assert!(resync.compared(differs(5), |_| Vec::new()));
    }

    #[test]
    fn the_pace_is_kept() {
        let second = 1_000_000_000;
        let mut pace = Pace::new(1000, 100, 4);
        let mut now = second;
        let mut sent = 0;
        while now < 11 * second {
            match pace.admits(now) {
                Ok(()) => {
                    pace.spend(100);
                    sent += 100;
                }
                Err(at) => {
                    assert!(at > now);
                    now = at;
                }
            }
        }
        assert!((9_500..=10_500).contains(&sent), "{sent} bytes in ten seconds");
        for _ in 0..SHARD_FILLS_MAX {
            pace.begin(0);
        }
        assert!(pace.admits(100 * second).is_err(), "too much is under way");
        pace.end();
        assert!(pace.admits(100 * second).is_ok());
    }
}
