//! What moves between nodes and disks, and whether it goes on.

use super::invalid;
use crate::clock::Clock;
use crate::cluster::liveness::Liveness;
use crate::cluster::moves::{self, Plan, Planned};
use crate::cluster::state::State;
use crate::primary::Primary;
use corefs_kv::KvEngine;
use corefs_wire::control::mgmtd::{ChangeMovingT, MoveT, MovesT, MovingChange, StuckT};
use corefs_wire::{ChainId, NodeId, Result, TargetId};
use std::collections::BTreeMap;

/// Pauses, resumes, or has shares evened out; with `dry_run`, or when asked to look only, nothing changes. `InvalidArgument` for a change that
/// isn't known; `NotReady` while this manager hasn't heard of all nodes since it leads, because what moves isn't known then.
pub async fn change_moving<E: KvEngine, C: Clock>(
    primary: &Primary<E, C>,
    request: ChangeMovingT,
) -> Result<MovesT> {
    if request.dry_run || request.change == MovingChange::Look {
        return primary.leading(|leading, _| {
            moves::ready(leading.state(), leading.liveness())?;
            let mut state = leading.state().clone();
            change(&mut state, request.change)?;
            let plan = moves::plan(&state, leading.liveness());
            Ok(to_message(&state, leading.liveness(), &plan))
        })?;
    }
    let plan = |draft: &mut crate::primary::Draft<'_>| {
        moves::ready(draft.state(), draft.liveness())?;
        change(draft.state_mut(), request.change)?;
        let plan = moves::plan(draft.state(), draft.liveness());
        Ok(to_message(draft.state(), draft.liveness(), &plan))
    };
    primary.change(plan, |_, _, _| ()).await
}

fn change(state: &mut State, change: MovingChange) -> Result<()> {
    match change {
        MovingChange::Look => {}
        MovingChange::Pause => state.moving.paused = true,
        MovingChange::Resume => state.moving.paused = false,
        MovingChange::Balance => state.moving.balance = true,
        other => return Err(invalid(format!("{other:?} is no change of what moves"))),
    }
    Ok(())
}

/// A plan as it is told.
pub(super) fn to_message(state: &State, liveness: &Liveness, plan: &Plan) -> MovesT {
    let one = |planned: &Planned| {
        let mut out = MoveT::default();
        out.chain = planned.chain.0;
        if let Some((target, node, slice)) = planned.from {
            (out.from_target, out.from_node, out.from_slice) = (target.0, node.0, slice.0);
        }
        (out.to_node, out.to_slice) = (planned.to.0.0, planned.to.1.0);
        (out.bytes, out.begun) = (planned.bytes, planned.begun);
        out
    };
    let nodes: BTreeMap<TargetId, NodeId> = match plan.stuck.is_empty() {
        true => BTreeMap::new(),
        false => state.members().map(|(_, member)| (member.target, member.node)).collect(),
    };
    let stuck = |(chain, target): &(ChainId, TargetId)| {
        let mut out = StuckT::default();
        (out.chain, out.target) = (chain.0, target.0);
        out.node = nodes.get(target).map_or(0, |node| node.0);
        out
    };
    let mut out = MovesT::default();
    out.moves = plan.moves.iter().map(one).collect();
    (out.least, out.least_bytes, out.rotations) = (plan.least, plan.least_bytes, plan.rotations);
    out.stuck = plan.stuck.iter().map(stuck).collect();
    (out.paused, out.balance) = (state.moving.paused, state.moving.balance);
    out.rate = liveness.resync_rate();
    out.leaving = state.members().filter(|(_, member)| member.leaving).count() as u32;
    out
}
