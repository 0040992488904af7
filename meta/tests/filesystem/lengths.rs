//! Sessions, lengths, truncation and garbage: what survives a crash at each step, and that old bytes never come back.

use crate::support::client::{Client, ROOT, root};
use crate::support::{CHUNK, World, another, assert_clean, code, fresh};
use corefs_meta::gc::{GcCursor, GcLimits};
use corefs_wire::ErrorCode::*;
use corefs_wire::control::meta::*;
use futures_lite::future::block_on;
use std::time::Duration;

fn over_fresh(test: impl AsyncFnOnce(&Client, &World)) {
    block_on(async {
        let (fs, world) = fresh().await;
        test(&root(&fs), &world).await;
        assert_clean(&fs).await;
    });
}

/// An open file with `length` bytes of sevens, synced.
async fn file_with(client: &Client, world: &World, name: &[u8], length: u64) -> (u64, u64) {
    let mut request = client.create_request(ROOT, name, Kind::File, 0o644);
    request.open = true;
    let made = client.send_create(request).await.unwrap();
    assert_ne!(made.session, 0);
    world.write(made.attr.inode, 1, 0, &vec![7; length as usize]).unwrap();
    assert_eq!(client.sync(made.attr.inode, made.session, length, 1).await.unwrap().size, length);
    (made.attr.inode, made.session)
}

async fn collect(client: &Client) -> (usize, usize) {
    let collected = client.fs.collect_garbage(&mut GcCursor::default(), GcLimits::default()).await.unwrap();
    (collected.removed, collected.held)
}

#[test]
fn lengths_grow_and_times_follow() {
    over_fresh(async |client, world| {
        let (file, session) = file_with(client, world, b"f", 10).await;
        assert_eq!(client.sync(file, session, 5, 1).await.unwrap().size, 10);
        let mut close = client.close_request(file, session, 20);
        (close.epoch, close.mtime) = (1, world.time() + 1000);
        let closed = client.send_close(close.clone()).await.unwrap();
        assert_eq!((closed.size, closed.mtime), (20, close.mtime));
        assert_eq!(code(client.send_close(close).await), NoSuchSession);
        assert_eq!(code(client.sync(file, session, 30, 1).await), NoSuchSession);
        assert_eq!(world.trims() + world.lengths_asked(), 0);
    });
}

#[test]
fn a_close_sets_attributes_too() {
    over_fresh(async |client, world| {
        let (file, session) = file_with(client, world, b"f", 10).await;
        let mut close = client.close_request(file, session, 20);
        let mut set = SetAttrFieldsT::default();
        (set.mask, set.mode, set.mtime) = (1 | 32, 0o400, 5);
        close.set = Some(Box::new(set.clone()));
        let closed = client.send_close(close.clone()).await.unwrap();
        assert_eq!((closed.size, closed.mode, closed.mtime), (20, 0o400, 5));
        set.mask = 8;
        close.set = Some(Box::new(set));
        assert_eq!(code(client.send_close(close).await), InvalidArgument);
    });
}

#[test]
fn sessions_belong_to_their_client() {
    over_fresh(async |client, world| {
        let (file, session) = file_with(client, world, b"f", 10).await;
        let thief = Client::new(client.fs.clone(), 200);
        assert_eq!(code(thief.close(file, session, 99).await), NoSuchSession);
        assert_eq!(code(client.sync(file, session, u64::MAX, 1).await), FileTooLarge);
        assert_eq!(code(client.sync(file, session, 20, 9).await), InvalidArgument);
        assert_eq!(client.stat(file).await.unwrap().size, 10);
    });
}

#[test]
fn only_holding_and_writing_begin_sessions() {
    over_fresh(async |client, _| {
        let file = client.create(ROOT, b"f", 0o644).await.unwrap().inode;
        assert_eq!(client.open(file, false, false).await.unwrap().session, 0);
        let held = client.send_open(file, false, false, true).await.unwrap().session;
        let writing = client.open(file, true, false).await.unwrap().session;
        assert!(held != 0 && writing != 0 && held != writing);
        // One that only reads can't move the length.
        assert_eq!(client.close(file, held, 50).await.unwrap().size, 0);
        assert_eq!(client.close(file, writing, 50).await.unwrap().size, 50);
        assert_eq!(code(client.open(ROOT, true, false).await), IsDirectory);
        assert_eq!(client.open(ROOT, false, false).await.unwrap().attr.inode, ROOT);
        assert_eq!(code(client.open(99, true, false).await), NoSuchInode);
    });
}

#[test]
fn shrinking_cuts_chunks_and_raises_the_epoch() {
    over_fresh(async |client, world| {
        let length = 3 * u64::from(CHUNK);
        let (file, session) = file_with(client, world, b"f", length).await;
        let attr = client.truncate(file, 100).await.unwrap();
        assert_eq!((attr.size, attr.epoch), (100, 3));
        assert_eq!(client.stat(file).await.unwrap(), attr);
        assert_eq!(code(world.write(file, 1, 0, b"late")), StaleLayout);
        // Made longer again, it is zeros.
        let attr = client.truncate(file, length).await.unwrap();
        assert_eq!(attr.size, length);
        assert_eq!(world.read(file, 0, 100), vec![7; 100]);
        assert!(world.read(file, 100, length as usize - 100).iter().all(|byte| *byte == 0));
        client.close(file, session, 0).await.unwrap();
    });
}

#[test]
fn nothing_is_cut_where_nothing_can_be() {
    over_fresh(async |client, world| {
        let file = client.create(ROOT, b"f", 0o644).await.unwrap();
        assert_eq!(client.truncate(file.inode, 0).await.unwrap().epoch, 1);
        assert_eq!(client.truncate(file.inode, 500).await.unwrap().size, 500);
        let opened = client.open(file.inode, true, true).await.unwrap();
        assert_eq!((opened.attr.size, opened.attr.epoch, world.trims()), (0, 3, 1));
        client.close(file.inode, opened.session, 0).await.unwrap();
        let opened = client.open(file.inode, true, true).await.unwrap();
        assert_eq!((opened.attr.epoch, world.trims()), (3, 1));
        assert!(opened.attr.mtime > file.mtime && opened.attr.ctime > file.ctime);
        client.close(file.inode, opened.session, 0).await.unwrap();
    });
}

#[test]
fn what_was_written_and_never_synced_is_cut_too() {
    over_fresh(async |client, world| {
        let (file, session) = file_with(client, world, b"f", 0).await;
        world.write(file, 1, 1000, &[7; 1000]).unwrap();
        let attr = client.truncate(file, 500).await.unwrap();
        assert_eq!((attr.size, attr.epoch), (500, 3));
        client.truncate(file, 5000).await.unwrap();
        assert!(world.read(file, 0, 5000).iter().all(|byte| *byte == 0));
        client.close(file, session, 0).await.unwrap();
    });
}

#[test]
fn a_length_of_before_the_truncation_is_not_believed() {
    over_fresh(async |client, world| {
        let (file, session) = file_with(client, world, b"f", 1000).await;
        let other = Client::new(client.fs.clone(), 200);
        // Written, truncated by somebody else, and only then reported: it was cut.
        world.write(file, 1, 2000, &[8; 1000]).unwrap();
        other.truncate(file, 10).await.unwrap();
        let attr = client.sync(file, session, 3000, 1).await.unwrap();
        assert_eq!((attr.size, attr.epoch), (10, 3));
        // Under the old epoch, but into a chunk that the truncation never met: it is there, and counts.
        let far = 5 * u64::from(CHUNK);
        world.write(file, 1, far, &[9; 10]).unwrap();
        assert_eq!(client.sync(file, session, far + 10, 1).await.unwrap().size, far + 10);
        // A client that doesn't say which epoch means the session's.
        other.truncate(file, 10).await.unwrap();
        assert_eq!(client.sync(file, session, far + 10, 0).await.unwrap().size, 10);
        // Under the present epoch it is believed at once.
        let asked = world.lengths_asked();
        assert_eq!(client.close(file, session, 77).await.unwrap().size, 10);
        let session = client.open(file, true, false).await.unwrap().session;
        world.write(file, 5, 0, &[1; 99]).unwrap();
        assert_eq!(client.close(file, session, 99).await.unwrap().size, 99);
        assert_eq!(world.lengths_asked(), asked + 1);
    });
}

#[test]
fn a_truncation_that_was_cut_short_is_finished_by_whoever_comes() {
    // Who comes next, and what the length is then.
    type Next = fn(Client, u64, u64) -> std::pin::Pin<Box<dyn Future<Output = u64>>>;
    let sync: Next = |client, file, session| {
        Box::pin(async move { client.sync(file, session, 10, 0).await.unwrap().size })
    };
    let truncate: Next =
        |client, file, _| Box::pin(async move { client.truncate(file, 300).await.unwrap().size });
    let open: Next =
        |client, file, _| Box::pin(async move { client.open(file, true, true).await.unwrap().attr.size });
    let background: Next = |client, file, _| {
        Box::pin(async move {
            assert_eq!(client.fs.finish_trims().await, (1, Ok(())));
            client.stat(file).await.unwrap().size
        })
    };
    for (next, expected) in [(sync, 100), (truncate, 300), (open, 0), (background, 100)] {
        over_fresh(async |client, world| {
            let (file, session) = file_with(client, world, b"f", 1000).await;
            world.fail_chunks(1);
            assert_eq!(code(client.truncate(file, 100).await), Unreachable);
            // It hasn't happened for anybody yet.
            let attr = client.stat(file).await.unwrap();
            assert_eq!((attr.size, attr.epoch), (1000, 1));
            assert_clean(&client.fs).await;
            let heir = Client::new(another(&client.fs), client.id);
            (0..50).for_each(|_| drop(heir.caller()));
            assert_eq!(next(heir, file, session).await, expected);
            let attr = client.stat(file).await.unwrap();
            assert!(attr.epoch >= 3);
            // The first caller asks again and is told that it was done.
            assert_eq!(client.again().truncate(file, 100).await.unwrap().size, 100);
            assert_eq!(client.stat(file).await.unwrap().size, expected);
            client.truncate(file, 2000).await.unwrap();
            let kept = expected.min(100) as usize;
            assert!(world.read(file, kept as u64, 2000).iter().all(|byte| *byte == 0));
            assert_eq!(client.fs.finish_trims().await, (0, Ok(())));
        });
    }
}

#[test]
fn a_repeated_truncation_answers_only_when_it_is_done() {
    over_fresh(async |client, world| {
        let (file, _) = file_with(client, world, b"f", 1000).await;
        world.fail_chunks(2);
        assert_eq!(code(client.truncate(file, 100).await), Unreachable);
        assert_eq!(code(client.again().truncate(file, 100).await), Unreachable);
        let attr = client.again().truncate(file, 100).await.unwrap();
        assert_eq!(attr, client.stat(file).await.unwrap());
        assert_eq!((attr.size, attr.epoch), (100, 3));
    });
}

#[test]
fn an_open_file_outlives_its_names() {
    over_fresh(async |client, world| {
        let (file, session) = file_with(client, world, b"f", 1000).await;
        let held = client.send_open(file, false, false, true).await.unwrap().session;
        client.unlink(ROOT, b"f").await.unwrap();
        assert_eq!(collect(client).await, (0, 1));
        assert_clean(&client.fs).await;
        // Everything but naming it goes on.
        assert_eq!(client.stat(file).await.unwrap().nlink, 0);
        assert_eq!(client.close(file, session, 2000).await.unwrap().size, 2000);
        assert_eq!(client.truncate(file, 500).await.unwrap().size, 500);
        assert_eq!(collect(client).await, (0, 1));
        assert_eq!(world.read(file, 0, 500), vec![7; 500]);
        client.close(file, held, 0).await.unwrap();
        assert_eq!(collect(client).await, (1, 0));
        assert_eq!(code(client.stat(file).await), NoSuchInode);
        assert_eq!(code(client.open(file, true, false).await), NoSuchInode);
        assert!(world.inodes_with_chunks().is_empty());
        assert_eq!(client.fs.statfs(&StatFsT::default()).await.unwrap().files, 1);
    });
}

#[test]
fn who_opened_a_file_as_its_name_went_has_a_moment_to_hold_it() {
    over_fresh(async |client, world| {
        let limits = GcLimits { grace: Duration::from_millis(1), ..GcLimits::default() };
        let mut cursor = GcCursor::default();
        let mut collect = async || {
            let collected = client.fs.collect_garbage(&mut cursor, limits).await.unwrap();
            (collected.removed, collected.held)
        };
        let mut unlink = UnlinkT::default();
        (unlink.caller, unlink.parent, unlink.name) = (client.caller(), ROOT, b"f".to_vec());
        let (file, session) = file_with(client, world, b"f", 1000).await;
        client.close(file, session, 0).await.unwrap();
        assert_eq!(client.fs.unlink(&unlink).await.unwrap().inode, file);
        assert_eq!(client.fs.unlink(&unlink).await.unwrap().inode, file, "as it was told the first time");
        // The clock of the server that took the name away may be an hour behind.
        world.pass(3_600_000_000_000);
        assert_eq!(collect().await, (0, 1));
        let held = client.send_open(file, false, false, true).await.unwrap().session;
        world.pass(1_000_000);
        assert_eq!(collect().await, (0, 1));
        client.close(file, held, 0).await.unwrap();
        assert_eq!(collect().await, (0, 1));
        world.pass(1_000_000);
        assert_eq!(collect().await, (1, 0));
        assert_eq!(code(client.stat(file).await), NoSuchInode);
    });
}

#[test]
fn a_large_file_does_not_keep_small_ones_waiting() {
    over_fresh(async |client, world| {
        for (name, chunks) in [(&b"large"[..], 25), (b"small", 1)] {
            let (file, session) = file_with(client, world, name, chunks * u64::from(CHUNK)).await;
            client.close(file, session, 0).await.unwrap();
            client.unlink(ROOT, name).await.unwrap();
        }
        let (mut cursor, limits) =
            (GcCursor::default(), GcLimits { slice: Duration::from_millis(10), ..GcLimits::default() });
        let mut told = Vec::new();
        for _ in 0..4 {
            let collected = client.fs.collect_garbage(&mut cursor, limits).await.unwrap();
            told.push((collected.removed, collected.unfinished));
            assert_clean(&client.fs).await;
        }
        assert_eq!(told, [(1, 1), (0, 1), (1, 0), (0, 0)]);
        assert!(world.inodes_with_chunks().is_empty());
    });
}

#[test]
fn only_what_was_open_for_writing_is_removed_from_storage() {
    over_fresh(async |client, world| {
        let made = async |name: &[u8]| client.create(ROOT, name, 0o644).await.unwrap().inode;
        // Read, held and made longer, but never written.
        let idle = made(b"idle").await;
        client.truncate(idle, 100).await.unwrap();
        client.open(idle, false, true).await.unwrap();
        let held = client.send_open(idle, false, false, true).await.unwrap().session;
        client.unlink(ROOT, b"idle").await.unwrap();
        assert_eq!(collect(client).await, (0, 1));
        client.close(idle, held, 0).await.unwrap();
        assert_eq!(collect(client).await, (1, 0));
        assert_eq!(world.removals(), 0);
        // Each way to begin to write.
        let opened = made(b"opened").await;
        client.open(opened, true, false).await.unwrap();
        let emptied = made(b"emptied").await;
        client.open(emptied, true, true).await.unwrap();
        let found = made(b"found").await;
        let made_open = client.create_request(ROOT, b"open", Kind::File, 0o644);
        for (name, exclusive) in [(&b"found"[..], false), (b"open", true)] {
            let mut request = made_open.clone();
            (request.name, request.open, request.exclusive) = (name.to_vec(), true, exclusive);
            client.send_create(request).await.unwrap();
        }
        let open = client.lookup(ROOT, b"open").await.unwrap().inode;
        for file in [opened, emptied, found, open] {
            world.write(file, 3, 0, b"bytes").unwrap();
        }
        world.kill(client.id);
        let other = Client::new(client.fs.clone(), 200);
        other.fs.settle_dead_clients().await.unwrap();
        for name in [&b"opened"[..], b"emptied", b"found", b"open"] {
            other.unlink(ROOT, name).await.unwrap();
        }
        assert_eq!(collect(&other).await, (4, 0));
        assert_eq!(world.removals(), 4);
        assert!(world.inodes_with_chunks().is_empty());
        assert_eq!(other.fs.statfs(&StatFsT::default()).await.unwrap().files, 1);
    });
}

/// On a store that is far away a transaction has the time for a few round trips, not for one an inode.
#[test]
fn many_inodes_are_doomed_in_few_round_trips() {
    over_fresh(async |client, world| {
        for number in 0..64u64 {
            let name = format!("{number}");
            let (file, session) = file_with(client, world, name.as_bytes(), 10).await;
            client.close(file, session, 10).await.unwrap();
            client.unlink(ROOT, name.as_bytes()).await.unwrap();
        }
        let before = client.fs.kv().reads();
        assert_eq!(collect(client).await, (64, 0));
        let trips = client.fs.kv().reads() - before;
        assert!(trips <= 4, "{trips} round trips");
    });
}

#[test]
fn garbage_is_removed_in_pages_and_failures_wait() {
    over_fresh(async |client, world| {
        for number in 0..200u64 {
            let (file, session) = file_with(client, world, format!("{number}").as_bytes(), 10).await;
            client.close(file, session, 10).await.unwrap();
        }
        for number in 0..200u64 {
            // Replacing is as good as removing.
            match number % 2 {
                0 => client.unlink(ROOT, format!("{number}").as_bytes()).await.unwrap(),
                _ => {
                    client.create(ROOT, b"new", 0o644).await.unwrap();
                    let to = format!("{number}");
                    client.rename((ROOT, b"new"), (ROOT, to.as_bytes()), 0).await.unwrap();
                }
            }
        }
        let (mut cursor, limits) =
            (GcCursor::default(), GcLimits { rows: 30, concurrency: 4, ..GcLimits::default() });
        world.fail_chunks(5);
        let (mut removed, mut failed) = (0, 0);
        for _ in 0..7 {
            let collected = client.fs.collect_garbage(&mut cursor, limits).await.unwrap();
            removed += collected.removed;
            failed += collected.failed;
        }
        assert_eq!((removed, failed), (195, 5));
        assert_clean(&client.fs).await;
        let collected = client.fs.collect_garbage(&mut cursor, limits).await.unwrap();
        assert_eq!((collected.removed, collected.more), (5, false));
        assert!(world.inodes_with_chunks().is_empty());
        assert_eq!(client.fs.statfs(&StatFsT::default()).await.unwrap().files, 101);
    });
}

#[test]
fn what_a_dead_client_wrote_counts() {
    over_fresh(async |client, world| {
        let (file, _) = file_with(client, world, b"f", 1000).await;
        let (gone, _) = file_with(client, world, b"gone", 1000).await;
        let reader = client.send_open(file, false, false, true).await.unwrap().session;
        world.write(file, 1, 5000, &[8; 100]).unwrap();
        client.unlink(ROOT, b"gone").await.unwrap();
        let living = Client::new(client.fs.clone(), 200);
        let kept = living.open(file, true, false).await.unwrap().session;
        let swept = living.fs.settle_dead_clients().await.unwrap();
        assert_eq!((swept.dead_clients, swept.sessions_settled), (0, 0));

        world.kill(client.id);
        world.fail_chunks(1);
        let swept = living.fs.settle_dead_clients().await.unwrap();
        assert_eq!((swept.dead_clients, swept.sessions_settled, swept.failed), (1, 2, 1));
        let swept = living.fs.settle_dead_clients().await.unwrap();
        assert_eq!((swept.dead_clients, swept.sessions_settled, swept.failed), (1, 1, 0));
        assert_eq!(living.stat(file).await.unwrap().size, 5100);
        assert_eq!(code(client.close(file, reader, 0).await), NoSuchSession);
        assert_eq!(living.fs.settle_dead_clients().await.unwrap().dead_clients, 0);
        assert_eq!(collect(&living).await, (1, 0));
        assert_eq!(world.inodes_with_chunks(), [file].into());
        assert_ne!(gone, file);
        living.close(file, kept, 0).await.unwrap();
        // Nothing is left in the dead client's name.
        assert_eq!(living.fs.check().await.unwrap().sessions, 0);
        let of_dead =
            |key: &[u8]| key[5] != b'L' && key.windows(8).any(|part| part == client.id.to_be_bytes());
        assert!(!living.fs.kv().dump().iter().any(|(key, _)| of_dead(key)));
    });
}

#[test]
fn a_dead_client_does_not_undo_a_truncation() {
    over_fresh(async |client, world| {
        let (file, _) = file_with(client, world, b"f", 1000).await;
        let living = Client::new(client.fs.clone(), 200);
        world.kill(client.id);
        world.fail_chunks(1);
        assert_eq!(code(living.truncate(file, 10).await), Unreachable);
        let swept = living.fs.settle_dead_clients().await.unwrap();
        assert_eq!((swept.sessions_settled, swept.failed), (1, 0));
        let attr = living.stat(file).await.unwrap();
        assert_eq!((attr.size, attr.epoch), (10, 3));
    });
}

#[test]
fn appends_get_places_that_do_not_meet() {
    over_fresh(async |client, world| {
        let (file, session) = file_with(client, world, b"f", 10).await;
        let other = Client::new(client.fs.clone(), 200);
        let theirs = other.open(file, true, false).await.unwrap().session;
        assert_eq!(client.append(file, session, (5, 0), 1).await, Ok(10));
        assert_eq!(other.append(file, theirs, (100, 0), 1).await, Ok(15));
        // What a client knows of its own bytes is its own affair: it may give a place up, and goes behind the others'.
        assert_eq!(client.append(file, session, (5, 12), 1).await, Ok(115));
        assert_eq!(other.append(file, theirs, (1, 0), 1).await, Ok(120));
        assert_eq!(client.stat(file).await.unwrap().size, 10, "nothing was written yet");
        client.close(file, session, 120).await.unwrap();
        assert_eq!(other.append(file, theirs, (1, 0), 1).await, Ok(120));

        assert_eq!(code(other.append(file, theirs, (0, 0), 1).await), InvalidArgument);
        assert_eq!(code(other.append(file, session, (1, 0), 1).await), NoSuchSession);
        assert_eq!(code(client.append(file, theirs, (1, 0), 1).await), NoSuchSession);
        let reader = other.send_open(file, false, false, true).await.unwrap().session;
        assert_eq!(code(other.append(file, reader, (1, 0), 1).await), NoSuchSession, "it can't write");
        assert_eq!(code(other.append(file, theirs, (u64::MAX, 0), 1).await), FileTooLarge);
        assert_eq!(code(other.append(file, theirs, (1, u64::MAX), 1).await), FileTooLarge);
        assert_eq!(code(other.append(file, theirs, (1, 0), 3).await), StaleLayout);
    });
}

#[test]
fn a_truncation_takes_the_places_of_appends_along() {
    over_fresh(async |client, world| {
        let (file, session) = file_with(client, world, b"f", 10).await;
        let other = Client::new(client.fs.clone(), 200);
        let theirs = other.open(file, true, false).await.unwrap().session;
        client.append(file, session, (500, 0), 1).await.unwrap();
        let epoch = other.truncate(file, 4).await.unwrap().epoch;
        assert_eq!(code(client.append(file, session, (5, 0), 1).await), StaleLayout);
        assert_eq!(other.append(file, theirs, (5, 0), epoch).await, Ok(4));
        assert_eq!(client.append(file, session, (5, 0), epoch).await, Ok(9));
        // A truncation that its server left halfway is finished first.
        world.fail_chunks(1);
        assert_eq!(code(other.truncate(file, 2).await), Unreachable);
        assert_eq!(code(client.append(file, session, (5, 0), epoch).await), StaleLayout);
        assert_eq!(client.append(file, session, (5, 0), epoch + 2).await, Ok(2));
    });
}

#[test]
fn a_request_for_a_place_that_comes_twice_gets_the_same() {
    over_fresh(async |client, world| {
        let (file, session) = file_with(client, world, b"f", 10).await;
        let other = Client::new(client.fs.clone(), 200);
        let theirs = other.open(file, true, false).await.unwrap().session;
        assert_eq!(client.append(file, session, (5, 0), 1).await, Ok(10));
        assert_eq!(other.append(file, theirs, (5, 0), 1).await, Ok(15));
        assert_eq!(client.again().append(file, session, (5, 0), 1).await, Ok(10));
        assert_eq!(other.append(file, theirs, (5, 0), 1).await, Ok(15), "the first asked once");
    });
}

#[test]
fn the_place_of_a_dead_client_stays_its_own() {
    over_fresh(async |client, world| {
        let (file, session) = file_with(client, world, b"f", 10).await;
        let other = Client::new(client.fs.clone(), 200);
        let theirs = other.open(file, true, false).await.unwrap().session;
        client.append(file, session, (5, 0), 1).await.unwrap();
        world.kill(client.id);
        assert_eq!(other.fs.settle_dead_clients().await.unwrap().sessions_settled, 1);
        // What it sent may arrive still.
        assert_eq!(other.append(file, theirs, (5, 0), 1).await, Ok(15));
        assert_eq!(other.stat(file).await.unwrap().size, 15);
    });
}

/// Whoever takes the last name of a file that he has open for reading begins a session in the same step, if he says that he has.
#[test]
fn an_unlinked_file_is_held_by_whoever_names_it() {
    over_fresh(async |client, world| {
        let file = client.create(ROOT, b"f", 0o644).await.unwrap().inode;
        world.write(file, 1, 0, &[7; 10]).unwrap();
        client.link(file, ROOT, b"g").await.unwrap();
        let unlink = async |client: &Client, name: &[u8], hold: Vec<u64>| {
            let mut request = UnlinkT::default();
            (request.caller, request.parent, request.name) = (client.caller(), ROOT, name.to_vec());
            request.hold = Some(hold);
            client.fs.unlink(&request).await
        };
        let first = unlink(client, b"f", vec![5, file]).await.unwrap();
        assert_eq!((first.inode, first.session), (file, 0), "it has another name");
        let last = unlink(client, b"g", vec![5, file]).await.unwrap();
        assert!(last.inode == file && last.session != 0);
        assert_eq!(
            unlink(client.again(), b"g", vec![5, file]).await.unwrap(),
            last,
            "an answer that was lost"
        );
        assert_eq!(collect(client).await, (0, 1));
        client.close(file, last.session, 0).await.unwrap();
        assert_eq!(collect(client).await, (1, 0));

        // A file that is replaced, and one that nobody names.
        for (hold, held) in [(true, 1), (false, 0)] {
            let file = client.create(ROOT, b"f", 0o644).await.unwrap().inode;
            client.create(ROOT, b"new", 0o644).await.unwrap();
            let mut request = RenameT::default();
            (request.caller, request.hold) = (client.caller(), hold.then(|| vec![file]));
            (request.parent, request.name) = (ROOT, b"new".to_vec());
            (request.new_parent, request.new_name) = (ROOT, b"f".to_vec());
            let gone = client.fs.rename(&request).await.unwrap();
            assert_eq!((gone.inode, gone.session != 0), (file, hold));
            assert_eq!(collect(client).await.1, held);
            if hold {
                client.close(file, gone.session, 0).await.unwrap();
            }
            client.unlink(ROOT, b"f").await.unwrap();
            collect(client).await;
        }
        assert_eq!(code(unlink(client, b"f", vec![1; 65]).await), InvalidArgument);
    });
}
