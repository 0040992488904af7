//! Names of a mounted or local file system, by the system calls that programs make; a thread for each lane.

use super::{Names, Phase, Plan, drive, native, note_servers};
use crate::cpu::{CpuTime, Whose};
use crate::driver::Live;
use crate::histogram::Latencies;
use crate::native::Native;
use crate::report::Tally;
use corefs_wire::{Error, ErrorCode, Result};
use futures_lite::future::block_on;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Most lanes, each of which is a thread.
pub const LANES_MAX: u32 = 512;
/// Flushes timed: enough for a median.
const FLUSHES: usize = 51;

/// A tree of a run in a directory of its own, which goes with it unless it is [kept](Self::keep).
pub struct Tree {
    root: PathBuf,
    plan: Plan,
    keep: bool,
}

impl Tree {
    /// Makes the directory of the run in `under`.
    pub fn new(under: &Path, plan: Plan) -> Result<Self> {
        let root = under.join(format!("corefs-perf-meta-{}", std::process::id()));
        fs::create_dir(&root).map_err(|error| Error::from(error).of(root.display()))?;
        Ok(Self { root, plan, keep: false })
    }

    /// Leaves what is there when the run ends.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// One phase on all lanes at once. `servers`: a client of the cluster whose servers have the tree, if there is one.
    pub fn run(&self, phase: Phase, servers: Option<&Native>, live: &Live) -> Result<Tally> {
        let used = servers.and_then(native::usage);
        let before = CpuTime::own(Whose::Process);
        let started = Instant::now();
        let tallies: Vec<_> = std::thread::scope(|scope| {
            let lanes: Vec<_> = (0..self.plan.lanes)
                .map(|lane| scope.spawn(move || block_on(drive(self, &self.plan, lane, phase, live))))
                .collect();
            lanes.into_iter().map(|lane| lane.join()).collect()
        });
        let mut all = Tally { latencies: Latencies::new(), ..Tally::default() };
        for tally in tallies {
            let panicked = |_| Error::new(ErrorCode::Internal, "a thread of the measurement panicked");
            all.join(tally.map_err(panicked)?);
        }
        all.elapsed = started.elapsed();
        all.client = Some(CpuTime::own(Whose::Process).since(before));
        note_servers(&mut all, used.as_ref(), servers.and_then(native::usage).as_ref());
        Ok(all)
    }

    fn directory(&self, directory: u64) -> PathBuf {
        let mut path = self.root.clone();
        path.extend(self.plan.path_of(directory));
        path
    }

    fn file(&self, file: u64) -> PathBuf {
        self.directory(self.plan.directory_of(file)).join(self.plan.name_of(file))
    }

    fn moved(&self, file: u64) -> PathBuf {
        self.directory(self.plan.directory_of(file)).join(self.plan.new_name_of(file))
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // After an error there may be something left.
        if !self.keep {
            let _gone = fs::remove_dir_all(&self.root);
        }
    }
}

impl Names for Tree {
    async fn mkdir(&self, directory: u64, each: &mut dyn FnMut(Instant)) -> Result<()> {
        let mut path = self.root.clone();
        for name in self.plan.path_of(directory) {
            path.push(name);
            let from = Instant::now();
            fs::create_dir(&path)?;
            each(from);
        }
        Ok(())
    }

    async fn rmdir(&self, directory: u64, each: &mut dyn FnMut(Instant)) -> Result<()> {
        let mut path = self.directory(directory);
        while path != self.root {
            let from = Instant::now();
            fs::remove_dir(&path)?;
            each(from);
            path.pop();
        }
        Ok(())
    }

    async fn readdir(&self, directory: u64) -> Result<u64> {
        let mut entries = 0;
        for entry in fs::read_dir(self.directory(directory))? {
            entry?;
            entries += 1;
        }
        Ok(entries)
    }

    async fn create(&self, file: u64) -> Result<()> {
        let mut made = OpenOptions::new().write(true).create_new(true).open(self.file(file))?;
        if self.plan.bytes > 0 {
            made.write_all(&self.plan.bytes_of(file))?;
        }
        Ok(())
    }

    async fn stat(&self, file: u64) -> Result<()> {
        Ok(fs::symlink_metadata(self.file(file)).map(drop)?)
    }

    async fn open(&self, file: u64) -> Result<()> {
        Ok(File::open(self.file(file)).map(drop)?)
    }

    async fn read(&self, file: u64) -> Result<()> {
        self.plan.check_bytes(file, &fs::read(self.file(file))?)
    }

    async fn rename(&self, file: u64) -> Result<()> {
        Ok(fs::rename(self.file(file), self.moved(file))?)
    }

    async fn unlink(&self, file: u64) -> Result<()> {
        Ok(fs::remove_file(self.moved(file))?)
    }
}

/// What a flush of a small write costs in `under`: durable operations can't be faster, and on a virtual disk it swings by
/// orders of magnitude with how busy the machine is.
pub fn flushes(under: &Path) -> Result<Tally> {
    let path = under.join(format!("corefs-perf-flush-{}", std::process::id()));
    let of = |error: std::io::Error| Error::from(error).of(path.display());
    let mut file = File::create(&path).map_err(of)?;
    let mut tally = Tally { latencies: Latencies::new(), ..Tally::default() };
    let started = Instant::now();
    let outcome = (0..FLUSHES).try_for_each(|_| {
        file.write_all(&[0; 512])?;
        let from = Instant::now();
        file.sync_data()?;
        tally.latencies.record(from.elapsed().as_nanos() as u64);
        tally.operations += 1;
        Ok(())
    });
    tally.elapsed = started.elapsed();
    let _gone = fs::remove_file(&path);
    outcome.map_err(of)?;
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_run_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan { files: 50, directories: 3, deep: 1, lanes: 4, shuffle: true, bytes: 5000 };
        let tree = Tree::new(dir.path(), plan).unwrap();
        for phase in Phase::ALL {
            let tally = tree.run(phase, None, &Live::default()).unwrap();
            let expected = match phase {
                Phase::Mkdir | Phase::Rmdir => 6,
                Phase::Readdir => 3,
                _ => 50,
            };
            assert_eq!((tally.operations, tally.errors), (expected, 0), "{phase:?}: {:?}", tally.first_error);
            assert_eq!(tally.latencies.count(), expected);
        }
        assert_eq!(fs::read_dir(&tree.root).unwrap().count(), 0);
        drop(tree);
        assert_eq!(flushes(dir.path()).unwrap().operations, FLUSHES as u64);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
