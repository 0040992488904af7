//! Whole trees that go: one commit takes them away, and their names are removed in the background.
//!
//! The trash is a directory like any other, with a number of its own and no name: nobody's path leads there. Removing a tree moves it in, under its
//! own number as its name, so that all that is true of directories stays true of what is in it: a rename out of it, a file made by a
//! program that still works there, a crash and a second server at it are nothing new. It is made with the first tree that goes.
//!
//! Whoever empties it takes names from directories that are in it, many in one transaction: what isn't a directory loses a name, what is one moves up into the trash
//! itself, so that it is never more than one level deep; and a directory goes with its last names. Each transaction reads that the directory is still there: one that somebody
//! moved out is his again. What is damaged stays, is told, and keeps nothing else.

use crate::at_once::all_of;
use crate::dirent::Dirent;
use crate::inode::Inode;
use crate::namespace::Namespace;
use crate::outside::Outside;
use corefs_kv::{Direction, Isolation, KeyRange, KvEngine, Transaction, retry};
use corefs_wire::control::meta::Kind;
use corefs_wire::{Error, ErrorCode, InodeId, ROOT_INODE, Result};
use std::collections::{BTreeMap, HashMap};

/// The trash. It says that it hangs in the root, so that ways up from it end there.
pub const TRASH_INODE: InodeId = InodeId(2);

/// Names in one transaction: bounds its size and what a conflict costs.
const BATCH: usize = 64;
/// Directories worked on at once.
const AT_ONCE: usize = 8;
/// Transactions in one of them before others have their turn.
const TURN: usize = 8;
/// Places in directories that are remembered: in others, the next turn begins anew.
const PLACES_MAX: usize = 4096;

/// Where the next round goes on.
#[derive(Default, Debug)]
pub struct TrashCursor {
    /// In the trash.
    after: Option<Vec<u8>>,
    /// In directories with more names than one turn takes.
    within: BTreeMap<u64, Vec<u8>>,
    /// Whether anything was done in this pass.
    progress: bool,
}

/// What a round did.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Emptied {
    pub removed: usize,
    /// Whether there is more to do at once.
    pub more: bool,
    /// Names and directories that stay for now, and why the last of them does.
    pub failed: usize,
    pub error: Option<String>,
}

impl Emptied {
    fn fail(&mut self, error: &Error) {
        self.failed += 1;
        self.error = Some(error.to_string());
    }
}

/// What one transaction did in a directory.
#[derive(Default)]
struct Cleared {
    removed: usize,
    /// Directories that moved up.
    raised: usize,
    /// The last name that was looked at, if there are others behind it.
    after: Option<Vec<u8>>,
    /// Nothing is left to do there: the directory is gone, or somebody has moved it away.
    done: bool,
    failures: Vec<Error>,
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
        self.raise(txn, dirent, inode, now);
        self.touch_directory(txn, TRASH_INODE, now, 1, 1);
    }

    fn raise(&self, txn: &mut E::Txn, dirent: Dirent, inode: Inode, now: i64) {
        let entry = self.keys.dirent(TRASH_INODE, dirent.inode.to_string().as_bytes());
        self.hang(txn, dirent, inode, TRASH_INODE, &entry, now);
    }

    /// One round: a turn in each of some directories.
    pub async fn empty_trash(&self, cursor: &mut TrashCursor) -> Result<Emptied> {
        let whole = self.keys.dirents(TRASH_INODE);
        let rest = match &cursor.after {
            Some(key) => whole.after(key, Direction::Forward),
            None => whole,
        };
        let page = self
            .reading(async |txn: &mut E::Txn| {
                txn.range(&rest, BATCH, Direction::Forward, Isolation::Snapshot).await
            })
            .await?;
        let mut emptied = Emptied::default();
        let mut turns = Vec::new();
        for (_, value) in &page.pairs {
            match Dirent::decode(value) {
                Ok(dirent) => {
                    let (id, after) = (dirent.inode, cursor.within.remove(&dirent.inode.0));
                    turns.push(async move { (id, self.turn(id, after).await) });
                }
                Err(error) => emptied.fail(&error.of(TRASH_INODE)),
            }
        }
        for (id, (cleared, outcome)) in all_of(turns.into_iter(), AT_ONCE).await {
            emptied.removed += cleared.removed;
            cursor.progress |= cleared.removed + cleared.raised > 0;
            cleared.failures.iter().chain(outcome.as_ref().err()).for_each(|error| emptied.fail(error));
            if cursor.within.len() < PLACES_MAX {
                cursor.within.extend(cleared.after.map(|after| (id.0, after)));
            }
        }
        cursor.after = page.pairs.last().filter(|_| page.more).map(|(key, _)| key.clone());
        emptied.more = true;
        if cursor.after.is_none() && !std::mem::take(&mut cursor.progress) {
            // Else there is another pass: what moved up may lie before where this one was.
            (emptied.more, *cursor) = (false, TrashCursor::default());
        }
        Ok(emptied)
    }

    /// Some transactions in one directory, and what stopped them.
    async fn turn(&self, directory: InodeId, mut after: Option<Vec<u8>>) -> (Cleared, Result<()>) {
        let mut all = Cleared::default();
        for _ in 0..TURN {
            let cleared = match self.clear_some(directory, after.take()).await {
                Ok(cleared) => cleared,
                Err(error) => return (all, Err(error)),
            };
            all.removed += cleared.removed;
            all.raised += cleared.raised;
            all.failures.extend(cleared.failures);
            all.after.clone_from(&cleared.after);
            all.done = cleared.done;
            if all.done || !all.failures.is_empty() {
                break;
            }
            // Behind the last name: from the first one again, for what came meanwhile, and for the directory itself.
            after = cleared.after;
        }
        (all, Ok(()))
    }

    /// Takes the next names of a directory in the trash, and the directory with its last ones.
    async fn clear_some(&self, id: InodeId, after: Option<Vec<u8>>) -> Result<Cleared> {
        let whole = self.keys.dirents(id);
        let range: KeyRange = match &after {
            Some(key) => whole.after(key, Direction::Forward),
            None => whole,
        };
        retry::run_repeatable(&self.kv, async |txn: &mut E::Txn| {
            let mut cleared = Cleared::default();
            let value = txn.get(&self.keys.inode(id), Isolation::Serializable).await?;
            let directory = value.as_deref().map(Inode::decode).transpose().map_err(|error| error.of(id))?;
            let in_trash = |inode: &Inode| inode.is_directory() && inode.parent == TRASH_INODE;
            let Some(directory) = directory.filter(in_trash) else {
                // Gone, or somebody's again. An entry that leads nowhere goes; one that leads elsewhere is damage, and not ours.
                if value.is_none() {
                    self.drop_dangling(txn, id).await?;
                }
                return Ok(Cleared { done: true, ..cleared });
            };
            let page = txn.range(&range, BATCH, Direction::Forward, Isolation::Serializable).await?;
            let (removed, raised) = self.clear_page(txn, id, &page.pairs, &mut cleared.failures).await?;
            (cleared.removed, cleared.raised) = (removed, raised);
            if page.more {
                cleared.after = page.pairs.last().map(|(key, _)| key.clone());
            }
            if after.is_none() && !page.more && cleared.failures.is_empty() {
                self.clear_directory(txn, id, &directory);
                txn.clear(&self.keys.dirent(TRASH_INODE, id.to_string().as_bytes()));
                self.touch_directory(txn, TRASH_INODE, self.outside.now(), -1, -1);
                cleared.removed += 1;
                cleared.done = true;
            }
            Ok(cleared)
        })
        .await
    }

    /// Takes these names, and says how many led to other things than directories, and how many to directories, which move up. What can't be read or
    /// doesn't fit together is left.
    async fn clear_page(
        &self,
        txn: &mut E::Txn,
        directory: InodeId,
        pairs: &[(Vec<u8>, Vec<u8>)],
        failures: &mut Vec<Error>,
    ) -> Result<(usize, usize)> {
        let mut entries = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            match Dirent::decode(value) {
                Ok(dirent) => entries.push((key, dirent)),
                Err(error) => failures.push(error.of(directory)),
            }
        }
        let keys: Vec<Vec<u8>> = entries.iter().map(|(_, dirent)| self.keys.inode(dirent.inode)).collect();
        let values = txn.get_many(&keys, Isolation::Serializable).await?;
        // Two of them may be names of one file.
        let mut inodes: HashMap<InodeId, Inode> = HashMap::new();
        let (mut names, mut directories, mut raised) = (0, 0, 0);
        let now = self.outside.now();
        for ((entry, dirent), value) in entries.into_iter().zip(values) {
            let id = dirent.inode;
            if let (Some(value), false) = (value, inodes.contains_key(&id)) {
                match Inode::decode(&value) {
                    Ok(inode) => drop(inodes.insert(id, inode)),
                    Err(error) => {
                        failures.push(error.of(id));
                        continue;
                    }
                }
            }
            match inodes.get_mut(&id) {
                Some(inode)
                    if inode.kind != dirent.kind || inode.is_directory() && inode.parent != directory =>
                {
                    let what = format!("an entry of {directory} doesn't fit {id}, which it leads to");
                    failures.push(Error::new(ErrorCode::Corrupt, what));
                    continue;
                }
                Some(inode) if inode.is_directory() => {
                    self.raise(txn, dirent, inode.clone(), now);
                    raised += 1;
                }
                Some(inode) => {
                    self.drop_name(txn, id, inode.clone(), now);
                    inode.nlink = inode.nlink.saturating_sub(1);
                }
                // It leads nowhere.
                None => {}
            }
            txn.clear(entry);
            names += 1;
            directories += i64::from(dirent.is_directory());
        }
        if names > 0 {
            self.touch_directory(txn, directory, now, -names, -directories);
        }
        if raised > 0 {
            self.touch_directory(txn, TRASH_INODE, now, raised, raised);
        }
        Ok(((names - raised) as usize, raised as usize))
    }

    /// Takes the entry of the trash that leads to a directory which isn't there.
    async fn drop_dangling(&self, txn: &mut E::Txn, id: InodeId) -> Result<()> {
        let entry = self.keys.dirent(TRASH_INODE, id.to_string().as_bytes());
        if txn.get(&entry, Isolation::Serializable).await?.is_some() {
            txn.clear(&entry);
            self.touch_directory(txn, TRASH_INODE, self.outside.now(), -1, -1);
        }
        Ok(())
    }
}
