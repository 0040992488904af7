//! Read-your-writes: the writes of one transaction laid over what its snapshot holds. Pure.
//!
//! Invariants: an entry says what a reader sees at its key, whatever `cleared` says there; cleared ranges are
//! disjoint, not empty, and never touch (they are merged).

use crate::contract::{Atomic, Direction, KeyRange, RangePage, Versionstamp};
use crate::mutation::Mutation;
use corefs_wire::{Error, ErrorCode, Result};
use std::collections::BTreeMap;
use std::ops::Bound;

/// What the transaction has done to one key.
#[derive(Debug)]
enum Entry {
    /// It holds this now (`None`: cleared), whatever the snapshot says.
    Known(Option<Vec<u8>>),
    /// These, in order, over what the snapshot holds.
    Atomics(Vec<(Atomic, Vec<u8>)>),
    /// Its value will hold a versionstamp.
    Unreadable,
}

/// What a reader of one key has to do.
#[derive(PartialEq, Eq, Debug)]
pub enum Seen {
    /// Nothing: this is the value.
    Known(Option<Vec<u8>>),
    /// Ask the snapshot, and pass its value through [`Overlay::finish`].
    AskSnapshot,
}

#[derive(Default, Debug)]
pub struct Overlay {
    entries: BTreeMap<Vec<u8>, Entry>,
    /// Begin to end.
    cleared: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Where a versionstamped key may land.
    unreadable: Vec<KeyRange>,
}

fn unreadable() -> Error {
    Error::new(ErrorCode::KvUnreadable, "the bytes will hold a versionstamp that only the commit knows")
}

impl Overlay {
    /// Lays one more write over the others.
    pub fn lay(&mut self, mutation: &Mutation) {
        match mutation {
            Mutation::Set { key, value } => self.set(key, value),
            Mutation::Clear { key } => self.clear(key),
            Mutation::ClearRange(range) => self.clear_range(range),
            Mutation::Atomic { operation, key, operand } => self.atomic(*operation, key, operand),
            Mutation::StampedKey { key, stamp_at, .. } => self.stamp_key(key, *stamp_at),
            Mutation::StampedValue { key, .. } => self.stamp_value(key),
        }
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.entries.insert(key.to_vec(), Entry::Known(Some(value.to_vec())));
    }

    fn clear(&mut self, key: &[u8]) {
        self.entries.insert(key.to_vec(), Entry::Known(None));
    }

    fn clear_range(&mut self, range: &KeyRange) {
        if range.is_empty() {
            return;
        }
        let inside: Vec<_> =
            self.entries.range(range.begin.clone()..range.end.clone()).map(|e| e.0.clone()).collect();
        for key in inside {
            self.entries.remove(&key);
        }
        // Ranges that overlap or touch the new one become part of it.
        let mut merged = range.clone();
        while let Some((begin, end)) = self.cleared.range(..=merged.end.clone()).next_back() {
            if *end < merged.begin {
                break;
            }
            merged.end = merged.end.max(end.clone());
            let begin = begin.clone();
            self.cleared.remove(&begin);
            merged.begin = merged.begin.min(begin);
        }
        self.cleared.insert(merged.begin, merged.end);
    }

    fn atomic(&mut self, operation: Atomic, key: &[u8], operand: &[u8]) {
        let cleared = self.is_cleared(key);
        let fresh = || if cleared { Entry::Known(None) } else { Entry::Atomics(Vec::new()) };
        let entry = self.entries.entry(key.to_vec()).or_insert_with(fresh);
        match entry {
            Entry::Known(value) => *value = Some(operation.apply(value.as_deref(), operand)),
            Entry::Atomics(steps) => steps.push((operation, operand.to_vec())),
            Entry::Unreadable => {}
        }
    }

    /// `key` will be set to a value with a stamp.
    fn stamp_value(&mut self, key: &[u8]) {
        self.entries.insert(key.to_vec(), Entry::Unreadable);
    }

    /// A key will be set whose bytes at `stamp_at` hold a stamp.
    fn stamp_key(&mut self, key: &[u8], stamp_at: usize) {
        let with = |byte: u8| {
            let mut key = key.to_vec();
            key[stamp_at..stamp_at + Versionstamp::LEN].fill(byte);
            key
        };
        self.unreadable.push(KeyRange { begin: with(0), end: crate::contract::next_key(&with(0xFF)) });
    }

    fn is_cleared(&self, key: &[u8]) -> bool {
        let upto = (Bound::Unbounded, Bound::Included(key));
        self.cleared.range::<[u8], _>(upto).next_back().is_some_and(|(_, end)| key < end.as_slice())
    }

    pub fn look_up(&self, key: &[u8]) -> Result<Seen> {
        match self.entries.get(key) {
            Some(Entry::Known(value)) => Ok(Seen::Known(value.clone())),
            Some(Entry::Atomics(_)) => Ok(Seen::AskSnapshot),
            Some(Entry::Unreadable) => Err(unreadable()),
            None if self.unreadable.iter().any(|range| range.contains(key)) => Err(unreadable()),
            None if self.is_cleared(key) => Ok(Seen::Known(None)),
            None => Ok(Seen::AskSnapshot),
        }
    }

    /// What a reader of `key` sees where the snapshot holds `value`.
    pub fn finish(&self, key: &[u8], value: Option<Vec<u8>>) -> Option<Vec<u8>> {
        match self.entries.get(key) {
            Some(Entry::Known(known)) => known.clone(),
            Some(Entry::Atomics(steps)) => {
                let apply = |value: Option<Vec<u8>>, (operation, operand): &(Atomic, Vec<u8>)| {
                    Some(operation.apply(value.as_deref(), operand))
                };
                steps.iter().fold(value, apply)
            }
            Some(Entry::Unreadable) => unreachable!("look_up and check_range refuse this key"),
            None if self.is_cleared(key) => None,
            None => value,
        }
    }

    /// Whether nothing in `range` is unreadable.
    pub fn check_range(&self, range: &KeyRange) -> Result<()> {
        let stamped_key = |stamped: &KeyRange| stamped.begin < range.end && range.begin < stamped.end;
        let stamped_value = |(_, entry): (&Vec<u8>, &Entry)| matches!(entry, Entry::Unreadable);
        let any = self.unreadable.iter().any(stamped_key)
            || (!range.is_empty()
                && self.entries.range(range.begin.clone()..range.end.clone()).any(stamped_value));
        if any { Err(unreadable()) } else { Ok(()) }
    }

    /// Lays the writes over `page`, which the snapshot gave for `covered` (the whole of it), in `direction`.
    pub fn merge(
        &self,
        covered: &KeyRange,
        page: RangePage,
        direction: Direction,
    ) -> Vec<(Vec<u8>, Vec<u8>)> {
        if covered.is_empty() || (self.entries.is_empty() && self.cleared.is_empty()) {
            return page.pairs;
        }
        let mut merged: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut base: BTreeMap<Vec<u8>, Vec<u8>> = page.pairs.into_iter().collect();
        for key in self.entries.range(covered.begin.clone()..covered.end.clone()).map(|(key, _)| key) {
            let value = base.remove(key);
            if let Some(value) = self.finish(key, value) {
                merged.insert(key.clone(), value);
            }
        }
        merged.extend(base.into_iter().filter(|(key, _)| !self.is_cleared(key)));
        match direction {
            Direction::Forward => merged.into_iter().collect(),
            Direction::Reverse => merged.into_iter().rev().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(value: Option<&[u8]>) -> Result<Seen> {
        Ok(Seen::Known(value.map(<[u8]>::to_vec)))
    }

    #[test]
    fn later_writes_win() {
        let mut overlay = Overlay::default();
        overlay.set(b"b", b"1");
        overlay.clear_range(&KeyRange::new(*b"a", *b"c"));
        assert_eq!(overlay.look_up(b"b"), known(None));
        overlay.atomic(Atomic::Add, b"b", &[2]);
        overlay.atomic(Atomic::Add, b"b", &[3]);
        assert_eq!(overlay.look_up(b"b"), known(Some(&[5])));
        overlay.atomic(Atomic::Add, b"z", &[1]);
        assert_eq!(overlay.look_up(b"z"), Ok(Seen::AskSnapshot));
        assert_eq!(overlay.finish(b"z", Some(vec![4])), Some(vec![5]));
        overlay.clear(b"z");
        assert_eq!(overlay.look_up(b"z"), known(None));
    }

    #[test]
    fn cleared_ranges_merge() {
        let mut overlay = Overlay::default();
        for (begin, end) in [(b"a", b"c"), (b"e", b"g"), (b"x", b"z"), (b"c", b"e")] {
            overlay.clear_range(&KeyRange::new(*begin, *end));
        }
        assert_eq!(overlay.cleared.len(), 2);
        assert_eq!(overlay.cleared[b"a".as_slice()], b"g");
        overlay.clear_range(&KeyRange::new(*b"b", *b"y"));
        assert_eq!(overlay.cleared.len(), 1);
        assert_eq!(overlay.cleared[b"a".as_slice()], b"z");
        assert!(!overlay.is_cleared(b"z") && overlay.is_cleared(b"a") && overlay.is_cleared(b"m"));
    }

    #[test]
    fn stamped_places_are_unreadable() {
        let mut overlay = Overlay::default();
        overlay.stamp_value(b"v");
        overlay.stamp_key(&[b"k".as_slice(), &[0; 10]].concat(), 1);
        let mut landed = b"k".to_vec();
        landed.extend_from_slice(&Versionstamp::new(77, 3).0);
        for key in [b"v".as_slice(), &landed] {
            assert_eq!(overlay.look_up(key).unwrap_err().code, ErrorCode::KvUnreadable);
            assert!(overlay.check_range(&KeyRange::single(key)).is_err());
        }
        assert_eq!(overlay.look_up(b"k"), Ok(Seen::AskSnapshot));
        assert!(overlay.check_range(&KeyRange::new(*b"a", *b"k")).is_ok());
    }
}
