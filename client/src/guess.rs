//! Which new files are made to keep their bytes with their inodes: guessed from what became of others whose names end alike.
//!
//! A wrong guess costs a commit (the bytes move out when the file grows), or a flush of a chunk that an inode could have saved. So a kind of
//! names has to be wrong twice before it is taken for the other: a counter of two bits each, as branch predictors have.

use std::cell::Cell;

const KINDS: usize = 64;

/// What names end like: files of the same kind share a counter. Different kinds may, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind(u8);

impl Kind {
    /// By what follows the last dot; names without one are a kind of their own.
    pub fn of(name: &[u8]) -> Self {
        let end = name.iter().rposition(|byte| *byte == b'.').map_or(&[][..], |dot| &name[dot..]);
        let hash = end.iter().fold(0u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        Self((hash >> 8) as u8 % KINDS as u8)
    }
}

/// Of each kind: 0 and 1, they stay small; 2 and 3, they grow.
pub struct Guess([Cell<u8>; KINDS]);

impl Default for Guess {
    fn default() -> Self {
        Self([const { Cell::new(0) }; KINDS])
    }
}

impl Guess {
    pub fn stays_small(&self, kind: Kind) -> bool {
        self.0[usize::from(kind.0)].get() < 2
    }

    /// One stayed small, or grew.
    pub fn learn(&self, kind: Kind, small: bool) {
        let count = &self.0[usize::from(kind.0)];
        count.set(if small { count.get().saturating_sub(1) } else { (count.get() + 1).min(3) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_learned_and_unlearned() {
        let guess = Guess::default();
        let (text, data) = (Kind::of(b"a.txt"), Kind::of(b"b.safetensors"));
        assert!(text == Kind::of(b"c.d.txt") && text != data && Kind::of(b"name") != text);
        assert!(guess.stays_small(data));
        guess.learn(data, false);
        assert!(guess.stays_small(data), "once is chance");
        (0..9).for_each(|_| guess.learn(data, false));
        assert!(!guess.stays_small(data) && guess.stays_small(text));
        guess.learn(data, true);
        assert!(!guess.stays_small(data));
        guess.learn(data, true);
        assert!(guess.stays_small(data));
    }
}
