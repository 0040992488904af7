//! Which serving replica answers a read.
//!
//! The power of two choices (Mitzenmacher 2001): of two replicas drawn at random, the one with fewer requests under way.
//! Nearly as good as asking the least loaded of all, and it doesn't make every client run to the same one.

use super::{OwnerIndex, Replica, Rng};

/// A set of positions in a chain, `limits::MEMBERS_MAX` at most.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Positions(u8);

impl Positions {
    pub const NONE: Self = Self(0);

    pub fn insert(&mut self, position: usize) {
        self.0 |= 1 << position;
    }

    pub fn contains(self, position: usize) -> bool {
        self.0 & (1 << position) != 0
    }

    /// How many of the first `of` positions are not in it.
    pub fn missing(self, of: usize) -> usize {
        (0..of).filter(|position| !self.contains(*position)).count()
    }
}

/// The position of the replica to ask: not one to `avoid` unless there is no other. `None` if none serves.
#[inline]
pub fn choose(
    replicas: &[Replica],
    avoid: Positions,
    load: impl Fn(OwnerIndex) -> u32,
    rng: &mut Rng,
) -> Option<usize> {
    match replicas.len() {
        0 => None,
        1 => Some(0),
        len => {
            let good = avoid.missing(len);
            let (avoid, good) = if good == 0 { (Positions::default(), len) } else { (avoid, good) };
            let nth = |n: u32| {
                (0..len).filter(|position| !avoid.contains(*position)).nth(n as usize).unwrap_or_default()
            };
            let first = rng.below(good as u32);
            if good == 1 {
                return Some(nth(first));
            }
            let second = (first + 1 + rng.below(good as u32 - 1)) % good as u32;
            let (first, second) = (nth(first), nth(second));
            Some(if load(replicas[second].owner) < load(replicas[first].owner) { second } else { first })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::TargetId;

    fn replicas(n: u32) -> Vec<Replica> {
        (0..n).map(|at| Replica { target: TargetId(at.into()), owner: OwnerIndex(at) }).collect()
    }

    fn avoiding(positions: &[usize]) -> Positions {
        let mut out = Positions::default();
        positions.iter().for_each(|position| out.insert(*position));
        out
    }

    fn counts(n: u32, avoid: &[usize], load: impl Fn(OwnerIndex) -> u32) -> Vec<u32> {
        let mut rng = Rng::new(42);
        let mut seen = vec![0; n as usize];
        for _ in 0..3000 {
            seen[choose(&replicas(n), avoiding(avoid), &load, &mut rng).unwrap()] += 1;
        }
        seen
    }

    #[test]
    fn equal_loads_are_spread_evenly() {
        assert!(counts(3, &[], |_| 5).iter().all(|count| (850..1150).contains(count)));
    }

    #[test]
    fn the_busiest_is_never_chosen_and_the_idlest_most() {
        let seen = counts(3, &[], |owner| owner.0);
        assert!(seen[2] == 0 && seen[0] > seen[1] && seen[1] > 0, "{seen:?}");
    }

    #[test]
    fn what_failed_is_avoided_while_there_is_another() {
        assert_eq!(counts(3, &[0, 2], |owner| 2 * owner.0), [0, 3000, 0]);
        assert!(
            counts(2, &[0, 1], |_| 0).iter().all(|count| *count > 0),
            "all failed: any may be asked again"
        );
        assert_eq!(choose(&[], Positions::default(), |_| 0, &mut Rng::new(1)), None);
        assert_eq!(choose(&replicas(1), avoiding(&[0]), |_| 0, &mut Rng::new(1)), Some(0));
    }
}
