//! Paths that were proved and failed all the same. Pure: the clock is the caller's.
//!
//! What proves a path is short and happens once; a path may lose what follows, or work for a moment only. Whoever connects would go by it again and again, and
//! never get an answer. So an address whose queue pairs fail several times in a row, before anything was answered, is left to TCP for a while.

use crate::address::Address;
use std::time::{Duration, Instant};

/// So many failures within the time are too many.
const FAILURES: u32 = 3;
const WITHIN: Duration = Duration::from_secs(60);
/// How long TCP is used then.
const REST: Duration = Duration::from_secs(60);
/// Addresses that are remembered; of more, the oldest is forgotten.
const REMEMBERED: usize = 256;

struct Record {
    address: Address,
    /// The first failure of those that count.
    since: Instant,
    failures: u32,
    /// It is left to TCP.
    until: Option<Instant>,
}

#[derive(Default)]
pub struct Distrust(Vec<Record>);

impl Distrust {
    /// A queue pair to this address failed before anything was answered. `true` if TCP is used from now on.
    pub fn failed(&mut self, address: &Address, now: Instant) -> bool {
        self.0.retain(|record| match record.until {
            Some(until) => now < until,
            None => now < record.since + WITHIN,
        });
        let known = self.0.iter_mut().find(|record| record.address == *address);
        if let Some(record) = known {
            record.failures += 1;
            let enough = record.failures >= FAILURES && record.until.is_none();
            if enough {
                record.until = Some(now + REST);
            }
            return enough;
        }
        if self.0.len() == REMEMBERED {
            self.0.remove(0);
        }
        self.0.push(Record { address: address.clone(), since: now, failures: 1, until: None });
        false
    }

    /// Whether TCP is to be used.
    pub fn rests(&self, address: &Address, now: Instant) -> bool {
        let known = self.0.iter().find(|record| record.address == *address);
        known.and_then(|record| record.until).is_some_and(|until| now < until)
    }

    /// Something was answered: the path works.
    pub fn worked(&mut self, address: &Address) {
        if !self.0.is_empty() {
            self.0.retain(|record| record.address != *address || record.until.is_some());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_again_and_again_is_left_to_tcp_for_a_while() {
        let (bad, good): (Address, Address) = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:1".parse().unwrap());
        let (mut distrust, start) = (Distrust::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!distrust.failed(&bad, at(0)) && !distrust.failed(&bad, at(10)));
        assert!(!distrust.rests(&bad, at(11)));
        assert!(distrust.failed(&bad, at(20)), "the third time is said");
        assert!(!distrust.failed(&bad, at(21)), "and only once");
        assert!(distrust.rests(&bad, at(79)) && !distrust.rests(&good, at(79)));
        assert!(!distrust.rests(&bad, at(80)), "then it is tried again");
        assert!(!distrust.failed(&bad, at(81)) && !distrust.rests(&bad, at(81)), "and begins anew");
    }

    #[test]
    fn failures_that_are_far_apart_or_have_an_answer_between_them_are_forgiven() {
        let address: Address = "10.0.0.1:1".parse().unwrap();
        let (mut distrust, start) = (Distrust::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for minute in 0..10 {
            assert!(!distrust.failed(&address, at(40 * minute)), "{minute}");
        }
        let mut distrust = Distrust::default();
        for second in 0..10 {
            assert!(!distrust.failed(&address, at(second)), "{second}");
            distrust.worked(&address);
        }
        for n in 0..1000u16 {
            distrust.failed(&Address::Tcp(([127, 0, 0, 1], n).into()), at(2000));
        }
        assert!(distrust.0.len() <= REMEMBERED);
    }
}
