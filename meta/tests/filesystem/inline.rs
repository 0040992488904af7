//! Files that keep their bytes with their inodes: written, cut, moved out, removed; with everything failing and several servers at it.

use crate::support::client::{Client, ROOT, root};
use crate::support::{Fs, World, another, assert_clean, code, fresh, over};
use corefs_kv::Mem;
use corefs_kv::mem::Faults;
use corefs_kv::prng::Prng;
use corefs_meta::gc::{GcCursor, GcLimits};
use corefs_wire::ErrorCode::*;
use corefs_wire::checksum::crc32c;
use corefs_wire::control::meta::*;
use corefs_wire::limits::INLINE_MAX;
use corefs_wire::{ErrorCode, Result};
use futures_lite::future::{block_on, zip};
use std::rc::Rc;
use std::time::Duration;

/// As in an `Attr`.
const INLINE: u8 = 8;

fn over_fresh(test: impl AsyncFnOnce(&Client, &World)) {
    block_on(async {
        let (fs, world) = fresh().await;
        test(&root(&fs), &world).await;
        assert_clean(&fs).await;
    });
}

fn piece(start: u64, bytes: &[u8]) -> Option<Box<InlineT>> {
    let mut piece = InlineT::default();
    (piece.start, piece.bytes, piece.crc) = (start, bytes.to_vec(), crc32c(bytes));
    Some(Box::new(piece))
}

fn place(outcome: Result<u64>) -> Option<u64> {
    match outcome {
        Err(error) if error.code == StaleLayout => None,
        outcome => Some(outcome.unwrap()),
    }
}

impl Client {
    /// A new file that keeps its bytes, and a session for writing it.
    async fn create_inline(&self, name: &[u8]) -> (AttrT, u64) {
        let mut request = self.create_request(ROOT, name, Kind::File, 0o644);
        (request.open, request.inline) = (true, true);
        let made = self.send_create(request).await.unwrap();
        assert_eq!(made.attr.marks, INLINE);
        (*made.attr, made.session)
    }

    fn inline_request(&self, inode: u64, session: u64, epoch: u32) -> SyncLengthT {
        let mut request = SyncLengthT::default();
        (request.inode, request.session, request.epoch) = (inode, session, epoch);
        request
    }

    async fn write_inline(
        &self,
        (inode, session, epoch): (u64, u64, u32),
        start: u64,
        bytes: &[u8],
    ) -> Result<AttrT> {
        let mut request = self.inline_request(inode, session, epoch);
        (request.caller, request.inline) = (self.caller(), piece(start, bytes));
        Ok(*self.fs.sync_length(&request).await?.attr)
    }

    async fn move_out(&self, inode: u64, session: u64) -> Result<AttrT> {
        let mut request = self.inline_request(inode, session, 0);
        (request.caller, request.move_out) = (self.caller(), true);
        Ok(*self.fs.sync_length(&request).await?.attr)
    }

    /// The attributes, and the bytes if they are kept with the inode, zeros included.
    async fn look(&self, inode: u64) -> Result<(AttrT, Option<Vec<u8>>)> {
        let mut request = OpenT::default();
        (request.caller, request.inode, request.bytes) = (self.caller(), inode, true);
        let reply = self.fs.open(&request).await?;
        let bytes = reply.inline.map(|inline| {
            assert_eq!((inline.start, inline.crc), (0, crc32c(&inline.bytes)));
            let mut bytes = inline.bytes;
            bytes.resize(reply.attr.size as usize, 0);
            bytes
        });
        Ok((*reply.attr, bytes))
    }
}

#[test]
fn bytes_come_and_go_with_the_inode() {
    over_fresh(async |client, world| {
        let (attr, session) = client.create_inline(b"f").await;
        let (file, epoch) = (attr.inode, attr.epoch);
        let written = client.write_inline((file, session, epoch), 4, b"4567").await.unwrap();
        assert_eq!((written.size, written.marks), (8, INLINE));
        assert_eq!(client.look(file).await.unwrap().1.unwrap(), b"\0\0\0\x004567");
        // With the close, and what it sets.
        let mut close = client.close_request(file, session, 0);
        (close.inline, close.epoch, close.mtime) = (piece(0, b"0123"), epoch, world.time() + 1000);
        let closed = client.send_close(close.clone()).await.unwrap();
        assert_eq!((closed.size, closed.mtime), (8, close.mtime));
        assert_eq!(code(client.send_close(close).await), NoSuchSession);
        let (attr, bytes) = client.look(file).await.unwrap();
        assert_eq!((attr, bytes.unwrap()), (closed, b"01234567".to_vec()));
        // Who doesn't ask for them isn't sent any.
        assert!(client.open(file, false, false).await.unwrap().inline.is_none());
        client.unlink(ROOT, b"f").await.unwrap();
        let collected = client.fs.collect_garbage(&mut GcCursor::default(), GcLimits::default()).await;
        assert_eq!(collected.unwrap().removed, 1);
        assert_eq!(
            (world.removals(), world.lengths_asked(), world.trims()),
            (0, 0, 0),
            "no chunk is anywhere"
        );
    });
}

#[test]
fn what_cannot_be_kept_is_refused_and_changes_nothing() {
    over_fresh(async |client, _| {
        let (attr, session) = client.create_inline(b"f").await;
        let at = (attr.inode, session, attr.epoch);
        let full = vec![7; INLINE_MAX];
        client.write_inline(at, 0, &full).await.unwrap();
        let before = client.look(attr.inode).await.unwrap();
        assert_eq!(code(client.write_inline(at, 1, &full).await), InvalidArgument);
        assert_eq!(code(client.write_inline(at, u64::MAX, b"x").await), InvalidArgument);
        assert_eq!(code(client.write_inline((at.0, at.1, 3), 0, b"x").await), MovedOut);
        let mut altered = client.inline_request(at.0, at.1, at.2);
        (altered.caller, altered.inline) = (client.caller(), piece(0, b"abc"));
        altered.inline.as_mut().unwrap().bytes[1] ^= 1;
        assert_eq!(client.fs.sync_length(&altered).await.unwrap_err().code, ChecksumMismatch);
        let held = client.send_open(at.0, false, false, true).await.unwrap().session;
        assert_eq!(code(client.write_inline((at.0, held, at.2), 0, b"x").await), NotPermitted);
        let stranger = Client::user(&client.fs, 200, 1000, 1000);
        client.chmod(at.0, 0o600).await.unwrap();
        assert_eq!(code(stranger.look(at.0).await), PermissionDenied);
        client.chmod(at.0, 0o644).await.unwrap();
        let (mut after, bytes) = client.look(at.0).await.unwrap();
        after.ctime = before.0.ctime;
        assert_eq!((after, bytes), before);
        // One that has chunks keeps nothing.
        let plain = client.create(ROOT, b"plain", 0o644).await.unwrap().inode;
        let session = client.open(plain, true, false).await.unwrap().session;
        assert_eq!(code(client.write_inline((plain, session, 1), 0, b"x").await), MovedOut);
        assert_eq!(client.move_out(plain, session).await.unwrap().epoch, 1, "nothing to do");
    });
}

#[test]
fn old_bytes_never_come_back() {
    over_fresh(async |client, world| {
        let (attr, session) = client.create_inline(b"f").await;
        let file = attr.inode;
        client.write_inline((file, session, 1), 0, b"0123456789").await.unwrap();
        let cut = client.truncate(file, 4).await.unwrap();
        assert_eq!((cut.size, cut.epoch), (4, 3));
        assert_eq!(code(client.write_inline((file, session, 1), 0, b"late").await), MovedOut);
        // Somebody may have written what nobody knows of yet.
        assert_eq!(client.truncate(file, 1 << 30).await.unwrap().epoch, 5);
        let cut = client.truncate(file, 8).await.unwrap();
        assert_eq!(client.look(file).await.unwrap().1.unwrap(), b"0123\0\0\0\0");
        client.write_inline((file, session, cut.epoch), 6, b"67").await.unwrap();
        assert_eq!(client.look(file).await.unwrap().1.unwrap(), b"0123\0\x0067");
        let emptied = client.open(file, true, true).await.unwrap().attr;
        assert_eq!((emptied.size, emptied.epoch), (0, 9));
        client.write_inline((file, session, 9), 2, b"2").await.unwrap();
        assert_eq!(client.look(file).await.unwrap().1.unwrap(), b"\0\x002");
        assert_eq!(world.trims(), 0);
    });
}

#[test]
fn bytes_move_out_once_and_for_all() {
    over_fresh(async |client, world| {
        let (attr, session) = client.create_inline(b"f").await;
        let file = attr.inode;
        client.write_inline((file, session, 1), 0, b"0123").await.unwrap();
        client.truncate(file, 6).await.unwrap();
        let held = client.send_open(file, false, false, true).await.unwrap().session;
        assert_eq!(
            client.move_out(file, held).await.unwrap().marks,
            INLINE,
            "a session for reading moves nothing"
        );
        let moved = client.move_out(file, session).await.unwrap();
        assert_eq!((moved.size, moved.epoch, moved.marks), (6, 5, 0));
        client.close(file, held, 0).await.unwrap();
        assert_eq!(client.look(file).await.unwrap(), (moved, None));
        assert_eq!(world.read(file, 0, 6), b"0123\0\0");
        assert_eq!(code(client.write_inline((file, session, 1), 0, b"late").await), MovedOut);
        assert_eq!(client.move_out(file, session).await.unwrap().epoch, 5);
        // What another server began at the same time comes late, and finds newer bytes.
        world.write(file, 5, 0, b"new").unwrap();
        let layout = corefs_wire::layout::Layout::from_message(&attr.layout).unwrap();
        let late = corefs_meta::ChunkService::write_first_chunk;
        late(world, corefs_wire::InodeId(file), &layout, b"0123", 4).await.unwrap();
        assert_eq!(world.read(file, 0, 6), b"new3\0\0");
        client.close(file, session, 0).await.unwrap();
        client.unlink(ROOT, b"f").await.unwrap();
        client.fs.collect_garbage(&mut GcCursor::default(), GcLimits::default()).await.unwrap();
        assert!(world.inodes_with_chunks().is_empty());
    });
}

/// A length without bytes, as fallocate(2) gives one, goes with what moves out.
#[test]
fn a_length_that_comes_with_the_move_counts() {
    over_fresh(async |client, world| {
        let (attr, session) = client.create_inline(b"f").await;
        client.write_inline((attr.inode, session, 1), 0, b"0123").await.unwrap();
        let mut request = client.inline_request(attr.inode, session, 1);
        (request.caller, request.length, request.move_out) = (client.caller(), 1 << 20, true);
        let moved = *client.fs.sync_length(&request).await.unwrap().attr;
        assert_eq!((moved.size, moved.epoch, moved.marks), (1 << 20, 3, 0));
        assert_eq!(world.read(attr.inode, 0, 6), b"0123\0\0");
    });
}

/// Bytes that move out refuse what was about to be appended to them: nothing may lie behind that.
#[test]
fn appends_of_two_wait_for_each_other_or_for_chunks() {
    over_fresh(async |client, _| {
        let (attr, session) = client.create_inline(b"f").await;
        let file = attr.inode;
        let other = Client::new(another(&client.fs), 200);
        let theirs = other.open(file, true, false).await.unwrap().session;
        assert_eq!(place(client.append(file, session, (4, 0), 1).await), Some(0));
        assert_eq!(place(client.append(file, session, (4, 4), 1).await), Some(4), "one's own are no matter");
        assert_eq!(place(other.append(file, theirs, (4, 0), 1).await), None);
        client.write_inline((file, session, 1), 0, b"01234567").await.unwrap();
        assert_eq!(place(other.append(file, theirs, (4, 0), 1).await), Some(8), "they are stored");
        assert_eq!(place(client.append(file, session, (4, 0), 1).await), None);
        assert_eq!(client.move_out(file, session).await.unwrap().epoch, 3);
        assert_eq!(place(client.append(file, session, (4, 0), 3).await), Some(8));
        assert_eq!(place(other.append(file, theirs, (4, 0), 3).await), Some(12));
    });
    over_fresh(async |client, _| {
        let (attr, session) = client.create_inline(b"f").await;
        let most = INLINE_MAX as u64;
        assert_eq!(place(client.append(attr.inode, session, (most, 0), 1).await), Some(0));
        assert_eq!(place(client.append(attr.inode, session, (1, most), 1).await), None);
    });
}

#[test]
fn an_empty_file_moves_out_at_once() {
    over_fresh(async |client, world| {
        world.fail_chunks(1);
        let (attr, session) = client.create_inline(b"f").await;
        let moved = client.move_out(attr.inode, session).await.unwrap();
        assert_eq!((moved.epoch, moved.marks), (3, 0));
        // Of one that is all zeros nothing moves, either.
        let (attr, session) = client.create_inline(b"g").await;
        client.truncate(attr.inode, 1 << 40).await.unwrap();
        let moved = client.move_out(attr.inode, session).await.unwrap();
        assert_eq!((moved.size, moved.marks), (1 << 40, 0));
    });
}

/// Storage can't be reached when the bytes are to go there: nobody loses or sees anything else, and whoever comes next finishes it.
#[test]
fn a_move_that_stops_half_way_is_finished_by_others() {
    for by in 0..4 {
        over_fresh(async |client, world| {
            let (attr, session) = client.create_inline(b"f").await;
            let file = attr.inode;
            client.write_inline((file, session, 1), 0, b"0123").await.unwrap();
            world.fail_chunks(1);
            assert_eq!(code(client.move_out(file, session).await), Unreachable);
            let (attr, bytes) = client.look(file).await.unwrap();
            assert_eq!((attr.epoch, attr.marks, bytes.unwrap()), (1, INLINE, b"0123".to_vec()));
            let other = Client::new(another(&client.fs), 200);
            match by {
                // The same request again, after its answer was lost.
                0 => assert_eq!(client.again().move_out(file, session).await.unwrap().epoch, 3),
                // The background of another server.
                1 => assert_eq!(other.fs.finish_trims().await, (1, Ok(()))),
                // Somebody who writes.
                2 => {
                    let session = other.open(file, true, false).await.unwrap().session;
                    assert_eq!(code(other.write_inline((file, session, 1), 0, b"x").await), MovedOut);
                }
                // Somebody who cuts it.
                _ => assert_eq!(other.truncate(file, 2).await.unwrap().size, 2),
            }
            let attr = client.stat(file).await.unwrap();
            let cut = by == 3;
            assert_eq!((attr.size, attr.epoch), if cut { (2, 5) } else { (4, 3) });
            assert_eq!(world.read(file, 0, 4), if cut { b"01\0\0" } else { b"0123" });
        });
    }
}

#[test]
fn one_that_is_removed_half_way_out_leaves_nothing() {
    over_fresh(async |client, world| {
        let (attr, session) = client.create_inline(b"f").await;
        client.write_inline((attr.inode, session, 1), 0, b"0123").await.unwrap();
        world.fail_chunks(1);
        client.move_out(attr.inode, session).await.unwrap_err();
        client.unlink(ROOT, b"f").await.unwrap();
        client.end_sessions(&[(attr.inode, session)]).await.unwrap();
        let collect = async || {
            let collected = client.fs.collect_garbage(&mut GcCursor::default(), GcLimits::default()).await;
            let collected = collected.unwrap();
            (collected.held, collected.removed, world.removals())
        };
        assert_eq!(collect().await, (1, 0, 0), "its chunk may come later than a removal");
        assert_eq!(client.fs.finish_trims().await, (1, Ok(())));
        assert_eq!(collect().await, (0, 1, 1));
    });
}

#[test]
fn the_sessions_of_the_dead_cost_storage_nothing() {
    over_fresh(async |client, world| {
        let (attr, session) = client.create_inline(b"f").await;
        client.write_inline((attr.inode, session, 1), 0, b"0123").await.unwrap();
        world.kill(client.id);
        assert_eq!(client.fs.settle_dead_clients().await.unwrap().sessions_settled, 1);
        assert_eq!((client.stat(attr.inode).await.unwrap().size, world.lengths_asked()), (4, 0));
    });
}

/// A file as several clients write and cut it through several servers.
struct Shared {
    inode: u64,
    model: Vec<u8>,
}

/// A client that follows the rules of the native one.
struct Writer {
    client: Client,
    session: u64,
    attr: AttrT,
}

impl Writer {
    async fn new(fs: Rc<Fs>, id: u64, inode: u64) -> Self {
        let client = Client::new(fs, id);
        let opened = persist(async || client.again().open(inode, true, false).await, &client).await;
        Self { client, session: opened.session, attr: *opened.attr }
    }

    async fn learn(&mut self) {
        self.attr = loop {
            if let Ok(attr) = self.client.stat(self.attr.inode).await {
                break attr;
            }
        }
    }

    async fn write(&mut self, world: &World, at: u64, bytes: &[u8]) {
        loop {
            let (inode, epoch) = (self.attr.inode, self.attr.epoch);
            if self.attr.marks & INLINE == 0 {
                match world.write(inode, epoch, at, bytes) {
                    Ok(()) => {
                        let end = at + bytes.len() as u64;
                        let (client, session) = (&self.client, self.session);
                        self.attr =
                            persist(async || client.again().sync(inode, session, end, epoch).await, client)
                                .await;
                        return;
                    }
                    Err(_) => self.learn().await,
                }
                continue;
            }
            let (client, session) = (&self.client, self.session);
            let small = at as usize + bytes.len() <= INLINE_MAX;
            client.caller();
            let outcome = loop {
                let outcome = match small {
                    true => client.again().write_inline((inode, session, epoch), at, bytes).await,
                    false => client.again().move_out(inode, session).await,
                };
                match outcome {
                    Err(error) if again(error.code) => {}
                    outcome => break outcome,
                }
            };
            match outcome {
                Ok(attr) => {
                    self.attr = attr;
                    if small {
                        return;
                    }
                }
                Err(error) => {
                    assert_eq!(error.code, MovedOut);
                    self.learn().await;
                }
            }
        }
    }

    async fn cut(&mut self, size: u64) {
        let (client, inode) = (&self.client, self.attr.inode);
        self.attr = persist(async || client.again().truncate(inode, size).await, client).await;
    }
}

fn again(code: ErrorCode) -> bool {
    matches!(code, Unreachable | KvConflict | KvUnknownCommit | KvTooOld | KvUnavailable)
}

/// One request, as often as it takes.
async fn persist<T>(request: impl AsyncFn() -> Result<T>, client: &Client) -> T {
    client.caller();
    loop {
        match request().await {
            Ok(reply) => return reply,
            Err(error) => assert!(again(error.code), "{error}"),
        }
    }
}

impl Shared {
    async fn compare(&self, client: &Client, world: &World) {
        let (attr, bytes) = loop {
            if let Ok(found) = client.look(self.inode).await {
                break found;
            }
        };
        assert_eq!(attr.size as usize, self.model.len());
        let found = bytes.unwrap_or_else(|| world.read(self.inode, 0, self.model.len()));
        assert!(found == self.model, "bytes differ");
    }
}

fn agree(seed: u64, faults: Faults) {
    block_on(async {
        let (fs, world) = over(Mem::with_faults(seed, Faults::default()), seed).await;
        let (attr, _) = root(&fs).create_inline(b"f").await;
        fs.kv().set_faults(faults);
        let mut shared = Shared { inode: attr.inode, model: Vec::new() };
        let mut writers = Vec::new();
        for id in 0..3 {
            writers.push(Writer::new(another(&fs), 300 + id, attr.inode).await);
        }
        let mut random = Prng::new(seed);
        for _ in 0..40 {
            let which = random.below(3) as usize;
            world.fail_chunks(random.below(2) as u32);
            match random.below(10) {
                0..7 => {
                    let far = random.below(8) == 0;
                    let at = random.below(if far { INLINE_MAX as u64 + 10 } else { 600 });
                    let bytes: Vec<u8> =
                        (0..random.below(300) + 1).map(|_| random.draw() as u8 | 1).collect();
                    writers[which].write(&world, at, &bytes).await;
                    let end = at as usize + bytes.len();
                    shared.model.resize(shared.model.len().max(end), 0);
                    shared.model[at as usize..end].copy_from_slice(&bytes);
                }
                7..9 => {
                    let size = random.below(900);
                    writers[which].cut(size).await;
                    shared.model.resize(size as usize, 0);
                }
                _ => drop(fs.finish_trims().await),
            }
            shared.compare(&writers[which].client, &world).await;
        }
        world.fail_chunks(0);
        fs.kv().set_faults(Faults::default());
        fs.kv().settle();
        fs.finish_trims().await.1.unwrap();
        assert_clean(&fs).await;
    });
}

#[test]
fn several_writers_agree_with_plain_bytes() {
    (0..40).for_each(|seed| agree(seed, Faults::default()));
}

#[test]
fn and_so_they_do_when_commits_fail_or_are_unknown() {
    (100..140).for_each(|seed| agree(seed, Faults::STORM));
}

/// Two servers move the same bytes out while a third client writes: its write is there afterwards, whatever came first.
#[test]
fn a_write_is_not_lost_to_a_move() {
    for seed in 0..200 {
        block_on(async {
            let (fs, world) = over(Mem::new(), seed).await;
            let (attr, session) = root(&fs).create_inline(b"f").await;
            let inode = attr.inode;
            let first = root(&fs);
            first.caller();
            first.write_inline((inode, session, 1), 0, b"0123456789").await.unwrap();
            world.interleave();
            let movers: Vec<Client> = (0..2).map(|id| Client::new(another(&fs), 300 + id)).collect();
            let mut writer = Writer::new(another(&fs), 400, inode).await;
            let moving = async |client: &Client| {
                let session = client.open(inode, true, false).await.unwrap().session;
                client.move_out(inode, session).await.unwrap();
            };
            let moves = zip(moving(&movers[0]), moving(&movers[1]));
            zip(moves, writer.write(&world, 3, b"abc")).await;
            let shared = Shared { inode, model: b"012abc6789".to_vec() };
            shared.compare(&first, &world).await;
            assert_clean(&fs).await;
        });
    }
}

#[test]
fn nobody_waits_for_a_removal_of_what_has_no_chunks() {
    over_fresh(async |client, world| {
        let (attr, session) = client.create_inline(b"f").await;
        let mut close = client.close_request(attr.inode, session, 0);
        (close.inline, close.epoch) = (piece(0, b"abc"), 1);
        client.send_close(close).await.unwrap();
        client.unlink(ROOT, b"f").await.unwrap();
        world.hang_chunks();
        let limits = GcLimits { grace: Duration::ZERO, ..GcLimits::default() };
        let collected = client.fs.collect_garbage(&mut GcCursor::default(), limits).await.unwrap();
        assert_eq!((collected.removed, collected.held), (1, 0));
    });
}
