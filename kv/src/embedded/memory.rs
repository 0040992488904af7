//! How much memory the pages and the log of a store may take unless somebody says it.

use std::fs;
use std::path::Path;

/// Of the memory that the process may have: what else runs beside it (storage servers, the metadata server in it) has the rest. The tree of
/// five million files has a gibibyte, and what isn't in memory is read from the file for each look at it.
const SHARE: u64 = 8;
/// Small machines give as much all the same (bytes). It is only taken as it fills.
const PAGES_MIN: u64 = 256 << 20;

/// Of the bytes for pages, as many for the log as one in this many.
const LOG_SHARE: u64 = 64;
/// Some 10,000 creations of files, in two areas (bytes).
const LOG_MIN: u64 = 4 << 20;
/// With 32 MiB instead of 2 a creation among five million files in turns took two thirds of the time, and one among 30,000 a tenth less: so many more of
/// them are in one page of the tree when it is written.
const LOG_MAX: u64 = 32 << 20;

/// Bytes for pages on this machine.
pub fn pages() -> usize {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    let group = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| limit(&text, "/sys/fs/cgroup"));
    let memory = machine.into_iter().chain(group).min().unwrap_or(0);
    usize::try_from((memory / SHARE).max(PAGES_MIN)).unwrap_or(PAGES_MIN as usize)
}

/// Bytes for the log of a store with so many for its pages. What is in the log is in memory, too, some three times as large.
pub fn log(pages: usize) -> u64 {
    (pages as u64 / LOG_SHARE).clamp(LOG_MIN, LOG_MAX)
}

/// The machine's memory, from /proc/meminfo (proc(5)).
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// The lowest limit of the process's control group and those around it (cgroups(7), version 2). `cgroup` is /proc/self/cgroup.
fn limit(cgroup: &str, mounted: &str) -> Option<u64> {
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let groups = Path::new(own).ancestors();
    let read = |group: &Path| fs::read_to_string(Path::new(mounted).join(group).join("memory.max")).ok();
    groups.filter_map(|group| read(group)?.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_store_has_a_small_log() {
        assert_eq!((log(256 << 20), log(1 << 30), log(3 << 30)), (4 << 20, 16 << 20, 32 << 20));
    }

    #[test]
    fn the_lowest_limit_counts() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       24576 kB\n"), Some(24 << 20));
        assert_eq!(total("MemTotal: much"), None);
        let mounted = tempfile::tempdir().unwrap();
        let write = |group: &str, limit: &str| {
            fs::create_dir_all(mounted.path().join(group)).unwrap();
            fs::write(mounted.path().join(group).join("memory.max"), limit).unwrap();
        };
        write("a", "1000\n");
        write("a/b", "max\n");
        write("a/b/c", "2000\n");
        let mounted = mounted.path().to_str().unwrap();
        assert_eq!(limit("0::/a/b/c\n", mounted), Some(1000));
        assert_eq!(limit("0::/\n", mounted), None);
        assert_eq!(limit("4:memory:/a\n", mounted), None, "version 1 says it elsewhere");
    }

    #[test]
    fn this_machine_gives_some() {
        assert!(pages() >= PAGES_MIN as usize);
    }
}
