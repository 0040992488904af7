//! Reads that are late: another replica is asked, too, within bounds, and late replies land nowhere.

use crate::fake::storage::{Fault, Shard};
use crate::fake::{CHUNK, Cluster, file, run, until};
use corefs_client::{Client, Data, File, Hedge, read_batch};
use corefs_wire::checksum::crc32c;
use futures_lite::future;
use std::time::Duration;

const BLOCK: usize = 4096;
/// Each second request is paid for by so many reads.
const READS_PER_HEDGE: u64 = 20;

/// A client that asks a second replica after `millis`.
async fn client(cluster: &Cluster, millis: u64) -> Client {
    let mut options = cluster.options();
    options.hedge = Hedge::After(Duration::from_millis(millis));
    Client::connect(options).await.unwrap()
}

/// Reads that all are answered in time, until every shard has a connection and there is room for hedges.
async fn warm_up(cluster: &Cluster, client: &Client, file: &File) {
    let before = client.counters().reads;
    let connected = || cluster.shards.iter().all(|shard| shard.reads.get() > 0);
    while client.counters().reads < before + 10 * READS_PER_HEDGE || !connected() {
        file.read_at(0, BLOCK).await.unwrap();
    }
}

/// The body of a reply with other bytes than the file has, and those bytes: whole blocks, with their checksums.
fn lie(len: usize) -> (Vec<u8>, Vec<u8>) {
    let mut body = 7u64.to_le_bytes().to_vec();
    body.extend_from_slice(&CHUNK.to_le_bytes());
    body.extend_from_slice(&((len / BLOCK) as u32).to_le_bytes());
    (0..len / BLOCK).for_each(|_| body.extend_from_slice(&crc32c(&[0xEE; BLOCK]).to_le_bytes()));
    (body, vec![0xEE; len])
}

/// Has `shard` keep reads to itself until another one has answered for it, and gives what was read meanwhile.
async fn read_until_won(client: &Client, shard: &Shard, file: &File, bytes: &[u8], len: usize) -> Vec<Data> {
    let mut all = Vec::new();
    let before = client.counters().hedges_won;
    while client.counters().hedges_won == before || shard.held.borrow().is_empty() {
        if shard.read_faults.borrow().is_empty() {
            shard.fail_reads([Fault::Keep]);
        }
        let data = file.read_at(0, len).await.unwrap();
        assert_eq!(&*data, &bytes[..len]);
        all.push(data);
    }
    all
}

#[test]
fn another_replica_answers_for_one_that_is_late_and_the_late_reply_lands_nowhere() {
    run(|| async {
        let cluster = Cluster::start(2);
        let client = client(&cluster, 3).await;
        let (file, bytes) = file(&cluster, &client, 1).await;
        let shard = &cluster.shards[0];
        // Small data stay where they arrive; for a whole chunk each attempt names memory of its own.
        for len in [BLOCK, CHUNK as usize] {
            warm_up(&cluster, &client, &file).await;
            let all = read_until_won(&client, shard, &file, &bytes, len).await;
            let counters = client.counters();
            assert!(counters.hedged_reads >= counters.hedges_won, "{counters:?}");
            shard.read_faults.borrow_mut().clear();
            // Reads that are under way when the late reply comes, and data that were given out before.
            shard.slow.set(true);
            cluster.shards[1].slow.set(true);
            let reads: Vec<_> = (0..8).map(|at| (&file, (at * BLOCK) as u64, BLOCK)).collect();
            let mut reading = Box::pin(read_batch(&reads));
            assert!(future::poll_once(&mut reading).await.is_none());
            let (body, lies) = lie(len);
            shard.held.take().into_iter().for_each(|late| late.ok(&body, Some(lies.clone().into())));
            let catching_up = async {
                loop {
                    client.node().sleep(Duration::from_millis(10)).await;
                    cluster.shards.iter().for_each(|shard| shard.catch_up());
                }
            };
            let read = future::or(reading, catching_up).await;
            for (at, data) in read.into_iter().enumerate() {
                assert_eq!(&*data.unwrap(), &bytes[at * BLOCK..(at + 1) * BLOCK]);
            }
            assert!(all.iter().all(|data| **data == bytes[..len]));
            cluster.shards.iter().for_each(|shard| shard.slow.set(false));
            cluster.shards.iter().for_each(|shard| shard.catch_up());
        }
        client.close().await.unwrap();
        until(client.node(), || client.pool().in_use() == 0).await;
        cluster.stop().await;
    });
}

#[test]
fn a_read_of_several_pieces_is_whole_when_one_piece_comes_from_elsewhere() {
    run(|| async {
        let cluster = Cluster::start(2);
        let client = client(&cluster, 3).await;
        let (file, bytes) = file(&cluster, &client, 4).await;
        warm_up(&cluster, &client, &file).await;
        let data = read_until_won(&client, &cluster.shards[0], &file, &bytes, bytes.len()).await;
        let (body, lies) = lie(CHUNK as usize);
        cluster.shards[0].held.take().into_iter().for_each(|late| late.ok(&body, Some(lies.clone().into())));
        for _ in 0..20 {
            assert_eq!(&*file.read_at(0, bytes.len()).await.unwrap(), &bytes[..]);
        }
        assert!(data.iter().all(|data| **data == bytes[..]));
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn a_replica_that_stands_still_gets_few_reads_and_is_suspected() {
    run(|| async {
        let cluster = Cluster::start(2);
        let client = client(&cluster, 3).await;
        let (file, bytes) = file(&cluster, &client, 1).await;
        warm_up(&cluster, &client, &file).await;
        let shard = &cluster.shards[0];
        shard.fail_reads([Fault::Keep; 1000]);
        let kept = || 1000 - shard.read_faults.borrow().len();
        let started = std::time::Instant::now();
        let mut reads = 0;
        // For longer than it takes until the one that was left behind is given up.
        while client.counters().hedges_won == 0
            || reads < 200
            || started.elapsed() < Duration::from_millis(400)
        {
            assert_eq!(&*file.read_at(0, BLOCK).await.unwrap(), &bytes[..BLOCK]);
            reads += 1;
        }
        assert!(kept() * 10 < reads, "{} of {reads}", kept());
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn a_batch_that_waits_for_a_replica_asks_the_other_for_all_of_it() {
    run(|| async {
        let cluster = Cluster::start(2);
        let client = client(&cluster, 3).await;
        let (file, bytes) = file(&cluster, &client, 1).await;
        let reads: Vec<_> = (0..8).map(|at| (&file, (at * BLOCK) as u64, BLOCK)).collect();
        while client.counters().reads < 20 * READS_PER_HEDGE {
            warm_up(&cluster, &client, &file).await;
        }
        let shard = &cluster.shards[0];
        shard.slow.set(true);
        // Nothing of what goes there is answered before all of the batch has been.
        while client.counters().hedges_won < 2 {
            shard.catch_up();
            for (at, data) in read_batch(&reads).await.into_iter().enumerate() {
                assert_eq!(&*data.unwrap(), &bytes[at * BLOCK..(at + 1) * BLOCK]);
            }
        }
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn one_read_in_twenty_at_most_is_hedged_when_everything_is_slow() {
    run(|| async {
        let cluster = Cluster::start(2);
        let client = client(&cluster, 1).await;
        let (file, bytes) = file(&cluster, &client, 1).await;
        cluster.shards.iter().for_each(|shard| shard.slow.set(true));
        let catching_up = async {
            loop {
                client.node().sleep(Duration::from_millis(10)).await;
                cluster.shards.iter().for_each(|shard| shard.catch_up());
            }
        };
        let reads: Vec<_> = (0..16).map(|at| (&file, (at * BLOCK) as u64, BLOCK)).collect();
        let reading = async {
            for _ in 0..50 {
                for (at, data) in read_batch(&reads).await.into_iter().enumerate() {
                    assert_eq!(&*data.unwrap(), &bytes[at * BLOCK..(at + 1) * BLOCK]);
                }
                let counters = client.counters();
                assert!(counters.hedged_reads * READS_PER_HEDGE <= counters.reads, "{counters:?}");
            }
        };
        future::or(reading, catching_up).await;
        assert!(client.counters().hedged_reads > 0);
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn one_replica_and_a_client_that_may_not_ask_nobody_else() {
    run(|| async {
        let (alone, two) = (Cluster::start(1), Cluster::start(2));
        for (cluster, hedge) in [(&alone, Hedge::After(Duration::from_millis(1))), (&two, Hedge::Off)] {
            let mut options = cluster.options();
            options.hedge = hedge;
            let client = Client::connect(options).await.unwrap();
            let (file, bytes) = file(cluster, &client, 1).await;
            warm_up(cluster, &client, &file).await;
            cluster.shards.iter().for_each(|shard| shard.slow.set(true));
            let catching_up = async {
                loop {
                    client.node().sleep(Duration::from_millis(20)).await;
                    cluster.shards.iter().for_each(|shard| shard.catch_up());
                }
            };
            let reading = async {
                for _ in 0..10 {
                    assert_eq!(&*file.read_at(0, BLOCK).await.unwrap(), &bytes[..BLOCK]);
                }
            };
            future::or(reading, catching_up).await;
            assert_eq!((client.counters().hedged_reads, client.counters().hedges_won), (0, 0));
            client.close().await.unwrap();
        }
        alone.stop().await;
        two.stop().await;
    });
}
