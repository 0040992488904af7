//! Where frames land: the part of a shard that takes them, while sockets and disks are busy elsewhere.
//!
//! Nothing here touches ring, socket or disk: requests become events, and what is to be done waits in `outputs` and `ready`
//! until the turn performs it.

use super::boottime;
use super::counters::Counters;
use super::filling;
use super::links::{Links, Sent};
use super::ops::{Op, Ops, ReadOp, Requester, UpdateOp};
use crate::block;
use crate::event::{Ack, Event, Nanos, Offer, OpId, Outputs};
use crate::store::{BatchId, InlineVec, UpdateKind};
use crate::targets::Targets;
use corefs_net::{Buffer, ConnId, Flow, FrameSink, Peer, Placement, Pool, heap};
use corefs_wire::data::{self, Prefix, ReadEntry, UpdateReply, op};
use corefs_wire::error::decode_error;
use corefs_wire::frame::{Header, Kind};
use corefs_wire::limits::{BLOCK, CONNECTION_REQUESTS_MAX, FRAME_DATA_MAX, SHARD_OPERATIONS_MAX};
use corefs_wire::{Error, ErrorCode, Result, SliceIndex};
use std::collections::VecDeque;
use zerocopy::IntoBytes;

/// A reply that needs nothing more.
pub struct Ready {
    pub requester: Requester,
    pub op: u16,
    pub result: Result<Vec<u8>>,
}

/// A read that waits for memory.
pub struct Starved {
    requester: Requester,
    entry: ReadEntry,
    since: Nanos,
}

/// What a connection has unanswered.
#[derive(Clone, Copy, Default)]
pub(super) struct Account {
    generation: u32,
    open: usize,
    paused: bool,
    /// Bytes of memory that clients' updates have which are still arriving.
    arriving: usize,
    /// Bytes of memory that reads have whose replies aren't on their way, and that wait to be sent, when last looked at.
    pub(super) reading: usize,
    queued: usize,
}

/// Waiting reads of greedy connections that are looked at in a turn.
const GREEDY_LOOKS: usize = 64;
/// Reads after which tables have grown to what a steady load needs.
const WARM: u64 = 4096;

pub struct Desk {
    /// Debug builds end where a warmed-up read asks for memory.
    strict: bool,
    pub pool: Pool,
    pub targets: Targets,
    pub ops: Ops,
    pub outputs: Outputs,
    pub ready: Vec<Ready>,
    pub links: Links,
    pub counters: Counters,
    pub now: Nanos,
    /// Connections to be ended for what they sent.
    pub hang_up: Vec<ConnId>,
    /// Connections to be resumed: they waited for memory, or had too much unanswered.
    pub resume: Vec<ConnId>,
    pub starved: VecDeque<Starved>,
    /// Reads of connections that have more than their share of a scarce memory: after all others.
    greedy: VecDeque<Starved>,
    /// Bytes of memory for clients' updates that are still arriving, and at the end of the last turn.
    arriving: usize,
    arriving_before: usize,
    /// Blocks of other replicas that came, by the number under which they were asked for.
    pub fetched: Vec<(u64, Buffer)>,
    /// Connections whose payload waits for memory.
    waiting: Vec<ConnId>,
    /// One of them waits for memory that reads may have, and not for other updates to arrive.
    short: bool,
    /// Bytes of memory that reads have whose replies aren't on their way, and so many they may come to: see [`hold_reads`](Self::hold_reads).
    reading: usize,
    reading_max: usize,
    /// Bytes of the pool in use at the end of the last turn.
    in_use_before: usize,
    /// By the connection's index.
    accounts: Vec<Account>,
}

impl Desk {
    pub fn new(pool: Pool, targets: Targets, strict: bool) -> Self {
        Self {
            strict,
            pool,
            targets,
            ops: Ops::default(),
            outputs: Outputs::new(),
            ready: Vec::new(),
            links: Links::default(),
            counters: Counters::default(),
            now: 0,
            hang_up: Vec::new(),
            resume: Vec::new(),
            starved: VecDeque::new(),
            greedy: VecDeque::new(),
            arriving: 0,
            arriving_before: 0,
            fetched: Vec::new(),
            waiting: Vec::new(),
            short: false,
            reading: 0,
            reading_max: usize::MAX,
            in_use_before: 0,
            accounts: Vec::new(),
        }
    }

    #[inline]
    pub fn tell(&mut self, event: Event<'_>) {
        self.targets.handle(self.now, event, &mut self.outputs);
    }

    /// Memory for a client's read.
    fn claim_read(&self, len: usize) -> Option<Buffer> {
        if self.reading + len > self.reading_max {
            return None;
        }
        self.claim(len, 4)
    }

    /// While an update waits for memory, reads get no more than an eighth of it, what waits to be sent included. Reads that wait take whatever
    /// comes free; an update that is passed on may have less of the pool than they, and would wait for as long as they go on.
    fn hold_reads(&mut self, queued: impl Fn(ConnId) -> usize) {
        self.short &= !self.waiting.is_empty();
        if !self.short {
            self.reading_max = usize::MAX;
            return;
        }
        let mut sending = 0;
        for (index, account) in self.accounts.iter_mut().enumerate().filter(|(_, account)| account.queued > 0)
        {
            account.queued = queued(ConnId { index: index as u32, generation: account.generation });
            sending += account.queued;
        }
        self.reading_max = (self.pool.capacity() / 8).saturating_sub(sending);
        if self.reading + sending == 0 {
            // However small the pool is.
            self.reading_max = self.reading_max.max(FRAME_DATA_MAX);
        }
    }

    /// Memory for an update. The fewer replicas come after this one, the more of the pool it may use: an update waits only for
    /// memory of those behind it, so that no circle of shards can wait for each other.
    fn claim_update(&self, len: usize, behind: u8) -> Option<Buffer> {
        self.claim(len, [6, 4, 3, 2][usize::from(behind.min(3))])
    }

    /// What clients' updates take that are still arriving is at most a quarter of the pool: a client that stops in the middle of one
    /// keeps it until the connection is given up.
    fn may_arrive(&self, len: usize) -> bool {
        self.arriving == 0 || self.arriving + len <= self.pool.capacity() / 4
    }

    fn arrived(&mut self, conn: ConnId, len: usize) {
        let account = self.account(conn);
        let len = len.min(account.arriving);
        account.arriving -= len;
        self.arriving -= len;
    }

    /// `len` bytes, if less than `eighths` of the pool are in use then. The last quarter is for old blocks and batches.
    pub(super) fn claim(&self, len: usize, eighths: usize) -> Option<Buffer> {
        if self.pool.in_use() + len > self.pool.capacity() / 8 * eighths {
            return None;
        }
        self.pool.get(len)
    }

    /// Of a connection that is there.
    pub(super) fn account(&mut self, conn: ConnId) -> &mut Account {
        let index = conn.index as usize;
        if self.accounts.len() <= index {
            self.accounts.resize(index + 1, Account::default());
        }
        let account = &mut self.accounts[index];
        if account.generation != conn.generation {
            *account = Account { generation: conn.generation, ..Account::default() };
        }
        account
    }

    /// Requests of `conn` are taken; says whether more may come.
    pub(super) fn open_account(&mut self, conn: ConnId, requests: usize) -> Flow {
        let account = self.account(conn);
        account.open += requests;
        account.paused |= account.open >= CONNECTION_REQUESTS_MAX;
        if account.paused { Flow::Pause } else { Flow::Continue }
    }

    /// A request of `conn` was answered.
    #[inline]
    pub fn close_account(&mut self, conn: ConnId) {
        let Some(account) = self.accounts.get_mut(conn.index as usize) else { return };
        if account.generation != conn.generation {
            return;
        }
        account.open = account.open.saturating_sub(1);
        if account.paused && account.open < CONNECTION_REQUESTS_MAX / 2 {
            account.paused = false;
            self.resume.push(conn);
        }
    }

    /// A quarter of the pool is in use, and an eighth by reads of this connection, whether they go on or their replies aren't taken:
    /// whoever stops reading must not take the memory of all others.
    fn is_greedy(&mut self, conn: ConnId, len: usize) -> bool {
        let eighth = self.pool.capacity() / 8;
        if self.pool.in_use() + len <= 2 * eighth {
            return false;
        }
        let account = self.account(conn);
        let has = account.reading + account.queued;
        has > 0 && has + len > eighth
    }

    /// A read has so much memory from now on.
    #[inline]
    pub(super) fn reads_with(&mut self, conn: ConnId, len: usize) {
        self.account(conn).reading += len;
        self.reading += len;
    }

    /// A read has given its memory to its reply, or back; so many bytes wait to be sent on its connection.
    pub fn read_over(&mut self, conn: ConnId, len: usize, queued: usize) {
        self.reading -= len;
        let account = self.accounts.get_mut(conn.index as usize);
        let Some(account) = account.filter(|account| account.generation == conn.generation) else { return };
        account.reading = account.reading.saturating_sub(len);
        account.queued = queued;
    }

    /// Once a turn: whoever waited for memory tries again. `queued`: bytes that wait to be sent on a connection.
    pub fn feed(&mut self, queued: impl Fn(ConnId) -> usize) {
        self.hold_reads(&queued);
        while let Some(waiting) = self.starved.pop_front() {
            if let Err(waiting) = self.try_again(waiting, &queued) {
                match self.is_greedy(waiting.requester.conn, waiting.entry.length.get() as usize) {
                    true => self.greedy.push_back(waiting),
                    false => {
                        self.starved.push_front(waiting);
                        break;
                    }
                }
            }
        }
        for _ in 0..self.greedy.len().min(GREEDY_LOOKS) {
            let Some(waiting) = self.greedy.pop_front() else { break };
            if let Err(waiting) = self.try_again(waiting, &queued) {
                self.greedy.push_back(waiting);
            }
        }
        let in_use = self.pool.in_use();
        let changed = in_use != self.in_use_before || self.arriving != self.arriving_before;
        if !self.waiting.is_empty() && changed {
            self.resume.append(&mut self.waiting);
            self.short = false;
        }
        (self.in_use_before, self.arriving_before) = (in_use, self.arriving);
    }

    fn try_again(
        &mut self,
        waiting: Starved,
        queued: impl Fn(ConnId) -> usize,
    ) -> std::result::Result<(), Starved> {
        let (conn, len) = (waiting.requester.conn, waiting.entry.length.get() as usize);
        self.account(conn).queued = queued(conn);
        if self.is_greedy(conn, len) {
            return Err(waiting);
        }
        let Some(buffer) = self.claim_read(len) else { return Err(waiting) };
        self.counters.read_wait_nanos += self.now - waiting.since;
        self.begin_read(waiting.requester, &waiting.entry, buffer);
        Ok(())
    }

    /// Whether anybody waits for memory.
    pub fn is_starving(&self) -> bool {
        !self.starved.is_empty() || !self.greedy.is_empty() || !self.waiting.is_empty()
    }

    pub(super) fn refuse(&mut self, conn: ConnId, header: &Header, error: Error) {
        let requester = Requester { conn, request: header.request() };
        self.ready.push(Ready { requester, op: header.op(), result: Err(error) });
    }

    fn reads(&mut self, conn: ConnId, header: &Header, body: &[u8]) -> Flow {
        let entries = match data::read_entries(body) {
            Ok((_, entries)) => entries,
            Err(error) => return self.bad_frame(conn, header, error),
        };
        let flow = self.open_account(conn, entries.len());
        let _steady = heap::forbid(self.is_steady());
        if entries.len() > 1 {
            self.targets.expect(entries);
        }
        for entry in entries {
            let requester = Requester { conn, request: entry.request.get() };
            if let Err(error) = entry.check().and_then(|()| self.room()) {
                self.counters.reads_refused += 1;
                self.ready.push(Ready { requester, op: op::READ, result: Err(error) });
                continue;
            }
            let len = entry.length.get() as usize;
            let greedy = self.is_greedy(conn, len);
            let buffer = match self.starved.is_empty() && !greedy {
                true => self.claim_read(len),
                false => None,
            };
            match buffer {
                Some(buffer) => self.begin_read(requester, entry, buffer),
                None => {
                    self.counters.starved += 1;
                    let queue = if greedy { &mut self.greedy } else { &mut self.starved };
                    queue.push_back(Starved { requester, entry: *entry, since: self.now });
                }
            }
        }
        flow
    }

    /// Whether a read may not ask for memory any more: all tables have grown to what the load needs. Only when somebody looks
    /// for those that do, see [`heap::forbid`].
    #[inline]
    pub fn is_steady(&self) -> bool {
        cfg!(debug_assertions) && self.strict && self.counters.reads >= WARM
    }

    #[inline]
    fn begin_read(&mut self, requester: Requester, entry: &ReadEntry, buffer: Buffer) {
        let slice = SliceIndex(0);
        let began = self.now;
        let (target, chunk) = (entry.target(), entry.chunk());
        self.reads_with(requester.conn, buffer.len());
        let (plan, left, asked, failed) = (None, 0, 0, None);
        let read = ReadOp { requester, began, target, chunk, buffer, slice, plan, left, asked, failed };
        let op = self.ops.insert(Op::Read(read));
        self.targets.handle(self.now, Event::Read { op, entry }, &mut self.outputs);
    }

    pub(super) fn room(&self) -> Result<()> {
        if self.ops.len() + self.starved.len() + self.greedy.len() < SHARD_OPERATIONS_MAX {
            return Ok(());
        }
        let most = SHARD_OPERATIONS_MAX as u64;
        Err(Error::mismatch(ErrorCode::Overloaded, most, most + 1, "the shard has too much to do"))
    }

    fn update(&mut self, conn: ConnId, header: &Header, body: &[u8], data: Option<Buffer>) -> Flow {
        let flow = self.open_account(conn, 1);
        if let Some(buffer) = &data {
            self.arrived(conn, buffer.len());
        }
        let requester = Requester { conn, request: header.request() };
        match self.admit(requester, header, body, data) {
            Ok((op, target, offer)) => self.tell(Event::Update { op, target, offer }),
            Err(error) => {
                self.counters.updates_refused += 1;
                self.refuse(conn, header, error);
            }
        }
        flow
    }

    fn admit(
        &mut self,
        requester: Requester,
        header: &Header,
        body: &[u8],
        data: Option<Buffer>,
    ) -> Result<(OpId, corefs_wire::TargetId, Offer)> {
        let (_, update, crcs) = data::update(body)?;
        update.check(header.data_len())?;
        self.room()?;
        let (at, _) = block::placement(update.offset.get(), update.length.get());
        let payload = if header.data_len() > 0 { at..at + header.data_len() } else { 0..0 };
        if let Some(buffer) = &data {
            verify_payload(update, &buffer.as_slice()[payload.clone()], crcs).inspect_err(|_| {
                self.counters.corrupt_payloads += 1;
            })?;
            self.counters.update_bytes += header.data_len() as u64;
        }
        let offer = offer(update)?;
        let op = UpdateOp {
            requester: Some(requester),
            began: self.now,
            target: update.target(),
            chunk: offer.chunk,
            slice: self.targets.slice_of(update.target()).unwrap_or_default(),
            message: *update,
            crcs: crcs.iter().map(|crc| crc.get()).collect(),
            buffer: data,
            payload,
            merging: None,
            plan: None,
            writes: InlineVec::new(),
            batch: BatchId(0),
            forward: None,
            ticket: 0,
            left: 0,
            asked: 0,
            failed: false,
            ended: false,
        };
        Ok((self.ops.insert(Op::Update(Box::new(op))), update.target(), offer))
    }

    fn list(&mut self, conn: ConnId, header: &Header, body: &[u8]) -> Flow {
        let flow = self.open_account(conn, 1);
        let requester = Requester { conn, request: header.request() };
        let found = data::List::parse(body).and_then(|list| self.targets.list(self.now, &list));
        let result = found.map(|chunks| {
            let entry = |chunk: &crate::store::ChunkInfo| data::ListEntry {
                version: chunk.version.into(),
                index: chunk.chunk.index.into(),
                length: chunk.length.into(),
            };
            let entries: Vec<data::ListEntry> = chunks.iter().map(entry).collect();
            entries.as_bytes().to_vec()
        });
        self.ready.push(Ready { requester, op: op::LIST, result });
        flow
    }

    /// A body that breaks the protocol: it is answered, and nothing further is taken from this peer.
    pub(super) fn bad_frame(&mut self, conn: ConnId, header: &Header, error: Error) -> Flow {
        self.counters.bad_frames += 1;
        self.open_account(conn, 1);
        self.refuse(conn, header, error);
        self.hang_up.push(conn);
        Flow::Pause
    }

    /// Whether this shard is there.
    fn ping(&mut self, conn: ConnId, header: &Header, body: &[u8]) -> Flow {
        if body.len() != size_of::<Prefix>() {
            return self.bad_frame(conn, header, Error::new(ErrorCode::BadFrame, "not a ping"));
        }
        self.counters.pings += 1;
        let requester = Requester { conn, request: header.request() };
        self.ready.push(Ready { requester, op: op::PING, result: Ok(Vec::new()) });
        self.open_account(conn, 1)
    }

    /// A predecessor that fills one of our targets asks.
    fn question(&mut self, conn: ConnId, header: &Header, body: &[u8]) -> Flow {
        let flow = self.open_account(conn, 1);
        let (requester, op) = (Requester { conn, request: header.request() }, header.op());
        let found = filling::decode_ask(op, body).and_then(|(target, chain, version, ask)| {
            self.targets.asked(self.now, target, chain, version, &ask, &mut self.outputs)
        });
        let result = found.map(|told| filling::encode_told(&told));
        self.ready.push(Ready { requester, op, result });
        flow
    }

    /// Another replica has answered.
    fn answered(&mut self, conn: ConnId, header: &Header, body: &[u8], data: Option<Buffer>) {
        let forward = match self.links.take(conn, header.request()) {
            Some(Sent::Forward(forward)) => forward,
            Some(Sent::Question(question)) => {
                let result = match header.status() {
                    0 => filling::decode_told(question.op, body),
                    status => Err(decode_error(status, body)),
                };
                let (target, ticket) = (question.target, question.ticket);
                return self.tell(Event::Told { target, ticket, result });
            }
            Some(Sent::Fetch(fetch)) => return self.fetched(fetch.ticket, header, body, data),
            None => return,
        };
        self.counters.forward_answers += 1;
        self.ops.update(forward.op).forward = None;
        let result = match header.status() {
            0 => UpdateReply::parse(body).map(|reply| Ack {
                version: reply.version.get(),
                length: reply.chunk_length.get(),
                merged_crc: reply.merged_crc.get(),
            }),
            status => Err(decode_error(status, body)),
        };
        let (target, chunk, attempt) = (forward.target, forward.chunk, forward.attempt);
        self.tell(Event::Answered { target, chunk, attempt, result });
    }
}

impl FrameSink for Desk {
    /// A lease may have run out since the turn began, if the process stood still before the requests were taken.
    fn taken(&mut self) {
        self.now = boottime();
    }

    fn place(&mut self, conn: ConnId, header: &Header, body: &[u8], _here: Option<Buffer>) -> Placement {
        if header.kind() == Kind::Reply {
            return self.place_fetched(conn, header);
        }
        if header.kind() != Kind::Request || header.op() != op::UPDATE {
            return Placement::Discard;
        }
        let Ok((_, update, _)) = data::update(body) else { return Placement::Discard };
        if update.check(header.data_len()).is_err() {
            return Placement::Discard;
        }
        let (offset, blocks) = block::placement(update.offset.get(), update.length.get());
        let behind = self.targets.behind(update.target());
        let (len, of_client) = (blocks * BLOCK, update.flags & data::FORWARDED == 0);
        let may_arrive = !of_client || self.may_arrive(len);
        let buffer = match may_arrive {
            true => self.claim_update(len, behind),
            false => None,
        };
        match buffer {
            Some(buffer) => {
                if of_client {
                    self.arriving += len;
                    self.account(conn).arriving += len;
                }
                Placement::Into { buffer, offset }
            }
            None => {
                self.counters.starved += 1;
                self.short |= may_arrive;
                self.waiting.push(conn);
                Placement::Wait
            }
        }
    }

    #[inline]
    fn frame(&mut self, conn: ConnId, header: &Header, body: &[u8], data: Option<Buffer>) -> Flow {
        match (header.kind(), header.op()) {
            (Kind::Request, op::READ) => self.reads(conn, header, body),
            (Kind::Request, op::UPDATE) => self.update(conn, header, body, data),
            (Kind::Request, op::LIST) => self.list(conn, header, body),
            (Kind::Request, op::COMPARE | op::ROWS) => self.question(conn, header, body),
            (Kind::Request, op::FETCH) => self.wanted(conn, header, body),
            (Kind::Request, op::PING) => self.ping(conn, header, body),
            (Kind::Reply, _) => {
                self.answered(conn, header, body, data);
                Flow::Continue
            }
            (Kind::Request, other) => {
                let flow = self.open_account(conn, 1);
                let what = "a storage shard reads, updates, lists, compares, takes rows and gives blocks";
                self.refuse(
                    conn,
                    header,
                    Error::mismatch(ErrorCode::UnknownOperation, 0, other.into(), what),
                );
                flow
            }
            (Kind::Handshake, _) => {
                self.bad_frame(conn, header, Error::new(ErrorCode::BadFrame, "the handshake is over"))
            }
        }
    }

    fn opened(&mut self, conn: ConnId, _peer: &Peer) {
        self.counters.connections_opened += 1;
        self.links.opened(conn);
    }

    fn closed(&mut self, conn: ConnId, error: Error) {
        self.counters.connections_closed += 1;
        self.waiting.retain(|waiting| *waiting != conn);
        self.starved.retain(|starved| starved.requester.conn != conn);
        self.greedy.retain(|greedy| greedy.requester.conn != conn);
        self.arrived(conn, usize::MAX);
        for sent in self.links.closed(conn) {
            self.lost(sent, &error);
        }
    }
}

impl Desk {
    /// What was sent won't be answered.
    pub fn lost(&mut self, sent: Sent, error: &Error) {
        match sent {
            Sent::Forward(forward) => {
                self.ops.update(forward.op).forward = None;
                let (target, chunk, attempt) = (forward.target, forward.chunk, forward.attempt);
                self.tell(Event::Answered { target, chunk, attempt, result: Err(error.clone()) });
            }
            Sent::Question(question) => {
                let (target, ticket) = (question.target, question.ticket);
                self.tell(Event::Told { target, ticket, result: Err(error.clone()) });
            }
            Sent::Fetch(fetch) => {
                self.tell(Event::Fetched { ticket: fetch.ticket, result: Err(error.clone()) });
            }
        }
    }
}

/// What the targets need to know of an update.
fn offer(update: &data::Update) -> Result<Offer> {
    let (offset, length) = (update.offset.get(), update.length.get());
    let kind = match update.kind()? {
        data::UpdateKind::Write => UpdateKind::Write { offset, len: length },
        data::UpdateKind::Truncate => UpdateKind::Truncate { len: length },
        data::UpdateKind::Remove => UpdateKind::Remove,
        data::UpdateKind::Replace => UpdateKind::FullReplace { len: length, total: update.total.get() },
        data::UpdateKind::Patch => UpdateKind::Patch { offset, len: length },
    };
    Ok(Offer {
        chunk: update.chunk(),
        kind,
        tag: update.tag(),
        truncate_epoch: update.epoch.get().into(),
        chain: update.chain(),
        chain_version: update.chain_version.get(),
        forwarded: (update.flags & data::FORWARDED != 0).then(|| update.version.get()),
        base: update.base.get(),
        fill: (update.flags & data::FILL != 0).then(|| update.base.get()),
    })
}

fn verify_payload(
    update: &data::Update,
    payload: &[u8],
    crcs: &[zerocopy::little_endian::U32],
) -> Result<()> {
    let mut expected = crcs.iter();
    let mut wrong = None;
    data::segment_crcs(update.offset.get() as usize, payload, |actual| {
        let expected = expected.next().map_or(0, |crc| crc.get());
        if expected != actual {
            wrong.get_or_insert((expected, actual));
        }
    });
    match wrong {
        None => Ok(()),
        Some((expected, actual)) => {
            let what = "the payload was damaged on its way";
            Err(Error::mismatch(ErrorCode::ChecksumMismatch, expected.into(), actual.into(), what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::{NodeId, ShardIndex};

    /// What a queue pair has completed since the turn began is judged by a clock that was read since.
    #[test]
    fn the_clock_is_read_again_when_requests_are_taken_later() {
        let targets = Targets::new(NodeId(1), ShardIndex(0));
        let mut desk = Desk::new(Pool::new(1 << 20).unwrap(), targets, false);
        desk.now = boottime();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let before = boottime();
        desk.taken();
        assert!((before..=boottime()).contains(&desk.now));
    }
}
