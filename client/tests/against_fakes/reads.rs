//! Reads: batches, checksums, replicas, routing that changes, connections that end, replies that come too late.

use crate::fake::storage::{Fault, Shard};
use crate::fake::{CHUNK, Cluster, file, run, until};
use corefs_client::{Client, read_batch};
use corefs_wire::ErrorCode;
use corefs_wire::control::mgmtd::TargetState;
use futures_lite::future::poll_once;
use std::rc::Rc;
use std::time::Duration;

const BLOCK: usize = 4096;

#[test]
fn reads_of_a_turn_leave_in_one_frame_and_come_back_each() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let (file, bytes) = file(&cluster, &client, 8).await;
        for many in [40usize, 300] {
            cluster.shards[0].batches.borrow_mut().clear();
            let offset = |at: usize| (at * 37 % 128 * BLOCK) as u64;
            let reads: Vec<_> = (0..many).map(|at| (&file, offset(at), BLOCK)).collect();
            for (at, data) in read_batch(&reads).await.into_iter().enumerate() {
                let start = offset(at) as usize;
                assert_eq!(&*data.unwrap(), &bytes[start..start + BLOCK]);
            }
            let batches = cluster.shards[0].batches.borrow().clone();
            let expected = if many == 40 { vec![40] } else { vec![256, 44] };
            // The first batch of a client may be split by the opening of the connection.
            if many == 300 {
                assert_eq!(batches, expected);
            }
            assert_eq!(batches.iter().sum::<usize>(), many);
        }
        file.close().await.unwrap();
        client.close().await.unwrap();
        assert_eq!(client.pool().in_use(), 0);
        cluster.stop().await;
    });
}

#[test]
fn unaligned_reads_across_chunks_holes_and_the_end() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let (file, mut bytes) = file(&cluster, &client, 4).await;
        // A chunk that isn't there, and one that is short.
        let inode = file.inode().0;
        cluster.shards[0].chunks.borrow_mut().remove(&(inode, 1));
        cluster.shards[0].put(inode, 2, &bytes[2 * CHUNK as usize..][..5000]);
        bytes[CHUNK as usize..2 * CHUNK as usize].fill(0);
        bytes[2 * CHUNK as usize + 5000..3 * CHUNK as usize].fill(0);
        let length = bytes.len();
        for (offset, len) in
            [(0, 1), (1, 4096), (4095, 2), (65530, 70000), (100_000, 60_000), (0, length), (5, length)]
        {
            let data = file.read_at(offset as u64, len).await.unwrap();
            assert_eq!(&*data, &bytes[offset..(offset + len).min(length)], "{len} bytes at {offset}");
        }
        assert!(file.read_at(length as u64, 10).await.unwrap().is_empty());
        assert!(file.read_at(u64::MAX, usize::MAX).await.unwrap().is_empty());
        let mut out = vec![0; length + 10];
        assert_eq!(file.read_into(0, &mut out).await, Ok(length));
        assert_eq!(&out[..length], bytes);
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn wrong_bytes_are_read_again_and_never_given_out() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let (file, bytes) = file(&cluster, &client, 1).await;
        cluster.shards[0].fail_reads([Fault::Corrupt]);
        assert_eq!(&*file.read_at(0, BLOCK).await.unwrap(), &bytes[..BLOCK]);
        assert_eq!(client.counters().checksum_mismatches, 1);
        cluster.shards[0].fail_reads([Fault::Corrupt; 10]);
        assert_eq!(file.read_at(0, BLOCK).await.unwrap_err().code, ErrorCode::ChecksumMismatch);
        cluster.shards[0].read_faults.borrow_mut().clear();
        cluster.shards[0].fail_reads([Fault::Refuse(ErrorCode::Corrupt)]);
        assert_eq!(file.read_at(0, BLOCK).await.unwrap_err().code, ErrorCode::Corrupt);
        assert_eq!(&*file.read_at(0, BLOCK).await.unwrap(), &bytes[..BLOCK], "that read alone");
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn another_replica_answers_for_one_that_fails() {
    run(|| async {
        let cluster = Cluster::start(2);
        let client = cluster.client().await;
        let (file, bytes) = file(&cluster, &client, 1).await;
        for fault in [
            Fault::Corrupt,
            Fault::Refuse(ErrorCode::Corrupt),
            Fault::Refuse(ErrorCode::DiskError),
            Fault::Refuse(ErrorCode::NotServing),
            Fault::Close,
        ] {
            // Both fail once: whichever is asked first, the other one is asked next and the first again at last.
            cluster.shards[0].fail_reads([fault]);
            let data = file.read_at(0, BLOCK).await.unwrap();
            assert_eq!(&*data, &bytes[..BLOCK], "{fault:?}");
            while !cluster.shards[0].read_faults.borrow().is_empty() {
                file.read_at(0, BLOCK).await.unwrap();
            }
        }
        assert!(client.counters().read_retries >= 5);
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn a_replica_that_stands_still_holds_nobody_up_for_long() {
    run(|| async {
        let cluster = Cluster::start(2);
        let client = cluster.client().await;
        let (file, bytes) = file(&cluster, &client, 1).await;
        file.read_at(0, BLOCK).await.unwrap();
        // Far less than the five seconds of a whole attempt, however slow this machine is.
        cluster.shards[0].fail_reads([Fault::Keep; 1000]);
        let started = std::time::Instant::now();
        while cluster.shards[0].read_faults.borrow().len() == 1000 {
            assert_eq!(&*file.read_at(0, BLOCK).await.unwrap(), &bytes[..BLOCK]);
        }
        // And from then on the other one is asked.
        for _ in 0..100 {
            assert_eq!(&*file.read_at(0, BLOCK).await.unwrap(), &bytes[..BLOCK]);
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(4), "{:?}", started.elapsed());
        assert!(cluster.shards[0].read_faults.borrow().len() >= 995);
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn a_replica_that_cant_be_connected_to_holds_nobody_up_for_long() {
    run(|| async {
        let cluster = Cluster::start(2);
        let client = cluster.client().await;
        let (file, bytes) = file(&cluster, &client, 1).await;
        // The kernel takes the connection, and nobody ever says anything on it.
        let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = deaf.local_addr().unwrap().to_string();
        cluster.manager.change(|routing| {
            let node = routing.nodes.values_mut().next().unwrap();
            node.shards[0].clone_from(&address);
        });
        until(client.node(), || client.routing().version == 2).await;
        // Far less than the five seconds that a handshake may take, however slow this machine is.
        let started = std::time::Instant::now();
        while client.counters().read_retries == 0 {
            assert_eq!(&*file.read_at(0, BLOCK).await.unwrap(), &bytes[..BLOCK]);
        }
        // And from then on the other one is asked.
        for _ in 0..100 {
            assert_eq!(&*file.read_at(0, BLOCK).await.unwrap(), &bytes[..BLOCK]);
        }
        assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
        assert!(client.counters().read_retries < 5);
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn nobody_waits_for_a_connection_to_a_node_that_is_dead() {
    run(|| async {
        let cluster = Cluster::start(2);
        let client = cluster.client().await;
        let (file, bytes) = file(&cluster, &client, 1).await;
        let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = deaf.local_addr().unwrap().to_string();
        let (node, target) = {
            let routing = client.routing();
            let target = routing.chain_of(&crate::fake::LAYOUT, 0).unwrap().serving().next().unwrap();
            (routing.targets[&target].node, target)
        };
        // The deaf one alone serves, until it is known to be dead.
        cluster.manager.change(|routing| {
            routing.nodes.get_mut(&node).unwrap().shards[0].clone_from(&address);
            for member in routing.chains.values_mut().flat_map(|chain| &mut chain.members) {
                let state = if member.target == target { TargetState::Serving } else { TargetState::Offline };
                member.state = state;
            }
        });
        until(client.node(), || client.routing().version == 2).await;
        let started = std::time::Instant::now();
        let mut read = Box::pin(file.read_at(0, BLOCK));
        assert!(poll_once(&mut read).await.is_none());
        cluster.manager.change(|routing| {
            routing.nodes.get_mut(&node).unwrap().alive = false;
            for chain in routing.chains.values_mut() {
                chain.version += 1;
                for member in &mut chain.members {
                    let ours = member.target == target;
                    member.state = if ours { TargetState::Offline } else { TargetState::Serving };
                }
            }
        });
        assert_eq!(&*read.await.unwrap(), &bytes[..BLOCK]);
        assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn load_is_spread_over_the_replicas() {
    run(|| async {
        let cluster = Cluster::start(3);
        let client = cluster.client().await;
        let (file, _) = file(&cluster, &client, 1).await;
        for _ in 0..300 {
            file.read_at(0, BLOCK).await.unwrap();
        }
        for shard in &cluster.shards {
            assert!((50..150).contains(&shard.reads.get()), "{} of 300", shard.reads.get());
        }
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn pending_is_asked_at_the_tail() {
    run(|| async {
        let cluster = Cluster::start(3);
        let client = cluster.client().await;
        let (file, bytes) = file(&cluster, &client, 1).await;
        let routing = client.routing();
        let chain = routing.chain_of(&crate::fake::LAYOUT, 0).unwrap();
        let tail = routing.owner(chain.serving().next_back().unwrap()).unwrap().address.to_owned();
        let is_tail = |shard: &Rc<Shard>| shard.address.to_string() == tail;
        for shard in cluster.shards.iter().filter(|shard| !is_tail(shard)) {
            shard.fail_reads([Fault::Refuse(ErrorCode::Pending); 50]);
        }
        for _ in 0..20 {
            assert_eq!(&*file.read_at(0, BLOCK).await.unwrap(), &bytes[..BLOCK]);
        }
        let tail = cluster.shards.iter().find(|shard| is_tail(shard)).unwrap();
        assert_eq!(tail.reads.get(), 20);
        assert!(cluster.shards.iter().map(|shard| shard.reads.get()).sum::<u64>() > 20);
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn stale_routing_is_fetched_at_once() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let (file, bytes) = file(&cluster, &client, 1).await;
        assert_eq!(client.routing().version, 1);
        // The long poll doesn't tell: only who asks learns.
        cluster.manager.change_silently(|routing| {
            routing.chains.values_mut().for_each(|chain| chain.version = 2);
        });
        cluster.shards[0].version.set(2);
        assert_eq!(&*file.read_at(0, BLOCK).await.unwrap(), &bytes[..BLOCK]);
        assert_eq!((client.routing().version, cluster.shards[0].reads.get()), (2, 2));
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn newer_routing_comes_by_itself() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        for version in 2..5 {
            cluster.manager.change(|_| ());
            until(client.node(), || client.routing().version == version).await;
        }
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn a_target_that_moved_is_found() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let (file, bytes) = file(&cluster, &client, 1).await;
        file.read_at(0, BLOCK).await.unwrap();
        // The old shard refuses until the end; the routing that names the new one comes a little later.
        cluster.shards[0].fail_reads([Fault::Refuse(ErrorCode::WrongShard); 1000]);
        let moved = Shard::over(Rc::clone(&cluster.shards[0].chunks));
        let address = moved.address.to_string();
        let read = async { file.read_at(BLOCK as u64, BLOCK).await };
        let change = async {
            client.node().sleep(Duration::from_millis(30)).await;
            cluster.manager.change_silently(|routing| {
                routing.nodes.values_mut().for_each(|node| node.shards[0].clone_from(&address));
            });
            std::future::pending().await
        };
        let data = futures_lite::future::or(read, change).await.unwrap();
        assert_eq!(&*data, &bytes[BLOCK..2 * BLOCK]);
        assert_eq!(moved.reads.get(), 1);
        client.close().await.unwrap();
        cluster.stop().await;
        moved.node.shutdown().await;
    });
}

#[test]
fn a_connection_that_ends_is_made_anew() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let (file, bytes) = file(&cluster, &client, 1).await;
        cluster.shards[0].fail_reads([Fault::None, Fault::Close, Fault::Close]);
        for _ in 0..3 {
            let reads: Vec<_> = (0..16).map(|at| (&file, (at * BLOCK) as u64, BLOCK)).collect();
            for (at, data) in read_batch(&reads).await.into_iter().enumerate() {
                assert_eq!(&*data.unwrap(), &bytes[at * BLOCK..(at + 1) * BLOCK]);
            }
        }
        client.close().await.unwrap();
        assert_eq!(client.pool().in_use(), 0);
        cluster.stop().await;
    });
}

#[test]
fn a_late_reply_to_a_read_that_was_dropped_harms_nobody() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let (file, bytes) = file(&cluster, &client, 1).await;
        file.read_at(0, BLOCK).await.unwrap();
        let shard = &cluster.shards[0];
        shard.fail_reads([Fault::Keep]);
        let mut dropped = Box::pin(file.read_at(0, BLOCK));
        assert!(poll_once(&mut dropped).await.is_none());
        until(client.node(), || shard.held.borrow().len() == 1).await;
        drop(dropped);
        // The buffer and the request's slot are used again; then the old reply comes, with other bytes.
        shard.fail_reads([Fault::Keep]);
        let mut second = Box::pin(file.read_at(BLOCK as u64, BLOCK));
        assert!(poll_once(&mut second).await.is_none());
        until(client.node(), || shard.held.borrow().len() == 2).await;
        let mut held = shard.held.take().into_iter();
        let late = held.next().unwrap();
        let mut body = 7u64.to_le_bytes().to_vec();
        body.extend_from_slice(&CHUNK.to_le_bytes());
        body.extend_from_slice(&1u32.to_le_bytes());
        body.extend_from_slice(&corefs_wire::checksum::crc32c(&[0xEE; BLOCK]).to_le_bytes());
        late.ok(&body, Some(vec![0xEE; BLOCK].into()));
        client.node().sleep(Duration::from_millis(20)).await;
        drop(held);
        // The second one was dropped by the server, which says `Internal`: fatal, but its own.
        assert_eq!(second.await.unwrap_err().code, ErrorCode::Internal);
        assert_eq!(&*file.read_at(0, BLOCK).await.unwrap(), &bytes[..BLOCK]);
        client.close().await.unwrap();
        assert_eq!(client.pool().in_use(), 0);
        cluster.stop().await;
    });
}

#[test]
fn patience_ends_with_the_last_error() {
    run(|| async {
        let cluster = Cluster::start(1);
        let mut options = cluster.options();
        options.deadline = Duration::from_millis(300);
        let client = Client::connect(options).await.unwrap();
        let (file, _) = file(&cluster, &client, 1).await;
        cluster.shards[0].fail_reads([Fault::Refuse(ErrorCode::Overloaded); 2000]);
        let error = file.read_at(0, BLOCK).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Overloaded);
        assert!(client.counters().read_retries > 1, "{error}");
        client.close().await.unwrap();
        cluster.stop().await;
    });
}
