//! The driver on a real file, and on files that lie.

use super::*;
use crate::mounted::{self, Processes};
use crate::workload::{Order, Over, Skew};
use futures_lite::future::zip;
use std::path::{Path, PathBuf};

const SIZE: u64 = 1 << 20;

fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    (dir, path)
}

fn timed(direction: Direction, order: Order) -> Workload {
    let until = Until::Elapsed { warmup: Duration::from_millis(10), measured: Duration::from_millis(100) };
    Workload { direction, order, block: 4096, depth: 4, until, verify: true, ..Workload::layout(SIZE, 5) }
}

fn go(path: &Path, workload: &Workload) -> Tally {
    let live = Arc::new(Live::default());
    mounted::run(path, workload, &Processes::default(), &live, Watch::Nothing).unwrap()
}

#[test]
fn a_layout_is_whole_and_verifies_by_every_access() {
    let (_dir, path) = scratch();
    let written = go(&path, &Workload { verify: true, ..Workload::layout(SIZE * 3, 5) });
    assert_eq!((written.operations, written.bytes, written.verify_errors), (3, SIZE * 3, Some(0)));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), SIZE * 3);
    for order in [Order::Random, Order::Sequential] {
        let tally = go(&path, &timed(Direction::Read, order));
        assert!(tally.operations > 0);
        assert_eq!((tally.errors, tally.verify_errors), (0, Some(0)), "{:?}", tally.first_error);
        assert_eq!(tally.latencies.count(), tally.operations);
    }
    for order in [Order::Random, Order::Sequential] {
        let tally = go(&path, &timed(Direction::Write, order));
        assert!(tally.operations > 0);
        assert_eq!((tally.errors, tally.verify_errors), (0, Some(0)), "{:?}", tally.first_error);
    }
    // Blocks written one by one are read in larger pieces, of several generations each.
    let tally = go(&path, &Workload { block: 64 << 10, ..timed(Direction::Read, Order::Sequential) });
    assert_eq!((tally.errors, tally.verify_errors), (0, Some(0)), "{:?}", tally.first_error);
}

#[test]
fn wrong_bytes_and_short_files_are_counted() {
    let (_dir, path) = scratch();
    go(&path, &Workload::layout(SIZE, 5));
    let other = Workload { seed: 6, ..timed(Direction::Read, Order::Random) };
    assert!(go(&path, &other).verify_errors > Some(0), "another seed's file");
    let far = Workload { working_set: 2 * SIZE, ..timed(Direction::Read, Order::Random) };
    let tally = go(&path, &far);
    assert!(tally.errors > 0 && tally.first_error.unwrap().contains("at offset"));
    assert_eq!(tally.verify_errors, Some(0));
}

#[test]
fn an_open_loop_does_what_is_due_and_no_more() {
    let (_dir, path) = scratch();
    go(&path, &Workload::layout(SIZE, 5));
    let until = Until::Elapsed { warmup: Duration::ZERO, measured: Duration::from_millis(250) };
    let tally = go(&path, &Workload { rate: Some(400.0), until, ..timed(Direction::Read, Order::Random) });
    // 400 a second for a quarter of a second are 100 due times; a slow machine does fewer, never more.
    assert!(tally.operations > 0 && tally.operations <= 104, "{}", tally.operations);
    assert!(tally.elapsed >= Duration::from_millis(250));
}

#[test]
fn a_stop_is_heard_and_a_missing_file_told() {
    let (_dir, path) = scratch();
    go(&path, &Workload::layout(SIZE, 5));
    let live = Arc::new(Live::default());
    live.stop();
    let until = Until::Elapsed { warmup: Duration::ZERO, measured: Duration::from_secs(3600) };
    let long = Workload { until, ..timed(Direction::Read, Order::Random) };
    let tally = mounted::run(&path, &long, &Processes::default(), &live, Watch::Nothing).unwrap();
    assert!(tally.elapsed < Duration::from_secs(3600));
    let missing =
        mounted::run(Path::new("/missing/file"), &long, &Processes::default(), &live, Watch::Nothing);
    assert!(missing.unwrap_err().message.contains("/missing/file"));
}

#[test]
fn prepare_writes_once_and_never_over_what_is_shorter() {
    let (_dir, path) = scratch();
    let live = Arc::new(Live::default());
    let prepare = |bytes| mounted::prepare(&path, bytes, 5, &live, Watch::Nothing);
    prepare(SIZE).unwrap();
    let before = std::fs::read(&path).unwrap();
    prepare(SIZE).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(prepare(2 * SIZE).unwrap_err().code, ErrorCode::BadConfig);
}

/// A file whose server stalls once, for `stall`; otherwise every read is immediate.
struct Stalling {
    stall: Duration,
    stalled: Cell<bool>,
}

impl Target for Stalling {
    async fn read(&self, offsets: &[u64], length: usize, each: &mut dyn FnMut(usize, Result<&[u8]>)) {
        if !self.stalled.replace(true) {
            std::thread::sleep(self.stall);
        }
        let bytes = vec![0; length];
        (0..offsets.len()).for_each(|number| each(number, Ok(&bytes)));
    }
    async fn write(&self, _: u64, _: usize, _: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        Err(Error::new(ErrorCode::NoSpace, "this file takes nothing"))
    }
    async fn sync(&self) -> Result<()> {
        Ok(())
    }
    async fn pause(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

fn on_stalling(workload: Workload) -> Tally {
    on_stalling_since(workload, Instant::now(), Duration::from_millis(100))
}

fn on_stalling_since(workload: Workload, begin: Instant, stall: Duration) -> Tally {
    let target = Stalling { stall, stalled: Cell::new(false) };
    let run = CoreRun::new(&Arc::new(workload), 0, begin, 0, &Arc::new(Live::default()));
    futures_lite::future::block_on(async {
        run.lane(&target).await;
        run.finish(&target).await
    })
}

#[test]
fn an_open_loop_is_corrected_for_coordinated_omission() {
    let until = Until::Elapsed { warmup: Duration::ZERO, measured: Duration::from_millis(300) };
    let read = Workload { depth: 1, verify: false, until, ..timed(Direction::Read, Order::Random) };
    // One due each millisecond: about a hundred wait for the stall, the first for all of it, the last for nothing.
    let open = on_stalling(Workload { rate: Some(1000.0), ..read.clone() });
    assert!(open.operations >= 100);
    assert!(open.latencies.quantile_us(0.9) > Some(20_000.0), "{:?}", open.latencies.quantile_us(0.9));
    // A closed loop sees one slow operation among thousands.
    let closed = on_stalling(read);
    assert!(closed.latencies.max_us() >= Some(100_000.0));
    assert!(closed.latencies.quantile_us(0.9) < Some(20_000.0));
}

/// Else a system that stalls at the end is measured by what it did before.
#[test]
fn what_was_due_before_the_end_of_an_open_loop_counts_after_it() {
    let until = Until::Elapsed { warmup: Duration::ZERO, measured: Duration::from_millis(100) };
    let read = Workload {
        depth: 1,
        verify: false,
        until,
        rate: Some(1000.0),
        ..timed(Direction::Read, Order::Random)
    };
    let late = on_stalling_since(read.clone(), Instant::now(), Duration::from_millis(200));
    assert_eq!((late.operations, late.latencies.count(), late.never_started), (100, 100, 0));
    assert!(late.latencies.quantile_us(0.01) > Some(90_000.0), "{:?}", late.latencies.quantile_us(0.01));
    assert!(late.elapsed >= Duration::from_millis(200), "the rate was not reached");
    // It ended a minute ago: nothing is begun any more, but everything has waited.
    let long_ago = Instant::now() - Duration::from_secs(60);
    let never = on_stalling_since(read, long_ago, Duration::ZERO);
    assert_eq!((never.operations, never.latencies.count(), never.never_started), (0, 100, 100));
    assert!(never.latencies.quantile_us(0.01) > Some(50e6));
}

#[test]
fn failed_writes_are_errors_and_not_read_back() {
    let tally = on_stalling(timed(Direction::Write, Order::Random));
    assert!(tally.errors > 0 && tally.operations == 0);
    assert_eq!(tally.verify_errors, Some(0));
    assert!(tally.first_error.unwrap().contains("this file takes nothing"));
}

#[test]
fn a_mixed_run_on_many_files_verifies_and_counts_both_kinds() {
    let (dir, path) = scratch();
    let direction = Direction::Mixed { reads: 60 };
    let skew = Some(Skew { theta: 0.9, over: Over::Blocks });
    let run = Workload { files: 3, skew, working_set: 3 * SIZE, ..timed(direction, Order::Random) };
    let live = Arc::new(Live::default());
    mounted::prepare_for(&path, &run, &live, Watch::Nothing).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    let reads = go(&path, &run);
    let writes = reads.writes.as_deref().unwrap();
    for side in [&reads, writes] {
        assert!(side.operations > 0 && side.errors == 0, "{:?}", side.first_error);
        assert_eq!((side.verify_errors, side.latencies.count()), (Some(0), side.operations));
        let points = side.series.points().unwrap().points;
        assert_eq!(points.iter().map(|point| point.operations).sum::<u64>(), side.operations);
    }
    // Each file has a pattern of its own, which a run of the same shape knows.
    let read = Workload { direction: Direction::Read, skew: None, ..run.clone() };
    assert_eq!(go(&path, &read).verify_errors, Some(0));
    std::fs::rename(dir.path().join("file.0"), dir.path().join("x")).unwrap();
    std::fs::rename(dir.path().join("file.1"), dir.path().join("file.0")).unwrap();
    std::fs::rename(dir.path().join("x"), dir.path().join("file.1")).unwrap();
    assert!(go(&path, &read).verify_errors > Some(0), "files that changed places");
}

/// A file in memory, which may lose writes: all of every eighth, or its second half. It stops the run after so many operations,
/// however long they take.
struct Memory {
    bytes: RefCell<Vec<u8>>,
    lost: Loss,
    writes: Cell<u64>,
    left: Cell<u64>,
    live: Arc<Live>,
}

impl Memory {
    async fn others(&self) {
        match self.left.get().checked_sub(1) {
            Some(left) => self.left.set(left),
            None => self.live.stop(),
        }
        futures_lite::future::yield_now().await;
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Loss {
    Nothing,
    All,
    Half,
}

impl Target for Memory {
    async fn read(&self, offsets: &[u64], length: usize, each: &mut dyn FnMut(usize, Result<&[u8]>)) {
        self.others().await;
        let bytes = self.bytes.borrow();
        for (number, offset) in offsets.iter().enumerate() {
            each(number, Ok(&bytes[*offset as usize..][..length]));
        }
    }
    async fn write(&self, offset: u64, length: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        self.others().await;
        self.writes.set(self.writes.get() + 1);
        let mut written = vec![0; length];
        fill(&mut written);
        let kept = match self.lost {
            Loss::All if self.writes.get().is_multiple_of(8) => 0,
            Loss::Half if self.writes.get().is_multiple_of(8) => length / 2,
            _ => length,
        };
        self.bytes.borrow_mut()[offset as usize..][..kept].copy_from_slice(&written[..kept]);
        self.others().await;
        Ok(())
    }
    async fn sync(&self) -> Result<()> {
        Ok(())
    }
    async fn pause(&self, _: Duration) {
        futures_lite::future::yield_now().await;
    }
}

/// A run of a few lanes in memory, whose bytes an earlier run has written.
fn in_memory(workload: &Workload, lost: Loss) -> Tally {
    let mut bytes = vec![0; workload.working_set as usize];
    Pattern::new(workload.seed).fill(0, fresh_generation(), &mut bytes);
    let live = Arc::new(Live::default());
    let (writes, left) = (Cell::new(0), Cell::new(400));
    let target = Memory { bytes: RefCell::new(bytes), lost, writes, left, live: Arc::clone(&live) };
    let until = Until::Elapsed { warmup: Duration::ZERO, measured: Duration::from_secs(3600) };
    let workload = Arc::new(Workload { until, ..workload.clone() });
    let run = CoreRun::new(&workload, 0, Instant::now(), fresh_generation() + 1, &live);
    let lane = || run.lane(&target);
    futures_lite::future::block_on(async {
        zip(lane(), zip(lane(), lane())).await;
        run.finish(&target).await
    })
}

#[test]
fn blocks_of_any_size_at_any_place_verify_and_lost_writes_are_found() {
    for (block, unaligned) in [(512, false), (777, true), (12_345, false), (70_001, true)] {
        for direction in [Direction::Read, Direction::Write, Direction::Mixed { reads: 50 }] {
            let run = Workload { block, unaligned, depth: 3, ..timed(direction, Order::Random) };
            let good = in_memory(&run, Loss::Nothing);
            let writes = good.writes.as_ref().map_or(0, |writes| writes.verify_errors.unwrap());
            assert_eq!((good.verify_errors, writes), (Some(0), 0), "{block} {direction:?}");
            assert!(good.operations > 0);
        }
        for lost in [Loss::All, Loss::Half] {
            let run = Workload { block, unaligned, depth: 3, ..timed(Direction::Write, Order::Random) };
            assert!(in_memory(&run, lost).verify_errors > Some(0), "{block} {lost:?}");
            // A mixed run sees it at once, in its reads, which come by often where there are few blocks.
            let direction = Direction::Mixed { reads: 50 };
            let run = Workload { direction, working_set: 20 * block, ..run };
            assert!(in_memory(&run, lost).verify_errors > Some(0), "{block} {lost:?}, mixed");
        }
    }
}
