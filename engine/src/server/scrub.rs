//! `storage.scrub`: how scrub and repair are, and beginning a pass over everything.

use super::cores::{self, Core};
use crate::mesh::{ShardMessage, ShardReport};
use crate::repair::Place;
use crate::scrub::Pass;
use corefs_wire::control::storage::{LostT, PassT, ScrubReplyT, ScrubT, ShardScrubT};
use corefs_wire::{ChainId, Result};

/// Begins a pass if that is asked for, and says how all shards are.
pub async fn answer(cores: &[Core], asked: &ScrubT, background: u64) -> Result<ScrubReplyT> {
    if asked.start {
        let rate = asked.rate.div_ceil(cores.len().max(1) as u64);
        for core in cores {
            core.handle.send(ShardMessage::Scrub { rate })?;
        }
    }
    let mut reply = ScrubReplyT::default();
    reply.rate = background;
    // A shard takes its messages in their order: the reports know of the pass that was just asked for.
    for report in cores::reports(cores).await? {
        reply.shards.push(shard(&report));
        reply
            .lost
            .extend(report.upkeep.lost.iter().map(|(chain, place, blocks)| lost(*chain, place, *blocks)));
    }
    Ok(reply)
}

fn shard(report: &ShardReport) -> ShardScrubT {
    let upkeep = &report.upkeep;
    let mut shard = ShardScrubT::default();
    shard.shard = report.shard.0;
    shard.pass = upkeep.pass.as_ref().map(|pass| Box::new(pass_of(pass)));
    shard.last = Box::new(pass_of(&upkeep.last));
    (shard.asked, shard.answered, shard.passes) = (upkeep.asked, upkeep.answered, upkeep.passes);
    (shard.damaged, shard.repaired) = (upkeep.damaged, upkeep.repaired);
    (shard.unrepaired, shard.waiting) = (upkeep.unrepaired, upkeep.waiting);
    shard
}

fn pass_of(pass: &Pass) -> PassT {
    let mut out = PassT::default();
    (out.number, out.chunks) = (pass.number, pass.chunks);
    (out.bytes, out.bytes_total) = (pass.bytes, pass.bytes_total);
    (out.damaged_before, out.repaired_before) = (pass.damaged_before, pass.repaired_before);
    out
}

fn lost(chain: ChainId, place: &Place, blocks: u32) -> LostT {
    let mut out = LostT::default();
    (out.chain, out.target, out.inode) = (chain.0, place.target.0, place.chunk.inode.0);
    (out.index, out.generation) = (place.chunk.index, place.chunk.generation);
    (out.pending, out.blocks) = (place.pending, blocks);
    out
}
