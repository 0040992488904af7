//! The world of the model: three nodes, a manager, a network that keeps messages as long as it likes, clients.
//!
//! The manager's decisions are the real ones ([`reconfigure`]); time is abstracted: the manager may take a node for dead only
//! when the node has no lease any more, which is what the margins of leases are for.

use super::disk::Write;
use super::node::{Node, Requester, Said, chunk, node_of, offer};
use corefs_engine::chain::{Input, Role, is_definite};
use corefs_engine::event::Ack;
use corefs_mgmtd::cluster::formation::Formation;
use corefs_mgmtd::cluster::liveness::{Liveness, SliceHealth, TargetHealth, Terms};
use corefs_mgmtd::cluster::moves;
use corefs_mgmtd::cluster::reconfigure::{Restart, may_renew, reconfigure};
use corefs_mgmtd::cluster::routing;
use corefs_mgmtd::cluster::state::{Arrival, Chain, Member, Node as Known, Slice, State as Cluster};
use corefs_mgmtd::cluster::transition::Public;
use corefs_wire::{Error, ErrorCode, NodeId, TargetId, Uuid};
use stateright::{Model, Property};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::thread::LocalKey;

const TERMS: Terms =
    Terms { lease_ms: 1000, margin_ms: 200, client_lease_ms: 15_000, forget_meta_ms: 60_000 };

/// A rule that is broken on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    Nothing,
    AnswersInvented,
    ReadsUnguarded,
    FillingSkipped,
    DeadTooSoon,
    SparedAnyway,
}

/// Where an answer goes: a node, and its attempt, 0 if that is over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct To {
    pub node: usize,
    pub attempt: u64,
}

impl To {
    /// Attempts of node number `of` have become others, or are over.
    pub fn rename(&mut self, of: usize, attempts: &BTreeMap<u64, u64>) {
        if self.node == of {
            self.attempt = attempts.get(&self.attempt).copied().unwrap_or(0);
        }
    }

    fn waits(self) -> bool {
        self.attempt != 0
    }
}

/// Something on the network.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Message {
    Forward { from: To, to: TargetId, write: Write, version: u64, chain_version: u64, base: u64 },
    Answer { to: To, result: Result<AckBits, ErrorCode> },
    Fill { from: To, to: TargetId, chain_version: u64, history: Vec<Write> },
    Filled { to: To, result: Result<(), ErrorCode> },
    Rows { to: TargetId, chain_version: u64, rows: BTreeSet<Write> },
}

impl Message {
    /// Whose attempt it belongs to.
    fn sender_mut(&mut self) -> Option<&mut To> {
        match self {
            Self::Forward { from, .. } | Self::Fill { from, .. } => Some(from),
            Self::Answer { to, .. } | Self::Filled { to, .. } => Some(to),
            Self::Rows { .. } => None,
        }
    }

    fn sender(&self) -> Option<To> {
        match self {
            Self::Forward { from, .. } | Self::Fill { from, .. } => Some(*from),
            Self::Answer { to, .. } | Self::Filled { to, .. } => Some(*to),
            Self::Rows { .. } => None,
        }
    }

    fn chain_version(&self) -> Option<u64> {
        match self {
            Self::Forward { chain_version, .. }
            | Self::Fill { chain_version, .. }
            | Self::Rows { chain_version, .. } => Some(*chain_version),
            Self::Answer { .. } | Self::Filled { .. } => None,
        }
    }
}

/// An [`Ack`], with an order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AckBits(pub u64, pub u32, pub u32);

impl From<Ack> for AckBits {
    fn from(ack: Ack) -> Self {
        Self(ack.version, ack.length, ack.merged_crc)
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    pub chain: Chain,
    pub nodes: Vec<Node>,
    pub network: BTreeSet<Message>,
    asked: Vec<Asked>,
    pub acknowledged: BTreeSet<Write>,
    /// The longest history that anybody has seen.
    pub shown: Vec<Write>,
    failures: u8,
    rotations: u8,
    /// What didn't hold.
    pub fault: Option<&'static str>,
}

/// How far a client has come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Asked {
    NotYet,
    /// Under this chain version, and it waits for the answer.
    Under(u64),
    /// It was refused, and asks again.
    Refused,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// A client that knows the routing which the node knows offers its update to it.
    Ask {
        write: Write,
        node: usize,
    },
    Deliver(Message),
    Lose(Message),
    /// Power is lost; what was committed in memory was on the disk, or not.
    Cut {
        node: usize,
        keeps: bool,
    },
    /// The lease ends: the node stands still or is cut off.
    Lapse {
        node: usize,
    },
    /// The manager takes a node for dead.
    Bury {
        node: usize,
    },
    Boot {
        node: usize,
    },
    /// A heartbeat and its answer: the lease and what routing says.
    Beat {
        node: usize,
    },
    /// The head is handed on.
    Rotate,
    /// The manager hears that a node is filled, or was spared.
    Claim {
        node: usize,
    },
    /// A reminder is due.
    Due {
        node: usize,
    },
    /// Nobody answers about a chunk that was sent to fill the successor.
    Unanswered {
        node: usize,
    },
    /// A predecessor begins to fill its successor.
    Walk {
        node: usize,
    },
}

/// What the manager makes of a chain, of what it has heard from each node (the chain version that it knows), of a node that
/// registers, and of one that says that it is filled: the next chain, and whether the cluster's rows agree with each other.
type Changes = HashMap<(Chain, Vec<Option<u64>>, Option<usize>, Option<usize>), (Chain, bool)>;
/// Of each node of a chain whether it may have a lease, given who has heard of the chain as it is.
type Leases = HashMap<(Chain, Vec<bool>), Vec<bool>>;

// There are few chains, and they come again and again.
thread_local! {
    static CHANGES: RefCell<Changes> = RefCell::default();
    static ROLES: RefCell<HashMap<(Chain, usize), Option<Role>>> = RefCell::default();
    static LEASES: RefCell<Leases> = RefCell::default();
}

fn remembered<K: Eq + Hash, V: Clone>(
    memory: &'static LocalKey<RefCell<HashMap<K, V>>>,
    key: K,
    make: impl FnOnce() -> V,
) -> V {
    memory.with_borrow_mut(|memory| memory.entry(key).or_insert_with(make).clone())
}

/// Whether a node will never again be at a chain version when the chain is at `now`: it is at a later one, or will come to one. Whoever is
/// off comes up under a new one.
fn is_past(now: u64, node: &Node, version: u64) -> bool {
    !node.on || version < now && node.role().is_none_or(|role| role.version > version)
}

impl State {
    /// Makes states equal that differ only in what makes no difference.
    ///
    /// - Attempts have new names ([`Replica::rename`](corefs_engine::chain::Replica::rename)); what belongs to one that is over is ignored.
    /// - Chain versions become the first numbers in their order: they are only compared, and the next one is the last plus one. Those after the one
    ///   that a node knows keep a number, since a node that has missed one isn't spared.
    /// - Messages to which nobody will ever listen are gone, and so is what is noted of earlier chain versions and never asked for.
    fn settle(&mut self) {
        let version = self.chain.version;
        let mut found = BTreeSet::from([version]);
        let attempts: Vec<_> = self.nodes.iter_mut().map(|node| node.forget(version, &mut found)).collect();
        // Whether a node has missed a chain version makes a difference.
        let known = self.nodes.iter().filter_map(|node| Some(node.role()?.version + 1));
        found.extend(known.filter(|next| *next < version).collect::<Vec<_>>());
        for (of, attempts) in attempts.iter().enumerate() {
            self.nodes.iter_mut().for_each(|node| node.rename_requesters(of, attempts));
        }
        for asked in &mut self.asked {
            if let Asked::Under(under) = *asked {
                let knows = |node: &Node| node.role().is_some_and(|role| role.version <= under);
                if under == version || self.nodes.iter().any(knows) {
                    found.insert(under);
                } else {
                    *asked = Asked::Refused;
                }
            }
        }
        if self.failures == 0 {
            // No power is lost any more.
            self.nodes.iter_mut().for_each(|node| node.disk.unflushed = None);
        }
        let nodes = &self.nodes;
        let past = |to: TargetId, of: u64| is_past(version, &nodes[node_of(to)], of);
        let keep = |mut message: Message| {
            if let Some(to) = message.sender_mut() {
                to.rename(to.node, &attempts[to.node]);
            }
            let matters = match &message {
                Message::Forward { from, to, chain_version, .. }
                | Message::Fill { from, to, chain_version, .. } => from.waits() || !past(*to, *chain_version),
                Message::Answer { to, .. } | Message::Filled { to, .. } => to.waits(),
                Message::Rows { to, chain_version, .. } => !past(*to, *chain_version),
            };
            matters.then_some(message)
        };
        self.network = std::mem::take(&mut self.network).into_iter().filter_map(keep).collect();
        found.extend(self.network.iter().filter_map(Message::chain_version));
        let last = found.len() as u64;
        if found.last() != Some(&last) {
            let names: BTreeMap<u64, u64> = found.into_iter().zip(1..).collect();
            self.rename_versions(&|version| names[&version]);
        }
    }

    /// A message that can only come to nothing: what its sender is told.
    fn refusal<'a>(&self, message: &'a Message) -> Option<(&'a Message, Input)> {
        let chunk = chunk();
        let past = |to: TargetId, of: u64| is_past(self.chain.version, &self.nodes[node_of(to)], of);
        let stale = || Error::from(ErrorCode::StaleRouting);
        let input = match *message {
            Message::Forward { from, to, chain_version, .. } if past(to, chain_version) => {
                Input::Answered { chunk, attempt: from.attempt, result: Err(stale()) }
            }
            Message::Fill { from, to, chain_version, .. } if past(to, chain_version) => {
                Input::Filled { chunk, attempt: from.attempt, result: Err(stale()) }
            }
            Message::Answer { to, result: Err(code) } if only_pauses(code) => {
                Input::Answered { chunk, attempt: to.attempt, result: Err(code.into()) }
            }
            Message::Filled { to, result: Err(code) } => {
                Input::Filled { chunk, attempt: to.attempt, result: Err(code.into()) }
            }
            _ => return None,
        };
        Some((message, input))
    }

    fn rename_versions(&mut self, version: &dyn Fn(u64) -> u64) {
        self.chain.version = version(self.chain.version);
        for asked in &mut self.asked {
            if let Asked::Under(under) = asked {
                *under = version(*under);
            }
        }
        self.nodes.iter_mut().for_each(|node| drop(node.rename(&mut |of| version(of))));
        let rename = |mut message: Message| {
            if let Message::Forward { chain_version, .. }
            | Message::Fill { chain_version, .. }
            | Message::Rows { chain_version, .. } = &mut message
            {
                *chain_version = version(*chain_version);
            }
            message
        };
        self.network = std::mem::take(&mut self.network).into_iter().map(rename).collect();
    }
}

/// Whoever is refused so asks again later.
fn only_pauses(code: ErrorCode) -> bool {
    !is_definite(code) && !matches!(code, ErrorCode::NeedsWhole | ErrorCode::ReplicasDiffer)
}

/// How much there is to explore.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Updates wait at the head for each other; otherwise clients ask when it has nothing to do, which comes to the same.
    pub queues: bool,
    pub writes: u8,
    pub failures: u8,
    /// How often a head is handed on, at most.
    pub rotations: u8,
    pub broken: Broken,
    pub cluster: Cluster,
}

impl Bounds {
    pub fn new(writes: u8, failures: u8, broken: Broken) -> Self {
        let formation = Formation { nodes: 3, replicas: 3, targets_per_node: 1, ..Formation::default() };
        let mut cluster = Cluster::new(Uuid([1; 16]), formation);
        for node in 1..=3u8 {
            let address = |port: u8| format!("127.0.0.{node}:{port}");
            let (shard, disk, standing) = Default::default();
            let slices = vec![Slice { store: Uuid([node; 16]), shard, capacity: 1 << 30, disk, standing }];
            let (domain, control, shards) = (String::new(), address(1), vec![address(2)]);
            let known = Known { incarnation: 0, domain, control, shards, slices };
            cluster.register(Arrival { id: None, node: known }).unwrap();
        }
        cluster.form(|_, _| true).unwrap().unwrap();
        Self { queues: false, writes, failures, rotations: 0, broken, cluster }
    }

    fn cluster(&self, state: &State) -> Cluster {
        let mut cluster = self.cluster.clone();
        cluster.chains.values_mut().for_each(|chain| *chain = state.chain.clone());
        cluster
    }

    /// What the manager has heard; `claims` says of itself that it is filled.
    fn liveness(&self, state: &State, claims: Option<usize>) -> Liveness {
        let mut liveness = Liveness::new(TERMS);
        for member in &state.chain.members {
            let node = node_of(member.target);
            if !state.nodes[node].heard {
                continue;
            }
            liveness.hear_node(member.node, vec![SliceHealth::default()], 0);
            let up_to_date = (claims == Some(node)).then_some(state.chain.version);
            let version = state.nodes[node].role().map_or(0, |role| role.version);
            let health = TargetHealth { up_to_date, version, ..TargetHealth::default() };
            liveness.hear_targets(member.node, BTreeMap::from([(member.target, health)]), 0);
        }
        liveness
    }

    fn reconfigure(&self, state: &mut State, restarted: Option<usize>, claims: Option<usize>) {
        let known = |node: &Node| node.heard.then(|| node.role().map_or(0, |role| role.version));
        let key = (state.chain.clone(), state.nodes.iter().map(known).collect(), restarted, claims);
        let (chain, sound) = remembered(&CHANGES, key, || {
            let mut cluster = self.cluster(state);
            let liveness = self.liveness(state, claims);
            let restarted = restarted.map(|node| Restart { node: id_of(state, node), slices: &[] });
            reconfigure(&mut cluster, &liveness, restarted);
            let sound = cluster.check().is_ok();
            (cluster.chains.into_values().next().unwrap(), sound)
        });
        if !sound {
            state.fault = Some("the cluster's rows contradict each other");
        }
        state.chain = chain;
    }

    fn role(&self, state: &State, node: usize) -> Option<Role> {
        remembered(&ROLES, (state.chain.clone(), node), || {
            let info = routing::build(&self.cluster(state), &self.liveness(state, None), 1);
            Role::of(target_of(node), info.chains.values().next()?)
        })
    }

    /// Of each node whether it may have a lease.
    fn may_renew(&self, state: &State) -> Vec<bool> {
        let key = (state.chain.clone(), state.nodes.iter().map(|node| node.heard).collect());
        remembered(&LEASES, key, || {
            let (cluster, liveness) = (self.cluster(state), self.liveness(state, None));
            (0..state.nodes.len()).map(|node| may_renew(&cluster, &liveness, id_of(state, node))).collect()
        })
    }

    /// Takes over what a node has said.
    fn hear(&self, state: &mut State, node: usize, said: Said) {
        for mut message in said.messages {
            if let Message::Forward { from, .. } | Message::Fill { from, .. } = &mut message {
                from.node = node;
            }
            state.network.insert(message);
        }
        for write in said.acknowledged {
            state.acknowledged.insert(write);
            let at = state.nodes[node].disk.history.iter().position(|done| *done == write);
            match at {
                Some(at) => {
                    let history = state.nodes[node].disk.history[..=at].to_vec();
                    self.show(state, &history);
                }
                None => state.fault = Some("what is acknowledged isn't committed at the head"),
            }
        }
        // Whoever was refused asks again.
        said.refused.iter().for_each(|write| state.asked[usize::from(*write)] = Asked::Refused);
        if said.differs {
            state.fault = Some("replicas differ");
        }
    }

    /// Somebody sees this history: it must not contradict what was seen before. A shorter one is what an acknowledgment of
    /// something older says; reads are looked at by themselves.
    fn show(&self, state: &mut State, history: &[Write]) {
        let common = history.len().min(state.shown.len());
        if history[..common] != state.shown[..common] {
            state.fault = Some("two histories were seen");
        } else if history.len() > state.shown.len() {
            state.shown = history.to_vec();
        }
    }

    fn tell(&self, state: &mut State, node: usize, input: Input) {
        let mut said = Said::default();
        state.nodes[node].tell(input, &mut said, self.broken);
        self.hear(state, node, said);
    }

    fn deliver(&self, state: &mut State, message: Message) {
        match message {
            Message::Forward { from, to, write, version, chain_version, base } => {
                let node = node_of(to);
                if state.nodes[node].on {
                    let mut said = Said::default();
                    let offer = offer(write, chain_version, Some(version), base);
                    state.nodes[node].offered(Requester::Node(from), offer, &mut said, self.broken);
                    self.hear(state, node, said);
                }
            }
            Message::Answer { to, result } => {
                let ack = |AckBits(version, length, merged_crc)| Ack { version, length, merged_crc };
                let result = result.map(ack).map_err(Error::from);
                self.tell(state, to.node, Input::Answered { chunk: chunk(), attempt: to.attempt, result });
            }
            Message::Fill { from, to, chain_version, history } => {
                let node = &mut state.nodes[node_of(to)];
                if node.on {
                    let result =
                        node.filled_with(chain_version, &history, self.broken).map_err(|error| error.code);
                    state.network.insert(Message::Filled { to: from, result });
                }
            }
            Message::Filled { to, result } => {
                let result = result.map_err(Error::from);
                self.tell(state, to.node, Input::Filled { chunk: chunk(), attempt: to.attempt, result });
            }
            Message::Rows { to, chain_version, rows } => {
                let node = &mut state.nodes[node_of(to)];
                if node.on && node.admit_filling(chain_version).is_ok() {
                    node.tell(Input::LetGo, &mut Said::default(), self.broken);
                    node.replica.took_over();
                    node.disk.rows.extend(rows);
                    node.filled = Some(chain_version);
                }
            }
        }
    }

    fn beat(&self, state: &mut State, node: usize) {
        if !state.nodes[node].heard {
            state.nodes[node].heard = true;
            self.reconfigure(state, None, None);
        }
        let role = self.role(state, node);
        state.nodes[node].leased = true;
        if let Some(role) = role {
            self.tell(state, node, Input::Role(role));
        }
    }

    /// What can be seen right now, by readers of every replica.
    fn look(&self, state: &mut State) {
        // One that was head and doesn't know better yet commits nothing as long as it counts for every commit itself.
        let counts = |node: usize| {
            let here = |member: &&Member| member.target == target_of(node);
            let member = state.chain.members.iter().find(here);
            member.is_some_and(|member| matches!(member.state, Public::Serving | Public::Syncing))
        };
        let heads: Vec<usize> = (0..state.nodes.len()).filter(|node| state.nodes[*node].heads()).collect();
        let versions: BTreeSet<_> =
            heads.iter().filter_map(|node| Some(state.nodes[*node].role()?.version)).collect();
        if heads.len() > 1 && (versions.len() < heads.len() || !heads.iter().all(|node| counts(*node))) {
            state.fault = Some("two heads take updates");
        }
        for node in 0..state.nodes.len() {
            let Some(history) = state.nodes[node].shows(self.broken).map(<[Write]>::to_vec) else { continue };
            if history.len() < state.shown.len() {
                state.fault = Some("a read returns less than one before it");
            }
            if (1..history.len()).any(|at| history[..at].contains(&history[at])) {
                state.fault = Some("an update was done twice");
            }
            self.show(state, &history);
        }
        for member in state.chain.members.iter().filter(|member| member.state == Public::Serving) {
            let disk = &state.nodes[node_of(member.target)].disk;
            if state.acknowledged.iter().any(|write| !disk.holds(*write)) {
                state.fault = Some("a replica that serves lacks what was acknowledged");
            }
        }
    }

    /// Everything is done and whole.
    pub fn is_whole(&self, state: &State) -> bool {
        state.acknowledged.len() == usize::from(self.writes)
            && state.chain.members.iter().all(|member| member.state == Public::Serving)
            && state.nodes.iter().all(|node| node.disk.history == state.nodes[0].disk.history)
    }

    /// Lets happen at once what can't happen in any other way and makes no difference until later: that a successor can't take what was sent
    /// is heard. Whoever asked pauses, and goes on from there as it would go on waiting: when it is reminded, or in another role.
    fn settle(&self, state: &mut State) {
        loop {
            state.settle();
            let Some((message, input)) = state.network.iter().find_map(|message| state.refusal(message))
            else {
                return;
            };
            let (message, node) = (message.clone(), message.sender().map_or(0, |to| to.node));
            state.network.remove(&message);
            self.tell(state, node, input);
        }
    }

    fn possible(&self, state: &State) -> Vec<Action> {
        let mut actions = Vec::new();
        if state.fault.is_some() {
            return actions;
        }
        let messages = || state.network.iter();
        let may_renew = self.may_renew(state);
        let takes = |(_, here): &(usize, &Node)| here.heads() && (self.queues || here.is_idle());
        for (node, here) in state.nodes.iter().enumerate().filter(takes) {
            let version = here.role().map_or(0, |role| role.version);
            for write in (0..self.writes).filter(|write| !state.acknowledged.contains(write)) {
                let asks = match state.asked[usize::from(write)] {
                    // Which client is which makes no difference: the first ones ask first.
                    Asked::NotYet => write == 0 || state.asked[usize::from(write) - 1] != Asked::NotYet,
                    Asked::Under(before) => before < version,
                    Asked::Refused => true,
                };
                if asks {
                    actions.push(Action::Ask { write, node });
                }
            }
        }
        actions.extend(messages().cloned().map(Action::Deliver));
        for (node, here) in state.nodes.iter().enumerate() {
            if here.on {
                let stale = here.role().is_none_or(|role| role.version < state.chain.version);
                let may = may_renew[node];
                if may && (stale || !here.leased || !here.heard) {
                    actions.push(Action::Beat { node });
                }
                let fresh = !stale && here.leased;
                let skips = self.broken == Broken::FillingSkipped;
                let claims = skips || here.filled == Some(state.chain.version);
                let syncing = here.role().is_some_and(Role::syncing);
                let waits = here.role().is_some_and(|role| !role.served && !role.syncing());
                let spared = here.replica.is_spared() || self.broken == Broken::SparedAnyway && waits;
                if fresh && here.heard && (syncing && claims || spared) {
                    actions.push(Action::Claim { node });
                }
                if fresh && here.due.is_some() && self.is_worth_trying(state, node) {
                    actions.push(Action::Due { node });
                }
                if fresh && here.filling.is_some() && self.is_worth_trying(state, node) {
                    actions.push(Action::Unanswered { node });
                }
                if fresh && self.may_walk(state, node) {
                    actions.push(Action::Walk { node });
                }
            } else {
                actions.push(Action::Boot { node });
            }
            let gone = !here.on || !here.leased || self.broken == Broken::DeadTooSoon && state.failures > 0;
            if here.heard && gone {
                actions.push(Action::Bury { node });
            }
        }
        if state.rotations > 0 && self.is_steady(state) {
            actions.push(Action::Rotate);
        }
        if state.failures > 0 {
            for (node, here) in state.nodes.iter().enumerate().filter(|(_, here)| here.on) {
                actions.push(Action::Cut { node, keeps: true });
                if here.disk.unflushed.is_some() {
                    actions.push(Action::Cut { node, keeps: false });
                }
                if here.leased {
                    actions.push(Action::Lapse { node });
                }
            }
            actions.extend(messages().cloned().map(Action::Lose));
        }
        actions
    }

    /// The head may be handed on: everybody serves, was heard of and knows.
    fn is_steady(&self, state: &State) -> bool {
        let knows = |node: &Node| node.role().is_some_and(|role| role.version == state.chain.version);
        state.nodes.iter().all(|node| node.heard && knows(node))
            && state.chain.members.iter().all(|member| member.state == Public::Serving)
    }

    /// Asking a successor again is left out while it can only be refused, or while an earlier attempt is under way or being
    /// worked on: attempts would be numbered without end.
    fn is_worth_trying(&self, state: &State, node: usize) -> bool {
        let here = &state.nodes[node];
        let waits = state.network.iter().any(|message| match message {
            Message::Forward { from, .. } | Message::Fill { from, .. } => from.node == node && from.waits(),
            Message::Answer { to, .. } | Message::Filled { to, .. } => to.node == node,
            _ => false,
        });
        let Some(role) = here.role() else { return false };
        let ready = |target| {
            let next: &Node = &state.nodes[node_of(target)];
            let same = next.role().is_some_and(|theirs| theirs.version == role.version);
            next.on && next.leased && same && next.is_idle()
        };
        !here.is_idle() && !waits && role.successor.is_none_or(ready)
    }

    fn may_walk(&self, state: &State, node: usize) -> bool {
        let here = &state.nodes[node];
        let Some(role) = here.role().filter(|role| role.filling && here.is_idle()) else { return false };
        let filling = |message: &Message| matches!(message, Message::Fill { .. } | Message::Rows { .. });
        let Some(next) = role.successor.map(node_of) else { return false };
        let ready = state.nodes[next].admit_filling(role.version).is_ok();
        ready && state.nodes[next].filled != Some(role.version) && !state.network.iter().any(filling)
    }
}

fn target_of(node: usize) -> TargetId {
    TargetId(node as u64 + 1)
}

fn id_of(state: &State, node: usize) -> NodeId {
    let member = state.chain.members.iter().find(|member| member.target == target_of(node));
    member.map(|member| member.node).unwrap_or_default()
}

impl Model for Bounds {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let chain = self.cluster.chains.values().next().unwrap().clone();
        let (network, acknowledged, shown) = Default::default();
        let (nodes, asked) = (vec![Node::new(); 3], vec![Asked::NotYet; usize::from(self.writes)]);
        let (failures, rotations, fault) = (self.failures, self.rotations, None);
        let mut state =
            State { chain, nodes, network, asked, acknowledged, shown, failures, rotations, fault };
        (0..3).for_each(|node| self.beat(&mut state, node));
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend(self.possible(state));
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        let state = &mut next;
        match action {
            Action::Ask { write, node } => {
                let chain_version = state.nodes[node].role()?.version;
                state.asked[usize::from(write)] = Asked::Under(chain_version);
                let mut said = Said::default();
                let offer = offer(write, chain_version, None, 0);
                state.nodes[node].offered(Requester::Client, offer, &mut said, self.broken);
                self.hear(state, node, said);
            }
            Action::Deliver(message) => {
                state.network.remove(&message);
                self.deliver(state, message);
            }
            Action::Lose(message) => {
                state.failures -= 1;
                state.network.remove(&message);
            }
            Action::Cut { node, keeps } => {
                state.failures -= 1;
                state.nodes[node].cut(keeps);
            }
            Action::Lapse { node } => {
                state.failures -= 1;
                state.nodes[node].leased = false;
            }
            Action::Bury { node } => {
                if self.broken == Broken::DeadTooSoon && state.nodes[node].leased {
                    state.failures -= 1;
                }
                state.nodes[node].heard = false;
                self.reconfigure(state, None, None);
            }
            Action::Boot { node } => {
                let mut said = Said::default();
                state.nodes[node].boot(&mut said, self.broken);
                self.hear(state, node, said);
                state.nodes[node].heard = true;
                self.reconfigure(state, Some(node), None);
            }
            Action::Beat { node } => self.beat(state, node),
            Action::Rotate => {
                state.rotations -= 1;
                let mut cluster = self.cluster(state);
                let chain = *cluster.chains.keys().next()?;
                moves::apply(&mut cluster, moves::Step::Rotate { chain });
                state.chain = cluster.chains.into_values().next()?;
            }
            Action::Claim { node } => self.reconfigure(state, None, Some(node)),
            Action::Due { node } => {
                if let Some(attempt) = state.nodes[node].due.take() {
                    self.tell(state, node, Input::Due { chunk: chunk(), attempt });
                }
            }
            Action::Unanswered { node } => {
                if let Some(attempt) = state.nodes[node].filling.take() {
                    let result = Err(ErrorCode::TimedOut.into());
                    self.tell(state, node, Input::Filled { chunk: chunk(), attempt, result });
                }
            }
            Action::Walk { node } => self.tell(state, node, Input::Fill { chunk: chunk() }),
        }
        self.look(state);
        self.settle(state);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing acknowledged is lost", |_, state: &State| state.fault.is_none()),
            Property::always("it comes to rest only when it is whole", |model: &Self, state: &State| {
                let goes_on = state.fault.is_some() || !state.network.is_empty() || model.is_whole(state);
                goes_on || !model.possible(state).is_empty()
            }),
            Property::sometimes("everything is done", |model: &Self, state: &State| model.is_whole(state)),
        ]
    }
}
