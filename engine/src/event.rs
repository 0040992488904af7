//! What a shard tells its targets, and what they ask of it: two closed enums.
//!
//! The shard (or the simulation) turns completions of network, disk and timers into [`Event`]s, and performs the
//! [`Output`]s that come back. Bytes of chunks never pass through here: they stay in the performer's buffers, under the
//! number of their operation.

use crate::repair::Place;
use crate::store::{
    BatchId, DataWrite, DedupRow, DiskWrite, Entry, InlineVec, Merge, PendingInfo, ReadPlan, UpdateKind,
};
use corefs_wire::data::ReadEntry;
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{ChainId, ChunkId, Error, Result, SliceIndex, TargetId, UpdateTag};
use std::ops::Range;

/// Nanoseconds of CLOCK_BOOTTIME, or of a virtual clock.
pub type Nanos = u64;

/// Names an operation between performer and targets. Chosen by the performer, free for another use after
/// [`Output::Refuse`], [`Output::Read`]'s end, or [`Output::End`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OpId(pub u64);

/// Position of a disk file among those of a shard: what one flush covers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DiskIndex(pub u16);

/// A checked request to change a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Offer {
    pub chunk: ChunkId,
    pub kind: UpdateKind,
    pub tag: UpdateTag,
    pub truncate_epoch: u64,
    pub chain: ChainId,
    pub chain_version: u64,
    /// From the predecessor, with the version that the head gave it; `None` from a client.
    pub forwarded: Option<u64>,
    /// Of a forwarded one: the committed version that the predecessor has, 0 if it has none or a tombstone.
    pub base: u64,
    /// Part of a fill, for a chunk whose committed version has this digest here.
    pub fill: Option<u64>,
}

/// A question to a successor that is being filled.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Ask {
    /// Your chunks in this range, both ends included, unless that is their digest.
    Compare { from: ChunkId, last: ChunkId, digest: u64 },
    /// Take over these rows of duplicate detection and this floor; after the last you have everything.
    Rows { floor: u64, rows: Vec<DedupRow>, finish: bool },
}

/// The answer to an [`Ask`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Told {
    Equal,
    /// The chunks up to this one, in order.
    Differs {
        covered: ChunkId,
        entries: Vec<Entry>,
        /// About one chunk: by which it may be replaced, once. 0: not.
        permit: u64,
    },
    Taken,
}

/// What an update made of its chunk, as every replica must have it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Ack {
    pub version: u64,
    /// Bytes of the chunk after it.
    pub length: u32,
    /// CRC over the stored CRCs of the blocks it touched. 0: not known any more (a retry of something older), or none.
    pub merged_crc: u32,
}

/// Something that happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A client asks for blocks.
    Read { op: OpId, entry: &'a ReadEntry },
    /// Nobody looks at the blocks of a plan any more.
    ReadEnded { slice: SliceIndex, plan: ReadPlan },
    /// A client or the predecessor asks for a change; the payload's checksums have been verified.
    Update { op: OpId, target: TargetId, offer: Offer },
    /// The answer to [`Output::Prepare`]: the CRC of each whole block, or why an old block can't be had.
    Prepared { target: TargetId, chunk: ChunkId, result: Result<&'a [u32]> },
    /// The answer to [`Output::Load`]: the payload lies under `op`, with the merged CRC of its blocks.
    Loaded { target: TargetId, chunk: ChunkId, ticket: u64, op: OpId, result: Result<u32> },
    /// The answer to [`Output::Ask`], or why there is none.
    Told { target: TargetId, ticket: u64, result: Result<Told> },
    /// The successor's answer to [`Output::Forward`], or why there is none.
    Answered { target: TargetId, chunk: ChunkId, attempt: u64, result: Result<Ack> },
    /// One of the writes of [`Output::Write`] is complete.
    DataWritten { slice: SliceIndex, batch: BatchId },
    /// All writes of the [`Output::Write`] of a part of a fill are complete, and were told; or there are none.
    FillWritten { op: OpId, target: TargetId, chunk: ChunkId },
    /// One of the writes of [`Output::WriteBatch`] is complete.
    BatchWritten { slice: SliceIndex },
    /// The answer to [`Output::Flush`].
    Flushed { disk: DiskIndex },
    /// A write to the slice failed.
    WriteFailed { slice: SliceIndex, error: Error },
    /// A flush of the disk failed.
    FlushFailed { disk: DiskIndex, error: Error },
    /// Stored blocks of a chunk don't match their checksums, or can't be read.
    Suspect { target: TargetId, chunk: ChunkId, blocks: Range<u32> },
    /// Another replica wants blocks of a committed version, or what a pending update makes of them, whatever is under way: it
    /// has their CRCs.
    Wanted { op: OpId, entry: &'a ReadEntry, pending: bool },
    /// The answer to [`Output::Check`]: which blocks don't match or can't be read, as bits; `Overloaded` if there was no memory.
    Checked { ticket: u64, slice: SliceIndex, plan: ReadPlan, bad: Result<u128> },
    /// The answer to [`Output::Fetch`]: the CRC of each block that came and is kept under the ticket, or why there is none.
    Fetched { ticket: u64, result: Result<&'a [u32]> },
    /// The answer to [`Output::Mend`]; a failure has been told as [`Event::WriteFailed`] before.
    Mended { ticket: u64, slice: SliceIndex, plan: ReadPlan, result: Result<()> },
    /// The manager said who owns what.
    Routing(&'a RoutingInfo),
    /// The node's lease was renewed, until then.
    Leased { until: Nanos },
    /// All events of this turn have been told: batches may be sealed.
    TurnEnd,
}

/// Something to do.
#[derive(Debug)]
pub enum Output {
    /// Read the plan's pieces and answer; give the plan back with [`Event::ReadEnded`].
    Read { op: OpId, slice: SliceIndex, plan: ReadPlan },
    /// Answer a read with this error. The operation is over.
    Refuse { op: OpId, error: Error },
    /// Make whole blocks of the payload: see [`crate::block`]. The payload lies at `payload` in them.
    Prepare {
        op: OpId,
        slice: SliceIndex,
        target: TargetId,
        chunk: ChunkId,
        blocks: u32,
        payload: Range<u32>,
        merges: InlineVec<Merge, 2>,
    },
    /// Read the payload of a pending update back (there is one if there is a plan), or of a part of a `fill` of a chunk with
    /// that digest, to send it on; give the plan back with [`Event::ReadEnded`] and answer with [`Event::Loaded`] under an
    /// operation of the performer's choice.
    Load {
        slice: SliceIndex,
        target: TargetId,
        ticket: u64,
        pending: PendingInfo,
        fill: Option<u64>,
        plan: Option<ReadPlan>,
    },
    /// Ask the owner of `to`; answered with [`Event::Told`].
    Ask { target: TargetId, ticket: u64, to: TargetId, chain: ChainId, chain_version: u64, ask: Ask },
    /// Write prepared blocks; each write is answered with [`Event::DataWritten`], the last of a fill's also with
    /// [`Event::FillWritten`].
    Write { op: OpId, slice: SliceIndex, batch: BatchId, writes: InlineVec<DataWrite, 2> },
    /// Write these bytes; each write is answered with [`Event::BatchWritten`].
    WriteBatch { slice: SliceIndex, writes: Vec<DiskWrite> },
    /// Flush the disk's cache.
    Flush { disk: DiskIndex },
    /// Send the update on to the owner of `to`.
    Forward {
        op: OpId,
        target: TargetId,
        chunk: ChunkId,
        attempt: u64,
        to: TargetId,
        version: u64,
        chain_version: u64,
        /// As in [`Offer::base`], or of a fill as in [`Offer::fill`].
        base: u64,
    },
    /// Read the plan's blocks (at most [`STEP`](crate::repair::STEP)) and compare them with their CRCs; answered with
    /// [`Event::Checked`]. If it isn't `urgent`, only with memory that nobody misses.
    Check { ticket: u64, slice: SliceIndex, plan: ReadPlan, urgent: bool },
    /// Ask the owner of `to` for its copy of blocks of a chunk; answered with [`Event::Fetched`].
    Fetch {
        ticket: u64,
        to: TargetId,
        chain: ChainId,
        chain_version: u64,
        place: Place,
        first: u32,
        blocks: u32,
    },
    /// Write fetched blocks where damaged ones are; answered with [`Event::Mended`].
    Mend { ticket: u64, slice: SliceIndex, plan: ReadPlan, writes: Vec<DataWrite> },
    /// What was fetched under this ticket isn't needed.
    Forget { ticket: u64 },
    /// Answer the update's requester.
    Reply { op: OpId, result: Result<Ack> },
    /// The update's payload isn't needed any more; the operation is over.
    End { op: OpId },
    /// The slice is out of service: tell people.
    SliceDied { slice: SliceIndex, error: Error },
    /// Routing wants a target here that can't be created: tell people. It is tried again with the next routing.
    TargetFailed { target: TargetId, error: Error },
    /// Replicas hold different bytes of this chunk: tell people.
    Differs { target: TargetId, chunk: ChunkId },
}

/// Outputs in the order in which they were decided.
pub type Outputs = Vec<Output>;
