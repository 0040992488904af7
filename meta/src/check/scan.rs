//! Reads every key and notes what it says.

use super::tree::{Noted, Tree};
use super::{Checked, Damage};
use crate::dirent::{Dirent, check_name};
use crate::gc::Garbage;
use crate::inline::Inline;
use crate::inode::{DirectoryState, Inode};
use crate::key::{Key, Keys, table};
use crate::lock::Locks;
use crate::mark::Mark;
use crate::once::Outcome;
use crate::posix_acl::{self, Acl};
use crate::session::Session;
use corefs_kv::{Direction, Isolation, KeyRange, KvEngine, RangePage, Transaction};
use corefs_wire::{Class, InodeId, Result};
use std::time::Duration;

const PAGE: usize = 4096;
/// How long a page that can't be read is tried again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Inodes first, so that everything else can be held against them.
const ORDER: [u8; 16] = [
    table::INODE,
    table::INLINE,
    table::FORMATTED,
    table::ID_LANE,
    table::INODE_COUNT,
    table::DIRENT,
    table::DIRECTORY_COUNTS,
    table::DIRECTORY_TOUCHED,
    table::CLIENT,
    table::SESSION,
    table::XATTR,
    table::LOCKS,
    table::GARBAGE,
    table::TRIMMING,
    table::REPLY,
    table::LOW_WATER,
];

pub(super) async fn scan<E: KvEngine>(kv: &E, keys: &Keys) -> Result<(Tree, Checked)> {
    let mut reader = Reader { kv, txn: kv.begin(), snapshots: 1 };
    let (mut tree, mut checked) = (Tree::default(), Checked::default());
    let strange = (0..=u8::MAX).filter(|letter| !ORDER.contains(letter));
    for letter in ORDER.into_iter().chain(strange) {
        let mut rest = keys.table(letter);
        loop {
            let page = reader.page(&rest).await?;
            for (key, value) in &page.pairs {
                if let Err(error) = note(keys, key, value, &mut tree, &mut checked) {
                    checked.find(Damage::Unreadable, format!("key {key:02x?}: {error}"));
                }
            }
            match page.pairs.last() {
                Some((last, _)) if page.more => rest = rest.after(last, Direction::Forward),
                _ => break,
            }
        }
    }
    checked.snapshots = reader.snapshots;
    Ok((tree, checked))
}

/// Reads at one snapshot for as long as the store keeps it.
struct Reader<'a, E: KvEngine> {
    kv: &'a E,
    txn: E::Txn,
    snapshots: u64,
}

impl<E: KvEngine> Reader<'_, E> {
    async fn page(&mut self, range: &KeyRange) -> Result<RangePage> {
        let started = self.kv.now();
        let mut attempt = 0;
        loop {
            match self.txn.range(range, PAGE, Direction::Forward, Isolation::Snapshot).await {
                Err(error) if error.class() == Class::Retry && self.kv.now() - started < PATIENCE => {
                    attempt += 1;
                    self.kv.backoff(attempt).await;
                    self.txn = self.kv.begin();
                    self.snapshots += 1;
                }
                outcome => return outcome,
            }
        }
    }
}

/// Notes one pair.
fn note(keys: &Keys, key: &[u8], value: &[u8], tree: &mut Tree, checked: &mut Checked) -> Result<()> {
    match keys.parse(key)? {
        Key::Inode(id) => note_inode(id.0, &Inode::decode(value)?, tree, checked),
        Key::Inline(id) => tree.note_inline(id.0, Inline::decode(value)?.bytes().len(), checked),
        Key::Dirent(directory, name) => {
            checked.entries += 1;
            let shown = || format!("entry {:?} of {directory}", String::from_utf8_lossy(&name));
            if let Err(error) = check_name(&name) {
                checked.find(Damage::InvalidName, format!("{}: {error}", shown()));
            }
            tree.note_entry(directory.0, Dirent::decode(value)?, shown, checked);
        }
        Key::DirectoryCounts(id) => {
            let state = DirectoryState::decode(None, Some(value))?;
            tree.note_counts(id.0, state, checked);
        }
        Key::DirectoryTouched(id) => {
            DirectoryState::decode(Some(value), None)?;
            tree.note_touched(id.0, checked);
        }
        Key::Session(inode, number) => {
            checked.sessions += 1;
            let session = Session::decode(value)?;
            tree.note_session(inode.0, number, session.client, checked);
        }
        Key::Xattr(id, name) => {
            if name == posix_acl::ACCESS || name == posix_acl::DEFAULT {
                Acl::parse(value)?;
            }
            tree.note_xattr(id.0, &name, checked);
        }
        Key::Locks(id) => {
            for client in Locks::decode(value)?.clients() {
                tree.note_lock(id.0, client, checked);
            }
        }
        Key::Garbage(id) => {
            checked.garbage += 1;
            checked.files.insert(id);
            tree.note_garbage(id.0, Garbage::decode(value)?, checked);
        }
        Key::Trimming(id) => tree.note_trimming(id.0, checked),
        Key::Client(client) => drop(tree.clients.insert(client)),
        Key::IdLane(lane) => drop(tree.lanes.insert(lane.into(), little_endian(value)?)),
        Key::InodeCount(_) => tree.counted = tree.counted.wrapping_add(little_endian(value)? as i64),
        Key::Formatted => tree.formatted = true,
        Key::LowWater(..) => drop(Mark::decode(value)?),
        Key::Reply(..) => Outcome::verify(value)?,
    }
    Ok(())
}

fn little_endian(value: &[u8]) -> Result<u64> {
    let wrong = |_| corefs_wire::Error::new(corefs_wire::ErrorCode::Corrupt, "not eight bytes");
    value.try_into().map(u64::from_le_bytes).map_err(wrong)
}

fn note_inode(id: u64, inode: &Inode, tree: &mut Tree, checked: &mut Checked) {
    checked.inodes += 1;
    checked.directories += u64::from(inode.is_directory());
    checked.bytes = checked.bytes.saturating_add(inode.size);
    if inode.is_file() && !(inode.inline && inode.has_no_chunks()) {
        checked.files.insert(InodeId(id));
    }
    if inode.is_file() && inode.layout.is_none() {
        checked.find(Damage::NoLayout, format!("inode-{id} is a file"));
    }
    tree.inodes.insert(id, Noted::new(inode));
}
