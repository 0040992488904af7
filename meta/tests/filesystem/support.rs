//! What the tests of the namespace share: a world with chunks in memory, clients, and a scheduler that interleaves.

pub mod client;
pub mod model;
pub mod schedule;

use corefs_kv::prng::Prng;
use corefs_kv::{KvEngine, Mem};
use corefs_meta::{ChunkService, ClientLeases, Clock, Namespace, Random, Space};
use corefs_wire::layout::Layout;
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{ChainId, ClientId, Error, ErrorCode, InodeId, Result};
use futures_lite::future::yield_now;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

/// A chunk: its truncate epoch and its bytes, `None` once it was removed.
type Chunk = (u32, Option<Vec<u8>>);

/// The world outside the namespace; clones share it.
#[derive(Clone)]
pub struct World(Rc<State>);

pub struct State {
    now: Cell<i64>,
    stands: Cell<bool>,
    random: RefCell<Prng>,
    routing: Rc<RoutingInfo>,
    chunks: RefCell<BTreeMap<(u64, u32), Chunk>>,
    dead: RefCell<BTreeSet<ClientId>>,
    /// The next so many calls of the chunk service fail.
    failures: Cell<u32>,
    /// Calls of the chunk service never end.
    hangs: Cell<bool>,
    /// Calls of the chunk service let other tasks go first.
    yields: Cell<bool>,
    removals: Cell<u32>,
    pub trims: Cell<u32>,
    pub lengths_asked: Cell<u32>,
}

pub const CHUNK: u32 = 64 << 10;

impl World {
    pub fn new(seed: u64) -> Self {
        let routing = RoutingInfo {
            version: 1,
            chunk_size: CHUNK,
            tables: [((1, 1), (1..=8).map(ChainId).collect())].into(),
            ..RoutingInfo::default()
        };
        Self(Rc::new(State {
            now: Cell::new(1_000_000),
            stands: Cell::new(false),
            random: RefCell::new(Prng::new(seed)),
            routing: Rc::new(routing),
            chunks: RefCell::default(),
            dead: RefCell::default(),
            failures: Cell::new(0),
            hangs: Cell::new(false),
            yields: Cell::new(false),
            removals: Cell::new(0),
            trims: Cell::new(0),
            lengths_asked: Cell::new(0),
        }))
    }

    /// The time that the next operation may get.
    pub fn time(&self) -> i64 {
        self.0.now.get()
    }

    pub fn pass(&self, nanoseconds: i64) {
        self.0.now.set(self.0.now.get() + nanoseconds);
    }

    /// From now on the time doesn't change.
    pub fn stand_still(&self) {
        self.0.stands.set(true);
    }

    pub fn fail_chunks(&self, calls: u32) {
        self.0.failures.set(calls);
    }

    /// Storage doesn't answer any more.
    pub fn hang_chunks(&self) {
        self.0.hangs.set(true);
    }

    pub fn interleave(&self) {
        self.0.yields.set(true);
    }

    pub fn kill(&self, client: u64) {
        self.0.dead.borrow_mut().insert(ClientId(client));
    }

    pub fn trims(&self) -> u32 {
        self.0.trims.get()
    }

    pub fn removals(&self) -> u32 {
        self.0.removals.get()
    }

    pub fn lengths_asked(&self) -> u32 {
        self.0.lengths_asked.get()
    }

    /// A client's write, as the storage servers would take it: `StaleLayout` under an epoch older than a chunk's.
    pub fn write(&self, inode: u64, epoch: u32, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut chunks = self.0.chunks.borrow_mut();
        let layout = Layout { chunk_size: CHUNK, stripe: 1, table_id: 1, table_version: 1, seed: 0 };
        for piece in layout.pieces(offset, bytes.len() as u64) {
            let (known, content) = chunks.entry((inode, piece.index)).or_insert((0, None));
            if epoch < *known {
                return Err(ErrorCode::StaleLayout.into());
            }
            *known = epoch;
            let content = content.get_or_insert_default();
            let end = (piece.offset + piece.length) as usize;
            content.resize(content.len().max(end), 0);
            let at = piece.at as usize;
            content[piece.offset as usize..end].copy_from_slice(&bytes[at..at + piece.length as usize]);
        }
        Ok(())
    }

    /// What the chunks hold from `offset` on, holes and what is missing as zeros.
    pub fn read(&self, inode: u64, offset: u64, length: usize) -> Vec<u8> {
        let chunks = self.0.chunks.borrow();
        let byte = |at: u64| {
            let chunk = chunks.get(&(inode, (at / u64::from(CHUNK)) as u32))?;
            chunk.1.as_ref()?.get((at % u64::from(CHUNK)) as usize).copied()
        };
        (offset..offset + length as u64).map(|at| byte(at).unwrap_or(0)).collect()
    }

    /// Inodes of which any chunk is there.
    pub fn inodes_with_chunks(&self) -> BTreeSet<u64> {
        let chunks = self.0.chunks.borrow();
        chunks.iter().filter(|(_, chunk)| chunk.1.is_some()).map(|((inode, _), _)| *inode).collect()
    }

    async fn called(&self) -> Result<()> {
        if self.0.yields.get() {
            for _ in 0..self.random() % 4 {
                yield_now().await;
            }
        }
        if self.0.hangs.get() {
            std::future::pending::<()>().await;
        }
        let failures = self.0.failures.get();
        if failures > 0 {
            self.0.failures.set(failures - 1);
            return Err(Error::new(ErrorCode::Unreachable, "no storage server answers"));
        }
        Ok(())
    }
}

impl Clock for World {
    fn now(&self) -> i64 {
        self.0.now.set(self.0.now.get() + i64::from(!self.0.stands.get()));
        self.0.now.get()
    }
}

impl Random for World {
    fn random(&self) -> u64 {
        self.0.random.borrow_mut().draw()
    }
}

impl ChunkService for World {
    async fn truncate_chunks(&self, inode: InodeId, layout: &Layout, length: u64, epoch: u32) -> Result<()> {
        self.called().await?;
        self.0.trims.set(self.0.trims.get() + 1);
        let size = u64::from(layout.chunk_size);
        let mine: Vec<u32> = {
            let chunks = self.0.chunks.borrow();
            let all = chunks.range((inode.0, 0)..=(inode.0, u32::MAX));
            all.map(|((_, index), _)| *index)
                .filter(|index| (u64::from(*index) + 1) * size > length)
                .collect()
        };
        for index in mine {
            if self.0.yields.get() {
                yield_now().await;
            }
            let mut chunks = self.0.chunks.borrow_mut();
            let Some((known, content)) = chunks.get_mut(&(inode.0, index)) else { continue };
            if *known > epoch {
                continue;
            }
            *known = epoch;
            match length.saturating_sub(u64::from(index) * size) {
                0 => *content = None,
                rest => content.iter_mut().for_each(|bytes| bytes.truncate(rest as usize)),
            }
        }
        Ok(())
    }

    async fn write_first_chunk(&self, inode: InodeId, _: &Layout, bytes: &[u8], epoch: u32) -> Result<()> {
        self.called().await?;
        let mut chunks = self.0.chunks.borrow_mut();
        let (known, content) = chunks.entry((inode.0, 0)).or_default();
        if *known <= epoch {
            *known = epoch;
            let content = content.get_or_insert_default();
            content.resize(content.len().max(bytes.len()), 0);
            content[..bytes.len()].copy_from_slice(bytes);
        }
        Ok(())
    }

    async fn remove_chunks(&self, inode: InodeId, _layout: &Layout, slice: Duration) -> Result<bool> {
        self.0.removals.set(self.0.removals.get() + 1);
        self.called().await?;
        let mut chunks = self.0.chunks.borrow_mut();
        // One chunk takes a millisecond.
        let all: Vec<_> = chunks.range((inode.0, 0)..=(inode.0, u32::MAX)).map(|(key, _)| *key).collect();
        let gone = all.len().min(slice.as_millis() as usize);
        all[..gone].iter().for_each(|key| drop(chunks.remove(key)));
        Ok(gone == all.len())
    }

    async fn inode_length(&self, inode: InodeId, layout: &Layout) -> Result<u64> {
        self.called().await?;
        self.0.lengths_asked.set(self.0.lengths_asked.get() + 1);
        let chunks = self.0.chunks.borrow();
        let ends =
            chunks.range((inode.0, 0)..=(inode.0, u32::MAX)).filter_map(|((_, index), (_, content))| {
                let bytes = content.as_ref()?;
                (!bytes.is_empty())
                    .then(|| u64::from(*index) * u64::from(layout.chunk_size) + bytes.len() as u64)
            });
        Ok(ends.max().unwrap_or(0))
    }

    fn routing(&self) -> Rc<RoutingInfo> {
        self.0.routing.clone()
    }

    async fn space(&self) -> Result<Space> {
        Ok(Space { total: 1 << 40, free: 1 << 39 })
    }
}

impl ClientLeases for World {
    async fn alive(&self, clients: &[ClientId]) -> Result<Vec<bool>> {
        let dead = self.0.dead.borrow();
        Ok(clients.iter().map(|client| !dead.contains(client)).collect())
    }
}

pub type Fs = Namespace<Mem, World>;

/// An empty file system over a store in which nothing goes wrong, unless told to.
pub async fn fresh() -> (Rc<Fs>, World) {
    over(Mem::new(), 1).await
}

/// Another server over the same store and world.
pub fn another(fs: &Fs) -> Rc<Fs> {
    Rc::new(Namespace::new(fs.kv().clone(), 1, fs.outside().clone()))
}

pub async fn over(kv: Mem, seed: u64) -> (Rc<Fs>, World) {
    let world = World::new(seed);
    let fs = Namespace::new(kv, 1, world.clone());
    fs.format().await.expect("formatting");
    (Rc::new(fs), world)
}

/// Everything that can go wrong has, and what was late has landed: nothing may be found.
pub async fn assert_clean<E: KvEngine>(fs: &Namespace<E, World>) {
    let checked = fs.check().await.expect("checking");
    let findings: Vec<String> = checked.findings.iter().map(ToString::to_string).collect();
    assert!(findings.is_empty(), "{findings:#?}");
}

/// The error's code, for comparing.
pub fn code<T: std::fmt::Debug>(outcome: Result<T>) -> ErrorCode {
    outcome.expect_err("this must fail").code
}
