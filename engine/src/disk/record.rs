//! The log of everything that a shard asked its disks, and of what it promised on the strength of it.
//!
//! Off unless asked for: it copies every byte written. One file a shard; its first marks name the slices.

use crate::store::disk_log::DiskEvent;
use corefs_net::Token;
use corefs_wire::{Error, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Appends to one log. `disk` is the position of the file among the shard's; offsets are of the file.
pub struct Recorder {
    file: File,
    event: Vec<u8>,
    next: u64,
    /// The operation of each token in flight.
    open: BTreeMap<u64, (u64, u32)>,
}

impl Recorder {
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|error| Error::from(error).of(path.display()))?;
        Ok(Self { file, event: Vec::new(), next: 1, open: BTreeMap::new() })
    }

    pub fn write(&mut self, disk: u32, token: Token, offset: u64, bytes: &[u8]) {
        let operation = self.begin(disk, token);
        self.append(&DiskEvent::WriteSubmitted { disk, operation, offset, bytes });
    }

    pub fn flush(&mut self, disk: u32, token: Token) {
        let operation = self.begin(disk, token);
        self.append(&DiskEvent::FlushSubmitted { disk, operation });
    }

    /// Something begun under this token has succeeded.
    pub fn complete(&mut self, token: Token, flush: bool) {
        if let Some((operation, disk)) = self.open.remove(&token.payload()) {
            self.append(&match flush {
                true => DiskEvent::FlushCompleted { disk, operation },
                false => DiskEvent::WriteCompleted { disk, operation },
            });
        }
    }

    pub fn mark(&mut self, text: &str) {
        self.append(&DiskEvent::Mark { bytes: text.as_bytes() });
    }

    fn begin(&mut self, disk: u32, token: Token) -> u64 {
        let operation = self.next;
        self.next += 1;
        self.open.insert(token.payload(), (operation, disk));
        operation
    }

    fn append(&mut self, event: &DiskEvent<'_>) {
        self.event.clear();
        event.encode(&mut self.event);
        // A log that can't be written ends: its reader takes what is there.
        if let Err(error) = self.file.write_all(&self.event) {
            tracing::error!(%error, "the disk log is cut off here");
        }
    }
}
