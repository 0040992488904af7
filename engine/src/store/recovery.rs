//! Recovery: from the bytes of a slice to a [`Store`], pulled step by step.

use super::Store;
use corefs_wire::{ErrorCode, Uuid};

/// What the last [`Need`] led to.
#[derive(Debug)]
pub enum Input<'a> {
    /// The first step.
    Start,
    /// The bytes asked for, all of them.
    Bytes(&'a [u8]),
    /// The write is complete.
    Written,
    /// The flush is complete.
    Flushed,
}

/// What recovery wants next.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)]
pub enum Need {
    /// Read `len` bytes at `offset`; both are multiples of 4096, `len` is at most [`READ_MAX`].
    Read { offset: u64, len: usize },
    /// Write these bytes.
    Write { offset: u64, bytes: Vec<u8> },
    /// Flush the disk's cache.
    Flush,
    /// The slice is open.
    Done(Box<Store>, RecoveryReport),
}

/// Most bytes of one [`Need::Read`].
pub const READ_MAX: usize = 256 << 10;

/// What recovery found that people may want to know.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecoveryReport {
    /// The epoch of this run.
    pub epoch: u64,
    pub checkpoint: u64,
    /// Journal records replayed on top of the checkpoint.
    pub records_replayed: u64,
    /// Blocks of an unfinished batch at the journal's end that were discarded, as a power cut leaves them.
    pub blocks_discarded: u64,
    pub chunks: u64,
    pub pendings: u64,
    /// A superblock copy was unreadable and has been rewritten from the other.
    pub superblock_repaired: Option<u16>,
    /// The newest checkpoint was damaged; the older one and the journal replaced it.
    pub checkpoint_fallback: bool,
}

/// What kind of damage keeps the slice from opening.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DamageKind {
    /// No readable superblock: not a slice of corefs, or both copies damaged.
    NoSuperblock,
    /// Made by a newer or unknown version of corefs.
    UnknownVersion(u32),
    WrongCluster,
    /// Not the store that was expected here.
    WrongStore,
    WrongSize,
    Checkpoint,
    Journal,
    /// Checkpoint and journal are readable, but contradict each other or themselves.
    Index,
}

/// Why the slice can't be opened: what is damaged, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    pub kind: DamageKind,
    /// Offset in the slice (bytes).
    pub offset: u64,
    pub detail: String,
}

impl From<Damage> for corefs_wire::Error {
    fn from(damage: Damage) -> Self {
        let code = match damage.kind {
            DamageKind::NoSuperblock | DamageKind::UnknownVersion(_) | DamageKind::WrongSize => {
                ErrorCode::BadFormat
            }
            DamageKind::WrongCluster | DamageKind::WrongStore => ErrorCode::WrongCluster,
            DamageKind::Checkpoint | DamageKind::Journal | DamageKind::Index => ErrorCode::Corrupt,
        };
        Self::new(code, format!("{:?} at offset {}: {}", damage.kind, damage.offset, damage.detail))
    }
}

/// Opens a slice. See [`Recovery::step`].
#[derive(Debug)]
pub struct Recovery {
    _skeleton: (),
}

impl Recovery {
    /// Opens the slice of `slice_bytes`; refuses another cluster's, and another store's if one is named.
    pub fn new(slice_bytes: u64, cluster: Uuid, store: Option<Uuid>) -> Self {
        let _ = (slice_bytes, cluster, store);
        todo!()
    }

    /// Goes on with the result of the last need. After `Done` or an error it must not be called again.
    pub fn step(&mut self, input: Input<'_>) -> Result<Need, Damage> {
        let _ = input;
        todo!()
    }
}
