//! Numbers of calls that change something. Pure.

use std::collections::BTreeSet;

/// Which sequence comes next, and which are under way.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Sequences {
    next: u64,
    under_way: BTreeSet<u64>,
}

impl Default for Sequences {
    /// From 1 on: 0 means not repeatable.
    fn default() -> Self {
        Self { next: 1, under_way: BTreeSet::new() }
    }
}

impl Sequences {
    pub fn begin(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        self.under_way.insert(number);
        number
    }

    /// It will not be sent again.
    pub fn end(&mut self, number: u64) {
        self.under_way.remove(&number);
    }

    /// How many have begun, if none is under way.
    pub fn quiet(&self) -> Option<u64> {
        self.under_way.is_empty().then_some(self.next)
    }

    /// Everything below will not be sent again.
    pub fn low_water(&self) -> u64 {
        self.under_way.first().copied().unwrap_or(self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_follows_the_oldest_call_under_way() {
        let mut sequences = Sequences::default();
        assert_eq!(sequences.low_water(), 1);
        let (a, b, c) = (sequences.begin(), sequences.begin(), sequences.begin());
        assert_eq!((a, b, c, sequences.low_water()), (1, 2, 3, 1));
        sequences.end(b);
        assert_eq!(sequences.low_water(), 1);
        sequences.end(a);
        assert_eq!(sequences.low_water(), 3);
        sequences.end(c);
        assert_eq!(sequences.low_water(), 4);
    }
}
