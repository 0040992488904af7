//! The cache misses of several look-ups, side by side instead of one after the other.
//!
//! A read finds its chunk's slot, and then its CRC in another place: each a miss of all caches when there are many chunks. While one
//! read is planned the next one's misses can't begin, so for a batch all of them are begun first.

use super::Store;
use super::chunk::Chunk;
use corefs_wire::data::ReadEntry;
use corefs_wire::limits::BLOCK;

impl Store {
    /// What is most likely the chunk of a read that will be planned soon.
    #[inline]
    pub(crate) fn expected(&self, entry: &ReadEntry) -> Option<Expected<'_>> {
        let chunk = self.index.targets.get(&entry.target())?.chunks.guess(&entry.chunk())?;
        soon(chunk);
        Some(Expected(chunk))
    }
}

/// A chunk that will be read.
#[derive(Clone, Copy)]
pub(crate) struct Expected<'a>(&'a Chunk);

impl Expected<'_> {
    /// Fetches the CRC of the read's first block.
    #[inline]
    pub(crate) fn fetch(self, entry: &ReadEntry) {
        let first = entry.offset.get() as usize / BLOCK;
        if let Some(crc) = self.0.crcs().get(first) {
            soon(crc);
        }
    }
}

/// Brings the cache line of `at` near.
#[inline]
fn soon<T>(at: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which reads nothing, and every processor of this architecture knows it.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(std::ptr::from_ref(at).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::hint::black_box(std::ptr::from_ref(at));
}
