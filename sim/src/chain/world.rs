//! The world around the nodes: network, clients, power, and the manager that raises the chain's version.

use super::node::{CLUSTER, Forwarded, Job, Message, Requester, Sent, SimNode};
use super::truth::{Counts, Truth, WriteId};
use crate::prng::Prng;
use corefs_engine::event::{Ack, Nanos, Offer};
use corefs_engine::store::UpdateKind;
use corefs_wire::control::mgmtd::TargetState;
use corefs_wire::data::ReadEntry;
use corefs_wire::limits::BLOCK;
use corefs_wire::routing::{Chain, Member, Node, RoutingInfo, Target};
use corefs_wire::{
    ChainId, ChunkId, Class, ClientId, Error, ErrorCode, InodeId, NodeId, Result, ShardIndex, SliceIndex,
    TargetId, UpdateTag,
};
use std::collections::BTreeMap;

pub const CHAIN: ChainId = ChainId(1);
const SLICE_BYTES: u64 = 2 << 20;
/// Longest chunk in the simulation (bytes).
const CHUNK: u32 = 5 * BLOCK as u32;
const MILLI: Nanos = 1_000_000;
/// Virtual time that the end may take, with everything healthy.
const SETTLE: Nanos = 120_000 * MILLI;

/// A bug built in on purpose: the checks must find it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Canary {
    /// Flushes do nothing.
    FlushRemoved,
    /// The network answers forwards itself, before the successor has them.
    AnswersInvented,
    /// Reads ignore that an update is pending.
    ReadsUnguarded,
}

#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub replicas: usize,
    pub clients: usize,
    pub chunks: u32,
    /// Power cuts before the end.
    pub cuts: u64,
    /// Virtual milliseconds between two cuts, at most.
    pub cut_every: u64,
    /// Messages lost of a thousand.
    pub loss: u64,
    /// Messages of a thousand that take seconds: longer than anybody waits for an answer.
    pub slow: u64,
    /// Bytes of the tail's slice; the others' have two mebibytes. A smaller one refuses what the others have room for.
    pub tail_bytes: u64,
    pub canary: Option<Canary>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            replicas: 3,
            clients: 8,
            chunks: 6,
            cuts: 10,
            cut_every: 5000,
            loss: 5,
            slow: 2,
            tail_bytes: SLICE_BYTES,
            canary: None,
        }
    }
}

#[derive(Debug)]
enum Happening {
    Done { node: usize, epoch: u32, job: u64 },
    Update { node: usize, from: Requester, message: Message },
    Read { node: usize, from: Requester, entry: ReadEntry },
    ForwardAnswered { node: usize, epoch: u32, forward: Forwarded, result: Result<Ack> },
    Answered { client: usize, attempt: u64, result: Result<Ack> },
    ReadDone { client: usize, attempt: u64, result: Result<(u64, Vec<u8>)> },
    TimedOut { client: usize, attempt: u64 },
    Next { client: usize },
    Tick { node: usize, epoch: u32 },
    Routing { node: usize, epoch: u32, version: u64 },
    Lease,
    Cut,
    On { node: usize },
}

/// What a client waits for.
#[derive(Clone, Debug)]
enum Wish {
    Write { id: WriteId, offer: Offer, payload: Vec<u8> },
    Read { chunk: ChunkId, floor: u64 },
}

struct Client {
    sequence: u64,
    attempt: u64,
    /// The first attempt at the present wish: answers to earlier ones belong to earlier wishes.
    first: u64,
    wish: Option<Wish>,
    known_version: u64,
}

struct World {
    config: Config,
    prng: Prng,
    now: Nanos,
    number: u64,
    queue: BTreeMap<(Nanos, u64), Happening>,
    nodes: Vec<SimNode>,
    /// Jobs of each node that are in progress.
    jobs: Vec<BTreeMap<u64, Job>>,
    clients: Vec<Client>,
    truth: Truth,
    chain_version: u64,
    writes: WriteId,
    cuts_left: u64,
    /// Nothing new begins, nothing fails: everything comes to its end.
    ending: bool,
}

/// One whole run. The error says what didn't hold, when, and the seed.
pub fn run(seed: u64, config: Config) -> Result<Counts, String> {
    let mut world = World::new(seed, config);
    let result = world.live();
    world.nodes.iter_mut().for_each(SimNode::dispose);
    result.map_err(|what| format!("seed {seed}, {} ms: {what}", world.now / MILLI))?;
    Ok(world.truth.counts)
}

fn target(node: usize) -> TargetId {
    TargetId(node as u64 + 1)
}

impl World {
    fn new(seed: u64, config: Config) -> Self {
        let mut prng = Prng::new(seed);
        let nodes: Vec<SimNode> = (0..config.replicas)
            .map(|index| {
                let tail = index + 1 == config.replicas;
                let bytes = if tail { config.tail_bytes } else { SLICE_BYTES };
                let mut node = SimNode::new(index, bytes, &mut prng);
                node.flushes = config.canary != Some(Canary::FlushRemoved);
                node
            })
            .collect();
        let client = |_| Client { sequence: 0, attempt: 0, first: 0, wish: None, known_version: 1 };
        Self {
            clients: (0..config.clients).map(client).collect(),
            jobs: nodes.iter().map(|_| BTreeMap::new()).collect(),
            nodes,
            prng,
            now: MILLI,
            number: 0,
            queue: BTreeMap::new(),
            truth: Truth::default(),
            chain_version: 0,
            writes: 0,
            cuts_left: config.cuts,
            ending: false,
            config,
        }
    }

    fn live(&mut self) -> Result<(), String> {
        for node in 0..self.nodes.len() {
            self.start(node)?;
        }
        self.after(0, Happening::Lease);
        for client in 0..self.clients.len() {
            self.after(MILLI, Happening::Next { client });
        }
        self.schedule_cut();
        let mut end = Nanos::MAX;
        while let Some(((at, _), happening)) = self.queue.pop_first() {
            self.now = at;
            self.happen(happening)?;
            if !self.ending && self.cuts_left == 0 && self.nodes.iter().all(SimNode::is_on) {
                self.ending = true;
                end = self.now + SETTLE;
            }
            let idle = self.clients.iter().all(|client| client.wish.is_none());
            if self.ending && idle && self.nodes.iter().all(|node| node.busy() == 0) {
                return self.check();
            }
            if self.now > end {
                return Err("nothing comes to its end any more".into());
            }
        }
        Err("nothing happens any more".into())
    }

    fn after(&mut self, delay: Nanos, happening: Happening) {
        self.number += 1;
        self.queue.insert((self.now + delay, self.number), happening);
    }

    /// Delivers a message some time, or never.
    fn send(&mut self, happening: Happening) {
        if !self.ending && self.prng.chance(self.config.loss, 1000) {
            self.truth.counts.lost_messages += 1;
            return;
        }
        let delay = match self.prng.below(1000) {
            slow if slow < self.config.slow && !self.ending => 8000 * MILLI,
            late if late >= 990 => 200 * MILLI,
            _ => 2 * MILLI,
        };
        let delay = self.prng.below(delay);
        self.after(delay, happening);
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        let now = self.now;
        match happening {
            Happening::Done { node, epoch, job } => {
                if self.nodes[node].epoch == epoch
                    && let Some(job) = self.jobs[node].remove(&job)
                {
                    self.nodes[node].finish(now, job)?;
                    self.gather(node);
                }
            }
            Happening::Update { node, from, message } => {
                if self.nodes[node].is_on() {
                    self.nodes[node].update(now, from, message);
                    self.gather(node);
                }
            }
            Happening::Read { node, from, entry } => {
                if self.nodes[node].is_on() {
                    self.nodes[node].read(now, from, &entry);
                    self.gather(node);
                }
            }
            Happening::ForwardAnswered { node, epoch, forward, result } => {
                if self.nodes[node].epoch == epoch && self.nodes[node].is_on() {
                    self.nodes[node].answered(now, forward, result);
                    self.gather(node);
                }
            }
            Happening::Answered { client, attempt, result } => self.answered(client, attempt, result)?,
            Happening::ReadDone { client, attempt, result } => self.read_done(client, attempt, result)?,
            Happening::TimedOut { client, attempt } => {
                if self.clients[client].attempt == attempt && self.clients[client].wish.is_some() {
                    self.retry(client);
                }
            }
            Happening::Next { client } => self.next_wish(client),
            Happening::Tick { node, epoch } => {
                if self.nodes[node].epoch == epoch && self.nodes[node].is_on() {
                    self.nodes[node].turn(now);
                    self.gather(node);
                    self.after(5 * MILLI, Happening::Tick { node, epoch });
                }
            }
            Happening::Routing { node, epoch, version } => {
                if self.nodes[node].epoch == epoch && self.nodes[node].is_on() {
                    let routing = self.routing(version);
                    self.nodes[node].routing(now, &routing);
                    self.gather(node);
                }
            }
            Happening::Lease => {
                for node in 0..self.nodes.len() {
                    // Now and then a renewal is late, and the node fences itself.
                    if self.nodes[node].is_on() && (self.ending || !self.prng.chance(1, 8)) {
                        self.nodes[node].lease(now, now + 250 * MILLI);
                        self.gather(node);
                    }
                }
                self.after(100 * MILLI, Happening::Lease);
            }
            Happening::Cut => self.cut(),
            Happening::On { node } => self.start(node)?,
        }
        Ok(())
    }

    /// Takes over what a node wants done.
    fn gather(&mut self, node: usize) {
        let epoch = self.nodes[node].epoch;
        for job in std::mem::take(&mut self.nodes[node].jobs) {
            self.number += 1;
            let number = self.number;
            self.jobs[node].insert(number, job);
            let delay = self.prng.below(MILLI) + if self.prng.chance(1, 50) { 20 * MILLI } else { 0 };
            self.after(delay, Happening::Done { node, epoch, job: number });
        }
        for sent in std::mem::take(&mut self.nodes[node].sent) {
            self.deliver(node, sent);
        }
    }

    fn deliver(&mut self, node: usize, sent: Sent) {
        match sent {
            Sent::Forward { to, forward, message } => {
                if node == 0 {
                    let id = write_id(&message.offer.tag);
                    self.truth.given(message.offer.chunk, message.offer.forwarded.unwrap_or(0), id);
                }
                let epoch = self.nodes[node].epoch;
                let from = Requester::Node { node, epoch, forward };
                if self.config.canary == Some(Canary::AnswersInvented) && self.prng.chance(1, 4) {
                    let version = message.offer.forwarded.unwrap_or(0);
                    let result = Err(Error::from(ErrorCode::Internal));
                    // The length can't be known: learn it from the node itself, as a lying network could.
                    let length = self.nodes[node].pending_length(target(node), message.offer.chunk);
                    let result = length.map_or(result, |length| Ok(Ack { version, length, merged_crc: 0 }));
                    return self.send(Happening::ForwardAnswered { node, epoch, forward, result });
                }
                self.send(Happening::Update { node: (to.0 - 1) as usize, from, message });
            }
            Sent::Answer { to: Requester::Client { client, attempt }, result } => {
                self.send(Happening::Answered { client, attempt, result });
            }
            Sent::Answer { to: Requester::Node { node, epoch, forward }, result } => {
                self.send(Happening::ForwardAnswered { node, epoch, forward, result });
            }
            Sent::Read { to: Requester::Client { client, attempt }, result } => {
                self.send(Happening::ReadDone { client, attempt, result });
            }
            Sent::Read { to: Requester::Node { .. }, .. } => unreachable!("nodes don't read"),
            Sent::Ask { .. } => unreachable!("nobody is filled while chains stay whole"),
        }
    }

    fn next_wish(&mut self, client: usize) {
        if self.ending || self.clients[client].wish.is_some() {
            return;
        }
        let chunk = ChunkId::new(InodeId(1), self.prng.below(self.config.chunks.into()) as u32);
        let wish = if self.prng.chance(2, 5) {
            Wish::Read { chunk, floor: self.truth.floor(chunk) }
        } else {
            self.new_write(client, chunk)
        };
        self.clients[client].wish = Some(wish);
        self.clients[client].first = self.clients[client].attempt + 1;
        self.ask(client);
    }

    fn new_write(&mut self, client: usize, chunk: ChunkId) -> Wish {
        self.clients[client].sequence += 1;
        self.writes += 1;
        let id = client as u64 * 1_000_000 + self.clients[client].sequence;
        let (kind, payload) = match self.prng.below(10) {
            0 => (UpdateKind::Truncate { len: self.prng.below(u64::from(CHUNK)) as u32 }, Vec::new()),
            1 => (UpdateKind::Remove, Vec::new()),
            _ => {
                let offset = self.prng.below(u64::from(CHUNK) - 1) as u32;
                let len = self.prng.between(1, u64::from(CHUNK - offset)) as u32;
                let mut payload = vec![0; len as usize];
                self.prng.fill(&mut payload);
                (UpdateKind::Write { offset, len }, payload)
            }
        };
        self.truth.wished(id, kind, payload.clone());
        let tag = UpdateTag {
            client: ClientId(client as u64 + 1),
            sequence: self.clients[client].sequence,
            incarnation: 1,
            channel: 0,
        };
        let offer = Offer {
            chunk,
            kind,
            tag,
            truncate_epoch: 0,
            chain: CHAIN,
            chain_version: 0,
            forwarded: None,
            base: 0,
            fill: None,
        };
        Wish::Write { id, offer, payload }
    }

    /// Sends the wish, with the chain version that the client believes in.
    fn ask(&mut self, client: usize) {
        let Some(wish) = self.clients[client].wish.clone() else { return };
        self.clients[client].attempt += 1;
        let (attempt, version) = (self.clients[client].attempt, self.clients[client].known_version);
        let from = Requester::Client { client, attempt };
        match wish {
            Wish::Write { mut offer, payload, .. } => {
                offer.chain_version = version;
                let message = Message { target: target(0), offer, payload };
                self.send(Happening::Update { node: 0, from, message });
            }
            Wish::Read { chunk, .. } => {
                let node = self.prng.below(self.nodes.len() as u64) as usize;
                let entry = ReadEntry {
                    chain: CHAIN.0.into(),
                    chain_version: version.into(),
                    target: target(node).0.into(),
                    inode: chunk.inode.0.into(),
                    index: chunk.index.into(),
                    offset: 0.into(),
                    length: CHUNK.into(),
                    ..ReadEntry::default()
                };
                if self.config.canary == Some(Canary::ReadsUnguarded)
                    && let Ok(held) = self.nodes[node].peek(target(node), chunk)
                {
                    return self.send(Happening::ReadDone {
                        client,
                        attempt,
                        result: Ok((held, Vec::new())),
                    });
                }
                self.send(Happening::Read { node, from, entry });
            }
        }
        let patience = 300 * MILLI + self.prng.below(300 * MILLI);
        self.after(patience, Happening::TimedOut { client, attempt });
    }

    fn retry(&mut self, client: usize) {
        self.truth.counts.retries += 1;
        if !self.prng.chance(1, 4) {
            self.clients[client].known_version = self.chain_version;
        }
        self.ask(client);
    }

    fn answered(&mut self, client: usize, attempt: u64, result: Result<Ack>) -> Result<(), String> {
        let Some(Wish::Write { id, offer, .. }) = self.clients[client].wish.clone() else { return Ok(()) };
        if attempt < self.clients[client].first {
            return Ok(());
        }
        match result {
            // An acknowledgment of any attempt acknowledges the update.
            Ok(ack) => {
                self.truth.acknowledged(offer.chunk, id, &ack)?;
                self.done(client);
            }
            Err(_) if attempt != self.clients[client].attempt => {}
            Err(error) if error.code.class() == Class::Fatal => {
                self.truth.refused(id);
                self.done(client);
            }
            Err(error) => {
                self.truth.counts.fenced += u64::from(error.code == ErrorCode::LeaseExpired);
                // It is asked again when its patience ends.
            }
        }
        Ok(())
    }

    fn read_done(
        &mut self,
        client: usize,
        attempt: u64,
        result: Result<(u64, Vec<u8>)>,
    ) -> Result<(), String> {
        let Some(Wish::Read { chunk, floor }) = self.clients[client].wish.clone() else { return Ok(()) };
        if attempt != self.clients[client].attempt {
            return Ok(());
        }
        match result {
            Ok((version, _)) => {
                self.truth.read(chunk, floor, version)?;
                self.done(client);
            }
            // Never written, or removed.
            Err(error) if error.code == ErrorCode::NoSuchChunk => self.done(client),
            Err(error) => {
                self.truth.counts.reads_pending += u64::from(error.code == ErrorCode::Pending);
                self.retry(client);
            }
        }
        Ok(())
    }

    fn done(&mut self, client: usize) {
        self.clients[client].wish = None;
        let pause = self.prng.below(3 * MILLI);
        self.after(pause, Happening::Next { client });
    }

    fn schedule_cut(&mut self) {
        if self.cuts_left > 0 {
            let delay = self.prng.between(5, self.config.cut_every) * MILLI;
            self.after(delay, Happening::Cut);
        }
    }

    /// One node loses power, or all of them.
    fn cut(&mut self) {
        let all = self.prng.chance(1, 5);
        let one = self.prng.below(self.nodes.len() as u64) as usize;
        for node in 0..self.nodes.len() {
            if (all || node == one) && self.nodes[node].is_on() {
                let jobs = std::mem::take(&mut self.jobs[node]).into_values().collect();
                self.nodes[node].power_cut(jobs, &mut self.prng);
                self.truth.counts.power_cuts += 1;
                let pause = self.prng.between(1, 500) * MILLI;
                self.after(pause, Happening::On { node });
            }
        }
        self.cuts_left -= 1;
        self.schedule_cut();
    }

    /// A node comes up: the manager raises the chain's version and tells everybody, some sooner, some later.
    fn start(&mut self, node: usize) -> Result<(), String> {
        self.truth.counts.recovered_pendings += self.nodes[node].power_on()?;
        self.chain_version += 1;
        let epoch = self.nodes[node].epoch;
        self.after(MILLI, Happening::Tick { node, epoch });
        for node in 0..self.nodes.len() {
            let (epoch, version) = (self.nodes[node].epoch, self.chain_version);
            let delay = self.prng.below(30 * MILLI);
            self.after(delay, Happening::Routing { node, epoch, version });
        }
        Ok(())
    }

    fn routing(&self, version: u64) -> RoutingInfo {
        let mut routing = RoutingInfo { version, cluster: CLUSTER, ..RoutingInfo::default() };
        let mut members = Vec::new();
        for index in 0..self.nodes.len() {
            let (id, target) = (NodeId(index as u32 + 1), target(index));
            let (shards, control) = (vec![format!("node-{index}")], String::new());
            let slice_shards = vec![ShardIndex(0)];
            let node = Node {
                id,
                incarnation: 1,
                alive: true,
                control,
                shards,
                slice_shards,
                domain: String::new(),
            };
            routing.nodes.insert(id, node);
            routing
                .targets
                .insert(target, Target { id: target, node: id, slice: SliceIndex(0), chain: CHAIN });
            members.push(Member { target, state: TargetState::Serving });
        }
        routing.chains.insert(CHAIN, Chain { id: CHAIN, version, members });
        routing
    }

    fn check(&mut self) -> Result<(), String> {
        self.truth.check_history()?;
        for index in 0..self.config.chunks {
            let chunk = ChunkId::new(InodeId(1), index);
            let mut replicas = Vec::new();
            for node in 0..self.nodes.len() {
                replicas.push(self.nodes[node].held(target(node), chunk)?);
            }
            self.truth.check_end(chunk, &replicas)?;
        }
        Ok(())
    }
}

/// The update that a tag belongs to.
fn write_id(tag: &UpdateTag) -> WriteId {
    (tag.client.0 - 1) * 1_000_000 + tag.sequence
}
