//! What disks do to bytes that they had already: bits rot, and writes meant for elsewhere land on them.
//!
//! Only what has been there for a while, on a disk that works, is damaged: a write that is damaged before the journal says that
//! it was flushed can't be told from one that a power cut tore, and a replica that is left alone gives it up. Two faults at the
//! wrong moment, against which only another replica helps. And only one replica at a time is damaged, of chains that are whole: then
//! every block can be made whole again, which is checked when the faults have stopped.

use super::*;

/// How long a chunk has been as it is before it is damaged, on a node that isn't slow: its journal has been sealed since.
const SETTLED: Nanos = 2_000 * MILLI;

impl World {
    /// Flips a bit of a block of some chunk, or puts a block of another one there.
    pub(super) fn damage(&mut self, node: usize, misdirected: bool) {
        let alone = self.config.replicas < 2 || !self.managers.is_whole();
        if alone
            || self.nodes.iter_mut().any(SimNode::has_damage)
            || self.nodes[node].is_failing()
            || self.now < self.places[node].stopped_until.max(self.places[node].slow_until) + SETTLED
        {
            return;
        }
        let (now, serves) = (self.now, |world: &Self, target| world.nodes[node].look(target).is_some());
        let settled =
            |(seen, since): &(Seen, Nanos)| seen.1.is_none() && seen.0 > 0 && now > *since + SETTLED;
        let mut blocks = Vec::new();
        for (target, chunks) in &self.places[node].seen {
            if !serves(self, *target) {
                continue;
            }
            for (index, _) in chunks.iter().enumerate().filter(|(_, seen)| settled(seen)) {
                let chunk = ChunkId::new(InodeId(1), index as u32);
                blocks.extend(self.nodes[node].blocks_of(*target, chunk));
            }
        }
        if blocks.is_empty() {
            return;
        }
        let offset = *self.prng.pick(&blocks);
        let done = if misdirected {
            let from = *self.prng.pick(&blocks);
            self.nodes[node].misdirect(from, offset)
        } else {
            let (at, bit) = (self.prng.below(BLOCK as u64), self.prng.below(8) as u8);
            self.nodes[node].rot(offset, at, bit)
        };
        if done {
            let counts = &mut self.truth.counts;
            let count = if misdirected { &mut counts.misdirected } else { &mut counts.rotten };
            *count += 1;
        }
    }
}
