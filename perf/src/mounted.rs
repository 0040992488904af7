//! A workload on a file of a mounted file system: O_DIRECT reads and writes, one thread for each operation in flight, as an
//! ordinary program would.

use crate::cpu::{CpuTime, Whose};
use crate::driver::{CoreRun, Live, Target, conduct, fresh_generation};
use crate::progress::Watch;
use crate::report::Tally;
use crate::workload::{Direction, Workload};
use corefs_net::{Buffer, Pool};
use corefs_wire::{Error, ErrorCode, Result};
use futures_lite::future::block_on;
use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Most threads, so most operations in flight.
pub const THREADS_MAX: u32 = 512;

/// Whose CPU time counts beside this process's own.
#[derive(Clone, Debug, Default)]
pub struct Processes {
    /// On the client's side: the processes that serve mounts.
    pub client: Vec<u32>,
    /// The servers. Empty: not known.
    pub server: Vec<u32>,
}

impl Processes {
    /// CPU time used so far on both sides.
    pub fn meter(&self) -> (Option<CpuTime>, Option<CpuTime>) {
        let client = CpuTime::of_processes(&self.client).map(|time| time.plus(CpuTime::own(Whose::Process)));
        let server = if self.server.is_empty() { None } else { CpuTime::of_processes(&self.server) };
        (client, server)
    }
}

/// Runs `workload` on the file at `path`; its cores count as one, with a thread for each operation in flight.
pub fn run(
    path: &Path,
    workload: &Workload,
    processes: &Processes,
    live: &Arc<Live>,
    watch: Watch,
) -> Result<Tally> {
    if workload.depth > THREADS_MAX {
        let what = format!("--depth {}: at most {THREADS_MAX} threads drive a mounted file", workload.depth);
        return Err(Error::new(ErrorCode::BadConfig, what));
    }
    // Each thread is a core of its own with one operation in flight.
    let each = Arc::new(Workload { cores: workload.depth, batch: 1, ..workload.clone() });
    let generation = fresh_generation();
    let begin = Instant::now() + Duration::from_millis(20);
    let (send, receive) = mpsc::channel();
    let mut threads = Vec::new();
    for core in 0..each.cores {
        let file = open(path, each.direction)?;
        let (each, live, send) = (Arc::clone(&each), Arc::clone(live), send.clone());
        let work = move || {
            let outcome = Pool::new(each.block as usize).and_then(|pool| {
                let buffer = pool.get(each.block as usize).ok_or(ErrorCode::Overloaded)?;
                let file = DirectFile { file, buffer: RefCell::new(buffer) };
                Ok(block_on(async {
                    let run = CoreRun::new(&each, core, begin, generation, &live);
                    run.lane(&file).await;
                    run.finish(&file).await
                }))
            });
            // The conductor may have given up already.
            let _gone = send.send(outcome);
        };
        let name = format!("perf-{core}");
        threads.push(std::thread::Builder::new().name(name).spawn(work)?);
    }
    drop(send);
    let what = format!("{} through the mount", workload.name());
    let tally = conduct(&each, begin, live, &mut || processes.meter(), watch, &what, &receive);
    if tally.is_err() {
        live.stop();
    }
    for thread in threads {
        if thread.join().is_err() {
            return Err(Error::new(ErrorCode::Internal, "a thread of the measurement panicked"));
        }
    }
    tally
}

/// Makes a file of `bytes` that is fully written with the pattern of `seed`, unless it is there already and long enough.
pub fn prepare(path: &Path, bytes: u64, seed: u64, live: &Arc<Live>, watch: Watch) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(there) if there.len() >= bytes => return Ok(()),
        Ok(there) => {
            let what = format!(
                "{} has {} bytes and {bytes} are needed; remove it, or name another",
                path.display(),
                there.len()
            );
            return Err(Error::new(ErrorCode::BadConfig, what));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::from(error).of(path.display())),
    }
    let layout = Workload::layout(bytes, seed);
    let tally = run(path, &layout, &Processes::default(), live, watch)?;
    if tally.errors > 0 || live.stopped() {
        let why = tally.first_error.unwrap_or_else(|| "interrupted".into());
        return Err(Error::new(ErrorCode::Os, format!("writing {}: {why}", path.display())));
    }
    Ok(())
}

struct DirectFile {
    file: File,
    /// The one operation that is in flight owns it.
    buffer: RefCell<Buffer>,
}

fn open(path: &Path, direction: Direction) -> Result<File> {
    let write = direction == Direction::Write;
    let file =
        OpenOptions::new().read(true).write(write).create(write).custom_flags(libc::O_DIRECT).open(path);
    file.map_err(|error| Error::from(error).of(path.display()))
}

impl Target for DirectFile {
    async fn read(&self, offsets: &[u64], length: usize, each: &mut dyn FnMut(usize, Result<&[u8]>)) {
        for (number, offset) in offsets.iter().enumerate() {
            let mut buffer = self.buffer.borrow_mut();
            let Some(bytes) = buffer.get_mut() else { unreachable!("the buffer has one handle") };
            match read_whole(&self.file, &mut bytes[..length], *offset) {
                Ok(count) => each(number, Ok(&bytes[..count])),
                Err(error) => each(number, Err(Error::from(error))),
            }
        }
    }

    async fn write(&self, offset: u64, length: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        let mut buffer = self.buffer.borrow_mut();
        let Some(bytes) = buffer.get_mut() else { unreachable!("the buffer has one handle") };
        fill(&mut bytes[..length]);
        Ok(self.file.write_all_at(&bytes[..length], offset)?)
    }

    async fn sync(&self) -> Result<()> {
        Ok(self.file.sync_all()?)
    }

    async fn pause(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

/// Bytes read; fewer than asked for only at the end of the file.
fn read_whole(file: &File, out: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut count = 0;
    while count < out.len() {
        match file.read_at(&mut out[count..], offset + count as u64) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}
