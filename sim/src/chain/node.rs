//! One storage node: the machine of its shard over a simulated disk, and a performer that does what it decides, piece by
//! piece and in any order.

mod repairs;
#[cfg(test)]
mod tests;

pub use repairs::Fetch;

use super::config::Canary;
use crate::disk::{PowerCut, SECTOR, SimDisk};
use crate::prng::Prng;
use crate::store::open::{OpenError, open};
use corefs_engine::block;
use corefs_engine::chain::{Pace, Role};
use corefs_engine::event::{Ack, Ask, DiskIndex, Event, Nanos, Offer, OpId, Output, Outputs, Told};
use corefs_engine::store::format::initial_writes;
use corefs_engine::store::{
    BatchId, DedupRow, Geometry, Merge, PendingInfo, Piece, ReadPlan, Store, UpdateKind,
};
use corefs_engine::target::merged_crc;
use corefs_engine::targets::Targets;
use corefs_wire::control::mgmtd::{TargetHealthT, TargetState};
use corefs_wire::data::{ReadEntry, segment_crcs};
use corefs_wire::limits::BLOCK;
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{
    ChainId, ChunkId, Error, ErrorCode, Result, ShardIndex, SliceIndex, TargetId, UpdateTag, Uuid,
};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Small parts and ranges, so that everything that can be cut is cut.
fn pace() -> Pace {
    Pace::new(2 << 20, 2 * BLOCK as u32, 4)
}

pub const CLUSTER: Uuid = Uuid(*b"a simulated one!");
const SLICE: SliceIndex = SliceIndex(0);

/// Who asked, in words of the world.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Requester {
    Client {
        client: usize,
        attempt: u64,
    },
    /// A predecessor's forward.
    Node {
        node: usize,
        epoch: u32,
        forward: Forwarded,
    },
    /// A replica that wants blocks.
    Replica {
        node: usize,
        epoch: u32,
        ticket: u64,
    },
}

/// What ties an answer to a forward.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Forwarded {
    pub target: TargetId,
    pub chunk: ChunkId,
    pub attempt: u64,
}

/// An update on the network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    pub target: TargetId,
    pub offer: Offer,
    pub payload: Rc<[u8]>,
}

/// What leaves a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sent {
    Forward {
        to: TargetId,
        forward: Forwarded,
        message: Message,
    },
    Answer {
        to: Requester,
        result: Result<Ack>,
    },
    /// A read's version and bytes.
    Read {
        to: Requester,
        result: Result<(u64, Vec<u8>)>,
    },
    Ask(Question),
    Fetch(Fetch),
}

/// A question to a successor that is being filled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    pub target: TargetId,
    pub ticket: u64,
    pub to: TargetId,
    pub chain: ChainId,
    pub chain_version: u64,
    pub ask: Ask,
}

/// The bytes that an update carries, if any: their place in the chunk.
fn range(kind: UpdateKind) -> Option<(u32, u32)> {
    match kind {
        UpdateKind::Write { offset, len } | UpdateKind::Patch { offset, len } => Some((offset, len)),
        UpdateKind::FullReplace { len, .. } => Some((0, len)),
        UpdateKind::Truncate { .. } | UpdateKind::Remove => None,
    }
}

/// Something that a disk is to do, some time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Job {
    Read { op: OpId },
    Merge { op: OpId },
    Load { op: OpId },
    Data { op: OpId, slice: SliceIndex, batch: BatchId, offset: u64, bytes: Vec<u8> },
    Batch { slice: SliceIndex, offset: u64, bytes: Vec<u8> },
    FlushBegin { disk: DiskIndex },
    FlushEnd { disk: DiskIndex },
    Check { ticket: u64 },
    Mend { ticket: u64, offset: u64, bytes: Vec<u8> },
}

struct Op {
    requester: Option<Requester>,
    message: Option<Message>,
    target: TargetId,
    chunk: ChunkId,
    /// Whole blocks of the payload, once they are made: so many bytes, and the payload is there in them.
    blocks: Vec<u8>,
    whole: usize,
    payload: std::ops::Range<usize>,
    merges: Vec<Merge>,
    plan: Option<ReadPlan>,
    read: Option<Wanted>,
    ticket: u64,
    /// Writes that aren't complete.
    writing: usize,
    ended: bool,
}

/// What a read wants from the disk: what its plan says, which is given back to the store.
struct Wanted {
    version: u64,
    len: u32,
    pieces: Vec<Piece>,
    crcs: Vec<u32>,
}

impl Wanted {
    fn of(plan: &ReadPlan) -> Self {
        let (pieces, crcs) = (plan.pieces.to_vec(), plan.crcs.to_vec());
        Self { version: plan.version, len: plan.len, pieces, crcs }
    }

    /// Where its blocks are.
    fn blocks(&self) -> impl Iterator<Item = u64> {
        self.pieces.iter().filter_map(|piece| Some((piece.disk_offset?, piece.blocks))).flat_map(
            |(offset, blocks)| (0..u64::from(blocks)).map(move |block| offset + block * BLOCK as u64),
        )
    }
}

impl Op {
    fn new(requester: Option<Requester>, message: Option<Message>) -> Self {
        let (target, chunk) =
            message.as_ref().map_or_else(Default::default, |message| (message.target, message.offer.chunk));
        let (blocks, merges) = Default::default();
        let (plan, read, ticket, writing, ended) = (None, None, 0, 0, false);
        let (whole, payload) = (0, 0..0);
        Self {
            requester,
            message,
            target,
            chunk,
            blocks,
            whole,
            payload,
            merges,
            plan,
            read,
            ticket,
            writing,
            ended,
        }
    }
}

/// A node with its power on.
struct Machine {
    targets: Targets,
    ops: BTreeMap<OpId, Op>,
    outputs: Outputs,
    repairs: repairs::Repairs,
}

/// What a failing disk refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Failing {
    All,
    Flushes,
}

/// An update that a head took from a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Accepted {
    pub chain: ChainId,
    pub chain_version: u64,
    pub head: TargetId,
}

/// Version and tag of an update that is pending.
pub type PendingTag = (u64, UpdateTag);

/// What is to be seen of one target.
pub struct Look<'a> {
    target: TargetId,
    pub serves: bool,
    store: &'a Store,
}

impl Look<'_> {
    /// The committed version of a chunk, and what is pending.
    pub fn chunk(&self, chunk: ChunkId) -> (u64, Option<PendingTag>) {
        let status = self.store.status(self.target, chunk).unwrap_or_default();
        (status.version, status.pending.and_then(|_| self.store.pending_tag(self.target, chunk)))
    }
}

pub struct SimNode {
    pub index: usize,
    pub disk: SimDisk,
    /// Raised by every start: what was sent to an earlier one finds nobody.
    pub epoch: u32,
    machine: Option<Machine>,
    next_op: u64,
    /// A bug built in: see [`Canary`].
    pub canary: Option<Canary>,
    /// What its disk refuses from now on.
    failing: Option<Failing>,
    dead: bool,
    /// Blocks whose bytes aren't what was written: what was, and what is there now.
    damaged: BTreeMap<u64, (Vec<u8>, Vec<u8>)>,
    /// Clients' updates that it took as a head: chain, version, target.
    pub accepted: Vec<Accepted>,
    performing: Outputs,
    /// What the disk is to do next, and what is to be sent.
    pub jobs: Vec<Job>,
    pub sent: Vec<Sent>,
    /// Something that must never happen.
    pub failure: Option<String>,
}

impl SimNode {
    pub fn new(index: usize, slice_bytes: u64, prng: &mut Prng) -> Self {
        let mut disk = SimDisk::new(slice_bytes as usize, prng);
        let (store, node) = (super::manager::store(index), super::manager::id(index));
        let geometry =
            Geometry::for_slice(CLUSTER, store, node, SLICE, slice_bytes).expect("a slice of that size");
        for write in initial_writes(&geometry) {
            disk.write(write.offset, write.bytes).expect("power is on");
        }
        disk.flush().expect("power is on");
        let (jobs, sent, accepted, damaged) = Default::default();
        Self {
            index,
            disk,
            epoch: 0,
            machine: None,
            next_op: 0,
            canary: None,
            failing: None,
            dead: false,
            damaged,
            accepted,
            performing: Outputs::new(),
            jobs,
            sent,
            failure: None,
        }
    }

    pub fn is_on(&self) -> bool {
        self.machine.is_some()
    }

    /// Updates that aren't over.
    pub fn busy(&self) -> usize {
        self.machine.as_ref().map_or(0, |machine| machine.targets.busy())
    }

    /// Starts: recovers the slice, if its disk is `there`. How many pending updates it found.
    pub fn power_on(&mut self, there: bool) -> Result<u64, String> {
        let mut targets = Targets::new(super::manager::id(self.index), ShardIndex(0));
        let mut pendings = 0;
        if there {
            let (store, report) = match open(&mut self.disk, CLUSTER) {
                Ok(opened) => opened,
                Err(OpenError::Cut) => return Err("power is on".into()),
                Err(OpenError::Damage(damage)) => return Err(format!("node {}: {damage:?}", self.index)),
            };
            targets.add_slice(SLICE, DiskIndex(0), store);
            pendings = report.pendings;
        }
        targets.set_pace(pace());
        self.epoch += 1;
        self.failing = (!there).then_some(Failing::All);
        self.dead = !there;
        self.machine = Some(Machine {
            targets,
            ops: BTreeMap::new(),
            outputs: Outputs::new(),
            repairs: repairs::Repairs::default(),
        });
        Ok(pendings)
    }

    /// Loses power: memory is gone, and of what the disk was doing some is done in part. `jobs` are those in progress.
    pub fn power_cut(&mut self, jobs: Vec<Job>, prng: &mut Prng) {
        for job in jobs {
            if let Job::Data { offset, bytes, .. }
            | Job::Batch { offset, bytes, .. }
            | Job::Mend { offset, bytes, .. } = job
            {
                // It reached the cache, whose sectors survive or not.
                let _reached: Result<(), PowerCut> = self.disk.write(offset, bytes);
            }
        }
        self.dispose();
        self.disk.power_on(prng);
        self.jobs.clear();
        self.sent.clear();
        self.accepted.clear();
        self.forget_damage();
    }

    /// The store insists on having its plans back.
    pub fn dispose(&mut self) {
        if let Some(mut machine) = self.machine.take() {
            let mut plans = machine.repairs.take_plans();
            plans.extend(std::mem::take(&mut machine.ops).into_values().filter_map(|op| op.plan));
            for plan in plans {
                machine.targets.handle(0, Event::ReadEnded { slice: SLICE, plan }, &mut machine.outputs);
            }
            machine.targets.dispose();
        }
    }

    pub fn routing(&mut self, now: Nanos, routing: &RoutingInfo) {
        self.tell(now, Event::Routing(routing));
        self.turn(now);
    }

    pub fn lease(&mut self, now: Nanos, until: Nanos) {
        self.tell(now, Event::Leased { until });
        self.turn(now);
    }

    pub fn update(&mut self, now: Nanos, requester: Requester, message: Message) {
        let (target, offer) = (message.target, message.offer);
        let op = self.insert(Op::new(Some(requester), Some(message)));
        self.tell(now, Event::Update { op, target, offer });
        self.turn(now);
    }

    pub fn read(&mut self, now: Nanos, requester: Requester, entry: &ReadEntry) {
        if self.canary == Some(Canary::AbsenceUnguarded)
            && let Err(error) = self.peek_bytes(entry.target(), entry.chunk())
            && error.code == ErrorCode::NoSuchChunk
        {
            return self.sent.push(Sent::Read { to: requester, result: Err(error) });
        }
        let mut op = Op::new(Some(requester), None);
        (op.target, op.chunk) = (entry.target(), entry.chunk());
        let op = self.insert(op);
        self.tell(now, Event::Read { op, entry });
        self.turn(now);
    }

    pub fn answered(&mut self, now: Nanos, forward: Forwarded, result: Result<Ack>) {
        let Forwarded { target, chunk, attempt } = forward;
        self.tell(now, Event::Answered { target, chunk, attempt, result });
        self.turn(now);
    }

    /// A predecessor's question.
    pub fn asked(&mut self, now: Nanos, question: &Question) -> Result<Told> {
        let Some(machine) = &mut self.machine else { return Err(ErrorCode::Unreachable.into()) };
        let Question { to, chain, chain_version, ask, .. } = question;
        let told = machine.targets.asked(now, *to, *chain, *chain_version, ask, &mut machine.outputs);
        self.turn(now);
        told
    }

    pub fn told(&mut self, now: Nanos, target: TargetId, ticket: u64, result: Result<Told>) {
        self.tell(now, Event::Told { target, ticket, result });
        self.turn(now);
    }

    /// What its heartbeat says.
    pub fn healths(&self, now: Nanos) -> Vec<TargetHealthT> {
        self.machine.as_ref().map_or(Vec::new(), |machine| machine.targets.target_healths(now))
    }

    /// Whether a canary keeps flushes from the disk now.
    fn flushes_nothing(&self) -> bool {
        match self.canary {
            Some(Canary::FlushRemoved) => true,
            Some(Canary::FillUnflushed) => self.machine.as_ref().is_some_and(|machine| {
                let healths = machine.targets.target_healths(0);
                let mut targets =
                    healths.iter().filter_map(|said| machine.targets.target(TargetId(said.target)));
                targets.any(|target| target.took_everything().is_some())
            }),
            _ => false,
        }
    }

    /// Its place in a chain, if it knows one and holds a lease.
    pub fn leased_role(&self, now: Nanos, target: TargetId) -> Option<&Role> {
        let targets = &self.machine.as_ref()?.targets;
        let role = targets.target(target)?.replica().role();
        role.filter(|_| now < targets.lease_until() && !self.dead)
    }

    /// When it wants to be woken, on its clock.
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.machine.as_ref()?.targets.next_deadline()
    }

    /// What is to be seen of a target, if it is here. One that served last and alone counts: what its own flush commits then is
    /// acknowledged, and nobody serves without it.
    pub fn look(&self, target: TargetId) -> Option<Look<'_>> {
        let targets = &self.machine.as_ref()?.targets;
        let counts = |role: &Role| role.serving() || role.state == TargetState::LastServing;
        let serves = targets.target(target)?.replica().role().is_some_and(counts);
        let store = &targets.slices().next()?.store;
        store.status(target, ChunkId::default()).ok()?;
        Some(Look { target, serves, store })
    }

    /// The end of a turn without anything before: timers.
    pub fn turn(&mut self, now: Nanos) {
        self.perform(now);
        self.tell(now, Event::TurnEnd);
        self.perform(now);
    }

    /// A job is done now.
    pub fn finish(&mut self, now: Nanos, job: Job) -> Result<(), String> {
        match job {
            Job::Read { op } => self.finish_read(now, op)?,
            Job::Merge { op } => self.finish_merge(now, op)?,
            Job::Load { op } => self.finish_load(now, op)?,
            Job::Data { slice, .. } | Job::Batch { slice, .. } if self.failing == Some(Failing::All) => {
                self.tell(now, Event::WriteFailed { slice, error: ErrorCode::DiskError.into() });
            }
            Job::Data { op, slice, batch, offset, bytes } => {
                self.disk.write(offset, bytes).map_err(|_| "power is on")?;
                self.tell(now, Event::DataWritten { slice, batch });
                self.written(now, op, 1);
            }
            Job::Batch { slice, offset, bytes } => {
                self.disk.write(offset, bytes).map_err(|_| "power is on")?;
                self.tell(now, Event::BatchWritten { slice });
            }
            Job::FlushBegin { disk } | Job::FlushEnd { disk } if self.failing.is_some() => {
                self.tell(now, Event::FlushFailed { disk, error: ErrorCode::DiskError.into() });
            }
            Job::FlushBegin { disk } => {
                if !self.flushes_nothing() {
                    self.disk.flush_begin().map_err(|_| "power is on")?;
                }
                self.jobs.push(Job::FlushEnd { disk });
            }
            Job::FlushEnd { disk } => {
                if !self.flushes_nothing() {
                    self.disk.flush_end().map_err(|_| "power is on")?;
                }
                self.tell(now, Event::Flushed { disk });
            }
            Job::Check { ticket } => self.finish_check(now, ticket)?,
            Job::Mend { ticket, offset, bytes } => self.finish_mend(now, ticket, offset, &bytes)?,
        }
        self.turn(now);
        Ok(())
    }

    /// What the committed version of a chunk is here.
    pub fn held(&mut self, target: TargetId, chunk: ChunkId) -> Result<super::truth::Held, String> {
        let machine = self.machine.as_mut().ok_or("the node is off")?;
        let mut store = machine.targets.slices().next().ok_or("no slice")?.store.clone();
        let status = store.status(target, chunk).map_err(|error| error.to_string())?;
        if status.pending.is_some() {
            return Err(format!("node {}: {chunk} is still pending", self.index));
        }
        if status.removed {
            return Ok(super::truth::Held { version: status.version, bytes: None });
        }
        let plan = store.read(target, chunk, 0, status.length).map_err(|error| error.to_string())?;
        let bytes = crate::store::open::fetch(&self.disk, &plan);
        store.end_read(plan);
        let mut bytes = bytes.map_err(|what| format!("node {}: {what}", self.index))?;
        bytes.truncate(status.length as usize);
        Ok(super::truth::Held { version: status.version, bytes: Some(bytes) })
    }

    /// The committed version of a chunk and its bytes, whatever the chain would say to a reader.
    pub fn peek_bytes(&self, target: TargetId, chunk: ChunkId) -> Result<(u64, Vec<u8>)> {
        let machine = self.machine.as_ref().ok_or(ErrorCode::Unreachable)?;
        let mut store = machine.targets.slices().next().ok_or(ErrorCode::Internal)?.store.clone();
        let plan = store.read(target, chunk, 0, u32::MAX)?;
        let bytes = crate::store::open::fetch(&self.disk, &plan);
        let (version, length) = (plan.version, plan.len as usize);
        store.end_read(plan);
        let mut bytes = bytes.map_err(|what| Error::new(ErrorCode::Corrupt, what))?;
        bytes.truncate(length);
        Ok((version, bytes))
    }

    /// Its disk refuses everything from now on, or only flushes.
    pub fn fail_disk(&mut self, flushes_only: bool) {
        self.failing = Some(if flushes_only { Failing::Flushes } else { Failing::All });
    }

    pub fn is_failing(&self) -> bool {
        self.failing.is_some()
    }

    /// Its slice is out of service.
    pub fn is_dead(&self) -> bool {
        self.dead
    }

    /// Where the blocks of the committed version of a chunk are.
    pub fn blocks_of(&self, target: TargetId, chunk: ChunkId) -> Vec<u64> {
        let Some(slice) = self.machine.as_ref().and_then(|machine| machine.targets.slices().next()) else {
            return Vec::new();
        };
        let mut store = slice.store.clone();
        let Ok(plan) = store.read(target, chunk, 0, u32::MAX) else { return Vec::new() };
        let blocks = Wanted::of(&plan).blocks().collect();
        store.end_read(plan);
        blocks
    }

    /// A bit of a block rots. Whether it did: not one that was damaged before.
    pub fn rot(&mut self, offset: u64, at: u64, bit: u8) -> bool {
        let disk = |node: &mut Self| node.disk.rot(offset + at, bit);
        self.damage(offset, disk)
    }

    /// A write of what is at `from` landed on another block, too.
    pub fn misdirect(&mut self, from: u64, offset: u64) -> bool {
        self.damage(offset, |node| node.disk.misdirect(from, offset, BLOCK))
    }

    fn damage(&mut self, offset: u64, harm: impl FnOnce(&mut Self)) -> bool {
        if self.damaged.contains_key(&offset) || !self.disk.is_flushed(offset) {
            return false;
        }
        let before = self.disk.read(offset, BLOCK).to_vec();
        harm(self);
        let after = self.disk.read(offset, BLOCK).to_vec();
        let differs = before != after;
        if differs {
            self.damaged.insert(offset, (before, after));
        }
        differs
    }

    /// What was written over isn't damaged any more, once that is flushed. Of a block that was being mended when the power went, each sector
    /// is as it was or mended: that is damage as before.
    fn forget_damage(&mut self) {
        let disk = &self.disk;
        self.damaged.retain(|offset, (before, after)| {
            let now = disk.read(*offset, BLOCK);
            let sectors = || now.chunks(SECTOR).zip(before.chunks(SECTOR)).zip(after.chunks(SECTOR));
            let mixed = sectors().all(|((now, before), after)| now == before || now == after);
            let still = mixed && now != before;
            if still {
                *after = now.to_vec();
            }
            still || !disk.is_flushed(*offset)
        });
    }

    /// Rows of duplicate detection that its pending updates will have: nobody may be told of them.
    pub fn pending_rows(&self, target: TargetId) -> Vec<DedupRow> {
        let Some(slice) = self.machine.as_ref().and_then(|machine| machine.targets.slices().next()) else {
            return Vec::new();
        };
        let pendings = slice.store.pendings(target).unwrap_or_default();
        let row = |pending: &PendingInfo| DedupRow {
            tag: pending.tag,
            chunk: pending.chunk,
            version: pending.version,
            length: pending.length,
            dropped: false,
        };
        pendings.iter().map(row).collect()
    }

    /// Everything that is left to be done for requesters.
    pub fn is_idle(&self) -> bool {
        self.busy() == 0
    }

    /// Length of a chunk after its pending update.
    pub fn pending_length(&self, target: TargetId, chunk: ChunkId) -> Option<u32> {
        let store = &self.machine.as_ref()?.targets.slices().next()?.store;
        let pendings = store.pendings(target).ok()?;
        pendings.iter().find(|pending| pending.chunk == chunk).map(|pending| pending.length)
    }

    fn insert(&mut self, op: Op) -> OpId {
        self.next_op += 1;
        let id = OpId(self.next_op);
        if let Some(machine) = &mut self.machine {
            machine.ops.insert(id, op);
        }
        id
    }

    fn tell(&mut self, now: Nanos, event: Event<'_>) {
        if let Some(machine) = &mut self.machine {
            machine.targets.handle(now, event, &mut machine.outputs);
        }
    }

    fn op(&mut self, op: OpId) -> &mut Op {
        let machine = self.machine.as_mut().expect("outputs come from a machine");
        machine.ops.get_mut(&op).unwrap_or_else(|| panic!("{op:?} is over"))
    }

    fn perform(&mut self, now: Nanos) {
        while let Some(machine) = &mut self.machine
            && !machine.outputs.is_empty()
        {
            // Two lists take turns, so that their room is used again.
            let mut outputs = std::mem::replace(&mut machine.outputs, std::mem::take(&mut self.performing));
            outputs.drain(..).for_each(|output| self.do_one(now, output));
            self.performing = outputs;
        }
    }

    fn do_one(&mut self, now: Nanos, output: Output) {
        match output {
            Output::Read { op, plan, .. } => {
                self.op(op).read = Some(Wanted::of(&plan));
                if self.canary == Some(Canary::BlockReusedEarly) {
                    self.tell(now, Event::ReadEnded { slice: SLICE, plan });
                } else {
                    self.op(op).plan = Some(plan);
                }
                self.jobs.push(Job::Read { op });
            }
            Output::Refuse { op, error } => {
                let to = self.remove(op).requester;
                self.sent.extend(to.map(|to| Sent::Read { to, result: Err(error) }));
            }
            Output::Prepare { op, blocks, payload, merges, .. } => {
                let found = self.op(op);
                if let Some(offer) = found.message.as_ref().map(|message| message.offer)
                    && offer.forwarded.is_none()
                {
                    let (chain, chain_version, head) = (offer.chain, offer.chain_version, found.target);
                    self.accepted.push(Accepted { chain, chain_version, head });
                }
                let found = self.op(op);
                found.whole = blocks as usize * BLOCK;
                found.payload = payload.start as usize..payload.end as usize;
                found.merges = merges.to_vec();
                self.jobs.push(Job::Merge { op });
            }
            Output::Load { target, ticket, pending, fill, plan, .. } => {
                let offer = Offer {
                    chunk: pending.chunk,
                    kind: pending.kind,
                    tag: pending.tag,
                    truncate_epoch: pending.truncate_epoch,
                    chain: self.chain_of(target),
                    chain_version: pending.chain_version,
                    forwarded: Some(pending.version),
                    base: 0,
                    fill,
                };
                let mut op = Op::new(None, Some(Message { target, offer, payload: Rc::default() }));
                op.plan = plan;
                op.ticket = ticket;
                let op = self.insert(op);
                self.jobs.push(Job::Load { op });
            }
            Output::Write { op, slice, batch, writes } => {
                let mut blocks = std::mem::take(&mut self.op(op).blocks);
                let whole = blocks.len();
                for write in writes.iter() {
                    let (at, len) = (write.first as usize * BLOCK, write.blocks as usize * BLOCK);
                    let bytes = if len == whole {
                        std::mem::take(&mut blocks)
                    } else {
                        blocks[at..at + len].to_vec()
                    };
                    self.jobs.push(Job::Data { op, slice, batch, offset: write.disk_offset, bytes });
                }
                self.op(op).writing = writes.len();
                self.written(now, op, 0);
            }
            Output::WriteBatch { slice, writes } => {
                let job = |write: corefs_engine::store::DiskWrite| Job::Batch {
                    slice,
                    offset: write.offset,
                    bytes: write.bytes,
                };
                self.jobs.extend(writes.into_iter().map(job));
            }
            Output::Flush { disk } => self.jobs.push(Job::FlushBegin { disk }),
            Output::Ask { target, ticket, to, chain, chain_version, ask } => {
                self.sent.push(Sent::Ask(Question { target, ticket, to, chain, chain_version, ask }));
            }
            Output::Forward { op, target, chunk, attempt, to, version, chain_version, base } => {
                let mut message = self.op(op).message.clone().expect("updates have one");
                message.target = to;
                message.offer.forwarded = Some(version);
                message.offer.chain_version = chain_version;
                message.offer.base = base;
                message.offer.fill = message.offer.fill.map(|_| base);
                let forward = Forwarded { target, chunk, attempt };
                self.sent.push(Sent::Forward { to, forward, message });
            }
            Output::Check { ticket, plan, .. } => self.check(ticket, plan),
            Output::Fetch { ticket, to, chain, chain_version, place, first, blocks } => {
                self.fetch(ticket, to, (chain, chain_version), place, (first, blocks));
            }
            Output::Mend { ticket, plan, writes, .. } => self.mend(now, ticket, plan, &writes),
            Output::Forget { ticket } => self.forget(ticket),
            Output::Reply { op, result } => {
                let to = self.op(op).requester;
                self.sent.extend(to.map(|to| Sent::Answer { to, result }));
            }
            Output::End { op } => {
                self.op(op).ended = true;
                if self.op(op).plan.is_none() {
                    self.remove(op);
                }
            }
            Output::SliceDied { .. } if self.failing.is_some() => self.dead = true,
            Output::SliceDied { error, .. } | Output::TargetFailed { error, .. } => {
                self.failure.get_or_insert(format!("node {} at {now}: {error}", self.index));
            }
            Output::Differs { target, chunk } => {
                let what = format!("node {} at {now}: replicas of {chunk} differ, says {target}", self.index);
                self.failure.get_or_insert(what);
            }
        }
    }

    fn chain_of(&self, target: TargetId) -> ChainId {
        let target = self.machine.as_ref().and_then(|machine| machine.targets.target(target));
        target.and_then(|target| target.replica().role()).map_or(ChainId(0), |role| role.chain)
    }

    /// So many writes of an update are complete: of a fill it is told when all are. It may be over already.
    fn written(&mut self, now: Nanos, id: OpId, complete: usize) {
        let Some(op) = self.machine.as_mut().and_then(|machine| machine.ops.get_mut(&id)) else { return };
        op.writing -= complete;
        let fill = op.message.as_ref().is_some_and(|message| message.offer.fill.is_some());
        if fill && op.writing == 0 {
            let (target, chunk) = (op.target, op.chunk);
            self.tell(now, Event::FillWritten { op: id, target, chunk });
        }
    }

    fn remove(&mut self, op: OpId) -> Op {
        let machine = self.machine.as_mut().expect("outputs come from a machine");
        machine.ops.remove(&op).unwrap_or_else(|| panic!("{op:?} is over"))
    }

    fn finish_read(&mut self, now: Nanos, op: OpId) -> Result<(), String> {
        let Op { requester, plan, read, target, chunk, .. } = self.remove(op);
        let wanted = read.expect("a read has a plan");
        let mut bytes = crate::store::open::fetch_blocks(&self.disk, &wanted.pieces, &wanted.crcs);
        if self.canary == Some(Canary::ReadsUnverified) {
            bytes = Ok(crate::store::open::raw_blocks(&self.disk, &wanted.pieces));
        }
        if let Some(plan) = plan {
            self.tell(now, Event::ReadEnded { slice: SLICE, plan });
        }
        let result = match bytes {
            Ok(mut bytes) => {
                // Replicas compare whole blocks.
                if !matches!(requester, Some(Requester::Replica { .. })) {
                    bytes.truncate(wanted.len as usize);
                }
                Ok((wanted.version, bytes))
            }
            Err(what) => Err(self.corrupt(what, wanted.blocks())?),
        };
        if matches!(requester, Some(Requester::Client { .. })) && result.is_err() {
            let blocks = 0..wanted.crcs.len() as u32;
            self.tell(now, Event::Suspect { target, chunk, blocks });
        }
        self.sent.extend(requester.map(|to| Sent::Read { to, result }));
        Ok(())
    }

    /// Bytes that don't match their checksum: to be expected of blocks that were damaged, and of no others.
    fn corrupt(&self, what: String, mut blocks: impl Iterator<Item = u64>) -> Result<Error, String> {
        if blocks.any(|block| self.damaged.contains_key(&block)) {
            return Ok(Error::new(ErrorCode::Corrupt, what));
        }
        Err(format!("node {}: {what}, and nothing has damaged it", self.index))
    }

    fn finish_merge(&mut self, now: Nanos, op: OpId) -> Result<(), String> {
        let machine = self.machine.as_mut().expect("jobs of a machine");
        // The slice may have died, or the update be over, since it was asked for.
        let Some(found) = machine.ops.get_mut(&op) else { return Ok(()) };
        let message = found.message.as_ref().expect("updates have one");
        let payload = found.payload.clone();
        let blocks = &mut found.blocks;
        // What is there before shows if it isn't written over.
        blocks.clear();
        blocks.reserve_exact(found.whole);
        blocks.resize(payload.start, 0xEE);
        blocks.extend_from_slice(&message.payload);
        blocks.resize(found.whole, 0xEE);
        block::zero_around(blocks, &payload);
        let mut result = Ok(());
        for merge in &found.merges {
            result =
                result.and_then(|()| block::merge(blocks, merge, self.disk.read(merge.disk_offset, BLOCK)));
        }
        let (mut known, mut crcs) = (Vec::new(), Vec::new());
        if let Some((offset, _)) = range(message.offer.kind) {
            segment_crcs(offset as usize, &message.payload, |crc| known.push(crc));
        }
        block::crcs(blocks, &payload, &known, &mut crcs);
        let (target, chunk) = (found.target, found.chunk);
        let merges: Vec<u64> = found.merges.iter().map(|merge| merge.disk_offset).collect();
        let result = match result {
            Err(error) if error.code == ErrorCode::Corrupt => {
                Err(self.corrupt(error.message, merges.into_iter())?)
            }
            other => other.map(|()| crcs.as_slice()),
        };
        self.tell(now, Event::Prepared { target, chunk, result });
        Ok(())
    }

    fn finish_load(&mut self, now: Nanos, op: OpId) -> Result<(), String> {
        let found = self.op(op);
        let (target, chunk, ticket, plan) = (found.target, found.chunk, found.ticket, found.plan.take());
        let mut result = Ok(0);
        if let Some(plan) = plan {
            match crate::store::open::fetch(&self.disk, &plan) {
                Ok(bytes) => {
                    result = Ok(merged_crc(&plan.crcs));
                    let message = self.op(op).message.as_mut().expect("updates have one");
                    if let Some((offset, len)) = range(message.offer.kind) {
                        let at = offset as usize % BLOCK;
                        message.payload = bytes[at..at + len as usize].into();
                    }
                }
                Err(what) => result = Err(self.corrupt(what, Wanted::of(&plan).blocks())?),
            }
            self.tell(now, Event::ReadEnded { slice: SLICE, plan });
        }
        self.tell(now, Event::Loaded { target, chunk, ticket, op, result });
        Ok(())
    }
}
