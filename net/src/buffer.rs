//! The buffers of an executor: one bounded arena of aligned memory, and handles that give their blocks back.
//!
//! Invariants
//! - An arena never grows. When it is used up, [`Pool::get`] says `None` and the caller holds back its peer or its caller.
//! - A block has as many [`Buffer`]s as its count says, and goes back to the arena when the last is dropped.
//! - Nobody writes to a block that has two handles: [`Buffer::get_mut`] refuses.
//! - Getting and giving back allocate nothing and enter no kernel.
//!
//! **Old bytes.** A block that comes from the arena still holds what its last user left there (it is memory, zeroed once by the
//! kernel). Whoever sends a buffer sends only the range it has filled, or zeroes the rest first with
//! [`Buffer::zero`]: that is why a [`Payload`] names its range.

mod arena;
mod buddy;

use arena::Arena;
use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use crate::bell::Bell;

/// Smallest block, and the alignment of all (bytes): what O_DIRECT wants.
pub const BLOCK_MIN: usize = 4 << 10;
/// Largest block (bytes): a full frame of data with room to align it.
pub const BLOCK_MAX: usize = 2 << 20;
/// Arena of an executor unless it is told otherwise (bytes).
pub const POOL_DEFAULT: usize = 64 << 20;

/// What an arena is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pages {
    Small,
    /// Huge where and when the kernel makes them (transparent huge pages).
    AskedFor,
    /// Huge, of those that the administrator has set aside (`vm.nr_hugepages`), all of them.
    SetAside,
}

/// The arena of one executor. Clones are handles of the same arena.
#[derive(Clone)]
pub struct Pool(Rc<Arena>);

impl Pool {
    /// Maps an arena of `bytes`, rounded up to [`BLOCK_MAX`]. Fails with `Os` if the kernel refuses the mapping.
    pub fn new(bytes: usize) -> corefs_wire::Result<Self> {
        Ok(Self(Rc::new(Arena::map(bytes, false)?)))
    }

    /// The same of huge pages, if so many were set aside and are free; else the kernel is asked for huge ones as it makes them (a hint). They are fewer entries for
    /// CPU and adapter to look up, and are registered faster.
    pub fn with_huge_pages(bytes: usize) -> corefs_wire::Result<Self> {
        Ok(Self(Rc::new(Arena::map(bytes, true)?)))
    }

    /// What the arena is made of.
    pub fn pages(&self) -> Pages {
        self.0.pages()
    }

    /// A unique buffer of `len` bytes (at most [`BLOCK_MAX`]) with undefined contents, or `None` if the arena has
    /// no block of that size left.
    pub fn get(&self, len: usize) -> Option<Buffer> {
        assert!(len <= BLOCK_MAX, "a buffer of {len} bytes: the largest block has {BLOCK_MAX}");
        let (page, order) = self.0.take(len)?;
        Some(Buffer {
            arena: Rc::clone(&self.0),
            page,
            order,
            carved: Cell::new(false),
            start: 0,
            len: len as u32,
        })
    }

    /// Bytes of the arena.
    pub fn capacity(&self) -> usize {
        self.0.len()
    }

    /// Bytes in blocks that are handed out.
    pub fn in_use(&self) -> usize {
        self.0.in_use()
    }

    /// Whether half of it is free at least: then parts of blocks may be lent, though each keeps its whole block from other use.
    #[inline]
    pub fn is_ample(&self) -> bool {
        self.in_use() <= self.capacity() / 2
    }

    /// Rung when a block comes back after [`get`](Self::get) had failed: time to resume whoever waits.
    pub fn set_bell(&self, bell: Bell) {
        self.0.set_bell(bell);
    }

    /// Start and length of the arena, to register it with the ring. Valid while any handle or buffer of the pool lives.
    pub fn region(&self) -> (*mut u8, usize) {
        (self.0.base(), self.0.len())
    }
}

/// A handle of one block: a range of its bytes, which begins with it and is aligned to [`BLOCK_MIN`] unless it is a
/// [`part`](Self::part). `!Send`; a clone shares the block.
pub struct Buffer {
    arena: Rc<Arena>,
    page: u32,
    order: u8,
    /// Nobody else has bytes of the range, though others have other parts of the block.
    carved: Cell<bool>,
    /// Where in the block the range begins.
    start: u32,
    len: u32,
}

impl Buffer {
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the block from where this handle begins, at least `len`; of a whole block a power of two.
    #[inline]
    pub fn capacity(&self) -> usize {
        (BLOCK_MIN << self.order) - self.start as usize
    }

    /// Changes the length of this handle, up to the capacity. Bytes that come into view are old ones; of a block that has
    /// other handles none may.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} bytes in a block of {}", self.capacity());
        let alone = || self.arena.count(self.page) == 1;
        assert!(len <= self.len() || alone(), "what comes into view may be another's");
        self.len = len as u32;
    }

    /// A handle of a part of this range, which shares the block.
    pub fn part(&self, part: Range<usize>) -> Self {
        assert!(part.start <= part.end && part.end <= self.len(), "{part:?} of {self:?}");
        let mut handle = self.clone();
        (handle.start, handle.len) = (self.start + part.start as u32, part.len() as u32);
        handle
    }

    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the block belongs to this handle, lies in the mapping, which the Rc keeps, and is initialised memory
        // (anonymous pages). Nobody writes while it is shared: `get_mut` refuses, and whoever gives the pointer to the
        // kernel for writing owns the only handle, or has lent out other parts only (see `as_mut_ptr`).
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len()) }
    }

    /// Two handles of what lies before and behind `at`, each of which may write its own. The handle must be unique.
    pub fn split(self, at: usize) -> (Self, Self) {
        assert!(self.is_unique() && at <= self.len(), "{at} of {self:?}");
        let (mut front, mut back) = (self.part(0..at), self.part(at..self.len()));
        front.carved = Cell::new(true);
        back.carved = Cell::new(true);
        (front, back)
    }

    /// One handle again of all that were [`split`](Self::split), in order and none missing; else what was given.
    pub fn join(parts: Vec<Self>) -> Result<Self, Vec<Self>> {
        let follows = |pair: &[Self]| {
            let [one, next] = pair else { return false };
            Rc::ptr_eq(&one.arena, &next.arena) && one.page == next.page && one.start + one.len == next.start
        };
        if !parts.windows(2).all(follows) || !parts.iter().all(|part| part.carved.get()) {
            return Err(parts);
        }
        let len = parts.iter().map(|part| part.len).sum();
        let Some(mut first) = parts.into_iter().next() else { return Err(Vec::new()) };
        first.len = len;
        Ok(first)
    }

    /// The bytes for writing, unless somebody else may look at them.
    #[inline]
    pub fn get_mut(&mut self) -> Option<&mut [u8]> {
        if !self.is_unique() {
            return None;
        }
        // SAFETY: as in `as_slice`; the handle is borrowed mutably and no other exists.
        Some(unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), self.len()) })
    }

    /// Whether nobody else has bytes of the range.
    #[inline]
    pub fn is_unique(&self) -> bool {
        self.carved.get() || self.arena.count(self.page) == 1
    }

    /// Fills `range` with zeros; `None` if the block is shared.
    #[must_use]
    pub fn zero(&mut self, range: Range<usize>) -> Option<()> {
        self.get_mut()?[range].fill(0);
        Some(())
    }

    #[inline]
    pub fn as_ptr(&self) -> *const u8 {
        self.as_mut_ptr()
    }

    /// The address for the kernel. Whoever lets it be written through must own the only handle until the
    /// completion, and keep that handle alive until then. One exception: who owned the only handle may lend
    /// [`part`](Self::part)s of it, and go on to write what no part has and no reference is made to.
    #[inline]
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.arena.address(self.page).wrapping_add(self.start as usize)
    }
}

impl Clone for Buffer {
    #[inline]
    fn clone(&self) -> Self {
        self.arena.retain(self.page);
        self.carved.set(false);
        let (page, order, start, len) = (self.page, self.order, self.start, self.len);
        Self { arena: Rc::clone(&self.arena), page, order, carved: Cell::new(false), start, len }
    }
}

impl Drop for Buffer {
    #[inline]
    fn drop(&mut self) {
        self.arena.release(self.page, self.order);
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} of {} bytes)", self.len, self.capacity())
    }
}

/// The bulk data of a frame to be sent, held until the kernel has taken them.
#[derive(Debug)]
pub enum Payload {
    Buffer(Slice),
    Owned(Vec<u8>),
}

/// A checked range of a buffer.
#[derive(Debug)]
pub struct Slice {
    buffer: Buffer,
    range: Range<usize>,
}

impl Payload {
    /// `buffer[range]`; the range must lie in the buffer.
    pub fn new(buffer: Buffer, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= buffer.len(), "{range:?} of {buffer:?}");
        Self::Buffer(Slice { buffer, range })
    }

    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Buffer(slice) => &slice.buffer.as_slice()[slice.range.clone()],
            Self::Owned(bytes) => bytes,
        }
    }

    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Owned(bytes)
    }
}

impl From<Buffer> for Payload {
    /// All of the buffer's `len` bytes.
    fn from(buffer: Buffer) -> Self {
        let range = 0..buffer.len();
        Self::new(buffer, range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_arena_is_made_of_huge_pages_where_enough_are_free() {
        let free = || {
            let told = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
            told.ok().and_then(|told| told.trim().parse::<usize>().ok()).unwrap_or(0)
        };
        let before = free();
        let pool = Pool::with_huge_pages(4 * BLOCK_MAX).unwrap();
        println!("{before} huge pages were free: {:?}", pool.pages());
        // Others may take some, or give them back, at the same time.
        match pool.pages() {
            Pages::SetAside => assert!(pool.region().0.align_offset(BLOCK_MAX) == 0),
            pages => assert!(pages == Pages::AskedFor && before.min(free()) < 4),
        }
        let mut buffer = pool.get(BLOCK_MAX).unwrap();
        assert!(buffer.get_mut().unwrap().iter().all(|byte| *byte == 0));
        assert_eq!(Pool::new(1).unwrap().pages(), Pages::Small);
    }

    #[test]
    fn blocks_are_aligned_shared_and_given_back() {
        let pool = Pool::new(BLOCK_MAX).unwrap();
        let mut buffer = pool.get(5000).unwrap();
        assert_eq!((buffer.len(), buffer.capacity(), buffer.as_ptr() as usize % BLOCK_MIN), (5000, 8192, 0));
        buffer.get_mut().unwrap().fill(7);
        let clone = buffer.clone();
        assert!(buffer.get_mut().is_none() && buffer.zero(0..1).is_none());
        drop(buffer);
        assert_eq!((clone.as_slice(), pool.in_use()), ([7; 5000].as_slice(), 8192));
        drop(clone);
        assert_eq!(pool.in_use(), 0);
        assert!(pool.get(BLOCK_MAX).is_some(), "freed blocks merge again");
    }

    #[test]
    fn parts_share_the_block() {
        let pool = Pool::new(1).unwrap();
        let mut whole = pool.get(8192).unwrap();
        whole.get_mut().unwrap()[5000..5100].fill(3);
        let mut part = whole.part(4990..5100).part(10..110);
        assert_eq!((part.as_slice(), part.capacity()), ([3; 100].as_slice(), 8192 - 5000));
        assert!(part.get_mut().is_none() && whole.get_mut().is_none());
        drop(whole);
        part.set_len(3192);
        part.get_mut().unwrap()[3191] = 9;
        drop(part);
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn what_is_split_is_written_side_by_side_and_joined_again() {
        let pool = Pool::new(1).unwrap();
        let (mut one, rest) = pool.get(12_000).unwrap().split(4096);
        let (mut two, mut three) = rest.split(4000);
        for (part, byte) in [(&mut one, 1), (&mut two, 2), (&mut three, 3)] {
            part.get_mut().unwrap().fill(byte);
        }
        let [one, two, three] = Buffer::join(vec![one, three, two]).unwrap_err().try_into().unwrap();
        let parts = Buffer::join(vec![one, two.clone(), three]).unwrap_err();
        assert!(!parts[1].is_unique(), "a clone may look at it");
        drop((two, parts));
        assert_eq!(pool.in_use(), 0);
        let (one, two) = pool.get(9000).unwrap().split(8192);
        let mut whole = Buffer::join(vec![one, two]).unwrap();
        assert!(whole.get_mut().is_some_and(|bytes| bytes.len() == 9000));
        whole.set_len(16_384);
        drop(whole);
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    #[should_panic(expected = "another's")]
    fn a_part_that_was_split_off_does_not_grow() {
        let (mut one, _two) = Pool::new(1).unwrap().get(8192).unwrap().split(4096);
        one.set_len(4097);
    }

    #[test]
    #[should_panic(expected = "another's")]
    fn a_part_of_a_shared_block_does_not_grow() {
        let whole = Pool::new(1).unwrap().get(8192).unwrap();
        whole.part(0..10).set_len(11);
    }

    #[test]
    fn exhaustion_says_none_and_rings_when_a_block_returns() {
        let pool = Pool::new(1).unwrap();
        let bell = Bell::new();
        pool.set_bell(bell.clone());
        let mut all: Vec<Buffer> = std::iter::from_fn(|| pool.get(BLOCK_MIN)).collect();
        assert_eq!(all.len(), BLOCK_MAX / BLOCK_MIN);
        assert!(pool.get(1).is_none() && !bell.is_rung());
        all.pop();
        assert!(bell.take() && pool.get(1).is_some());
        all.pop();
        assert!(!bell.is_rung(), "nobody was waiting");
    }

    #[test]
    fn a_buffer_outlives_its_pool() {
        let mut buffer = Pool::new(1).unwrap().get(10).unwrap();
        buffer.get_mut().unwrap().fill(1);
        assert_eq!(buffer.as_slice(), [1; 10]);
    }

    proptest! {
        /// Random gets, clones and drops: live blocks never overlap, and everything merges back at the end.
        #[test]
        fn live_blocks_never_overlap(steps in proptest::collection::vec((0..3u8, 0..BLOCK_MAX, any::<prop::sample::Index>()), 1..300)) {
            let pool = Pool::new(4 * BLOCK_MAX).unwrap();
            let mut live: Vec<Buffer> = Vec::new();
            for (step, len, index) in steps {
                match step {
                    0 if !live.is_empty() => drop(live.swap_remove(index.index(live.len()))),
                    1 if !live.is_empty() => live.push(live[index.index(live.len())].clone()),
                    _ => live.extend(pool.get(len)),
                }
                let mut spans: Vec<_> = live.iter().map(|b| (b.as_ptr() as usize, b.capacity())).collect();
                spans.sort_unstable();
                spans.dedup();
                prop_assert!(spans.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
                prop_assert_eq!(spans.iter().map(|span| span.1).sum::<usize>(), pool.in_use());
            }
            live.clear();
            let whole: Vec<_> = std::iter::from_fn(|| pool.get(BLOCK_MAX)).collect();
            prop_assert_eq!(whole.len(), 4);
        }
    }
}
