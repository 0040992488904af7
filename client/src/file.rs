//! Open files.

use crate::Attr;
use crate::client::Client;
use corefs_net::Buffer;
use corefs_wire::{InodeId, Result};

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenOptions {
    pub write: bool,
    /// To length 0.
    pub truncate: bool,
    /// Writes go to storage before they return, as large as they came.
    pub direct: bool,
}

/// How a file is created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CreateOptions {
    /// Permission bits, already masked.
    pub mode: u32,
    /// Refuse when the name exists.
    pub exclusive: bool,
    /// To length 0 if it exists.
    pub truncate: bool,
    pub direct: bool,
    /// Bytes of a chunk, 0: the cluster's choice.
    pub chunk_size: u32,
    /// Chains to spread over, 0: the cluster's choice.
    pub stripe: u32,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self { mode: 0o644, exclusive: false, truncate: false, direct: false, chunk_size: 0, stripe: 0 }
    }
}

/// Bytes that were read; derefs to them. Gives its memory back to the client's pool when dropped.
#[derive(Debug, Default)]
pub struct Data {}

impl std::ops::Deref for Data {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        todo!()
    }
}

/// An open file. Handles of one inode in one client share its length and its unwritten bytes. `!Send`.
///
/// [`close`](Self::close) it: a handle that is dropped is closed in the background and its errors only logged.
pub struct File {}

#[allow(unused_variables)]
impl File {
    pub fn inode(&self) -> InodeId {
        todo!()
    }

    /// As of open or the last time we heard, with what was written here since.
    pub fn attr(&self) -> Attr {
        todo!()
    }

    /// Bytes, as far as this client knows.
    pub fn length(&self) -> u64 {
        todo!()
    }

    pub fn client(&self) -> &Client {
        todo!()
    }

    /// At most `length` bytes at `offset`: fewer only at the end of the file. Holes are zeros.
    pub async fn read_at(&self, offset: u64, length: usize) -> Result<Data> {
        todo!()
    }

    /// The same into memory of the caller; returns how many bytes there were.
    pub async fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        todo!()
    }

    /// Writes all of `data`. Buffered writes return before they are durable and report errors later, at the next
    /// write, sync or close.
    pub async fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        todo!()
    }

    /// Writes all of a buffer of the client's pool, directly and without copying it.
    pub async fn write_buffer(&self, offset: u64, data: Buffer) -> Result<()> {
        todo!()
    }

    /// Writes at the end, wherever that is by then; returns where that was.
    pub async fn append(&self, data: &[u8]) -> Result<u64> {
        todo!()
    }

    /// Waits until everything written so far is in storage; reports what went wrong.
    pub async fn flush(&self) -> Result<()> {
        todo!()
    }

    /// fsync: as flush, and the length and times are durable too.
    pub async fn sync(&self) -> Result<()> {
        todo!()
    }

    /// Cuts or extends the file to `length` bytes.
    pub async fn truncate(&self, length: u64) -> Result<()> {
        todo!()
    }

    /// As sync, and the session ends.
    pub async fn close(self) -> Result<()> {
        todo!()
    }
}

/// Many reads at once, of any files of one client: each `(file, offset, length)` with its own result, in order.
#[allow(unused_variables)]
pub async fn read_batch(reads: &[(&File, u64, usize)]) -> Vec<Result<Data>> {
    todo!()
}
