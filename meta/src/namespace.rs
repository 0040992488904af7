//! The namespace over one store, and the reads and writes that its operations share.

use crate::dirent::Dirent;
use crate::gate::Gate;
use crate::inode::{DirectoryState, Inode, Stat};
use crate::inode_alloc::InodeIds;
use crate::key::Keys;
use crate::outside::Outside;
use crate::session::Session;
use corefs_kv::{Atomic, Isolation, KvEngine, Transaction, retry};
use corefs_wire::control::meta::Kind;
use corefs_wire::{Error, ErrorCode, InodeId, ROOT_INODE, Result};

/// The version of everything below the keys' prefix; a store of another is refused.
const FORMAT_VERSION: u8 = 1;

/// One file system over store `E`, with `O` for the world outside.
pub struct Namespace<E, O> {
    pub(crate) kv: E,
    pub(crate) keys: Keys,
    pub(crate) outside: O,
    pub(crate) ids: InodeIds,
    /// Inodes whose chunks this server is cutting.
    pub(crate) trimming: Gate<InodeId>,
}

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// File system `fs` of the store, which may still be empty: then [`format`](Self::format) comes first.
    pub fn new(kv: E, fs: u32, outside: O) -> Self {
        Self { kv, keys: Keys::new(fs), outside, ids: InodeIds::default(), trimming: Gate::default() }
    }

    pub fn kv(&self) -> &E {
        &self.kv
    }

    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    pub fn outside(&self) -> &O {
        &self.outside
    }

    /// Creates the root directory unless it is there: any number of servers may do so at once, at every start.
    /// `BadFormat` for a file system of another version.
    pub async fn format(&self) -> Result<()> {
        let now = self.outside.now();
        retry::run_repeatable(&self.kv, async |txn: &mut E::Txn| {
            match txn.get(&self.keys.formatted(), Isolation::Serializable).await?.as_deref() {
                Some([FORMAT_VERSION]) => return Ok(()),
                Some(other) => {
                    let found = other.first().copied().unwrap_or(0);
                    let what = "a file system of another version";
                    return Err(Error::mismatch(
                        ErrorCode::BadFormat,
                        FORMAT_VERSION.into(),
                        found.into(),
                        what,
                    ));
                }
                None => {}
            }
            let root = Inode { mode: 0o755, parent: ROOT_INODE, ..Inode::new(Kind::Directory, now) };
            txn.set(&self.keys.inode(ROOT_INODE), &root.encode());
            self.count_inodes(txn, ROOT_INODE, 1);
            txn.set(&self.keys.formatted(), &[FORMAT_VERSION]);
            Ok(())
        })
        .await
    }

    /// Runs a body that only reads, at one snapshot.
    pub(crate) async fn reading<T>(&self, body: impl AsyncFnMut(&mut E::Txn) -> Result<T>) -> Result<T> {
        retry::run(&self.kv, body).await
    }

    pub(crate) async fn inode(&self, txn: &mut E::Txn, id: InodeId, isolation: Isolation) -> Result<Inode> {
        let value = txn.get(&self.keys.inode(id), isolation).await?;
        Inode::decode(&value.ok_or(ErrorCode::NoSuchInode)?).map_err(|error| error.of(id))
    }

    /// What callers see of some inodes, `None` for those that aren't there, without conflicts. One round trip for
    /// inodes of known kind; of those whose kind isn't known, directories cost a second one for all of them.
    pub(crate) async fn stats(
        &self,
        txn: &mut E::Txn,
        wanted: &[(InodeId, Option<Kind>)],
    ) -> Result<Vec<Option<Stat>>> {
        let is_directory = |kind: Option<Kind>| kind == Some(Kind::Directory);
        let mut keys = Vec::with_capacity(wanted.len());
        for (id, kind) in wanted {
            keys.push(self.keys.inode(*id));
            if is_directory(*kind) {
                keys.extend([self.keys.directory_touched(*id), self.keys.directory_counts(*id)]);
            }
        }
        let mut values = Values::new(txn.get_many(&keys, Isolation::Snapshot).await?);
        let mut stats = Vec::with_capacity(wanted.len());
        let mut unknown = Vec::new();
        for (id, kind) in wanted {
            let inode = values.inode().map_err(|error| error.of(id))?;
            let directory = match is_directory(*kind) {
                true => values.directory_state()?,
                false => DirectoryState::default(),
            };
            if kind.is_none() && inode.as_ref().is_some_and(Inode::is_directory) {
                unknown.push(stats.len());
            }
            stats.push(inode.map(|inode| Stat { id: *id, inode, directory }));
        }
        self.fill_directories(txn, &mut stats, &unknown).await?;
        Ok(stats)
    }

    /// Reads times and counts of the directories at `positions`.
    async fn fill_directories(
        &self,
        txn: &mut E::Txn,
        stats: &mut [Option<Stat>],
        positions: &[usize],
    ) -> Result<()> {
        if positions.is_empty() {
            return Ok(());
        }
        let mut keys = Vec::with_capacity(2 * positions.len());
        for stat in positions.iter().filter_map(|at| stats[*at].as_ref()) {
            keys.extend([self.keys.directory_touched(stat.id), self.keys.directory_counts(stat.id)]);
        }
        let mut values = Values::new(txn.get_many(&keys, Isolation::Snapshot).await?);
        for at in positions {
            if let Some(stat) = &mut stats[*at] {
                stat.directory = values.directory_state()?;
            }
        }
        Ok(())
    }

    /// What callers see of one inode; `kind` as far as it is known.
    pub(crate) async fn stat(&self, txn: &mut E::Txn, id: InodeId, kind: Option<Kind>) -> Result<Stat> {
        let stat = self.stats(txn, &[(id, kind)]).await?.pop().flatten();
        stat.ok_or_else(|| Error::new(ErrorCode::NoSuchInode, id.to_string()))
    }

    pub(crate) fn put(&self, txn: &mut E::Txn, id: InodeId, inode: &Inode) {
        txn.set(&self.keys.inode(id), &inode.encode());
    }

    /// Adds to the count of inodes.
    pub(crate) fn count_inodes(&self, txn: &mut E::Txn, id: InodeId, delta: i64) {
        txn.add_i64(&self.keys.inode_count(id), delta);
    }

    /// Notes that a directory's entries changed `now`, and by how many.
    pub(crate) fn touch_directory(
        &self,
        txn: &mut E::Txn,
        directory: InodeId,
        now: i64,
        entries: i64,
        subdirectories: i64,
    ) {
        // A clock before 1970 would be the largest number there is.
        txn.max_u64(&self.keys.directory_touched(directory), u64::try_from(now).unwrap_or(0));
        if entries != 0 || subdirectories != 0 {
            let delta = DirectoryState::delta(entries, subdirectories);
            txn.atomic(Atomic::Add, &self.keys.directory_counts(directory), &delta);
        }
    }

    /// Removes all that is stored of a directory, which has no entries.
    pub(crate) fn clear_directory(&self, txn: &mut E::Txn, id: InodeId, inode: &Inode) {
        self.clear_inode(txn, id, inode);
        txn.clear(&self.keys.directory_touched(id));
        txn.clear(&self.keys.directory_counts(id));
    }

    /// Removes the record of an inode and what hangs on it, and takes it off the count.
    pub(crate) fn clear_inode(&self, txn: &mut E::Txn, id: InodeId, inode: &Inode) {
        txn.clear(&self.keys.inode(id));
        if inode.marks.xattrs {
            txn.clear_range(&self.keys.xattrs(id));
        }
        if inode.is_file() {
            txn.clear(&self.keys.locks(id));
        }
        if inode.inline {
            txn.clear(&self.keys.inline(id));
        }
        self.count_inodes(txn, id, -1);
    }

    /// Begins a session; it is the caller's word that the inode is there (read serializably).
    pub(crate) fn begin_session(&self, txn: &mut E::Txn, id: InodeId, number: u64, session: &Session) {
        txn.set(&self.keys.session(id, number), &session.encode());
        txn.set(&self.keys.client(session.client), &[]);
    }

    /// A number for a new session: never 0, which means none.
    pub(crate) fn new_session_number(&self) -> u64 {
        self.outside.random().max(1)
    }
}

/// Values of a round of reads, taken in the order in which their keys were asked for.
pub(crate) struct Values(std::vec::IntoIter<Option<Vec<u8>>>);

impl Values {
    pub fn new(values: Vec<Option<Vec<u8>>>) -> Self {
        Self(values.into_iter())
    }

    pub fn raw(&mut self) -> Option<Vec<u8>> {
        self.0.next().flatten()
    }

    pub fn inode(&mut self) -> Result<Option<Inode>> {
        self.raw().as_deref().map(Inode::decode).transpose()
    }

    pub fn expect_inode(&mut self) -> Result<Inode> {
        self.inode()?.ok_or_else(|| ErrorCode::NoSuchInode.into())
    }

    /// An inode that must be a directory.
    pub fn directory(&mut self) -> Result<Inode> {
        let inode = self.expect_inode()?;
        if inode.is_directory() { Ok(inode) } else { Err(ErrorCode::NotDirectory.into()) }
    }

    pub fn dirent(&mut self) -> Result<Option<Dirent>> {
        self.raw().as_deref().map(Dirent::decode).transpose()
    }

    pub fn session(&mut self) -> Result<Option<Session>> {
        self.raw().as_deref().map(Session::decode).transpose()
    }

    /// From the touched and the counts key.
    pub fn directory_state(&mut self) -> Result<DirectoryState> {
        let (touched, counts) = (self.raw(), self.raw());
        DirectoryState::decode(touched.as_deref(), counts.as_deref())
    }
}
