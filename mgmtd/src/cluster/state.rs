//! What is stored of the cluster: nodes, chains, tables, metadata servers, and the numbers given out.
//!
//! Invariants, checked by [`State::check`] after each change and each load:
//! - a node, target or chain number below its counter was given out once and is never given out again;
//! - a store uuid belongs to one slice of one node;
//! - a chain's members are on different nodes but for one that is to leave, each on a slice that its node has; they are ordered
//!   by state, somebody serves or holds the last complete copy, at most one is being filled (see
//!   [`reconfigure`](super::reconfigure)), and not all are to leave;
//! - tables name chains that exist, and never change once made.

use super::formation::Formation;
use super::placement::{self, Imbalance, Room};
use super::transition::Public;
use corefs_wire::control::mgmtd;
use corefs_wire::limits::MEMBERS_MAX;
use corefs_wire::{ChainId, Error, ErrorCode, NodeId, Result, SliceIndex, TargetId, Uuid};
use std::collections::{BTreeMap, BTreeSet};

/// The table that formation makes.
pub const FIRST_TABLE: (u32, u32) = (1, 1);

/// What people want of a slice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Standing {
    /// It came after the chains were made, and nobody has taken it into use.
    #[default]
    Spare,
    /// It carries its share of the targets.
    Active,
    /// Its targets are to be elsewhere.
    Leaving,
}

impl Standing {
    const ALL: [Self; 3] = [Self::Spare, Self::Active, Self::Leaving];

    /// Its number on the wire and in stored rows.
    pub fn to_wire(self) -> mgmtd::Standing {
        match self {
            Self::Spare => mgmtd::Standing::Spare,
            Self::Active => mgmtd::Standing::Active,
            Self::Leaving => mgmtd::Standing::Leaving,
        }
    }

    pub fn from_wire(standing: mgmtd::Standing) -> Option<Self> {
        Self::ALL.into_iter().find(|ours| ours.to_wire() == standing)
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Slice {
    /// Names the slice's store for ever: written when it was formatted.
    pub store: Uuid,
    /// The shard that has it in this incarnation of the node.
    pub shard: u16,
    /// Bytes.
    pub capacity: u64,
    /// Which of its node's disks it is on.
    pub disk: u16,
    pub standing: Standing,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Node {
    pub incarnation: u64,
    pub domain: String,
    pub control: String,
    pub shards: Vec<String>,
    pub slices: Vec<Slice>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Member {
    pub target: TargetId,
    pub node: NodeId,
    pub slice: SliceIndex,
    pub state: Public,
    /// It is to leave the chain when all that stay serve.
    pub leaving: bool,
}

impl Member {
    /// One that stays.
    pub fn new(target: TargetId, node: NodeId, slice: SliceIndex, state: Public) -> Self {
        Self { target, node, slice, state, leaving: false }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Chain {
    pub version: u64,
    /// The head first.
    pub members: Vec<Member>,
    /// Who served under the last version in which somebody did: everything acknowledged is on each of them.
    pub last_set: BTreeSet<TargetId>,
}

/// What people have said about moving targets between slices.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Moving {
    /// No further targets begin to move.
    pub paused: bool,
    /// Slices in use are to have their share of the targets, also by taking from others.
    pub balance: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Meta {
    pub incarnation: u64,
}

/// The next number of each kind. Zero is never given out: requests use it for "none".
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Counters {
    pub node: u32,
    pub target: u64,
    pub chain: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self { node: 1, target: 1, chain: 1 }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    pub cluster: Uuid,
    pub formation: Formation,
    pub counters: Counters,
    pub nodes: BTreeMap<NodeId, Node>,
    pub chains: BTreeMap<ChainId, Chain>,
    pub tables: BTreeMap<(u32, u32), Vec<ChainId>>,
    pub metas: BTreeMap<String, Meta>,
    pub moving: Moving,
}

/// What a registering node asked for, and is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Arrival {
    /// `None`: assign one.
    pub id: Option<NodeId>,
    pub node: Node,
}

/// What a registration did.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Registered {
    pub id: NodeId,
    /// Known before, and now another process.
    pub restarted: bool,
}

impl State {
    pub fn new(cluster: Uuid, formation: Formation) -> Self {
        Self {
            cluster,
            formation,
            counters: Counters::default(),
            nodes: BTreeMap::new(),
            chains: BTreeMap::new(),
            tables: BTreeMap::new(),
            metas: BTreeMap::new(),
            moving: Moving::default(),
        }
    }

    /// Whether chains have been made.
    pub fn formed(&self) -> bool {
        !self.tables.is_empty()
    }

    /// Which node an arrival is: found by its store uuids, checked against the number it gives. `None`: a new one.
    /// `NodeConflict` when its number and its stores disagree, naming the stores.
    pub fn identify(&self, arrival: &Arrival) -> Result<Option<NodeId>> {
        let conflict = |text: String| Err(Error::new(ErrorCode::NodeConflict, text));
        let mut owner_of = BTreeMap::new();
        for (id, node) in &self.nodes {
            owner_of.extend(node.slices.iter().map(|slice| (slice.store, *id)));
        }
        let brought: Vec<(Uuid, NodeId)> = arrival
            .node
            .slices
            .iter()
            .filter_map(|slice| owner_of.get(&slice.store).map(|owner| (slice.store, *owner)))
            .collect();
        let id = match (arrival.id, brought.first()) {
            (None, None) => return Ok(None),
            (None, Some((_, owner))) => *owner,
            (Some(id), _) if !self.nodes.contains_key(&id) => {
                return conflict(format!(
                    "this cluster has no {id}: it was removed, or the directory is of another cluster; start with an empty directory"
                ));
            }
            (Some(id), _) => id,
        };
        let foreign: Vec<String> = brought
            .iter()
            .filter(|(_, owner)| *owner != id)
            .map(|(store, owner)| format!("{store} of {owner}"))
            .collect();
        if !foreign.is_empty() {
            return conflict(format!("{id} brings stores of others: {}", foreign.join(", ")));
        }
        let Some(known) = self.nodes.get(&id) else { return Ok(None) };
        let moved = |(position, slice): (usize, &Slice)| {
            let found = arrival.node.slices.get(position).map(|slice| slice.store);
            (found != Some(slice.store)).then(|| match found {
                Some(found) => format!("slice {position} should be store {} and is {found}", slice.store),
                None => format!("slice {position}, store {}, is missing", slice.store),
            })
        };
        let differ: Vec<String> = known.slices.iter().enumerate().filter_map(moved).collect();
        if differ.is_empty() { Ok(Some(id)) } else { conflict(format!("{id}: {}", differ.join("; "))) }
    }

    /// Takes a node in: assigns a number to a new one, updates a known one. A known node may bring further slices behind those
    /// it had. What is new is spare: people decide when it is used. Registering twice is registering once. Of one that `restarted` the caller must tell its chains, in the same
    /// transaction ([`reconfigure`](super::reconfigure::reconfigure)). Errors of [`identify`](Self::identify).
    pub fn register(&mut self, mut arrival: Arrival) -> Result<Registered> {
        let id = match self.identify(&arrival)? {
            Some(id) => id,
            None => {
                let id = NodeId(self.counters.node);
                self.counters.node += 1;
                id
            }
        };
        let known = self.nodes.get(&id).map_or(&[][..], |known| &known.slices);
        for (at, slice) in arrival.node.slices.iter_mut().enumerate() {
            slice.standing = known.get(at).map_or(Standing::Spare, |known| known.standing);
        }
        let before = self.nodes.insert(id, arrival.node);
        let restarted = before.is_some_and(|before| before.incarnation != self.nodes[&id].incarnation);
        Ok(Registered { id, restarted })
    }

    /// Makes the chains and the first table when enough nodes are there. `usable` says which slices can take targets.
    /// `None`: formed already, or not enough nodes yet.
    pub fn form(&mut self, usable: impl Fn(NodeId, SliceIndex) -> bool) -> Result<Option<Imbalance>> {
        if self.formed() || self.formation.feasible().is_err() {
            return Ok(None);
        }
        let room = |(id, node): (&NodeId, &Node)| Room {
            node: *id,
            domain: node.domain.clone(),
            slices: (0..node.slices.len())
                .map(|index| SliceIndex(index as u16))
                .filter(|slice| usable(*id, *slice))
                .collect(),
        };
        let mut rooms: Vec<Room> = self.nodes.iter().map(room).collect();
        rooms.retain(|room| !room.slices.is_empty());
        if rooms.len() < self.formation.nodes as usize {
            return Ok(None);
        }
        rooms.truncate(self.formation.nodes as usize);
        let replicas = self.formation.replicas as usize;
        let plan = placement::place(&rooms, replicas, self.formation.targets_per_node as usize)?;
        let imbalance = placement::verify(&rooms, replicas, &plan)?;
        let mut table = Vec::with_capacity(plan.len());
        for chain in plan {
            let id = ChainId(self.counters.chain);
            self.counters.chain += 1;
            let mut members = Vec::with_capacity(replicas);
            for replica in chain {
                let target = TargetId(self.counters.target);
                self.counters.target += 1;
                let node = rooms[replica.room].node;
                members.push(Member::new(target, node, replica.slice, Public::Serving));
            }
            let last_set = members.iter().map(|member| member.target).collect();
            self.chains.insert(id, Chain { version: 1, members, last_set });
            table.push(id);
        }
        self.tables.insert(FIRST_TABLE, table);
        let used = rooms.iter().flat_map(|room| room.slices.iter().map(|slice| (room.node, *slice)));
        used.for_each(|(node, slice)| self.set_standing(node, slice, Standing::Active));
        Ok(Some(imbalance))
    }

    /// What people want of a slice from now on; nothing if there is no such slice.
    pub fn set_standing(&mut self, node: NodeId, slice: SliceIndex, standing: Standing) {
        let node = self.nodes.get_mut(&node);
        if let Some(slice) = node.and_then(|node| node.slices.get_mut(usize::from(slice.0))) {
            slice.standing = standing;
        }
    }

    /// `None` if there is no such slice.
    pub fn standing(&self, node: NodeId, slice: SliceIndex) -> Option<Standing> {
        Some(self.nodes.get(&node)?.slices.get(usize::from(slice.0))?.standing)
    }

    /// Adds a new target on that slice to a chain, in the place of a member if one is to leave. It is filled before that one
    /// goes.
    pub fn add_member(
        &mut self,
        chain: ChainId,
        leaves: Option<TargetId>,
        node: NodeId,
        slice: SliceIndex,
    ) -> Option<TargetId> {
        let chain = self.chains.get_mut(&chain)?;
        let target = TargetId(self.counters.target);
        self.counters.target += 1;
        for member in &mut chain.members {
            member.leaving |= Some(member.target) == leaves;
        }
        chain.members.push(Member::new(target, node, slice, Public::Offline));
        chain.version += 1;
        Some(target)
    }

    /// Members of all chains.
    pub fn members(&self) -> impl Iterator<Item = (ChainId, &Member)> {
        self.chains.iter().flat_map(|(id, chain)| chain.members.iter().map(|member| (*id, member)))
    }

    /// Holds the invariants above against what was loaded or is about to be stored (`Corrupt`).
    pub fn check(&self) -> Result<()> {
        let bad = |text: String| Err(Error::new(ErrorCode::Corrupt, format!("the cluster's rows: {text}")));
        let mut stores = BTreeSet::new();
        for (id, node) in &self.nodes {
            if *id == NodeId(0) || id.0 >= self.counters.node {
                return bad(format!("{id} was never given out"));
            }
            if let Some(twice) = node.slices.iter().find(|slice| !stores.insert(slice.store)) {
                return bad(format!("store {} belongs to two slices", twice.store));
            }
        }
        let mut targets = BTreeSet::new();
        for (id, chain) in &self.chains {
            if id.0 == 0 || id.0 >= self.counters.chain || chain.members.is_empty() {
                return bad(format!("{id} was never given out or is empty"));
            }
            let mut nodes = BTreeSet::new();
            for member in &chain.members {
                let slices = self.nodes.get(&member.node).map_or(0, |node| node.slices.len());
                let fits = usize::from(member.slice.0) < slices && member.target.0 < self.counters.target;
                let alone = member.leaving || nodes.insert(member.node);
                if !fits || !targets.insert(member.target) || !alone {
                    return bad(format!("{} of {id} is misplaced", member.target));
                }
            }
            let states = || chain.members.iter().map(|member| member.state);
            let stays = chain.members.iter().any(|member| !member.leaving);
            let complete = states().any(|state| matches!(state, Public::Serving | Public::LastServing));
            let filled = states().filter(|state| *state == Public::Syncing).count();
            let known = |target: &TargetId| chain.members.iter().any(|member| member.target == *target);
            let remembered = !chain.last_set.is_empty() && chain.last_set.iter().all(known);
            if chain.members.len() > MEMBERS_MAX {
                return bad(format!("{id} has {} members", chain.members.len()));
            }
            if !stays || !complete || filled > 1 || !states().is_sorted() || !remembered {
                return bad(format!("{id} has members in states that can't be together"));
            }
        }
        let unknown = |chains: &Vec<ChainId>| chains.iter().any(|chain| !self.chains.contains_key(chain));
        match self.tables.iter().find(|(_, chains)| unknown(chains)) {
            Some(((id, version), _)) => bad(format!("table {id} version {version} names an unknown chain")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A node of `slices` slices on two shards whose stores follow from `name`.
    pub fn node(name: u8, incarnation: u64, slices: u8) -> Node {
        Node {
            incarnation,
            domain: String::new(),
            control: format!("127.0.0.{name}:1"),
            shards: vec![format!("127.0.0.{name}:2"), format!("127.0.0.{name}:3")],
            slices: (0..slices)
                .map(|slice| {
                    let mut store = [name; 16];
                    store[15] = slice;
                    let standing = Standing::Spare;
                    Slice {
                        store: Uuid(store),
                        shard: u16::from(slice % 2),
                        capacity: 1 << 30,
                        disk: u16::from(slice / 8),
                        standing,
                    }
                })
                .collect(),
        }
    }

    pub fn formed(nodes: u8, replicas: u32) -> State {
        let formation = Formation { nodes: u32::from(nodes), replicas, ..Formation::default() };
        let mut state = State::new(Uuid([9; 16]), formation);
        for name in 1..=nodes {
            state.register(Arrival { id: None, node: node(name, 1, 8) }).unwrap();
        }
        assert!(state.form(|_, _| true).unwrap().is_some());
        state.check().unwrap();
        state
    }

    fn conflict(state: &State, id: Option<u32>, node: Node) -> String {
        let error = state.identify(&Arrival { id: id.map(NodeId), node }).unwrap_err();
        assert_eq!(error.code, ErrorCode::NodeConflict);
        error.message
    }

    #[test]
    fn a_node_is_known_by_its_stores() {
        let mut state = formed(3, 3);
        // A reply that was lost: the node asks again without a number.
        let again = state.register(Arrival { id: None, node: node(2, 1, 8) });
        assert_eq!(again, Ok(Registered { id: NodeId(2), restarted: false }));
        assert_eq!(state, formed(3, 3));
        assert!(conflict(&state, Some(2), node(3, 1, 8)).contains("of node-3"));
        assert!(conflict(&state, Some(7), node(7, 1, 8)).contains("has no node-7"));
        let mut swapped = node(2, 1, 8);
        swapped.slices.swap(0, 1);
        assert!(conflict(&state, Some(2), swapped).contains("slice 0 should be store"));
        assert!(conflict(&state, Some(2), node(2, 1, 7)).contains("slice 7"));
        let mut foreign = node(2, 1, 8);
        foreign.slices[3].store = Uuid([77; 16]);
        let text = conflict(&state, Some(2), foreign);
        assert!(text.contains(&Uuid([77; 16]).to_string()) && text.contains("slice 3"), "{text}");
        // More disks are welcome, and so is a node beyond the formation.
        assert_eq!(state.register(Arrival { id: None, node: node(2, 1, 9) }).unwrap().id, NodeId(2));
        assert_eq!(state.register(Arrival { id: None, node: node(4, 1, 8) }).unwrap().id, NodeId(4));
        state.check().unwrap();
    }

    #[test]
    fn a_restart_is_noticed_and_changes_no_chain_by_itself() {
        let mut state = formed(4, 2);
        let before = state.clone();
        let done = state.register(Arrival { id: Some(NodeId(3)), node: node(3, 2, 8) }).unwrap();
        assert!(done.restarted);
        assert_eq!((&state.tables, &state.chains), (&before.tables, &before.chains));
        state.check().unwrap();
    }

    #[test]
    fn chains_are_made_once_and_only_with_enough_nodes() {
        let formation = Formation { nodes: 3, replicas: 2, targets_per_node: 5, ..Formation::default() };
        let mut state = State::new(Uuid::NIL, formation);
        for name in 1..=2 {
            state.register(Arrival { id: None, node: node(name, 1, 4) }).unwrap();
            assert_eq!(state.form(|_, _| true), Ok(None));
        }
        state.register(Arrival { id: None, node: node(3, 1, 4) }).unwrap();
        assert_eq!(state.form(|node, _| node != NodeId(3)), Ok(None), "node-3 has no usable slice");
        let imbalance = state.form(|_, slice| slice != SliceIndex(0)).unwrap().unwrap();
        assert_eq!((imbalance.chains, state.tables[&FIRST_TABLE].len()), (7, 7));
        assert!(
            state
                .chains
                .values()
                .flat_map(|chain| &chain.members)
                .all(|member| member.slice != SliceIndex(0))
        );
        assert_eq!(state.form(|_, _| true), Ok(None));
        state.check().unwrap();
    }

    #[test]
    fn too_many_replicas_never_form() {
        let formation = Formation { nodes: 1, replicas: 3, ..Formation::default() };
        let mut state = State::new(Uuid::NIL, formation);
        for name in 1..=5 {
            state.register(Arrival { id: None, node: node(name, 1, 4) }).unwrap();
        }
        assert_eq!(state.form(|_, _| true), Ok(None));
    }

    #[test]
    fn broken_invariants_are_found() {
        let check = |change: fn(&mut State)| {
            let mut state = formed(3, 2);
            change(&mut state);
            state.check().map_err(|error| error.code)
        };
        assert_eq!(check(|_| ()), Ok(()));
        let corrupt = Err(ErrorCode::Corrupt);
        assert_eq!(check(|state| state.counters.node = 2), corrupt);
        assert_eq!(check(|state| state.counters.chain = 5), corrupt);
        assert_eq!(check(|state| state.counters.target = 5), corrupt);
        assert_eq!(
            check(|state| state.chains.values_mut().for_each(|chain| chain.members[0].slice.0 = 99)),
            corrupt
        );
        assert_eq!(check(|state| state.chains.clear()), corrupt);
        let shrink = |state: &mut State| {
            state.chains.values_mut().for_each(|chain| chain.members[0].state = Public::Offline)
        };
        assert_eq!(check(shrink), corrupt, "out of order");
        let all = |state: &mut State| {
            let members = state.chains.values_mut().flat_map(|chain| &mut chain.members);
            members.for_each(|member| member.state = Public::Syncing);
        };
        assert_eq!(check(all), corrupt);
        assert_eq!(
            check(|state| state.chains.values_mut().for_each(|chain| chain.last_set.clear())),
            corrupt
        );
        let same_node = |state: &mut State| {
            state.chains.values_mut().for_each(|chain| chain.members[0].node = chain.members[1].node);
        };
        assert_eq!(check(same_node), corrupt);
        let same_store = |state: &mut State| {
            let store = state.nodes[&NodeId(1)].slices[0].store;
            state.nodes.values_mut().for_each(|node| node.slices[0].store = store);
        };
        assert_eq!(check(same_store), corrupt);
    }
}
