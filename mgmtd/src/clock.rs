//! Time as the manager sees it: passed in, so that the same code runs under a virtual clock.

/// A clock that never goes back and goes on while the machine sleeps (CLOCK_BOOTTIME), in milliseconds since some
/// fixed moment. Leases are counted on it and on nothing else.
#[allow(async_fn_in_trait)] // executors are single-threaded: futures need not be Send
pub trait Clock: Clone + 'static {
    fn now_ms(&self) -> u64;

    /// Resolves when at least `ms` milliseconds have passed.
    async fn sleep(&self, ms: u64);
}
