//! What is particular to the embedded store: restarts, locks, damage, old snapshots, threads.

use corefs_kv::clock::Clock;
use corefs_kv::conformance::{Load, check_serializable};
use corefs_kv::embedded::check::check;
use corefs_kv::embedded::snapshots::SNAPSHOTS_MAX;
use corefs_kv::embedded::{Options, STORE_FILE};
use corefs_kv::prng::Prng;
use corefs_kv::retry::run_repeatable;
use corefs_kv::{Embedded, Isolation, KvEngine, Transaction};
use corefs_wire::ErrorCode;
use futures_lite::future::block_on;
use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fs, io};

fn open(directory: &Path) -> corefs_wire::Result<Embedded> {
    Embedded::open(directory, Options::default())
}

async fn set(engine: &Embedded, key: &[u8], value: &[u8]) -> u64 {
    let mut txn = engine.begin();
    txn.set(key, value);
    txn.commit().await.unwrap().version
}

async fn get(engine: &Embedded, key: &[u8]) -> corefs_wire::Result<Option<Vec<u8>>> {
    engine.begin().get(key, Isolation::Snapshot).await
}

#[test]
fn everything_is_there_after_a_restart_and_versions_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let mut last = 0;
    for life in 0..3u8 {
        let engine = open(directory.path()).unwrap();
        block_on(async {
            for before in 0..life {
                assert_eq!(get(&engine, &[before]).await, Ok(Some(vec![before; 100])));
            }
            let version = engine.begin().read_version().await.unwrap();
            assert!(version > last, "versions went back");
            last = set(&engine, &[life], &[life; 100]).await;
        });
        // Dropping the last handle closes it, too.
    }
    let report = check(directory.path()).unwrap();
    assert_eq!((report.pairs, report.version, report.damage.len()), (3, last, 0));
}

#[test]
fn a_directory_has_one_user() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path()).unwrap();
    let error = open(directory.path()).err().unwrap();
    assert_eq!(error.code, ErrorCode::DirectoryInUse);
    assert!(error.message.contains(&directory.path().display().to_string()), "{error}");
    assert_eq!(check(directory.path()).unwrap_err().code, ErrorCode::DirectoryInUse);
    block_on(engine.close());
    assert_eq!(block_on(get(&engine, b"k")).unwrap_err().code, ErrorCode::KvUnavailable);
    let mut txn = engine.begin();
    txn.set(b"k", b"v");
    assert_eq!(block_on(txn.commit()).unwrap_err().code, ErrorCode::KvUnavailable);
    drop(engine);
    open(directory.path()).unwrap();
}

#[test]
fn what_is_no_store_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(check(directory.path()).unwrap_err().code, ErrorCode::NotFound);
    fs::write(directory.path().join(STORE_FILE), b"these are not the bytes you are looking for".repeat(1000))
        .unwrap();
    let error = open(directory.path()).err().unwrap();
    assert_eq!(error.code, ErrorCode::BadFormat, "{error}");
    assert!(error.message.contains(&directory.path().display().to_string()), "{error}");
    assert_eq!(check(directory.path()).unwrap().damage.len(), 1);
}

/// A store of some hundred pairs, closed; its file's bytes.
fn filled(directory: &Path) -> Vec<u8> {
    let engine = open(directory).unwrap();
    block_on(async {
        for number in 0..300u32 {
            let mut txn = engine.begin();
            txn.set(&number.to_be_bytes(), &[number as u8; 200]);
            if number % 100 == 99 {
                txn.clear(&(number - 50).to_be_bytes());
            }
            txn.commit().await.unwrap();
        }
        engine.close().await;
    });
    drop(engine);
    fs::read(directory.join(STORE_FILE)).unwrap()
}

#[test]
fn damage_is_a_typed_error_or_harmless_never_a_wrong_value() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(STORE_FILE);
    let whole = filled(directory.path());
    let mut random = Prng::new(1);
    let (mut refused, mut harmless) = (0, 0);
    for round in 0..150 {
        let mut bytes = whole.clone();
        if round % 10 == 9 {
            bytes.truncate(random.below(whole.len() as u64) as usize);
        } else {
            let at = random.below(whole.len() as u64) as usize;
            let end = whole.len().min(at + 1 + random.below(64) as usize);
            bytes[at..end].iter_mut().for_each(|byte| *byte ^= 0x55);
        }
        fs::write(&path, &bytes).unwrap();
        match open(directory.path()) {
            Err(error) => {
                let expected = [ErrorCode::Corrupt, ErrorCode::BadFormat];
                assert!(expected.contains(&error.code), "round {round}: {error}");
                refused += 1;
            }
            Ok(engine) => block_on(async {
                for number in 0..300u32 {
                    let cleared = [49, 149, 249].contains(&number);
                    let expected = if cleared { None } else { Some(vec![number as u8; 200]) };
                    assert_eq!(get(&engine, &number.to_be_bytes()).await, Ok(expected), "round {round}");
                }
                harmless += 1;
            }),
        }
    }
    println!("{refused} refused, {harmless} harmless (in free pages)");
    assert!(refused > 20);
}

#[test]
fn the_check_finds_damage() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(STORE_FILE);
    let whole = filled(directory.path());
    assert_eq!(check(directory.path()).unwrap().damage, Vec::<String>::new());
    // The value of key 7, wherever it lies in the file: in the live page, and in old ones.
    let value = [7u8; 200];
    let mut bytes = whole.clone();
    let places: Vec<_> = (0..whole.len() - 200).filter(|at| whole[*at..*at + 200] == value).collect();
    assert!(!places.is_empty());
    places.iter().for_each(|at| bytes[*at + 100] = 8);
    fs::write(&path, &bytes).unwrap();
    assert!(!check(directory.path()).unwrap().damage.is_empty());
    assert_eq!(open(directory.path()).err().unwrap().code, ErrorCode::Corrupt);
    // Without the check on opening, the value's own checksum keeps it from being believed.
    fs::write(&path, &bytes).unwrap();
    let engine = Embedded::open(directory.path(), Options { verify: false, ..Options::default() }).unwrap();
    block_on(async {
        assert_eq!(get(&engine, &7u32.to_be_bytes()).await.unwrap_err().code, ErrorCode::Corrupt);
        assert_eq!(get(&engine, &8u32.to_be_bytes()).await, Ok(Some(vec![8; 200])));
        // Who adds to the damaged value is refused; others in the same group are told to try again.
        let mut harmed = engine.begin();
        harmed.add_i64(&7u32.to_be_bytes(), 1);
        assert_eq!(harmed.commit().await.unwrap_err().code, ErrorCode::Corrupt);
        set(&engine, b"other", b"goes on").await;
        assert_eq!(get(&engine, b"other").await, Ok(Some(b"goes on".to_vec())));
    });
}

#[test]
fn snapshots_are_bounded_and_end_after_five_seconds() {
    let directory = tempfile::tempdir().unwrap();
    let (clock, hand) = Clock::standing();
    let engine = Embedded::open(directory.path(), Options { clock, ..Options::default() }).unwrap();
    block_on(async {
        let mut readers = Vec::new();
        let refused = loop {
            let mut reader = engine.begin();
            match reader.read_version().await {
                Ok(_) => readers.push(reader),
                Err(error) => break error,
            }
            set(&engine, b"k", &[0]).await;
        };
        assert_eq!((refused.code, readers.len()), (ErrorCode::KvUnavailable, SNAPSHOTS_MAX));
        assert_eq!(engine.statistics().snapshots, SNAPSHOTS_MAX as u64);
        // Those who hold on to theirs don't keep others from reading for ever.
        hand.advance(Duration::from_millis(5_100));
        set(&engine, b"k", &[1]).await;
        assert_eq!(get(&engine, b"k").await, Ok(Some(vec![1])));
        assert!(engine.statistics().snapshots <= 1);
        let error = readers[0].get(b"k", Isolation::Snapshot).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::KvTooOld);
        drop(readers);
        assert!(engine.statistics().snapshots <= 1);
    });
}

/// A disk in memory whose writes and flushes fail once it is told so.
#[derive(Debug)]
struct Failing {
    disk: InMemoryBackend,
    broken: Arc<AtomicBool>,
}

impl Failing {
    fn check(&self) -> io::Result<()> {
        if self.broken.load(Ordering::SeqCst) { Err(io::Error::other("the disk is broken")) } else { Ok(()) }
    }
}

impl StorageBackend for Failing {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.write(offset, data)
    }
}

#[test]
fn a_failed_flush_is_the_death_of_the_store() {
    let broken = Arc::new(AtomicBool::new(false));
    let backend = Failing { disk: InMemoryBackend::new(), broken: broken.clone() };
    let engine = Embedded::open_with_backends(InMemoryBackend::new(), backend, Options::default()).unwrap();
    block_on(async {
        set(&engine, b"k", b"1").await;
        let mut reader = engine.begin();
        reader.get(b"k", Isolation::Snapshot).await.unwrap();
        broken.store(true, Ordering::SeqCst);
        let mut txn = engine.begin();
        txn.set(b"k", b"2");
        assert_eq!(txn.commit().await.unwrap_err().code, ErrorCode::KvUnknownCommit);
        // The disk recovering doesn't bring it back: nobody knows what it holds.
        broken.store(false, Ordering::SeqCst);
        let mut txn = engine.begin();
        txn.set(b"k", b"3");
        assert_eq!(txn.commit().await.unwrap_err().code, ErrorCode::KvIo);
        assert_eq!(reader.get(b"k", Isolation::Snapshot).await.unwrap_err().code, ErrorCode::KvIo);
        assert_eq!(get(&engine, b"k").await.unwrap_err().code, ErrorCode::KvIo);
        let mut repeated = 0;
        let outcome = run_repeatable(&engine, async |txn| {
            repeated += 1;
            txn.set(b"k", b"4");
            Ok(())
        });
        assert_eq!(outcome.await.unwrap_err().code, ErrorCode::KvIo);
        assert_eq!(repeated, 1);
        engine.close().await;
    });
}

#[test]
fn groups_share_a_flush() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path()).unwrap();
    block_on(async {
        let commit = async |number: u64| set(&engine, &number.to_be_bytes(), b"v").await;
        corefs_kv::conformance::join_all((0..500).map(commit)).await;
        let statistics = engine.statistics();
        assert_eq!(statistics.commits, 500);
        assert!(statistics.groups < 250, "{} flushes for 500 concurrent commits", statistics.groups);
        check_serializable(
            &open(tempfile::tempdir().unwrap().path()).unwrap(),
            9,
            Load { workers: 24, transactions: 20, keys: 40 },
        )
        .await;
    });
}
