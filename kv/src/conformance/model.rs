//! Random transactions side by side, then the proof that they were as good as one after the other.
//!
//! Workers run random transactions over few keys and write down what they did and saw. Each one also sets a marker
//! to its versionstamp, so that it is known afterwards which committed and in what order, even of those whose outcome was
//! unknown. Those are replayed over a plain map in the order of their stamps:
//!
//! - every serializable read must see what the map holds when its transaction's turn comes (serializability);
//! - every read of every transaction, committed or not, must see what the map held at its read version, with
//!   its own writes (one snapshot, read your writes);
//! - at the end, store and map must be equal.

use super::*;
use crate::prng::Prng;
use corefs_wire::Class;
use std::collections::BTreeMap;

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub workers: usize,
    /// Transactions of each worker.
    pub transactions: usize,
    /// Different keys.
    pub keys: u8,
}

impl Default for Load {
    fn default() -> Self {
        Self { workers: 6, transactions: 25, keys: 12 }
    }
}

/// What a transaction did, and saw.
#[derive(Debug)]
enum Step {
    Get(Vec<u8>, Isolation, Option<Vec<u8>>),
    Range(KeyRange, usize, Direction, Isolation, RangePage),
    Set(Vec<u8>, Vec<u8>),
    Clear(Vec<u8>),
    ClearRange(KeyRange),
    Atomic(Atomic, Vec<u8>, Vec<u8>),
    /// A key under `s`, with this suffix after the stamp.
    StampedKey(Vec<u8>),
}

#[derive(Debug)]
struct Record {
    marker: Vec<u8>,
    read_version: u64,
    steps: Vec<Step>,
    outcome: Result<Committed>,
}

/// Runs the load and checks it. The store must be empty, and nobody else may use it.
pub async fn check_serializable<E: KvEngine>(engine: &E, seed: u64, load: Load) {
    let worker = async |number: usize| {
        let mut random = Prng::new(seed << 32 | number as u64);
        let mut records = Vec::new();
        for transaction in 0..load.transactions {
            let marker = format!("m/{number}/{transaction}").into_bytes();
            records.extend(one(engine, &mut random, load, marker).await);
        }
        records
    };
    let records: Vec<_> = join_all((0..load.workers).map(worker)).await.into_iter().flatten().collect();
    let stored = dump(engine).await;
    replay(&records, &stored);
    let committed = records.iter().filter(|record| stored.contains_key(&record.marker)).count();
    assert!(committed > records.len() / 10, "{committed} of {} committed: this proves little", records.len());
}

async fn dump<E: KvEngine>(engine: &E) -> Map {
    let read =
        async |txn: &mut E::Txn| txn.range_all(&KeyRange::all(), usize::MAX, Isolation::Snapshot).await;
    crate::retry::run(engine, read).await.expect("the store can be read in the end").into_iter().collect()
}

/// One random transaction; `None` when a read failed, which happens where faults are injected.
async fn one<E: KvEngine>(engine: &E, random: &mut Prng, load: Load, marker: Vec<u8>) -> Option<Record> {
    let mut txn = engine.begin();
    let mut steps = Vec::new();
    for _ in 0..random.below(8) {
        match step(&mut txn, random, load.keys).await {
            Ok(step) => steps.push(step),
            Err(error) if error.class() == Class::Retry => return None,
            Err(error) => panic!("an unexpected error: {error}"),
        }
    }
    let Ok(read_version) = txn.read_version().await else { return None };
    txn.set_versionstamped_value(&marker, b"", b"");
    let outcome = txn.commit().await;
    if let Err(error) = &outcome {
        assert_eq!(error.class(), Class::Retry, "an unexpected error: {error}");
    }
    Some(Record { marker, read_version, steps, outcome })
}

async fn step<T: Transaction>(txn: &mut T, random: &mut Prng, keys: u8) -> Result<Step> {
    let key = vec![b'k', random.below(keys.into()) as u8];
    let isolation = if random.below(3) == 0 { Isolation::Snapshot } else { Isolation::Serializable };
    Ok(match random.below(10) {
        0..3 => {
            let value = txn.get(&key, isolation).await?;
            Step::Get(key, isolation, value)
        }
        3..5 => {
            let end = vec![b'k', key[1].saturating_add(random.below(6) as u8)];
            let range = KeyRange::new(key, end);
            let limit = 1 + random.below(4) as usize;
            let direction = if random.below(2) == 0 { Direction::Forward } else { Direction::Reverse };
            let page = txn.range(&range, limit, direction, isolation).await?;
            Step::Range(range, limit, direction, isolation, page)
        }
        5..7 => {
            let value = random.draw().to_le_bytes()[..random.below(8) as usize].to_vec();
            txn.set(&key, &value);
            Step::Set(key, value)
        }
        7 if random.below(3) == 0 => {
            let range = KeyRange::new(key.as_slice(), [b'k', key[1].saturating_add(3)]);
            txn.clear_range(&range);
            Step::ClearRange(range)
        }
        7 => {
            txn.clear(&key);
            Step::Clear(key)
        }
        8 => {
            let operation = if random.below(2) == 0 { Atomic::Add } else { Atomic::Max };
            let operand = random.draw().to_le_bytes()[..1 + random.below(4) as usize].to_vec();
            txn.atomic(operation, &key, &operand);
            Step::Atomic(operation, key, operand)
        }
        _ => {
            txn.set_versionstamped_key(b"s", &key, b"stamped");
            Step::StampedKey(key)
        }
    })
}

fn replay(records: &[Record], stored: &Map) {
    let stamp_of = |record: &Record| {
        stored.get(&record.marker).map(|stamp| Versionstamp::parse(stamp).expect("markers hold stamps"))
    };
    let mut committed: Vec<(Versionstamp, &Record)> =
        records.iter().filter_map(|record| Some((stamp_of(record)?, record))).collect();
    committed.sort_by_key(|(stamp, _)| *stamp);
    for record in records {
        match (&record.outcome, stamp_of(record)) {
            (Ok(committed), Some(stamp)) => assert_eq!(committed.versionstamp, Some(stamp)),
            (Ok(_), None) => panic!("an acknowledged commit is lost: {record:?}"),
            (Err(error), Some(_)) => {
                assert_eq!(error.code, ErrorCode::KvUnknownCommit, "{record:?} happened")
            }
            (Err(_), None) => {}
        }
    }
    // The map after each version.
    let mut history: Vec<(u64, Map)> = vec![(0, Map::new())];
    for (stamp, record) in committed {
        let (newest, map) = history.last().expect("it starts with one");
        assert!(stamp.version() > record.read_version, "a commit at or before what it read");
        let (newest, mut map) = (*newest, map.clone());
        run_on(&mut map, record, Some(stamp), true);
        map.insert(record.marker.clone(), stamp.0.to_vec());
        if newest == stamp.version() {
            history.pop();
        }
        history.push((stamp.version(), map));
    }
    for record in records {
        let at = history.partition_point(|(version, _)| *version <= record.read_version) - 1;
        run_on(&mut history[at].1.clone(), record, None, false);
    }
    assert_eq!(history.last().map(|(_, map)| map), Some(stored), "the store isn't what its commits make");
}

/// Does the steps of `record` on `map` and checks what it saw: all of it, or only what was read serializably.
fn run_on(map: &mut Map, record: &Record, stamp: Option<Versionstamp>, only_serializable: bool) {
    let checked = |isolation: &Isolation| !only_serializable || *isolation == Isolation::Serializable;
    for step in &record.steps {
        match step {
            Step::Get(key, isolation, seen) if checked(isolation) => {
                assert_eq!(map.get(key), seen.as_ref(), "{step:?} in {record:?}, stamp {stamp:?}");
            }
            Step::Range(range, limit, direction, isolation, page) if checked(isolation) => {
                let there = map.range(range.begin.clone()..range.end.clone());
                let mut there: Vec<Pair> = there.map(|(key, value)| (key.clone(), value.clone())).collect();
                if *direction == Direction::Reverse {
                    there.reverse();
                }
                let whole = page.pairs.len() == there.len();
                there.truncate(page.pairs.len());
                assert_eq!(there, page.pairs, "{step:?} in {record:?}, stamp {stamp:?}");
                assert!(whole || page.more, "pairs left out without saying so: {record:?}");
                assert!(page.pairs.len() <= *limit && !(page.more && page.pairs.is_empty()));
            }
            Step::Get(..) | Step::Range(..) => {}
            Step::Set(key, value) => drop(map.insert(key.clone(), value.clone())),
            Step::Clear(key) => drop(map.remove(key)),
            Step::ClearRange(range) => map.retain(|key, _| !range.contains(key)),
            Step::Atomic(operation, key, operand) => {
                let value = operation.apply(map.get(key).map(Vec::as_slice), operand);
                map.insert(key.clone(), value);
            }
            Step::StampedKey(suffix) => {
                if let Some(stamp) = stamp {
                    map.insert([b"s".as_slice(), &stamp.0, suffix].concat(), b"stamped".to_vec());
                }
            }
        }
    }
}
