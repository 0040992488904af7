//! Which data blocks are free. Groups of 128 blocks (a default chunk) keep large writes in one piece: whole
//! groups go to them, small writes fill groups that are broken already.

use super::format::GRANULE_BLOCKS;
use super::record::{Run, push_run};

/// Groups that are looked at for a run of the wanted length before a whole group is broken for it.
const SEARCH_GROUPS_MAX: usize = 8;

/// A set of numbers below a bound with a fast "next member from here on": a bit each, and above every 64 words a
/// bit that says whether any is set.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct BitTree {
    levels: Vec<Vec<u64>>,
}

impl BitTree {
    fn new(len: usize) -> Self {
        let mut levels = vec![vec![0; len.div_ceil(64).max(1)]];
        while levels.last().is_some_and(|level| level.len() > 1) {
            let words = levels.last().map_or(1, |level| level.len().div_ceil(64));
            levels.push(vec![0; words]);
        }
        Self { levels }
    }

    fn set(&mut self, mut index: usize) {
        for level in &mut self.levels {
            level[index / 64] |= 1 << (index % 64);
            index /= 64;
        }
    }

    fn clear(&mut self, mut index: usize) {
        for level in &mut self.levels {
            level[index / 64] &= !(1 << (index % 64));
            if level[index / 64] != 0 {
                break;
            }
            index /= 64;
        }
    }

    /// The first member at or after `index`.
    fn next(&self, index: usize) -> Option<usize> {
        let mut index = index;
        for depth in 0..self.levels.len() {
            let word = *self.levels[depth].get(index / 64)?;
            let rest = word & (u64::MAX << (index % 64));
            if rest != 0 {
                let mut found = index / 64 * 64 + rest.trailing_zeros() as usize;
                for level in self.levels[..depth].iter().rev() {
                    found = found * 64 + level[found].trailing_zeros() as usize;
                }
                return Some(found);
            }
            index = index / 64 + 1;
        }
        None
    }

    /// The first member at or after `index`, going on at 0 after the end.
    fn next_around(&self, index: usize) -> Option<usize> {
        self.next(index).or_else(|| self.next(0))
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Allocator {
    /// A set bit is a free block.
    groups: Vec<u128>,
    blocks: u32,
    free: u64,
    /// Groups that are wholly free, and those that are partly free.
    whole: BitTree,
    broken: BitTree,
    /// The group that was allocated from last.
    cursor: usize,
}

impl Allocator {
    /// All blocks free.
    pub(super) fn new(blocks: u32) -> Self {
        let count = blocks.div_ceil(GRANULE_BLOCKS) as usize;
        let (whole, broken) = (BitTree::new(count), BitTree::new(count));
        let mut new = Self { groups: vec![0; count], blocks, free: 0, whole, broken, cursor: 0 };
        new.give(Run { start: 0, count: blocks });
        new
    }

    pub(super) fn free(&self) -> u64 {
        self.free
    }

    pub(super) fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Whether a block is free; `None` if it doesn't exist.
    pub(super) fn is_free(&self, block: u32) -> Option<bool> {
        let group = *self.groups.get((block / GRANULE_BLOCKS) as usize)?;
        (block < self.blocks).then_some(group >> (block % GRANULE_BLOCKS) & 1 == 1)
    }

    /// All free blocks, in as few runs as there are.
    pub(super) fn free_runs(&self) -> impl Iterator<Item = Run> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.first(at, true);
            at = self.first(start, false);
            (start < at).then_some(Run { start, count: at - start })
        })
    }

    /// The first block from `block` on that is free, or the first that isn't; the number of blocks if there is none.
    fn first(&self, mut block: u32, free: bool) -> u32 {
        while block < self.blocks {
            let (group, bit) = (self.groups[(block / GRANULE_BLOCKS) as usize], block % GRANULE_BLOCKS);
            match (if free { group } else { !group }) >> bit {
                0 => block += GRANULE_BLOCKS - bit,
                bits => return (block + bits.trailing_zeros()).min(self.blocks),
            }
        }
        self.blocks
    }

    fn update(&mut self, group: usize, bits: u128) {
        self.groups[group] = bits;
        match bits {
            u128::MAX => self.whole.set(group),
            _ => self.whole.clear(group),
        }
        match bits {
            0 | u128::MAX => self.broken.clear(group),
            _ => self.broken.set(group),
        }
    }

    /// Calls `change` for each group that the run touches, with the run's bits in it.
    fn for_groups(run: Run, mut change: impl FnMut(usize, u128)) {
        let (mut block, end) = (run.start, run.start + run.count);
        while block < end {
            let (group, bit) = (block / GRANULE_BLOCKS, block % GRANULE_BLOCKS);
            let count = (GRANULE_BLOCKS - bit).min(end - block);
            change(group as usize, mask(bit, count));
            block += count;
        }
    }

    /// Gives blocks back. They must not be free already.
    pub(super) fn give(&mut self, run: Run) {
        assert!(
            run.start.checked_add(run.count).is_some_and(|end| end <= self.blocks),
            "no such blocks: {run:?}"
        );
        Self::for_groups(run, |group, mask| {
            assert!(self.groups[group] & mask == 0, "blocks of {run:?} are given back twice");
            self.update(group, self.groups[group] | mask);
        });
        self.free += u64::from(run.count);
    }

    /// Takes particular blocks; false, and nothing taken, if one isn't free or doesn't exist.
    pub(super) fn claim(&mut self, run: Run) -> bool {
        if run.start.checked_add(run.count).is_none_or(|end| end > self.blocks) {
            return false;
        }
        let mut all = true;
        Self::for_groups(run, |group, mask| all &= self.groups[group] & mask == mask);
        if all {
            Self::for_groups(run, |group, mask| self.update(group, self.groups[group] & !mask));
            self.free -= u64::from(run.count);
        }
        all
    }

    /// Takes `count` blocks in as few runs as is easy. False, and nothing taken, if there aren't so many.
    pub(super) fn allocate(&mut self, count: u32, out: &mut Vec<Run>) -> bool {
        if u64::from(count) > self.free {
            return false;
        }
        let mut left = count;
        while left > 0 {
            let run = self.next_run(left);
            let taken = self.claim(run);
            assert!(taken && run.count > 0 && run.count <= left, "the allocator's sets disagree");
            self.cursor = (run.start / GRANULE_BLOCKS) as usize;
            push_run(out, run);
            left -= run.count;
        }
        true
    }

    /// The best free run of at most `want` blocks.
    fn next_run(&self, want: u32) -> Run {
        let at = |group: usize, bit: u32, count| Run { start: group as u32 * GRANULE_BLOCKS + bit, count };
        let whole = self.whole.next_around(self.cursor);
        if want >= GRANULE_BLOCKS
            && let Some(group) = whole
        {
            return at(group, 0, GRANULE_BLOCKS);
        }
        if want < GRANULE_BLOCKS {
            let mut from = self.cursor;
            for _ in 0..SEARCH_GROUPS_MAX {
                let Some(group) = self.broken.next_around(from) else { break };
                if let Some(bit) = find_run(self.groups[group], want) {
                    return at(group, bit, want);
                }
                from = group + 1;
            }
            if let Some(group) = whole {
                return at(group, 0, want);
            }
        }
        let group = self.broken.next_around(self.cursor).unwrap_or(0);
        let bits = self.groups[group];
        let bit = bits.trailing_zeros();
        at(group, bit, (!(bits >> (bit % 128))).trailing_zeros().min(want))
    }
}

fn mask(bit: u32, count: u32) -> u128 {
    (u128::MAX >> (GRANULE_BLOCKS - count)) << bit
}

/// The lowest position of `count` (1 to 127) set bits in a row.
fn find_run(bits: u128, count: u32) -> Option<u32> {
    // After each step a set bit starts a run of `have` set bits.
    let (mut starts, mut have) = (bits, 1);
    while have < count && starts != 0 {
        let step = have.min(count - have);
        starts &= starts >> step;
        have += step;
    }
    (starts != 0).then(|| starts.trailing_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_runs_of_every_length() {
        assert_eq!(find_run(0b0111_0110, 3), Some(4));
        assert_eq!(find_run(0b0111_0110, 2), Some(1));
        assert_eq!(find_run(0b0111_0110, 4), None);
        assert_eq!(find_run(u128::MAX << 1, 127), Some(1));
    }

    #[test]
    fn the_tree_finds_members_across_levels() {
        let mut tree = BitTree::new(300_000);
        for member in [3, 64, 5_000, 262_145, 299_999] {
            tree.set(member);
        }
        assert_eq!(tree.next(4), Some(64));
        assert_eq!(tree.next(65), Some(5_000));
        assert_eq!(tree.next(5_001), Some(262_145));
        assert_eq!(tree.next(262_146), Some(299_999));
        tree.clear(5_000);
        assert_eq!(tree.next(65), Some(262_145));
        assert_eq!(BitTree::new(64).next(70), None);
    }

    #[test]
    fn every_block_is_given_once_and_large_wishes_are_contiguous() {
        let mut allocator = Allocator::new(1000);
        let mut runs = Vec::new();
        assert!(allocator.allocate(128, &mut runs));
        assert_eq!(runs, [Run { start: 0, count: 128 }]);
        for _ in 0..(1000 - 128) {
            assert!(allocator.allocate(1, &mut runs));
        }
        assert!(!allocator.allocate(1, &mut runs));
        let mut blocks: Vec<u32> = runs.iter().flat_map(|run| run.start..run.start + run.count).collect();
        blocks.sort_unstable();
        assert_eq!(blocks, (0..1000).collect::<Vec<_>>());
        blocks.iter().step_by(2).for_each(|block| allocator.give(Run { start: *block, count: 1 }));
        let mut scattered = Vec::new();
        assert!(allocator.allocate(500, &mut scattered) && allocator.free() == 0);
    }

    #[test]
    fn free_runs_are_all_that_is_free() {
        let mut allocator = Allocator::new(1000);
        let runs = |allocator: &Allocator| {
            allocator.free_runs().map(|run| (run.start, run.count)).collect::<Vec<_>>()
        };
        assert_eq!(runs(&allocator), [(0, 1000)]);
        for (start, count) in [(0, 1), (127, 2), (300, 400), (999, 1)] {
            assert!(allocator.claim(Run { start, count }));
        }
        assert_eq!(runs(&allocator), [(1, 126), (129, 171), (700, 299)]);
        assert!(allocator.claim(Run { start: 700, count: 299 }));
        assert_eq!(runs(&allocator), [(1, 126), (129, 171)]);
        assert_eq!(runs(&Allocator::new(0)), []);
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn giving_back_twice_is_a_bug() {
        let mut allocator = Allocator::new(1000);
        allocator.give(Run { start: 5, count: 1 });
    }
}
