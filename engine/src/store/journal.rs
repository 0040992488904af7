//! The journal ring: open records, the batch in flight, and how much room is promised to whom.
//!
//! Sequences number journal blocks; a block lies at slot `sequence % blocks` of the ring. From `tail` on they are
//! needed for recovery. Invariant, so that nothing that must be logged ever waits for the checkpoint:
//! blocks in use + blocks of the open records + promised blocks + one for each pending update <= ring.

use super::format::{DiskWrite, Geometry, JOURNAL_PAYLOAD, JournalHead};
use super::record::{Record, UpdateRecord, encode_update};
use corefs_wire::limits::BLOCK;

/// Numbers the batches of one run, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BatchId(pub u64);

/// Blocks that records of so many bytes take at most, in a batch of their own.
pub(super) fn blocks_of(bytes: usize) -> u32 {
    bytes.div_ceil(JOURNAL_PAYLOAD) as u32
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Journal {
    epoch: u64,
    ring: u32,
    /// Of the next block to be sealed.
    next_sequence: u64,
    /// The oldest block that recovery needs.
    tail: u64,
    /// F: every block up to it is flushed.
    flushed: u64,
    /// Number of the next record, and of the oldest whose flush isn't known.
    next_record: u64,
    flushed_records: u64,
    open: Vec<u8>,
    open_records: u32,
    /// For plans that are staged and not applied.
    promised: u32,
    /// For the commit or drop of each pending update.
    reserved: u32,
    in_flight: Option<InFlight>,
    next_batch: u64,
    /// The last block sealed says that everything before it is flushed, and nothing follows.
    sealed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct InFlight {
    id: BatchId,
    last_sequence: u64,
    next_record: u64,
}

impl Journal {
    /// The journal as recovery leaves it: everything before `next_sequence` is flushed.
    pub(super) fn new(
        geometry: &Geometry,
        epoch: u64,
        tail: u64,
        next_sequence: u64,
        next_record: u64,
    ) -> Self {
        Self {
            epoch,
            ring: geometry.journal_blocks,
            next_sequence,
            tail,
            flushed: next_sequence - 1,
            next_record,
            flushed_records: next_record,
            open: Vec::new(),
            open_records: 0,
            promised: 0,
            reserved: 0,
            in_flight: None,
            next_batch: 1,
            sealed: true,
        }
    }

    pub(super) fn used(&self) -> u32 {
        (self.next_sequence - self.tail) as u32
    }

    fn taken(&self) -> u32 {
        self.used() + blocks_of(self.open.len()) + self.promised + self.reserved
    }

    /// Whether so many more blocks can be promised.
    pub(super) fn has_room(&self, blocks: u32) -> bool {
        self.taken() + blocks <= self.ring
    }

    pub(super) fn promise(&mut self, blocks: u32) {
        self.promised += blocks;
    }

    pub(super) fn release_promise(&mut self, blocks: u32) {
        self.promised -= blocks;
    }

    pub(super) fn reserve_pending(&mut self) {
        self.reserved += 1;
    }

    pub(super) fn release_pending(&mut self, count: u32) {
        self.reserved -= count;
    }

    /// Adds a record to the open batch; its number.
    pub(super) fn log(&mut self, record: &Record) -> u64 {
        record.encode(&mut self.open);
        self.logged()
    }

    /// Adds an update's record without taking it.
    pub(super) fn log_update(&mut self, record: &UpdateRecord) -> u64 {
        encode_update(record, &mut self.open);
        self.logged()
    }

    fn logged(&mut self) -> u64 {
        debug_assert!(self.taken() <= self.ring || self.used() > self.ring / 2);
        self.open_records += 1;
        self.next_record += 1;
        self.next_record - 1
    }

    pub(super) fn next_record(&self) -> u64 {
        self.next_record
    }

    /// Records below this number are flushed.
    pub(super) fn flushed_records(&self) -> u64 {
        self.flushed_records
    }

    pub(super) fn flushed(&self) -> u64 {
        self.flushed
    }

    pub(super) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    pub(super) fn has_open(&self) -> bool {
        self.open_records > 0
    }

    pub(super) fn idle(&self) -> bool {
        self.in_flight.is_none()
    }

    /// The batch that open records will be in.
    pub(super) fn open_batch(&self) -> BatchId {
        BatchId(self.next_batch)
    }

    pub(super) fn wants_seal(&self) -> bool {
        self.idle() && !self.has_open() && !self.sealed && self.has_room(1)
    }

    /// Packs the open records (`seal`: an empty block if there are none) and starts a batch.
    pub(super) fn seal(
        &mut self,
        geometry: &Geometry,
        checkpoint: u32,
        seal: bool,
        out: &mut Vec<DiskWrite>,
    ) -> BatchId {
        assert!(self.idle(), "one batch in flight at a time");
        if self.has_open() || seal {
            self.encode(geometry, checkpoint, out);
        }
        let id = BatchId(self.next_batch);
        self.next_batch += 1;
        let (last_sequence, next_record) = (self.next_sequence - 1, self.next_record);
        self.in_flight = Some(InFlight { id, last_sequence, next_record });
        id
    }

    fn encode(&mut self, geometry: &Geometry, checkpoint: u32, out: &mut Vec<DiskWrite>) {
        let blocks = blocks_of(self.open.len()).max(1);
        let mut head = JournalHead {
            epoch: self.epoch,
            sequence: self.next_sequence,
            flushed: self.flushed,
            batch_first: self.next_sequence,
            batch_blocks: blocks,
            payload: 0,
            first_record: self.next_record - u64::from(self.open_records),
            records: self.open_records,
            checkpoint,
        };
        let mut rest = &self.open[..];
        for _ in 0..blocks {
            let (payload, after) = rest.split_at(rest.len().min(JOURNAL_PAYLOAD));
            rest = after;
            head.payload = payload.len() as u32;
            let offset = geometry.journal_block_offset(head.sequence);
            match out.last_mut() {
                Some(write) if write.offset + write.bytes.len() as u64 == offset => {
                    head.encode(geometry, payload, &mut write.bytes);
                }
                _ => {
                    let mut bytes = Vec::with_capacity(BLOCK * blocks as usize);
                    head.encode(geometry, payload, &mut bytes);
                    out.push(DiskWrite { offset, bytes });
                }
            }
            head.sequence += 1;
        }
        self.sealed = self.open_records == 0;
        self.next_sequence = head.sequence;
        self.open.clear();
        self.open_records = 0;
    }

    pub(super) fn batch_flushed(&mut self, id: BatchId) {
        let batch = self.in_flight.take().filter(|batch| batch.id == id);
        let Some(batch) = batch else { panic!("a flush of {id:?}, which isn't in flight") };
        self.flushed = batch.last_sequence;
        self.flushed_records = batch.next_record;
    }

    /// A checkpoint that covers everything before `sequence` is flushed.
    pub(super) fn advance_tail(&mut self, sequence: u64) {
        assert!(self.tail <= sequence && sequence <= self.flushed + 1, "the tail passes what is flushed");
        self.tail = sequence;
    }
}
