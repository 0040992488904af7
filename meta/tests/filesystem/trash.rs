//! Whole trees that go: at once for whoever looks, and by and by for the store; what is moved out of one in time is kept.

use crate::support::client::{Client, ROOT, root};
use crate::support::{Fs, another, assert_clean, code, fresh, over, schedule};
use corefs_kv::mem::Faults;
use corefs_kv::prng::Prng;
use corefs_kv::{KvEngine, Mem, Transaction};
use corefs_meta::dirent::Dirent;
use corefs_meta::gc::{GcCursor, GcLimits};
use corefs_meta::trash::{TRASH_INODE, TrashCursor};
use corefs_wire::ErrorCode::*;
use corefs_wire::InodeId;
use corefs_wire::Result;
use corefs_wire::control::meta::{Kind, RmDirT};
use futures_lite::future::{block_on, yield_now};
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

type Task = Pin<Box<dyn Future<Output = ()>>>;
/// Directories that were moved out, and under which names.
type Kept = Rc<RefCell<Vec<(u64, Vec<u8>)>>>;

impl Client {
    async fn remove_tree(&self, parent: u64, name: &[u8]) -> Result<()> {
        let mut request = RmDirT::default();
        (request.caller, request.parent, request.name) = (self.caller(), parent, name.to_vec());
        request.tree = true;
        self.fs.rmdir(&request).await.map(drop)
    }
}

/// Empties it in rounds of a few names, and finds the namespace sound after each.
async fn empty(fs: &Rc<Fs>) -> usize {
    let (mut removed, mut cursor) = (0, TrashCursor::default());
    loop {
        let emptied = fs.empty_trash(&mut cursor).await.unwrap();
        assert_eq!(emptied.error, None);
        assert_clean(fs).await;
        removed += emptied.removed;
        if !emptied.more {
            return removed;
        }
    }
}

async fn inodes(fs: &Fs) -> u64 {
    fs.check().await.unwrap().inodes
}

#[test]
fn a_tree_goes_at_once_and_its_names_by_and_by() {
    block_on(async {
        let (fs, _) = fresh().await;
        let client = root(&fs);
        let top = client.mkdir(ROOT, b"top", 0o755).await.unwrap().inode;
        let kept = client.create(ROOT, b"kept", 0o644).await.unwrap().inode;
        let mut at = top;
        for depth in 0..5u8 {
            for name in 0..70u8 {
                client.create(at, &[b'f', b'0' + name], 0o644).await.unwrap();
            }
            // Of a file that stays, and twice of one that doesn't.
            client.link(kept, at, b"out").await.unwrap();
            let twice = client.create(at, b"one", 0o644).await.unwrap().inode;
            client.link(twice, at, b"other").await.unwrap();
            at = client.mkdir(at, &[b'd', b'0' + depth], 0o755).await.unwrap().inode;
        }
        client.remove_tree(ROOT, b"top").await.unwrap();
        assert_eq!(code(client.lookup(ROOT, b"top").await), NotFound);
        assert_eq!(code(client.again().lookup(ROOT, b"top").await), NotFound);
        assert_clean(&fs).await;
        assert_eq!(client.stat(ROOT).await.unwrap().nlink, 2);
        assert_eq!(client.stat(kept).await.unwrap().nlink, 6);
        assert_eq!(empty(&fs).await, 5 * (70 + 3) + 6);
        assert_eq!(client.stat(kept).await.unwrap().nlink, 1);
        assert_eq!(code(client.stat(top).await), NoSuchInode);
        let _collected = fs
            .collect_garbage(&mut GcCursor::default(), GcLimits { rows: 9999, ..GcLimits::default() })
            .await;
        assert_eq!(inodes(&fs).await, 3, "the root, the file that stays, and the trash");
        assert_clean(&fs).await;
    });
}

#[test]
fn who_may_and_what() {
    block_on(async {
        let (fs, _) = fresh().await;
        let client = root(&fs);
        client.mkdir(ROOT, b"dir", 0o777).await.unwrap();
        client.create(ROOT, b"file", 0o644).await.unwrap();
        client.chmod(ROOT, 0o777).await.unwrap();
        let user = Client::user(&fs, 200, 1000, 1000);
        assert_eq!(code(user.remove_tree(ROOT, b"dir").await), NotPermitted);
        assert_eq!(code(client.remove_tree(ROOT, b"file").await), NotDirectory);
        assert_eq!(code(client.remove_tree(ROOT, b"none").await), NotFound);
        assert_eq!(code(client.remove_tree(ROOT, b"..").await), InvalidName);
        assert_eq!(code(client.remove_tree(TRASH_INODE.0, b"inode-9").await), InvalidArgument);
        assert_eq!(inodes(&fs).await, 3, "no trash was made for what failed");
        client.remove_tree(ROOT, b"dir").await.unwrap();
        client.again().remove_tree(ROOT, b"dir").await.unwrap();
        assert_eq!(code(client.remove_tree(ROOT, b"dir").await), NotFound);
        // The same name again, while the first one waits.
        client.mkdir(ROOT, b"dir", 0o755).await.unwrap();
        client.remove_tree(ROOT, b"dir").await.unwrap();
        assert_eq!(empty(&fs).await, 2);
    });
}

#[test]
fn neither_depth_nor_width_matters() {
    block_on(async {
        let (fs, _) = fresh().await;
        let client = root(&fs);
        let top = client.mkdir(ROOT, b"top", 0o755).await.unwrap().inode;
        let mut at = top;
        for _ in 0..2000 {
            at = client.mkdir(at, b"d", 0o755).await.unwrap().inode;
        }
        for name in 0..1500 {
            client.create(top, format!("file-{name}").as_bytes(), 0o644).await.unwrap();
        }
        client.remove_tree(ROOT, b"top").await.unwrap();
        let (mut rounds, mut removed, mut cursor) = (0, 0, TrashCursor::default());
        loop {
            let emptied = fs.empty_trash(&mut cursor).await.unwrap();
            removed += emptied.removed;
            rounds += 1;
            if !emptied.more {
                break;
            }
        }
        assert_eq!(removed, 2001 + 1500);
        assert!(rounds < 2100, "{rounds}: each finds at least one directory to remove");
        assert_clean(&fs).await;
    });
}

/// What can't be read or doesn't fit stays and is told; everything else goes, and no round is without an end.
#[test]
fn damage_keeps_only_itself() {
    block_on(async {
        let (fs, _) = fresh().await;
        let client = root(&fs);
        let top = client.mkdir(ROOT, b"top", 0o755).await.unwrap().inode;
        let mut children = Vec::new();
        for name in [b"a", b"b", b"c", b"d"] {
            let child = client.mkdir(top, name, 0o755).await.unwrap().inode;
            client.create(child, b"file", 0o644).await.unwrap();
            children.push(child);
        }
        let other = client.mkdir(ROOT, b"other", 0o755).await.unwrap().inode;
        client.create(other, b"kept", 0o644).await.unwrap();
        let keys = fs.keys();
        let mut txn = fs.kv().begin();
        // An entry that leads nowhere, one that leads to a directory that hangs elsewhere, and one that can't be read.
        let leads = |to: u64| Dirent { inode: InodeId(to), kind: Kind::Directory }.encode();
        txn.set(&keys.dirent(InodeId(children[0]), b"nowhere"), &leads(999_999));
        txn.set(&keys.dirent(InodeId(children[1]), b"elsewhere"), &leads(other));
        txn.set(&keys.dirent(InodeId(children[2]), b"garbled"), &[99, 99]);
        txn.commit().await.unwrap();
        client.remove_tree(ROOT, b"top").await.unwrap();
        client.mkdir(ROOT, b"more", 0o755).await.unwrap();
        client.remove_tree(ROOT, b"more").await.unwrap();
        let (mut failures, mut cursor) = (0, TrashCursor::default());
        for round in 0.. {
            let emptied = fs.empty_trash(&mut cursor).await.unwrap();
            failures += emptied.failed;
            if !emptied.more {
                break;
            }
            assert!(round < 50, "there is no end");
        }
        assert!(failures >= 2);
        for (child, stays) in children.iter().zip([false, true, true, false]) {
            assert_eq!(client.stat(*child).await.is_ok(), stays, "{child}");
        }
        assert!(client.lookup(other, b"kept").await.is_ok());
        assert_eq!(code(client.stat(top).await), NoSuchInode);
    });
}

/// Programs still work in a tree that goes: what they make there goes too, what they move out stays, with all that is put there since.
#[test]
fn what_is_moved_out_in_time_stays() {
    for seed in 0..150 {
        let (fs, _) = block_on(over(Mem::with_faults(seed, Faults::default()), seed));
        let places: Vec<u64> = block_on(async {
            let client = root(&fs);
            let top = client.mkdir(ROOT, b"top", 0o755).await.unwrap().inode;
            client.mkdir(ROOT, b"live", 0o755).await.unwrap();
            let mut places = vec![top];
            let mut random = Prng::new(seed);
            for number in 0..8u8 {
                let above = places[random.below(places.len() as u64) as usize];
                places.push(client.mkdir(above, &[b'd', b'0' + number], 0o755).await.unwrap().inode);
            }
            for number in 0..20u8 {
                let at = places[random.below(places.len() as u64) as usize];
                client.create(at, &[b'f', b'0' + number], 0o644).await.unwrap();
            }
            places
        });
        let live = block_on(root(&fs).lookup(ROOT, b"live")).unwrap().inode;
        fs.kv().set_faults(Faults::STORM);
        let kept = Kept::default();
        let mut tasks: Vec<Task> = Vec::new();
        for _ in 0..2 {
            let server = another(&fs);
            tasks.push(Box::pin(async move {
                let mut cursor = TrashCursor::default();
                for _ in 0..30 {
                    // What fails is tried again.
                    let _emptied = server.empty_trash(&mut cursor).await;
                    yield_now().await;
                }
            }));
        }
        for number in 0..3u64 {
            let (client, places, kept) =
                (Client::new(another(&fs), 300 + number), places.clone(), kept.clone());
            let mut random = Prng::new(seed * 10 + number);
            tasks.push(Box::pin(async move {
                if number == 0 {
                    client.remove_tree(ROOT, b"top").await.unwrap();
                }
                for step in 0..12u8 {
                    let name = [b'n', b'0' + number as u8, b'a' + step];
                    let at = places[random.below(places.len() as u64) as usize];
                    match random.below(3) {
                        0 => drop(client.create(at, &name, 0o644).await),
                        1 => {
                            let moved = [b'd', b'0' + random.below(8) as u8];
                            let Ok(found) = client.lookup(at, &moved).await else { continue };
                            // By its name, which may be another's by now: then nobody knows what moved.
                            if client.rename((at, &moved), (live, &name), 0).await.is_ok()
                                && client.lookup(live, &name).await.is_ok_and(|now| now.inode == found.inode)
                                && client.create(found.inode, b"kept", 0o644).await.is_ok()
                            {
                                kept.borrow_mut().push((found.inode, name.to_vec()));
                            }
                        }
                        _ => {
                            let to = places[random.below(places.len() as u64) as usize];
                            let moved = [b'f', b'0' + random.below(20) as u8];
                            let _moved = client.rename((at, &moved), (to, &name), 0).await;
                        }
                    }
                }
            }));
        }
        schedule::run(seed, tasks);
        fs.kv().set_faults(Faults::default());
        fs.kv().settle();
        block_on(async {
            assert_clean(&fs).await;
            empty(&fs).await;
            let client = root(&fs);
            for (inode, name) in kept.take() {
                // Another may have moved it on, within what was moved out.
                client.stat(inode).await.unwrap_or_else(|error| panic!("seed {seed}: {name:?}: {error}"));
                client.lookup(inode, b"kept").await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            }
            assert_eq!(empty(&fs).await, 0, "nothing is left in it");
        });
    }
}
