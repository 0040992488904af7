//! What goes on in the background while a client lives: the lease, routing, bytes that waited long enough, handles that were
//! dropped. Each task holds the client weakly and ends with it.
//!
//! The waits here are the executor's timers and not the node's: those tick every 10 ms as long as anybody sleeps.

use super::{Client, Inner};
use crate::file::close_handle;
use crate::inode::Inode;
use crate::join;
use corefs_net::executor::{sleep, spawn};
use corefs_wire::Result;
use corefs_wire::control::mgmtd::EndClientT;
use std::rc::{Rc, Weak};
use std::time::Duration;

/// How long the managers may hold our question for newer routing.
const LONG_POLL: Duration = Duration::from_secs(10);
/// After a question that failed.
const PAUSE: Duration = Duration::from_millis(500);
/// How often the rest is looked after.
const ROUND: Duration = Duration::from_millis(500);
/// Bytes don't wait longer than this for more of their kind.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Files that are made known again at once.
const SESSIONS_AT_ONCE: usize = 16;

pub fn start(inner: &Rc<Inner>) {
    spawn(keep_lease(Rc::downgrade(inner))).detach();
    spawn(keep_sessions(Rc::downgrade(inner))).detach();
    spawn(keep_routing(Rc::downgrade(inner))).detach();
    spawn(keep_house(Rc::downgrade(inner))).detach();
    spawn(keep_orphans(Rc::downgrade(inner))).detach();
}

fn alive(inner: &Weak<Inner>) -> Option<Rc<Inner>> {
    inner.upgrade().filter(|inner| !inner.ground.closed.get())
}

async fn keep_lease(weak: Weak<Inner>) {
    while let Some(third) = alive(&weak).map(|inner| inner.lease() / 3) {
        sleep(third).await;
        let Some(inner) = alive(&weak) else { return };
        if let Err(error) = inner.have_lease().await
            && !inner.ground.closed.get()
        {
            tracing::warn!(%error, "this client has no lease");
        }
    }
}

/// Files that are open are made known again as soon as there is another lease.
async fn keep_sessions(weak: Weak<Inner>) {
    loop {
        let Some(inner) = alive(&weak) else { return };
        let lapsed = inner.all_live().into_iter().filter(|inode| inner.is_lapsed(inode)).collect::<Vec<_>>();
        for group in lapsed.chunks(SESSIONS_AT_ONCE) {
            for outcome in join::all(group.iter().map(|inode| inner.current(inode))).await {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "making an open file known again");
                }
            }
        }
        inner.ends.send(&inner.meta).await;
        drop(inner);
        sleep(ROUND).await;
    }
}

async fn keep_routing(weak: Weak<Inner>) {
    while let Some(inner) = alive(&weak) {
        let ground = Rc::clone(&inner.ground);
        drop(inner);
        if let Err(error) = ground.fetch_once(LONG_POLL).await {
            if ground.closed.get() {
                return;
            }
            tracing::debug!(%error, "asking for newer routing");
            sleep(PAUSE).await;
        }
    }
}

async fn keep_house(weak: Weak<Inner>) {
    loop {
        sleep(ROUND).await;
        let Some(inner) = alive(&weak) else { return };
        inner.inodes.borrow_mut().retain(|_, inode| inode.strong_count() > 0);
        inner.unheld.borrow_mut().retain(|inode| inner.live(*inode).is_some());
        let now = inner.ground.now();
        for inode in inner.all_live() {
            let long = |since: Duration| now.saturating_sub(since) >= WAIT_MAX;
            let since = inode.behind.borrow().waiting_since();
            if since.is_some_and(long) {
                inner.launch_all(&inode);
            }
            if inode.appends.waiting_since().is_some_and(long) {
                inner.launch_appends(&inode);
            }
        }
    }
}

async fn keep_orphans(weak: Weak<Inner>) {
    loop {
        sleep(ROUND).await;
        let Some(inner) = alive(&weak) else { return };
        close_orphans(&inner).await;
    }
}

async fn close_orphans(inner: &Rc<Inner>) {
    let orphans = inner.orphans.take();
    for orphan in orphans {
        let id = orphan.inode.id();
        if let Err(error) = close_handle(inner, &orphan.inode, orphan.session, &orphan.who).await {
            tracing::warn!(%error, inode = %id, "a file could not be closed: that is tried again while servers can't be reached");
        }
    }
}

/// Everything that is open, written and closed; then the lease; then the endpoint if it is ours.
pub async fn close(inner: &Rc<Inner>) -> Result<()> {
    if inner.ground.closed.get() {
        return Ok(());
    }
    let mut outcome = Ok(());
    close_orphans(inner).await;
    for inode in inner.all_live() {
        outcome = outcome.and(close_inode(inner, &inode).await);
    }
    inner.ends.finish(&inner.meta).await;
    inner.ground.closed.set(true);
    inner.ground.news.wake_all();
    if inner.owns_node {
        let mut request = EndClientT::default();
        request.client = inner.storage.client().0.0;
        if let Err(error) = inner.ground.manager(&request).await {
            tracing::debug!(%error, "ending the client's lease: it runs out by itself");
        }
        inner.ground.node.shutdown().await;
    }
    outcome
}

async fn close_inode(inner: &Rc<Inner>, inode: &Rc<Inode>) -> Result<()> {
    let mut outcome = Ok(());
    for session in inode.sessions.names() {
        outcome = outcome.and(close_handle(inner, inode, session, &crate::Credentials::root()).await);
    }
    outcome
}

impl Drop for Client {
    fn drop(&mut self) {
        // The last handle of a client with an endpoint of its own, not closed: the endpoint's task must not live on for ever.
        if Rc::strong_count(&self.0) == 1 && self.0.owns_node && !self.0.ground.closed.replace(true) {
            tracing::debug!("a client was dropped without being closed");
            self.0.ground.news.wake_all();
        }
    }
}
