//! Compares a store, byte for byte, with the model of what it should hold.

use super::model::{Content, Model, ModelChunk, ModelTarget, channel};
use super::open::fetch;
use crate::disk::SimDisk;
use corefs_engine::store::{ChunkStatus, Outcome, ReadPlan, Store};
use corefs_wire::{ChunkId, TargetId};
use std::fmt::Debug;

type Check = Result<(), String>;

/// Everything in the model is in the store, and nothing else.
pub fn equal(store: &mut Store, disk: &SimDisk, model: &Model) -> Check {
    let found: Vec<_> = store.targets().collect();
    let expected: Vec<_> = model.targets.iter().map(|(id, target)| (*id, target.chain)).collect();
    if found != expected {
        return Err(format!("targets are {found:?}, not {expected:?}"));
    }
    for (id, target) in &model.targets {
        chunks(store, disk, *id, target)?;
        rows(store, *id, target)?;
    }
    Ok(())
}

fn chunks(store: &mut Store, disk: &SimDisk, id: TargetId, target: &ModelTarget) -> Check {
    let listed = store.chunks(id, None, usize::MAX).map_err(|error| error.to_string())?;
    let found = listed.iter().map(|info| (info.chunk, info.version, info.length));
    let expected = target.chunks.iter().filter(|(_, chunk)| chunk.content.is_some());
    let expected = expected.map(|(chunk_id, chunk)| (*chunk_id, chunk.version, chunk.length()));
    same(id, "lists", found, expected)?;
    let pendings = store.pendings(id).map_err(|error| error.to_string())?;
    let found = pendings.iter().map(|pending| (pending.chunk, pending.version, pending.flushed));
    let expected = target.chunks.iter().filter_map(|(chunk_id, chunk)| {
        let pending = chunk.pending.as_ref().filter(|pending| !pending.direct)?;
        Some((*chunk_id, pending.version, pending.flushed))
    });
    same(id, "has pendings", found, expected)?;
    for (chunk_id, chunk) in &target.chunks {
        one(store, disk, id, *chunk_id, chunk).map_err(|why| format!("{chunk_id} of {id}: {why}"))?;
    }
    Ok(())
}

/// One chunk: status, committed bytes, pending bytes.
pub fn one(store: &mut Store, disk: &SimDisk, target: TargetId, id: ChunkId, chunk: &ModelChunk) -> Check {
    let status = store.status(target, id).map_err(|error| error.to_string())?;
    status_of(&status, chunk)?;
    let next = store.next_version(target, id).map_err(|error| error.to_string())?;
    if next <= chunk.version {
        return Err(format!("the next version would be {next}, but {} was there already", chunk.version));
    }
    // Where a generation isn't, an older one is read.
    if id.generation == 0 || chunk.content.is_some() {
        let committed = store.read(target, id, 0, u32::MAX);
        bytes(store, disk, committed, &chunk.content)
            .map_err(|why| format!("version {}: {why}", chunk.version))?;
    }
    if let Some(pending) = &chunk.pending {
        let plan = store.read_pending(target, id, 0, u32::MAX);
        let version = pending.version;
        if pending.flushed {
            bytes(store, disk, plan, &pending.content).map_err(|why| format!("pending {version}: {why}"))?;
        } else if let Ok(plan) = plan {
            store.end_read(plan);
        }
    }
    Ok(())
}

fn status_of(status: &ChunkStatus, chunk: &ModelChunk) -> Check {
    let pending = chunk.pending.as_ref().map(|pending| pending.version);
    // A forgotten tombstone looks as if the chunk had never been.
    let forgotten = status.version == 0 && chunk.content.is_none();
    let same = status.version == chunk.version && status.truncate_epoch == chunk.epoch;
    if status.removed != chunk.content.is_none()
        || status.length != chunk.length()
        || status.pending != pending
        || !(same || forgotten)
    {
        let (version, epoch, length) = (chunk.version, chunk.epoch, chunk.length());
        let what = format!("version {version}, epoch {epoch}, length {length}, pending {pending:?}");
        return Err(format!("status is {status:?}, not {what}"));
    }
    Ok(())
}

fn bytes(store: &mut Store, disk: &SimDisk, plan: corefs_wire::Result<ReadPlan>, content: &Content) -> Check {
    let (plan, content) = match (plan, content) {
        (Ok(plan), Some(content)) => (plan, content),
        (Ok(plan), None) => {
            store.end_read(plan);
            return Err("it is there, but should be removed".to_string());
        }
        (Err(_), None) => return Ok(()),
        (Err(error), Some(_)) => return Err(format!("it can't be read: {error}")),
    };
    let found = fetch(disk, &plan);
    let (length, len) = (plan.length as usize, plan.len as usize);
    store.end_read(plan);
    let found = found?;
    if length != content.len() || len != content.len() || found.len() < len || found[..len] != content[..] {
        let differs = found.iter().zip(content.iter()).position(|(found, expected)| found != expected);
        return Err(format!("bytes differ from {differs:?} on, lengths {length} and {}", content.len()));
    }
    if found[len..].iter().any(|byte| *byte != 0) {
        return Err("bytes beyond the chunk's end aren't zeros".to_string());
    }
    Ok(())
}

fn rows(store: &Store, id: TargetId, target: &ModelTarget) -> Check {
    let found = store.dedup_rows(id).map_err(|error| error.to_string())?;
    let found = found.iter().map(|row| {
        let outcome = Outcome { version: row.version, length: row.length };
        (channel(&row.tag), row.tag.sequence, row.chunk, outcome, row.dropped)
    });
    let expected =
        target.rows.iter().map(|(of, row)| (*of, row.sequence, row.chunk, row.outcome, row.dropped));
    same(id, "remembers", found, expected)
}

/// Two lists are equal; if not, says what is in one of them only.
fn same<T: PartialEq + Debug>(
    id: TargetId,
    what: &str,
    found: impl Iterator<Item = T>,
    expected: impl Iterator<Item = T>,
) -> Check {
    let (found, expected): (Vec<_>, Vec<_>) = (found.collect(), expected.collect());
    if found == expected {
        return Ok(());
    }
    let more: Vec<_> = found.iter().filter(|item| !expected.contains(item)).collect();
    let less: Vec<_> = expected.iter().filter(|item| !found.contains(item)).collect();
    Err(format!("{id} {what} {more:?} instead of {less:?}"))
}
