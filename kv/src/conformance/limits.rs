//! Sizes and ages.

use super::*;
use Isolation::{Serializable, Snapshot};
use corefs_wire::limits::{KV_KEY_MAX, KV_TRANSACTION_BYTES_MAX, KV_VALUE_MAX};

pub async fn check<B: Bench>(bench: &B) {
    the_largest_fits(&bench.fresh().await).await;
    too_large(&bench.fresh().await).await;
    bad_arguments(&bench.fresh().await).await;
    too_old(bench).await;
}

async fn the_largest_fits<E: KvEngine>(engine: &E) {
    let (key, value) = (vec![7; KV_KEY_MAX], vec![8; KV_VALUE_MAX]);
    put(engine, &[(&key, &value), (b"", b"")]).await;
    assert_eq!(get(engine, &key).await, Some(value.clone()));
    assert_eq!(get(engine, b"").await, Some(Vec::new()));
    assert_eq!(keys(&mut engine.begin(), &KeyRange::all()).await, [Vec::new(), key.clone()]);
    let mut txn = engine.begin();
    txn.get(&key, Serializable).await.unwrap();
    txn.clear(&key);
    txn.commit().await.unwrap();
    assert_eq!(get(engine, &key).await, None);
    // Nine tenths of the largest transaction.
    let mut txn = engine.begin();
    (0..90u8).for_each(|number| txn.set(&[b'b', number], &value));
    txn.commit().await.expect("nine megabytes fit");
    assert_eq!(get(engine, b"b\x59").await, Some(value));
}

async fn too_large<E: KvEngine>(engine: &E) {
    let refused = async |write: &dyn Fn(&mut E::Txn)| {
        let mut txn = engine.begin();
        txn.set(b"fine", b"1");
        write(&mut txn);
        expect_code(txn.commit().await, ErrorCode::KvTooLarge);
        assert_eq!(get(engine, b"fine").await, None, "a refused transaction wrote something");
    };
    let long = vec![1; KV_KEY_MAX + 1];
    refused(&|txn| txn.set(&long, b"")).await;
    refused(&|txn| txn.clear(&long)).await;
    refused(&|txn| txn.add_i64(&long, 1)).await;
    refused(&|txn| txn.set(b"k", &vec![0; KV_VALUE_MAX + 1])).await;
    refused(&|txn| txn.set_versionstamped_key(&long[10..], b"", b"")).await;
    refused(&|txn| txn.set_versionstamped_value(b"k", &vec![0; KV_VALUE_MAX], b"")).await;
    let most = KV_TRANSACTION_BYTES_MAX / KV_VALUE_MAX;
    refused(&|txn| (0..=most).for_each(|number| txn.set(&number.to_be_bytes(), &[0; KV_VALUE_MAX]))).await;
    expect_code(engine.begin().get(&long, Snapshot).await, ErrorCode::KvTooLarge);
}

async fn bad_arguments<E: KvEngine>(engine: &E) {
    let range = KeyRange::new(*b"b", *b"a");
    let mut txn = engine.begin();
    let outcome = txn.range(&range, 1, Direction::Forward, Snapshot).await;
    expect_code(outcome, ErrorCode::InvalidArgument);
    let outcome = txn.range(&KeyRange::all(), 0, Direction::Forward, Snapshot).await;
    expect_code(outcome, ErrorCode::InvalidArgument);
    expect_code(txn.get(&[0xFF], Snapshot).await, ErrorCode::InvalidArgument);
    assert_eq!(txn.get(b"k", Snapshot).await, Ok(None), "the transaction goes on after a refused read");
    let mut txn = engine.begin();
    txn.set(&[0xFF, 1], b"");
    expect_code(txn.commit().await, ErrorCode::InvalidArgument);
    let mut txn = engine.begin();
    txn.clear_range(&range);
    expect_code(txn.commit().await, ErrorCode::InvalidArgument);
}

async fn too_old<B: Bench>(bench: &B) {
    let engine = &bench.fresh().await;
    put(engine, &[(b"k", b"0")]).await;
    let mut reader = engine.begin();
    reader.get(b"k", Serializable).await.unwrap();
    let mut writer = engine.begin();
    writer.get(b"other", Serializable).await.unwrap();
    writer.set(b"k", b"1");
    let mut young = engine.begin();
    young.set(b"young", b"1");
    if !bench.pass(engine, Duration::from_millis(5_500)).await {
        println!("conformance: KvTooOld is not checked: this bench can't let time pass");
        return;
    }
    put(engine, &[(b"unrelated", b"1")]).await;
    expect_code(reader.get(b"k", Snapshot).await, ErrorCode::KvTooOld);
    expect_code(writer.commit().await, ErrorCode::KvTooOld);
    assert_eq!(get(engine, b"k").await, Some(b"0".to_vec()));
    young.get(b"k", Serializable).await.expect("age counts from the first read");
    young.commit().await.expect("age counts from the first read");
}
