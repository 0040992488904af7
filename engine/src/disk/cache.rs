//! Which writes of a drive are durable when they complete, and when a flush has something to do.
//!
//! A drive with a volatile cache has two ways to make a write durable: a flush after it, which covers all writes that have completed, or the
//! write itself may force it through (FUA). A lone update is two writes and a flush: written through, it is one trip to the drive instead of two.
//! Under load one flush covers many writes, so they aren't. Which of the two it is, the previous flush tells: it had few writes before it, or many.
//!
//! Invariant: a flush is spared only if no write that has completed since the last one, or was on its way when that one
//! was asked for, may be in the cache.

/// Writes before one flush up to which they are written through. Chosen, not measured: no drive with such a cache was at hand. An update is two.
const FEW: u32 = 4;

/// How a write is to be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    /// It is durable when it completes, as it is.
    Durable,
    /// Written through: durable when it completes.
    Through,
    /// Into the cache. [`Cache::written`] is to be told when it has completed, however.
    Cached,
}

/// What a drive may lose.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cache {
    volatile: bool,
    /// Cached writes on their way.
    on_their_way: u32,
    /// Something may be in the cache.
    dirty: bool,
    /// Writes since the last flush, and before that since the one before.
    writes: u32,
    writes_before: u32,
}

impl Cache {
    /// `volatile`: the drive has a cache that doesn't survive its power.
    pub fn new(volatile: bool) -> Self {
        Self { volatile, on_their_way: 0, dirty: false, writes: 0, writes_before: 0 }
    }

    /// A write is about to be asked for.
    #[inline]
    pub fn write(&mut self) -> Write {
        self.writes += 1;
        if !self.volatile {
            return Write::Durable;
        }
        if self.writes.max(self.writes_before) <= FEW {
            return Write::Through;
        }
        self.on_their_way += 1;
        self.dirty = true;
        Write::Cached
    }

    /// A cached write has completed, or failed.
    #[inline]
    pub fn written(&mut self) {
        self.on_their_way -= 1;
    }

    /// A flush is asked for: whether the drive has to do anything.
    pub fn flush(&mut self) -> bool {
        (self.writes_before, self.writes) = (self.writes, 0);
        // What is on its way isn't covered by this flush: the next one has to be.
        std::mem::replace(&mut self.dirty, self.on_their_way > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn few_writes_go_through_and_many_are_flushed() {
        let mut cache = Cache::new(true);
        for _ in 0..3 {
            assert_eq!([cache.write(), cache.write()], [Write::Through; 2]);
            assert!(!cache.flush());
        }
        let kinds: Vec<_> = (0..6).map(|_| cache.write()).collect();
        assert_eq!(kinds, [[Write::Through; 4].as_slice(), &[Write::Cached; 2]].concat());
        assert!(cache.flush(), "two are in the cache");
        cache.written();
        cache.written();
        assert!(cache.flush(), "they completed after the flush was asked for");
        assert!(!cache.flush());
        assert_eq!(Cache::new(false).write(), Write::Durable);
    }

    proptest! {
        /// Against a drive that keeps only what was written through, or flushed after it had completed.
        #[test]
        fn what_a_flush_promises_is_durable(steps in proptest::collection::vec(0..8u8, 1..200)) {
            let mut cache = Cache::new(true);
            // Completed writes that the drive may lose, and cached ones on their way.
            let (mut lost, mut flying) = (0, 0);
            for step in steps {
                match step {
                    0..4 => flying += u32::from(cache.write() == Write::Cached),
                    4..6 if flying > 0 => {
                        cache.written();
                        flying -= 1;
                        lost += 1;
                    }
                    _ => {
                        if cache.flush() {
                            lost = 0;
                        }
                        prop_assert_eq!(lost, 0, "a spared flush left writes in the cache");
                    }
                }
            }
        }
    }
}
