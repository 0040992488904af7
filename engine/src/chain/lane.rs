//! One chunk's updates: the active one and those that wait behind it.

use super::{PAUSE_FIRST, PAUSE_LAST, Step, WAITING_MAX};
use crate::event::{Ack, Nanos, Offer, OpId};
use crate::store::{PendingInfo, UpdateKind};
use corefs_wire::{ChainId, ChunkId, Error, ErrorCode, Result, UpdateTag};
use std::collections::VecDeque;

/// How far the active update of a chunk has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Phase {
    /// Old blocks are being read and merged.
    Preparing,
    /// The store had no room for the moment: it will be asked again.
    Held,
    /// Record and data are on their way to the disk.
    Writing,
    /// Durable here; the successor has been asked.
    Forwarding,
    /// Durable here; the successor will be asked again.
    Paused,
    /// Nobody is left to wait for, but the store had no room for the commit: it will be asked again.
    Acked,
    /// The successor is being filled and must be given the chunk's committed version first, or that is all there is to do.
    Filling,
    /// A successor refused, but the store had no room for the drop: it will be asked again.
    Refused,
    /// A successor refused; the drop is on its way to the disk.
    Dropping,
    /// Found pending when the store was opened; routing hasn't said yet what to do about it.
    Recovered,
    /// The payload of a recovered update is being read back.
    Loading,
    /// Of an earlier chain version, on a replica that is being filled now: nobody waits for it, and it is dropped when the chunk is
    /// to be changed, or the filling ends. Until then its blocks may be the last good ones of what others have committed.
    Kept,
    /// Replicas hold different bytes, or the payload can't be read: the chunk is out of service.
    Stuck,
}

/// The update that is under way.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Active {
    pub phase: Phase,
    pub offer: Offer,
    /// Who holds the payload; nobody yet for a recovered update.
    pub op: Option<OpId>,
    /// The requester hasn't been answered.
    pub owed: bool,
    /// What it makes of the chunk, as far as is known.
    pub ack: Ack,
    pub began: Nanos,
    /// The replica's number of the present pause or forward; what belongs to an earlier one is ignored.
    pub attempt: u64,
    pub pause: Nanos,
    pub refusal: Option<Error>,
    /// No update at all: the chunk's committed version is sent to a successor that is being filled.
    pub filler: bool,
}

impl Active {
    pub fn new(op: OpId, offer: Offer, began: Nanos) -> Self {
        let ack = Ack::default();
        Self {
            phase: Phase::Preparing,
            offer,
            op: Some(op),
            owed: true,
            ack,
            began,
            attempt: 0,
            pause: PAUSE_FIRST,
            refusal: None,
            filler: false,
        }
    }

    /// Holds the chunk while the successor is given its committed version.
    pub fn filler(chunk: ChunkId, began: Nanos) -> Self {
        let offer = Offer {
            chunk,
            kind: UpdateKind::Remove,
            tag: UpdateTag::default(),
            truncate_epoch: 0,
            chain: ChainId(0),
            chain_version: u64::MAX,
            forwarded: None,
            base: 0,
            fill: None,
        };
        let unowned = Self { op: None, owed: false, ..Self::new(OpId(0), offer, began) };
        Self { phase: Phase::Filling, filler: true, ..unowned }
    }

    pub fn recovered(pending: &PendingInfo) -> Self {
        let offer = Offer {
            chunk: pending.chunk,
            kind: pending.kind,
            tag: pending.tag,
            truncate_epoch: pending.truncate_epoch,
            chain: ChainId(0),
            chain_version: pending.chain_version,
            forwarded: None,
            base: 0,
            fill: None,
        };
        let ack = Ack { version: pending.version, length: pending.length, merged_crc: 0 };
        Self {
            phase: Phase::Recovered,
            offer,
            op: None,
            owed: false,
            ack,
            began: 0,
            attempt: 0,
            pause: PAUSE_FIRST,
            refusal: None,
            filler: false,
        }
    }

    /// Waits, twice as long each time, before it goes on from `phase`.
    pub fn rest(&mut self, phase: Phase, now: Nanos, attempt: u64, steps: &mut Vec<Step>) {
        self.phase = phase;
        self.attempt = attempt;
        let at = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_LAST);
        steps.push(Step::Wake { chunk: self.offer.chunk, attempt: self.attempt, at });
    }

    /// Nobody is left to wait for.
    pub fn commit(&mut self, chain_version: u64, steps: &mut Vec<Step>) {
        self.phase = Phase::Acked;
        steps.push(Step::Commit { chunk: self.offer.chunk, version: self.ack.version, chain_version });
    }

    /// It goes no further, and isn't dropped yet.
    pub fn keep(&mut self, steps: &mut Vec<Step>) {
        self.phase = Phase::Kept;
        self.reply(Err(ErrorCode::ChainBroken.into()), steps);
        steps.extend(self.op.take().map(|op| Step::End { op }));
    }

    /// A successor will never take it.
    pub fn give_up(&mut self, refusal: Error, steps: &mut Vec<Step>) {
        self.phase = Phase::Refused;
        self.refusal = Some(refusal);
        steps.push(Step::Drop { chunk: self.offer.chunk, version: self.ack.version });
    }

    /// Answers the requester, once.
    pub fn reply(&mut self, result: Result<Ack>, steps: &mut Vec<Step>) {
        if let Some(op) = self.op
            && std::mem::replace(&mut self.owed, false)
        {
            steps.push(Step::Reply { op, result });
        }
    }

    /// Answers the requester, if nobody has, and lets the payload go.
    pub fn end(mut self, result: Result<Ack>, steps: &mut Vec<Step>) {
        self.reply(result, steps);
        steps.extend(self.op.map(|op| Step::End { op }));
    }

    /// Whether the successor made the same of the chunk as we did.
    pub fn agrees(&self, theirs: &Ack) -> bool {
        let crcs_known = self.ack.merged_crc != 0 && theirs.merged_crc != 0;
        self.ack.version == theirs.version
            && self.ack.length == theirs.length
            && (!crcs_known || self.ack.merged_crc == theirs.merged_crc)
    }
}

/// Somebody who waits for the chunk.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Waiting {
    pub op: OpId,
    pub offer: Offer,
    pub since: Nanos,
}

impl Waiting {
    pub fn refuse(self, error: Error, steps: &mut Vec<Step>) {
        steps.push(Step::Reply { op: self.op, result: Err(error) });
        steps.push(Step::End { op: self.op });
    }
}

/// A chunk on which something is going on.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Lane {
    pub active: Active,
    pub waiting: VecDeque<Waiting>,
    /// When the active update is over, the successor is to be given what it made of the chunk.
    pub fill: bool,
}

impl Lane {
    pub fn new(active: Active) -> Self {
        Self { active, waiting: VecDeque::new(), fill: false }
    }

    /// Queues behind the active update, or refuses.
    pub fn wait(&mut self, waiting: Waiting, steps: &mut Vec<Step>) {
        if self.active.phase == Phase::Stuck {
            waiting.refuse(ErrorCode::ReplicasDiffer.into(), steps);
        } else if self.waiting.len() >= WAITING_MAX {
            let (most, what) = (WAITING_MAX as u64, "too many updates wait for this chunk");
            waiting.refuse(Error::mismatch(ErrorCode::Overloaded, most, most + 1, what), steps);
        } else {
            self.waiting.push_back(waiting);
        }
    }

    /// Refuses those who waited and whom `refusal` names.
    pub fn sift(&mut self, steps: &mut Vec<Step>, refusal: impl Fn(&Waiting) -> Option<Error>) {
        for _ in 0..self.waiting.len() {
            let Some(waiting) = self.waiting.pop_front() else { return };
            match refusal(&waiting) {
                Some(error) => waiting.refuse(error, steps),
                None => self.waiting.push_back(waiting),
            }
        }
    }
}
