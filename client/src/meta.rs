//! Typed calls to the metadata servers.

use crate::{Attr, Changes, Credentials, Entry, Kind, Space};
use corefs_wire::control::meta::SetAttrFieldsT;
use corefs_wire::{InodeId, Result};

/// Flags of [`Meta::rename`], as renameat2(2).
pub const RENAME_NOREPLACE: u32 = 1;
pub const RENAME_EXCHANGE: u32 = 2;

/// What to create: anything but a hard link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewInode {
    pub kind: Kind,
    pub mode: u32,
    pub rdev: u32,
    /// Of symlinks.
    pub target: Vec<u8>,
    /// Refuse when the name exists, else return what is there.
    pub exclusive: bool,
    /// Also begin a write session (files).
    pub open: bool,
    /// 0: the cluster's choice.
    pub chunk_size: u32,
    pub stripe: u32,
}

impl NewInode {
    pub fn new(kind: Kind, mode: u32) -> Self {
        Self {
            kind,
            mode,
            rdev: 0,
            target: Vec::new(),
            exclusive: true,
            open: false,
            chunk_size: 0,
            stripe: 0,
        }
    }
}

/// What a create made or found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Created {
    pub attr: Attr,
    /// 0: none was asked for.
    pub session: u64,
    pub created: bool,
}

/// The metadata calls. Each is retried, at another server if need be, until the client's deadline; one that changes
/// something keeps its number while it is, so that it happens once.
#[derive(Clone)]
pub struct Meta {}

#[allow(unused_variables)]
impl Meta {
    pub async fn lookup(&self, who: &Credentials, parent: InodeId, name: &[u8]) -> Result<Attr> {
        todo!()
    }
    pub async fn get_attr(&self, who: &Credentials, inode: InodeId) -> Result<Attr> {
        todo!()
    }
    /// Each inode with its own result, in order.
    pub async fn get_attrs(&self, who: &Credentials, inodes: &[InodeId]) -> Result<Vec<Result<Attr>>> {
        todo!()
    }
    pub async fn create(
        &self,
        who: &Credentials,
        parent: InodeId,
        name: &[u8],
        node: &NewInode,
    ) -> Result<Created> {
        todo!()
    }
    /// Attributes, and the session if `write`.
    pub async fn open(
        &self,
        who: &Credentials,
        inode: InodeId,
        write: bool,
        truncate: bool,
    ) -> Result<(Attr, u64)> {
        todo!()
    }
    /// `length` 0 and `mtime` 0: nothing was written.
    pub async fn close(
        &self,
        who: &Credentials,
        inode: InodeId,
        session: u64,
        length: u64,
        mtime: i64,
        set: Option<SetAttrFieldsT>,
    ) -> Result<Attr> {
        todo!()
    }
    pub async fn sync_length(
        &self,
        who: &Credentials,
        inode: InodeId,
        session: u64,
        length: u64,
        mtime: i64,
    ) -> Result<Attr> {
        todo!()
    }
    /// Entries after `after`, and whether there are more.
    pub async fn read_dir(
        &self,
        who: &Credentials,
        inode: InodeId,
        after: &[u8],
        limit: u32,
        plus: bool,
    ) -> Result<(Vec<Entry>, bool)> {
        todo!()
    }
    pub async fn unlink(&self, who: &Credentials, parent: InodeId, name: &[u8]) -> Result<()> {
        todo!()
    }
    pub async fn rmdir(&self, who: &Credentials, parent: InodeId, name: &[u8]) -> Result<()> {
        todo!()
    }
    pub async fn rename(
        &self,
        who: &Credentials,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        flags: u32,
    ) -> Result<()> {
        todo!()
    }
    pub async fn link(
        &self,
        who: &Credentials,
        inode: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Attr> {
        todo!()
    }
    pub async fn read_link(&self, who: &Credentials, inode: InodeId) -> Result<Vec<u8>> {
        todo!()
    }
    /// Goes past files open here: most callers want [`Client::set_attr`](crate::Client::set_attr).
    pub async fn set_attr(&self, who: &Credentials, inode: InodeId, changes: Changes) -> Result<Attr> {
        todo!()
    }
    pub async fn statfs(&self) -> Result<Space> {
        todo!()
    }
}
