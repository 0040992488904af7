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

    /// Whether it would carry less than another one for each unit of capacity, if either got one more.
    fn carries_less(self, than: Self) -> bool {
        let times =
            |load: Self, other: Self| u128::from(load.targets + 1) * u128::from(other.capacity.max(1));
        times(self, than) < times(than, self)
    }
}

/// What a node, its disks and its slices carry.
#[derive(Default)]
struct OfNode {
    load: Load,
    /// By the disks' numbers, which the slices name.
    disks: Vec<(u16, Load)>,
    /// By their numbers: which of `disks` each is on.
    slices: Vec<(usize, Load)>,
}

/// The loads of nodes, disks and slices. Members that are to leave don't count, those on their way do.
pub(super) struct Shares {
    nodes: BTreeMap<NodeId, OfNode>,
    pairs: BTreeMap<(NodeId, NodeId), u64>,
    chains: u64,
}

impl Shares {
    pub(super) fn of(state: &State) -> Self {
        let (nodes, pairs) = Default::default();
        let mut out = Self { nodes, pairs, chains: state.chains.len() as u64 };
        for (id, node) in &state.nodes {
            let disks: BTreeSet<u16> = node.slices.iter().map(|slice| slice.disk).collect();
            let mut of_node = OfNode {
                disks: disks.into_iter().map(|disk| (disk, Load::default())).collect(),
                ..OfNode::default()
            };
            for slice in &node.slices {
                let used = slice.standing == Standing::Active;
                let capacity = if used { (slice.capacity / UNIT).max(1) } else { 0 };
                let at = of_node.disks.partition_point(|(disk, _)| *disk < slice.disk);
                of_node.load.capacity += capacity;
                of_node.disks[at].1.capacity += capacity;
                of_node.slices.push((at, Load { targets: 0, capacity }));
            }
            out.nodes.insert(*id, of_node);
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
        let Some(of_node) = self.nodes.get_mut(&node) else { return };
        let Some((disk, load)) = of_node.slices.get_mut(usize::from(slice.0)) else { return };
        for load in [load, &mut of_node.disks[*disk].1, &mut of_node.load] {
            load.targets = change(load.targets);
        }
    }

    /// Of the slices of a node that are in use and `suit` (their disk, and their number) the one that carries least.
    pub(super) fn emptiest(
        &self,
        node: NodeId,
        suits: impl Fn(u16, SliceIndex) -> bool,
    ) -> Option<SliceIndex> {
        let of_node = self.nodes.get(&node)?;
        let disks: Vec<u128> = of_node.disks.iter().map(|(_, load)| load.relative(1)).collect();
        let mut least: Option<(u128, Load, SliceIndex)> = None;
        for (index, (disk, load)) in (0..).map(SliceIndex).zip(&of_node.slices) {
            let better = least.is_none_or(|(least, than, _)| {
                disks[*disk] < least || disks[*disk] == least && load.carries_less(than)
            });
            if load.capacity > 0 && better && suits(of_node.disks[*disk].0, index) {
                least = Some((disks[*disk], *load, index));
            }
        }
        least.map(|(.., index)| index)
    }

    /// How full a node would be with `more` targets than now, compared with others.
    pub(super) fn relative(&self, node: NodeId, more: u64) -> u128 {
        self.nodes.get(&node).map_or(Load::default(), |of_node| of_node.load).relative(more)
    }

    /// How full a slice's disk and the slice itself are, compared with others of the node.
    pub(super) fn relative_slice(&self, node: NodeId, slice: SliceIndex) -> (u128, u128) {
        let of_node = self.nodes.get(&node);
        let found = of_node.and_then(|of_node| {
            let (disk, load) = of_node.slices.get(usize::from(slice.0))?;
            Some((of_node.disks[*disk].1, *load))
        });
        let (disk, load) = found.unwrap_or_default();
        (disk.relative(0), load.relative(0))
    }

    /// Chains that two nodes share.
    pub(super) fn pairs(&self, one: NodeId, other: NodeId) -> u64 {
        self.pairs.get(&(one, other)).copied().unwrap_or(0)
    }

    /// By how much it evens things out when a node that has `from_has` of something gives one to another that has `to_has`; `None`:
    /// it doesn't.
    pub(super) fn gain(&self, from_has: u64, from: NodeId, to_has: u64, to: NodeId) -> Option<u128> {
        let load = |node| self.nodes.get(&node).map_or(Load::default(), |of_node| of_node.load);
        let of = |targets, node| Load { targets, ..load(node) };
        gain(of(from_has, from), of(to_has, to))
    }

    fn loads(&self) -> BTreeMap<NodeId, Load> {
        self.nodes.iter().map(|(id, of_node)| (*id, of_node.load)).collect()
    }

    /// How many of all targets each node should have. Stays the same while targets only move.
    pub(super) fn node_quotas(&self) -> BTreeMap<NodeId, u64> {
        quotas(&self.loads(), self.chains)
    }

    /// Nodes that have more than their share, and those that have less, each with those that differ most first.
    pub(super) fn uneven_nodes(&self, quotas: &BTreeMap<NodeId, u64>) -> Uneven<NodeId> {
        uneven(&self.loads(), quotas)
    }

    /// Disks of a node that have more than their share, and those that have less.
    pub(super) fn uneven_disks(&self, node: NodeId) -> Uneven<u16> {
        let disks = self.nodes.get(&node).into_iter().flat_map(|of_node| &of_node.disks);
        uneven_of(disks.copied())
    }

    /// For each disk of a node its slices that have more than their share, and those that have less.
    pub(super) fn uneven_slices(&self, node: NodeId) -> Vec<Uneven<SliceIndex>> {
        let Some(of_node) = self.nodes.get(&node) else { return Vec::new() };
        let mut by_disk = vec![Vec::new(); of_node.disks.len()];
        for (index, (disk, load)) in (0..).map(SliceIndex).zip(&of_node.slices) {
            by_disk[*disk].push((index, *load));
        }
        by_disk.into_iter().map(|slices| uneven_of(slices.into_iter())).collect()
    }

    pub(super) fn disk(&self, node: NodeId, slice: SliceIndex) -> Option<u16> {
        let of_node = self.nodes.get(&node)?;
        let (disk, _) = of_node.slices.get(usize::from(slice.0))?;
        Some(of_node.disks[*disk].0)
    }
}

/// Who has more than its share, and who has less; those that differ most first.
pub(super) type Uneven<K> = (Vec<K>, Vec<K>);

/// The same of those that share everything they have among themselves.
fn uneven_of<K: Copy + Ord>(loads: impl Iterator<Item = (K, Load)> + Clone) -> Uneven<K> {
    // Mostly they are equal, and so is what they carry: seen without dividing anything.
    let used = || loads.clone().filter(|(_, load)| load.capacity > 0).map(|(_, load)| load);
    let range = |of: fn(Load) -> u64| Some((used().map(of).min()?, used().map(of).max()?));
    let even = |(least, most): (u64, u64)| most - least <= 1;
    let equal = range(|load| load.capacity).is_none_or(|(least, most)| least == most);
    // What is on those that aren't in use is to go elsewhere, and belongs to the shares already.
    let others = loads.clone().any(|(_, load)| load.capacity == 0 && load.targets > 0);
    if equal && !others && range(|load| load.targets).is_none_or(even) {
        return (Vec::new(), Vec::new());
    }
    let loads: BTreeMap<K, Load> = loads.collect();
    uneven(&loads, &quotas(&loads, u64::MAX))
}

fn uneven<K: Copy + Ord>(loads: &BTreeMap<K, Load>, quotas: &BTreeMap<K, u64>) -> Uneven<K> {
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
