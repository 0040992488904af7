//! Named scenarios of the store on a disk in memory. The random ones, with power cuts, are in `corefs-sim`.

mod damage;
mod golden;
mod resync;
mod unsettled;
mod updates;

use super::format::initial_writes;
use super::*;
use corefs_wire::checksum::{block_crcs, crc32c};
use corefs_wire::{ClientId, NodeId, SliceIndex, UpdateTag, Uuid};

const CLUSTER: Uuid = Uuid([0xC1; 16]);
const TARGET: TargetId = TargetId(11);

/// A slice and its store.
struct Slice {
    disk: Vec<u8>,
    store: Store,
    sequence: u64,
}

fn geometry(slice_bytes: u64) -> Geometry {
    Geometry::for_slice(CLUSTER, Uuid([0x57; 16]), NodeId(3), SliceIndex(4), slice_bytes).unwrap()
}

fn put(disk: &mut [u8], offset: u64, bytes: &[u8]) {
    disk[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
}

fn open(disk: &mut [u8]) -> Result<(Store, RecoveryReport), Damage> {
    let mut recovery = Recovery::new(disk.len() as u64, CLUSTER, None);
    let mut need = recovery.step(Input::Start)?;
    loop {
        need = match need {
            Need::Read { offset, len } => {
                recovery.step(Input::Bytes(&disk[offset as usize..offset as usize + len]))?
            }
            Need::Write { offset, bytes } => {
                put(disk, offset, &bytes);
                recovery.step(Input::Written)?
            }
            Need::Flush => recovery.step(Input::Flushed)?,
            Need::Done(store, report) => return Ok((*store, report)),
        };
    }
}

impl Slice {
    /// A fresh slice with one target.
    fn new(geometry: &Geometry) -> Self {
        let mut disk = vec![0; geometry.slice_bytes as usize];
        initial_writes(geometry).iter().for_each(|write| put(&mut disk, write.offset, &write.bytes));
        let (store, _) = open(&mut disk).unwrap();
        let mut slice = Self { disk, store, sequence: 0 };
        slice.store.create_target(TARGET, ChainId(21)).unwrap();
        slice.flush();
        slice
    }

    /// Flushes everything, checkpoint steps included.
    fn flush(&mut self) -> Vec<Durable> {
        let mut durable = Vec::new();
        while self.store.wants_batch() {
            let Some(batch) = self.store.seal_batch() else { break };
            batch.writes.iter().for_each(|write| put(&mut self.disk, write.offset, &write.bytes));
            durable.extend(self.store.batch_flushed(batch.id));
        }
        durable
    }

    fn checkpoint(&mut self) {
        while self.store.checkpoint_step(1 << 20) {}
        self.flush();
    }

    /// Starts again from what is on the disk.
    fn reopen(&mut self) -> RecoveryReport {
        let (store, report) = open(&mut self.disk).unwrap();
        self.store = store;
        report
    }

    fn update(&self, chunk: ChunkId, kind: UpdateKind) -> Update {
        let version = self.store.next_version(TARGET, chunk).unwrap();
        let tag = UpdateTag::default();
        Update { target: TARGET, chunk, kind, version, chain_version: 5, truncate_epoch: 0, tag }
    }

    /// The same with the next tag of a channel.
    fn tagged(&mut self, chunk: ChunkId, kind: UpdateKind) -> Update {
        self.sequence += 1;
        let tag = UpdateTag { client: ClientId(8), sequence: self.sequence, incarnation: 2, channel: 1 };
        Update { tag, ..self.update(chunk, kind) }
    }

    /// Applies an update and writes its data, but doesn't flush.
    fn apply(&mut self, update: Update, payload: &[u8], finish: Finish) -> corefs_wire::Result<()> {
        let Begin::Fresh(staging) = self.store.begin_update(update)? else { panic!("not a new update") };
        self.finish(staging, payload, finish)
    }

    /// Stages and applies an admitted update, and writes its data.
    fn finish(&mut self, staging: Staging, payload: &[u8], finish: Finish) -> corefs_wire::Result<()> {
        let mut blocks = vec![0; staging.blocks as usize * BLOCK];
        let range = staging.payload.start as usize..staging.payload.end as usize;
        blocks[range].copy_from_slice(payload);
        for merge in staging.merges.iter() {
            let old = &self.disk[merge.disk_offset as usize..][..BLOCK];
            assert_eq!(crc32c(old), merge.crc);
            merge.apply(old, &mut blocks[merge.block as usize * BLOCK..][..BLOCK]);
        }
        let mut crcs = Vec::new();
        block_crcs(&blocks, &mut crcs);
        let plan = self.store.stage(staging, &crcs, finish)?;
        for write in self.store.apply(plan).writes.iter() {
            let bytes = &blocks[write.first as usize * BLOCK..][..write.blocks as usize * BLOCK];
            put(&mut self.disk, write.disk_offset, bytes);
        }
        Ok(())
    }

    /// Writes and flushes as the only replica.
    fn write(&mut self, chunk: ChunkId, offset: u32, bytes: &[u8]) -> corefs_wire::Result<()> {
        self.commit(chunk, UpdateKind::Write { offset, len: bytes.len() as u32 }, bytes)
    }

    fn change(&mut self, chunk: ChunkId, kind: UpdateKind) -> corefs_wire::Result<()> {
        self.commit(chunk, kind, &[])
    }

    fn commit(&mut self, chunk: ChunkId, kind: UpdateKind, payload: &[u8]) -> corefs_wire::Result<()> {
        if self.store.wants_checkpoint() {
            self.checkpoint();
        }
        self.apply(self.update(chunk, kind), payload, Finish::Commit)?;
        self.flush();
        Ok(())
    }

    /// The chunk's bytes, verified.
    fn read(&mut self, chunk: ChunkId) -> corefs_wire::Result<Vec<u8>> {
        let plan = self.store.read(TARGET, chunk, 0, u32::MAX)?;
        let mut bytes = Vec::new();
        for piece in plan.pieces.iter() {
            let len = piece.blocks as usize * BLOCK;
            match piece.disk_offset {
                Some(offset) => bytes.extend_from_slice(&self.disk[offset as usize..][..len]),
                None => bytes.resize(bytes.len() + len, 0),
            }
        }
        let mut crcs = Vec::new();
        block_crcs(&bytes, &mut crcs);
        assert_eq!(&crcs[..], &plan.crcs[..]);
        bytes.truncate(plan.len as usize);
        self.store.end_read(plan);
        Ok(bytes)
    }
}

fn chunk(index: u32) -> ChunkId {
    ChunkId::new(InodeId(77), index)
}
