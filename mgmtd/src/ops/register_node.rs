//! A storage node comes up: it gets its number, and its chains learn that it is another process now.

use super::{check_address, check_name, invalid};
use crate::clock::Clock;
use crate::cluster::formation::NODES_MAX;
use crate::cluster::liveness::SliceHealth;
use crate::cluster::reconfigure::Restart;
use crate::cluster::routing;
use crate::cluster::state::{Arrival, Node, Registered, Slice, Standing};
use crate::primary::{Draft, Primary};
use corefs_kv::KvEngine;
use corefs_wire::control::mgmtd::{NodeRegisteredT, RegisterNodeT, SliceInfoT};
use corefs_wire::limits::{SHARDS_MAX, SLICES_MAX};
use corefs_wire::{Error, ErrorCode, NodeId, Result, SliceIndex, Uuid};
use futures_lite::future;

/// Errors: `InvalidArgument` for a description that no node has; `NodeConflict` when the number and the stores
/// disagree with what is known, or another living process has that number; `Overloaded` beyond
/// [`NODES_MAX`] nodes, or when a new one, or new shards, leave no room for the routing table in a message.
///
/// When the node's earlier process may still live elsewhere, the reply waits until it is known: the earlier one speaks
/// again (`NodeConflict`), or its lease runs out.
pub async fn register_node<E: KvEngine, C: Clock>(
    primary: &Primary<E, C>,
    request: RegisterNodeT,
) -> Result<NodeRegisteredT> {
    let (arrival, health) = understand(request)?;
    wait_for_predecessor(primary, &arrival).await?;
    // Whoever is silent for too long by now died before this one came back: after a total loss they are all complete.
    primary.leading(|leading, now_ms| {
        if leading.state.formed() && leading.liveness.expire(now_ms) {
            leading.touch();
        }
    })?;
    let plan = |draft: &mut Draft<'_>| {
        let before = routing::largest(draft.state());
        let registered = draft.state_mut().register(arrival)?;
        if registered.restarted {
            draft.reconfigure(Some(Restart { node: registered.id, slices: &health }));
        }
        if draft.state().nodes.len() > NODES_MAX as usize {
            return Err(Error::new(ErrorCode::Overloaded, format!("more than {NODES_MAX} storage nodes")));
        }
        routing::check_growth(before, draft.state())?;
        let this = |node: NodeId, slice: SliceIndex| {
            (node == registered.id).then(|| health.get(usize::from(slice.0)).is_some_and(|slice| !slice.dead))
        };
        Ok((registered, draft.form(this)?))
    };
    let (registered, formed) = primary
        .change(plan, |leading, now_ms, (registered, _)| {
            if registered.restarted {
                leading.liveness.forget_targets(registered.id);
            }
            if leading.liveness.hear_node(registered.id, health.clone(), now_ms) {
                leading.touch();
            }
        })
        .await?;
    primary.heard.happened();
    let Registered { id, restarted } = registered;
    tracing::info!("{id} registered{}", if restarted { " again, as another process" } else { "" });
    if let Some(imbalance) = formed {
        tracing::info!("formed the cluster: {imbalance}");
    }
    let mut reply = NodeRegisteredT::default();
    reply.node = id.0;
    reply.cluster = primary.cluster().0.to_vec();
    primary.leading(|leading, _| {
        reply.lease_ms = leading.liveness.terms().lease_ms as u32;
        *reply.routing = (*leading.routing()).clone();
    })?;
    Ok(reply)
}

/// Checks a request and takes it apart: who arrives, and how its slices are.
fn understand(request: RegisterNodeT) -> Result<(Arrival, Vec<SliceHealth>)> {
    check_name("domain", &request.domain)?;
    check_address("control address", &request.control)?;
    if request.shards.is_empty() || request.shards.len() > SHARDS_MAX {
        return Err(invalid(format!("{} shards; a node has 1 to {SHARDS_MAX}", request.shards.len())));
    }
    for shard in &request.shards {
        check_address("shard address", shard)?;
    }
    let mut distinct: Vec<&String> = request.shards.iter().collect();
    distinct.sort_unstable();
    distinct.dedup();
    if distinct.len() != request.shards.len() {
        return Err(invalid("two shards with one address"));
    }
    let (slices, health) = understand_slices(&request.slices, request.shards.len())?;
    let node = Node {
        incarnation: request.incarnation,
        domain: request.domain,
        control: request.control,
        shards: request.shards,
        slices,
    };
    Ok((Arrival { id: (request.node != 0).then_some(NodeId(request.node)), node }, health))
}

fn understand_slices(infos: &[SliceInfoT], shards: usize) -> Result<(Vec<Slice>, Vec<SliceHealth>)> {
    if infos.is_empty() || infos.len() > SLICES_MAX {
        return Err(invalid(format!("{} slices; a node has 1 to {SLICES_MAX}", infos.len())));
    }
    let mut slices = Vec::with_capacity(infos.len());
    let mut health = Vec::with_capacity(infos.len());
    for (position, info) in infos.iter().enumerate() {
        if usize::from(info.index) != position {
            return Err(invalid(format!("slice {} at position {position}", info.index)));
        }
        if usize::from(info.shard) >= shards {
            return Err(invalid(format!("slice {position} on shard {} of {shards}", info.shard)));
        }
        let store = <[u8; 16]>::try_from(info.store.as_slice()).map(Uuid).unwrap_or_default();
        if store == Uuid::NIL || slices.iter().any(|slice: &Slice| slice.store == store) {
            return Err(invalid(format!("slice {position} has no store uuid of its own")));
        }
        if info.capacity == 0 && !info.dead {
            return Err(invalid(format!("slice {position} has no capacity")));
        }
        // What it is to the cluster is the cluster's to say.
        let standing = Standing::default();
        let (shard, capacity, disk) = (info.shard, info.capacity, info.disk);
        slices.push(Slice { store, shard, capacity, disk, standing });
        health.push(SliceHealth {
            capacity: info.capacity,
            used: info.used,
            dead: info.dead,
            unrepaired: info.unrepaired,
            differing: info.differing,
        });
    }
    Ok((slices, health))
}

/// Lets a restart through at once when it took over the addresses of its earlier process (which so can't be there any
/// more); otherwise waits until that one has spoken or has no lease.
async fn wait_for_predecessor<E: KvEngine, C: Clock>(
    primary: &Primary<E, C>,
    arrival: &Arrival,
) -> Result<()> {
    let mut since = None;
    loop {
        let heard = primary.heard.next();
        let wait_ms = primary.leading(|leading, now_ms| {
            let Some(id) = leading.state.identify(arrival)? else { return Ok(None) };
            let Some(known) = leading.state.nodes.get(&id) else { return Ok(None) };
            let same_process = known.incarnation == arrival.node.incarnation;
            let same_place = known.control == arrival.node.control && known.shards == arrival.node.shards;
            let Some(last) = leading.liveness.node(id).filter(|last| last.alive) else { return Ok(None) };
            if same_process || same_place {
                return Ok(None);
            }
            let started_ms = *since.get_or_insert(now_ms);
            if last.spoke && last.at_ms > started_ms {
                let text = format!("another process with the number {id} lives at {}", known.control);
                return Err(Error::new(ErrorCode::NodeConflict, text));
            }
            let terms = leading.liveness.terms();
            let ends_ms = last.at_ms + terms.lease_ms + terms.margin_ms;
            Ok((now_ms <= ends_ms).then(|| ends_ms + 1 - now_ms))
        })??;
        let Some(wait_ms) = wait_ms else { return Ok(()) };
        future::or(heard, primary.clock.sleep(wait_ms)).await;
    }
}
