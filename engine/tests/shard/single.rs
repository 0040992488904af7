//! One shard, chains of one.

use crate::harness::*;
use corefs_wire::ErrorCode;
use corefs_wire::data::{Prefix, UpdateKind, op};
use corefs_wire::limits::BLOCK;
use zerocopy::IntoBytes;

fn code<T: std::fmt::Debug>(result: corefs_wire::Result<T>) -> Option<ErrorCode> {
    result.err().map(|error| error.code)
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), SMALL);
    with_client(&cluster, async |client| {
        let one = chunk(1, 0);
        assert_eq!(code(client.read(HEAD, one, 0, 4096).await), Some(ErrorCode::NoSuchChunk));
        let bytes = pattern(1, 3 * BLOCK);
        let reply = client.write(HEAD, one, 0, &bytes).await.unwrap();
        assert_eq!((reply.version.get(), reply.chunk_length.get()), (1, 3 * BLOCK as u32));
        let found = client.read(HEAD, one, 0, 3 * BLOCK as u32).await.unwrap();
        assert_eq!((found.version, found.length), (1, 3 * BLOCK as u32));
        assert!(found.data == bytes);
        let middle = client.read(HEAD, one, BLOCK as u32, BLOCK as u32).await.unwrap();
        assert!(middle.data == bytes[BLOCK..2 * BLOCK]);
        // Past the end nothing is sent; the other chain's target is another world.
        let past = client.read(HEAD, one, 3 * BLOCK as u32, BLOCK as u32).await.unwrap();
        assert_eq!(past.data.len(), 0);
        let other = At { chain: 1, replica: 0 };
        assert_eq!(code(client.read(other, one, 0, 4096).await), Some(ErrorCode::NoSuchChunk));
        assert_eq!(client.list(HEAD, 1).await, Ok(vec![(0, 3 * BLOCK as u32)]));
        assert_eq!(client.list(HEAD, 2).await, Ok(vec![]));
    });
}

/// Against a plain vector of bytes.
#[test]
fn unaligned_writes_holes_and_truncation_are_as_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), SMALL);
    with_client(&cluster, async |client| {
        let one = chunk(5, 3);
        let mut model: Vec<u8> = Vec::new();
        let steps: [(u32, usize); 10] = [
            (100, 50),
            (0, 10),
            (4000, 200),
            (20_000, 5000),
            (4096, 4096),
            (8191, 2),
            (65_535, 1),
            (1, 65_535),
            (0, 65_536),
            (30_000, 1),
        ];
        for (seed, (offset, len)) in steps.into_iter().enumerate() {
            let bytes = pattern(seed as u64, len);
            client.write(HEAD, one, offset, &bytes).await.unwrap();
            let end = offset as usize + len;
            if model.len() < end {
                model.resize(end, 0);
            }
            model[offset as usize..end].copy_from_slice(&bytes);
            compare(client, &model).await;
        }
        for length in [60_000u32, 4097, 4096, 10, 0, 9000, 65_536, 5000] {
            client.truncate(HEAD, one, length).await.unwrap();
            model.resize(length as usize, 0);
            compare(client, &model).await;
        }
        client.remove(HEAD, one).await.unwrap();
        assert_eq!(code(client.read(HEAD, one, 0, CHUNK).await), Some(ErrorCode::NoSuchChunk));
        // A removed chunk's versions go on, so that nothing old can come back.
        let reply = client.write(HEAD, one, 0, b"again").await.unwrap();
        assert_eq!(reply.version.get() as usize, 10 + 8 + 2);
        compare(client, b"again").await;
    });
}

async fn compare(client: &Client, model: &[u8]) {
    let found = client.read(HEAD, chunk(5, 3), 0, CHUNK).await.unwrap();
    let mut expected = model.to_vec();
    expected.resize(model.len().next_multiple_of(BLOCK), 0);
    assert_eq!(found.length as usize, model.len());
    assert!(found.data == expected, "contents differ at length {}", model.len());
}

#[test]
fn a_batch_is_answered_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), SMALL);
    with_client(&cluster, async |client| {
        for index in 0..8 {
            client.write(HEAD, chunk(1, index), 0, &pattern(index.into(), 2 * BLOCK)).await.unwrap();
        }
        let mut entries = Vec::new();
        for n in 0..200u32 {
            // Every tenth is of a chunk that isn't there.
            let index = if n % 10 == 9 { 99 } else { n % 8 };
            entries.push(client.entry(HEAD, chunk(1, index), n % 2 * 4096, 4096));
        }
        let found = client.read_batch(HEAD, &entries).await;
        for (n, found) in found.into_iter().enumerate() {
            if n % 10 == 9 {
                assert_eq!(code(found), Some(ErrorCode::NoSuchChunk));
            } else {
                let at = n % 2 * BLOCK;
                assert!(found.unwrap().data == pattern(n as u64 % 8, 2 * BLOCK)[at..at + BLOCK], "read {n}");
            }
        }
    });
}

#[test]
fn a_retry_is_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), SMALL);
    with_client(&cluster, async |client| {
        let one = chunk(1, 0);
        let bytes = pattern(1, 100);
        let first = client.update(HEAD, one, UpdateKind::Write, 0, 100);
        let reply = client.send(HEAD, first, &bytes).await.unwrap();
        assert_eq!(client.send(HEAD, first, &bytes).await, Ok(reply), "done before: the same answer");
        let second = client.update(HEAD, one, UpdateKind::Write, 0, 100);
        assert_eq!(client.send(HEAD, second, &bytes).await.unwrap().version.get(), 2);
        assert_eq!(code(client.send(HEAD, first, &bytes).await), Some(ErrorCode::Duplicate));
        // Two of the same at once: one is done, the other attaches to it.
        let third = client.update(HEAD, one, UpdateKind::Write, 50, 100);
        let (a, b) =
            futures_lite::future::zip(client.send(HEAD, third, &bytes), client.send(HEAD, third, &bytes))
                .await;
        assert_eq!((a.unwrap().version.get(), b.unwrap().version.get()), (3, 3));
    });
}

#[test]
fn requests_that_cannot_be_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), SMALL);
    with_client(&cluster, async |client| {
        let one = chunk(1, 0);
        client.write(HEAD, one, 0, &[1; 4096]).await.unwrap();
        let entry = client.entry(HEAD, one, 0, 4096);
        let read = async |entry| code(client.read_batch(HEAD, &[entry]).await.pop().unwrap());
        assert_eq!(read(entry).await, None);
        let stale = corefs_wire::data::ReadEntry { chain_version: 99.into(), ..entry };
        assert_eq!(read(stale).await, Some(ErrorCode::StaleRouting));
        let shard = corefs_wire::data::ReadEntry { target: 99.into(), ..entry };
        assert_eq!(read(shard).await, Some(ErrorCode::WrongShard));
        let chain = corefs_wire::data::ReadEntry { chain: 2.into(), ..entry };
        assert_eq!(read(chain).await, Some(ErrorCode::UnknownChain));
        let odd = corefs_wire::data::ReadEntry { offset: 1.into(), ..entry };
        assert_eq!(read(odd).await, Some(ErrorCode::InvalidArgument));

        let update = client.update(HEAD, one, UpdateKind::Write, 0, 10);
        let wrong = client.send_with(HEAD, update, &[1; 10], &[1]).await;
        assert_eq!(code(wrong), Some(ErrorCode::ChecksumMismatch));
        assert_eq!(code(client.send(HEAD, update, &[1; 9]).await), Some(ErrorCode::InvalidArgument));
        let forwarded = Client::forwarded(update, 2);
        assert_eq!(code(client.send(HEAD, forwarded, &[1; 10]).await), Some(ErrorCode::NotServing));
        let stale = corefs_wire::data::Update { chain_version: 9.into(), ..update };
        assert_eq!(code(client.send(HEAD, stale, &[1; 10]).await), Some(ErrorCode::StaleRouting));
        let unknown =
            client.node.call(&client.address(HEAD), 0x77, b"", None, std::time::Duration::from_secs(5)).await;
        assert_eq!(code(unknown), Some(ErrorCode::UnknownOperation));
        let ping = async |body: &[u8]| {
            client
                .node
                .call(&client.address(HEAD), op::PING, body, None, std::time::Duration::from_secs(5))
                .await
        };
        assert!(ping(Prefix::default().as_bytes()).await.is_ok());
        // The shard is none the worse for it.
        assert_eq!(client.read(HEAD, one, 0, 4096).await.unwrap().data, [1; 4096]);
        // What makes no sense at all is answered, and ends the connection.
        assert_eq!(code(ping(b"").await), Some(ErrorCode::BadFrame));
    });
}

#[test]
fn without_a_lease_everything_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), SMALL);
    with_client(&cluster, async |client| {
        client.write(HEAD, chunk(1, 0), 0, &[1; 4096]).await.unwrap();
    });
    cluster.stop(1);
    cluster.lease_at_start = false;
    cluster.restart(1).unwrap();
    with_client(&cluster, async |client| {
        let expired = Some(ErrorCode::LeaseExpired);
        assert_eq!(code(client.read(HEAD, chunk(1, 0), 0, 4096).await), expired);
        assert_eq!(code(client.write(HEAD, chunk(1, 0), 0, b"x").await), expired);
        assert_eq!(code(client.list(HEAD, 1).await), expired);
        cluster.lease(u64::MAX);
        assert_eq!(client.read_settled(HEAD, chunk(1, 0), 0, 4096).await.unwrap().data, [1; 4096]);
    });
}

#[test]
fn a_full_slice_says_so_and_removal_frees_it() {
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape { slices: 1, slice_bytes: 2 << 20, chains: 1, ..SMALL };
    let cluster = Cluster::start(dir.path(), shape);
    with_client(&cluster, async |client| {
        let bytes = pattern(3, CHUNK as usize);
        let mut written = 0;
        let refusal = loop {
            match client.write(HEAD, chunk(1, written), 0, &bytes).await {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(refusal.code, ErrorCode::NoSpace, "{refusal}");
        assert!(written > 8, "only {written} chunks fit");
        // What is there can be read, and overwritten in place.
        assert!(client.read(HEAD, chunk(1, 0), 0, CHUNK).await.unwrap().data == bytes);
        client.write(HEAD, chunk(1, 0), 0, &bytes[..BLOCK]).await.unwrap();
        for index in 0..4 {
            client.remove(HEAD, chunk(1, index)).await.unwrap();
        }
        client.write(HEAD, chunk(2, 0), 0, &bytes).await.unwrap();
        assert!(client.read(HEAD, chunk(2, 0), 0, CHUNK).await.unwrap().data == bytes);
    });
}

#[test]
fn a_restart_keeps_everything_and_so_does_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), SMALL);
    for round in 0..6u64 {
        with_client(&cluster, async |client| {
            for index in 0..20 {
                for old in 0..round {
                    let found = client.read(HEAD, chunk(old, index), 0, CHUNK).await.unwrap();
                    assert!(found.data[..9000] == pattern(old * 100 + u64::from(index), 9000));
                }
                let bytes = pattern(round * 100 + u64::from(index), 9000);
                client.write(HEAD, chunk(round, index), 0, &bytes).await.unwrap();
            }
        });
        if round % 2 == 0 {
            cluster.kill(1)
        } else {
            cluster.stop(1)
        }
        cluster.restart(1).unwrap();
    }
}
