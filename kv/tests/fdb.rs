//! FoundationDB: the suite where a server can be reached, and what is said where that or the library is missing.
//!
//! `COREFS_FDB_CLUSTER_FILE` names the cluster file of a FoundationDB. The tests use parts of it that they name themselves and
//! clear; nothing else there is touched.
#![cfg(feature = "fdb")]

use corefs_kv::conformance::{Bench, Load, check_all, check_serializable, join_all};
use corefs_kv::fdb::{Fdb, shim};
use corefs_kv::retry::{Look, run, run_once, run_repeatable};
use corefs_kv::{Isolation, KeyRange, KvEngine, Transaction};
use corefs_net::executor;
use corefs_wire::{Error, ErrorCode};
use glommio::Placement;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const CLUSTER_FILE: &str = "COREFS_FDB_CLUSTER_FILE";

/// Runs a test on an executor as a role has it, if there is a FoundationDB; prints if not.
fn with_server<F: Future<Output = ()> + 'static>(
    what: &str,
    test: impl FnOnce(PathBuf) -> F + Send + 'static,
) {
    match std::env::var_os(CLUSTER_FILE) {
        Some(file) => {
            let test = executor::builder(Placement::Unbound).spawn(|| async move { test(file.into()).await });
            test.unwrap().join().unwrap();
        }
        None => println!("{what}: skipped, because {CLUSTER_FILE} names no FoundationDB's cluster file"),
    }
}

async fn open(file: &std::path::Path, name: &str) -> Fdb {
    Fdb::open(file, name, 0).await.expect("the FoundationDB of COREFS_FDB_CLUSTER_FILE answers")
}

async fn clear(store: &Fdb) {
    let clear = async |txn: &mut <Fdb as KvEngine>::Txn| {
        txn.clear_range(&KeyRange::all());
        Ok(())
    };
    run_repeatable(store, clear).await.unwrap();
}

struct FdbBench {
    file: PathBuf,
    opened: Cell<u32>,
    before: RefCell<Option<Fdb>>,
}

impl FdbBench {
    async fn clear_last(&self) {
        let before = self.before.borrow_mut().take();
        if let Some(store) = before {
            clear(&store).await;
        }
    }
}

impl Bench for FdbBench {
    type Engine = Fdb;
    const NAME: &str = "FoundationDB";

    async fn fresh(&self) -> Fdb {
        self.clear_last().await;
        self.opened.set(self.opened.get() + 1);
        let store = open(&self.file, &format!("test-{}-{}", std::process::id(), self.opened.get())).await;
        *self.before.borrow_mut() = Some(store.clone());
        store
    }

    async fn pass(&self, _: &Fdb, duration: Duration) -> bool {
        executor::sleep(duration).await;
        true
    }
}

#[test]
fn conformance() {
    with_server("conformance: FoundationDB", |file| async {
        let bench = FdbBench { file, opened: Cell::new(0), before: RefCell::default() };
        check_all(&bench).await;
        bench.clear_last().await;
    });
}

#[test]
fn several_clients_are_serializable_together() {
    with_server("several clients", |file| async move {
        let name = format!("test-{}-several", std::process::id());
        let first = open(&file, &name).await;
        check_serializable(&first, 77, Load { workers: 24, transactions: 20, keys: 40 }).await;
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(open(&file, &name).await);
        }
        let counter = async |number: u8, client: Fdb| {
            for round in 0..20 {
                let body = async |txn: &mut <Fdb as KvEngine>::Txn| {
                    let old = txn.get(b"n", Isolation::Serializable).await?.map_or(0, |old| old[0]);
                    txn.set(b"n", &[old + 1]);
                    Ok(((), vec![1]))
                };
                run_once(&client, &[b'r', number, round], Look::EveryAttempt, |_| Ok(()), body)
                    .await
                    .unwrap();
            }
        };
        join_all((0..).zip(clients).map(|(number, client)| counter(number, client))).await;
        assert_eq!(first.begin().get(b"n", Isolation::Snapshot).await, Ok(Some(vec![80])));
        clear(&first).await;
    });
}

#[test]
fn names_are_apart() {
    with_server("names", |file| async move {
        let name = |part: &str| format!("test-{}-{part}", std::process::id());
        // One name begins with the other.
        let (short, long) = (open(&file, &name("a")).await, open(&file, &name("ab")).await);
        for (store, value) in [(&short, b"short".as_slice()), (&long, b"long")] {
            let body = async |txn: &mut <Fdb as KvEngine>::Txn| {
                txn.set(b"k", value);
                Ok(())
            };
            run_repeatable(store, body).await.unwrap();
        }
        clear(&short).await;
        let all = async |store: &Fdb| {
            let read = async |txn: &mut <Fdb as KvEngine>::Txn| {
                txn.range_all(&KeyRange::all(), usize::MAX, Isolation::Snapshot).await
            };
            run(store, read).await.unwrap()
        };
        assert_eq!(all(&short).await, []);
        assert_eq!(all(&long).await, [(b"k".to_vec(), b"long".to_vec())]);
        clear(&long).await;
    });
}

/// Opens what isn't there, on an executor.
fn refused(text: &str, name: &'static str) -> Error {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("fdb.cluster");
    std::fs::write(&file, text).unwrap();
    let opened = executor::builder(Placement::Unbound)
        .spawn(move || async move { Fdb::open(&file, name, 0).await.map(drop) });
    opened.unwrap().join().unwrap().unwrap_err()
}

#[test]
fn what_is_missing_is_named() {
    let missing = Fdb::open(std::path::Path::new("/nowhere/fdb.cluster"), "corefs", 0);
    let error = futures_lite::future::block_on(missing).map(drop).unwrap_err();
    assert!(error.code == ErrorCode::BadConfig && error.message.contains("/nowhere/fdb.cluster"), "{error}");
    let error = refused("", "no/name");
    assert!(error.code == ErrorCode::BadConfig && error.message.contains("no/name"), "{error}");
    if shim::load().is_err() {
        // As on every machine without FoundationDB: this very program was linked and started without it.
        let error = refused("test:test@127.0.0.1:1", "corefs");
        assert!(
            error.code == ErrorCode::BadConfig && error.message.contains("foundationdb-clients"),
            "{error}"
        );
        return;
    }
    // Nobody listens there.
    let began = Instant::now();
    let error = refused("test:test@127.0.0.1:1", "corefs");
    assert_eq!(error.code, ErrorCode::KvUnavailable, "{error}");
    assert!(error.message.contains(&shim::client_version()), "{error}");
    assert!(began.elapsed() < Duration::from_secs(30));
    let error = refused("no cluster file", "corefs");
    assert_ne!(error.code, ErrorCode::Internal, "{error}");
}
