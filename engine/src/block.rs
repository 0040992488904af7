//! Whole checksum blocks made of a payload and of what is kept of old blocks. Pure.

use crate::store::Merge;
use corefs_wire::checksum::{crc32c, crcs_before};
use corefs_wire::data::segments;
use corefs_wire::limits::BLOCK;
use corefs_wire::{Error, ErrorCode, Result};
use std::ops::Range;

/// Where the payload of a write at `offset` lies in its whole blocks, and how many blocks they are.
pub fn placement(offset: u32, length: u32) -> (usize, usize) {
    (offset as usize % BLOCK, segments(offset as usize, length as usize))
}

/// Zeroes everything in `blocks` but the payload.
pub fn zero_around(blocks: &mut [u8], payload: &Range<usize>) {
    blocks[..payload.start].fill(0);
    blocks[payload.end..].fill(0);
}

/// Verifies an old block (`Corrupt`) and puts what is kept of it into its place in `blocks`.
pub fn merge(blocks: &mut [u8], merge: &Merge, old: &[u8]) -> Result<()> {
    let crc = crc32c(old);
    if crc != merge.crc {
        let what = "a block that the write touches only in part";
        return Err(Error::mismatch(ErrorCode::Corrupt, merge.crc.into(), crc.into(), what));
    }
    let at = merge.block as usize * BLOCK;
    merge.apply(old, &mut blocks[at..at + BLOCK]);
    Ok(())
}

/// The CRC of each of `blocks`. `known` are the verified CRCs of the payload's segments: those of whole blocks are taken from
/// there instead of being computed again.
pub fn crcs(blocks: &[u8], payload: &Range<usize>, known: &[u32], out: &mut Vec<u32>) {
    for (index, block) in blocks.chunks_exact(BLOCK).enumerate() {
        let at = index * BLOCK;
        let whole = payload.start <= at && at + BLOCK <= payload.end;
        out.push(match known.get(index) {
            Some(crc) if whole => *crc,
            _ => crc32c(block),
        });
    }
}

/// Compares the CRCs of whole blocks read from the disk; the error says how many blocks differ. `next` is where the blocks are that are
/// verified next: a hint.
pub fn verify(blocks: &[u8], expected: &[u32], next: *const u8) -> Result<(), Mismatch> {
    let mut found = None;
    for (actual, expected) in crcs_before(blocks, next).zip(expected) {
        if actual != *expected {
            let mismatch = found.get_or_insert(Mismatch { expected: *expected, actual, blocks: 0 });
            mismatch.blocks += 1;
        }
    }
    found.map_or(Ok(()), Err)
}

/// The first CRC that doesn't match, and how many don't.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mismatch {
    pub expected: u32,
    pub actual: u32,
    pub blocks: u64,
}

impl From<Mismatch> for Error {
    fn from(mismatch: Mismatch) -> Self {
        let Mismatch { expected, actual, blocks } = mismatch;
        let what = format!("{blocks} stored blocks don't match their checksum");
        Self::mismatch(ErrorCode::Corrupt, expected.into(), actual.into(), what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_made_of_old_front_payload_and_old_back() {
        let old = [7; BLOCK];
        let mut blocks = vec![1; BLOCK];
        let payload = 100..200;
        zero_around(&mut blocks, &payload);
        let kept =
            Merge { block: 0, disk_offset: 0, crc: crc32c(&old), keep_front: 100, keep_back: BLOCK as u32 };
        merge(&mut blocks, &kept, &old).unwrap();
        assert_eq!((&blocks[..100], &blocks[100..200]), (&[7; 100][..], &[1; 100][..]));
        assert!(blocks[200..].iter().all(|byte| *byte == 0));
        let mut found = Vec::new();
        crcs(&blocks, &payload, &[99], &mut found);
        assert_eq!(found, [crc32c(&blocks)], "a part's checksum isn't the block's");
        assert_eq!(verify(&blocks, &found, std::ptr::null()), Ok(()));
        blocks[4000] ^= 1;
        assert_eq!(verify(&blocks, &found, std::ptr::null()).map_err(|mismatch| mismatch.blocks), Err(1));
        assert_eq!(merge(&mut blocks, &Merge { crc: 1, ..kept }, &old).unwrap_err().code, ErrorCode::Corrupt);
    }

    #[test]
    fn known_checksums_are_used_for_whole_blocks_only() {
        let blocks = vec![5; 3 * BLOCK];
        let mut found = Vec::new();
        crcs(&blocks, &(1..3 * BLOCK), &[1, 2, 3], &mut found);
        assert_eq!(found, [crc32c(&blocks[..BLOCK]), 2, 3]);
    }
}
