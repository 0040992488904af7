//! Verifying what is stored, fetching blocks of other replicas, and writing good blocks over bad ones.

use super::Shard;
use super::desk::Desk;
use super::links::{Fetch, Sent};
use super::ops::{Op, ReadOp, Requester};
use super::patience::{Kind, Since};
use super::reads::check_transfer;
use crate::disk::uring::Io;
use crate::event::Event;
use crate::repair::{Place, STEP, mask};
use crate::store::{DataWrite, ReadPlan};
use corefs_net::{Buffer, ConnId, Flow, Placement};
use corefs_wire::checksum::{crc32c, crcs};
use corefs_wire::data::{self, Prefix, ReadEntry};
use corefs_wire::frame::Header;
use corefs_wire::limits::BLOCK;
use corefs_wire::{ChainId, Error, ErrorCode, Result, SliceIndex, TargetId, error};
use zerocopy::IntoBytes;

/// Parts from this on are single blocks, which are read again one by one after a piece of several couldn't be.
const SINGLE: u16 = STEP as u16;

/// A step that is being read.
pub struct Checking {
    ticket: u64,
    slice: SliceIndex,
    /// `None`: the disk was given up, and the step is kept for its memory.
    plan: Option<ReadPlan>,
    buffer: Buffer,
    /// Reads in flight, and in which step (of time) the last was asked for.
    left: u32,
    asked: u32,
    unreadable: u128,
}

/// Blocks that are being written.
pub struct Mending {
    ticket: u64,
    slice: SliceIndex,
    /// As above.
    plan: Option<ReadPlan>,
    buffer: Buffer,
    writes: Vec<DataWrite>,
    left: u32,
    asked: u32,
    result: Result<()>,
}

impl Shard {
    /// Reads a step.
    pub(super) fn check(&mut self, ticket: u64, slice: SliceIndex, plan: ReadPlan, urgent: bool) {
        let bytes = plan.crcs.len() * BLOCK;
        let memory = match urgent {
            true => self.desk.pool.get(bytes),
            false if self.desk.is_starving() => None,
            false => self.desk.claim(bytes, 2),
        };
        let Some(buffer) = memory else {
            let bad = Err(Error::new(ErrorCode::Overloaded, "no memory to look at it now"));
            return self.desk.tell(Event::Checked { ticket, slice, plan, bad });
        };
        let pieces: Vec<_> = plan.pieces.iter().copied().collect();
        let (plan, left, asked) = (Some(plan), 0, 0);
        let checking = Checking { ticket, slice, plan, buffer, left, asked, unreadable: 0 };
        let slot = self.checks.insert(checking);
        for (part, piece) in pieces.iter().enumerate() {
            if let Some(offset) = piece.disk_offset {
                self.read_part(slot, part as u16, offset, piece.first, piece.blocks);
            }
        }
        if self.checks[slot].left == 0 {
            self.finish_check(slot);
        }
    }

    fn read_part(&mut self, slot: usize, part: u16, offset: u64, first: u32, blocks: u32) {
        let check = &mut self.checks[slot];
        let (start, len) = (first as usize * BLOCK, blocks as usize * BLOCK);
        assert!(start + len <= check.buffer.len(), "a plan within its step");
        check.left += 1;
        check.asked = self.patience.step();
        let to = check.buffer.as_mut_ptr().wrapping_add(start);
        let io = Io::Check { slot: slot as u32, part };
        // SAFETY: the range lies in the step's own buffer, which has one owner, is looked at only when nothing is in flight,
        // and outlives the ring's transfers (the ring is dropped first).
        unsafe { self.disks.read(&mut self.ring, check.slice, offset, to, len as u32, io) };
    }

    pub(super) fn check_done(&mut self, slot: u32, part: u16, result: i32) {
        let slot = slot as usize;
        let check = &mut self.checks[slot];
        check.left -= 1;
        self.patience.heard(self.disks.disk_of(check.slice), Kind::Read);
        if part >= SINGLE {
            if result != BLOCK as i32 {
                let block = u32::from(part - SINGLE);
                check.unreadable |= mask(block..block + 1);
            }
        } else if let Some(piece) =
            check.plan.as_ref().and_then(|plan| plan.pieces.get(usize::from(part))).copied()
            && result != piece.blocks as i32 * BLOCK as i32
        {
            self.desk.counters.disk_read_errors += 1;
            // Which of them it is: each by itself.
            for nth in 0..piece.blocks {
                let (block, offset) = (piece.first + nth, piece.disk_offset.unwrap_or(0));
                let offset = offset + u64::from(nth) * BLOCK as u64;
                self.read_part(slot, SINGLE + block as u16, offset, block, 1);
            }
        }
        if self.checks[slot].left == 0 {
            self.finish_check(slot);
        }
    }

    fn finish_check(&mut self, slot: usize) {
        let Checking { ticket, slice, plan, buffer, unreadable, .. } = self.checks.remove(slot);
        let Some(plan) = plan else { return };
        let mut bad = unreadable;
        for piece in plan.pieces.iter().filter(|piece| piece.disk_offset.is_some()) {
            let blocks = piece.first as usize..(piece.first + piece.blocks) as usize;
            let bytes = &buffer.as_slice()[blocks.start * BLOCK..blocks.end * BLOCK];
            for ((found, expected), block) in crcs(bytes).zip(&plan.crcs[blocks]).zip(piece.first..) {
                if found != *expected {
                    bad |= mask(block..block + 1);
                }
            }
            self.desk.counters.scrubbed_bytes += bytes.len() as u64;
        }
        self.desk.tell(Event::Checked { ticket, slice, plan, bad: Ok(bad) });
    }

    /// Writes blocks that were fetched.
    pub(super) fn mend(&mut self, ticket: u64, slice: SliceIndex, plan: ReadPlan, writes: Vec<DataWrite>) {
        let Some(buffer) = self.desk.take_fetched(ticket) else {
            let result = Err(ErrorCode::Internal.into());
            return self.desk.tell(Event::Mended { ticket, slice, plan, result });
        };
        let left = writes.len() as u32;
        let (plan, asked) = (Some(plan), self.patience.step());
        let mending = Mending { ticket, slice, plan, buffer, writes, left, asked, result: Ok(()) };
        let slot = self.mends.insert(mending);
        let mending = &self.mends[slot];
        for (part, write) in mending.writes.iter().enumerate() {
            let (start, len) = (write.first as usize * BLOCK, write.blocks as usize * BLOCK);
            assert!(start + len <= mending.buffer.len(), "blocks that were fetched");
            self.desk.counters.disk_writes += 1;
            self.desk.counters.disk_write_bytes += len as u64;
            let from = mending.buffer.as_ptr().wrapping_add(start);
            let io = Io::Mend { slot: slot as u32, part: part as u16 };
            // SAFETY: the range lies in a buffer that is only read from here on, and kept until nothing is in flight.
            unsafe { self.disks.write(&mut self.ring, slice, write.disk_offset, from, len as u32, io) };
        }
    }

    pub(super) fn mend_done(&mut self, slot: u32, part: u16, result: i32) {
        let mending = &mut self.mends[slot as usize];
        mending.left -= 1;
        self.patience.heard(self.disks.disk_of(mending.slice), Kind::Write);
        let expected = mending.writes.get(usize::from(part)).map_or(0, |write| write.blocks as usize * BLOCK);
        if let Err(error) = check_transfer(result, expected) {
            mending.result = Err(error.clone());
            // A disk that can't take a write isn't to be trusted with any.
            self.desk.tell(Event::WriteFailed { slice: mending.slice, error });
        }
        if self.mends[slot as usize].left == 0 {
            let Mending { ticket, slice, plan, result, .. } = self.mends.remove(slot as usize);
            let Some(plan) = plan else { return };
            self.desk.tell(Event::Mended { ticket, slice, plan, result });
        }
    }

    /// The plans of everything under way, at the end of the shard.
    pub(super) fn upkeep_plans(&mut self) -> Vec<(SliceIndex, ReadPlan)> {
        let checks = self.checks.drain().filter_map(|check| Some((check.slice, check.plan?)));
        let mut plans: Vec<_> = checks.collect();
        plans.extend(self.mends.drain().filter_map(|mending| Some((mending.slice, mending.plan?))));
        plans
    }

    /// Gives up what is under way on a slice whose disk doesn't answer, so that the others have their turn. The memory stays where it is.
    pub(super) fn give_up_upkeep(&mut self, slice: SliceIndex, error: &Error) {
        for (_, check) in self.checks.iter_mut().filter(|(_, check)| check.slice == slice) {
            let Some(plan) = check.plan.take() else { continue };
            let bad = Err(error.clone());
            self.desk.tell(Event::Checked { ticket: check.ticket, slice, plan, bad });
        }
        for (_, mending) in self.mends.iter_mut().filter(|(_, mending)| mending.slice == slice) {
            let Some(plan) = mending.plan.take() else { continue };
            let result = Err(error.clone());
            self.desk.tell(Event::Mended { ticket: mending.ticket, slice, plan, result });
        }
    }
}

impl Checking {
    pub(super) fn since(&self) -> Since {
        Since { slice: self.slice, what: "a read", kind: Kind::Read, asked: self.asked }
    }
}

impl Mending {
    pub(super) fn since(&self) -> Since {
        Since { slice: self.slice, what: "a write", kind: Kind::Write, asked: self.asked }
    }
}

impl Desk {
    /// Another replica wants blocks, to repair its own.
    pub(super) fn wanted(&mut self, conn: ConnId, header: &Header, body: &[u8]) -> Flow {
        let fetch = match data::Fetch::parse(body) {
            Ok(fetch) => fetch,
            Err(error) => return self.bad_frame(conn, header, error),
        };
        let flow = self.open_account(conn, 1);
        let entry = fetch.entry;
        let memory = entry.check().and_then(|()| self.room()).and_then(|()| {
            let memory = self.claim(entry.length.get() as usize, 4);
            memory.ok_or_else(|| Error::new(ErrorCode::Overloaded, "no memory for other replicas now"))
        });
        match memory {
            Ok(buffer) => {
                let requester = Requester { conn, request: header.request() };
                let (target, chunk, slice) = (entry.target(), entry.chunk(), SliceIndex(0));
                let began = self.now;
                self.reads_with(conn, buffer.len());
                let read = ReadOp {
                    requester,
                    began,
                    target,
                    chunk,
                    buffer,
                    slice,
                    plan: None,
                    left: 0,
                    asked: 0,
                    failed: None,
                };
                let op = self.ops.insert(Op::Read(read));
                self.tell(Event::Wanted { op, entry: &entry, pending: fetch.pending.get() != 0 });
            }
            Err(error) => self.refuse(conn, header, error),
        }
        flow
    }

    /// Where the data of a reply go: only fetches have any.
    pub(super) fn place_fetched(&mut self, conn: ConnId, header: &Header) -> Placement {
        let Some(Sent::Fetch(fetch)) = self.links.peek(conn, header.request()) else {
            return Placement::Discard;
        };
        match self.pool.get(fetch.bytes).filter(|_| header.data_len() <= fetch.bytes) {
            Some(buffer) => Placement::Into { buffer, offset: 0 },
            None => Placement::Discard,
        }
    }

    /// Another replica's blocks are here, or it says why not.
    pub(super) fn fetched(&mut self, ticket: u64, header: &Header, body: &[u8], data: Option<Buffer>) {
        let result = match header.status() {
            0 => data::read_reply(body).and_then(|(_, crcs)| match data {
                Some(buffer) if header.data_len() == crcs.len() * BLOCK => Ok((buffer, header.data_len())),
                Some(_) => Err(Error::new(ErrorCode::BadFrame, "blocks without their checksums")),
                None => Err(Error::new(ErrorCode::Overloaded, "nothing there, or no memory for it")),
            }),
            status => Err(error::decode_error(status, body)),
        };
        match result {
            Ok((buffer, len)) => {
                // Computed here from what came: nobody's word is taken for it.
                let found: Vec<u32> = buffer.as_slice()[..len].chunks_exact(BLOCK).map(crc32c).collect();
                self.fetched.push((ticket, buffer));
                self.tell(Event::Fetched { ticket, result: Ok(&found) });
            }
            Err(error) => self.tell(Event::Fetched { ticket, result: Err(error) }),
        }
    }

    pub(super) fn take_fetched(&mut self, ticket: u64) -> Option<Buffer> {
        let index = self.fetched.iter().position(|(of, _)| *of == ticket)?;
        Some(self.fetched.swap_remove(index).1)
    }
}

/// The question for another replica's blocks.
pub(super) fn encode_fetch(
    ticket: u64,
    to: TargetId,
    chain: ChainId,
    chain_version: u64,
    place: Place,
    first: u32,
    blocks: u32,
) -> Fetch {
    let Place { chunk, pending, .. } = place;
    let entry = ReadEntry {
        request: 0.into(),
        chain: chain.0.into(),
        chain_version: chain_version.into(),
        target: to.0.into(),
        inode: chunk.inode.0.into(),
        index: chunk.index.into(),
        generation: chunk.generation.into(),
        offset: (first * BLOCK as u32).into(),
        length: (blocks * BLOCK as u32).into(),
    };
    let fetch = data::Fetch { entry, pending: u32::from(pending).into(), unused: 0.into() };
    let mut body = Prefix::default().as_bytes().to_vec();
    body.extend_from_slice(fetch.as_bytes());
    Fetch { ticket, bytes: blocks as usize * BLOCK, body }
}
