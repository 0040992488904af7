//! A store in memory: deterministic, with faults on demand. For unit tests and the simulator.
//!
//! Every version of every key is kept for as long as a transaction may read it. All that happens follows from the
//! order of the calls, the seed and the script: the same run again is the same run.

use crate::bounds;
use crate::contract::*;
use crate::mutation::Mutation;
use crate::prng::Prng;
use crate::resolver::{Resolver, Written};
use crate::store::{Commit, Found, ReadBatch, Store, fill_page};
use crate::window::Window;
use corefs_wire::{Error, ErrorCode, Result};
use futures_lite::future::yield_now;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

/// What goes wrong with one commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// `KvConflict` though nothing was written.
    Conflict,
    /// `KvTooOld`.
    TooOld,
    /// `KvUnavailable`.
    Unavailable,
    /// `KvUnknownCommit`, and it happened.
    UnknownDone,
    /// `KvUnknownCommit`, and it never happens.
    UnknownNever,
    /// `KvUnknownCommit`, and the store judges the commit only after the next one (or at [`Mem::settle`]).
    UnknownLate,
}

/// How often what goes wrong, in a thousand.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Faults {
    pub conflict: u16,
    pub too_old: u16,
    pub unavailable: u16,
    pub unknown_done: u16,
    pub unknown_never: u16,
    pub unknown_late: u16,
    /// Reads that fail, with `KvTooOld` or `KvUnavailable`.
    pub read: u16,
    /// Reads and commits that let other tasks go first, so that transactions interleave.
    pub yields: u16,
}

impl Faults {
    /// All of them, often.
    pub const STORM: Self = Self {
        conflict: 50,
        too_old: 20,
        unavailable: 50,
        unknown_done: 50,
        unknown_never: 50,
        unknown_late: 50,
        read: 20,
        yields: 500,
    };

    fn pick(&self, random: &mut Prng) -> Option<Fault> {
        let chances = [
            (self.conflict, Fault::Conflict),
            (self.too_old, Fault::TooOld),
            (self.unavailable, Fault::Unavailable),
            (self.unknown_done, Fault::UnknownDone),
            (self.unknown_never, Fault::UnknownNever),
            (self.unknown_late, Fault::UnknownLate),
        ];
        chances.into_iter().find(|(chance, _)| random.per_mille(*chance)).map(|(_, fault)| fault)
    }
}

/// Time and pauses for a [`Mem`]: a simulator gives its own.
pub trait Pace: 'static {
    fn now(&self) -> Duration;
    fn pause(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()>>>;
}

/// Time that passes only when somebody pauses, or [`Mem::advance`]s it.
#[derive(Clone, Default)]
struct StandingClock(Rc<Cell<Duration>>);

impl Pace for StandingClock {
    fn now(&self) -> Duration {
        self.0.get()
    }

    fn pause(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()>>> {
        self.0.set(self.0.get() + duration);
        Box::pin(yield_now())
    }
}

/// The versions of one key, ascending. `None`: cleared.
type History = Vec<(u64, Option<Vec<u8>>)>;

struct State {
    keys: BTreeMap<Vec<u8>, History>,
    version: u64,
    resolver: Resolver,
    /// With each version, the keys that its successor wrote.
    window: Window<Vec<Vec<u8>>>,
    random: Prng,
    faults: Faults,
    script: VecDeque<Option<Fault>>,
    late: Vec<Commit>,
    reads: u64,
}

/// A handle of the store; clones share it.
#[derive(Clone)]
pub struct Mem {
    state: Rc<RefCell<State>>,
    standing: Option<StandingClock>,
    pace: Rc<dyn Pace>,
}

impl Default for Mem {
    fn default() -> Self {
        Self::new()
    }
}

impl Mem {
    /// An empty store in which nothing goes wrong, with a clock that stands still.
    pub fn new() -> Self {
        Self::with_faults(0, Faults::default())
    }

    /// An empty store whose faults follow from `seed`, with a clock that stands still.
    pub fn with_faults(seed: u64, faults: Faults) -> Self {
        let clock = StandingClock::default();
        let store = Self::with_pace(seed, faults, Rc::new(clock.clone()));
        Self { standing: Some(clock), ..store }
    }

    /// An empty store on somebody's clock.
    pub fn with_pace(seed: u64, faults: Faults, pace: Rc<dyn Pace>) -> Self {
        let state = State {
            keys: BTreeMap::new(),
            version: 1,
            resolver: Resolver::new(1),
            window: Window::default(),
            random: Prng::new(seed),
            faults,
            script: VecDeque::new(),
            late: Vec::new(),
            reads: 0,
        };
        Self { state: Rc::new(RefCell::new(state)), standing: None, pace }
    }

    /// What happens to the next commits, one after the other, before chance has its say again.
    pub fn script(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.state.borrow_mut().script.extend(faults);
    }

    /// Changes how often what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state.borrow_mut().faults = faults;
    }

    /// Lets the commits that are still on their way arrive.
    pub fn settle(&self) {
        let now = self.pace.now();
        self.state.borrow_mut().settle(now);
    }

    /// Moves the standing clock. Panics when the store is on somebody else's clock.
    pub fn advance(&self, duration: Duration) {
        let clock = self.standing.as_ref().expect("the clock of this store is somebody else's");
        clock.0.set(clock.0.get() + duration);
    }

    /// Every pair of the newest version: what tests compare.
    pub fn dump(&self) -> Vec<Pair> {
        self.newest(&KeyRange::all())
    }

    /// The newest version.
    pub fn latest(&self) -> u64 {
        self.state.borrow().version
    }

    /// The newest pairs of a range.
    pub fn newest(&self, range: &KeyRange) -> Vec<Pair> {
        let state = self.state.borrow();
        let keys = state.keys.range(range.begin.clone()..range.end.clone());
        let newest = |(key, history): (&Vec<u8>, &History)| {
            history.last().and_then(|(_, value)| value.clone()).map(|value| (key.clone(), value))
        };
        keys.filter_map(newest).collect()
    }

    /// Round trips of reads so far.
    pub fn reads(&self) -> u64 {
        self.state.borrow().reads
    }

    async fn maybe_yield(&self) {
        let yields = {
            let mut state = self.state.borrow_mut();
            let chance = state.faults.yields;
            state.random.per_mille(chance)
        };
        if yields {
            yield_now().await;
        }
    }
}

impl State {
    fn value_at(history: &History, version: u64) -> Option<&Vec<u8>> {
        history.iter().rev().find(|(written, _)| *written <= version).and_then(|(_, value)| value.as_ref())
    }

    fn get(&self, key: &[u8], version: u64) -> Option<Vec<u8>> {
        self.keys.get(key).and_then(|history| Self::value_at(history, version)).cloned()
    }

    fn page(&self, read: &RangeRead, version: u64) -> Result<RangePage> {
        if read.range.is_empty() {
            return Ok(RangePage::default());
        }
        let visible = |(key, history): (&Vec<u8>, &History)| {
            Self::value_at(history, version).map(|value| Ok((key.clone(), value.clone())))
        };
        let keys = self.keys.range(read.range.begin.clone()..read.range.end.clone());
        match read.direction {
            Direction::Forward => fill_page(keys.filter_map(visible), read.limit),
            Direction::Reverse => fill_page(keys.rev().filter_map(visible), read.limit),
        }
    }

    /// Lets go of versions that nobody may read any more.
    fn expire(&mut self, now: Duration) {
        while let Some((oldest, written)) = self.window.pop_expired(now) {
            self.resolver.forget_before(oldest);
            for key in written {
                self.prune(&key, oldest);
            }
        }
    }

    /// Drops what no reader at or after `oldest` sees of `key`.
    fn prune(&mut self, key: &[u8], oldest: u64) {
        let Some(history) = self.keys.get_mut(key) else { return };
        let seen = history.iter().rposition(|(version, _)| *version <= oldest).unwrap_or(0);
        history.drain(..seen);
        if let [(version, None)] = history.as_slice()
            && *version <= oldest
        {
            self.keys.remove(key);
        }
    }

    fn check_snapshot(&mut self, version: u64, now: Duration) -> Result<()> {
        self.expire(now);
        if version < self.resolver.oldest() {
            let (oldest, what) = (self.resolver.oldest(), "the snapshot is gone");
            return Err(Error::mismatch(ErrorCode::KvTooOld, oldest, version, what));
        }
        Ok(())
    }

    fn commit(&mut self, commit: Commit, now: Duration) -> Result<Committed> {
        self.expire(now);
        bounds::check_commit(&commit)?;
        self.resolver.check(&commit)?;
        let version = self.version + 1;
        let stamp = Versionstamp::new(version, 0);
        let mut written = Vec::new();
        for mutation in commit.mutations {
            let mutation = mutation.stamped(stamp);
            self.resolver.record(mutation.written(), version);
            self.apply(mutation, version, &mut written);
        }
        for range in &commit.write_conflicts {
            self.resolver.record(Written::Range(range), version);
        }
        self.window.superseded(self.version, now, written);
        self.version = version;
        Ok(Committed { version, versionstamp: Some(stamp) })
    }

    fn apply(&mut self, mutation: Mutation, version: u64, written: &mut Vec<Vec<u8>>) {
        let mut write = |keys: &mut BTreeMap<Vec<u8>, History>, key: Vec<u8>, value| {
            let history = keys.entry(key.clone()).or_default();
            match history.last_mut() {
                Some((newest, slot)) if *newest == version => *slot = value,
                _ => history.push((version, value)),
            }
            written.push(key);
        };
        match mutation {
            Mutation::Set { key, value } => write(&mut self.keys, key, Some(value)),
            Mutation::Clear { key } => write(&mut self.keys, key, None),
            Mutation::ClearRange(range) if range.is_empty() => {}
            Mutation::ClearRange(range) => {
                let keys: Vec<_> =
                    self.keys.range(range.begin..range.end).map(|(key, _)| key.clone()).collect();
                keys.into_iter().for_each(|key| write(&mut self.keys, key, None));
            }
            Mutation::Atomic { operation, key, operand } => {
                let value = operation.apply(self.get(&key, version).as_deref(), &operand);
                write(&mut self.keys, key, Some(value));
            }
            Mutation::StampedKey { .. } | Mutation::StampedValue { .. } => unreachable!("stamped before"),
        }
    }

    fn settle(&mut self, now: Duration) {
        for commit in std::mem::take(&mut self.late) {
            // Nobody waits for its outcome any more: it happens if it still can.
            let _outcome = self.commit(commit, now);
        }
    }
}

impl Store for Mem {
    type Snapshot = u64;

    fn version(snapshot: &u64) -> u64 {
        *snapshot
    }

    fn now(&self) -> Duration {
        self.pace.now()
    }

    async fn snapshot(&self) -> Result<u64> {
        self.maybe_yield().await;
        Ok(self.state.borrow().version)
    }

    async fn read(&self, snapshot: &mut Option<u64>, batch: ReadBatch<'_>) -> Result<Found> {
        self.maybe_yield().await;
        let mut state = self.state.borrow_mut();
        state.reads += 1;
        let chance = state.faults.read;
        if state.random.per_mille(chance) {
            let code = [ErrorCode::KvTooOld, ErrorCode::KvUnavailable][state.random.below(2) as usize];
            return Err(Error::new(code, "an injected fault"));
        }
        let version = *snapshot.get_or_insert(state.version);
        state.check_snapshot(version, self.pace.now())?;
        let values = batch.keys.iter().map(|key| state.get(key, version)).collect();
        let pages = batch.ranges.iter().map(|read| state.page(read, version)).collect::<Result<_>>()?;
        Ok(Found { values, pages })
    }

    async fn commit(&self, commit: Commit) -> Result<Committed> {
        self.maybe_yield().await;
        let now = self.pace.now();
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let fault = match state.script.pop_front() {
            Some(scripted) => scripted,
            None => state.faults.pick(&mut state.random),
        };
        let injected = |code| Err(Error::new(code, "an injected fault"));
        let outcome = match fault {
            None => state.commit(commit, now),
            Some(Fault::Conflict) => injected(ErrorCode::KvConflict),
            Some(Fault::TooOld) => injected(ErrorCode::KvTooOld),
            Some(Fault::Unavailable) => injected(ErrorCode::KvUnavailable),
            Some(Fault::UnknownNever) => injected(ErrorCode::KvUnknownCommit),
            Some(Fault::UnknownDone) => {
                let _outcome = state.commit(commit, now);
                injected(ErrorCode::KvUnknownCommit)
            }
            Some(Fault::UnknownLate) => {
                // It must not arrive with those that settle now.
                state.settle(now);
                state.late.push(commit);
                return injected(ErrorCode::KvUnknownCommit);
            }
        };
        state.settle(now);
        outcome
    }

    async fn pause(&self, duration: Duration) {
        self.pace.pause(duration).await;
    }

    fn random(&self) -> u64 {
        self.state.borrow_mut().random.draw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::block_on;

    #[test]
    fn old_versions_are_forgotten_after_five_seconds() {
        block_on(async {
            let engine = Mem::new();
            let mut reader = engine.begin();
            assert_eq!(reader.get(b"k", Isolation::Snapshot).await, Ok(None));
            for round in 0..10u8 {
                let mut txn = engine.begin();
                txn.set(b"k", &[round]);
                txn.clear(b"gone");
                txn.commit().await.unwrap();
            }
            assert_eq!(reader.get(b"k", Isolation::Snapshot).await, Ok(None));
            engine.advance(Duration::from_secs(6));
            let error = reader.get(b"k", Isolation::Snapshot).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::KvTooOld);
            assert_eq!(engine.begin().get(b"k", Isolation::Snapshot).await, Ok(Some(vec![9])));
            let state = engine.state.borrow();
            assert_eq!(state.keys[b"k".as_slice()].len(), 1, "older versions are still there");
            assert!(!state.keys.contains_key(b"gone".as_slice()));
        });
    }
}
