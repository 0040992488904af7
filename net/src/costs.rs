//! What an executor's connections have cost so far, in counts: `corefs perf` reports them for each operation.

/// Plain sums over all connections, those that have ended included.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Costs {
    /// Bytes of bulk data that were copied in this process. What the kernel copies from and to sockets isn't among them.
    pub copied_bytes: u64,
    /// Work requests of queue pairs: receives, messages, writes, reads, bindings, invalidations.
    pub rdma_requests: u64,
    /// Calls that handed over one or more of them: a write to the adapter's memory; a system call on soft-RoCE.
    pub rdma_doorbells: u64,
    pub rdma_completions: u64,
    /// Times that a completion queue was told to wake its sleeping core. Like a doorbell.
    pub rdma_arms: u64,
    /// Times that a completion queue woke it: a system call each, to take the event.
    pub rdma_wakes: u64,
}

impl Costs {
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            copied_bytes: self.copied_bytes + other.copied_bytes,
            rdma_requests: self.rdma_requests + other.rdma_requests,
            rdma_doorbells: self.rdma_doorbells + other.rdma_doorbells,
            rdma_completions: self.rdma_completions + other.rdma_completions,
            rdma_arms: self.rdma_arms + other.rdma_arms,
            rdma_wakes: self.rdma_wakes + other.rdma_wakes,
        }
    }

    /// Every figure by its name.
    pub fn list(&self) -> [(&'static str, u64); 6] {
        [
            ("copied_bytes", self.copied_bytes),
            ("rdma_requests", self.rdma_requests),
            ("rdma_doorbells", self.rdma_doorbells),
            ("rdma_completions", self.rdma_completions),
            ("rdma_arms", self.rdma_arms),
            ("rdma_wakes", self.rdma_wakes),
        ]
    }
}
