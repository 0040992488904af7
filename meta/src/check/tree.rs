//! Holds what was read against each other. Pure.

use super::{Checked, Damage};
use crate::dirent::Dirent;
use crate::gc::Garbage;
use crate::inode::{DirectoryState, Inode, Marks};
use crate::inode_alloc::block_of;
use crate::posix_acl;
use crate::trash::TRASH_INODE;
use corefs_wire::control::meta::Kind;
use corefs_wire::{ClientId, InodeId, ROOT_INODE};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// What was read about an inode, and what refers to it.
pub(super) struct Noted {
    kind: Kind,
    nlink: u32,
    /// Where a directory says that it hangs.
    parent: u64,
    trims: bool,
    /// Bytes of a file that are kept with it at most.
    inline: Option<u64>,
    /// Entries that lead here, and the directory of the last one.
    names: u32,
    named_in: u64,
    /// Of a directory: what it has, and what its counts say.
    has: (u64, u64),
    counts: (u64, u64),
    in_garbage: bool,
    listed_trimming: bool,
    /// Extended attributes that it says it has, and that were found.
    marks: Marks,
    found: Marks,
}

impl Noted {
    pub fn new(inode: &Inode) -> Self {
        Self {
            kind: inode.kind,
            nlink: inode.nlink,
            parent: inode.parent.0,
            trims: inode.trim_to.is_some(),
            inline: inode.inline.then_some(inode.size),
            names: 0,
            named_in: 0,
            has: (0, 0),
            counts: (0, 0),
            in_garbage: false,
            listed_trimming: false,
            marks: inode.marks,
            found: Marks::default(),
        }
    }

    fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }
}

/// Whether it has a number of its own and no name: the root, and the trash, which says that it hangs there.
fn is_fixed(id: u64) -> bool {
    id == ROOT_INODE.0 || id == TRASH_INODE.0
}

/// Everything that was read.
#[derive(Default)]
pub(super) struct Tree {
    pub inodes: HashMap<u64, Noted>,
    pub clients: BTreeSet<ClientId>,
    /// The next block of each lane.
    pub lanes: BTreeMap<u64, u64>,
    /// How many inodes there are, says the count.
    pub counted: i64,
    pub formatted: bool,
}

impl Tree {
    pub fn note_entry(
        &mut self,
        directory: u64,
        dirent: Dirent,
        shown: impl Fn() -> String,
        checked: &mut Checked,
    ) {
        match self.inodes.get_mut(&directory) {
            Some(parent) if parent.is_directory() => {
                parent.has.0 += 1;
                parent.has.1 += u64::from(dirent.is_directory());
            }
            _ => checked.find(Damage::EntryWithoutDirectory, shown()),
        }
        let Some(inode) = self.inodes.get_mut(&dirent.inode.0) else {
            checked.find(Damage::DanglingEntry, format!("{} leads to {}", shown(), dirent.inode));
            return;
        };
        inode.names += 1;
        inode.named_in = directory;
        if inode.kind != dirent.kind {
            let what = format!("{} says {:?}, {} is {:?}", shown(), dirent.kind, dirent.inode, inode.kind);
            checked.find(Damage::WrongEntryKind, what);
        }
    }

    fn directory(&mut self, id: u64, checked: &mut Checked) -> Option<&mut Noted> {
        let directory = self.inodes.get_mut(&id).filter(|inode| inode.is_directory());
        if directory.is_none() {
            checked.find(Damage::StrayDirectoryRow, format!("inode-{id} is no directory"));
        }
        directory
    }

    pub fn note_counts(&mut self, id: u64, state: DirectoryState, checked: &mut Checked) {
        if let Some(directory) = self.directory(id, checked) {
            directory.counts = (state.entries, state.subdirectories);
        }
    }

    pub fn note_touched(&mut self, id: u64, checked: &mut Checked) {
        self.directory(id, checked);
    }

    pub fn note_session(&mut self, inode: u64, number: u64, client: ClientId, checked: &mut Checked) {
        let what = format!("session {number:x} of {client} on inode-{inode}");
        if !self.clients.contains(&client) {
            checked.find(Damage::SessionWithoutClient, what.clone());
        }
        if !self.inodes.contains_key(&inode) {
            checked.find(Damage::SessionWithoutInode, what);
        }
    }

    pub fn note_xattr(&mut self, id: u64, name: &[u8], checked: &mut Checked) {
        let Some(inode) = self.inodes.get_mut(&id) else {
            let shown = String::from_utf8_lossy(name);
            checked.find(Damage::StrayAttribute, format!("{shown} of inode-{id}, which isn't there"));
            return;
        };
        inode.found.xattrs = true;
        inode.found.access_list |= name == posix_acl::ACCESS;
        inode.found.default_list |= name == posix_acl::DEFAULT;
    }

    pub fn note_inline(&mut self, id: u64, bytes: usize, checked: &mut Checked) {
        let most = self.inodes.get(&id).and_then(|inode| inode.inline);
        if most.is_none_or(|most| bytes as u64 > most) {
            let what =
                format!("{bytes} bytes are kept with inode-{id}, which can have {}", most.unwrap_or(0));
            checked.find(Damage::StrayBytes, what);
        }
    }

    pub fn note_lock(&mut self, id: u64, client: ClientId, checked: &mut Checked) {
        if !self.clients.contains(&client) || !self.inodes.contains_key(&id) {
            checked.find(Damage::StrayLock, format!("of {client} on inode-{id}"));
        }
    }

    pub fn note_garbage(&mut self, id: u64, row: Garbage, checked: &mut Checked) {
        let inode = self.inodes.get_mut(&id);
        match (row, inode) {
            (Garbage::Waiting, Some(inode)) => inode.in_garbage = true,
            (Garbage::Waiting, None) => {
                checked.find(Damage::WrongGarbage, format!("inode-{id} waits to be removed and isn't there"));
            }
            (Garbage::Doomed { .. }, None) => {}
            (Garbage::Doomed { .. }, Some(_)) => {
                checked.find(
                    Damage::WrongGarbage,
                    format!("inode-{id} is there and its chunks are being removed"),
                );
            }
        }
    }

    pub fn note_trimming(&mut self, id: u64, checked: &mut Checked) {
        match self.inodes.get_mut(&id) {
            Some(inode) if inode.trims => inode.listed_trimming = true,
            _ => {
                checked.find(Damage::WrongTrimming, format!("inode-{id} is listed and isn't being truncated"))
            }
        }
    }

    /// What can be said only when everything has been read.
    pub fn judge(&self, checked: &mut Checked) {
        let root = self.inodes.get(&ROOT_INODE.0);
        if !self.formatted || !root.is_some_and(Noted::is_directory) {
            checked.find(Damage::NotFormatted, "there is no root directory, or it was never finished");
        }
        let mut ids: Vec<&u64> = self.inodes.keys().collect();
        ids.sort_unstable();
        for id in &ids {
            let inode = &self.inodes[id];
            match inode.kind {
                Kind::Directory => self.judge_directory(**id, inode, checked),
                _ => Self::judge_other(**id, inode, checked),
            }
            if inode.trims && !inode.listed_trimming {
                checked
                    .find(Damage::WrongTrimming, format!("inode-{id} is being truncated and isn't listed"));
            }
            if inode.marks != inode.found {
                let what = format!("inode-{id} says {:?} and has {:?}", inode.marks, inode.found);
                checked.find(Damage::WrongMarks, what);
            }
            let (lane, block) = block_of(InodeId(**id));
            if !is_fixed(**id) && self.lanes.get(&lane).is_none_or(|next| block >= *next) {
                checked
                    .find(Damage::UnallocatedInode, format!("inode-{id} is of block {block}, lane {lane}"));
            }
        }
        self.judge_reach(&ids, checked);
        let there = i64::try_from(self.inodes.len()).unwrap_or(i64::MAX);
        if self.counted != there {
            let what = format!("{} are counted, {there} are there", self.counted);
            checked.find(Damage::WrongInodeCount, what);
        }
    }

    fn judge_directory(&self, id: u64, inode: &Noted, checked: &mut Checked) {
        let is_root = is_fixed(id);
        match inode.names {
            0 if is_root => {}
            0 => checked
                .find(Damage::OrphanDirectory, format!("inode-{id}, whose parent is inode-{}", inode.parent)),
            1 if !is_root => {}
            names => checked.find(Damage::SeveralNames, format!("directory inode-{id} has {names} entries")),
        }
        let parent = if is_root { ROOT_INODE.0 } else { inode.named_in };
        if (is_root || inode.names == 1) && inode.parent != parent {
            let what = format!("inode-{id} points to inode-{}, inode-{parent} names it", inode.parent);
            checked.find(Damage::WrongParent, what);
        }
        if inode.has != inode.counts {
            let what =
                format!("inode-{id}: entries and directories {:?}, counted {:?}", inode.has, inode.counts);
            checked.find(Damage::WrongDirectoryCounts, what);
        }
        if inode.in_garbage {
            checked.find(Damage::WrongGarbage, format!("directory inode-{id} waits to be removed"));
        }
    }

    fn judge_other(id: u64, inode: &Noted, checked: &mut Checked) {
        if inode.nlink != inode.names {
            let what = format!("inode-{id} counts {} names and has {}", inode.nlink, inode.names);
            checked.find(Damage::WrongLinkCount, what);
        }
        match (inode.nlink, inode.in_garbage) {
            (0, false) => checked.find(Damage::LostInode, format!("inode-{id}")),
            (0, true) if inode.kind == Kind::File => {}
            (_, true) => checked.find(Damage::WrongGarbage, format!("inode-{id} has names, or is no file")),
            (_, false) => {}
        }
    }

    /// Every directory must lead to the root. Each is walked over once.
    fn judge_reach(&self, ids: &[&u64], checked: &mut Checked) {
        let mut reached: HashSet<u64> = [ROOT_INODE.0].into();
        let mut lost: HashSet<u64> = HashSet::new();
        for id in ids {
            if !self.inodes[id].is_directory() {
                continue;
            }
            let (mut at, mut way) = (**id, Vec::new());
            let mut on_way = HashSet::new();
            let leads = loop {
                if reached.contains(&at) {
                    break true;
                }
                if lost.contains(&at) || !on_way.insert(at) {
                    break false;
                }
                way.push(at);
                match self.inodes.get(&at) {
                    Some(inode) if inode.is_directory() => at = inode.parent,
                    _ => break false,
                }
            };
            let side = if leads { &mut reached } else { &mut lost };
            side.extend(way);
            if !leads {
                checked.find(Damage::UnreachableDirectory, format!("inode-{id} doesn't lead to the root"));
            }
        }
    }
}
