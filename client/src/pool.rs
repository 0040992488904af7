//! Client shards on threads of their own, and the doors to them from other threads.
//!
//! This and the mailbox of `net` are the only places where a client's memory is shared between threads. What crosses is a
//! closure that makes a future on the shard; how many may be there at once is bounded.

use crate::client::{Client, ClientOptions};
use corefs_net::{Bell, Remote, executor};
use corefs_wire::{Error, ErrorCode, InodeId, Result};
use std::cell::RefCell;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

/// Room in a client's mailbox: the bound of what is inside is never above it, so that it can't be full.
pub const MAILBOX: usize = 4096;

/// The threads of a pool.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// The core of each shard, or `None` if the kernel is to place it; empty: one shard that isn't pinned.
    pub cores: Vec<Option<usize>>,
    /// Work that may be at each shard, waiting or in progress; at most [`MAILBOX`].
    pub mailbox: usize,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { cores: Vec::new(), mailbox: MAILBOX }
    }
}

/// How long a caller sleeps between looks at a shard that has no room.
const FULL: Duration = Duration::from_micros(100);

struct Shard {
    remote: Remote,
    inside: Arc<AtomicUsize>,
}

struct Shared {
    shards: Vec<Shard>,
    bound: usize,
    stopping: AtomicBool,
    threads: Mutex<Vec<JoinHandle<Result<()>>>>,
}

/// Client shards, each an executor with a [`Client`] on a thread of its own. `Send` and `Sync`; clones are handles.
/// What belongs together (one inode's files) must go to one shard: [`shard_of`](Self::shard_of).
#[derive(Clone)]
pub struct ClientPool(Arc<Shared>);

thread_local! {
    /// The client of the shard whose thread this is, and the bell that ends it.
    static SHARD: RefCell<Option<(Client, Bell)>> = const { RefCell::new(None) };
}

/// What is inside a shard is counted until it is dropped, whichever way that happens.
struct Inside(Arc<AtomicUsize>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl ClientPool {
    /// Starts the shards and waits until each has connected.
    pub fn start(options: ClientOptions, pool: PoolOptions) -> Result<Self> {
        let cores: Vec<Option<usize>> = match pool.cores.is_empty() {
            true => vec![None],
            false => pool.cores,
        };
        let mut started = Shared {
            shards: Vec::new(),
            bound: pool.mailbox.clamp(1, MAILBOX),
            stopping: AtomicBool::new(false),
            threads: Mutex::default(),
        };
        let mut failure = None;
        for core in cores {
            match start_shard(options.clone(), core) {
                Ok((shard, thread)) => {
                    started.shards.push(shard);
                    started.threads.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()).push(thread);
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let started = Self(Arc::new(started));
        match failure {
            None => Ok(started),
            Some(error) => {
                let _ = started.stop();
                Err(error)
            }
        }
    }

    pub fn shards(&self) -> usize {
        self.0.shards.len()
    }

    /// The shard that an inode's files live on.
    pub fn shard_of(&self, inode: InodeId) -> usize {
        (inode.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize % self.shards()
    }

    /// Runs `work` on a shard and returns at once; while the shard has no room, waits. `ShuttingDown` when it is gone.
    /// The future may answer by whatever it was given (a FUSE reply object).
    pub fn run<W, F>(&self, shard: usize, work: W) -> Result<()>
    where
        W: FnOnce(Client) -> F + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
        let inside = loop {
            match self.enter(shard) {
                Ok(inside) => break inside,
                Err(error) if error.code == ErrorCode::Overloaded => std::thread::sleep(FULL),
                Err(error) => return Err(error),
            }
        };
        self.send(shard, inside, work)
    }

    /// As [`run`](Self::run), but `Overloaded` instead of waiting.
    pub fn try_run<W, F>(&self, shard: usize, work: W) -> Result<()>
    where
        W: FnOnce(Client) -> F + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
        let inside = self.enter(shard)?;
        self.send(shard, inside, work)
    }

    /// Runs `work` on a shard and waits for its result.
    pub fn block_on<W, F, T>(&self, shard: usize, work: W) -> Result<T>
    where
        W: FnOnce(Client) -> F + Send + 'static,
        F: Future<Output = Result<T>> + 'static,
        T: Send + 'static,
    {
        let (give, take) = mpsc::sync_channel(1);
        self.run(shard, move |client| {
            let future = work(client);
            async move {
                // Whoever waited may have given up.
                let _ = give.send(future.await);
            }
        })?;
        let gone = |_| Err(Error::new(ErrorCode::ShuttingDown, "the client shard ended before it answered"));
        take.recv().unwrap_or_else(gone)
    }

    /// Closes each client (what is buffered is written) and ends the threads. The first error, if any.
    pub fn stop(self) -> Result<()> {
        self.0.stopping.store(true, Ordering::Release);
        for shard in &self.0.shards {
            let ring = || SHARD.with_borrow(|shard| shard.as_ref().map(|(_, bell)| bell.ring()));
            // A shard that doesn't take it is ending already.
            while let Err(error) = shard.remote.run(Box::new(move |_| ring().unwrap_or_default())) {
                if error.code != ErrorCode::Overloaded {
                    break;
                }
                std::thread::sleep(FULL);
            }
        }
        let mut threads = self.0.threads.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut outcome = Ok(());
        for thread in threads.drain(..) {
            let ended = thread
                .join()
                .unwrap_or_else(|_| Err(Error::new(ErrorCode::Internal, "a client's thread panicked")));
            outcome = outcome.and(ended);
        }
        outcome
    }

    fn shard(&self, shard: usize) -> Result<&Shard> {
        let no_such = || Error::new(ErrorCode::InvalidArgument, format!("there is no client shard {shard}"));
        self.0.shards.get(shard).ok_or_else(no_such)
    }

    /// Room for one more at a shard.
    fn enter(&self, shard: usize) -> Result<Inside> {
        if self.0.stopping.load(Ordering::Acquire) {
            return Err(Error::new(ErrorCode::ShuttingDown, "the clients are being closed"));
        }
        let shard = self.shard(shard)?;
        let before = shard.inside.fetch_add(1, Ordering::Acquire);
        let inside = Inside(Arc::clone(&shard.inside));
        if before < self.0.bound {
            return Ok(inside);
        }
        let most = self.0.bound as u64;
        Err(Error::mismatch(ErrorCode::Overloaded, most, before as u64, "too much is at this client shard"))
    }

    /// Hands work over: its future is made on the shard and runs there.
    fn send<W, F>(&self, shard: usize, inside: Inside, work: W) -> Result<()>
    where
        W: FnOnce(Client) -> F + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
        self.shard(shard)?.remote.run(Box::new(move |_| {
            let client = SHARD.with_borrow(|shard| shard.as_ref().map(|(client, _)| client.clone()));
            // Without a client the shard is ending; dropping the work tells whoever waits for it.
            if let Some(client) = client {
                let future = work(client);
                executor::spawn(async move {
                    future.await;
                    drop(inside);
                })
                .detach();
            }
        }))
    }
}

fn start_shard(options: ClientOptions, core: Option<usize>) -> Result<(Shard, JoinHandle<Result<()>>)> {
    let (give, take) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("corefs-client".into())
        .spawn(move || {
            core.into_iter().for_each(executor::pin);
            executor::run_alone(live(options, give))
        })
        .map_err(|error| Error::new(ErrorCode::Os, format!("starting a client's thread: {error}")))?;
    let inside = Arc::new(AtomicUsize::new(0));
    match take.recv() {
        Ok(Ok(remote)) => Ok((Shard { remote, inside }, thread)),
        Ok(Err(error)) => {
            let _ = thread.join();
            Err(error)
        }
        Err(_) => Err(Error::new(ErrorCode::Internal, "a client's thread ended while it connected")),
    }
}

/// A shard's life: connect, serve until the bell rings, close. If its ring fails, nothing can be written any more.
async fn live(options: ClientOptions, started: mpsc::SyncSender<Result<Remote>>) -> Result<()> {
    let client = match Client::connect(options).await {
        Ok(client) => client,
        Err(error) => {
            let _ = started.send(Err(error.clone()));
            return Err(error);
        }
    };
    let bell = Bell::new();
    SHARD.set(Some((client.clone(), bell.clone())));
    let _ = started.send(Ok(client.node().remote()));
    let asked = async {
        bell.wait().await;
        true
    };
    let failed = async {
        client.node().stopped().await;
        false
    };
    let outcome = match futures_lite::future::or(asked, failed).await {
        true => client.close().await,
        false => Err(Error::new(ErrorCode::Internal, "a client's thread has lost its ring")),
    };
    SHARD.take();
    outcome
}
