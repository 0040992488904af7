//! CRC-32C (Castagnoli, RFC 3720 appendix B.4), the one checksum of corefs: blocks, frames, journal records.

use crate::limits::BLOCK;
use std::ptr;

#[cfg(target_arch = "x86_64")]
mod block;

/// The CRC-32C of `bytes`; of a whole block, and of a few bytes, by whatever is fastest here.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() <= block::SHORT && block::is_able() {
        // SAFETY: `is_able` has found the features that it needs.
        return unsafe { block::short(bytes) };
    } else if let Ok(whole) = <&[u8; BLOCK]>::try_from(bytes)
        && block::is_best()
    {
        // SAFETY: `is_best` has found the features that it needs.
        return unsafe { block::crc32c::<false>(whole, ptr::null()) };
    }
    crc_fast::crc32_iscsi(bytes)
}

/// The same, while a block's worth of bytes at `next`, wherever that is, comes from memory: their CRC is wanted soon. A block that comes
/// from memory takes three to five times as long as one that is in a cache.
#[inline]
#[allow(clippy::not_unsafe_ptr_arg_deref)] // Fetched ahead, never looked at: any address will do.
pub fn crc32c_before(bytes: &[u8], next: *const u8) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if let Ok(whole) = <&[u8; BLOCK]>::try_from(bytes)
        && block::is_best()
    {
        // SAFETY: `is_best` has found the features that it needs.
        return unsafe { block::crc32c::<true>(whole, next) };
    }
    let _not_here = next;
    crc32c(bytes)
}

/// The CRC-32C of each consecutive block of `bytes`, and of what is left behind the last whole one.
#[inline]
pub fn crcs(bytes: &[u8]) -> impl Iterator<Item = u32> {
    crcs_before(bytes, ptr::null())
}

/// The same, when those of blocks at `next` are wanted soon; it may be null.
#[inline]
pub fn crcs_before(bytes: &[u8], next: *const u8) -> impl Iterator<Item = u32> {
    let end = bytes.as_ptr_range().end;
    bytes.chunks(BLOCK).map(move |block| match block.as_ptr_range().end {
        last if last != end => crc32c_before(block, last),
        _ if next.is_null() => crc32c(block),
        _ => crc32c_before(block, next),
    })
}

/// The CRC of a checksum block that is all zeros: what a hole inside a chunk reads as.
pub const ZERO_BLOCK_CRC: u32 = 0x98F9_4189;

/// CRCs of consecutive checksum blocks. The last may be short: it is checked as if padded with zeros to a
/// whole block, which is how it is stored.
pub fn block_crcs(bytes: &[u8], out: &mut Vec<u32>) {
    let (whole, rest) = bytes.split_at(bytes.len() / BLOCK * BLOCK);
    out.extend(crcs(whole));
    if !rest.is_empty() {
        let mut padded = [0; BLOCK];
        padded[..rest.len()].copy_from_slice(rest);
        out.push(crc32c(&padded));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_rfc() {
        // RFC 3720 B.4: 32 bytes of zeros, and the common check value of "123456789".
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; BLOCK]), ZERO_BLOCK_CRC);
    }

    #[test]
    fn a_short_tail_is_padded() {
        let mut crcs = Vec::new();
        block_crcs(&[7; BLOCK + 1], &mut crcs);
        let mut tail = [0; BLOCK];
        tail[0] = 7;
        assert_eq!(crcs, [crc32c(&[7; BLOCK]), crc32c(&tail)]);
    }

    #[test]
    fn one_after_the_other_is_each_by_itself() {
        let bytes: Vec<u8> = (0..5 * BLOCK + 100).map(|at| (at * at / 7) as u8).collect();
        for len in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK + 100] {
            let each: Vec<u32> = bytes[..len].chunks(BLOCK).map(crc32c).collect();
            assert_eq!(crcs(&bytes[..len]).collect::<Vec<_>>(), each);
        }
        assert_eq!(crc32c_before(&bytes[..BLOCK], ptr::null()), crc32c(&bytes[..BLOCK]));
        assert_eq!(crc32c_before(&bytes[..9], bytes.as_ptr()), crc32c(&bytes[..9]));
    }
}
