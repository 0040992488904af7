//! How long a chain didn't serve after something happened.

use crate::record::History;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What is looked at after an event, unless the next one comes earlier (nanoseconds).
const WINDOW: u64 = 15_000_000_000;

/// For each event `{"at": ns, "chains": [...], ...}` the same with `chains` told as
/// `{"chain": 3, "first_write_ms": ..., "still_ms": ..., "first_read_ms": ...}`: until the end of the first successful write (read) that
/// was begun after the event, and the longest time without the end of one; and with the same of syncs, of any file. `null`: none
/// came before the next event.
pub fn after(history: &History, blocks: u32, events: &[Value]) -> Vec<Value> {
    let chain = |key: u32| history.chains.get(&(key / blocks)).copied().unwrap_or(0);
    let mut writes: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
    for write in &history.writes {
        if let Some(end) = write.end {
            writes.entry(chain(write.key)).or_default().push((end, write.start));
        }
    }
    let mut reads: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
    for read in &history.reads {
        reads.entry(chain(read.key)).or_default().push((read.end, read.start));
    }
    let mut syncs = history.syncs.clone();
    syncs.sort_unstable();
    writes.values_mut().chain(reads.values_mut()).for_each(|all| all.sort_unstable());
    let time = |event: &Value| event["at"].as_u64().unwrap_or(0);
    let one = |(number, event): (usize, &Value)| {
        let at = time(event);
        let until = events.get(number + 1).map_or(at + WINDOW, |next| time(next).min(at + WINDOW));
        let of_chain = |id: &Value| {
            let id = id.as_u64().unwrap_or(0);
            let empty = Vec::new();
            let (writes, reads) = (writes.get(&id).unwrap_or(&empty), reads.get(&id).unwrap_or(&empty));
            json!({
                "chain": id, "first_write_ms": first(writes, at, until).map(ms), "first_read_ms": first(reads, at, until).map(ms),
                "still_ms": ms(still(writes, at, until)),
            })
        };
        let chains: Vec<Value> = event["chains"].as_array().into_iter().flatten().map(of_chain).collect();
        let mut told = event.clone();
        told["chains"] = chains.into();
        told["first_sync_ms"] = first(&syncs, at, until).map(ms).into();
        told["sync_still_ms"] = ms(still(&syncs, at, until)).into();
        told
    };
    events.iter().enumerate().map(one).collect()
}

fn ms(ns: u64) -> f64 {
    (ns / 1000) as f64 / 1000.0
}

/// Operations are (end, start), by their ends.
fn first(operations: &[(u64, u64)], at: u64, until: u64) -> Option<u64> {
    let from = operations.partition_point(|(end, _)| *end < at);
    let after = operations[from..].iter().take_while(|(end, _)| *end < until);
    after.filter(|(_, start)| *start > at).map(|(end, _)| end - at).next()
}

fn still(operations: &[(u64, u64)], at: u64, until: u64) -> u64 {
    let from = operations.partition_point(|(end, _)| *end < at);
    let (mut last, mut longest) = (at, 0);
    for (end, _) in operations[from..].iter().take_while(|(end, _)| *end < until) {
        longest = longest.max(end - last);
        last = *end;
    }
    // Nothing more until the end of what is known isn't stillness: the load may have ended.
    if last == at { until - at } else { longest }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::WriteOp;

    #[test]
    fn only_what_began_after_the_event_counts() {
        let mut history = History::default();
        history.chains.insert(0, 5);
        let ms = 1_000_000;
        for (id, (start, end)) in [(90, 101), (95, 900), (901, 950), (1400, 1410)].into_iter().enumerate() {
            history.writes.push(WriteOp { key: 1, id: id as u64, start: start * ms, end: Some(end * ms) });
        }
        let told = after(&history, 4, &[json!({"at": 100 * ms, "chains": [5, 6]})]);
        assert_eq!(told[0]["chains"][0]["first_write_ms"], 850.0);
        assert_eq!(told[0]["chains"][0]["still_ms"], 799.0);
        assert_eq!(told[0]["chains"][1]["first_write_ms"], Value::Null);
    }
}
