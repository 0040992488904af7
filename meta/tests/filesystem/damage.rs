//! The check can fail: each kind of damage is done to a sound namespace and must be named, and nothing else.

use crate::support::client::{ROOT, root};
use crate::support::{Fs, assert_clean, fresh};
use corefs_kv::{Isolation, KvEngine, Transaction};
use corefs_meta::check::Damage;
use corefs_meta::dirent::Dirent;
use corefs_meta::gc::Garbage;
use corefs_meta::inode::{DirectoryState, Inode};
use corefs_meta::key::Keys;
use corefs_meta::lock::{Lock, Locks, Owner};
use corefs_meta::session::Session;
use corefs_wire::control::meta::Kind;
use corefs_wire::{ClientId, InodeId};
use futures_lite::future::block_on;
use std::collections::BTreeSet;

type Txn = <corefs_kv::Mem as KvEngine>::Txn;

/// The inodes of the sound namespace: /dir/sub, /dir/file, open for writing.
#[derive(Clone, Copy)]
struct Ids {
    dir: InodeId,
    sub: InodeId,
    file: InodeId,
    session: u64,
}

const ROOT_ID: InodeId = InodeId(ROOT);

async fn stored(txn: &mut Txn, keys: &Keys, id: InodeId) -> Inode {
    let value = txn.get(&keys.inode(id), Isolation::Snapshot).await.unwrap().unwrap();
    Inode::decode(&value).unwrap()
}

async fn change(txn: &mut Txn, keys: &Keys, id: InodeId, with: impl Fn(&mut Inode)) {
    let mut inode = stored(txn, keys, id).await;
    with(&mut inode);
    txn.set(&keys.inode(id), &inode.encode());
}

/// A lock of a client.
fn held_by(client: u64) -> Locks {
    let owner = Owner { client: ClientId(client), number: 1 };
    let mut locks = Locks::default();
    locks.grant(Lock { owner, start: 0, end: 9, exclusive: true, pid: 0 }).unwrap();
    locks
}

fn damaged(expected: &[Damage], harm: impl AsyncFn(&mut Txn, &Keys, Ids)) {
    block_on(async {
        let (fs, _) = fresh().await;
        let ids = sound(&fs).await;
        let mut txn = fs.kv().begin();
        harm(&mut txn, fs.keys(), ids).await;
        txn.commit().await.unwrap();
        let checked = fs.check().await.unwrap();
        let found: BTreeSet<Damage> = checked.findings.iter().map(|finding| finding.damage).collect();
        let expected: BTreeSet<Damage> = expected.iter().copied().collect();
        assert_eq!(found, expected, "{:#?}", checked.findings);
    });
}

async fn sound(fs: &std::rc::Rc<Fs>) -> Ids {
    let client = root(fs);
    let dir = client.mkdir(ROOT, b"dir", 0o755).await.unwrap().inode;
    let sub = client.mkdir(dir, b"sub", 0o755).await.unwrap().inode;
    let file = client.create(dir, b"file", 0o644).await.unwrap().inode;
    let session = client.open(file, true, false).await.unwrap().session;
    assert_clean(fs).await;
    let checked = fs.check().await.unwrap();
    assert_eq!((checked.inodes, checked.directories, checked.entries), (4, 3, 3));
    assert_eq!((checked.sessions, checked.snapshots), (1, 1));
    Ids { dir: InodeId(dir), sub: InodeId(sub), file: InodeId(file), session }
}

#[test]
fn entries() {
    damaged(&[Damage::DanglingEntry, Damage::WrongDirectoryCounts], async |txn, keys, ids| {
        txn.set(&keys.dirent(ids.dir, b"x"), &Dirent { inode: InodeId(999), kind: Kind::File }.encode());
    });
    damaged(&[Damage::EntryWithoutDirectory, Damage::WrongLinkCount], async |txn, keys, ids| {
        txn.set(&keys.dirent(ids.file, b"x"), &Dirent { inode: ids.file, kind: Kind::File }.encode());
    });
    damaged(
        &[Damage::InvalidName, Damage::WrongLinkCount, Damage::WrongDirectoryCounts],
        async |txn, keys, ids| {
            txn.set(&keys.dirent(ids.dir, b"a/b"), &Dirent { inode: ids.file, kind: Kind::File }.encode());
        },
    );
    damaged(&[Damage::WrongEntryKind], async |txn, keys, ids| {
        txn.set(&keys.dirent(ids.dir, b"file"), &Dirent { inode: ids.file, kind: Kind::Fifo }.encode());
    });
}

#[test]
fn links() {
    damaged(&[Damage::WrongLinkCount], async |txn, keys, ids| {
        change(txn, keys, ids.file, |inode| inode.nlink = 2).await;
    });
    damaged(&[Damage::WrongDirectoryCounts, Damage::LostInode], async |txn, keys, ids| {
        txn.clear(&keys.dirent(ids.dir, b"file"));
        change(txn, keys, ids.file, |inode| inode.nlink = 0).await;
    });
    damaged(&[Damage::WrongGarbage], async |txn, keys, ids| {
        txn.set(&keys.garbage(ids.file), &Garbage::Waiting.encode());
    });
    damaged(&[Damage::WrongGarbage], async |txn, keys, _| {
        txn.set(&keys.garbage(InodeId(999)), &Garbage::Waiting.encode());
    });
    damaged(&[Damage::WrongGarbage], async |txn, keys, ids| {
        let layout = stored(txn, keys, ids.file).await.layout.unwrap();
        txn.set(&keys.garbage(ids.file), &Garbage::Doomed { layout, length: 1 }.encode());
    });
}

#[test]
fn the_tree() {
    damaged(&[Damage::OrphanDirectory, Damage::WrongDirectoryCounts], async |txn, keys, ids| {
        txn.clear(&keys.dirent(ids.dir, b"sub"));
    });
    damaged(&[Damage::SeveralNames, Damage::WrongDirectoryCounts], async |txn, keys, ids| {
        txn.set(&keys.dirent(ROOT_ID, b"x"), &Dirent { inode: ids.sub, kind: Kind::Directory }.encode());
    });
    damaged(&[Damage::WrongParent], async |txn, keys, ids| {
        change(txn, keys, ids.sub, |inode| inode.parent = ROOT_ID).await;
    });
    // Two directories that hang in each other: everything agrees but that nobody gets there.
    damaged(&[Damage::UnreachableDirectory], async |txn, keys, ids| {
        txn.clear(&keys.dirent(ROOT_ID, b"dir"));
        txn.atomic(corefs_kv::Atomic::Add, &keys.directory_counts(ROOT_ID), &DirectoryState::delta(-1, -1));
        txn.set(&keys.dirent(ids.sub, b"dir"), &Dirent { inode: ids.dir, kind: Kind::Directory }.encode());
        txn.atomic(corefs_kv::Atomic::Add, &keys.directory_counts(ids.sub), &DirectoryState::delta(1, 1));
        change(txn, keys, ids.dir, |inode| inode.parent = ids.sub).await;
    });
    damaged(&[Damage::NotFormatted], async |txn, keys, _| txn.clear(&keys.formatted()));
    damaged(&[Damage::WrongDirectoryCounts], async |txn, keys, ids| {
        txn.clear(&keys.directory_counts(ids.dir))
    });
    damaged(&[Damage::StrayDirectoryRow], async |txn, keys, ids| {
        txn.max_u64(&keys.directory_touched(ids.file), 1);
    });
}

#[test]
fn files_and_rows() {
    damaged(&[Damage::NoLayout], async |txn, keys, ids| {
        change(txn, keys, ids.file, |inode| inode.layout = None).await;
    });
    damaged(&[Damage::WrongTrimming], async |txn, keys, ids| {
        change(txn, keys, ids.file, |inode| inode.trim_to = Some(0)).await;
    });
    damaged(&[Damage::WrongTrimming], async |txn, keys, ids| txn.set(&keys.trimming(ids.file), &[]));
    damaged(&[Damage::SessionWithoutInode], async |txn, keys, ids| {
        let session =
            Session { client: ClientId(100), incarnation: 1, write: true, epoch: 1, began: 0, place: None };
        txn.clear(&keys.session(ids.file, ids.session));
        txn.set(&keys.session(InodeId(999), 1), &session.encode());
    });
    damaged(&[Damage::StrayAttribute], async |txn, keys, _| txn.set(&keys.xattr(InodeId(9), b"user.a"), b""));
    damaged(&[Damage::WrongMarks], async |txn, keys, ids| txn.set(&keys.xattr(ids.file, b"user.a"), b""));
    damaged(&[Damage::StrayLock], async |txn, keys, ids| {
        txn.set(&keys.locks(ids.file), &held_by(7).encode())
    });
    damaged(&[Damage::StrayLock], async |txn, keys, _| {
        txn.set(&keys.locks(InodeId(9)), &held_by(100).encode())
    });
    damaged(&[Damage::SessionWithoutClient], async |txn, keys, _| txn.clear(&keys.client(ClientId(100))));
    damaged(&[Damage::WrongInodeCount], async |txn, keys, ids| txn.add_i64(&keys.inode_count(ids.file), 1));
    damaged(&[Damage::UnallocatedInode], async |txn, keys, _| {
        for lane in 0..32 {
            txn.clear(&keys.id_lane(lane));
        }
    });
    damaged(
        &[Damage::Unreadable, Damage::DanglingEntry, Damage::SessionWithoutInode, Damage::WrongInodeCount],
        async |txn, keys, ids| {
            txn.set(&keys.inode(ids.file), &[1, 2, 3]);
        },
    );
    damaged(&[Damage::Unreadable], async |txn, keys, _| {
        let mut strange = keys.formatted();
        *strange.last_mut().unwrap() = b'Z';
        txn.set(&strange, b"");
    });
    damaged(&[Damage::Unreadable], async |txn, keys, _| txn.set(&keys.reply(ClientId(1), 1, 1), b"\x09"));
}
