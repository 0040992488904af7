//! What a client knows of an inode that is open in it, shared by all handles.
//!
//! Invariants
//! - The length includes every byte that was written here, stored or not: handles see each other's writes at once.
//! - Attributes of an older truncate epoch than ours change nothing; a newer epoch makes the file's length what the
//!   metadata says, or where our unwritten bytes end.

use crate::behind::Behind;
use crate::file::Appends;
use crate::guess::Kind;
use crate::sessions::Sessions;
use crate::storage::Place;
use crate::wait::Waiters;
use crate::{Attr, Changes, Known, Time};
use corefs_net::Buffer;
use corefs_wire::layout::Layout;
use corefs_wire::limits::FRAME_DATA_MAX;
use corefs_wire::{Error, InodeId};
use std::cell::{Cell, RefCell};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// What the metadata servers don't know yet.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Unsynced {
    /// The end of the last byte that went to storage; 0: none did.
    pub end: u64,
    /// When the file was last written, nanoseconds since the epoch; 0: it wasn't.
    pub mtime: i64,
}

/// Errors of writes that nobody was waiting for.
#[derive(Default)]
pub struct Failures {
    pub count: u64,
    pub last: Option<Error>,
}

pub struct Inode {
    pub place: Place,
    /// Bytes that one update may carry, a power of two: a chunk, or a frame of it.
    pub cell: u32,
    pub attr: Cell<Attr>,
    pub length: Cell<u64>,
    pub epoch: Cell<u32>,
    pub unsynced: Cell<Unsynced>,
    pub behind: RefCell<Behind<Buffer>>,
    pub appends: Appends,
    /// Writes under way that have a place: how many, and where the last of them ends at most.
    pub under_way: Cell<(u32, u64)>,
    /// Changes when a flight lands.
    pub progress: Waiters,
    pub failures: RefCell<Failures>,
    /// Changes of attributes that go to the metadata servers with the end of a session.
    pub pending: Cell<Changes>,
    /// What the attributes were when the first of them was decided, but for what was changed from here since.
    known: Cell<Known>,
    /// When a metadata server last said what the attributes are.
    pub heard: Cell<Instant>,
    pub sessions: Sessions,
    /// Handles open.
    pub handles: Cell<u32>,
    /// The bytes are kept with the inode, as far as is known here.
    pub inline: Cell<bool>,
    /// Rises with every change of the file that is made or heard of here.
    pub edition: Cell<u64>,
    /// Of a file that was made here: what its name ends like, until it is known whether it stays small.
    pub kind: Cell<Option<Kind>>,
}

impl Inode {
    pub fn new(attr: Attr, layout: Layout) -> Self {
        let cell = layout.chunk_size.min(FRAME_DATA_MAX as u32);
        Self {
            place: Place::new(attr.inode, layout),
            cell,
            attr: Cell::new(attr),
            length: Cell::new(attr.size),
            epoch: Cell::new(attr.epoch),
            unsynced: Cell::default(),
            behind: RefCell::new(Behind::new(cell)),
            appends: Appends::default(),
            under_way: Cell::default(),
            progress: Waiters::default(),
            failures: RefCell::default(),
            pending: Cell::default(),
            known: Cell::default(),
            heard: Cell::new(Instant::now()),
            sessions: Sessions::default(),
            handles: Cell::new(0),
            inline: Cell::new(attr.marks.inline),
            edition: Cell::default(),
            kind: Cell::default(),
        }
    }

    pub fn id(&self) -> InodeId {
        self.place.inode
    }

    /// Takes what a metadata server says.
    pub fn absorb(&self, attr: &Attr) {
        if attr.epoch < self.epoch.get() {
            return;
        }
        if attr.epoch > self.epoch.get() && self.moved_out(attr) {
            // No truncation: what was written here, and nobody else knows of, is as it was.
            self.epoch.set(attr.epoch);
            self.length.set(self.length.get().max(attr.size));
        } else if attr.epoch > self.epoch.get() {
            self.epoch.set(attr.epoch);
            self.length.set(attr.size.max(self.behind.borrow().end()));
            self.unsynced.set(Unsynced { end: 0, ..self.unsynced.get() });
        } else {
            self.length.set(self.length.get().max(attr.size));
        }
        let before = self.attr.replace(*attr);
        let same = |attr: &Attr| (attr.epoch, attr.size, attr.mtime, attr.ctime);
        if same(&before) != same(attr) {
            self.edition.set(self.edition.get() + 1);
        }
        self.inline.set(attr.marks.inline);
        self.heard.set(Instant::now());
    }

    /// Whether nothing has come between what is known here and `attr`, but that the bytes moved out: all else leaves them where they are.
    fn moved_out(&self, attr: &Attr) -> bool {
        self.inline.get() && !attr.marks.inline && self.epoch.get().checked_add(2) == Some(attr.epoch)
    }

    /// The attributes with what was written here.
    pub fn attr(&self) -> Attr {
        let (mut attr, unsynced) = (self.attr.get(), self.unsynced.get());
        attr.size = self.length.get();
        attr.epoch = self.epoch.get();
        if unsynced.mtime > attr.mtime {
            attr.mtime = unsynced.mtime;
            attr.ctime = attr.ctime.max(unsynced.mtime);
        }
        let pending = self.pending.get();
        attr.mode = pending.mode.unwrap_or(attr.mode);
        attr.uid = pending.uid.unwrap_or(attr.uid);
        attr.gid = pending.gid.unwrap_or(attr.gid);
        attr.atime = pending.atime.map_or(attr.atime, at);
        attr.mtime = pending.mtime.map_or(attr.mtime, at);
        attr.ctime = attr.ctime.max(pending.ctime.unwrap_or(i64::MIN));
        attr
    }

    /// Whether there is anything that the metadata servers don't know yet.
    pub fn has_news(&self) -> bool {
        let unsynced = self.unsynced.get() != Unsynced::default();
        let held = self.appends.pending() || !self.behind.borrow().is_empty();
        unsynced || held || self.pending.get() != Changes::default()
    }

    /// Takes changes in that wait for the session to end, if these may wait and there is a session: times, and what
    /// gives nobody less access than they have. Changes of owner wait only while nobody else has any.
    pub fn defer(&self, changes: &Changes) -> bool {
        let shown = self.attr();
        let private = shown.mode & 0o7077 == 0;
        let keeps_access = changes.mode.is_none_or(|mode| shown.mode & !mode == 0);
        let gives = changes.uid.is_none() && changes.gid.is_none() || private;
        let may_wait = changes.size.is_none() && changes.ctime.is_none() && keeps_access && gives;
        if !may_wait || self.sessions.is_empty() || shown.marks.access_list {
            return false;
        }
        let (now, before) = (now(), self.pending.get());
        if before == Changes::default() {
            self.known.set(Known::of(&self.attr.get()));
        }
        let fixed =
            |time: Option<Time>| time.map(|time| Time::At(if time == Time::Now { now } else { at(time) }));
        if changes.mtime.is_some() {
            // The time that was set stands, although bytes written before it are stored later.
            self.unsynced.set(Unsynced { mtime: 0, ..self.unsynced.get() });
        }
        self.pending.set(Changes {
            mode: changes.mode.or(before.mode),
            uid: changes.uid.or(before.uid),
            gid: changes.gid.or(before.gid),
            size: None,
            atime: fixed(changes.atime).or(before.atime),
            mtime: fixed(changes.mtime).or(before.mtime),
            ctime: Some(now.max(shown.ctime)),
            known: None,
        });
        true
    }

    /// Changes that were made at once: what waited for the same attributes is out of date. A new owner also takes set-id bits away that
    /// wait: the servers couldn't know of them.
    /// `attr`: what they gave.
    pub fn supersede(&self, changes: &Changes, attr: &Attr) {
        self.learn(changes, attr);
        let before = self.pending.get();
        let keep = |made: bool| !made;
        let owner = changes.uid.is_some() || changes.gid.is_some();
        let mode = before.mode.map(|mode| if owner { without_set_ids(mode) } else { mode });
        let rest = Changes {
            mode: mode.filter(|_| keep(changes.mode.is_some())),
            uid: before.uid.filter(|_| keep(changes.uid.is_some())),
            gid: before.gid.filter(|_| keep(changes.gid.is_some())),
            atime: before.atime.filter(|_| keep(changes.atime.is_some())),
            mtime: before.mtime.filter(|_| keep(changes.mtime.is_some() || changes.size.is_some())),
            ..before
        };
        let any = Changes { ctime: None, ..rest } != Changes::default();
        self.pending.set(if any { rest } else { Changes::default() });
    }

    /// What [`defer`](Self::defer) took in, to be sent now; without a change time, which the sender chooses. It is shown until it has
    /// been [`told`](Self::told).
    pub fn to_tell(&self) -> Option<Changes> {
        let changes = Changes { ctime: None, ..self.pending.get() };
        let known = Some(self.known.get());
        (changes != Changes::default()).then_some(Changes { known, ..changes })
    }

    fn learn(&self, changes: &Changes, attr: &Attr) {
        let mut known = self.known.get();
        known.learn(changes, attr);
        self.known.set(known);
    }

    /// The metadata servers know these changes now, which gave `attr`, or refuse them: what was decided since then waits on.
    pub fn told(&self, changes: &Changes, attr: Option<&Attr>) {
        if let Some(attr) = attr {
            self.learn(changes, attr);
        }
        let before = self.pending.get();
        fn rest<T: PartialEq>(waits: Option<T>, told: Option<T>) -> Option<T> {
            if waits == told { None } else { waits }
        }
        let rest = Changes {
            mode: rest(before.mode, changes.mode),
            uid: rest(before.uid, changes.uid),
            gid: rest(before.gid, changes.gid),
            atime: rest(before.atime, changes.atime),
            mtime: rest(before.mtime, changes.mtime),
            ..before
        };
        let any = Changes { ctime: None, ..rest } != Changes::default();
        self.pending.set(if any { rest } else { Changes::default() });
    }

    /// Bytes up to `end` were written now.
    pub fn wrote(&self, end: u64) {
        self.length.set(self.length.get().max(end));
        self.touched();
    }

    /// Others may have changed the file, and the caller is to see that.
    pub fn doubt(&self) {
        self.edition.set(self.edition.get() + 1);
    }

    /// Bytes that were there changed now.
    pub fn touched(&self) {
        self.doubt();
        // A time that was set before is over.
        self.pending.set(Changes { mtime: None, ..self.pending.get() });
        self.unsynced.set(Unsynced { mtime: now(), ..self.unsynced.get() });
    }

    /// Bytes up to `end` are in storage, written under `epoch`. What is kept with the inode, its server knows.
    pub fn stored(&self, end: u64, epoch: u32) {
        if !self.inline.get() {
            self.reaches(end, epoch);
        }
    }

    /// The file is at least as long as `end`, by what was done under `epoch`.
    pub fn reaches(&self, end: u64, epoch: u32) {
        if epoch == self.epoch.get() {
            let unsynced = self.unsynced.get();
            self.unsynced.set(Unsynced { end: unsynced.end.max(end), ..unsynced });
            self.length.set(self.length.get().max(end));
        }
    }

    /// Bytes that were written could not be stored: the file ends where what is left of it does.
    pub fn recede(&self) {
        let end = self.held_end() + self.appends.waiting() as u64;
        self.length.set(self.length.get().min(end));
    }

    /// Where the bytes end that are stored or held.
    fn held_end(&self) -> u64 {
        let known = if self.attr.get().epoch == self.epoch.get() { self.attr.get().size } else { 0 };
        known.max(self.unsynced.get().end).max(self.behind.borrow().end())
    }

    /// Where all bytes end that have a place. Appends that wait have none.
    pub fn known_end(&self) -> u64 {
        self.held_end().max(self.under_way.get().1)
    }

    /// The metadata servers know this now, and `attr` is what it gave.
    pub fn synced(&self, pushed: Unsynced, attr: &Attr) {
        if pushed.mtime != 0 {
            self.learn(&Changes { mtime: Some(Time::Now), ..Changes::default() }, attr);
        }
        let mut unsynced = self.unsynced.get();
        if unsynced.end <= pushed.end {
            unsynced.end = 0;
        }
        if unsynced.mtime == pushed.mtime {
            unsynced.mtime = 0;
        }
        self.unsynced.set(unsynced);
    }

    pub fn fail(&self, error: Error) {
        let mut failures = self.failures.borrow_mut();
        failures.count += 1;
        failures.last = Some(error);
    }
}

/// A mode without what makes a program run as its owner or group; where the group can't execute, the bit never meant that.
pub fn without_set_ids(mode: u32) -> u32 {
    let group = if mode & 0o010 != 0 { 0o2000 } else { 0 };
    mode & !(0o4000 | group)
}

/// A time that was chosen already.
fn at(time: Time) -> i64 {
    match time {
        Time::At(time) => time,
        Time::Now => now(),
    }
}

/// Wall-clock time in nanoseconds since the epoch.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::plain;

    fn attr(size: u64, epoch: u32) -> Attr {
        let layout = Layout { chunk_size: 65536, stripe: 1, table_id: 1, table_version: 1, seed: 0 };
        let times = Attr { atime: 1, mtime: 1, ctime: 1, btime: 1, ..plain(9) };
        Attr { size, epoch, layout: Some(layout), ..times }
    }

    fn inode(size: u64) -> Inode {
        let attr = attr(size, 1);
        Inode::new(attr, attr.layout.unwrap())
    }

    #[test]
    fn lengths_grow_within_an_epoch_and_start_anew_with_the_next() {
        let inode = inode(100);
        inode.wrote(500);
        inode.absorb(&attr(200, 1));
        assert_eq!(inode.attr().size, 500, "what was written here counts");
        inode.absorb(&attr(900, 1));
        assert_eq!(inode.attr().size, 900, "and what grew elsewhere");
        inode.stored(500, 1);
        inode.absorb(&attr(10, 2));
        assert_eq!((inode.attr().size, inode.unsynced.get().end), (10, 0), "a truncation elsewhere");
        inode.absorb(&attr(900, 1));
        inode.stored(800, 1);
        assert_eq!((inode.attr().size, inode.unsynced.get().end), (10, 0), "news from before it");
    }

    #[test]
    fn a_new_owner_gets_no_set_id_bits_that_wait() {
        let inode = inode(0);
        inode.sessions.begun(7, corefs_wire::ClientId(1));
        let mode = |mode| Changes { mode: Some(mode), ..Changes::default() };
        assert!(inode.defer(&mode(0o6755)));
        inode.supersede(&Changes { uid: Some(9), ..Changes::default() }, &attr(0, 1));
        assert_eq!(inode.attr().mode, 0o755);
        // Where the group can't execute, the bit never meant that.
        let inode = self::inode(0);
        inode.sessions.begun(7, corefs_wire::ClientId(1));
        assert!(inode.defer(&mode(0o2664)));
        inode.supersede(&Changes { gid: Some(9), ..Changes::default() }, &attr(0, 1));
        assert_eq!(inode.attr().mode, 0o2664);
    }

    #[test]
    fn what_is_decided_while_changes_are_told_waits_on() {
        let inode = inode(0);
        inode.sessions.begun(7, corefs_wire::ClientId(1));
        assert!(inode.defer(&Changes { mode: Some(0o664), mtime: Some(Time::At(5)), ..Changes::default() }));
        let told = inode.to_tell().unwrap();
        assert_eq!(inode.to_tell().as_ref(), Some(&told), "nothing is lost when that fails");
        assert!(inode.defer(&Changes { mtime: Some(Time::At(6)), ..Changes::default() }));
        inode.told(&told, Some(&Attr { mtime: 5, ..attr(0, 1) }));
        let rest = inode.to_tell().unwrap();
        assert_eq!((rest.mode, rest.mtime), (None, Some(Time::At(6))));
        assert_eq!(rest.known.map(|known| known.mtime), Some(5), "what was told isn't somebody else's");
        inode.told(&rest, None);
        assert!(inode.to_tell().is_none() && !inode.has_news());
    }

    #[test]
    fn only_what_was_pushed_is_synced() {
        let inode = inode(0);
        inode.wrote(10);
        inode.stored(10, 1);
        let pushed = inode.unsynced.get();
        inode.stored(20, 1);
        inode.synced(pushed, &attr(10, 1));
        assert_eq!(inode.unsynced.get(), Unsynced { end: 20, mtime: 0 });
        inode.wrote(30);
        inode.synced(Unsynced { end: 20, mtime: 0 }, &attr(20, 1));
        let left = inode.unsynced.get();
        assert!(left.end == 0 && left.mtime != 0);
    }
}
