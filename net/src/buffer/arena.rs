//! The memory behind a pool: one anonymous mapping, its free pages, and how many handles each block has.

use super::buddy::{Buddy, PAGES_MAX};
use super::{BLOCK_MAX, BLOCK_MIN, Pages};
use crate::bell::Bell;
use corefs_wire::{Error, ErrorCode, Result};
use std::cell::{Cell, RefCell};
use std::ptr;

const _: () = assert!(BLOCK_MIN * PAGES_MAX as usize == BLOCK_MAX, "the orders span the block sizes");

pub struct Arena {
    base: *mut u8,
    len: usize,
    made_of: Pages,
    free: RefCell<Buddy>,
    /// Handles of the block that starts at each page.
    counts: Box<[Cell<u32>]>,
    in_use: Cell<usize>,
    /// A `take` failed since the bell last rang.
    starved: Cell<bool>,
    bell: RefCell<Option<Bell>>,
}

impl Arena {
    /// `huge`: of huge pages, if there are enough; else the kernel is asked to make some.
    pub fn map(bytes: usize, huge: bool) -> Result<Self> {
        let len = bytes.max(1).next_multiple_of(BLOCK_MAX);
        let pages = u32::try_from(len / BLOCK_MIN).ok().filter(|pages| *pages < u32::MAX - PAGES_MAX);
        let pages = pages.ok_or_else(|| Error::new(ErrorCode::BadConfig, "the buffer arena is too large"))?;
        let set_aside = if huge { map_huge(len) } else { None };
        let (base, made_of) = match set_aside {
            Some(base) => (base, Pages::SetAside),
            None if huge => (advise_huge_pages(map_aligned(len)?, len), Pages::AskedFor),
            None => (map_aligned(len)?, Pages::Small),
        };
        Ok(Self {
            base,
            len,
            made_of,
            free: RefCell::new(Buddy::new(pages)),
            counts: vec![Cell::new(0); pages as usize].into(),
            in_use: Cell::new(0),
            starved: Cell::new(false),
            bell: RefCell::new(None),
        })
    }

    pub fn pages(&self) -> Pages {
        self.made_of
    }

    pub fn take(&self, len: usize) -> Option<(u32, u8)> {
        let order = len.div_ceil(BLOCK_MIN).max(1).next_power_of_two().trailing_zeros();
        let Some(page) = self.free.borrow_mut().take(order as usize) else {
            self.starved.set(true);
            return None;
        };
        self.counts[page as usize].set(1);
        self.in_use.set(self.in_use.get() + (BLOCK_MIN << order));
        Some((page, order as u8))
    }

    #[inline]
    pub fn retain(&self, page: u32) {
        let count = &self.counts[page as usize];
        count.set(count.get().checked_add(1).expect("fewer than 2^32 handles of one block"));
    }

    #[inline]
    pub fn release(&self, page: u32, order: u8) {
        let count = &self.counts[page as usize];
        count.set(count.get() - 1);
        if count.get() == 0 {
            self.give(page, order);
        }
    }

    fn give(&self, page: u32, order: u8) {
        self.free.borrow_mut().give(page, order.into());
        self.in_use.set(self.in_use.get() - (BLOCK_MIN << order));
        if self.starved.replace(false)
            && let Some(bell) = &*self.bell.borrow()
        {
            bell.ring();
        }
    }

    #[inline]
    pub fn count(&self, page: u32) -> u32 {
        self.counts[page as usize].get()
    }

    #[inline]
    pub fn address(&self, page: u32) -> *mut u8 {
        debug_assert!((page as usize) < self.counts.len());
        self.base.wrapping_add(page as usize * BLOCK_MIN)
    }

    pub fn base(&self) -> *mut u8 {
        self.base
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn in_use(&self) -> usize {
        self.in_use.get()
    }

    pub fn set_bell(&self, bell: Bell) {
        *self.bell.borrow_mut() = Some(bell);
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no handle is left: each of them holds this arena.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

fn advise_huge_pages(base: *mut u8, len: usize) -> *mut u8 {
    // SAFETY: the range is our own mapping. A refusal changes nothing, so the result is ignored.
    unsafe { libc::madvise(base.cast(), len, libc::MADV_HUGEPAGE) };
    base
}

/// Maps `len` bytes of zeroed memory made of huge pages that were set aside (hugetlbpage, `vm.nr_hugepages`), if so many are free. All of them are there when this returns: one that
/// the kernel couldn't give later, for a control group's limit, would be a signal that ends the process.
fn map_huge(len: usize) -> Option<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
    // SAFETY: a fresh anonymous mapping, given back at once if its pages aren't there.
    unsafe {
        let start = libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if start == libc::MAP_FAILED {
            return None;
        }
        if libc::madvise(start, len, libc::MADV_POPULATE_WRITE) != 0 {
            libc::munmap(start, len);
            return None;
        }
        Some(start.cast())
    }
}

/// Maps `len` bytes of zeroed memory, aligned to [`BLOCK_MAX`] so that huge pages fit.
fn map_aligned(len: usize) -> Result<*mut u8> {
    let wide = len + BLOCK_MAX;
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // SAFETY: a fresh anonymous mapping; of it we keep the aligned middle and return the ends at once.
    unsafe {
        let start = libc::mmap(ptr::null_mut(), wide, protection, flags, -1, 0);
        if start == libc::MAP_FAILED {
            return Err(Error::from(std::io::Error::last_os_error()).of(format_args!("mapping {len} bytes")));
        }
        let start = start.cast::<u8>();
        let head = start.align_offset(BLOCK_MAX);
        let base = start.add(head);
        if head > 0 {
            libc::munmap(start.cast(), head);
        }
        if head < BLOCK_MAX {
            libc::munmap(base.add(len).cast(), BLOCK_MAX - head);
        }
        Ok(base)
    }
}
