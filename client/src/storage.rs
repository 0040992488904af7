//! Chunks: reads batched per owner, updates tagged and retried, lists.
//!
//! The read path is built for the cost of one operation. What one read does, besides the kernel's work: pick a replica (two
//! array accesses), reserve a request number, append 56 bytes to the owner's batch; when its reply has
//! come, check a CRC per block, where it arrived. Nothing of it allocates, locks or spawns; errors leave it for `read_again`.
//!
//! Invariants
//! - Entries gathered for an owner leave at the end of the turn in which they were gathered, or when the batch is full.
//! - Each attempt that names a buffer owns it until its reply, or until nobody can write to it any more: the node keeps it, so a read that is
//!   dropped or timed out can't be written into by a late reply.
//! - A channel carries one update at a time; one whose last outcome is unknown is never used again.

mod channels;
mod hedge;
mod list;
mod reach;
mod read;
mod update;

pub use read::{Asking, Unfinished, read_entry};
pub use update::Update;

use crate::ground::Ground;
use crate::route::pace::{self, Hedge, Pace};
use crate::route::{ChainRoute, OwnerIndex, Stripe};
use crate::wait::Waiters;
use channels::Channels;
use corefs_net::{Buffer, Node, Payload, Reply};
use corefs_wire::data::{Prefix, ReadEntry, op};
use corefs_wire::frame::Kind;
use corefs_wire::layout::Layout;
use corefs_wire::limits::{CONNECTION_REQUESTS_MAX, READ_BATCH_MAX};
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{ClientId, Error, ErrorCode, InodeId, Result};
use hedge::LeftBehind;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// One attempt of a data operation, a connection that has to be made first included. A server that is slower than this is asked again,
/// or another one.
const ATTEMPT: Duration = Duration::from_secs(5);
/// The first attempt of a read that another replica could answer too: longer than a busy disk takes, much shorter than it takes until a
/// node that stands still is known to be dead.
const FIRST_ATTEMPT: Duration = pace::CEILING;
/// How long an owner that let such an attempt wait in vain is asked only when there is no other.
const SUSPECT: Duration = Duration::from_secs(1);
/// Requests under way at one owner: some room below what its connection allows, for lists and updates.
const OWNER_READS_MAX: u32 = CONNECTION_REQUESTS_MAX as u32 / 4 * 3;

/// Where the chunks of an inode are.
pub struct Place {
    pub inode: InodeId,
    pub layout: Layout,
    /// Set when a read found no chunk: there is a hole, or the file was removed elsewhere and its chunks with it.
    pub missed: Cell<bool>,
    stripe: RefCell<Option<Stripe>>,
}

impl Place {
    pub fn new(inode: InodeId, layout: Layout) -> Self {
        Self { inode, layout, missed: Cell::new(false), stripe: RefCell::new(None) }
    }
}

/// What is known of one shard of the cluster.
#[derive(Default)]
struct Owner {
    conn: Option<corefs_net::ConnId>,
    /// The body of the batch being gathered; empty between turns.
    batch: Vec<u8>,
    entries: usize,
    /// Number of the first entry: the batch goes under it too, so that a refusal of the whole reaches somebody at once.
    first: u64,
    /// Requests without an answer.
    outstanding: u32,
    /// Until then it is asked only when there is no other.
    suspect_until: Option<Instant>,
}

/// The data path of one client.
pub struct Storage {
    ground: Rc<Ground>,
    node: Node,
    owners: RefCell<Vec<Owner>>,
    /// Owners with a batch to send.
    gathered: RefCell<Vec<OwnerIndex>>,
    /// Changes when an owner that was full has room again.
    room: Waiters,
    /// Changes at the end of turns while somebody waits for a buffer.
    buffers: Waiters,
    channels: RefCell<Channels>,
    free_channel: Waiters,
    from: Cell<(ClientId, u32)>,
    pace: RefCell<Pace>,
    left_behind: RefCell<Vec<LeftBehind>>,
}

impl Storage {
    pub fn new(ground: Rc<Ground>, hedge: Hedge) -> Rc<Self> {
        let storage = Rc::new(Self {
            node: ground.node.clone(),
            ground,
            owners: RefCell::default(),
            gathered: RefCell::default(),
            room: Waiters::default(),
            buffers: Waiters::default(),
            channels: RefCell::default(),
            free_channel: Waiters::default(),
            from: Cell::default(),
            pace: RefCell::new(Pace::new(hedge)),
            left_behind: RefCell::default(),
        });
        let me: Weak<Self> = Rc::downgrade(&storage);
        storage.ground.set_busy_test(Rc::new({
            let me = me.clone();
            move |owner| me.upgrade().is_some_and(|storage| storage.keeps(owner))
        }));
        storage.ground.on_routing(Rc::new({
            let me = me.clone();
            move |routing| {
                if let Some(storage) = me.upgrade() {
                    storage.leave_the_dead(routing);
                }
            }
        }));
        storage.node.on_turn_end(Rc::new(move |_| {
            if let Some(storage) = me.upgrade() {
                storage.end_turn();
            }
        }));
        storage
    }

    pub fn ground(&self) -> Rc<Ground> {
        Rc::clone(&self.ground)
    }

    /// Whose updates these are from now on. Channels start anew: their numbers belong to the client.
    pub fn set_client(&self, client: ClientId, incarnation: u32) {
        if self.from.replace((client, incarnation)) != (client, incarnation) {
            self.channels.borrow_mut().start_anew();
        }
    }

    pub fn client(&self) -> (ClientId, u32) {
        self.from.get()
    }

    /// Whether an index must keep its address although routing doesn't name it; otherwise it is forgotten here too.
    fn keeps(&self, index: OwnerIndex) -> bool {
        let mut owners = self.owners.borrow_mut();
        let Some(owner) = owners.get_mut(index.0 as usize) else { return false };
        let busy = owner.outstanding > 0 || owner.entries > 0;
        if !busy {
            owner.conn = None;
        }
        busy
    }

    /// Ends the connections to nodes that are dead by now: whoever waits for one of them asks another at once. One whose
    /// process died has lost its connections already; one that stands still, or is cut off, keeps them.
    fn leave_the_dead(&self, routing: &RoutingInfo) {
        let dead = routing.nodes.values().filter(|node| !node.alive).flat_map(|node| &node.shards);
        let dead: BTreeSet<&str> = dead.map(String::as_str).collect();
        if dead.is_empty() {
            return;
        }
        let mut left = Vec::new();
        let routes = self.ground.routes.borrow();
        for (at, owner) in self.owners.borrow_mut().iter_mut().enumerate() {
            if dead.contains(routes.address(OwnerIndex(at as u32))) {
                left.extend(owner.conn.take());
            }
        }
        drop(routes);
        left.into_iter().for_each(|conn| self.node.close(conn));
    }

    /// Lends the route of a chunk's chain.
    #[inline]
    fn with_chain<T>(&self, place: &Place, index: u32, work: impl FnOnce(&ChainRoute) -> T) -> Result<T> {
        let routes = self.ground.routes.borrow();
        let mut stripe = place.stripe.borrow_mut();
        if stripe.as_ref().is_none_or(|stripe| stripe.generation() != routes.generation()) {
            *stripe = Some(routes.stripe(&place.layout)?);
        }
        match &*stripe {
            Some(stripe) => Ok(work(routes.chain(stripe.chain(index)))),
            None => Err(ErrorCode::Internal.into()),
        }
    }

    /// Requests without an answer at an owner.
    #[inline]
    fn load(&self, owner: OwnerIndex) -> u32 {
        self.owners.borrow().get(owner.0 as usize).map_or(0, |owner| owner.outstanding)
    }

    /// What counts when a replica is chosen.
    #[inline]
    fn reluctance(&self, owner: OwnerIndex) -> u32 {
        let owners = self.owners.borrow();
        let Some(owner) = owners.get(owner.0 as usize) else { return 0 };
        match owner.suspect_until {
            Some(until) if self.node.now() < until => u32::MAX,
            _ => owner.outstanding,
        }
    }

    /// Sends one request to an owner and waits for its reply.
    async fn ask(&self, owner: OwnerIndex, op: u16, body: &[u8], payload: Option<Payload>) -> Result<Reply> {
        let (conn, expected) = self.expect(owner, None, ATTEMPT).await?;
        let _counted = self.count(owner);
        self.node.post(conn, Kind::Request, op, expected.request_id(), body, payload)?;
        let reply = expected.await;
        self.note(owner, conn, &reply);
        reply
    }

    /// Sends one read in the owner's batch of this turn and waits for its reply.
    #[inline]
    async fn ask_read(
        &self,
        owner: OwnerIndex,
        mut entry: ReadEntry,
        place: Option<Buffer>,
        within: Duration,
    ) -> Result<Reply> {
        let (conn, expected) = self.expect(owner, place, within).await?;
        let _counted = self.count(owner);
        entry.request = expected.request_id().into();
        self.gather(owner, &entry);
        let reply = expected.await;
        self.note(owner, conn, &reply);
        reply
    }

    #[inline]
    fn note(&self, owner: OwnerIndex, conn: corefs_net::ConnId, reply: &Result<Reply>) {
        match reply {
            Err(error) if error.code == ErrorCode::ConnectionLost => self.lose(owner, conn),
            Err(error) if error.code == ErrorCode::TimedOut => self.suspect(owner),
            _ => (),
        }
    }

    #[inline]
    fn count(&self, owner: OwnerIndex) -> Outstanding<'_> {
        self.owners.borrow_mut()[owner.0 as usize].outstanding += 1;
        Outstanding { storage: self, owner }
    }

    /// A request that was counted has ended.
    #[inline]
    fn release(&self, owner: OwnerIndex) {
        let mut owners = self.owners.borrow_mut();
        let left = &mut owners[owner.0 as usize].outstanding;
        *left -= 1;
        // At half of the bound, so that those who wait come in a group and not one by one.
        if *left == OWNER_READS_MAX / 2 && !self.room.is_empty() {
            drop(owners);
            self.room.wake_all();
        }
    }

    #[inline]
    fn gather(&self, index: OwnerIndex, entry: &ReadEntry) {
        let mut owners = self.owners.borrow_mut();
        let owner = &mut owners[index.0 as usize];
        if owner.entries == 0 {
            owner.batch.extend_from_slice(Prefix::default().as_bytes());
            owner.first = entry.request.get();
            let mut gathered = self.gathered.borrow_mut();
            if gathered.is_empty() {
                self.node.wake();
            }
            gathered.push(index);
        }
        owner.batch.extend_from_slice(entry.as_bytes());
        owner.entries += 1;
        if owner.entries == READ_BATCH_MAX {
            self.send(owner);
        }
    }

    /// Sends what was gathered for an owner. When its connection is gone the node has told the reads already; when its queue
    /// is full they time out and are asked again.
    fn send(&self, owner: &mut Owner) {
        if owner.entries == 0 {
            return;
        }
        if let Some(conn) = owner.conn {
            self.ground.counters.borrow_mut().read_frames += 1;
            let sent = self.node.post(conn, Kind::Request, op::READ, owner.first, &owner.batch, None);
            if let Err(error) = sent {
                tracing::debug!(%error, ?conn, "a batch of reads was not sent");
                owner.conn = None;
            }
        }
        owner.entries = 0;
        owner.batch.clear();
    }

    fn end_turn(&self) {
        if !self.left_behind.borrow().is_empty() {
            self.look_behind();
        }
        let mut gathered = self.gathered.borrow_mut();
        if !gathered.is_empty() {
            let mut owners = self.owners.borrow_mut();
            for index in gathered.drain(..) {
                self.send(&mut owners[index.0 as usize]);
            }
        }
        drop(gathered);
        // Not all of them: of a hundred that look at one block, ninety-nine do so in vain.
        self.buffers.wake_first();
    }

    /// A buffer of the pool; waits until there is one. `Overloaded` when there is none before the patience ends.
    pub async fn buffer(&self, len: usize) -> Result<Buffer> {
        if let Some(buffer) = self.ground.pool.get(len) {
            return Ok(buffer);
        }
        let until = self.ground.now() + self.ground.patience;
        while self.ground.now() < until {
            // Turns end while others' I/O completes; if nothing is under way, time passes.
            let pause = self.node.sleep(Duration::from_millis(10));
            futures_lite::future::or(self.buffers.next(), pause).await;
            if let Some(buffer) = self.ground.pool.get(len) {
                // Perhaps there is more.
                self.buffers.wake_first();
                return Ok(buffer);
            }
        }
        let (used, all) = (self.ground.pool.in_use() as u64, self.ground.pool.capacity() as u64);
        Err(Error::mismatch(ErrorCode::Overloaded, all, used, format!("no buffer of {len} bytes came free")))
    }
}

/// A request under way.
struct Outstanding<'a> {
    storage: &'a Storage,
    owner: OwnerIndex,
}

impl Outstanding<'_> {
    /// Whoever takes it over calls [`Storage::release`].
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Outstanding<'_> {
    #[inline]
    fn drop(&mut self) {
        self.storage.release(self.owner);
    }
}
