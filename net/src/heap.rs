//! How often a thread asks for memory: the system's allocator, with a count for each thread.
//!
//! The data path is to ask for none in its steady state. That is shown by this count, in `corefs status --counters` and in the
//! report of `corefs perf`, not only claimed. It costs one addition to memory of the thread's own.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    // Without a destructor and made at compile time, so that it can be used at any moment of a thread's life.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// For `#[global_allocator]` of a program; without it [`allocations`] stays 0.
pub struct Counting;

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as our caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as our caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as our caller promises.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as our caller promises.
        unsafe { System.dealloc(old, layout) }
    }
}

#[inline]
fn count() {
    COUNT.set(COUNT.get() + 1);
}

/// How often the calling thread has asked for memory so far.
pub fn allocations() -> u64 {
    COUNT.get()
}
