//! Is a history of one chunk that of a register? The black box of the checks: it knows what clients asked for and what they
//! were told, and no version, node or message.
//!
//! A history is linearizable (Herlihy and Wing, TOPLAS 1990) if each operation can be given one moment between its
//! beginning and its end such that, in the order of these moments, every read returns what the updates before it have
//! made. Found by search (Wing and Gong, JPDC 1993; with what was seen before remembered, Lowe, 2017): whoever began before
//! the earliest end may be next. A read that fits is taken at once, since it changes nothing; so only updates branch.
//!
//! Versions are used as a hint for what to try first: with it the search hardly ever turns back.

use crate::prng::Prng;
use corefs_wire::checksum::crc32c;
use std::collections::BTreeSet;
use std::rc::Rc;

/// How often the search turns back before it gives up. Histories of sound chains need hardly any turn.
const TURNS_MAX: u64 = 20_000;

/// What an operation does to a chunk, `None` being one that isn't there.
pub type Contents = Option<Vec<u8>>;

/// What an operation was.
#[derive(Clone)]
pub enum Effect {
    /// Makes other contents of the contents.
    Update(Rc<dyn Fn(Contents) -> Contents>),
    /// Returned bytes with this CRC; `None`: there was no chunk.
    Read(Option<u32>),
}

/// One operation of one client.
#[derive(Clone)]
pub struct Operation {
    /// When it began and ended, in any unit that orders events. `None`: nobody knows whether it happened, then or later.
    pub began: u64,
    pub ended: Option<u64>,
    pub effect: Effect,
    /// Smaller ones are tried first.
    pub hint: u64,
}

/// A moment of the search to which it may return: what was taken since, and what else can be tried.
struct Fork {
    contents: Contents,
    taken: Vec<usize>,
    untried: Vec<usize>,
}

struct Search<'a> {
    operations: &'a [Operation],
    /// By beginning.
    done: Vec<bool>,
    /// All before it are done, or needn't be.
    low: usize,
    /// A name of the set of those that are done.
    name: u64,
    contents: Contents,
    crc: Option<u32>,
    left: usize,
}

/// Says how often the search had to turn back, or which operation fits nowhere.
pub fn check(operations: &mut [Operation]) -> Result<u64, String> {
    operations.sort_by_key(|operation| operation.began);
    let left = operations.iter().filter(|operation| operation.ended.is_some()).count();
    let done = vec![false; operations.len()];
    let mut search = Search { operations, done, low: 0, name: 0, contents: None, crc: None, left };
    let mut seen = BTreeSet::new();
    let mut forks: Vec<Fork> = Vec::new();
    let (mut turns, mut least_left) = (0, usize::MAX);
    let mut taken = Vec::new();
    loop {
        search.take_reads(&mut taken);
        if search.left < least_left {
            least_left = search.left;
        }
        if search.left == 0 {
            return Ok(turns);
        }
        let mut untried = if seen.insert((search.name, search.crc)) { search.updates() } else { Vec::new() };
        // Nothing to try here: back to the last moment that has something left.
        while untried.is_empty() {
            search.undo(&taken);
            let Some(fork) = forks.pop() else {
                let last = operations.len() - least_left;
                return Err(format!("no order of the operations explains them: {last} fit, at most"));
            };
            turns += 1;
            if turns > TURNS_MAX {
                return Err(format!(
                    "no order of the operations explains them, of {TURNS_MAX} that were tried"
                ));
            }
            search.set(fork.contents);
            (taken, untried) = (fork.taken, fork.untried);
        }
        if let Some(next) = untried.pop() {
            // Where nothing else can be tried the search only passes on its way back.
            let contents = if untried.is_empty() { None } else { search.contents.clone() };
            forks.push(Fork { contents, taken: std::mem::take(&mut taken), untried });
            search.apply(next, &mut taken);
        }
    }
}

impl Search<'_> {
    /// Operations that may be next: none of the others ended before they began.
    fn candidates(&mut self) -> Vec<usize> {
        while self.done.get(self.low) == Some(&true) {
            self.low += 1;
        }
        let (mut earliest_end, mut found) = (u64::MAX, Vec::new());
        for (index, operation) in self.operations.iter().enumerate().skip(self.low) {
            if operation.began > earliest_end {
                break;
            }
            if !self.done[index] {
                earliest_end = earliest_end.min(operation.ended.unwrap_or(u64::MAX));
                found.push(index);
            }
        }
        found.retain(|index| self.operations[*index].began < earliest_end);
        found
    }

    /// Takes reads that fit, as long as there are any.
    fn take_reads(&mut self, taken: &mut Vec<usize>) {
        loop {
            let mut reads = self.candidates();
            reads.retain(|index| match self.operations[*index].effect {
                Effect::Read(crc) => crc == self.crc,
                Effect::Update(_) => false,
            });
            if reads.is_empty() {
                return;
            }
            reads.into_iter().for_each(|read| self.mark(read, taken));
        }
    }

    /// Updates that may be next, the likeliest last.
    fn updates(&mut self) -> Vec<usize> {
        let mut found = self.candidates();
        found.retain(|index| matches!(self.operations[*index].effect, Effect::Update(_)));
        found.sort_by_key(|index| std::cmp::Reverse(self.operations[*index].hint));
        found
    }

    fn apply(&mut self, index: usize, taken: &mut Vec<usize>) {
        if let Effect::Update(change) = &self.operations[index].effect {
            let contents = change(self.contents.take());
            self.set(contents);
        }
        self.mark(index, taken);
    }

    fn set(&mut self, contents: Contents) {
        self.crc = contents.as_deref().map(crc32c);
        self.contents = contents;
    }

    fn mark(&mut self, index: usize, taken: &mut Vec<usize>) {
        self.flip(index, true);
        taken.push(index);
    }

    fn undo(&mut self, taken: &[usize]) {
        taken.iter().for_each(|index| self.flip(*index, false));
        self.low = taken.iter().copied().fold(self.low, usize::min);
    }

    fn flip(&mut self, index: usize, done: bool) {
        self.done[index] = done;
        // Sets that differ have names that differ, but for one chance in many millions of millions.
        self.name ^= Prng::new(index as u64).next_u64();
        let counts = usize::from(self.operations[index].ended.is_some());
        self.left = if done { self.left - counts } else { self.left + counts };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(began: u64, ended: Option<u64>, byte: u8) -> Operation {
        let effect = Effect::Update(Rc::new(move |_| Some(vec![byte])));
        Operation { began, ended, effect, hint: 0 }
    }

    fn add(began: u64, ended: u64, byte: u8) -> Operation {
        let effect = Effect::Update(Rc::new(move |contents| {
            let mut contents = contents.unwrap_or_default();
            contents.push(byte);
            Some(contents)
        }));
        Operation { began, ended: Some(ended), effect, hint: 0 }
    }

    fn read(began: u64, ended: u64, bytes: Option<&[u8]>) -> Operation {
        Operation { began, ended: Some(ended), effect: Effect::Read(bytes.map(crc32c)), hint: 0 }
    }

    fn fits(mut operations: Vec<Operation>) -> bool {
        check(&mut operations).is_ok()
    }

    #[test]
    fn reads_of_the_last_write_fit() {
        assert!(fits(vec![]));
        assert!(fits(vec![read(1, 2, None), write(3, Some(4), 7), read(5, 6, Some(&[7]))]));
        assert!(!fits(vec![write(3, Some(4), 7), read(5, 6, None)]), "an acknowledged write was lost");
        assert!(!fits(vec![write(3, Some(4), 7), read(5, 6, Some(&[8]))]), "bytes of nobody");
    }

    #[test]
    fn what_overlaps_may_have_either_order_but_one() {
        let both = |first: u8, second: u8| {
            let reads = [read(5, 6, Some(&[first])), read(7, 8, Some(&[second]))];
            [vec![write(1, Some(9), 1), write(2, Some(10), 2)], reads.to_vec()].concat()
        };
        assert!(fits(both(1, 2)) && fits(both(2, 1)) && fits(both(1, 1)));
        let back = [both(1, 2), vec![read(11, 12, Some(&[1]))]].concat();
        assert!(!fits(back), "a read returned less than one before it");
    }

    #[test]
    fn the_order_of_ends_and_beginnings_is_kept() {
        let late = vec![write(1, Some(2), 1), write(3, Some(4), 2), read(5, 6, Some(&[1]))];
        assert!(!fits(late), "an update took effect before it began");
        let twice = vec![add(1, 2, 1), add(3, 4, 2), read(5, 6, Some(&[1, 2, 1]))];
        assert!(!fits(twice), "an update was done twice");
        // The hint is only a hint: here it is wrong, and the search turns back.
        let mut wrong = vec![add(1, 9, 1), add(2, 10, 2), read(11, 12, Some(&[2, 1]))];
        wrong[1].hint = 5;
        assert!(check(&mut wrong).unwrap() > 0);
    }

    #[test]
    fn what_nobody_knows_happened_or_didnt_or_happened_later() {
        let unknown = |bytes: &[u8]| vec![write(1, None, 1), write(2, Some(3), 2), read(8, 9, Some(bytes))];
        assert!(fits(unknown(&[1])) && fits(unknown(&[2])));
        let gone = [unknown(&[1]), vec![read(10, 11, Some(&[2]))]].concat();
        assert!(!fits(gone), "what was shown went again");
    }
}
