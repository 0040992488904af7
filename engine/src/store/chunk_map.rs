//! The chunks of one target, found by hash and walked in order.
//!
//! A look-up is the heart of every read: three cache misses (bucket, slot, CRC; two for a chunk of one block) instead of the dozen
//! of a tree. Those of the reads of one frame overlap, see [`prefetch`](super::prefetch). A chunk takes 64 bytes, a cache line, for
//! itself, 6 to 12 for its bucket, and 4 to 8 for its place in the order.
//!
//! The hash is fixed and the table is never walked, so that behaviour depends on nothing but what was put in. Slots lie in pages
//! that never move. Only the table of buckets is copied when it grows: 5 bytes a chunk, some milliseconds for a million.

use super::chunk::Chunk;
use super::order::Order;
use corefs_wire::ChunkId;
use hashbrown::HashTable;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};
use std::ops::RangeBounds;

/// Slots of a page.
const PAGE: usize = 1024;

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

#[derive(Clone, Debug)]
#[repr(align(64))]
struct Slot {
    id: ChunkId,
    chunk: Chunk,
}

const _: () = assert!(size_of::<Slot>() == 64);

/// The slots by number.
#[derive(Clone, Debug, Default)]
struct Slots {
    /// Each with room for [`PAGE`]; all but the last are full.
    pages: Vec<Vec<Slot>>,
}

impl Slots {
    #[inline]
    fn get(&self, slot: u32) -> &Slot {
        &self.pages[slot as usize / PAGE][slot as usize % PAGE]
    }

    fn get_mut(&mut self, slot: u32) -> &mut Slot {
        &mut self.pages[slot as usize / PAGE][slot as usize % PAGE]
    }

    fn push(&mut self, slot: Slot) -> u32 {
        if self.pages.last().is_none_or(|page| page.len() == PAGE) {
            self.pages.push(Vec::with_capacity(PAGE));
        }
        let page = self.pages.len() - 1;
        self.pages[page].push(slot);
        (page * PAGE + self.pages[page].len() - 1) as u32
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct ChunkMap {
    slots: Slots,
    vacant: Vec<u32>,
    /// Positions in `slots` alone: the ids are there.
    by_id: HashTable<u32>,
    order: Order,
}

#[inline]
fn hash(id: &ChunkId) -> u64 {
    BuildHasherDefault::<Fold>::default().hash_one(id)
}

impl ChunkMap {
    #[inline]
    fn find(&self, id: &ChunkId) -> Option<u32> {
        self.by_id.find(hash(id), |slot| self.slots.get(*slot).id == *id).copied()
    }

    #[inline]
    pub(super) fn get(&self, id: &ChunkId) -> Option<&Chunk> {
        self.find(id).map(|slot| &self.slots.get(slot).chunk)
    }

    /// What [`get`](Self::get) will find, most likely: nothing of the chunk itself is looked at.
    #[inline]
    pub(super) fn guess(&self, id: &ChunkId) -> Option<&Chunk> {
        self.by_id.find(hash(id), |_| true).map(|slot| &self.slots.get(*slot).chunk)
    }

    pub(super) fn get_mut(&mut self, id: &ChunkId) -> Option<&mut Chunk> {
        self.find(id).map(|slot| &mut self.slots.get_mut(slot).chunk)
    }

    /// The chunk of that id; an absent one is put there if there is none.
    pub(super) fn entry(&mut self, id: ChunkId) -> &mut Chunk {
        let slot = match self.find(&id) {
            Some(slot) => slot,
            None => self.insert(id),
        };
        &mut self.slots.get_mut(slot).chunk
    }

    fn insert(&mut self, id: ChunkId) -> u32 {
        let absent = Slot { id, chunk: Chunk::absent() };
        let slot = match self.vacant.pop() {
            Some(slot) => {
                *self.slots.get_mut(slot) = absent;
                slot
            }
            None => self.slots.push(absent),
        };
        let slots = &self.slots;
        self.by_id.insert_unique(hash(&id), slot, |slot| hash(&slots.get(*slot).id));
        self.order.insert(id, slot, |slot| slots.get(slot).id);
        slot
    }

    pub(super) fn remove(&mut self, id: &ChunkId) {
        let slots = &self.slots;
        let found = self.by_id.find_entry(hash(id), |slot| slots.get(*slot).id == *id);
        if let Ok(found) = found {
            let (slot, _) = found.remove();
            self.order.remove(id, |slot| slots.get(slot).id);
            self.slots.get_mut(slot).chunk = Chunk::absent();
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
        let slots = self.order.range(range, |slot| self.slots.get(slot).id);
        slots.map(|slot| {
            let Slot { id, chunk } = self.slots.get(slot);
            (id, chunk)
        })
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
        let hashes: Vec<_> = (0..4096).map(|n| hash(&ChunkId::new(InodeId(5), n))).collect();
        for shift in [0, 52] {
            let distinct: std::collections::BTreeSet<_> =
                hashes.iter().map(|hash| hash >> shift & 0xFFF).collect();
            assert!(distinct.len() > 2300, "{} of 4096 at bit {shift}", distinct.len());
        }
    }
}
