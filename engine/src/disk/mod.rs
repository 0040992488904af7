//! Disks: files and block devices under O_DIRECT, and NVMe namespaces past the block layer.
//!
//! | module | is |
//! |---|---|
//! | [`file`](mod@file) | opening, locking, preallocating; plain blocking access for formatting and recovery |
//! | [`mem`] | the same in memory, for tests |
//! | [`open`] | formats slices and recovers them |
//! | [`uring`] | the hot path: typed transfers on the shard's rings |
//! | [`way`] | by which way a disk is reached: what there is to choose from, and why |
//! | [`nvme`] | NVMe namespaces: what they are like, and their commands |
//! | [`cache`] | which writes are durable when they complete, and which flushes can be spared; pure |
//! | [`sysfs`] | what the kernel says of block devices |
//! | [`record`] | the optional log of everything a disk was asked, for power-cut images of a real run |
//! | [`bench`] | the bare bound: our own loop of transfers with nothing in between |

pub mod bench;
pub mod cache;
pub mod file;
pub mod mem;
pub mod nvme;
pub mod open;
pub mod record;
pub mod sysfs;
pub mod uring;
pub mod way;

use corefs_wire::Result;
use corefs_wire::limits::BLOCK;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One aligned block of memory, as O_DIRECT wants it.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
pub struct Page([u8; BLOCK]);

/// Aligned memory of whole blocks.
#[derive(Clone, Default)]
pub struct Pages(Vec<Page>);

impl Pages {
    /// Zeroed memory of at least `len` bytes.
    pub fn new(len: usize) -> Self {
        Self(vec![Page([0; BLOCK]); len.div_ceil(BLOCK)])
    }

    pub fn of(bytes: &[u8]) -> Self {
        let mut pages = Self::new(bytes.len());
        pages.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        pages
    }

    pub fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_bytes()
    }
}

/// A disk that is read and written by waiting for it: for formatting and recovery, not for the data path. Offsets and
/// lengths are whole blocks.
pub trait BlockingDisk {
    fn bytes(&self) -> u64;
    fn read_at(&mut self, offset: u64, to: &mut [u8]) -> Result<()>;
    fn write_at(&mut self, offset: u64, from: &[u8]) -> Result<()>;
    fn flush(&mut self) -> Result<()>;

    /// Gives bytes their place for good, so that a later write of them changes nothing else that a flush would have to keep. What they hold is lost.
    fn settle(&mut self, _offset: u64, _bytes: u64) -> Result<()> {
        Ok(())
    }
}
