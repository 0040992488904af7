//! `corefs moves`: what moves between nodes and disks, how far that is, and whether it goes on.

use crate::connect::Cluster;
use crate::output;
use corefs_wire::control::mgmtd::{ChangeMovingT, MoveT, MovesT, MovingChange};
use corefs_wire::{Error, ErrorCode, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

/// Show what moves between nodes and disks; pause, resume, wait for it, or even out shares.
///
/// Targets move when a node or disk is added, emptied or replaced. A new replica is filled first, at --resync-rate of the storage nodes;
/// the old one goes when the new one serves, so nothing is ever without its copies.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    cluster: Cluster,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand, Clone, Copy)]
enum Command {
    /// No further target begins to move; those on their way arrive.
    Pause,
    /// Goes on after a pause.
    Resume,
    /// Even out: nodes and slices in use get their share of the targets, by the size of their disks.
    Balance {
        /// Only show what would move.
        #[arg(long)]
        dry_run: bool,
    },
    /// Wait until everything has moved.
    Wait,
}

/// What is to become of a plan that is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// It is only a plan.
    WouldMove,
    No,
    Yes,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let (change, dry_run, wait) = match args.command {
        None => (MovingChange::Look, false, Wait::No),
        Some(Command::Pause) => (MovingChange::Pause, false, Wait::No),
        Some(Command::Resume) => (MovingChange::Resume, false, Wait::No),
        Some(Command::Balance { dry_run: true }) => (MovingChange::Balance, true, Wait::WouldMove),
        Some(Command::Balance { .. }) => (MovingChange::Balance, false, Wait::No),
        Some(Command::Wait) => (MovingChange::Look, false, Wait::Yes),
    };
    let plan = ask(change, dry_run, &args.cluster)?;
    tell(&plan, wait, &args.cluster, args.json)
}

fn ask(change: MovingChange, dry_run: bool, cluster: &Cluster) -> Result<MovesT> {
    let mut request = ChangeMovingT::default();
    (request.change, request.dry_run) = (change, dry_run);
    cluster.with_client("corefs moves", |client| async move { client.manager(&request).await })
}

/// Shows a plan, and waits until it is done if that is wanted.
pub fn tell(plan: &MovesT, wait: Wait, cluster: &Cluster, as_json: bool) -> Result<ExitCode> {
    if wait == Wait::Yes && is_idle(plan) {
        return finish(plan, as_json);
    }
    if !as_json {
        output::line(&describe(plan, wait == Wait::WouldMove).join("\n"))?;
    }
    if wait == Wait::Yes {
        return finish(&wait_for(plan, cluster, as_json)?, as_json);
    }
    if as_json {
        output::json(&to_json(plan))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn finish(plan: &MovesT, as_json: bool) -> Result<ExitCode> {
    if as_json {
        output::json(&to_json(plan))?;
    } else {
        output::line("everything is where it should be")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Nothing moves and nothing is to move.
fn is_idle(plan: &MovesT) -> bool {
    plan.moves.is_empty() && plan.leaving == 0 && plan.rotations == 0 && !plan.balance
}

fn bytes(plan: &MovesT) -> u64 {
    plan.moves.iter().map(|one| one.bytes).sum()
}

fn describe(plan: &MovesT, would: bool) -> Vec<String> {
    let mut out = Vec::new();
    if plan.moves.is_empty() {
        out.push(match plan.rotations {
            0 if plan.leaving > 0 => format!("{} targets are about to leave their chains", plan.leaving),
            0 if plan.balance && !would => {
                "nothing moves now; shares are evened out when all nodes are there and whole: corefs status"
                    .into()
            }
            0 => "nothing moves".into(),
            heads => format!("no data moves; {heads} heads of chains are handed on"),
        });
    } else {
        let begun = plan.moves.iter().filter(|one| one.begun).count();
        let total = bytes(plan);
        let time = match plan.rate {
            0 => String::new(),
            rate => format!("; at least {} s at {}/s", total.div_ceil(rate), output::size(rate)),
        };
        out.push(format!(
            "{} targets {}, {}{time}; no plan for the same shares moves fewer than {}, {}",
            plan.moves.len(),
            if would { "would move" } else { "move" },
            output::size(total),
            plan.least,
            output::size(plan.least_bytes)
        ));
        let mut pairs: BTreeMap<(u32, u32), (usize, u64)> = BTreeMap::new();
        for one in &plan.moves {
            let (count, bytes) = pairs.entry((one.from_node, one.to_node)).or_default();
            *count += 1;
            *bytes += one.bytes;
        }
        for ((from, to), (count, bytes)) in pairs {
            let from = if from == 0 { "(new)".into() } else { format!("node-{from}") };
            out.push(format!("  {from} -> node-{to}: {count} targets, {}", output::size(bytes)));
        }
        if begun > 0 {
            out.push(format!("  {begun} of them are on their way"));
        }
    }
    if !plan.stuck.is_empty() {
        out.push(format!(
            "{} targets have no other place: no other node that is alive and in use has room and holds no replica of the same chain, nor is in a failure domain with one",
            plan.stuck.len()
        ));
    }
    if plan.paused {
        out.push("paused: nothing more begins to move until `corefs moves resume`".into());
    } else if !would && !plan.moves.is_empty() {
        out.push("see how far it is with `corefs moves`, stop it with `corefs moves pause`".into());
    }
    out
}

fn wait_for(plan: &MovesT, cluster: &Cluster, quiet: bool) -> Result<MovesT> {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(plan.moves.len() as u64) };
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos} of {len} targets have moved; {msg}") {
        bar.set_style(style);
    }
    let mut all = plan.moves.len();
    loop {
        let now = ask(MovingChange::Look, false, cluster)?;
        if is_idle(&now) && now.stuck.is_empty() {
            bar.finish_and_clear();
            return Ok(now);
        }
        if now.paused {
            bar.abandon();
            let what = "it is paused: nothing more moves until `corefs moves resume`";
            return Err(Error::new(ErrorCode::NotReady, what));
        }
        if !now.stuck.is_empty() && now.moves.is_empty() {
            bar.abandon();
            let what = format!("{} targets have no other place: add a node or a disk", now.stuck.len());
            return Err(Error::new(ErrorCode::TooFewNodes, what));
        }
        all = all.max(now.moves.len());
        bar.set_length(all as u64);
        bar.set_position((all - now.moves.len()) as u64);
        bar.set_message(format!("{} left", output::size(bytes(&now))));
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn to_json(plan: &MovesT) -> Value {
    let one = |one: &MoveT| {
        json!({
            "chain": one.chain, "from_target": one.from_target, "from_node": one.from_node, "from_slice": one.from_slice,
            "to_node": one.to_node, "to_slice": one.to_slice, "bytes": one.bytes, "begun": one.begun,
        })
    };
    let stuck = |stuck: &corefs_wire::control::mgmtd::StuckT| json!({"chain": stuck.chain, "target": stuck.target, "node": stuck.node});
    json!({
        "moves": plan.moves.iter().map(one).collect::<Vec<_>>(), "bytes": bytes(plan), "least_moves": plan.least, "least_bytes": plan.least_bytes,
        "heads_handed_on": plan.rotations, "stuck": plan.stuck.iter().map(stuck).collect::<Vec<_>>(),
        "leaving": plan.leaving, "paused": plan.paused, "balancing": plan.balance, "rate": plan.rate,
    })
}
