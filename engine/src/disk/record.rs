//! The log of everything that a shard asked its disks, and of what it promised on the strength of it.
//!
//! Off unless asked for: it copies every byte written. One file a shard. A "disk" of the log is a slice, by its index, and
//! offsets are of the slice. It begins with what the slices held then, so that it can be played back by itself.

use super::BlockingDisk;
use super::open::Extent;
use crate::store::Geometry;
use crate::store::disk_log::{Acknowledged, DiskEvent};
use corefs_net::Token;
use corefs_wire::{Error, Result, SliceIndex};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Bytes of one write of the beginning.
const PIECE: u64 = 1 << 20;

/// Appends to one log.
pub struct Recorder {
    file: File,
    event: Vec<u8>,
    next: u64,
    /// The operations of each token in flight, and their slices: several for a flush.
    open: BTreeMap<u64, Vec<(u64, u32)>>,
}

impl Recorder {
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|error| Error::from(error).of(path.display()))?;
        Ok(Self { file, event: Vec::new(), next: 1, open: BTreeMap::new() })
    }

    /// Logs what a slice holds now. Of a `fresh` one only the metadata matter: nothing names its data yet.
    pub fn begin_with(
        &mut self,
        slice: SliceIndex,
        disk: &mut dyn BlockingDisk,
        extent: Extent,
        geometry: &Geometry,
        fresh: bool,
    ) -> Result<()> {
        self.append(&DiskEvent::Mark {
            bytes: format!("slice {} bytes {}", slice.0, extent.bytes).as_bytes(),
        });
        let last = geometry.superblock_offset(1);
        let head = if fresh { geometry.data_offset(0) } else { last };
        for (start, end) in [(0, head), (last, extent.bytes)] {
            let mut offset = start;
            while offset < end {
                let mut bytes = vec![0; (end - offset).min(PIECE) as usize];
                disk.read_at(extent.base + offset, &mut bytes)?;
                let (disk, operation) = (slice.0.into(), self.number());
                self.append(&DiskEvent::WriteSubmitted { disk, operation, offset, bytes: &bytes });
                self.append(&DiskEvent::WriteCompleted { disk, operation });
                offset += bytes.len() as u64;
            }
        }
        let (disk, operation) = (slice.0.into(), self.number());
        self.append(&DiskEvent::FlushSubmitted { disk, operation });
        self.append(&DiskEvent::FlushCompleted { disk, operation });
        Ok(())
    }

    pub fn write(&mut self, slice: SliceIndex, token: Token, offset: u64, bytes: &[u8]) {
        let (disk, operation) = (slice.0.into(), self.number());
        self.open.insert(token.payload(), vec![(operation, disk)]);
        self.append(&DiskEvent::WriteSubmitted { disk, operation, offset, bytes });
    }

    /// A flush covers all slices on its disk.
    pub fn flush(&mut self, slices: impl Iterator<Item = SliceIndex>, token: Token) {
        let mut begun = Vec::new();
        for slice in slices {
            let (disk, operation) = (slice.0.into(), self.number());
            self.append(&DiskEvent::FlushSubmitted { disk, operation });
            begun.push((operation, disk));
        }
        self.open.insert(token.payload(), begun);
    }

    /// What was begun under this token has succeeded.
    pub fn complete(&mut self, token: Token, flush: bool) {
        for (operation, disk) in self.open.remove(&token.payload()).unwrap_or_default() {
            self.append(&match flush {
                true => DiskEvent::FlushCompleted { disk, operation },
                false => DiskEvent::WriteCompleted { disk, operation },
            });
        }
    }

    /// An update is about to be acknowledged.
    pub fn acknowledged(&mut self, acknowledged: &Acknowledged) {
        self.append(&DiskEvent::Mark { bytes: &acknowledged.encode() });
    }

    fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
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
