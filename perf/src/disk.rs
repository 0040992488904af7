//! The raw ceiling: how fast this machine's disk is without corefs, by the engine's own ring loop. And whether to believe it.
//!
//! A file is measured only if every block of it was written: space that is preallocated, or a hole, reads fast and
//! false.

use crate::cpu::{CpuTime, Whose};
use crate::driver::Live;
use crate::fio;
use crate::progress::{Progress, Unit, Watch};
use crate::report::{DISK, Row, Tally};
use crate::series::Recorder;
use crate::workload::{Direction, Order, Until, Workload};
use corefs_engine::disk::bench;
use corefs_net::buffer::BLOCK_MAX;
use corefs_wire::limits::BLOCK;
use corefs_wire::{Error, ErrorCode, Result};
use std::fs::{self, File};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

/// Ours and fio's figures may differ by so much.
const AGREE: f64 = 0.05;
/// Turns of ours and fio's: the disk of a shared machine changes its speed by the minute, so they alternate.
const TURNS: u32 = 3;
/// Working set of a file that is made for the run.
pub const SIZE_DEFAULT: u64 = 2 << 30;
/// Name of a file that is made for the run.
const MADE_NAME: &str = "corefs-perf-disk";

/// A file or device that may be measured. A file that was made for it is removed in the end.
#[derive(Debug)]
pub struct Ground {
    path: PathBuf,
    bytes: u64,
    made: bool,
}

impl Ground {
    /// Makes a fully written file of `bytes` in `directory`.
    pub fn make(directory: &Path, bytes: u64, seed: u64, live: &Live, watch: Watch) -> Result<Self> {
        let path = directory.join(format!("{MADE_NAME}-{}", std::process::id()));
        let ground = Self { path, bytes, made: true };
        let mut progress = Progress::new(watch, "filling a file for the raw disk", bytes, Unit::Bytes);
        let mut stopped = false;
        // Written in pieces, so that an interruption is heard.
        bench::fill(&ground.path, bytes, seed, &mut |written| {
            progress.at(written);
            stopped |= live.stopped();
        })?;
        if stopped { Err(Error::new(ErrorCode::Os, "interrupted")) } else { Ok(ground) }
    }

    /// What is at `path`: a device, a file that is fully written, or a directory, in which a file is made.
    pub fn find(
        path: &Path,
        size: Option<u64>,
        access: Direction,
        seed: u64,
        live: &Live,
        watch: Watch,
    ) -> Result<Self> {
        let of = |error: std::io::Error| Error::from(error).of(path.display());
        let kind = fs::metadata(path).map_err(of)?.file_type();
        if kind.is_dir() {
            return Self::make(path, size.unwrap_or(SIZE_DEFAULT), seed, live, watch);
        }
        if access == Direction::Write {
            let what = format!("{}: writing would destroy what is there; name a directory", path.display());
            return Err(Error::new(ErrorCode::BadConfig, what));
        }
        let there = length(path)?;
        let bytes = size.unwrap_or(there);
        if bytes > there {
            let what = format!("{} has {there} bytes, less than --size {bytes}", path.display());
            return Err(Error::new(ErrorCode::BadConfig, what));
        }
        if !kind.is_block_device() {
            refuse_unwritten(path, bytes)?;
        }
        Ok(Self { path: path.to_owned(), bytes, made: false })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the working set.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if self.made {
            // It may be gone, or never have come to be.
            let _gone = fs::remove_file(&self.path);
        }
    }
}

/// Bytes of a file or device.
fn length(path: &Path) -> Result<u64> {
    use std::io::{Seek, SeekFrom};
    let end = File::open(path).and_then(|mut file| file.seek(SeekFrom::End(0)));
    end.map_err(|error| Error::from(error).of(path.display()))
}

/// `BadConfig` if any of the first `bytes` was never written.
fn refuse_unwritten(path: &Path, bytes: u64) -> Result<()> {
    let of = |error: std::io::Error| Error::from(error).of(path.display());
    let file = File::open(path).map_err(of)?;
    let Some(at) = crate::extents::first_unwritten(&file, bytes).map_err(of)? else { return Ok(()) };
    let what = format!(
        "{}: byte {at} was never written, and such space reads fast and false; name another",
        path.display()
    );
    Err(Error::new(ErrorCode::BadConfig, what))
}

/// `BadConfig` for what the raw loop can't do: it goes to whole blocks of one file, without any buffer of the kernel, and
/// to all of them alike.
pub fn suits(workload: &Workload) -> Result<()> {
    let block = workload.block;
    let what = if !block.is_multiple_of(BLOCK as u64) || block > BLOCK_MAX as u64 {
        format!(
            "--block {block}: the raw disk takes multiples of {BLOCK} bytes up to {BLOCK_MAX} (O_DIRECT); other \
             sizes are for corefs alone"
        )
    } else if workload.rate.is_some() {
        "--rate is for corefs; the raw disk is measured in a closed loop".into()
    } else if workload.files > 1 {
        "--files is for corefs; the raw disk is measured in one file".into()
    } else if workload.skew.is_some() {
        "--zipf is for corefs; all blocks of a raw disk are visited alike".into()
    } else if workload.unaligned {
        "--unaligned is for corefs; O_DIRECT wants whole blocks".into()
    } else if matches!(workload.direction, Direction::Mixed { .. }) {
        "the raw disk is read or written; reads and writes mixed are for corefs".into()
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorCode::BadConfig, what))
}

/// Measures `workload` on what is at `path`. Closed loop only. With `copies` each write is so many durable ones, each in a part of its
/// own of the file: what so many replicas on this disk ask of it.
pub fn measure(
    path: &Path,
    workload: &Workload,
    copies: Option<u32>,
    live: &Live,
    watch: Watch,
) -> Result<Tally> {
    let Until::Elapsed { warmup, measured } = workload.until else {
        return Err(Error::new(ErrorCode::Internal, "the raw disk is measured by time"));
    };
    suits(workload)?;
    if copies.is_some() && workload.direction != Direction::Write {
        let what = "copies of writes were asked for, and this reads; choose randwrite or seqwrite";
        return Err(Error::new(ErrorCode::BadConfig, what));
    }
    live.begin();
    let begin = Instant::now();
    let end = warmup + measured;
    let (send, receive) = mpsc::channel();
    std::thread::scope(|scope| {
        for core in 0..workload.cores {
            let (send, options) = (send.clone(), options(path, workload, copies, core));
            scope.spawn(move || {
                // The receiver lives as long as this scope.
                let _gone = send.send(drive(&options?, live));
                Ok::<(), Error>(())
            });
        }
        drop(send);
        let mut progress = Progress::new(watch, "raw disk", end.as_millis() as u64, Unit::Milliseconds);
        let mut all = Tally::default();
        let mut left = workload.cores;
        while left > 0 {
            match receive.recv_timeout(Duration::from_millis(50)) {
                Ok(core) => {
                    all.join(core?);
                    left -= 1;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let elapsed = begin.elapsed();
                    let measured = elapsed.min(end).saturating_sub(warmup);
                    progress.tell(elapsed.as_millis() as u64, || live.line(measured));
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Error::new(
                        ErrorCode::Internal,
                        "a core of the measurement ended without its figures",
                    ));
                }
            }
        }
        Ok(all)
    })
}

fn options(path: &Path, workload: &Workload, copies: Option<u32>, core: u32) -> Result<bench::Options> {
    let Until::Elapsed { warmup, measured } = workload.until else { return Err(ErrorCode::Internal.into()) };
    // The first cores take what doesn't divide.
    let depth = workload.depth / workload.cores + u32::from(core < workload.depth % workload.cores);
    Ok(bench::Options {
        path: path.to_owned(),
        block: workload.block as usize,
        depth: depth as usize,
        duration: measured,
        warmup,
        direction: match workload.direction {
            Direction::Read => bench::Direction::Read,
            _ => bench::Direction::Write,
        },
        order: match workload.order {
            Order::Random => bench::Order::Random,
            Order::Sequential => bench::Order::Sequential,
        },
        working_set: workload.working_set,
        core,
        cores: workload.cores,
        seed: workload.seed.wrapping_add(u64::from(core)),
        durable: copies.is_some(),
        copies: copies.unwrap_or(1) as usize,
    })
}

/// One core: its own histogram, and its own thread's CPU time from the end of the warm-up.
fn drive(options: &bench::Options, live: &Live) -> Result<Tally> {
    let mut recorder = None;
    let mut before = None;
    let report = bench::run(
        options,
        &mut |latency_ns| {
            let now = Instant::now();
            let (recorder, first) = recorder.get_or_insert_with(|| {
                before = Some(CpuTime::own(Whose::Thread));
                (Recorder::new(SystemTime::now(), Some(options.duration)), now)
            });
            recorder.record(now - *first, latency_ns, 1, live);
        },
        &mut || live.stopped(),
    )?;
    let recorded = recorder.map(|(recorder, _)| recorder.finish(report.elapsed));
    let (series, latencies) = recorded.unwrap_or_default();
    Ok(Tally {
        operations: report.operations,
        bytes: report.bytes,
        errors: report.errors,
        elapsed: report.elapsed,
        latencies,
        series,
        client: before.map(|before| CpuTime::own(Whose::Thread).since(before)),
        ..Tally::default()
    })
}

/// The row of durable writes.
pub const DURABLE: &str = "disk_durable";

/// The row of a raw run: `disk` for random reads, which ratios are to; `disk_seqwrite` and so on for others.
pub fn row(workload: &Workload, tally: Tally) -> Row {
    let name = workload.name();
    tally.into_row(if name == "randread" { DISK.to_owned() } else { format!("{DISK}_{name}") })
}

/// Measures in turns with fio. The row says what fio got and whether the two agree. `BadConfig` if fio isn't installed.
pub fn measure_against_fio(path: &Path, workload: &Workload, live: &Live, watch: Watch) -> Result<Row> {
    let Until::Elapsed { warmup, measured } = workload.until else { return Err(ErrorCode::Internal.into()) };
    let turn = Workload { until: Until::Elapsed { warmup, measured: measured / TURNS }, ..workload.clone() };
    let mut ours = Tally::default();
    let mut theirs = 0.0;
    for number in 0..TURNS {
        let seeded = Workload { seed: turn.seed.wrapping_add(u64::from(number) << 32), ..turn.clone() };
        ours.extend(measure(path, &seeded, None, live, watch)?);
        theirs += fio::run(path, &seeded, fio::Sync::Never)? / f64::from(TURNS);
    }
    let mut row = row(workload, ours);
    row.extras.fio_iops = Some(theirs);
    row.extras.ratio_valid = row.iops.map(|ours| agree(ours, theirs));
    Ok(row)
}

/// Whether two figures are so close that ratios to either mean something.
pub fn agree(ours: f64, theirs: f64) -> bool {
    theirs > 0.0 && (ours / theirs - 1.0).abs() <= AGREE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(access: Direction) -> Workload {
        Workload {
            direction: access,
            depth: 9,
            cores: 2,
            order: Order::Random,
            block: 4096,
            until: Until::Elapsed { warmup: Duration::from_millis(5), measured: Duration::from_millis(60) },
            ..Workload::layout(4 << 20, 1)
        }
    }

    #[test]
    fn a_made_file_is_measured_on_all_cores_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let live = Live::default();
        for access in [Direction::Read, Direction::Write] {
            let ground = Ground::find(dir.path(), Some(4 << 20), access, 1, &live, Watch::Nothing).unwrap();
            let tally = measure(ground.path(), &workload(access), None, &live, Watch::Nothing).unwrap();
            assert!(tally.operations > 0 && tally.errors == 0);
            assert_eq!(tally.latencies.count(), tally.operations);
            let points = tally.series.points().unwrap().points;
            assert_eq!(points.iter().map(|point| point.operations).sum::<u64>(), tally.operations);
            assert!(tally.client.is_some());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn copies_are_of_writes() {
        let dir = tempfile::tempdir().unwrap();
        let live = Live::default();
        let ground = Ground::make(dir.path(), 4 << 20, 1, &live, Watch::Nothing).unwrap();
        let once = |access, copies| measure(ground.path(), &workload(access), copies, &live, Watch::Nothing);
        let tally = once(Direction::Write, Some(3)).unwrap();
        assert!(tally.operations > 0 && tally.errors == 0 && tally.bytes == tally.operations * 4096);
        let error = once(Direction::Read, Some(3)).unwrap_err();
        assert!(error.code == ErrorCode::BadConfig && error.message.contains("randwrite"), "{error}");
    }

    #[test]
    fn what_was_never_written_and_what_would_be_destroyed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let live = Live::default();
        let find = |size, access| Ground::find(&path, size, access, 1, &live, Watch::Nothing).map(drop);
        assert_eq!(find(None, Direction::Read).unwrap_err().code, ErrorCode::Os);
        let file = File::create(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        assert!(find(None, Direction::Read).unwrap_err().message.contains("never written"));
        fs::write(&path, vec![1; 1 << 20]).unwrap();
        assert_eq!(find(None, Direction::Read), Ok(()));
        assert!(find(Some(2 << 20), Direction::Read).unwrap_err().message.contains("--size"));
        assert!(find(None, Direction::Write).unwrap_err().message.contains("destroy"));
        assert!(path.exists(), "a file that was there is left alone");
    }

    #[test]
    fn a_stopped_run_ends_and_a_rate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let live = Live::default();
        let ground = Ground::make(dir.path(), 1 << 20, 1, &live, Watch::Nothing).unwrap();
        let mut run = Workload { working_set: 1 << 20, ..workload(Direction::Read) };
        run.rate = Some(10.0);
        assert!(
            measure(ground.path(), &run, None, &live, Watch::Nothing).unwrap_err().message.contains("--rate")
        );
        run.rate = None;
        run.until = Until::Elapsed { warmup: Duration::ZERO, measured: Duration::from_secs(3600) };
        live.stop();
        assert!(
            measure(ground.path(), &run, None, &live, Watch::Nothing).unwrap().elapsed
                < Duration::from_secs(3600)
        );
    }

    #[test]
    fn what_only_corefs_can_do_is_refused_with_its_flag() {
        use crate::workload::{Over, Skew};
        let run = workload(Direction::Read);
        assert_eq!(suits(&run), Ok(()));
        for (run, flag) in [
            (Workload { block: 5000, ..run.clone() }, "--block 5000"),
            (Workload { block: 4 << 20, ..run.clone() }, "--block"),
            (Workload { files: 2, ..run.clone() }, "--files"),
            (Workload { skew: Some(Skew { theta: 1.0, over: Over::Blocks }), ..run.clone() }, "--zipf"),
            (Workload { unaligned: true, ..run.clone() }, "--unaligned"),
            (Workload { direction: Direction::Mixed { reads: 50 }, ..run.clone() }, "mixed"),
        ] {
            let error = suits(&run).unwrap_err();
            assert!(error.code == ErrorCode::BadConfig && error.message.contains(flag), "{error}");
        }
    }

    #[test]
    fn agreement_is_within_5_percent_either_way() {
        assert!(agree(95.1, 100.0) && agree(104.9, 100.0));
        assert!(!agree(94.9, 100.0) && !agree(105.1, 100.0) && !agree(1.0, 0.0));
    }
}
