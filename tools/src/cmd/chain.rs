//! `corefs chain` and `corefs target`: who holds which replicas, and how they are.

use super::node::Common;
use super::status;
use crate::output;
use corefs_mgmtd::cluster::placement::{self, PlannedChain, Replica, Room, Span};
use corefs_wire::control::mgmtd::{
    ChainT, MemberT, NodeStatusT, SliceInfoT, Standing, StatusT, TargetStatusT, TargetT,
};
use corefs_wire::{Error, ErrorCode, NodeId, Result, SliceIndex};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;

/// Show chains: which targets hold the same chunks, in which order, and how each of them is.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// List the chains.
    Ls {
        /// Only those that are not whole.
        #[arg(long)]
        broken: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Show a chain and its members.
    Show {
        /// The chain's number.
        chain: u64,
        #[command(flatten)]
        common: Common,
    },
    /// Show how evenly the chains are spread: targets and heads of each node, and how many chains two nodes share. The more
    /// even that is, the more nodes share the load of one that dies.
    Balance {
        #[command(flatten)]
        common: Common,
    },
}

/// Show targets: the replica stores on the nodes' disks.
#[derive(clap::Args)]
pub struct TargetArgs {
    #[command(subcommand)]
    command: TargetCommand,
}

#[derive(clap::Subcommand)]
enum TargetCommand {
    /// List the targets.
    Ls {
        /// Only those of this node.
        #[arg(long, value_name = "NODE")]
        node: Option<u32>,
        #[command(flatten)]
        common: Common,
    },
    /// Show a target.
    Show {
        /// The target's number.
        target: u64,
        #[command(flatten)]
        common: Common,
    },
}

pub fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Command::Ls { broken, common } => list(broken, &common),
        Command::Show { chain, common } => show(chain, &common),
        Command::Balance { common } => balance(&common),
    }
}

pub fn run_target(args: TargetArgs) -> Result<ExitCode> {
    match args.command {
        TargetCommand::Ls { node, common } => {
            let status = status::fetch(&common.cluster)?;
            let wanted = |target: &&TargetT| node.is_none_or(|node| target.node == node);
            let targets: Vec<&TargetT> = status.routing.targets.iter().filter(wanted).collect();
            print_targets(&status, &targets, common.json)
        }
        TargetCommand::Show { target, common } => {
            let status = status::fetch(&common.cluster)?;
            let found: Vec<&TargetT> =
                status.routing.targets.iter().filter(|found| found.id == target).collect();
            if found.is_empty() {
                let what =
                    format!("this cluster has no target {target}; `corefs target ls` shows those it has");
                return Err(Error::new(ErrorCode::InvalidArgument, what));
            }
            print_targets(&status, &found, common.json)
        }
    }
}

fn print_targets(status: &StatusT, targets: &[&TargetT], as_json: bool) -> Result<ExitCode> {
    if as_json {
        let all: Vec<Value> = targets.iter().map(|target| target_json(status, target)).collect();
        output::json(&json!({"targets": all}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![["TARGET", "CHAIN", "NODE", "SLICE", "STATE", "CHUNKS", "USED"].map(String::from)];
    for target in targets {
        let said = said(status, target.id);
        rows.push([
            target.id.to_string(),
            target.chain.to_string(),
            format!("node-{}", target.node),
            target.slice.to_string(),
            state(status, target.id),
            said.map_or(0, |said| said.chunks).to_string(),
            output::size(said.map_or(0, |said| said.used)),
        ]);
    }
    output::table(&rows)?;
    Ok(ExitCode::SUCCESS)
}

fn said(status: &StatusT, target: u64) -> Option<&TargetStatusT> {
    status.targets.iter().find(|said| said.target == target)
}

fn member(status: &StatusT, target: u64) -> Option<&MemberT> {
    let mut members = status.routing.chains.iter().flat_map(|chain| &chain.members);
    members.find(|member| member.target == target)
}

fn state(status: &StatusT, target: u64) -> String {
    let state = member(status, target).map_or("unknown", |member| status::state_name(member.state));
    let leaving = said(status, target).is_some_and(|said| said.leaving);
    if leaving { format!("{state}, leaving") } else { state.into() }
}

fn target_json(status: &StatusT, target: &TargetT) -> Value {
    let said = said(status, target.id);
    let mut out = json!({
        "target": target.id, "chain": target.chain, "node": target.node, "slice": target.slice,
        "state": member(status, target.id).map_or("unknown", |member| status::state_name(member.state)),
        "leaving": said.is_some_and(|said| said.leaving), "chunks": said.map_or(0, |said| said.chunks),
        "used": said.map_or(0, |said| said.used),
    });
    if let Some(fill) = status.fills.iter().find(|fill| fill.to == target.id) {
        out["filled_by"] = fill.from.into();
        (out["compared"], out["to_compare"]) = (fill.compared.into(), fill.to_compare.into());
        (out["sent_chunks"], out["sent_bytes"]) = (fill.sent_chunks.into(), fill.sent_bytes.into());
    }
    out
}

fn target_of(status: &StatusT, target: u64) -> Option<&TargetT> {
    status.routing.targets.iter().find(|found| found.id == target)
}

fn chain_json(status: &StatusT, chain: &ChainT) -> Value {
    let members = chain.members.iter().filter_map(|member| target_of(status, member.target));
    json!({
        "chain": chain.id, "version": chain.version, "whole": status::whole(chain),
        "members": members.map(|target| target_json(status, target)).collect::<Vec<_>>(),
    })
}

fn list(broken: bool, common: &Common) -> Result<ExitCode> {
    let status = status::fetch(&common.cluster)?;
    let leaves = |chain: &ChainT| {
        let said = |member: &MemberT| said(&status, member.target).is_some_and(|said| said.leaving);
        chain.members.iter().any(said)
    };
    let wanted = |chain: &&ChainT| !broken || !status::whole(chain) || leaves(chain);
    let chains: Vec<&ChainT> = status.routing.chains.iter().filter(wanted).collect();
    if common.json {
        let all: Vec<Value> = chains.iter().map(|chain| chain_json(&status, chain)).collect();
        output::json(&json!({"chains": all}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![["CHAIN", "VERSION", "MEMBERS, THE HEAD FIRST"].map(String::from)];
    for chain in chains {
        let name = |member: &MemberT| {
            let node = target_of(&status, member.target).map_or(0, |target| target.node);
            let state = state(&status, member.target);
            let state = if state == "Serving" { String::new() } else { format!(" ({state})") };
            format!("node-{node}/{}{state}", member.target)
        };
        let members: Vec<String> = chain.members.iter().map(name).collect();
        rows.push([chain.id.to_string(), chain.version.to_string(), members.join("  ")]);
    }
    output::table(&rows)?;
    Ok(ExitCode::SUCCESS)
}

fn show(id: u64, common: &Common) -> Result<ExitCode> {
    let status = status::fetch(&common.cluster)?;
    let Some(chain) = status.routing.chains.iter().find(|chain| chain.id == id) else {
        let what = format!("this cluster has no chain {id}; `corefs chain ls` shows those it has");
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    };
    if common.json {
        output::json(&chain_json(&status, chain))?;
        return Ok(ExitCode::SUCCESS);
    }
    let whole = if status::whole(chain) { "whole" } else { "NOT WHOLE" };
    output::line(&format!("chain {id}, version {}, {whole}; members, the head first:", chain.version))?;
    let members = chain.members.iter().filter_map(|member| target_of(&status, member.target));
    print_targets(&status, &members.collect::<Vec<_>>(), false)
}

/// The nodes with slices in use, and the chains as they lie on them.
fn spread(status: &StatusT) -> (Vec<Room>, Vec<PlannedChain>) {
    let used = |slice: &&SliceInfoT| slice.standing == Standing::Active;
    let room = |node: &NodeStatusT| Room {
        node: NodeId(node.node),
        domain: node.domain.clone(),
        slices: node.slices.iter().filter(used).map(|slice| SliceIndex(slice.index)).collect(),
    };
    let mut rooms: Vec<Room> = status.nodes.iter().map(room).collect();
    rooms.retain(|room| !room.slices.is_empty());
    let room_of: BTreeMap<u32, usize> =
        rooms.iter().enumerate().map(|(at, room)| (room.node.0, at)).collect();
    let on = |target: &TargetT| {
        let slice = SliceIndex(target.slice);
        let room = room_of.get(&target.node).copied().filter(|room| rooms[*room].slices.contains(&slice));
        (target.id, Replica { room: room.unwrap_or(usize::MAX), slice })
    };
    let places: BTreeMap<u64, Replica> = status.routing.targets.iter().map(on).collect();
    // A member that is on none of these slices keeps its place in the chain, and counts for nothing.
    let nowhere = Replica { room: usize::MAX, slice: SliceIndex(0) };
    let replica = |member: &MemberT| places.get(&member.target).copied().unwrap_or(nowhere);
    let chains = status.routing.chains.iter();
    let chains = chains.map(|chain| chain.members.iter().map(replica).collect()).collect();
    (rooms, chains)
}

fn balance(common: &Common) -> Result<ExitCode> {
    let status = status::fetch(&common.cluster)?;
    let (rooms, chains) = spread(&status);
    let found = placement::measure(&rooms, &chains);
    // Of each room its targets and its heads.
    let mut counts = vec![(0u64, 0u64); rooms.len()];
    for (at, replica) in chains.iter().flat_map(|chain| chain.iter().enumerate()) {
        if let Some((targets, heads)) = counts.get_mut(replica.room) {
            *targets += 1;
            *heads += u64::from(at == 0);
        }
    }
    let all = rooms.iter().zip(&counts);
    if common.json {
        let span = |span: &Span| json!({"min": span.min, "max": span.max});
        let nodes = all.map(|(room, (targets, heads))| {
            json!({"node": room.node.0, "domain": room.domain, "slices": room.slices.len(), "targets": targets, "heads": heads})
        });
        output::json(&json!({
            "chains": found.chains, "targets": span(&found.targets), "positions": found.positions.iter().map(span).collect::<Vec<_>>(),
            "pairs": span(&found.pairs), "slices": span(&found.slices), "domain_repeats": found.domain_repeats,
            "nodes": nodes.collect::<Vec<_>>(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![["NODE", "DOMAIN", "SLICES IN USE", "TARGETS", "HEADS"].map(String::from)];
    for (room, (targets, heads)) in all {
        let domain = if room.domain.is_empty() { "-" } else { &room.domain };
        let name = format!("node-{}", room.node.0);
        rows.push([
            name,
            domain.into(),
            room.slices.len().to_string(),
            targets.to_string(),
            heads.to_string(),
        ]);
    }
    output::table(&rows)?;
    output::line(&found.to_string())?;
    Ok(ExitCode::SUCCESS)
}
