//! What each node and slice in use carries, and what would be its share.

use super::staying;
use crate::cluster::state::{Standing, State};
use corefs_wire::{NodeId, SliceIndex};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Capacities are compared in this unit (bytes), so that products fit.
const UNIT: u64 = 1 << 20;

#[derive(Clone, Copy, Default)]
struct Load {
    targets: u64,
    /// In [`UNIT`]s; 0: not in use.
    capacity: u64,
}

impl Load {
    /// Targets for each unit of capacity, with `more` than there are.
    fn relative(self, more: u64) -> u128 {
        (u128::from(self.targets + more) << 64) / u128::from(self.capacity.max(1))
    }
}

/// The loads of nodes and slices. Members that are to leave don't count, those on their way do.
pub(super) struct Shares {
    nodes: BTreeMap<NodeId, Load>,
    slices: BTreeMap<(NodeId, SliceIndex), Load>,
    pairs: BTreeMap<(NodeId, NodeId), u64>,
    chains: u64,
}

impl Shares {
    pub(super) fn of(state: &State) -> Self {
        let (nodes, slices, pairs) = Default::default();
        let mut out = Self { nodes, slices, pairs, chains: state.chains.len() as u64 };
        for (id, node) in &state.nodes {
            for (index, slice) in node.slices.iter().enumerate() {
                let used = slice.standing == Standing::Active;
                let capacity = if used { (slice.capacity / UNIT).max(1) } else { 0 };
                out.nodes.entry(*id).or_default().capacity += capacity;
                out.slices.entry((*id, SliceIndex(index as u16))).or_default().capacity = capacity;
            }
        }
        for chain in state.chains.values() {
            for member in staying(chain) {
                out.put(member.node, member.slice);
                for other in staying(chain).filter(|other| other.node != member.node) {
                    *out.pairs.entry((member.node, other.node)).or_default() += 1;
                }
            }
        }
        out
    }

    pub(super) fn put(&mut self, node: NodeId, slice: SliceIndex) {
        self.nodes.entry(node).or_default().targets += 1;
        self.slices.entry((node, slice)).or_default().targets += 1;
    }

    pub(super) fn take(&mut self, node: NodeId, slice: SliceIndex) {
        let less = |load: &mut Load| load.targets = load.targets.saturating_sub(1);
        self.nodes.entry(node).and_modify(less);
        self.slices.entry((node, slice)).and_modify(less);
    }

    /// Slices of the node that are in use.
    pub(super) fn slices(&self, node: NodeId) -> impl Iterator<Item = SliceIndex> {
        let of_node = self.slices.range((node, SliceIndex(0))..=(node, SliceIndex(u16::MAX)));
        of_node.filter(|(_, load)| load.capacity > 0).map(|((_, slice), _)| *slice)
    }

    /// How full a node would be with `more` targets than now, compared with others.
    pub(super) fn relative(&self, node: NodeId, more: u64) -> u128 {
        self.nodes.get(&node).copied().unwrap_or_default().relative(more)
    }

    pub(super) fn relative_slice(&self, node: NodeId, slice: SliceIndex, more: u64) -> u128 {
        self.slices.get(&(node, slice)).copied().unwrap_or_default().relative(more)
    }

    /// Chains that two nodes share.
    pub(super) fn pairs(&self, one: NodeId, other: NodeId) -> u64 {
        self.pairs.get(&(one, other)).copied().unwrap_or(0)
    }

    /// By how much it evens things out when a node that has `from_has` of something gives one to another that has `to_has`; `None`:
    /// it doesn't.
    pub(super) fn gain(&self, from_has: u64, from: NodeId, to_has: u64, to: NodeId) -> Option<u128> {
        let of = |targets, node| Load { targets, ..self.nodes.get(&node).copied().unwrap_or_default() };
        gain(of(from_has, from), of(to_has, to))
    }

    /// Pairs of nodes of which the first has more than its share and the second less, those that differ most first.
    pub(super) fn uneven_nodes(&self) -> Vec<(NodeId, NodeId)> {
        uneven(&self.nodes, self.chains)
    }

    /// Pairs of slices of a node of which the first has more than its share and the second less.
    pub(super) fn uneven_slices(&self, node: NodeId) -> Vec<(NodeId, SliceIndex, SliceIndex)> {
        let of_node = self.slices.range((node, SliceIndex(0))..=(node, SliceIndex(u16::MAX)));
        let of_node: BTreeMap<SliceIndex, Load> = of_node.map(|((_, slice), load)| (*slice, *load)).collect();
        uneven(&of_node, u64::MAX).into_iter().map(|(from, to)| (node, from, to)).collect()
    }
}

fn uneven<K: Copy + Ord>(loads: &BTreeMap<K, Load>, most: u64) -> Vec<(K, K)> {
    let quotas = quotas(loads, most);
    let difference = |more: bool| {
        let of = |(key, load): (&K, &Load)| {
            let quota = quotas.get(key).copied().unwrap_or(0);
            let by = if more { load.targets.checked_sub(quota) } else { quota.checked_sub(load.targets) };
            by.filter(|by| *by > 0 && load.capacity > 0).map(|by| (Reverse(by), *key))
        };
        let mut out: Vec<_> = loads.iter().filter_map(of).collect();
        out.sort_unstable();
        out
    };
    let few = difference(false);
    let pairs = |(_, from)| few.iter().map(move |(_, to)| (from, *to));
    difference(true).into_iter().flat_map(pairs).collect()
}

/// How many of all targets each should have: in proportion to capacities, `most` at most, rounded so that as few as possible move.
fn quotas<K: Copy + Ord>(loads: &BTreeMap<K, Load>, most: u64) -> BTreeMap<K, u64> {
    let mut left: u64 = loads.values().map(|load| load.targets).sum();
    let mut open: Vec<(K, Load)> =
        loads.iter().filter(|(_, load)| load.capacity > 0).map(|(key, load)| (*key, *load)).collect();
    let mut out = BTreeMap::new();
    // Whoever would get more than it can take gets that, and the others share the rest.
    loop {
        let capacity: u64 = open.iter().map(|(_, load)| load.capacity).sum();
        let share = |load: &Load| u128::from(left) * u128::from(load.capacity) / u128::from(capacity.max(1));
        let (full, rest): (Vec<_>, Vec<_>) =
            open.iter().partition(|(_, load)| share(load) >= u128::from(most));
        if full.is_empty() {
            break;
        }
        for (key, _) in full {
            out.insert(key, most.min(left));
            left -= most.min(left);
        }
        open = rest;
    }
    let (capacity, all) = (open.iter().map(|(_, load)| load.capacity).sum::<u64>(), left);
    for (key, load) in &open {
        let share = (u128::from(all) * u128::from(load.capacity) / u128::from(capacity.max(1))) as u64;
        out.insert(*key, share);
        left -= share;
    }
    // What rounding left over stays with those that have it.
    open.sort_unstable_by_key(|(key, load)| (Reverse(load.targets.saturating_sub(out[key])), *key));
    for (key, _) in open.iter().cycle().take(if open.is_empty() { 0 } else { left as usize }) {
        *out.entry(*key).or_default() += 1;
    }
    out
}

/// By how much the sum of load squared over capacity falls when `from` gives `to` one; `None` if it doesn't.
fn gain(from: Load, to: Load) -> Option<u128> {
    if from.targets == 0 || from.capacity == 0 || to.capacity == 0 {
        return None;
    }
    let scaled = |targets: u64, capacity: u64| (u128::from(targets) << 64) / u128::from(capacity);
    let falls = scaled(2 * from.targets - 1, from.capacity);
    let rises = scaled(2 * to.targets + 1, to.capacity);
    falls.checked_sub(rises).filter(|gain| *gain > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(loads: &[(u64, u64)], most: u64) -> Vec<u64> {
        let of = |(at, (targets, capacity)): (usize, &(u64, u64))| {
            (at, Load { targets: *targets, capacity: *capacity })
        };
        let loads: BTreeMap<usize, Load> = loads.iter().enumerate().map(of).collect();
        let out = quotas(&loads, most);
        assert_eq!(out.values().sum::<u64>(), loads.values().map(|load| load.targets).sum::<u64>());
        (0..loads.len()).map(|at| out.get(&at).copied().unwrap_or(0)).collect()
    }

    #[test]
    fn shares_follow_capacities_and_rounding_moves_nothing() {
        assert_eq!(check(&[(32, 1), (32, 1), (32, 1), (0, 1)], 32), [24, 24, 24, 24]);
        assert_eq!(check(&[(3, 1), (4, 1), (4, 1), (0, 0)], 9), [3, 4, 4, 0]);
        assert_eq!(check(&[(10, 4), (10, 1), (10, 1)], 99), [20, 5, 5]);
        assert_eq!(check(&[(10, 8), (10, 1), (10, 1)], 14), [14, 8, 8], "no more than there are chains");
        assert_eq!(check(&[(7, 0), (0, 3)], 9), [0, 7], "what isn't in use has no share");
        assert_eq!(check(&[(5, 1)], 5), [5]);
    }
}
