//! The embedded store's log as files: processes that die, damage, files that are missing or of another time, disks that fill, stores of earlier formats.

use corefs_kv::clock::Clock;
use corefs_kv::embedded::check::check;
use corefs_kv::embedded::format::{ABOUT, FORMAT, FORMAT_ROW, PAIRS, VERSION_ROW, seal};
use corefs_kv::embedded::log::BLOCK;
use corefs_kv::embedded::{LOG_FILE, Options, STORE_FILE};
use corefs_kv::{Embedded, Isolation, KeyRange, KvEngine, Transaction};
use corefs_wire::{ErrorCode, Result};
use futures_lite::future::block_on;
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase, StorageBackend};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fs, io};
use tempfile::TempDir;

fn open(directory: &Path) -> Result<Embedded> {
    Embedded::open(directory, Options::default())
}

async fn set(engine: &Embedded, key: &[u8], value: &[u8]) -> Result<u64> {
    let mut txn = engine.begin();
    txn.set(key, value);
    txn.commit().await.map(|committed| committed.version)
}

async fn keys(engine: &Embedded) -> Vec<Vec<u8>> {
    let pairs = engine.begin().range_all(&KeyRange::all(), usize::MAX, Isolation::Snapshot).await;
    pairs.unwrap().into_iter().map(|(key, _)| key).collect()
}

/// What is left of a store whose process was killed after it had committed the keys 0 to 9, a record each.
fn killed() -> TempDir {
    let alive = tempfile::tempdir().unwrap();
    let engine = open(alive.path()).unwrap();
    block_on(async {
        for number in 0..10u8 {
            set(&engine, &[number], &[number; 100]).await.unwrap();
        }
    });
    copy(alive.path())
}

/// The files of a store that is open and does nothing just now, as a kill would leave them.
fn copy(alive: &Path) -> TempDir {
    let dead = tempfile::tempdir().unwrap();
    for file in [STORE_FILE, LOG_FILE] {
        fs::copy(alive.join(file), dead.path().join(file)).unwrap();
    }
    dead
}

fn flip(directory: &Path, at: usize) {
    let path = directory.join(LOG_FILE);
    let mut bytes = fs::read(&path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_was_only_in_the_log_is_there_after_a_kill() {
    let dead = killed();
    let engine = open(dead.path()).unwrap();
    assert_eq!(block_on(keys(&engine)).len(), 10);
    // Killed again, with nothing logged since.
    let again = copy(dead.path());
    drop(engine);
    assert_eq!(block_on(keys(&open(again.path()).unwrap())).len(), 10);
    let dead = killed();
    let report = check(dead.path()).unwrap();
    assert_eq!((report.pairs, report.damage.len()), (10, 0));
    assert_eq!(check(dead.path()).unwrap(), report, "a second look finds the same");
    let engine = open(dead.path()).unwrap();
    block_on(async {
        assert!(engine.begin().read_version().await.unwrap() > report.version);
        assert_eq!(keys(&engine).await.len(), 10);
    });
}

#[test]
fn a_torn_record_at_the_end_is_cut_off() {
    let dead = killed();
    flip(dead.path(), 9 * BLOCK + 50);
    assert_eq!(check(dead.path()).unwrap().damage.len(), 0);
    assert_eq!(block_on(keys(&open(dead.path()).unwrap())).len(), 9);
}

#[test]
fn damage_before_the_end_is_an_error_and_not_the_end() {
    for record in [0, 5, 8] {
        let dead = killed();
        flip(dead.path(), record * BLOCK + 50);
        let error = open(dead.path()).err().unwrap();
        assert_eq!(error.code, ErrorCode::Corrupt);
        assert!(error.message.contains(&dead.path().display().to_string()), "{error}");
        assert!(error.message.contains("backup"), "what to do: {error}");
        let damage = check(dead.path()).unwrap().damage;
        assert!(damage.len() == 1 && damage[0].contains(LOG_FILE), "{damage:?}");
    }
}

#[test]
fn a_log_that_is_missing_is_an_error_unless_the_store_was_closed() {
    let dead = killed();
    fs::remove_file(dead.path().join(LOG_FILE)).unwrap();
    let error = open(dead.path()).err().unwrap();
    assert_eq!(error.code, ErrorCode::Corrupt);
    assert!(error.message.contains(LOG_FILE), "{error}");
    assert_eq!(check(dead.path()).unwrap().damage.len(), 1);
    assert!(!dead.path().join(LOG_FILE).exists(), "an opening that fails makes none");

    let closed = killed();
    drop(open(closed.path()).unwrap());
    fs::remove_file(closed.path().join(LOG_FILE)).unwrap();
    assert_eq!(check(closed.path()).unwrap().damage.len(), 0);
    assert_eq!(block_on(keys(&open(closed.path()).unwrap())).len(), 10);
}

/// A store that isn't opened, because its files are of different times.
fn is_refused(directory: &Path) {
    let error = open(directory).err().unwrap();
    assert_eq!(error.code, ErrorCode::Corrupt);
    assert!(error.message.contains("older than the log") && error.message.contains("backup"), "{error}");
    let damage = check(directory).unwrap().damage;
    assert!(damage.len() == 1 && damage[0].contains("older than the log"), "{damage:?}");
}

#[test]
fn another_stores_log_is_not_taken_for_ours() {
    let (dead, other) = (killed(), killed());
    fs::copy(other.path().join(LOG_FILE), dead.path().join(LOG_FILE)).unwrap();
    is_refused(dead.path());
}

#[test]
fn a_tree_from_before_the_log_is_not_opened() {
    let alive = tempfile::tempdir().unwrap();
    let (closed, first) = (tempfile::tempdir().unwrap(), open(alive.path()).unwrap());
    block_on(set(&first, b"first", b"1")).unwrap();
    drop(first);
    fs::copy(alive.path().join(STORE_FILE), closed.path().join(STORE_FILE)).unwrap();
    let second = open(alive.path()).unwrap();
    let early = copy(alive.path());
    block_on(set(&second, b"second", b"2")).unwrap();
    drop(second);
    let third = open(alive.path()).unwrap();
    block_on(set(&third, b"third", b"3")).unwrap();
    // As it was closed, and as it was while its second life ran.
    for old in [closed.path(), early.path()] {
        let dead = copy(alive.path());
        fs::copy(old.join(STORE_FILE), dead.path().join(STORE_FILE)).unwrap();
        is_refused(dead.path());
    }
    assert_eq!(block_on(keys(&open(copy(alive.path()).path()).unwrap())).len(), 3);
}

#[test]
fn a_store_of_the_second_format_takes_its_log_in() {
    let dead = killed();
    let database = Database::create(dead.path().join(STORE_FILE)).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(ABOUT).unwrap().insert(FORMAT_ROW, 2).unwrap();
    transaction.commit().unwrap();
    drop(database);
    assert_eq!(check(dead.path()).unwrap().pairs, 10);
    let engine = open(dead.path()).unwrap();
    assert_eq!(block_on(keys(&engine)).len(), 10);
    drop(engine);
    let database = Database::create(dead.path().join(STORE_FILE)).unwrap();
    let about = database.begin_read().unwrap().open_table(ABOUT).unwrap();
    assert_eq!(about.get(FORMAT_ROW).unwrap().unwrap().value(), FORMAT);
}

#[test]
fn a_store_of_the_first_format_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let database = Database::create(directory.path().join(STORE_FILE)).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut stored = Vec::new();
        seal(b"old", b"value", &mut stored);
        transaction.open_table(PAIRS).unwrap().insert(b"old".as_slice(), stored.as_slice()).unwrap();
        let mut about = transaction.open_table(ABOUT).unwrap();
        about.insert(FORMAT_ROW, 1).unwrap();
        about.insert(VERSION_ROW, 77).unwrap();
    }
    transaction.commit().unwrap();
    drop(database);
    assert_eq!(check(directory.path()).unwrap().damage.len(), 0);
    let engine = open(directory.path()).unwrap();
    block_on(async {
        assert!(set(&engine, b"new", b"value").await.unwrap() > 77);
        assert_eq!(keys(&engine).await, [b"new".to_vec(), b"old".to_vec()]);
    });
    drop(engine);
    let database = Database::create(directory.path().join(STORE_FILE)).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(ABOUT).unwrap().insert(FORMAT_ROW, FORMAT + 1).unwrap();
    transaction.commit().unwrap();
    drop(database);
    assert_eq!(open(directory.path()).err().unwrap().code, ErrorCode::BadFormat);
}

/// A disk in memory that is full once it is told so.
#[derive(Debug)]
struct Filling {
    disk: Arc<InMemoryBackend>,
    full: Arc<AtomicBool>,
}

impl Filling {
    fn check(&self) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for Filling {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.disk.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.disk.write(offset, data)
    }
}

/// With a log for many commits it is the log that can't be written, with one for none the tree.
#[test]
fn a_full_disk_is_the_death_of_the_store() {
    for log_bytes in [1 << 20, 0] {
        let full = Arc::new(AtomicBool::new(false));
        let file = || Filling { disk: Arc::default(), full: full.clone() };
        let options = Options { log_bytes, ..Options::default() };
        let engine = Embedded::open_with_backends(file(), file(), options).unwrap();
        block_on(async {
            set(&engine, b"k", b"1").await.unwrap();
            full.store(true, Ordering::SeqCst);
            let error = set(&engine, b"k", &[2; 50_000]).await.unwrap_err();
            assert!([ErrorCode::KvUnknownCommit, ErrorCode::KvIo].contains(&error.code), "{error}");
            full.store(false, Ordering::SeqCst);
            let error = set(&engine, b"k", b"3").await.unwrap_err();
            assert_eq!(error.code, ErrorCode::KvIo, "room doesn't bring it back");
            let read = engine.begin().get(b"k", Isolation::Snapshot).await;
            assert_eq!(read.unwrap_err().code, ErrorCode::KvIo);
            engine.close().await;
        });
    }
}

/// The thread that writes the tree beside commits fails; they go on until that is known.
#[test]
fn a_tree_that_cannot_be_written_is_the_death_of_the_store_and_loses_nothing() {
    let disks: [Arc<InMemoryBackend>; 2] = Default::default();
    let full = Arc::new(AtomicBool::new(false));
    let open = || {
        let [tree, log] = disks.each_ref().map(Arc::clone);
        let log = Filling { disk: log, full: Arc::default() };
        // Two areas for eight records each.
        let options = Options { log_bytes: 16 * BLOCK as u64, ..Options::default() };
        Embedded::open_with_backends(Filling { disk: tree, full: full.clone() }, log, options).unwrap()
    };
    block_on(async {
        let engine = open();
        full.store(true, Ordering::SeqCst);
        let mut acknowledged = Vec::new();
        let error = loop {
            let key = vec![acknowledged.len() as u8];
            match set(&engine, &key, &[1; 3000]).await {
                Ok(_) => acknowledged.push(key),
                Err(error) => break error,
            }
        };
        assert_eq!(error.code, ErrorCode::KvIo, "{error}: nothing of that one happened");
        assert!((9..=16).contains(&acknowledged.len()), "{} before it was known", acknowledged.len());
        engine.close().await;
        full.store(false, Ordering::SeqCst);
        assert_eq!(keys(&open()).await, acknowledged);
    });
}

/// Where little is committed rows would else be in memory for hours.
#[test]
fn rows_that_are_old_and_many_set_out_though_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let (clock, hand) = Clock::standing();
    // Two areas of 2 MiB.
    let area = 2 << 20;
    let engine =
        Embedded::open(directory.path(), Options { clock, log_bytes: 2 * area, ..Options::default() });
    let engine = engine.unwrap();
    let in_other_area = || fs::metadata(directory.path().join(LOG_FILE)).unwrap().len() > area;
    block_on(async {
        for number in 0..12u8 {
            set(&engine, &[number], &[number; 90_000]).await.unwrap();
        }
        hand.advance(Duration::from_millis(1999));
        set(&engine, b"young", b"value").await.unwrap();
        assert!(!in_other_area());
        hand.advance(Duration::from_millis(1));
        set(&engine, b"old", b"value").await.unwrap();
        assert!(in_other_area());
        // Of few it doesn't matter how old they are: the next record lies behind that one.
        hand.advance(Duration::from_secs(100));
        set(&engine, b"few", b"value").await.unwrap();
        let log = fs::read(directory.path().join(LOG_FILE)).unwrap();
        assert_eq!(&log[area as usize + BLOCK..][..4], b"KVlg");
        assert_eq!(keys(&engine).await.len(), 15);
    });
    drop(engine);
    assert_eq!(block_on(keys(&open(directory.path()).unwrap())).len(), 15);
}
