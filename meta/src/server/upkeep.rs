//! What a server does unasked: it stays known to the managers, removes garbage, finishes truncations, settles what dead
//! clients left. Every task can be killed at any point, and may run at several servers at once.

use super::Shared;
use crate::gc::{GcCursor, GcLimits};
use crate::trash::TrashCursor;
use corefs_kv::KvEngine;
use corefs_net::executor::{sleep, spawn};
use corefs_wire::Result;
use corefs_wire::control::mgmtd::RegisterMetaT;
use corefs_wire::routing::RoutingInfo;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Between rounds over a garbage queue that has been gone through. A file goes in the first round that finds it and the grace over: its space is free
/// later by the grace and up to two pauses, also after whoever held it without a name has let it go.
const GC_PAUSE: Duration = Duration::from_millis(250);
/// Longer than an answer and a question take on a busy network.
const GC_GRACE: Duration = Duration::from_millis(500);
/// Between rounds over truncations that nobody came back for, and dead clients. A client is dead many seconds after
/// its last word anyway.
const TIDY_PAUSE: Duration = Duration::from_secs(3);
/// After a round that failed.
const FAILURE_PAUSE: Duration = Duration::from_secs(2);
/// Between looks for trees that were thrown away.
const TRASH_PAUSE: Duration = Duration::from_millis(500);
/// Between two rounds, for others.
const TRASH_BREATH: Duration = Duration::from_millis(2);
/// Rows of the garbage queue beyond which names of those trees wait: files that others remove shall not wait behind all of theirs.
const QUEUE_LONG: u64 = 1 << 16;

/// What was done so far.
#[derive(Default)]
pub(super) struct Upkeep {
    pub inodes_removed: Cell<u64>,
    pub names_removed: Cell<u64>,
    /// Rows of the garbage queue, as far as the last pass over it has come.
    pub queued: Cell<u64>,
    pub sessions_settled: Cell<u64>,
    pub failures: Cell<u64>,
}

fn add(counter: &Cell<u64>, more: usize) {
    counter.set(counter.get() + more as u64);
}

/// Starts the tasks; they end soon after the server stops.
pub(super) fn start<E: KvEngine>(shared: &Rc<Shared<E>>, lease: Duration) {
    spawn(stay_known(Rc::clone(shared), lease)).detach();
    spawn(collect(Rc::clone(shared))).detach();
    spawn(empty_trash(Rc::clone(shared))).detach();
    spawn(trim(Rc::clone(shared))).detach();
    spawn(tidy(Rc::clone(shared))).detach();
}

impl<E: KvEngine> Shared<E> {
    /// Tells the managers that we are here, and takes their routing. Returns for how long they believe it.
    pub async fn register(&self) -> Result<Duration> {
        let mut request = RegisterMetaT::default();
        request.address = self.address.to_string();
        request.incarnation = self.incarnation;
        request.routing_version = self.client.routing().version;
        let reply = self.client.manager(&request).await?;
        if let Some(routing) = &reply.routing {
            self.client.set_routing(RoutingInfo::from_message(routing)?);
        }
        Ok(Duration::from_millis(reply.lease_ms.into()).max(Duration::from_millis(100)))
    }

    fn failed(&self, what: &str, error: &dyn std::fmt::Display) {
        add(&self.upkeep.failures, 1);
        if !self.stopping.get() {
            tracing::warn!(%error, "{what}");
        }
    }
}

async fn stay_known<E: KvEngine>(shared: Rc<Shared<E>>, mut lease: Duration) {
    loop {
        sleep(lease / 3).await;
        if shared.stopping.get() {
            return;
        }
        match shared.register().await {
            Ok(granted) => lease = granted,
            Err(error) => shared.failed("the managers don't hear from this server", &error),
        }
    }
}

async fn collect<E: KvEngine>(shared: Rc<Shared<E>>) {
    let limits = GcLimits { grace: GC_GRACE, ..GcLimits::default() };
    let (mut cursor, mut seen) = (GcCursor::default(), 0);
    while !shared.stopping.get() {
        let pause = match shared.namespace.collect_garbage(&mut cursor, limits).await {
            Ok(collected) => {
                add(&shared.upkeep.inodes_removed, collected.removed);
                seen += collected.seen as u64;
                let queued = &shared.upkeep.queued;
                queued.set(if collected.more { queued.get().max(seen) } else { std::mem::take(&mut seen) });
                if let Some(error) = &collected.error {
                    shared.failed("chunks of removed files stay for now", error);
                }
                match (collected.failed, collected.more || collected.unfinished > 0) {
                    (1.., _) => FAILURE_PAUSE,
                    (0, true) => continue,
                    (0, false) => GC_PAUSE,
                }
            }
            Err(error) => {
                shared.failed("the garbage queue can't be read", &error);
                FAILURE_PAUSE
            }
        };
        sleep(pause).await;
    }
}

async fn empty_trash<E: KvEngine>(shared: Rc<Shared<E>>) {
    let mut cursor = TrashCursor::default();
    while !shared.stopping.get() {
        let pause = match shared.namespace.empty_trash(&mut cursor).await {
            Ok(emptied) => {
                add(&shared.upkeep.names_removed, emptied.removed);
                if let Some(error) = &emptied.error {
                    shared.failed("names in trees that were removed stay for now", error);
                }
                match emptied.more {
                    true if shared.upkeep.queued.get() < QUEUE_LONG => TRASH_BREATH,
                    true => GC_PAUSE,
                    false if emptied.failed > 0 => FAILURE_PAUSE,
                    false => TRASH_PAUSE,
                }
            }
            Err(error) => {
                shared.failed("trees that were removed stay for now", &error);
                FAILURE_PAUSE
            }
        };
        sleep(pause).await;
    }
}

async fn trim<E: KvEngine>(shared: Rc<Shared<E>>) {
    while !shared.stopping.get() {
        if let (_, Err(error)) = shared.namespace.finish_trims().await {
            shared.failed("a truncation isn't finished", &error);
        }
        sleep(TIDY_PAUSE).await;
    }
}

async fn tidy<E: KvEngine>(shared: Rc<Shared<E>>) {
    while !shared.stopping.get() {
        match shared.namespace.settle_dead_clients().await {
            Ok(swept) => {
                add(&shared.upkeep.sessions_settled, swept.sessions_settled);
                if let Some(error) = &swept.error {
                    shared.failed("a dead client's session isn't settled", error);
                }
            }
            Err(error) => shared.failed("dead clients can't be settled", &error),
        }
        sleep(TIDY_PAUSE).await;
    }
}
