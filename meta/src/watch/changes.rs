//! The last changes, by number, and what of them is told to whom.
//!
//! Nothing is noted while nobody watches. So a transaction that began then isn't known about when it commits, and whoever begins to watch is told
//! nothing of use before all of those have ended.

use corefs_wire::limits::CHANGES_MAX;
use corefs_wire::{ClientId, InodeId};
use std::cell::{Cell, RefCell};
use std::collections::{HashSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// Changes remembered. Who is further behind hears that it may have missed some.
pub const KEPT_MAX: usize = 1 << 16;
/// Nobody watches when nobody has asked for so long.
const WATCHED: Duration = Duration::from_secs(10);
/// A commit whose outcome is unknown has happened by then, or never will: twice as long as a transaction may take.
const SETTLED: Duration = Duration::from_secs(10);

/// What is otherwise than it was.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum What {
    /// Attributes of an inode.
    Inode(InodeId),
    /// What a name leads to.
    Name(InodeId, Vec<u8>),
}

/// What a client is told.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Told {
    /// What to ask for next. 0: nothing can be told yet.
    pub next: u64,
    /// More may have changed than is told.
    pub lost: bool,
    /// Each once.
    pub what: Vec<What>,
}

/// What was done so far, for status.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    pub noted: u64,
    pub told: u64,
    pub lost: u64,
}

struct Change {
    /// Who asked for it, if anybody did: they know.
    by: Option<ClientId>,
    what: What,
}

/// Numbers begin with 1; `first` is that of the oldest change that is kept.
struct Kept {
    first: u64,
    changes: VecDeque<Change>,
}

impl Kept {
    fn next(&self) -> u64 {
        self.first + self.changes.len() as u64
    }

    /// Whoever asks for what was before this has missed something.
    fn forget(&mut self) {
        self.first = self.next() + 1;
        self.changes.clear();
    }
}

struct State {
    kept: RefCell<Kept>,
    watched: Cell<bool>,
    asked: Cell<Duration>,
    /// Transactions under way that note nothing.
    unseen: Cell<usize>,
    /// Commits whose outcome is unknown may still happen until then.
    unsettled: Cell<Duration>,
    counts: Cell<Counts>,
    /// Called after each commit that changed something, and when what was told counts no more.
    changed: RefCell<Option<Rc<dyn Fn()>>>,
}

/// The changes of one server; clones are handles of the same. Time is its store's.
#[derive(Clone)]
pub struct Changes(Rc<State>);

impl Default for Changes {
    fn default() -> Self {
        Self(Rc::new(State {
            kept: RefCell::new(Kept { first: 1, changes: VecDeque::new() }),
            watched: Cell::new(false),
            asked: Cell::default(),
            unseen: Cell::new(0),
            unsettled: Cell::default(),
            counts: Cell::default(),
            changed: RefCell::default(),
        }))
    }
}

impl Changes {
    pub fn counts(&self) -> Counts {
        self.0.counts.get()
    }

    /// Has `changed` called after each change that is noted.
    pub fn on_change(&self, changed: impl Fn() + 'static) {
        self.0.changed.replace(Some(Rc::new(changed)));
    }

    fn tell(&self) {
        let changed = self.0.changed.borrow().clone();
        if let Some(changed) = changed {
            changed();
        }
    }

    /// The number that the next change will have.
    pub fn next(&self) -> u64 {
        self.0.kept.borrow().next()
    }

    /// What others than `client` changed since `since`; 0 is now, and nothing before is known. `Err`: there is nothing to tell, and that is the
    /// number to ask from again (0: nothing can be told yet).
    pub fn ask(&self, client: ClientId, since: u64, now: Duration) -> Result<Told, u64> {
        self.end_unwatched(now);
        self.0.watched.set(true);
        self.0.asked.set(now);
        let kept = self.0.kept.borrow();
        let next = kept.next();
        let open = self.0.unseen.get() > 0 || now < self.0.unsettled.get();
        if open && since == 0 {
            // It knows that it knows nothing.
            return Err(0);
        }
        if open || since < kept.first || since > next {
            self.count(|counts| counts.lost += 1);
            return Ok(Told { next: if open { 0 } else { next }, lost: true, what: Vec::new() });
        }
        let mut told = Told { next: since, ..Told::default() };
        let mut seen = HashSet::new();
        for change in kept.changes.range((since - kept.first) as usize..) {
            if told.what.len() == CHANGES_MAX {
                break;
            }
            told.next += 1;
            if change.by != Some(client) && seen.insert(&change.what) {
                told.what.push(change.what.clone());
            }
        }
        if told.what.is_empty() {
            return Err(told.next);
        }
        self.count(|counts| counts.told += told.what.len() as u64);
        Ok(told)
    }

    fn count(&self, add: impl Fn(&mut Counts)) {
        let mut counts = self.0.counts.get();
        add(&mut counts);
        self.0.counts.set(counts);
    }

    fn end_unwatched(&self, now: Duration) {
        if self.0.watched.get() && now.saturating_sub(self.0.asked.get()) >= WATCHED {
            self.0.watched.set(false);
            self.0.kept.borrow_mut().forget();
        }
    }

    /// A transaction begins.
    pub(super) fn begin(&self, now: Duration) -> Draft {
        self.end_unwatched(now);
        let noting = self.0.watched.get();
        if !noting {
            self.0.unseen.set(self.0.unseen.get() + 1);
        }
        Draft { of: self.clone(), noting, by: None, what: Vec::new(), everything: false, committing: None }
    }

    fn add(&self, by: Option<ClientId>, what: Vec<What>) {
        self.count(|counts| counts.noted += what.len() as u64);
        let mut kept = self.0.kept.borrow_mut();
        for what in what {
            if kept.changes.len() == KEPT_MAX {
                kept.changes.pop_front();
                kept.first += 1;
            }
            kept.changes.push_back(Change { by, what });
        }
        drop(kept);
        self.tell();
    }

    fn forget(&self) {
        self.0.kept.borrow_mut().forget();
        self.tell();
    }

    fn unsettled(&self, now: Duration) {
        self.0.unsettled.set(self.0.unsettled.get().max(now + SETTLED));
        self.forget();
    }
}

/// What one transaction is about to change. Dropped before its commit was begun: nothing.
pub(super) struct Draft {
    of: Changes,
    noting: bool,
    by: Option<ClientId>,
    what: Vec<What>,
    /// More than can be listed.
    everything: bool,
    /// When the commit was begun.
    committing: Option<Duration>,
}

impl Draft {
    pub fn is_noting(&self) -> bool {
        self.noting
    }

    pub fn is_by(&mut self, client: ClientId) {
        self.by = Some(client);
    }

    pub fn add(&mut self, what: What) {
        self.what.push(what);
    }

    pub fn add_everything(&mut self) {
        self.everything = true;
    }

    /// Of a transaction that writes: what only reads changes nothing, however it ends.
    pub fn commit_begins(&mut self, now: Duration) {
        self.committing = Some(now);
    }

    /// It has happened.
    pub fn committed(mut self) {
        self.committing = None;
        if self.everything {
            self.of.forget();
        }
        if !self.what.is_empty() {
            self.of.add(self.by, std::mem::take(&mut self.what));
        }
    }

    /// It hasn't, and won't.
    pub fn failed(mut self) {
        self.committing = None;
    }

    /// It may happen, or has.
    pub fn unknown(mut self, now: Duration) {
        if self.committing.take().is_some() {
            self.of.unsettled(now);
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(begun) = self.committing {
            // Nobody waited for the outcome.
            self.of.unsettled(begun);
        }
        if !self.noting {
            self.of.0.unseen.set(self.of.0.unseen.get() - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: ClientId = ClientId(1);
    const OTHER: ClientId = ClientId(2);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn change(changes: &Changes, now: Duration, by: Option<ClientId>, inode: u64) {
        let mut draft = changes.begin(now);
        draft.by = by;
        draft.add(What::Inode(InodeId(inode)));
        draft.commit_begins(now);
        draft.committed();
    }

    fn first(changes: &Changes, now: Duration) -> u64 {
        let told = changes.ask(ME, 0, now).unwrap();
        assert!(told.lost && told.what.is_empty());
        told.next
    }

    #[test]
    fn others_changes_are_told_once_and_in_parts() {
        let changes = Changes::default();
        let next = first(&changes, at(1));
        assert_eq!(changes.ask(ME, next, at(1)), Err(next));
        change(&changes, at(1), Some(ME), 5);
        change(&changes, at(1), Some(OTHER), 6);
        change(&changes, at(1), Some(OTHER), 6);
        change(&changes, at(1), None, 7);
        let told = changes.ask(ME, next, at(1)).unwrap();
        assert!(!told.lost);
        assert_eq!(told.what, [What::Inode(InodeId(6)), What::Inode(InodeId(7))]);
        assert_eq!(changes.ask(ME, told.next, at(1)), Err(told.next));
        (0..CHANGES_MAX as u64 + 1).for_each(|inode| change(&changes, at(1), None, 100 + inode));
        let part = changes.ask(ME, told.next, at(1)).unwrap();
        assert_eq!(part.what.len(), CHANGES_MAX);
        assert_eq!(changes.ask(ME, part.next, at(1)).unwrap().what.len(), 1);
    }

    #[test]
    fn who_is_too_far_behind_or_never_was_here_hears_that_it_missed_something() {
        let changes = Changes::default();
        let next = first(&changes, at(1));
        assert!(changes.ask(ME, next + 1, at(1)).unwrap().lost, "a number that wasn't given yet");
        (0..=KEPT_MAX as u64).for_each(|inode| change(&changes, at(1), None, inode));
        let told = changes.ask(ME, next, at(1)).unwrap();
        assert!(told.lost && told.what.is_empty() && told.next == changes.next());
        // Nobody asks for a while, and changes aren't noted.
        change(&changes, at(11), None, 1);
        assert!(changes.ask(ME, told.next, at(11)).unwrap().lost);
    }

    #[test]
    fn transactions_that_noted_nothing_end_before_anybody_is_told_anything() {
        let changes = Changes::default();
        let unseen = changes.begin(at(1));
        assert_eq!(changes.ask(ME, 0, at(1)), Err(0));
        let seen = changes.begin(at(1));
        assert!(seen.is_noting() && !unseen.is_noting());
        unseen.committed();
        let next = first(&changes, at(1));
        assert_eq!(changes.ask(ME, next, at(1)), Err(next));
    }

    #[test]
    fn while_a_commit_may_still_happen_nothing_is_believed() {
        for dropped in [false, true] {
            let changes = Changes::default();
            let next = first(&changes, at(1));
            let mut draft = changes.begin(at(2));
            draft.add(What::Inode(InodeId(3)));
            draft.commit_begins(at(2));
            if dropped {
                drop(draft)
            } else {
                draft.unknown(at(2))
            }
            assert_eq!(changes.ask(ME, next, at(3)), Ok(Told { next: 0, lost: true, what: Vec::new() }));
            assert_eq!(changes.ask(ME, 0, at(11)), Err(0));
            first(&changes, at(12));
        }
    }

    #[test]
    fn a_transaction_that_failed_changed_nothing() {
        let changes = Changes::default();
        let next = first(&changes, at(1));
        for committing in [false, true] {
            let mut draft = changes.begin(at(1));
            draft.add(What::Inode(InodeId(3)));
            if committing {
                draft.commit_begins(at(1));
                draft.failed();
            }
        }
        assert_eq!(changes.ask(ME, next, at(1)), Err(next));
        let mut draft = changes.begin(at(1));
        draft.add_everything();
        draft.commit_begins(at(1));
        draft.committed();
        assert!(changes.ask(ME, next, at(1)).unwrap().lost);
    }
}
