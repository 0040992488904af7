//! What the store keeps its rows in: the tree, the log, and in memory what only the log has.
//!
//! When an area of the log is full its rows **set out**: a thread of its own writes them into the tree, while commits go into the other
//! area. When that is full, too, and the rows haven't arrived, commits wait for them. So there are never more rows in memory than the log has,
//! but for those that held snapshots keep. A group that is larger than an area goes into the tree at once, with all that was logged. Rows also set out
//! with the next commit when the first of them is [`DUE_AFTER`] old, if they are many: where little is committed, reads needn't look through those of long ago.
//!
//! Invariants: one transaction of the tree at a time. Rows set out with the version of the newest among them, and the tree names that version
//! once it has them: an area is written over only after that.

use super::layer::{self, Layer, Rows, Tree};
use super::log::{Log, Room};
use super::recent::{Change, Changes};
use super::tree;
pub use super::tree::Failed;
use corefs_wire::{Error, ErrorCode, Result};
use redb::Database;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long rows may be in memory alone when they have taken [`DUE_BYTES`] of the log.
const DUE_AFTER: Duration = Duration::from_secs(2);
/// As many as used to be worth a transaction of the tree.
const DUE_BYTES: u64 = 1 << 20;

/// Rows on their way, and the newest version among them.
type Leaving = (Arc<Rows>, u64);
type Arrived = Result<Tree, Failed>;

pub struct Files {
    database: Arc<Database>,
    log: Log,
    /// The number by which the tree knows the log's records.
    life: u64,
    /// The newest.
    layer: Arc<Layer>,
    /// The version of the newest row that only the log has; that of the tree if there is none.
    version: u64,
    /// When the oldest of the rows in memory that aren't on their way was written, by the store's clock.
    began: Option<Duration>,
    /// Rows are on their way.
    busy: bool,
    carrier: Carrier,
}

/// The thread that writes the tree beside commits.
struct Carrier {
    leaving: SyncSender<Leaving>,
    arrived: Receiver<Arrived>,
    thread: JoinHandle<()>,
}

impl Carrier {
    fn start(database: Arc<Database>, life: u64) -> Result<Self> {
        let (leaving, tasks) = sync_channel::<Leaving>(1);
        let (done, arrived) = sync_channel(1);
        let work = move || {
            for (rows, version) in tasks {
                let outcome = tree::merge(&database, version, life, &rows.read(), &Changes::new());
                let outcome = outcome.and_then(|()| layer::tree(&database).map_err(Failed::Unknown));
                if done.send(outcome).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("kv-tree".into()).spawn(work)?;
        Ok(Self { leaving, arrived, thread })
    }
}

impl Files {
    /// Of a tree whose life has begun with `version`.
    pub fn new(database: Database, log: Log, life: u64, version: u64) -> Result<Self> {
        let layer = Arc::new(Layer::new(layer::tree(&database)?));
        let database = Arc::new(database);
        let carrier = Carrier::start(database.clone(), life)?;
        Ok(Self { database, log, life, layer, version, began: None, busy: false, carrier })
    }

    pub fn layer(&self) -> &Arc<Layer> {
        &self.layer
    }

    /// Makes what a group did at `version` durable and readable, at `now` by the store's clock. Gives the new layer when one has begun.
    pub fn write(
        &mut self,
        version: u64,
        mut changes: Changes,
        oldest: u64,
        now: Duration,
    ) -> Result<Option<Arc<Layer>>, Failed> {
        let mut room = if self.is_due(now) { Room::Elsewhere } else { self.append(version, &changes)? };
        let begun = room == Room::Elsewhere;
        if begun {
            // The rows of the other area must have arrived before it is written over.
            self.wait().map_err(Failed::before)?;
            self.set_out();
            self.log.turn();
            // What only recent rows had is below them now.
            let forgotten = changes.values_mut().filter(|change| **change == Change::Forget);
            forgotten.for_each(|change| *change = Change::Remove);
            room = self.append(version, &changes)?;
        }
        if room != Room::Taken {
            return self.write_at_once(version, &changes).map(Some);
        }
        self.layer.take_in(changes, version, oldest);
        self.version = version;
        self.began.get_or_insert(now);
        Ok(begun.then(|| self.layer.clone()))
    }

    fn is_due(&self, now: Duration) -> bool {
        let old = self.began.is_some_and(|began| now.saturating_sub(began) >= DUE_AFTER);
        old && !self.busy && self.log.used() >= DUE_BYTES
    }

    fn append(&mut self, version: u64, changes: &Changes) -> Result<Room, Failed> {
        self.log.append(version, changes).map_err(Failed::Unknown)
    }

    /// A group that no area has room for goes into the tree, with what was logged before it.
    fn write_at_once(&mut self, version: u64, changes: &Changes) -> Result<Arc<Layer>, Failed> {
        self.wait().map_err(Failed::before)?;
        tree::merge(&self.database, version, self.life, &self.layer.recent().read(), changes)?;
        self.log.start_over();
        self.began = None;
        // From here on the group is durable; who can't read it is told that nobody knows.
        self.layer = Arc::new(Layer::new(layer::tree(&self.database).map_err(Failed::Unknown)?));
        self.version = version;
        Ok(self.layer.clone())
    }

    fn set_out(&mut self) {
        let rows = self.layer.recent().clone();
        self.layer = Arc::new(self.layer.set_out());
        // There is room for one, and none is there. If the thread has panicked, waiting for it says so.
        self.busy = true;
        self.began = None;
        let _ = self.carrier.leaving.try_send((rows, self.version));
    }

    /// The new layer if the rows that had set out have arrived since this was asked last.
    pub fn arrived(&mut self) -> Result<Option<Arc<Layer>>, Failed> {
        if !self.busy {
            return Ok(None);
        }
        match self.carrier.arrived.try_recv() {
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Failed::Unknown(ended())),
            Ok(arrived) => self.take(arrived).map(Some),
        }
    }

    /// Waits until no row is on its way.
    fn wait(&mut self) -> Result<(), Failed> {
        if self.busy {
            let arrived = self.carrier.arrived.recv().map_err(|_| Failed::Unknown(ended()))?;
            self.take(arrived)?;
        }
        Ok(())
    }

    fn take(&mut self, arrived: Arrived) -> Result<Arc<Layer>, Failed> {
        self.busy = false;
        self.layer = Arc::new(self.layer.arrived(arrived?));
        Ok(self.layer.clone())
    }

    /// Ends the thread. Leaves a tree with everything up to `version` that needs no log, if it is `sound`.
    pub fn close(mut self, version: u64, sound: bool) -> Result<(), Failed> {
        let outcome = match self.wait() {
            Ok(()) if sound => {
                tree::merge(&self.database, version, 0, &self.layer.recent().read(), &Changes::new())
            }
            outcome => outcome,
        };
        let Carrier { leaving, arrived, thread } = self.carrier;
        drop((leaving, arrived));
        if thread.join().is_err() {
            tracing::error!("the thread of the key-value store's tree panicked");
        }
        outcome
    }
}

fn ended() -> Error {
    Error::new(ErrorCode::KvIo, "the thread that writes the tree has ended")
}
