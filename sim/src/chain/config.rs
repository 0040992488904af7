//! What a life is made of, and the bugs that can be built in on purpose.

use crate::disk::SECTOR;

/// Bytes of a node's slice.
pub const SLICE_BYTES: u64 = 2 << 20;
const _: () = assert!(SLICE_BYTES.is_multiple_of(SECTOR as u64), "a disk is whole sectors");

/// Bytes that a node says its slice has room for.
pub const SLICE_CAPACITY: u64 = 1 << 20;

/// A bug built in on purpose: the checks must find it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Canary {
    /// Flushes do nothing.
    FlushRemoved,
    /// The network answers forwards itself, before the successor has them.
    AnswersInvented,
    /// The same, only when everything comes to its end.
    LastAnswersInvented,
    /// Reads ignore that an update is pending.
    ReadsUnguarded,
    /// That there is no chunk is said though an update that makes one is pending.
    AbsenceUnguarded,
    /// What a disk returns is passed on without a look at its checksums.
    ReadsUnverified,
    /// A read's blocks may be used again before they were read.
    BlockReusedEarly,
    /// The table of duplicates isn't handed over to a replica that was filled.
    RowsForgotten,
    /// It is handed over with rows of updates that are only pending.
    PendingRowsHandedOver,
    /// A replica that is being filled commits what it had pending, instead of dropping it.
    PendingsKept,
    /// The network says that ranges are equal, whatever is in them.
    ComparisonsInvented,
    /// Nodes count their lease from when it was granted.
    LeaseFromReceipt,
    /// A replica that is to be filled says at once that it was.
    FillingSkipped,
    /// When a replica has been given everything, the flush that is to come before it says so does nothing.
    FillUnflushed,
    /// The manager doesn't hear that a replica was filled.
    FilledUnheard,
    /// The manager gives a node a lease before its chains know that they go on without it.
    LeaseTooSoon,
    /// Routing doesn't say in which reign it was given out.
    ReignNotCounted,
    /// Every other change of routing has the version of the one before it.
    RoutingUncounted,
    /// The key-value store commits whatever was written since.
    ConflictsOverlooked,
    /// Requests of clients of names have no number: whatever is sent again is done again.
    RequestsUnnumbered,
    /// A manager goes on leading for longer than the others wait for it.
    ReignTooLong,
    /// A client takes it for a refusal when nobody knows what comes of its update.
    DoubtsCalledRefusals,
    /// The key-value store says of some changes of the cluster that they are done, and forgets them.
    CommitsForgotten,
    /// Of some changes of the cluster it stores all rows but one.
    CommitsTorn,
    /// Whoever cuts a file removes all its chunks.
    CutsRemove,
    /// Bytes that are kept with an inode are lost on their way to a chunk.
    MovesLose,
    /// Metadata servers never get anything removed, nor hear how long a file is.
    ChunksUnreached,
}

/// One kind of life: see [`run`](super::run).
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Copies of a chunk, each on its own node.
    pub replicas: usize,
    /// Nodes beyond the replicas: to these targets can move, and from them.
    pub spares: usize,
    /// Processes of managers, of which one leads.
    pub managers: usize,
    /// Metadata servers, and clients of theirs that work with names.
    pub servers: usize,
    pub namers: usize,
    pub chains: u64,
    pub clients: usize,
    pub chunks: u32,
    /// Faults before the end, and virtual milliseconds between two of them at most.
    pub faults: u64,
    pub fault_every: u64,
    /// Virtual milliseconds that a client pauses at most.
    pub think: u64,
    /// Virtual milliseconds that a client waits for an answer before it asks again: from so many to twice as many.
    pub patience: u64,
    /// Virtual milliseconds that a change of the cluster takes at most on its way to the managers' store.
    pub store_ms: u64,
    /// Nodes hear of new routing when there is some, and not only with their leases.
    pub news: bool,
    /// Messages lost of a thousand.
    pub loss: u64,
    /// Messages of a thousand that take seconds: longer than anybody waits for an answer.
    pub slow: u64,
    /// Messages of a thousand that come twice.
    pub twice: u64,
    /// Bytes of the last node's slice, if the others have more. A smaller one refuses what the others have room for.
    pub last_bytes: u64,
    /// Virtual milliseconds, and answered operations, that a life has at least before its end.
    pub least_ms: u64,
    pub least_operations: u64,
    /// Believes the black-box check alone ([`register`](super::register)): to see that it finds things by itself.
    pub black_box: bool,
    pub canary: Option<Canary>,
}

impl Config {
    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.replicas + self.spares
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            replicas: 3,
            spares: 1,
            managers: 3,
            servers: 2,
            namers: 2,
            chains: 2,
            clients: 6,
            chunks: 6,
            faults: 12,
            fault_every: 9000,
            think: 120,
            patience: 300,
            store_ms: 20,
            news: false,
            loss: 5,
            slow: 2,
            twice: 5,
            last_bytes: SLICE_BYTES,
            least_ms: 60_000,
            least_operations: 1000,
            black_box: false,
            canary: None,
        }
    }
}
