//! The limits of keys, values and transactions: the one place that enforces them, for every backend, on both
//! sides of the wire. Pure.

use crate::contract::{KEYS_END, KeyRange, Versionstamp};
use crate::mutation::Mutation;
use crate::store::Commit;
use corefs_wire::limits::{KV_KEY_MAX, KV_TRANSACTION_BYTES_MAX, KV_TRANSACTION_SECONDS, KV_VALUE_MAX};
use corefs_wire::{Error, ErrorCode, Result};
use std::time::Duration;

/// How long a transaction may run from its first read to its commit.
pub const TRANSACTION_AGE_MAX: Duration = Duration::from_secs(KV_TRANSACTION_SECONDS);

/// Bytes before every key in FoundationDB, at most: the cluster's name there (`kv::fdb`). All backends count as if they were there.
pub const PREFIX_MAX: usize = 32;
/// What FoundationDB counts for the structures of a mutation and of a conflict range (`MutationRef` and `KeyRangeRef` of
/// 7.3.77, rounded up).
const MUTATION_BYTES: usize = 48;
const RANGE_BYTES: usize = 24;

/// With that many newer versions a snapshot is too old, whatever its age. Bounds the memory of histories and
/// conflict windows.
pub const VERSIONS_REMEMBERED_MAX: usize = 1 << 17;

/// Most bytes of keys and values in one page of a range. A reply frame holds several.
pub const PAGE_BYTES_MAX: usize = 1 << 20;
/// Most pairs in one page of a range.
pub const PAGE_PAIRS_MAX: usize = 1 << 14;

/// What a conflict range counts towards a transaction's size.
pub fn range_bytes(range: &KeyRange) -> usize {
    range.begin.len() + range.end.len() + 2 * PREFIX_MAX + RANGE_BYTES
}

/// What a mutation counts: its own bytes, and the conflict range of what it writes. As FoundationDB does it, so that what fits into a
/// transaction of any backend fits into one of FoundationDB's.
pub fn mutation_bytes(mutation: &Mutation) -> usize {
    let (key, value) = match mutation {
        Mutation::ClearRange(range) => {
            let both = range.begin.len() + range.end.len() + 2 * PREFIX_MAX;
            return both + MUTATION_BYTES + range_bytes(range);
        }
        Mutation::Clear { key } => (key, 0),
        Mutation::Atomic { key, operand: value, .. }
        | Mutation::Set { key, value }
        | Mutation::StampedKey { key, value, .. }
        | Mutation::StampedValue { key, value, .. } => (key, value.len()),
    };
    // The range of a single key ends in a zero byte more.
    3 * (PREFIX_MAX + key.len()) + 1 + value + MUTATION_BYTES + RANGE_BYTES
}

fn too_large(limit: usize, actual: usize, what: &str) -> Error {
    Error::mismatch(ErrorCode::KvTooLarge, limit as u64, actual as u64, format!("{what} is too large"))
}

/// A key that may be read or written.
pub fn check_key(key: &[u8]) -> Result<()> {
    if key.len() > KV_KEY_MAX {
        return Err(too_large(KV_KEY_MAX, key.len(), "the key"));
    }
    if key >= KEYS_END {
        return Err(Error::new(ErrorCode::InvalidArgument, "keys from 0xFF on are reserved"));
    }
    Ok(())
}

pub fn check_value(value: &[u8]) -> Result<()> {
    if value.len() > KV_VALUE_MAX {
        return Err(too_large(KV_VALUE_MAX, value.len(), "the value"));
    }
    Ok(())
}

/// A range that may be read or cleared: in order, and within the keys there are. It may be empty. The range of a
/// single longest key ends one byte beyond the longest key.
pub fn check_range(range: &KeyRange) -> Result<()> {
    let longest = range.begin.len().max(range.end.len());
    if longest > KV_KEY_MAX + 1 {
        return Err(too_large(KV_KEY_MAX, longest, "a key of the range"));
    }
    if range.begin > range.end {
        return Err(Error::new(ErrorCode::InvalidArgument, "the range ends before it begins"));
    }
    if range.end.as_slice() > KEYS_END {
        return Err(Error::new(ErrorCode::InvalidArgument, "keys from 0xFF on are reserved"));
    }
    Ok(())
}

pub fn check_mutation(mutation: &Mutation) -> Result<()> {
    let stamp_fits = |stamp_at: usize, bytes: &[u8]| {
        // `stamp_at` may come from the wire, so the sum must not overflow.
        if stamp_at.checked_add(Versionstamp::LEN).is_some_and(|end| end <= bytes.len()) {
            return Ok(());
        }
        let (room, at) = (bytes.len() as u64, stamp_at as u64);
        Err(Error::mismatch(ErrorCode::InvalidArgument, room, at, "no room for the versionstamp"))
    };
    match mutation {
        Mutation::Clear { key } => check_key(key),
        Mutation::ClearRange(range) => check_range(range),
        Mutation::Set { key, value } | Mutation::Atomic { key, operand: value, .. } => {
            check_key(key).and_then(|()| check_value(value))
        }
        Mutation::StampedKey { key, stamp_at, value } => {
            check_key(key).and_then(|()| check_value(value))?;
            // The stamp's bytes begin with a version far below 0xFF..., so a stamp at 0 stays a legal key.
            stamp_fits(*stamp_at, key)
        }
        Mutation::StampedValue { key, stamp_at, value } => {
            check_key(key).and_then(|()| check_value(value))?;
            stamp_fits(*stamp_at, value)
        }
    }
}

/// Bytes that count towards a transaction's size: of mutations and of conflict ranges.
pub fn check_size(bytes: usize) -> Result<()> {
    if bytes > KV_TRANSACTION_BYTES_MAX {
        return Err(too_large(KV_TRANSACTION_BYTES_MAX, bytes, "the transaction"));
    }
    Ok(())
}

/// A transaction whose first read was `age` ago.
pub fn check_age(age: Duration) -> Result<()> {
    if age > TRANSACTION_AGE_MAX {
        let (limit, actual) = (TRANSACTION_AGE_MAX.as_millis() as u64, age.as_millis() as u64);
        let what = "the transaction has run too long (milliseconds)";
        return Err(Error::mismatch(ErrorCode::KvTooOld, limit, actual, what));
    }
    Ok(())
}

/// A commit that arrived from somewhere else: everything that a transaction checks as it is built.
pub fn check_commit(commit: &Commit) -> Result<()> {
    commit.mutations.iter().try_for_each(check_mutation)?;
    commit.read_conflicts.iter().chain(&commit.write_conflicts).try_for_each(check_range)?;
    check_size(commit.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_have_their_limits() {
        assert!(check_key(&[1; KV_KEY_MAX]).is_ok());
        assert_eq!(check_key(&[1; KV_KEY_MAX + 1]).unwrap_err().code, ErrorCode::KvTooLarge);
        assert_eq!(check_key(&[0xFF]).unwrap_err().code, ErrorCode::InvalidArgument);
        assert!(check_value(&[0; KV_VALUE_MAX]).is_ok());
        assert_eq!(check_value(&[0; KV_VALUE_MAX + 1]).unwrap_err().code, ErrorCode::KvTooLarge);
        assert!(check_range(&KeyRange::single(&[1; KV_KEY_MAX])).is_ok());
        assert_eq!(check_range(&KeyRange::new([2], [1])).unwrap_err().code, ErrorCode::InvalidArgument);
        assert_eq!(check_range(&KeyRange::new([2], [0xFF, 1])).unwrap_err().code, ErrorCode::InvalidArgument);
    }

    /// Of 32,768 targets in chains of one: the largest transaction there is.
    #[test]
    fn the_rows_of_the_largest_cluster_fit_into_one_transaction() {
        let chain = Mutation::Set { key: vec![0; 14], value: vec![0; 42] };
        check_size(32_768 * mutation_bytes(&chain)).unwrap();
        let (page, pages) = (Mutation::Set { key: vec![0; 18], value: vec![0; 5 + 8 * 4096] }, 8);
        check_size(32_768 * mutation_bytes(&chain) + pages * mutation_bytes(&page)).unwrap();
    }

    #[test]
    fn a_stamp_needs_room() {
        let stamped = |stamp_at| Mutation::StampedKey { key: vec![0; 12], stamp_at, value: vec![] };
        assert!(check_mutation(&stamped(2)).is_ok());
        assert_eq!(check_mutation(&stamped(3)).unwrap_err().code, ErrorCode::InvalidArgument);
        assert_eq!(check_mutation(&stamped(usize::MAX)).unwrap_err().code, ErrorCode::InvalidArgument);
    }
}
