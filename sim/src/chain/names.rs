//! Names: metadata servers with the real namespace over the same store that the managers use, and clients that make, link, move, cut, write
//! and remove files.
//!
//! A client process gets its number from the managers, renews it, and works in a directory of its own, so that a model says what must
//! come of each operation, and what must be there in the end. It asks as the real one does: the same request, under the same number,
//! goes to another server when one says nothing or can't. Now and then a client takes one of a few names that all of them fight for:
//! only one may have it. What metadata servers want done to chunks is done to chunks of the simulated chains.

mod client;
mod model;
mod server;

pub use client::Client;
pub use model::Life;
pub use server::{Around, Ask, Asks, Wanted};

use super::config::Canary;
use super::kv::{Outcomes, Road};
use super::manager::{Machine, OwnClock};
use super::wire::{Registry, Wire};
use crate::prng::Prng;
use crate::tasks::{Owner, Spawner};
use corefs_engine::event::Nanos;
use corefs_kv::mem::Mem;
use corefs_meta::Namespace;
use corefs_meta::gc::{GcCursor, GcLimits};
use corefs_wire::control::meta::{CallerT, CreateT, Kind};
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{ClientId, InodeId, ROOT_INODE};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// The file system's number in the store.
const FS: u32 = 1;
/// Names in the common directory that clients fight for.
pub const LOCKS: usize = 3;

/// What all processes of this part share.
pub struct Common {
    pub wire: Wire,
    pub machines: Registry<Machine>,
    pub servers: Registry<Namespace<Road, Around>>,
    /// The number of the first server, and of the first client.
    pub first_server: Owner,
    pub first_client: Owner,
    /// The newest routing that was given out.
    pub routing: RefCell<Rc<RoutingInfo>>,
    /// What is to be done to chunks.
    pub asks: Asks,
    /// Inodes whose chunks were removed.
    pub removed: RefCell<BTreeSet<InodeId>>,
    /// Bytes that were kept with inodes and went to chunks.
    pub moved: RefCell<BTreeMap<InodeId, Vec<u8>>>,
    pub store: Mem,
    /// The directory of names that everybody fights for, and who has which.
    pub arena: Cell<u64>,
    pub holders: RefCell<[Option<u64>; LOCKS]>,
    /// What every client process did, and is about to do.
    pub lives: RefCell<Vec<Rc<RefCell<Life>>>>,
    /// Something that must never happen.
    pub failure: RefCell<Option<String>>,
    /// Nothing new begins.
    pub ending: Cell<bool>,
    /// A bug built in.
    pub canary: Option<Canary>,
    /// Answers that clients got, requests that were sent again, leases that ended under a client.
    pub done: Cell<u64>,
    pub again: Cell<u64>,
    pub leases_lost: Cell<u64>,
    /// Dead clients whose leavings were settled.
    pub settled: Cell<u64>,
}

impl Common {
    pub fn fail(&self, what: String) {
        self.failure.borrow_mut().get_or_insert(what);
    }
}

/// Adds one.
fn count(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

/// All metadata servers and their clients.
pub struct Names {
    pub common: Rc<Common>,
    spawner: Spawner,
    roads: Vec<Road>,
    clocks: Vec<OwnClock>,
    think: Nanos,
}

/// How many of them there are, and how they are.
pub struct Plan {
    pub servers: usize,
    pub clients: usize,
    /// A client pauses so long at most.
    pub think: Nanos,
    pub canary: Option<Canary>,
}

impl Names {
    /// Makes the file system in the store. Nothing runs yet.
    pub fn new(
        plan: &Plan,
        wire: Wire,
        spawner: Spawner,
        (store, machines): (Mem, Registry<Machine>),
        clock: impl Fn(&mut Prng) -> OwnClock,
        outcomes: &Rc<Outcomes>,
        prng: &mut Prng,
    ) -> Self {
        let managers = machines.borrow().len();
        let timers = wire.timers().clone();
        let road =
            |prng: &mut Prng| Road::new(store.clone(), timers.clone(), prng.fork(), 2, Rc::clone(outcomes));
        let roads = (0..plan.servers).map(|_| road(prng)).collect();
        let clocks = (0..plan.servers + plan.clients).map(|_| clock(prng)).collect();
        let common = Rc::new(Common {
            wire,
            machines,
            servers: Rc::new(RefCell::new((0..plan.servers).map(|_| None).collect())),
            first_server: managers,
            first_client: managers + plan.servers,
            routing: RefCell::default(),
            asks: Asks::default(),
            removed: RefCell::default(),
            moved: RefCell::default(),
            store: store.clone(),
            arena: Cell::new(0),
            holders: RefCell::default(),
            lives: RefCell::default(),
            failure: RefCell::default(),
            ending: Cell::new(false),
            canary: plan.canary,
            done: Cell::new(0),
            again: Cell::new(0),
            leases_lost: Cell::new(0),
            settled: Cell::new(0),
        });
        let fs = Namespace::new(store, FS, Around::still(Rc::clone(&common), BTreeSet::new()));
        let made = futures_lite::future::block_on(async {
            fs.format().await?;
            fs.create(&directory(ROOT_INODE.0, b"arena")).await
        });
        common.arena.set(made.expect("nothing goes wrong yet").attr.inode);
        Self { common, spawner, roads, clocks, think: plan.think }
    }

    pub fn servers(&self) -> usize {
        self.roads.len()
    }

    pub fn clients(&self) -> usize {
        self.clocks.len() - self.roads.len()
    }

    pub fn is_server_up(&self, server: usize) -> bool {
        self.common.servers.borrow()[server].is_some()
    }

    pub fn start_server(&self, server: usize) {
        server::start(&self.common, &self.spawner, server, &self.roads[server], &self.clocks[server]);
    }

    /// Its tasks are ended by the caller.
    pub fn server_died(&self, server: usize) {
        self.common.servers.borrow_mut()[server] = None;
    }

    pub fn cut_store(&self, server: usize, until: Nanos) {
        self.roads[server].cut(until);
    }

    /// A process of a client begins. What an earlier one of that place did is over.
    pub fn start_client(&self, client: usize) {
        let owner = self.common.first_client + client;
        let clock = self.clocks[self.roads.len() + client].clone();
        Client::start(&self.common, &self.spawner, owner, clock, self.think);
    }

    /// Its process is no more; its tasks are ended by the caller.
    pub fn client_died(&self, client: usize) {
        let owner = self.common.first_client + client;
        let lives = self.common.lives.borrow();
        for life in lives.iter().filter(|life| life.borrow().owner == owner) {
            life.borrow_mut().over = true;
        }
    }

    /// Nothing new begins: everybody ends what it is at.
    pub fn end(&self) {
        self.common.ending.set(true);
        self.common.wire.calm();
        self.roads.iter().for_each(|road| road.cut(0));
    }

    /// Everybody has ended what it was at.
    pub fn is_at_rest(&self) -> bool {
        let lives = self.common.lives.borrow();
        // A process that died has ended nothing.
        lives.iter().all(|life| life.borrow().is_over()) && self.common.asks.is_empty()
    }

    /// Holds what is stored against what was answered.
    pub fn check(&self) -> Result<(), String> {
        futures_lite::future::block_on(self.judge())
    }

    async fn judge(&self) -> Result<(), String> {
        let common = &self.common;
        let told = |error: corefs_wire::Error| format!("names: {error}");
        let around = Around::still(Rc::clone(common), BTreeSet::<ClientId>::new());
        let fs = Namespace::new(common.store.clone(), FS, around);
        clean(&fs).await?;
        let lives: Vec<Life> = common.lives.borrow().iter().map(|life| life.borrow().clone()).collect();
        for life in lives {
            life.check(&fs).await?;
        }
        model::check_arena(common, &fs).await?;
        // All clients end, everything that waits is done: nothing may be left.
        let (trims, outcome) = fs.finish_trims().await;
        outcome.map_err(told)?;
        let swept = fs.settle_dead_clients().await.map_err(told)?;
        if let Some(error) = swept.error {
            return Err(format!("names: a session can't be settled: {error}"));
        }
        let mut cursor = GcCursor::default();
        let collected = fs.collect_garbage(&mut cursor, GcLimits::default()).await.map_err(told)?;
        if collected.failed > 0 || collected.held > 0 || collected.more {
            return Err(format!("names: garbage stays after {trims} truncations: {collected:?}"));
        }
        clean(&fs).await
    }
}

/// Every invariant of the namespace, and that no chunks are gone of what is still there.
async fn clean(fs: &Namespace<Mem, Around>) -> Result<(), String> {
    let checked = fs.check().await.map_err(|error| format!("names: {error}"))?;
    if !checked.is_clean() {
        let findings: Vec<String> = checked.findings.iter().map(ToString::to_string).collect();
        return Err(format!("names: {findings:?}"));
    }
    fs.outside().nothing_needed_is_gone()
}

/// A name in the arena.
fn lock_name(lock: usize) -> u8 {
    b'0' + lock as u8
}

/// A request by nobody in particular, which is sent only once.
fn directory(parent: u64, name: &[u8]) -> CreateT {
    let mut request = CreateT::default();
    (request.parent, request.name, request.kind) = (parent, name.to_vec(), Kind::Directory);
    (request.mode, request.exclusive) = (0o755, true);
    request.caller = Box::new(CallerT::default());
    request
}
