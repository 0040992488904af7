//! What the kernel says of block devices, in `/sys` (Documentation/ABI/stable/sysfs-block).

use corefs_wire::limits::BLOCK;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A block device's directory in `/sys`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device(PathBuf);

impl Device {
    /// `None` if `path` is no block device.
    pub fn of(path: &Path) -> Option<Self> {
        let metadata = path.metadata().ok().filter(|metadata| metadata.file_type().is_block_device())?;
        let (major, minor) = split(metadata.rdev());
        fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok().map(Self)
    }

    /// As in `/sys/block`.
    pub fn name(&self) -> &str {
        self.0.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    pub fn is_partition(&self) -> bool {
        self.0.join("partition").exists()
    }

    /// Bytes: the kernel counts sectors of 512 of any device.
    pub fn bytes(&self) -> Option<u64> {
        read(&self.0.join("size")).map(|sectors| sectors << 9)
    }

    /// A number about its queue; of a partition, the whole device's.
    pub fn queue(&self, name: &str) -> Option<u64> {
        let whole = if self.is_partition() { self.0.parent()? } else { &self.0 };
        read(&whole.join("queue").join(name))
    }

    /// Bytes that go to the device in one command, however the memory lies: whole checksum blocks. Of more the kernel makes several.
    pub fn transfer_max(&self) -> u32 {
        let limit =
            |name: &str, unit: u64| self.queue(name).map_or(u64::MAX, |found| found.saturating_mul(unit));
        let bytes = limit("max_sectors_kb", 1 << 10).min(limit("max_hw_sectors_kb", 1 << 10));
        let most = bytes.min(limit("max_segments", BLOCK as u64)).min(1 << 30);
        (most / BLOCK as u64 * BLOCK as u64).max(BLOCK as u64) as u32
    }

    /// Whether the kernel has queues of it whose completions are polled for.
    pub fn has_poll_queues(&self) -> bool {
        self.queue("io_poll") == Some(1)
    }
}

/// Major and minor number of a device.
pub fn split(device: u64) -> (u32, u32) {
    (libc::major(device), libc::minor(device))
}

/// The number of the device that this directory is about.
pub fn number(directory: &str) -> Option<(u32, u32)> {
    let text = fs::read_to_string(Path::new(directory).join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn read(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
