//! Which targets move to which slices: so that slices that people want to empty lose theirs, chains have as many members as
//! they should have, and slices in use carry their share.
//!
//! A move is a new member of the chain, which is filled like one that was away, and an old one that leaves when all that stay
//! serve ([`transition`](super::transition)). Nothing else is remembered: [`next`] looks at what is, and says what should
//! begin now. So it can be stopped, resumed, replaced by another primary and asked for something else at any time.
//!
//! # Aims
//! 1. Two members of a chain are never on one node. No move puts them into one failure domain where there are enough
//!    ([`domains`](super::domains)), and evening out takes those apart that share one.
//! 2. A node carries targets in proportion to the bytes of its slices in use, and so do a disk within its node and a slice within its
//!    disk. A target moves only from who has more than its share to who has less.
//! 3. So a target moves once, and never to where it has to leave again: what moves is the least that must, or nearly.
//! 4. Chains that two nodes share are about as many for every two, so that a dead node's load spreads.
//! 5. As many heads on each node as its share: a member that was filled comes last, so heads are handed on in the end.
//!
//! Placement of a new cluster has all chains before it and a better method ([`placement`](super::placement)).

mod plan;
mod shares;

pub use plan::{Plan, Planned, plan};

use super::domains;
use super::liveness::Liveness;
use super::state::{Chain, Member, Node, Standing, State};
use super::transition::Public;
use corefs_wire::limits::MEMBERS_MAX;
use corefs_wire::{ChainId, Error, ErrorCode, NodeId, Result, SliceIndex, TargetId};
use shares::Shares;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Members that are on their way to one node at a time, at most.
pub const ARRIVALS_MAX: usize = 2;

/// What should happen to a chain now.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// A new member on that slice, in the place of one if one is to leave.
    Add { chain: ChainId, leaves: Option<TargetId>, node: NodeId, slice: SliceIndex },
    /// It has more members than it should have.
    Drop { chain: ChainId, target: TargetId },
    /// Its head becomes the last.
    Rotate { chain: ChainId },
}

/// What should begin now. Empty: nothing, because nothing is to be done, or because what has begun isn't done.
pub fn next(state: &State, liveness: &Liveness) -> Vec<Step> {
    if state.moving.paused || !state.formed() || is_quiet(state) {
        return Vec::new();
    }
    Planner::new(state, liveness, ARRIVALS_MAX).steps()
}

/// Nobody wants anything to move, which is how it is nearly always: seen without counting who carries what.
fn is_quiet(state: &State) -> bool {
    let stays = |member: &Member| {
        !member.leaving && state.standing(member.node, member.slice) != Some(Standing::Leaving)
    };
    let wanted = state.formation.replicas as usize;
    !state.moving.balance
        && state.chains.values().all(|chain| chain.members.len() == wanted && chain.members.iter().all(stays))
}

/// Whether everything is where it should be. Not while nobody knows, because a node in use hasn't been heard of: what is to come to
/// it, or to go from it, waits until it has spoken.
pub fn is_done(state: &State, liveness: &Liveness) -> bool {
    let busy = |chain: &Chain| chain.members.iter().any(|member| member.leaving) || !is_settled(chain);
    unheard(state, liveness).is_none()
        && !state.chains.values().any(busy)
        && Planner::new(state, liveness, usize::MAX).steps().is_empty()
}

/// A node in use that is dead, or has not spoken since this manager leads.
fn unheard(state: &State, liveness: &Liveness) -> Option<NodeId> {
    let used = |node: &Node| node.slices.iter().any(|slice| slice.standing == Standing::Active);
    let silent = |id: &NodeId| !liveness.node(*id).is_some_and(|heard| heard.alive && heard.spoke);
    state.nodes.iter().find(|(id, node)| used(node) && silent(id)).map(|(id, _)| *id)
}

/// Whether a plan can be made: a manager that has just come to lead must hear of all nodes first that it doesn't take for dead
/// (`NotReady`; that is soon).
pub fn ready(state: &State, liveness: &Liveness) -> Result<()> {
    let assumed = |id: &&NodeId| liveness.node(**id).is_some_and(|heard| heard.alive && !heard.spoke);
    match state.nodes.keys().find(assumed) {
        None => Ok(()),
        Some(id) => {
            let text = format!("this manager has just taken over, and hasn't heard of {id} yet");
            Err(Error::new(ErrorCode::NotReady, text))
        }
    }
}

/// Applies a step.
pub fn apply(state: &mut State, step: Step) {
    match step {
        Step::Add { chain, leaves, node, slice } => {
            let _target = state.add_member(chain, leaves, node, slice);
        }
        Step::Drop { chain, target } => {
            if let Some(chain) = state.chains.get_mut(&chain) {
                chain.members.iter_mut().for_each(|member| member.leaving |= member.target == target);
                chain.version += 1;
            }
        }
        Step::Rotate { chain } => {
            if let Some(chain) = state.chains.get_mut(&chain).filter(|chain| chain.members.len() > 1) {
                chain.members[0].state = Public::Syncing;
                chain.members.rotate_left(1);
                chain.last_set = chain.members.iter().rev().skip(1).map(|member| member.target).collect();
                chain.version += 1;
            }
        }
    }
}

/// All of its members serve, and none is to leave.
fn is_settled(chain: &Chain) -> bool {
    chain.members.iter().all(|member| member.state == Public::Serving && !member.leaving)
}

/// The members that stay.
fn staying(chain: &Chain) -> impl Iterator<Item = &Member> {
    chain.members.iter().filter(|member| !member.leaving)
}

/// Bytes of the largest replica of a chain, as last reported.
fn bytes_of(chain: &Chain, liveness: &Liveness) -> u64 {
    let used = |member: &Member| Some(liveness.target(member.target)?.used);
    chain.members.iter().filter_map(used).max().unwrap_or(0)
}

/// What speaks against a place, the weightiest first: members of the chain in its failure domain, what the node would carry, chains that
/// it shares with the others; and the chain.
type Rank = (usize, u128, u64, ChainId);

/// A chain that needs a new member, in the place of one if one is to leave.
struct Need<'a> {
    id: ChainId,
    chain: &'a Chain,
    leaves: Option<&'a Member>,
}

struct Planner<'a> {
    state: &'a State,
    liveness: &'a Liveness,
    shares: Shares,
    /// There are failure domains for all replicas of a chain.
    apart: bool,
    /// Members on their way to a node.
    arrivals: BTreeMap<NodeId, usize>,
    arrivals_max: usize,
    /// The chains of which each node holds a member that stays; and those that have something to do already.
    chains: BTreeMap<NodeId, Vec<ChainId>>,
    taken: BTreeSet<ChainId>,
    out: Vec<Step>,
}

impl<'a> Planner<'a> {
    fn new(state: &'a State, liveness: &'a Liveness, arrivals_max: usize) -> Self {
        let mut arrivals = BTreeMap::new();
        let mut chains: BTreeMap<NodeId, Vec<ChainId>> = BTreeMap::new();
        for (id, member) in state.members().filter(|(_, member)| !member.leaving) {
            chains.entry(member.node).or_default().push(id);
            let used = state.standing(member.node, member.slice) == Some(Standing::Active);
            // One that is away though its node lives (its disk is dead, nobody reaches it) isn't on its way.
            let comes = matches!(member.state, Public::Syncing | Public::Waiting);
            if comes && used && liveness.node_alive(member.node) {
                *arrivals.entry(member.node).or_default() += 1;
            }
        }
        let (shares, taken, out) = (Shares::of(state), BTreeSet::new(), Vec::new());
        let apart = domains::enough(state, liveness);
        Self { state, liveness, shares, apart, arrivals, arrivals_max, chains, taken, out }
    }

    fn steps(mut self) -> Vec<Step> {
        let mut needs = Vec::new();
        for (id, chain) in &self.state.chains {
            if let Some(leaves) = self.mend(*id, chain) {
                needs.push(Need { id: *id, chain, leaves });
            }
        }
        self.place(needs);
        if self.state.moving.balance && self.out.is_empty() {
            self.even_out();
        }
        self.out
    }

    /// Whether a chain needs a new member, and in whose place, so that it has the number of members it should have, all of them
    /// where they may stay. One that has too many drops one.
    fn mend(&mut self, id: ChainId, chain: &'a Chain) -> Option<Option<&'a Member>> {
        let wanted = self.state.formation.replicas as usize;
        let may_stay = |member: &&Member| {
            self.state
                .standing(member.node, member.slice)
                .is_some_and(|standing| standing != Standing::Leaving)
        };
        let unwanted: Vec<&Member> = staying(chain).filter(|member| !may_stay(member)).collect();
        let good: Vec<&Member> = staying(chain).filter(may_stay).collect();
        // One change at a time, and only what can succeed: a chain that nobody serves can't fill anybody.
        let served = chain.members.iter().any(|member| member.state == Public::Serving);
        if !served || good.iter().any(|member| member.state != Public::Serving) {
            return None;
        }
        let stay = staying(chain).count();
        if stay > wanted && unwanted.is_empty() {
            let heaviest = good.into_iter().max_by_key(|member| self.shares.relative(member.node, 0));
            if let Some(member) = heaviest {
                self.shares.take(member.node, member.slice);
                self.out.push(Step::Drop { chain: id, target: member.target });
            }
            return None;
        }
        if chain.members.len() >= MEMBERS_MAX {
            return None;
        }
        if stay < wanted {
            return Some(None);
        }
        // Whoever is lost already goes first.
        let lost = unwanted.iter().copied().find(|member| member.state != Public::Serving);
        lost.or(unwanted.first().copied()).map(Some)
    }

    fn add(&mut self, chain: ChainId, leaves: Option<&Member>, node: NodeId, slice: SliceIndex) {
        if let Some(leaves) = leaves {
            self.shares.take(leaves.node, leaves.slice);
        }
        self.shares.put(node, slice);
        *self.arrivals.entry(node).or_default() += 1;
        let leaves = leaves.map(|member| member.target);
        self.taken.insert(chain);
        self.out.push(Step::Add { chain, leaves, node, slice });
    }

    /// Gives chains the members they need, the best of all places first. When that one has enough to do, the rest waits: that is
    /// better than a place that the target has to leave again.
    fn place(&mut self, mut needs: Vec<Need<'a>>) {
        while let Some((at, node, slice)) = self.best(&needs)
            && !self.is_busy(node)
        {
            let Need { id, leaves, .. } = needs.swap_remove(at);
            self.add(id, leaves, node, slice);
        }
    }

    fn best(&self, needs: &[Need<'a>]) -> Option<(usize, NodeId, SliceIndex)> {
        // Nodes by what they would carry: the first few are enough for most.
        let mut nodes: Vec<(u128, NodeId)> =
            self.state.nodes.keys().map(|node| (self.shares.relative(*node, 1), *node)).collect();
        nodes.sort_unstable();
        let mut best: Option<(Rank, (usize, NodeId, SliceIndex))> = None;
        for (at, Need { id, chain, leaves }) in needs.iter().enumerate() {
            // Where one leaves, another one is no more than there was.
            let before = leaves.map_or(0, |leaves| self.domain_repeats(chain, Some(leaves), leaves.node));
            let same = leaves.map(|leaves| (self.shares.relative(leaves.node, 0), leaves.node));
            for (load, node) in same.into_iter().chain(nodes.iter().copied()) {
                if best.as_ref().is_some_and(|((domain, least, ..), _)| (*domain, *least) < (0, load)) {
                    break;
                }
                let Some(slice) = self.room(chain, *leaves, node, |_, _| true) else { continue };
                let domain = self.domain_repeats(chain, *leaves, node);
                if self.apart && domain > before {
                    continue;
                }
                let rank = (domain, load, self.shared(chain, *leaves, node), *id);
                if best.as_ref().is_none_or(|(least, _)| rank < *least) {
                    best = Some((rank, (at, node, slice)));
                }
            }
        }
        best.map(|(_, best)| best)
    }

    fn is_busy(&self, node: NodeId) -> bool {
        self.arrivals.get(&node).is_some_and(|arrivals| *arrivals >= self.arrivals_max)
    }

    /// A slice of the node, of those that `suit` (disk, slice), that may take a member of the chain: the one with the least load.
    fn room(
        &self,
        chain: &Chain,
        leaves: Option<&Member>,
        node: NodeId,
        suit: impl Fn(u16, SliceIndex) -> bool,
    ) -> Option<SliceIndex> {
        let there = chain
            .members
            .iter()
            .any(|member| member.node == node && leaves.is_none_or(|leaves| leaves.target != member.target));
        if there || !self.liveness.node(node).is_some_and(|heard| heard.alive && heard.spoke) {
            return None;
        }
        let needs = bytes_of(chain, self.liveness);
        let reported = self.liveness.slices(node);
        let fits = |slice: &SliceIndex| {
            let health = reported.get(usize::from(slice.0));
            health.is_some_and(|health| !health.dead && health.capacity.saturating_sub(health.used) > needs)
        };
        let slices = self.shares.slices(node).filter(|(disk, slice)| suit(*disk, *slice));
        let slices = slices.map(|(_, slice)| slice).filter(fits);
        slices.min_by_key(|slice| self.shares.relative_slice(node, *slice, 1))
    }

    /// Members that would share the failure domain of one on that node.
    fn domain_repeats(&self, chain: &Chain, leaves: Option<&Member>, node: NodeId) -> usize {
        let domain = |node: &NodeId| self.state.nodes.get(node).map_or("", |node| node.domain.as_str());
        let ours = domain(&node);
        if ours.is_empty() {
            return 0;
        }
        others(chain, leaves).filter(|member| domain(&member.node) == ours).count()
    }

    /// Chains that the node would share with the other members.
    fn shared(&self, chain: &Chain, leaves: Option<&Member>, node: NodeId) -> u64 {
        others(chain, leaves).map(|member| self.shares.pairs(member.node, node)).sum()
    }

    /// Takes apart what shares a failure domain; moves from who has too much to who has too little, first between nodes, then between
    /// slices of a node; then hands heads on.
    fn even_out(&mut self) {
        if self.apart && domains::repeats(self.state) > 0 && self.take_apart() {
            return;
        }
        let quotas = self.shares.node_quotas();
        while self.move_between_nodes(&quotas) {}
        if self.out.is_empty() && self.state.chains.values().all(is_settled) {
            while self.move_within_a_node() {}
        }
        if self.out.is_empty() && self.state.chains.values().all(is_settled) {
            self.hand_on_heads();
        }
    }

    /// Moves members that share a failure domain with another one of their chain into domains of their own, whatever that does to shares:
    /// those are evened out afterwards. Whether there is anything to move, perhaps later.
    fn take_apart(&mut self) -> bool {
        let mut any = false;
        for (id, chain) in &self.state.chains {
            let repeats = |member: &&Member| self.domain_repeats(chain, Some(member), member.node) > 0;
            let fullest =
                staying(chain).filter(repeats).max_by_key(|member| self.shares.relative(member.node, 0));
            let Some(leaves) = fullest.filter(|_| self.is_free(*id)) else { continue };
            let places = self.state.nodes.keys().filter_map(|node| {
                let alone = self.domain_repeats(chain, Some(leaves), *node) == 0;
                let slice = self.room(chain, Some(leaves), *node, |_, _| alone)?;
                Some((self.shares.relative(*node, 1), *node, slice))
            });
            if let Some((_, node, slice)) = places.min() {
                any = true;
                if !self.is_busy(node) {
                    self.add(*id, Some(leaves), node, slice);
                }
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
    fn move_between_nodes(&mut self, quotas: &BTreeMap<NodeId, u64>) -> bool {
        let (full, free) = self.shares.uneven_nodes(quotas);
        let pairs = full.iter().flat_map(|from| free.iter().map(|to| (*from, *to)));
        for (from, to) in pairs {
            let movable = self.chains_of(from).filter_map(|(id, chain)| {
                let leaves = staying(chain).find(|member| member.node == from)?;
                let slice = self.room(chain, Some(leaves), to, |_, _| true)?;
                let before = self.domain_repeats(chain, Some(leaves), from);
                let after = self.domain_repeats(chain, Some(leaves), to);
                let full = Reverse(self.shares.relative_slice(from, leaves.slice, 0));
                let rank = (!self.is_free(id), after, full, self.shared(chain, Some(leaves), to));
                (after <= before).then_some((rank, id, leaves, slice))
            });
            if let Some((rank, id, leaves, slice)) = movable.min_by_key(|(rank, id, ..)| (*rank, *id)) {
                let now = !rank.0 && !self.is_busy(to);
                if now {
                    self.add(id, Some(leaves), to, slice);
                }
                return now;
            }
        }
        false
    }

    /// One move between disks of a node, or between slices of a disk.
    fn move_within_a_node(&mut self) -> bool {
        let nodes: Vec<NodeId> =
            self.state.nodes.keys().copied().filter(|node| !self.is_busy(*node)).collect();
        for node in nodes {
            for (from, to) in self.shares.uneven_disks(node) {
                let from = |slice| self.shares.disk(node, slice) == Some(from);
                if let Some((id, leaves, slice)) = self.movable(node, from, |disk, _| disk == to) {
                    self.add(id, Some(leaves), node, slice);
                    return true;
                }
            }
            for (from, to) in self.shares.uneven_slices(node) {
                let from = |slice| slice == from;
                if let Some((id, leaves, slice)) = self.movable(node, from, |_, slice| slice == to) {
                    self.add(id, Some(leaves), node, slice);
                    return true;
                }
            }
        }
        false
    }

    /// A member on the fullest of the slices `from` of a node that may go to one of the others that `suit`.
    fn movable(
        &self,
        node: NodeId,
        from: impl Fn(SliceIndex) -> bool,
        suit: impl Fn(u16, SliceIndex) -> bool + Copy,
    ) -> Option<(ChainId, &'a Member, SliceIndex)> {
        let movable = self.chains_of(node).filter_map(|(id, chain)| {
            let on = |member: &&Member| member.node == node && from(member.slice);
            let leaves = staying(chain).find(on).filter(|_| self.is_free(id))?;
            let slice = self.room(chain, Some(leaves), node, suit)?;
            Some((Reverse(self.shares.relative_slice(node, leaves.slice, 0)), id, leaves, slice))
        });
        let (_, id, leaves, slice) = movable.min_by_key(|(full, id, ..)| (*full, *id))?;
        Some((id, leaves, slice))
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

/// The members that stay when one has left.
fn others<'a>(chain: &'a Chain, leaves: Option<&'a Member>) -> impl Iterator<Item = &'a Member> {
    staying(chain).filter(move |member| leaves.is_none_or(|leaves| leaves.target != member.target))
}

#[cfg(test)]
mod tests;
