//! Which chunks of a replica that is being filled may be replaced: each once, by whoever was told last what is there.
//!
//! Messages may come late and come twice. That the chunk still is what the filler was told doesn't tell a copy from a part that is
//! expected: a chunk that a fill left half done is, in the middle of the next fill, once more what it was at its beginning, and one
//! that was set back and then updated is what it was before. So each answer to a filler has a number, the first part of the fill
//! names it, and it is used up by that.
//!
//! Numbers begin anew when the process does. A replica that has restarted is filled under another chain version, so that nothing
//! from before is let in.

use corefs_wire::ChunkId;
use std::collections::VecDeque;

/// Chunks that may be replaced, at once: those of the walk, and those of which an update waits for a fill. A filler whose permit was
/// given up for a newer one is refused, and asks again.
const PERMITS_MAX: usize = 512;

#[derive(Debug)]
struct Permit {
    number: u64,
    chunk: ChunkId,
    /// What is committed of it, as the filler was told; 0: nothing.
    digest: u64,
}

/// The permits of one target, the oldest first.
#[derive(Default, Debug)]
pub struct Permits {
    given: VecDeque<Permit>,
    last: u64,
}

impl Permits {
    /// Gives one for `chunk`, of which `digest` is committed. An earlier one for it ends.
    pub fn give(&mut self, chunk: ChunkId, digest: u64) -> u64 {
        self.given.retain(|permit| permit.chunk != chunk);
        if self.given.len() == PERMITS_MAX {
            self.given.pop_front();
        }
        self.last += 1;
        self.given.push_back(Permit { number: self.last, chunk, digest });
        self.last
    }

    /// Uses up the permit for `chunk` that has that number: the digest with which it was given.
    pub fn take(&mut self, chunk: ChunkId, number: u64) -> Option<u64> {
        let at = self.given.iter().position(|permit| permit.number == number && permit.chunk == chunk)?;
        self.given.remove(at).map(|permit| permit.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::InodeId;

    #[test]
    fn a_permit_is_good_for_one_chunk_once_and_until_the_next() {
        let chunk = |index| ChunkId::new(InodeId(1), index);
        let mut permits = Permits::default();
        assert_eq!(permits.take(chunk(1), 0), None);
        let first = permits.give(chunk(1), 7);
        assert_eq!((permits.take(chunk(2), first), permits.take(chunk(1), first + 1)), (None, None));
        assert_eq!((permits.take(chunk(1), first), permits.take(chunk(1), first)), (Some(7), None));
        let (stale, fresh) = (permits.give(chunk(1), 7), permits.give(chunk(1), 7));
        assert_eq!((permits.take(chunk(1), stale), permits.take(chunk(1), fresh)), (None, Some(7)));
        let oldest = permits.give(chunk(0), 1);
        let others: Vec<u64> = (1..=PERMITS_MAX as u32).map(|index| permits.give(chunk(index), 2)).collect();
        assert_eq!((permits.take(chunk(0), oldest), permits.take(chunk(1), others[0])), (None, Some(2)));
    }
}
