//! An update's way through the disk: whole blocks made of payload and old blocks, written with their record, flushed.

use super::ops::{Merging, Op, UpdateOp};
use super::patience::Kind;
use super::reads::check_transfer;
use super::{BatchMemory, BatchWrite, Shard};
use crate::block;
use crate::disk::Pages;
use crate::disk::uring::{Io, disk_error};
use crate::event::{Ack, Event, OpId};
use crate::store::{BatchId, DataWrite, DiskWrite, InlineVec, Merge, PendingInfo, ReadPlan, UpdateKind};
use crate::target::merged_crc;
use corefs_net::Buffer;
use corefs_wire::data::{self, UpdateReply, op};
use corefs_wire::limits::{BLOCK, CHUNK_MIN};
use corefs_wire::{Error, ErrorCode, Result, SliceIndex, TargetId};
use std::ops::Range;
use zerocopy::IntoBytes;

impl Shard {
    /// Makes whole blocks of a payload: reads what is to be kept of old ones first.
    pub(super) fn prepare(
        &mut self,
        op: OpId,
        slice: SliceIndex,
        blocks: u32,
        payload: Range<u32>,
        merges: InlineVec<Merge, 2>,
    ) {
        let bytes = blocks as usize * BLOCK;
        let update = self.desk.ops.update(op);
        update.slice = slice;
        if bytes > 0 && update.buffer.is_none() {
            update.buffer = self.desk.pool.get(bytes);
        }
        let old = [0, 1].map(|index| merges.get(index).and_then(|_| self.desk.pool.get(BLOCK)));
        let short = merges.iter().zip(&old).any(|(_, old)| old.is_none());
        if short || (bytes > 0 && update.buffer.is_none()) {
            let error = Error::new(ErrorCode::Overloaded, "no memory for old blocks now");
            return self.prepared(op, Err(error));
        }
        let place = payload.start as usize..payload.end as usize;
        if let Some(buffer) = &mut update.buffer {
            assert!(update.payload == place && buffer.capacity() >= bytes, "placed where the store wants it");
            buffer.set_len(bytes);
            let memory = buffer.get_mut().expect("nobody else has the payload yet");
            block::zero_around(memory, &place);
        }
        update.failed = false;
        update.asked = self.patience.step();
        for (part, (merge, old)) in merges.iter().zip(old.iter().flatten()).enumerate() {
            update.left += 1;
            let io = Io::Merge { op: op.0 as u32, part: part as u16 };
            let (memory, len) = (old.as_mut_ptr(), BLOCK as u32);
            // SAFETY: the block is the operation's own, has one owner, and is looked at only when nothing is in flight.
            unsafe { self.disks.read(&mut self.ring, slice, merge.disk_offset, memory, len, io) };
        }
        let left = update.left;
        update.merging = Some(Merging { merges, old });
        if left == 0 {
            self.finish_prepare(op);
        }
    }

    pub(super) fn merge_done(&mut self, op: OpId, result: i32) {
        let update = self.desk.ops.update(op);
        update.left -= 1;
        update.failed |= result != BLOCK as i32;
        self.patience.heard(self.disks.disk_of(update.slice), Kind::Read);
        if update.left == 0 {
            self.finish_prepare(op);
        }
    }

    fn finish_prepare(&mut self, op: OpId) {
        let update = self.desk.ops.update(op);
        let mut crcs = std::mem::take(&mut self.crcs);
        crcs.clear();
        let result = if update.failed { Err(disk_error(0)) } else { merge_all(update, &mut crcs) };
        if let Err(error) = &result
            && error.code == ErrorCode::Corrupt
        {
            self.desk.counters.corrupt_blocks += 1;
        }
        self.prepared(op, result.map(|()| crcs.as_slice()));
        self.crcs = crcs;
    }

    fn prepared(&mut self, op: OpId, result: Result<&[u32]>) {
        let update = self.desk.ops.update(op);
        let (target, chunk) = (update.target, update.chunk);
        update.merging = None;
        self.desk.tell(Event::Prepared { target, chunk, result });
        self.desk.ops.release(op);
    }

    /// Writes prepared blocks.
    pub(super) fn write_data(
        &mut self,
        op: OpId,
        slice: SliceIndex,
        batch: BatchId,
        writes: InlineVec<DataWrite, 2>,
    ) {
        let update = self.desk.ops.update(op);
        update.batch = batch;
        update.slice = slice;
        update.failed = false;
        update.asked = self.patience.step();
        if let Some(buffer) = &update.buffer {
            for (part, write) in writes.iter().enumerate() {
                let (start, len) = (write.first as usize * BLOCK, write.blocks as usize * BLOCK);
                assert!(start + len <= buffer.len(), "blocks of the operation's buffer");
                update.left += 1;
                self.desk.counters.disk_writes += 1;
                self.desk.counters.disk_write_bytes += len as u64;
                let io = Io::Data { op: op.0 as u32, part: part as u16 };
                let from = buffer.as_ptr().wrapping_add(start);
                // SAFETY: the range lies in the operation's buffer, which is only read from here on and kept until nothing
                // is in flight.
                unsafe {
                    self.disks.write(&mut self.ring, slice, write.disk_offset, from, len as u32, io);
                }
            }
        }
        update.writes = writes;
        self.tell_fill_written(op);
    }

    /// Says so when all data of a part of a fill are written.
    fn tell_fill_written(&mut self, op: OpId) {
        let update = self.desk.ops.update(op);
        let is_fill = update.message.flags & data::FILL != 0;
        if is_fill && update.left == 0 && !update.failed {
            let (target, chunk) = (update.target, update.chunk);
            self.desk.tell(Event::FillWritten { op, target, chunk });
        }
    }

    pub(super) fn data_done(&mut self, op: OpId, part: u16, result: i32) {
        let update = self.desk.ops.update(op);
        update.left -= 1;
        let (slice, batch) = (update.slice, update.batch);
        self.patience.heard(self.disks.disk_of(slice), Kind::Write);
        let expected = update.writes.get(usize::from(part)).map_or(0, |write| write.blocks as usize * BLOCK);
        match check_transfer(result, expected) {
            Ok(()) => {
                self.desk.tell(Event::DataWritten { slice, batch });
                self.tell_fill_written(op);
            }
            Err(error) => {
                update.failed = true;
                self.desk.tell(Event::WriteFailed { slice, error });
            }
        }
        self.desk.ops.release(op);
    }

    /// Writes journal blocks and checkpoint pages.
    pub(super) fn write_batch(&mut self, slice: SliceIndex, writes: Vec<DiskWrite>) {
        self.desk.counters.batches += 1;
        for DiskWrite { offset, bytes } in writes {
            let len = bytes.len() as u32;
            let pooled = if bytes.len() <= corefs_net::buffer::BLOCK_MAX {
                self.desk.pool.get(bytes.len())
            } else {
                None
            };
            // What is left to write must never wait for memory that only its being written would free.
            let memory = match pooled {
                Some(mut buffer) => {
                    buffer.get_mut().expect("a fresh buffer").copy_from_slice(&bytes);
                    BatchMemory::Pooled(buffer)
                }
                None => BatchMemory::Heap(Pages::of(&bytes)),
            };
            let from = match &memory {
                BatchMemory::Pooled(buffer) => buffer.as_ptr(),
                BatchMemory::Heap(pages) => pages.bytes().as_ptr(),
            };
            self.desk.counters.disk_writes += 1;
            self.desk.counters.disk_write_bytes += u64::from(len);
            let asked = self.patience.step();
            let slot = self.batches.insert(BatchWrite { slice, memory, len, asked }) as u32;
            // SAFETY: the memory is kept in the table, unchanged, until the completion.
            unsafe { self.disks.write(&mut self.ring, slice, offset, from, len, Io::Batch { slot }) };
        }
    }

    pub(super) fn batch_done(&mut self, slot: u32, result: i32) {
        let BatchWrite { slice, memory, len, .. } = self.batches.remove(slot as usize);
        drop(memory);
        self.patience.heard(self.disks.disk_of(slice), Kind::Write);
        match check_transfer(result, len as usize) {
            Ok(()) => self.desk.tell(Event::BatchWritten { slice }),
            Err(error) => self.desk.tell(Event::WriteFailed { slice, error }),
        }
    }

    /// Answers whoever asked for an update.
    pub(super) fn reply_update(&mut self, op: OpId, result: Result<Ack>) {
        let update = self.desk.ops.update(op);
        let (slice, target, chunk, began) = (update.slice, update.target, update.chunk, update.began);
        let Some(requester) = update.requester else { return };
        match result {
            Ok(Ack { version, length, merged_crc }) => {
                self.desk.counters.updates += 1;
                self.desk.counters.update_nanos += self.desk.now - began;
                self.disks.acknowledged(slice, target, chunk, version);
                let reply = UpdateReply {
                    version: version.into(),
                    chunk_length: length.into(),
                    merged_crc: merged_crc.into(),
                };
                self.body.clear();
                self.body.extend_from_slice(reply.as_bytes());
                self.answer(requester, op::UPDATE, Ok(()), None);
            }
            Err(error) => {
                self.desk.counters.updates_refused += 1;
                self.answer(requester, op::UPDATE, Err(&error), None);
            }
        }
    }

    /// The targets need the operation no more.
    pub(super) fn end_update(&mut self, op: OpId) {
        let update = self.desk.ops.update(op);
        update.ended = true;
        if let Some(key) = update.forward.take() {
            self.desk.links.remove(key);
        }
        self.desk.ops.release(op);
    }

    /// Reads the payload of a recovered update back, under a new operation.
    pub(super) fn load(
        &mut self,
        slice: SliceIndex,
        target: TargetId,
        ticket: u64,
        pending: &PendingInfo,
        fill: Option<u64>,
        plan: Option<ReadPlan>,
    ) {
        let (message, payload) = self.message_of(target, pending, fill);
        let bytes = plan.as_ref().map_or(0, |plan| plan.crcs.len() * BLOCK);
        let buffer = if bytes > 0 { self.desk.pool.get(bytes) } else { None };
        let short = bytes > 0 && buffer.is_none();
        let update = UpdateOp {
            requester: None,
            began: self.desk.now,
            target,
            chunk: pending.chunk,
            slice,
            message,
            crcs: Vec::new(),
            buffer,
            payload,
            merging: None,
            plan,
            writes: InlineVec::new(),
            batch: BatchId(0),
            forward: None,
            ticket,
            left: 0,
            asked: self.patience.step(),
            failed: short,
            ended: false,
        };
        let op = self.desk.ops.insert(Op::Update(Box::new(update)));
        if short || !self.load_pieces(op) {
            self.finish_load(op);
        }
    }

    /// Whether anything is in flight.
    fn load_pieces(&mut self, op: OpId) -> bool {
        let update = self.desk.ops.update(op);
        let (Some(plan), Some(buffer)) = (&update.plan, &mut update.buffer) else { return false };
        for piece in plan.pieces.iter().filter(|piece| piece.disk_offset.is_none()) {
            let start = piece.first as usize * BLOCK;
            let zeroed = buffer.zero(start..start + piece.blocks as usize * BLOCK);
            assert!(zeroed.is_some(), "a fresh buffer has one owner");
        }
        for (part, piece) in plan.pieces.iter().enumerate() {
            let Some(offset) = piece.disk_offset else { continue };
            let (start, len) = (piece.first as usize * BLOCK, piece.blocks as usize * BLOCK);
            assert!(start + len <= buffer.len(), "a plan within its blocks");
            update.left += 1;
            let io = Io::Load { op: op.0 as u32, part: part as u16 };
            let to = buffer.as_mut_ptr().wrapping_add(start);
            // SAFETY: as for a client's read: own buffer, one owner, looked at when nothing is in flight.
            unsafe { self.disks.read(&mut self.ring, update.slice, offset, to, len as u32, io) };
        }
        update.left > 0
    }

    pub(super) fn load_done(&mut self, op: OpId, part: u16, result: i32) {
        let update = self.desk.ops.update(op);
        update.left -= 1;
        let piece = update.plan.as_ref().and_then(|plan| plan.pieces.get(usize::from(part)));
        update.failed |= result != piece.map_or(0, |piece| piece.blocks as i32 * BLOCK as i32);
        self.patience.heard(self.disks.disk_of(update.slice), Kind::Read);
        if update.left == 0 {
            self.finish_load(op);
        }
    }

    fn finish_load(&mut self, op: OpId) {
        let update = self.desk.ops.update(op);
        let (target, chunk, slice, ticket) = (update.target, update.chunk, update.slice, update.ticket);
        let mut result = Ok(0);
        if let Some(plan) = update.plan.take() {
            result = match &update.buffer {
                None => Err(Error::new(ErrorCode::Overloaded, "no memory to read it back now")),
                Some(_) if update.failed => Err(disk_error(0)),
                Some(buffer) => block::verify(buffer.as_slice(), &plan.crcs, std::ptr::null())
                    .map(|()| merged_crc(&plan.crcs))
                    .map_err(Error::from),
            };
            if result.is_ok()
                && let Some(buffer) = &update.buffer
            {
                let (offset, crcs) = (update.message.offset.get() as usize, &mut update.crcs);
                data::segment_crcs(offset, &buffer.as_slice()[update.payload.clone()], |crc| crcs.push(crc));
                update.message.crcs = (update.crcs.len() as u32).into();
            }
            self.desk.tell(Event::ReadEnded { slice, plan });
        }
        self.desk.tell(Event::Loaded { target, chunk, ticket, op, result });
    }

    /// The message that brought a recovered update, as far as it matters, or that brings a part of a fill.
    fn message_of(
        &self,
        target: TargetId,
        pending: &PendingInfo,
        fill: Option<u64>,
    ) -> (data::Update, Range<usize>) {
        let (kind, offset, length) = match pending.kind {
            UpdateKind::Write { offset, len } => (data::UpdateKind::Write, offset, len),
            UpdateKind::Truncate { len } => (data::UpdateKind::Truncate, 0, len),
            UpdateKind::Remove => (data::UpdateKind::Remove, 0, 0),
            UpdateKind::FullReplace { len, .. } => (data::UpdateKind::Replace, 0, len),
            UpdateKind::Patch { offset, len } => (data::UpdateKind::Patch, offset, len),
        };
        let end = (offset + length).max(if fill.is_some() { pending.length } else { 0 });
        let role = self.desk.targets.target(target).and_then(|target| target.replica().role());
        let mut message = data::Update {
            chain: role.map_or(0, |role| role.chain.0).into(),
            inode: pending.chunk.inode.0.into(),
            index: pending.chunk.index.into(),
            generation: pending.chunk.generation.into(),
            kind: kind as u8,
            epoch: (pending.truncate_epoch as u32).into(),
            offset: offset.into(),
            length: length.into(),
            chunk_size: end.next_power_of_two().max(CHUNK_MIN).into(),
            flags: if fill.is_some() { data::FILL } else { 0 },
            base: fill.unwrap_or(0).into(),
            total: pending.length.into(),
            ..data::Update::default()
        };
        message.set_tag(pending.tag);
        let at = offset as usize % BLOCK;
        let bytes = match kind {
            data::UpdateKind::Truncate | data::UpdateKind::Remove => 0,
            _ => length as usize,
        };
        (message, at..at + bytes)
    }
}

/// Verifies old blocks, puts what is kept of them in place, and computes the CRCs of the whole blocks.
fn merge_all(update: &mut UpdateOp, crcs: &mut Vec<u32>) -> Result<()> {
    let Some(buffer) = &mut update.buffer else { return Ok(()) };
    let memory = buffer.get_mut().expect("nobody else has the payload yet");
    if let Some(Merging { merges, old }) = &update.merging {
        for (merge, old) in merges.iter().zip(old.iter().flatten()) {
            block::merge(memory, merge, Buffer::as_slice(old))?;
        }
    }
    block::crcs(memory, &update.payload, &update.crcs, crcs);
    Ok(())
}
