//! What a figure was measured on.

use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// The machine, as far as the kernel tells; null where it doesn't.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    pub kernel: Option<String>,
    pub cpu: Option<String>,
    /// Cores that this process may use.
    pub cores: Option<u64>,
    pub memory_bytes: Option<u64>,
    /// Where the data were.
    pub storage: Option<Storage>,
}

/// The file system and device of a path.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Storage {
    pub file_system: String,
    /// The mounted source: a device, or a name.
    pub source: String,
    /// `write back` means that a flush is needed for durability.
    pub write_cache: Option<String>,
    pub rotational: Option<bool>,
    pub model: Option<String>,
}

impl Machine {
    /// This machine, with the storage under `path` (of its nearest existing ancestor).
    pub fn look(path: Option<&Path>) -> Self {
        let read = |path: &str| fs::read_to_string(path).ok();
        let cores = std::thread::available_parallelism().ok().map(|count| count.get() as u64);
        Self {
            kernel: read("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()),
            cpu: read("/proc/cpuinfo").and_then(|text| value_of(&text, "model name").map(str::to_owned)),
            cores,
            memory_bytes: read("/proc/meminfo").and_then(|text| kilobytes(value_of(&text, "MemTotal")?)),
            storage: path.and_then(Storage::of),
        }
    }
}

/// The value of `name: value` in a file of such lines.
fn value_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

fn kilobytes(text: &str) -> Option<u64> {
    text.strip_suffix("kB")?.trim().parse::<u64>().ok().map(|count| count * 1024)
}

impl Storage {
    fn of(path: &Path) -> Option<Self> {
        let absolute = std::path::absolute(path).ok()?;
        let existing = absolute.ancestors().find_map(|ancestor| ancestor.canonicalize().ok())?;
        let mount = find_mount(&fs::read_to_string("/proc/self/mountinfo").ok()?, &existing)?;
        let block = PathBuf::from(format!("/sys/dev/block/{}", mount.device));
        // A partition has its disk's directory above it.
        let attribute = |name: &str| {
            let read = |at: PathBuf| fs::read_to_string(at.join(name)).ok();
            let found = read(block.clone()).or_else(|| read(block.canonicalize().ok()?.parent()?.to_owned()));
            found.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        Some(Self {
            file_system: mount.kind,
            source: mount.source,
            write_cache: attribute("queue/write_cache"),
            rotational: attribute("queue/rotational").map(|text| text == "1"),
            model: attribute("device/model"),
        })
    }
}

struct Mount {
    /// `major:minor`.
    device: String,
    kind: String,
    source: String,
}

/// The mount that `path` is on: the last of those with the longest mount point, since later mounts cover earlier ones.
fn find_mount(mountinfo: &str, path: &Path) -> Option<Mount> {
    let mut best: Option<(usize, Mount)> = None;
    for line in mountinfo.lines() {
        let Some((place, what)) = line.split_once(" - ") else { continue };
        let mut place = place.split(' ').skip(2);
        let (Some(device), Some(point)) = (place.next(), place.nth(1)) else { continue };
        let mut what = what.split(' ');
        let (Some(kind), Some(source)) = (what.next(), what.next()) else { continue };
        let point = point.replace("\\040", " ");
        let longer = best.as_ref().is_none_or(|(length, _)| point.len() >= *length);
        if path.starts_with(&point) && longer {
            let mount = Mount { device: device.into(), kind: kind.into(), source: source.into() };
            best = Some((point.len(), mount));
        }
    }
    best.map(|(_, mount)| mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_kernel_cores_memory_and_a_root() {
        let machine = Machine::look(Some(Path::new("/no/such/file")));
        assert!(machine.kernel.is_some() && machine.cores >= Some(1) && machine.memory_bytes > Some(1 << 20));
        assert!(!machine.storage.unwrap().file_system.is_empty());
        assert_eq!(Machine::look(None).storage, None);
    }

    #[test]
    fn the_innermost_and_latest_mount_wins() {
        let info = "1 0 254:0 / / rw - ext4 /dev/vda rw\n\
                    2 1 0:20 / /data rw shared:1 - tmpfs none rw\n\
                    3 1 0:21 / /data rw - xfs /dev/nvme0n1 rw\n\
                    4 1 0:22 / /with\\040space rw - btrfs /dev/b rw\n\
                    cut off\n";
        let kind = |path: &str| find_mount(info, Path::new(path)).unwrap().kind;
        assert_eq!(kind("/data/file"), "xfs");
        assert_eq!(kind("/database"), "ext4");
        assert_eq!(kind("/with space/x"), "btrfs");
    }

    #[test]
    fn fields_are_found() {
        let text = "processor\t: 0\nmodel name\t: Fast: 9000\n";
        assert_eq!(value_of(text, "model name"), Some("Fast: 9000"));
        assert_eq!(value_of(text, "name"), None);
        assert_eq!(kilobytes("24 kB"), Some(24 * 1024));
    }
}
