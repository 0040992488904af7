//! A log of what a real disk was asked, in order: the simulation makes power-cut images from it.
//!
//! The shard's disk layer, when asked to record, appends one event for each submission and completion it sees;
//! the acknowledgments that leave the shard are marked in the same order. An event is a byte of kind, three
//! zeros, a u32 length of bytes that follow the fixed part, and the fixed part, all little-endian:
//!
//! | kind | event | fixed part | bytes |
//! |---|---|---|---|
//! | 1 | write submitted | disk u32, 0 u32, operation u64, offset u64 | what is written |
//! | 2 | write completed | disk u32, 0 u32, operation u64, 0 u64 | |
//! | 3 | flush submitted | disk u32, 0 u32, operation u64, 0 u64 | |
//! | 4 | flush completed | disk u32, 0 u32, operation u64, 0 u64 | |
//! | 5 | mark | 0 u32, 0 u32, 0 u64, 0 u64 | what the marker means, up to its reader |

use super::codec::{Get, Put};
use corefs_wire::{ChunkId, Error, ErrorCode, Result, TargetId};

/// Bytes of an event before its variable part.
const FIXED: usize = 32;

/// One thing that happened. `disk` is the index of a slice, and offsets are relative to it; `operation` ties a
/// completion to its submission and is unique in the log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DiskEvent<'a> {
    WriteSubmitted {
        disk: u32,
        operation: u64,
        offset: u64,
        bytes: &'a [u8],
    },
    WriteCompleted {
        disk: u32,
        operation: u64,
    },
    FlushSubmitted {
        disk: u32,
        operation: u64,
    },
    FlushCompleted {
        disk: u32,
        operation: u64,
    },
    /// Something was promised at this moment, for example an acknowledgment.
    Mark {
        bytes: &'a [u8],
    },
}

impl DiskEvent<'_> {
    /// Appends the event's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (kind, disk, operation, offset, bytes): (u8, u32, u64, u64, &[u8]) = match *self {
            Self::WriteSubmitted { disk, operation, offset, bytes } => (1, disk, operation, offset, bytes),
            Self::WriteCompleted { disk, operation } => (2, disk, operation, 0, &[]),
            Self::FlushSubmitted { disk, operation } => (3, disk, operation, 0, &[]),
            Self::FlushCompleted { disk, operation } => (4, disk, operation, 0, &[]),
            Self::Mark { bytes } => (5, 0, 0, 0, bytes),
        };
        out.extend_from_slice(&[kind, 0, 0, 0]);
        out.u32(bytes.len() as u32);
        out.u32(disk);
        out.u32(0);
        out.u64(operation);
        out.u64(offset);
        out.extend_from_slice(bytes);
    }
}

/// The mark of an acknowledged update: from here on, `version` of the chunk is promised to be durable on the slice
/// (committed or pending). As bytes: 1 u32, disk u32, target u64, chunk (inode u64, index u32, generation u32),
/// version u64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Acknowledged {
    pub disk: u32,
    pub target: TargetId,
    pub chunk: ChunkId,
    pub version: u64,
}

impl Acknowledged {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(40);
        out.u32(1);
        out.u32(self.disk);
        out.u64(self.target.0);
        out.chunk_id(self.chunk);
        out.u64(self.version);
        out
    }

    /// `None` for marks of other kinds.
    pub fn decode(mark: &[u8]) -> Option<Self> {
        let mut get = Get(mark);
        let (kind, disk, target) = (get.u32()?, get.u32()?, TargetId(get.u64()?));
        let found = Self { disk, target, chunk: get.chunk_id()?, version: get.u64()? };
        (kind == 1 && get.is_empty()).then_some(found)
    }
}

/// Reads a log. A last event cut short (the recorder was killed) ends it; anything else that is wrong is an error.
#[derive(Clone, Debug)]
pub struct DiskLogReader<'a> {
    rest: &'a [u8],
}

impl<'a> DiskLogReader<'a> {
    pub fn new(log: &'a [u8]) -> Self {
        Self { rest: log }
    }

    fn fields(&mut self) -> Option<(u8, u32, u64, u64, &'a [u8])> {
        let (fixed, rest) = self.rest.split_at_checked(FIXED)?;
        let mut get = Get(fixed);
        let (kind, len) = (get.u32()? as u8, get.u32()?);
        let (disk, _) = (get.u32()?, get.u32()?);
        let (operation, offset) = (get.u64()?, get.u64()?);
        let (bytes, rest) = rest.split_at_checked(len as usize)?;
        self.rest = rest;
        Some((kind, disk, operation, offset, bytes))
    }
}

impl<'a> Iterator for DiskLogReader<'a> {
    type Item = Result<DiskEvent<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let (kind, disk, operation, offset, bytes) = self.fields()?;
        Some(match kind {
            1 => Ok(DiskEvent::WriteSubmitted { disk, operation, offset, bytes }),
            2 => Ok(DiskEvent::WriteCompleted { disk, operation }),
            3 => Ok(DiskEvent::FlushSubmitted { disk, operation }),
            4 => Ok(DiskEvent::FlushCompleted { disk, operation }),
            5 => Ok(DiskEvent::Mark { bytes }),
            _ => {
                self.rest = &[];
                Err(Error::mismatch(ErrorCode::BadFormat, 5, kind.into(), "unknown event in a disk log"))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::InodeId;

    #[test]
    fn reads_what_it_writes_and_stops_at_a_cut() {
        let events = [
            DiskEvent::WriteSubmitted { disk: 2, operation: 7, offset: 4096, bytes: &[9; 4096] },
            DiskEvent::WriteCompleted { disk: 2, operation: 7 },
            DiskEvent::FlushSubmitted { disk: 2, operation: 8 },
            DiskEvent::FlushCompleted { disk: 2, operation: 8 },
            DiskEvent::Mark { bytes: b"acknowledged" },
        ];
        let mut log = Vec::new();
        events.iter().for_each(|event| event.encode(&mut log));
        let read: Result<Vec<_>> = DiskLogReader::new(&log).collect();
        assert_eq!(read.as_deref(), Ok(&events[..]));
        assert_eq!(DiskLogReader::new(&log[..log.len() - 1]).count(), events.len() - 1);
        let promise =
            Acknowledged { disk: 3, target: TargetId(4), chunk: ChunkId::new(InodeId(5), 6), version: 7 };
        assert_eq!(Acknowledged::decode(&promise.encode()), Some(promise));
        assert_eq!(Acknowledged::decode(b"something else"), None);
        log[0] = 77;
        assert!(DiskLogReader::new(&log).next().is_some_and(|event| event.is_err()));
    }
}
