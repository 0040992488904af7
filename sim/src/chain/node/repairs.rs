//! What a node does for the machines of scrub and repair: looks at blocks, asks other replicas for them, writes them.

use super::*;
use corefs_engine::repair::Place;
use corefs_engine::store::DataWrite;
use corefs_wire::checksum::crc32c;

/// Another replica's blocks are wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fetch {
    pub ticket: u64,
    pub to: TargetId,
    pub entry: ReadEntry,
    pub pending: bool,
}

/// What is under way.
#[derive(Default)]
pub(super) struct Repairs {
    /// Steps that are being read, by ticket.
    checks: BTreeMap<u64, ReadPlan>,
    /// What came of other replicas.
    fetched: BTreeMap<u64, Vec<u8>>,
    /// Plans of blocks that are being written, and how many writes are left.
    mends: BTreeMap<u64, (ReadPlan, usize)>,
}

impl Repairs {
    /// The plans of everything under way.
    pub(super) fn take_plans(&mut self) -> Vec<ReadPlan> {
        let Self { checks, mends, .. } = std::mem::take(self);
        checks.into_values().chain(mends.into_values().map(|(plan, _)| plan)).collect()
    }
}

impl SimNode {
    /// Verifies everything now.
    pub fn scrub(&mut self, now: Nanos) {
        if let Some(machine) = &mut self.machine {
            machine.targets.scrub_now(0);
        }
        self.turn(now);
    }

    /// Nothing waits to be verified or repaired, and everything that was asked for has been.
    pub fn is_verified(&self) -> bool {
        self.machine.as_ref().is_some_and(|machine| {
            let upkeep = machine.targets.upkeep();
            upkeep.waiting == 0 && upkeep.answered >= upkeep.asked
        })
    }

    /// Blocks that were repaired since it was started, and those that nobody has.
    pub fn repaired(&self) -> (u64, u64) {
        self.machine.as_ref().map_or((0, 0), |machine| {
            let upkeep = machine.targets.upkeep();
            (upkeep.repaired, upkeep.unrepaired)
        })
    }

    /// Whether a block of it is damaged that wasn't written over since.
    pub fn has_damage(&mut self) -> bool {
        self.forget_damage();
        !self.damaged.is_empty()
    }

    pub(super) fn check(&mut self, ticket: u64, plan: ReadPlan) {
        self.machine_repairs().checks.insert(ticket, plan);
        self.jobs.push(Job::Check { ticket });
    }

    pub(super) fn finish_check(&mut self, now: Nanos, ticket: u64) -> Result<(), String> {
        let Some(plan) = self.machine_repairs().checks.remove(&ticket) else { return Ok(()) };
        let mut bad = 0;
        for piece in plan.pieces.iter() {
            let Some(offset) = piece.disk_offset else { continue };
            for nth in 0..piece.blocks {
                let (block, at) = (piece.first + nth, offset + u64::from(nth) * BLOCK as u64);
                if crc32c(self.disk.read(at, BLOCK)) != plan.crcs[block as usize] {
                    bad |= 1u128 << block;
                    self.corrupt(format!("block {block} of a scrub"), std::iter::once(at))?;
                }
            }
        }
        self.tell(now, Event::Checked { ticket, slice: SLICE, plan, bad: Ok(bad) });
        Ok(())
    }

    pub(super) fn fetch(
        &mut self,
        ticket: u64,
        to: TargetId,
        (chain, chain_version): (ChainId, u64),
        place: Place,
        (first, blocks): (u32, u32),
    ) {
        let entry = ReadEntry {
            chain: chain.0.into(),
            chain_version: chain_version.into(),
            target: to.0.into(),
            inode: place.chunk.inode.0.into(),
            index: place.chunk.index.into(),
            offset: (first * BLOCK as u32).into(),
            length: (blocks * BLOCK as u32).into(),
            ..ReadEntry::default()
        };
        self.sent.push(Sent::Fetch(Fetch { ticket, to, entry, pending: place.pending }));
    }

    /// Another replica wants blocks.
    pub fn wanted(&mut self, now: Nanos, requester: Requester, fetch: &Fetch) {
        let op = self.insert(Op::new(Some(requester), None));
        self.tell(now, Event::Wanted { op, entry: &fetch.entry, pending: fetch.pending });
        self.turn(now);
    }

    /// Another replica's blocks, or why it has none.
    pub fn fetched(&mut self, now: Nanos, ticket: u64, result: Result<Vec<u8>>) {
        match result {
            Ok(bytes) => {
                let crcs: Vec<u32> = bytes.chunks_exact(BLOCK).map(crc32c).collect();
                self.machine_repairs().fetched.insert(ticket, bytes);
                self.tell(now, Event::Fetched { ticket, result: Ok(&crcs) });
            }
            Err(error) => self.tell(now, Event::Fetched { ticket, result: Err(error) }),
        }
        self.turn(now);
    }

    pub(super) fn forget(&mut self, ticket: u64) {
        self.machine_repairs().fetched.remove(&ticket);
    }

    pub(super) fn mend(&mut self, now: Nanos, ticket: u64, plan: ReadPlan, writes: &[DataWrite]) {
        let Some(bytes) = self.machine_repairs().fetched.remove(&ticket) else {
            let result = Err(ErrorCode::Internal.into());
            return self.tell(now, Event::Mended { ticket, slice: SLICE, plan, result });
        };
        self.machine_repairs().mends.insert(ticket, (plan, writes.len()));
        for write in writes {
            let at = write.first as usize * BLOCK;
            let bytes = bytes[at..at + write.blocks as usize * BLOCK].to_vec();
            self.jobs.push(Job::Mend { ticket, offset: write.disk_offset, bytes });
        }
    }

    pub(super) fn finish_mend(
        &mut self,
        now: Nanos,
        ticket: u64,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), String> {
        let fails = self.failing == Some(Failing::All);
        if fails {
            self.tell(now, Event::WriteFailed { slice: SLICE, error: ErrorCode::DiskError.into() });
        } else {
            self.disk.write(offset, bytes).map_err(|_| "power is on")?;
        }
        let mends = &mut self.machine_repairs().mends;
        let Some((_, left)) = mends.get_mut(&ticket) else { return Ok(()) };
        *left -= 1;
        if *left == 0 {
            let (plan, _) = mends.remove(&ticket).expect("it was there");
            let result = if fails { Err(ErrorCode::DiskError.into()) } else { Ok(()) };
            self.tell(now, Event::Mended { ticket, slice: SLICE, plan, result });
        }
        Ok(())
    }

    fn machine_repairs(&mut self) -> &mut Repairs {
        &mut self.machine.as_mut().expect("repairs belong to a machine").repairs
    }
}
