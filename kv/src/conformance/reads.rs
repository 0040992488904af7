//! Snapshots, ranges, and reading one's own writes.

use super::*;
use Isolation::{Serializable, Snapshot};

pub async fn check<B: Bench>(bench: &B) {
    snapshots_stand_still(&bench.fresh().await).await;
    acknowledged_is_visible(&bench.fresh().await).await;
    ranges(&bench.fresh().await).await;
    several_ranges_at_once(&bench.fresh().await).await;
    long_ranges_come_in_pages(&bench.fresh().await).await;
    own_writes(&bench.fresh().await).await;
    own_writes_in_ranges(&bench.fresh().await).await;
    own_clears_hide_pages(&bench.fresh().await).await;
    stamped_places_are_unreadable(&bench.fresh().await).await;
}

async fn snapshots_stand_still<E: KvEngine>(engine: &E) {
    put(engine, &[(b"a", b"1"), (b"b", b"1")]).await;
    let mut txn = engine.begin();
    assert_eq!(txn.get(b"a", Snapshot).await, Ok(Some(b"1".to_vec())));
    put(engine, &[(b"a", b"2"), (b"b", b"2"), (b"c", b"2")]).await;
    assert_eq!(
        txn.get_many(&[b"a", b"b", b"c"], Snapshot).await.unwrap(),
        [Some(b"1".to_vec()), Some(b"1".to_vec()), None]
    );
    assert_eq!(keys(&mut txn, &KeyRange::all()).await, [b"a", b"b"]);
    assert_eq!(get(engine, b"c").await, Some(b"2".to_vec()));
}

async fn several_ranges_at_once<E: KvEngine>(engine: &E) {
    put(engine, &[(b"a1", b""), (b"a2", b""), (b"b1", b""), (b"c1", b""), (b"c2", b"")]).await;
    let of =
        |prefix: &[u8], limit, direction| RangeRead { range: KeyRange::prefix(prefix), limit, direction };
    let (forward, reverse) = (Direction::Forward, Direction::Reverse);
    let reads = [of(b"a", 1, forward), of(b"x", 5, forward), of(b"c", 1, reverse), of(b"b", 9, forward)];
    let mut txn = engine.begin();
    txn.clear(b"a1");
    let pages = txn.range_many(&reads, Serializable).await.unwrap();
    let first = |page: &RangePage| page.pairs.first().map(|(key, _)| key.clone());
    let firsts: Vec<_> = pages.iter().map(first).collect();
    assert_eq!(firsts, [Some(b"a2".to_vec()), None, Some(b"c2".to_vec()), Some(b"b1".to_vec())]);
    assert_eq!(pages.iter().map(|page| page.pairs.len()).collect::<Vec<_>>(), [1, 0, 1, 1]);
    assert_eq!((pages[1].more, pages[2].more, pages[3].more), (false, true, false));
    assert_eq!(txn.range_many(&[], Serializable).await, Ok(Vec::new()));
    // What was read conflicts, and nothing else: c1 lies beyond the limit.
    txn.set(b"mine", b"");
    put(engine, &[(b"c1", b"new")]).await;
    txn.commit().await.unwrap();
    for key in [b"a2", b"x3", b"c2", b"b9"] {
        let mut txn = engine.begin();
        txn.range_many(&reads, Serializable).await.unwrap();
        txn.set(b"mine", b"");
        put(engine, &[(key, b"new")]).await;
        expect_code(txn.commit().await, ErrorCode::KvConflict);
    }
}

async fn acknowledged_is_visible<E: KvEngine>(engine: &E) {
    let mut before = 0;
    for round in 0..20u8 {
        let mut txn = engine.begin();
        txn.set(b"k", &[round]);
        let committed = txn.commit().await.unwrap();
        let mut txn = engine.begin();
        let version = txn.read_version().await.unwrap();
        assert!(version >= committed.version, "a read version older than an acknowledged commit");
        assert!(committed.version > before, "versions of successive commits rise");
        assert_eq!(txn.get(b"k", Snapshot).await, Ok(Some(vec![round])));
        before = committed.version;
    }
    let mut txn = engine.begin();
    txn.get(b"k", Serializable).await.unwrap();
    let read = txn.commit().await.unwrap();
    assert_eq!(read.versionstamp, None, "a transaction that wrote nothing has no stamp");
}

async fn ranges<E: KvEngine>(engine: &E) {
    put(engine, &[(b"a", b"1"), (b"b", b"2"), (b"ba", b"3"), (b"c", b""), (b"", b"0")]).await;
    let mut txn = engine.begin();
    let all = KeyRange::all();
    let page = txn.range(&all, 3, Direction::Forward, Snapshot).await.unwrap();
    let of = |keys: &[&[u8]]| keys.iter().map(|key| key.to_vec()).collect::<Vec<_>>();
    let keys_of = |page: &RangePage| page.pairs.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
    assert_eq!((keys_of(&page), page.more), (of(&[b"", b"a", b"b"]), true));
    let rest = all.after(b"b", Direction::Forward);
    let page = txn.range(&rest, 9, Direction::Forward, Snapshot).await.unwrap();
    assert_eq!((keys_of(&page), page.more), (of(&[b"ba", b"c"]), false));
    let page = txn.range(&all, 2, Direction::Reverse, Snapshot).await.unwrap();
    assert_eq!((keys_of(&page), page.more), (of(&[b"c", b"ba"]), true));
    let rest = all.after(b"ba", Direction::Reverse);
    let page = txn.range(&rest, 9, Direction::Reverse, Snapshot).await.unwrap();
    assert_eq!((keys_of(&page), page.more), (of(&[b"b", b"a", b""]), false));
    let page = txn.range(&KeyRange::prefix(b"b"), 9, Direction::Forward, Snapshot).await.unwrap();
    assert_eq!(page.pairs, [(b"b".to_vec(), b"2".to_vec()), (b"ba".to_vec(), b"3".to_vec())]);
    let empty = txn.range(&KeyRange::new(*b"b", *b"b"), 9, Direction::Forward, Snapshot).await.unwrap();
    assert_eq!(empty, RangePage::default());
}

async fn long_ranges_come_in_pages<E: KvEngine>(engine: &E) {
    // More bytes than any page has, so that engines have to cut by themselves.
    let value = vec![7; 90_000];
    for tens in 0..4u8 {
        let mut txn = engine.begin();
        (0..10).for_each(|one| txn.set(&[tens, one], &value));
        txn.commit().await.unwrap();
    }
    for direction in [Direction::Forward, Direction::Reverse] {
        let mut txn = engine.begin();
        let mut rest = KeyRange::all();
        let mut found = Vec::new();
        loop {
            let page = txn.range(&rest, usize::MAX, direction, Snapshot).await.unwrap();
            assert!(!page.pairs.is_empty() || !page.more, "an empty page that says more");
            found.extend(page.pairs);
            match found.last() {
                Some((last, _)) if page.more => rest = rest.after(last, direction),
                _ => break,
            }
        }
        assert_eq!(found.len(), 40);
        assert!(found.iter().all(|(_, found)| *found == value));
        if direction == Direction::Reverse {
            found.reverse();
        }
        assert!(found.is_sorted());
    }
    let keys: Vec<[u8; 2]> = (0..40).map(|number| [number / 10, number % 10]).collect();
    let values = engine.begin().get_many(&keys, Snapshot).await.unwrap();
    assert_eq!(values.len(), 40);
    assert!(values.into_iter().all(|found| found.as_ref() == Some(&value)));
}

async fn own_writes<E: KvEngine>(engine: &E) {
    put(engine, &[(b"old", b"1"), (b"gone", b"1"), (b"n", &[5])]).await;
    let mut txn = engine.begin();
    txn.set(b"new", b"2");
    txn.clear(b"gone");
    txn.atomic(Atomic::Add, b"n", &[3]);
    txn.atomic(Atomic::Max, b"m", &[4]);
    txn.set(b"old", b"2");
    let keys: [&[u8]; 6] = [b"new", b"gone", b"n", b"m", b"old", b"never"];
    let found = txn.get_many(&keys, Serializable).await.unwrap();
    let expected = [Some(b"2".to_vec()), None, Some(vec![8]), Some(vec![4]), Some(b"2".to_vec()), None];
    assert_eq!(found, expected);
    assert_eq!(get(engine, b"new").await, None, "nobody else sees what is not committed");
    txn.commit().await.unwrap();
    assert_eq!(engine.begin().get_many(&keys, Snapshot).await.unwrap(), expected);
}

async fn own_writes_in_ranges<E: KvEngine>(engine: &E) {
    put(engine, &[(b"a", b"1"), (b"b", b"1"), (b"c", b"1"), (b"d", b"1"), (b"e", b"1")]).await;
    let mut txn = engine.begin();
    txn.clear_range(&KeyRange::new(*b"b", *b"d"));
    txn.set(b"c", b"2");
    txn.set(b"cc", b"2");
    txn.clear(b"e");
    txn.atomic(Atomic::Add, b"d", &[1]);
    txn.atomic(Atomic::Add, b"z", &[1]);
    let expected =
        [(b"a".as_slice(), b"1".as_slice()), (b"c", b"2"), (b"cc", b"2"), (b"d", b"2"), (b"z", &[1])];
    let expected: Vec<Pair> = expected.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
    for limit in 1..=6 {
        let forward = pages(&mut txn, limit, Direction::Forward).await;
        assert_eq!(forward, expected, "limit {limit}");
        let mut reverse = pages(&mut txn, limit, Direction::Reverse).await;
        reverse.reverse();
        assert_eq!(reverse, expected, "limit {limit}, in reverse");
    }
    txn.commit().await.unwrap();
    assert_eq!(pages(&mut engine.begin(), 100, Direction::Forward).await, expected);
}

/// Everything, page by page.
async fn pages<T: Transaction>(txn: &mut T, limit: usize, direction: Direction) -> Vec<Pair> {
    let mut rest = KeyRange::all();
    let mut found: Vec<Pair> = Vec::new();
    loop {
        let page = txn.range(&rest, limit, direction, Snapshot).await.unwrap();
        assert!(page.pairs.len() <= limit);
        found.extend(page.pairs);
        match found.last() {
            Some((last, _)) if page.more => rest = rest.after(last, direction),
            _ => return found,
        }
    }
}

async fn own_clears_hide_pages<E: KvEngine>(engine: &E) {
    let mut txn = engine.begin();
    (0..200u8).for_each(|key| txn.set(&[key], b"v"));
    txn.commit().await.unwrap();
    let mut txn = engine.begin();
    txn.clear_range(&KeyRange::new([10], [190]));
    for direction in [Direction::Forward, Direction::Reverse] {
        let middle = KeyRange::new([10], [191]);
        let page = txn.range(&middle, 7, direction, Snapshot).await.unwrap();
        assert_eq!(page.pairs, [(vec![190], b"v".to_vec())]);
    }
    let hidden = txn.range(&KeyRange::new([10], [190]), 7, Direction::Forward, Snapshot).await.unwrap();
    assert_eq!(hidden, RangePage::default());
}

async fn stamped_places_are_unreadable<E: KvEngine>(engine: &E) {
    let mut txn = engine.begin();
    txn.set_versionstamped_value(b"v", b"", b"");
    expect_code(txn.get(b"v", Snapshot).await, ErrorCode::KvUnreadable);
    assert_eq!(txn.get(b"w", Snapshot).await, Ok(None));
    let mut txn = engine.begin();
    txn.set_versionstamped_key(b"k", b"", b"1");
    let range = KeyRange::prefix(b"k");
    expect_code(txn.range(&range, 9, Direction::Forward, Snapshot).await, ErrorCode::KvUnreadable);
}
