//! What the kernel says of block devices, in `/sys` (Documentation/ABI/stable/sysfs-block).

use corefs_wire::limits::BLOCK;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What the kernel passes to a device as one: 256 pages (`BIO_MAX_VECS`). Of more it makes several, which it doesn't poll for.
const BIO_BYTES: u64 = 256 << 12;

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
        let most = bytes.min(limit("max_segments", BLOCK as u64)).min(BIO_BYTES);
        (most / BLOCK as u64 * BLOCK as u64).max(BLOCK as u64) as u32
    }

    /// The NUMA node that it is attached to: what the nearest of the devices says that it is a part of.
    pub fn numa(&self) -> Option<u32> {
        self.0.ancestors().find_map(|device| {
            fs::read_to_string(device.join("numa_node")).ok().map(|told| told.trim().parse().ok())
        })?
    }

    /// Its hardware queues, and which CPUs' requests each of them takes; of a partition, the whole device's.
    pub fn queues(&self) -> Vec<Queue> {
        let whole = if self.is_partition() { self.0.parent().unwrap_or(&self.0) } else { &self.0 };
        let entries = fs::read_dir(whole.join("mq")).into_iter().flatten().flatten();
        let queue = |entry: fs::DirEntry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let cpus = fs::read_to_string(entry.path().join("cpu_list")).ok()?;
            Some(Queue { number, cpus: cpus.split(',').filter_map(|cpu| cpu.trim().parse().ok()).collect() })
        };
        let mut queues: Vec<Queue> = entries.filter_map(queue).collect();
        queues.sort_by_key(|queue| queue.number);
        queues
    }

    /// Whether the kernel has queues of it whose completions are polled for.
    pub fn has_poll_queues(&self) -> bool {
        self.queue("io_poll") == Some(1)
    }
}

/// A hardware queue of a block device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Queue {
    /// Position in the kernel's list. Of NVMe queues, one less than the number that the drive knows.
    pub number: u32,
    /// CPUs whose requests it takes.
    pub cpus: Vec<usize>,
}

/// The NUMA node of a CPU.
pub fn numa_of_cpu(cpu: usize) -> Option<u32> {
    let entries = fs::read_dir(format!("/sys/devices/system/cpu/cpu{cpu}")).ok()?.flatten();
    let mut names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.find_map(|name| name.strip_prefix("node")?.parse().ok())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Directories as the kernel makes them, elsewhere.
    fn device(part: bool, files: &[(&str, &str)]) -> (tempfile::TempDir, Device) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let device =
            Device(dir.path().join(if part { "pci/nvme0/nvme0n1/nvme0n1p1" } else { "pci/nvme0/nvme0n1" }));
        (dir, device)
    }

    #[test]
    fn limits_are_the_smallest_of_all() {
        let queue = "pci/nvme0/nvme0n1/queue/";
        let [sectors, hardware, segments] =
            ["max_sectors_kb", "max_hw_sectors_kb", "max_segments"].map(|name| format!("{queue}{name}"));
        let limits = |kib: &str, hardware_kib: &str, count: &str| {
            let files = [(sectors.as_str(), kib), (&hardware, hardware_kib), (&segments, count)];
            device(false, &files).1.transfer_max()
        };
        assert_eq!(limits("1280\n", "2048\n", "127\n"), 127 << 12);
        assert_eq!(limits("128", "2048", "127"), 128 << 10);
        assert_eq!(limits("4096", "4096", "65535"), 1 << 20);
        assert_eq!(limits("3", "4096", "65535"), 4096);
    }

    #[test]
    fn a_partition_has_its_drives_queues_and_place() {
        let files = [
            ("pci/numa_node", "1\n"),
            ("pci/nvme0/nvme0n1/mq/0/cpu_list", "0, 2\n"),
            ("pci/nvme0/nvme0n1/mq/10/cpu_list", "1\n"),
            ("pci/nvme0/nvme0n1/queue/io_poll", "1\n"),
            ("pci/nvme0/nvme0n1/nvme0n1p1/partition", "1\n"),
        ];
        let (_dir, device) = device(true, &files);
        let expected = [Queue { number: 0, cpus: vec![0, 2] }, Queue { number: 10, cpus: vec![1] }];
        assert_eq!((device.queues().as_slice(), device.numa()), (expected.as_slice(), Some(1)));
        assert!(device.is_partition() && device.has_poll_queues());
    }

    #[test]
    fn a_machine_without_numa_says_minus_one() {
        assert_eq!(device(false, &[("pci/numa_node", "-1\n"), ("numa_node", "1")]).1.numa(), None);
    }
}
