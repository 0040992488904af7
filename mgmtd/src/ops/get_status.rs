//! The whole cluster as a person wants to see it, and what is wrong. It comes in pages ([`page`]).

mod page;

use crate::clock::Clock;
use crate::cluster::liveness::SliceHealth;
use crate::cluster::problems::problems;
use crate::cluster::state::{Member, Node};
use crate::cluster::transition::Public;
use crate::primary::{Leading, Primary};
use corefs_kv::KvEngine;
use corefs_wire::control::mgmtd::{
    FillT, GetStatusT, MetaStatusT, NodeStatusT, SliceInfoT, StatusT, TargetStatusT,
};
use corefs_wire::{NodeId, Result};

pub async fn get_status<E: KvEngine, C: Clock>(
    primary: &Primary<E, C>,
    request: GetStatusT,
) -> Result<StatusT> {
    primary.leading(|leading, now_ms| {
        let mut status = StatusT::default();
        let formation = leading.state.formation;
        status.cluster = leading.state.cluster.0.to_vec();
        status.primary = primary.settings().address.clone();
        status.kv = primary.settings().kv.clone();
        status.replicas = formation.replicas;
        status.expected_nodes = formation.nodes;
        status.targets_per_node = formation.targets_per_node;
        status.chunk_size = formation.chunk_size;
        status.clients = leading.liveness.clients() as u32;
        status.nodes =
            leading.state.nodes.iter().map(|(id, node)| node_status(leading, *id, node, now_ms)).collect();
        status.metas =
            leading.state.metas.keys().map(|address| meta_status(leading, address, now_ms)).collect();
        let from = (request.part, request.from);
        if from.0 <= page::PROBLEMS {
            status.problems = problems(&leading.state, &leading.liveness, now_ms);
        }
        status.fills = fills(leading, now_ms);
        status.targets = targets(leading);
        (status.paused, status.balance) = (leading.state.moving.paused, leading.state.moving.balance);
        if from == page::BEGINNING {
            *status.routing = (*leading.routing()).clone();
        }
        page::cut(status, from)
    })
}

fn node_status(leading: &Leading, id: NodeId, node: &Node, now_ms: u64) -> NodeStatusT {
    let mut out = NodeStatusT::default();
    out.node = id.0;
    out.incarnation = node.incarnation;
    out.alive = leading.liveness.node_alive(id);
    out.seen_ms_ago = leading.liveness.node(id).map_or(0, |heard| now_ms.saturating_sub(heard.at_ms));
    out.domain = node.domain.clone();
    out.control = node.control.clone();
    out.shards = node.shards.clone();
    let reported = leading.liveness.slices(id);
    for (index, slice) in node.slices.iter().enumerate() {
        // A primary that has just taken over knows only what is stored.
        let stored = SliceHealth { capacity: slice.capacity, ..SliceHealth::default() };
        let health = reported.get(index).copied().unwrap_or(stored);
        let mut info = SliceInfoT::default();
        info.index = index as u16;
        info.shard = slice.shard;
        info.store = slice.store.0.to_vec();
        (info.capacity, info.used, info.dead) = (health.capacity, health.used, health.dead);
        (info.standing, info.disk) = (slice.standing.to_wire(), slice.disk);
        (info.unrepaired, info.differing) = (health.unrepaired, health.differing);
        out.slices.push(info);
    }
    out
}

/// Who is being filled right now, by whom, and how far that has come.
fn fills(leading: &Leading, now_ms: u64) -> Vec<FillT> {
    let mut out = Vec::new();
    for (id, chain) in &leading.state.chains {
        let Some(to) = chain.members.iter().find(|member| member.state == Public::Syncing) else { continue };
        let from = chain.members.iter().rfind(|member| member.state == Public::Serving);
        let mut fill = FillT::default();
        (fill.chain, fill.to) = (id.0, to.target.0);
        fill.from = from.map_or(0, |from| from.target.0);
        let said = from.and_then(|from| leading.liveness.target(from.target)?.fills);
        if let Some(said) = said.filter(|said| said.to == to.target) {
            (fill.compared, fill.to_compare) = (said.compared, said.to_compare);
            (fill.sent_chunks, fill.sent_bytes) = (said.sent_chunks, said.sent_bytes);
            let left_ms = from.and_then(|from| leading.liveness.filling_left_ms(from.target, now_ms));
            // 0 says that nobody knows.
            fill.left_ms = left_ms.map_or(0, |left| left.max(1));
        }
        out.push(fill);
    }
    out
}

fn targets(leading: &Leading) -> Vec<TargetStatusT> {
    let one = |(_, member): (_, &Member)| {
        let health = leading.liveness.target(member.target).unwrap_or_default();
        let mut out = TargetStatusT::default();
        (out.target, out.leaving) = (member.target.0, member.leaving);
        (out.used, out.chunks) = (health.used, health.chunks);
        out
    };
    leading.state.members().map(one).collect()
}

fn meta_status(leading: &Leading, address: &str, now_ms: u64) -> MetaStatusT {
    let mut out = MetaStatusT::default();
    out.address = address.to_owned();
    out.alive = leading.liveness.meta_alive(address);
    out.seen_ms_ago = leading.liveness.meta(address).map_or(0, |heard| now_ms.saturating_sub(heard.at_ms));
    out
}
