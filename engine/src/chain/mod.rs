//! Chain replication (CRAQ: Terrace and Freedman, USENIX ATC 2009) as one replica sees it.
//!
//! Pure: no I/O, no clock, no bytes. [`Replica`] is told what happened ([`Input`]) and decides what is next ([`Step`]); the
//! [`target`](crate::target) does the steps against the store and the performer.
//!
//! # The life of an update
//! ```text
//! offer -> waiting (the chunk's queue) -> preparing -> writing -> forwarding <-> paused, filling -> committed
//!                                             |           |            `-> dropping (definite refusal) -> refused
//!                                             `-> refused  `-> committed (nobody comes after)
//! ```
//!
//! # Invariants
//! - One update of a chunk is active at a time; the others wait in order, at most [`WAITING_MAX`] of them.
//! - A pending update in the store is the active one of its chunk.
//! - Nothing is forwarded before it is durable here, nothing is acknowledged before it is committed here, and
//!   nothing is committed before everybody behind has it durable.
//! - Neither acknowledgment nor forward leaves without a lease.
//! - An update that was forwarded is never given up because of silence: only the refusal of a successor drops it, and the
//!   drop is durable before the refusal is passed on.
//! - An answer to an earlier attempt or an earlier chain version changes nothing.
//! - What is pending when a new chain version comes is sent on again before anything new of its chunk is admitted; a replica
//!   that is being filled drops it instead.
//! - A successor that is being filled can't have an update dropped: an earlier one may have committed it. It is given what
//!   it lacks, or says that it can't be filled.

mod fill;
mod lane;
mod replica;
mod resync;
mod role;
#[cfg(test)]
mod tests;

pub use fill::{Filler, Stage as FillStage};
pub use lane::Phase;
pub use replica::{ANSWER_TIMEOUT, FAILED_FOR, Replica};
pub use resync::{Pace, Progress, RATE_DEFAULT, Resync, Stage as ResyncStage};
pub use role::Role;

use crate::event::{Ack, Nanos, Offer, OpId};
use crate::store::PendingInfo;
use corefs_wire::limits::CHUNK_UPDATES_WAITING_MAX;
use corefs_wire::{ChunkId, Error, ErrorCode, Result, TargetId};

/// Updates that may wait behind the active one of a chunk.
pub const WAITING_MAX: usize = CHUNK_UPDATES_WAITING_MAX;
/// How long a requester waits for the successors; the update itself goes on after it (nanoseconds).
pub const FORWARD_DEADLINE: Nanos = 10_000_000_000;
/// Pauses between attempts double from the first to the last (nanoseconds).
pub const PAUSE_FIRST: Nanos = 2_000_000;
pub const PAUSE_LAST: Nanos = 250_000_000;

/// The time, and whether the shard's lease still runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Moment {
    pub now: Nanos,
    pub leased: bool,
}

/// What the store made of an offer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Begun {
    /// It is new, under this version.
    Fresh { version: u64 },
    /// It was done before.
    Done(Ack),
}

/// Something that a replica is told.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Input {
    /// Routing says this about the target.
    Role(Role),
    /// Somebody wants a change.
    Offer { op: OpId, offer: Offer },
    /// The answer to [`Step::Begin`].
    Begun { chunk: ChunkId, result: Result<Begun> },
    /// The blocks are prepared and staged, the record is in the open batch; the CRC is over the touched blocks.
    Applied { chunk: ChunkId, result: Result<u32> },
    /// The flush that covers the record is done.
    Durable { chunk: ChunkId, version: u64, length: u32, committed: bool },
    /// The successor's answer.
    Answered { chunk: ChunkId, attempt: u64, result: Result<Ack> },
    /// The answer to [`Step::Commit`]; `Overloaded`: not now.
    Committed { chunk: ChunkId, result: Result<()> },
    /// The answer to [`Step::Drop`]; `Overloaded`: not now.
    DropBegun { chunk: ChunkId, result: Result<()> },
    /// The drop of a pending update is durable.
    Dropped { chunk: ChunkId },
    /// The time of [`Step::Wake`] has come.
    Due { chunk: ChunkId, attempt: u64 },
    /// The store was opened with this pending update.
    Recovered { pending: PendingInfo },
    /// Nobody needs what is kept of an earlier chain version any more.
    LetGo,
    /// The successor is to be given the committed version of a chunk, when its active update is over.
    Fill { chunk: ChunkId },
    /// [`Step::Fill`] has come to its end.
    Filled { chunk: ChunkId, attempt: u64, result: Result<()> },
    /// The answer to [`Step::Load`].
    Loaded { chunk: ChunkId, op: OpId, result: Result<u32> },
    /// The slice is dead.
    Died,
    /// Routing doesn't name the target any more.
    Left,
}

/// Something that a replica wants done, in order.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// Ask the store to admit the update.
    Begin { op: OpId, offer: Offer },
    /// Send it to the successor.
    Forward { op: OpId, chunk: ChunkId, attempt: u64, to: TargetId, version: u64, chain_version: u64 },
    /// Make the pending update the committed one.
    Commit { chunk: ChunkId, version: u64, chain_version: u64 },
    /// Undo the pending update.
    Drop { chunk: ChunkId, version: u64 },
    /// Read the payload of a recovered pending update back.
    Load { chunk: ChunkId },
    /// Give the successor the committed version of a chunk.
    Fill { chunk: ChunkId, attempt: u64, to: TargetId, chain_version: u64 },
    /// A chunk that [`Input::Fill`] named is filled.
    FillEnded { chunk: ChunkId },
    /// Say [`Input::Due`] at that time.
    Wake { chunk: ChunkId, attempt: u64, at: Nanos },
    /// Answer the requester.
    Reply { op: OpId, result: Result<Ack> },
    /// The operation is over.
    End { op: OpId },
    /// The chunk is out of service: replicas hold different bytes.
    Differs { chunk: ChunkId },
}

/// Whether a successor's refusal is about the update itself, so that nobody will ever take it.
pub fn is_definite(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::NoSpace
            | ErrorCode::StaleLayout
            | ErrorCode::InvalidArgument
            | ErrorCode::Duplicate
            | ErrorCode::Corrupt
    )
}

/// Whether a forward failed on the way: nothing was heard of the successor, not even a refusal. A late answer isn't that; it may have a slow
/// disk.
pub fn is_on_the_way(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::ConnectionLost | ErrorCode::Unreachable)
}

pub(crate) fn refuse<T>(code: ErrorCode) -> Result<T> {
    Err(Error::from(code))
}
