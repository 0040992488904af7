//! What a run does, as pure decisions: which offset comes next, when it is due, and what the bytes are. Time and
//! seeds are passed in.
//!
//! A run sees one space of offsets, however many files it is spread over: `files` equal shares of the working set, one after
//! the other. In each share lie **slots** of one block each, and an operation is of a slot. Two slots never overlap, so
//! what a slot must hold is what was last written to it, whatever the size of blocks.

mod pattern;
mod zipf;

pub use pattern::Pattern;
pub(crate) use zipf::Scatter;
use zipf::Zipf;

use corefs_wire::limits::BLOCK;
use std::ops::Range;
use std::time::Duration;

/// What an operation does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    Read,
    Write,
    /// Both, with so many reads in a hundred operations.
    Mixed {
        reads: u8,
    },
}

impl Direction {
    /// Whether bytes of the file change.
    pub fn writes(self) -> bool {
        self != Self::Read
    }
}

/// Which offset comes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    Random,
    Sequential,
}

/// Some are visited more often than others: the one of rank k so often as k^-theta says (Zipf's law).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Skew {
    pub theta: f64,
    pub over: Over,
}

/// What has ranks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Over {
    /// Slots, whichever file they are in.
    Blocks,
    /// Files; the slots of one are all alike.
    Files,
}

/// When a run ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Until {
    /// After the warm-up and this time.
    Elapsed { warmup: Duration, measured: Duration },
    /// When each block of the working set was visited once (sequential order only).
    Once,
}

/// One run. Counts are of all cores together.
#[derive(Clone, PartialEq, Debug)]
pub struct Workload {
    pub direction: Direction,
    pub order: Order,
    /// Bytes of an operation.
    pub block: u64,
    /// Operations in flight.
    pub depth: u32,
    /// Operations handed over together; they count as so many in flight.
    pub batch: u32,
    /// The first bytes that are touched, of all files together.
    pub working_set: u64,
    pub cores: u32,
    pub until: Until,
    /// Open loop: operations that become due each second, whether or not earlier ones are done. `None`: closed loop, the
    /// next operation starts when one ends.
    pub rate: Option<f64>,
    /// Reads compare each block with the pattern; written blocks are read back at the end.
    pub verify: bool,
    pub seed: u64,
    /// Other offsets each round, of the same bytes.
    pub round: u32,
    /// Files that the working set is spread over, in equal shares.
    pub files: u32,
    /// `None`: all slots are visited equally often. For random order only.
    pub skew: Option<Skew>,
    /// Slots begin at an odd byte; random reads at any.
    pub unaligned: bool,
}

impl Workload {
    /// Writes each of `bytes` once, in order: what is read must have been written.
    pub fn layout(bytes: u64, seed: u64) -> Self {
        Self {
            direction: Direction::Write,
            order: Order::Sequential,
            block: if bytes.is_multiple_of(1 << 20) { 1 << 20 } else { BLOCK as u64 },
            depth: 8,
            batch: 1,
            working_set: bytes,
            cores: 1,
            until: Until::Once,
            rate: None,
            verify: false,
            seed,
            round: 0,
            files: 1,
            skew: None,
            unaligned: false,
        }
    }

    /// The run that writes whatever this one touches: the same files, each rounded up to whole pieces, the larger the fewer.
    pub fn ground(&self) -> Self {
        let share = self.share();
        let piece = match share {
            share if share.is_multiple_of(1 << 20) || share >= 8 << 20 => 1 << 20,
            share if share >= 512 << 10 => 64 << 10,
            _ => BLOCK as u64,
        };
        let bytes = share.next_multiple_of(piece) * u64::from(self.files);
        Self { block: piece, files: self.files, ..Self::layout(bytes, self.seed) }
    }

    /// Batches in flight on each core.
    pub fn lanes(&self) -> u32 {
        (self.depth / (self.batch * self.cores)).max(1)
    }

    /// Bytes of each file that are touched.
    pub fn share(&self) -> u64 {
        self.working_set / u64::from(self.files)
    }

    /// Which file a byte of the space is in, and where in it.
    #[inline]
    pub fn place(&self, at: u64) -> (u32, u64) {
        if self.files == 1 {
            return (0, at);
        }
        let share = self.share();
        ((at / share) as u32, at % share)
    }

    /// Slots of each file. Those that begin at an odd byte leave room for one less.
    pub fn slots_of_file(&self) -> u64 {
        (self.share() / self.block).saturating_sub(u64::from(self.shift() > 0))
    }

    /// Where the first slot of a file begins. Random reads go to any byte around their slot instead.
    fn shift(&self) -> u64 {
        if !self.unaligned || self.anywhere() {
            return 0;
        }
        (mix(self.seed) % (self.block - 1)) | 1
    }

    fn anywhere(&self) -> bool {
        self.unaligned && self.order == Order::Random && self.direction == Direction::Read
    }

    /// The slots that a core touches. Random reads share the whole; everything else is divided, so that no two cores
    /// write the same slot and a sequential run visits each once. Where files have ranks, a core has whole files.
    pub fn slots(&self, core: u32) -> Range<u64> {
        let of_file = self.slots_of_file();
        let slots = of_file * u64::from(self.files);
        if self.direction == Direction::Read && self.order == Order::Random {
            return 0..slots;
        }
        let unit = if self.skew.is_some_and(|skew| skew.over == Over::Files) { of_file.max(1) } else { 1 };
        let edge = |core: u32| slots / unit * u64::from(core) / u64::from(self.cores) * unit;
        edge(core)..edge(core + 1)
    }

    /// The offsets of a core, in the space of all files.
    pub fn offsets(&self, core: u32) -> Offsets {
        let slots = self.slots(core);
        let count = slots.end - slots.start;
        let of_file = self.slots_of_file();
        Offsets {
            numbers: Numbers::new(self.seed ^ mix((u64::from(self.round) << 32) + u64::from(core) + 1)),
            once: self.until == Until::Once,
            first: slots.start,
            slots: count,
            choice: match (self.order, self.skew) {
                (Order::Sequential, _) => Choice::Next,
                (Order::Random, None) => Choice::Uniform,
                (Order::Random, Some(Skew { theta, over })) => {
                    let unit = if over == Over::Files { of_file.max(1) } else { 1 };
                    // Ranks go to the same places on every core and in every round: what is hot stays hot.
                    let (zipf, scatter) =
                        (Zipf::new(count / unit, theta), Scatter::new(count / unit, self.seed));
                    Choice::Ranked { zipf, scatter, unit }
                }
            },
            grid: Grid {
                block: self.block,
                of_file,
                share: self.share(),
                shift: self.shift(),
                anywhere: self.anywhere(),
            },
            given: 0,
        }
    }

    /// Whether the next operation of a core reads or writes, again and again.
    pub fn kinds(&self, core: u32) -> Kinds {
        let seed = self.seed ^ mix((u64::from(self.round) << 32) + u64::from(core) + 1);
        Kinds { direction: self.direction, numbers: Numbers::new(mix(seed)) }
    }

    /// When the batches of a core are due, counted from the start of the run; `None` in a closed loop.
    pub fn schedule(&self) -> Option<Schedule> {
        let rate = self.rate? / f64::from(self.cores) / f64::from(self.batch);
        Some(Schedule { interval_ns: 1e9 / rate, given: 0 })
    }

    /// How the run is called in reports: `randread`, `seqwrite`.
    pub fn name(&self) -> &'static str {
        match (self.order, self.direction) {
            (_, Direction::Mixed { .. }) => "mixed",
            (Order::Random, Direction::Read) => "randread",
            (Order::Random, Direction::Write) => "randwrite",
            (Order::Sequential, Direction::Read) => "seqread",
            (Order::Sequential, Direction::Write) => "seqwrite",
        }
    }
}

/// The offsets of one core in bytes; endless unless the run is [`Until::Once`].
#[derive(Clone, Debug)]
pub struct Offsets {
    numbers: Numbers,
    once: bool,
    first: u64,
    slots: u64,
    choice: Choice,
    grid: Grid,
    given: u64,
}

/// How the next slot is chosen.
#[derive(Clone, Debug)]
enum Choice {
    Next,
    Uniform,
    /// Units of so many slots have ranks, and a place for each rank.
    Ranked {
        zipf: Zipf,
        scatter: Scatter,
        unit: u64,
    },
}

/// Where slots are.
#[derive(Clone, Copy, Debug)]
struct Grid {
    block: u64,
    /// Slots of a file.
    of_file: u64,
    /// Bytes of a file.
    share: u64,
    shift: u64,
    anywhere: bool,
}

/// So often another slot is drawn when one is taken, before the next free one is looked for: under a skewed law nearly all
/// draws may be of the same few.
const DRAWS_MAX: u32 = 16;

impl Offsets {
    /// The next slot that isn't `taken`. There must be one, else this ends with `None` after it has looked at all.
    pub fn next_free(&mut self, taken: impl Fn(u64) -> bool) -> Option<u64> {
        let mut slot = 0;
        for _ in 0..DRAWS_MAX {
            slot = self.draw()?;
            let at = self.grid.byte(self.first + slot, &mut self.numbers);
            if !taken(at) {
                return Some(at);
            }
        }
        (1..self.slots)
            .map(|further| self.grid.byte(self.first + (slot + further) % self.slots, &mut self.numbers))
            .find(|at| !taken(*at))
    }

    #[inline]
    fn draw(&mut self) -> Option<u64> {
        if self.slots == 0 || (self.once && self.given == self.slots) {
            return None;
        }
        let slot = match &self.choice {
            Choice::Next => self.given % self.slots,
            Choice::Uniform => self.numbers.below(self.slots),
            Choice::Ranked { zipf, scatter, unit } => {
                let place = scatter.place(zipf.draw(&mut self.numbers));
                if *unit == 1 { place } else { place * unit + self.numbers.below(*unit) }
            }
        };
        self.given += 1;
        Some(slot)
    }
}

impl Iterator for Offsets {
    type Item = u64;

    #[inline]
    fn next(&mut self) -> Option<u64> {
        let slot = self.draw()?;
        Some(self.grid.byte(self.first + slot, &mut self.numbers))
    }
}

impl Grid {
    /// The first byte of an operation on a slot.
    #[inline]
    fn byte(&self, slot: u64, numbers: &mut Numbers) -> u64 {
        let start = slot / self.of_file * self.share;
        let inside = self.shift + slot % self.of_file * self.block;
        if !self.anywhere {
            return start + inside;
        }
        start + (inside + numbers.below(self.block)).min(self.share - self.block)
    }
}

/// Which operations read and which write.
#[derive(Clone, Debug)]
pub struct Kinds {
    direction: Direction,
    numbers: Numbers,
}

impl Kinds {
    /// Of the next operation: [`Direction::Read`] or [`Direction::Write`].
    #[inline]
    pub fn draw(&mut self) -> Direction {
        match self.direction {
            Direction::Mixed { reads } if self.numbers.below(100) < u64::from(reads) => Direction::Read,
            Direction::Mixed { .. } => Direction::Write,
            other => other,
        }
    }
}

/// When batches are due in an open loop, at equal distances. Latency counts from the time an operation was due, not from
/// when it could start: else a server that stalls hides the very delays that it causes (coordinated omission, Tene).
#[derive(Clone, Debug)]
pub struct Schedule {
    interval_ns: f64,
    given: u64,
}

impl Schedule {
    /// When the next batch is due.
    pub fn next_due(&mut self) -> Duration {
        let due = Duration::from_nanos((self.interval_ns * self.given as f64) as u64);
        self.given += 1;
        due
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): one short chain a number, ample for choosing blocks.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number of the sequence.
    #[inline]
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        finish(self.0)
    }

    /// A number from 0 up to but not including 1.
    #[inline]
    pub fn unit(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number below `bound` by multiplication; the bias is below 2^-32 for any file.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(bound)) >> 64) as u64
    }
}

const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

#[inline]
const fn finish(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[inline]
const fn mix(value: u64) -> u64 {
    finish(value.wrapping_add(STEP))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn workload(order: Order, direction: Direction, cores: u32) -> Workload {
        Workload {
            direction,
            order,
            block: 8192,
            depth: 32,
            batch: 4,
            working_set: 100 * 8192 + 5000,
            cores,
            ..Workload::layout(0, 3)
        }
    }

    #[test]
    fn a_sequential_run_visits_every_block_once() {
        for cores in [1, 2, 3, 7] {
            let run = workload(Order::Sequential, Direction::Write, cores);
            let all: Vec<u64> = (0..cores).flat_map(|core| run.offsets(core)).collect();
            assert!(all.into_iter().eq((0..100).map(|block| block * 8192)), "{cores} cores");
        }
    }

    #[test]
    fn random_offsets_stay_inside_differ_by_core_and_reach_everything() {
        let mut run = workload(Order::Random, Direction::Read, 2);
        run.until = Until::Elapsed { warmup: Duration::ZERO, measured: Duration::ZERO };
        let take = |core| run.offsets(core).take(2000).collect::<Vec<_>>();
        assert_ne!(take(0), take(1));
        assert_eq!(take(0), take(0));
        assert!(take(0).iter().all(|offset| offset % 8192 == 0 && offset + 8192 <= run.working_set));
        let mut seen = take(0);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 100);
        run.direction = Direction::Write;
        assert!(take_all_inside(&run));
    }

    fn take_all_inside(run: &Workload) -> bool {
        let slot = |offset| offset / run.block;
        (0..run.cores).all(|core| run.offsets(core).take(500).all(|at| run.slots(core).contains(&slot(at))))
    }

    #[test]
    fn depth_is_counted_in_blocks_over_all_cores() {
        let mut run = workload(Order::Random, Direction::Read, 2);
        assert_eq!(run.lanes(), 4);
        run.depth = 1;
        assert_eq!(run.lanes(), 1);
    }

    #[test]
    fn an_open_loop_is_due_at_its_rate() {
        let mut run = workload(Order::Random, Direction::Read, 2);
        assert!(run.schedule().is_none());
        run.rate = Some(8000.0);
        let mut schedule = run.schedule().unwrap();
        let due: Vec<u64> = (0..3).map(|_| schedule.next_due().as_micros() as u64).collect();
        // 8000/s over 2 cores in batches of 4: a batch each millisecond.
        assert_eq!(due, [0, 1000, 2000]);
    }

    #[test]
    fn the_ground_of_a_run_is_as_large_as_what_it_touches_and_hardly_larger() {
        let run = |bytes, files| Workload { files, block: 512, ..Workload::layout(bytes, 1) }.ground();
        assert_eq!((run(3 << 20, 1).working_set, run(3 << 20, 1).block), (3 << 20, 1 << 20));
        let odd = run(7 * 12345 * 1000, 7);
        assert_eq!((odd.block, odd.share()), (1 << 20, 12 << 20));
        assert_eq!((run(12345, 1).working_set, run(12345, 1).block), (16384, 4096));
        assert_eq!(run(3 * 700_000, 3).block, 64 << 10);
    }

    #[test]
    fn what_is_taken_is_passed_over_even_when_nearly_every_draw_is_of_it() {
        let skew = Some(Skew { theta: 5.0, over: Over::Blocks });
        let run = Workload { skew, until: timed(), ..workload(Order::Random, Direction::Write, 1) };
        let mut offsets = run.offsets(0);
        let mut taken = BTreeSet::new();
        while let Some(at) = offsets.next_free(|at| taken.contains(&at)) {
            assert!(taken.insert(at));
        }
        assert_eq!(taken.len(), 100);
    }

    #[test]
    fn ranks_of_files_leave_the_blocks_of_each_alike() {
        let skew = Some(Skew { theta: 1.0, over: Over::Files });
        let base = workload(Order::Random, Direction::Read, 1);
        let run = Workload { files: 20, skew, until: timed(), ..base };
        let (mut files, mut slots) = (vec![0; 20], vec![0; 5]);
        for at in run.offsets(0).take(50_000) {
            let (file, inside) = run.place(at);
            files[file as usize] += 1;
            slots[(inside / run.block) as usize] += 1;
        }
        let (most, least) = (files.iter().max().unwrap(), files.iter().min().unwrap());
        assert!(*most > 12 * least, "{files:?}");
        assert!(slots.iter().all(|count| (9_000..11_000).contains(count)), "{slots:?}");
        // The first file is hot as often as any other: over seeds its share is that of all.
        let hottest = |seed| {
            let run = Workload { seed, ..run.clone() };
            let mut files = [0; 20];
            run.offsets(0).take(2000).for_each(|at| files[run.place(at).0 as usize] += 1);
            (0..20).max_by_key(|file| files[*file]).unwrap()
        };
        assert!((0..40).map(hottest).collect::<BTreeSet<_>>().len() > 10);
    }

    #[test]
    fn mixed_runs_have_their_share_of_reads_and_every_core_its_own() {
        let run = workload(Order::Random, Direction::Mixed { reads: 70 }, 2);
        let mut kinds = run.kinds(1);
        let reads = (0..100_000).filter(|_| kinds.draw() == Direction::Read).count();
        assert!((69_000..71_000).contains(&reads), "{reads}");
        assert_eq!(run.name(), "mixed");
        assert!(run.slots(0).end == run.slots(1).start && run.direction.writes());
        let mut only = workload(Order::Random, Direction::Read, 1).kinds(0);
        assert!((0..100).all(|_| only.draw() == Direction::Read));
    }

    fn timed() -> Until {
        Until::Elapsed { warmup: Duration::ZERO, measured: Duration::ZERO }
    }

    proptest! {
        /// Whatever the block: operations stay in one file and in the working set, and those that write, or may be written
        /// to meanwhile, are of slots that don't overlap.
        #[test]
        fn every_operation_lies_in_one_file(
            block in 512..20_000u64,
            files in 1..5u32,
            share in 60_000..200_000u64,
            unaligned: bool,
            kind in 0..4u8,
            theta in proptest::option::of(0.1..3.0f64),
            seed: u64,
        ) {
            let (order, direction) = match kind {
                0 => (Order::Random, Direction::Read),
                1 => (Order::Random, Direction::Mixed { reads: 50 }),
                2 => (Order::Random, Direction::Write),
                _ => (Order::Sequential, Direction::Write),
            };
            let skew = theta.filter(|_| order == Order::Random).map(|theta| Skew { theta, over: Over::Blocks });
            let working_set = share * u64::from(files);
            let base = Workload { block, files, unaligned, skew, seed, ..workload(order, direction, 2) };
            let run = Workload { working_set, until: timed(), ..base };
            let mut starts = BTreeSet::new();
            for core in 0..2 {
                for at in run.offsets(core).take(300) {
                    let (file, inside) = run.place(at);
                    prop_assert!(file < files && inside + block <= share, "{at}: {inside} of {share}");
                    starts.insert(at);
                }
            }
            if kind > 0 {
                let starts: Vec<u64> = starts.into_iter().collect();
                prop_assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= block));
                let odd = |at: &u64| !run.place(*at).1.is_multiple_of(block);
                prop_assert!(starts.iter().all(|at| odd(at) == unaligned));
            }
        }
    }
}
