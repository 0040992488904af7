//! What lies in the redb file, which has what was committed up to some version; the [log](super::log) has the rest.
//!
//! | table | key | value |
//! |---|---|---|
//! | `pairs` | the key | CRC (4 bytes, little-endian), then the value |
//! | `about` | `format` | 3; 2 had a log of one area, 1 none; both are read as well |
//! | `about` | `version` | the version of the newest commit that is in the file; raised by [`REOPEN_STEP`] whenever the store is opened |
//! | `about` | `log` | the life whose records the log has; 0 or absent: everything is in the file |
//!
//! The CRC covers key and value. redb's own page checksums are only verified when it recovers or checks a file, not
//! when it reads, so the CRC is what keeps a rotten page from becoming a wrong answer. What it can't see is a
//! pair that is missing altogether: that is what the check on opening, and `corefs fsck`, find.

use corefs_wire::checksum::crc32c;
use corefs_wire::{Error, ErrorCode, Result};
use redb::TableDefinition;

pub const PAIRS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("pairs");
pub const ABOUT: TableDefinition<&str, u64> = TableDefinition::new("about");
pub const FORMAT_ROW: &str = "format";
pub const VERSION_ROW: &str = "version";
pub const LIFE_ROW: &str = "log";
/// The format that this build writes.
pub const FORMAT: u64 = 3;
/// The oldest that it reads.
pub const FORMAT_OLDEST: u64 = 1;

/// Versions skipped at each opening, so that no version of an earlier life, acknowledged or not, comes again.
pub const REOPEN_STEP: u64 = 1_000_000;

const CRC_BYTES: usize = 4;

fn crc(key: &[u8], value: &[u8]) -> u32 {
    // Rotated, so that key and value can't stand in for one another.
    crc32c(key).rotate_left(16) ^ crc32c(value)
}

/// Puts `value` into `stored` as the table holds it.
pub fn seal(key: &[u8], value: &[u8], stored: &mut Vec<u8>) {
    stored.clear();
    stored.extend_from_slice(&crc(key, value).to_le_bytes());
    stored.extend_from_slice(value);
}

/// The value in what the table holds, or `Corrupt`.
pub fn open<'a>(key: &[u8], stored: &'a [u8]) -> Result<&'a [u8]> {
    let damaged = |expected: u32, actual: u32| {
        let what = format!("the stored value of key {} is damaged", key.escape_ascii());
        Error::mismatch(ErrorCode::Corrupt, expected.into(), actual.into(), what)
    };
    let Some((stored_crc, value)) = stored.split_first_chunk::<CRC_BYTES>() else {
        return Err(damaged(CRC_BYTES as u32, stored.len() as u32));
    };
    let (stored_crc, crc) = (u32::from_le_bytes(*stored_crc), crc(key, value));
    if stored_crc == crc { Ok(value) } else { Err(damaged(stored_crc, crc)) }
}

/// redb's error as one of ours: damage, a store in use, or the disk.
pub fn translate(error: impl Into<redb::Error>) -> Error {
    match error.into() {
        redb::Error::Corrupted(what) => Error::new(ErrorCode::Corrupt, what),
        redb::Error::DatabaseAlreadyOpen => {
            Error::new(ErrorCode::DirectoryInUse, "the store is open already")
        }
        redb::Error::UpgradeRequired(found) => {
            let what = "the store's file format is older than this build reads";
            Error::mismatch(ErrorCode::BadFormat, 0, found.into(), what)
        }
        redb::Error::DatabaseClosed => closed(),
        redb::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            Error::new(ErrorCode::BadFormat, format!("not a store of ours: {error}"))
        }
        redb::Error::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Error::new(ErrorCode::Corrupt, format!("the file is too short: {error}"))
        }
        other => Error::new(ErrorCode::KvIo, other.to_string()),
    }
}

/// The store was closed under whoever asks.
pub fn closed() -> Error {
    Error::new(ErrorCode::KvUnavailable, "the store is closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_is_noticed() {
        let mut stored = Vec::new();
        seal(b"key", b"value", &mut stored);
        assert_eq!(open(b"key", &stored), Ok(b"value".as_slice()));
        assert_eq!(open(b"kez", &stored).unwrap_err().code, ErrorCode::Corrupt);
        for bit in 0..stored.len() * 8 {
            stored[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(b"key", &stored).unwrap_err().code, ErrorCode::Corrupt);
            stored[bit / 8] ^= 1 << (bit % 8);
        }
        for length in 0..stored.len() {
            assert!(open(b"key", &stored[..length]).is_err());
        }
    }
}
