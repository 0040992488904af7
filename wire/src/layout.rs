//! Which chunk holds a byte of a file, and which chain holds a chunk.

use crate::control::meta::LayoutT;
use crate::error::{Error, ErrorCode, Result};
use crate::id::ChainId;
use crate::limits::{CHUNK_MAX, CHUNK_MIN, FILE_SIZE_MAX};

/// How a file is cut and spread; fixed when it is created.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Layout {
    /// Bytes of a chunk: a power of two from [`CHUNK_MIN`] to [`CHUNK_MAX`].
    pub chunk_size: u32,
    /// Over how many chains of its table the file is spread.
    pub stripe: u32,
    pub table_id: u32,
    pub table_version: u32,
    /// Which of the table's chains, in which order.
    pub seed: u64,
}

/// A part of a byte range that lies in one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    pub index: u32,
    /// Where in the chunk it starts.
    pub offset: u32,
    pub length: u32,
    /// Where in the range that was cut it starts.
    pub at: u64,
}

impl Layout {
    /// The layout in a message, checked.
    pub fn from_message(layout: &LayoutT) -> Result<Self> {
        let out = Self {
            chunk_size: layout.chunk_size,
            stripe: layout.stripe,
            table_id: layout.table_id,
            table_version: layout.table_version,
            seed: layout.seed,
        };
        let size_fits = out.chunk_size.is_power_of_two() && (CHUNK_MIN..=CHUNK_MAX).contains(&out.chunk_size);
        if size_fits && out.stripe > 0 {
            return Ok(out);
        }
        Err(Error::new(ErrorCode::BadFrame, format!("impossible layout {layout:?}")))
    }

    pub fn to_message(self) -> LayoutT {
        let Self { chunk_size, stripe, table_id, table_version, seed } = self;
        LayoutT { chunk_size, stripe, table_id, table_version, seed }
    }

    /// Bytes the largest file of this layout can hold.
    pub fn size_max(&self) -> u64 {
        (u64::from(self.chunk_size) * u64::from(u32::MAX)).min(FILE_SIZE_MAX)
    }

    /// Cuts `length` bytes at file offset `offset` at chunk boundaries. The range must end within [`Self::size_max`].
    pub fn pieces(&self, offset: u64, length: u64) -> impl Iterator<Item = Piece> + use<> {
        let size = u64::from(self.chunk_size);
        let end = offset.saturating_add(length).min(self.size_max());
        let mut position = offset;
        std::iter::from_fn(move || {
            if position >= end {
                return None;
            }
            let inside = position % size;
            let length = (size - inside).min(end - position);
            let piece = Piece {
                index: (position / size) as u32,
                offset: inside as u32,
                length: length as u32,
                at: position - offset,
            };
            position += length;
            Some(piece)
        })
    }

    /// The chain of chunk `index`: `None` when the table is empty.
    pub fn chain(&self, table: &[ChainId], index: u32) -> Option<ChainId> {
        let slot = u64::from(index) % u64::from(self.stripe);
        table.get(pick(table.len() as u64, self.seed, slot)? as usize).copied()
    }
}

/// Element `slot` of a permutation of 0..n that `seed` selects: `(start + slot * step) mod n` with `step` coprime to
/// `n`. Frozen: stored files depend on it. `None` when n is 0.
pub fn pick(n: u64, seed: u64, slot: u64) -> Option<u64> {
    if n == 0 {
        return None;
    }
    let start = mix(seed) % n;
    let mut step = mix(seed ^ 0x9E37_79B9_7F4A_7C15) % n;
    // At most n steps, and 1 is always coprime, so this ends.
    while gcd(step, n) != 1 {
        step = (step + 1) % n.max(2);
    }
    Some(((u128::from(start) + u128::from(slot) * u128::from(step)) % u128::from(n)) as u64)
}

/// SplitMix64's output function (Steele, Lea, Flood 2014).
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { chunk_size: 65536, stripe: 4, table_id: 1, table_version: 1, seed: 7 };

    #[test]
    fn pieces_cover_the_range_once() {
        let pieces: Vec<Piece> = LAYOUT.pieces(65530, 65536 + 10).collect();
        let expected = [
            Piece { index: 0, offset: 65530, length: 6, at: 0 },
            Piece { index: 1, offset: 0, length: 65536, at: 6 },
            Piece { index: 2, offset: 0, length: 4, at: 65542 },
        ];
        assert_eq!(pieces, expected);
        assert_eq!(LAYOUT.pieces(5, 0).count(), 0);
        assert_eq!(LAYOUT.pieces(u64::MAX, u64::MAX).count(), 0);
    }

    #[test]
    fn pick_is_a_permutation_and_frozen() {
        for n in 1..=64 {
            for seed in 0..50 {
                let mut seen: Vec<u64> = (0..n).map(|slot| pick(n, seed, slot).unwrap()).collect();
                seen.sort_unstable();
                assert!(seen.into_iter().eq(0..n), "n {n} seed {seed}");
            }
        }
        // Golden: stored files depend on these.
        let golden: Vec<u64> = (0..6).map(|slot| pick(32, 42, slot).unwrap()).collect();
        assert_eq!(golden, [21, 24, 27, 30, 1, 4]);
        assert_eq!(pick(0, 1, 1), None);
    }
}
