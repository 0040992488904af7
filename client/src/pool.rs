//! Client shards on threads of their own, and the doors to them from other threads.

use crate::client::{Client, ClientOptions};
use corefs_wire::{InodeId, Result};
use std::future::Future;

/// The threads of a pool.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Cores to pin to, one shard each; empty: one shard that isn't pinned.
    pub cores: Vec<usize>,
    /// Work that may wait at each shard.
    pub mailbox: usize,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { cores: Vec::new(), mailbox: 4096 }
    }
}

/// Client shards, each an executor with a [`Client`] on a thread of its own. `Send` and `Sync`; clones are handles.
/// What belongs together (one inode's files) must go to one shard: [`shard_of`](Self::shard_of).
#[derive(Clone)]
pub struct ClientPool {}

#[allow(unused_variables)]
impl ClientPool {
    /// Starts the shards and waits until each has connected.
    pub fn start(options: ClientOptions, pool: PoolOptions) -> Result<Self> {
        todo!()
    }

    pub fn shards(&self) -> usize {
        todo!()
    }

    /// The shard that an inode's files live on.
    pub fn shard_of(&self, inode: InodeId) -> usize {
        todo!()
    }

    /// Runs `work` on a shard and returns at once; while the shard's mailbox is full, waits. `ShuttingDown` when it is gone.
    /// The future may answer by whatever it was given (a FUSE reply object).
    pub fn run<W, F>(&self, shard: usize, work: W) -> Result<()>
    where
        W: FnOnce(Client) -> F + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
        todo!()
    }

    /// As [`run`](Self::run), but `Overloaded` instead of waiting.
    pub fn try_run<W, F>(&self, shard: usize, work: W) -> Result<()>
    where
        W: FnOnce(Client) -> F + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
        todo!()
    }

    /// Runs `work` on a shard and waits for its result.
    pub fn block_on<W, F, T>(&self, shard: usize, work: W) -> Result<T>
    where
        W: FnOnce(Client) -> F + Send + 'static,
        F: Future<Output = Result<T>> + 'static,
        T: Send + 'static,
    {
        todo!()
    }

    /// Closes each client (what is buffered is written) and ends the threads. The first error, if any.
    pub fn stop(self) -> Result<()> {
        todo!()
    }
}
