//! Histories altered on purpose: a check that passes them proves nothing.

use crate::record::{History, ReadOp, WriteOp};

pub const KINDS: [&str; 4] = ["stale", "lost", "nowhere", "early"];

/// Alters one thing. `None`: there is nothing in this history that could be altered so.
pub fn alter(history: &mut History, kind: &str) -> Option<()> {
    match kind {
        // A read returns what had been overwritten before it began.
        "stale" => {
            let (read, old) = (0..history.reads.len()).rev().find_map(|at| {
                let read = history.reads[at];
                overwritten_before(history, &read).map(|old| (at, old))
            })?;
            history.reads[read].id = old;
        }
        // In the end there is an older value, whoever looks.
        "lost" => {
            let last = *history.reads.iter().max_by_key(|read| read.start)?;
            let old = overwritten_before(history, &last)?;
            for read in history.reads.iter_mut().filter(|read| read.key == last.key && read.id == last.id) {
                read.id = old;
            }
        }
        "nowhere" => history.reads.last_mut()?.id = u64::MAX,
        // A read returns what was only written afterwards.
        "early" => {
            let (read, later) = (0..history.reads.len()).find_map(|at| {
                let read = history.reads[at];
                let later = |write: &&WriteOp| write.key == read.key && write.start > read.end;
                history.writes.iter().find(later).map(|write| (at, write.id))
            })?;
            history.reads[read].id = later;
        }
        _ => return None,
    }
    Some(())
}

/// A value that an acknowledged write had replaced, acknowledged itself, before the one that this read saw was written.
fn overwritten_before(history: &History, read: &ReadOp) -> Option<u64> {
    let seen = history.writes.iter().find(|write| write.id == read.id && write.end.is_some())?;
    if seen.end? > read.start {
        return None;
    }
    let older = history.writes.iter().filter(|write| write.key == read.key);
    older.filter(|write| write.end.is_some_and(|end| end < seen.start)).map(|write| write.id).next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::check;

    #[test]
    fn each_canary_is_caught() {
        let mut history = History::default();
        for id in 1..=5 {
            let start = id * 100;
            history.writes.push(WriteOp { key: 3, id, start, end: Some(start + 10) });
            history.reads.push(ReadOp { key: 3, id, start: start + 20, end: start + 30 });
        }
        assert!(check(&history).is_empty());
        for kind in KINDS {
            let mut altered = history.clone();
            alter(&mut altered, kind).unwrap();
            assert!(!check(&altered).is_empty(), "{kind}");
        }
    }
}
