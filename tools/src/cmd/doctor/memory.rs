//! The memory that buffers are made of: huge pages, where there are some.

use serde_json::{Value, json};
use std::fmt;
use std::fs;
use std::path::Path;

/// Huge pages of 2 MiB, as the kernel tells of them (Documentation/admin-guide/mm/hugetlbpage.rst, transhuge.rst).
pub struct HugePages {
    set_aside: Option<u64>,
    free: Option<u64>,
    /// When the kernel makes some by itself: always, madvise (where it is asked to, which pools do) or never.
    transparent: Option<String>,
}

impl HugePages {
    pub fn of_this_machine() -> Self {
        Self::of(Path::new("/sys/kernel/mm"))
    }

    fn of(tree: &Path) -> Self {
        let number = |name: &str| {
            let told = fs::read_to_string(tree.join("hugepages/hugepages-2048kB").join(name));
            told.ok()?.trim().parse().ok()
        };
        let choices = fs::read_to_string(tree.join("transparent_hugepage/enabled")).ok();
        let chosen = choices.and_then(|all| Some(all.split_once('[')?.1.split_once(']')?.0.to_string()));
        Self { set_aside: number("nr_hugepages"), free: number("free_hugepages"), transparent: chosen }
    }

    pub fn told(&self) -> Value {
        json!({"set_aside": self.set_aside, "free": self.free, "transparent": self.transparent})
    }
}

impl fmt::Display for HugePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transparent = self.transparent.as_deref().unwrap_or("not told");
        match (self.set_aside, self.free) {
            (Some(set_aside), Some(free)) if set_aside > 0 => write!(
                f,
                "huge pages of 2 MiB: {free} free of {set_aside} that were set aside, of which buffers of servers and clients are made as far as they reach; beyond, as the kernel \
                 makes them: {transparent}"
            ),
            _ => write!(
                f,
                "huge pages of 2 MiB: none set aside (vm.nr_hugepages), so buffers are made of those that the kernel makes: {transparent}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_aside_and_what_the_kernel_makes_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let none = HugePages::of(dir.path());
        assert_eq!(none.told(), json!({"set_aside": null, "free": null, "transparent": null}));
        assert!(none.to_string().contains("none set aside"));
        write("transparent_hugepage/enabled", "always [madvise] never\n");
        write("hugepages/hugepages-2048kB/nr_hugepages", "64\n");
        write("hugepages/hugepages-2048kB/free_hugepages", "32\n");
        let some = HugePages::of(dir.path());
        assert_eq!(some.told(), json!({"set_aside": 64, "free": 32, "transparent": "madvise"}));
        assert!(some.to_string().contains("32 free of 64") && some.to_string().ends_with("madvise"));
    }
}
