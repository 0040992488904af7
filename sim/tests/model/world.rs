//! The world of the model: three nodes, a manager, a network that keeps messages as long as it likes, clients.
//!
//! The manager's decisions are the real ones ([`reconfigure`]); time is abstracted: the manager may take a node for dead only
//! when the node has no lease any more, which is what the margins of leases are for.

use super::disk::Write;
use super::node::{Node, Requester, Said, chunk, node_of, offer};
use corefs_engine::chain::{Input, Role};
use corefs_engine::event::Ack;
use corefs_mgmtd::cluster::formation::Formation;
use corefs_mgmtd::cluster::liveness::{Liveness, SliceHealth, TargetHealth, Terms};
use corefs_mgmtd::cluster::reconfigure::{may_renew, reconfigure};
use corefs_mgmtd::cluster::routing;
use corefs_mgmtd::cluster::state::{Arrival, Chain, Node as Known, Slice, State as Cluster};
use corefs_mgmtd::cluster::transition::Public;
use corefs_wire::{Error, ErrorCode, NodeId, TargetId, Uuid};
use stateright::{Model, Property};
use std::collections::{BTreeMap, BTreeSet};

const TERMS: Terms =
    Terms { lease_ms: 1000, margin_ms: 200, client_lease_ms: 15_000, forget_meta_ms: 60_000 };

/// A rule that is broken on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    Nothing,
    AnswersInvented,
    ReadsUnguarded,
    RowsForgotten,
    PendingsKept,
    FillingSkipped,
    DeadTooSoon,
}

/// Where an answer goes: a node's process, and its attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct To {
    pub node: usize,
    pub process: u8,
    pub attempt: u64,
}

/// Something on the network.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Message {
    Write { node: usize, write: Write, chain_version: u64 },
    Forward { from: To, to: TargetId, write: Write, version: u64, chain_version: u64, base: u64 },
    Answer { to: To, result: Result<AckBits, ErrorCode> },
    Fill { from: To, to: TargetId, chain_version: u64, history: Vec<Write> },
    Filled { to: To, result: Result<(), ErrorCode> },
    Rows { to: TargetId, chain_version: u64, rows: BTreeSet<Write> },
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
    /// The chain version under which each client asked last; 0: not yet.
    asked: Vec<u64>,
    pub acknowledged: BTreeSet<Write>,
    /// The longest history that anybody has seen.
    pub shown: Vec<Write>,
    failures: u8,
    /// What didn't hold.
    pub fault: Option<&'static str>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    Ask {
        write: Write,
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
    /// The manager hears that a node is filled.
    Claim {
        node: usize,
    },
    /// A reminder is due.
    Due {
        node: usize,
    },
    /// A predecessor begins to fill its successor.
    Walk {
        node: usize,
    },
}

/// How much there is to explore.
#[derive(Clone, Debug)]
pub struct Bounds {
    pub writes: u8,
    pub failures: u8,
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
        Self { writes, failures, broken, cluster }
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
            liveness.hear_targets(member.node, BTreeMap::from([(member.target, health)]));
        }
        liveness
    }

    fn reconfigure(&self, state: &mut State, restarted: Option<usize>, claims: Option<usize>) {
        let mut cluster = self.cluster(state);
        let liveness = self.liveness(state, claims);
        let id = restarted.map(|node| id_of(state, node));
        reconfigure(&mut cluster, &liveness, id);
        if cluster.check().is_err() {
            state.fault = Some("the cluster's rows contradict each other");
        }
        state.chain = cluster.chains.into_values().next().unwrap();
    }

    fn role(&self, state: &State, node: usize) -> Option<Role> {
        let info = routing::build(&self.cluster(state), &self.liveness(state, None), 1);
        Role::of(target_of(node), info.chains.values().next()?)
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
        said.refused.iter().for_each(|write| state.asked[usize::from(*write)] = 0);
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
            Message::Write { node, write, chain_version } => {
                if !state.nodes[node].on {
                    state.asked[usize::from(write)] = 0;
                } else {
                    let mut said = Said::default();
                    let offer = offer(write, chain_version, None, 0);
                    state.nodes[node].offered(Requester::Client, offer, &mut said, self.broken);
                    self.hear(state, node, said);
                }
            }
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
                if state.nodes[to.node].on && state.nodes[to.node].process == to.process {
                    self.tell(
                        state,
                        to.node,
                        Input::Answered { chunk: chunk(), attempt: to.attempt, result },
                    );
                }
            }
            Message::Fill { from, to, chain_version, history } => {
                let node = &mut state.nodes[node_of(to)];
                if node.on {
                    let result = node.filled_with(chain_version, &history).map_err(|error| error.code);
                    state.network.insert(Message::Filled { to: from, result });
                }
            }
            Message::Filled { to, result } => {
                let result = result.map_err(Error::from);
                if state.nodes[to.node].on && state.nodes[to.node].process == to.process {
                    self.tell(state, to.node, Input::Filled { chunk: chunk(), attempt: to.attempt, result });
                }
            }
            Message::Rows { to, chain_version, rows } => {
                let node = &mut state.nodes[node_of(to)];
                if node.on && node.admit_filling(chain_version).is_ok() {
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
        if state.nodes.iter().filter(|node| node.heads()).count() > 1 {
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

    fn possible(&self, state: &State) -> Vec<Action> {
        let mut actions = Vec::new();
        if state.fault.is_some() {
            return actions;
        }
        let messages = || state.network.iter();
        for write in 0..self.writes {
            let under_way =
                messages().any(|message| matches!(message, Message::Write { write: of, .. } if *of == write));
            let asks = state.asked[usize::from(write)] != state.chain.version && self.head(state).is_some();
            if asks && !under_way && !state.acknowledged.contains(&write) {
                actions.push(Action::Ask { write });
            }
        }
        actions.extend(messages().cloned().map(Action::Deliver));
        for (node, here) in state.nodes.iter().enumerate() {
            if here.on {
                let stale = here.role().is_none_or(|role| role.version < state.chain.version);
                let may = may_renew(&self.cluster(state), &self.liveness(state, None), id_of(state, node));
                if may && (stale || !here.leased || !here.heard) {
                    actions.push(Action::Beat { node });
                }
                let fresh = !stale && here.leased;
                let skips = self.broken == Broken::FillingSkipped;
                let claims = skips || here.filled == Some(state.chain.version);
                let syncing = here.role().is_some_and(Role::syncing);
                if fresh && here.heard && syncing && claims {
                    actions.push(Action::Claim { node });
                }
                if fresh && here.due.is_some() && self.is_worth_trying(state, node) {
                    actions.push(Action::Due { node });
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

    fn head(&self, state: &State) -> Option<usize> {
        let first = state.chain.members.first().filter(|member| member.state == Public::Serving)?;
        Some(node_of(first.target))
    }

    /// Asking a successor again is left out while it can only be refused, or while an earlier attempt is under way or being
    /// worked on: attempts would be numbered without end.
    fn is_worth_trying(&self, state: &State, node: usize) -> bool {
        let here = &state.nodes[node];
        let waits = state.network.iter().any(|message| match message {
            Message::Forward { from, .. } | Message::Fill { from, .. } => from.node == node,
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
        let (nodes, asked) = (vec![Node::new(); 3], vec![0; usize::from(self.writes)]);
        let failures = self.failures;
        let mut state = State { chain, nodes, network, asked, acknowledged, shown, failures, fault: None };
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
            Action::Ask { write } => {
                let node = self.head(state)?;
                let chain_version = state.chain.version;
                state.asked[usize::from(write)] = chain_version;
                state.network.insert(Message::Write { node, write, chain_version });
            }
            Action::Deliver(message) => {
                state.network.remove(&message);
                self.deliver(state, message);
            }
            Action::Lose(message) => {
                state.failures -= 1;
                state.network.remove(&message);
                if let Message::Write { write, .. } = message {
                    state.asked[usize::from(write)] = 0;
                }
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
            Action::Claim { node } => self.reconfigure(state, None, Some(node)),
            Action::Due { node } => {
                if let Some(attempt) = state.nodes[node].due.take() {
                    self.tell(state, node, Input::Due { chunk: chunk(), attempt });
                }
            }
            Action::Walk { node } => self.tell(state, node, Input::Fill { chunk: chunk() }),
        }
        self.look(state);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing acknowledged is lost", |_, state: &State| state.fault.is_none()),
            Property::always("it comes to rest only when it is whole", |model: &Self, state: &State| {
                state.fault.is_some() || model.is_whole(state) || !model.possible(state).is_empty()
            }),
            Property::sometimes("everything is done", |model: &Self, state: &State| model.is_whole(state)),
        ]
    }
}
