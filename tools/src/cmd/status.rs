//! `corefs status`: what the cluster is made of, how it is, and what to do about what is wrong.

mod screen;

use super::node;
use crate::connect::Cluster;
use crate::output;
use corefs_net::Address;
use corefs_wire::control::mgmtd::{ChainT, FillT, NodeStatusT, StatusT, TargetState};
use corefs_wire::control::process::{CounterT, GetProcessT, ProcessT, ShardCountersT};
use corefs_wire::{Result, Uuid};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;

/// Show nodes, targets, chains, space, what is wrong, and what to type about it.
///
/// Exits with 0 when everything is well, 3 when something is wrong.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    cluster: Cluster,
    /// Show instead what each process and shard has counted and used: the managers that were named, storage nodes, metadata servers, and the
    /// key-value store if it can be reached from here.
    #[arg(long)]
    counters: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    if args.counters {
        return counters(&args);
    }
    let status = fetch(&args.cluster)?;
    if args.json {
        output::json(&as_json(&status))?
    } else {
        output::line(&screen::screen(&status).join("\n"))?
    }
    Ok(ExitCode::from(if status.problems.is_empty() { 0 } else { 3 }))
}

/// Asks the manager.
pub fn fetch(cluster: &Cluster) -> Result<StatusT> {
    cluster.status("corefs status")
}

/// How long a process may take to say what it has counted.
const ASK: Duration = Duration::from_secs(3);

fn counters(args: &Args) -> Result<ExitCode> {
    let status = fetch(&args.cluster)?;
    let managers = args.cluster.manager.clone();
    let processes = args.cluster.with_node("corefs status", |node| async move {
        let (routing, kv) = (&status.routing, near(&status.kv));
        let nodes = routing.nodes.iter().map(|node| &node.control);
        let mut processes = Vec::new();
        for address in managers.iter().chain(nodes).chain(&routing.metas).chain(&kv) {
            let asked = node.ask(&address.parse()?, &GetProcessT::default(), ASK).await;
            processes.push((address.clone(), asked));
        }
        Ok(processes)
    })?;
    let silent = processes.iter().filter(|(_, asked)| asked.is_err()).count();
    let described: Vec<Value> =
        processes.iter().map(|(address, asked)| process_json(address, asked)).collect();
    if args.json {
        output::json(&json!({"processes": described}))?;
    } else {
        for process in &described {
            output::line(&serde_json::to_string(process).unwrap_or_default())?;
        }
    }
    Ok(ExitCode::from(if silent == 0 { 0 } else { 3 }))
}

/// The key-value store, unless it is FoundationDB, or behind a socket of another machine.
fn near(kv: &str) -> Option<String> {
    let here = match kv.parse::<Address>() {
        Ok(Address::Unix(path)) => path.exists(),
        Ok(Address::Tcp(_)) => true,
        Err(_) => false,
    };
    here.then(|| kv.to_owned())
}

fn process_json(address: &str, asked: &Result<ProcessT>) -> Value {
    let process = match asked {
        Ok(process) => process,
        Err(error) => return json!({"address": address, "error": error.to_string()}),
    };
    let counted = |counters: &[CounterT]| -> serde_json::Map<String, Value> {
        counters.iter().map(|counter| (counter.name.clone(), counter.value.into())).collect()
    };
    let shard = |shard: &ShardCountersT| json!({"shard": shard.shard, "counters": counted(&shard.counters)});
    json!({
        "address": address, "role": process.role, "pid": process.pid, "version": process.version,
        "user_us": process.user_us, "system_us": process.system_us, "rss_bytes": process.rss_bytes,
        "uptime_ms": process.uptime_ms, "counters": counted(&process.counters),
        "shards": process.shards.iter().map(shard).collect::<Vec<_>>(),
    })
}

fn space(nodes: &[NodeStatusT]) -> (u64, u64) {
    let slices = nodes.iter().flat_map(|node| &node.slices).filter(|slice| !slice.dead);
    slices.fold((0, 0), |(total, used), slice| (total + slice.capacity, used + slice.used))
}

/// All of a chain's members serve.
pub fn whole(chain: &ChainT) -> bool {
    chain.members.iter().all(|member| member.state == TargetState::Serving)
}

/// What a target is to the cluster.
pub fn state_name(state: TargetState) -> &'static str {
    state.variant_name().unwrap_or("unknown")
}

fn cluster_name(status: &StatusT) -> String {
    <[u8; 16]>::try_from(&status.cluster[..]).map_or("unknown".into(), |bytes| Uuid(bytes).to_string())
}

fn as_json(status: &StatusT) -> Value {
    let (total, used) = space(&status.nodes);
    let node = |node: &NodeStatusT| {
        let slice = |slice: &corefs_wire::control::mgmtd::SliceInfoT| json!({"index": slice.index, "shard": slice.shard, "capacity": slice.capacity, "used": slice.used, "dead": slice.dead, "unrepaired_blocks": slice.unrepaired, "differing_chunks": slice.differing, "standing": node::standing(slice)});
        json!({
            "node": node.node, "alive": node.alive, "incarnation": node.incarnation, "seen_ms_ago": node.seen_ms_ago,
            "domain": node.domain, "control": node.control, "shards": node.shards,
            "slices": node.slices.iter().map(slice).collect::<Vec<_>>(),
        })
    };
    let chain = |chain: &ChainT| {
        let member = |member: &corefs_wire::control::mgmtd::MemberT| json!({"target": member.target, "state": state_name(member.state)});
        json!({"chain": chain.id, "version": chain.version, "members": chain.members.iter().map(member).collect::<Vec<_>>()})
    };
    let routing = &status.routing;
    let target = |target: &corefs_wire::control::mgmtd::TargetT| json!({"target": target.id, "node": target.node, "slice": target.slice, "chain": target.chain});
    let meta = |meta: &corefs_wire::control::mgmtd::MetaStatusT| json!({"address": meta.address, "alive": meta.alive, "seen_ms_ago": meta.seen_ms_ago});
    let fill = |fill: &FillT| json!({"chain": fill.chain, "from": fill.from, "to": fill.to, "compared": fill.compared, "to_compare": fill.to_compare, "sent_chunks": fill.sent_chunks, "sent_bytes": fill.sent_bytes, "left_ms": (fill.left_ms > 0).then_some(fill.left_ms)});
    let problem = |problem: &corefs_wire::control::mgmtd::ProblemT| json!({"what": problem.what, "remedy": problem.remedy});
    json!({
        "cluster": cluster_name(status), "primary": status.primary, "kv": status.kv,
        "replicas": status.replicas, "expected_nodes": status.expected_nodes,
        "targets_per_node": status.targets_per_node, "chunk_size": status.chunk_size, "clients": status.clients,
        "routing_version": routing.version, "space": {"total": total, "used": used, "free": total - used.min(total)},
        "nodes": status.nodes.iter().map(node).collect::<Vec<_>>(),
        "metas": status.metas.iter().map(meta).collect::<Vec<_>>(),
        "targets": routing.targets.iter().map(target).collect::<Vec<_>>(),
        "chains": routing.chains.iter().map(chain).collect::<Vec<_>>(),
        "fills": status.fills.iter().map(fill).collect::<Vec<_>>(),
        "moving": {"leaving": status.targets.iter().filter(|target| target.leaving).count(), "paused": status.paused, "balancing": status.balance},
        "problems": status.problems.iter().map(problem).collect::<Vec<_>>(),
    })
}
