//! One target: its place in the chain and its chunks in the slice's store, as one machine.
//!
//! Pure. The replica decides, the store plans, and what is left to do comes out as [`Output`]s.

mod filling;
mod permits;

use crate::chain::{Begun, Filler, Input, Moment, Pace, Replica, Resync, Role, Step};
use crate::event::{Ack, Nanos, Offer, OpId, Output, Outputs};
use crate::repair::{Hope, Place, Repairs};
use crate::slice::Slice;
use crate::store::{BatchId, Begin, Finish, Staging, Store, Update, UpdateKind};
use corefs_wire::checksum::crc32c;
use corefs_wire::data::ReadEntry;
use corefs_wire::limits::BLOCK;
use corefs_wire::{ChunkId, Error, ErrorCode, Result, TargetId};
use permits::Permits;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// When which chunk's update wants to be reminded.
pub type Timers = BTreeSet<(Nanos, TargetId, ChunkId, u64)>;

/// One replica store of one chain.
#[derive(Debug)]
pub struct Target {
    id: TargetId,
    /// Position of its slice among the shard's.
    slice: usize,
    replica: Replica,
    /// Admitted updates whose blocks are being prepared.
    staged: BTreeMap<ChunkId, Staging>,
    /// Chunks that the successor is being given.
    fillers: BTreeMap<ChunkId, Filler>,
    /// What may be replaced here, by whoever fills this target.
    permits: Permits,
    /// The walk over all chunks, while the successor is being filled.
    resync: Option<Resync>,
    /// Filled completely under that chain version, once that batch is flushed.
    filled: Option<(u64, BatchId)>,
    steps: Vec<Step>,
}

/// What a target works with for the length of one event.
pub struct Scene<'a> {
    pub moment: Moment,
    pub slice: &'a mut Slice,
    pub timers: &'a mut Timers,
    pub pace: &'a mut Pace,
    pub repairs: &'a mut Repairs,
    pub out: &'a mut Outputs,
}

impl Target {
    pub fn new(id: TargetId, slice: usize) -> Self {
        let (replica, staged, fillers, permits) = Default::default();
        Self { id, slice, replica, staged, fillers, permits, resync: None, filled: None, steps: Vec::new() }
    }

    pub fn slice(&self) -> usize {
        self.slice
    }

    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// A client reads.
    #[inline]
    pub fn read(&self, scene: &mut Scene<'_>, op: OpId, entry: &ReadEntry) {
        let out = match self.plan_read(scene, entry) {
            Ok(plan) => Output::Read { op, slice: scene.slice.index, plan },
            Err(error) => Output::Refuse { op, error },
        };
        scene.out.push(out);
    }

    /// Another replica reads, to repair its copy. It compares what comes with its own CRCs, so it may have what isn't to be
    /// shown to clients, and this one needn't serve.
    pub fn wanted(&self, scene: &mut Scene<'_>, op: OpId, entry: &ReadEntry, pending: bool) {
        let chunk = entry.chunk();
        let role = self.replica.admit(scene.moment);
        let admitted = role.and_then(|role| role.check(entry.chain(), entry.chain_version.get()));
        let store = &mut scene.slice.store;
        let (offset, length) = (entry.offset.get(), entry.length.get());
        let plan = admitted.and_then(|()| match pending && self.replica.is_pending_written(chunk) {
            true => store.read_pending(self.id, chunk, offset, length),
            false => Err(ErrorCode::NoSuchChunk.into()),
        });
        let plan = match plan {
            Err(error) if error.code == ErrorCode::NoSuchChunk => store.read(self.id, chunk, offset, length),
            other => other,
        };
        scene.out.push(match plan {
            Ok(plan) => Output::Read { op, slice: scene.slice.index, plan },
            Err(error) => Output::Refuse { op, error },
        });
    }

    #[inline]
    fn plan_read(&self, scene: &mut Scene<'_>, entry: &ReadEntry) -> Result<crate::store::ReadPlan> {
        let chunk = entry.chunk();
        self.replica.admit_read(scene.moment, chunk, entry.chain(), entry.chain_version.get())?;
        let store = &mut scene.slice.store;
        let plan = match store.read(self.id, chunk, entry.offset.get(), entry.length.get()) {
            Ok(plan) => plan,
            Err(error) => return Err(self.no_chunk(store, chunk, error)),
        };
        if plan.pending && !self.replica.shows_pending(plan.direct) {
            store.end_read(plan);
            return Err(ErrorCode::Pending.into());
        }
        Ok(plan)
    }

    /// That there is no chunk is something to show, too: an update that makes one may be pending.
    #[cold]
    fn no_chunk(&self, store: &Store, chunk: ChunkId, error: Error) -> Error {
        let status = store.status(self.id, chunk).unwrap_or_default();
        match status.pending {
            Some(_) if !self.replica.shows_pending(status.direct) => ErrorCode::Pending.into(),
            _ => error,
        }
    }

    /// Tells the replica something and does what follows from it.
    pub fn handle(&mut self, scene: &mut Scene<'_>, input: Input) {
        let new_role = matches!(input, Input::Role(_)).then(|| self.replica.role().map(|role| role.version));
        self.tell(scene, input);
        if new_role.is_some_and(|before| before != self.replica.role().map(|role| role.version)) {
            self.begin_resync(scene);
        }
    }

    /// A client or the predecessor wants a change. What builds on another version than the one here, and isn't here, comes after a fill,
    /// and that after a look at the filler's own blocks: until then what is kept of an earlier chain version stays, to repair them from.
    pub fn offered(&mut self, scene: &mut Scene<'_>, op: OpId, offer: Offer) {
        let ours = || scene.slice.store.status(self.id, offer.chunk).map_or(0, |status| status.version);
        if offer.forwarded.is_some_and(|version| offer.fill.is_none() && version != ours())
            && self.replica.keeps(offer.chunk)
            && self.base(scene, offer.chunk) != offer.base
            && self.replica.admit(scene.moment).is_ok_and(|role| role.admit_update(&offer).is_ok())
        {
            let what = "something else is kept here than what the update builds on";
            scene.out.push(Output::Reply { op, result: Err(Error::new(ErrorCode::NeedsWhole, what)) });
            return scene.out.push(Output::End { op });
        }
        self.handle(scene, Input::Offer { op, offer });
    }

    fn tell(&mut self, scene: &mut Scene<'_>, input: Input) {
        let mut steps = std::mem::take(&mut self.steps);
        self.replica.handle(scene.moment, input, &mut steps);
        while !steps.is_empty() {
            let mut next = Vec::new();
            for step in steps.drain(..) {
                self.perform(scene, step, &mut next);
            }
            std::mem::swap(&mut steps, &mut next);
        }
        self.steps = steps;
    }

    /// The slice is dead: everybody is told, plans are given back.
    pub fn die(&mut self, scene: &mut Scene<'_>) {
        self.dispose(scene.slice);
        self.end_fillers(scene);
        self.resync = None;
        self.handle(scene, Input::Died);
    }

    /// It is no member of its chain any more: everybody is told, plans are given back, and its chunks may go.
    pub fn leave(&mut self, scene: &mut Scene<'_>) {
        self.dispose(scene.slice);
        self.end_fillers(scene);
        (self.resync, self.filled) = (None, None);
        self.handle(scene, Input::Left);
    }

    /// Gives back what it holds of the store.
    pub fn dispose(&mut self, slice: &mut Slice) {
        for (_, staging) in std::mem::take(&mut self.staged) {
            slice.store.cancel(staging);
        }
    }

    /// The blocks of an update are prepared, or can't be.
    pub fn prepared(&mut self, scene: &mut Scene<'_>, chunk: ChunkId, result: Result<&[u32]>) {
        let Some(staging) = self.staged.remove(&chunk) else { return };
        let result = match result {
            Ok(crcs) => self.stage(scene, chunk, staging, crcs),
            Err(error) => {
                let blocks = staging.first_block..staging.first_block + staging.blocks;
                scene.slice.store.cancel(staging);
                Err(self.hopeful(scene, chunk, blocks, false, error))
            }
        };
        self.handle(scene, Input::Applied { chunk, result });
    }

    /// What is to be said instead of `error` if it comes from damage that other replicas may heal: try again soon.
    fn hopeful(
        &self,
        scene: &mut Scene<'_>,
        chunk: ChunkId,
        blocks: Range<u32>,
        pending: bool,
        error: Error,
    ) -> Error {
        if !matches!(error.code, ErrorCode::Corrupt | ErrorCode::DiskError) {
            return error;
        }
        let place = Place { target: self.id, chunk, pending };
        let alone = self.replica.role().is_none_or(|role| role.peers.is_empty());
        match scene.repairs.suspect(scene.moment.now, place, blocks, alone) {
            Hope::Repair => Error::new(ErrorCode::Overloaded, "a damaged block is being repaired"),
            Hope::Stopping => ErrorCode::ShuttingDown.into(),
            Hope::None => error,
        }
    }

    fn stage(&self, scene: &mut Scene<'_>, chunk: ChunkId, staging: Staging, crcs: &[u32]) -> Result<u32> {
        // Where an update goes next, and whether it is committed here, follows from the chain under which it was admitted: in another
        // one somebody else may be last.
        if !self.replica.is_current(chunk) {
            scene.slice.store.cancel(staging);
            return Err(Error::new(
                ErrorCode::StaleRouting,
                "the chain changed while the update was prepared",
            ));
        }
        let finish = self.replica.finish();
        if staging.is_fill() && finish == Finish::Pending {
            scene.slice.store.cancel(staging);
            return Err(Error::new(ErrorCode::StaleRouting, "the target isn't being filled any more"));
        }
        let staged = scene.slice.store.stage(staging, crcs, finish);
        let plan = staged.inspect_err(|error| {
            // What it lacks may come back with the next flush.
            if error.code == ErrorCode::Overloaded {
                scene.slice.hurry_what_waits();
            }
        })?;
        let applied = scene.slice.store.apply(plan);
        // A part of a fill needs no flush of its own: see `fill_written`.
        scene.slice.applied(&applied, !self.replica.is_fill(chunk));
        let op = self.replica.op(chunk).expect("what is prepared has an operation");
        let (slice, batch) = (scene.slice.index, applied.batch);
        scene.out.push(Output::Write { op, slice, batch, writes: applied.writes });
        Ok(merged_crc(crcs))
    }

    fn perform(&mut self, scene: &mut Scene<'_>, step: Step, next: &mut Vec<Step>) {
        let target = self.id;
        match step {
            Step::Begin { op, offer } => {
                let (chunk, result) = (offer.chunk, self.begin(scene, op, &offer));
                self.replica.handle(scene.moment, Input::Begun { chunk, result }, next);
            }
            Step::Commit { chunk, version, chain_version } => {
                let committed = scene.slice.store.commit(target, chunk, version, chain_version);
                let result = only_overloaded(committed.map(drop), target, chunk);
                self.replica.handle(scene.moment, Input::Committed { chunk, result }, next);
            }
            Step::Drop { chunk, version } => {
                let dropped = scene.slice.store.drop_pending(target, chunk, version);
                let result = only_overloaded(dropped, target, chunk);
                if result.is_ok() {
                    scene.slice.dropped(target, chunk);
                }
                self.replica.handle(scene.moment, Input::DropBegun { chunk, result }, next);
            }
            Step::Load { chunk } => self.load(scene, chunk),
            Step::Wake { chunk, attempt, at } => {
                scene.timers.insert((at, target, chunk, attempt));
            }
            Step::Forward { op, chunk, attempt, to, version, chain_version } => {
                let base = self.base(scene, chunk);
                let forward =
                    Output::Forward { op, target, chunk, attempt, to, version, chain_version, base };
                scene.out.push(forward);
            }
            Step::Reply { op, result } => scene.out.push(Output::Reply { op, result }),
            Step::End { op } => scene.out.push(Output::End { op }),
            Step::Fill { chunk, attempt, to, chain_version } => {
                self.begin_fill(scene, Filler::new(chunk, attempt, to, chain_version));
            }
            Step::FillEnded { chunk } => {
                self.fill_ended(scene, chunk);
            }
            Step::Differs { chunk } => scene.out.push(Output::Differs { target, chunk }),
        }
    }

    /// Asks the store to admit an update.
    fn begin(&mut self, scene: &mut Scene<'_>, op: OpId, offer: &Offer) -> Result<Begun> {
        let (target, chunk, slice) = (self.id, offer.chunk, scene.slice.index);
        if let Some(version) = offer.forwarded.filter(|_| offer.fill.is_none())
            && let Some(done) = self.committed_before(scene, offer, version)?
        {
            return Ok(Begun::Done(done));
        }
        if offer.fill.is_some() && self.filled.is_some() {
            return Err(Error::new(ErrorCode::NotServing, "the target has everything already"));
        }
        if offer.forwarded.is_some() && offer.fill.is_none() && self.replica.role().is_some_and(Role::syncing)
        {
            let ours = self.base(scene, chunk);
            if ours != offer.base {
                let what = "another version is here than the one that the update builds on";
                return Err(Error::new(ErrorCode::NeedsWhole, format!("{what}: {ours}, not {}", offer.base)));
            }
        }
        let store = &mut scene.slice.store;
        let version = match offer.forwarded {
            Some(version) => version,
            None => store.next_version(target, chunk)?,
        };
        let update = Update {
            target,
            chunk,
            kind: offer.kind,
            version,
            chain_version: offer.chain_version,
            truncate_epoch: offer.truncate_epoch,
            tag: offer.tag,
        };
        let begun = match (offer.fill, offer.forwarded) {
            (Some(permit), _) => match offer.kind {
                // It goes on top of the first part, which needed the permit.
                UpdateKind::Patch { .. } => store.begin_fill(update, 0),
                _ => match self.permits.take(chunk, permit) {
                    Some(digest) => store.begin_fill(update, digest),
                    None => {
                        Err(Error::new(ErrorCode::BaseDiffers, "a replacement that isn't expected any more"))
                    }
                },
            },
            (None, Some(_)) => store.begin_forwarded(update),
            (None, None) => store.begin_update(update),
        };
        match begun {
            Ok(Begin::Fresh(staging)) => {
                let (blocks, payload) = (staging.blocks, staging.payload.clone());
                let merges = staging.merges.clone();
                scene.out.push(Output::Prepare { op, slice, target, chunk, blocks, payload, merges });
                self.staged.insert(chunk, staging);
                Ok(Begun::Fresh { version })
            }
            Ok(Begin::Done(outcome)) => {
                let merged_crc = remembered_crc(scene.slice, target, offer, outcome.version);
                Ok(Begun::Done(Ack { version: outcome.version, length: outcome.length, merged_crc }))
            }
            Ok(Begin::InProgress { .. }) => Err(ErrorCode::Pending.into()),
            Err(error) => Err(self.explain(scene, offer, error)),
        }
    }

    /// The committed version that an update builds on: 0 if there is nothing.
    fn base(&self, scene: &Scene<'_>, chunk: ChunkId) -> u64 {
        let status = scene.slice.store.status(self.id, chunk).unwrap_or_default();
        if status.removed { 0 } else { status.version }
    }

    /// A predecessor sends a version again that is committed here: its own commit is on the way, or was lost with its
    /// memory. It is the same update, whatever the table of duplicates has forgotten since, because a version is given again
    /// only after everybody who had it has dropped it.
    fn committed_before(&self, scene: &mut Scene<'_>, offer: &Offer, version: u64) -> Result<Option<Ack>> {
        let status = scene.slice.store.status(self.id, offer.chunk)?;
        if version != status.version || status.pending.is_some() {
            return Ok(None);
        }
        let merged_crc = remembered_crc(scene.slice, self.id, offer, version);
        Ok(Some(Ack { version, length: status.length, merged_crc }))
    }

    /// A version that the head gave and that doesn't follow ours isn't the update's fault.
    fn explain(&self, scene: &Scene<'_>, offer: &Offer, error: Error) -> Error {
        let syncing = self.replica.role().is_some_and(Role::syncing);
        if syncing
            && offer.fill.is_none()
            && matches!(error.code, ErrorCode::InvalidArgument | ErrorCode::StaleLayout)
        {
            return Error::new(ErrorCode::NeedsWhole, error.message);
        }
        let (Some(theirs), ErrorCode::InvalidArgument) = (offer.forwarded, error.code) else { return error };
        let ours = scene.slice.store.status(self.id, offer.chunk).map_or(0, |status| status.version);
        match theirs {
            _ if theirs <= ours => {
                let what = "another update was committed here under that version";
                Error::mismatch(ErrorCode::ReplicasDiffer, ours, theirs, what)
            }
            _ if theirs > ours + 1 => Error::mismatch(
                ErrorCode::ChainBroken,
                ours + 1,
                theirs,
                "updates before it are missing here",
            ),
            _ => error,
        }
    }

    /// Reads the payload of a recovered update back.
    fn load(&mut self, scene: &mut Scene<'_>, chunk: ChunkId) {
        let (target, slice) = (self.id, scene.slice.index);
        let store = &mut scene.slice.store;
        let found = store.pendings(target).ok();
        let pending = found.and_then(|all| all.into_iter().find(|pending| pending.chunk == chunk));
        let Some(pending) = pending else { panic!("{target} {chunk}: the recovered update is gone") };
        let plan = match pending.kind {
            UpdateKind::Write { offset, len } => {
                let plan = store.read_pending(target, chunk, offset, len);
                Some(plan.unwrap_or_else(|error| panic!("{target} {chunk}: a pending update: {error}")))
            }
            _ => None,
        };
        scene.out.push(Output::Load { slice, target, ticket: 0, pending, fill: None, plan });
    }
}

/// A flushed pending update can always be ended, though perhaps not now: anything else is a bug.
fn only_overloaded(result: Result<()>, target: TargetId, chunk: ChunkId) -> Result<()> {
    if let Err(error) = &result {
        assert_eq!(
            error.code,
            ErrorCode::Overloaded,
            "{target} {chunk}: a pending update can't be ended: {error}"
        );
    }
    result
}

/// The CRC that replicas compare: over the stored CRCs of the touched blocks. 0 when there are none.
pub fn merged_crc(crcs: &[u32]) -> u32 {
    if crcs.is_empty() {
        return 0;
    }
    let mut bytes = [0; 64 * 4];
    let mut whole = Vec::new();
    let bytes = if crcs.len() * 4 <= bytes.len() {
        &mut bytes[..crcs.len() * 4]
    } else {
        whole.resize(crcs.len() * 4, 0);
        &mut whole[..]
    };
    bytes.chunks_exact_mut(4).zip(crcs).for_each(|(to, crc)| to.copy_from_slice(&crc.to_le_bytes()));
    crc32c(bytes)
}

/// The merged CRC of an update done before, if the chunk still is as it left it.
fn remembered_crc(slice: &mut Slice, target: TargetId, offer: &Offer, version: u64) -> u32 {
    let UpdateKind::Write { offset, len } = offer.kind else { return 0 };
    let block = BLOCK as u32;
    let (start, end) = (offset / block * block, (offset + len).next_multiple_of(block));
    match slice.store.read(target, offer.chunk, start, end - start) {
        Ok(plan) => {
            let crc = if plan.version == version { merged_crc(&plan.crcs) } else { 0 };
            slice.store.end_read(plan);
            crc
        }
        Err(_) => 0,
    }
}
