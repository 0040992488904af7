//! A history on disk: one line for each thing that happened, written at once, so that it survives the death of its process.
//!
//! ```text
//! F file chain                     the file's only chunk is on this chain
//! B key id start                   a write begins
//! E key id start end ok|unknown    it ended; without this line nobody knows
//! R key id start end               a read returned this value
//! S file start end                 a sync: its length and times are stored
//! X key start end why              a read returned no value: what it returned
//! N what key start     end why   an operation failed
//! ```
//!
//! Times are nanoseconds of CLOCK_MONOTONIC, the same clock for all processes of a machine.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

/// Now, in nanoseconds of CLOCK_MONOTONIC.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes to the struct that it is given and nowhere else.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Where one process writes what it did.
pub struct Log(File);

impl Log {
    pub fn create(path: &Path) -> io::Result<Self> {
        File::options().create(true).append(true).open(path).map(Self)
    }

    /// One line, with the kernel when this returns: no kill of this process loses it.
    pub fn line(&self, line: std::fmt::Arguments<'_>) {
        let line = format!("{line}\n");
        if let Err(error) = (&self.0).write_all(line.as_bytes()) {
            // A history with holes would accuse the innocent.
            panic!("the history can't be written: {error}");
        }
    }
}

/// A write, and when it ended if somebody was told that it happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteOp {
    pub key: u32,
    pub id: u64,
    pub start: u64,
    /// `None`: it may have happened, may happen yet, or never.
    pub end: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadOp {
    pub key: u32,
    pub id: u64,
    pub start: u64,
    pub end: u64,
}

/// An operation of which the application was told that it failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub what: String,
    pub key: u32,
    pub start: u64,
    pub end: u64,
    pub why: String,
}

/// All that several processes did.
#[derive(Clone, Default, Debug)]
pub struct History {
    pub writes: Vec<WriteOp>,
    pub reads: Vec<ReadOp>,
    pub failures: Vec<Failure>,
    /// Reads that returned something that is no value.
    pub altered: Vec<Failure>,
    /// Syncs, as (end, start).
    pub syncs: Vec<(u64, u64)>,
    /// The chain of each file.
    pub chains: BTreeMap<u32, u64>,
}

impl History {
    /// Reads all `*.hist` of a directory.
    pub fn load(directory: &Path) -> io::Result<Self> {
        let mut history = Self::default();
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "hist") {
                history.add(BufReader::new(File::open(&path)?).lines(), &path)?;
            }
        }
        Ok(history)
    }

    fn add(&mut self, lines: impl Iterator<Item = io::Result<String>>, path: &Path) -> io::Result<()> {
        let mut open: HashMap<(u32, u64), u64> = HashMap::new();
        for (number, line) in lines.enumerate() {
            let line = line?;
            let read = self.line(&line, &mut open);
            read.ok_or_else(|| io::Error::other(format!("{}:{}: {line}", path.display(), number + 1)))?;
        }
        let unended = open.into_iter().map(|((key, id), start)| WriteOp { key, id, start, end: None });
        self.writes.extend(unended);
        Ok(())
    }

    fn line(&mut self, line: &str, open: &mut HashMap<(u32, u64), u64>) -> Option<()> {
        let mut words = line.splitn(6, ' ');
        let kind = words.next()?;
        let mut number = || words.next()?.parse::<u64>().ok();
        match kind {
            "F" => {
                self.chains.insert(number()? as u32, number()?);
            }
            "B" => {
                open.insert((number()? as u32, number()?), number()?);
            }
            "E" => {
                let (key, id, start, end) = (number()? as u32, number()?, number()?, number()?);
                open.remove(&(key, id));
                let known = words.next()? == "ok";
                self.writes.push(WriteOp { key, id, start, end: known.then_some(end) });
            }
            "R" => self.reads.push(ReadOp {
                key: number()? as u32,
                id: number()?,
                start: number()?,
                end: number()?,
            }),
            "S" => {
                let (_, start, end) = (number()?, number()?, number()?);
                self.syncs.push((end, start));
            }
            "X" => {
                let (key, start, end) = (number()? as u32, number()?, number()?);
                let why = words.collect::<Vec<_>>().join(" ");
                self.altered.push(Failure { what: "read".into(), key, start, end, why });
            }
            "N" => {
                let what = words.next()?.to_owned();
                let mut number = || words.next()?.parse::<u64>().ok();
                let (key, start, end) = (number()? as u32, number()?, number()?);
                self.failures.push(Failure { what, key, start, end, why: words.next()?.to_owned() });
            }
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back() {
        let text = "F 0 3\nB 1 10 100\nE 1 10 100 150 ok\nB 1 11 160\nR 1 10 155 158\nX 2 1 2 value 5, but altered\n\
                    B 2 12 170\nE 2 12 170 190 unknown\nN write 2 170 190 TimedOut after 3 attempts\n";
        let mut history = History::default();
        history.add(text.lines().map(|line| Ok(line.to_owned())), Path::new("here")).unwrap();
        let write = |key, id, start, end| WriteOp { key, id, start, end };
        assert_eq!(
            history.writes,
            [write(1, 10, 100, Some(150)), write(2, 12, 170, None), write(1, 11, 160, None)]
        );
        assert_eq!(history.reads, [ReadOp { key: 1, id: 10, start: 155, end: 158 }]);
        assert_eq!(history.altered[0].why, "value 5, but altered");
        assert_eq!(history.failures[0].why, "TimedOut after 3 attempts");
        assert_eq!(history.chains[&0], 3);
    }
}
