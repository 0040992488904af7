//! The routing that clients, storage nodes and metadata servers see, computed from what is stored and who lives.

use super::formation::{ADDRESS_MAX, METAS_MAX};
use super::liveness::Liveness;
use super::moves::ARRIVALS_MAX;
use super::state::{Node, State};
use corefs_wire::limits::FRAME_BODY_MAX;
use corefs_wire::routing::{self, RoutingInfo};
use corefs_wire::{Error, ErrorCode, NodeId, Result, ShardIndex};

/// How much of a routing version counts within a reign: a million changes a second for twelve days.
const CHANGE_BITS: u32 = 40;
/// The last reign that has versions: sixteen million changes of primary.
pub const EPOCH_MAX: u64 = (1 << (64 - CHANGE_BITS)) - 1;

/// Routing versions: the reign's epoch above, a count of changes within the reign below. So they rise over restarts
/// and changes of primary without a transaction for each change of liveness.
pub fn version(epoch: u64, change: u64) -> u64 {
    assert!(epoch <= EPOCH_MAX && change >> CHANGE_BITS == 0, "routing versions are used up");
    (epoch << CHANGE_BITS) | change
}

/// Builds the whole of routing.
pub fn build(state: &State, liveness: &Liveness, version: u64) -> RoutingInfo {
    let node = |(id, node): (&NodeId, &Node)| {
        let out = routing::Node {
            id: *id,
            incarnation: node.incarnation,
            alive: liveness.node_alive(*id),
            control: node.control.clone(),
            shards: node.shards.clone(),
            slice_shards: node.slices.iter().map(|slice| ShardIndex(slice.shard)).collect(),
            domain: node.domain.clone(),
        };
        (*id, out)
    };
    let mut out = RoutingInfo {
        version,
        cluster: state.cluster,
        chunk_size: state.formation.chunk_size,
        replicas: state.formation.replicas,
        nodes: state.nodes.iter().map(node).collect(),
        tables: state.tables.clone(),
        metas: state.metas.keys().filter(|address| liveness.meta_alive(address)).cloned().collect(),
        ..RoutingInfo::default()
    };
    for (id, chain) in &state.chains {
        let mut members = Vec::with_capacity(chain.members.len());
        for member in &chain.members {
            let (node, slice) = (member.node, member.slice);
            out.targets.insert(member.target, routing::Target { id: member.target, node, slice, chain: *id });
            members.push(routing::Member { target: member.target, state: member.state.to_wire() });
        }
        out.chains.insert(*id, routing::Chain { id: *id, version: chain.version, members });
    }
    out
}

// Bytes of things in a message: their fields, what leads to them, and what is lost to alignment.
const NODE: usize = 96;
const STRING: usize = 12;
const CHAIN: usize = 56;
/// A member, and its target.
const MEMBER: usize = 68;
/// As many metadata servers as there may be, and the table itself.
const REST: usize = METAS_MAX * (STRING + ADDRESS_MAX) + 1024;

/// Bytes that routing can come to have in a message while these nodes are the cluster's, at most: chains are counted before they are
/// made, and so are the members that moves add for a while.
pub fn largest(state: &State) -> usize {
    let string = |text: &String| STRING + text.len();
    let node = |node: &Node| {
        let shards: usize = node.shards.iter().map(string).sum();
        NODE + string(&node.control) + string(&node.domain) + shards + node.slices.len() * size_of::<u16>()
    };
    let chains = state.chains.len().max(state.formation.chains() as usize);
    let members = state.members().count().max(chains * state.formation.replicas as usize);
    let moving = state.nodes.len() * (ARRIVALS_MAX + 1);
    let nodes: usize = state.nodes.values().map(node).sum();
    REST + nodes + chains * CHAIN + (members + moving) * MEMBER
}

/// `Overloaded` when routing of this cluster would outgrow a message, and nobody could be told of it any more. What it was the [`largest`]
/// `before` counts: who comes back as it was is never refused.
pub fn check_growth(before: usize, state: &State) -> Result<()> {
    let bytes = largest(state);
    if bytes <= FRAME_BODY_MAX.max(before) {
        return Ok(());
    }
    let shards: usize = state.nodes.values().map(|node| node.shards.len()).sum();
    let text = format!(
        "{} storage nodes with {shards} shards and {} chains: the routing table would be of {bytes} bytes, and a message has \
         room for {FRAME_BODY_MAX}; start nodes with fewer shards (--cores)",
        state.nodes.len(),
        state.formation.chains(),
    );
    Err(Error::mismatch(ErrorCode::Overloaded, FRAME_BODY_MAX as u64, bytes as u64, text))
}

#[cfg(test)]
mod tests {
    use super::super::formation::{Formation, NODES_MAX, TARGETS_MAX};
    use super::super::liveness::tests::TERMS;
    use super::super::state::Arrival;
    use super::super::state::tests::{formed, node};
    use super::*;
    use corefs_wire::control::Message;
    use corefs_wire::control::mgmtd::RoutingT;
    use corefs_wire::layout::Layout;
    use corefs_wire::{SliceIndex, Uuid};

    #[test]
    fn routing_survives_the_wire_and_every_chunk_has_owners() {
        let state = formed(5, 3);
        let mut liveness = Liveness::new(TERMS);
        state.nodes.keys().for_each(|node| liveness.assume_node(*node, 0));
        liveness.expire(9000);
        liveness.hear_node(NodeId(2), vec![], 9000);
        let routing = build(&state, &liveness, version(3, 7));
        let read =
            RoutingInfo::from_message(&RoutingT::decode(&routing.to_message().encode()).unwrap()).unwrap();
        assert_eq!(read, routing);
        assert_eq!(read.nodes.values().filter(|node| node.alive).count(), 1);
        let layout = Layout { chunk_size: 65536, stripe: 20, table_id: 1, table_version: 1, seed: 3 };
        for index in 0..100 {
            let chain = read.chain_of(&layout, index).unwrap();
            assert_eq!(chain.serving().filter(|target| read.owner(*target).is_some()).count(), 3);
        }
    }

    #[test]
    fn versions_rise_with_reigns_and_changes() {
        let versions = [version(1, 0), version(1, 1), version(1, (1 << 40) - 1), version(2, 0)];
        assert!(versions.is_sorted_by(|a, b| a < b));
    }

    /// `nodes` nodes of so many shards, not formed yet.
    fn unformed(nodes: u32, shards: usize, formation: Formation) -> State {
        let mut state = State::new(Uuid([1; 16]), formation);
        for number in 0..nodes {
            let mut node = node(number as u8, 1, 4);
            node.control = format!("192.168.{}.{}:10000", 100 + number / 256, number % 256);
            node.shards = (0..shards).map(|shard| format!("192.168.100.100:{}", 10_000 + shard)).collect();
            node.domain = "rack-17".into();
            node.slices
                .iter_mut()
                .for_each(|slice| slice.store.0[1..5].copy_from_slice(&number.to_le_bytes()));
            state.register(Arrival { id: None, node }).unwrap();
        }
        state
    }

    fn bytes(state: &State) -> Vec<u8> {
        build(state, &Liveness::new(TERMS), version(EPOCH_MAX, 1)).to_message().encode()
    }

    /// What the bounds of formation allow fits a frame on usual machines, and is told before it exists.
    #[test]
    fn the_largest_clusters_fit_a_frame() {
        let many = |nodes, replicas, targets_per_node| Formation {
            nodes,
            replicas,
            targets_per_node,
            ..Formation::default()
        };
        for (shards, formation) in [
            (32, many(128, 1, TARGETS_MAX / 128)),
            (64, many(NODES_MAX, 3, TARGETS_MAX / NODES_MAX)),
            (1, many(NODES_MAX, 2, TARGETS_MAX / NODES_MAX)),
            (256, many(20, 6, 32)),
        ] {
            let mut state = unformed(formation.nodes, shards, formation);
            check_growth(0, &state).unwrap();
            let before = largest(&state);
            state.form(|_, _| true).unwrap().unwrap();
            assert_eq!(largest(&state), before);
            let bytes = bytes(&state);
            let (least, most) = (before * 6 / 10, before);
            assert!((least..=most).contains(&bytes.len()), "{} of {most} bytes: {formation:?}", bytes.len());
            assert!(RoutingT::decode(&bytes).is_ok());
        }
    }

    #[test]
    fn what_moves_add_is_set_aside() {
        let formation =
            Formation { nodes: NODES_MAX, replicas: 2, targets_per_node: 2, ..Formation::default() };
        let mut state = unformed(NODES_MAX, 1, formation);
        state.form(|_, _| true).unwrap().unwrap();
        let before = bytes(&state).len();
        let nodes: Vec<NodeId> = state.nodes.keys().copied().collect();
        let arrivals = nodes.into_iter().flat_map(|node| [node; ARRIVALS_MAX + 1]);
        let chains: Vec<_> = state.chains.keys().copied().collect();
        for (chain, node) in chains.into_iter().cycle().zip(arrivals) {
            state.add_member(chain, None, node, SliceIndex(0)).unwrap();
        }
        let grown = bytes(&state).len() - before;
        let set_aside = NODES_MAX as usize * (ARRIVALS_MAX + 1) * MEMBER;
        assert!((set_aside * 7 / 10..=set_aside).contains(&grown), "{grown} of {set_aside} bytes");
    }

    #[test]
    fn what_no_message_has_room_for_is_refused_when_it_grows() {
        let formation = Formation { nodes: 3, replicas: 3, ..Formation::default() };
        let state = unformed(NODES_MAX, 256, formation);
        for before in [0, largest(&state) - 1] {
            let error = check_growth(before, &state).unwrap_err();
            assert_eq!((error.code, error.expected), (ErrorCode::Overloaded, FRAME_BODY_MAX as u64));
        }
        check_growth(largest(&state), &state).unwrap();
    }
}
