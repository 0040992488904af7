//! CRC-32C (Castagnoli, RFC 3720 appendix B.4), the one checksum of corefs: blocks, frames, journal records.

use crate::limits::BLOCK;

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
        return unsafe { block::crc32c(whole) };
    }
    crc_fast::crc32_iscsi(bytes)
}

/// The CRC of a checksum block that is all zeros: what a hole inside a chunk reads as.
pub const ZERO_BLOCK_CRC: u32 = 0x98F9_4189;

/// CRCs of consecutive checksum blocks. The last may be short: it is checked as if padded with zeros to a
/// whole block, which is how it is stored.
pub fn block_crcs(bytes: &[u8], out: &mut Vec<u32>) {
    let mut blocks = bytes.chunks_exact(BLOCK);
    out.extend(blocks.by_ref().map(crc32c));
    let rest = blocks.remainder();
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
}
