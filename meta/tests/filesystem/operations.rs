//! Each operation alone: what it does, what it refuses, and what times and counts it leaves.

use crate::support::client::{Client, ROOT, root};
use crate::support::{CHUNK, World, assert_clean, code, fresh};
use corefs_kv::{Isolation, KvEngine, Transaction};
use corefs_meta::inode::Inode;
use corefs_wire::ErrorCode::*;
use corefs_wire::InodeId;
use corefs_wire::control::meta::*;
use corefs_wire::limits::LINK_MAX;
use futures_lite::future::block_on;

/// Runs a test over a fresh file system with root's client, and checks what is left.
fn over_fresh(test: impl AsyncFnOnce(&Client, &World)) {
    block_on(async {
        let (fs, world) = fresh().await;
        test(&root(&fs), &world).await;
        assert_clean(&fs).await;
    });
}

#[test]
fn the_root_is_there_once() {
    over_fresh(async |client, _| {
        client.fs.format().await.unwrap();
        client.fs.format().await.unwrap();
        let attr = client.stat(ROOT).await.unwrap();
        assert_eq!((attr.inode, attr.kind, attr.mode, attr.nlink), (ROOT, Kind::Directory, 0o755, 2));
        assert_eq!(attr.parent, ROOT);
        assert_eq!(client.fs.statfs(&StatFsT::default()).await.unwrap().files, 1);
    });
}

#[test]
fn every_kind_is_created_and_found() {
    over_fresh(async |client, _| {
        let kinds =
            [Kind::File, Kind::Directory, Kind::Fifo, Kind::Socket, Kind::CharDevice, Kind::BlockDevice];
        for (number, kind) in kinds.into_iter().enumerate() {
            let name = [b'a' + number as u8];
            let mut request = client.create_request(ROOT, &name, kind, 0o100_640);
            request.rdev = 0x0801;
            let made = client.send_create(request).await.unwrap();
            assert!(made.created && made.session == 0);
            let attr = client.lookup(ROOT, &name).await.unwrap();
            assert_eq!(attr, *made.attr);
            let device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
            assert_eq!((attr.kind, attr.mode), (kind, 0o640));
            assert_eq!(attr.rdev, if device { 0x0801 } else { 0 });
            assert_eq!(attr.nlink, if kind == Kind::Directory { 2 } else { 1 });
            assert_eq!(attr.parent, if kind == Kind::Directory { ROOT } else { 0 });
        }
        let attr = client.symlink(ROOT, b"link", b"../target").await.unwrap();
        assert_eq!((attr.mode, attr.size), (0o777, 9));
        assert_eq!(client.read_link(attr.inode).await.unwrap(), b"../target");
        assert_eq!(code(client.read_link(ROOT).await), NotSymlink);
        assert_eq!(client.fs.statfs(&StatFsT::default()).await.unwrap().files, 8);
    });
}

#[test]
fn a_file_gets_a_layout() {
    over_fresh(async |client, _| {
        let first = client.create(ROOT, b"a", 0o644).await.unwrap();
        let second = client.create(ROOT, b"b", 0o644).await.unwrap();
        assert_eq!((first.layout.chunk_size, first.layout.stripe, first.layout.table_id), (CHUNK, 8, 1));
        assert_ne!(first.layout.seed, second.layout.seed);
        assert_eq!(first.epoch, 1);
        let mut request = client.create_request(ROOT, b"c", Kind::File, 0);
        (request.chunk_size, request.stripe) = (1 << 20, 3);
        let layout = client.send_create(request).await.unwrap().attr.layout;
        assert_eq!((layout.chunk_size, layout.stripe), (1 << 20, 3));
        let mut request = client.create_request(ROOT, b"d", Kind::File, 0);
        request.chunk_size = 12345;
        assert_eq!(code(client.send_create(request).await), InvalidArgument);
    });
}

#[test]
fn bad_names_and_requests_are_refused() {
    over_fresh(async |client, _| {
        for (name, expected) in
            [(&b""[..], InvalidName), (b".", InvalidName), (b"..", InvalidName), (b"a/b", InvalidName)]
        {
            assert_eq!(code(client.create(ROOT, name, 0).await), expected);
            assert_eq!(code(client.lookup(ROOT, name).await), expected);
            assert_eq!(code(client.unlink(ROOT, name).await), expected);
            assert_eq!(code(client.rmdir(ROOT, name).await), expected);
            assert_eq!(code(client.rename((ROOT, b"x"), (ROOT, name), 0).await), expected);
            assert_eq!(code(client.link(ROOT, ROOT, name).await), expected);
        }
        assert_eq!(code(client.create(ROOT, &[b'x'; 256], 0).await), NameTooLong);
        assert_eq!(code(client.create(ROOT, b"nul\0", 0).await), InvalidName);
        client.create(ROOT, &[b'x'; 255], 0).await.unwrap();
        assert_eq!(code(client.create(99, b"x", 0).await), NoSuchInode);
        let file = client.create(ROOT, b"file", 0o644).await.unwrap().inode;
        assert_eq!(code(client.create(file, b"x", 0).await), NotDirectory);
        assert_eq!(code(client.lookup(file, b"x").await), NotDirectory);
        assert_eq!(code(client.symlink(ROOT, b"s", b"").await), InvalidArgument);
        assert_eq!(code(client.symlink(ROOT, b"s", b"a\0b").await), InvalidArgument);
        assert_eq!(code(client.symlink(ROOT, b"s", &[b'x'; 4096]).await), NameTooLong);
        let mut request = client.create_request(ROOT, b"k", Kind(9), 0);
        assert_eq!(code(client.send_create(request.clone()).await), InvalidArgument);
        (request.kind, request.symlink_target) = (Kind::File, b"x".to_vec());
        assert_eq!(code(client.send_create(request).await), InvalidArgument);
        let mut set = SetAttrFieldsT::default();
        set.mask = 512;
        assert_eq!(code(client.set_attr(file, set).await), InvalidArgument);
    });
}

#[test]
fn an_existing_name_is_refused_or_found() {
    over_fresh(async |client, _| {
        let file = client.create(ROOT, b"file", 0o644).await.unwrap();
        client.mkdir(ROOT, b"dir", 0o755).await.unwrap();
        assert_eq!(code(client.create(ROOT, b"file", 0o600).await), Exists);
        let mut request = client.create_request(ROOT, b"file", Kind::File, 0o600);
        request.exclusive = false;
        let found = client.send_create(request.clone()).await.unwrap();
        assert!(!found.created && found.session == 0);
        assert_eq!(*found.attr, file);
        request.open = true;
        let found = client.send_create(request.clone()).await.unwrap();
        assert!(!found.created && found.session != 0);
        client.close(file.inode, found.session, 0).await.unwrap();
        request.name = b"dir".to_vec();
        assert_eq!(code(client.send_create(request.clone()).await), IsDirectory);
        request.open = false;
        assert_eq!(code(client.send_create(request).await), Exists);
    });
}

#[test]
fn sessions_that_have_nothing_to_tell_end_together() {
    over_fresh(async |client, _| {
        let other = Client::new(client.fs.clone(), client.id + 1);
        let (mut names, mut own) = (Vec::new(), Vec::new());
        for name in [b"a", b"b", b"c"] {
            let inode = client.create(ROOT, name, 0o644).await.unwrap().inode;
            own.push((inode, client.open(inode, true, false).await.unwrap().session));
            names.push((inode, own.last().unwrap().1));
        }
        let kept = (own[0].0, other.open(own[0].0, true, false).await.unwrap().session);
        names.push(kept);
        names.push((own[0].0, 12345));
        client.end_sessions(&names).await.unwrap();
        for (inode, session) in own {
            assert_eq!(code(client.close(inode, session, 0).await), NoSuchSession);
        }
        other.close(kept.0, kept.1, 5).await.unwrap();
        assert_eq!(client.stat(kept.0).await.unwrap().size, 5);
        // Again, and none at all.
        client.end_sessions(&names).await.unwrap();
        client.end_sessions(&[]).await.unwrap();
        assert_eq!(code(client.end_sessions(&[kept; 65]).await), InvalidArgument);
    });
}

#[test]
fn directories_count_and_keep_time() {
    over_fresh(async |client, world| {
        let dir = client.mkdir(ROOT, b"dir", 0o755).await.unwrap().inode;
        let before = client.stat(dir).await.unwrap();
        client.create(dir, b"file", 0o644).await.unwrap();
        client.mkdir(dir, b"sub", 0o755).await.unwrap();
        let after = client.stat(dir).await.unwrap();
        assert_eq!((after.size, after.nlink), (2, 3));
        assert!(after.mtime > before.mtime && after.ctime == after.mtime);
        assert_eq!(after.atime, before.atime);
        // A time set by hand holds until an entry changes: what cp -a needs.
        let set = client.utimes(dir, 5, 6).await.unwrap();
        assert_eq!((set.atime, set.mtime), (5, 6));
        assert!(set.ctime > after.ctime);
        assert_eq!(client.stat(dir).await.unwrap(), set);
        let now = world.time();
        client.unlink(dir, b"file").await.unwrap();
        let touched = client.stat(dir).await.unwrap();
        assert!(touched.mtime > now && touched.ctime > now);
        // And also when it lies in the future.
        assert_eq!(client.utimes(dir, 5, i64::MAX).await.unwrap().mtime, i64::MAX);
        let now = world.time();
        client.create(dir, b"new", 0o644).await.unwrap();
        let touched = client.stat(dir).await.unwrap().mtime;
        assert!(touched > now && touched <= world.time());
        client.unlink(dir, b"new").await.unwrap();
        client.rmdir(dir, b"sub").await.unwrap();
        assert_eq!(client.stat(dir).await.unwrap().nlink, 2);
        assert_eq!(client.stat(ROOT).await.unwrap().size, 1);
    });
}

#[test]
fn listing_pages_by_name() {
    over_fresh(async |client, _| {
        let names: Vec<Vec<u8>> = (0..25u8).map(|number| vec![b'a' + number]).collect();
        for name in names.iter().rev() {
            client.mkdir(ROOT, name, 0o755).await.unwrap();
        }
        let (mut all, mut after) = (Vec::new(), Vec::new());
        loop {
            let (page, more) = client.list(ROOT, &after, 7).await.unwrap();
            assert!(page.len() <= 7 && !page.is_empty());
            after = page.last().unwrap().clone();
            all.extend(page);
            if !more {
                break;
            }
        }
        assert_eq!(all, names);
        let inside = client.lookup(ROOT, b"c").await.unwrap().inode;
        client.create(inside, b"file", 0o644).await.unwrap();
        let page = client.list_plus(ROOT, b"b", 2, true).await.unwrap();
        let attr = page.entries[0].attr.as_deref().unwrap();
        assert_eq!((attr, page.entries[0].kind), (&client.stat(inside).await.unwrap(), Kind::Directory));
        assert_eq!(attr.size, 1);
        let file = client.lookup(inside, b"file").await.unwrap().inode;
        assert_eq!(code(client.list(file, b"", 10).await), NotDirectory);
        assert_eq!(code(client.list(77, b"", 10).await), NoSuchInode);
    });
}

#[test]
fn names_come_and_go() {
    over_fresh(async |client, _| {
        let dir = client.mkdir(ROOT, b"dir", 0o755).await.unwrap().inode;
        let file = client.create(dir, b"a", 0o644).await.unwrap();
        let linked = client.link(file.inode, ROOT, b"b").await.unwrap();
        assert_eq!((linked.inode, linked.nlink), (file.inode, 2));
        assert!(linked.ctime > file.ctime && linked.mtime == file.mtime);
        assert_eq!(code(client.link(file.inode, ROOT, b"b").await), Exists);
        assert_eq!(code(client.link(dir, ROOT, b"c").await), NotPermitted);
        assert_eq!(code(client.unlink(ROOT, b"dir").await), IsDirectory);
        assert_eq!(code(client.rmdir(ROOT, b"b").await), NotDirectory);
        assert_eq!(code(client.rmdir(ROOT, b"dir").await), NotEmpty);
        client.unlink(dir, b"a").await.unwrap();
        assert_eq!(code(client.unlink(dir, b"a").await), NotFound);
        assert_eq!(client.stat(file.inode).await.unwrap().nlink, 1);
        client.rmdir(ROOT, b"dir").await.unwrap();
        assert_eq!(code(client.stat(dir).await), NoSuchInode);
        assert_eq!(code(client.create(dir, b"x", 0).await), NoSuchInode);
        client.unlink(ROOT, b"b").await.unwrap();
        assert_eq!(client.stat(file.inode).await.unwrap().nlink, 0);
        assert_eq!(code(client.link(file.inode, ROOT, b"again").await), NoSuchInode);
    });
}

#[test]
fn links_have_a_bound() {
    over_fresh(async |client, _| {
        let file = client.create(ROOT, b"a", 0o644).await.unwrap().inode;
        let set_links = async |nlink| {
            let mut txn = client.fs.kv().begin();
            let key = client.fs.keys().inode(InodeId(file));
            let stored = txn.get(&key, Isolation::Snapshot).await.unwrap().unwrap();
            let inode = Inode { nlink, ..Inode::decode(&stored).unwrap() };
            txn.set(&key, &inode.encode());
            txn.commit().await.unwrap();
        };
        set_links(LINK_MAX - 1).await;
        assert_eq!(client.link(file, ROOT, b"last").await.unwrap().nlink, LINK_MAX);
        assert_eq!(code(client.link(file, ROOT, b"more").await), TooManyLinks);
        set_links(2).await;
    });
}

#[test]
fn renaming_moves_and_replaces() {
    over_fresh(async |client, _| {
        let a = client.mkdir(ROOT, b"a", 0o755).await.unwrap().inode;
        let b = client.mkdir(ROOT, b"b", 0o755).await.unwrap().inode;
        let file = client.create(a, b"f", 0o644).await.unwrap();
        client.rename((a, b"f"), (b, b"g"), 0).await.unwrap();
        assert_eq!(code(client.lookup(a, b"f").await), NotFound);
        let moved = client.lookup(b, b"g").await.unwrap();
        assert_eq!((moved.inode, moved.mtime), (file.inode, file.mtime));
        assert!(moved.ctime > file.ctime);
        // A file replaces a file, whose other name stays.
        let other = client.create(ROOT, b"other", 0o644).await.unwrap().inode;
        client.link(other, a, b"kept").await.unwrap();
        client.rename((b, b"g"), (ROOT, b"other"), 0).await.unwrap();
        assert_eq!(client.lookup(ROOT, b"other").await.unwrap().inode, file.inode);
        assert_eq!(client.stat(other).await.unwrap().nlink, 1);
        // Two names of one inode: nothing happens.
        client.link(other, b, b"same").await.unwrap();
        client.rename((a, b"kept"), (b, b"same"), 0).await.unwrap();
        client.rename((a, b"kept"), (a, b"kept"), 0).await.unwrap();
        assert_eq!(client.lookup(a, b"kept").await.unwrap().nlink, 2);
        // Directories replace empty directories only.
        let sub = client.mkdir(a, b"sub", 0o755).await.unwrap().inode;
        assert_eq!(code(client.rename((a, b"sub"), (ROOT, b"b"), 0).await), NotEmpty);
        assert_eq!(code(client.rename((a, b"sub"), (ROOT, b"other"), 0).await), NotDirectory);
        assert_eq!(code(client.rename((ROOT, b"other"), (a, b"sub"), 0).await), IsDirectory);
        client.unlink(b, b"same").await.unwrap();
        client.rename((a, b"sub"), (ROOT, b"b"), 0).await.unwrap();
        assert_eq!(client.lookup(ROOT, b"b").await.unwrap().inode, sub);
        assert_eq!(client.stat(sub).await.unwrap().parent, ROOT);
        assert_eq!(code(client.stat(b).await), NoSuchInode);
        assert_eq!(client.stat(ROOT).await.unwrap().nlink, 4);
        assert_eq!(code(client.rename((ROOT, b"none"), (ROOT, b"x"), 0).await), NotFound);
    });
}

#[test]
fn rename_flags() {
    over_fresh(async |client, _| {
        let a = client.mkdir(ROOT, b"a", 0o755).await.unwrap().inode;
        let b = client.mkdir(ROOT, b"b", 0o755).await.unwrap().inode;
        let file = client.create(a, b"f", 0o644).await.unwrap().inode;
        let dir = client.mkdir(b, b"d", 0o755).await.unwrap().inode;
        client.create(dir, b"inside", 0o644).await.unwrap();
        assert_eq!(code(client.rename((a, b"f"), (b, b"d"), 1).await), Exists);
        assert_eq!(code(client.rename((a, b"f"), (a, b"f"), 1).await), Exists);
        assert_eq!(code(client.rename((a, b"f"), (b, b"none"), 2).await), NotFound);
        assert_eq!(code(client.rename((a, b"f"), (b, b"d"), 3).await), InvalidArgument);
        assert_eq!(code(client.rename((a, b"f"), (b, b"d"), 4).await), InvalidArgument);
        client.rename((a, b"f"), (b, b"d"), 2).await.unwrap();
        assert_eq!(client.lookup(b, b"d").await.unwrap().inode, file);
        assert_eq!(client.lookup(a, b"f").await.unwrap().inode, dir);
        assert_eq!(client.stat(dir).await.unwrap().parent, a);
        assert_eq!((client.stat(a).await.unwrap().nlink, client.stat(b).await.unwrap().nlink), (3, 2));
        client.rename((a, b"f"), (b, b"new"), 1).await.unwrap();
        client.rename((b, b"d"), (b, b"new"), 2).await.unwrap();
        assert_eq!(client.lookup(b, b"d").await.unwrap().inode, dir);
    });
}

#[test]
fn a_directory_never_comes_under_itself() {
    over_fresh(async |client, _| {
        let a = client.mkdir(ROOT, b"a", 0o755).await.unwrap().inode;
        let b = client.mkdir(a, b"b", 0o755).await.unwrap().inode;
        let c = client.mkdir(b, b"c", 0o755).await.unwrap().inode;
        assert_eq!(code(client.rename((ROOT, b"a"), (a, b"x"), 0).await), WouldLoop);
        assert_eq!(code(client.rename((ROOT, b"a"), (c, b"x"), 0).await), WouldLoop);
        assert_eq!(code(client.rename((ROOT, b"a"), (b, b"c"), 2).await), WouldLoop);
        assert_eq!(code(client.rename((b, b"c"), (ROOT, b"a"), 2).await), WouldLoop);
        assert_eq!(code(client.rename((b, b"c"), (ROOT, b"a"), 0).await), NotEmpty);
        // Up and sideways is fine.
        client.rename((b, b"c"), (ROOT, b"c"), 0).await.unwrap();
        client.rename((a, b"b"), (c, b"b"), 0).await.unwrap();
        client.rename((ROOT, b"a"), (b, b"a"), 0).await.unwrap();
        assert_eq!(code(client.rename((ROOT, b"c"), (a, b"c"), 0).await), WouldLoop);
        assert_eq!(client.stat(a).await.unwrap().parent, b);
    });
}

#[test]
fn attributes_are_set() {
    over_fresh(async |client, world| {
        let file = client.create(ROOT, b"f", 0o644).await.unwrap().inode;
        let attr = client.chmod(file, 0o107_755).await.unwrap();
        assert_eq!(attr.mode, 0o7755);
        assert!(attr.ctime > attr.mtime);
        // A new owner loses the set-id bits.
        let attr = client.chown(file, 5, 6).await.unwrap();
        assert_eq!((attr.uid, attr.gid, attr.mode), (5, 6, 0o1755));
        let attr = client.utimes(file, -7, i64::MIN).await.unwrap();
        assert_eq!((attr.atime, attr.mtime), (-7, i64::MIN));
        let mut set = SetAttrFieldsT::default();
        set.mask = 64 | 128;
        let now = world.time();
        let attr = client.set_attr(file, set).await.unwrap();
        assert!(attr.atime > now && attr.mtime > now && attr.ctime > now);
        assert_eq!(client.stat(file).await.unwrap(), attr);
        assert_eq!(client.set_attr(file, SetAttrFieldsT::default()).await.unwrap(), attr);
        assert_eq!(code(client.truncate(ROOT, 0).await), IsDirectory);
        assert_eq!(code(client.truncate(file, u64::MAX).await), FileTooLarge);
        assert_eq!(code(client.chmod(99, 0).await), NoSuchInode);
        let fifo = client.send_create(client.create_request(ROOT, b"p", Kind::Fifo, 0)).await.unwrap();
        assert_eq!(code(client.truncate(fifo.attr.inode, 0).await), InvalidArgument);
    });
}

#[test]
fn many_are_looked_at_at_once() {
    over_fresh(async |client, _| {
        let dir = client.mkdir(ROOT, b"d", 0o755).await.unwrap().inode;
        let file = client.create(dir, b"f", 0o644).await.unwrap();
        let mut request = GetAttrT::default();
        request.inodes = vec![ROOT, 12345, dir, file.inode];
        let results = client.fs.get_attr(&request).await.unwrap().results;
        let statuses: Vec<u32> = results.iter().map(|result| result.status).collect();
        assert_eq!(statuses, [0, NoSuchInode as u32, 0, 0]);
        let size = |at: usize| results[at].attr.as_ref().map(|attr| attr.size);
        assert_eq!((size(0), size(1), size(2)), (Some(1), None, Some(1)));
        assert_eq!(results[3].attr.as_deref(), Some(&file));
        request.inodes = vec![ROOT; 1025];
        assert_eq!(code(client.fs.get_attr(&request).await), InvalidArgument);
    });
}

#[test]
fn permissions_are_checked() {
    over_fresh(async |client, _| {
        let user = Client::user(&client.fs, 101, 1000, 1000);
        let other = Client::user(&client.fs, 102, 1001, 1001);
        let home = client.mkdir(ROOT, b"home", 0o755).await.unwrap().inode;
        client.chown(home, 1000, 1000).await.unwrap();
        let file = user.create(home, b"f", 0o600).await.unwrap();
        assert_eq!((file.uid, file.gid), (1000, 1000));
        assert_eq!(code(other.create(home, b"g", 0o600).await), PermissionDenied);
        assert_eq!(code(other.unlink(home, b"f").await), PermissionDenied);
        assert_eq!(code(other.rename((home, b"f"), (home, b"g"), 0).await), PermissionDenied);
        assert_eq!(code(other.open(file.inode, false, false).await), PermissionDenied);
        assert_eq!(code(other.open(file.inode, true, false).await), PermissionDenied);
        assert_eq!(code(other.chmod(file.inode, 0o777).await), NotPermitted);
        assert_eq!(code(other.truncate(file.inode, 0).await), PermissionDenied);
        assert_eq!(code(other.utimes(file.inode, 1, 1).await), NotPermitted);
        assert_eq!(code(user.chown(file.inode, 1001, 1000).await), NotPermitted);
        let device = user.create_request(home, b"dev", Kind::BlockDevice, 0o600);
        assert_eq!(code(user.send_create(device).await), NotPermitted);
        assert!(other.lookup(home, b"f").await.is_ok());
        user.chmod(home, 0o700).await.unwrap();
        assert_eq!(code(other.lookup(home, b"f").await), PermissionDenied);
        assert_eq!(code(other.list(home, b"", 9).await), PermissionDenied);
        other.privileged.set(true);
        assert!(other.lookup(home, b"f").await.is_ok());
    });
}

#[test]
fn sticky_directories_and_inherited_groups() {
    over_fresh(async |client, _| {
        let user = Client::user(&client.fs, 101, 1000, 1000);
        let other = Client::user(&client.fs, 102, 1001, 1001);
        let tmp = client.mkdir(ROOT, b"tmp", 0o1777).await.unwrap().inode;
        user.create(tmp, b"mine", 0o666).await.unwrap();
        other.create(tmp, b"theirs", 0o666).await.unwrap();
        assert_eq!(code(other.unlink(tmp, b"mine").await), NotPermitted);
        assert_eq!(code(other.rename((tmp, b"mine"), (tmp, b"x"), 0).await), NotPermitted);
        assert_eq!(code(other.rename((tmp, b"theirs"), (tmp, b"mine"), 0).await), NotPermitted);
        user.rename((tmp, b"mine"), (tmp, b"still mine"), 0).await.unwrap();
        // A directory changes its parent only if it may be written.
        let sub = user.mkdir(tmp, b"sub", 0o555).await.unwrap().inode;
        let inner = user.mkdir(tmp, b"inner", 0o755).await.unwrap().inode;
        assert_eq!(code(user.rename((tmp, b"sub"), (inner, b"sub"), 0).await), PermissionDenied);
        user.chmod(sub, 0o755).await.unwrap();
        user.rename((tmp, b"sub"), (inner, b"sub"), 0).await.unwrap();

        let shared = client.mkdir(ROOT, b"shared", 0o2777).await.unwrap().inode;
        client.chown(shared, 0, 50).await.unwrap();
        let file = user.create(shared, b"f", 0o2755).await.unwrap();
        assert_eq!((file.gid, file.mode), (50, 0o755));
        let dir = user.mkdir(shared, b"d", 0o755).await.unwrap();
        assert_eq!((dir.gid, dir.mode), (50, 0o2755));
        let deeper = user.mkdir(dir.inode, b"d", 0o700).await.unwrap();
        assert_eq!((deeper.gid, deeper.mode), (50, 0o2700));
    });
}

/// A client may tell late what it decided while a file was open: that never undoes what another one has done since.
#[test]
fn what_others_have_set_since_stays() {
    over_fresh(async |client, _| {
        let before = client.create(ROOT, b"f", 0o644).await.unwrap();
        let late = |attr: &AttrT| {
            let mut set = SetAttrFieldsT::default();
            (set.mask, set.mode, set.mtime) = (1 | 32, 0o666, 77);
            let mut known = KnownAttrT::default();
            (known.mode, known.uid, known.gid) = (attr.mode, attr.uid, attr.gid);
            (known.atime, known.mtime) = (attr.atime, attr.mtime);
            set.known = Some(Box::new(known));
            set
        };
        let set = async |set: SetAttrFieldsT| {
            let mut request = SetAttrT::default();
            (request.caller, request.inode, *request.set) = (client.caller(), before.inode, set);
            *client.fs.set_attr(&request).await.unwrap().attr
        };
        let mut other = SetAttrFieldsT::default();
        (other.mask, other.mode) = (1, 0o600);
        set(other).await;
        let attr = set(late(&before)).await;
        assert_eq!((attr.mode, attr.mtime), (0o600, 77), "only the mode was another's");
        let again = set(late(&before)).await;
        assert_eq!(again, attr, "nothing of it counts any more: not even the change time moves");
        assert_eq!(set(late(&attr)).await.mode, 0o666);
    });
}
