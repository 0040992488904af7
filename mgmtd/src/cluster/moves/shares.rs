//! What each node and slice in use carries, and what would be its share.

use super::staying;
use crate::cluster::state::{Standing, State};
use corefs_wire::{NodeId, SliceIndex};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

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

/// The loads of nodes, disks and slices. Members that are to leave don't count, those on their way do.
pub(super) struct Shares {
    nodes: BTreeMap<NodeId, Load>,
    disks: BTreeMap<(NodeId, u16), Load>,
    slices: BTreeMap<(NodeId, SliceIndex), (u16, Load)>,
    pairs: BTreeMap<(NodeId, NodeId), u64>,
    chains: u64,
}

impl Shares {
    pub(super) fn of(state: &State) -> Self {
        let (nodes, disks, slices, pairs) = Default::default();
        let mut out = Self { nodes, disks, slices, pairs, chains: state.chains.len() as u64 };
        for (id, node) in &state.nodes {
            for (index, slice) in node.slices.iter().enumerate() {
                let used = slice.standing == Standing::Active;
                let capacity = if used { (slice.capacity / UNIT).max(1) } else { 0 };
                out.nodes.entry(*id).or_default().capacity += capacity;
                out.disks.entry((*id, slice.disk)).or_default().capacity += capacity;
                let load = Load { targets: 0, capacity };
                out.slices.insert((*id, SliceIndex(index as u16)), (slice.disk, load));
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
        self.count(node, slice, |targets| targets + 1);
    }

    pub(super) fn take(&mut self, node: NodeId, slice: SliceIndex) {
        self.count(node, slice, |targets| targets.saturating_sub(1));
    }

    fn count(&mut self, node: NodeId, slice: SliceIndex, change: impl Fn(u64) -> u64) {
        let Some((disk, load)) = self.slices.get_mut(&(node, slice)) else { return };
        load.targets = change(load.targets);
        for load in [self.disks.get_mut(&(node, *disk)), self.nodes.get_mut(&node)].into_iter().flatten() {
            load.targets = change(load.targets);
        }
    }

    /// Slices of the node that are in use, with their disks.
    pub(super) fn slices(&self, node: NodeId) -> impl Iterator<Item = (u16, SliceIndex)> {
        let used = self.of_node(node).filter(|(.., load)| load.capacity > 0);
        used.map(|(slice, disk, _)| (disk, slice))
    }

    fn of_node(&self, node: NodeId) -> impl Iterator<Item = (SliceIndex, u16, Load)> {
        let of_node = self.slices.range((node, SliceIndex(0))..=(node, SliceIndex(u16::MAX)));
        of_node.map(|((_, slice), (disk, load))| (*slice, *disk, *load))
    }

    /// How full a node would be with `more` targets than now, compared with others.
    pub(super) fn relative(&self, node: NodeId, more: u64) -> u128 {
        self.nodes.get(&node).copied().unwrap_or_default().relative(more)
    }

    /// How full a slice's disk and the slice itself would be with `more` targets than now, compared with others of the node.
    pub(super) fn relative_slice(&self, node: NodeId, slice: SliceIndex, more: u64) -> (u128, u128) {
        let (disk, load) = self.slices.get(&(node, slice)).copied().unwrap_or_default();
        let disk = self.disks.get(&(node, disk)).copied().unwrap_or_default();
        (disk.relative(more), load.relative(more))
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

    /// How many of all targets each node should have. Stays the same while targets only move.
    pub(super) fn node_quotas(&self) -> BTreeMap<NodeId, u64> {
        quotas(&self.nodes, self.chains)
    }

    /// Nodes that have more than their share, and those that have less, each with those that differ most first.
    pub(super) fn uneven_nodes(&self, quotas: &BTreeMap<NodeId, u64>) -> (Vec<NodeId>, Vec<NodeId>) {
        uneven(&self.nodes, quotas)
    }

    /// Pairs of disks of a node of which the first has more than its share and the second less.
    pub(super) fn uneven_disks(&self, node: NodeId) -> Vec<(u16, u16)> {
        let of_node = self.disks.range((node, 0)..=(node, u16::MAX));
        let disks = of_node.map(|((_, disk), load)| (*disk, *load)).collect();
        pairs(uneven(&disks, &quotas(&disks, u64::MAX)))
    }

    /// Pairs of slices of one disk of which the first has more than its share and the second less.
    pub(super) fn uneven_slices(&self, node: NodeId) -> Vec<(SliceIndex, SliceIndex)> {
        let disks: BTreeSet<u16> = self.of_node(node).map(|(_, disk, _)| disk).collect();
        let of_disk = |disk: u16| {
            let slices = self.of_node(node).filter(|(_, on, _)| *on == disk);
            let slices = slices.map(|(slice, _, load)| (slice, load)).collect();
            pairs(uneven(&slices, &quotas(&slices, u64::MAX)))
        };
        disks.into_iter().flat_map(of_disk).collect()
    }

    pub(super) fn disk(&self, node: NodeId, slice: SliceIndex) -> Option<u16> {
        self.slices.get(&(node, slice)).map(|(disk, _)| *disk)
    }
}

fn pairs<K: Copy>((full, free): (Vec<K>, Vec<K>)) -> Vec<(K, K)> {
    full.iter().flat_map(|from| free.iter().map(|to| (*from, *to))).collect()
}

/// Who has more than its share, and who has less; those that differ most first.
fn uneven<K: Copy + Ord>(loads: &BTreeMap<K, Load>, quotas: &BTreeMap<K, u64>) -> (Vec<K>, Vec<K>) {
    let differing = |more: bool| {
        let of = |(key, load): (&K, &Load)| {
            let quota = quotas.get(key).copied().unwrap_or(0);
            let by = if more { load.targets.checked_sub(quota) } else { quota.checked_sub(load.targets) };
            by.filter(|by| *by > 0 && load.capacity > 0).map(|by| (Reverse(by), *key))
        };
        let mut out: Vec<_> = loads.iter().filter_map(of).collect();
        out.sort_unstable();
        out.into_iter().map(|(_, key)| key).collect()
    };
    (differing(true), differing(false))
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
