//! Power cuts under the embedded store: a recording disk keeps every write and flush of a real workload; then, for
//! each moment, what a disk with a volatile cache may hold after losing power is rebuilt and opened.
//!
//! Such an image has everything flushed before the cut, and of what was written since an arbitrary subset of 512-byte
//! sectors. Each must open, and hold exactly what the store held after some commit, at or after the last one
//! that had been acknowledged.

use corefs_kv::embedded::Options;
use corefs_kv::prng::Prng;
use corefs_kv::{Embedded, Isolation, KeyRange, KvEngine, Transaction, Versionstamp};
use futures_lite::future::block_on;
use redb::StorageBackend;
use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

const SECTOR: usize = 512;

#[derive(Clone, Debug)]
enum Event {
    Write(usize, Vec<u8>),
    Length(usize),
    Flush,
}

#[derive(Default, Debug)]
struct Disk {
    bytes: Vec<u8>,
    log: Vec<Event>,
    /// The canary: flushes do nothing.
    lying: bool,
}

impl Disk {
    fn of(bytes: Vec<u8>) -> Shared {
        Shared(Arc::new(Mutex::new(Self { bytes, ..Self::default() })))
    }
}

#[derive(Clone, Debug)]
struct Shared(Arc<Mutex<Disk>>);

impl Shared {
    fn events(&self) -> usize {
        self.0.lock().unwrap().log.len()
    }
}

impl StorageBackend for Shared {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock().unwrap();
        let stored = disk.bytes.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(stored.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.bytes.resize(len as usize, 0);
        disk.log.push(Event::Length(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        if !disk.lying {
            disk.log.push(Event::Flush);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        let offset = offset as usize;
        disk.bytes[offset..offset + data.len()].copy_from_slice(data);
        disk.log.push(Event::Write(offset, data.to_vec()));
        Ok(())
    }
}

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// What one transaction of the workload does.
#[derive(Clone)]
struct Step {
    number: u32,
}

impl Step {
    fn keys(number: u32) -> impl Iterator<Item = Vec<u8>> {
        (0..4u8).map(move |part| [&number.to_be_bytes()[..], &[part]].concat())
    }

    fn value(&self) -> Vec<u8> {
        vec![self.number as u8; 20 + (self.number as usize * 37) % 3000]
    }

    fn write<T: Transaction>(&self, txn: &mut T) {
        Self::keys(self.number).for_each(|key| txn.set(&key, &self.value()));
        txn.add_i64(b"total", 1);
        if let Some(old) = self.number.checked_sub(25) {
            txn.clear_range(&KeyRange::prefix(&old.to_be_bytes()));
        }
    }

    fn apply(&self, map: &mut Map) {
        map.extend(Self::keys(self.number).map(|key| (key, self.value())));
        let total = map.get(b"total".as_slice()).map_or(0, |total| total[0]);
        map.insert(b"total".to_vec(), i64::from(total + 1).to_le_bytes().to_vec());
        if let Some(old) = self.number.checked_sub(25) {
            Self::keys(old).for_each(|key| drop(map.remove(&key)));
        }
    }
}

struct Recording {
    log: Vec<Event>,
    /// The store after each version, from the empty one on, and how long the log was when it was acknowledged.
    states: Vec<(Map, usize)>,
}

/// Runs the workload: single commits, then groups of concurrent ones.
fn record(lying: bool) -> Recording {
    let disk = Disk::of(Vec::new());
    disk.0.lock().unwrap().lying = lying;
    let engine = Embedded::open_with_backend(disk.clone(), Options::default()).unwrap();
    let opened = disk.events();
    let commit = async |number: u32| {
        let mut txn = engine.begin();
        let step = Step { number };
        step.write(&mut txn);
        let stamp = txn.commit().await.unwrap().versionstamp.unwrap();
        (stamp, step, disk.events())
    };
    let mut acknowledged: Vec<(Versionstamp, Step, usize)> = Vec::new();
    block_on(async {
        for number in 0..30 {
            acknowledged.push(commit(number).await);
        }
        for group in 0..10 {
            let numbers = 30 + group * 7..30 + group * 7 + 7;
            acknowledged.extend(corefs_kv::conformance::join_all(numbers.map(commit)).await);
        }
        engine.close().await;
    });
    acknowledged.sort_by_key(|(stamp, ..)| *stamp);
    let mut states = vec![(Map::new(), opened)];
    let mut version = 0;
    for (stamp, step, position) in acknowledged {
        let (mut map, _) = states.last().unwrap().clone();
        step.apply(&mut map);
        if stamp.version() == version {
            // The same group: its state is the one after all of it, acknowledged when the first of them was.
            let (_, earlier) = states.pop().unwrap();
            states.push((map, position.min(earlier)));
        } else {
            states.push((map, position));
        }
        version = stamp.version();
    }
    let log = std::mem::take(&mut disk.0.lock().unwrap().log);
    Recording { log, states }
}

fn apply(image: &mut Vec<u8>, event: &Event) {
    match event {
        Event::Write(offset, data) => {
            image.resize(image.len().max(offset + data.len()), 0);
            image[*offset..offset + data.len()].copy_from_slice(data);
        }
        Event::Length(length) => image.resize(*length, 0),
        Event::Flush => {}
    }
}

/// Applies a subset of what was not flushed: nothing, or each sector with a chance.
fn apply_some(image: &mut Vec<u8>, events: &[Event], random: &mut Prng) {
    let chance = [0, 100, 500, 900, 1000][random.below(5) as usize];
    for event in events {
        match event {
            Event::Length(_) if random.per_mille(chance) => apply(image, event),
            Event::Write(offset, data) => {
                let mut from = 0;
                while from < data.len() {
                    let sector_end = (offset + from) / SECTOR * SECTOR + SECTOR;
                    let to = data.len().min(sector_end - offset);
                    if random.per_mille(chance) {
                        apply(image, &Event::Write(offset + from, data[from..to].to_vec()));
                    }
                    from = to;
                }
            }
            _ => {}
        }
    }
}

fn reopen(image: Vec<u8>) -> Result<Map, String> {
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let engine = Embedded::open_with_backend(Disk::of(image), Options::default())?;
        block_on(async {
            let pairs = engine.begin().range_all(&KeyRange::all(), usize::MAX, Isolation::Snapshot).await;
            engine.close().await;
            pairs
        })
    }));
    match opened {
        Ok(Ok(pairs)) => Ok(pairs.into_iter().collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("it panicked".into()),
    }
}

/// Cuts the power at every event, and tries `images` images of each. The number of images, and what was wrong.
fn replay(recording: &Recording, images: u64) -> (usize, Vec<String>) {
    let mut flushed = Vec::new();
    let mut flushed_upto = 0;
    let mut tried = 0;
    let mut wrong = Vec::new();
    for cut in 0..=recording.log.len() {
        if cut > 0 && matches!(recording.log[cut - 1], Event::Flush) {
            recording.log[flushed_upto..cut].iter().for_each(|event| apply(&mut flushed, event));
            flushed_upto = cut;
        }
        let acknowledged = recording.states.iter().rposition(|(_, position)| *position <= cut);
        for seed in 0..images {
            let mut image = flushed.clone();
            let mut random = Prng::new((cut as u64) << 8 | seed);
            apply_some(&mut image, &recording.log[flushed_upto..cut], &mut random);
            tried += 1;
            let outcome = match reopen(image) {
                Ok(map) => {
                    recording.states[acknowledged.unwrap_or(0)..].iter().any(|(state, _)| *state == map)
                }
                // Before the store had been opened for the first time there is nothing to lose.
                Err(_) if acknowledged.is_none() => true,
                Err(error) => {
                    wrong.push(format!("cut {cut}, seed {seed}: {error}"));
                    continue;
                }
            };
            if !outcome {
                wrong.push(format!(
                    "cut {cut}, seed {seed}: not the state of any commit from {acknowledged:?} on"
                ));
            }
        }
    }
    (tried, wrong)
}

#[test]
fn no_acknowledged_commit_is_lost_and_none_is_torn() {
    let recording = record(false);
    assert!(recording.states.len() > 40, "the workload made {} versions", recording.states.len());
    let (tried, wrong) = replay(&recording, 2);
    assert!(wrong.is_empty(), "{} of {tried} images: {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    println!("{tried} images of {} events", recording.log.len());
    assert!(tried > 500);
}

#[test]
fn canary_a_flush_that_does_nothing_is_caught() {
    let (tried, wrong) = replay(&record(true), 1);
    assert!(wrong.len() > tried / 10, "only {} of {tried} images were found wrong", wrong.len());
}
