//! Damage and nonsense.

use crate::chains::corrupt;
use crate::harness::*;
use corefs_wire::frame::{HEADER, Header, Kind};
use corefs_wire::limits::BLOCK;
use corefs_wire::{Error, ErrorCode};
use std::io::{Read, Write};
use std::net::TcpStream;
use zerocopy::IntoBytes;

#[test]
fn a_damaged_block_fails_its_own_read_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), SMALL);
    with_client(&cluster, async |client| {
        let bytes = pattern(8, 4 * BLOCK);
        client.write(HEAD, chunk(1, 0), 0, &bytes).await.unwrap();
        corrupt(&cluster.disk_path(1), &bytes[BLOCK..2 * BLOCK]);
        let read = async |block: u32| client.read(HEAD, chunk(1, 0), block * 4096, 4096).await;
        assert_eq!(read(1).await.unwrap_err().code, ErrorCode::Corrupt);
        for block in [0, 2, 3] {
            let at = block as usize * BLOCK;
            assert!(read(block).await.unwrap().data == bytes[at..at + BLOCK]);
        }
        assert_eq!(client.read(HEAD, chunk(1, 0), 0, 16384).await.unwrap_err().code, ErrorCode::Corrupt);
    });
    assert_eq!(cluster.counter(1, "corrupt_blocks"), 2);
}

#[test]
fn a_damaged_superblock_or_a_foreign_store_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), SMALL);
    cluster.stop(1);
    let path = cluster.disk_path(1);
    let whole = std::fs::read(&path).unwrap();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
    };
    let slice = SMALL.slice_bytes as usize;
    with(&|bytes| bytes[100] ^= 1);
    cluster.restart(1).expect("the other copy is enough");
    cluster.stop(1);
    with(&|bytes| {
        bytes[100] ^= 1;
        bytes[slice - BLOCK + 100] ^= 1;
    });
    let error = cluster.restart(1).unwrap_err();
    assert_eq!(error.code, ErrorCode::BadFormat);
    assert!(error.message.contains("slice-0") && error.message.contains("disk-1"), "{error}");
    with(&|bytes| bytes.copy_within(slice.., 0));
    assert_eq!(cluster.restart(1).unwrap_err().code, ErrorCode::WrongCluster);
    with(&|_| ());
    cluster.restart(1).unwrap();
}

/// Another shard on the disk was told that its flush failed: what this one has written may be lost with it, and its own flush, which
/// succeeds, proves nothing.
#[test]
fn a_flush_that_failed_in_another_shard_ends_the_slices_of_the_disk() {
    for idle in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let cluster = Cluster::start(dir.path(), SMALL);
        let dead = || cluster.report(1).slices.iter().filter(|slice| slice.dead).count();
        with_client(&cluster, async |client| {
            client.write(HEAD, chunk(1, 0), 0, &[3; 4096]).await.unwrap();
        });
        assert_eq!(dead(), 0);
        cluster.shards[0].as_ref().unwrap().fate.seal();
        if !idle {
            with_client(&cluster, async |client| {
                let written = client.write(HEAD, chunk(1, 0), 0, &[4; 4096]).await;
                assert_eq!(written.unwrap_err().code, ErrorCode::SliceDead);
            });
        }
        assert_eq!(dead(), 2, "idle: {idle}");
    }
}

/// Bytes that nobody in his right mind would send; the shard lives and others don't notice.
#[test]
fn hostile_bytes_end_their_own_connection_only() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), SMALL);
    let address = cluster.shards[0].as_ref().unwrap().address.clone();
    with_client(&cluster, async |client| {
        client.write(HEAD, chunk(1, 0), 0, &[3; 4096]).await.unwrap();
        for seed in 0..200 {
            let mut stream = TcpStream::connect(&address).unwrap();
            let mut bytes = pattern(seed, 1 + seed as usize * 7 % 300);
            if seed % 3 == 0 {
                // A good header before the handshake, with whatever behind it.
                let header = Header::new(Kind::Request, 1, seed, 0, &bytes, 0);
                bytes.splice(0..0, header.as_bytes().iter().copied());
            }
            let _ = stream.write_all(&bytes);
            if seed % 2 == 0 {
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let mut reply = Vec::new();
                let _ = stream.read_to_end(&mut reply);
                assert!(reply.len() < 4 * HEADER + 4096);
            }
            if seed % 20 == 0 {
                assert_eq!(client.read(HEAD, chunk(1, 0), 0, 4096).await.unwrap().data, [3; 4096]);
            }
        }
        // After the handshake: bodies that make no sense.
        for op in [1, 2, 3, 99, 0x0401] {
            for seed in 0..20 {
                // No length that a body of these operations could have.
                let body = pattern(seed, seed as usize * 13 + 1);
                let address = client.address(HEAD);
                let payload = (seed % 2 == 0).then(|| pattern(seed, 5000).into());
                let result =
                    client.node.call(&address, op, &body, payload, std::time::Duration::from_secs(5)).await;
                let refused = [
                    ErrorCode::BadFrame,
                    ErrorCode::UnknownOperation,
                    ErrorCode::InvalidArgument,
                    ErrorCode::ConnectionLost,
                ];
                let error: Error = result.unwrap_err();
                assert!(refused.contains(&error.code), "{error}");
            }
        }
        assert_eq!(client.read(HEAD, chunk(1, 0), 0, 4096).await.unwrap().data, [3; 4096]);
    });
}
