//! What a replica has on its disk in the model: one chunk, as the list of updates that made it.

use std::collections::BTreeSet;

/// Names one client's only update.
pub type Write = u8;

/// An update that is on the disk and not committed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pending {
    pub write: Write,
    pub version: u64,
    pub chain_version: u64,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Disk {
    /// The committed updates, in order; as many as the committed version says.
    pub history: Vec<Write>,
    pub pending: Option<Pending>,
    /// The last update was committed in memory only: without power it may be pending again.
    pub unflushed: Option<Pending>,
    /// Updates that duplicate detection knows as done.
    pub rows: BTreeSet<Write>,
}

impl Disk {
    pub fn version(&self) -> u64 {
        self.history.len() as u64
    }

    /// What replicas compare of their chunk after an update: of the model's, all of it.
    pub fn digest_with(&self, write: Option<Write>) -> u32 {
        let writes = self.history.iter().copied().chain(write);
        writes.fold(1, |state, write| state * 8 + u32::from(write) + 1)
    }

    /// An update and its record are flushed, and with it what was committed before.
    pub fn stage(&mut self, pending: Pending, commit: bool) {
        self.unflushed = None;
        self.pending = Some(pending);
        if commit {
            self.commit();
            self.unflushed = None;
        }
    }

    pub fn commit(&mut self) {
        if let Some(pending) = self.pending.take() {
            self.history.push(pending.write);
            self.rows.insert(pending.write);
            self.unflushed = Some(pending);
        }
    }

    /// The power is gone; what was committed in memory is there or not.
    pub fn cut(&mut self, keeps: bool) {
        if let Some(pending) = self.unflushed.take()
            && !keeps
        {
            self.history.pop();
            self.rows.remove(&pending.write);
            self.pending = Some(pending);
        }
    }

    /// Whether the update is here, committed or not.
    pub fn holds(&self, write: Write) -> bool {
        self.history.contains(&write) || self.pending.is_some_and(|pending| pending.write == write)
    }
}
