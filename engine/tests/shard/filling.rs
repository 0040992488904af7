//! A replica that was away is filled by the one before it, while clients go on writing.

use crate::chains::corrupt;
use crate::harness::*;
use corefs_wire::ErrorCode;
use corefs_wire::control::mgmtd::TargetState;
use corefs_wire::data::{Update, UpdateKind};

const LAST: At = At { chain: 0, replica: 2 };

/// Takes a node out of its chains, or lets it be filled.
fn put(cluster: &mut Cluster, node: u32, state: TargetState) {
    cluster.states.insert(node, state);
    cluster.publish();
}

#[test]
fn what_was_missed_is_copied_and_what_comes_meanwhile_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), THREE);
    let (old, new) = (pattern(1, 50_000), pattern(2, 40_000));
    with_client(&cluster, async |client| {
        for index in 0..20 {
            client.write(HEAD, chunk(1, index), 0, &old).await.unwrap();
        }
    });
    cluster.kill(3);
    put(&mut cluster, 3, TargetState::Offline);
    let tagged = with_client(&cluster, async |client| {
        client.write(HEAD, chunk(1, 0), 10, &new).await.unwrap();
        client.truncate(HEAD, chunk(1, 1), 5000).await.unwrap();
        client.remove(HEAD, chunk(1, 2)).await.unwrap();
        client.write(HEAD, chunk(2, 7), 0, &new).await.unwrap();
        let update = client.update(HEAD, chunk(1, 3), UpdateKind::Write, 100, 40_000);
        client.send(HEAD, update, &new).await.unwrap();
        update
    });
    cluster.states.insert(3, TargetState::Syncing);
    cluster.restart(3).unwrap();
    with_client(&cluster, async |client| {
        // It gets these as any other does, whole where it lacks what they build on.
        for index in [0, 4, 19] {
            client.write(HEAD, chunk(1, index), 20_000, &pattern(3, 1000)).await.unwrap();
        }
        let read = client.read(LAST, chunk(1, 4), 0, 4096).await;
        assert_eq!(read.unwrap_err().code, ErrorCode::NotServing);
    });
    cluster.wait_until_filled(3);
    let sent = cluster.report(2).targets.iter().map(|target| target.sent_chunks).sum::<u64>();
    assert!((3..15).contains(&sent), "{sent} chunks were sent, though most were the same");
    put(&mut cluster, 3, TargetState::Serving);
    with_client(&cluster, async |client| {
        for replica in 0..3 {
            let at = At { replica, ..HEAD };
            let mut expected = old.clone();
            expected[10..40_010].copy_from_slice(&new);
            expected[20_000..21_000].copy_from_slice(&pattern(3, 1000));
            let found = client.read_settled(at, chunk(1, 0), 0, CHUNK).await.unwrap();
            assert!(found.data[..50_000] == expected && found.version == 3, "replica {replica}");
            assert_eq!(client.read_settled(at, chunk(1, 1), 0, CHUNK).await.unwrap().length, 5000);
            let gone = client.read_settled(at, chunk(1, 2), 0, CHUNK).await.unwrap_err();
            assert_eq!(gone.code, ErrorCode::NoSuchChunk);
            let found = client.read_settled(at, chunk(2, 7), 0, CHUNK).await.unwrap();
            assert!(found.data[..40_000] == new, "replica {replica}");
        }
    });
    // It alone is left, and knows which updates were done.
    cluster.kill(1);
    cluster.kill(2);
    cluster.states = [(1, TargetState::Offline), (2, TargetState::Offline)].into();
    cluster.publish();
    with_client(&cluster, async |client| {
        let target = Cluster::target(0, 2).0.into();
        let retry = Update { chain_version: client.chain_version(LAST).into(), target, ..tagged };
        assert_eq!(client.send(LAST, retry, &new).await.unwrap().version.get(), 2);
        let next =
            Update { chunk_size: CHUNK.into(), ..client.update(LAST, chunk(1, 2), UpdateKind::Write, 0, 9) };
        let reply = client.send(LAST, next, b"versions ").await;
        assert_eq!(reply.unwrap().version.get(), 3, "a removed chunk's versions go on");
    });
}

#[test]
fn a_damaged_block_of_a_replica_that_is_filled_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), THREE);
    with_client(&cluster, async |client| {
        client.write(HEAD, chunk(1, 0), 0, &[1; 8192]).await.unwrap();
    });
    put(&mut cluster, 3, TargetState::Syncing);
    corrupt(&cluster.disk_path(3), &[1; 4096]);
    with_client(&cluster, async |client| {
        // It must keep a part of the damaged block, and can't: it is given the chunk anew.
        client.write(HEAD, chunk(1, 0), 10, b"partial").await.unwrap();
    });
    cluster.wait_until_filled(3);
    put(&mut cluster, 3, TargetState::Serving);
    with_client(&cluster, async |client| {
        let found = client.read_settled(LAST, chunk(1, 0), 0, 4096).await.unwrap();
        assert!(found.data[..10] == [1; 10] && found.data[10..17] == *b"partial");
    });
}

#[test]
fn a_chunk_larger_than_a_frame_goes_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape { slice_bytes: 64 << 20, slices: 1, chains: 1, nodes: 2, replicas: 2 };
    let mut cluster = Cluster::start(dir.path(), shape);
    cluster.kill(2);
    put(&mut cluster, 2, TargetState::Offline);
    let frame = 1 << 20;
    let large = pattern(7, 3 * frame + 5000);
    with_client(&cluster, async |client| {
        for (part, bytes) in large.chunks(frame).enumerate() {
            let mut update = client.update(
                HEAD,
                chunk(1, 0),
                UpdateKind::Write,
                (part * frame) as u32,
                bytes.len() as u32,
            );
            update.chunk_size = (4u32 << 20).into();
            client.send(HEAD, update, bytes).await.unwrap();
        }
    });
    cluster.states.insert(2, TargetState::Syncing);
    cluster.restart(2).unwrap();
    cluster.wait_until_filled(2);
    put(&mut cluster, 2, TargetState::Serving);
    with_client(&cluster, async |client| {
        let at = At { replica: 1, ..HEAD };
        for part in 0..3 {
            let found =
                client.read_settled(at, chunk(1, 0), (part * frame) as u32, frame as u32).await.unwrap();
            assert!(found.data == large[part * frame..][..frame] && found.length as usize == large.len());
        }
    });
}

/// Bytes in use on a node, once nothing is left to free.
fn used(cluster: &Cluster, node: u32) -> u64 {
    cluster.report(node).slices.iter().map(|slice| slice.used).sum()
}

fn wait_until_used(cluster: &Cluster, node: u32, bytes: u64) {
    let began = std::time::Instant::now();
    while used(cluster, node) != bytes {
        assert!(began.elapsed() < PATIENCE, "{} bytes are used, not {bytes}", used(cluster, node));
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_target_that_left_its_chain_goes_with_its_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), THREE);
    let write = async |client: &Client, index| {
        client.write(HEAD, chunk(1, index), 0, &pattern(1, 50_000)).await.unwrap();
    };
    let empty = used(&cluster, 3);
    with_client(&cluster, async |client| write(client, 0).await);
    assert!(used(&cluster, 3) > empty);
    // While it runs, and while a client still believes in it.
    let before = cluster.routing();
    cluster.left.insert(Cluster::target(0, 2));
    cluster.publish();
    wait_until_used(&cluster, 3, empty);
    let named = |cluster: &Cluster, node| {
        cluster.report(node).targets.iter().any(|target| target.target == Cluster::target(0, 2).0)
    };
    assert!(!named(&cluster, 3) && before.targets.contains_key(&Cluster::target(0, 2)));
    with_client(&cluster, async |client| {
        write(client, 1).await;
        let entry = corefs_wire::data::ReadEntry {
            target: Cluster::target(0, 2).0.into(),
            ..client.entry(HEAD, chunk(1, 0), 0, 4096)
        };
        // By way of a target that is still there, on the same node.
        let gone = client.read_batch(At { chain: 1, replica: 1 }, &[entry]).await.remove(0);
        assert_eq!(gone.unwrap_err().code, ErrorCode::WrongShard);
    });
    // While it is away: the next start removes it, and the one after finds nothing.
    cluster.kill(2);
    cluster.left.insert(Cluster::target(0, 1));
    cluster.publish();
    cluster.restart(2).unwrap();
    wait_until_used(&cluster, 2, empty);
    cluster.stop(2);
    cluster.restart(2).unwrap();
    assert!(used(&cluster, 2) == empty && !named(&cluster, 2));
    with_client(&cluster, async |client| write(client, 2).await);
}
