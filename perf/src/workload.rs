//! What a run does, as pure decisions: which offset comes next, when it is due, and what the bytes are. Time and
//! seeds are passed in.

use corefs_wire::limits::BLOCK;
use std::ops::Range;
use std::time::Duration;

/// What an operation does.
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
    /// Bytes of an operation: whole checksum blocks.
    pub block: u64,
    /// Operations in flight.
    pub depth: u32,
    /// Operations handed over together; they count as so many in flight.
    pub batch: u32,
    /// The first bytes of the file that are touched.
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
        }
    }

    /// Batches in flight on each core.
    pub fn lanes(&self) -> u32 {
        (self.depth / (self.batch * self.cores)).max(1)
    }

    /// The bytes that a core touches. Random reads share the whole; everything else is divided, so that no two cores
    /// write the same block and a sequential run visits each once.
    pub fn span(&self, core: u32) -> Range<u64> {
        let blocks = self.working_set / self.block;
        if self.direction == Direction::Read && self.order == Order::Random {
            return 0..blocks * self.block;
        }
        let edge = |core: u32| blocks * u64::from(core) / u64::from(self.cores) * self.block;
        edge(core)..edge(core + 1)
    }

    /// The offsets of a core.
    pub fn offsets(&self, core: u32) -> Offsets {
        let span = self.span(core);
        Offsets {
            numbers: Numbers::new(self.seed ^ mix((u64::from(self.round) << 32) + u64::from(core) + 1)),
            order: self.order,
            once: self.until == Until::Once,
            first: span.start / self.block,
            blocks: (span.end - span.start) / self.block,
            block: self.block,
            given: 0,
        }
    }

    /// When the batches of a core are due, counted from the start of the run; `None` in a closed loop.
    pub fn schedule(&self) -> Option<Schedule> {
        let rate = self.rate? / f64::from(self.cores) / f64::from(self.batch);
        Some(Schedule { interval_ns: 1e9 / rate, given: 0 })
    }

    /// How the run is called in reports: `randread`, `seqwrite`.
    pub fn name(&self) -> &'static str {
        match (self.order, self.direction) {
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
    order: Order,
    once: bool,
    first: u64,
    blocks: u64,
    block: u64,
    given: u64,
}

impl Iterator for Offsets {
    type Item = u64;

    #[inline]
    fn next(&mut self) -> Option<u64> {
        if self.blocks == 0 || (self.once && self.given == self.blocks) {
            return None;
        }
        let index = match self.order {
            Order::Random => self.numbers.below(self.blocks),
            Order::Sequential => self.given % self.blocks,
        };
        self.given += 1;
        Some((self.first + index) * self.block)
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

    /// A number below `bound` by multiplication; the bias is below 2^-32 for any file.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(bound)) >> 64) as u64
    }
}

const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

#[inline]
fn finish(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[inline]
fn mix(value: u64) -> u64 {
    finish(value.wrapping_add(STEP))
}

/// What a run writes: every [`BLOCK`] is a function of seed, file offset and generation, looks random (nothing
/// compresses or deduplicates it) and says its generation, so that a block can be checked by itself: a block from elsewhere, an
/// old one, a torn one and zeros are all told apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pattern {
    seed: u64,
}

/// Bytes of a word of the pattern.
const WORD: usize = 8;

/// What is wrong with a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// File offset of the checksum block.
    pub offset: u64,
}

impl Pattern {
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Fills `bytes`, which belong at `offset`; both are whole checksum blocks.
    pub fn fill(&self, offset: u64, generation: u64, bytes: &mut [u8]) {
        for (number, block) in bytes.chunks_exact_mut(BLOCK).enumerate() {
            let key = self.key(offset + (number * BLOCK) as u64);
            let mut words = block.chunks_exact_mut(WORD);
            if let Some(first) = words.next() {
                first.copy_from_slice(&(generation ^ key).to_le_bytes());
            }
            let mut numbers = Numbers::new(key ^ mix(generation));
            words.for_each(|word| word.copy_from_slice(&numbers.draw().to_le_bytes()));
        }
    }

    /// Whether each block of `bytes`, read at `offset`, was written there, whichever generation it is of.
    pub fn fits(&self, offset: u64, bytes: &[u8]) -> bool {
        let mut blocks = (offset..).step_by(BLOCK).zip(bytes.chunks(BLOCK));
        blocks.all(|(at, block)| self.check_block(at, block).is_some())
    }

    /// Checks `bytes` that were written at `offset` in one piece and returns their generation, which all blocks must share.
    pub fn check(&self, offset: u64, bytes: &[u8]) -> Result<u64, Mismatch> {
        let mut generation = None;
        for (number, block) in bytes.chunks_exact(BLOCK).enumerate() {
            let at = offset + (number * BLOCK) as u64;
            let found = self.check_block(at, block).ok_or(Mismatch { offset: at })?;
            if *generation.get_or_insert(found) != found {
                return Err(Mismatch { offset: at });
            }
        }
        generation.ok_or(Mismatch { offset })
    }

    fn check_block(&self, offset: u64, block: &[u8]) -> Option<u64> {
        let key = self.key(offset);
        let (first, rest) = block.split_first_chunk::<WORD>().filter(|_| block.len() == BLOCK)?;
        let generation = u64::from_le_bytes(*first) ^ key;
        let mut numbers = Numbers::new(key ^ mix(generation));
        let right = rest.chunks_exact(WORD).all(|word| word == numbers.draw().to_le_bytes());
        right.then_some(generation)
    }

    fn key(&self, offset: u64) -> u64 {
        mix(self.seed ^ mix(offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(order: Order, direction: Direction, cores: u32) -> Workload {
        Workload {
            direction,
            order,
            block: 8192,
            depth: 32,
            batch: 4,
            working_set: 100 * 8192 + 5000,
            cores,
            until: Until::Once,
            rate: None,
            verify: false,
            seed: 3,
            round: 0,
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
        (0..run.cores).all(|core| run.offsets(core).take(500).all(|offset| run.span(core).contains(&offset)))
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
    fn the_pattern_tells_every_kind_of_wrong_block() {
        let pattern = Pattern::new(42);
        let mut bytes = vec![0; 4 * BLOCK];
        pattern.fill(1 << 20, 7, &mut bytes);
        assert_eq!(pattern.check(1 << 20, &bytes), Ok(7));
        let wrong = |pattern: Pattern, offset: u64, bytes: &[u8]| pattern.check(offset, bytes).is_err();
        assert!(wrong(pattern, (1 << 20) + BLOCK as u64, &bytes), "from elsewhere");
        assert!(wrong(Pattern::new(43), 1 << 20, &bytes), "from another file");
        assert!(wrong(pattern, 1 << 20, &vec![0; BLOCK]), "zeros");
        assert!(wrong(pattern, 1 << 20, &[]), "nothing");
        assert!(pattern.fits(1 << 20, &bytes) && !pattern.fits(1 << 20, &bytes[..BLOCK + 1]));
        let mut torn = bytes.clone();
        pattern.fill(1 << 20, 8, &mut torn[..BLOCK]);
        assert!(pattern.fits(1 << 20, &torn), "written in smaller pieces");
        assert!(!pattern.fits(1 << 20, &torn[BLOCK..]));
        assert_eq!(pattern.check(1 << 20, &torn), Err(Mismatch { offset: (1 << 20) + BLOCK as u64 }));
        for bit in [0, 63, 64, 9000, 4 * BLOCK * 8 - 1] {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(wrong(pattern, 1 << 20, &flipped), "bit {bit}");
        }
    }

    #[test]
    fn the_pattern_is_frozen() {
        // Golden: files written by an earlier version are still verified.
        let mut block = [0; BLOCK];
        Pattern::new(1).fill(4096, 2, &mut block);
        assert_eq!(corefs_wire::checksum::crc32c(&block), 0x9A73_A002);
    }
}
