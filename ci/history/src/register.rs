//! Whether each key behaved as one register: some order of all operations exists that agrees with time and in which every
//! read returns the value written last.
//!
//! Values are unique, so it is known which write a read saw, and the question has a fast answer (Gibbons and Korach, 1997). All
//! operations of one value stand together in that order. Of them take `f`, the least end, and `s`, the greatest start. If
//! `f < s` the value was there for all of `f..s` (a *forward* zone); otherwise all of its operations overlap in `s..f`, and it may be
//! put anywhere in there (a *backward* zone). The order exists exactly if no two forward zones overlap, no backward zone lies within a
//! forward one, and no read ended before its write began. A write that nobody acknowledged counts if somebody read it, and never ends.

use crate::record::{History, ReadOp, WriteOp};
use std::collections::{BTreeMap, HashMap};

/// The operations of one value.
#[derive(Clone, Copy, Debug)]
struct Zone {
    id: u64,
    /// The least end.
    f: u64,
    /// The greatest start.
    s: u64,
}

/// What is wrong with a history; nothing if this is empty.
pub fn check(history: &History) -> Vec<String> {
    let mut problems: Vec<String> = history
        .altered
        .iter()
        .map(|read| format!("key {}: a read at {}..{} returned {}", read.key, read.start, read.end, read.why))
        .collect();
    let mut keys: BTreeMap<u32, (Vec<WriteOp>, Vec<ReadOp>)> = BTreeMap::new();
    for write in &history.writes {
        keys.entry(write.key).or_default().0.push(*write);
    }
    for read in &history.reads {
        keys.entry(read.key).or_default().1.push(*read);
    }
    for (key, (writes, reads)) in &keys {
        let found = of_key(writes, reads);
        problems.extend(found.into_iter().map(|problem| format!("key {key}: {problem}")));
        problems.extend(lost(writes, reads).map(|problem| format!("key {key}: {problem}")));
    }
    problems
}

fn of_key(writes: &[WriteOp], reads: &[ReadOp]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut zones: HashMap<u64, Zone> = HashMap::new();
    let by_id: HashMap<u64, &WriteOp> = writes.iter().map(|write| (write.id, write)).collect();
    if by_id.len() != writes.len() {
        problems.push("two writes of one value: the history is no good".into());
    }
    for write in writes {
        let zone = Zone { id: write.id, f: write.end.unwrap_or(u64::MAX), s: write.start };
        zones.insert(write.id, zone);
    }
    let mut read_ids: HashMap<u64, ()> = HashMap::new();
    for read in reads {
        let Some(write) = by_id.get(&read.id) else {
            problems.push(format!(
                "a read at {}..{} returned {}, which nobody wrote",
                read.start, read.end, read.id
            ));
            continue;
        };
        if read.end < write.start {
            let ReadOp { id, end, .. } = read;
            problems.push(format!(
                "a read that ended at {end} returned {id}, of which the write began at {}",
                write.start
            ));
        }
        read_ids.insert(read.id, ());
        if let Some(zone) = zones.get_mut(&read.id) {
            zone.f = zone.f.min(read.end);
            zone.s = zone.s.max(read.start);
        }
    }
    zones.retain(|id, _| read_ids.contains_key(id) || by_id[id].end.is_some());
    problems.extend(order(zones.into_values().collect()));
    problems
}

/// Forward zones that overlap, and backward ones within a forward one.
fn order(zones: Vec<Zone>) -> Vec<String> {
    let mut problems = Vec::new();
    let (mut forward, backward): (Vec<Zone>, Vec<Zone>) = zones.into_iter().partition(|zone| zone.f < zone.s);
    forward.sort_by_key(|zone| zone.f);
    let mut last: Option<Zone> = None;
    for zone in &forward {
        if let Some(before) = last.filter(|before| zone.f < before.s) {
            problems.push(format!(
                "value {} was there from {} to {}, and value {} from {} to {}: one of them was read when it had been overwritten",
                before.id, before.f, before.s, zone.id, zone.f, zone.s
            ));
        }
        if last.is_none_or(|before| before.s < zone.s) {
            last = Some(*zone);
        }
    }
    for zone in &backward {
        // If forward zones don't overlap, only the last one that began before can contain it.
        let at = forward.partition_point(|other| other.f < zone.s);
        if let Some(other) = at.checked_sub(1).map(|at| forward[at]).filter(|other| zone.f < other.s) {
            problems.push(format!(
                "value {} was written within {}..{}, while value {} was there from {} to {}: it was lost, or older bytes came back",
                zone.id, zone.s, zone.f, other.id, other.f, other.s
            ));
        }
    }
    problems
}

/// The last reads of a key must return a write that no acknowledged write came after.
fn lost(writes: &[WriteOp], reads: &[ReadOp]) -> Option<String> {
    let last = reads.iter().max_by_key(|read| read.start)?;
    let seen = writes.iter().find(|write| write.id == last.id)?;
    let ended = seen.end?;
    let later = writes.iter().filter(|write| write.end.is_some_and(|end| end < last.start));
    let later = later.filter(|write| write.start > ended).max_by_key(|write| write.start)?;
    Some(format!(
        "the acknowledged write of {} ({}..{}) is lost: in the end there is {}, which was acknowledged at {ended}",
        later.id,
        later.start,
        later.end.unwrap_or_default(),
        seen.id
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes as (id, start, end; 0: never told), reads as (id, start, end), all of key 1.
    fn judge(writes: &[(u64, u64, u64)], reads: &[(u64, u64, u64)]) -> Vec<String> {
        let mut history = History::default();
        for (id, start, end) in writes {
            let end = Some(*end).filter(|end| *end > 0);
            history.writes.push(WriteOp { key: 1, id: *id, start: *start, end });
        }
        for (id, start, end) in reads {
            history.reads.push(ReadOp { key: 1, id: *id, start: *start, end: *end });
        }
        check(&history)
    }

    fn is_wrong(writes: &[(u64, u64, u64)], reads: &[(u64, u64, u64)], why: &str) {
        let found = judge(writes, reads);
        assert!(found.iter().any(|problem| problem.contains(why)), "{found:?}");
    }

    #[test]
    fn order_in_time_is_right() {
        assert!(judge(&[(1, 0, 10), (2, 20, 30)], &[(1, 12, 18), (2, 31, 40), (2, 50, 51)]).is_empty());
    }

    #[test]
    fn what_overlaps_may_be_in_either_order() {
        let writes = [(1, 0, 10), (2, 20, 40), (3, 25, 45)];
        assert!(judge(&writes, &[(2, 50, 60)]).is_empty());
        assert!(judge(&writes, &[(3, 50, 60)]).is_empty());
        assert!(judge(&writes, &[(1, 21, 39), (2, 22, 41), (3, 46, 50)]).is_empty());
        // Seen by one reader before the acknowledgment, while another began earlier and ends later with the old one.
        assert!(judge(&[(1, 0, 10), (2, 20, 60)], &[(2, 30, 35), (1, 25, 50)]).is_empty());
    }

    #[test]
    fn a_stale_read_is_found() {
        is_wrong(&[(1, 0, 10), (2, 20, 30), (3, 60, 70)], &[(1, 40, 50)], "was written within 20..30");
        is_wrong(&[(1, 0, 10), (2, 20, 30)], &[(1, 40, 50), (2, 60, 70)], "overwritten");
        is_wrong(&[(1, 0, 10), (2, 20, 30)], &[(2, 32, 35), (1, 40, 50)], "overwritten");
    }

    #[test]
    fn what_was_shown_may_not_go_back() {
        // The write isn't acknowledged, but it was shown; after that the old value may not be.
        is_wrong(&[(1, 0, 10), (2, 20, 90)], &[(2, 30, 40), (1, 50, 60), (2, 70, 80)], "overwritten");
        is_wrong(&[(1, 0, 10), (2, 20, 0)], &[(2, 30, 40), (1, 50, 60), (2, 70, 80)], "overwritten");
    }

    #[test]
    fn a_lost_write_is_found() {
        is_wrong(&[(1, 0, 10), (2, 20, 30)], &[(1, 100, 110)], "is lost");
    }

    #[test]
    fn a_value_from_nowhere_is_found() {
        is_wrong(&[(1, 0, 10)], &[(7, 20, 30)], "nobody wrote");
        is_wrong(&[(1, 0, 10), (2, 50, 60)], &[(2, 20, 30)], "of which the write began at 50");
    }

    #[test]
    fn what_nobody_acknowledged_may_have_happened_or_not() {
        let writes = [(1, 0, 10), (2, 20, 0)];
        assert!(judge(&writes, &[(1, 100, 110)]).is_empty());
        assert!(judge(&writes, &[(2, 100, 110)]).is_empty());
        // Even late.
        assert!(judge(&writes, &[(1, 100, 110), (2, 120, 130)]).is_empty());
        is_wrong(&writes, &[(1, 100, 110), (2, 120, 130), (1, 140, 150)], "was written within 120..130");
    }

    #[test]
    fn altered_bytes_are_found() {
        let mut history = History::default();
        let why = String::from("only zeros");
        history.altered.push(crate::record::Failure { what: "read".into(), key: 1, start: 1, end: 2, why });
        assert_eq!(check(&history).len(), 1);
    }
}
