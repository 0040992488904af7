//! The bare bound: how fast this thread's own ring drives a file or device, with nothing of corefs in between.
//!
//! It uses the same ring, registered file and fixed buffers as a shard, keeps `depth` transfers in flight and hands
//! out each one's latency. Whoever wants percentiles records them; whoever wants several cores runs one on each.

use corefs_net::{Completion, Pool, Ring, RingConfig, Source, Token, ring::File};
use corefs_wire::{Error, ErrorCode, Result, limits::BLOCK};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a transfer does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    Read,
    Write,
}

/// Which offset comes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    Random,
    Sequential,
}

#[derive(Clone, Debug)]
pub struct Options {
    /// An existing file or block device, opened with O_DIRECT.
    pub path: PathBuf,
    /// Bytes of a transfer: whole checksum blocks, at most [`BLOCK_MAX`](corefs_net::buffer::BLOCK_MAX).
    pub block: usize,
    /// Operations in flight.
    pub depth: usize,
    /// How long latencies are handed out.
    pub duration: Duration,
    /// How long it runs before that.
    pub warmup: Duration,
    pub direction: Direction,
    pub order: Order,
    /// The first bytes of the file that are touched.
    pub working_set: u64,
    /// Which of how many cores that run together. Sequential accesses stay in its own share: else each would read what another has
    /// just brought into the drive's cache.
    pub core: u32,
    pub cores: u32,
    pub seed: u64,
    /// A write is complete when it is durable (O_DSYNC of open(2)).
    pub durable: bool,
    /// Transfers of an operation, begun together, each in a part of its own of the working set: it is complete when all of them are.
    /// As many are what a file system with so many copies on this disk asks of it.
    pub copies: usize,
}

/// What a run did after its warm-up.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Report {
    pub operations: u64,
    pub bytes: u64,
    /// Operations that failed or came up short.
    pub errors: u64,
    pub elapsed: Duration,
}

/// Runs until the duration is over or `stop` says so (asked about once a millisecond). `latency_ns` gets each operation's
/// time from its submission to its completion in nanoseconds.
///
/// Errors: `BadConfig` for options that make no sense, `Os` for what the system refuses. Failed operations are only counted.
pub fn run(
    options: &Options,
    latency_ns: &mut dyn FnMut(u64),
    stop: &mut dyn FnMut() -> bool,
) -> Result<Report> {
    check(options)?;
    let mut bench = Bench::open(options)?;
    let result = bench.drive(options, latency_ns, stop);
    bench.ring.drain();
    result
}

/// Creates `path` with `bytes` of random data, written through to the disk: what has never been written reads fast and
/// false. `progress` gets the bytes written so far.
pub fn fill(path: &Path, bytes: u64, seed: u64, progress: &mut dyn FnMut(u64)) -> Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::create(path).map_err(|error| at(path, error))?;
    let mut numbers = Numbers::new(seed);
    let mut piece = vec![0; 1 << 20];
    let mut written = 0;
    while written < bytes {
        piece.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&numbers.next().to_le_bytes()));
        let len = (bytes - written).min(piece.len() as u64) as usize;
        file.write_all(&piece[..len]).map_err(|error| at(path, error))?;
        written += len as u64;
        progress(written);
    }
    file.sync_all().map_err(|error| at(path, error))
}

fn at(path: &Path, error: std::io::Error) -> Error {
    Error::from(error).of(path.display())
}

fn check(options: &Options) -> Result<()> {
    let bad = |what: &str| Err(Error::new(ErrorCode::BadConfig, what.to_string()));
    if options.block == 0 || !options.block.is_multiple_of(BLOCK) {
        return bad("the block must be a multiple of 4096 bytes");
    }
    if options.block > corefs_net::buffer::BLOCK_MAX {
        return bad("the block is larger than the largest buffer");
    }
    if options.depth == 0 || options.depth > 4096 {
        return bad("the depth must be between 1 and 4096");
    }
    if options.core >= options.cores {
        return bad("a core of fewer");
    }
    if options.copies > 1 && options.direction == Direction::Read {
        return bad("several copies are written, and one is read");
    }
    if options.copies == 0 || options.copies > 16 {
        return bad("the copies must be between 1 and 16");
    }
    if options.working_set / (options.copies as u64) < options.block as u64 {
        return bad("the working set has no block for each copy");
    }
    Ok(())
}

struct Bench {
    ring: Ring,
    file: File,
    /// Held open, and after the ring: the ring ends what is in flight before its memory goes.
    _open: std::fs::File,
    buffers: Vec<corefs_net::Buffer>,
    slots: Vec<Slot>,
}

/// An operation in flight.
#[derive(Clone, Copy)]
struct Slot {
    started: Instant,
    /// Transfers that aren't complete.
    left: usize,
    failed: bool,
}

impl Bench {
    fn open(options: &Options) -> Result<Self> {
        use std::os::fd::AsRawFd;
        use std::os::unix::fs::OpenOptionsExt;
        let open = std::fs::OpenOptions::new()
            .read(true)
            .write(options.direction == Direction::Write)
            .custom_flags(libc::O_DIRECT | if options.durable { libc::O_DSYNC } else { 0 })
            .open(&options.path)
            .map_err(|error| at(&options.path, error))?;
        let entries = (options.depth * options.copies).next_power_of_two().max(8) as u32;
        let config = RingConfig { entries, completions: entries * 2, files: 1, ..RingConfig::default() };
        let mut ring = Ring::new(&config)?;
        let pool = Pool::new(options.depth * options.block.next_power_of_two())?;
        ring.register_pool(&pool);
        let file = ring.add_file(open.as_raw_fd());
        let mut numbers = Numbers::new(options.seed ^ 0xB0FF);
        let mut buffers = Vec::with_capacity(options.depth);
        for _ in 0..options.depth {
            let mut buffer = pool.get(options.block).ok_or(ErrorCode::Overloaded)?;
            if let Some(bytes) = buffer.get_mut() {
                bytes
                    .chunks_exact_mut(8)
                    .for_each(|word| word.copy_from_slice(&numbers.next().to_le_bytes()));
            }
            buffers.push(buffer);
        }
        let idle = Slot { started: Instant::now(), left: 0, failed: false };
        Ok(Self { ring, file, _open: open, buffers, slots: vec![idle; options.depth] })
    }

    fn drive(
        &mut self,
        options: &Options,
        latency_ns: &mut dyn FnMut(u64),
        stop: &mut dyn FnMut() -> bool,
    ) -> Result<Report> {
        let mut offsets = Offsets::new(options);
        let began = Instant::now();
        let (from, until) = (began + options.warmup, began + options.warmup + options.duration);
        for slot in 0..options.depth {
            self.submit(options, slot, offsets.next(), began);
        }
        let mut report = Report::default();
        let mut completions: Vec<Completion> = Vec::with_capacity(options.depth);
        let mut asked = began;
        loop {
            completions.clear();
            self.ring.wait(&mut completions)?;
            let now = Instant::now();
            for completion in &completions {
                let slot = completion.token.payload() as usize;
                let state = &mut self.slots[slot];
                state.left -= 1;
                state.failed |= completion.result != options.block as i32;
                if state.left > 0 {
                    continue;
                }
                if now >= from {
                    if state.failed {
                        report.errors += 1;
                    } else {
                        report.operations += 1;
                        report.bytes += options.block as u64;
                        latency_ns((now - state.started).as_nanos() as u64);
                    }
                }
                self.submit(options, slot, offsets.next(), now);
            }
            let ask = now - asked >= Duration::from_millis(1);
            if ask {
                asked = now;
            }
            if now >= until || (ask && stop()) {
                report.elapsed = now.saturating_duration_since(from);
                return Ok(report);
            }
        }
    }

    fn submit(&mut self, options: &Options, slot: usize, offset: u64, now: Instant) {
        self.slots[slot] = Slot { started: now, left: options.copies, failed: false };
        let (memory, len) = (self.buffers[slot].as_mut_ptr(), options.block as u32);
        let token = Token::new(Source::DISK, slot as u64);
        for copy in 0..options.copies as u64 {
            let offset = offset + copy * part(options);
            // SAFETY: the slot's buffer has this one operation in flight, whose transfers all read it or are one, nobody else
            // looks at it, and the ring, which ends everything when it is dropped, is dropped before the buffers.
            unsafe {
                match options.direction {
                    Direction::Read => self.ring.read(self.file, memory, len, offset, token),
                    Direction::Write => self.ring.write(self.file, memory, len, offset, token),
                }
            }
        }
    }
}

/// Bytes of each copy's part of the working set, in whole blocks.
fn part(options: &Options) -> u64 {
    let block = options.block as u64;
    options.working_set / options.copies as u64 / block * block
}

/// The offsets of a run, in bytes.
struct Offsets {
    numbers: Numbers,
    order: Order,
    /// The first block, and how many there are.
    first: u64,
    blocks: u64,
    block: u64,
    position: u64,
}

impl Offsets {
    fn new(options: &Options) -> Self {
        let block = options.block as u64;
        let all = part(options) / block;
        let (first, blocks) = match options.order {
            Order::Random => (0, all),
            Order::Sequential => {
                let share = (all / u64::from(options.cores)).max(1);
                (share * u64::from(options.core) % all, share)
            }
        };
        Self { numbers: Numbers::new(options.seed), order: options.order, first, blocks, block, position: 0 }
    }

    fn next(&mut self) -> u64 {
        let index = match self.order {
            Order::Random => ((u128::from(self.numbers.next()) * u128::from(self.blocks)) >> 64) as u64,
            Order::Sequential => {
                self.position = (self.position + 1) % self.blocks;
                self.position
            }
        };
        (self.first + index) * self.block
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): one multiplication chain a number, good enough to choose blocks.
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn options(path: &Path) -> Options {
        Options {
            path: path.to_path_buf(),
            block: BLOCK,
            depth: 16,
            duration: Duration::from_millis(50),
            warmup: Duration::ZERO,
            direction: Direction::Read,
            order: Order::Random,
            working_set: 1 << 20,
            core: 0,
            cores: 1,
            seed: 1,
            durable: false,
            copies: 1,
        }
    }

    #[test]
    fn counts_what_it_hands_out_and_stops_when_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fill(&path, 1 << 20, 7, &mut |_| ()).unwrap();
        // Told to stop once there is something to count, however slow the disk is.
        let long = Options { duration: Duration::from_secs(3600), ..options(&path) };
        let latencies = Cell::new(0);
        let report = run(&long, &mut |_| latencies.update(|count| count + 1), &mut || latencies.get() > 0);
        let report = report.unwrap();
        assert_eq!((report.operations, report.errors), (latencies.get(), 0));
        assert!(report.operations > 0 && report.elapsed < long.duration);
    }

    #[test]
    fn an_operation_writes_each_of_its_copies_durably() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let (direction, order, durable, copies) = (Direction::Write, Order::Sequential, true, 3);
        let duration = Duration::from_secs(3600);
        let writing = Options { direction, order, durable, copies, duration, depth: 1, ..options(&path) };
        let latencies = Cell::new(0);
        let report = run(&writing, &mut |_| latencies.update(|count| count + 1), &mut || latencies.get() > 4);
        let report = report.unwrap();
        assert!(report.operations > 4 && report.errors == 0);
        let bytes = std::fs::read(&path).unwrap();
        // From the second block on of each part; the last operation may have been cut off in the middle.
        let written =
            (0..85).filter(|block| bytes[block * BLOCK] | bytes[block * BLOCK + 1] != 0).count() as u64;
        assert!(written.abs_diff((report.operations + 1).min(85)) <= 1, "{written} of {}", report.operations);
        for block in 0..85 {
            let copy = |copy: usize| &bytes[(copy * 85 + block) * BLOCK..][..BLOCK];
            assert_eq!((copy(0), copy(0)), (copy(1), copy(2)), "block {block}");
        }
        let refused = |options: Options| run(&options, &mut |_| (), &mut || false).unwrap_err().code;
        assert_eq!(refused(Options { copies: 0, ..writing.clone() }), ErrorCode::BadConfig);
        assert_eq!(refused(Options { copies: 2, ..options(&path) }), ErrorCode::BadConfig);
    }

    #[test]
    fn reads_past_the_end_are_errors_and_nonsense_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fill(&path, 8192, 7, &mut |_| ()).unwrap();
        let report = run(&options(&path), &mut |_| (), &mut || false).unwrap();
        assert!(report.errors > 0);
        let refused = |options: Options| run(&options, &mut |_| (), &mut || false).unwrap_err().code;
        assert_eq!(refused(Options { block: 100, ..options(&path) }), ErrorCode::BadConfig);
        assert_eq!(refused(Options { depth: 0, ..options(&path) }), ErrorCode::BadConfig);
        assert_eq!(refused(Options { path: "/nonexistent".into(), ..options(&path) }), ErrorCode::Os);
    }

    #[test]
    fn offsets_stay_inside() {
        for (order, cores) in [(Order::Random, 1), (Order::Sequential, 1), (Order::Sequential, 12)] {
            for core in 0..cores {
                let working_set = 10 * BLOCK as u64 + 5;
                let options = Options { order, working_set, core, cores, ..options(Path::new("")) };
                let mut offsets = Offsets::new(&options);
                assert!((0..1000).map(|_| offsets.next()).all(|offset| offset < 10 * BLOCK as u64));
            }
        }
    }

    #[test]
    fn sequential_cores_touch_no_block_in_common() {
        let mut touched = Vec::new();
        for core in 0..3 {
            let set = Options { order: Order::Sequential, core, cores: 3, ..options(Path::new("")) };
            let mut offsets = Offsets::new(&set);
            let mut own: Vec<u64> = (0..1000).map(|_| offsets.next()).collect();
            own.sort_unstable();
            own.dedup();
            touched.extend(own);
        }
        let count = touched.len();
        touched.sort_unstable();
        touched.dedup();
        assert_eq!((touched.len(), count), (255, 255), "a third of 256 blocks each");
    }
}
