//! A read's way: pieces from the disk into one registered buffer, verified, and out as they lie.

use super::Shard;
use super::patience::Kind;
use crate::block;
use crate::disk::uring::{Io, disk_error};
use crate::event::{Event, OpId};
use crate::store::ReadPlan;
use corefs_net::{Completion, Payload, Source, heap};
use corefs_wire::data::{ReadReply, op};
use corefs_wire::limits::BLOCK;
use corefs_wire::{Error, Result, SliceIndex};
use std::ptr;
use zerocopy::IntoBytes;

impl Shard {
    /// Asks the disk for a plan's pieces.
    #[inline]
    pub(super) fn start_read(&mut self, op: OpId, slice: SliceIndex, plan: ReadPlan) {
        let read = self.desk.ops.read(op);
        read.slice = slice;
        read.asked = self.patience.step();
        for piece in plan.pieces.iter().filter(|piece| piece.disk_offset.is_none()) {
            let start = piece.first as usize * BLOCK;
            let zeroed = read.buffer.zero(start..start + piece.blocks as usize * BLOCK);
            assert!(zeroed.is_some(), "the buffer of a read has one owner");
        }
        let memory = read.buffer.as_mut_ptr();
        for (part, piece) in plan.pieces.iter().enumerate() {
            let Some(offset) = piece.disk_offset else { continue };
            let (start, len) = (piece.first as usize * BLOCK, piece.blocks as usize * BLOCK);
            assert!(start + len <= read.buffer.len(), "a plan within what was asked for");
            read.left += 1;
            let io = Io::Read { op: op.0 as u32, part: part as u16 };
            // SAFETY: the range lies in the operation's own buffer, which has one owner, is looked at only when nothing is
            // left in flight, and outlives the ring's transfers (the ring is dropped first).
            unsafe { self.disks.read(&mut self.ring, slice, offset, memory.add(start), len as u32, io) };
        }
        let left = read.left;
        read.plan = Some(plan);
        if left == 0 {
            self.finish_read(op);
        }
    }

    #[inline]
    pub(super) fn read_done(&mut self, op: OpId, part: u16, result: i32) {
        let _steady = heap::forbid(self.desk.is_steady());
        let read = self.desk.ops.read(op);
        read.left -= 1;
        self.patience.heard(self.disks.disk_of(read.slice), Kind::Read);
        let piece = read.plan.as_ref().and_then(|plan| plan.pieces.get(usize::from(part)));
        let expected = piece.map_or(0, |piece| piece.blocks as usize * BLOCK);
        if result != expected as i32 {
            read.failed = Some((-result).max(0));
        }
        if read.left == 0 {
            self.finish_read(op);
        }
    }

    /// Where a completion's data are, if it is of a read.
    #[inline]
    pub(super) fn memory_of(&mut self, completion: &Completion) -> *const u8 {
        match (completion.token.source(), Io::of(completion.token)) {
            (Source::DISK, Io::Read { op, .. }) => self.desk.ops.read(OpId(op.into())).buffer.as_ptr(),
            _ => ptr::null(),
        }
    }

    /// All pieces are there: verify, answer, give the plan back.
    #[inline]
    fn finish_read(&mut self, op: OpId) {
        let read = self.desk.ops.take_read(op);
        let plan = read.plan.expect("a read that was started has a plan");
        let bytes = plan.crcs.len() * BLOCK;
        let verified = match read.failed {
            Some(error) => {
                self.desk.counters.disk_read_errors += 1;
                Err(disk_error(error))
            }
            None => block::verify(&read.buffer.as_slice()[..bytes], &plan.crcs, self.upcoming).map_err(
                |mismatch| {
                    self.desk.counters.corrupt_blocks += mismatch.blocks;
                    Error::from(mismatch)
                },
            ),
        };
        let reply = verified.map(|()| {
            self.body.clear();
            let reply = ReadReply {
                commit_version: plan.version.into(),
                chunk_length: plan.length.into(),
                blocks: (plan.crcs.len() as u32).into(),
            };
            self.body.extend_from_slice(reply.as_bytes());
            plan.crcs.iter().for_each(|crc| self.body.extend_from_slice(&crc.to_le_bytes()));
        });
        let (first, blocks) = (plan.offset / BLOCK as u32, plan.crcs.len() as u32);
        self.desk.tell(Event::ReadEnded { slice: read.slice, plan });
        let (conn, len) = (read.requester.conn, read.buffer.len());
        match reply {
            Ok(()) => {
                self.desk.counters.reads += 1;
                self.desk.counters.read_disk_nanos += self.desk.now - read.began;
                self.desk.counters.read_blocks += (bytes / BLOCK) as u64;
                let data = Payload::new(read.buffer, 0..bytes);
                self.answer(read.requester, op::READ, Ok(()), Some(data));
            }
            Err(error) => {
                self.desk.counters.reads_refused += 1;
                self.answer(read.requester, op::READ, Err(&error), None);
                // Whoever reads next shall find it whole.
                let (target, chunk) = (read.target, read.chunk);
                self.desk.tell(Event::Suspect { target, chunk, blocks: first..first + blocks });
            }
        }
        self.desk.read_over(conn, len, self.carrier.queued(conn));
    }

    pub(super) fn refuse_read(&mut self, op: OpId, error: &Error) {
        let read = self.desk.ops.take_read(op);
        self.desk.counters.reads_refused += 1;
        self.answer(read.requester, op::READ, Err(error), None);
        let conn = read.requester.conn;
        self.desk.read_over(conn, read.buffer.len(), self.carrier.queued(conn));
    }
}

/// What a transfer of `expected` bytes came to.
pub(super) fn check_transfer(result: i32, expected: usize) -> Result<()> {
    if result == expected as i32 { Ok(()) } else { Err(disk_error((-result).max(0))) }
}
