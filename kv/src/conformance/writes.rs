//! Atomics, clears, versionstamps.

use super::*;

pub async fn check<B: Bench>(bench: &B) {
    counters_commute(&bench.fresh().await).await;
    atomics_keep_their_width(&bench.fresh().await).await;
    order_within_a_transaction(&bench.fresh().await).await;
    clears(&bench.fresh().await).await;
    stamps_follow_commits(&bench.fresh().await).await;
    nothing_of_an_abandoned_transaction(&bench.fresh().await).await;
}

async fn counters_commute<E: KvEngine>(engine: &E) {
    // All have read before any commits, and nothing conflicts.
    let mut txns = Vec::new();
    for number in 1..=50i64 {
        let mut txn = engine.begin();
        txn.get(b"elsewhere", Isolation::Serializable).await.unwrap();
        txn.add_i64(b"sum", if number % 2 == 0 { number } else { -number });
        txn.max_u64(b"max", (number as u64 * 37) % 50);
        txns.push(txn);
    }
    for outcome in join_all(txns.into_iter().map(Transaction::commit)).await {
        outcome.expect("atomic operations don't conflict");
    }
    assert_eq!(get(engine, b"sum").await, Some(25i64.to_le_bytes().to_vec()));
    assert_eq!(get(engine, b"max").await, Some(49u64.to_le_bytes().to_vec()));
}

async fn atomics_keep_their_width<E: KvEngine>(engine: &E) {
    put(engine, &[(b"long", &[1, 2, 3]), (b"short", &[255])]).await;
    let mut txn = engine.begin();
    txn.atomic(Atomic::Add, b"long", &[1, 1]);
    txn.atomic(Atomic::Add, b"short", &[1, 0, 0]);
    txn.atomic(Atomic::Max, b"none", &[0, 1]);
    txn.commit().await.unwrap();
    assert_eq!(get(engine, b"long").await, Some(vec![2, 3]));
    assert_eq!(get(engine, b"short").await, Some(vec![0, 1, 0]));
    assert_eq!(get(engine, b"none").await, Some(vec![0, 1]));
}

async fn order_within_a_transaction<E: KvEngine>(engine: &E) {
    put(engine, &[(b"a", b"0"), (b"b", b"0")]).await;
    let mut txn = engine.begin();
    txn.set(b"a", b"1");
    txn.clear_range(&KeyRange::all());
    txn.set(b"b", &[1]);
    txn.atomic(Atomic::Add, b"b", &[1]);
    txn.atomic(Atomic::Add, b"c", &[9]);
    txn.clear(b"c");
    txn.atomic(Atomic::Add, b"c", &[1]);
    txn.commit().await.unwrap();
    assert_eq!(keys(&mut engine.begin(), &KeyRange::all()).await, [b"b", b"c"]);
    assert_eq!(get(engine, b"b").await, Some(vec![2]));
    assert_eq!(get(engine, b"c").await, Some(vec![1]));
}

async fn clears<E: KvEngine>(engine: &E) {
    put(engine, &[(b"a", b"1"), (b"b", b"1"), (b"b\0", b"1"), (b"c", b"1")]).await;
    let mut txn = engine.begin();
    txn.clear(b"absent");
    txn.clear_range(&KeyRange::new(*b"b", *b"c"));
    txn.clear_range(&KeyRange::new(*b"a", *b"a"));
    txn.commit().await.unwrap();
    assert_eq!(keys(&mut engine.begin(), &KeyRange::all()).await, [b"a", b"c"]);
}

async fn stamps_follow_commits<E: KvEngine>(engine: &E) {
    let append = async |number: u8| {
        let mut txn = engine.begin();
        txn.set_versionstamped_key(b"log/", &[number], b"entry");
        txn.set_versionstamped_value(&[b"at/".as_slice(), &[number]].concat(), b"<", b">");
        (number, txn.commit().await.unwrap())
    };
    // Side by side, so that some share a version.
    let mut committed = join_all((0..20).map(append)).await;
    committed.push(append(20).await);
    committed.sort_by_key(|(_, committed)| committed.versionstamp);
    assert_eq!(committed.last().unwrap().0, 20, "a later commit has a later stamp");
    let mut expected = Vec::new();
    for (number, committed) in &committed {
        let stamp = committed.versionstamp.expect("a commit that wrote has a stamp");
        assert_eq!(stamp.version(), committed.version);
        expected.push([b"log/".as_slice(), &stamp.0, &[*number]].concat());
        let value = get(engine, &[b"at/".as_slice(), &[*number]].concat()).await;
        assert_eq!(value, Some([b"<".as_slice(), &stamp.0, b">"].concat()));
    }
    assert_eq!(keys(&mut engine.begin(), &KeyRange::prefix(b"log/")).await, expected);
    expected.dedup();
    assert_eq!(expected.len(), 21, "stamps are unique");
}

async fn nothing_of_an_abandoned_transaction<E: KvEngine>(engine: &E) {
    let mut txn = engine.begin();
    txn.set(b"a", b"1");
    txn.get(b"a", Isolation::Serializable).await.unwrap();
    drop(txn);
    assert_eq!(keys(&mut engine.begin(), &KeyRange::all()).await, Vec::<Vec<u8>>::new());
}
