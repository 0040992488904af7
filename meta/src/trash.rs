//! Whole trees that go: one commit takes them away, and their names are removed in the background.
//!
//! The trash is a directory like any other, with a number of its own and no name: nobody's path leads there. Removing a tree moves it in, under its
//! own number as its name, so that all that is true of directories stays true of what is in it: a rename out of it, a file made by a
//! program that still works there, a crash and a second server at it are nothing new. It is made with the first tree that goes.
//!
//! Whoever empties it goes down by any way to a directory, removes what isn't a directory there, many names in one transaction, and directories when they are empty.
//! Several servers do it at once, each its own way, mostly. A directory that somebody moves out of the trash is his again: each transaction reads the way down to where
//! it removes, and a move rewrites the record of what it moves.

use crate::dirent::Dirent;
use crate::inode::Inode;
use crate::key::Key;
use crate::namespace::{Namespace, Values};
use crate::outside::Outside;
use corefs_kv::{Direction, Isolation, KvEngine, Transaction, retry};
use corefs_wire::control::meta::Kind;
use corefs_wire::{InodeId, ROOT_INODE, Result};
use std::collections::HashMap;

/// The trash. It says that it hangs in the root, so that ways up from it end there.
pub const TRASH_INODE: InodeId = InodeId(2);

/// Names looked at, and removed, in one transaction: bounds its size and what a conflict costs.
const BATCH: usize = 64;

/// What a round did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Emptied {
    pub removed: usize,
    /// Whether anything is left.
    pub more: bool,
}

/// A directory on the way down: what it is, where its entry is, and under which name.
struct Below {
    id: InodeId,
    parent: InodeId,
    name: Vec<u8>,
}

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// Moves a directory into the trash. `trash` is what was read of that, serializably. Its name where it was is the caller's to take.
    pub(crate) fn throw_away(
        &self,
        txn: &mut E::Txn,
        trash: Option<Inode>,
        dirent: Dirent,
        inode: Inode,
        now: i64,
    ) {
        if trash.is_none() {
            let made = Inode { mode: 0o700, parent: ROOT_INODE, ..Inode::new(Kind::Directory, now) };
            self.put(txn, TRASH_INODE, &made);
            self.count_inodes(txn, TRASH_INODE, 1);
        }
        let entry = self.keys.dirent(TRASH_INODE, dirent.inode.to_string().as_bytes());
        self.hang(txn, dirent, inode, TRASH_INODE, &entry, now);
        self.touch_directory(txn, TRASH_INODE, now, 1, 1);
    }

    /// Removes about `most` names of what was thrown away.
    pub async fn empty_trash(&self, most: usize) -> Result<Emptied> {
        let mut emptied = Emptied::default();
        let mut way: Vec<Below> = Vec::new();
        loop {
            let directory = way.last().map_or(TRASH_INODE, |below| below.id);
            let (directories, names) = self.some_names(directory).await?;
            if !names.is_empty() {
                match self.remove_names(&way, directory, &names).await? {
                    Some(removed) => emptied.removed += removed,
                    None => way.clear(),
                }
            } else if !directories.is_empty() {
                let at = self.outside.random() as usize % directories.len();
                let (name, dirent) = &directories[at];
                way.push(Below { id: dirent.inode, parent: directory, name: name.clone() });
            } else {
                if way.is_empty() {
                    return Ok(emptied);
                }
                match self.remove_empty(&way).await? {
                    true => emptied.removed += 1,
                    // It moved, or has names by now: down another way.
                    false => way.clear(),
                }
                way.pop();
            }
            if emptied.removed >= most {
                return Ok(Emptied { more: true, ..emptied });
            }
        }
    }

    /// The first names of a directory: those of directories, and others.
    async fn some_names(&self, directory: InodeId) -> Result<(Vec<(Vec<u8>, Dirent)>, Vec<Vec<u8>>)> {
        let range = self.keys.dirents(directory);
        let page = self
            .reading(async |txn: &mut E::Txn| {
                txn.range(&range, BATCH, Direction::Forward, Isolation::Snapshot).await
            })
            .await?;
        let (mut directories, mut names) = (Vec::new(), Vec::new());
        for (key, value) in &page.pairs {
            let Key::Dirent(_, name) = self.keys.parse(key)? else { continue };
            let dirent = Dirent::decode(value)?;
            match dirent.is_directory() {
                true => directories.push((name, dirent)),
                false => names.push(name),
            }
        }
        Ok((directories, names))
    }

    /// Whether each directory on the way still hangs in the one above it, the first of them in the trash.
    async fn leads_from_trash(&self, txn: &mut E::Txn, way: &[Below]) -> Result<bool> {
        let keys: Vec<Vec<u8>> = way.iter().map(|below| self.keys.inode(below.id)).collect();
        let mut values = Values::new(txn.get_many(&keys, Isolation::Serializable).await?);
        for below in way {
            if values.inode()?.is_none_or(|inode| !inode.is_directory() || inode.parent != below.parent) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes names that don't lead to directories, as unlink does, and returns how many there still were; `None` when the way is another.
    async fn remove_names(
        &self,
        way: &[Below],
        directory: InodeId,
        names: &[Vec<u8>],
    ) -> Result<Option<usize>> {
        let entries: Vec<Vec<u8>> = names.iter().map(|name| self.keys.dirent(directory, name)).collect();
        retry::run_repeatable(&self.kv, async |txn: &mut E::Txn| {
            if !self.leads_from_trash(txn, way).await? {
                return Ok(None);
            }
            let mut values = Values::new(txn.get_many(&entries, Isolation::Serializable).await?);
            let mut found = Vec::new();
            for entry in &entries {
                match values.dirent()? {
                    Some(dirent) if !dirent.is_directory() => found.push((entry, dirent.inode)),
                    _ => {}
                }
            }
            let keys: Vec<Vec<u8>> = found.iter().map(|(_, id)| self.keys.inode(*id)).collect();
            let mut values = Values::new(txn.get_many(&keys, Isolation::Serializable).await?);
            // Two of them may be names of one file.
            let mut inodes = HashMap::new();
            for (_, id) in &found {
                if let Some(inode) = values.inode()? {
                    inodes.insert(*id, inode);
                }
            }
            let now = self.outside.now();
            for (entry, id) in &found {
                txn.clear(entry);
                if let Some(inode) = inodes.get_mut(id) {
                    self.drop_name(txn, *id, inode.clone(), now);
                    inode.nlink = inode.nlink.saturating_sub(1);
                }
            }
            if !found.is_empty() {
                self.touch_directory(txn, directory, now, -(found.len() as i64), 0);
            }
            Ok(Some(found.len()))
        })
        .await
    }

    /// Removes the directory at the end of a way, which had no names. Says no if it has some by now, or is gone, or elsewhere.
    async fn remove_empty(&self, way: &[Below]) -> Result<bool> {
        let Some(below) = way.last() else { return Ok(false) };
        let entry = self.keys.dirent(below.parent, &below.name);
        let keys = [entry.clone(), self.keys.inode(below.id)];
        retry::run_repeatable(&self.kv, async |txn: &mut E::Txn| {
            let mut values = Values::new(txn.get_many(&keys, Isolation::Serializable).await?);
            let (dirent, inode) = (values.dirent()?, values.inode()?);
            let (Some(dirent), Some(inode)) = (dirent, inode) else { return Ok(false) };
            if !self.leads_from_trash(txn, way).await? {
                return Ok(false);
            }
            let names = self.keys.dirents(below.id);
            let names = txn.range(&names, 1, Direction::Forward, Isolation::Serializable).await?;
            if dirent.inode != below.id || !names.pairs.is_empty() {
                return Ok(false);
            }
            self.clear_directory(txn, below.id, &inode);
            txn.clear(&entry);
            self.touch_directory(txn, below.parent, self.outside.now(), -1, -1);
            Ok(true)
        })
        .await
    }
}
