//! Operations on names, as mdtest has them: many lanes make, look at, open, list, rename and remove files in one directory or
//! many, flat or deep; all of one kind, then all of the next.

pub mod native;
pub mod posix;
pub mod servers;

use crate::cpu::CpuTime;
use crate::driver::Live;
use crate::histogram::Latencies;
use crate::report::{Row, Tally};
use crate::workload::Scatter;
use clap::ValueEnum;
use corefs_wire::{Error, ErrorCode, Result};
use servers::Usage;
use std::time::Instant;

/// Any: the order of a shuffled run is the same each time.
const SHUFFLE_SEED: u64 = 1;

/// What a run does, one after the other.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Mkdir,
    /// Files that must not be there yet, closed at once; with `--bytes`, after these were written.
    Create,
    Stat,
    /// For reading, and closed.
    Open,
    /// Opened, read as a whole, compared, and closed; with `--bytes`.
    Read,
    /// Whole directories: an operation is one of them, however many entries it has.
    Readdir,
    Rename,
    Unlink,
    Rmdir,
}

impl Phase {
    pub const ALL: [Self; 9] = [
        Self::Mkdir,
        Self::Create,
        Self::Stat,
        Self::Open,
        Self::Read,
        Self::Readdir,
        Self::Rename,
        Self::Unlink,
        Self::Rmdir,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Mkdir => "mkdir",
            Self::Create => "create",
            Self::Stat => "stat",
            Self::Open => "open",
            Self::Read => "read",
            Self::Readdir => "readdir",
            Self::Rename => "rename",
            Self::Unlink => "unlink",
            Self::Rmdir => "rmdir",
        }
    }

    fn only_looks(self) -> bool {
        matches!(self, Self::Stat | Self::Open | Self::Read)
    }

    fn moves_bytes(self) -> bool {
        matches!(self, Self::Create | Self::Read)
    }

    fn of_directories(self) -> bool {
        matches!(self, Self::Mkdir | Self::Readdir | Self::Rmdir)
    }
}

/// Which files there are and who works on which; pure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    pub files: u64,
    /// Files go to them in turn.
    pub directories: u64,
    /// Directories above each of them that are its own.
    pub deep: u32,
    pub lanes: u32,
    /// Files are looked at and opened in an order that has nothing to do with that of their making.
    pub shuffle: bool,
    /// In each file.
    pub bytes: u64,
}

impl Plan {
    pub fn directory_of(&self, file: u64) -> u64 {
        file % self.directories
    }

    pub fn name_of(&self, file: u64) -> String {
        format!("file-{file:08}")
    }

    /// What is written to a file: its number, over and over.
    pub fn bytes_of(&self, file: u64) -> Vec<u8> {
        file.to_le_bytes().into_iter().cycle().take(self.bytes as usize).collect()
    }

    /// `Corrupt` for other bytes than were written.
    pub fn check_bytes(&self, file: u64, found: &[u8]) -> Result<()> {
        if found == self.bytes_of(file) {
            return Ok(());
        }
        let what = format!("{} has other bytes than were written", self.name_of(file));
        Err(Error::mismatch(ErrorCode::Corrupt, self.bytes, found.len() as u64, what))
    }

    /// What a rename makes of it: sorts elsewhere among the others.
    pub fn new_name_of(&self, file: u64) -> String {
        format!("moved-{:08}", self.files - 1 - file)
    }

    /// The names on the way to a directory, itself last.
    pub fn path_of(&self, directory: u64) -> Vec<String> {
        let mut path = vec![format!("dir-{directory:06}")];
        path.extend((0..self.deep).map(|level| format!("level-{level}")));
        path
    }

    /// The files, or directories, that a lane works on in a phase.
    pub fn share(&self, lane: u32, phase: Phase) -> impl Iterator<Item = u64> + use<> {
        let all = if phase.of_directories() { self.directories } else { self.files };
        let scatter = (self.shuffle && phase.only_looks()).then(|| Scatter::new(all, SHUFFLE_SEED));
        let items = (u64::from(lane)..all).step_by(self.lanes.max(1) as usize);
        items.map(move |item| scatter.as_ref().map_or(item, |scatter| scatter.place(item)))
    }
}

/// Where names are: one lane's hands on it.
#[allow(async_fn_in_trait)] // Used with concrete types on one thread only.
pub trait Names {
    /// Makes a directory and what is above it within the tree; says how long each took.
    async fn mkdir(&self, directory: u64, each: &mut dyn FnMut(Instant)) -> Result<()>;
    async fn rmdir(&self, directory: u64, each: &mut dyn FnMut(Instant)) -> Result<()>;
    /// The number of entries.
    async fn readdir(&self, directory: u64) -> Result<u64>;
    async fn create(&self, file: u64) -> Result<()>;
    async fn stat(&self, file: u64) -> Result<()>;
    async fn open(&self, file: u64) -> Result<()>;
    async fn read(&self, file: u64) -> Result<()>;
    async fn rename(&self, file: u64) -> Result<()>;
    async fn unlink(&self, file: u64) -> Result<()>;
}

/// What one lane does in one phase. An operation that fails is counted, the first one is told; the others go on.
pub async fn drive<N: Names>(names: &N, plan: &Plan, lane: u32, phase: Phase, live: &Live) -> Tally {
    let mut tally = Tally { latencies: Latencies::new(), ..Tally::default() };
    let started = Instant::now();
    for item in plan.share(lane, phase) {
        if live.stopped() {
            let interrupted = Error::new(ErrorCode::ShuttingDown, "interrupted");
            note(&mut tally, &interrupted, phase);
            break;
        }
        let (before, operations) = (Instant::now(), tally.operations);
        let latencies = &mut tally.latencies;
        let mut count = 0;
        let mut each = |from: Instant| {
            count += 1;
            latencies.record(from.elapsed().as_nanos() as u64);
        };
        let outcome = match phase {
            Phase::Mkdir => names.mkdir(item, &mut each).await,
            Phase::Rmdir => names.rmdir(item, &mut each).await,
            Phase::Readdir => whole(plan, item, names.readdir(item).await),
            Phase::Create => names.create(item).await,
            Phase::Stat => names.stat(item).await,
            Phase::Open => names.open(item).await,
            Phase::Read => names.read(item).await,
            Phase::Rename => names.rename(item).await,
            Phase::Unlink => names.unlink(item).await,
        };
        tally.operations = operations + count;
        match outcome {
            Ok(()) if !matches!(phase, Phase::Mkdir | Phase::Rmdir) => {
                tally.operations += 1;
                tally.bytes += if phase.moves_bytes() { plan.bytes } else { 0 };
                tally.latencies.record(before.elapsed().as_nanos() as u64);
            }
            Ok(()) => {}
            Err(error) => note(&mut tally, &error, phase),
        }
    }
    tally.elapsed = started.elapsed();
    tally
}

fn note(tally: &mut Tally, error: &Error, phase: Phase) {
    tally.errors += 1;
    tally.first_error.get_or_insert_with(|| format!("{}: {error}", phase.name()));
}

/// A listing shows every file of its directory.
fn whole(plan: &Plan, directory: u64, entries: Result<u64>) -> Result<()> {
    let expected = (directory..plan.files).step_by(plan.directories as usize).count() as u64;
    match entries? {
        found if found == expected => Ok(()),
        found => {
            let what = "a listing with another number of entries than were made";
            Err(Error::mismatch(ErrorCode::Internal, expected, found, what))
        }
    }
}

/// Notes what the servers used meanwhile, as they said before and after.
fn note_servers(tally: &mut Tally, before: Option<&Usage>, after: Option<&Usage>) {
    tally.servers = servers::since(before, after);
    tally.server = tally.servers.values().copied().reduce(CpuTime::plus);
    tally.servers_memory = after.into_iter().flatten().map(|(kind, used)| (*kind, used.memory)).collect();
}

/// The row of a phase; `mode`: where it ran.
pub fn row(mode: &str, phase: Phase, tally: Tally) -> Row {
    let mut row = tally.into_row(format!("{mode}_{}", phase.name()));
    // Names have no bytes.
    row.bytes_per_second = row.bytes_per_second.filter(|bytes| *bytes > 0.0);
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::block_on;
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    const PLAN: Plan = Plan { files: 103, directories: 4, deep: 2, lanes: 8, shuffle: false, bytes: 10 };

    #[test]
    fn every_file_belongs_to_one_lane() {
        for phase in Phase::ALL {
            let mut all: Vec<u64> = (0..PLAN.lanes).flat_map(|lane| PLAN.share(lane, phase)).collect();
            let in_order = all.clone();
            all.sort_unstable();
            let count = if phase.of_directories() { PLAN.directories } else { PLAN.files };
            assert!(all.into_iter().eq(0..count), "{phase:?}");
            let shuffled = Plan { shuffle: true, ..PLAN };
            let mut other: Vec<u64> = (0..PLAN.lanes).flat_map(|lane| shuffled.share(lane, phase)).collect();
            assert_eq!(other != in_order, phase.only_looks(), "{phase:?}: {other:?}");
            other.sort_unstable();
            assert!(other.into_iter().eq(0..count), "{phase:?}");
        }
        assert_eq!(PLAN.path_of(3), ["dir-000003", "level-0", "level-1"]);
        let names: BTreeSet<String> =
            (0..PLAN.files).flat_map(|f| [PLAN.name_of(f), PLAN.new_name_of(f)]).collect();
        assert_eq!(names.len() as u64, 2 * PLAN.files);
    }

    /// Names in memory, one of which can't be made.
    #[derive(Default)]
    struct Memory(RefCell<BTreeSet<(u64, String)>>);

    const BROKEN: u64 = 5;

    impl Names for Memory {
        async fn mkdir(&self, _directory: u64, each: &mut dyn FnMut(Instant)) -> Result<()> {
            (0..=PLAN.deep).for_each(|_| each(Instant::now()));
            Ok(())
        }
        async fn rmdir(&self, _directory: u64, each: &mut dyn FnMut(Instant)) -> Result<()> {
            each(Instant::now());
            Ok(())
        }
        async fn readdir(&self, directory: u64) -> Result<u64> {
            Ok(self.0.borrow().iter().filter(|(of, _)| *of == directory).count() as u64)
        }
        async fn create(&self, file: u64) -> Result<()> {
            if file == BROKEN {
                return Err(ErrorCode::NoSpace.into());
            }
            self.0.borrow_mut().insert((PLAN.directory_of(file), PLAN.name_of(file)));
            Ok(())
        }
        async fn stat(&self, _file: u64) -> Result<()> {
            Ok(())
        }
        async fn open(&self, _file: u64) -> Result<()> {
            Ok(())
        }
        async fn read(&self, file: u64) -> Result<()> {
            // One of them has another's.
            PLAN.check_bytes(file, &PLAN.bytes_of(if file == BROKEN { 0 } else { file }))
        }
        async fn rename(&self, _file: u64) -> Result<()> {
            Ok(())
        }
        async fn unlink(&self, _file: u64) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_fails_is_counted_and_what_is_missing_is_seen() {
        let (memory, live) = (Memory::default(), Live::default());
        let run = |phase| {
            let mut all = Tally::default();
            (0..PLAN.lanes).for_each(|lane| all.join(block_on(drive(&memory, &PLAN, lane, phase, &live))));
            row("memory", phase, all)
        };
        assert_eq!(run(Phase::Mkdir).operations, Some(12), "each level is an operation");
        let created = run(Phase::Create);
        assert_eq!((created.operations, created.errors), (Some(102), Some(1)));
        assert!(
            created.extras.first_error.unwrap().contains("NoSpace") && created.bytes_per_second.is_some()
        );
        let read = run(Phase::Read);
        assert_eq!((read.operations, read.errors), (Some(102), Some(1)));
        assert!(read.extras.first_error.unwrap().contains("Corrupt"));
        let listed = run(Phase::Readdir);
        assert_eq!(
            (listed.operations, listed.errors),
            (Some(3), Some(1)),
            "the one with the file that isn't there"
        );
        live.stop();
        assert_eq!(run(Phase::Stat).operations, Some(0));
    }
}
