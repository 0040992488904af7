//! The index: targets, their chunks and their rows of duplicate detection, in one order of keys.

use super::codec::{Get, Put};
use super::update::UpdateKind;
use corefs_wire::{ChunkId, UpdateTag};

/// A chunk as listings show it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ChunkInfo {
    pub chunk: ChunkId,
    /// Committed version and length (bytes).
    pub version: u64,
    pub length: u32,
}

/// All that the chain asks about one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ChunkStatus {
    /// Committed version; 0 if the chunk never had one here.
    pub version: u64,
    /// Chain version under which it was committed.
    pub chain_version: u64,
    pub truncate_epoch: u64,
    /// Bytes; 0 for a removed chunk.
    pub length: u32,
    /// The committed version is a removal (or there is none).
    pub removed: bool,
    /// Version of the pending update.
    pub pending: Option<u64>,
}

/// An update that is durable here but neither committed nor dropped, with what is needed to send it on again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PendingInfo {
    pub chunk: ChunkId,
    pub kind: UpdateKind,
    pub version: u64,
    pub chain_version: u64,
    pub truncate_epoch: u64,
    pub tag: UpdateTag,
    /// Length of the chunk after it (bytes).
    pub length: u32,
    /// Its record is flushed.
    pub flushed: bool,
}

/// The order of everything in a checkpoint: by target; in it the target itself, its chunks, its duplicate rows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Key {
    pub(super) target: u64,
    pub(super) class: u64,
    pub(super) a: u64,
    pub(super) b: u64,
}

impl Key {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        [self.target, self.class, self.a, self.b].iter().for_each(|field| out.u64(*field));
    }

    pub(super) fn get(get: &mut Get) -> Option<Self> {
        Some(Self { target: get.u64()?, class: get.u64()?, a: get.u64()?, b: get.u64()? })
    }
}
