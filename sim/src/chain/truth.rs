//! What must hold, whatever happens:
//!
//! - replicas that serve never commit two updates under one version of a chunk, nor one update under two (exactly once);
//! - an acknowledged update is in the history of its chunk for ever, at the version it was acknowledged with; a refused one
//!   isn't;
//! - once a version of a chunk was read or acknowledged, no read that begins later returns less, and what a read returns
//!   is what the history says of its version (per-chunk linearizability: versions are the order of the register's writes);
//! - in the end all replicas hold the same, and it is what the history says.

use corefs_engine::event::Ack;
use corefs_engine::store::UpdateKind;
use corefs_wire::ChunkId;
use corefs_wire::checksum::crc32c;
use std::collections::BTreeMap;

/// Names one client's one update, through all its retries.
pub type WriteId = u64;

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What was done and seen.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counts { $($(#[$doc])* pub $name: u64,)* }
        impl Counts {
            /// Every count's name and value.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

counts! {
    /// Virtual milliseconds.
    milliseconds,
    acknowledged,
    refused,
    retries,
    reads,
    reads_pending,
    recovered_pendings,
    lost_messages,
    fenced,
    chunks_compared,
    power_cuts,
    /// All nodes at once.
    blackouts,
    /// Nodes that stood still, links that were cut, managers that were replaced.
    pauses,
    partitions,
    manager_deaths,
    /// Chain versions, replicas that came to serve after they had been filled, chains that had nobody left to serve.
    chain_changes,
    replicas_filled,
    total_losses,
    /// Parts of chunks sent to fill a replica.
    fills,
    rows_handed_over,
}

#[derive(Clone, Debug)]
struct Change {
    kind: UpdateKind,
    payload: Vec<u8>,
    refused: bool,
    /// The version that it was committed as.
    version: Option<u64>,
}

/// One chunk as one replica holds it in the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    pub version: u64,
    /// `None`: removed, or never there.
    pub bytes: Option<Vec<u8>>,
}

/// The committed updates of a chunk in order, the first being version 1.
#[derive(Debug, Default)]
struct History {
    ids: Vec<WriteId>,
    /// CRC of the bytes after each; `None`: removed.
    crcs: Vec<Option<u32>>,
    bytes: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
pub struct Truth {
    changes: BTreeMap<WriteId, Change>,
    histories: BTreeMap<ChunkId, History>,
    /// What a read that begins now must at least return.
    floor: BTreeMap<ChunkId, u64>,
    pub counts: Counts,
}

impl Truth {
    pub fn wished(&mut self, id: WriteId, kind: UpdateKind, payload: Vec<u8>) {
        self.changes.insert(id, Change { kind, payload, refused: false, version: None });
    }

    /// A replica that serves has committed an update under this version.
    pub fn committed(&mut self, chunk: ChunkId, version: u64, id: WriteId) -> Result<(), String> {
        let history = self.histories.entry(chunk).or_default();
        let known = history.ids.get(version as usize - 1);
        match known {
            Some(known) if *known == id => return Ok(()),
            Some(known) => {
                return Err(format!("version {version} of {chunk} is update {known} here and {id} there"));
            }
            None if history.ids.len() as u64 + 1 == version => {}
            None => {
                let last = history.ids.len();
                return Err(format!("{chunk}: version {version} is committed, but the last was {last}"));
            }
        }
        let change = self.changes.get_mut(&id).ok_or("an update of nobody")?;
        if change.refused {
            return Err(format!("update {id} of {chunk} was refused and is version {version}"));
        }
        if let Some(before) = change.version.replace(version) {
            return Err(format!(
                "update {id} of {chunk} is version {before} and {version}: it was done twice"
            ));
        }
        history.bytes = apply(history.bytes.take(), change);
        change.payload = Vec::new();
        history.ids.push(id);
        history.crcs.push(history.bytes.as_deref().map(crc32c));
        Ok(())
    }

    pub fn acknowledged(&mut self, chunk: ChunkId, id: WriteId, ack: &Ack) -> Result<(), String> {
        self.counts.acknowledged += 1;
        self.saw(chunk, ack.version);
        match self.changes.get(&id).and_then(|change| change.version) {
            Some(version) if version == ack.version => Ok(()),
            other => Err(format!(
                "update {id} of {chunk} was acknowledged as version {}, and is committed as {other:?}",
                ack.version
            )),
        }
    }

    pub fn refused(&mut self, id: WriteId) -> Result<(), String> {
        self.counts.refused += 1;
        match self.changes.get_mut(&id) {
            Some(Change { version: Some(version), .. }) => {
                Err(format!("update {id} was refused, and is committed as version {version}"))
            }
            Some(change) => {
                change.refused = true;
                Ok(())
            }
            None => Err("a refusal of nothing".into()),
        }
    }

    /// What a read that begins now must at least return.
    pub fn floor(&self, chunk: ChunkId) -> u64 {
        self.floor.get(&chunk).copied().unwrap_or(0)
    }

    /// A read that began when `floor` was the least it may return.
    pub fn read(&mut self, chunk: ChunkId, floor: u64, version: u64, bytes: &[u8]) -> Result<(), String> {
        self.counts.reads += 1;
        self.saw(chunk, version);
        if version < floor {
            return Err(format!("a read of {chunk} returned version {version} after {floor} had been shown"));
        }
        let expected = self.histories.get(&chunk).and_then(|history| history.crcs.get(version as usize - 1));
        if expected == Some(&Some(crc32c(bytes))) {
            return Ok(());
        }
        let known = self.histories.get(&chunk).map_or(0, |history| history.ids.len());
        let what = match expected {
            None => format!("which nobody committed: {known} is the last"),
            Some(None) => "which is a removal".into(),
            Some(Some(_)) => "and other bytes than it has".into(),
        };
        Err(format!("a read of {chunk} returned version {version}, {what}"))
    }

    /// A read that found no chunk.
    pub fn read_nothing(&mut self, chunk: ChunkId, floor: u64) -> Result<(), String> {
        self.counts.reads += 1;
        let removed = |history: &History| {
            history.crcs.iter().skip((floor as usize).saturating_sub(1)).any(Option::is_none)
        };
        if floor == 0 || self.histories.get(&chunk).is_some_and(removed) {
            return Ok(());
        }
        Err(format!("a read found no {chunk} after version {floor} had been shown"))
    }

    fn saw(&mut self, chunk: ChunkId, version: u64) {
        let floor = self.floor.entry(chunk).or_default();
        *floor = version.max(*floor);
    }

    /// Holds the end against the history. `replicas`: what each replica holds of the chunk.
    pub fn check_end(&mut self, chunk: ChunkId, replicas: &[Held]) -> Result<(), String> {
        self.counts.chunks_compared += 1;
        let empty = History::default();
        let history = self.histories.get(&chunk).unwrap_or(&empty);
        for (index, held) in replicas.iter().enumerate() {
            let last = history.ids.len() as u64;
            if held.version != last || held.bytes != history.bytes {
                let same = if held.bytes == history.bytes { "the same bytes" } else { "other bytes" };
                return Err(format!(
                    "{chunk}: replica {index} ended with version {}, the history with {last}, {same}",
                    held.version
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
