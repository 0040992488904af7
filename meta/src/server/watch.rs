//! Tells clients what others changed, as it happens.
//!
//! A question waits at the server until there is something to tell. Whoever waits is woken a moment after a change, so that many changes are told at
//! once, and costs nothing until then.

use crate::watch::{Changes, Told, What};
use corefs_client::wait::Waiters;
use corefs_net::executor::{sleep, spawn};
use corefs_wire::control::meta::{ChangedNameT, WatchReplyT, WatchT};
use corefs_wire::limits::CHANGES_MAX;
use corefs_wire::{ClientId, Error, ErrorCode, Result};
use futures_lite::future::or;
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Clients that wait at a time.
const WATCHERS_MAX: usize = 16 << 10;
/// The longest that a question waits.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Between a change and the word of it, for others that happen meanwhile.
const GATHER: Duration = Duration::from_millis(5);
/// How often it is asked whether commits of unknown outcome are settled.
const SETTLE: Duration = Duration::from_millis(100);

/// The watchers of one server.
pub(super) struct Watchers {
    changes: Changes,
    life: u64,
    waiting: Waiters,
    count: Cell<usize>,
    /// Whoever waits will be woken.
    gathering: Cell<bool>,
    /// The server ends.
    ended: Cell<bool>,
}

impl Watchers {
    pub fn new(changes: Changes, life: u64) -> Rc<Self> {
        let (waiting, count) = (Waiters::default(), Cell::new(0));
        let (gathering, ended) = (Cell::new(false), Cell::new(false));
        let watchers = Rc::new(Self { changes, life, waiting, count, gathering, ended });
        let weak = Rc::downgrade(&watchers);
        watchers.changes.on_change(move || {
            if let Some(watchers) = weak.upgrade() {
                watchers.changed();
            }
        });
        watchers
    }

    pub fn count(&self) -> usize {
        self.count.get()
    }

    /// Nobody waits any more.
    pub fn end(&self) {
        self.ended.set(true);
        self.waiting.wake_all();
    }

    fn changed(self: &Rc<Self>) {
        if self.waiting.is_empty() || self.gathering.replace(true) {
            return;
        }
        let watchers = Rc::clone(self);
        spawn(async move {
            sleep(GATHER).await;
            watchers.gathering.set(false);
            watchers.waiting.wake_all();
        })
        .detach();
    }

    /// Answers when there is something that this client must hear, or has waited for long enough. `now`: the store's time.
    pub async fn watch(&self, request: &WatchT, now: impl Fn() -> Duration) -> Result<WatchReplyT> {
        if self.count.get() >= WATCHERS_MAX {
            let (most, found) = (WATCHERS_MAX as u64, self.count.get() as u64);
            return Err(Error::mismatch(ErrorCode::Overloaded, most, found, "too many clients watch"));
        }
        let _counted = Counted::new(&self.count);
        let ends = Instant::now() + Duration::from_millis(request.wait_ms.into()).min(WAIT_MAX);
        // Another life's numbers mean nothing here: none was ever given like this one.
        let is_known = request.since == 0 || request.life == self.life;
        let (mut since, mut gathered) = (if is_known { request.since } else { u64::MAX }, false);
        loop {
            if self.ended.get() {
                return Err(Error::new(ErrorCode::ShuttingDown, "this metadata server ends"));
            }
            let changed = self.waiting.next();
            match self.changes.ask(ClientId(request.client), since, now()) {
                // Who asks in the midst of changes waits for more of them, as who was woken by one did.
                Ok(told) if gathered || told.lost || told.what.len() == CHANGES_MAX => {
                    return Ok(self.reply(told));
                }
                Ok(_) => {
                    sleep(GATHER).await;
                    gathered = true;
                    continue;
                }
                Err(next) => since = next,
            }
            let left = ends.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(self.reply(Told { next: since, lost: since == 0, what: Vec::new() }));
            }
            // Nothing wakes whoever waits for unknown commits to settle.
            let pause = if since == 0 { left.min(SETTLE) } else { left };
            or(changed, sleep(pause)).await;
            gathered = true;
        }
    }

    fn reply(&self, told: Told) -> WatchReplyT {
        let mut reply = WatchReplyT::default();
        (reply.life, reply.next, reply.lost) = (self.life, told.next, told.lost);
        for what in told.what {
            match what {
                What::Inode(inode) => reply.inodes.push(inode.0),
                What::Name(parent, name) => {
                    let mut changed = ChangedNameT::default();
                    (changed.parent, changed.name) = (parent.0, name);
                    reply.names.push(changed);
                }
            }
        }
        reply
    }
}

/// One more, while it lives.
struct Counted<'a>(&'a Cell<usize>);

impl<'a> Counted<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
