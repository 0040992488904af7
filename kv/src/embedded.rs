//! The default backend: one process, one directory, durable, on redb (a copy-on-write B-tree in one file) with a log in front.
//!
//! **One copy.** What this store loses with its disk is lost.
//!
//! - A commit is acknowledged when it has been flushed, never before. Commits are written in groups by a thread of
//!   its own ([`writer`]), each group atomically: after a power cut all of a group is there, or nothing.
//! - A group is one record of the [`log`] and is kept in memory ([`recent`]). When half of the log is full, or old, all that is there goes into the
//!   [`tree`], beside the commits that fill the other half ([`files`]). All of it does when the store is closed, and when it is opened after a crash.
//! - Reads are of snapshots ([`snapshots`]) and run on the caller's thread: from memory, redb's cache, or the file when a page
//!   isn't there ([`layer`]).
//! - Stored values carry a checksum ([`format`]).
//! - One process has a directory at a time ([`lock`]).
//!
//! Open it **before** pinning the calling thread to a core: the store's threads inherit where they may run.

pub mod check;
mod files;
pub mod format;
mod layer;
pub mod lock;
pub mod log;
mod memory;
pub mod oneshot;
mod recent;
pub mod snapshots;
mod staged;
mod tree;
pub mod writer;

use crate::clock::Clock;
use crate::contract::Committed;
use crate::prng::Prng;
use crate::store::{Commit, Found, ReadBatch, Store};
use corefs_wire::{Error, ErrorCode, Result};
use files::Files;
use format::{closed, translate};
use lock::DirectoryLock;
use log::{Log, LogFile};
use redb::{Builder, Database, StorageBackend};
use snapshots::{Snapshot, Snapshots};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use writer::{COMMITS_QUEUED_MAX, Counters, Job, Writer};

/// The file of the store in its directory.
pub const STORE_FILE: &str = "kv.redb";
/// The file of its log, beside it.
pub const LOG_FILE: &str = "kv.log";

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory for pages of the file (bytes): an eighth of the machine's or of the control group's unless set, and at least 256 MiB. It is
    /// taken as it fills.
    pub cache_bytes: usize,
    /// Verify the checksum of every page on opening: reads the whole file. Without it damage done to a cleanly closed
    /// file is found later, and in the tree's own pages maybe by a panic. After a crash every page is verified anyway.
    pub verify: bool,
    /// What the log takes (bytes): a 64th of what pages may take, 4 to 32 MiB, unless set. What is in half of it goes into the tree together; what is in it
    /// is in memory, too, some three times as large.
    pub log_bytes: u64,
    /// What five seconds are measured with. Tests move it.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        let pages = memory::pages();
        Self { cache_bytes: pages, verify: true, log_bytes: memory::log(pages), clock: Clock::monotonic() }
    }
}

/// What the store has done and holds, for status.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Statistics {
    /// Transactions committed since it was opened.
    pub commits: u64,
    /// Flushes that made them durable.
    pub groups: u64,
    pub conflicts: u64,
    pub too_old: u64,
    /// The newest version.
    pub version: u64,
    /// Versions open for reading.
    pub snapshots: u64,
}

struct Opened {
    jobs: SyncSender<Job>,
    snapshots: Arc<Snapshots>,
    counters: Arc<Counters>,
    clock: Clock,
    /// Seeds of jitter that were given out.
    seeds: AtomicU64,
    thread: Option<JoinHandle<()>>,
    directory: Option<PathBuf>,
    _lock: Option<DirectoryLock>,
}

/// A handle of an open store, for any thread of the process. Clones share it; the last one dropped finishes the commits under way and
/// closes it.
#[derive(Clone)]
pub struct Embedded(Arc<Opened>);

impl Embedded {
    /// Opens the store in `directory`, or creates both.
    ///
    /// Errors: `DirectoryInUse` when another process has it, `Corrupt` when the file is damaged, `BadFormat` when it is
    /// something else or of another version, `Os` and `KvIo`.
    pub fn open(directory: &Path, options: Options) -> Result<Self> {
        let named = |error: Error| error.of(directory.display());
        fs::create_dir_all(directory).map_err(|error| named(error.into()))?;
        let lock = DirectoryLock::take(directory)?;
        let database =
            builder(&options).create(directory.join(STORE_FILE)).map_err(|error| named(translate(error)))?;
        let about = tree::About::read(&database).map_err(named)?;
        let log = match LogFile::open(directory).map_err(named)? {
            Some(log) => log,
            None if about.life == 0 => LogFile::create(directory).map_err(named)?,
            None => return Err(named(log::missing())),
        };
        // The files' names must survive a power cut, too.
        File::open(directory).and_then(|file| file.sync_all()).map_err(|error| named(error.into()))?;
        Self::start(database, about, Box::new(log), options, Some((directory.to_owned(), lock)))
            .map_err(named)
    }

    /// Opens a store on any storage: what the power-cut tests record and replay.
    pub fn open_with_backends(
        tree: impl StorageBackend,
        log: impl StorageBackend,
        options: Options,
    ) -> Result<Self> {
        let database = builder(&options).create_with_backend(tree).map_err(translate)?;
        let about = tree::About::read(&database)?;
        Self::start(database, about, Box::new(log), options, None)
    }

    fn start(
        database: Database,
        about: tree::About,
        log: Box<dyn StorageBackend>,
        options: Options,
        place: Option<(PathBuf, DirectoryLock)>,
    ) -> Result<Self> {
        let waiting = about.waiting(&*log)?;
        let (version, life) = tree::begin_life(&database, about, &waiting)?;
        drop(waiting);
        let log = Log::begin(log, life, options.log_bytes)?;
        let files = Files::new(database, log, life, version)?;
        let clock = options.clock;
        let snapshots = Arc::new(Snapshots::new(files.layer().clone(), version, clock.clone()));
        let counters = Arc::new(Counters::default());
        let writer = Writer::new(files, snapshots.clone(), counters.clone(), clock.clone(), version);
        let (jobs, queue) = sync_channel(COMMITS_QUEUED_MAX);
        let thread = thread::Builder::new().name("kv-commit".into()).spawn(move || writer.run(queue))?;
        let (directory, lock) = place.unzip();
        let thread = Some(thread);
        let seeds = AtomicU64::new(version);
        let opened = Opened { jobs, snapshots, counters, clock, seeds, thread, directory, _lock: lock };
        Ok(Self(Arc::new(opened)))
    }

    /// Finishes the commits under way and closes the store for all handles: everything later is `KvUnavailable`.
    pub async fn close(&self) {
        let (told, done) = oneshot::channel();
        if self.0.jobs.send(Job::Stop(told)).is_ok() {
            done.await;
        }
    }

    pub fn statistics(&self) -> Statistics {
        let counters = &self.0.counters;
        Statistics {
            commits: counters.commits.load(Ordering::Relaxed),
            groups: counters.groups.load(Ordering::Relaxed),
            conflicts: counters.conflicts.load(Ordering::Relaxed),
            too_old: counters.too_old.load(Ordering::Relaxed),
            version: self.0.snapshots.newest(),
            snapshots: self.0.snapshots.open_versions() as u64,
        }
    }

    /// Where the store lies; `None` for one on a given backend.
    pub fn directory(&self) -> Option<&Path> {
        self.0.directory.as_deref()
    }

    /// The right to read at the newest version; everything acknowledged before is in it.
    pub fn take_snapshot(&self) -> Result<Snapshot> {
        self.0.snapshots.take()
    }

    /// Reads on this thread.
    pub fn read_at(&self, snapshot: &Snapshot, batch: &ReadBatch<'_>) -> Result<Found> {
        self.0.snapshots.read(snapshot.version(), batch)
    }

    fn ask(&self, job: Job) -> Result<()> {
        self.0.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => {
                let limit = COMMITS_QUEUED_MAX as u64;
                Error::mismatch(ErrorCode::KvUnavailable, limit, limit, "too many commits are waiting")
            }
            TrySendError::Disconnected(_) => closed(),
        })
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // The thread ends when it is told to or when nobody can ask any more; the directory is free only after that.
        let (told, _done) = oneshot::channel();
        let _already_stopped = self.jobs.send(Job::Stop(told));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the commit thread of the key-value store panicked");
        }
    }
}

pub(crate) fn builder(options: &Options) -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(options.cache_bytes).set_check_integrity_on_open(options.verify);
    builder
}

impl Store for Embedded {
    type Snapshot = Snapshot;

    fn version(snapshot: &Snapshot) -> u64 {
        snapshot.version()
    }

    fn now(&self) -> Duration {
        self.0.clock.now()
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        self.take_snapshot()
    }

    async fn read(&self, snapshot: &mut Option<Snapshot>, batch: ReadBatch<'_>) -> Result<Found> {
        let snapshot = match snapshot {
            Some(snapshot) => snapshot,
            None => snapshot.insert(self.take_snapshot()?),
        };
        self.read_at(snapshot, &batch)
    }

    async fn commit(&self, commit: Commit) -> Result<Committed> {
        let (reply, outcome) = oneshot::channel();
        self.ask(Job::Commit(commit, reply))?;
        let silence = || Err(Error::new(ErrorCode::KvUnknownCommit, "the store stopped before it answered"));
        outcome.await.unwrap_or_else(silence)
    }

    /// On the real clock, whatever the store's clock is.
    async fn pause(&self, duration: Duration) {
        let (reply, woken) = oneshot::channel();
        if self.ask(Job::Wake(Instant::now() + duration, reply)).is_ok() {
            woken.await;
        }
    }

    fn random(&self) -> u64 {
        Prng::new(self.0.seeds.fetch_add(1, Ordering::Relaxed)).draw()
    }
}
