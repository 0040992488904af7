//! One run: work, cut, recover, compare, again.

use super::model::Model;
use super::open::{OpenError, check, open};
use super::reuse::{Reuse, Way};
use super::verify;
use crate::disk::{PowerCut, SimDisk};
use crate::prng::Prng;
use corefs_engine::store::format::initial_writes;
use corefs_engine::store::{BatchId, Finish, Geometry, ReadPlan, Store, Update};
use corefs_wire::limits::BLOCK;
use corefs_wire::{ChunkId, NodeId, SliceIndex, TargetId, UpdateTag, Uuid};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// A fault put into the driver on purpose: the same checks must find it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Canary {
    /// The disk is never told to flush.
    FlushRemoved,
    /// Updates are acknowledged when their batch is written, before it is flushed.
    AcknowledgedBeforeFlush,
    /// The store is told of the flush when the batch is written, so that it reuses superseded blocks at once;
    /// acknowledgments still wait for the real flush.
    BlockReusedEarly,
    /// A read's pin is released before its bytes are taken.
    PinReleasedEarly,
}

/// What happened in a run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Counts {
    pub cuts: u64,
    /// Cuts in the middle of a recovery.
    pub recovery_cuts: u64,
    pub steps: u64,
    pub updates: u64,
    pub acknowledged: u64,
    pub committed: u64,
    pub dropped: u64,
    pub duplicates: u64,
    pub reads: u64,
    pub batches: u64,
    pub checkpoints: u64,
    pub no_space: u64,
    pub overloaded: u64,
    /// Of these, because the journal was full.
    pub journal_full: u64,
    pub records_replayed: u64,
    pub blocks_discarded: u64,
    /// Recoveries that found the batch in flight whole.
    pub batches_survived: u64,
    /// Updates that were committed when their data were written, before their flush.
    pub committed_early: u64,
    /// Blocks written again though the batch that had named them isn't known to be flushed by anything on the disk.
    pub reused: [u64; Way::ALL.len()],
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        let Self { cuts, recovery_cuts, steps, updates, acknowledged, committed, dropped, .. } = other;
        self.cuts += cuts;
        self.recovery_cuts += recovery_cuts;
        self.steps += steps;
        self.updates += updates;
        self.acknowledged += acknowledged;
        self.committed += committed;
        self.dropped += dropped;
        self.duplicates += other.duplicates;
        self.reads += other.reads;
        self.batches += other.batches;
        self.checkpoints += other.checkpoints;
        self.no_space += other.no_space;
        self.overloaded += other.overloaded;
        self.journal_full += other.journal_full;
        self.records_replayed += other.records_replayed;
        self.blocks_discarded += other.blocks_discarded;
        self.batches_survived += other.batches_survived;
        self.committed_early += other.committed_early;
        self.reused.iter_mut().zip(other.reused).for_each(|(sum, more)| *sum += more);
    }
}

/// A check that failed, and how to see it again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub seed: u64,
    pub canary: Option<Canary>,
    /// The cut after which it was found.
    pub cut: u64,
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} fails after cut {}: {}", self.seed, self.cut, self.what)?;
        write!(f, "replay: cargo run -p corefs-sim --release --example power_cuts -- ")?;
        write!(f, "--replay {} --cuts {}", self.seed, self.cut)?;
        if let Some(canary) = self.canary { write!(f, " --canary {canary:?}") } else { Ok(()) }
    }
}

/// Why a step couldn't be finished.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    Cut,
    Wrong(String),
}

impl From<PowerCut> for Stop {
    fn from(_: PowerCut) -> Self {
        Self::Cut
    }
}

impl From<String> for Stop {
    fn from(what: String) -> Self {
        Self::Wrong(what)
    }
}

/// The batch in flight: everything in its log, and how far it has come.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) id: BatchId,
    pub(super) sealed: Model,
    /// Its updates; and those of them that became durable, to be acknowledged when it is flushed.
    pub(super) updates: Vec<(TargetId, ChunkId, u64)>,
    pub(super) durable: Option<Vec<(TargetId, ChunkId, u64)>>,
    /// How many of the run's unflushed updates are in it.
    pub(super) unflushed: usize,
    pub(super) flushing: bool,
    /// A canary told the store already.
    pub(super) told: bool,
}

/// A read whose pin is held for a while.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) plan: Option<ReadPlan>,
    /// Disk offsets and what their blocks hold as long as they are pinned.
    pub(super) blocks: Vec<(u64, Vec<u8>)>,
}

/// One slice, its disk, and the model.
#[derive(Debug)]
pub struct Run {
    pub(super) prng: Prng,
    pub(super) canary: Option<Canary>,
    pub(super) disk: SimDisk,
    pub(super) store: Store,
    /// The log as far as it was written into batches or is open.
    pub(super) live: Model,
    /// The log up to the last flush.
    pub(super) flushed: Model,
    pub(super) in_flight: Option<InFlight>,
    /// Updates in the open batch.
    pub(super) open_updates: Vec<(TargetId, ChunkId, u64)>,
    /// Writes not yet given to the disk, with the batch that needs them.
    pub(super) queue: Vec<(BatchId, u64, Vec<u8>)>,
    /// Where the data of each chunk's last update are: offsets of its writes in the slice.
    pub(super) data: BTreeMap<(TargetId, ChunkId), Vec<u64>>,
    pub(super) reuse: Reuse,
    /// What was filled last: clients write there, too.
    pub(super) filled: Option<(TargetId, ChunkId)>,
    pub(super) held: Vec<Held>,
    /// The newest version acknowledged of each chunk, dropped updates excepted.
    pub(super) acknowledged: BTreeMap<(TargetId, ChunkId), u64>,
    pub(super) channels: Vec<UpdateTag>,
    pub(super) next_target: u64,
    /// How eager checkpoints are: one step in so many.
    pub(super) checkpoint_every: u64,
    /// Updates whose flush isn't known; and those that clients send again after a recovery, bytes and all.
    pub(super) unflushed: Vec<(Update, Vec<u8>, Finish)>,
    pub(super) again: VecDeque<(Update, Vec<u8>, Finish)>,
    pub(super) counts: Counts,
}

const CLUSTER: Uuid = Uuid(*b"sim power cuts!!");

/// Runs `cuts` power cuts from one seed.
pub fn run(seed: u64, cuts: u64, canary: Option<Canary>) -> Result<Counts, Failure> {
    let failure = |cut, what| Failure { seed, canary, cut, what };
    let mut run = Run::new(seed, canary).map_err(|what| failure(0, what))?;
    for cut in 1..=cuts {
        run.until_cut().map_err(|what| failure(cut, what))?;
    }
    Ok(run.finish())
}

impl Run {
    pub fn new(seed: u64, canary: Option<Canary>) -> Result<Self, String> {
        let mut prng = Prng::new(seed);
        let geometry = tiny(&mut prng);
        geometry.check().map_err(|error| error.to_string())?;
        let mut disk = SimDisk::new(geometry.slice_bytes as usize, &mut prng);
        for write in initial_writes(&geometry) {
            disk.write(write.offset, write.bytes).map_err(|_| "no cut is due")?;
        }
        disk.flush().map_err(|_| "no cut is due")?;
        let (store, _) = open(&mut disk, CLUSTER).map_err(|error| format!("{error:?}"))?;
        let empty = Model { rows_max: geometry.dedup_rows_max as usize, ..Model::default() };
        let channel = |n: u64| UpdateTag {
            client: corefs_wire::ClientId(1 + n / 2),
            sequence: 0,
            incarnation: (n % 3) as u32,
            channel: n as u32,
        };
        Ok(Self {
            canary,
            disk,
            store,
            live: empty.clone(),
            flushed: empty,
            in_flight: None,
            open_updates: Vec::new(),
            queue: Vec::new(),
            data: BTreeMap::new(),
            reuse: Reuse::new(),
            filled: None,
            held: Vec::new(),
            acknowledged: BTreeMap::new(),
            channels: (0..prng.between(3, 14)).map(channel).collect(),
            next_target: 1,
            checkpoint_every: *prng.pick(&[1, 3, 10, 100, 1000]),
            unflushed: Vec::new(),
            again: VecDeque::new(),
            counts: Counts::default(),
            prng,
        })
    }

    /// Works until the power is cut, recovers and compares.
    pub fn until_cut(&mut self) -> Result<(), String> {
        let operations = if self.prng.chance(1, 4) { self.prng.below(8) } else { self.prng.below(120) };
        self.disk.cut_after(Some(operations));
        // Steps that write nothing are possible, so their number is bounded too.
        for _ in 0..4 * operations + 200 {
            self.counts.steps += 1;
            match self.step() {
                Ok(()) => {}
                Err(Stop::Cut) => break,
                Err(Stop::Wrong(what)) => {
                    self.let_go();
                    return Err(what);
                }
            }
        }
        self.counts.cuts += 1;
        self.counts.checkpoints += self.store.stats().checkpoints;
        self.let_go();
        self.recover()
    }

    /// Ends all plans: the process they were in is gone.
    fn let_go(&mut self) {
        for held in std::mem::take(&mut self.held) {
            if let Some(plan) = held.plan {
                self.store.end_read(plan);
            }
        }
        self.queue.clear();
        self.open_updates.clear();
        self.data.clear();
        self.reuse = Reuse::new();
    }

    fn recover(&mut self) -> Result<(), String> {
        let in_flight = self.in_flight.take();
        loop {
            self.disk.power_on(&mut self.prng);
            if self.prng.chance(1, 5) {
                let operations = self.prng.below(6);
                self.disk.cut_after(Some(operations));
            }
            match open(&mut self.disk, CLUSTER) {
                Ok((store, report)) => {
                    self.store = store;
                    self.counts.records_replayed += report.records_replayed;
                    self.counts.blocks_discarded += report.blocks_discarded;
                    if let Some(copy) = report.superblock_repaired
                        && self.counts.recovery_cuts == 0
                    {
                        return Err(format!("superblock {copy} was torn without a cut in recovery"));
                    }
                    if report.checkpoint_fallback {
                        return Err("a complete checkpoint couldn't be read".to_string());
                    }
                    break;
                }
                Err(OpenError::Cut) => self.counts.recovery_cuts += 1,
                Err(OpenError::Damage(damage)) => return Err(format!("it doesn't open: {damage:?}")),
            }
        }
        self.disk.cut_after(None);
        self.compare(in_flight)
    }

    fn compare(&mut self, in_flight: Option<InFlight>) -> Result<(), String> {
        let findings = self.store.audit();
        if let Some(finding) = findings.first() {
            return Err(format!("after recovery: {finding}"));
        }
        let flushed = self.flushed.recovered();
        let mut now = verify::equal(&mut self.store, &self.disk, &flushed);
        let mut model = flushed;
        if let Some(batch) = in_flight {
            let sealed = batch.sealed.recovered();
            let survived = verify::equal(&mut self.store, &self.disk, &sealed);
            // Both fit when the batch only removed what never was: the tombstone, if it is there, is known to the later model alone.
            if now.is_err() || survived.is_ok() {
                self.counts.batches_survived += u64::from(now.is_err());
                now = now.or_else(|why| survived.map_err(|or| format!("as flushed: {why}; as sealed: {or}")));
                model = sealed;
            }
        }
        now?;
        self.flushed = model.clone();
        self.live = model;
        let lost = std::mem::take(&mut self.unflushed);
        self.again = if self.prng.chance(2, 3) { lost.into() } else { VecDeque::new() };
        self.nothing_acknowledged_is_lost()?;
        if self.counts.cuts.is_multiple_of(8) {
            let report = check(&self.disk);
            if let Some(finding) = report.findings.first() {
                return Err(format!("fsck finds: {finding}"));
            }
        }
        Ok(())
    }

    fn nothing_acknowledged_is_lost(&mut self) -> Result<(), String> {
        for ((target, chunk), version) in &self.acknowledged {
            let Some(entry) = self.live.targets.get(target) else { continue };
            let found = entry.chunks.get(chunk);
            let pending = found.and_then(|chunk| chunk.pending.as_ref()).map(|pending| pending.version);
            let newest = found.map(|chunk| chunk.version).max(pending);
            if newest.is_none_or(|newest| newest < *version) {
                return Err(format!(
                    "version {version} of {chunk} of {target} was acknowledged, but {newest:?} is there"
                ));
            }
        }
        Ok(())
    }

    /// Works for so many steps without a cut, then finishes everything that is under way but pending updates.
    pub fn work_and_rest(&mut self, steps: u64) -> Result<(), String> {
        self.disk.cut_after(None);
        let mut work = || {
            (0..steps).try_for_each(|_| self.step())?;
            self.rest()
        };
        let done = work();
        self.let_go();
        done.map_err(|stop| format!("{stop:?}"))
    }

    /// What the slice holds, if everything was flushed.
    pub fn model(&self) -> &Model {
        &self.flushed
    }

    /// Ends the run.
    pub fn finish(mut self) -> Counts {
        self.let_go();
        self.counts
    }

    /// The disk as it is now, to compare two runs of one seed.
    pub fn disk(&self) -> &SimDisk {
        &self.disk
    }
}

/// A slice so small that everything that is rare in life happens in a few hundred steps.
fn tiny(prng: &mut Prng) -> Geometry {
    let (checkpoint_blocks, journal_blocks) = (prng.between(12, 30) as u32, prng.between(16, 40) as u32);
    let slice_blocks = 280 + prng.below(64);
    Geometry {
        cluster: CLUSTER,
        store: Uuid(std::array::from_fn(|_| prng.next_u64() as u8)),
        node: NodeId(1),
        slice: SliceIndex(0),
        slice_bytes: slice_blocks * BLOCK as u64,
        checkpoint_blocks,
        // Small pages: a checkpoint is many, and updates come between them.
        page_bytes: BLOCK as u32 * prng.between(1, 2) as u32,
        journal_blocks,
        dedup_rows_max: prng.between(2, 12) as u32,
        tombstones_max: prng.between(1, 6) as u32,
    }
}
