//! Nodes and disks come into use, are emptied, and are forgotten: what people want. What moves by that is
//! [`moves`](crate::cluster::moves)'.

use super::assumed;
use super::change_moving::to_message;
use super::invalid;
use crate::clock::Clock;
use crate::cluster::domains;
use crate::cluster::liveness::Liveness;
use crate::cluster::moves::{self, Plan};
use crate::cluster::state::{Node, Standing, State};
use crate::cluster::transition::Public;
use crate::primary::Primary;
use corefs_kv::KvEngine;
use corefs_wire::control::mgmtd::{ChangeNodeT, MovesT, NodeChange};
use corefs_wire::{Error, ErrorCode, NodeId, Result, SliceIndex, TargetId};
use std::collections::BTreeSet;

/// Errors: `InvalidArgument` for a node or slice that isn't there, or a change that isn't known; `NotReady` while the cluster
/// has no chains, and while this manager hasn't heard of all nodes since it leads; `TooFewNodes` when targets of what is to be emptied have no other place, or nobody serves their chains; `NotEmpty`
/// for a node that is to be forgotten and still has targets, `NotPermitted` for one that lives. Nothing is changed by an error, nor by a `dry_run`.
///
/// The reply is everything that moves from then on.
pub async fn change_node<E: KvEngine, C: Clock>(
    primary: &Primary<E, C>,
    request: ChangeNodeT,
) -> Result<MovesT> {
    let node = NodeId(request.node);
    if request.dry_run {
        return primary.leading(|leading, now_ms| {
            let (mut state, mut liveness) = (leading.state().clone(), leading.liveness().clone());
            let mut request = request;
            assumed::add(&mut state, &mut liveness, &mut request, now_ms)?;
            let plan = change(&mut state, &liveness, &request)?;
            Ok(to_message(&state, &liveness, &plan))
        })?;
    }
    if request.assumed.is_some() {
        return Err(invalid("slices that don't exist can only be part of a dry run"));
    }
    let plan = |draft: &mut crate::primary::Draft<'_>| {
        let liveness = draft.liveness().clone();
        let plan = change(draft.state_mut(), &liveness, &request)?;
        Ok(to_message(draft.state(), &liveness, &plan))
    };
    let reply = primary
        .change(plan, |leading, _, _| {
            if request.change == NodeChange::Forget {
                leading.liveness.forget_node(node);
            }
        })
        .await?;
    tracing::info!("{node}: {:?}; {} targets move", request.change, reply.moves.len());
    Ok(reply)
}

fn change(state: &mut State, liveness: &Liveness, request: &ChangeNodeT) -> Result<Plan> {
    let id = NodeId(request.node);
    if !state.formed() {
        return Err(Error::new(ErrorCode::NotReady, "the cluster has no chains yet; nothing can move"));
    }
    moves::ready(state, liveness)?;
    let Some(node) = state.nodes.get(&id) else {
        return Err(invalid(format!("this cluster has no {id}; `corefs node ls` shows those it has")));
    };
    let all = 0..node.slices.len() as u16;
    let slices: Vec<u16> = if request.slices.is_empty() { all.collect() } else { request.slices.clone() };
    if let Some(slice) = slices.iter().find(|slice| usize::from(**slice) >= node.slices.len()) {
        return Err(invalid(format!("{id} has no slice {slice}, only {}", node.slices.len())));
    }
    let slices = slices.into_iter().map(SliceIndex);
    match request.change {
        NodeChange::Use => {
            let slices: Vec<SliceIndex> = match request.slices.is_empty() {
                true => unused(node, id, liveness),
                false => slices.collect(),
            };
            slices.into_iter().for_each(|slice| state.set_standing(id, slice, Standing::Active));
            state.moving.balance = true;
            Ok(moves::plan(state, liveness))
        }
        NodeChange::Empty => {
            let before = state.clone();
            slices.for_each(|slice| state.set_standing(id, slice, Standing::Leaving));
            let plan = moves::plan(state, liveness);
            refuse_stuck(state, liveness, &plan, id, &before)?;
            Ok(plan)
        }
        NodeChange::Forget => {
            let left = state.members().filter(|(_, member)| member.node == id).count();
            if left > 0 {
                let text =
                    format!("{id} still has {left} targets: empty it first (corefs node drain {})", id.0);
                return Err(Error::mismatch(ErrorCode::NotEmpty, 0, left as u64, text));
            }
            if liveness.node_alive(id) {
                let text = format!("{id} lives: stop it first, or it would register again");
                return Err(Error::new(ErrorCode::NotPermitted, text));
            }
            state.nodes.remove(&id);
            Ok(moves::plan(state, liveness))
        }
        other => Err(invalid(format!("{other:?} is no change of a node"))),
    }
}

/// What of a node comes into use when nobody says which of its slices: those that nobody has used yet; if there are none, and the whole
/// node is being emptied, all of it again. Of a node that is in use somebody may want to take an emptied disk out. Dead ones don't.
fn unused(node: &Node, id: NodeId, liveness: &Liveness) -> Vec<SliceIndex> {
    let dead =
        |slice: &SliceIndex| liveness.slices(id).get(usize::from(slice.0)).is_some_and(|health| health.dead);
    let of = |standing| {
        let slices = (0u16..).map(SliceIndex).zip(&node.slices);
        let slices = slices.filter(|(_, slice)| slice.standing == standing).map(|(index, _)| index);
        slices.filter(|slice| !dead(slice)).collect::<Vec<_>>()
    };
    let spare = of(Standing::Spare);
    let used = node.slices.iter().any(|slice| slice.standing == Standing::Active);
    if spare.is_empty() && !used { of(Standing::Leaving) } else { spare }
}

/// Says why targets of a node would stay where they are, or those of another one that is being emptied.
fn refuse_stuck(state: &State, liveness: &Liveness, plan: &Plan, id: NodeId, before: &State) -> Result<()> {
    let here = state.members().filter(|(_, member)| member.node == id).map(|(_, member)| member.target);
    let here: BTreeSet<TargetId> = here.collect();
    let ours = plan.stuck.iter().filter(|(_, target)| here.contains(target)).count();
    // What was stuck before is nobody's fault now.
    let more = || plan.stuck.len() > moves::plan(before, liveness).stuck.len();
    if plan.stuck.is_empty() || ours == 0 && !more() {
        return Ok(());
    }
    let served = |chain| {
        let members = &state.chains[chain].members;
        members.iter().any(|member| member.state == Public::Serving)
    };
    let unserved =
        plan.stuck.iter().filter(|(chain, target)| here.contains(target) && !served(chain)).count();
    let text = if unserved > 0 {
        format!(
            "{id} can't be emptied: nobody serves {unserved} of its chains, so there is nothing to copy from; start the nodes that \
             hold them"
        )
    } else if plan.lacking > 0 {
        format!(
            "{id} can't be emptied: {} targets would have no other place, because the nodes and disks that may take them have no room for \
             {} bytes of theirs; add a node (corefs node add) or a disk (corefs disk add) that large, or delete files (corefs fs rm)",
            plan.stuck.len(),
            plan.lacking
        )
    } else {
        format!(
            "{id} can't be emptied: {} targets would have no other place, because no other node that is alive and in use \
             holds no replica of the same chain, nor is in a failure domain with one (a domain whose nodes are all silent counts as \
             lost after {} minutes); add a node first (corefs node add)",
            plan.stuck.len(),
            domains::GONE_MS / 60_000
        )
    };
    Err(Error::mismatch(ErrorCode::TooFewNodes, 0, plan.stuck.len() as u64, text))
}
