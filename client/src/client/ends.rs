//! Sessions that no handle is left for and that have nothing to tell: many end in one request, a moment later.
//!
//! A file that is created and closed, or opened and not written, would else cost a commit more than the program asked for.

use crate::meta::Meta;
use corefs_net::executor::{sleep, spawn};
use corefs_wire::limits::SESSIONS_MAX;
use corefs_wire::{Class, InodeId};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// How long the first one waits for others.
const GATHER: Duration = Duration::from_millis(20);
/// Requests under way at a time.
const SENDERS_MAX: u32 = 4;

#[derive(Default)]
pub struct Ends {
    waiting: RefCell<Vec<(InodeId, u64)>>,
    senders: Cell<u32>,
}

/// A request that is under way, or gathers. Ends also when its task is dropped.
struct Sender(Rc<Ends>);

impl Sender {
    fn new(ends: &Rc<Ends>) -> Self {
        ends.senders.set(ends.senders.get() + 1);
        Self(Rc::clone(ends))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.senders.set(self.0.senders.get() - 1);
    }
}

impl Ends {
    /// Has a session ended, soon. 0 is none.
    pub fn add(self: &Rc<Self>, meta: &Meta, inode: InodeId, session: u64) {
        if session == 0 {
            return;
        }
        self.waiting.borrow_mut().push((inode, session));
        let full = self.waiting.borrow().len() >= SESSIONS_MAX;
        if self.senders.get() > 0 && !(full && self.senders.get() < SENDERS_MAX) {
            return;
        }
        let (sender, meta) = (Sender::new(self), meta.clone());
        spawn(async move {
            if !full {
                sleep(GATHER).await;
            }
            sender.0.send(&meta).await;
        })
        .detach();
    }

    /// Whether a session of an inode waits to be ended.
    pub fn has(&self, inode: InodeId) -> bool {
        self.waiting.borrow().iter().any(|(waiting, _)| *waiting == inode)
    }

    /// Ends those that wait. They wait on while no server can be reached, for whoever calls next.
    pub async fn send(&self, meta: &Meta) {
        loop {
            let batch: Vec<_> = {
                let mut waiting = self.waiting.borrow_mut();
                let count = waiting.len().min(SESSIONS_MAX);
                waiting.drain(..count).collect()
            };
            if batch.is_empty() {
                return;
            }
            match meta.end_sessions(&batch).await {
                Ok(()) => {}
                Err(error) if error.class() != Class::Fatal => {
                    tracing::debug!(%error, "ending sessions");
                    return self.waiting.borrow_mut().extend(batch);
                }
                // Nothing that another attempt could mend. They end with the lease.
                Err(error) => tracing::warn!(%error, "sessions can't be ended"),
            }
        }
    }

    /// Ends those that wait, and returns when no request is under way any more.
    pub async fn finish(&self, meta: &Meta) {
        self.send(meta).await;
        while self.senders.get() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    }
}
