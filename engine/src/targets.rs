//! Everything that a shard owns, as one pure machine: its slices, their targets, and what waits for which flush.
//!
//! [`Targets::handle`] takes one event and appends outputs. It refuses what the shard doesn't own.
//!
//! # Invariants
//! - A target is in one slice, a slice on one disk, and both belong to this shard alone.
//! - One flush of a disk is in flight at a time. It is asked for when everything sealed on that disk is complete,
//!   and covers nothing that completes later; records gather meanwhile.
//! - A failed write kills its slice, a failed flush all slices of its disk; the dead are never asked again.
//!   Repaired blocks wait for a flush like updates do.

mod placed;
mod upkeep;

pub use upkeep::Upkeep;

use crate::chain::{Input, Moment, Pace};
use crate::event::{Ask, DiskIndex, Event, Nanos, OpId, Output, Outputs, Told};
use crate::repair::{Place, Repairs};
use crate::scrub::Scrub;
use crate::slice::Slice;
use crate::store::{ChunkInfo, Expected, ReadPlan, Store};
use crate::target::{Scene, Target, Timers};
use corefs_wire::control::mgmtd::{SliceInfoT, TargetHealthT};
use corefs_wire::data::{LIST_MAX, List, ReadEntry};
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{ChainId, Error, ErrorCode, InodeId, NodeId, Result, ShardIndex, SliceIndex, TargetId};
use placed::Owed;
use std::collections::BTreeMap;

/// Reads whose cache misses are begun together: about as many as a core can have.
const EXPECTED: usize = 16;

/// What a disk is doing for its slices' sealed batches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Group {
    Idle,
    Writing,
    Flushing,
}

/// The slices and targets of one shard.
#[derive(Debug)]
pub struct Targets {
    node: NodeId,
    shard: ShardIndex,
    slices: Vec<Slice>,
    targets: BTreeMap<TargetId, Target>,
    /// By [`DiskIndex`].
    groups: Vec<Group>,
    timers: Timers,
    pace: Pace,
    repairs: Repairs,
    scrub: Scrub,
    /// When something of either may be done.
    upkeep_at: Nanos,
    /// The number of the last step of either.
    tickets: u64,
    lease_until: Nanos,
    draining: bool,
    owed: Owed,
    routing_version: u64,
}

impl Targets {
    pub fn new(node: NodeId, shard: ShardIndex) -> Self {
        Self {
            node,
            shard,
            slices: Vec::new(),
            targets: BTreeMap::new(),
            groups: Vec::new(),
            timers: Timers::new(),
            pace: Pace::default(),
            repairs: Repairs::default(),
            scrub: Scrub::default(),
            upkeep_at: Nanos::MAX,
            tickets: 0,
            lease_until: 0,
            draining: false,
            owed: Owed::default(),
            routing_version: 0,
        }
    }

    /// Takes over a recovered slice. Its targets wait for routing; their pending updates are taken up again then.
    pub fn add_slice(&mut self, index: SliceIndex, disk: DiskIndex, store: Store) {
        assert!(self.position(index).is_none(), "{index} has been added before");
        let position = self.slices.len();
        let found: Vec<(TargetId, ChainId)> = store.targets().collect();
        self.slices.push(Slice::new(index, disk, store));
        let disks = usize::from(disk.0) + 1;
        if self.groups.len() < disks {
            self.groups.resize(disks, Group::Idle);
        }
        for (id, _) in found {
            let pendings = self.slices[position].store.pendings(id).unwrap_or_default();
            self.targets.insert(id, Target::new(id, position));
            for pending in pendings {
                self.tell(0, id, Input::Recovered { pending }, &mut Vec::new());
            }
        }
    }

    /// The one entrance.
    #[inline]
    pub fn handle(&mut self, now: Nanos, event: Event<'_>, out: &mut Outputs) {
        match event {
            Event::Read { op, entry } => self.read(now, op, entry, out),
            Event::ReadEnded { slice, plan } => self.read_ended(slice, plan),
            Event::Update { op, target, offer } => match self.owned(target) {
                Ok(()) => self.with(now, target, out, |target, scene| target.offered(scene, op, offer)),
                Err(error) => {
                    out.push(Output::Reply { op, result: Err(error) });
                    out.push(Output::End { op });
                }
            },
            Event::Prepared { target, chunk, result } => {
                self.with(now, target, out, |target, scene| target.prepared(scene, chunk, result));
            }
            Event::Loaded { target, chunk, ticket, op, result } => {
                self.with(now, target, out, |target, scene| target.loaded(scene, chunk, ticket, op, result));
            }
            Event::Answered { target, chunk, attempt, result } => {
                self.with(now, target, out, |target, scene| target.answered(scene, chunk, attempt, result));
            }
            Event::Told { target, ticket, result } => {
                self.with(now, target, out, |target, scene| target.told(scene, ticket, result));
            }
            Event::DataWritten { slice, batch } => {
                if let Some(slice) = self.slice_mut(slice) {
                    slice.data_written(batch);
                }
            }
            Event::FillWritten { op, target, chunk } => {
                self.with(now, target, out, |target, scene| target.fill_written(scene, op, chunk));
            }
            Event::BatchWritten { slice } => {
                if let Some(slice) = self.slice_mut(slice) {
                    slice.batch_written();
                }
            }
            Event::Flushed { disk } => self.flushed(now, disk, out),
            Event::WriteFailed { slice, error } => self.kill(now, slice, error, out),
            Event::FlushFailed { disk, error } => self.flush_failed(now, disk, &error, out),
            Event::Suspect { target, chunk, blocks } => {
                self.suspect(now, Place { target, chunk, pending: false }, blocks);
            }
            Event::Wanted { op, entry, pending } => self.wanted(now, op, entry, pending, out),
            Event::Checked { ticket, slice, plan, bad } => self.checked(now, ticket, slice, plan, bad, out),
            Event::Fetched { ticket, result } => self.fetched(now, ticket, result, out),
            Event::Mended { ticket, slice, plan, result } => {
                self.mended(now, ticket, slice, plan, result, out);
            }
            Event::Routing(routing) => self.route(now, routing, out),
            Event::Leased { until } => self.lease_until = self.lease_until.max(until),
            Event::TurnEnd => self.turn_end(now, out),
        }
    }

    #[inline]
    fn read(&mut self, now: Nanos, op: OpId, entry: &ReadEntry, out: &mut Outputs) {
        let moment = self.moment(now);
        let admitted = if self.draining { Err(ErrorCode::ShuttingDown.into()) } else { entry.check() };
        let target = admitted.and_then(|()| self.targets.get(&entry.target()).ok_or(WRONG_SHARD.into()));
        match target {
            Ok(target) => {
                let (slice, timers, pace) =
                    (&mut self.slices[target.slice()], &mut self.timers, &mut self.pace);
                let repairs = &mut self.repairs;
                target.read(&mut Scene { moment, slice, timers, pace, repairs, out }, op, entry);
            }
            Err(error) => out.push(Output::Refuse { op, error }),
        }
    }

    /// Another replica reads: as above.
    fn wanted(&mut self, now: Nanos, op: OpId, entry: &ReadEntry, pending: bool, out: &mut Outputs) {
        match entry.check().and_then(|()| self.owned(entry.target())) {
            Ok(()) => self.with(now, entry.target(), out, |target, scene| {
                target.wanted(scene, op, entry, pending);
            }),
            Err(error) => out.push(Output::Refuse { op, error }),
        }
    }

    /// These will be read next: what is looked at for them is brought near, all of it at the same time.
    pub fn expect(&self, entries: &[ReadEntry]) {
        for group in entries.chunks(EXPECTED) {
            let mut found = [None; EXPECTED];
            for (found, entry) in found.iter_mut().zip(group) {
                let target = self.targets.get(&entry.target());
                *found = target.and_then(|target| self.slices[target.slice()].store.expected(entry));
            }
            for (found, entry) in found.into_iter().zip(group) {
                if let Some(found) = found {
                    Expected::fetch(found, entry);
                }
            }
        }
    }

    #[inline]
    fn read_ended(&mut self, slice: SliceIndex, plan: ReadPlan) {
        let slice = self.slice_mut(slice).expect("plans come from slices of this shard");
        slice.store.end_read(plan);
    }

    /// The chunks of an inode that a target holds, for a client.
    pub fn list(&self, now: Nanos, list: &List) -> Result<Vec<ChunkInfo>> {
        let id = TargetId(list.target.get());
        self.owned(id)?;
        let target = &self.targets[&id];
        let (chain, version, inode) =
            (ChainId(list.chain.get()), list.chain_version.get(), InodeId(list.inode.get()));
        let chunk = corefs_wire::ChunkId::new(inode, 0);
        target.replica().admit_read(self.moment(now), chunk, chain, version)?;
        let most = (list.limit.get() as usize).min(LIST_MAX);
        self.slices[target.slice()].store.list(id, inode, list.from_index.get(), most)
    }

    /// How fast this shard fills others.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
    }

    /// What a target that is being filled answers its predecessor. Errors: those of a stale chain version, `Pending` while
    /// something of an earlier one is under way, or is kept when rows come, `NotServing` if it isn't being filled, `Overloaded`
    /// while there is no room for rows.
    pub fn asked(
        &mut self,
        now: Nanos,
        id: TargetId,
        chain: ChainId,
        chain_version: u64,
        ask: &Ask,
        out: &mut Outputs,
    ) -> Result<Told> {
        self.owned(id)?;
        let mut told = Err(WRONG_SHARD.into());
        self.with(now, id, out, |target, scene| {
            let admitted = target.admit_filling(scene.moment, chain, chain_version);
            told = admitted.and_then(|()| target.asked(scene, ask));
        });
        told
    }

    /// How many replicas come after this one in the chain: 0 for unknown targets.
    pub fn behind(&self, target: TargetId) -> u8 {
        self.targets.get(&target).and_then(|target| target.replica().role()).map_or(0, |role| role.behind)
    }

    /// Where a target is.
    pub fn slice_of(&self, target: TargetId) -> Option<SliceIndex> {
        self.targets.get(&target).map(|target| self.slices[target.slice()].index)
    }

    /// When [`Event::TurnEnd`] should be told though nothing else happens.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let timer = self.timers.first().map(|(at, ..)| *at);
        let upkeep = Some(self.upkeep_at).filter(|at| *at < Nanos::MAX);
        self.slices
            .iter()
            .filter_map(Slice::next_deadline)
            .chain(timer)
            .chain(upkeep)
            .chain(self.owed.due)
            .min()
    }

    /// Until when the lease runs.
    pub fn lease_until(&self) -> Nanos {
        self.lease_until
    }

    /// Refuses everything new from now on; what is under way goes on.
    pub fn drain(&mut self) {
        self.draining = true;
        self.scrub.stop();
        self.repairs.stop();
        self.slices.iter_mut().for_each(Slice::close);
    }

    /// After [`Self::drain`]: nothing is under way, and everything is on the disk. Updates that wait for a successor stay
    /// pending and are taken up again at the next start.
    pub fn is_drained(&self) -> bool {
        let settled = self.targets.values().all(|target| target.replica().unsettled() == 0);
        self.draining && settled && self.slices.iter().all(Slice::is_closed)
    }

    /// Gives back what the targets hold of their stores, at the end of the shard.
    pub fn dispose(&mut self) {
        for target in self.targets.values_mut() {
            target.dispose(&mut self.slices[target.slice()]);
        }
    }

    /// Chunks with an update under way.
    pub fn busy(&self) -> usize {
        self.targets.values().map(|target| target.replica().busy()).sum()
    }

    pub fn target(&self, id: TargetId) -> Option<&Target> {
        self.targets.get(&id)
    }

    pub fn slices(&self) -> impl Iterator<Item = &Slice> {
        self.slices.iter()
    }

    /// The slices as heartbeats report them.
    pub fn slice_infos(&self) -> Vec<SliceInfoT> {
        let info = |slice: &Slice| {
            let space = slice.store.space();
            let mut info = SliceInfoT::default();
            (info.index, info.shard) = (slice.index.0, self.shard.0);
            info.store = slice.store.geometry().store.0.to_vec();
            (info.capacity, info.used) = (space.total, space.total - space.free);
            info.dead = !slice.alive();
            info.unrepaired = self.unrepaired(slice.index);
            let here =
                self.targets.values().filter(|target| self.slices[target.slice()].index == slice.index);
            info.differing = here.map(|target| target.replica().differing() as u64).sum();
            info
        };
        self.slices.iter().map(info).collect()
    }

    /// The targets as heartbeats report them.
    pub fn target_healths(&self, now: Nanos) -> Vec<TargetHealthT> {
        let health = |(id, target): (&TargetId, &Target)| {
            let slice = &self.slices[target.slice()];
            let role = target.replica().role();
            let mut health = TargetHealthT::default();
            health.target = id.0;
            health.up_to_date = slice.alive() && target.is_up_to_date(slice);
            health.chain_version = role.map_or(0, |role| role.version);
            health.used = slice.store.target_used(*id).unwrap_or(0);
            health.chunks = slice.store.target_chunks(*id);
            health.failed = target.replica().failed(now);
            health.unreached = target.replica().unreached(now).map_or(0, |unreached| unreached.0);
            if let Some((to, progress)) = target.progress() {
                health.filling = to.0;
                (health.compared, health.to_compare) = (progress.compared, progress.to_compare);
                (health.sent_chunks, health.sent_bytes) = (progress.sent_chunks, progress.sent_bytes);
            }
            health
        };
        let there = self.targets.iter().filter(|(_, target)| !target.replica().is_gone());
        let missing = self.owed.missing().map(|target| {
            let mut health = TargetHealthT::default();
            (health.target, health.failed) = (target.0.0, true);
            health.chain_version = target.1;
            health
        });
        there.map(health).chain(missing).collect()
    }

    fn moment(&self, now: Nanos) -> Moment {
        Moment { now, leased: now < self.lease_until }
    }

    fn owned(&self, target: TargetId) -> Result<()> {
        if self.draining {
            return Err(ErrorCode::ShuttingDown.into());
        }
        if self.targets.contains_key(&target) { Ok(()) } else { Err(WRONG_SHARD.into()) }
    }

    fn position(&self, index: SliceIndex) -> Option<usize> {
        self.slices.iter().position(|slice| slice.index == index)
    }

    fn slice_mut(&mut self, index: SliceIndex) -> Option<&mut Slice> {
        self.slices.iter_mut().find(|slice| slice.index == index)
    }

    fn with(
        &mut self,
        now: Nanos,
        id: TargetId,
        out: &mut Outputs,
        act: impl FnOnce(&mut Target, &mut Scene<'_>),
    ) {
        let moment = self.moment(now);
        if let Some(target) = self.targets.get_mut(&id) {
            let (slice, timers, pace) = (&mut self.slices[target.slice()], &mut self.timers, &mut self.pace);
            let repairs = &mut self.repairs;
            act(target, &mut Scene { moment, slice, timers, pace, repairs, out });
        }
        if self.repairs.can_begin() {
            self.upkeep_at = 0;
        }
    }

    fn tell(&mut self, now: Nanos, id: TargetId, input: Input, out: &mut Outputs) {
        self.with(now, id, out, |target, scene| target.handle(scene, input));
    }

    fn flushed(&mut self, now: Nanos, disk: DiskIndex, out: &mut Outputs) {
        self.groups[usize::from(disk.0)] = Group::Idle;
        self.repairs_flushed(now, disk);
        for position in 0..self.slices.len() {
            if self.slices[position].disk != disk {
                continue;
            }
            let settled = self.slices[position].flushed();
            for durable in settled.durable {
                let (version, length) = (durable.outcome.version, durable.outcome.length);
                let (chunk, committed) = (durable.chunk, durable.committed);
                self.tell(now, durable.target, Input::Durable { chunk, version, length, committed }, out);
            }
            for (target, chunk) in settled.dropped {
                self.tell(now, target, Input::Dropped { chunk }, out);
            }
        }
    }

    fn flush_failed(&mut self, now: Nanos, disk: DiskIndex, error: &Error, out: &mut Outputs) {
        self.groups[usize::from(disk.0)] = Group::Idle;
        // All of them: what others have written since the last flush may be lost with what this one was for, and a later flush
        // that succeeds would cover it.
        let on_it = |slice: &&Slice| slice.disk == disk;
        let dead: Vec<SliceIndex> = self.slices.iter().filter(on_it).map(|slice| slice.index).collect();
        self.repairs_flushed(now, disk);
        for slice in dead {
            self.kill(now, slice, error.clone(), out);
        }
    }

    fn kill(&mut self, now: Nanos, index: SliceIndex, error: Error, out: &mut Outputs) {
        let Some(position) = self.position(index) else { return };
        if !self.slices[position].alive() {
            return;
        }
        self.slices[position].die();
        let moment = self.moment(now);
        for target in self.targets.values_mut().filter(|target| target.slice() == position) {
            let (slice, timers, pace) = (&mut self.slices[position], &mut self.timers, &mut self.pace);
            let repairs = &mut self.repairs;
            target.die(&mut Scene { moment, slice, timers, pace, repairs, out });
        }
        out.push(Output::SliceDied { slice: index, error });
    }

    fn route(&mut self, now: Nanos, routing: &RoutingInfo, out: &mut Outputs) {
        // One that is older than what is known doesn't name the targets that came since.
        if routing.version < self.routing_version {
            return;
        }
        self.routing_version = routing.version;
        self.place(now, routing, out);
        // Perhaps somebody has it now.
        self.repairs.retry_lost();
        self.upkeep_at = 0;
    }

    #[inline]
    fn turn_end(&mut self, now: Nanos, out: &mut Outputs) {
        while let Some((_, target, chunk, attempt)) =
            self.timers.first().copied().filter(|(at, ..)| *at <= now)
        {
            self.timers.pop_first();
            self.with(now, target, out, |target, scene| target.due(scene, chunk, attempt));
        }
        if self.owed.due.is_some_and(|due| due <= now) {
            self.pay(now, out);
        }
        if now >= self.upkeep_at {
            self.keep_up(now, out);
        }
        for disk in 0..self.groups.len() {
            let index = DiskIndex(disk as u16);
            let mended = self.repairs.owes_flush(index);
            if self.groups[disk] == Group::Idle && (self.seal(now, index, out) | mended) {
                self.groups[disk] = Group::Writing;
            }
            if self.groups[disk] == Group::Writing {
                let mut sealed = self.slices.iter().filter(|slice| slice.disk == index && slice.is_sealed());
                if sealed.clone().next().is_none() && !mended {
                    // All of them have died meanwhile.
                    self.groups[disk] = Group::Idle;
                } else if sealed.all(Slice::is_written) {
                    self.groups[disk] = Group::Flushing;
                    self.repairs.flushing(index);
                    out.push(Output::Flush { disk: index });
                }
            }
        }
    }

    fn seal(&mut self, now: Nanos, disk: DiskIndex, out: &mut Outputs) -> bool {
        let mut any = false;
        for slice in self.slices.iter_mut().filter(|slice| slice.disk == disk) {
            any |= slice.seal(now, out);
        }
        any
    }
}

const WRONG_SHARD: ErrorCode = ErrorCode::WrongShard;
