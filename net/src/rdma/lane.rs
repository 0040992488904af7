//! One connection's queue pair, and the frames on it.
//!
//! Invariants
//! - A message is sent only with a credit: the peer has posted a receive for it. Receives that were used are posted again when their frame has been taken,
//!   and only then are credits told: a sink that pauses holds its peer back, and nothing is ever dropped.
//! - Credits and releases are told by whatever is sent, by a message of their own when many are owed, and by TCP when there is no credit for
//!   that: so neither end waits for the other for ever.
//! - Frames are announced whole and in the order in which they were sent, though the data of several may be on their way at once.
//! - Whatever the peer says is checked before it is used; the first thing that is wrong is the end of the connection, and of nothing else.
//!
//! A lane that is dropped destroys its queue pair, and only then gives its memory back.

mod inbox;
mod outbox;
mod recall;

use super::Verbs;
use super::completion::CompletionQueue;
use super::connect::Patience;
use super::device::{Context, Gid, Port};
use super::memory::{Domain, Region};
use super::message::{Grant, Kind, Message};
use super::queue_pair::{Event, Held, QueuePair, Sizes};
use super::setup::{self, Terms};
use super::shared::SharedReceives;
use crate::buffer::{Buffer, Payload, Pool};
use crate::costs::Costs;
use crate::debt::Debt;
use crate::tcp::ConnCounters;
use corefs_wire::{Error, ErrorCode, Result};
use inbox::Inbox;
use outbox::Outbox;
use recall::Recalls;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

/// What a request of ours was for, in the tag that it comes back with: the purpose (8 bits) and the number of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Purpose {
    /// A message, or a binding: what it held is free.
    Message = 0,
    /// The data of a frame have been read.
    Pulled = 1,
    /// The window of a frame's data is shut.
    Placed = 2,
    /// A window is shut that nobody waits for.
    Shut = 3,
}

fn tag(purpose: Purpose, number: u64) -> u64 {
    (purpose as u64) << 56 | number & ((1 << 56) - 1)
}

/// How a lane is made.
pub struct Plan<'a> {
    pub domain: &'a Rc<Domain>,
    pub completions: &'a Rc<CompletionQueue>,
    pub regions: Vec<Rc<Region>>,
    pub port: &'a Port,
    pub gid: Gid,
    /// Where messages are composed and received.
    pub arena: Pool,
    /// Receives of its own, unless there are some that it shares; bytes of a message.
    pub shared: Option<Rc<SharedReceives>>,
    pub receives: u16,
    pub message: u32,
    /// Ranges that either side may have open for replies.
    pub grants: u16,
    /// Small data may be lent where they were received.
    pub lends: bool,
    pub sends: u32,
    pub owner: u64,
    pub sequence: u32,
    /// Where it notes what it has cost when it ends.
    pub ended: Rc<Cell<Costs>>,
}

/// Memory of ours that is open to the data of one reply.
struct Open {
    request: u64,
    slot: u64,
    offset: usize,
    len: usize,
    /// It is taken back; until then the peer has to say that it won't write.
    until: Option<Instant>,
}

pub struct Lane {
    pair: QueuePair,
    outbox: Outbox,
    inbox: Inbox,
    /// What we said; and what the peer said, once it did.
    ours: Terms,
    theirs: Option<Terms>,
    /// Messages that may be sent, and receives that were posted since that was last told.
    credits: u32,
    owed: u32,
    /// Messages that the peer may send.
    allowed: u32,
    /// Buffers to be posted, and to compose messages in; so many of these were made.
    spare: Vec<Buffer>,
    staging: Vec<Buffer>,
    stages: u16,
    /// Memory that is open to the peer for its replies, and such memory of the peer.
    open: Vec<Open>,
    granted: Vec<Grant>,
    /// Slots of data that are open to the peer's reads, and their bytes.
    sources: Vec<(u64, usize)>,
    source_bytes: usize,
    /// Windows to be shut when there is room.
    to_shut: Vec<u64>,
    /// Slots of the peer's that have been read.
    releases: Vec<u32>,
    recalls: Recalls,
    /// The path is to be proved, before anything else is said.
    greeting: bool,
    /// The peer has said something.
    pub heard: bool,
    /// Nothing is announced; no further data are placed.
    pub paused: bool,
    pub waiting: bool,
    arena: Pool,
    lends: bool,
    counters: ConnCounters,
    completions: u64,
    /// Credits and releases that the peer has given so far; what it owes of them, and what the device owes.
    given: u64,
    taking: Debt,
    working: Debt,
    ended: Rc<Cell<Costs>>,
}

impl Lane {
    /// A lane whose receives are posted, but that isn't connected. `Overloaded` if there is no memory for it.
    pub fn new(plan: Plan<'_>) -> Result<Self> {
        let limits = plan.domain.context.limits;
        let sizes = Sizes { sends: plan.sends, receives: plan.receives.into(), windows: 2 * plan.grants };
        let pair = QueuePair::new(
            plan.domain,
            plan.completions,
            plan.regions,
            (plan.port, plan.gid),
            sizes,
            plan.shared.clone(),
            plan.owner,
        )?;
        let ours = Terms {
            link: plan.gid.link,
            mtu: plan.port.mtu,
            queue_pair: pair.number(),
            sequence: plan.sequence,
            gid: plan.gid.bytes,
            lid: plan.port.lid,
            reads_in: limits.reads_in,
            reads_out: limits.reads_out,
            receives: plan.receives,
            message: plan.message,
            grants: plan.grants,
            shared: plan.shared.is_some(),
            kinds: setup::KINDS,
        };
        let mut lane = Self {
            pair,
            outbox: Outbox::default(),
            inbox: Inbox::default(),
            ours,
            theirs: None,
            credits: 0,
            owed: 0,
            allowed: plan.receives.into(),
            spare: Vec::with_capacity(plan.receives.into()),
            staging: Vec::with_capacity(plan.receives.into()),
            stages: 0,
            open: Vec::new(),
            granted: Vec::new(),
            sources: Vec::new(),
            source_bytes: 0,
            to_shut: Vec::new(),
            releases: Vec::new(),
            recalls: Recalls::default(),
            greeting: false,
            heard: false,
            paused: false,
            waiting: false,
            arena: plan.arena,
            lends: plan.lends,
            counters: ConnCounters::default(),
            completions: 0,
            given: 0,
            taking: Debt::default(),
            working: Debt::default(),
            ended: plan.ended,
        };
        let full = || Error::new(ErrorCode::Overloaded, "no memory for another RDMA connection");
        // One that shares its receives makes places to compose messages as it needs them.
        let (own, stages) = if plan.shared.is_some() { (0, 1) } else { (plan.receives, plan.receives) };
        for _ in 0..own {
            let receive = lane.block().ok_or_else(full)?;
            lane.pair.receive(receive);
        }
        for _ in 0..stages {
            lane.staging.push(lane.block().ok_or_else(full)?);
        }
        lane.stages = stages;
        lane.pair.post()?;
        Ok(lane)
    }

    fn block(&self) -> Option<Buffer> {
        self.arena.get(self.ours.message as usize)
    }

    /// The port that it goes by, in words.
    pub fn port(&self) -> String {
        format!("{} port {}, {}", self.pair.domain.context.name(), self.pair.port, self.pair.gid)
    }

    /// As [`QueuePair::is_at`].
    pub fn is_at(&self, context: &Rc<Context>, port: Option<u8>) -> bool {
        self.pair.is_at(context, port)
    }

    pub fn terms(&self) -> &Terms {
        &self.ours
    }

    /// Connects it to the end that has these terms, and greets that.
    pub fn connect(&mut self, theirs: Terms, patience: Patience) -> Result<()> {
        let remote = self.ours.meet(&theirs)?;
        self.pair.connect(&remote, self.ours.sequence, patience)?;
        self.credits = theirs.receives.into();
        self.theirs = Some(theirs);
        Ok(())
    }

    /// Has a message of full length said by the next flush, to show that the path works.
    pub fn greet(&mut self) {
        self.greeting = true;
    }

    /// Whether no frame has gone by it, either way.
    pub fn is_fresh(&self) -> bool {
        self.counters.frames_out == 0 && self.counters.frames_in == 0 && self.inbox.is_empty()
    }

    /// Whether something was sent and nothing ever came back.
    pub fn is_unanswered(&self) -> bool {
        self.counters.frames_out > 0 && self.counters.frames_in == 0
    }

    /// Data of a reply that come with their message, whatever else that says. Fewer than this need no grant (bytes).
    pub fn carries(&self) -> usize {
        let theirs = self.theirs.map_or(0, |theirs| theirs.message);
        (theirs.min(self.ours.message) as usize).saturating_sub(outbox::BESIDE)
    }

    /// Takes a completion of its queue pair. An error is the end of it.
    pub fn completed(&mut self, name: u64, outcome: std::result::Result<u32, u32>) -> Result<()> {
        self.completions += 1;
        match self.pair.completed(name, outcome)? {
            Event::Received { buffer, len } => self.received(buffer, len),
            Event::Sent => {
                while let Some((tag, held)) = self.pair.retired() {
                    self.retired(tag, held);
                }
                Ok(())
            }
        }
    }

    fn retired(&mut self, tag: u64, held: Held) {
        let number = tag & ((1 << 56) - 1);
        match (tag >> 56, held) {
            (0, Held::Buffer(stage)) => self.staging.push(stage),
            (0, Held::Both(stage, data)) => {
                self.staging.push(stage);
                drop(data);
            }
            (1, Held::Buffer(buffer)) => self.pulled(number, buffer),
            (2, Held::Buffer(buffer)) => self.placed(number, buffer),
            // Whatever else it was, its memory is free.
            _ => (),
        }
    }

    /// Takes the completion of a receive that it shares.
    pub fn completed_shared(&mut self, buffer: Buffer, outcome: std::result::Result<u32, u32>) -> Result<()> {
        self.completions += 1;
        let len = outcome.map_err(|status| self.pair.failure(status))? as usize;
        if len > buffer.len() {
            return Err(Error::new(ErrorCode::Internal, "the RDMA device received more than a buffer holds"));
        }
        self.received(buffer, len)
    }

    fn received(&mut self, buffer: Buffer, len: usize) -> Result<()> {
        self.heard = true;
        if self.inbox.over {
            self.spare.push(buffer);
            return Ok(());
        }
        let beyond = || Error::new(ErrorCode::BadFrame, "RDMA: a message without a credit");
        self.allowed = self.allowed.checked_sub(1).ok_or_else(beyond)?;
        self.counters.receives += 1;
        self.counters.bytes_in += len as u64;
        let (kind, data, rest, piece) = {
            let message = Message::parse(&buffer[..len])?;
            self.apply(&message)?;
            (message.kind, message.data, message.rest, message.piece)
        };
        match kind {
            Kind::News | Kind::Greeting => self.spare.push(buffer),
            Kind::Recall | Kind::Recalled => {
                self.recalled(kind, &buffer[piece.0..piece.1])?;
                self.spare.push(buffer);
            }
            _ => self.arrived(kind, data, rest, piece, buffer, len)?,
        }
        Ok(())
    }

    /// What came by TCP, because there was no credit for a message.
    pub fn news(&mut self, bytes: &[u8]) -> Result<()> {
        let message = Message::parse(bytes)?;
        if message.kind != Kind::News {
            return Err(Error::new(ErrorCode::BadFrame, "an RDMA message that has no place on TCP"));
        }
        self.apply(&message)
    }

    /// Credits, releases and grants.
    fn apply(&mut self, message: &Message<'_>) -> Result<()> {
        let bad = |what: &str| Error::new(ErrorCode::BadFrame, format!("RDMA message: {what}"));
        let Some(theirs) = self.theirs else { return Err(bad("before the terms")) };
        self.credits += u32::from(message.credits);
        self.given += u64::from(message.credits);
        if self.credits > theirs.receives.into() {
            return Err(bad("credits for more messages than there is room for"));
        }
        for slot in message.releases() {
            let at = self.sources.iter().position(|(source, _)| *source == slot.into());
            let Some(at) = at else { return Err(bad("a release of what wasn't open")) };
            let (slot, bytes) = self.sources.swap_remove(at);
            self.source_bytes -= bytes;
            self.given += 1;
            self.to_shut.push(slot);
        }
        for grant in message.grants() {
            let grant = grant?;
            if self.granted.len() >= self.ours.grants.into() {
                return Err(bad("more grants than were agreed on"));
            }
            if self.granted.iter().any(|known| known.request == grant.request) {
                return Err(bad("two grants for one request"));
            }
            self.granted.push(grant);
        }
        Ok(())
    }

    /// Opens `buffer[offset..]` to the data of the reply to `request`, which the next frame that is sent tells the peer. Given back if that can't be.
    pub fn grant(&mut self, request: u64, buffer: Buffer, offset: usize) -> std::result::Result<(), Buffer> {
        let most = self.theirs.map_or(0, |theirs| theirs.grants.min(self.ours.grants));
        let fits = offset < buffer.len() && buffer.is_unique() && self.pair.reaches(&buffer);
        let known = self.open.iter().any(|open| open.request == request);
        if !fits || known || self.open.len() >= most.into() || self.pair.room() <= outbox::ROOM_KEPT {
            return Err(buffer);
        }
        let len = (buffer.len() - offset).min(corefs_wire::limits::FRAME_DATA_MAX);
        let to = self.pair.open_to_writes(buffer, offset, len)?;
        self.open.push(Open { request, slot: to.slot, offset, len, until: None });
        self.outbox.grant(Grant { request, to });
        Ok(())
    }

    /// Shuts the windows that nobody waits for.
    fn shut_windows(&mut self) {
        while let Some(slot) = self.to_shut.pop() {
            if !self.pair.shut(slot, tag(Purpose::Shut, 0)) {
                self.to_shut.push(slot);
                return;
            }
        }
    }

    /// Bytes that wait to be sent or to be read.
    pub fn queued(&self) -> usize {
        self.outbox.bytes() + self.source_bytes
    }

    /// Whether the peer's device has everything that was queued.
    pub fn is_sent(&self) -> bool {
        self.queued() == 0 && self.pair.is_idle()
    }

    /// Whether the device has ended everything that was handed to it.
    pub fn is_idle(&self) -> bool {
        self.pair.is_idle()
    }

    /// Whether the peer keeps memory of this side until it goes on: it gives no credits for what is queued, or doesn't read what was opened to it. What is
    /// queued while there are credits is this side's own want.
    pub fn is_owed(&self) -> bool {
        self.credits == 0 && self.outbox.has_items() || !self.sources.is_empty()
    }

    /// Looks whether what is owed has moved since the last look; why the connection is to be ended, if it hasn't for too many. What the peer sends doesn't
    /// count: it may ask for ever and take nothing.
    pub fn look(&mut self, accepted: bool) -> Option<&'static str> {
        let owed = accepted && self.is_owed();
        if self.taking.look(owed, self.given) {
            return Some("the peer takes no replies");
        }
        let stuck = self.working.look(!self.pair.is_idle(), self.pair.retired_so_far());
        stuck.then_some("the RDMA device ends nothing that it was given")
    }

    /// The queue pair's number.
    pub fn number(&self) -> u32 {
        self.pair.number()
    }

    pub fn verbs(&self) -> Verbs {
        let (requests, doorbells) = self.pair.counters();
        Verbs { requests, doorbells, completions: self.completions }
    }

    pub fn counters(&self) -> ConnCounters {
        ConnCounters { sends: self.pair.counters().1, ..self.counters }
    }

    pub fn costs(&self) -> Costs {
        let Verbs { requests, doorbells, completions } = self.verbs();
        Costs {
            copied_bytes: self.counters.copied,
            rdma_requests: requests,
            rdma_doorbells: doorbells,
            rdma_completions: completions,
            rdma_arms: 0,
            rdma_wakes: 0,
        }
    }

    /// Copies what the device can't reach to where it can. The payload comes back if there is no memory for that now.
    fn reachable(&mut self, data: Payload) -> std::result::Result<Payload, Payload> {
        if self.pair.reaches(data.as_slice()) {
            return Ok(data);
        }
        let bytes = data.as_slice();
        match self.arena.get(bytes.len()) {
            Some(mut buffer) => {
                // A buffer that has just been taken is unique.
                buffer.get_mut().into_iter().for_each(|to| to.copy_from_slice(bytes));
                self.counters.copied += bytes.len() as u64;
                Ok(buffer.into())
            }
            None => Err(data),
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.ended.set(self.ended.get().plus(self.costs()));
        // Those that the peer had sent and that nobody has taken.
        self.pair.may_lose(if self.theirs.is_some() { self.allowed } else { 0 });
    }
}

#[cfg(test)]
mod tests;
