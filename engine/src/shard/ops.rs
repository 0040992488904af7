//! What a shard is doing for whom: one entry for each read and each update, from its frame to its end.

use crate::event::{Nanos, OpId};
use crate::store::{BatchId, DataWrite, InlineVec, Merge, ReadPlan};
use corefs_net::{Buffer, ConnId};
use corefs_wire::{ChunkId, SliceIndex, TargetId, data};
use slab::Slab;
use std::ops::Range;

/// Who is owed a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Requester {
    pub conn: ConnId,
    pub request: u64,
}

/// One read of a batch.
pub struct ReadOp {
    pub requester: Requester,
    /// When it had its memory.
    pub began: Nanos,
    pub target: TargetId,
    pub chunk: ChunkId,
    /// Owned by the disk while `left` is not 0.
    pub buffer: Buffer,
    pub slice: SliceIndex,
    pub plan: Option<ReadPlan>,
    /// Disk reads in flight, and in which step the first was asked for (see [`Patience`](super::patience::Patience)).
    pub left: u32,
    pub asked: u32,
    /// One of them failed with this error number, or came up short (0).
    pub failed: Option<i32>,
}

/// One update, or the payload of a recovered one.
pub struct UpdateOp {
    /// Nobody for a recovered one.
    pub requester: Option<Requester>,
    /// When it arrived.
    pub began: Nanos,
    pub target: TargetId,
    pub chunk: ChunkId,
    pub slice: SliceIndex,
    /// As it came; sent on with another version and target.
    pub message: data::Update,
    /// Of the payload's segments, verified.
    pub crcs: Vec<u32>,
    /// Whole blocks with the payload in its place; owned by the disk while `left` is not 0.
    pub buffer: Option<Buffer>,
    pub payload: Range<usize>,
    pub merging: Option<Merging>,
    /// Of a recovered one, while it is read back.
    pub plan: Option<ReadPlan>,
    pub writes: InlineVec<DataWrite, 2>,
    pub batch: BatchId,
    /// The forward in flight.
    pub forward: Option<usize>,
    /// Under which number it was read back, to be told.
    pub ticket: u64,
    /// Disk transfers in flight, and in which step the first was asked for.
    pub left: u32,
    pub asked: u32,
    pub failed: bool,
    /// The targets need it no more: it goes when nothing is in flight.
    pub ended: bool,
}

/// Old blocks on their way.
pub struct Merging {
    pub merges: InlineVec<Merge, 2>,
    pub old: [Option<Buffer>; 2],
}

#[allow(clippy::large_enum_variant)] // The large one is the frequent one: boxing it would allocate for each read.
pub enum Op {
    Read(ReadOp),
    /// Boxed: reads are many and small.
    Update(Box<UpdateOp>),
}

/// The table. Positions are the numbers that targets and disk transfers name.
#[derive(Default)]
pub struct Ops(Slab<Op>);

impl Ops {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn insert(&mut self, op: Op) -> OpId {
        OpId(self.0.insert(op) as u64)
    }

    /// The number that an [`Self::insert`] now would give.
    pub fn next(&self) -> OpId {
        OpId(self.0.vacant_key() as u64)
    }

    #[inline]
    pub fn read(&mut self, op: OpId) -> &mut ReadOp {
        match self.0.get_mut(op.0 as usize) {
            Some(Op::Read(read)) => read,
            _ => panic!("{op:?} is no read"),
        }
    }

    #[inline]
    pub fn take_read(&mut self, op: OpId) -> ReadOp {
        match self.0.try_remove(op.0 as usize) {
            Some(Op::Read(read)) => read,
            _ => panic!("{op:?} is no read"),
        }
    }

    pub fn update(&mut self, op: OpId) -> &mut UpdateOp {
        match self.0.get_mut(op.0 as usize) {
            Some(Op::Update(update)) => update,
            _ => panic!("{op:?} is no update"),
        }
    }

    /// Forgets an update that has ended, once nothing is in flight for it.
    pub fn release(&mut self, op: OpId) -> Option<Box<UpdateOp>> {
        let update = self.update(op);
        if !update.ended || update.left > 0 {
            return None;
        }
        match self.0.remove(op.0 as usize) {
            Op::Update(update) => Some(update),
            Op::Read(_) => None,
        }
    }

    /// All of them, to be looked at.
    pub fn iter(&self) -> impl Iterator<Item = &Op> {
        self.0.iter().map(|(_, op)| op)
    }

    /// All of them, at the end of the shard.
    pub fn drain(&mut self) -> impl Iterator<Item = Op> + '_ {
        self.0.drain()
    }
}
