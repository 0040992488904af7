//! How often a thread asks for memory: the allocator of our programs, with a count for each thread.
//!
//! The data path is to ask for none in its steady state. That is shown by this count, in `corefs status --counters` and in the
//! report of `corefs perf`, not only claimed. It costs one addition to memory of the thread's own. While a path is looked for
//! that does ask, [`forbid`] stops the program there.

use mimalloc::MiMalloc;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;

thread_local! {
    // Without a destructor and made at compile time, so that it can be used at any moment of a thread's life.
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static FORBIDDEN: Cell<bool> = const { Cell::new(false) };
}

/// For `#[global_allocator]` of a program; without it [`allocations`] stays 0.
pub struct Counting;

// SAFETY: every call is passed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as our caller promises.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as our caller promises.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as our caller promises.
        unsafe { MiMalloc.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as our caller promises.
        unsafe { MiMalloc.dealloc(old, layout) }
    }
}

#[inline]
fn count() {
    COUNT.set(COUNT.get() + 1);
    if cfg!(debug_assertions) && FORBIDDEN.get() {
        die();
    }
}

/// Ends the process where memory was asked for, so that a debugger or a core file shows who did.
#[cold]
fn die() -> ! {
    // Nothing that asks for memory may be used here.
    let why = b"memory was asked for where that is forbidden\n";
    // SAFETY: the bytes are there; what becomes of the message doesn't matter.
    unsafe { libc::write(libc::STDERR_FILENO, why.as_ptr().cast(), why.len()) };
    std::process::abort()
}

/// While it lives its thread may not ask for memory.
#[must_use = "dropped, it forbids nothing"]
pub struct Forbidden(bool);

/// If `really`, and in a build with debug assertions whose allocator is [`Counting`]: whoever asks for memory on this thread before
/// the guard is dropped ends the process.
#[inline]
pub fn forbid(really: bool) -> Forbidden {
    match cfg!(debug_assertions) && really {
        true => Forbidden(FORBIDDEN.replace(true)),
        false => Forbidden(true),
    }
}

impl Drop for Forbidden {
    #[inline]
    fn drop(&mut self) {
        if cfg!(debug_assertions) && !self.0 {
            FORBIDDEN.set(false);
        }
    }
}

/// Gives free memory that this thread's part of the heap keeps back to the system: after something large that won't come again.
pub fn give_back() {
    // SAFETY: may be called at any time, whether or not anything was asked for.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

/// How often the calling thread has asked for memory so far.
pub fn allocations() -> u64 {
    COUNT.get()
}
