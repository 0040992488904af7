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

mod even;
mod place;
mod plan;
mod shares;
mod space;

pub use plan::{Plan, Planned, plan};

use super::domains;
use super::liveness::Liveness;
use super::state::{Chain, Member, Node, Standing, State};
use super::transition::Public;
use corefs_wire::limits::MEMBERS_MAX;
use corefs_wire::{ChainId, Error, ErrorCode, NodeId, Result, SliceIndex, TargetId};
use place::Need;
use shares::Shares;
use space::Space;
use std::cell::Cell;
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
    let mut steps = Planner::new(state, liveness, ARRIVALS_MAX, Space::of(state, liveness)).steps();
    steps.retain(|step| match step {
        Step::Rotate { chain } => is_steady(&state.chains[chain], liveness),
        Step::Add { .. } | Step::Drop { .. } => true,
    });
    steps
}

/// Whether a chain may go without its head for a while: all of its members live on slices that do, have said so to this manager, know the chain
/// version, and reach each other. Whoever is dead and isn't known to be would be left as the only one that serves.
fn is_steady(chain: &Chain, liveness: &Liveness) -> bool {
    chain.members.iter().all(|member| {
        let heard = liveness.node(member.node).is_some_and(|node| node.alive && node.spoke);
        let slice = liveness.slices(member.node).get(usize::from(member.slice.0));
        heard
            && slice.is_some_and(|slice| !slice.dead)
            && liveness.target(member.target).is_some_and(|health| health.version == chain.version)
            && liveness.complains_of(member.target).is_none()
            && !chain.members.iter().any(|of| liveness.cuts().has_said(member.target, of.node))
    })
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
        && Planner::new(state, liveness, usize::MAX, Space::of(state, liveness)).steps().is_empty()
}

/// How many targets are to leave their slices and have no other place, or nobody to be copied from, as things are: what a plan would call
/// stuck, for much less.
pub fn stuck(state: &State, liveness: &Liveness) -> usize {
    let leaving = |member: &Member| {
        state.standing(member.node, member.slice) == Some(Standing::Leaving) && !member.leaving
    };
    let unserved = |chain: &&Chain| chain.members.iter().all(|member| member.state != Public::Serving);
    let unserved = state.chains.values().filter(unserved).flat_map(|chain| &chain.members);
    let mut planner = Planner::new(state, liveness, usize::MAX, Space::of(state, liveness));
    planner.mend_all();
    let placeless = planner.unplaced.iter().filter(|need| need.leaves.is_some());
    placeless.count() + unserved.filter(|member| leaving(member)).count()
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
            let together = |state: &State| {
                state.chains.get(&chain).is_some_and(|chain| domains::shares_one(state, chain))
            };
            let before = together(state);
            let _target = state.add_member(chain, leaves, node, slice);
            // A domain was given up that may be back: then they are taken apart again.
            state.moving.balance |= !before && together(state) && domains::are_enough(state);
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

struct Planner<'a> {
    state: &'a State,
    shares: Shares,
    space: Space,
    /// There are failure domains for all replicas of a chain.
    apart: bool,
    /// Members on their way to a node.
    arrivals: BTreeMap<NodeId, usize>,
    arrivals_max: usize,
    /// The chains of which each node holds a member that stays; and those that have something to do already.
    chains: BTreeMap<NodeId, Vec<ChainId>>,
    taken: BTreeSet<ChainId>,
    /// Chains that need a member, and have no place for it, or wait for one.
    unplaced: Vec<Need<'a>>,
    out: Vec<Step>,
    /// How many chains and slices were looked at, beside going through all of them once: what a plan costs.
    looked: Cell<usize>,
}

impl<'a> Planner<'a> {
    fn new(state: &'a State, liveness: &'a Liveness, arrivals_max: usize, space: Space) -> Self {
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
        Self {
            state,
            shares: Shares::of(state),
            space,
            apart: domains::enough(state, liveness),
            arrivals,
            arrivals_max,
            chains,
            taken: BTreeSet::new(),
            unplaced: Vec::new(),
            out: Vec::new(),
            looked: Cell::new(0),
        }
    }

    fn look(&self, at: usize) {
        self.looked.set(self.looked.get() + at);
    }

    fn steps(mut self) -> Vec<Step> {
        self.work();
        self.out
    }

    fn work(&mut self) {
        self.mend_all();
        if self.state.moving.balance && self.out.is_empty() {
            self.even_out();
        }
    }

    fn mend_all(&mut self) {
        let mut needs = Vec::new();
        for (id, chain) in &self.state.chains {
            if let Some(leaves) = self.mend(*id, chain) {
                needs.push(Need { id: *id, chain, leaves });
            }
        }
        self.place(needs);
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
        self.space.promise(chain, node, slice);
        *self.arrivals.entry(node).or_default() += 1;
        let leaves = leaves.map(|member| member.target);
        self.taken.insert(chain);
        self.out.push(Step::Add { chain, leaves, node, slice });
    }

    fn is_busy(&self, node: NodeId) -> bool {
        self.arrivals.get(&node).is_some_and(|arrivals| *arrivals >= self.arrivals_max)
    }

    /// Whether the chain has a member on that node, other than one that leaves.
    fn has_member(&self, chain: &Chain, leaves: Option<&Member>, node: NodeId) -> bool {
        let is_other = |member: &&Member| leaves.is_none_or(|leaves| leaves.target != member.target);
        chain.members.iter().filter(is_other).any(|member| member.node == node)
    }

    /// Whether the node can take a member of the chain.
    fn takes(&self, id: ChainId, leaves: Option<&Member>, node: NodeId) -> bool {
        self.space.has_room(node, self.space.bytes(id))
            && !self.has_member(&self.state.chains[&id], leaves, node)
    }

    /// Of the slices of the node that `suit` (disk, slice) and have room for a member of the chain the one with the least load.
    fn slice_for(
        &self,
        id: ChainId,
        node: NodeId,
        suits: impl Fn(u16, SliceIndex) -> bool,
    ) -> Option<SliceIndex> {
        let bytes = self.space.bytes(id);
        self.shares.emptiest(node, |disk, slice| {
            self.look(1);
            suits(disk, slice) && self.space.fits(node, slice, bytes)
        })
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
}

/// The members that stay when one has left.
fn others<'a>(chain: &'a Chain, leaves: Option<&'a Member>) -> impl Iterator<Item = &'a Member> {
    staying(chain).filter(move |member| leaves.is_none_or(|leaves| leaves.target != member.target))
}

#[cfg(test)]
mod tests;
