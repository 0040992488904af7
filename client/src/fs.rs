//! The namespace by path, as `corefs fs` and programs use it. Paths are absolute, bytes, `/`-separated.

use crate::client::Client;
use crate::file::{CreateOptions, File, OpenOptions};
use crate::{Attr, Changes, Entry, Space};
use corefs_wire::{InodeId, Result};

/// What follows when the last component is a symlink.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Links {
    Follow,
    Keep,
}

/// The namespace on behalf of someone. Cheap to make.
#[derive(Clone)]
pub struct Fs {}

#[allow(unused_variables)]
impl Fs {
    pub fn client(&self) -> &Client {
        todo!()
    }
    /// What a path names. `NotFound`, `NotDirectory`, `NameTooLong` (a component over NAME_MAX or a path over
    /// PATH_MAX), `TooManySymlinks` (over 40).
    pub async fn resolve(&self, path: &[u8], links: Links) -> Result<Attr> {
        todo!()
    }
    /// The directory that holds a path's last component, and that component.
    pub async fn resolve_parent<'a>(&self, path: &'a [u8]) -> Result<(InodeId, Vec<u8>)> {
        todo!()
    }
    /// Follows symlinks.
    pub async fn stat(&self, path: &[u8]) -> Result<Attr> {
        todo!()
    }
    /// Doesn't follow the last one.
    pub async fn lstat(&self, path: &[u8]) -> Result<Attr> {
        todo!()
    }
    /// All entries with attributes, in name order, without `.` and `..`.
    pub async fn list(&self, path: &[u8]) -> Result<Vec<Entry>> {
        todo!()
    }
    /// At most `limit` entries after the name `after` (empty: from the first), and whether there are more.
    pub async fn list_page(
        &self,
        directory: InodeId,
        after: &[u8],
        limit: u32,
    ) -> Result<(Vec<Entry>, bool)> {
        todo!()
    }
    pub async fn mkdir(&self, path: &[u8], mode: u32) -> Result<Attr> {
        todo!()
    }
    /// With the directories on the way; fine if it is there already.
    pub async fn mkdir_all(&self, path: &[u8], mode: u32) -> Result<Attr> {
        todo!()
    }
    /// A file, symlink or empty directory.
    pub async fn remove(&self, path: &[u8]) -> Result<()> {
        todo!()
    }
    /// With everything below.
    pub async fn remove_all(&self, path: &[u8]) -> Result<()> {
        todo!()
    }
    /// `flags`: [`RENAME_NOREPLACE`](crate::RENAME_NOREPLACE), [`RENAME_EXCHANGE`](crate::RENAME_EXCHANGE).
    pub async fn rename(&self, from: &[u8], to: &[u8], flags: u32) -> Result<()> {
        todo!()
    }
    pub async fn link(&self, existing: &[u8], new: &[u8]) -> Result<Attr> {
        todo!()
    }
    pub async fn symlink(&self, target: &[u8], path: &[u8]) -> Result<Attr> {
        todo!()
    }
    pub async fn read_link(&self, path: &[u8]) -> Result<Vec<u8>> {
        todo!()
    }
    pub async fn set_attr(&self, path: &[u8], changes: Changes) -> Result<Attr> {
        todo!()
    }
    pub async fn space(&self) -> Result<Space> {
        todo!()
    }
    pub async fn open(&self, path: &[u8], options: OpenOptions) -> Result<File> {
        todo!()
    }
    pub async fn create(&self, path: &[u8], options: CreateOptions) -> Result<File> {
        todo!()
    }
    /// Writes a whole file from `source`, several pieces in flight; bytes written. Blocks the executor only in `source.read`.
    pub async fn put(
        &self,
        path: &[u8],
        options: CreateOptions,
        source: &mut dyn std::io::Read,
        progress: &mut dyn FnMut(u64),
    ) -> Result<u64> {
        todo!()
    }
    /// Reads a whole file into `sink` in order, several pieces in flight; bytes read.
    pub async fn get(
        &self,
        path: &[u8],
        sink: &mut dyn std::io::Write,
        progress: &mut dyn FnMut(u64),
    ) -> Result<u64> {
        todo!()
    }
}
