//! Virtual time: stands still until somebody advances it.

/// Nanoseconds since the simulation began.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Clock {
    now_ns: u64,
}

impl Clock {
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    pub fn advance_ns(&mut self, by_ns: u64) {
        self.now_ns += by_ns;
    }

    /// Goes to a later moment; earlier ones are ignored.
    pub fn advance_to_ns(&mut self, at_ns: u64) {
        self.now_ns = self.now_ns.max(at_ns);
    }
}
