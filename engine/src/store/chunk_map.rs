//! The chunks of one target, found by hash and walked in order.
//!
//! A look-up is the heart of every read: three cache misses (bucket, chunk, CRC) instead of the dozen of a tree.
//! The hash is fixed and the table is never walked, so that behaviour depends on nothing but what was put in. A
//! target's share of a slice is small enough that growing the table takes some hundred microseconds at most.

use super::chunk::Chunk;
use corefs_wire::ChunkId;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::ops::RangeBounds;

/// Folds each number into the state by a full multiplication: good in high and low bits alike.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Fold(u64);

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number ^ 0x9E37_79B9_7F4A_7C15) * 0xD6E8_FEB8_6659_FD93;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct ChunkMap {
    slots: Vec<Chunk>,
    vacant: Vec<u32>,
    by_id: HashMap<ChunkId, u32, BuildHasherDefault<Fold>>,
    order: BTreeMap<ChunkId, u32>,
}

impl ChunkMap {
    #[inline]
    pub(super) fn get(&self, id: &ChunkId) -> Option<&Chunk> {
        self.slots.get(*self.by_id.get(id)? as usize)
    }

    pub(super) fn get_mut(&mut self, id: &ChunkId) -> Option<&mut Chunk> {
        self.slots.get_mut(*self.by_id.get(id)? as usize)
    }

    /// The chunk of that id; an absent one is put there if there is none.
    pub(super) fn entry(&mut self, id: ChunkId) -> &mut Chunk {
        let slot = match self.by_id.get(&id) {
            Some(slot) => *slot,
            None => self.insert(id),
        };
        &mut self.slots[slot as usize]
    }

    fn insert(&mut self, id: ChunkId) -> u32 {
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(Chunk::absent());
            self.slots.len() as u32 - 1
        });
        self.by_id.insert(id, slot);
        self.order.insert(id, slot);
        slot
    }

    pub(super) fn remove(&mut self, id: &ChunkId) {
        if let Some(slot) = self.by_id.remove(id) {
            self.order.remove(id);
            self.slots[slot as usize] = Chunk::absent();
            self.vacant.push(slot);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn range(
        &self,
        range: impl RangeBounds<ChunkId>,
    ) -> impl DoubleEndedIterator<Item = (&ChunkId, &Chunk)> {
        self.order.range(range).map(|(id, slot)| (id, &self.slots[*slot as usize]))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&ChunkId, &Chunk)> {
        self.range(..)
    }
}

impl PartialEq for ChunkMap {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for ChunkMap {}

impl Hash for ChunkMap {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.iter().for_each(|entry| entry.hash(state));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::InodeId;

    #[test]
    fn finds_what_is_there_and_walks_in_order() {
        let (mut map, mut again) = (ChunkMap::default(), ChunkMap::default());
        let ids: Vec<_> =
            (0..1000).map(|n| ChunkId::new(InodeId(n * 7 % 13), n as u32 * 31 % 1000)).collect();
        for id in &ids {
            map.entry(*id).length = id.index;
        }
        ids.iter().filter(|id| id.index % 2 == 0).for_each(|id| map.remove(id));
        for id in ids.iter().rev().filter(|id| id.index % 2 == 1) {
            again.entry(*id).length = id.index;
        }
        assert!(
            ids.iter()
                .all(|id| map.get(id).map(|chunk| chunk.length) == (id.index % 2 == 1).then_some(id.index))
        );
        assert!(map.iter().map(|(id, _)| *id).is_sorted() && map.iter().count() == 500);
        assert_eq!(map, again, "equality is of the contents, not of the order of insertion");
    }

    #[test]
    fn hashes_of_neighbours_differ_in_low_and_high_bits() {
        use std::hash::BuildHasher;
        let build = BuildHasherDefault::<Fold>::default();
        let hashes: Vec<_> = (0..4096).map(|n| build.hash_one(ChunkId::new(InodeId(5), n))).collect();
        for shift in [0, 52] {
            let distinct: std::collections::BTreeSet<_> =
                hashes.iter().map(|hash| hash >> shift & 0xFFF).collect();
            assert!(distinct.len() > 2300, "{} of 4096 at bit {shift}", distinct.len());
        }
    }
}
