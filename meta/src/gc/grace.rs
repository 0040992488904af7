//! How long an inode without names is left alone.
//!
//! Whoever opened it at the moment when its name was taken, and has not yet heard of that, can still ask to hold it. The time counts
//! from when this collector first saw it in the queue, by this server's clock alone: the clock of the server that took the name away may
//! differ by more than the grace.

use corefs_wire::InodeId;
use std::collections::HashMap;
use std::time::Duration;

/// Inodes that are remembered at once, at some 50 bytes each. Others come when there is room.
const REMEMBERED_MAX: usize = 1 << 20;

/// Since when the inodes of the queue have been seen in it.
#[derive(Clone, Default, Debug)]
pub struct Grace {
    seen: HashMap<InodeId, Seen>,
    /// How often the queue was gone through.
    pass: u64,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Nanoseconds, by this server's clock.
    since: i64,
    pass: u64,
}

impl Grace {
    /// Whether `id`, which is in the queue at `now` (nanoseconds), has been there for `grace`. One that is over begins anew if it is asked
    /// for again.
    pub fn is_over(&mut self, id: InodeId, now: i64, grace: Duration) -> bool {
        if grace.is_zero() {
            return true;
        }
        let Some(seen) = self.seen.get_mut(&id) else {
            if self.seen.len() < REMEMBERED_MAX {
                self.seen.insert(id, Seen { since: now, pass: self.pass });
            }
            return false;
        };
        seen.pass = self.pass;
        if now < seen.since {
            // The clock was put back.
            seen.since = now;
            return false;
        }
        let over = u128::from(now.abs_diff(seen.since)) >= grace.as_nanos();
        if over {
            self.seen.remove(&id);
        }
        over
    }

    /// The queue was gone through: what wasn't seen in it isn't there any more.
    pub fn passed(&mut self) {
        let pass = self.pass;
        self.seen.retain(|_, seen| seen.pass == pass);
        // After a great removal what is left is small again.
        if self.seen.capacity() / 8 > self.seen.len().max(1024) {
            self.seen.shrink_to(2 * self.seen.len());
        }
        self.pass += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_nanos(100);

    #[test]
    fn it_counts_from_when_an_inode_was_first_seen() {
        let mut grace = Grace::default();
        assert!(grace.is_over(InodeId(1), 5000, Duration::ZERO));
        assert!(!grace.is_over(InodeId(1), 5000, GRACE));
        assert!(!grace.is_over(InodeId(2), 5050, GRACE));
        assert!(!grace.is_over(InodeId(1), 5099, GRACE));
        assert!(grace.is_over(InodeId(1), 5100, GRACE));
        assert!(!grace.is_over(InodeId(2), 5149, GRACE));
        // It was held then, and is asked for again.
        assert!(!grace.is_over(InodeId(1), 5150, GRACE));
        assert!(grace.is_over(InodeId(1), 5250, GRACE));
    }

    #[test]
    fn a_clock_that_is_put_back_lengthens_it() {
        let mut grace = Grace::default();
        assert!(!grace.is_over(InodeId(1), 5000, GRACE));
        assert!(!grace.is_over(InodeId(1), 10, GRACE));
        assert!(!grace.is_over(InodeId(1), 109, GRACE));
        assert!(grace.is_over(InodeId(1), 110, GRACE));
    }

    #[test]
    fn what_has_left_the_queue_is_forgotten() {
        let mut grace = Grace::default();
        assert!(!grace.is_over(InodeId(1), 0, GRACE));
        assert!(!grace.is_over(InodeId(2), 0, GRACE));
        grace.passed();
        assert!(!grace.is_over(InodeId(2), 50, GRACE));
        grace.passed();
        assert_eq!(grace.seen.keys().collect::<Vec<_>>(), [&InodeId(2)]);
        assert!(grace.is_over(InodeId(2), 100, GRACE));
    }

    #[test]
    fn a_great_removal_leaves_little_behind() {
        let mut grace = Grace::default();
        for id in 0..100_000 {
            assert!(!grace.is_over(InodeId(id), 0, GRACE));
        }
        assert!((0..100_000).all(|id| grace.is_over(InodeId(id), 100, GRACE)));
        grace.passed();
        assert!(grace.seen.capacity() < 10_000, "{}", grace.seen.capacity());
    }
}
