//! Which pages of an arena are free: a buddy allocator over page numbers. Pure.
//!
//! Blocks are powers of two of pages, aligned to their size. A block that is freed merges with its buddy (the other half of
//! the block it was split from) as long as that is free and whole. Lists are threaded through tables by page number.

/// Sizes run from one page (order 0) to 512 pages.
pub const ORDERS: usize = 10;
pub const PAGES_MAX: u32 = 1 << (ORDERS - 1);

const NONE: u32 = u32::MAX;
const TAKEN: u8 = u8::MAX;

#[derive(Clone, Copy)]
struct Page {
    /// Order of the free block that starts here, or [`TAKEN`] (in use, or not the start of a block).
    free: u8,
    next: u32,
    previous: u32,
}

pub struct Buddy {
    pages: Box<[Page]>,
    heads: [u32; ORDERS],
}

impl Buddy {
    /// `pages` must be a multiple of [`PAGES_MAX`].
    pub fn new(pages: u32) -> Self {
        assert!(pages.is_multiple_of(PAGES_MAX) && pages < NONE);
        let page = Page { free: TAKEN, next: NONE, previous: NONE };
        let mut buddy = Self { pages: vec![page; pages as usize].into(), heads: [NONE; ORDERS] };
        for start in (0..pages).step_by(PAGES_MAX as usize).rev() {
            buddy.link(start, ORDERS - 1);
        }
        buddy
    }

    /// The first page of a block of `order`, splitting a larger one if need be.
    pub fn take(&mut self, order: usize) -> Option<u32> {
        let found = (order..ORDERS).find(|&at| self.heads[at] != NONE)?;
        let page = self.heads[found];
        self.unlink(page, found);
        for half in (order..found).rev() {
            self.link(page + (1 << half), half);
        }
        Some(page)
    }

    /// Gives a block back; it must have been taken with this order.
    pub fn give(&mut self, mut page: u32, order: usize) {
        assert_eq!(self.pages[page as usize].free, TAKEN, "page {page} is free already");
        let mut order = order;
        while order < ORDERS - 1 {
            let buddy = page ^ (1 << order);
            if self.pages[buddy as usize].free != order as u8 {
                break;
            }
            self.unlink(buddy, order);
            page &= !(1 << order);
            order += 1;
        }
        self.link(page, order);
    }

    fn link(&mut self, page: u32, order: usize) {
        let head = self.heads[order];
        self.pages[page as usize] = Page { free: order as u8, next: head, previous: NONE };
        if head != NONE {
            self.pages[head as usize].previous = page;
        }
        self.heads[order] = page;
    }

    fn unlink(&mut self, page: u32, order: usize) {
        let Page { next, previous, .. } = self.pages[page as usize];
        match previous {
            NONE => self.heads[order] = next,
            _ => self.pages[previous as usize].next = next,
        }
        if next != NONE {
            self.pages[next as usize].previous = previous;
        }
        self.pages[page as usize].free = TAKEN;
    }
}
