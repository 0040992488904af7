//! Verifies the whole namespace, for `corefs fsck` and for tests: every invariant of the crate's head, by name.
//!
//! It reads every key once, a page at a time. As long as the store keeps one snapshot for it, findings are exact; a scan
//! that outlives its snapshot goes on at a newer one and says so ([`Checked::snapshots`]): on a namespace in use, what changed in
//! between can then show as a finding. Memory: about 100 bytes an inode.

mod scan;
mod tree;

use crate::key::Keys;
use crate::namespace::Namespace;
use crate::outside::Outside;
use corefs_kv::KvEngine;
use corefs_wire::{InodeId, Result};
use std::collections::BTreeSet;
use std::fmt;

/// Findings that are told one by one; more are only counted.
pub const FINDINGS_MAX: usize = 10_000;

/// What is wrong. The name is stable; `Display` of the finding says where.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Damage {
    /// There is no file system here, or no root directory.
    NotFormatted,
    /// A key or value that no version of this program wrote.
    Unreadable,
    /// An entry leads to an inode that isn't there.
    DanglingEntry,
    /// An entry hangs in something that is no directory.
    EntryWithoutDirectory,
    /// An entry has a name that can't be.
    InvalidName,
    /// An entry says another kind than its inode.
    WrongEntryKind,
    /// A link count that isn't the number of entries.
    WrongLinkCount,
    /// An inode without names that isn't in the garbage queue.
    LostInode,
    /// A directory that no entry leads to.
    OrphanDirectory,
    /// A directory with more than one entry.
    SeveralNames,
    /// A directory that points back at another parent than the one that names it.
    WrongParent,
    /// A directory from which parents don't lead to the root.
    UnreachableDirectory,
    /// A directory's counts of entries or subdirectories are not what it has.
    WrongDirectoryCounts,
    /// Times or counts of a directory that isn't there.
    StrayDirectoryRow,
    /// A file without a layout.
    NoLayout,
    /// An inode whose number was never given out.
    UnallocatedInode,
    /// A session of an inode that isn't there.
    SessionWithoutInode,
    /// A session whose client isn't listed, so that it would never be settled.
    SessionWithoutClient,
    /// Bytes of an inode that isn't there, or keeps none, or not as many.
    StrayBytes,
    /// An extended attribute of an inode that isn't there.
    StrayAttribute,
    /// An inode that says wrongly which extended attributes it has.
    WrongMarks,
    /// A lock on an inode that isn't there, or of a client that isn't listed, so that it would never go.
    StrayLock,
    /// A garbage row that doesn't fit its inode.
    WrongGarbage,
    /// The list of truncations in progress doesn't fit an inode.
    WrongTrimming,
    /// The count of inodes isn't their number.
    WrongInodeCount,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub damage: Damage,
    /// Which inode, entry or row, and what was expected there.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.damage, self.detail)
    }
}

/// What a check went through and found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Checked {
    pub inodes: u64,
    pub directories: u64,
    pub entries: u64,
    pub sessions: u64,
    pub garbage: u64,
    /// Bytes of all files, as their lengths say.
    pub bytes: u64,
    /// 1: everything was read at one snapshot.
    pub snapshots: u64,
    /// Inodes that may have chunks: files, and what is still to be removed. Chunks of others are nobody's.
    pub files: BTreeSet<InodeId>,
    pub findings: Vec<Finding>,
    /// Findings beyond [`FINDINGS_MAX`].
    pub untold: u64,
}

impl Checked {
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.untold == 0
    }

    pub(crate) fn find(&mut self, damage: Damage, detail: impl Into<String>) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding { damage, detail: detail.into() });
        } else {
            self.untold += 1;
        }
    }
}

/// Checks everything of the file system with these keys; needs nothing but the store. An error means that the check
/// itself could not be finished.
pub async fn check<E: KvEngine>(kv: &E, keys: &Keys) -> Result<Checked> {
    let (tree, mut checked) = scan::scan(kv, keys).await?;
    tree.judge(&mut checked);
    Ok(checked)
}

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// [`check()`] of this file system.
    pub async fn check(&self) -> Result<Checked> {
        check(&self.kv, &self.keys).await
    }
}
