//! A metadata server: the namespace, what it does unasked, and the world around it.

use super::{Common, FS, count};
use crate::chain::config::Canary;
use crate::chain::kv::Road;
use crate::chain::manager::OwnClock;
use crate::tasks::{MILLI, Owner, Slot, Spawner};
use corefs_engine::event::Nanos;
use corefs_kv::KeyRange;
use corefs_meta::gc::{GcCursor, GcLimits};
use corefs_meta::key::Keys;
use corefs_meta::{ChunkService, ClientLeases, Namespace, Random, Space};
use corefs_mgmtd::{Clock, ops};
use corefs_wire::control::mgmtd::CheckClientsT;
use corefs_wire::layout::Layout;
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{ClientId, Error, ErrorCode, InodeId, Result};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// Between rounds over the garbage, and over what dead clients left (milliseconds).
const GC_PAUSE_MS: u64 = 1000;
const TIDY_PAUSE_MS: u64 = 3000;
/// How long a server waits for a manager.
const PATIENCE: Nanos = 500 * MILLI;
/// Some moment of the wall clocks, and how far they are apart at most.
const EPOCH: i64 = 1_700_000_000_000_000_000;
const SKEW: u64 = 2_000_000_000;

/// What is to be done to the chunks of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    Truncate { length: u64 },
    Remove,
}

/// Something to be done to chunks, and where the outcome goes.
#[derive(Clone)]
pub struct Ask {
    pub inode: InodeId,
    pub wanted: Wanted,
    pub outcome: Slot<Result<()>>,
}

/// What waits to be done to chunks, and how much of it is under way.
#[derive(Default)]
pub struct Asks {
    waiting: RefCell<VecDeque<Ask>>,
    under_way: Cell<usize>,
}

impl Asks {
    pub fn next(&self) -> Option<Ask> {
        let ask = self.waiting.borrow_mut().pop_front()?;
        self.under_way.set(self.under_way.get() + 1);
        Some(ask)
    }

    pub fn ended(&self) {
        self.under_way.set(self.under_way.get() - 1);
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty() && self.under_way.get() == 0
    }
}

/// What a namespace needs of the world.
pub struct Around {
    common: Rc<Common>,
    /// `None`: nothing takes time and all clients but the living are dead, for the check at the end.
    owner: Option<Owner>,
    alive: BTreeSet<ClientId>,
    skew: i64,
}

impl Around {
    /// For the beginning and the end, when nothing runs.
    pub fn still(common: Rc<Common>, alive: BTreeSet<ClientId>) -> Self {
        Self { common, owner: None, alive, skew: 0 }
    }

    /// No chunks were removed of an inode that is still there.
    pub fn nothing_needed_is_gone(&self) -> std::result::Result<(), String> {
        let keys = Keys::new(FS);
        for inode in self.common.removed.borrow().iter() {
            if !self.common.store.newest(&KeyRange::single(&keys.inode(*inode))).is_empty() {
                return Err(format!("names: the chunks of {inode} were removed, and it is still there"));
            }
        }
        Ok(())
    }

    /// Nothing hinders it, but for a canary.
    fn reach(&self) -> Result<()> {
        match self.common.canary {
            Some(Canary::ChunksUnreached) => Err(ErrorCode::Unreachable.into()),
            _ => Ok(()),
        }
    }

    async fn ask(&self, inode: InodeId, wanted: Wanted) -> Result<()> {
        if wanted == Wanted::Remove {
            self.common.removed.borrow_mut().insert(inode);
            if let Err(what) = self.nothing_needed_is_gone() {
                self.common.fail(what);
            }
        }
        if self.owner.is_none() {
            return Ok(());
        }
        let ask = Ask { inode, wanted, outcome: Slot::default() };
        let outcome = ask.outcome.take();
        self.common.asks.waiting.borrow_mut().push_back(ask);
        outcome.await
    }
}

impl corefs_meta::Clock for Around {
    fn now(&self) -> i64 {
        EPOCH + self.common.wire.timers().now() as i64 + self.skew
    }
}

impl Random for Around {
    fn random(&self) -> u64 {
        self.common.wire.below(u64::MAX)
    }
}

impl ChunkService for Around {
    async fn truncate_chunks(&self, inode: InodeId, _: &Layout, length: u64, _: u32) -> Result<()> {
        let removes = self.common.canary == Some(Canary::CutsRemove);
        self.ask(inode, if removes { Wanted::Remove } else { Wanted::Truncate { length } }).await
    }

    async fn write_first_chunk(&self, inode: InodeId, _: &Layout, bytes: &[u8], _: u32) -> Result<()> {
        // It takes as long as a cut does, and fails as one does.
        self.ask(inode, Wanted::Truncate { length: bytes.len() as u64 }).await?;
        let loses = self.common.canary == Some(Canary::MovesLose);
        let bytes = if loses { &[] } else { bytes };
        let moved = self.common.moved.borrow_mut().insert(inode, bytes.to_vec());
        if moved.is_some_and(|moved| moved != bytes) {
            self.common.fail(format!("names: the bytes of {inode} moved out twice, and not the same"));
        }
        Ok(())
    }

    async fn remove_chunks(&self, inode: InodeId, _: &Layout, _: Duration) -> Result<bool> {
        self.reach()?;
        self.ask(inode, Wanted::Remove).await.map(|()| true)
    }

    async fn inode_length(&self, _: InodeId, _: &Layout) -> Result<u64> {
        self.reach().map(|()| 0)
    }

    fn routing(&self) -> Rc<RoutingInfo> {
        self.common.routing.borrow().clone()
    }

    async fn space(&self) -> Result<Space> {
        Ok(Space::default())
    }
}

impl ClientLeases for Around {
    async fn alive(&self, clients: &[ClientId]) -> Result<Vec<bool>> {
        let Some(owner) = self.owner else {
            return Ok(clients.iter().map(|client| self.alive.contains(client)).collect());
        };
        let managers = self.common.machines.borrow().len();
        for manager in 0..managers {
            let (machines, clients) = (Rc::clone(&self.common.machines), clients.to_vec());
            let ask = move || {
                let machine = machines.borrow()[manager].clone()?;
                let mut request = CheckClientsT::default();
                request.clients = clients.iter().map(|client| client.0).collect();
                Some(async move { ops::check_clients(&machine, request).await })
            };
            if let Some(Ok(reply)) = self.common.wire.call((owner, manager), PATIENCE, ask).await {
                return Ok(reply.alive);
            }
        }
        Err(Error::new(ErrorCode::Unreachable, "no manager says who lives"))
    }
}

/// A process begins.
pub fn start(common: &Rc<Common>, spawner: &Spawner, server: usize, road: &Road, clock: &OwnClock) {
    let owner = common.first_server + server;
    let skew = common.wire.below(SKEW) as i64;
    let around = Around { common: Rc::clone(common), owner: Some(owner), alive: BTreeSet::new(), skew };
    let namespace = Rc::new(Namespace::new(road.clone(), FS, around));
    common.servers.borrow_mut()[server] = Some(Rc::clone(&namespace));
    let (here, time) = (Rc::clone(&namespace), clock.clone());
    spawner.spawn(owner, async move {
        let mut cursor = GcCursor::default();
        loop {
            // What fails is tried again.
            let _collected = here.collect_garbage(&mut cursor, GcLimits::default()).await;
            time.sleep(GC_PAUSE_MS).await;
        }
    });
    let (time, common) = (clock.clone(), Rc::clone(common));
    spawner.spawn(owner, async move {
        loop {
            let _finished = namespace.finish_trims().await;
            if let Ok(swept) = namespace.settle_dead_clients().await {
                (0..swept.dead_clients).for_each(|_| count(&common.settled));
            }
            time.sleep(TIDY_PAUSE_MS).await;
        }
    });
}
