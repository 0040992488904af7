//! Slots in the order of their chunks' ids: a tree of two levels, in 4 to 8 bytes a chunk.
//!
//! Leaves hold slot numbers alone; whoever asks says which id a slot has. Chunks that come in order, as those of a file do,
//! fill their leaves; others leave them half full at worst.

use corefs_wire::ChunkId;
use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};

/// Most slots of a leaf.
const LEAF: usize = 256;

#[derive(Clone, Debug, Default)]
pub(super) struct Order {
    /// By an id that is not above those of the leaf, and above those of the leaf before. None is empty.
    leaves: BTreeMap<ChunkId, Vec<u32>>,
}

impl Order {
    /// Puts a slot whose id isn't there yet.
    pub(super) fn insert(&mut self, id: ChunkId, slot: u32, id_of: impl Fn(u32) -> ChunkId) {
        let Some((_, leaf)) = self.leaves.range_mut(..=id).next_back() else {
            return self.insert_first(id, slot);
        };
        let at = leaf.partition_point(|slot| id_of(*slot) < id);
        if leaf.len() < LEAF {
            leaf.insert(at, slot);
            return;
        }
        // One that comes after a full leaf begins a new one: a half of the full one would never be filled.
        let mut upper = if at == LEAF { Vec::new() } else { leaf.split_off(LEAF / 2) };
        leaf.shrink_to_fit();
        match at.checked_sub(leaf.len()) {
            Some(at) => upper.insert(at, slot),
            None => leaf.insert(at, slot),
        }
        self.leaves.insert(id_of(upper[0]), upper);
    }

    /// One before all others: the first leaf, if there is one, takes it under a new key.
    fn insert_first(&mut self, id: ChunkId, slot: u32) {
        let room = self.leaves.first_entry().filter(|first| first.get().len() < LEAF);
        let mut leaf = room.map_or_else(Vec::new, |first| first.remove());
        leaf.insert(0, slot);
        self.leaves.insert(id, leaf);
    }

    /// Takes the slot of an id out.
    pub(super) fn remove(&mut self, id: &ChunkId, id_of: impl Fn(u32) -> ChunkId) {
        let Some((key, leaf)) = self.leaves.range_mut(..=*id).next_back() else { return };
        let key = *key;
        if let Ok(at) = leaf.binary_search_by_key(id, |slot| id_of(*slot)) {
            leaf.remove(at);
            if leaf.is_empty() {
                self.leaves.remove(&key);
            }
        }
    }

    /// The slots of a range of ids, in order.
    pub(super) fn range(
        &self,
        range: impl RangeBounds<ChunkId>,
        id_of: impl Fn(u32) -> ChunkId + Copy,
    ) -> impl DoubleEndedIterator<Item = u32> {
        let (from, to) = (range.start_bound().cloned(), range.end_bound().cloned());
        let key = match from {
            Bound::Included(id) | Bound::Excluded(id) => {
                self.leaves.range(..=id).next_back().map(|(key, _)| *key)
            }
            Bound::Unbounded => None,
        };
        // An empty range is one here, and a panic for a tree.
        let above = match (from, to) {
            (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => {
                from > to
            }
            _ => false,
        };
        let to = if above { Bound::Excluded(ChunkId::default()) } else { to };
        let first = key.map_or(Bound::Unbounded, Bound::Included);
        let last = match (key, to) {
            // The leaf of the first id is looked at in any case.
            (Some(key), Bound::Included(to) | Bound::Excluded(to)) if to < key => Bound::Included(key),
            _ => to,
        };
        let is_before = move |id: ChunkId| match from {
            Bound::Included(from) => id < from,
            Bound::Excluded(from) => id <= from,
            Bound::Unbounded => false,
        };
        let is_behind = move |id: ChunkId| match to {
            Bound::Included(to) => id > to,
            Bound::Excluded(to) => id >= to,
            Bound::Unbounded => false,
        };
        let leaves = self.leaves.range((first, last));
        leaves.flat_map(move |(_, leaf)| {
            let from = leaf.partition_point(|slot| is_before(id_of(*slot)));
            let to = leaf.partition_point(|slot| !is_behind(id_of(*slot)));
            leaf[from..to.max(from)].iter().copied()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::InodeId;
    use proptest::prelude::*;

    fn id(number: u32) -> ChunkId {
        ChunkId::new(InodeId(u64::from(number) / 10), number % 10)
    }

    #[test]
    fn those_that_come_in_order_fill_their_leaves() {
        let mut order = Order::default();
        (0..10_000).for_each(|number| order.insert(id(number), number, id));
        assert_eq!(order.leaves.len(), 10_000usize.div_ceil(LEAF));
        assert!(order.range(.., id).eq(0..10_000));
    }

    proptest! {
        /// Insertions and removals in any order; ranges of every kind, forwards and backwards, as a sorted set has them.
        #[test]
        fn is_a_sorted_set(
            steps in proptest::collection::vec((any::<bool>(), 0..3000u32), 1..3000),
            ranges in proptest::collection::vec((0..3000u32, 0..3000u32, 0..5u8), 20),
        ) {
            let (mut order, mut expected) = (Order::default(), std::collections::BTreeSet::new());
            for (put, number) in steps {
                if put {
                    if expected.insert(number) {
                        order.insert(id(number), number, id);
                    }
                } else {
                    expected.remove(&number);
                    order.remove(&id(number), id);
                }
            }
            prop_assert!(order.range(.., id).eq(expected.iter().copied()));
            prop_assert!(order.leaves.values().all(|leaf| !leaf.is_empty() && leaf.len() <= LEAF));
            for (a, b, kind) in ranges {
                let (low, high) = (a.min(b), a.max(b));
                let bounds = match kind {
                    0 => (Bound::Included(low), Bound::Included(high)),
                    1 => (Bound::Included(low), Bound::Excluded(high)),
                    2 => (Bound::Excluded(low), Bound::Unbounded),
                    3 => (Bound::Unbounded, Bound::Included(high)),
                    _ => (Bound::Excluded(low), Bound::Included(high)),
                };
                let ids = (bounds.0.map(id), bounds.1.map(id));
                let found: Vec<u32> = order.range(ids, id).collect();
                let wanted: Vec<u32> = expected.iter().copied().filter(|number| bounds.contains(number)).collect();
                prop_assert_eq!(&found, &wanted);
                let back: Vec<u32> = order.range(ids, id).rev().collect();
                prop_assert!(back.iter().rev().eq(&wanted));
            }
            prop_assert_eq!(order.range((Bound::Included(id(9)), Bound::Excluded(id(3))), id).count(), 0);
        }
    }
}
