//! A node of the model: the very [`Replica`] of a shard, over a disk that is a list.

use super::disk::{Disk, Pending, Write};
use super::world::{AckBits, Broken, Message, To};
use corefs_engine::chain::{Begun, Input, Moment, Replica, Role, Step};
use corefs_engine::event::{Ack, Offer, OpId};
use corefs_engine::store::{Finish, PendingInfo, UpdateKind};
use corefs_wire::{ChainId, ChunkId, ClientId, Error, ErrorCode, InodeId, Result, TargetId, UpdateTag};
use std::collections::{BTreeMap, BTreeSet};

pub const CHAIN: ChainId = ChainId(1);

pub fn chunk() -> ChunkId {
    ChunkId::new(InodeId(1), 0)
}

const KIND: UpdateKind = UpdateKind::Write { offset: 0, len: 1 };

pub fn tag(write: Write) -> UpdateTag {
    UpdateTag { client: ClientId(u64::from(write) + 1), sequence: 1, incarnation: 1, channel: 0 }
}

fn write_of(tag: &UpdateTag) -> Write {
    tag.client.0 as Write - 1
}

/// A client's update, or one that is sent on.
pub fn offer(write: Write, chain_version: u64, forwarded: Option<u64>, base: u64) -> Offer {
    let (chunk, tag) = (chunk(), tag(write));
    let (kind, truncate_epoch, chain, fill) = (KIND, 0, CHAIN, None);
    Offer { chunk, kind, tag, truncate_epoch, chain, chain_version, forwarded, base, fill }
}

/// Who waits for an operation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Requester {
    Client,
    Node(To),
    /// A payload that was read back.
    Nobody,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Node {
    pub on: bool,
    pub leased: bool,
    /// The manager takes it for alive.
    pub heard: bool,
    pub replica: Replica,
    pub disk: Disk,
    /// Filled completely under that chain version.
    pub filled: Option<u64>,
    /// The last reminder that it asked for.
    pub due: Option<u64>,
    /// The last attempt to fill the successor.
    pub filling: Option<u64>,
    ops: BTreeMap<OpId, (Requester, Write)>,
}

/// What a node has said: messages, acknowledgments to clients, and whether replicas were found to differ.
#[derive(Default)]
pub struct Said {
    pub messages: Vec<Message>,
    pub acknowledged: Vec<Write>,
    pub refused: Vec<Write>,
    pub differs: bool,
}

impl Node {
    pub fn new() -> Self {
        let (replica, disk, ops) = Default::default();
        let (filled, due, filling) = (None, None, None);
        Self { on: true, leased: false, heard: true, replica, disk, filled, due, filling, ops }
    }

    /// Loses power.
    pub fn cut(&mut self, keeps: bool) {
        self.disk.cut(keeps);
        let disk = std::mem::take(&mut self.disk);
        *self = Self { on: false, heard: self.heard, disk, ..Self::new() };
    }

    /// Comes up as another process.
    pub fn boot(&mut self, said: &mut Said, broken: Broken) {
        self.on = true;
        if let Some(pending) = self.disk.pending {
            let info = PendingInfo {
                chunk: chunk(),
                kind: KIND,
                version: pending.version,
                chain_version: pending.chain_version,
                truncate_epoch: 0,
                tag: tag(pending.write),
                length: 1,
                flushed: true,
            };
            self.tell(Input::Recovered { pending: info }, said, broken);
        }
    }

    pub fn role(&self) -> Option<&Role> {
        self.replica.role()
    }

    /// Renames chain versions. What became of the attempts under way.
    pub fn rename(&mut self, version: &mut dyn FnMut(u64) -> u64) -> BTreeMap<u64, u64> {
        let pendings = [&mut self.disk.pending, &mut self.disk.unflushed].into_iter().flatten();
        pendings.for_each(|pending| pending.chain_version = version(pending.chain_version));
        self.filled = self.filled.map(&mut *version);
        let attempts = self.replica.rename(version);
        self.due = self.due.and_then(|due| attempts.get(&due).copied());
        self.filling = self.filling.and_then(|filling| attempts.get(&filling).copied());
        attempts
    }

    /// Forgets what is over when the chain is at that version, and adds the chain versions that it knows to `found`.
    pub fn forget(&mut self, version: u64, found: &mut BTreeSet<u64>) -> BTreeMap<u64, u64> {
        self.filled = self.filled.filter(|filled| *filled == version);
        self.rename(&mut |version| {
            found.insert(version);
            version
        })
    }

    /// Attempts of node number `of` have become others.
    pub fn rename_requesters(&mut self, of: usize, attempts: &BTreeMap<u64, u64>) {
        for (requester, _) in self.ops.values_mut() {
            if let Requester::Node(to) = requester {
                to.rename(of, attempts);
            }
        }
    }

    /// An update comes, from a client or from its predecessor.
    pub fn offered(&mut self, from: Requester, offer: Offer, said: &mut Said, broken: Broken) {
        let free = (0..).map(OpId).find(|op| !self.ops.contains_key(op));
        let op = free.unwrap_or_else(|| unreachable!("numbers don't end"));
        self.ops.insert(op, (from, write_of(&offer.tag)));
        self.tell(Input::Offer { op, offer }, said, broken);
    }

    pub fn tell(&mut self, input: Input, said: &mut Said, broken: Broken) {
        let moment = Moment { now: 0, leased: self.leased };
        let mut steps = Vec::new();
        self.replica.handle(moment, input, &mut steps);
        for step in steps {
            for input in self.perform(step, said, broken) {
                self.tell(input, said, broken);
            }
        }
    }

    fn perform(&mut self, step: Step, said: &mut Said, broken: Broken) -> Vec<Input> {
        let chunk = chunk();
        match step {
            Step::Begin { offer, .. } => return self.begin(&offer),
            Step::Forward { op, attempt, to, version, chain_version, .. } => {
                let write = self.ops.get(&op).map_or(0, |(_, write)| *write);
                if broken == Broken::AnswersInvented {
                    let merged_crc = self.disk.digest_with(Some(write));
                    let result = Ok(Ack { version, length: 1, merged_crc });
                    return vec![Input::Answered { chunk, attempt, result }];
                }
                let base = self.disk.version();
                let from = To { node: usize::MAX, attempt };
                said.messages.push(Message::Forward { from, to, write, version, chain_version, base });
            }
            Step::Commit { .. } => {
                self.disk.commit();
                return vec![Input::Committed { chunk, result: Ok(()) }];
            }
            Step::Drop { .. } => {
                self.disk.pending = None;
                return vec![Input::DropBegun { chunk, result: Ok(()) }, Input::Dropped { chunk }];
            }
            Step::Load { .. } => {
                let pending = self.disk.pending.unwrap_or_else(|| panic!("a recovered update is gone"));
                let free = (0..).map(OpId).find(|op| !self.ops.contains_key(op));
                let op = free.unwrap_or_else(|| unreachable!("numbers don't end"));
                self.ops.insert(op, (Requester::Nobody, pending.write));
                let digest = self.disk.digest_with(Some(pending.write));
                return vec![Input::Loaded { chunk, op, result: Ok(digest) }];
            }
            Step::Wake { attempt, .. } => self.due = Some(attempt),
            Step::Fill { attempt, to, chain_version, .. } => {
                self.filling = Some(attempt);
                let from = To { node: usize::MAX, attempt };
                let history = self.disk.history.clone();
                said.messages.push(Message::Fill { from, to, chain_version, history });
            }
            Step::FillEnded { .. } => self.hand_over(said),
            Step::Reply { op, result } => {
                let Some((from, write)) = self.ops.get(&op).copied() else { return Vec::new() };
                match (from, result) {
                    (Requester::Client, Ok(_)) => said.acknowledged.push(write),
                    (Requester::Client, Err(_)) => said.refused.push(write),
                    (Requester::Node(to), result) => {
                        let result = result.map_err(|error| error.code);
                        said.messages.push(Message::Answer { to, result: result.map(AckBits::from) });
                    }
                    (Requester::Nobody, _) => {}
                }
            }
            Step::End { op } => {
                self.ops.remove(&op);
            }
            Step::Differs { .. } => said.differs = true,
        }
        Vec::new()
    }

    /// The successor has the chunk: it gets the rows, and has everything.
    fn hand_over(&mut self, said: &mut Said) {
        let Some(role) = self.replica.role().filter(|role| role.filling) else { return };
        if self.replica.owes_fills() {
            return;
        }
        let rows = self.disk.rows.clone();
        let (to, chain_version) = (role.successor.unwrap_or_default(), role.version);
        said.messages.push(Message::Rows { to, chain_version, rows });
    }

    /// What the target makes of an offer: see `Target::begin`.
    fn begin(&mut self, offer: &Offer) -> Vec<Input> {
        let (chunk, write) = (chunk(), write_of(&offer.tag));
        let refuse = |code: ErrorCode| vec![Input::Begun { chunk, result: Err(Error::from(code)) }];
        let ours = self.disk.version();
        let version = match offer.forwarded {
            Some(version) if version == ours && self.disk.pending.is_none() => {
                let ack = Ack { version, length: 1, merged_crc: self.disk.digest_with(None) };
                return vec![Input::Begun { chunk, result: Ok(Begun::Done(ack)) }];
            }
            Some(_) if self.role().is_some_and(Role::syncing) && offer.base != ours => {
                return refuse(ErrorCode::NeedsWhole);
            }
            Some(version) if version <= ours => return refuse(ErrorCode::ReplicasDiffer),
            Some(version) if version > ours + 1 => return refuse(ErrorCode::ChainBroken),
            Some(version) => version,
            None if self.disk.rows.contains(&write) => {
                let at = self.disk.history.iter().position(|done| *done == write).unwrap_or(0);
                let ack = Ack { version: at as u64 + 1, length: 1, merged_crc: 0 };
                return vec![Input::Begun { chunk, result: Ok(Begun::Done(ack)) }];
            }
            None => ours + 1,
        };
        if self.disk.pending.is_some() {
            return refuse(ErrorCode::Pending);
        }
        let committed = self.replica.finish() == Finish::Commit;
        let merged_crc = self.disk.digest_with(Some(write));
        self.disk.stage(Pending { write, version, chain_version: offer.chain_version }, committed);
        vec![
            Input::Begun { chunk, result: Ok(Begun::Fresh { version }) },
            Input::Applied { chunk, result: Ok(merged_crc) },
            Input::Durable { chunk, version, length: 1, committed },
        ]
    }

    /// A fill comes: whatever is here is replaced.
    pub fn filled_with(&mut self, chain_version: u64, history: &[Write], broken: Broken) -> Result<()> {
        self.admit_filling(chain_version)?;
        // What an offer does to what is kept. Nobody hears anything of it.
        self.tell(Input::LetGo, &mut Said::default(), broken);
        self.replica.took_over();
        if self.disk.pending.is_some() {
            return Err(ErrorCode::Pending.into());
        }
        self.disk.unflushed = None;
        self.disk.history = history.to_vec();
        Ok(())
    }

    pub fn admit_filling(&self, chain_version: u64) -> Result<()> {
        let role = self.role().filter(|_| self.leased).ok_or(ErrorCode::LeaseExpired)?;
        role.check(CHAIN, chain_version)?;
        if !role.syncing() {
            return Err(ErrorCode::NotServing.into());
        }
        if self.replica.is_settled() { Ok(()) } else { Err(ErrorCode::Pending.into()) }
    }

    /// What a reader is shown now, if anything.
    pub fn shows(&self, broken: Broken) -> Option<&[Write]> {
        let serves = self.on && self.leased && self.role().is_some_and(Role::serving);
        let busy = self.disk.pending.is_some() && broken != Broken::ReadsUnguarded;
        (serves && !busy).then_some(&self.disk.history)
    }

    /// It takes clients' updates.
    pub fn heads(&self) -> bool {
        self.on && self.leased && self.role().is_some_and(|role| role.head)
    }

    pub fn is_idle(&self) -> bool {
        self.replica.busy() == 0 || self.replica.keeps(chunk())
    }
}

/// The number of the node that has a target.
pub fn node_of(target: TargetId) -> usize {
    target.0 as usize - 1
}
