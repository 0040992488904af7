//! The namespace by path, as `corefs fs` and programs use it. Paths are bytes, `/`-separated, from the root.

mod copy;
mod path;
mod tree;

use crate::client::Client;
use crate::file::{CreateOptions, File, OpenOptions};
use crate::meta::NewInode;
use crate::{Attr, Changes, Credentials, Entry, Kind, Space};
use corefs_wire::limits::PATH_MAX;
use corefs_wire::{Error, ErrorCode, InodeId, Result};

pub use path::Links;

/// Entries asked for at once.
const PAGE: u32 = 1000;

/// The namespace on behalf of someone. Cheap to make.
#[derive(Clone)]
pub struct Fs {
    client: Client,
    who: Credentials,
}

impl Fs {
    pub(crate) fn new(client: Client, who: Credentials) -> Self {
        Self { client, who }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn who(&self) -> &Credentials {
        &self.who
    }

    /// Follows symlinks.
    pub async fn stat(&self, path: &[u8]) -> Result<Attr> {
        self.resolve(path, Links::Follow).await
    }

    /// Doesn't follow the last one.
    pub async fn lstat(&self, path: &[u8]) -> Result<Attr> {
        self.resolve(path, Links::Keep).await
    }

    /// All entries with attributes, in name order, without `.` and `..`. Of anything but a directory: `NotDirectory`.
    pub async fn list(&self, path: &[u8]) -> Result<Vec<Entry>> {
        let directory = self.resolve(path, Links::Follow).await?;
        let mut all = Vec::new();
        loop {
            let after = all.last().map_or(Vec::new(), |entry: &Entry| entry.name.clone());
            let (page, more) = self.list_page(directory.inode, &after, PAGE).await?;
            let stuck = page.is_empty();
            all.extend(page);
            if !more || stuck {
                return Ok(all);
            }
        }
    }

    /// At most `limit` entries after the name `after` (empty: from the first), and whether there are more.
    pub async fn list_page(
        &self,
        directory: InodeId,
        after: &[u8],
        limit: u32,
    ) -> Result<(Vec<Entry>, bool)> {
        let page = self.client.read_dir(&self.who, directory, after, limit, true).await?;
        Ok((page.entries, page.more))
    }

    pub async fn mkdir(&self, path: &[u8], mode: u32) -> Result<Attr> {
        self.make(path, &NewInode::new(Kind::Directory, mode)).await
    }

    /// A file, symlink or empty directory.
    pub async fn remove(&self, path: &[u8]) -> Result<()> {
        let (parent, name) = self.resolve_parent(path).await?;
        let found = self.client.meta().lookup(&self.who, parent, &name).await?;
        match found.kind {
            Kind::Directory => self.client.meta().rmdir(&self.who, parent, &name, false).await,
            _ => self.client.unlink(&self.who, parent, &name).await,
        }
    }

    /// `flags`: [`RENAME_NOREPLACE`](crate::RENAME_NOREPLACE), [`RENAME_EXCHANGE`](crate::RENAME_EXCHANGE).
    pub async fn rename(&self, from: &[u8], to: &[u8], flags: u32) -> Result<()> {
        let (from_parent, from_name) = self.resolve_parent(from).await?;
        let (to_parent, to_name) = self.resolve_parent(to).await?;
        self.client.rename(&self.who, (from_parent, &from_name), (to_parent, &to_name), flags).await
    }

    /// A hard link; a symlink that `existing` names is not followed.
    pub async fn link(&self, existing: &[u8], new: &[u8]) -> Result<Attr> {
        let inode = self.resolve(existing, Links::Keep).await?.inode;
        let (parent, name) = self.resolve_parent(new).await?;
        self.client.meta().link(&self.who, inode, parent, &name).await
    }

    pub async fn symlink(&self, target: &[u8], path: &[u8]) -> Result<Attr> {
        if target.is_empty() || target.len() > PATH_MAX {
            let what = "a symlink's target has 1 to 4095 bytes";
            let code = if target.is_empty() { ErrorCode::InvalidName } else { ErrorCode::NameTooLong };
            return Err(Error::mismatch(code, PATH_MAX as u64, target.len() as u64, what));
        }
        let node = NewInode { target: target.to_vec(), ..NewInode::new(Kind::Symlink, 0o777) };
        self.make(path, &node).await
    }

    pub async fn read_link(&self, path: &[u8]) -> Result<Vec<u8>> {
        self.with(path, Links::Keep, async |link| self.client.meta().read_link(&self.who, link.inode).await)
            .await
    }

    pub async fn set_attr(&self, path: &[u8], changes: Changes) -> Result<Attr> {
        self.with(path, Links::Follow, async |attr| {
            self.client.set_attr(&self.who, attr.inode, changes).await
        })
        .await
    }

    pub async fn space(&self) -> Result<Space> {
        self.client.meta().statfs().await
    }

    pub async fn open(&self, path: &[u8], options: OpenOptions) -> Result<File> {
        self.with(path, Links::Follow, async |attr| self.client.open(&self.who, attr.inode, options).await)
            .await
    }

    /// Creates a file, or opens what is there unless `exclusive`; a symlink that is there is followed.
    pub async fn create(&self, path: &[u8], options: CreateOptions) -> Result<File> {
        if !options.exclusive {
            let open =
                OpenOptions { write: true, truncate: options.truncate, direct: options.direct, ahead: false };
            match self.open(path, open).await {
                Err(error) if error.code == ErrorCode::NotFound => (),
                outcome => return outcome,
            }
        }
        let (parent, name) = self.resolve_parent(path).await?;
        Ok(self.client.create(&self.who, parent, &name, options).await?.0)
    }

    async fn make(&self, path: &[u8], node: &NewInode) -> Result<Attr> {
        let (parent, name) = self.resolve_parent(path).await?;
        Ok(self.client.meta().create(&self.who, parent, &name, node).await?.attr)
    }
}
