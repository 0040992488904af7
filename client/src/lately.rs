//! What has happened to lately, so that an answer which was under way then isn't taken for what is so now. Pure.

use std::collections::HashMap;
use std::hash::Hash;

/// Things remembered. Beyond them all are forgotten, and any may have been among them.
const LATELY: usize = 8192;

/// Things to which something happened, of one kind.
pub struct Lately<T> {
    count: u64,
    /// To anything may have happened something when there were so many.
    floor: u64,
    /// How many there were with the last one of each.
    last: HashMap<T, u64>,
}

impl<T> Default for Lately<T> {
    fn default() -> Self {
        Self { count: 0, floor: 0, last: HashMap::new() }
    }
}

impl<T: Eq + Hash> Lately<T> {
    /// How much has happened so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn add(&mut self, thing: T) {
        if self.last.len() >= LATELY {
            return self.add_anything();
        }
        self.count += 1;
        self.last.insert(thing, self.count);
    }

    /// To anything, or everything.
    pub fn add_anything(&mut self) {
        self.count += 1;
        self.floor = self.count;
        self.last.clear();
    }

    /// Whether something may have happened to one of these since there was so much.
    pub fn since<'a>(&self, count: u64, things: impl IntoIterator<Item = &'a T>) -> bool
    where
        T: 'a,
    {
        let is_later = |thing| self.last.get(thing).is_some_and(|last| *last > count);
        self.floor > count || things.into_iter().any(is_later)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_happened_meanwhile_and_to_what_is_asked_about_counts() {
        let mut lately = Lately::default();
        lately.add(5);
        let before = lately.count();
        assert!(lately.since(0, &[5]) && !lately.since(before, &[5, 6]));
        lately.add(6);
        assert!(lately.since(before, &[5, 6]) && !lately.since(before, &[5]));
        assert!(!lately.since(lately.count(), &[6]));
        lately.add_anything();
        assert!(lately.since(before + 1, &[5]) && lately.since(before + 1, &[]));
        assert!(!lately.since(lately.count(), &[5, 6]));
    }

    #[test]
    fn what_is_forgotten_may_have_been_anything() {
        let mut lately = Lately::default();
        let before = lately.count();
        (0..=LATELY).for_each(|thing| lately.add(100 + thing));
        assert!(lately.since(before, &[7]) && !lately.since(lately.count(), &[7]));
        assert!(lately.last.len() < LATELY);
    }
}
