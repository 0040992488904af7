//! Disks that don't answer: an operation that has been under way for too long is the end of its slice, as a write that failed is.
//!
//! A drive that hangs, or a block device whose network is gone, may complete nothing for ever; nobody else would notice, since the node keeps its
//! lease. So once in a while everything is looked at that is in flight. What was asked for stays the kernel's until it completes: no memory is
//! given back before, and what comes after the end is taken as what comes after a failed write.
//!
//! A disk that has too much to do is slow, and not hung: an operation is given up only if the disk has done nothing of its kind for a while, either.
//!
//! # Invariants
//! - Time is counted in steps, of which one passes at most in a turn, after what has completed was gathered: a process that stood still for a
//!   minute has found its disks silent for one step.
//! - An operation remembers the step in which the disk was asked for it. A flush that was given up is nobody's when it completes.

use super::Shard;
use super::ops::Op;
use crate::event::{DiskIndex, Event, Nanos};
use corefs_wire::{Error, ErrorCode, SliceIndex};
use std::time::Duration;

/// How long a step takes at least (nanoseconds).
const STEP: Nanos = 2_000_000_000;
/// After how many of them an operation is given up: 120 s. Disks at their end take seconds for what they try again and again, virtual ones have stood still for
/// longer while their host was busy. The kernel aborts an NVMe drive's command after 30 s and resets the drive after 30 more, and what was cancelled is tried again:
/// what comes of all that is an answer.
const STEPS_MAX: u32 = 60;
/// For how many of them the disk must have completed nothing of that kind: 60 s.
const SILENT_STEPS: u32 = 30;

/// What a disk is asked for. One kind may stand still while another goes on: a frozen file system reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
}

/// An operation of a slice, and in which step it was asked for.
#[derive(Clone, Copy)]
pub(super) struct Since {
    pub(super) slice: SliceIndex,
    pub(super) what: &'static str,
    pub(super) kind: Kind,
    pub(super) asked: u32,
}

/// Counts the steps, and knows the flushes.
pub(super) struct Patience {
    step: u32,
    /// When the next one begins.
    due: Nanos,
    nanos: Nanos,
    /// In which step each disk last completed something of each kind.
    heard: Vec<[u32; 3]>,
    /// In flight.
    flushes: Vec<(DiskIndex, u32)>,
    /// Given up, and not complete.
    lost: Vec<DiskIndex>,
}

impl Default for Patience {
    fn default() -> Self {
        Self { step: 0, due: 0, nanos: STEP, heard: Vec::new(), flushes: Vec::new(), lost: Vec::new() }
    }
}

impl Patience {
    #[inline]
    pub(super) fn step(&self) -> u32 {
        self.step
    }

    pub(super) fn flushes(&mut self, disk: DiskIndex) {
        self.flushes.push((disk, self.step));
    }

    /// A flush is complete: whether anybody waits for it.
    pub(super) fn flushed(&mut self, disk: DiskIndex) -> bool {
        self.heard(disk, Kind::Flush);
        if let Some(at) = self.lost.iter().position(|lost| *lost == disk) {
            self.lost.swap_remove(at);
            return false;
        }
        self.flushes.retain(|(flushing, _)| *flushing != disk);
        true
    }

    /// A disk has completed something.
    #[inline]
    pub(super) fn heard(&mut self, disk: DiskIndex, kind: Kind) {
        match self.heard.get_mut(usize::from(disk.0)) {
            Some(kinds) => kinds[kind as usize] = self.step,
            None => self.heard_first(disk, kind),
        }
    }

    #[cold]
    fn heard_first(&mut self, disk: DiskIndex, kind: Kind) {
        self.heard.resize(usize::from(disk.0) + 1, [0; 3]);
        self.heard(disk, kind);
    }

    fn is_over(&self, disk: DiskIndex, kind: Kind, asked: u32) -> bool {
        let heard = self.heard.get(usize::from(disk.0)).map_or(0, |kinds| kinds[kind as usize]);
        self.step - asked > STEPS_MAX && self.step - heard > SILENT_STEPS
    }

    fn error(&self, what: &str, path: &std::path::Path) -> Error {
        let waited = Duration::from_nanos(u64::from(STEPS_MAX) * self.nanos);
        let what = format!("{}: {what} isn't done after {waited:?}: the disk hangs", path.display());
        Error::new(ErrorCode::DiskError, what)
    }
}

impl Shard {
    /// When [`Self::end_silent_slices`] should be called again though nothing completes; `None` if nothing is under way.
    pub(super) fn patience_ends(&self, now: Nanos) -> Option<Duration> {
        let idle = self.desk.ops.is_empty() && self.batches.is_empty() && self.checks.is_empty();
        let idle = idle && self.mends.is_empty() && self.patience.flushes.is_empty();
        (!idle).then(|| Duration::from_nanos(self.patience.due.saturating_sub(now)))
    }

    /// Ends the slices for which the disk doesn't do what it was asked.
    #[inline]
    pub(super) fn end_silent_slices(&mut self) {
        if self.desk.now >= self.patience.due {
            self.look_for_silence();
        }
    }

    #[cold]
    fn look_for_silence(&mut self) {
        self.patience.step += 1;
        self.patience.due = self.desk.now + self.patience.nanos;
        let over = |(disk, asked): &(DiskIndex, u32)| self.patience.is_over(*disk, Kind::Flush, *asked);
        let over: Vec<DiskIndex> =
            self.patience.flushes.iter().filter(|at| over(at)).map(|(disk, _)| *disk).collect();
        for disk in over {
            self.patience.flushes.retain(|(flushing, _)| *flushing != disk);
            self.patience.lost.push(disk);
            let error = self.patience.error("a flush", self.disks.path(disk));
            tracing::error!(%error, "a disk is given up, with all slices on it that this shard has");
            self.desk.tell(Event::FlushFailed { disk, error });
        }
        // One after the other: what is given up isn't found again.
        let mut ended = Vec::new();
        while let Some(found) = self.silent(&ended) {
            ended.push(found.slice);
            let error = self.patience.error(found.what, self.disks.path_of(found.slice));
            if self.desk.targets.slices().any(|slice| slice.index == found.slice && slice.alive()) {
                self.desk.tell(Event::WriteFailed { slice: found.slice, error: error.clone() });
            }
            self.give_up_upkeep(found.slice, &error);
        }
    }

    /// An operation that is over, of a slice that isn't among those.
    fn silent(&self, ended: &[SliceIndex]) -> Option<Since> {
        let of_op = |op: &Op| match op {
            Op::Read(read) => (read.left > 0).then_some(Since {
                slice: read.slice,
                what: "a read",
                kind: Kind::Read,
                asked: read.asked,
            }),
            Op::Update(update) => (update.left > 0).then_some(Since {
                slice: update.slice,
                what: "an update's transfer",
                kind: if update.merging.is_some() || update.plan.is_some() {
                    Kind::Read
                } else {
                    Kind::Write
                },
                asked: update.asked,
            }),
        };
        let ops = self.desk.ops.iter().filter_map(of_op);
        let batches = self.batches.iter().map(|(_, batch)| Since {
            slice: batch.slice,
            what: "a write of the journal",
            kind: Kind::Write,
            asked: batch.asked,
        });
        let checks = self.checks.iter().map(|(_, check)| check.since());
        let mends = self.mends.iter().map(|(_, mending)| mending.since());
        let mut all = ops.chain(batches).chain(checks).chain(mends);
        let is_over =
            |since: &Since| self.patience.is_over(self.disks.disk_of(since.slice), since.kind, since.asked);
        all.find(|since| is_over(since) && !ended.contains(&since.slice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::uring::Io;
    use crate::event::OpId;
    use crate::mesh::answer;
    use crate::shard::boottime;
    use crate::shard::ground::{CLUSTER, disk, shard};
    use crate::shard::ops::{ReadOp, Requester};
    use corefs_net::{Completion, ConnId};
    use corefs_wire::control::mgmtd::TargetState;
    use corefs_wire::limits::BLOCK;
    use corefs_wire::routing::{self, Chain, Member, RoutingInfo, Target};
    use corefs_wire::{ChainId, ChunkId, InodeId, NodeId, ShardIndex, TargetId};
    use std::path::Path;
    use std::time::Instant;

    /// A short patience, for tests: 0.6 s.
    const SHORT: Nanos = 10_000_000;

    /// One of two slices, each on a disk of its own.
    fn two_disks(dir: &Path) -> Shard {
        let mut shard = shard(dir);
        let (file, slice) = disk(dir, 1);
        let (tell, _told) = answer();
        shard.add_disk(file, vec![slice], tell);
        while !shard.joining.is_empty() {
            turn(&mut shard);
        }
        (shard.patience.nanos, shard.patience.due) = (SHORT, 0);
        shard
    }

    fn turn(shard: &mut Shard) {
        shard.rest().unwrap();
        shard.turn();
    }

    /// Which slices are dead.
    fn dead(shard: &Shard) -> Vec<u16> {
        shard.report().slices.iter().filter(|slice| slice.dead).map(|slice| slice.index).collect()
    }

    fn turn_until(shard: &mut Shard, what: &str, done: impl Fn(&Shard) -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !done(shard) {
            assert!(Instant::now() < until, "{what} doesn't come");
            turn(shard);
        }
    }

    /// Targets 1 and 2, of slices 0 and 1: each is written down in its slice.
    fn place(shard: &mut Shard) {
        let mut routing = RoutingInfo {
            cluster: CLUSTER,
            chunk_size: 65536,
            replicas: 1,
            version: 1,
            ..RoutingInfo::default()
        };
        let node = NodeId(1);
        routing.nodes.insert(
            node,
            routing::Node {
                id: node,
                incarnation: 1,
                alive: true,
                control: String::new(),
                shards: vec![shard.address().to_string()],
                slice_shards: vec![ShardIndex(0); 2],
                domain: String::new(),
            },
        );
        for n in 1..=2 {
            let (id, target, slice) = (ChainId(n), TargetId(n), SliceIndex(n as u16 - 1));
            routing.targets.insert(target, Target { id: target, node, slice, chain: id });
            let members = vec![Member { target, state: TargetState::Serving }];
            routing.chains.insert(id, Chain { id, version: 1, members });
        }
        shard.desk.now = boottime();
        shard.desk.tell(Event::Leased { until: Nanos::MAX });
        shard.take_routing(routing);
    }

    fn up_to_date(shard: &Shard) -> Vec<u64> {
        let healths = shard.report().targets;
        healths.iter().filter(|target| target.up_to_date).map(|target| target.target).collect()
    }

    /// What hung is done after all.
    fn complete_late(shard: &mut Shard, result: i32) {
        shard.disks.hangs = None;
        for token in std::mem::take(&mut shard.disks.hung) {
            shard.disk_done(Completion { token, result, flags: 0 });
        }
        shard.turn();
    }

    #[test]
    fn a_write_that_never_ends_is_the_death_of_its_slice_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut shard = two_disks(dir.path());
        // The batch that is asked for first is that of the first slice.
        shard.disks.hangs = Some(|io| io == Io::Batch { slot: 0 });
        place(&mut shard);
        turn_until(&mut shard, "the death of a slice", |shard| !dead(shard).is_empty());
        assert_eq!((dead(&shard), up_to_date(&shard)), (vec![0], vec![2]));
        assert!(shard.batches.contains(0), "its memory is the kernel's");
        let len = shard.batches[0].len as i32;
        complete_late(&mut shard, len);
        assert_eq!((shard.batches.len(), dead(&shard)), (0, vec![0]), "no death is taken back");
        shard.dispose();
    }

    #[test]
    fn a_flush_that_never_ends_is_the_death_of_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut shard = two_disks(dir.path());
        shard.disks.hangs = Some(|io| io == Io::Flush { disk: DiskIndex(1) });
        place(&mut shard);
        turn_until(&mut shard, "the death of a slice", |shard| !dead(shard).is_empty());
        assert_eq!((dead(&shard), up_to_date(&shard)), (vec![1], vec![1]));
        assert_eq!(shard.disks.lost().count(), 0);
        complete_late(&mut shard, 0);
        assert_eq!((dead(&shard), shard.patience.lost.len()), (vec![1], 0));
        shard.dispose();
    }

    #[test]
    fn a_late_flush_that_failed_is_known_to_all_shards() {
        let dir = tempfile::tempdir().unwrap();
        let mut shard = two_disks(dir.path());
        shard.disks.hangs = Some(|io| io == Io::Flush { disk: DiskIndex(1) });
        place(&mut shard);
        turn_until(&mut shard, "the death of a slice", |shard| !dead(shard).is_empty());
        complete_late(&mut shard, -libc::EIO);
        assert_eq!(shard.disks.lost().map(|(slice, _)| slice.0).collect::<Vec<_>>(), [1]);
        shard.dispose();
    }

    /// A read of a slice that was asked for in this step.
    fn asked_for(shard: &mut Shard, slice: SliceIndex) -> OpId {
        let read = ReadOp {
            requester: Requester { conn: ConnId { index: 0, generation: 1 }, request: 1 },
            began: 0,
            target: TargetId(1),
            chunk: ChunkId::new(InodeId(1), 0),
            buffer: shard.desk.pool.get(BLOCK).unwrap(),
            slice,
            plan: None,
            left: 1,
            asked: shard.patience.step(),
            failed: None,
        };
        shard.desk.ops.insert(Op::Read(read))
    }

    #[test]
    fn a_read_that_never_ends_is_the_death_of_its_slice() {
        let dir = tempfile::tempdir().unwrap();
        let mut shard = two_disks(dir.path());
        let op = asked_for(&mut shard, SliceIndex(1));
        let began = Instant::now();
        turn_until(&mut shard, "the death of a slice", |shard| !dead(shard).is_empty());
        assert!(began.elapsed() >= Duration::from_nanos(SHORT) * STEPS_MAX);
        assert_eq!(dead(&shard), [1]);
        assert_eq!(shard.desk.ops.read(op).left, 1, "its memory is the kernel's");
        shard.dispose();
    }

    #[test]
    fn a_disk_that_has_too_much_to_do_is_not_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let mut shard = two_disks(dir.path());
        asked_for(&mut shard, SliceIndex(1));
        let begun = shard.patience.step();
        while shard.patience.step() < begun + 2 * STEPS_MAX {
            shard.patience.heard(DiskIndex(1), Kind::Read);
            turn(&mut shard);
        }
        assert_eq!(dead(&shard), [], "others get their turn before it");
        // What it writes says nothing of what it reads.
        let silent = |shard: &Shard| shard.patience.step() - begun - 2 * STEPS_MAX;
        while dead(&shard).is_empty() && silent(&shard) <= SILENT_STEPS {
            shard.patience.heard(DiskIndex(1), Kind::Write);
            shard.patience.heard(DiskIndex(0), Kind::Read);
            turn(&mut shard);
        }
        // The last that it read was in the step before.
        assert_eq!((dead(&shard), silent(&shard)), (vec![1], SILENT_STEPS));
        shard.dispose();
    }

    #[test]
    fn a_process_that_stood_still_blames_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut shard = two_disks(dir.path());
        asked_for(&mut shard, SliceIndex(1));
        let before = shard.patience.step();
        for _ in 0..3 {
            std::thread::sleep(Duration::from_nanos(SHORT) * 2 * STEPS_MAX);
            shard.turn();
        }
        assert_eq!((dead(&shard), shard.patience.step() - before), (vec![], 3));
        shard.dispose();
    }
}
