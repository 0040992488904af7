//! A storage node renews its lease and says how its slices and targets are. Costs no transaction.

use super::invalid;
use crate::clock::Clock;
use crate::cluster::liveness::{Filling, SliceHealth, TargetHealth};
use crate::cluster::reconfigure::may_renew;
use crate::primary::Primary;
use corefs_kv::KvEngine;
use corefs_wire::control::mgmtd::{NodeHeartbeatReplyT, NodeHeartbeatT, SliceInfoT, TargetHealthT};
use corefs_wire::{Error, ErrorCode, NodeId, Result, TargetId};

/// Errors: `NodeConflict` for a node that is unknown or whose number another process has by now: it must stop serving
/// and register; `InvalidArgument` for slices that it doesn't have; `NotReady` while its chains are told to go on without it.
pub async fn node_heartbeat<E: KvEngine, C: Clock>(
    primary: &Primary<E, C>,
    request: NodeHeartbeatT,
) -> Result<NodeHeartbeatReplyT> {
    let id = NodeId(request.node);
    let reply = primary.leading(|leading, now_ms| {
        let conflict = |text: String| Err(Error::new(ErrorCode::NodeConflict, text));
        let Some(node) = leading.state.nodes.get(&id) else {
            return conflict(format!("this cluster has no {id}; register first"));
        };
        if node.incarnation != request.incarnation {
            return conflict(format!("{id} is another process now, at {}", node.control));
        }
        if request.slices.len() != node.slices.len() {
            let (has, said) = (node.slices.len(), request.slices.len());
            return Err(invalid(format!("{id} has {has} slices and reports {said}")));
        }
        for (position, (known, said)) in node.slices.iter().zip(&request.slices).enumerate() {
            if usize::from(said.index) != position || said.store != known.store.0 {
                return Err(invalid(format!("slice {position} of {id} is store {}", known.store)));
            }
        }
        if !may_renew(&leading.state, &leading.liveness, id) {
            let text = format!("{id} was silent for too long: its chains go on without it first");
            return Err(Error::new(ErrorCode::NotReady, text));
        }
        let targets = request.targets.iter().map(|target| (TargetId(target.target), target_health(target)));
        leading.liveness.hear_targets(id, targets.collect(), now_ms);
        leading.liveness.hear_rate(id, request.resync_rate);
        let health = |slice: &SliceInfoT| SliceHealth {
            capacity: slice.capacity,
            used: slice.used,
            dead: slice.dead,
            unrepaired: slice.unrepaired,
            differing: slice.differing,
        };
        if leading.liveness.hear_node(id, request.slices.iter().map(health).collect(), now_ms) {
            leading.touch();
        }
        let mut reply = NodeHeartbeatReplyT::default();
        reply.lease_ms = leading.liveness.terms().lease_ms as u32;
        reply.routing = leading.routing_beyond(request.routing_version);
        Ok(reply)
    })??;
    primary.heard.happened();
    Ok(reply)
}

fn target_health(said: &TargetHealthT) -> TargetHealth {
    let filling = Filling {
        to: TargetId(said.filling),
        compared: said.compared,
        to_compare: said.to_compare,
        sent_chunks: said.sent_chunks,
        sent_bytes: said.sent_bytes,
    };
    TargetHealth {
        up_to_date: said.up_to_date.then_some(said.chain_version),
        version: said.chain_version,
        failed: said.failed,
        unreached: (said.unreached != 0).then_some(TargetId(said.unreached)),
        fills: (said.filling != 0).then_some(filling),
        used: said.used,
        chunks: said.chunks,
    }
}
