//! All that is still to move, before it does: what people are shown.

use super::space::Space;
use super::{Planner, Step, apply, staying};
use crate::cluster::liveness::Liveness;
use crate::cluster::state::{Member, Standing, State};
use crate::cluster::transition::Public;
use corefs_wire::{ChainId, NodeId, SliceIndex, TargetId};
use std::collections::BTreeMap;

/// A plan that isn't done after so many rounds is shown as far as it goes: nobody waits for ever for it.
const ROUNDS_MAX: usize = 1000;

/// One target that is to move, or has begun to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Planned {
    pub chain: ChainId,
    /// Which target leaves, and where it is; `None`: a further replica.
    pub from: Option<(TargetId, NodeId, SliceIndex)>,
    pub to: (NodeId, SliceIndex),
    /// Of the largest replica, as last reported.
    pub bytes: u64,
    pub begun: bool,
}

/// Everything that is to move.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Plan {
    pub moves: Vec<Planned>,
    /// The fewest moves that lead to the same shares.
    pub least: u64,
    /// The fewest bytes: of each slice that has fewer targets in the end, its smallest.
    pub least_bytes: u64,
    /// Heads that are handed on, which moves nothing.
    pub rotations: u64,
    /// Members on slices that are to be emptied, for which there is no other place.
    pub stuck: Vec<(ChainId, TargetId)>,
    /// Bytes of those for which there would be a place if there were room.
    pub lacking: u64,
}

/// What [`next`](super::next) will do until nothing is left to do, if nothing else changes.
pub fn plan(state: &State, liveness: &Liveness) -> Plan {
    let mut out = Plan::default();
    if !state.formed() {
        return out;
    }
    let mut state = state.clone();
    state.moving.paused = false;
    let counts = |member: &Member| member.state == Public::Serving || member.leaving;
    let (before, sizes) = (loads(&state, counts), sizes(&state, liveness));
    let mut space = Space::of(&state, liveness);
    let begun: Vec<ChainId> = state.chains.keys().copied().collect();
    for id in begun {
        let chain = &state.chains[&id];
        let mut leave = chain.members.iter().filter(|member| member.leaving);
        for comes in staying(chain).filter(|member| member.state != Public::Serving) {
            if let Some(leaves) = leave.next() {
                let to = (comes.node, comes.slice);
                let planned = planned(&space, id, Some(leaves), to);
                out.moves.push(Planned { begun: true, ..planned });
            }
        }
        settle(&mut state, id, &mut space, liveness);
    }
    for _ in 0..ROUNDS_MAX {
        let mut planner = Planner::new(&state, liveness, usize::MAX, space);
        planner.work();
        let steps = std::mem::take(&mut planner.out);
        out.lacking = planner.lacking();
        space = planner.space;
        if steps.is_empty() {
            break;
        }
        for step in steps {
            let chain = match step {
                Step::Add { chain, leaves, node, slice } => {
                    let leaving = |member: &&Member| Some(member.target) == leaves;
                    let found = state.chains[&chain].members.iter().find(leaving);
                    out.moves.push(planned(&space, chain, found, (node, slice)));
                    chain
                }
                Step::Drop { chain, .. } => chain,
                Step::Rotate { chain } => {
                    out.rotations += 1;
                    chain
                }
            };
            apply(&mut state, step);
            settle(&mut state, chain, &mut space, liveness);
        }
    }
    let after = loads(&state, |_| true);
    let more = |(at, count): (&_, &u64)| count.saturating_sub(before.get(at).copied().unwrap_or(0));
    out.least = after.iter().map(more).sum();
    let fewer = |(at, sizes): (&_, &Vec<u64>)| {
        let gone = sizes.len().saturating_sub(after.get(at).copied().unwrap_or(0) as usize);
        sizes.iter().take(gone).sum::<u64>()
    };
    out.least_bytes = sizes.iter().map(fewer).sum();
    let stuck = |(_, member): &(ChainId, &Member)| {
        state.standing(member.node, member.slice) == Some(Standing::Leaving)
    };
    out.stuck = state.members().filter(stuck).map(|(chain, member)| (chain, member.target)).collect();
    out
}

/// A chain after everything that has begun with it went well, and everybody came back. One that nobody serves stays as it is.
fn settle(state: &mut State, id: ChainId, space: &mut Space, liveness: &Liveness) {
    let Some(chain) = state.chains.get_mut(&id) else { return };
    if chain.members.iter().all(|member| member.state != Public::Serving) {
        return;
    }
    chain.members.iter().filter(|member| member.leaving).for_each(|left| space.give_back(id, left, liveness));
    chain.members.retain(|member| !member.leaving);
    chain.members.iter_mut().for_each(|member| member.state = Public::Serving);
    chain.last_set = chain.members.iter().map(|member| member.target).collect();
}

fn loads(state: &State, counts: impl Fn(&Member) -> bool) -> BTreeMap<(NodeId, SliceIndex), u64> {
    let mut out = BTreeMap::new();
    for (_, member) in state.members().filter(|(_, member)| counts(member)) {
        *out.entry((member.node, member.slice)).or_default() += 1;
    }
    out
}

/// Bytes of the members on each slice, the smallest first. One that leaves and whose successor serves already isn't among them: it
/// goes without anything being sent.
fn sizes(state: &State, liveness: &Liveness) -> BTreeMap<(NodeId, SliceIndex), Vec<u64>> {
    let mut out: BTreeMap<_, Vec<u64>> = BTreeMap::new();
    for chain in state.chains.values() {
        let bytes = super::bytes_of(chain, liveness);
        let comes = staying(chain).filter(|member| member.state != Public::Serving).count();
        let leave = chain.members.iter().filter(|member| member.leaving).take(comes);
        for member in staying(chain).chain(leave) {
            out.entry((member.node, member.slice)).or_default().push(bytes);
        }
    }
    out.values_mut().for_each(|sizes| sizes.sort_unstable());
    out
}

fn planned(space: &Space, chain: ChainId, leaves: Option<&Member>, to: (NodeId, SliceIndex)) -> Planned {
    let from = leaves.map(|member| (member.target, member.node, member.slice));
    Planned { chain, from, to, bytes: space.bytes(chain), begun: false }
}
