//! Playback of a recorded log: a log made with a faithful disk keeps every promise at every moment; one whose flush
//! is missing doesn't.

use corefs_engine::store::disk_log::{Acknowledged, DiskEvent};
use corefs_engine::store::format::initial_writes;
use corefs_engine::store::{Begin, Finish, Geometry, Input, Need, Recovery, Store, Update, UpdateKind};
use corefs_sim::recording::Playback;
use corefs_wire::checksum::block_crcs;
use corefs_wire::{ChainId, ChunkId, InodeId, NodeId, SliceIndex, TargetId, UpdateTag, Uuid};
use std::collections::BTreeMap;

const CLUSTER: Uuid = Uuid(*b"a recorded one!!");

/// A disk in memory that records what it is asked.
#[derive(Default)]
struct Recorder {
    image: Vec<u8>,
    log: Vec<u8>,
    operation: u64,
    flushes: bool,
}

impl Recorder {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.operation += 1;
        let operation = self.operation;
        DiskEvent::WriteSubmitted { disk: 0, operation, offset, bytes }.encode(&mut self.log);
        DiskEvent::WriteCompleted { disk: 0, operation }.encode(&mut self.log);
        self.image[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
    }

    fn flush(&mut self) {
        self.operation += 1;
        let operation = self.operation;
        if self.flushes {
            DiskEvent::FlushSubmitted { disk: 0, operation }.encode(&mut self.log);
            DiskEvent::FlushCompleted { disk: 0, operation }.encode(&mut self.log);
        }
    }
}

fn open(disk: &mut Recorder) -> Store {
    let mut recovery = Recovery::new(disk.image.len() as u64, CLUSTER, None);
    let mut need = recovery.step(Input::Start).unwrap();
    loop {
        need = match need {
            Need::Read { offset, len } => {
                let bytes = disk.image[offset as usize..offset as usize + len].to_vec();
                recovery.step(Input::Bytes(&bytes)).unwrap()
            }
            Need::Write { offset, bytes } => {
                disk.write(offset, &bytes);
                recovery.step(Input::Written).unwrap()
            }
            Need::Flush => {
                disk.flush();
                recovery.step(Input::Flushed).unwrap()
            }
            Need::Done(store, _) => return *store,
        }
    }
}

fn flush_batch(store: &mut Store, disk: &mut Recorder) {
    let batch = store.seal_batch().unwrap();
    batch.writes.iter().for_each(|write| disk.write(write.offset, &write.bytes));
    disk.flush();
    for durable in store.batch_flushed(batch.id) {
        let (target, chunk, version) = (durable.target, durable.chunk, durable.outcome.version);
        let promise = Acknowledged { disk: 0, target, chunk, version }.encode();
        DiskEvent::Mark { bytes: &promise }.encode(&mut disk.log);
    }
}

/// Writes for a while; the image at the beginning and the log.
fn record(flushes: bool) -> (Vec<u8>, Vec<u8>) {
    let geometry = Geometry::for_slice(CLUSTER, Uuid([7; 16]), NodeId(1), SliceIndex(0), 2 << 20).unwrap();
    let mut disk = Recorder { image: vec![0; 2 << 20], flushes, ..Recorder::default() };
    for write in initial_writes(&geometry) {
        disk.write(write.offset, &write.bytes);
    }
    let image = disk.image.clone();
    disk.log.clear();
    let mut store = open(&mut disk);
    let target = TargetId(1);
    store.create_target(target, ChainId(1)).unwrap();
    flush_batch(&mut store, &mut disk);
    for round in 0..60u32 {
        let chunk = ChunkId::new(InodeId(5), round % 4);
        let version = store.next_version(target, chunk).unwrap();
        let kind = UpdateKind::Write { offset: 0, len: 8192 };
        let tag = UpdateTag::default();
        let update = Update { target, chunk, kind, version, chain_version: 1, truncate_epoch: 0, tag };
        let Begin::Fresh(staging) = store.begin_update(update).unwrap() else { panic!("it is new") };
        let (data, mut crcs) = (vec![round as u8; 8192], Vec::new());
        block_crcs(&data, &mut crcs);
        let plan = store.stage(staging, &crcs, Finish::Commit).unwrap();
        for write in store.apply(plan).writes.iter() {
            let at = write.first as usize * 4096;
            disk.write(write.disk_offset, &data[at..at + write.blocks as usize * 4096]);
        }
        if store.wants_checkpoint() {
            store.checkpoint_step(1 << 20);
        }
        if round % 3 != 1 {
            flush_batch(&mut store, &mut disk);
        }
    }
    (image, disk.log)
}

#[test]
fn a_faithful_recording_keeps_every_promise() {
    let (image, log) = record(true);
    let playback = Playback::new(&log, BTreeMap::from([(0, image)])).unwrap();
    let counts = playback.check_all(CLUSTER, 1, 3, 2).unwrap_or_else(|what| panic!("{what}"));
    assert!(counts.images > 100 && counts.promises > 1000, "{counts:?}");
}

#[test]
fn a_missing_flush_shows() {
    let (image, log) = record(false);
    let playback = Playback::new(&log, BTreeMap::from([(0, image)])).unwrap();
    assert!(playback.check_all(CLUSTER, 1, 3, 2).is_err());
}
