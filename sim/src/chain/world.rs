//! The world around the nodes: what happens when. Its parts:
//!
//! | file | is about |
//! |---|---|
//! | `clients` | what clients want, and whom they ask |
//! | `network` | what leaves a node, and how it arrives |
//! | `members` | nodes and what managers tell them: registration, leases, routing |
//! | `managers` | what managers answer, and what they store |
//! | `names` | metadata servers, their clients, and what is done to chunks for them |
//! | `faults` | what goes wrong |
//! | `damage` | what disks do to bytes that they had already |
//! | `queue` | what is going to happen |

mod clients;
mod damage;
mod faults;
mod managers;
mod members;
mod names;
mod network;
mod queue;

use super::config::{Canary, Config, SLICE_BYTES};
use super::manager::{Managers, TERMS, id, slices};
use super::names::{Ask as ChunkAsk, Names};
use super::node::{Fetch, Forwarded, Job, Message, Question, Requester, Sent, SimNode};
use super::truth::{Counts, Truth, WriteId};
use crate::prng::Prng;
use crate::tasks::{MILLI, Owner};
use corefs_engine::event::{Ack, Ask, Nanos, Offer, Told};
use corefs_engine::store::UpdateKind;
use corefs_kv::mem::Faults;
use corefs_mgmtd::cluster::transition::Public;
use corefs_wire::control::mgmtd::{GetRoutingT, NodeHeartbeatT};
use corefs_wire::data::ReadEntry;
use corefs_wire::limits::BLOCK;
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{
    ChainId, ChunkId, Class, ClientId, Error, ErrorCode, InodeId, Result, TargetId, UpdateTag,
};
use queue::Queue;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Longest chunk in the simulation (bytes).
const CHUNK: u32 = 5 * BLOCK as u32;
/// Longest that a manager keeps a poll for routing (milliseconds), and after which a node asks again.
const POLL_MS: u32 = 1000;
const POLL_AGAIN: Nanos = 1500 * MILLI;
/// Clients that do to chunks what metadata servers want.
const HANDS: usize = 2;
/// Virtual time that the end may take, with everything healthy.
const SETTLE: Nanos = 120_000 * MILLI;
/// Virtual time beyond its least, and beyond the last fault, after which a life that clients get too few answers in is over.
const PATIENCE: Nanos = 600_000 * MILLI;
/// Clocks drift by so many parts of a million at most. The margin of leases allows for a tenth.
const DRIFT_PPM: u64 = 30_000;

/// Where a message comes from and goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Node(usize),
    Manager(usize),
    Clients,
}

#[derive(Clone, Debug)]
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
    /// A node wanted to be woken then.
    Tick {
        node: usize,
        epoch: u32,
        at: Nanos,
    },
    /// A node renews its lease, or registers, for that time.
    Beat {
        node: usize,
        epoch: u32,
        number: u64,
    },
    /// Nobody has answered for a while.
    Silence {
        node: usize,
        epoch: u32,
        number: u64,
    },
    Heartbeat {
        manager: usize,
        node: usize,
        epoch: u32,
        sent: Nanos,
        request: Box<NodeHeartbeatT>,
    },
    Register {
        manager: usize,
        node: usize,
        epoch: u32,
        sent: Nanos,
        dead: bool,
    },
    /// A node asks for newer routing than it has; its poll of that number.
    Poll {
        node: usize,
        epoch: u32,
        poll: u64,
    },
    Polled {
        manager: usize,
        node: usize,
        epoch: u32,
        poll: u64,
        have: u64,
    },
    /// A manager answered: not now (it is the one to ask), somebody else leads, another process has the node's number.
    Refused {
        node: usize,
        epoch: u32,
        manager: usize,
        code: ErrorCode,
    },
    /// Routing without a lease, as the answer to that poll.
    News {
        node: usize,
        epoch: u32,
        poll: u64,
        routing: Option<Rc<RoutingInfo>>,
    },
    Leased {
        node: usize,
        epoch: u32,
        manager: usize,
        sent: Nanos,
        routing: Option<Rc<RoutingInfo>>,
    },
    /// A manager or its store waited for this moment.
    Moment {
        ticket: u64,
    },
    /// A manager's process begins, or goes on after it stood still.
    ManagerUp {
        manager: usize,
    },
    ManagerGoesOn {
        manager: usize,
    },
    /// A metadata server, or a client of theirs, begins as a new process, or goes on.
    ServerUp {
        server: usize,
    },
    NamerUp {
        namer: usize,
    },
    ProcessGoesOn {
        owner: Owner,
        until: Nanos,
    },
    /// The managers' store works again.
    StoreWell,
    Fault,
    Calm,
    On {
        node: usize,
    },
    /// Somebody starts a node anew whose disk has failed.
    Restart {
        node: usize,
        epoch: u32,
    },
    /// A replica wants blocks of this one.
    Wanted {
        node: usize,
        from: Requester,
        fetch: Fetch,
    },
    Fetched {
        node: usize,
        epoch: u32,
        ticket: u64,
        result: Result<Vec<u8>>,
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
            | Self::Silence { node, .. }
            | Self::Refused { node, .. }
            | Self::Poll { node, .. }
            | Self::Wanted { node, .. }
            | Self::Fetched { node, .. }
            | Self::News { node, .. }
            | Self::Leased { node, .. } => Some(*node),
            _ => None,
        }
    }

    /// Whether managers go on by it.
    fn wakes_managers(&self) -> bool {
        matches!(
            self,
            Self::Moment { .. } | Self::ManagerUp { .. } | Self::ManagerGoesOn { .. } | Self::Fault
        )
    }

    /// The manager to which it is sent.
    fn manager(&self) -> Option<usize> {
        match self {
            Self::Heartbeat { manager, .. }
            | Self::Register { manager, .. }
            | Self::Polled { manager, .. } => Some(*manager),
            _ => None,
        }
    }
}

/// What a client waits for.
#[derive(Clone, Debug)]
enum Wish {
    Write { id: WriteId, offer: Offer, payload: Rc<[u8]> },
    Read { chunk: ChunkId, floor: u64, began: u64 },
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
    /// Replicas that said that their bytes of the chunk are damaged.
    damaged: u32,
    /// What a metadata server wants done, if it is done for one.
    ask: Option<ChunkAsk>,
}

/// A committed version, and the update that was pending with its version.
type Seen = (u64, Option<(u64, WriteId)>);

/// A node's place in the world.
struct Place {
    /// Its clock: parts of a million that it is too fast, plus a constant.
    fast_ppm: u64,
    offset: Nanos,
    stopped_until: Nanos,
    /// Its disk is slow until then.
    slow_until: Nanos,
    registered: bool,
    /// The manager that answered last.
    manager: usize,
    /// The number of its present heartbeat, how many managers were asked in it, and those that refused it.
    beat: u64,
    asked: usize,
    refusals: BTreeSet<usize>,
    /// The newest routing that it has, and the number of its last poll for more.
    version: u64,
    poll: u64,
    /// When it is to be woken (of the world's time).
    tick_at: Nanos,
    /// Its disk's jobs that are in progress.
    jobs: BTreeMap<u64, Job>,
    /// Of each chunk by its index: the committed version, and the update that was pending, when last looked at; since when.
    seen: BTreeMap<TargetId, Vec<(Seen, Nanos)>>,
    /// Committed while it didn't serve.
    unsettled: BTreeMap<ChunkId, (u64, WriteId)>,
}

struct World {
    config: Config,
    prng: Prng,
    now: Nanos,
    number: u64,
    queue: Queue<Happening>,
    managers: Managers,
    names: Names,
    /// When processes that stand still go on.
    still: BTreeMap<Owner, Nanos>,
    /// Of each node by number, and each chain from the first: the member that is on it, as it is stored.
    members: Vec<Vec<Option<TargetId>>>,
    nodes: Vec<SimNode>,
    places: Vec<Place>,
    clients: Vec<Client>,
    cuts: Vec<(End, End, Nanos)>,
    /// Commits of the managers' store conflict until then, or nobody hears what came of them.
    trouble_until: Nanos,
    /// The newest routing that any manager gave out.
    routing: Rc<RoutingInfo>,
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
    let (mut counts, managers) = (world.truth.counts, &world.managers);
    counts.milliseconds = world.now / MILLI;
    (counts.reigns, counts.gave_way) = managers.reigns();
    let names = &world.names.common;
    (counts.names_done, counts.names_again) = (names.done.get(), names.again.get());
    (counts.leases_lost, counts.clients_settled) = (names.leases_lost.get(), names.settled.get());
    (counts.store_conflicts, counts.store_unknown) =
        (managers.outcomes.conflicts.get(), managers.outcomes.unknown.get());
    Ok(counts)
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
        let nodes: Vec<SimNode> = (0..config.nodes())
            .map(|index| {
                let last = index + 1 == config.nodes();
                let bytes = if last { config.last_bytes } else { SLICE_BYTES };
                let mut node = SimNode::new(index, bytes, &mut prng);
                node.canary = config.canary;
                node
            })
            .collect();
        let shape = (config.nodes(), config.replicas, config.chains as u32);
        let clock = (DRIFT_PPM, MILLI);
        let managers =
            Managers::new(config.managers, shape, config.store_ms, config.canary, &mut prng, clock);
        let names = Self::names(&config, &managers, &mut prng);
        let routing = Rc::new(RoutingInfo::default());
        let client = |_| {
            let routing = Rc::clone(&routing);
            Client {
                sequence: 0,
                attempt: 0,
                first: 0,
                wish: None,
                routing,
                busy: false,
                damaged: 0,
                ask: None,
            }
        };
        let place = |_| Place {
            fast_ppm: prng.below(2 * DRIFT_PPM),
            offset: prng.below(1 << 40),
            stopped_until: 0,
            slow_until: 0,
            registered: false,
            manager: 0,
            beat: 0,
            asked: 0,
            refusals: BTreeSet::new(),
            version: 0,
            poll: 0,
            tick_at: Nanos::MAX,
            jobs: BTreeMap::new(),
            seen: BTreeMap::new(),
            unsettled: BTreeMap::new(),
        };
        Self {
            clients: (0..config.clients + HANDS).map(client).collect(),
            places: (0..config.nodes()).map(place).collect(),
            nodes,
            prng,
            now: MILLI,
            number: 0,
            queue: Queue::default(),
            members: Vec::new(),
            cuts: Vec::new(),
            trouble_until: 0,
            routing,
            managers,
            names,
            still: BTreeMap::new(),
            truth: Truth::new(!config.black_box),
            faults_left: config.faults,
            ending: false,
            config,
        }
    }

    fn live(&mut self) -> Result<(), String> {
        self.note_members();
        for node in 0..self.nodes.len() {
            self.start(node)?;
        }
        for manager in 0..self.managers.count() {
            let delay = self.prng.below(100 * MILLI);
            self.after(delay, Happening::ManagerUp { manager });
        }
        for client in 0..self.config.clients {
            self.after(MILLI, Happening::Next { client });
        }
        for server in 0..self.names.servers() {
            self.after(2 * MILLI, Happening::ServerUp { server });
        }
        for namer in 0..self.names.clients() {
            self.after(3 * MILLI, Happening::NamerUp { namer });
        }
        self.schedule_fault();
        self.after(self.config.least_ms * MILLI, Happening::Calm);
        let faults = self.config.faults * self.config.fault_every * MILLI;
        let mut end = self.config.least_ms * MILLI + faults + PATIENCE;
        while let Some((at, happening)) = self.queue.pop() {
            self.now = at;
            self.managers.timers.set_now(at);
            let (node, manager) = (happening.node(), happening.manager());
            let stops = |node: usize| self.places[node].stopped_until;
            let until = node.map_or(0, stops).max(manager.map_or(0, |at| self.managers.stopped_until(at)));
            if until > at {
                self.after(until - at, happening);
                continue;
            }
            let manages = manager.is_some() || happening.wakes_managers();
            self.happen(happening)?;
            if let Some(node) = node {
                self.look(node)?;
            }
            if manages {
                self.manage()?;
            }
            if !self.ending && self.has_lived() {
                self.end_faults();
                end = self.now + SETTLE;
            }
            if self.ending && self.is_settled() {
                return self.check();
            }
            if self.now > end {
                let chains = &self.managers.state.chains;
                let busy: Vec<usize> = (0..self.nodes.len()).filter(|node| !self.is_at_rest(*node)).collect();
                let wishes: Vec<_> = self.clients.iter().filter_map(|client| client.wish.as_ref()).collect();
                return Err(format!(
                    "nothing comes to its end any more: nodes {busy:?} are busy, clients wait for {wishes:?}, \
                     whoever leads is {:?}, chains {chains:?}",
                    self.managers.leader()
                ));
            }
        }
        Err("nothing happens any more".into())
    }

    /// Enough has happened.
    fn has_lived(&self) -> bool {
        self.faults_left == 0
            && self.now >= self.config.least_ms * MILLI
            && self.truth.counts.operations() >= self.config.least_operations
            && self.nodes.iter().all(|node| node.is_on() && !node.is_failing())
    }

    fn is_settled(&self) -> bool {
        // A node without room for what it missed is never filled: the others go on without it.
        let chains = &self.managers.state.chains;
        let serve = chains.values().all(|chain| chain.members.iter().any(serves));
        self.clients.iter().all(|client| client.wish.is_none())
            && self.names.is_at_rest()
            && (self.managers.is_whole() && self.managers.has_moved()
                || self.config.last_bytes < SLICE_BYTES && serve)
            && (0..self.nodes.len()).all(|node| self.is_at_rest(node))
    }

    /// Nothing is left to be done on a node.
    fn is_at_rest(&self, node: usize) -> bool {
        // One that is never filled keeps what it had pending until it is.
        let keeps = self.config.last_bytes < SLICE_BYTES && node + 1 == self.nodes.len();
        let node = &self.nodes[node];
        node.is_on() && (node.is_idle() || keeps) && node.is_verified()
    }

    /// What a node's clock says.
    fn clock(&self, node: usize) -> Nanos {
        let place = &self.places[node];
        let drift = u128::from(self.now) * u128::from(1_000_000 - DRIFT_PPM + place.fast_ppm) / 1_000_000;
        drift as Nanos + place.offset
    }

    fn after(&mut self, delay: Nanos, happening: Happening) {
        self.number += 1;
        self.queue.push(self.now + delay, self.number, happening);
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
                    self.retry(client)?;
                }
            }
            Happening::Next { client } => self.next_wish(client),
            Happening::Tick { node, epoch, at } => {
                if self.lives(node, epoch) && self.places[node].tick_at == at {
                    self.places[node].tick_at = Nanos::MAX;
                    let now = self.clock(node);
                    self.nodes[node].turn(now);
                    self.gather(node);
                }
            }
            Happening::Beat { node, epoch, number } => self.beat(node, epoch, number),
            Happening::Silence { node, epoch, number } => self.silence(node, epoch, number),
            Happening::Heartbeat { manager, node, epoch, sent, request } => {
                self.managers.heartbeat(manager, node, (epoch, sent), *request);
            }
            Happening::Register { manager, node, epoch, sent, dead } => {
                self.managers.register(manager, node, (epoch, sent), dead);
            }
            Happening::Poll { node, epoch, poll } => self.poll(node, epoch, poll),
            Happening::Polled { manager, node, epoch, poll, have } => {
                let mut request = GetRoutingT::default();
                (request.have, request.wait_ms) = (have, POLL_MS);
                self.managers.poll(manager, node, (epoch, poll), request);
            }
            Happening::Refused { node, epoch, manager, code } => self.refused(node, epoch, manager, code),
            Happening::News { node, epoch, poll, routing } => self.news(node, epoch, poll, routing)?,
            Happening::Leased { node, epoch, manager, sent, routing } => {
                self.leased((node, epoch), manager, sent, routing)?;
            }
            Happening::Moment { ticket } => self.managers.timers.fire(ticket),
            Happening::ManagerUp { manager } => self.managers.start(manager),
            Happening::ManagerGoesOn { manager } => {
                if self.managers.stopped_until(manager) <= self.now {
                    self.managers.go_on(manager);
                }
            }
            // It serves when it knows routing.
            Happening::ServerUp { server } if self.routing.version == 0 => {
                self.after(100 * MILLI, Happening::ServerUp { server });
            }
            Happening::ServerUp { server } => self.names.start_server(server),
            Happening::NamerUp { namer } => self.names.start_client(namer),
            Happening::ProcessGoesOn { owner, until } => {
                if self.still.get(&owner) == Some(&until) {
                    self.still.remove(&owner);
                    self.managers.tasks.stand_still(owner, false);
                }
            }
            Happening::StoreWell => {
                if self.now >= self.trouble_until {
                    self.managers.store.set_faults(Faults::default());
                }
            }
            Happening::Fault => self.fault(),
            Happening::Calm => {}
            Happening::On { node } => self.start(node)?,
            Happening::Restart { node, epoch } => {
                if self.lives(node, epoch) {
                    self.cut_power(node);
                }
            }
            Happening::Wanted { node, from, fetch } => {
                if self.nodes[node].is_on() {
                    let now = self.clock(node);
                    self.nodes[node].wanted(now, from, &fetch);
                    self.gather(node);
                }
            }
            Happening::Fetched { node, epoch, ticket, result } => {
                if self.lives(node, epoch) {
                    let now = self.clock(node);
                    self.nodes[node].fetched(now, ticket, result);
                    self.gather(node);
                }
            }
        }
        Ok(())
    }

    fn lives(&self, node: usize, epoch: u32) -> bool {
        self.nodes[node].epoch == epoch && self.nodes[node].is_on()
    }

    fn node_of(&self, target: TargetId) -> Option<usize> {
        Some(self.routing.targets.get(&target)?.node.0 as usize - 1)
    }

    /// Looks what a node has committed, and tells the truth about it.
    fn look(&mut self, node: usize) -> Result<(), String> {
        if let Some(what) = self.nodes[node].failure.take() {
            return Err(what);
        }
        let (chunks, now) = (self.config.chunks as usize, self.now);
        let (place, members) = (&mut self.places[node], &self.members[node]);
        for (first, target) in members.iter().enumerate() {
            let Some(target) = *target else { continue };
            let Some(replica) = self.nodes[node].look(target) else { continue };
            let seen = place.seen.entry(target).or_insert_with(|| vec![((0, None), now); chunks]);
            for index in (first..chunks).step_by(members.len()) {
                let chunk = ChunkId::new(InodeId(1), index as u32);
                let (version, pending) = replica.chunk(chunk);
                let pending = pending
                    .filter(|(_, tag)| tag.client.0 != 0)
                    .map(|(version, tag)| (version, write_id(&tag)));
                let (before, since) = &mut seen[index];
                if *before != (version, pending) {
                    *since = now;
                    let before = std::mem::replace(before, (version, pending));
                    if let (was, Some((expected, id))) = before
                        && was < version
                        && expected == version
                    {
                        place.unsettled.insert(chunk, (version, id));
                    }
                }
                if replica.serves
                    && !place.unsettled.is_empty()
                    && let Some((version, id)) = place.unsettled.remove(&chunk)
                {
                    self.truth.committed(chunk, version, id)?;
                }
            }
        }
        Ok(())
    }

    fn chain_of(&self, chunk: ChunkId) -> ChainId {
        ChainId(u64::from(chunk.index) % self.config.chains + 1)
    }

    /// The chains that are stored have changed.
    fn note_members(&mut self) {
        let chains = &self.managers.state.chains;
        let on = |node: usize, chain: u64| {
            let members = &chains.get(&ChainId(chain))?.members;
            members.iter().find(|member| member.node == id(node)).map(|member| member.target)
        };
        let of = |node| (1..=self.config.chains).map(|chain| on(node, chain)).collect();
        self.members = (0..self.config.nodes()).map(of).collect();
    }

    fn check(&mut self) -> Result<(), String> {
        for index in 0..self.config.chunks {
            let chunk = ChunkId::new(InodeId(1), index);
            let mut replicas = Vec::new();
            let chain = &self.managers.state.chains[&self.chain_of(chunk)];
            for member in chain.members.iter().filter(|member| serves(member)) {
                let node = self.node_of(member.target).ok_or("a replica without a node")?;
                replicas.push(self.nodes[node].held(member.target, chunk)?);
            }
            self.truth.check_end(chunk, &replicas)?;
            self.truth.check_register(chunk)?;
        }
        self.names.check()
    }
}
