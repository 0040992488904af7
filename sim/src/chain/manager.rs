//! The manager: its pure machines (membership, liveness, the state table), with a store that takes time and a process that
//! is replaced now and then.

use super::node::CLUSTER;
use corefs_mgmtd::cluster::formation::Formation;
use corefs_mgmtd::cluster::liveness::{Liveness, SliceHealth, TargetHealth, Terms};
use corefs_mgmtd::cluster::moves;
use corefs_mgmtd::cluster::reconfigure::{Restart, is_due, may_renew, reconfigure};
use corefs_mgmtd::cluster::routing;
use corefs_mgmtd::cluster::state::{Arrival, Node, Slice, Standing, State};
use corefs_mgmtd::cluster::transition::Public;
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{NodeId, Result, SliceIndex, TargetId, Uuid};
use std::collections::BTreeMap;
use std::rc::Rc;

/// As the real one has them.
pub const TERMS: Terms =
    Terms { lease_ms: 1000, margin_ms: 200, client_lease_ms: 15_000, forget_meta_ms: 60_000 };
const SLICE_BYTES: u64 = 1 << 20;

/// What a heartbeat says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heartbeat {
    pub node: usize,
    pub incarnation: u64,
    pub targets: BTreeMap<TargetId, TargetHealth>,
    /// Its slice is out of service.
    pub dead: bool,
}

/// What becomes of a heartbeat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    /// The lease goes on.
    Lease,
    /// Not now: chains have to be told first that they go on without the node.
    Wait,
    /// Another process has the node's number: it must register.
    Unknown,
}

/// A node that comes up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registration {
    pub node: usize,
    pub incarnation: u64,
    /// When it asked, on its clock.
    pub sent: u64,
}

/// A change on its way to the store.
#[derive(Debug)]
pub struct Change {
    state: State,
    /// The node that registers, if that is what it is about.
    registers: Option<Registration>,
    /// It is another process than the one last heard of.
    restarted: bool,
}

pub struct Manager {
    pub state: State,
    liveness: Liveness,
    version: u64,
    /// What everybody may know.
    pub routing: Rc<RoutingInfo>,
    /// One change at a time.
    storing: bool,
    /// Nobody leads until then (milliseconds).
    absent_until: u64,
    epoch: u64,
    /// Each reign has a number of its own: false is a canary.
    pub counts_reigns: bool,
}

/// The number that the manager gives a node.
pub fn id(node: usize) -> NodeId {
    NodeId(node as u32 + 1)
}

fn description(node: usize, incarnation: u64) -> Node {
    Node {
        incarnation,
        domain: String::new(),
        control: format!("127.0.{node}.{}:1", incarnation % 250),
        shards: vec![format!("127.0.{node}.{}:2", incarnation % 250)],
        slices: vec![Slice {
            store: store(node),
            shard: 0,
            capacity: SLICE_BYTES,
            disk: 0,
            standing: Standing::default(),
        }],
    }
}

/// The name of a node's only slice.
pub fn store(node: usize) -> Uuid {
    Uuid([node as u8 + 1; 16])
}

impl Manager {
    /// A cluster that is formed already, and whose nodes are dead.
    pub fn new(nodes: usize, replicas: usize, targets: u32) -> Self {
        let formation = Formation {
            nodes: nodes as u32,
            replicas: replicas as u32,
            targets_per_node: targets,
            ..Formation::default()
        };
        let mut state = State::new(CLUSTER, formation);
        for node in 0..nodes {
            let arrival = Arrival { id: None, node: description(node, 0) };
            state.register(arrival).expect("new nodes don't conflict");
        }
        state.form(|_, _| true).expect("enough nodes").expect("not formed before");
        let liveness = Liveness::new(TERMS);
        let routing = Rc::new(RoutingInfo::default());
        Self {
            state,
            liveness,
            version: 0,
            routing,
            storing: false,
            absent_until: 0,
            epoch: 1,
            counts_reigns: true,
        }
    }

    pub fn leads(&self, now_ms: u64) -> bool {
        now_ms >= self.absent_until
    }

    fn publish(&mut self) {
        self.version += 1;
        let version = routing::version(self.epoch, self.version);
        self.routing = Rc::new(routing::build(&self.state, &self.liveness, version));
    }

    /// Its process dies: a change on its way happened or not, and another one leads after the lease.
    pub fn replace(&mut self, now_ms: u64) {
        self.absent_until = now_ms + 1200;
        self.storing = false;
        if self.counts_reigns {
            self.epoch += 1;
        }
        self.version = 0;
    }

    /// The new one begins, knowing only what is stored.
    fn begin(&mut self, now_ms: u64) {
        if self.absent_until != 0 && now_ms >= self.absent_until {
            self.absent_until = 0;
            self.liveness = Liveness::new(TERMS);
            let nodes: Vec<NodeId> = self.state.nodes.keys().copied().collect();
            nodes.into_iter().for_each(|node| self.liveness.assume_node(node, now_ms));
            self.publish();
        }
    }

    /// Whether a node's lease goes on.
    pub fn heartbeat(&mut self, now_ms: u64, beat: Heartbeat) -> Heard {
        self.begin(now_ms);
        let node = id(beat.node);
        if self.state.nodes.get(&node).is_none_or(|known| known.incarnation != beat.incarnation) {
            return Heard::Unknown;
        }
        if !may_renew(&self.state, &self.liveness, node) {
            return Heard::Wait;
        }
        self.liveness.hear_targets(node, beat.targets, now_ms);
        if self.liveness.hear_node(node, health(beat.dead), now_ms) {
            self.publish();
        }
        Heard::Lease
    }

    /// A node comes up as another process. `None`: it must wait, for its earlier one or for another change.
    pub fn register(&mut self, now_ms: u64, node: usize, incarnation: u64, sent: u64) -> Option<Change> {
        self.begin(now_ms);
        let same = self.state.nodes.get(&id(node)).is_some_and(|known| known.incarnation == incarnation);
        let lives = self
            .liveness
            .node(id(node))
            .is_some_and(|heard| heard.alive && now_ms <= heard.at_ms + TERMS.lease_ms + TERMS.margin_ms);
        if self.storing || lives && !same {
            return None;
        }
        if self.liveness.expire(now_ms) {
            self.publish();
        }
        let mut state = self.state.clone();
        let arrival = Arrival { id: Some(id(node)), node: description(node, incarnation) };
        let registered = state.register(arrival).expect("its stores are its own");
        if registered.restarted {
            reconfigure(&mut state, &self.liveness, Some(Restart { node: id(node), slices: &[] }));
        }
        self.storing = true;
        Some(Change {
            state,
            registers: Some(Registration { node, incarnation, sent }),
            restarted: registered.restarted,
        })
    }

    /// Looks who has fallen silent, and whether chains must change.
    pub fn upkeep(&mut self, now_ms: u64) -> Option<Change> {
        self.begin(now_ms);
        if self.liveness.expire(now_ms) {
            self.publish();
        }
        if self.storing {
            return None;
        }
        let steps = moves::next(&self.state, &self.liveness);
        if !is_due(&self.state, &self.liveness) {
            self.liveness.settled();
            if steps.is_empty() {
                return None;
            }
        }
        let mut state = self.state.clone();
        steps.iter().for_each(|step| moves::apply(&mut state, *step));
        reconfigure(&mut state, &self.liveness, None);
        self.storing = true;
        Some(Change { state, registers: None, restarted: false })
    }

    /// People empty a node, or take one that is emptied into use again. `None`: it can't be emptied, or there is no time for that.
    pub fn stand(&mut self, now_ms: u64, node: usize) -> Option<Change> {
        self.begin(now_ms);
        if self.storing {
            return None;
        }
        let mut state = self.state.clone();
        let leaves = state.standing(id(node), SliceIndex(0)) == Some(Standing::Leaving);
        let standing = if leaves { Standing::Active } else { Standing::Leaving };
        state.set_standing(id(node), SliceIndex(0), standing);
        state.moving.balance = true;
        if !leaves && !moves::plan(&state, &self.liveness).stuck.is_empty() {
            return None;
        }
        self.storing = true;
        Some(Change { state, registers: None, restarted: false })
    }

    /// Nothing moves, and nothing is to move.
    pub fn has_moved(&self) -> bool {
        moves::is_done(&self.state, &self.liveness)
    }

    /// The change is stored: everybody may know. Who registered by it.
    pub fn stored(&mut self, now_ms: u64, change: Change) -> Result<Option<Registration>> {
        change.state.check()?;
        self.state = change.state;
        self.storing = false;
        if let Some(Registration { node, .. }) = change.registers
            && self.leads(now_ms)
        {
            if change.restarted {
                self.liveness.forget_targets(id(node));
            }
            self.liveness.hear_node(id(node), health(false), now_ms);
        }
        self.publish();
        Ok(change.registers)
    }

    /// A change of a manager that died reached the store: the next one finds it there.
    pub fn state_stored(&mut self, change: Change) {
        self.state = change.state;
    }

    /// All members of all chains serve.
    pub fn is_whole(&self) -> bool {
        let mut members = self.state.chains.values().flat_map(|chain| &chain.members);
        members.all(|member| member.state == Public::Serving)
    }
}

fn health(dead: bool) -> Vec<SliceHealth> {
    vec![SliceHealth { capacity: SLICE_BYTES, dead, ..SliceHealth::default() }]
}
