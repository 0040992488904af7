//! `corefs scrub`: everything that the storage nodes hold, verified and repaired while they serve.

use crate::connect::Cluster;
use crate::{output, signals};
use corefs_client::Client;
use corefs_perf::args::Bytes;
use corefs_perf::progress::{Progress, Unit, Watch};
use corefs_wire::control::storage::{LostT, PassT, ScrubReplyT, ScrubT, ShardScrubT};
use corefs_wire::{Error, ErrorCode, NodeId, Result};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;

/// Show how the scrub of each storage node is, or with --now verify everything at once.
///
/// Every block has a checksum. Storage nodes read and compare all they hold, again and again, slowly enough not to be noticed
/// (`--scrub-rate` of `corefs up` and `corefs storage`; a pass takes up to a week). A block that is damaged, or that the disk
/// can't read, is fetched from another replica and written over the bad one; so it is when a read or a write meets it.
///
/// With --now every node that is alive begins a pass over everything and this command waits for it: after a disk has behaved
/// oddly, say, or before another copy is taken away. Files stay readable and writable meanwhile.
///
/// Exits with 0 when no damage is left and 1 when there is some that no replica can heal, naming chains, targets and chunks, or
/// when a node didn't answer.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    cluster: Cluster,
    /// Verify everything now, and wait for it.
    #[arg(long)]
    now: bool,
    /// Bytes a second at which each node does that [default: as fast as the disk and the other work allow].
    #[arg(long, value_name = "BYTES", requires = "now")]
    rate: Option<Bytes>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How long a node may take for an answer, and the pause between two questions.
const ANSWER: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);

/// A node and what it last said.
struct Asked {
    node: NodeId,
    address: String,
    said: Result<ScrubReplyT>,
    /// The pass that each shard was asked for.
    wanted: Vec<u64>,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let (now, rate) = (args.now, args.rate.map_or(0, |rate| rate.0));
    let watch = if args.json { Watch::Nothing } else { Watch::terminal() };
    let asked = args.cluster.with_client("corefs scrub", move |client| async move {
        let mut asked = begin(&client, now, rate).await;
        if now {
            finish(&client, &mut asked, watch).await?;
        }
        Ok(asked)
    })?;
    let whole = asked
        .iter()
        .all(|node| node.said.as_ref().is_ok_and(|said| sum(said, |shard| shard.unrepaired) == 0));
    if args.json {
        let nodes: Vec<Value> = asked.iter().map(|node| as_json(node, now)).collect();
        output::json(&json!({"clean": whole, "nodes": nodes}))?;
    } else {
        asked.iter().try_for_each(|node| output::line(&describe(node, now)))?;
        let verdict = match (whole, now) {
            (true, true) => "every block is whole",
            (true, false) => "no damage is known",
            (false, _) => "DAMAGE is left, or a node didn't answer: see above",
        };
        output::line(verdict)?;
    }
    Ok(ExitCode::from(u8::from(!whole)))
}

/// Asks every node, in order.
async fn begin(client: &Client, start: bool, rate: u64) -> Vec<Asked> {
    let mut asked = Vec::new();
    let mut question = ScrubT::default();
    (question.start, question.rate) = (start, rate);
    for (id, node) in &client.routing().nodes {
        let said = match node.alive {
            true => ask(client, &node.control, &question).await,
            false => Err(Error::new(ErrorCode::Unreachable, "the node is dead")),
        };
        let wanted = said.as_ref().map(|said| said.shards.iter().map(|shard| shard.asked).collect());
        asked.push(Asked {
            node: *id,
            address: node.control.clone(),
            wanted: wanted.unwrap_or_default(),
            said,
        });
    }
    asked
}

async fn ask(client: &Client, address: &str, question: &ScrubT) -> Result<ScrubReplyT> {
    client.node().ask(&address.parse()?, question, ANSWER).await
}

/// Waits until all passes have ended, or their nodes don't answer any more.
async fn finish(client: &Client, asked: &mut [Asked], watch: Watch) -> Result<()> {
    let mut progress = None;
    while asked.iter().any(|node| node.is_busy()) {
        let shards = || asked.iter().flat_map(|node| node.said.iter().flat_map(|said| &said.shards));
        let sum = |of: fn(&PassT) -> u64| shards().map(|shard| of(present(shard))).sum::<u64>();
        let (done, total) = (sum(|pass| pass.bytes), sum(|pass| pass.bytes_total));
        if total > 0 {
            let bar = progress.get_or_insert_with(|| Progress::new(watch, "scrubbing", total, Unit::Bytes));
            let damaged: u64 =
                shards().map(|shard| shard.damaged - present(shard).damaged_before.min(shard.damaged)).sum();
            bar.tell(
                done,
                || if damaged > 0 { format!(", {damaged} damaged blocks") } else { String::new() },
            );
        }
        client.node().sleep(PAUSE).await;
        if signals::wait_for(Duration::ZERO) {
            let what =
                "not waited for any longer; the nodes go on, and `corefs scrub` shows how far they are";
            return Err(Error::new(ErrorCode::Interrupted, what));
        }
        for node in asked.iter_mut().filter(|node| node.is_busy()) {
            node.said = ask(client, &node.address, &ScrubT::default()).await;
            if node.began_anew() {
                node.said =
                    Err(Error::new(ErrorCode::ConnectionLost, "the node was started again meanwhile"));
            }
        }
    }
    Ok(())
}

impl Asked {
    fn shards(&self) -> impl Iterator<Item = (&ShardScrubT, u64)> {
        let shards = self.said.iter().flat_map(|said| &said.shards);
        shards.zip(self.wanted.iter().copied())
    }

    /// A pass that was asked for isn't over.
    fn is_busy(&self) -> bool {
        self.shards().any(|(shard, wanted)| shard.answered < wanted)
    }

    /// It doesn't know what it was asked for.
    fn began_anew(&self) -> bool {
        self.shards().any(|(shard, wanted)| shard.asked < wanted)
    }
}

/// The pass under way, or the last one.
fn present(shard: &ShardScrubT) -> &PassT {
    shard.pass.as_ref().unwrap_or(&shard.last)
}

fn sum(said: &ScrubReplyT, of: impl Fn(&ShardScrubT) -> u64) -> u64 {
    said.shards.iter().map(of).sum()
}

/// Damaged and repaired blocks: since the pass began, or since the start of the node.
fn counts(said: &ScrubReplyT, now: bool) -> (u64, u64) {
    let since = |total: u64, before: u64| if now { total.saturating_sub(before) } else { total };
    (
        sum(said, |shard| since(shard.damaged, shard.last.damaged_before)),
        sum(said, |shard| since(shard.repaired, shard.last.repaired_before)),
    )
}

fn as_json(node: &Asked, now: bool) -> Value {
    let said = match &node.said {
        Ok(said) => said,
        Err(error) => {
            return json!({"node": node.node.0, "address": node.address, "error": error.to_string()});
        }
    };
    let (damaged, repaired) = counts(said, now);
    let lost = |lost: &LostT| json!({"chain": lost.chain, "target": lost.target, "inode": lost.inode, "index": lost.index, "generation": lost.generation, "pending": lost.pending, "blocks": lost.blocks});
    json!({
        "node": node.node.0, "address": node.address, "background_rate": said.rate,
        "running": said.shards.iter().any(|shard| shard.pass.is_some()),
        "passes": said.shards.iter().map(|shard| shard.passes).min(),
        "chunks": sum(said, |shard| present(shard).chunks),
        "bytes": sum(said, |shard| present(shard).bytes),
        "bytes_total": sum(said, |shard| present(shard).bytes_total),
        "damaged_blocks": damaged, "repaired_blocks": repaired,
        "unrepaired_blocks": sum(said, |shard| shard.unrepaired),
        "repairs_waiting": sum(said, |shard| shard.waiting),
        "lost": said.lost.iter().map(lost).collect::<Vec<_>>(),
    })
}

fn describe(node: &Asked, now: bool) -> String {
    let said = match &node.said {
        Ok(said) => said,
        Err(error) => return format!("node {:<4} {error}", node.node.0),
    };
    let bytes = sum(said, |shard| present(shard).bytes);
    let running = said.shards.iter().any(|shard| shard.pass.is_some());
    let how = match (now, said.rate) {
        (true, _) => {
            format!("{} chunks, {} verified", sum(said, |shard| present(shard).chunks), output::size(bytes))
        }
        (false, 0) if !running => "no scrub in the background".to_owned(),
        (false, rate) => {
            let total = sum(said, |shard| present(shard).bytes_total).max(1);
            let state = if running { "this pass" } else { "the last pass" };
            let percent = (bytes.min(total) * 100).checked_div(total).unwrap_or(0);
            format!("{state} {percent} % ({}), at most {}/s", output::size(bytes), output::size(rate))
        }
    };
    let (damaged, repaired) = counts(said, now);
    let mut line = format!(
        "node {:<4} {how}; {damaged} damaged blocks found, {repaired} repaired, {} unrepaired",
        node.node.0,
        sum(said, |shard| shard.unrepaired)
    );
    for lost in &said.lost {
        let what = if lost.pending { "pending update of " } else { "" };
        line.push_str(&format!(
            "\n          LOST {} blocks of {what}chunk {} of inode {}, chain {}, target {}",
            lost.blocks, lost.index, lost.inode, lost.chain, lost.target
        ));
    }
    line
}
