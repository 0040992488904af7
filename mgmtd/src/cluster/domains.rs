//! Failure domains: what fails together, such as a rack. Two replicas of a chain are in different ones wherever there are enough.
//!
//! Enough are as many as there are replicas, counted over nodes that live and are in use: a domain that is lost as a whole can be
//! emptied all the same, and what was there comes back as far apart as the others allow. Where there are too few, replicas share one,
//! and status says so.

use super::liveness::Liveness;
use super::state::{Chain, Node, Standing, State};
use corefs_wire::NodeId;
use std::collections::BTreeSet;

/// What a node fails together with. One without a domain fails alone.
pub fn of(id: NodeId, node: &Node) -> (&str, NodeId) {
    if node.domain.is_empty() { ("", id) } else { (&node.domain, NodeId(0)) }
}

/// Whether all replicas of a chain can be in different domains.
pub fn enough(state: &State, liveness: &Liveness) -> bool {
    let used = |node: &Node| node.slices.iter().any(|slice| slice.standing == Standing::Active);
    let there = state.nodes.iter().filter(|(id, node)| used(node) && liveness.node_alive(**id));
    let domains: BTreeSet<_> = there.map(|(id, node)| of(*id, node)).collect();
    domains.len() >= state.formation.replicas as usize
}

/// Chains of which two members that stay are in one domain.
pub fn repeats(state: &State) -> usize {
    let repeats = |chain: &&Chain| {
        let mut seen = BTreeSet::new();
        let mut members = chain.members.iter().filter(|member| !member.leaving);
        members.any(|member| {
            state.nodes.get(&member.node).is_some_and(|node| !seen.insert(of(member.node, node)))
        })
    };
    // Most clusters have none, which is seen without looking at any chain.
    let named = state.nodes.values().any(|node| !node.domain.is_empty());
    if named { state.chains.values().filter(repeats).count() } else { 0 }
}
