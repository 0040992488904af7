//! The routing that clients, storage nodes and metadata servers see, computed from what is stored and who lives.

use super::liveness::Liveness;
use super::state::{Node, State};
use corefs_wire::routing::{self, RoutingInfo};
use corefs_wire::{NodeId, ShardIndex};

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

#[cfg(test)]
mod tests {
    use super::super::liveness::tests::TERMS;
    use super::super::state::tests::formed;
    use super::*;
    use corefs_wire::control::Message;
    use corefs_wire::control::mgmtd::RoutingT;
    use corefs_wire::layout::Layout;
    use corefs_wire::limits::FRAME_BODY_MAX;

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

    /// The bounds of formation keep the largest routing table within a frame.
    #[test]
    fn the_largest_cluster_fits_a_frame() {
        use super::super::formation::{Formation, TARGETS_MAX};
        use super::super::state::{Arrival, State, tests::node};
        use corefs_wire::Uuid;
        let formation = Formation {
            nodes: 128,
            replicas: 1,
            targets_per_node: TARGETS_MAX / 128,
            ..Formation::default()
        };
        let mut state = State::new(Uuid([1; 16]), formation);
        for name in 0..128u8 {
            let mut node = node(name, 1, 64);
            node.shards = (0..32).map(|shard| format!("192.168.100.{name}:{}", 10_000 + shard)).collect();
            state.register(Arrival { id: None, node }).unwrap();
        }
        state.form(|_, _| true).unwrap().unwrap();
        let bytes = build(&state, &Liveness::new(TERMS), 1).to_message().encode();
        assert!(bytes.len() < FRAME_BODY_MAX, "{} bytes", bytes.len());
        assert!(RoutingT::decode(&bytes).is_ok());
    }
}
