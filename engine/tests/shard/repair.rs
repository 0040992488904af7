//! Damage of one replica is found by reads, writes, fills and the scrub, and healed from another.

use crate::harness::*;
use corefs_engine::mesh::ShardMessage;
use corefs_engine::targets::Upkeep;
use corefs_wire::ErrorCode;
use corefs_wire::control::mgmtd::TargetState;
use corefs_wire::data::UpdateKind;
use corefs_wire::limits::BLOCK;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const MIDDLE: At = At { chain: 0, replica: 1 };
const LAST: At = At { chain: 0, replica: 2 };

/// Where a node's disk has a block: it must be there exactly once.
fn find(cluster: &Cluster, node: u32, block: &[u8]) -> u64 {
    let bytes = std::fs::read(cluster.disk_path(node)).unwrap();
    let found: Vec<usize> =
        bytes.chunks(BLOCK).enumerate().filter(|(_, have)| *have == block).map(|(index, _)| index).collect();
    assert_eq!(found.len(), 1, "the block is at {found:?}");
    (found[0] * BLOCK) as u64
}

fn put(cluster: &Cluster, node: u32, offset: u64, bytes: &[u8]) {
    let file = std::fs::OpenOptions::new().write(true).open(cluster.disk_path(node)).unwrap();
    file.write_all_at(bytes, offset).unwrap();
    file.sync_all().unwrap();
}

/// Flips a bit of a node's copy of a block; where.
fn flip(cluster: &Cluster, node: u32, block: &[u8]) -> u64 {
    let at = find(cluster, node, block);
    put(cluster, node, at + 77, &[block[77] ^ 4]);
    at
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Verifies everything on a node; what came of it.
fn scrub(cluster: &Cluster, node: u32) -> Upkeep {
    let before = cluster.report(node).upkeep.asked;
    cluster.shards[node as usize - 1].as_ref().unwrap().handle.send(ShardMessage::Scrub { rate: 0 }).unwrap();
    wait_until("the scrub ends", || cluster.report(node).upkeep.answered > before);
    cluster.report(node).upkeep
}

/// (damaged, repaired, unrepaired) blocks of a node.
fn counts(cluster: &Cluster, node: u32) -> (u64, u64, u64) {
    let upkeep = cluster.report(node).upkeep;
    (upkeep.damaged, upkeep.repaired, upkeep.unrepaired)
}

#[test]
fn a_read_that_meets_damage_heals_it() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), THREE);
    let bytes = pattern(1, 8 * BLOCK);
    with_client(&cluster, async |client| {
        client.write(HEAD, chunk(1, 0), 0, &bytes).await.unwrap();
        client.read_settled(MIDDLE, chunk(1, 0), 0, CHUNK).await.unwrap();
        let at = flip(&cluster, 2, &bytes[3 * BLOCK..4 * BLOCK]);
        let read = async || client.read(MIDDLE, chunk(1, 0), 0, CHUNK).await;
        assert_eq!(read().await.unwrap_err().code, ErrorCode::Corrupt);
        wait_until("it is repaired", || counts(&cluster, 2) == (1, 1, 0));
        assert!(read().await.unwrap().data == bytes);
        assert_eq!(find(&cluster, 2, &bytes[3 * BLOCK..4 * BLOCK]), at, "in its old place");
    });
}

#[test]
fn a_scrub_finds_flips_torn_and_misdirected_writes() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), THREE);
    let files: Vec<Vec<u8>> = (0..20).map(|seed| pattern(seed, CHUNK as usize)).collect();
    let block = |file: usize, at: usize| &files[file][at * BLOCK..][..BLOCK];
    with_client(&cluster, async |client| {
        for (index, bytes) in (0..).zip(&files) {
            client.write(HEAD, chunk(1, index), 0, bytes).await.unwrap();
            client.write(At { chain: 1, replica: 0 }, chunk(2, index), 100, &bytes[..5000]).await.unwrap();
            client.truncate(HEAD, chunk(3, index), CHUNK).await.unwrap();
        }
    });
    let injure = |cluster: &Cluster| {
        flip(cluster, 3, block(0, 0));
        flip(cluster, 3, block(0, 15));
        // Torn: half of it is old. Lost: it never came. Misdirected: it came somewhere else.
        put(cluster, 3, find(cluster, 3, block(1, 4)), &[0; BLOCK / 2]);
        put(cluster, 3, find(cluster, 3, block(1, 5)), &[0; BLOCK]);
        put(cluster, 3, find(cluster, 3, block(2, 2)), block(3, 3));
    };
    injure(&cluster);
    let found = scrub(&cluster, 3);
    assert_eq!((found.damaged, found.repaired, found.unrepaired, found.waiting), (5, 5, 0, 0), "{found:?}");
    assert_eq!((found.last.chunks, found.last.bytes), (60, 20 * (u64::from(CHUNK) + 2 * BLOCK as u64)));
    assert_eq!(found.last.bytes, found.last.bytes_total);
    assert_eq!(scrub(&cluster, 3).damaged, 5, "nothing is left to be found");
    // The same on a node that was away meanwhile.
    cluster.stop(3);
    injure(&cluster);
    cluster.restart(3).unwrap();
    let found = scrub(&cluster, 3);
    assert_eq!((found.damaged, found.repaired, found.unrepaired), (5, 5, 0), "{found:?}");
    with_client(&cluster, async |client| {
        for (index, bytes) in (0..).zip(&files) {
            assert!(client.read_settled(LAST, chunk(1, index), 0, CHUNK).await.unwrap().data == *bytes);
        }
    });
    for node in 1..=2 {
        assert_eq!(scrub(&cluster, node).damaged, 0);
    }
}

#[test]
fn a_write_that_needs_a_damaged_block_waits_for_its_repair() {
    for node in 1..=3 {
        let dir = tempfile::tempdir().unwrap();
        let cluster = Cluster::start(dir.path(), THREE);
        let mut bytes = pattern(2, 4 * BLOCK);
        with_client(&cluster, async |client| {
            client.write(HEAD, chunk(1, 0), 0, &bytes).await.unwrap();
            client.read_settled(HEAD, chunk(1, 0), 0, CHUNK).await.unwrap();
            flip(&cluster, node, &bytes[..BLOCK]);
            flip(&cluster, node, &bytes[2 * BLOCK..3 * BLOCK]);
            // Both ends of it lie within damaged blocks. Behind the head the others have it pending already.
            let written = client.write(HEAD, chunk(1, 0), 100, &[7; 2 * BLOCK]).await.unwrap();
            assert_eq!(written.version.get(), 2);
            bytes[100..100 + 2 * BLOCK].fill(7);
            for replica in 0..3 {
                let found = client.read_settled(At { replica, ..HEAD }, chunk(1, 0), 0, CHUNK).await.unwrap();
                assert!(found.data == bytes, "replica {replica} of those that node {node} damaged");
            }
        });
        wait_until("nothing is left", || cluster.report(node).upkeep.waiting == 0);
        let (damaged, repaired, unrepaired) = counts(&cluster, node);
        assert!(damaged == repaired && damaged >= 1 && unrepaired == 0, "{damaged} {repaired} {unrepaired}");
    }
}

#[test]
fn what_nobody_has_is_refused_everywhere_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), THREE);
    let bytes = pattern(3, 2 * BLOCK);
    with_client(&cluster, async |client| {
        client.write(HEAD, chunk(1, 0), 0, &bytes).await.unwrap();
        client.read_settled(HEAD, chunk(1, 0), 0, CHUNK).await.unwrap();
        let places = [1, 2, 3].map(|node| flip(&cluster, node, &bytes[..BLOCK]));
        let refused = client.write(HEAD, chunk(1, 0), 10, b"partial").await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Corrupt);
        for node in 1..=3 {
            let found = scrub(&cluster, node);
            assert_eq!((found.damaged, found.repaired, found.unrepaired), (1, 0, 1), "node {node}");
            assert_eq!(found.lost.iter().map(|(_, place, _)| place.chunk).collect::<Vec<_>>(), [chunk(1, 0)]);
            let read = client.read_settled(At { replica: node - 1, ..HEAD }, chunk(1, 0), 0, 8192).await;
            assert_eq!(read.unwrap_err().code, ErrorCode::Corrupt);
        }
        // One good copy heals all of them.
        put(&cluster, 2, places[1] + 77, &bytes[77..78]);
        for node in 1..=3 {
            let found = scrub(&cluster, node);
            assert_eq!((found.unrepaired, found.lost.len()), (0, 0), "node {node}");
        }
        for replica in 0..3 {
            let found = client.read(At { replica, ..HEAD }, chunk(1, 0), 0, 8192).await.unwrap();
            assert!(found.data == bytes && found.version == 1, "replica {replica}");
        }
    });
}

#[test]
fn replicas_with_different_damage_heal_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), THREE);
    let bytes = pattern(4, 6 * BLOCK);
    with_client(&cluster, async |client| {
        client.write(HEAD, chunk(1, 0), 0, &bytes).await.unwrap();
        client.read_settled(HEAD, chunk(1, 0), 0, CHUNK).await.unwrap();
    });
    // Side by side, so that they are asked for together; everybody lacks something.
    for (node, blocks) in [(1, [1, 2]), (2, [2, 3]), (3, [3, 1])] {
        for block in blocks {
            flip(&cluster, node, &bytes[block * BLOCK..][..BLOCK]);
        }
    }
    for node in 1..=3 {
        let found = scrub(&cluster, node);
        assert_eq!((found.damaged, found.repaired, found.unrepaired), (2, 2, 0), "node {node}");
    }
}

#[test]
fn without_another_replica_damage_stays_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), SMALL);
    let bytes = pattern(5, 2 * BLOCK);
    with_client(&cluster, async |client| {
        client.write(HEAD, chunk(1, 0), 0, &bytes).await.unwrap();
        flip(&cluster, 1, &bytes[..BLOCK]);
        let refused = client.write(HEAD, chunk(1, 0), 10, b"partial").await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Corrupt);
        assert_eq!(scrub(&cluster, 1).unrepaired, 1);
        assert_eq!(counts(&cluster, 1), (1, 0, 1));
        // A whole block needs nothing of the old one, and then nothing is lost any more.
        client.write(HEAD, chunk(1, 0), 0, &bytes).await.unwrap();
        wait_until("it is noticed", || counts(&cluster, 1) == (1, 0, 0));
    });
}

#[test]
fn a_pending_update_that_was_damaged_is_read_from_whoever_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), THREE);
    let (old, new) = (pattern(6, 4 * BLOCK), pattern(7, 2 * BLOCK));
    with_client(&cluster, async |client| {
        client.write(HEAD, chunk(1, 0), 0, &old).await.unwrap();
    });
    cluster.kill(3);
    with_client(&cluster, async |client| {
        let update = client.update(HEAD, chunk(1, 0), UpdateKind::Write, 0, 2 * BLOCK as u32);
        let write = client.node.within(Duration::from_millis(500), client.send(HEAD, update, &new));
        assert!(write.await.is_err(), "the last replica is away");
    });
    // The middle has it pending, and loses its memory and a block of it.
    cluster.kill(2);
    flip(&cluster, 2, &new[BLOCK..]);
    cluster.restart(2).unwrap();
    cluster.restart(3).unwrap();
    with_client(&cluster, async |client| {
        for replica in 0..3 {
            let found = client.read_settled(At { replica, ..HEAD }, chunk(1, 0), 0, CHUNK).await.unwrap();
            assert!(found.data[..2 * BLOCK] == new && found.data[2 * BLOCK..] == old[2 * BLOCK..]);
            assert_eq!(found.version, 2, "replica {replica}");
        }
    });
    assert_eq!(scrub(&cluster, 2).damaged, 1);
    assert_eq!(counts(&cluster, 2), (1, 1, 0));
}

#[test]
fn a_fill_goes_on_when_the_filler_has_been_healed() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), THREE);
    cluster.kill(3);
    cluster.states.insert(3, TargetState::Offline);
    cluster.publish();
    let bytes = pattern(8, 4 * BLOCK);
    with_client(&cluster, async |client| {
        client.write(HEAD, chunk(1, 0), 0, &bytes).await.unwrap();
        client.read_settled(HEAD, chunk(1, 0), 0, CHUNK).await.unwrap();
    });
    flip(&cluster, 2, &bytes[BLOCK..2 * BLOCK]);
    cluster.states.insert(3, TargetState::Syncing);
    cluster.restart(3).unwrap();
    cluster.wait_until_filled(3);
    assert_eq!(counts(&cluster, 2), (1, 1, 0));
    cluster.states.clear();
    cluster.publish();
    with_client(&cluster, async |client| {
        assert!(client.read_settled(LAST, chunk(1, 0), 0, CHUNK).await.unwrap().data == bytes);
    });
}

#[test]
fn the_background_scrub_needs_no_question() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), THREE);
    let bytes = pattern(9, 4 * BLOCK);
    with_client(&cluster, async |client| {
        client.write(HEAD, chunk(1, 0), 0, &bytes).await.unwrap();
    });
    cluster.stop(3);
    flip(&cluster, 3, &bytes[BLOCK..2 * BLOCK]);
    cluster.scrub_rate = 32 << 20;
    cluster.restart(3).unwrap();
    wait_until("it is found", || counts(&cluster, 3) == (1, 1, 0));
    // The next pass comes later: the shard sleeps.
    let turns = cluster.counter(3, "turns");
    std::thread::sleep(Duration::from_millis(300));
    let more = cluster.counter(3, "turns") - turns;
    assert!(more < 100, "{more} turns of an idle shard");
}

#[test]
fn a_replica_that_serves_alone_is_healed_by_those_that_wait() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), THREE);
    let bytes = pattern(10, 4 * BLOCK);
    with_client(&cluster, async |client| {
        client.write(HEAD, chunk(1, 0), 0, &bytes).await.unwrap();
        client.read_settled(HEAD, chunk(1, 0), 0, CHUNK).await.unwrap();
    });
    cluster.states = [(2, TargetState::Waiting), (3, TargetState::Waiting)].into();
    cluster.publish();
    with_client(&cluster, async |client| {
        let at = flip(&cluster, 1, &bytes[..BLOCK]);
        let read = async || client.read(HEAD, chunk(1, 0), 0, CHUNK).await;
        assert_eq!(read().await.unwrap_err().code, ErrorCode::Corrupt);
        wait_until("it is repaired", || counts(&cluster, 1) == (1, 1, 0));
        assert_eq!(find(&cluster, 1, &bytes[..BLOCK]), at);
    });
}

/// A disk that ends too early gives less than it is asked for, and takes what is written beyond its end.
#[test]
fn blocks_that_cannot_be_read_are_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), THREE);
    let bytes = pattern(11, CHUNK as usize);
    with_client(&cluster, async |client| {
        client.write(HEAD, chunk(1, 0), 0, &bytes).await.unwrap();
        client.read_settled(LAST, chunk(1, 0), 0, CHUNK).await.unwrap();
        let from = find(&cluster, 3, &bytes[2 * BLOCK..3 * BLOCK]);
        let file = std::fs::OpenOptions::new().write(true).open(cluster.disk_path(3)).unwrap();
        file.set_len(from).unwrap();
        let read = async || client.read(LAST, chunk(1, 0), 0, CHUNK).await;
        assert_eq!(read().await.unwrap_err().code, ErrorCode::DiskError);
        wait_until("it is repaired", || counts(&cluster, 3) == (14, 14, 0));
        assert!(read().await.unwrap().data == bytes);
    });
}

#[test]
fn another_version_of_a_block_is_never_taken_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), THREE);
    let (old, new) = (pattern(12, 2 * BLOCK), pattern(13, BLOCK));
    with_client(&cluster, async |client| {
        client.write(HEAD, chunk(1, 0), 0, &old).await.unwrap();
        // The last replica alone gets another version.
        let update = client.update(LAST, chunk(1, 0), UpdateKind::Write, 0, BLOCK as u32);
        client.send(LAST, Client::forwarded(update, 2), &new).await.unwrap();
        let at = flip(&cluster, 3, &new);
        let second = flip(&cluster, 3, &old[BLOCK..]);
        let found = scrub(&cluster, 3);
        assert_eq!(
            (found.damaged, found.repaired, found.unrepaired),
            (2, 1, 1),
            "the other one is the same everywhere"
        );
        assert_eq!(find(&cluster, 3, &old[BLOCK..]), second);
        let mut bad = new.clone();
        bad[77] ^= 4;
        assert_eq!(find(&cluster, 3, &bad), at, "nothing was written there");
        put(&cluster, 3, at, &new);
        assert_eq!(scrub(&cluster, 3).unrepaired, 0);
        let found = client.read(LAST, chunk(1, 0), 0, CHUNK).await.unwrap();
        assert!(found.version == 2 && found.data[..BLOCK] == new && found.data[BLOCK..] == old[BLOCK..]);
    });
}
