//! By which way transfers reach a disk: the shortest that works, found by looking and trying, unless one is asked for.

use super::nvme::Namespace;
use super::sysfs;
use corefs_net::ring::Wakes;
use corefs_wire::{Error, ErrorCode, Result};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// The ways, from the shortest to the longest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Commands to an NVMe namespace's generic device, past the block layer.
    Passthrough(Wakes),
    /// Reads and writes of a block device whose completions are polled for.
    Polled,
    /// Reads and writes of a file or block device on the core's one ring, with completions by interrupt.
    Plain,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passthrough(Wakes::Polled) => "NVMe passthrough, polled",
            Self::Passthrough(Wakes::ByInterrupt) => "NVMe passthrough, by interrupt",
            Self::Polled => "block device, polled",
            Self::Plain => "plain",
        })
    }
}

/// Which way is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Choice {
    /// The shortest that works.
    #[default]
    Auto,
    Passthrough,
    Polled,
    Plain,
}

const NAMES: [(&str, Choice); 4] = [
    ("auto", Choice::Auto),
    ("passthrough", Choice::Passthrough),
    ("polled", Choice::Polled),
    ("plain", Choice::Plain),
];

impl FromStr for Choice {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, choice)| *choice).ok_or_else(|| {
            let what =
                format!("there is no way {name} to a disk; there are auto, passthrough, polled and plain");
            Error::new(ErrorCode::BadConfig, what)
        })
    }
}

/// What can be had of a disk: what there is to try, and why the rest isn't.
#[derive(Debug)]
pub struct Survey {
    pub passthrough: std::result::Result<Namespace, String>,
    pub polled: std::result::Result<(), String>,
}

const NO_POLL_QUEUES: &str = "the kernel has no queues of it for polling: for NVMe, start the kernel with nvme.poll_queues=N, N the number of cores";

const MAY_MIX_UP: &str = "this kernel may carry out another command than the one that had to wait (io_uring, Linux 6.10 to 6.12.15, and 6.13 to 6.13.3): update it";

/// The release of the running kernel, as `6.1.0-56-amd64`; empty where it can't be read.
fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()
}

/// Whether a kernel has an error that makes commands dangerous. One that must wait, as while its drive is reset, a thread of the kernel's takes over; since
/// "io_uring/uring_cmd: defer SQE copying until it's needed" (6.10) that reads it from the submission queue, where another one may be by then. "switch sqe
/// to async_data on EAGAIN" mends it (6.14, 6.13.4, 6.12.16).
fn kernel_fails(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0u32);
    match (next(), next(), next()) {
        (6, 10 | 11, _) => true,
        (6, 12, patch) => patch < 16,
        (6, 13, patch) => patch < 4,
        _ => false,
    }
}

impl Survey {
    /// Looks, and changes nothing.
    pub fn of(path: &Path) -> Self {
        let polled = match sysfs::Device::of(path) {
            None => Err("a file: give the node a block device, and it is polled and driven more directly where it can be".into()),
            Some(device) if device.has_poll_queues() => Ok(()),
            Some(_) => Err(NO_POLL_QUEUES.into()),
        };
        let passthrough = match Namespace::find(path) {
            Ok(_) if kernel_fails(&kernel()) => Err(MAY_MIX_UP.into()),
            found => found,
        };
        Self { passthrough, polled }
    }

    /// What to try, in this order. By interrupt commands are tried only where they are asked for: whether they pay then isn't known.
    pub fn ways(&self, choice: Choice) -> Vec<Way> {
        let mut ways = Vec::new();
        match (choice, &self.passthrough) {
            (Choice::Auto | Choice::Passthrough, Ok(namespace)) if namespace.is_polled() => {
                ways.push(Way::Passthrough(Wakes::Polled));
            }
            (Choice::Passthrough, Ok(_)) => ways.push(Way::Passthrough(Wakes::ByInterrupt)),
            _ => {}
        }
        if let (Choice::Auto | Choice::Polled, Ok(())) = (choice, &self.polled) {
            ways.push(Way::Polled);
        }
        if let Choice::Auto | Choice::Plain = choice {
            ways.push(Way::Plain);
        }
        ways
    }

    /// What is in the way of shorter ones than there are to try, each with what would help.
    pub fn obstacles(&self, choice: Choice) -> Vec<String> {
        let mut obstacles = Vec::new();
        match &self.passthrough {
            _ if !matches!(choice, Choice::Auto | Choice::Passthrough) => {}
            Ok(namespace) if namespace.is_polled() => {}
            Ok(_) => obstacles.push(format!("passthrough, polled: {NO_POLL_QUEUES}")),
            Err(why) => obstacles.push(format!("passthrough: {why}")),
        }
        if let (Err(why), Choice::Auto | Choice::Polled) = (&self.polled, choice) {
            obstacles.push(format!("polled: {why}"));
        }
        obstacles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_mix_up_commands_are_known_by_their_release() {
        let fail = ["6.10.0", "6.11.0-9-generic", "6.12.0", "6.12.9+deb13-amd64", "6.13-rc1", "6.13.3"];
        let work = [
            "6.1.0-56-amd64",
            "6.9.12",
            "6.12.16",
            "6.12.48+deb13-amd64",
            "6.13.4",
            "6.14.0",
            "7.10.0",
            "5.19",
            "",
        ];
        assert!(fail.into_iter().all(kernel_fails) && !work.into_iter().any(kernel_fails));
        assert!(!kernel().is_empty());
    }

    #[test]
    fn a_file_goes_the_plain_way_and_says_why() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let survey = Survey::of(file.path());
        assert_eq!(survey.ways(Choice::Auto), [Way::Plain]);
        assert_eq!(survey.ways(Choice::Polled), []);
        assert_eq!(survey.obstacles(Choice::Auto).len(), 2);
        assert_eq!("polled".parse::<Choice>().unwrap(), Choice::Polled);
        assert_eq!("faster".parse::<Choice>().unwrap_err().code, ErrorCode::BadConfig);
    }
}
