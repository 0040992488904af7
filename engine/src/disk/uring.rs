//! The disks of one shard on its ring: registered files, fixed buffers, typed transfers.
//!
//! A transfer is named by what it is for ([`Io`]); its completion carries the name back. Offsets are of the slice; the base
//! on the file is added here. The memory of a transfer belongs to whoever asked until the completion.

use super::BlockingDisk;
use super::file::DiskFile;
use super::open::Extent;
use super::record::Recorder;
use crate::event::{DiskIndex, Nanos};
use crate::store::disk_log::Acknowledged;
use corefs_net::ring::{File, Sync};
use corefs_net::{Ring, Source, Token};
use corefs_wire::{ChunkId, Result, SliceIndex, TargetId};

/// What a transfer is for. `op` and `slot` are positions in the shard's tables, `part` counts the transfers of one operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Io {
    /// A piece of a client's read.
    Read {
        op: u32,
        part: u16,
    },
    /// An old block that an update keeps a part of.
    Merge {
        op: u32,
        part: u16,
    },
    /// A piece of a pending update that is read back.
    Load {
        op: u32,
        part: u16,
    },
    /// Blocks of an update.
    Data {
        op: u32,
        part: u16,
    },
    /// A part of a batch.
    Batch {
        slot: u32,
    },
    Flush {
        disk: DiskIndex,
    },
    /// A part of a step that is verified.
    Check {
        slot: u32,
        part: u16,
    },
    /// Good blocks over bad ones.
    Mend {
        slot: u32,
        part: u16,
    },
}

impl Io {
    pub fn token(self) -> Token {
        let (kind, part, index) = match self {
            Self::Read { op, part } => (0, part, op),
            Self::Merge { op, part } => (1, part, op),
            Self::Load { op, part } => (2, part, op),
            Self::Data { op, part } => (3, part, op),
            Self::Batch { slot } => (4, 0, slot),
            Self::Flush { disk } => (5, 0, disk.0.into()),
            Self::Check { slot, part } => (6, part, slot),
            Self::Mend { slot, part } => (7, part, slot),
        };
        Token::new(Source::DISK, kind << 48 | u64::from(part) << 32 | u64::from(index))
    }

    /// Reads what [`Self::token`] wrote.
    pub fn of(token: Token) -> Self {
        let payload = token.payload();
        let (part, index) = ((payload >> 32) as u16, payload as u32);
        match payload >> 48 {
            0 => Self::Read { op: index, part },
            1 => Self::Merge { op: index, part },
            2 => Self::Load { op: index, part },
            3 => Self::Data { op: index, part },
            4 => Self::Batch { slot: index },
            6 => Self::Check { slot: index, part },
            7 => Self::Mend { slot: index, part },
            _ => Self::Flush { disk: DiskIndex(index as u16) },
        }
    }
}

struct Disk {
    file: File,
    /// Held open, and locked.
    open: DiskFile,
    /// When its last flush began.
    flush_began: Nanos,
}

/// Where a slice is.
#[derive(Clone, Copy)]
struct Place {
    disk: DiskIndex,
    extent: Extent,
}

/// The disks of one shard.
#[derive(Default)]
pub struct Disks {
    disks: Vec<Disk>,
    /// By [`SliceIndex`].
    places: Vec<Option<Place>>,
    recorder: Option<Recorder>,
}

impl Disks {
    /// Takes a disk over and registers it with the ring.
    pub fn add(&mut self, ring: &mut Ring, open: DiskFile) -> DiskIndex {
        let index = DiskIndex(self.disks.len() as u16);
        self.disks.push(Disk { file: ring.add_file(open.fd()), open, flush_began: 0 });
        index
    }

    pub fn place(&mut self, slice: SliceIndex, disk: DiskIndex, extent: Extent) {
        let index = usize::from(slice.0);
        if self.places.len() <= index {
            self.places.resize(index + 1, None);
        }
        assert!(extent.base + extent.bytes <= self.disks[usize::from(disk.0)].open.bytes());
        self.places[index] = Some(Place { disk, extent });
    }

    /// The file itself, to be read by waiting for it.
    pub fn blocking(&self, disk: DiskIndex) -> Result<DiskFile> {
        self.disks[usize::from(disk.0)].open.share()
    }

    /// Logs everything from now on.
    pub fn record(&mut self, recorder: Recorder) {
        self.recorder = Some(recorder);
    }

    /// An update of this slice is about to be acknowledged: writes it down, if anybody listens.
    #[inline]
    pub fn acknowledged(&mut self, slice: SliceIndex, target: TargetId, chunk: ChunkId, version: u64) {
        if let Some(recorder) = &mut self.recorder {
            recorder.acknowledged(&Acknowledged { disk: slice.0.into(), target, chunk, version });
        }
    }

    /// # Safety
    /// `to` is owned by the transfer until its completion.
    #[inline]
    pub unsafe fn read(
        &self,
        ring: &mut Ring,
        slice: SliceIndex,
        offset: u64,
        to: *mut u8,
        len: u32,
        io: Io,
    ) {
        let (file, offset) = self.locate(slice, offset, len);
        // SAFETY: passed on to the caller.
        unsafe { ring.read(file, to, len, offset, io.token()) }
    }

    /// # Safety
    /// `from` is valid and unchanged until the completion.
    pub unsafe fn write(
        &mut self,
        ring: &mut Ring,
        slice: SliceIndex,
        offset: u64,
        from: *const u8,
        len: u32,
        io: Io,
    ) {
        if let Some(recorder) = &mut self.recorder {
            // SAFETY: the caller promises that the bytes are valid.
            let bytes = unsafe { std::slice::from_raw_parts(from, len as usize) };
            recorder.write(slice, io.token(), offset, bytes);
        }
        let (file, offset) = self.locate(slice, offset, len);
        // SAFETY: passed on to the caller.
        unsafe { ring.write(file, from, len, offset, io.token()) }
    }

    pub fn flush(&mut self, ring: &mut Ring, disk: DiskIndex, now: Nanos) {
        let token = Io::Flush { disk }.token();
        if let Some(recorder) = &mut self.recorder {
            let there = |(index, place): (usize, &Option<Place>)| {
                place.is_some_and(|place| place.disk == disk).then_some(SliceIndex(index as u16))
            };
            recorder.flush(self.places.iter().enumerate().filter_map(there), token);
        }
        let disk = &mut self.disks[usize::from(disk.0)];
        disk.flush_began = now;
        ring.sync(disk.file, Sync::Data, token);
    }

    /// When the last flush of a disk began.
    pub fn flush_began(&self, disk: DiskIndex) -> Nanos {
        self.disks[usize::from(disk.0)].flush_began
    }

    /// A write or flush has succeeded.
    #[inline]
    pub fn complete(&mut self, io: Io) {
        if let Some(recorder) = &mut self.recorder {
            recorder.complete(io.token(), matches!(io, Io::Flush { .. }));
        }
    }

    #[inline]
    fn locate(&self, slice: SliceIndex, offset: u64, len: u32) -> (File, u64) {
        let place = self.places[usize::from(slice.0)].expect("only placed slices are used");
        // A transfer beyond the slice would destroy a neighbour's: this holds in release too.
        assert!(offset + u64::from(len) <= place.extent.bytes, "a transfer beyond the end of its slice");
        (self.disks[usize::from(place.disk.0)].file, place.extent.base + offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_name_what_they_were_made_of() {
        let (op, part) = (u32::MAX, u16::MAX);
        let all = [
            Io::Read { op, part },
            Io::Merge { op: 1, part },
            Io::Load { op, part: 1 },
            Io::Data { op, part },
            Io::Batch { slot: 7 },
            Io::Flush { disk: DiskIndex(u16::MAX) },
            Io::Check { slot: 3, part },
            Io::Mend { slot: u32::MAX, part },
        ];
        for io in all {
            assert_eq!((Io::of(io.token()), io.token().source()), (io, Source::DISK));
        }
    }
}
