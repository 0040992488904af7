//! Writes: tags over retries, epochs, bytes held behind the caller, lengths, sessions; and random operations against a plain
//! file while everything fails now and then.

use crate::fake::storage::Fault;
use crate::fake::{CHUNK, Cluster, LAYOUT, run, until};
use corefs_client::{Changes, Client, CreateOptions, Credentials, File, Kind, OpenOptions, Time};
use corefs_wire::{ErrorCode, InodeId, ROOT_INODE};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

const ROOT: Credentials = Credentials::root();
const DIRECT: CreateOptions = CreateOptions {
    mode: 0o644,
    exclusive: true,
    truncate: false,
    direct: true,
    chunk_size: 0,
    stripe: 0,
    umask: 0,
};
const BUFFERED: CreateOptions = CreateOptions { direct: false, ..DIRECT };

async fn create(client: &Client, name: &[u8], options: CreateOptions) -> File {
    let (file, created) = client.create(&ROOT, ROOT_INODE, name, options).await.unwrap();
    assert!(created);
    file
}

/// What the shard of a cluster of one holds of a file.
fn stored(cluster: &Cluster, inode: InodeId, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    for ((of, index), chunk) in cluster.shards[0].chunks.borrow().iter() {
        let start = (*index * CHUNK) as usize;
        if *of == inode.0 && start < length {
            let end = (start + chunk.bytes.len()).min(length);
            out[start..end].copy_from_slice(&chunk.bytes[..end - start]);
        }
    }
    out
}

fn meta_size(cluster: &Cluster, inode: InodeId) -> u64 {
    cluster.meta.inodes.borrow()[&inode.0].size
}

#[test]
fn a_retry_keeps_its_tag_and_happens_once() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let file = create(&client, b"a", DIRECT).await;
        let shard = &cluster.shards[0];
        shard.fail_updates([
            Fault::DoAndClose,
            Fault::Close,
            Fault::Refuse(ErrorCode::ChainBroken),
            Fault::Refuse(ErrorCode::Overloaded),
        ]);
        file.write_at(5, b"hello").await.unwrap();
        let tags: Vec<_> = shard.tags.borrow().iter().map(|(tag, _)| *tag).collect();
        assert_eq!(tags.len(), 5);
        assert!(tags.iter().all(|tag| *tag == tags[0]), "{tags:?}");
        assert_eq!((tags[0].client.0, tags[0].incarnation, tags[0].sequence), (77, 3, 1));
        assert_eq!(shard.applied.get(), 1);
        file.write_at(0, b"x").await.unwrap();
        let last = shard.tags.borrow().last().unwrap().0;
        assert_eq!((last.channel, last.sequence), (tags[0].channel, 2), "the channel goes on");
        assert_eq!(&*file.read_at(0, 100).await.unwrap(), b"x\0\0\0\0hello");
        file.close().await.unwrap();
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn a_head_that_stands_still_is_left_when_another_one_is_named() {
    run(|| async {
        let cluster = Cluster::start(2);
        let mut options = cluster.options();
        // Less than one attempt may take: waiting it out would be too late.
        options.deadline = Duration::from_secs(4);
        let client = Client::connect(options).await.unwrap();
        let file = create(&client, b"a", DIRECT).await;
        cluster.shards.iter().for_each(|shard| shard.fail_updates([Fault::Keep]));
        let write = file.write_at(0, b"hello");
        let change = async {
            until(client.node(), || cluster.shards.iter().any(|shard| !shard.tags.borrow().is_empty())).await;
            cluster.shards.iter().for_each(|shard| shard.update_faults.borrow_mut().clear());
            cluster.manager.change(|routing| {
                for chain in routing.chains.values_mut() {
                    chain.version += 1;
                    chain.members.reverse();
                }
            });
        };
        futures_lite::future::zip(write, change).await.0.unwrap();
        let tags: Vec<_> = cluster.shards.iter().flat_map(|shard| shard.tags.borrow().clone()).collect();
        assert_eq!(tags.len(), 2, "{tags:?}");
        assert_eq!(tags[0].0, tags[1].0, "the tag stays");
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn a_channel_of_unknown_outcome_is_not_used_again() {
    run(|| async {
        let cluster = Cluster::start(1);
        let mut options = cluster.options();
        options.deadline = Duration::from_millis(100);
        let client = Client::connect(options).await.unwrap();
        let file = create(&client, b"a", DIRECT).await;
        let shard = &cluster.shards[0];
        shard.fail_updates([Fault::Close; 1000]);
        assert_eq!(file.write_at(0, b"lost").await.unwrap_err().code, ErrorCode::ConnectionLost);
        shard.update_faults.borrow_mut().clear();
        let lost = shard.tags.borrow()[0].0.channel;
        file.write_at(0, b"good").await.unwrap();
        let next = shard.tags.borrow().last().unwrap().0;
        assert!(next.channel != lost && next.sequence == 1);
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn updates_overlap_only_on_different_channels() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let file = create(&client, b"a", DIRECT).await;
        file.write_at(0, &vec![1; 8 * CHUNK as usize]).await.unwrap();
        let tags = cluster.shards[0].tags.borrow().clone();
        let mut by_channel: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        tags.iter().for_each(|(tag, _)| by_channel.entry(tag.channel).or_default().push(tag.sequence));
        assert!(by_channel.len() > 1, "the pieces of one write go side by side");
        assert!(
            by_channel.values().all(|sequences| sequences.iter().copied().eq(1..=sequences.len() as u64))
        );
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn stale_routing_and_a_full_disk() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let direct = create(&client, b"direct", DIRECT).await;
        cluster.manager.change_silently(|routing| {
            routing.chains.values_mut().for_each(|chain| chain.version = 2);
        });
        let shard = &cluster.shards[0];
        shard.version.set(2);
        direct.write_at(0, b"one").await.unwrap();
        let versions: Vec<u64> = shard.tags.borrow().iter().map(|(_, version)| *version).collect();
        assert_eq!(versions, [1, 2]);

        shard.fail_updates([Fault::Refuse(ErrorCode::NoSpace)]);
        assert_eq!(direct.write_at(3, b"two").await.unwrap_err().code, ErrorCode::NoSpace);
        assert_eq!(direct.length(), 3, "what could not be written is not part of the file");
        direct.write_at(3, b"two").await.unwrap();

        let buffered = create(&client, b"buffered", BUFFERED).await;
        shard.fail_updates([Fault::Refuse(ErrorCode::NoSpace)]);
        buffered.write_at(0, b"lost").await.unwrap();
        assert_eq!(buffered.sync().await.unwrap_err().code, ErrorCode::NoSpace);
        assert_eq!(buffered.sync().await, Ok(()), "an error is reported once");
        assert_eq!(buffered.length(), 0);
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn small_writes_become_large_updates_and_are_seen_at_once() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let file = create(&client, b"a", BUFFERED).await;
        let other = client.open(&ROOT, file.inode(), OpenOptions::default()).await.unwrap();
        let bytes: Vec<u8> = (0..3 * CHUNK as usize + 1234).map(|at| (at % 253) as u8).collect();
        for (at, piece) in bytes.chunks(1000).enumerate() {
            file.write_at((at * 1000) as u64, piece).await.unwrap();
        }
        assert_eq!((other.length(), other.attr().size), (bytes.len() as u64, bytes.len() as u64));
        assert_eq!(&*other.read_at(60_000, 150_000).await.unwrap(), &bytes[60_000..]);
        file.sync().await.unwrap();
        assert_eq!(cluster.shards[0].applied.get(), 4, "an update a chunk");
        assert_eq!(stored(&cluster, file.inode(), bytes.len()), bytes);
        assert_eq!(meta_size(&cluster, file.inode()), bytes.len() as u64);
        // Nothing new: nothing to push.
        let calls = cluster.meta.calls.borrow().len();
        file.sync().await.unwrap();
        assert_eq!(cluster.meta.calls.borrow().len(), calls);
        file.close().await.unwrap();
        other.close().await.unwrap();
        until(client.node(), || cluster.meta.sessions.borrow().is_empty()).await;
        client.close().await.unwrap();
        assert_eq!(client.pool().in_use(), 0);
        cluster.stop().await;
    });
}

#[test]
fn bytes_left_alone_are_written_after_a_while() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let file = create(&client, b"a", BUFFERED).await;
        file.write_at(10, b"waits").await.unwrap();
        assert_eq!(cluster.shards[0].applied.get(), 0);
        until(client.node(), || cluster.shards[0].applied.get() == 1).await;
        // A handle that is dropped is closed in the background.
        let inode = file.inode();
        file.write_at(15, b"more").await.unwrap();
        drop(file);
        until(client.node(), || cluster.meta.sessions.borrow().is_empty()).await;
        assert_eq!((meta_size(&cluster, inode), cluster.shards[0].applied.get()), (19, 2));
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn memory_behind_writers_is_bounded() {
    run(|| async {
        let cluster = Cluster::start(1);
        let mut options = cluster.options();
        options.pool_bytes = 4 << 20;
        options.write_behind = 1 << 20;
        let client = Client::connect(options).await.unwrap();
        let files: Vec<File> = {
            let mut files = Vec::new();
            for name in 0..8u8 {
                files.push(create(&client, &[b'f', b'0' + name], BUFFERED).await);
            }
            files
        };
        for round in 0..40u64 {
            for file in &files {
                file.write_at(round * u64::from(CHUNK), &vec![round as u8; CHUNK as usize]).await.unwrap();
                assert!(client.pool().in_use() <= client.pool().capacity() * 3 / 4);
            }
        }
        for file in files {
            let data = file.read_at(39 * u64::from(CHUNK), 100).await.unwrap();
            assert_eq!(&*data, [39; 100]);
            drop(data);
            file.close().await.unwrap();
        }
        client.close().await.unwrap();
        assert_eq!(client.pool().in_use(), 0);
        cluster.stop().await;
    });
}

#[test]
fn appends_of_several_handles_lose_nothing() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        for options in [BUFFERED, DIRECT] {
            let name = [b'a' + u8::from(options.direct)];
            let file = create(&client, &name, options).await;
            let open = OpenOptions { write: true, truncate: false, direct: options.direct, ahead: false };
            let other = client.open(&ROOT, file.inode(), open).await.unwrap();
            let append = async |file: &File, what: &[u8]| {
                for _ in 0..50 {
                    file.append(what).await.unwrap();
                }
            };
            futures_lite::future::zip(append(&file, b"aaa"), append(&other, b"bbb")).await;
            file.sync().await.unwrap();
            let bytes = stored(&cluster, file.inode(), 300);
            assert_eq!(bytes.chunks(3).filter(|three| *three == b"aaa").count(), 50);
            assert_eq!(bytes.chunks(3).filter(|three| *three == b"bbb").count(), 50);
        }
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn an_append_lands_behind_what_others_were_given_and_says_so() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let moved = Rc::new(RefCell::new(Vec::new()));
        let told = Rc::clone(&moved);
        client.on_moved(move |inode, from| told.borrow_mut().push((inode, from)));
        let file = create(&client, b"a", BUFFERED).await;
        let inode = file.inode();
        file.write_at(0, b"mine").await.unwrap();
        file.append(b"one").await.unwrap();
        file.append(b"two").await.unwrap();
        assert_eq!(file.length(), 10);
        file.sync().await.unwrap();
        assert!(moved.borrow().is_empty(), "nobody else appended");
        let appends = |calls: &[&str]| calls.iter().filter(|name| **name == "meta.append").count();
        assert_eq!(appends(&cluster.meta.calls.borrow()), 1, "two appends, one place");

        cluster.meta.taken.borrow_mut().insert(inode.0, 20);
        file.append(b"three").await.unwrap();
        assert_eq!(&file.read_at(0, 99).await.unwrap()[..], b"mineonetwo\0\0\0\0\0\0\0\0\0\0three");
        assert_eq!(moved.take(), [(inode, 10)]);
        // A caller whose cache is older than that learns of it with each batch.
        file.append_believing(15, b"four").await.unwrap();
        file.sync().await.unwrap();
        assert_eq!((moved.take(), meta_size(&cluster, inode)), (vec![(inode, 15)], 29));
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn an_append_is_behind_what_is_held_and_in_front_of_nothing() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let file = create(&client, b"a", BUFFERED).await;
        // Neither is in storage or reported.
        file.write_at(0, &[1; 100_000]).await.unwrap();
        file.append(&[2; 10]).await.unwrap();
        // It must not land below the append.
        file.write_at(100_005, &[3; 10]).await.unwrap();
        let mut expected = vec![1; 100_000];
        expected.extend([2; 5]);
        expected.extend([3; 10]);
        file.sync().await.unwrap();
        assert!(stored(&cluster, file.inode(), expected.len()) == expected);
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn what_was_appended_before_a_truncation_elsewhere_gets_another_place() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let file = create(&client, b"a", BUFFERED).await;
        file.write_at(0, &[7; 1000]).await.unwrap();
        file.sync().await.unwrap();
        file.append(b"line").await.unwrap();
        let inode = file.inode();
        cluster.meta.truncate(inode.0, 0);
        cluster.shards[0].chunks.borrow_mut().remove(&(inode.0, 0));
        file.sync().await.unwrap();
        assert_eq!((meta_size(&cluster, inode), file.length()), (4, 4), "no gap where the old bytes were");
        assert_eq!(stored(&cluster, inode, 4), b"line");
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn a_full_disk_gives_the_place_of_an_append_up() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let file = create(&client, b"a", BUFFERED).await;
        file.append(b"good").await.unwrap();
        file.sync().await.unwrap();
        cluster.shards[0].fail_updates([Fault::Refuse(ErrorCode::NoSpace)]);
        file.append(b"lost").await.unwrap();
        assert_eq!(file.sync().await.unwrap_err().code, ErrorCode::NoSpace);
        assert_eq!(file.length(), 4);
        file.append(b"more").await.unwrap();
        file.sync().await.unwrap();
        assert_eq!(stored(&cluster, file.inode(), 8), b"goodmore");
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn a_session_lasts_until_its_place_is_filled() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let file = create(&client, b"a", BUFFERED).await;
        let open = OpenOptions { write: true, truncate: false, direct: false, ahead: false };
        let other = client.open(&ROOT, file.inode(), open).await.unwrap();
        // The other handle's session is the one that asks for places.
        file.append(b"bytes").await.unwrap();
        let inode = file.inode();
        futures_lite::future::zip(async { other.close().await.unwrap() }, async {
            file.sync().await.unwrap()
        })
        .await;
        assert_eq!((meta_size(&cluster, inode), stored(&cluster, inode, 5)), (5, b"bytes".to_vec()));
        file.close().await.unwrap();
        client.close().await.unwrap();
        until(client.node(), || cluster.meta.sessions.borrow().is_empty()).await;
        cluster.stop().await;
    });
}

#[test]
fn a_truncation_elsewhere_is_learned_by_the_next_write() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let file = create(&client, b"a", DIRECT).await;
        file.write_at(0, &[7; 10_000]).await.unwrap();
        let inode = file.inode();
        cluster.meta.truncate(inode.0, 100);
        {
            let mut chunks = cluster.shards[0].chunks.borrow_mut();
            let chunk = chunks.get_mut(&(inode.0, 0)).unwrap();
            chunk.bytes.truncate(100);
            chunk.epoch = 2;
        }
        file.write_at(200, b"new").await.unwrap();
        assert_eq!(file.length(), 203);
        let data = file.read_at(0, 1000).await.unwrap();
        assert_eq!(
            (&data[..100], &data[100..200], &data[200..]),
            (&[7; 100][..], &[0; 100][..], &b"new"[..])
        );
        file.close().await.unwrap();
        assert_eq!(meta_size(&cluster, inode), 203);
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn truncation_and_times_that_were_set_stand() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let file = create(&client, b"a", BUFFERED).await;
        file.write_at(0, &[1; 5000]).await.unwrap();
        file.truncate(10).await.unwrap();
        assert_eq!((file.length(), meta_size(&cluster, file.inode())), (10, 10));
        file.write_at(20, b"x").await.unwrap();
        let changes = Changes { mtime: Some(Time::At(42)), ..Changes::default() };
        assert!(file.attr().mtime > 42);
        let attr = client.set_attr(&ROOT, file.inode(), changes).await.unwrap();
        assert_eq!((attr.mtime, attr.size), (42, 21));
        let inode = file.inode();
        file.close().await.unwrap();
        assert_eq!((cluster.meta.inodes.borrow()[&inode.0].mtime, meta_size(&cluster, inode)), (42, 21));
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

/// A name goes while the last handle is being closed: the session that would have held the bytes must not stay.
#[test]
fn a_file_that_is_closed_while_its_name_goes_is_not_held() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let file = create(&client, b"a", BUFFERED).await;
        file.write_at(0, b"abc").await.unwrap();
        file.finish().await.unwrap();
        until(client.node(), || cluster.meta.sessions.borrow().is_empty()).await;
        let who = ROOT;
        let unlink = client.unlink(&who, ROOT_INODE, b"a");
        let close = async {
            let gone = || cluster.meta.calls.borrow().contains(&"meta.unlink");
            while !gone() {
                futures_lite::future::yield_now().await;
            }
            file.close().await
        };
        let (unlinked, closed) = futures_lite::future::zip(unlink, close).await;
        unlinked.unwrap();
        closed.unwrap();
        // The hold was ended.
        until(client.node(), || cluster.meta.sessions.borrow().is_empty()).await;
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

/// A file that is copied with everything costs two calls that change something: it is made, and closed.
#[test]
fn what_a_copy_sets_goes_with_the_close() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let options = CreateOptions { mode: 0o600, ..BUFFERED };
        let (file, _) = client.create(&ROOT, ROOT_INODE, b"a", options).await.unwrap();
        file.write_at(0, &[1; 100]).await.unwrap();
        let set = async |changes| client.set_attr(&ROOT, file.inode(), changes).await.unwrap();
        set(Changes { mtime: Some(Time::At(42)), ..Changes::default() }).await;
        set(Changes { uid: Some(7), ..Changes::default() }).await;
        let attr = set(Changes { mode: Some(0o644), ..Changes::default() }).await;
        assert_eq!((attr.mtime, attr.uid, attr.mode, attr.size), (42, 7, 0o644, 100));
        assert_eq!(client.get_attr(&ROOT, file.inode()).await.unwrap(), attr, "shown before it is stored");
        file.finish().await.unwrap();
        assert_eq!(*cluster.meta.calls.borrow(), ["meta.create", "meta.close"]);
        let stored = cluster.meta.inodes.borrow()[&file.inode().0].clone();
        assert_eq!((stored.mtime, stored.uid, stored.mode, stored.size), (42, 7, 0o644, 100));

        // What takes access away from somebody doesn't wait, nor does anything without a session.
        set(Changes { mode: Some(0o600), ..Changes::default() }).await;
        set(Changes { mtime: Some(Time::At(43)), ..Changes::default() }).await;
        assert_eq!(cluster.meta.calls.borrow()[2..], ["meta.set_attr", "meta.set_attr"]);
        file.close().await.unwrap();
        assert_eq!(cluster.meta.calls.borrow().len(), 4, "the session had ended");
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn writes_after_a_finish_have_a_session_again() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let file = create(&client, b"a", BUFFERED).await;
        file.finish().await.unwrap();
        assert_eq!(*cluster.meta.calls.borrow(), ["meta.create"], "nothing was written: the session stays");
        file.write_at(0, b"one").await.unwrap();
        file.finish().await.unwrap();
        until(client.node(), || cluster.meta.sessions.borrow().is_empty()).await;
        let append = |data: &'static [u8]| file.append(data);
        let (two, three) = futures_lite::future::zip(append(b"two"), append(b"three")).await;
        two.unwrap();
        three.unwrap();
        // Several use this handle: from now on its session lasts as long.
        file.finish().await.unwrap();
        assert!(!cluster.meta.sessions.borrow().is_empty());
        assert_eq!(meta_size(&cluster, file.inode()), 11);
        assert_eq!(&file.read_at(0, 20).await.unwrap()[..], b"onetwothree");
        file.close().await.unwrap();
        client.close().await.unwrap();
        assert!(cluster.meta.sessions.borrow().is_empty(), "none is left behind");
        cluster.stop().await;
    });
}

#[test]
fn metadata_calls_happen_once_and_forgotten_sessions_are_begun_anew() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        // Done, but the answer is lost; refused for a while; then remembered.
        let faults = [Some(ErrorCode::ConnectionLost), Some(ErrorCode::KvConflict), None];
        cluster.meta.faults.borrow_mut().extend(faults);
        let file = create(&client, b"a", BUFFERED).await;
        assert_eq!((cluster.meta.calls.borrow().clone(), cluster.meta.lost.get()), (vec!["meta.create"], 1));
        let callers = cluster.meta.callers.borrow().clone();
        let sequences: Vec<u64> = callers.iter().map(|caller| caller.sequence).collect();
        assert_eq!(sequences, [1, 1, 1]);
        assert!(callers.iter().all(|caller| caller.low_water == 1 && caller.client == 77));

        file.write_at(0, b"abc").await.unwrap();
        cluster.meta.sessions.borrow_mut().clear();
        file.sync().await.unwrap();
        assert_eq!(meta_size(&cluster, file.inode()), 3);
        assert_eq!(cluster.meta.callers.borrow().last().unwrap().low_water, 4);
        file.write_at(3, b"def").await.unwrap();
        cluster.meta.sessions.borrow_mut().clear();
        let inode = file.inode();
        file.close().await.unwrap();
        assert_eq!(meta_size(&cluster, inode), 6);
        until(client.node(), || cluster.meta.sessions.borrow().is_empty()).await;
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn a_lease_is_renewed_and_an_ended_one_replaced() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let file = create(&client, b"a", DIRECT).await;
        file.write_at(0, b"before").await.unwrap();
        let renewals = cluster.manager.renewals.get();
        until(client.node(), || cluster.manager.renewals.get() > renewals).await;
        assert_eq!(client.id().0, 77);
        cluster.manager.ended.set(true);
        until(client.node(), || client.id().0 == 78).await;
        file.write_at(6, b" after").await.unwrap();
        let tags = cluster.shards[0].tags.borrow().clone();
        let of = |at: usize| (tags[at].0.client.0, tags[at].0.channel, tags[at].0.sequence);
        assert_eq!((of(0), of(1)), ((77, 1, 1), (78, 1, 1)), "another client's channels start anew");
        file.close().await.unwrap();
        assert_eq!(cluster.meta.callers.borrow().last().unwrap().client, 78);
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn an_unlinked_file_that_is_open_is_held() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let attr = cluster.meta.add(1, b"a", Kind::File);
        let file = client.open(&ROOT, InodeId(attr.inode), OpenOptions::default()).await.unwrap();
        client.unlink(&ROOT, ROOT_INODE, b"a").await.unwrap();
        assert_eq!(cluster.meta.calls.borrow().clone(), ["meta.open", "meta.unlink"], "in the same step");
        assert_eq!(cluster.meta.sessions.borrow().len(), 1);
        file.close().await.unwrap();
        until(client.node(), || cluster.meta.sessions.borrow().is_empty()).await;
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn all_chunks_of_an_inode_are_found_cut_and_removed() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let inode = InodeId(5000);
        for shard in &cluster.shards {
            for index in [0, 1, 2, 5, 9] {
                shard.put(inode.0, index, &[1; 1000]);
            }
            shard.put(4999, 3, &[1; 10]);
            shard.put(5001, 30, &[1; 10]);
        }
        assert_eq!(client.inode_length(inode, &LAYOUT).await, Ok(9 * u64::from(CHUNK) + 1000));
        client.truncate_chunks(inode, &LAYOUT, u64::from(2 * CHUNK) + 400, 7).await.unwrap();
        assert_eq!(client.inode_length(inode, &LAYOUT).await, Ok(2 * u64::from(CHUNK) + 400));
        client.truncate_chunks(inode, &LAYOUT, u64::from(2 * CHUNK), 8).await.unwrap();
        assert_eq!(client.inode_length(inode, &LAYOUT).await, Ok(u64::from(CHUNK) + 1000));
        // In no time none of them goes, and in enough time all do.
        assert!(!client.remove_chunks(inode, &LAYOUT, Duration::ZERO).await.unwrap());
        for _ in 0..2 {
            assert!(client.remove_chunks(inode, &LAYOUT, Duration::from_secs(60)).await.unwrap());
        }
        assert_eq!(client.inode_length(inode, &LAYOUT).await, Ok(0));
        assert_eq!(client.inode_length(InodeId(4999), &LAYOUT).await, Ok(3 * u64::from(CHUNK) + 10));
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

/// Somebody else extended the file, which raises its epoch, and wrote to it: those bytes go, too.
#[test]
fn a_hole_is_made_under_the_newest_epoch() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let file = create(&client, b"a", DIRECT).await;
        file.write_at(0, &[7; 2 * CHUNK as usize]).await.unwrap();
        let inode = file.inode();
        cluster.meta.truncate(inode.0, u64::from(3 * CHUNK));
        cluster.shards[0].chunks.borrow_mut().get_mut(&(inode.0, 0)).unwrap().epoch = 2;
        file.punch(0..u64::from(2 * CHUNK)).await.unwrap();
        assert!(!cluster.shards[0].chunks.borrow().keys().any(|(of, _)| *of == inode.0));
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn a_copy_that_fails_on_the_way_says_how_far_it_came() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let from = create(&client, b"from", DIRECT).await;
        let frame = corefs_wire::limits::FRAME_DATA_MAX;
        from.write_at(0, &vec![3; 2 * frame]).await.unwrap();
        let to = create(&client, b"to", DIRECT).await;
        let fine = vec![Fault::None; frame / CHUNK as usize];
        cluster.shards[0].fail_updates(fine.into_iter().chain([Fault::Refuse(ErrorCode::NoSpace)]));
        assert_eq!(to.copy_range(0, &from, 0, 2 * frame as u64).await, Ok(frame as u64));
        cluster.shards[0].fail_updates([Fault::Refuse(ErrorCode::NoSpace)]);
        let again = to.copy_range(frame as u64, &from, frame as u64, frame as u64).await;
        assert_eq!(again.unwrap_err().code, ErrorCode::NoSpace);
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

/// Random operations on two handles of one file against a plain vector, while connections end and servers refuse.
#[test]
fn random_operations_under_faults_match_a_plain_file() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        for seed in 1..=4u64 {
            fsx(&cluster, &client, seed).await;
        }
        client.close().await.unwrap();
        assert_eq!(client.pool().in_use(), 0);
        cluster.stop().await;
    });
}

async fn fsx(cluster: &Cluster, client: &Client, seed: u64) {
    let mut state = seed;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let file = create(client, format!("fsx{seed}").as_bytes(), BUFFERED).await;
    let open = OpenOptions { write: true, truncate: false, direct: true, ahead: false };
    let other = client.open(&ROOT, file.inode(), open).await.unwrap();
    let mut model: Vec<u8> = Vec::new();
    let shard = &cluster.shards[0];
    for step in 0..300usize {
        let handle = if random(3) == 0 { &other } else { &file };
        let size = [10, 5000, 100_000][random(3)];
        let (offset, len) = (random(4 * CHUNK as usize), 1 + random(size));
        if random(8) == 0 {
            let faults = [Fault::DoAndClose, Fault::Close, Fault::Refuse(ErrorCode::ChainBroken)];
            shard.fail_updates([faults[random(faults.len())]]);
        }
        // One at a time: three wrong checksums in a row are an error, rightly.
        if random(8) == 0 && shard.read_faults.borrow().is_empty() {
            shard.fail_reads([[Fault::Corrupt, Fault::Close, Fault::Refuse(ErrorCode::Pending)][random(3)]]);
        }
        match random(10) {
            0..4 => {
                let bytes: Vec<u8> = (0..len).map(|at| (at + step) as u8).collect();
                handle.write_at(offset as u64, &bytes).await.unwrap();
                model.resize(model.len().max(offset + len), 0);
                model[offset..offset + len].copy_from_slice(&bytes);
            }
            4 => {
                handle.append(&[step as u8; 77]).await.unwrap();
                model.extend([step as u8; 77]);
            }
            5 => handle.sync().await.unwrap(),
            6 if step % 3 == 0 => {
                // What the metadata server would do with the chunks.
                handle.truncate(offset as u64).await.unwrap();
                let attr = handle.attr();
                client.truncate_chunks(attr.inode, &LAYOUT, offset as u64, attr.epoch).await.unwrap();
                model.resize(offset, 0);
            }
            _ => {
                let data = handle.read_at(offset as u64, len).await.unwrap();
                let (start, end) = (offset.min(model.len()), (offset + len).min(model.len()));
                assert!(*data == model[start..end], "seed {seed} step {step}: {len} bytes at {offset}");
            }
        }
        assert_eq!(handle.length(), model.len() as u64, "seed {seed} step {step}");
    }
    let inode = file.inode();
    file.close().await.unwrap();
    other.close().await.unwrap();
    assert_eq!(meta_size(cluster, inode), model.len() as u64);
    assert!(stored(cluster, inode, model.len()) == model, "seed {seed}");
}
