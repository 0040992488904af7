//! What must hold, whatever happens:
//!
//! - an acknowledged update is in the history of its chunk for ever, at the version it was acknowledged with;
//! - a refused one isn't;
//! - once a version of a chunk was read or acknowledged, no read that begins later returns less;
//! - in the end all replicas hold the same, and it is what the history says.

use corefs_engine::event::Ack;
use corefs_engine::store::UpdateKind;
use corefs_wire::ChunkId;
use std::collections::BTreeMap;

/// Names one client's one update, through all its retries.
pub type WriteId = u64;

/// What was done and seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub acknowledged: u64,
    pub refused: u64,
    pub retries: u64,
    pub reads: u64,
    pub reads_pending: u64,
    pub power_cuts: u64,
    pub recovered_pendings: u64,
    pub lost_messages: u64,
    pub fenced: u64,
    pub chunks_compared: u64,
}

#[derive(Clone, Debug)]
struct Change {
    kind: UpdateKind,
    payload: Vec<u8>,
    acknowledged: Option<u64>,
    refused: bool,
}

/// One chunk as one replica holds it in the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    pub version: u64,
    /// `None`: removed, or never there.
    pub bytes: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
pub struct Truth {
    changes: BTreeMap<WriteId, Change>,
    /// Which update the head gave which version; a version that was dropped everywhere is given again.
    given: BTreeMap<(ChunkId, u64), WriteId>,
    /// What a read that begins now must at least return.
    floor: BTreeMap<ChunkId, u64>,
    pub counts: Counts,
}

impl Truth {
    pub fn wished(&mut self, id: WriteId, kind: UpdateKind, payload: Vec<u8>) {
        self.changes.insert(id, Change { kind, payload, acknowledged: None, refused: false });
    }

    /// The head sends an update on: it is durable there under this version.
    pub fn given(&mut self, chunk: ChunkId, version: u64, id: WriteId) {
        self.given.insert((chunk, version), id);
    }

    pub fn acknowledged(&mut self, chunk: ChunkId, id: WriteId, ack: &Ack) -> Result<(), String> {
        self.counts.acknowledged += 1;
        self.saw(chunk, ack.version);
        let change = self.changes.get_mut(&id).ok_or("an answer to nothing")?;
        match change.acknowledged.replace(ack.version) {
            Some(before) if before != ack.version => Err(format!(
                "update {id} of {chunk} was acknowledged as version {before} and as {}",
                ack.version
            )),
            _ => Ok(()),
        }
    }

    pub fn refused(&mut self, id: WriteId) {
        self.counts.refused += 1;
        if let Some(change) = self.changes.get_mut(&id) {
            change.refused = true;
        }
    }

    /// What a read that begins now must at least return.
    pub fn floor(&self, chunk: ChunkId) -> u64 {
        self.floor.get(&chunk).copied().unwrap_or(0)
    }

    pub fn read(&mut self, chunk: ChunkId, floor: u64, version: u64) -> Result<(), String> {
        self.counts.reads += 1;
        self.saw(chunk, version);
        if version >= floor {
            return Ok(());
        }
        Err(format!("a read of {chunk} returned version {version} after {floor} had been shown"))
    }

    fn saw(&mut self, chunk: ChunkId, version: u64) {
        let floor = self.floor.entry(chunk).or_default();
        *floor = version.max(*floor);
    }

    /// The bytes of a chunk at a version, replayed from its history.
    fn replay(&self, chunk: ChunkId, version: u64) -> Result<Option<Vec<u8>>, String> {
        let mut bytes: Option<Vec<u8>> = None;
        for at in 1..=version {
            let id = self.given.get(&(chunk, at)).ok_or(format!("nobody gave version {at} of {chunk}"))?;
            let change = &self.changes[id];
            if change.refused {
                return Err(format!("update {id} was refused and is version {at} of {chunk}"));
            }
            bytes = apply(bytes, change);
        }
        Ok(bytes)
    }

    /// Holds the end against the history. `replicas`: what each replica holds of the chunk.
    pub fn check_end(&mut self, chunk: ChunkId, replicas: &[Held]) -> Result<(), String> {
        self.counts.chunks_compared += 1;
        let first = replicas.first().ok_or("a chain without replicas")?;
        for (index, held) in replicas.iter().enumerate() {
            if held.version != first.version || held.bytes != first.bytes {
                return Err(format!(
                    "{chunk}: replica {index} holds version {}, the head {}, {}",
                    held.version,
                    first.version,
                    if held.bytes == first.bytes { "the same bytes" } else { "other bytes" }
                ));
            }
        }
        if first.version < self.floor(chunk) {
            return Err(format!(
                "{chunk} ended at version {} after {} was shown",
                first.version,
                self.floor(chunk)
            ));
        }
        if first.bytes != self.replay(chunk, first.version)? {
            return Err(format!("{chunk} version {} isn't what its history says", first.version));
        }
        Ok(())
    }

    /// Every acknowledged update is where it was acknowledged to be.
    pub fn check_history(&self) -> Result<(), String> {
        let place: BTreeMap<WriteId, u64> =
            self.given.iter().map(|((_, version), id)| (*id, *version)).collect();
        for (id, change) in &self.changes {
            if let Some(version) = change.acknowledged
                && place.get(id) != Some(&version)
            {
                return Err(format!(
                    "update {id} was acknowledged as version {version}, which is another's now"
                ));
            }
        }
        Ok(())
    }
}

fn apply(bytes: Option<Vec<u8>>, change: &Change) -> Option<Vec<u8>> {
    let mut bytes = bytes.unwrap_or_default();
    match change.kind {
        UpdateKind::Write { offset, len } => {
            let (start, end) = (offset as usize, (offset + len) as usize);
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[start..end].copy_from_slice(&change.payload);
            Some(bytes)
        }
        UpdateKind::Truncate { len } => {
            bytes.resize(len as usize, 0);
            Some(bytes)
        }
        UpdateKind::Remove => None,
        UpdateKind::FullReplace { .. } | UpdateKind::Patch { .. } => unreachable!("clients don't fill"),
    }
}
