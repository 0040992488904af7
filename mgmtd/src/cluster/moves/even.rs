//! Evens out what nodes, disks and slices carry, and who leads chains.

use super::shares::Uneven;
use super::{Planner, Step, is_settled, staying};
use crate::cluster::domains;
use crate::cluster::state::{Chain, Member};
use corefs_wire::{ChainId, NodeId, SliceIndex};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Between whom nothing can move, and who can give nothing away: that stays so while places only fill.
#[derive(Default)]
struct Hopeless {
    pairs: BTreeSet<(NodeId, NodeId)>,
    from: BTreeSet<NodeId>,
}

impl<'a> Planner<'a> {
    /// Takes apart what shares a failure domain; moves from who has too much to who has too little, first between nodes, then between
    /// slices of a node; then hands heads on.
    pub(super) fn even_out(&mut self) {
        if self.apart && domains::repeats(self.state) > 0 && self.take_apart() {
            return;
        }
        let quotas = self.shares.node_quotas();
        let mut hopeless = Hopeless::default();
        while self.move_between_nodes(&quotas, &mut hopeless) {}
        if self.out.is_empty() && self.state.chains.values().all(is_settled) {
            self.move_within_nodes();
        }
        if self.out.is_empty() && self.state.chains.values().all(is_settled) {
            self.hand_on_heads();
        }
    }

    /// Moves members that share a failure domain with another one of their chain into domains of their own, whatever that does to shares:
    /// those are evened out afterwards. Whether there is anything to move, perhaps later.
    pub(super) fn take_apart(&mut self) -> bool {
        let mut any = false;
        let load = |planner: &Self, node| (planner.shares.relative(node, 1), node);
        let mut order: BTreeSet<_> = self.state.nodes.keys().map(|node| load(self, *node)).collect();
        for (id, chain) in &self.state.chains {
            let repeats = |member: &&Member| self.domain_repeats(chain, Some(member), member.node) > 0;
            let fullest =
                staying(chain).filter(repeats).max_by_key(|member| self.shares.relative(member.node, 0));
            let Some(leaves) = fullest.filter(|_| self.is_free(*id)) else { continue };
            let alone = |node: NodeId| {
                self.look(1);
                self.takes(*id, Some(leaves), node) && self.domain_repeats(chain, Some(leaves), node) == 0
            };
            let Some((_, node)) = order.iter().copied().find(|(_, node)| alone(*node)) else { continue };
            any = true;
            if self.is_busy(node) {
                continue;
            }
            if let Some(slice) = self.slice_for(*id, node, |_, _| true) {
                let changed = [node, leaves.node];
                order.retain(|(_, node)| !changed.contains(node));
                self.add(*id, Some(leaves), node, slice);
                order.extend(changed.iter().map(|node| load(self, *node)));
            }
        }
        any
    }

    fn is_free(&self, chain: ChainId) -> bool {
        !self.taken.contains(&chain) && is_settled(&self.state.chains[&chain])
    }

    /// The chains of a node.
    fn chains_of(&self, node: NodeId) -> impl Iterator<Item = (ChainId, &'a Chain)> {
        let ids = self.chains.get(&node).map_or(&[][..], Vec::as_slice);
        ids.iter().map(|id| (*id, &self.state.chains[id]))
    }

    /// One move between the two nodes for which it is worth most; false if there are none, or if that has to wait.
    fn move_between_nodes(&mut self, quotas: &BTreeMap<NodeId, u64>, hopeless: &mut Hopeless) -> bool {
        let (full, free) = self.shares.uneven_nodes(quotas);
        for from in full {
            if hopeless.from.contains(&from) {
                continue;
            }
            for to in free.iter().copied() {
                if hopeless.pairs.contains(&(from, to)) {
                    continue;
                }
                match self.best_between(from, to) {
                    Some((id, leaves, true)) if !self.is_busy(to) => {
                        let slice = self.slice_for(id, to, |_, _| true);
                        slice.into_iter().for_each(|slice| self.add(id, Some(leaves), to, slice));
                        return slice.is_some();
                    }
                    Some(_) => return false,
                    None => hopeless.pairs.extend([(from, to)]),
                }
            }
            // Whoever has less than its share now had less before.
            hopeless.from.insert(from);
        }
        false
    }

    /// Which member of one node another one takes best, and whether it may go now.
    fn best_between(&self, from: NodeId, to: NodeId) -> Option<(ChainId, &'a Member, bool)> {
        let mut best: Option<(_, &Member, bool)> = None;
        for (id, chain) in self.chains_of(from) {
            self.look(1);
            if !self.takes_from(id, from, to) {
                continue;
            }
            let Some(leaves) = staying(chain).find(|member| member.node == from) else { continue };
            let after = self.domain_repeats(chain, Some(leaves), to);
            if after > 0 && after > self.domain_repeats(chain, Some(leaves), from) {
                continue;
            }
            let (free, full) = (self.is_free(id), Reverse(self.shares.relative_slice(from, leaves.slice)));
            let rank = ((!free, after, full), self.shared(chain, Some(leaves), to), id);
            if best.as_ref().is_none_or(|(least, ..)| rank < *least) {
                best = Some((rank, leaves, free));
            }
        }
        best.map(|((.., id), leaves, free)| (id, leaves, free))
    }

    fn takes_from(&self, id: ChainId, from: NodeId, to: NodeId) -> bool {
        let leaves = staying(&self.state.chains[&id]).find(|member| member.node == from);
        leaves.is_some() && self.takes(id, leaves, to)
    }

    /// Moves between disks of a node, then between slices of a disk, on each node.
    fn move_within_nodes(&mut self) {
        let nodes: Vec<NodeId> = self.state.nodes.keys().copied().collect();
        for node in nodes {
            while !self.is_busy(node) && self.move_within(node) {}
        }
    }

    /// One move within a node; false if there are none.
    fn move_within(&mut self, node: NodeId) -> bool {
        let (full, free) = self.shares.uneven_disks(node);
        let slices = self.shares.uneven_slices(node);
        if full.is_empty() && slices.iter().all(|(full, _)| full.is_empty()) {
            return false;
        }
        let movable = self.movable(node);
        let found = full.iter().find_map(|from| self.between_disks(node, &movable, *from, &free));
        let found =
            found.or_else(|| slices.iter().find_map(|of_disk| self.between_slices(node, &movable, of_disk)));
        if let Some((id, leaves, slice)) = found {
            self.add(id, Some(leaves), node, slice);
        }
        found.is_some()
    }

    /// Members on a node that may move, those on the fullest disks and slices first.
    fn movable(&self, node: NodeId) -> Vec<(ChainId, &'a Member)> {
        let movable = self.chains_of(node).filter_map(|(id, chain)| {
            self.look(1);
            let leaves = staying(chain).find(|member| member.node == node).filter(|_| self.is_free(id))?;
            self.takes(id, Some(leaves), node).then_some((id, leaves))
        });
        let mut movable: Vec<_> = movable.collect();
        movable.sort_by_cached_key(|(id, leaves)| {
            (Reverse(self.shares.relative_slice(node, leaves.slice)), *id)
        });
        movable
    }

    fn between_disks(
        &self,
        node: NodeId,
        movable: &[(ChainId, &'a Member)],
        from: u16,
        free: &[u16],
    ) -> Option<(ChainId, &'a Member, SliceIndex)> {
        let on = |(_, leaves): &&(ChainId, &Member)| self.shares.disk(node, leaves.slice) == Some(from);
        free.iter().find_map(|to| {
            // Where the smallest doesn't fit none does.
            let smallest = movable.iter().filter(on).min_by_key(|(id, _)| self.space.bytes(*id))?;
            self.slice_for(smallest.0, node, |disk, _| disk == *to)?;
            movable.iter().filter(on).find_map(|(id, leaves)| {
                let slice = self.slice_for(*id, node, |disk, _| disk == *to)?;
                Some((*id, *leaves, slice))
            })
        })
    }

    fn between_slices(
        &self,
        node: NodeId,
        movable: &[(ChainId, &'a Member)],
        (full, free): &Uneven<SliceIndex>,
    ) -> Option<(ChainId, &'a Member, SliceIndex)> {
        full.iter().find_map(|from| {
            let on: Vec<_> = movable.iter().filter(|(_, leaves)| leaves.slice == *from).collect();
            free.iter().filter(|_| !on.is_empty()).find_map(|to| {
                self.look(1);
                let fits = |(id, _): &&&(ChainId, &Member)| self.space.fits(node, *to, self.space.bytes(*id));
                on.iter().find(fits).map(|(id, leaves)| (*id, *leaves, *to))
            })
        })
    }

    /// Hands heads on to nodes that have fewer than their share. Who isn't next yet comes closer, so that it is soon.
    fn hand_on_heads(&mut self) {
        let mut heads: BTreeMap<NodeId, u64> = BTreeMap::new();
        for chain in self.state.chains.values() {
            *heads.entry(chain.members[0].node).or_default() += 1;
        }
        for (id, chain) in &self.state.chains {
            // Few at a time: while a head goes to the end of its chain, there is one less to read from.
            if self.out.len() >= self.arrivals_max {
                break;
            }
            let head = chain.members[0].node;
            let of = |node: NodeId| heads.get(&node).copied().unwrap_or(0);
            let gain = |(at, member): (usize, &Member)| {
                let gain = self.shares.gain(of(head), head, of(member.node), member.node)?;
                Some((gain, Reverse(at), member.node))
            };
            let best = chain.members.iter().enumerate().skip(1).filter_map(gain).max();
            if let Some((.., node)) = best {
                heads.entry(head).and_modify(|heads| *heads -= 1);
                *heads.entry(node).or_default() += 1;
                self.out.push(Step::Rotate { chain: *id });
            }
        }
    }
}
