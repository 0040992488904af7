//! `corefs node`: which nodes there are, and how they come and go.

use super::moves::{self, Wait};
use super::status;
use crate::connect::Cluster;
use crate::{grow, output};
use corefs_wire::control::mgmtd::{
    ChangeNodeT, MovesT, NewSliceT, NodeChange, NodeStatusT, SliceInfoT, Standing, StatusT, TargetState,
};
use corefs_wire::{Error, ErrorCode, Result};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

/// Show storage nodes, add them, empty them, remove them.
///
/// A cluster grows while it runs: start `corefs storage` on the new machine, then `corefs node add 4`. It shrinks by `corefs
/// node drain 2`, which ends when every chunk has all of its replicas elsewhere, and `corefs node remove 2`. `--dry-run` shows what would
/// move. `corefs moves` shows what still has to move, and can pause it.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// List the storage nodes.
    Ls {
        #[command(flatten)]
        common: Common,
    },
    /// Show a node: its slices and targets.
    Show {
        /// The node's number.
        node: u32,
        #[command(flatten)]
        common: Common,
    },
    /// Take a node into use: it gets its share of the targets, from the others.
    ///
    /// Of a node that is in use already, slices that came later (`corefs disk add`) are taken into use. A node that is being
    /// emptied stays instead.
    Add {
        /// The node's number: it runs and has registered. Left out with --dir.
        #[arg(required_unless_present = "dir")]
        node: Option<u32>,
        /// Directory of a cluster that `corefs up` runs on this machine: it starts one node more, which is taken into use.
        #[arg(long, value_name = "DIR", conflicts_with = "node")]
        dir: Option<PathBuf>,
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        common: Common,
    },
    /// Empty a node: its targets go to the others. Also for a node that is lost: its targets are copied from their other replicas.
    Drain {
        /// The node's number.
        node: u32,
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        common: Common,
    },
    /// Remove a node that is empty and stopped. Its number is never used again.
    Remove {
        /// The node's number.
        node: u32,
        /// Directory of a cluster that `corefs up` runs on this machine: it stops the node first.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(clap::Args)]
pub struct Common {
    #[command(flatten)]
    pub cluster: Cluster,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Args)]
pub struct Change {
    /// Only show what would move.
    #[arg(long)]
    pub dry_run: bool,
    /// Wait until everything has moved; where something is emptied, until it is empty.
    #[arg(long)]
    pub wait: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Command::Ls { common } => list(&common),
        Command::Show { node, common } => show(node, &common),
        Command::Add { node: Some(node), change, common, .. } => {
            apply(node, vec![], NodeChange::Use, &change, &common)
        }
        Command::Add { dir, change, common, .. } => {
            let dir = dir.unwrap_or_default();
            if change.dry_run && grow::coming(&dir, &common.cluster)?.is_none() {
                let slices = grow::would_be(&dir, &common.cluster)?;
                return suppose(0, vec![], NodeChange::Use, slices, &common);
            }
            let node = grow::one_more(&dir, &common.cluster)?;
            let left = |error: Error| then(error, &format!("corefs node add {node}"));
            apply_or(node, vec![], NodeChange::Use, &change, &common, left)
        }
        Command::Drain { node, change, common } => apply(node, vec![], NodeChange::Empty, &change, &common),
        Command::Remove { node, dir, common } => {
            let path = dir.map(|dir| grow::one_less(&dir, node, &common.cluster)).transpose()?;
            ask(node, vec![], NodeChange::Forget, false, &common.cluster)?;
            if common.json {
                output::json(&json!({"removed": node, "directory": path}))?;
            } else {
                let path = path.map_or("its directory".into(), |path| path.display().to_string());
                output::line(&format!("node-{node} is removed; {path} can be deleted"))?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Changes slices of a node (all if none are named), shows what moves, and waits if that is wanted.
pub fn apply(
    node: u32,
    slices: Vec<u16>,
    what: NodeChange,
    change: &Change,
    common: &Common,
) -> Result<ExitCode> {
    apply_or(node, slices, what, change, common, |error| error)
}

/// The same, and what becomes of the manager's refusal.
pub fn apply_or(
    node: u32,
    slices: Vec<u16>,
    what: NodeChange,
    change: &Change,
    common: &Common,
    refusal: impl FnOnce(Error) -> Error,
) -> Result<ExitCode> {
    let plan = ask(node, slices.clone(), what, change.dry_run, &common.cluster).map_err(refusal)?;
    let wait = match (change.dry_run, change.wait, what) {
        (true, ..) => Wait::WouldMove,
        (false, false, _) => Wait::No,
        (false, true, NodeChange::Empty) => Wait::Empty(node, slices),
        (false, true, _) => Wait::Yes,
    };
    moves::tell(&plan, &wait, &common.cluster, common.json)
}

/// Takes slices of a node into use in the place of others of it, which are emptied. One right after the other, so that next to nothing is
/// planned in between. The next command is named when only the first half is done.
pub fn replace(
    node: u32,
    fresh: Vec<u16>,
    old: Vec<u16>,
    empty: String,
    cluster: &Cluster,
) -> Result<MovesT> {
    let [first, second] = [(NodeChange::Use, fresh), (NodeChange::Empty, old)].map(|(change, slices)| {
        let mut request = ChangeNodeT::default();
        (request.node, request.slices, request.change) = (node, slices, change);
        request
    });
    let one_by_one = move |client: corefs_client::Client| async move {
        let used = client.manager(&first).await;
        used.map_err(|error| then(error, &format!("corefs node add {node}; {empty}")))?;
        client.manager(&second).await.map_err(|error| then(error, &empty))
    };
    cluster.with_client("corefs node", one_by_one)
}

/// The same error, and what is left to be typed.
pub fn then(mut error: Error, command: &str) -> Error {
    error.message = format!("{}; what was done so far stays, go on with: {command}", error.message);
    error
}

/// Shows what would move by such a change if these slices were there, behind those of the node (0: of a new one).
pub fn suppose(
    node: u32,
    slices: Vec<u16>,
    change: NodeChange,
    assumed: Vec<NewSliceT>,
    common: &Common,
) -> Result<ExitCode> {
    let plan = foresee(node, slices, change, assumed, &common.cluster)?;
    moves::tell(&plan, &Wait::WouldMove, &common.cluster, common.json)
}

/// What would move then; nothing is changed.
pub fn foresee(
    node: u32,
    slices: Vec<u16>,
    change: NodeChange,
    assumed: Vec<NewSliceT>,
    cluster: &Cluster,
) -> Result<MovesT> {
    let mut request = ChangeNodeT::default();
    (request.node, request.slices, request.change) = (node, slices, change);
    (request.dry_run, request.assumed) = (true, Some(assumed));
    send(request, cluster)
}

fn ask(node: u32, slices: Vec<u16>, change: NodeChange, dry_run: bool, cluster: &Cluster) -> Result<MovesT> {
    let mut request = ChangeNodeT::default();
    (request.node, request.slices, request.change, request.dry_run) = (node, slices, change, dry_run);
    send(request, cluster)
}

fn send(request: ChangeNodeT, cluster: &Cluster) -> Result<MovesT> {
    cluster.ask_manager("corefs node", request)
}

/// What people call the standing of a slice.
pub fn standing(slice: &SliceInfoT) -> &'static str {
    match slice.standing {
        _ if slice.dead => "dead",
        Standing::Active => "in use",
        Standing::Leaving => "leaving",
        _ => "spare",
    }
}

/// Of a node with slices of different standings: how many of each.
fn standings(node: &NodeStatusT) -> String {
    let count = |name: &str| node.slices.iter().filter(|slice| standing(slice) == name).count();
    let parts = ["in use", "spare", "leaving", "dead"].into_iter().filter_map(|name| {
        let count = count(name);
        (count > 0).then(|| format!("{count} {name}"))
    });
    parts.collect::<Vec<_>>().join(", ")
}

fn targets_of(status: &StatusT, node: u32) -> usize {
    status.routing.targets.iter().filter(|target| target.node == node).count()
}

fn space(node: &NodeStatusT) -> (u64, u64) {
    let there = node.slices.iter().filter(|slice| !slice.dead);
    there.fold((0, 0), |(used, total), slice| (used + slice.used, total + slice.capacity))
}

fn list(common: &Common) -> Result<ExitCode> {
    let status = status::fetch(&common.cluster)?;
    if common.json {
        let all: Vec<Value> = status.nodes.iter().map(|node| node_json(&status, node)).collect();
        output::json(&json!({"nodes": all}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows =
        vec![["NODE", "STATE", "DOMAIN", "TARGETS", "SLICES", "USED", "OF", "ADDRESS"].map(String::from)];
    for node in &status.nodes {
        let (used, total) = space(node);
        rows.push([
            format!("node-{}", node.node),
            if node.alive { "alive" } else { "DEAD" }.into(),
            if node.domain.is_empty() { "-".into() } else { node.domain.clone() },
            targets_of(&status, node.node).to_string(),
            standings(node),
            output::size(used),
            output::size(total),
            node.control.clone(),
        ]);
    }
    output::table(&rows)?;
    Ok(ExitCode::SUCCESS)
}

fn node_json(status: &StatusT, node: &NodeStatusT) -> Value {
    let (used, total) = space(node);
    let slice = |slice: &SliceInfoT| {
        json!({
            "slice": slice.index, "shard": slice.shard, "standing": standing(slice), "used": slice.used,
            "capacity": slice.capacity, "targets": on_slice(status, node.node, slice.index).count(),
        })
    };
    json!({
        "node": node.node, "alive": node.alive, "seen_ms_ago": node.seen_ms_ago, "domain": node.domain,
        "control": node.control, "shards": node.shards, "targets": targets_of(status, node.node), "used": used,
        "capacity": total, "slices": node.slices.iter().map(slice).collect::<Vec<_>>(),
    })
}

fn on_slice(status: &StatusT, node: u32, slice: u16) -> impl Iterator<Item = u64> {
    let there =
        status.routing.targets.iter().filter(move |target| (target.node, target.slice) == (node, slice));
    there.map(|target| target.id)
}

fn show(number: u32, common: &Common) -> Result<ExitCode> {
    let status = status::fetch(&common.cluster)?;
    let Some(node) = status.nodes.iter().find(|node| node.node == number) else {
        let what = format!("this cluster has no node-{number}; `corefs node ls` shows those it has");
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    };
    if common.json {
        output::json(&node_json(&status, node))?;
        return Ok(ExitCode::SUCCESS);
    }
    let alive = if node.alive { "alive" } else { "DEAD" };
    let domain = if node.domain.is_empty() { "none" } else { &node.domain };
    output::line(&format!(
        "node-{number}  {alive}, heard of {} ms ago; domain {domain}; control {}; {} shards: {}",
        node.seen_ms_ago,
        node.control,
        node.shards.len(),
        node.shards.join(" ")
    ))?;
    let state_of = |target: u64| {
        let mut members = status.routing.chains.iter().flat_map(|chain| &chain.members);
        members.find(|member| member.target == target).map(|member| member.state)
    };
    let mut rows = vec![["SLICE", "SHARD", "STATE", "USED", "OF", "TARGETS"].map(String::from)];
    for slice in &node.slices {
        let name = |target: u64| match state_of(target) {
            Some(TargetState::Serving) => target.to_string(),
            state => format!("{target} ({})", state.map_or("unknown", status::state_name)),
        };
        rows.push([
            slice.index.to_string(),
            slice.shard.to_string(),
            standing(slice).into(),
            output::size(slice.used),
            output::size(slice.capacity),
            on_slice(&status, number, slice.index).map(name).collect::<Vec<_>>().join(" "),
        ]);
    }
    output::table(&rows)?;
    Ok(ExitCode::SUCCESS)
}
