//! What a transaction asks the store to do, and how one mutation changes one value. Pure.

use crate::contract::{Atomic, KeyRange, Versionstamp};
use crate::resolver::Written;

/// One step of a commit. Steps are applied in the order in which the transaction made them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mutation {
    Set {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Clear {
        key: Vec<u8>,
    },
    ClearRange(KeyRange),
    Atomic {
        operation: Atomic,
        key: Vec<u8>,
        operand: Vec<u8>,
    },
    /// `key` has ten bytes at `stamp_at` which the commit overwrites with its versionstamp.
    StampedKey {
        key: Vec<u8>,
        stamp_at: usize,
        value: Vec<u8>,
    },
    /// The same for the value.
    StampedValue {
        key: Vec<u8>,
        stamp_at: usize,
        value: Vec<u8>,
    },
}

impl Mutation {
    /// The mutation with its commit's stamp filled in: never a stamped one.
    ///
    /// Panics when the ten bytes don't lie in the key or value: whoever built or decoded it has checked that.
    #[must_use]
    pub fn stamped(self, stamp: Versionstamp) -> Self {
        match self {
            Self::StampedKey { mut key, stamp_at, value } => {
                key[stamp_at..stamp_at + Versionstamp::LEN].copy_from_slice(&stamp.0);
                Self::Set { key, value }
            }
            Self::StampedValue { key, stamp_at, mut value } => {
                value[stamp_at..stamp_at + Versionstamp::LEN].copy_from_slice(&stamp.0);
                Self::Set { key, value }
            }
            other => other,
        }
    }

    /// The keys that it writes, once stamped.
    pub fn written(&self) -> Written<'_> {
        match self {
            Self::Set { key, .. } | Self::Clear { key } | Self::Atomic { key, .. } => Written::Key(key),
            Self::StampedKey { key, .. } | Self::StampedValue { key, .. } => Written::Key(key),
            Self::ClearRange(range) => Written::Range(range),
        }
    }
}

impl Atomic {
    /// The new value of a key that held `old`. As wide as the operand, whatever was there.
    pub fn apply(self, old: Option<&[u8]>, operand: &[u8]) -> Vec<u8> {
        let old_byte = |at: usize| old.and_then(|old| old.get(at)).copied().unwrap_or(0);
        match self {
            Self::Add => {
                let mut carry = 0;
                let sum = |(at, &byte): (usize, &u8)| {
                    let sum = u16::from(old_byte(at)) + u16::from(byte) + carry;
                    carry = sum >> 8;
                    sum as u8 // the low byte; the rest is the carry
                };
                operand.iter().enumerate().map(sum).collect()
            }
            Self::Max => {
                let old: Vec<u8> = (0..operand.len()).map(old_byte).collect();
                // Little-endian numbers of one width compare from their last byte.
                if old.iter().rev().gt(operand.iter().rev()) { old } else { operand.to_vec() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addition_wraps_and_carries() {
        let add = |old: i64, delta: i64| {
            let sum = Atomic::Add.apply(Some(&old.to_le_bytes()), &delta.to_le_bytes());
            i64::from_le_bytes(sum.try_into().unwrap())
        };
        assert_eq!(add(255, 1), 256);
        assert_eq!(add(5, -7), -2);
        assert_eq!(add(i64::MAX, 1), i64::MIN);
    }

    #[test]
    fn values_of_other_widths_are_fitted_to_the_operand() {
        assert_eq!(Atomic::Add.apply(None, &[1, 2]), [1, 2]);
        assert_eq!(Atomic::Add.apply(Some(&[255]), &[1, 0]), [0, 1]);
        assert_eq!(Atomic::Add.apply(Some(&[1, 9]), &[1]), [2]);
        assert_eq!(Atomic::Max.apply(Some(&[9]), &[1, 1]), [1, 1]);
        assert_eq!(Atomic::Max.apply(Some(&[0, 2]), &[9, 1]), [0, 2]);
        assert_eq!(Atomic::Max.apply(None, &[0]), [0]);
        assert_eq!(Atomic::Add.apply(Some(&[1]), &[]), [0; 0]);
    }

    #[test]
    fn stamps_land_where_they_should() {
        let stamp = Versionstamp::new(7, 1);
        let key = [b"k".as_slice(), &[0; 10], b"s"].concat();
        let mutation = Mutation::StampedKey { key, stamp_at: 1, value: vec![3] }.stamped(stamp);
        assert_eq!(
            mutation,
            Mutation::Set { key: [b"k".as_slice(), &stamp.0, b"s"].concat(), value: vec![3] }
        );
    }
}
