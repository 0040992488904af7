//! Slices that don't exist yet, for a plan that is only shown: what would move if a disk or a node came.

use super::invalid;
use crate::cluster::liveness::{Liveness, SliceHealth};
use crate::cluster::state::{Node, Slice, Standing, State};
use corefs_wire::control::mgmtd::{ChangeNodeT, NewSliceT, NodeChange};
use corefs_wire::limits::SLICES_MAX;
use corefs_wire::{NodeId, Result, Uuid};

/// Adds the assumed slices of a request to what is only a copy, and says of them that they are well: behind those of the node that it
/// names, or as a new node, which the request names from then on. They are what comes into use; where others are to be emptied, they
/// are in use before. `InvalidArgument` for too many, or a node that isn't there.
pub fn add(state: &mut State, liveness: &mut Liveness, request: &mut ChangeNodeT, now_ms: u64) -> Result<()> {
    let Some(assumed) = request.assumed.take() else { return Ok(()) };
    let id = if request.node == 0 { newcomer(state) } else { NodeId(request.node) };
    let Some(node) = state.nodes.get_mut(&id) else {
        return Err(invalid(format!("this cluster has no {id}; `corefs node ls` shows those it has")));
    };
    let first = node.slices.len();
    if assumed.is_empty() || first + assumed.len() > SLICES_MAX {
        return Err(invalid(format!(
            "{} slices besides {first}; a node has 1 to {SLICES_MAX}",
            assumed.len()
        )));
    }
    let slice = |said: &NewSliceT| Slice {
        store: Uuid::NIL,
        shard: 0,
        capacity: said.capacity,
        disk: said.disk,
        standing: Standing::Active,
    };
    node.slices.extend(assumed.iter().map(slice));
    let mut health = liveness.slices(id).to_vec();
    health.resize(first, SliceHealth::default());
    health
        .extend(assumed.iter().map(|said| SliceHealth { capacity: said.capacity, ..SliceHealth::default() }));
    liveness.hear_node(id, health, now_ms);
    request.node = id.0;
    if request.change == NodeChange::Use {
        request.slices = (first..first + assumed.len()).map(|slice| slice as u16).collect();
    }
    state.moving.balance = true;
    Ok(())
}

/// A node without slices, under the number that the next one gets.
fn newcomer(state: &mut State) -> NodeId {
    let id = NodeId(state.counters.node);
    state.counters.node += 1;
    let (domain, control, shards, slices) = Default::default();
    state.nodes.insert(id, Node { incarnation: 0, domain, control, shards, slices });
    id
}
