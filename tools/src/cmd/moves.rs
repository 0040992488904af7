//! `corefs moves`: what moves between nodes and disks, how far that is, and whether it goes on.

use super::status;
use crate::connect::Cluster;
use crate::output;
use corefs_wire::control::mgmtd::{
    ChangeMovingT, FillT, MoveT, MovesT, MovingChange, SliceInfoT, Standing, StatusT,
};
use corefs_wire::{Error, ErrorCode, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

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
#[derive(PartialEq, Eq)]
pub enum Wait {
    /// It is only a plan.
    WouldMove,
    No,
    /// For everything.
    Yes,
    /// For these slices of a node to be empty.
    Empty(u32, Vec<u16>),
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
    tell(&plan, &wait, &args.cluster, args.json)
}

fn ask(change: MovingChange, dry_run: bool, cluster: &Cluster) -> Result<MovesT> {
    let mut request = ChangeMovingT::default();
    (request.change, request.dry_run) = (change, dry_run);
    cluster.ask_manager("corefs moves", request)
}

/// Shows a plan, and waits until it is done if that is wanted.
pub fn tell(plan: &MovesT, wait: &Wait, cluster: &Cluster, as_json: bool) -> Result<ExitCode> {
    if *wait == Wait::Yes && is_idle(plan) {
        return finish(plan, wait, as_json);
    }
    if !as_json {
        output::line(&describe(plan, *wait == Wait::WouldMove).join("\n"))?;
    }
    if matches!(wait, Wait::Yes | Wait::Empty(..)) {
        return finish(&wait_for(plan, wait, cluster, as_json)?, wait, as_json);
    }
    if as_json {
        output::json(&to_json(plan))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn finish(plan: &MovesT, wait: &Wait, as_json: bool) -> Result<ExitCode> {
    if as_json {
        output::json(&to_json(plan))?;
        return Ok(ExitCode::SUCCESS);
    }
    let said = match wait {
        Wait::Empty(node, slices) if slices.is_empty() => format!("node-{node} is empty"),
        Wait::Empty(node, _) => format!("the disk of node-{node} is empty"),
        _ => "everything is where it should be".into(),
    };
    output::line(&said)?;
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

/// How long nothing may have changed before what is away is taken for the reason that it doesn't end.
const STANDSTILL: Duration = Duration::from_secs(30);

/// Waits for the end, or for the slices named in `wait` to be empty. Errors: `NotReady` if that is paused, or stands still because something
/// is away; `TooFewNodes` if targets have no other place.
fn wait_for(plan: &MovesT, wait: &Wait, cluster: &Cluster, quiet: bool) -> Result<MovesT> {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(plan.moves.len() as u64) };
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos} of {len} targets have moved; {msg}") {
        bar.set_style(style);
    }
    let mut all = plan.moves.len();
    let mut still = Still::new();
    loop {
        let now = ask(MovingChange::Look, false, cluster)?;
        let status = status::fetch(cluster)?;
        if is_over(&now, &status, wait) {
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
        if still.lasts(&now, &status) >= STANDSTILL
            && let Some(away) = absences(&status)
        {
            bar.abandon();
            let what = format!("nothing more moves until all are back: {away}; see `corefs status`");
            return Err(Error::new(ErrorCode::NotReady, what));
        }
        all = all.max(now.moves.len());
        bar.set_length(all as u64);
        bar.set_position((all - now.moves.len()) as u64);
        bar.set_message(format!("{} left", output::size(bytes(&now))));
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Since when nothing has changed: which targets move, and how far those are that are being filled. (What they hold changes as programs
/// write.)
struct Still {
    since: Instant,
    moves: Vec<(u64, u64, u32, u16, bool)>,
    left: (u32, u64),
    fills: Vec<(u64, u64, u64)>,
}

impl Still {
    fn new() -> Self {
        Self { since: Instant::now(), moves: Vec::new(), left: (0, 0), fills: Vec::new() }
    }

    /// For how long that has been so.
    fn lasts(&mut self, now: &MovesT, status: &StatusT) -> Duration {
        let one = |one: &MoveT| (one.chain, one.from_target, one.to_node, one.to_slice, one.begun);
        let fill = |fill: &FillT| (fill.to, fill.compared, fill.sent_chunks);
        let fresh = Self {
            since: Instant::now(),
            moves: now.moves.iter().map(one).collect(),
            left: (now.leaving, now.rotations),
            fills: status.fills.iter().map(fill).collect(),
        };
        if (&self.moves, self.left, &self.fills) != (&fresh.moves, fresh.left, &fresh.fills) {
            *self = fresh;
        }
        self.since.elapsed()
    }
}

fn is_over(now: &MovesT, status: &StatusT, wait: &Wait) -> bool {
    let Wait::Empty(node, slices) = wait else { return is_idle(now) && now.stuck.is_empty() };
    // All of the node's if none are named.
    let of = |slice: u16| slices.is_empty() || slices.contains(&slice);
    !status.routing.targets.iter().any(|target| target.node == *node && of(target.slice))
}

/// Which nodes and disks in use aren't there: what is to come from or go to them waits, and so does evening out.
fn absences(status: &StatusT) -> Option<String> {
    let used = |slice: &&SliceInfoT| slice.standing == Standing::Active;
    let mut away = Vec::new();
    for node in &status.nodes {
        let dead: Vec<u16> =
            node.slices.iter().filter(used).filter(|slice| slice.dead).map(|slice| slice.index).collect();
        match dead.first() {
            _ if !node.alive && node.slices.iter().any(|slice| used(&slice)) => {
                away.push(format!("node-{} is dead", node.node));
            }
            Some(first) if dead.len() == 1 => {
                away.push(format!("slice-{first} of node-{} is dead", node.node))
            }
            Some(first) => {
                away.push(format!(
                    "{} slices (slice-{first} and others) of node-{} are dead",
                    dead.len(),
                    node.node
                ));
            }
            None => {}
        }
    }
    (!away.is_empty()).then(|| away.join(", "))
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

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::control::mgmtd::{NodeStatusT, TargetT};

    /// Two nodes of two slices each, all in use.
    fn two_nodes() -> StatusT {
        let node = |number| {
            let slice = |index| {
                let mut slice = SliceInfoT::default();
                (slice.index, slice.standing) = (index, Standing::Active);
                slice
            };
            let mut node = NodeStatusT::default();
            (node.node, node.alive, node.slices) = (number, true, vec![slice(0), slice(1)]);
            node
        };
        let mut status = StatusT::default();
        status.nodes = vec![node(1), node(2)];
        status
    }

    #[test]
    fn who_is_away_is_named_unless_it_is_to_go() {
        let mut status = two_nodes();
        assert_eq!(absences(&status), None);
        status.nodes[0].slices[1].dead = true;
        assert_eq!(absences(&status).unwrap(), "slice-1 of node-1 is dead");
        status.nodes[1].alive = false;
        assert_eq!(absences(&status).unwrap(), "slice-1 of node-1 is dead, node-2 is dead");
        for slice in status.nodes.iter_mut().flat_map(|node| &mut node.slices) {
            slice.standing = Standing::Leaving;
        }
        assert_eq!(absences(&status), None);
    }

    #[test]
    fn who_empties_waits_for_what_is_to_be_empty_alone() {
        let (mut status, mut now) = (two_nodes(), MovesT::default());
        now.balance = true;
        let mut target = TargetT::default();
        (target.id, target.node, target.slice) = (7, 2, 1);
        status.routing.targets.push(target);
        let over = |wait: &Wait, now: &MovesT| is_over(now, &status, wait);
        assert!(over(&Wait::Empty(1, vec![]), &now) && over(&Wait::Empty(2, vec![0]), &now));
        assert!(!over(&Wait::Empty(2, vec![]), &now) && !over(&Wait::Empty(2, vec![0, 1]), &now));
        assert!(!over(&Wait::Yes, &now));
        now.balance = false;
        assert!(over(&Wait::Yes, &now));
    }

    #[test]
    fn it_stands_still_while_nothing_moves_and_nothing_is_filled() {
        let (mut status, mut now, mut still) = (two_nodes(), MovesT::default(), Still::new());
        let hour = Duration::from_secs(3600);
        let mut later = |now: &MovesT, status: &StatusT| {
            still.since -= hour;
            still.lasts(now, status) >= hour
        };
        assert!(later(&now, &status));
        now.moves.push(MoveT::default());
        assert!(!later(&now, &status));
        now.moves[0].bytes = 4096;
        assert!(later(&now, &status));
        status.fills.push(FillT::default());
        assert!(!later(&now, &status));
        status.fills[0].compared = 1;
        assert!(!later(&now, &status));
        assert!(later(&now, &status));
    }
}
