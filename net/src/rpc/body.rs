//! The body of a reply, on its way from the receive buffer to whoever awaits it.

/// Bytes that are kept in place: the body of a read of eleven blocks.
const FEW: usize = 62;

/// Bytes; a few of them cost no allocation, which is what the reply to a read of some blocks has.
#[derive(Clone)]
pub struct Body(Repr);

#[derive(Clone)]
enum Repr {
    Few { len: u8, bytes: [u8; FEW] },
    Many(Box<[u8]>),
}

impl From<&[u8]> for Body {
    #[inline]
    fn from(from: &[u8]) -> Self {
        if from.len() > FEW {
            return Self(Repr::Many(from.into()));
        }
        let mut bytes = [0; FEW];
        bytes[..from.len()].copy_from_slice(from);
        Self(Repr::Few { len: from.len() as u8, bytes })
    }
}

impl std::ops::Deref for Body {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Few { len, bytes } => &bytes[..usize::from(*len)],
            Repr::Many(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Body({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_or_many_bytes_come_out_as_they_went_in() {
        for len in [0, 1, FEW, FEW + 1, 5000] {
            let bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
            assert_eq!(*Body::from(&*bytes), *bytes);
        }
    }
}
