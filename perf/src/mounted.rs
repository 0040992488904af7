//! A workload on a file of a mounted file system: O_DIRECT reads and writes, one thread for each operation in flight, as an
//! ordinary program would.

use crate::cpu::{CpuTime, Whose};
use crate::driver::{CoreRun, Live, Target, conduct, fresh_generation};
use crate::files;
use crate::progress::Watch;
use crate::report::Tally;
use crate::workload::Workload;
use corefs_net::{Buffer, Pool};
use corefs_wire::{Error, ErrorCode, Result};
use futures_lite::future::block_on;
use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
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

/// Runs `workload` on the file at `path`, or its files; its cores count as one, with a thread for each operation in flight.
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
    let (send, receive) = mpsc::channel();
    let mut threads = Vec::new();
    let all = open_all(path, &each)?;
    let begin = Instant::now() + Duration::from_millis(20);
    for core in 0..each.cores {
        // One file is opened by every thread, as by so many programs; of many that would be more than a process may have open.
        let files = if each.files == 1 { open_all(path, &each)? } else { Arc::clone(&all) };
        let (each, live, send) = (Arc::clone(&each), Arc::clone(live), send.clone());
        let work = move || {
            let outcome = Pool::new(each.block as usize).and_then(|pool| {
                let buffer = pool.get(each.block as usize).ok_or(ErrorCode::Overloaded)?;
                let written = files.iter().map(|_| Cell::new(false)).collect();
                let (workload, buffer) = (Arc::clone(&each), RefCell::new(buffer));
                let target = DirectFiles { files, written, workload, buffer };
                Ok(block_on(async {
                    let run = CoreRun::new(&each, core, begin, generation, &live);
                    run.lane(&target).await;
                    run.finish(&target).await
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
    prepare_for(path, &Workload::layout(bytes, seed), live, watch)
}

/// Makes whatever files `workload` touches, likewise.
pub fn prepare_for(path: &Path, workload: &Workload, live: &Arc<Live>, watch: Watch) -> Result<()> {
    let length = |path: PathBuf| match std::fs::metadata(&path) {
        Ok(there) => Ok((path, Some(there.len()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok((path, None)),
        Err(error) => Err(Error::from(error).of(path.display())),
    };
    let lengths: Vec<_> =
        files::paths(path, workload.files).into_iter().map(length).collect::<Result<_>>()?;
    if !files::must_be_written(&lengths, workload)? {
        return Ok(());
    }
    let tally = run(path, &workload.ground(), &Processes::default(), live, watch)?;
    if tally.errors > 0 || live.stopped() {
        let why = tally.first_error.unwrap_or_else(|| "interrupted".into());
        return Err(Error::new(ErrorCode::Os, format!("writing {}: {why}", path.display())));
    }
    Ok(())
}

struct DirectFiles {
    files: Arc<Vec<File>>,
    /// Which of them this thread must make durable.
    written: Vec<Cell<bool>>,
    workload: Arc<Workload>,
    /// The one operation that is in flight owns it.
    buffer: RefCell<Buffer>,
}

impl DirectFiles {
    fn place(&self, offset: u64) -> (usize, u64) {
        let (file, place) = self.workload.place(offset);
        (file as usize, place)
    }
}

fn open_all(path: &Path, workload: &Workload) -> Result<Arc<Vec<File>>> {
    let write = workload.direction.writes();
    let open = |path: &PathBuf| {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(write).create(write).custom_flags(libc::O_DIRECT);
        options.open(path).map_err(|error| Error::from(error).of(path.display()))
    };
    Ok(Arc::new(files::paths(path, workload.files).iter().map(open).collect::<Result<_>>()?))
}

impl Target for DirectFiles {
    async fn read(&self, offsets: &[u64], length: usize, each: &mut dyn FnMut(usize, Result<&[u8]>)) {
        for (number, offset) in offsets.iter().enumerate() {
            let mut buffer = self.buffer.borrow_mut();
            let Some(bytes) = buffer.get_mut() else { unreachable!("the buffer has one handle") };
            let (file, place) = self.place(*offset);
            match read_whole(&self.files[file], &mut bytes[..length], place) {
                Ok(count) => each(number, Ok(&bytes[..count])),
                Err(error) => each(number, Err(Error::from(error))),
            }
        }
    }

    async fn write(&self, offset: u64, length: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        let mut buffer = self.buffer.borrow_mut();
        let Some(bytes) = buffer.get_mut() else { unreachable!("the buffer has one handle") };
        fill(&mut bytes[..length]);
        let (file, place) = self.place(offset);
        self.written[file].set(true);
        Ok(self.files[file].write_all_at(&bytes[..length], place)?)
    }

    async fn sync(&self) -> Result<()> {
        let mut written = self.files.iter().zip(&self.written).filter(|(_, written)| written.get());
        Ok(written.try_for_each(|(file, _)| file.sync_all())?)
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
