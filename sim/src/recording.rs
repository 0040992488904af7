//! Power cuts of a run that really happened: the log that a real disk layer wrote (`corefs_engine::store::disk_log`)
//! is played back, and at any of its moments the images that a power cut could have left are made and recovered.
//!
//! A write is durable once a flush is complete that was submitted after the write was completed. Any other write
//! that was submitted survives in part or not at all.

use crate::disk::SimDisk;
use crate::prng::Prng;
use crate::store::open::{check, open};
use corefs_engine::store::Store;
use corefs_engine::store::disk_log::{Acknowledged, DiskEvent, DiskLogReader};
use corefs_wire::{Result, Uuid};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
struct Write {
    operation: u64,
    offset: usize,
    bytes: Vec<u8>,
    /// When its completion was seen.
    completed: Option<usize>,
}

/// One slice as the log has left it so far.
#[derive(Clone, Debug)]
struct Recorded {
    durable: Vec<u8>,
    writes: Vec<Write>,
    /// When each flush in progress was submitted.
    flushes: BTreeMap<u64, usize>,
}

impl Recorded {
    fn flushed(&mut self, operation: u64) {
        let Some(submitted) = self.flushes.remove(&operation) else { return };
        for write in &self.writes {
            if write.completed.is_some_and(|completed| completed < submitted) {
                self.durable[write.offset..write.offset + write.bytes.len()].copy_from_slice(&write.bytes);
            }
        }
        self.writes.retain(|write| write.completed.is_none_or(|completed| completed >= submitted));
    }

    /// The disk after a power cut now.
    fn cut(&self, prng: &mut Prng) -> SimDisk {
        let mut disk = SimDisk::from_image(self.durable.clone());
        for write in &self.writes {
            let written = disk.write(write.offset as u64, &write.bytes[..]);
            assert!(written.is_ok(), "this disk has power until power_on");
        }
        disk.power_on(prng);
        disk
    }
}

/// Plays a log back, event by event.
#[derive(Debug)]
pub struct Playback<'a> {
    events: Vec<DiskEvent<'a>>,
    next: usize,
    disks: BTreeMap<u32, Recorded>,
    /// The newest acknowledged version of each chunk, in order of acknowledgment.
    acknowledged: Vec<Acknowledged>,
}

/// What was checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecordingCounts {
    pub events: u64,
    pub images: u64,
    pub promises: u64,
}

impl<'a> Playback<'a> {
    /// `images`: the bytes of each slice when the recording began.
    pub fn new(log: &'a [u8], images: BTreeMap<u32, Vec<u8>>) -> Result<Self> {
        let events = DiskLogReader::new(log).collect::<Result<Vec<_>>>()?;
        let disk = |durable| Recorded { durable, writes: Vec::new(), flushes: BTreeMap::new() };
        let disks = images.into_iter().map(|(index, image)| (index, disk(image))).collect();
        Ok(Self { events, next: 0, disks, acknowledged: Vec::new() })
    }

    /// Goes past the next event; false at the log's end.
    pub fn advance(&mut self) -> bool {
        let now = self.next;
        let Some(event) = self.events.get(now) else { return false };
        self.next += 1;
        match *event {
            DiskEvent::WriteSubmitted { disk, operation, offset, bytes } => {
                if let Some(disk) = self.disks.get_mut(&disk) {
                    let (offset, bytes) = (offset as usize, bytes.to_vec());
                    disk.writes.push(Write { operation, offset, bytes, completed: None });
                }
            }
            DiskEvent::WriteCompleted { disk, operation } => {
                let disk = self.disks.get_mut(&disk);
                let mut writes = disk.into_iter().flat_map(|disk| &mut disk.writes);
                if let Some(write) = writes.find(|write| write.operation == operation) {
                    write.completed = Some(now);
                }
            }
            DiskEvent::FlushSubmitted { disk, operation } => {
                if let Some(disk) = self.disks.get_mut(&disk) {
                    disk.flushes.insert(operation, now);
                }
            }
            DiskEvent::FlushCompleted { disk, operation } => {
                if let Some(disk) = self.disks.get_mut(&disk) {
                    disk.flushed(operation);
                }
            }
            DiskEvent::Mark { bytes } => self.acknowledged.extend(Acknowledged::decode(bytes)),
        }
        true
    }

    /// The disks after a power cut at this moment.
    pub fn cut(&self, prng: &mut Prng) -> BTreeMap<u32, SimDisk> {
        self.disks.iter().map(|(index, disk)| (*index, disk.cut(prng))).collect()
    }

    /// Cuts the power now: every slice must open, pass fsck, and hold what was acknowledged. How many promises were
    /// checked; or what is wrong.
    pub fn check_cut(&self, cluster: Uuid, prng: &mut Prng) -> Result<u64, String> {
        let mut stores = BTreeMap::new();
        for (index, mut disk) in self.cut(prng) {
            let at = |what: String| format!("event {}, slice {index}: {what}", self.next);
            let (store, _) = open(&mut disk, cluster).map_err(|error| at(format!("{error:?}")))?;
            if let Some(finding) = check(&disk).findings.first() {
                return Err(at(finding.to_string()));
            }
            stores.insert(index, store);
        }
        for promise in &self.acknowledged {
            let kept = stores.get(&promise.disk).is_none_or(|store| keeps(store, promise));
            if !kept {
                return Err(format!("event {}: {promise:?} is broken", self.next));
            }
        }
        Ok(self.acknowledged.len() as u64)
    }

    /// Plays to the end and cuts the power `cuts` times at each of every `stride` events.
    pub fn check_all(
        mut self,
        cluster: Uuid,
        seed: u64,
        stride: usize,
        cuts: u64,
    ) -> Result<RecordingCounts, String> {
        let mut prng = Prng::new(seed);
        let mut counts = RecordingCounts::default();
        loop {
            if self.next.is_multiple_of(stride.max(1)) || self.next == self.events.len() {
                for _ in 0..cuts {
                    counts.promises += self.check_cut(cluster, &mut prng)?;
                    counts.images += self.disks.len() as u64;
                }
            }
            if !self.advance() {
                counts.events = self.next as u64;
                return Ok(counts);
            }
        }
    }
}

/// A removed target's promises are void; a removed chunk may be forgotten, but its versions go on.
fn keeps(store: &Store, promise: &Acknowledged) -> bool {
    let Ok(status) = store.status(promise.target, promise.chunk) else { return true };
    let newest = status.pending.unwrap_or(0).max(status.version);
    let next = store.next_version(promise.target, promise.chunk).unwrap_or(0);
    newest >= promise.version || (status.version == 0 && next > promise.version)
}
