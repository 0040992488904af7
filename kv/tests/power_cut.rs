//! Power cuts under the embedded store: a recording disk keeps every write and flush of a real workload to its two files, tree and log; then,
//! for each moment, what a disk with a volatile cache may hold after losing power is rebuilt and opened.
//!
//! Such an image has of each file everything that was flushed before the cut, and of what was written since an arbitrary subset of 512-byte
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
use std::time::{Duration, Instant};

const SECTOR: usize = 512;

/// So small that the workload fills it several times, and that its largest transactions don't fit into an area.
const LOG_BYTES: u64 = 96 << 10;

fn options() -> Options {
    Options { log_bytes: LOG_BYTES, ..Options::default() }
}

/// The files, which are numbers.
const TREE: usize = 0;
const LOG: usize = 1;

/// What was done to which file.
#[derive(Clone, Debug)]
enum Event {
    Write(usize, usize, Vec<u8>),
    Length(usize, usize),
    Flush(usize),
}

impl Event {
    fn file(&self) -> usize {
        match self {
            Self::Write(file, ..) | Self::Length(file, _) | Self::Flush(file) => *file,
        }
    }
}

/// The bytes of both files.
type Image = [Vec<u8>; 2];

#[derive(Default, Debug)]
struct Disk {
    bytes: Image,
    log: Vec<Event>,
    /// The canary: flushes of that file do nothing.
    lying: Option<usize>,
    /// Flushes of the tree by its own thread take until the log is flushed, if that happens in a moment: side by side.
    beside: bool,
}

/// A file of a disk.
#[derive(Clone, Debug)]
struct Shared {
    disk: Arc<Mutex<Disk>>,
    file: usize,
}

impl Disk {
    fn of(bytes: Image, lying: Option<usize>) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { bytes, lying, ..Self::default() }))
    }
}

fn open(disk: &Arc<Mutex<Disk>>) -> corefs_wire::Result<Embedded> {
    let file = |file| Shared { disk: disk.clone(), file };
    Embedded::open_with_backends(file(TREE), file(LOG), options())
}

impl StorageBackend for Shared {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock().unwrap().bytes[self.file].len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.disk.lock().unwrap();
        let stored = disk.bytes[self.file].get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(stored.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        disk.bytes[self.file].resize(len as usize, 0);
        disk.log.push(Event::Length(self.file, len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let logged = || {
            let disk = self.disk.lock().unwrap();
            let beside = disk.beside && std::thread::current().name() == Some("kv-tree");
            beside.then(|| flushes(&disk.log, LOG))
        };
        if let Some(before) = logged() {
            let begun = Instant::now();
            while logged() == Some(before) && begun.elapsed() < Duration::from_millis(100) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let mut disk = self.disk.lock().unwrap();
        if disk.lying != Some(self.file) {
            disk.log.push(Event::Flush(self.file));
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        let offset = offset as usize;
        disk.bytes[self.file][offset..offset + data.len()].copy_from_slice(data);
        disk.log.push(Event::Write(self.file, offset, data.to_vec()));
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
        // Four of the long ones are more than an area of the log takes.
        let length = if self.number % 50 == 49 { 15_000 } else { 20 + (self.number as usize * 37) % 3000 };
        vec![self.number as u8; length]
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
fn record(lying: Option<usize>) -> Recording {
    let disk = Disk::of(Image::default(), lying);
    let engine = open(&disk).unwrap();
    let opened = disk.lock().unwrap().log.len();
    disk.lock().unwrap().beside = true;
    // What came since the last flush isn't what made a commit durable.
    let events = || {
        let log = &disk.lock().unwrap().log;
        let flush = log.iter().rposition(|event| matches!(event, Event::Flush(_)));
        flush.map_or(opened, |flush| opened.max(flush + 1))
    };
    let commit = async |number: u32| {
        let mut txn = engine.begin();
        let step = Step { number };
        step.write(&mut txn);
        let stamp = txn.commit().await.unwrap().versionstamp.unwrap();
        (stamp, step, events())
    };
    let mut acknowledged: Vec<(Versionstamp, Step, usize)> = Vec::new();
    block_on(async {
        for number in 0..30 {
            acknowledged.push(commit(number).await);
            // So slowly that the tree's thread isn't outrun: then commits would wait for it.
            std::thread::sleep(Duration::from_millis(3));
        }
        let mut next = 30;
        for size in [7; 11] {
            acknowledged.extend(corefs_kv::conformance::join_all((next..next + size).map(commit)).await);
            next += size;
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
    let log = std::mem::take(&mut disk.lock().unwrap().log);
    Recording { log, states }
}

fn flushes(log: &[Event], file: usize) -> usize {
    log.iter().filter(|event| matches!(event, Event::Flush(flushed) if *flushed == file)).count()
}

fn apply(image: &mut Image, event: &Event) {
    let file = &mut image[event.file()];
    match event {
        Event::Write(_, offset, data) => {
            file.resize(file.len().max(offset + data.len()), 0);
            file[*offset..offset + data.len()].copy_from_slice(data);
        }
        Event::Length(_, length) => file.resize(*length, 0),
        Event::Flush(_) => {}
    }
}

/// Applies a subset of what was not flushed: nothing, or each sector with a chance.
fn apply_some<'a>(image: &mut Image, events: impl Iterator<Item = &'a Event>, random: &mut Prng) {
    let chance = [0, 100, 500, 900, 1000][random.below(5) as usize];
    for event in events {
        match event {
            Event::Length(..) if random.per_mille(chance) => apply(image, event),
            Event::Write(file, offset, data) => {
                let mut from = 0;
                while from < data.len() {
                    let sector_end = (offset + from) / SECTOR * SECTOR + SECTOR;
                    let to = data.len().min(sector_end - offset);
                    if random.per_mille(chance) {
                        apply(image, &Event::Write(*file, offset + from, data[from..to].to_vec()));
                    }
                    from = to;
                }
            }
            _ => {}
        }
    }
}

fn reopen(image: Image) -> Result<Map, String> {
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let engine = open(&Disk::of(image, None))?;
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

/// Cuts the power at every event of what was done to a disk that held `before`, and tries `images` images of each. The number of images,
/// and what was wrong.
fn replay(before: &Image, recording: &Recording, images: u64) -> (usize, Vec<String>) {
    let log = &recording.log;
    let mut flushed = before.clone();
    let mut flushed_upto = [0; 2];
    let mut tried = 0;
    let mut wrong = Vec::new();
    for cut in 0..=log.len() {
        if let Some(Event::Flush(file)) = cut.checked_sub(1).map(|last| &log[last]) {
            let written = log[flushed_upto[*file]..cut].iter().filter(|event| event.file() == *file);
            written.for_each(|event| apply(&mut flushed, event));
            flushed_upto[*file] = cut;
        }
        let acknowledged = recording.states.iter().rposition(|(_, position)| *position <= cut);
        for seed in 0..images {
            let mut image = flushed.clone();
            let mut random = Prng::new((cut as u64) << 8 | seed);
            let volatile = log[..cut].iter().enumerate();
            let volatile = volatile.filter(|(at, event)| *at >= flushed_upto[event.file()]);
            apply_some(&mut image, volatile.map(|(_, event)| event), &mut random);
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

fn expect_none(tried: usize, wrong: &[String]) {
    assert!(wrong.is_empty(), "{} of {tried} images: {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
}

#[test]
fn no_acknowledged_commit_is_lost_and_none_is_torn() {
    let recording = record(None);
    assert!(recording.states.len() > 40, "the workload made {} versions", recording.states.len());
    let [merges, records] = [TREE, LOG].map(|file| flushes(&recording.log, file));
    assert!(merges > 6 && records > 20, "{merges} flushes of the tree, {records} of the log");
    let groups = recording.states.len() - 1;
    assert!(records < groups, "{records} records for {groups} groups: none went into the tree at once");
    // A record between writes of the tree that belong to one flush of it.
    let mut beside = 0;
    for events in recording.log.split(|event| matches!(event, Event::Flush(TREE))) {
        let tree = |event: &Event| matches!(event, Event::Write(TREE, ..));
        let wrote = events.iter().position(tree).unwrap_or(events.len());
        beside += usize::from(flushes(&events[wrote..], LOG) > 0);
    }
    assert!(beside > 0, "no commit beside a tree that is written");
    let (tried, wrong) = replay(&Image::default(), &recording, 3);
    println!("{tried} images of {} events", recording.log.len());
    expect_none(tried, &wrong);
    assert!(tried > 500);
}

/// Power that fails again while what the log has goes into the tree.
#[test]
fn an_opening_that_is_cut_short_loses_nothing() {
    let recording = record(None);
    let mut opened = 0;
    // Every seventh state, as the disk had it when it was acknowledged, or a little later.
    for (at, (_, position)) in recording.states.iter().enumerate().skip(1).step_by(7) {
        let mut before = Image::default();
        recording.log[..*position].iter().for_each(|event| apply(&mut before, event));
        let disk = Disk::of(before.clone(), None);
        let engine = open(&disk).unwrap();
        let log = disk.lock().unwrap().log.clone();
        drop(engine);
        let mut states = recording.states[at..].to_vec();
        states.iter_mut().for_each(|(_, position)| *position = usize::MAX);
        states[0].1 = 0;
        let opening = Recording { log, states };
        let (tried, wrong) = replay(&before, &opening, 3);
        expect_none(tried, &wrong);
        opened += tried;
    }
    assert!(opened > 50, "only {opened} images");
}

#[test]
fn canary_a_flush_of_the_log_that_does_nothing_is_caught() {
    let (tried, wrong) = replay(&Image::default(), &record(Some(LOG)), 1);
    assert!(wrong.len() > tried / 10, "only {} of {tried} images were found wrong", wrong.len());
}

#[test]
fn canary_a_flush_of_the_tree_that_does_nothing_is_caught() {
    let (tried, wrong) = replay(&Image::default(), &record(Some(TREE)), 1);
    assert!(wrong.len() > tried / 10, "only {} of {tried} images were found wrong", wrong.len());
}
