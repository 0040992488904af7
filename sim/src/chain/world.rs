//! The world around the nodes: network, clocks, power. What clients want is in `clients`, what goes wrong in `faults`.

mod clients;
mod faults;

use super::manager::{Change, Heartbeat, Manager, TERMS, id};
use super::node::{Forwarded, Job, Message, Question, Requester, Sent, SimNode};
use super::truth::{Counts, Truth, WriteId};
use crate::prng::Prng;
use corefs_engine::event::{Ack, Ask, Nanos, Offer, Told};
use corefs_engine::store::UpdateKind;
use corefs_mgmtd::cluster::liveness::TargetHealth;
use corefs_mgmtd::cluster::transition::Public;
use corefs_wire::data::ReadEntry;
use corefs_wire::limits::BLOCK;
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{
    ChainId, ChunkId, Class, ClientId, Error, ErrorCode, InodeId, Result, TargetId, UpdateTag,
};
use std::collections::BTreeMap;
use std::rc::Rc;

const SLICE_BYTES: u64 = 2 << 20;
/// Longest chunk in the simulation (bytes).
const CHUNK: u32 = 5 * BLOCK as u32;
const MILLI: Nanos = 1_000_000;
/// Virtual time that the end may take, with everything healthy.
const SETTLE: Nanos = 120_000 * MILLI;
/// Clocks drift by so many parts of a million at most. The margin of leases allows for a tenth.
const DRIFT_PPM: u64 = 30_000;

/// A bug built in on purpose: the checks must find it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Canary {
    /// Flushes do nothing.
    FlushRemoved,
    /// The network answers forwards itself, before the successor has them.
    AnswersInvented,
    /// Reads ignore that an update is pending.
    ReadsUnguarded,
    /// The table of duplicates isn't handed over to a replica that was filled.
    RowsForgotten,
    /// Nodes count their lease from when it was granted.
    LeaseFromReceipt,
    /// A replica that is to be filled says at once that it was.
    FillingSkipped,
    /// The manager gives a node a lease before its chains know that they go on without it.
    LeaseTooSoon,
}

#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Nodes, each with one replica of every chain.
    pub replicas: usize,
    pub chains: u64,
    pub clients: usize,
    pub chunks: u32,
    /// Faults before the end, and virtual milliseconds between two of them at most.
    pub faults: u64,
    pub fault_every: u64,
    /// Virtual milliseconds that a client pauses at most.
    pub think: u64,
    /// Messages lost of a thousand.
    pub loss: u64,
    /// Messages of a thousand that take seconds: longer than anybody waits for an answer.
    pub slow: u64,
    /// Bytes of the last node's slice; the others' have two mebibytes. A smaller one refuses what the others have room for.
    pub last_bytes: u64,
    /// Virtual milliseconds before the end without any fault.
    pub calm: u64,
    pub canary: Option<Canary>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            replicas: 3,
            chains: 2,
            clients: 6,
            chunks: 6,
            faults: 12,
            fault_every: 9000,
            think: 200,
            loss: 5,
            slow: 2,
            last_bytes: SLICE_BYTES,
            calm: 0,
            canary: None,
        }
    }
}

/// Where a message comes from and goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Node(usize),
    Manager,
    Clients,
}

#[derive(Debug)]
enum Happening {
    Done {
        node: usize,
        epoch: u32,
        job: u64,
    },
    Update {
        node: usize,
        from: Requester,
        message: Message,
    },
    Read {
        node: usize,
        from: Requester,
        entry: ReadEntry,
    },
    ForwardAnswered {
        node: usize,
        epoch: u32,
        forward: Forwarded,
        result: Result<Ack>,
    },
    Asked {
        node: usize,
        from: (usize, u32),
        question: Box<Question>,
    },
    Told {
        node: usize,
        epoch: u32,
        target: TargetId,
        ticket: u64,
        result: Result<Told>,
    },
    Answered {
        client: usize,
        attempt: u64,
        result: Result<Ack>,
    },
    ReadDone {
        client: usize,
        attempt: u64,
        result: Result<(u64, Vec<u8>)>,
    },
    TimedOut {
        client: usize,
        attempt: u64,
    },
    Next {
        client: usize,
    },
    Tick {
        node: usize,
        epoch: u32,
    },
    /// A node renews its lease, or registers.
    Beat {
        node: usize,
        epoch: u32,
    },
    Heartbeat {
        beat: Heartbeat,
        epoch: u32,
        sent: Nanos,
    },
    Register {
        node: usize,
        epoch: u32,
    },
    Leased {
        node: usize,
        epoch: u32,
        sent: Nanos,
        routing: Rc<RoutingInfo>,
    },
    Upkeep,
    Stored {
        number: u64,
    },
    Fault,
    Calm,
    On {
        node: usize,
    },
}

impl Happening {
    /// The node to which it happens.
    fn node(&self) -> Option<usize> {
        match self {
            Self::Done { node, .. }
            | Self::Update { node, .. }
            | Self::Read { node, .. }
            | Self::ForwardAnswered { node, .. }
            | Self::Asked { node, .. }
            | Self::Told { node, .. }
            | Self::Tick { node, .. }
            | Self::Beat { node, .. }
            | Self::Leased { node, .. } => Some(*node),
            _ => None,
        }
    }
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
    routing: Rc<RoutingInfo>,
    /// The last replica asked said that the chunk is busy.
    busy: bool,
}

/// A committed version, and the update that was pending with its version.
type Seen = (u64, Option<(u64, WriteId)>);

/// A node's place in the world.
struct Place {
    /// Its clock: parts of a million that it is too fast, plus a constant.
    fast_ppm: u64,
    offset: Nanos,
    stopped_until: Nanos,
    registered: bool,
    /// Its disk's jobs that are in progress.
    jobs: BTreeMap<u64, Job>,
    /// Of each chunk: the committed version, and the update that was pending, when last looked at.
    seen: BTreeMap<(TargetId, ChunkId), Seen>,
    /// Committed while it didn't serve.
    unsettled: BTreeMap<ChunkId, (u64, WriteId)>,
}

struct World {
    config: Config,
    prng: Prng,
    now: Nanos,
    number: u64,
    queue: BTreeMap<(Nanos, u64), Happening>,
    manager: Manager,
    change: Option<(u64, Change)>,
    nodes: Vec<SimNode>,
    places: Vec<Place>,
    clients: Vec<Client>,
    cuts: Vec<(End, End, Nanos)>,
    truth: Truth,
    faults_left: u64,
    /// Nothing new begins, nothing fails: everything comes to its end.
    ending: bool,
}

/// One whole run. The error says what didn't hold, when, and the seed.
pub fn run(seed: u64, config: Config) -> Result<Counts, String> {
    let mut world = World::new(seed, config);
    let result = world.live();
    world.nodes.iter_mut().for_each(SimNode::dispose);
    result.map_err(|what| format!("seed {seed}, {} ms: {what}", world.now / MILLI))?;
    world.truth.counts.milliseconds = world.now / MILLI;
    Ok(world.truth.counts)
}

/// The update that a tag belongs to.
fn write_id(tag: &UpdateTag) -> WriteId {
    tag.client.0 * 1_000_000 + tag.sequence
}

/// Whether the member is one that answers.
fn serves(member: &corefs_mgmtd::cluster::state::Member) -> bool {
    member.state == Public::Serving
}

impl World {
    fn new(seed: u64, config: Config) -> Self {
        let mut prng = Prng::new(seed);
        let nodes: Vec<SimNode> = (0..config.replicas)
            .map(|index| {
                let last = index + 1 == config.replicas;
                let bytes = if last { config.last_bytes } else { SLICE_BYTES };
                let mut node = SimNode::new(index, bytes, &mut prng);
                node.flushes = config.canary != Some(Canary::FlushRemoved);
                node
            })
            .collect();
        let manager = Manager::new(config.replicas, config.replicas, config.chains as u32);
        let routing = Rc::new(RoutingInfo::default());
        let client = |_| {
            let routing = Rc::clone(&routing);
            Client { sequence: 0, attempt: 0, first: 0, wish: None, routing, busy: false }
        };
        let place = |_| Place {
            fast_ppm: prng.below(2 * DRIFT_PPM),
            offset: prng.below(1 << 40),
            stopped_until: 0,
            registered: false,
            jobs: BTreeMap::new(),
            seen: BTreeMap::new(),
            unsettled: BTreeMap::new(),
        };
        Self {
            clients: (0..config.clients).map(client).collect(),
            places: (0..config.replicas).map(place).collect(),
            nodes,
            manager,
            change: None,
            prng,
            now: MILLI,
            number: 0,
            queue: BTreeMap::new(),
            cuts: Vec::new(),
            truth: Truth::default(),
            faults_left: config.faults,
            ending: false,
            config,
        }
    }

    fn live(&mut self) -> Result<(), String> {
        for node in 0..self.nodes.len() {
            self.start(node)?;
        }
        self.after(0, Happening::Upkeep);
        for client in 0..self.clients.len() {
            self.after(MILLI, Happening::Next { client });
        }
        self.schedule_fault();
        self.after(self.config.calm * MILLI, Happening::Calm);
        let mut end = Nanos::MAX;
        while let Some(((at, _), happening)) = self.queue.pop_first() {
            self.now = at;
            let node = happening.node();
            if let Some(node) = node.filter(|node| self.places[*node].stopped_until > at) {
                let wait = self.places[node].stopped_until - at;
                self.after(wait, happening);
                continue;
            }
            self.happen(happening)?;
            if let Some(node) = node {
                self.look(node)?;
            }
            let calm = self.now >= self.config.calm * MILLI;
            if !self.ending && calm && self.faults_left == 0 && self.nodes.iter().all(SimNode::is_on) {
                self.ending = true;
                self.cuts.clear();
                end = self.now + SETTLE;
            }
            if self.ending && self.is_settled() {
                return self.check();
            }
            if self.now > end {
                return Err(format!(
                    "nothing comes to its end any more: chains {:?}",
                    self.manager.state.chains
                ));
            }
        }
        Err("nothing happens any more".into())
    }

    fn is_settled(&self) -> bool {
        // A node without room for what it missed is never filled: the others go on without it.
        let chains = &self.manager.state.chains;
        let serve = chains.values().all(|chain| chain.members.iter().any(serves));
        self.clients.iter().all(|client| client.wish.is_none())
            && (self.manager.is_whole() || self.config.last_bytes < SLICE_BYTES && serve)
            && self.nodes.iter().all(|node| node.is_on() && node.is_idle())
    }

    /// What a node's clock says.
    fn clock(&self, node: usize) -> Nanos {
        let place = &self.places[node];
        let drift = u128::from(self.now) * u128::from(1_000_000 - DRIFT_PPM + place.fast_ppm) / 1_000_000;
        drift as Nanos + place.offset
    }

    fn after(&mut self, delay: Nanos, happening: Happening) {
        self.number += 1;
        self.queue.insert((self.now + delay, self.number), happening);
    }

    /// Delivers a message some time, or never.
    fn send(&mut self, from: End, to: End, happening: Happening) {
        let now = self.now;
        let cut = self.cuts.iter().any(|(a, b, until)| (*a, *b) == (from, to) && now < *until);
        if cut || (!self.ending && self.prng.chance(self.config.loss, 1000)) {
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
        match happening {
            Happening::Done { node, epoch, job } => {
                if self.lives(node, epoch)
                    && let Some(job) = self.places[node].jobs.remove(&job)
                {
                    let now = self.clock(node);
                    self.nodes[node].finish(now, job)?;
                    self.gather(node);
                }
            }
            Happening::Update { node, from, message } => {
                if self.nodes[node].is_on() {
                    let now = self.clock(node);
                    self.nodes[node].update(now, from, message);
                    self.gather(node);
                }
            }
            Happening::Read { node, from, entry } => {
                if self.nodes[node].is_on() {
                    let now = self.clock(node);
                    self.nodes[node].read(now, from, &entry);
                    self.gather(node);
                }
            }
            Happening::ForwardAnswered { node, epoch, forward, result } => {
                if self.lives(node, epoch) {
                    let now = self.clock(node);
                    self.nodes[node].answered(now, forward, result);
                    self.gather(node);
                }
            }
            Happening::Asked { node, from, question } => self.asked(node, from, &question),
            Happening::Told { node, epoch, target, ticket, result } => {
                if self.lives(node, epoch) {
                    let now = self.clock(node);
                    self.nodes[node].told(now, target, ticket, result);
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
                if self.lives(node, epoch) {
                    let now = self.clock(node);
                    self.nodes[node].turn(now);
                    self.gather(node);
                    self.after(5 * MILLI, Happening::Tick { node, epoch });
                }
            }
            Happening::Beat { node, epoch } => self.beat(node, epoch),
            Happening::Heartbeat { beat, epoch, sent } => {
                let node = beat.node;
                let now_ms = self.now / MILLI;
                let granted = self.manager.leads(now_ms) && self.heartbeat(now_ms, beat);
                if granted {
                    let routing = Rc::clone(&self.manager.routing);
                    let leased = Happening::Leased { node, epoch, sent, routing };
                    self.send(End::Manager, End::Node(node), leased);
                }
            }
            Happening::Register { node, epoch } => {
                let now_ms = self.now / MILLI;
                if self.manager.leads(now_ms) && self.change.is_none() {
                    let change = self.manager.register(now_ms, node, epoch.into());
                    self.store(change);
                }
            }
            Happening::Leased { node, epoch, sent, routing } => self.leased(node, epoch, sent, &routing)?,
            Happening::Upkeep => {
                let now_ms = self.now / MILLI;
                if self.manager.leads(now_ms) && self.change.is_none() {
                    let change = self.manager.upkeep(now_ms);
                    self.store(change);
                }
                self.after(100 * MILLI, Happening::Upkeep);
            }
            Happening::Stored { number } => self.stored(number)?,
            Happening::Fault => self.fault(),
            Happening::Calm => {}
            Happening::On { node } => self.start(node)?,
        }
        Ok(())
    }

    fn lives(&self, node: usize, epoch: u32) -> bool {
        self.nodes[node].epoch == epoch && self.nodes[node].is_on()
    }

    fn heartbeat(&mut self, now_ms: u64, beat: Heartbeat) -> bool {
        if self.config.canary == Some(Canary::LeaseTooSoon) {
            self.manager.heartbeat(now_ms, beat);
            return true;
        }
        self.manager.heartbeat(now_ms, beat)
    }

    fn store(&mut self, change: Option<Change>) {
        let Some(change) = change else { return };
        self.number += 1;
        let number = self.number;
        self.change = Some((number, change));
        let delay = self.prng.between(1, 20) * MILLI;
        self.after(delay, Happening::Stored { number });
    }

    fn stored(&mut self, number: u64) -> Result<(), String> {
        let Some((_, change)) = self.change.take_if(|(stored, _)| *stored == number) else { return Ok(()) };
        self.adopt(change)
    }

    fn adopt(&mut self, change: Change) -> Result<(), String> {
        let before = self.manager.state.chains.clone();
        let registered = self.manager.stored(self.now / MILLI, change).map_err(|error| error.to_string())?;
        let counts = &mut self.truth.counts;
        for (id, chain) in &self.manager.state.chains {
            let old = &before[id];
            counts.chain_changes += chain.version - old.version;
            let state = |members: &[corefs_mgmtd::cluster::state::Member], target| {
                members.iter().find(|member| member.target == target).map(|member| member.state)
            };
            for member in chain.members.iter().filter(|member| member.state == Public::Serving) {
                let filled = state(&old.members, member.target) == Some(Public::Syncing);
                counts.replicas_filled += u64::from(filled);
            }
            let served = |members: &[corefs_mgmtd::cluster::state::Member]| {
                members.iter().any(|member| member.state == Public::Serving)
            };
            counts.total_losses += u64::from(served(&old.members) && !served(&chain.members));
        }
        if let Some((node, incarnation)) = registered {
            let (routing, epoch) = (Rc::clone(&self.manager.routing), incarnation as u32);
            // It has no lease yet: the first heartbeat brings one.
            let leased = Happening::Leased { node, epoch, sent: 0, routing };
            self.send(End::Manager, End::Node(node), leased);
        }
        Ok(())
    }

    /// A node says that it is there.
    fn beat(&mut self, node: usize, epoch: u32) {
        if !self.lives(node, epoch) {
            return;
        }
        self.after(333 * MILLI, Happening::Beat { node, epoch });
        let sent = self.clock(node);
        if !self.places[node].registered {
            return self.send(End::Node(node), End::Manager, Happening::Register { node, epoch });
        }
        let skips = self.config.canary == Some(Canary::FillingSkipped);
        let health = |said: &corefs_wire::control::mgmtd::TargetHealthT| TargetHealth {
            up_to_date: (said.up_to_date || skips).then_some(said.chain_version),
            failed: said.failed,
            ..TargetHealth::default()
        };
        let targets = self.nodes[node].healths(sent);
        let targets = targets.iter().map(|said| (TargetId(said.target), health(said))).collect();
        let beat = Heartbeat { node, incarnation: epoch.into(), targets };
        self.send(End::Node(node), End::Manager, Happening::Heartbeat { beat, epoch, sent });
    }

    /// A node hears from the manager: routing, and until when its lease runs.
    fn leased(&mut self, node: usize, epoch: u32, sent: Nanos, routing: &RoutingInfo) -> Result<(), String> {
        if !self.lives(node, epoch) {
            return Ok(());
        }
        self.places[node].registered = true;
        let now = self.clock(node);
        self.nodes[node].routing(now, routing);
        let from = if self.config.canary == Some(Canary::LeaseFromReceipt) { now } else { sent };
        if sent > 0 {
            self.nodes[node].lease(now, from + TERMS.lease_ms * MILLI);
        }
        self.gather(node);
        self.check_heads()
    }

    /// Never two heads of a chain hold a lease.
    fn check_heads(&self) -> Result<(), String> {
        for chain in self.manager.state.chains.values() {
            let mut heads = Vec::new();
            for member in &chain.members {
                let node = member.node.0 as usize - 1;
                if self.places[node].stopped_until > self.now {
                    continue;
                }
                let role = self.nodes[node].leased_role(self.clock(node), member.target);
                heads.extend(role.filter(|role| role.head).map(|role| (node, role.version)));
            }
            if heads.len() > 1 {
                return Err(format!("two heads hold a lease (node, chain version): {heads:?}"));
            }
        }
        Ok(())
    }

    fn node_of(&self, target: TargetId) -> Option<usize> {
        Some(self.manager.routing.targets.get(&target)?.node.0 as usize - 1)
    }

    /// Takes over what a node wants done.
    fn gather(&mut self, node: usize) {
        let epoch = self.nodes[node].epoch;
        for job in std::mem::take(&mut self.nodes[node].jobs) {
            self.number += 1;
            let number = self.number;
            self.places[node].jobs.insert(number, job);
            let delay = self.prng.below(MILLI) + if self.prng.chance(1, 50) { 20 * MILLI } else { 0 };
            self.after(delay, Happening::Done { node, epoch, job: number });
        }
        for sent in std::mem::take(&mut self.nodes[node].sent) {
            self.deliver(node, sent);
        }
    }

    fn deliver(&mut self, node: usize, sent: Sent) {
        let from_here = End::Node(node);
        match sent {
            Sent::Forward { to, forward, message } => {
                self.truth.counts.fills += u64::from(message.offer.fill.is_some());
                let epoch = self.nodes[node].epoch;
                let from = Requester::Node { node, epoch, forward };
                let fill = message.offer.fill.is_some();
                if self.config.canary == Some(Canary::AnswersInvented) && !fill && self.prng.chance(1, 4) {
                    let version = message.offer.forwarded.unwrap_or(0);
                    let result = Err(Error::from(ErrorCode::Internal));
                    // The length can't be known: learn it from the node itself, as a lying network could.
                    let length = self.nodes[node].pending_length(forward.target, message.offer.chunk);
                    let result = length.map_or(result, |length| Ok(Ack { version, length, merged_crc: 0 }));
                    let answered = Happening::ForwardAnswered { node, epoch, forward, result };
                    return self.send(from_here, from_here, answered);
                }
                if let Some(owner) = self.node_of(to) {
                    let update = Happening::Update { node: owner, from, message };
                    self.send(from_here, End::Node(owner), update);
                }
            }
            Sent::Ask(mut question) => {
                if let Ask::Rows { rows, .. } = &mut question.ask {
                    self.truth.counts.rows_handed_over += rows.len() as u64;
                    if self.config.canary == Some(Canary::RowsForgotten) {
                        rows.clear();
                    }
                }
                if let Some(owner) = self.node_of(question.to) {
                    let from = (node, self.nodes[node].epoch);
                    let asked = Happening::Asked { node: owner, from, question: Box::new(question) };
                    self.send(from_here, End::Node(owner), asked);
                }
            }
            Sent::Answer { to: Requester::Client { client, attempt }, result } => {
                self.send(from_here, End::Clients, Happening::Answered { client, attempt, result });
            }
            Sent::Answer { to: Requester::Node { node, epoch, forward }, result } => {
                let answered = Happening::ForwardAnswered { node, epoch, forward, result };
                self.send(from_here, End::Node(node), answered);
            }
            Sent::Read { to: Requester::Client { client, attempt }, result } => {
                self.send(from_here, End::Clients, Happening::ReadDone { client, attempt, result });
            }
            Sent::Read { to: Requester::Node { .. }, .. } => unreachable!("nodes don't read"),
        }
    }

    fn asked(&mut self, node: usize, from: (usize, u32), question: &Question) {
        if !self.nodes[node].is_on() {
            return;
        }
        let now = self.clock(node);
        let result = self.nodes[node].asked(now, question);
        self.gather(node);
        let (target, ticket) = (question.target, question.ticket);
        let told = Happening::Told { node: from.0, epoch: from.1, target, ticket, result };
        self.send(End::Node(node), End::Node(from.0), told);
    }

    /// Looks what a node has committed, and tells the truth about it.
    fn look(&mut self, node: usize) -> Result<(), String> {
        if let Some(what) = self.nodes[node].failure.take() {
            return Err(what);
        }
        for index in 0..self.config.chunks {
            let chunk = ChunkId::new(InodeId(1), index);
            let Some(target) = self.target_on(node, self.chain_of(chunk)) else { continue };
            let Some((version, serves, pending)) = self.nodes[node].look(target, chunk) else { continue };
            let place = &mut self.places[node];
            let pending =
                pending.filter(|(_, tag)| tag.client.0 != 0).map(|(version, tag)| (version, write_id(&tag)));
            let before = place.seen.insert((target, chunk), (version, pending));
            if let Some((was, Some((expected, id)))) = before
                && was < version
                && expected == version
            {
                place.unsettled.insert(chunk, (version, id));
            }
            if !serves {
                continue;
            }
            if let Some((version, id)) = place.unsettled.remove(&chunk) {
                self.truth.committed(chunk, version, id)?;
            }
        }
        Ok(())
    }

    fn chain_of(&self, chunk: ChunkId) -> ChainId {
        ChainId(u64::from(chunk.index) % self.config.chains + 1)
    }

    fn target_on(&self, node: usize, chain: ChainId) -> Option<TargetId> {
        let members = &self.manager.state.chains.get(&chain)?.members;
        members.iter().find(|member| member.node == id(node)).map(|member| member.target)
    }

    /// A node comes up.
    fn start(&mut self, node: usize) -> Result<(), String> {
        self.truth.counts.recovered_pendings += self.nodes[node].power_on()?;
        let epoch = self.nodes[node].epoch;
        let place = &mut self.places[node];
        (place.registered, place.stopped_until) = (false, 0);
        self.look(node)?;
        // What was committed in memory only may be pending again, or gone.
        let place = &mut self.places[node];
        let seen = &place.seen;
        let holds = |chunk: ChunkId, version: u64| {
            seen.iter().any(|((_, of), (held, _))| *of == chunk && *held >= version)
        };
        place.unsettled.retain(|chunk, (version, _)| holds(*chunk, *version));
        self.after(MILLI, Happening::Tick { node, epoch });
        let delay = self.prng.below(50 * MILLI);
        self.after(delay, Happening::Beat { node, epoch });
        Ok(())
    }

    fn check(&mut self) -> Result<(), String> {
        for index in 0..self.config.chunks {
            let chunk = ChunkId::new(InodeId(1), index);
            let mut replicas = Vec::new();
            let chain = &self.manager.state.chains[&self.chain_of(chunk)];
            for member in chain.members.iter().filter(|member| serves(member)) {
                let node = self.node_of(member.target).ok_or("a replica without a node")?;
                replicas.push(self.nodes[node].held(member.target, chunk)?);
            }
            self.truth.check_end(chunk, &replicas)?;
        }
        Ok(())
    }
}
