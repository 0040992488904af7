//! What conflicts, and what doesn't.

use super::*;
use crate::retry::{Look, run, run_once};
use Isolation::{Serializable, Snapshot};

pub async fn check<B: Bench>(bench: &B) {
    gets(&bench.fresh().await).await;
    phantoms(&bench.fresh().await).await;
    pages_conflict_as_far_as_they_go(&bench.fresh().await).await;
    blind_writes_and_own_values(&bench.fresh().await).await;
    declared_conflicts(&bench.fresh().await).await;
    write_skew(&bench.fresh().await).await;
    read_only(&bench.fresh().await).await;
    counter_by_reading(&bench.fresh().await).await;
}

/// A transaction that reads with `read`, then somebody else does `write`, then the first one commits a write to
/// a key of its own. Gives that commit's outcome.
async fn race<E: KvEngine>(
    engine: &E,
    read: impl AsyncFnOnce(&mut E::Txn),
    write: impl FnOnce(&mut E::Txn),
) -> Result<Committed> {
    let mut txn = engine.begin();
    txn.read_version().await.unwrap();
    read(&mut txn).await;
    let mut other = engine.begin();
    write(&mut other);
    other.commit().await.expect("the other one only writes");
    txn.set(b"result", b"1");
    txn.commit().await
}

async fn gets<E: KvEngine>(engine: &E) {
    put(engine, &[(b"k", b"0")]).await;
    let get = async |txn: &mut E::Txn| drop(txn.get(b"k", Serializable).await.unwrap());
    expect_code(race(engine, get, |txn| txn.set(b"k", b"1")).await, ErrorCode::KvConflict);
    assert_eq!(super::get(engine, b"result").await, None, "a conflict wrote something");
    expect_code(race(engine, get, |txn| txn.clear(b"k")).await, ErrorCode::KvConflict);
    expect_code(race(engine, get, |txn| txn.add_i64(b"k", 1)).await, ErrorCode::KvConflict);
    expect_code(race(engine, get, |txn| txn.clear_range(&KeyRange::all())).await, ErrorCode::KvConflict);
    race(engine, get, |txn| txn.set(b"k\0", b"1")).await.expect("a neighbour is no conflict");
    let absent = async |txn: &mut E::Txn| drop(txn.get_many(&[b"x", b"y"], Serializable).await.unwrap());
    expect_code(race(engine, absent, |txn| txn.set(b"y", b"1")).await, ErrorCode::KvConflict);
    let snapshot = async |txn: &mut E::Txn| drop(txn.get(b"k", Snapshot).await.unwrap());
    race(engine, snapshot, |txn| txn.set(b"k", b"1")).await.expect("snapshot reads don't conflict");
}

async fn phantoms<E: KvEngine>(engine: &E) {
    put(engine, &[(b"d/b", b"0"), (b"d/d", b"0")]).await;
    let list = async |txn: &mut E::Txn| {
        drop(txn.range(&KeyRange::prefix(b"d/"), 10, Direction::Forward, Serializable).await.unwrap());
    };
    expect_code(race(engine, list, |txn| txn.set(b"d/c", b"1")).await, ErrorCode::KvConflict);
    expect_code(race(engine, list, |txn| txn.set(b"d/", b"1")).await, ErrorCode::KvConflict);
    expect_code(race(engine, list, |txn| txn.set(b"d/z", b"1")).await, ErrorCode::KvConflict);
    race(engine, list, |txn| txn.set(b"d0", b"1")).await.expect("beyond the end");
    race(engine, list, |txn| txn.set(b"d", b"1")).await.expect("before the beginning");
    let empty = async |txn: &mut E::Txn| {
        drop(txn.range(&KeyRange::prefix(b"e/"), 1, Direction::Forward, Serializable).await.unwrap());
    };
    expect_code(race(engine, empty, |txn| txn.set(b"e/1", b"1")).await, ErrorCode::KvConflict);
    let snapshot = async |txn: &mut E::Txn| {
        drop(txn.range(&KeyRange::prefix(b"d/"), 10, Direction::Forward, Snapshot).await.unwrap());
    };
    race(engine, snapshot, |txn| txn.set(b"d/c", b"1")).await.expect("snapshot reads don't conflict");
}

async fn pages_conflict_as_far_as_they_go<E: KvEngine>(engine: &E) {
    put(engine, &[(b"b", b"0"), (b"d", b"0"), (b"f", b"0"), (b"h", b"0")]).await;
    let letters = KeyRange::new(*b"a", *b"z");
    let forward = async |txn: &mut E::Txn| {
        drop(txn.range(&letters, 2, Direction::Forward, Serializable).await.unwrap());
    };
    expect_code(race(engine, forward, |txn| txn.set(b"a", b"1")).await, ErrorCode::KvConflict);
    put(engine, &[]).await;
    let mut txn = engine.begin();
    txn.clear(b"a");
    txn.commit().await.unwrap();
    expect_code(race(engine, forward, |txn| txn.set(b"d", b"1")).await, ErrorCode::KvConflict);
    race(engine, forward, |txn| txn.set(b"e", b"1")).await.expect("beyond the last pair returned");
    let reverse = async |txn: &mut E::Txn| {
        drop(txn.range(&letters, 2, Direction::Reverse, Serializable).await.unwrap());
    };
    // The keys are now b, d, e, f, h and what race wrote: result.
    expect_code(race(engine, reverse, |txn| txn.set(b"s", b"1")).await, ErrorCode::KvConflict);
    race(engine, reverse, |txn| txn.set(b"f", b"1")).await.expect("before the last pair returned");
}

async fn blind_writes_and_own_values<E: KvEngine>(engine: &E) {
    let blind = async |_: &mut E::Txn| {};
    race(engine, blind, |txn| txn.set(b"result", b"2")).await.expect("writes alone don't conflict");
    let own = async |txn: &mut E::Txn| {
        txn.set(b"k", b"mine");
        txn.clear(b"l");
        txn.get_many(&[b"k", b"l"], Serializable).await.unwrap();
    };
    let theirs = |txn: &mut E::Txn| {
        txn.set(b"k", b"theirs");
        txn.set(b"l", b"theirs");
    };
    race(engine, own, theirs).await.expect("reading what one has set oneself is no conflict");
    assert_eq!(get(engine, b"k").await, Some(b"mine".to_vec()));
    let through_atomic = async |txn: &mut E::Txn| {
        txn.add_i64(b"n", 1);
        txn.get(b"n", Serializable).await.unwrap();
    };
    let outcome = race(engine, through_atomic, |txn| txn.add_i64(b"n", 1)).await;
    expect_code(outcome, ErrorCode::KvConflict);
}

async fn declared_conflicts<E: KvEngine>(engine: &E) {
    let declared = async |txn: &mut E::Txn| txn.add_read_conflict_key(b"k");
    expect_code(race(engine, declared, |txn| txn.set(b"k", b"1")).await, ErrorCode::KvConflict);
    expect_code(race(engine, declared, |txn| txn.add_write_conflict_key(b"k")).await, ErrorCode::KvConflict);
    let range = async |txn: &mut E::Txn| txn.add_read_conflict_range(&KeyRange::prefix(b"p"));
    let claim = |txn: &mut E::Txn| txn.add_write_conflict_range(&KeyRange::new(*b"pa", *b"pb"));
    expect_code(race(engine, range, claim).await, ErrorCode::KvConflict);
    race(engine, range, |txn| txn.set(b"q", b"1")).await.expect("outside of what was declared");
    assert_eq!(get(engine, b"pa").await, None, "declaring a write conflict writes nothing");
}

async fn write_skew<E: KvEngine>(engine: &E) {
    put(engine, &[(b"x", b"1"), (b"y", b"1")]).await;
    let (mut first, mut second) = (engine.begin(), engine.begin());
    for txn in [&mut first, &mut second] {
        txn.get_many(&[b"x", b"y"], Serializable).await.unwrap();
    }
    first.clear(b"x");
    second.clear(b"y");
    let outcomes = join_all([first.commit(), second.commit()]).await;
    let committed = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(committed, 1, "both of a write skew can't commit: {outcomes:?}");
    let refused = outcomes.into_iter().find(Result::is_err).unwrap();
    expect_code(refused, ErrorCode::KvConflict);
}

async fn read_only<E: KvEngine>(engine: &E) {
    put(engine, &[(b"k", b"0")]).await;
    let mut txn = engine.begin();
    txn.get(b"k", Serializable).await.unwrap();
    let version = txn.read_version().await.unwrap();
    put(engine, &[(b"k", b"1")]).await;
    let committed = txn.commit().await.expect("a transaction that wrote nothing never conflicts");
    assert_eq!((committed.version, committed.versionstamp), (version, None));
}

/// Many increments by reading and setting, each as a transaction that is retried: none is lost, none doubled.
async fn counter_by_reading<E: KvEngine>(engine: &E) {
    let bump = async |txn: &mut E::Txn, key: &[u8]| -> Result<u64> {
        let old = txn.get(key, Serializable).await?;
        let old = old.map_or(0, |old| u64::from_le_bytes(old.try_into().expect("eight bytes")));
        txn.set(key, &(old + 1).to_le_bytes());
        Ok(old + 1)
    };
    let worker = async |number: u8| {
        for _ in 0..5 {
            run(engine, async |txn| bump(txn, b"run").await).await.expect("retries get through");
        }
        for round in 0..5 {
            let remembered = |_: &[u8]| Ok(0);
            let body = async |txn: &mut E::Txn| Ok((bump(txn, b"once").await?, vec![1]));
            let row = [b'r', number, round];
            run_once(engine, &row, Look::EveryAttempt, remembered, body).await.expect("retries get through");
        }
    };
    join_all((0..6).map(worker)).await;
    assert_eq!(get(engine, b"run").await, Some(30u64.to_le_bytes().to_vec()));
    assert_eq!(get(engine, b"once").await, Some(30u64.to_le_bytes().to_vec()));
}
