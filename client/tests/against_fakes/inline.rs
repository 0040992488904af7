//! Files that keep their bytes with their inodes: what they cost in calls, and that nothing is lost when they stop doing so.

use crate::fake::{Cluster, run};
use corefs_client::{Client, CreateOptions, Credentials, File, OpenOptions};
use corefs_wire::limits::INLINE_MAX;
use corefs_wire::{ErrorCode, ROOT_INODE};
use std::rc::Rc;

const ROOT: Credentials = Credentials::root();

fn keeping() -> Cluster {
    let cluster = Cluster::start(1);
    cluster.meta.keeps.set(true);
    cluster
}

async fn create(client: &Client, name: &[u8], direct: bool) -> File {
    let options = CreateOptions { exclusive: true, direct, ..CreateOptions::default() };
    client.create(&ROOT, ROOT_INODE, name, options).await.unwrap().0
}

fn kept(cluster: &Cluster, file: &File) -> Option<Vec<u8>> {
    cluster.meta.kept.borrow().get(&file.inode().0).cloned()
}

fn chunks(cluster: &Cluster) -> usize {
    cluster.shards[0].chunks.borrow().len()
}

#[test]
fn a_small_file_is_two_calls_and_its_read_one() {
    run(|| async {
        let cluster = keeping();
        let client = cluster.client().await;
        let file = create(&client, b"a", false).await;
        file.write_at(0, b"hello ").await.unwrap();
        file.write_at(6, b"world").await.unwrap();
        file.finish().await.unwrap();
        assert_eq!(*cluster.meta.calls.borrow(), ["meta.create", "meta.close"]);
        assert_eq!((kept(&cluster, &file).unwrap(), chunks(&cluster)), (b"hello world".to_vec(), 0));
        file.close().await.unwrap();
        let inode = cluster.meta.names.borrow()[&(1, b"a".to_vec())];
        cluster.meta.calls.borrow_mut().clear();
        let ahead = OpenOptions { ahead: true, ..OpenOptions::default() };
        let file = client.open(&ROOT, corefs_wire::InodeId(inode), ahead).await.unwrap();
        assert_eq!(&file.read_at(6, 100).await.unwrap()[..], b"world");
        assert_eq!(*cluster.meta.calls.borrow(), ["meta.open"]);
        // What was done here since counts, whatever came with the open.
        let writer = client.open(&ROOT, file.inode(), OpenOptions { write: true, ..ahead }).await.unwrap();
        writer.write_at(0, b"HELLO").await.unwrap();
        assert_eq!(&file.read_at(0, 100).await.unwrap()[..], b"HELLO world");
        writer.close().await.unwrap();
        file.close().await.unwrap();
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn direct_writes_and_appends_go_to_the_inode_too() {
    run(|| async {
        let cluster = keeping();
        let client = cluster.client().await;
        let file = create(&client, b"a", true).await;
        file.write_at(2, b"abc").await.unwrap();
        assert_eq!(kept(&cluster, &file).unwrap(), b"\0\0abc");
        file.append(b"def").await.unwrap();
        assert_eq!(kept(&cluster, &file).unwrap(), b"\0\0abcdef");
        assert_eq!(&file.read_at(0, 100).await.unwrap()[..], b"\0\0abcdef");
        assert_eq!((file.find_data(1).await, file.find_hole(1).await), (Ok(1), Ok(8)));
        file.punch(3..5).await.unwrap();
        assert_eq!(&file.read_at(0, 100).await.unwrap()[..], b"\0\0a\0\0def");
        file.extend(20).await.unwrap();
        file.close().await.unwrap();
        assert_eq!(chunks(&cluster), 0);
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn what_becomes_large_goes_to_chunks() {
    run(|| async {
        let cluster = keeping();
        let client = cluster.client().await;
        for direct in [false, true] {
            let file = create(&client, if direct { b"direct" } else { b"behind" }, direct).await;
            file.write_at(0, &vec![1; INLINE_MAX]).await.unwrap();
            file.flush().await.unwrap();
            assert_eq!(kept(&cluster, &file).unwrap().len(), INLINE_MAX);
            file.write_at(INLINE_MAX as u64, b"x").await.unwrap();
            file.sync().await.unwrap();
            assert!(kept(&cluster, &file).is_none() && chunks(&cluster) > 0);
            assert_eq!(file.length(), INLINE_MAX as u64 + 1);
            assert_eq!(&file.read_at(INLINE_MAX as u64, 9).await.unwrap()[..], b"x");
            file.close().await.unwrap();
        }
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

/// Somebody else makes the file long while bytes wait here: they go to chunks.
#[test]
fn bytes_that_come_too_late_for_the_inode_are_not_lost() {
    run(|| async {
        let cluster = keeping();
        let client = cluster.client().await;
        for end in 0..3 {
            let file = create(&client, &[b'a' + end], false).await;
            file.write_at(3, b"late").await.unwrap();
            cluster.meta.move_out(file.inode().0);
            match end {
                0 => file.finish().await.unwrap(),
                1 => file.sync().await.unwrap(),
                _ => assert_eq!(&file.read_at(3, 4).await.unwrap()[..], b"late"),
            }
            let stored =
                cluster.shards[0].chunks.borrow().get(&(file.inode().0, 0)).map(|chunk| chunk.bytes.clone());
            assert_eq!(&stored.unwrap()[3..7], b"late");
            file.close().await.unwrap();
        }
        client.close().await.unwrap();
        assert!(cluster.meta.sessions.borrow().is_empty(), "none is left behind");
        cluster.stop().await;
    });
}

/// The answer to a close is lost, or the session is, or the server refuses: the bytes arrive, or whoever closes hears that they didn't.
#[test]
fn a_close_that_fails_keeps_its_bytes() {
    run(|| async {
        let cluster = keeping();
        let client = cluster.client().await;
        let meta = Rc::clone(&cluster.meta);
        for (at, fault) in [ErrorCode::ConnectionLost, ErrorCode::NoSuchSession, ErrorCode::KvUnavailable]
            .into_iter()
            .enumerate()
        {
            let file = create(&client, &[b'a' + at as u8], false).await;
            file.write_at(0, b"bytes").await.unwrap();
            meta.faults.borrow_mut().push_back(Some(fault));
            file.finish().await.unwrap();
            assert_eq!(kept(&cluster, &file).unwrap(), b"bytes", "{fault:?}");
            file.close().await.unwrap();
        }
        let file = create(&client, b"z", false).await;
        file.write_at(0, b"bytes").await.unwrap();
        (0..8).for_each(|_| meta.faults.borrow_mut().push_back(Some(ErrorCode::KvTooLarge)));
        assert_eq!(file.finish().await.unwrap_err().code, ErrorCode::KvTooLarge);
        meta.faults.borrow_mut().clear();
        file.close().await.unwrap();
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

/// fallocate(2) gives a length that no byte has; whoever moves the bytes out, or cuts the file, knows of it.
#[test]
fn a_length_without_bytes_is_told_at_once() {
    run(|| async {
        let cluster = keeping();
        let client = cluster.client().await;
        for (name, elsewhere) in [(b"a", false), (b"b", true)] {
            let file = create(&client, name, false).await;
            file.extend(1 << 20).await.unwrap();
            let size = |cluster: &Cluster| cluster.meta.inodes.borrow()[&file.inode().0].size;
            assert_eq!(size(&cluster), 1 << 20);
            if elsewhere {
                cluster.meta.move_out(file.inode().0);
            }
            file.write_at(0, &vec![1; 2 * INLINE_MAX]).await.unwrap();
            assert_eq!(file.length(), 1 << 20);
            file.sync().await.unwrap();
            assert_eq!((file.length(), size(&cluster)), (1 << 20, 1 << 20));
            file.close().await.unwrap();
        }
        let file = create(&client, b"c", false).await;
        file.extend(100 << 10).await.unwrap();
        file.write_at(0, &[1; 9000]).await.unwrap();
        file.truncate(9000).await.unwrap();
        assert_eq!(file.length(), 9000);
        file.close().await.unwrap();
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

/// What somebody else has cut off isn't written as zeros again.
#[test]
fn a_hole_lengthens_no_file() {
    run(|| async {
        let cluster = keeping();
        let client = cluster.client().await;
        let file = create(&client, b"a", true).await;
        file.write_at(0, &[1; 100]).await.unwrap();
        let meta = &cluster.meta;
        meta.kept.borrow_mut().get_mut(&file.inode().0).unwrap().truncate(10);
        meta.truncate(file.inode().0, 10);
        file.punch(0..100).await.unwrap();
        assert_eq!(file.length(), 10);
        assert_eq!(kept(&cluster, &file).unwrap(), [0; 10]);
        file.close().await.unwrap();
        client.close().await.unwrap();
        cluster.stop().await;
    });
}

/// Appends of this client and another's keep every byte when the file has to move out, in one piece each.
#[test]
fn appends_outgrow_the_inode() {
    run(|| async {
        let cluster = keeping();
        let client = cluster.client().await;
        for direct in [false, true] {
            let file = create(&client, if direct { b"direct" } else { b"behind" }, direct).await;
            for line in 0..30u8 {
                file.append(&[line; 1000]).await.unwrap();
                if line % 7 == 0 {
                    file.flush().await.unwrap();
                }
                assert_eq!(file.length(), (u64::from(line) + 1) * 1000);
            }
            file.sync().await.unwrap();
            assert!(kept(&cluster, &file).is_none());
            let bytes = file.read_at(0, 40_000).await.unwrap();
            assert_eq!(bytes.len(), 30_000);
            // The fake moves nothing to chunks: what was kept reads as zeros.
            let chunks = bytes.iter().position(|byte| *byte != 0).unwrap();
            assert!(chunks <= INLINE_MAX, "{chunks}");
            assert!((chunks..30_000).all(|at| bytes[at] == (at / 1000) as u8));
            file.close().await.unwrap();
        }
        let file = create(&client, b"shared", true).await;
        file.append(b"mine").await.unwrap();
        cluster.meta.taken.borrow_mut().insert(file.inode().0, 10);
        file.append(b"mine").await.unwrap();
        assert!(kept(&cluster, &file).is_none(), "two at once need chunks");
        file.close().await.unwrap();
        client.close().await.unwrap();
        cluster.stop().await;
    });
}
