//! Extended attributes, access control lists and advisory locks: what each does, refuses and leaves.

use crate::support::client::{Client, ROOT, root};
use crate::support::{World, assert_clean, code, fresh};
use corefs_kv::{KvEngine, Transaction};
use corefs_wire::ErrorCode::{self, *};
use corefs_wire::InodeId;
use corefs_wire::control::meta::*;
use corefs_wire::limits::{XATTR_NAME_MAX, XATTR_VALUE_MAX};
use futures_lite::future::{block_on, poll_once};
use std::pin::pin;

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";

fn over_fresh(test: impl AsyncFnOnce(&Client, &World)) {
    block_on(async {
        let (fs, world) = fresh().await;
        test(&root(&fs), &world).await;
        assert_clean(&fs).await;
    });
}

async fn set(client: &Client, inode: u64, name: &[u8], value: &[u8], flags: u32) -> Result<(), ErrorCode> {
    let mut request = SetXattrT::default();
    (request.caller, request.inode, request.flags) = (client.caller(), inode, flags);
    (request.name, request.value) = (name.to_vec(), value.to_vec());
    client.fs.set_xattr(&request).await.map(drop).map_err(|error| error.code)
}

async fn get(client: &Client, inode: u64, name: &[u8]) -> Result<Vec<u8>, ErrorCode> {
    let mut request = GetXattrT::default();
    (request.caller, request.inode, request.name) = (client.caller(), inode, name.to_vec());
    client.fs.get_xattr(&request).await.map(|reply| reply.value).map_err(|error| error.code)
}

async fn remove(client: &Client, inode: u64, name: &[u8]) -> Result<(), ErrorCode> {
    let mut request = RemoveXattrT::default();
    (request.caller, request.inode, request.name) = (client.caller(), inode, name.to_vec());
    client.fs.remove_xattr(&request).await.map(drop).map_err(|error| error.code)
}

async fn names(client: &Client, inode: u64) -> Vec<Vec<u8>> {
    let mut request = ListXattrT::default();
    (request.caller, request.inode) = (client.caller(), inode);
    client.fs.list_xattr(&request).await.unwrap().names.into_iter().map(|name| name.name).collect()
}

/// A list in the kernel's form: (tag, permissions, id).
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut out = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        out.extend(tag.to_le_bytes().into_iter().chain(permissions.to_le_bytes()).chain(id.to_le_bytes()));
    }
    out
}

const NOBODY: u32 = u32::MAX;

/// u::rw-, u:7:rwx, g::r--, m::rwx, o::---
fn for_user_seven() -> Vec<u8> {
    list(&[(1, 6, NOBODY), (2, 7, 7), (4, 4, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY)])
}

#[test]
fn attributes_are_set_listed_and_removed() {
    over_fresh(async |client, world| {
        let file = client.create(ROOT, b"f", 0o644).await.unwrap();
        assert_eq!((file.marks, names(client, file.inode).await), (0, vec![]));
        assert_eq!(get(client, file.inode, b"user.a").await, Err(NoSuchAttribute));
        assert_eq!(set(client, file.inode, b"user.a", b"1", 2).await, Err(NoSuchAttribute));
        world.stand_still();
        set(client, file.inode, b"user.a", b"1", 1).await.unwrap();
        assert_eq!(set(client, file.inode, b"user.a", b"2", 1).await, Err(Exists));
        set(client, file.inode, b"user.a", b"", 2).await.unwrap();
        set(client, file.inode, b"trusted.b", &[0xFF; 3], 0).await.unwrap();
        let attr = client.stat(file.inode).await.unwrap();
        assert_eq!((attr.marks, attr.ctime, attr.mtime), (1, world.time(), file.mtime));
        assert_eq!(get(client, file.inode, b"user.a").await, Ok(vec![]));
        assert_eq!(get(client, file.inode, b"trusted.b").await, Ok(vec![0xFF; 3]));
        assert_eq!(names(client, file.inode).await, [&b"trusted.b"[..], b"user.a"]);
        remove(client, file.inode, b"user.a").await.unwrap();
        assert_eq!(remove(client, file.inode, b"user.a").await, Err(NoSuchAttribute));
        remove(client, file.inode, b"trusted.b").await.unwrap();
        assert_eq!(client.stat(file.inode).await.unwrap().marks, 0);

        // They go with their inode, of every kind.
        client.mkdir(ROOT, b"d", 0o755).await.unwrap();
        client.symlink(ROOT, b"s", b"x").await.unwrap();
        for name in [&b"f"[..], b"d", b"s"] {
            let inode = client.lookup(ROOT, name).await.unwrap().inode;
            set(client, inode, b"trusted.x", b"1", 0).await.unwrap();
        }
        client.unlink(ROOT, b"f").await.unwrap();
        client.unlink(ROOT, b"s").await.unwrap();
        client.rmdir(ROOT, b"d").await.unwrap();
        while client.fs.collect_garbage(&mut Default::default(), Default::default()).await.unwrap().seen > 0 {
        }
        let left = client.fs.kv().dump().into_iter().filter(|(key, _)| key[5] == b'E').count();
        assert_eq!(left, 0);
    });
}

#[test]
fn a_repeated_request_is_the_same_request() {
    over_fresh(async |client, _| {
        let file = client.create(ROOT, b"f", 0o644).await.unwrap().inode;
        set(client, file, b"user.a", b"1", 1).await.unwrap();
        assert_eq!(set(client.again(), file, b"user.a", b"1", 1).await, Ok(()));
        remove(client, file, b"user.a").await.unwrap();
        assert_eq!(remove(client.again(), file, b"user.a").await, Ok(()));
    });
}

#[test]
fn namespaces_bounds_and_rights_are_kept() {
    over_fresh(async |client, _| {
        let user = Client::user(&client.fs, 200, 7, 7);
        let file = client.create(ROOT, b"f", 0o600).await.unwrap().inode;
        for name in [&b"user."[..], b"user.a\0"] {
            assert_eq!(set(client, file, name, b"", 0).await, Err(InvalidName));
        }
        for name in [&b"other.a"[..], b"system.x", b"", b"user"] {
            assert_eq!(set(client, file, name, b"", 0).await, Err(NotSupported));
            assert_eq!(get(client, file, name).await, Err(NotSupported));
        }
        let long = [b"user.".as_slice(), &[b'x'; XATTR_NAME_MAX]].concat();
        assert_eq!(set(client, file, &long, b"", 0).await, Err(NameTooLong));
        set(client, file, &long[..XATTR_NAME_MAX], &[1; XATTR_VALUE_MAX], 0).await.unwrap();
        assert_eq!(set(client, file, b"user.a", &[1; XATTR_VALUE_MAX + 1], 0).await, Err(AttributesTooLarge));
        let mut count = 1;
        while set(client, file, format!("user.{count}").as_bytes(), &[1; XATTR_VALUE_MAX], 0).await.is_ok() {
            count += 1;
        }
        assert_eq!(count, 16, "a mebibyte of values");
        assert_eq!(set(client, file, b"user.a", b"", 3).await, Err(InvalidArgument));
        assert_eq!(set(client, 99, b"user.a", b"", 0).await, Err(NoSuchInode));

        assert_eq!(get(&user, file, b"user.1").await, Err(PermissionDenied));
        assert_eq!(set(&user, file, b"user.1", b"", 0).await, Err(PermissionDenied));
        assert_eq!(set(&user, file, b"trusted.a", b"", 0).await, Err(NotPermitted));
        set(client, file, b"trusted.a", b"", 0).await.unwrap();
        assert_eq!(get(&user, file, b"trusted.a").await, Err(NoSuchAttribute));
        assert!(!names(&user, file).await.contains(&b"trusted.a".to_vec()));
        let fifo = client.send_create(client.create_request(ROOT, b"p", Kind::Fifo, 0o666)).await.unwrap();
        assert_eq!(set(client, fifo.attr.inode, b"user.a", b"", 0).await, Err(NotPermitted));
        set(client, fifo.attr.inode, b"trusted.a", b"", 0).await.unwrap();
    });
}

#[test]
fn an_access_list_takes_the_place_of_the_mode() {
    over_fresh(async |client, _| {
        let (user, other) = (Client::user(&client.fs, 200, 7, 70), Client::user(&client.fs, 300, 8, 80));
        let dir = client.mkdir(ROOT, b"d", 0o700).await.unwrap().inode;
        assert_eq!(code(user.create(dir, b"f", 0o644).await), PermissionDenied);
        assert_eq!(set(&user, dir, ACCESS, &for_user_seven(), 0).await, Err(NotPermitted));
        assert_eq!(set(client, dir, ACCESS, b"garbage", 0).await, Err(InvalidArgument));
        set(client, dir, ACCESS, &for_user_seven(), 0).await.unwrap();
        let attr = client.stat(dir).await.unwrap();
        assert_eq!((attr.mode, attr.marks), (0o670, 3), "the group bits are the mask");
        assert_eq!(get(client, dir, ACCESS).await, Ok(for_user_seven()));
        user.create(dir, b"f", 0o644).await.unwrap();
        assert_eq!(code(other.lookup(dir, b"f").await), PermissionDenied);
        // chmod changes the list: the mask now keeps the user out.
        client.chmod(dir, 0o701).await.unwrap();
        assert_eq!(code(user.create(dir, b"g", 0o644).await), PermissionDenied);
        assert_eq!(code(user.lookup(dir, b"f").await), PermissionDenied);
        other.lookup(dir, b"f").await.unwrap();
        // A list that says nothing more than the bits is only bits.
        let minimal = list(&[(1, 7, NOBODY), (4, 5, NOBODY), (32, 5, NOBODY)]);
        set(client, dir, ACCESS, &minimal, 0).await.unwrap();
        let attr = client.stat(dir).await.unwrap();
        assert_eq!((attr.mode, attr.marks, names(client, dir).await), (0o755, 0, vec![]));
        set(client, dir, ACCESS, &for_user_seven(), 0).await.unwrap();
        remove(client, dir, ACCESS).await.unwrap();
        assert_eq!(client.stat(dir).await.unwrap().mode, 0o670);
        assert_eq!(code(user.lookup(dir, b"f").await), PermissionDenied);
    });
}

#[test]
fn a_default_list_is_handed_on() {
    over_fresh(async |client, _| {
        let file = client.create(ROOT, b"f", 0o644).await.unwrap().inode;
        assert_eq!(set(client, file, DEFAULT, &for_user_seven(), 0).await, Err(PermissionDenied));
        let dir = client.mkdir(ROOT, b"d", 0o755).await.unwrap().inode;
        set(client, dir, DEFAULT, &for_user_seven(), 0).await.unwrap();
        assert_eq!(client.stat(dir).await.unwrap().marks, 5);

        let mut request = client.create_request(dir, b"sub", Kind::Directory, 0o777);
        request.umask = 0o077;
        let sub = client.send_create(request).await.unwrap().attr;
        assert_eq!((sub.mode, sub.marks), (0o670, 7), "the umask has no say");
        assert_eq!(get(client, sub.inode, DEFAULT).await, Ok(for_user_seven()));
        let made = client.create(sub.inode, b"f", 0o640).await.unwrap();
        assert_eq!((made.mode, made.marks), (0o640, 3));
        let masked = list(&[(1, 6, NOBODY), (2, 7, 7), (4, 4, NOBODY), (16, 4, NOBODY), (32, 0, NOBODY)]);
        assert_eq!(get(client, made.inode, ACCESS).await, Ok(masked));
        assert_eq!(client.symlink(dir, b"s", b"x").await.unwrap().marks, 0);

        remove(client, dir, DEFAULT).await.unwrap();
        let mut request = client.create_request(dir, b"plain", Kind::File, 0o666);
        request.umask = 0o027;
        let plain = client.send_create(request).await.unwrap().attr;
        assert_eq!((plain.mode, plain.marks), (0o640, 0));
    });
}

async fn lock(
    client: &Client,
    inode: u64,
    owner: u64,
    range: (u64, u64),
    kind: LockKind,
) -> Result<(), ErrorCode> {
    let mut request = SetLockT::default();
    (request.caller, request.inode, request.owner) = (client.caller(), inode, owner);
    (request.lock.start, request.lock.end, request.lock.kind, request.lock.pid) =
        (range.0, range.1, kind, 42);
    client.fs.set_lock(&request).await.map(drop).map_err(|error| error.code)
}

async fn in_the_way(client: &Client, inode: u64, owner: u64, range: (u64, u64)) -> Option<(u64, u64, u32)> {
    let mut request = GetLockT::default();
    (request.caller, request.inode, request.owner) = (client.caller(), inode, owner);
    (request.lock.start, request.lock.end, request.lock.kind) = (range.0, range.1, LockKind::Exclusive);
    let found = client.fs.get_lock(&request).await.unwrap().lock;
    found.map(|lock| (lock.start, lock.end, lock.pid))
}

#[test]
fn locks_of_dead_clients_wait_for_nothing_else() {
    const ALL: (u64, u64) = (0, u64::MAX);
    block_on(async {
        let (fs, world) = fresh().await;
        let (one, two) = (root(&fs), Client::new(fs.clone(), 200));
        let file = one.create(ROOT, b"f", 0o644).await.unwrap().inode;
        one.open(file, true, false).await.unwrap();
        lock(&one, file, 1, ALL, LockKind::Exclusive).await.unwrap();
        // Rows that nobody can read, and storage that doesn't answer.
        let mut txn = fs.kv().begin();
        txn.set(&fs.keys().session(InodeId(5), 5), &[99]);
        txn.set(&fs.keys().locks(InodeId(5)), &[99]);
        txn.commit().await.unwrap();
        world.hang_chunks();
        world.kill(one.id);
        let mut sweep = pin!(fs.settle_dead_clients());
        assert!(poll_once(sweep.as_mut()).await.is_none(), "the session can't be settled");
        lock(&two, file, 1, ALL, LockKind::Exclusive).await.unwrap();
    });
    block_on(async {
        // Without a session to settle the sweep comes to its end, and says what it couldn't read.
        let (fs, world) = fresh().await;
        let one = root(&fs);
        let file = one.create(ROOT, b"f", 0o644).await.unwrap().inode;
        lock(&one, file, 1, ALL, LockKind::Exclusive).await.unwrap();
        let mut txn = fs.kv().begin();
        txn.set(&fs.keys().session(InodeId(5), 5), &[99]);
        txn.set(&fs.keys().locks(InodeId(5)), &[99]);
        txn.commit().await.unwrap();
        world.kill(one.id);
        let swept = fs.settle_dead_clients().await.unwrap();
        assert_eq!((swept.dead_clients, swept.files_unlocked, swept.failed), (1, 1, 2));
        assert_eq!(fs.settle_dead_clients().await.unwrap().dead_clients, 0);
    });
}

#[test]
fn locks_hold_against_others_and_go_with_their_client() {
    const ALL: (u64, u64) = (0, u64::MAX);
    let (shared, exclusive, unlock) = (LockKind::Shared, LockKind::Exclusive, LockKind::Unlock);
    over_fresh(async |one, world| {
        let two = Client::new(one.fs.clone(), 200);
        let file = one.create(ROOT, b"f", 0o644).await.unwrap().inode;
        lock(one, file, 1, (0, 9), exclusive).await.unwrap();
        lock(one.again(), file, 1, (0, 9), exclusive).await.unwrap();
        assert_eq!(lock(&two, file, 1, (5, 20), shared).await, Err(Locked));
        assert_eq!(lock(one, file, 2, (5, 20), shared).await, Err(Locked), "another process of that client");
        lock(&two, file, 1, (10, 20), shared).await.unwrap();
        lock(one, file, 2, (10, 20), shared).await.unwrap();
        assert_eq!(in_the_way(&two, file, 1, ALL).await, Some((0, 9, 42)));
        assert_eq!(in_the_way(&two, file, 1, (30, 40)).await, None);
        lock(one, file, 1, (0, 4), unlock).await.unwrap();
        lock(&two, file, 1, (0, 4), exclusive).await.unwrap();
        assert_eq!(lock(one, file, 1, (9, 8), shared).await, Err(InvalidArgument));
        assert_eq!(lock(one, file, 1, ALL, LockKind(9)).await, Err(InvalidArgument));
        assert_eq!(lock(one, 99, 1, ALL, shared).await, Err(NoSuchInode));
        lock(one, 99, 1, ALL, unlock).await.unwrap();

        world.kill(two.id);
        let swept = one.fs.settle_dead_clients().await.unwrap();
        assert_eq!((swept.dead_clients, swept.files_unlocked), (1, 1));
        lock(one, file, 1, (0, 4), exclusive).await.unwrap();
        lock(one, file, 1, ALL, unlock).await.unwrap();
        lock(one, file, 2, ALL, unlock).await.unwrap();
        assert!(!one.fs.kv().dump().iter().any(|(key, _)| key[5] == b'K'), "no empty row stays");

        lock(one, file, 1, ALL, exclusive).await.unwrap();
        one.unlink(ROOT, b"f").await.unwrap();
        while one.fs.collect_garbage(&mut Default::default(), Default::default()).await.unwrap().seen > 0 {}
        assert!(!one.fs.kv().dump().iter().any(|(key, _)| key[5] == b'K'), "locks go with the file");
    });
}
