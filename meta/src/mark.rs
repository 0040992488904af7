//! How far a client is: the value of its `L` row.

use corefs_wire::{Error, ErrorCode, Result};

/// Below which sequence a client's requests are done, or that there will be no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// Everything below is answered, and its rows are gone. Eight bytes, little-endian, raised by atomic MAX.
    Below(u64),
    /// The client's lease ended at this time (ns since the epoch) and its rows are gone: whether a request that comes now was carried out
    /// before, nobody knows any more. The same eight bytes at their highest, and eight more.
    Ended(i64),
}

impl Mark {
    pub fn encode(self) -> Vec<u8> {
        match self {
            Self::Below(sequence) => sequence.to_le_bytes().to_vec(),
            Self::Ended(at) => [u64::MAX.to_le_bytes(), at.to_le_bytes()].concat(),
        }
    }

    pub fn decode(value: &[u8]) -> Result<Self> {
        let (first, rest) = value.split_first_chunk().ok_or_else(bad)?;
        match (u64::from_le_bytes(*first), rest.try_into()) {
            (below, _) if rest.is_empty() => Ok(Self::Below(below)),
            (u64::MAX, Ok(at)) => Ok(Self::Ended(i64::from_le_bytes(at))),
            _ => Err(bad()),
        }
    }
}

fn bad() -> Error {
    Error::new(ErrorCode::Corrupt, "a client's mark can't be read")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_golden() {
        assert_eq!(Mark::Below(258).encode(), [2, 1, 0, 0, 0, 0, 0, 0]);
        let ended = Mark::Ended(1).encode();
        assert_eq!(ended, [[255; 8], [1, 0, 0, 0, 0, 0, 0, 0]].concat());
        for mark in [Mark::Below(0), Mark::Below(u64::MAX), Mark::Ended(-1)] {
            assert_eq!(Mark::decode(&mark.encode()), Ok(mark));
        }
        for bad in [&[][..], &[0; 7], &[0; 16], &ended[..15]] {
            assert_eq!(Mark::decode(bad).unwrap_err().code, ErrorCode::Corrupt, "{bad:?}");
        }
    }
}
