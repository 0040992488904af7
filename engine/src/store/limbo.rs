//! Superseded blocks on their way to freedom, and the reads that hold them up.
//!
//! A block in limbo becomes free when the record that superseded it is flushed and every read that began before
//! it came here has ended. Reads are counted by generation: a new one begins whenever blocks come while the
//! present one has readers, so that later readers, who can't have seen these blocks, don't hold them up.

use super::read::Pin;
use super::record::Run;
use std::collections::VecDeque;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Entry {
    runs: Vec<Run>,
    /// The record that must be flushed.
    record: u64,
    /// Reads of this and earlier generations may look at the blocks.
    generation: u64,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Limbo {
    entries: VecDeque<Entry>,
    blocks: u64,
    /// Readers of each generation from `oldest` on; never empty.
    readers: VecDeque<u32>,
    oldest: u64,
}

impl Limbo {
    pub(super) fn new() -> Self {
        Self { entries: VecDeque::new(), blocks: 0, readers: VecDeque::from([0]), oldest: 1 }
    }

    #[inline]
    pub(super) fn pin(&mut self) -> Pin {
        let last = self.readers.len() - 1;
        self.readers[last] += 1;
        Pin { generation: self.oldest + last as u64, released: false }
    }

    #[inline]
    pub(super) fn unpin(&mut self, mut pin: Pin) {
        pin.released = true;
        let readers = &mut self.readers[(pin.generation - self.oldest) as usize];
        assert!(*readers > 0, "a pin of another store");
        *readers -= 1;
        while self.readers.len() > 1 && self.readers[0] == 0 {
            self.readers.pop_front();
            self.oldest += 1;
        }
    }

    /// Takes blocks whose superseding record has this number.
    pub(super) fn put(&mut self, runs: Vec<Run>, record: u64) {
        if runs.is_empty() {
            return;
        }
        self.blocks += runs.iter().map(|run| u64::from(run.count)).sum::<u64>();
        let newest = self.oldest + self.readers.len() as u64 - 1;
        let read = self.readers.back().is_some_and(|readers| *readers > 0);
        if read {
            self.readers.push_back(0);
        }
        let generation = if read { newest } else { newest - 1 };
        self.entries.push_back(Entry { runs, record, generation });
    }

    /// The next blocks that are free, given that records below `flushed` are flushed.
    pub(super) fn take(&mut self, flushed: u64) -> Option<Vec<Run>> {
        let free = |entry: &&Entry| entry.record < flushed && entry.generation < self.oldest;
        self.entries.front().filter(free)?;
        let runs = self.entries.pop_front()?.runs;
        self.blocks -= runs.iter().map(|run| u64::from(run.count)).sum::<u64>();
        Some(runs)
    }

    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Every block in limbo.
    pub(super) fn runs(&self) -> impl Iterator<Item = Run> {
        self.entries.iter().flat_map(|entry| entry.runs.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(start: u32) -> Vec<Run> {
        vec![Run { start, count: 1 }]
    }

    #[test]
    fn waits_for_the_flush_and_for_earlier_readers_only() {
        let mut limbo = Limbo::new();
        let before = limbo.pin();
        limbo.put(block(1), 5);
        let after = limbo.pin();
        assert_eq!(limbo.take(5), None, "record 5 isn't flushed");
        assert_eq!(limbo.take(6), None, "an earlier reader is there");
        limbo.unpin(before);
        assert_eq!(limbo.take(6), Some(block(1)), "the later reader doesn't matter");
        limbo.put(block(2), 6);
        assert_eq!(limbo.take(7), None);
        limbo.unpin(after);
        assert_eq!(limbo.take(7), Some(block(2)));
        assert_eq!(limbo.blocks(), 0);
    }

    #[test]
    fn a_reader_that_comes_after_the_blocks_never_holds_them_up() {
        let mut limbo = Limbo::new();
        limbo.put(block(1), 1);
        let reader = limbo.pin();
        assert_eq!(limbo.take(2), Some(block(1)));
        limbo.unpin(reader);
    }
}
