//! Failure domains: what fails together, such as a rack. Two replicas of a chain are in different ones wherever there are enough.
//!
//! Enough are as many as there are replicas, counted over nodes in use. One whose nodes have all been silent for minutes counts no
//! more: a domain that is lost as a whole can be emptied all the same, and what was there comes back as far apart as the others allow.
//! A restart isn't a loss: what would have to share a domain because of it waits. Where there are too few, replicas share one,
//! and status says so.

use super::liveness::Liveness;
use super::state::{Chain, Node, Standing, State};
use corefs_wire::NodeId;
use std::collections::BTreeSet;

/// What a node fails together with. One without a domain fails alone.
pub fn of(id: NodeId, node: &Node) -> (&str, NodeId) {
    if node.domain.is_empty() { ("", id) } else { (&node.domain, NodeId(0)) }
}

/// A domain whose nodes have all been silent for so long (milliseconds) is given up. Machines restart within that, firmware and all.
pub const GONE_MS: u64 = 5 * 60 * 1000;

/// Whether all replicas of a chain can be in different domains, with what is there.
pub fn enough(state: &State, liveness: &Liveness) -> bool {
    let heard = |id: &NodeId| liveness.node(*id);
    // Heartbeats come all the time: the last one tells the time.
    let now_ms = state.nodes.keys().filter_map(heard).map(|heard| heard.at_ms).max().unwrap_or(0);
    count(state, |id| heard(&id).is_some_and(|heard| heard.alive || now_ms - heard.at_ms < GONE_MS))
        >= state.formation.replicas as usize
}

/// The same with everything that is in use, were it there.
pub fn are_enough(state: &State) -> bool {
    count(state, |_| true) >= state.formation.replicas as usize
}

fn count(state: &State, counts: impl Fn(NodeId) -> bool) -> usize {
    let used = |node: &Node| node.slices.iter().any(|slice| slice.standing == Standing::Active);
    let counted = state.nodes.iter().filter(|(id, node)| used(node) && counts(**id));
    counted.map(|(id, node)| of(*id, node)).collect::<BTreeSet<_>>().len()
}

/// Chains of which two members that stay are in one domain.
pub fn repeats(state: &State) -> usize {
    // Most clusters have none, which is seen without looking at any chain.
    let named = state.nodes.values().any(|node| !node.domain.is_empty());
    if named { state.chains.values().filter(|chain| shares_one(state, chain)).count() } else { 0 }
}

/// Whether two members that stay are in one domain.
pub fn shares_one(state: &State, chain: &Chain) -> bool {
    let mut seen = BTreeSet::new();
    let mut members = chain.members.iter().filter(|member| !member.leaving);
    members
        .any(|member| state.nodes.get(&member.node).is_some_and(|node| !seen.insert(of(member.node, node))))
}
