//! What a run writes, and how it is known again.
//!
//! Every [`BLOCK`] of a file is a function of seed, file offset and generation, and looks random: nothing compresses or
//! deduplicates it. Its first word says its generation; the others are a table of random numbers, each with the block's key
//! of place and generation folded in. A block from elsewhere, an old one, a torn one and zeros are all told apart, and to
//! make one costs little beside sending it.
//!
//! Any range of bytes is checked, not only whole blocks: the key can be taken out again, so every whole word tells the
//! generation that it is of, and two of them that agree are no accident. A write of any range puts there what whole blocks
//! of its generation would have there.
//!
//! The words after the first are right for some generation wherever they are: if they are of another place, for one out of the
//! blue. So whoever reads says which generations there can be, and these are few of all numbers.

use super::{STEP, finish, mix};
use corefs_wire::limits::BLOCK;
use std::ops::Range;

/// Bytes of a word of the pattern.
const WORD: usize = 8;
/// Fewer bytes of one write than these may hold no two whole words, and so can't be known by themselves. Such slivers
/// are left where writes of different sizes met.
const SLIVER_MAX: usize = 3 * WORD - 2;
/// Between two pieces that are known there are at most a sliver and the words that its edges cut.
const BETWEEN_MAX: usize = SLIVER_MAX + 3 * WORD;

/// The bytes of a file of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pattern {
    seed: u64,
}

/// Bytes of one write that follow each other, and the write.
#[derive(Clone, Copy, Debug)]
struct Piece {
    from: usize,
    to: usize,
    generation: u64,
}

impl Pattern {
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The pattern of one of several files: bytes of another one are told apart. That of the first is that of a single file.
    pub fn of_file(seed: u64, file: u32) -> Self {
        Self { seed: if file == 0 { seed } else { seed ^ mix(u64::from(file)) } }
    }

    /// Fills `bytes`, which belong at `offset`.
    pub fn fill(&self, offset: u64, generation: u64, bytes: &mut [u8]) {
        for Part { block, inside, range } in parts(offset, bytes.len()) {
            self.words(block, generation).fill(inside, &mut bytes[range]);
        }
    }

    /// Whether `bytes` are what one write of `generation` put at `offset`.
    pub fn holds(&self, offset: u64, generation: u64, bytes: &[u8]) -> bool {
        parts(offset, bytes.len()).all(|part| self.part_holds(&part, generation, bytes))
    }

    /// Whether all of `bytes`, read at `offset`, were written there, in whichever writes of these generations. What is so short
    /// that it can't tell, at either end or between two writes, is passed over.
    pub fn fits(&self, offset: u64, bytes: &[u8], generations: &Range<u64>) -> bool {
        // Nearly always each block is of one write.
        let whole = |part: Part| {
            let generation = self.generation_of(&part, bytes).filter(|found| generations.contains(found));
            generation.is_some_and(|generation| self.part_holds(&part, generation, bytes))
        };
        let plain = parts(offset, bytes.len()).all(whole);
        !bytes.is_empty() && (plain || self.fits_in_pieces(offset, bytes, generations))
    }

    fn part_holds(&self, part: &Part, generation: u64, bytes: &[u8]) -> bool {
        self.words(part.block, generation).hold(part.inside, &bytes[part.range.clone()])
    }

    /// What the first whole word of a part says.
    fn generation_of(&self, part: &Part, bytes: &[u8]) -> Option<u64> {
        let skip = part.inside.next_multiple_of(WORD) - part.inside;
        let word = bytes[part.range.clone()].get(skip..)?.first_chunk::<WORD>()?;
        Some(self.decode(part.block, (part.inside + skip) / WORD, *word))
    }

    /// The generation whose block has this word there: for each word there is one.
    fn decode(&self, block: u64, number: usize, word: [u8; WORD]) -> u64 {
        let (key, word) = (self.key(block), u64::from_le_bytes(word));
        match number {
            0 => word ^ key,
            _ => unfinish(unfinish(word ^ TABLE[number]) ^ key).wrapping_sub(STEP),
        }
    }

    /// Whether every byte belongs to a write that is known by two whole words that follow each other, but for slivers.
    fn fits_in_pieces(&self, offset: u64, bytes: &[u8], generations: &Range<u64>) -> bool {
        let mut before: Option<Piece> = None;
        for piece in self.pieces(offset, bytes) {
            let can_be = generations.contains(&piece.generation);
            if !can_be || !self.joins(offset, bytes, before, Some(piece)) {
                return false;
            }
            before = Some(piece);
        }
        before.is_some() && self.joins(offset, bytes, before, None)
    }

    /// Whether what is between two pieces, or between one and an end of the range, is of either but for a sliver.
    fn joins(&self, offset: u64, bytes: &[u8], left: Option<Piece>, right: Option<Piece>) -> bool {
        let mut from = left.map_or(0, |piece| piece.to);
        let mut to = right.map_or(bytes.len(), |piece| piece.from);
        if to - from > BETWEEN_MAX {
            return false;
        }
        let of = |piece: Piece, at: usize| self.byte(offset + at as u64, piece.generation) == bytes[at];
        while from < to && left.is_some_and(|piece| of(piece, from)) {
            from += 1;
        }
        while from < to && right.is_some_and(|piece| of(piece, to - 1)) {
            to -= 1;
        }
        // A write is of more bytes than a sliver: nothing small lies in the middle of a single one.
        let one = left.zip(right).is_some_and(|(left, right)| left.generation == right.generation);
        from == to || (!one && to - from <= SLIVER_MAX)
    }

    /// Runs of at least two whole words that say the same, in order.
    fn pieces(&self, offset: u64, bytes: &[u8]) -> impl Iterator<Item = Piece> {
        let mut said = parts(offset, bytes.len()).flat_map(move |part| {
            let skip = part.inside.next_multiple_of(WORD) - part.inside;
            let (from, first) = (part.range.start + skip, (part.inside + skip) / WORD);
            let words = bytes[part.range.clone()].get(skip..).unwrap_or_default().as_chunks::<WORD>().0;
            words.iter().enumerate().map(move |(number, word)| {
                (from + number * WORD, self.decode(part.block, first + number, *word))
            })
        });
        let mut next = said.next();
        std::iter::from_fn(move || {
            loop {
                let (from, generation) = next?;
                let mut to = from + WORD;
                next = said.next();
                while next == Some((to, generation)) {
                    to += WORD;
                    next = said.next();
                }
                if to - from > WORD {
                    return Some(Piece { from, to, generation });
                }
            }
        })
    }

    fn byte(&self, at: u64, generation: u64) -> u8 {
        let inside = (at % BLOCK as u64) as usize;
        self.words(at - inside as u64, generation).word(inside / WORD)[inside % WORD]
    }

    /// The words of a block.
    fn words(&self, block: u64, generation: u64) -> Words {
        let key = self.key(block);
        Words { first: generation ^ key, key: finish(key ^ mix(generation)) }
    }

    fn key(&self, block: u64) -> u64 {
        mix(self.seed ^ mix(block))
    }
}

/// The words of a block.
struct Words {
    first: u64,
    /// What is folded into all others.
    key: u64,
}

impl Words {
    #[inline]
    fn word(&self, number: usize) -> [u8; WORD] {
        let word = if number == 0 { self.first } else { TABLE[number] ^ self.key };
        word.to_le_bytes()
    }

    /// Fills a range of the block that begins at byte `inside`.
    fn fill(&self, inside: usize, bytes: &mut [u8]) {
        let (cut, number) = (inside % WORD, inside.div_ceil(WORD));
        let (head, rest) = bytes.split_at_mut(head(cut, bytes.len()));
        if !head.is_empty() {
            head.copy_from_slice(&self.word(inside / WORD)[cut..cut + head.len()]);
        }
        let (words, tail) = rest.as_chunks_mut::<WORD>();
        for (word, random) in words.iter_mut().zip(&TABLE[number..]) {
            *word = (random ^ self.key).to_le_bytes();
        }
        if number == 0
            && let Some(first) = words.first_mut()
        {
            *first = self.word(0);
        }
        if !tail.is_empty() {
            tail.copy_from_slice(&self.word(number + words.len())[..tail.len()]);
        }
    }

    /// Whether such a range has these bytes.
    fn hold(&self, inside: usize, bytes: &[u8]) -> bool {
        let (cut, number) = (inside % WORD, inside.div_ceil(WORD));
        let (head, rest) = bytes.split_at(head(cut, bytes.len()));
        if !head.is_empty() && *head != self.word(inside / WORD)[cut..cut + head.len()] {
            return false;
        }
        let (words, tail) = rest.as_chunks::<WORD>();
        let first = words.first().filter(|_| number == 0);
        let skip = usize::from(first.is_some());
        // Without a way out in the middle: the whole of a block takes less time than finding out where it differs.
        let differ = words[skip..]
            .iter()
            .zip(&TABLE[number + skip..])
            .fold(0, |differ, (word, random)| differ | (u64::from_le_bytes(*word) ^ random ^ self.key));
        differ == 0
            && first.is_none_or(|first| *first == self.word(0))
            && (tail.is_empty() || *tail == self.word(number + words.len())[..tail.len()])
    }
}

/// A random number for each word of a block.
static TABLE: [u64; BLOCK / WORD] = {
    let mut table = [0; BLOCK / WORD];
    let mut number = 0;
    while number < table.len() {
        table[number] = mix(mix(number as u64));
        number += 1;
    }
    table
};

/// A range of bytes within one block.
struct Part {
    /// File offset of the block.
    block: u64,
    /// Where in the block it begins.
    inside: usize,
    /// Which of the bytes.
    range: Range<usize>,
}

fn parts(offset: u64, len: usize) -> impl Iterator<Item = Part> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let inside = (at % BLOCK as u64) as usize;
        let range = done..len.min(done + BLOCK - inside);
        done = range.end;
        (!range.is_empty()).then_some(Part { block: at - inside as u64, inside, range })
    })
}

/// Bytes of a first word that is cut at the front.
fn head(cut: usize, len: usize) -> usize {
    if cut == 0 { 0 } else { len.min(WORD - cut) }
}

/// Takes [`finish`](super::finish) back: a shift is undone by shifting what is known on, a factor by its inverse modulo 2^64.
fn unfinish(z: u64) -> u64 {
    let z = (z ^ (z >> 31) ^ (z >> 62)).wrapping_mul(0x3196_42B2_D24D_8EC3);
    let z = (z ^ (z >> 27) ^ (z >> 54)).wrapping_mul(0x96DE_1B17_3F11_9089);
    z ^ (z >> 30) ^ (z >> 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the tests write: as few of all numbers as real ones are.
    const FIRST: u64 = 1 << 60;
    const GENERATIONS: Range<u64> = FIRST..FIRST + (1 << 50);

    #[test]
    fn the_pattern_tells_every_kind_of_wrong_block() {
        let pattern = Pattern::new(42);
        let mut bytes = vec![0; 4 * BLOCK];
        pattern.fill(1 << 20, FIRST, &mut bytes);
        let fits = |pattern: Pattern, offset: u64, bytes: &[u8]| pattern.fits(offset, bytes, &GENERATIONS);
        for range in [0..4 * BLOCK, 0..BLOCK + 1, 8..1000, 3000..3512, 4095..4 * BLOCK] {
            let (at, bytes) = ((1 << 20) + range.start as u64, &bytes[range.clone()]);
            assert!(fits(pattern, at, bytes) && pattern.holds(at, FIRST, bytes), "{range:?}");
            assert!(!fits(pattern, at + BLOCK as u64, bytes), "from elsewhere: {range:?}");
            assert!(!fits(pattern, at + 1, bytes), "shifted: {range:?}");
            assert!(!fits(Pattern::new(43), at, bytes), "of another seed: {range:?}");
            assert!(!fits(Pattern::of_file(42, 1), at, bytes), "from another file: {range:?}");
            assert!(!fits(pattern, at, &vec![0; bytes.len()]), "zeros: {range:?}");
            assert!(!pattern.fits(at, bytes, &(FIRST + 1..FIRST + 2)), "of no such write: {range:?}");
            assert!(!pattern.holds(at, FIRST + 1, bytes), "{range:?}");
        }
        assert!(!fits(pattern, 1 << 20, &[]), "nothing");
        let mut torn = bytes.clone();
        pattern.fill(1 << 20, FIRST + 1, &mut torn[..BLOCK]);
        assert!(fits(pattern, 1 << 20, &torn), "written in smaller pieces");
        assert!(!pattern.holds(1 << 20, FIRST, &torn) && !pattern.holds(1 << 20, FIRST + 1, &torn));
        for bit in [0, 63, 64, 9000, 4 * BLOCK * 8 - 1] {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!pattern.holds(1 << 20, FIRST, &flipped), "bit {bit}");
            // At either end it may as well be the edge of another write.
            let edge = !(8 * SLIVER_MAX..8 * (4 * BLOCK - SLIVER_MAX)).contains(&bit);
            assert_eq!(fits(pattern, 1 << 20, &flipped), edge, "bit {bit}");
        }
    }

    #[test]
    fn the_pattern_is_frozen() {
        // Golden: what this version writes is verified by later ones, until the changelog says otherwise.
        let mut block = [0; BLOCK];
        Pattern::new(1).fill(4096, 2, &mut block);
        assert_eq!(corefs_wire::checksum::crc32c(&block), 0x1581_E04C);
        let mut odd = [0; 12_345];
        Pattern::of_file(1, 3).fill(777, 2, &mut odd);
        assert_eq!(corefs_wire::checksum::crc32c(&odd), 0xCBBE_E202);
    }

    #[test]
    fn a_write_within_another_is_seen_and_one_that_was_lost_in_part_too() {
        let pattern = Pattern::new(3);
        let mut bytes = vec![0; 3 * BLOCK];
        pattern.fill(0, FIRST, &mut bytes);
        pattern.fill(5001, FIRST + 1, &mut bytes[5001..5513]);
        assert!(pattern.fits(0, &bytes, &GENERATIONS) && pattern.fits(5090, &bytes[5090..], &GENERATIONS));
        assert!(pattern.holds(5001, FIRST + 1, &bytes[5001..5513]));
        // Zeros where the end of the write should be.
        bytes[5400..5513].fill(0);
        assert!(!pattern.fits(0, &bytes, &GENERATIONS));
    }

    proptest! {
        #[test]
        fn a_number_is_taken_back_to_its_state(state: u64) {
            prop_assert_eq!(unfinish(finish(state)), state);
        }

        /// Any range is what whole blocks have there, and is known again.
        #[test]
        fn any_range_is_part_of_whole_blocks(
            offset in 0..3 * BLOCK,
            len in 16..3 * BLOCK,
            generation in 0..u64::MAX,
            seed: u64,
        ) {
            let pattern = Pattern::new(seed);
            let mut whole = vec![0; 6 * BLOCK];
            pattern.fill(0, generation, &mut whole);
            let mut part = vec![0; len];
            pattern.fill(offset as u64, generation, &mut part);
            prop_assert_eq!(&part[..], &whole[offset..offset + len]);
            prop_assert!(pattern.holds(offset as u64, generation, &part));
            prop_assert!(!pattern.holds(offset as u64, generation ^ 1, &part));
            prop_assert!(len < 24 || pattern.fits(offset as u64, &part, &(generation..generation + 1)));
        }

        /// Whatever writes of at least 512 bytes lie over each other, no read of what they left is called wrong; and where one of
        /// its words is, it is.
        #[test]
        fn overlapping_writes_fit_and_damage_does_not(
            writes in proptest::collection::vec((0..14_000usize, 512..6000usize), 0..6),
            from in 0..8000usize,
            len in 512..8000usize,
            broken in 40..470usize,
        ) {
            let pattern = Pattern::new(11);
            let mut bytes = vec![0; 20_000];
            pattern.fill(0, FIRST, &mut bytes);
            let mut edges = Vec::new();
            for (number, (at, len)) in writes.into_iter().enumerate() {
                pattern.fill(at as u64, FIRST + 1 + number as u64, &mut bytes[at..at + len]);
                edges.extend([at, at + len]);
            }
            // Two slivers side by side are more than is passed over.
            edges.extend([from, from + len]);
            edges.sort_unstable();
            let sliver = |edges: &[usize]| edges[1] - edges[0] <= SLIVER_MAX;
            prop_assume!(edges.windows(3).all(|three| !sliver(&three[..2]) || !sliver(&three[1..])));
            let read = |bytes: &[u8]| pattern.fits(from as u64, &bytes[from..from + len], &GENERATIONS);
            prop_assert!(read(&bytes));
            let at = from + broken;
            prop_assume!(edges.iter().all(|edge| edge.abs_diff(at) > 30));
            (0..8).for_each(|byte| bytes[at + byte] ^= 0x55);
            prop_assert!(!read(&bytes));
        }
    }
}
