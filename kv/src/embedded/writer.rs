//! The commit thread: the only place of this crate where work crosses threads.
//!
//! Transactions that wait are taken together, judged one after the other, and those that pass are written as **one** durable record of the
//! log under one version, each with its place in it. So a flush of the disk is shared by all that arrived during the one before. Nobody
//! hears of success before it is durable. When the log has no room in one area, all that is there sets out for the tree
//! ([`files`](super::files)).
//!
//! Invariants: versions rise by one with each group that wrote; what the resolver knows to be written is durable,
//! or about to be and nobody has been told, or the store is dead. A failed write or flush is the death of the store:
//! what the disk holds then is unknown, so everything later is refused until it is opened again.

use super::files::{Failed, Files};
use super::format::closed;
use super::oneshot;
use super::recent::Changes;
use super::snapshots::Snapshots;
use super::staged::Staged;
use crate::bounds;
use crate::clock::Clock;
use crate::contract::{Committed, Versionstamp};
use crate::mutation::Mutation;
use crate::resolver::{Resolver, Written};
use crate::store::Commit;
use crate::window::Window;
use corefs_wire::{Error, ErrorCode, Result};
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

/// Transactions waiting for the commit thread; more are refused with `KvUnavailable`.
pub const COMMITS_QUEUED_MAX: usize = 8192;
/// Transactions in one group: a versionstamp counts them in two bytes, and readers see a group at once.
const GROUP_MAX: usize = 4096;
/// A group takes no further transaction once it has that many bytes.
const GROUP_BYTES_MAX: usize = 32 << 20;
/// Steps that the resolver may hold (about 100 bytes each). Beyond it the oldest versions can't commit any more.
const RESOLVER_STEPS_MAX: usize = 1 << 20;

const _: () = assert!(GROUP_MAX <= u16::MAX as usize, "a place in the group fits the versionstamp");

pub type Outcome = Result<Committed>;

/// What the thread is asked for.
pub enum Job {
    Commit(Commit, oneshot::Sender<Outcome>),
    /// Answer at that time: pauses for executors without timers of their own.
    Wake(Instant, oneshot::Sender<()>),
    /// Answer when everything asked before is done, and end.
    Stop(oneshot::Sender<()>),
}

/// What the thread has done since the store was opened. Any thread may look.
#[derive(Default)]
pub struct Counters {
    /// Transactions that committed.
    pub commits: AtomicU64,
    /// Groups that were written, each with a flush of the log, or of the tree.
    pub groups: AtomicU64,
    /// Transactions refused for a conflict.
    pub conflicts: AtomicU64,
    /// Transactions refused for their age.
    pub too_old: AtomicU64,
}

/// A sleeper; the heap has the earliest on top.
struct Sleeper(Instant, oneshot::Sender<()>);

impl PartialEq for Sleeper {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Sleeper {}

impl PartialOrd for Sleeper {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Sleeper {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.0.cmp(&self.0)
    }
}

/// Why a group could not be written, and the place in it of the transaction at fault.
struct Failure {
    error: Error,
    place: Option<usize>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, place: None }
    }
}

pub struct Writer {
    files: Files,
    snapshots: Arc<Snapshots>,
    counters: Arc<Counters>,
    clock: Clock,
    resolver: Resolver,
    window: Window<()>,
    version: u64,
    dead: Option<Error>,
    sleepers: BinaryHeap<Sleeper>,
}

/// A transaction that passed and waits for the group to be durable.
type Accepted = (Versionstamp, oneshot::Sender<Outcome>);

impl Writer {
    pub fn new(
        files: Files,
        snapshots: Arc<Snapshots>,
        counters: Arc<Counters>,
        clock: Clock,
        version: u64,
    ) -> Self {
        Self {
            files,
            snapshots,
            counters,
            clock,
            resolver: Resolver::new(version),
            window: Window::default(),
            version,
            dead: None,
            sleepers: BinaryHeap::new(),
        }
    }

    /// Works until it is told to stop or every handle is gone, then closes the store.
    pub fn run(mut self, jobs: Receiver<Job>) {
        let mut told = None;
        while told.is_none() {
            let Some(first) = self.wait(&jobs) else { break };
            let mut group = Vec::new();
            let mut bytes = 0;
            let mut next = Some(first);
            while let Some(job) = next {
                match job {
                    Job::Commit(commit, reply) => {
                        bytes += commit.bytes();
                        group.push((commit, reply));
                    }
                    Job::Wake(at, reply) => self.sleepers.push(Sleeper(at, reply)),
                    Job::Stop(reply) => told = Some(reply),
                }
                let full = told.is_some() || group.len() >= GROUP_MAX || bytes >= GROUP_BYTES_MAX;
                next = if full { None } else { jobs.try_recv().ok() };
            }
            if !group.is_empty() {
                self.commit_group(group);
            }
        }
        self.snapshots.close(closed());
        self.close();
        for job in jobs.try_iter() {
            if let Job::Commit(_, reply) = job {
                reply.send(Err(closed()));
            }
        }
        // Whoever asks once this is known is refused, and not left without an answer.
        drop(jobs);
        if let Some(told) = told {
            told.send(());
        }
    }

    /// The next job; wakes sleepers meanwhile. `None`: nobody is left who could ask.
    fn wait(&mut self, jobs: &Receiver<Job>) -> Option<Job> {
        loop {
            let now = Instant::now();
            while self.sleepers.peek().is_some_and(|sleeper| sleeper.0 <= now) {
                if let Some(Sleeper(_, reply)) = self.sleepers.pop() {
                    reply.send(());
                }
            }
            let received = match self.sleepers.peek() {
                None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(Sleeper(at, _)) => jobs.recv_timeout(at.saturating_duration_since(now)),
            };
            match received {
                Ok(job) => return Some(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn commit_group(&mut self, group: Vec<(Commit, oneshot::Sender<Outcome>)>) {
        if let Some(dead) = &self.dead {
            for (_, reply) in group {
                reply.send(Err(dead.clone()));
            }
            return;
        }
        self.expire();
        // Before anything of the group happens.
        if let Err(Failed::Before(error) | Failed::Unknown(error)) = self.look_at_tree() {
            self.die(error, ErrorCode::KvIo, Vec::new());
            return self.commit_group(group);
        }
        let mut accepted = Vec::with_capacity(group.len());
        let staged = self.stage(group, &mut accepted);
        let changes = match staged {
            // Nothing was written, so nothing needs to be durable.
            Ok(None) => return,
            Ok(Some(changes)) => changes,
            // One damaged value is no reason to stop: only who needs it fails, and nothing of the group happened.
            Err(failure) if failure.error.code == ErrorCode::Corrupt => return refuse(failure, accepted),
            Err(failure) => return self.die(failure.error, ErrorCode::KvIo, accepted),
        };
        let (oldest, now) = (self.snapshots.oldest(), self.clock.now());
        let layer = match self.files.write(self.version + 1, changes, oldest, now) {
            Ok(layer) => layer,
            Err(Failed::Before(error)) => return self.die(error, ErrorCode::KvIo, accepted),
            Err(Failed::Unknown(error)) => return self.die(error, ErrorCode::KvUnknownCommit, accepted),
        };
        // What was newest until now can be read for its time from now on, however long the write took.
        self.window.superseded(self.version, self.clock.now(), ());
        self.version += 1;
        self.snapshots.announce(self.version, layer);
        self.counters.groups.fetch_add(1, Ordering::Relaxed);
        self.counters.commits.fetch_add(accepted.len() as u64, Ordering::Relaxed);
        for (stamp, reply) in accepted {
            reply.send(Ok(Committed { version: stamp.version(), versionstamp: Some(stamp) }));
        }
    }

    /// Lets readers have the tree that was written meanwhile, if one was.
    fn look_at_tree(&mut self) -> Result<(), Failed> {
        if let Some(layer) = self.files.arrived()? {
            self.snapshots.announce(self.version, Some(layer));
        }
        Ok(())
    }

    /// Judges the transactions in their order, answers those refused, and gathers what those `accepted` write.
    fn stage(
        &mut self,
        group: Vec<(Commit, oneshot::Sender<Outcome>)>,
        accepted: &mut Vec<Accepted>,
    ) -> Result<Option<Changes>, Failure> {
        let version = self.version + 1;
        let mut passed = Vec::with_capacity(group.len());
        for (commit, reply) in group {
            match self.judge(&commit) {
                Err(error) => reply.send(Err(error)),
                Ok(()) => {
                    let stamp = Versionstamp::new(version, accepted.len() as u16);
                    passed.push(self.record(commit, stamp));
                    accepted.push((stamp, reply));
                }
            }
        }
        if passed.is_empty() {
            return Ok(None);
        }
        let mut staged = Staged::new(self.files.layer());
        for (place, mutations) in passed.into_iter().enumerate() {
            for mutation in mutations {
                staged.apply(mutation).map_err(|error| Failure { error, place: Some(place) })?;
            }
        }
        Ok(Some(staged.finish()))
    }

    fn judge(&self, commit: &Commit) -> Result<()> {
        let verdict = bounds::check_commit(commit).and_then(|()| self.resolver.check(commit));
        let counter = match verdict.as_ref().map_err(|error| error.code) {
            Err(ErrorCode::KvConflict) => &self.counters.conflicts,
            Err(ErrorCode::KvTooOld) => &self.counters.too_old,
            _ => return verdict,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        verdict
    }

    /// Tells the resolver what the accepted `commit` writes; gives its mutations with their stamps.
    fn record(&mut self, commit: Commit, stamp: Versionstamp) -> Vec<Mutation> {
        for range in &commit.write_conflicts {
            self.resolver.record(Written::Range(range), stamp.version());
        }
        let stamped: Vec<_> = commit.mutations.into_iter().map(|mutation| mutation.stamped(stamp)).collect();
        for mutation in &stamped {
            self.resolver.record(mutation.written(), stamp.version());
        }
        stamped
    }

    /// Leaves a tree that needs no log, unless the store is dead.
    fn close(self) {
        let Self { files, version, dead, .. } = self;
        if let Err(Failed::Before(error) | Failed::Unknown(error)) = files.close(version, dead.is_none()) {
            tracing::warn!(%error, "the key-value store is closed as if its process had died: its log has what its tree lacks");
        }
    }

    fn expire(&mut self) {
        let now = self.clock.now();
        while let Some((oldest, ())) = self.window.pop_expired(now) {
            self.resolver.forget_before(oldest);
        }
        // Sweeping drops what was forgotten only bit by bit: an eighth more each time keeps that going.
        if self.resolver.len() > RESOLVER_STEPS_MAX {
            for _ in 0..self.window.len() / 8 + 1 {
                let Some((oldest, ())) = self.window.pop_oldest() else { break };
                self.resolver.forget_before(oldest);
            }
        }
    }

    /// The store is dead. Those in `accepted` hear `code`: whether theirs happened depends on how far it got.
    fn die(&mut self, error: Error, code: ErrorCode, accepted: Vec<Accepted>) {
        tracing::error!(%error, "the key-value store failed and refuses everything until it is opened again");
        for (_, reply) in accepted {
            reply.send(Err(Error::new(code, format!("the store failed while it wrote: {error}"))));
        }
        let dead = Error::new(ErrorCode::KvIo, format!("the store failed before: {error}"));
        self.snapshots.close(dead.clone());
        self.dead = Some(dead);
    }
}

/// Answers a group of which nothing happened: the one at fault hears why, the others may try again.
fn refuse(failure: Failure, accepted: Vec<Accepted>) {
    for (place, (_, reply)) in accepted.into_iter().enumerate() {
        let innocent = failure.place.is_some_and(|at| at != place);
        let refused = || Error::new(ErrorCode::KvUnavailable, "another transaction of the group failed");
        reply.send(Err(if innocent { refused() } else { failure.error.clone() }));
    }
}
