//! Chains of three, each replica on a shard of its own.

use crate::harness::*;
use corefs_wire::ErrorCode;
use corefs_wire::data::{Update, UpdateKind};
use std::time::Duration;

const LAST: At = At { chain: 0, replica: 2 };
const MIDDLE: At = At { chain: 0, replica: 1 };

#[test]
fn three_copies_are_written_and_each_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), THREE);
    let messages = [1, 2, 3].map(|node| cluster.counter(node, "cross_core_messages"));
    with_client(&cluster, async |client| {
        for index in 0..16 {
            let bytes = pattern(index.into(), 10_000);
            let reply = client.write(HEAD, chunk(1, index), 77, &bytes).await.unwrap();
            assert_eq!((reply.version.get(), reply.chunk_length.get()), (1, 10_077));
            for replica in 0..3 {
                let at = At { replica, ..HEAD };
                let found = client.read_settled(at, chunk(1, index), 0, CHUNK).await.unwrap();
                assert!(found.data[77..10_077] == bytes, "replica {replica}");
            }
        }
        client.truncate(HEAD, chunk(1, 0), 5000).await.unwrap();
        client.remove(HEAD, chunk(1, 1)).await.unwrap();
        for replica in 0..3 {
            let at = At { replica, ..HEAD };
            assert_eq!(client.read_settled(at, chunk(1, 0), 0, CHUNK).await.unwrap().length, 5000);
            let gone = client.read_settled(at, chunk(1, 1), 0, CHUNK).await.unwrap_err();
            assert_eq!(gone.code, ErrorCode::NoSuchChunk);
            assert_eq!(client.list(at, 1).await.unwrap().len(), 15);
        }
        // Only the head takes clients' updates.
        let refused = client.write(MIDDLE, chunk(1, 0), 0, b"x").await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::NotServing);
    });
    for (node, before) in (1..=3).zip(messages) {
        let more = cluster.counter(node, "cross_core_messages") - before;
        assert_eq!(more, 1, "only our own question has come from another core");
    }
}

#[test]
fn many_writers_of_one_chunk_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), THREE);
    with_client(&cluster, async |client| {
        let writes = (0..40u32).map(|n| async move {
            let mut update = client.update(HEAD, chunk(1, 0), UpdateKind::Write, n * 1000, 1000);
            update.channel = n.into();
            client.send(HEAD, update, &pattern(n.into(), 1000)).await
        });
        let mut versions = Vec::new();
        for write in join_all(writes).await {
            versions.push(write.unwrap().version.get());
        }
        versions.sort_unstable();
        assert!(versions.into_iter().eq(1..=40));
        for replica in 0..3 {
            let found = client.read_settled(At { replica, ..HEAD }, chunk(1, 0), 0, CHUNK).await.unwrap();
            for n in 0..40usize {
                assert!(found.data[n * 1000..][..1000] == pattern(n as u64, 1000), "write {n} at {replica}");
            }
        }
    });
}

async fn join_all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    let mut results: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        let mut all = true;
        for (future, result) in futures.iter_mut().zip(&mut results) {
            if result.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *result = Some(value),
                    std::task::Poll::Pending => all = false,
                }
            }
        }
        if all { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    results.into_iter().flatten().collect()
}

#[test]
fn a_pending_update_is_driven_on_when_its_successor_is_back() {
    for dead in [2, 3] {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::start(dir.path(), THREE);
        let bytes = pattern(4, 30_000);
        with_client(&cluster, async |client| {
            client.write(HEAD, chunk(1, 0), 0, &bytes).await.unwrap();
        });
        cluster.kill(dead);
        let newer = pattern(5, 20_000);
        let unanswered = with_client(&cluster, async |client| {
            let update = client.update(HEAD, chunk(1, 0), UpdateKind::Write, 100, 20_000);
            let write = client.node.within(Duration::from_millis(300), client.send(HEAD, update, &newer));
            assert!(write.await.is_err(), "nobody acknowledges what isn't everywhere");
            // It may not be shown either, nor may the old version: the tail may have shown the new one.
            let read = client.read(HEAD, chunk(1, 0), 0, 4096).await;
            assert_eq!(read.unwrap_err().code, ErrorCode::Pending);
            update
        });
        // The head forgets what it had in memory, too.
        cluster.kill(1);
        cluster.restart(1).unwrap();
        cluster.restart(dead).unwrap();
        with_client(&cluster, async |client| {
            let mut expected = bytes.clone();
            expected[100..20_100].copy_from_slice(&newer);
            for replica in 0..3 {
                let found = client.read_settled(At { replica, ..HEAD }, chunk(1, 0), 0, CHUNK).await.unwrap();
                assert!(found.data[..30_000] == expected && found.version == 2, "replica {replica}");
            }
            // The retry of the write that nobody answered is recognised.
            let retry = Update { chain_version: client.chain_version(HEAD).into(), ..unanswered };
            assert_eq!(client.send(HEAD, retry, &newer).await.unwrap().version.get(), 2);
        });
    }
}

#[test]
fn a_refusal_behind_undoes_the_update_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), THREE);
    with_client(&cluster, async |client| {
        client.write(HEAD, chunk(1, 0), 0, &[1; 8192]).await.unwrap();
        // The tail alone refuses: it is full of what only it was sent.
        let only_there = async |index, kind, version, bytes: &[u8]| {
            let update = client.update(LAST, chunk(9, index), kind, 0, bytes.len() as u32);
            client.send(LAST, Client::forwarded(update, version), bytes).await
        };
        let mut index = 0;
        while only_there(index, UpdateKind::Write, 1, &[3; CHUNK as usize]).await.is_ok() {
            index += 1;
        }
        let refused = client.write(HEAD, chunk(1, 0), 8192, &[2; CHUNK as usize - 8192]).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::NoSpace);
        for replica in 0..3 {
            let found = client.read_settled(At { replica, ..HEAD }, chunk(1, 0), 0, CHUNK).await.unwrap();
            assert_eq!((found.version, found.data), (1, vec![1; 8192]), "replica {replica}");
        }
        for index in 0..4 {
            only_there(index, UpdateKind::Remove, 2, &[]).await.unwrap();
        }
        let reply = client.write(HEAD, chunk(1, 0), 0, &[2; 8192]).await.unwrap();
        assert_eq!(reply.version.get(), 2);
        assert_eq!(client.read_settled(LAST, chunk(1, 0), 0, 4096).await.unwrap().data, [2; 4096]);
    });
}

/// Flips a bit of every block of the file that is equal to `block`.
pub fn corrupt(path: &std::path::Path, block: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let bytes = std::fs::read(path).unwrap();
    let mut found = 0;
    for (index, candidate) in bytes.chunks(4096).enumerate() {
        if candidate == block {
            file.write_all_at(&[candidate[5] ^ 1], index as u64 * 4096 + 5).unwrap();
            found += 1;
        }
    }
    file.sync_all().unwrap();
    assert!(found > 0, "no such block in {}", path.display());
}
