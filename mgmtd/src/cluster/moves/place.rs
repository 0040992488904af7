//! Gives chains the members they need: the best of all places first.
//!
//! Each chain could go to nearly each node, and to nearly each of its slices, and what is best changes with every member that
//! gets its place. So neither pairs nor slices are gone through for each: nodes wait in the order of what they would carry, each
//! with a few of the chains that may go there, and only what a place changes is put in order again. A chain that can't go to a node
//! never can later on, while places only fill; so no pair is looked at twice.

use super::{Planner, others};
use crate::cluster::state::{Chain, Member};
use corefs_wire::limits::MEMBERS_MAX;
use corefs_wire::{ChainId, NodeId};
use std::collections::{BTreeMap, BTreeSet};

/// Of so many chains that may go to a node the best one does. More would only spread pairs of nodes a little more evenly.
const WINDOW: usize = 64;

/// A chain that needs a new member, in the place of one if one is to leave.
pub(super) struct Need<'a> {
    pub(super) id: ChainId,
    pub(super) chain: &'a Chain,
    pub(super) leaves: Option<&'a Member>,
}

/// A node that takes members: those of chains that have one there already, which leaves for another slice of it, or those of others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Own,
    Others,
}

/// Chains that may go to a node.
struct Candidates<'n> {
    /// Those to look at, from `first` on, and how many of them were.
    list: &'n [usize],
    first: usize,
    seen: usize,
    /// The best few of those seen: by how many chains the node shares with their members.
    window: Vec<(u64, ChainId, usize)>,
}

impl<'a> Planner<'a> {
    /// When the best of all places has enough to do, the rest waits: that is better than a place that the target has to leave
    /// again.
    pub(super) fn place(&mut self, needs: Vec<Need<'a>>) {
        let mut needs: Vec<Option<Need<'a>>> = needs.into_iter().map(Some).collect();
        // What shares a failure domain with as few as possible comes first.
        for repeats in 0..MEMBERS_MAX {
            if needs.iter().all(Option::is_none) || !self.place_with(repeats, &mut needs) {
                break;
            }
        }
        self.unplaced = needs.into_iter().flatten().collect();
    }

    /// Places what finds a place where so many others of its chain are in the failure domain; `false` if the rest has to wait.
    fn place_with(&mut self, repeats: usize, needs: &mut [Option<Need<'a>>]) -> bool {
        let (all, own) = self.lists(needs);
        let mut waiting = self.candidates(&all, &own);
        let mut order: BTreeSet<_> = waiting.keys().map(|(node, source)| self.key(*node, *source)).collect();
        while let Some((_, node, source)) = order.pop_first() {
            let Some(candidates) = waiting.get_mut(&(node, source)) else { continue };
            let Some(at) = self.pick(candidates, node, repeats, needs) else {
                waiting.remove(&(node, source));
                continue;
            };
            if self.is_busy(node) {
                return false;
            }
            let Some(Need { id, leaves, .. }) = needs[at].take() else { continue };
            let Some(slice) = self.slice_for(id, node, |_, _| true) else { continue };
            let from = leaves.map(|leaves| leaves.node).filter(|from| *from != node);
            let nodes = [Some(node), from].into_iter().flatten();
            let changed: Vec<_> =
                nodes.flat_map(|node| [(node, Source::Own), (node, Source::Others)]).collect();
            order.retain(|(_, node, source)| !changed.contains(&(*node, *source)));
            self.add(id, leaves, node, slice);
            let still = changed.iter().filter(|entry| waiting.contains_key(entry));
            order.extend(still.map(|(node, source)| self.key(*node, *source)));
        }
        true
    }

    /// Nodes in the order of what they would carry. Where one leaves, another one is no more than there was.
    fn key(&self, node: NodeId, source: Source) -> (u128, NodeId, Source) {
        (self.shares.relative(node, u64::from(source == Source::Others)), node, source)
    }

    /// What is still to be placed: all of it, and what leaves a slice of each node.
    fn lists(&self, needs: &[Option<Need<'a>>]) -> (Vec<usize>, BTreeMap<NodeId, Vec<usize>>) {
        let mut own: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        let all: Vec<usize> = (0..needs.len()).filter(|at| needs[*at].is_some()).collect();
        for at in &all {
            if let Some(leaves) = needs[*at].as_ref().and_then(|need| need.leaves) {
                own.entry(leaves.node).or_default().push(*at);
            }
        }
        (all, own)
    }

    fn candidates<'n>(
        &self,
        all: &'n [usize],
        own: &'n BTreeMap<NodeId, Vec<usize>>,
    ) -> BTreeMap<(NodeId, Source), Candidates<'n>> {
        let mut out = BTreeMap::new();
        let new = |list: &'n [usize], first| Candidates { list, first, seen: 0, window: Vec::new() };
        let takers = self.state.nodes.keys().copied().filter(|node| self.space.has_room(*node, 0));
        let takers: Vec<NodeId> = takers.collect();
        for (at, node) in takers.iter().enumerate() {
            // Each begins somewhere else, so that not all look at the same.
            let first = if all.len() > WINDOW { at * all.len() / takers.len() } else { 0 };
            out.insert((*node, Source::Others), new(all, first));
            if let Some(own) = own.get(node) {
                out.insert((*node, Source::Own), new(own, 0));
            }
        }
        out
    }

    /// Which of the chains that may go there does.
    fn pick(
        &self,
        candidates: &mut Candidates<'_>,
        node: NodeId,
        repeats: usize,
        needs: &[Option<Need<'a>>],
    ) -> Option<usize> {
        let fits = |id: ChainId| self.space.has_room(node, self.space.bytes(id));
        candidates.window.retain(|(_, id, at)| needs[*at].is_some() && fits(*id));
        self.look(candidates.window.len());
        while candidates.window.len() < WINDOW && candidates.seen < candidates.list.len() {
            let at = candidates.list[(candidates.first + candidates.seen) % candidates.list.len()];
            candidates.seen += 1;
            let Some(need) = &needs[at] else { continue };
            self.look(1);
            if fits(need.id) && self.may_go(need, node) == Some(repeats) {
                let shared = self.shared(need.chain, need.leaves, node);
                candidates.window.push((shared, need.id, at));
            }
        }
        candidates.window.iter().min().map(|(.., at)| *at)
    }

    /// How many others of the chain are in the node's failure domain; `None`: it may not go there, were there room or not, because
    /// it has a member there, or these are more than before and there are domains for all of them.
    fn may_go(&self, need: &Need<'a>, node: NodeId) -> Option<usize> {
        let Need { chain, leaves, .. } = *need;
        if self.has_member(chain, leaves, node) {
            return None;
        }
        let repeats = self.domain_repeats(chain, leaves, node);
        let before = || leaves.map_or(0, |leaves| self.domain_repeats(chain, Some(leaves), leaves.node));
        (repeats == 0 || !self.apart || repeats <= before()).then_some(repeats)
    }

    /// Bytes of what found no place for want of room alone.
    pub(super) fn lacking(&self) -> u64 {
        let takers = self.state.nodes.keys().copied().filter(|node| self.space.takes_any(*node));
        let takers: Vec<NodeId> = takers.collect();
        let anywhere = |need: &&Need<'a>| takers.iter().any(|node| self.may_go(need, *node).is_some());
        let bytes = self.unplaced.iter().filter(anywhere).map(|need| self.space.bytes(need.id));
        bytes.fold(0, u64::saturating_add)
    }

    /// Chains that the node would share with the other members.
    pub(super) fn shared(&self, chain: &Chain, leaves: Option<&Member>, node: NodeId) -> u64 {
        others(chain, leaves).map(|member| self.shares.pairs(member.node, node)).sum()
    }
}
