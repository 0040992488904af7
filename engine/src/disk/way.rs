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

impl Survey {
    /// Looks, and changes nothing.
    pub fn of(path: &Path) -> Self {
        let polled = match sysfs::Device::of(path) {
            None => Err("a file: give the node a block device, and it is polled and driven more directly where it can be".into()),
            Some(device) if device.has_poll_queues() => Ok(()),
            Some(_) => Err(NO_POLL_QUEUES.into()),
        };
        Self { passthrough: Namespace::find(path), polled }
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
