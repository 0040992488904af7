//! Hill climbing on which nodes share chains: members of two chains change places while that helps.

/// A domain that occurs twice in a chain weighs more than any difference of pairings.
const REPEAT_WEIGHT: i64 = 1 << 20;
/// Exchanges looked at before the result is good enough: keeps the largest cluster within about a second.
const EXCHANGES_MAX: u64 = 5_000_000;

/// How many chains each two nodes share.
pub struct Pairs {
    nodes: usize,
    counts: Vec<u32>,
}

impl Pairs {
    pub fn new(nodes: usize) -> Self {
        Self { nodes, counts: vec![0; nodes * nodes] }
    }

    pub fn count(&self, a: usize, b: usize) -> u32 {
        self.counts[a * self.nodes + b]
    }

    fn change(&mut self, a: usize, b: usize, delta: i32) {
        for at in [a * self.nodes + b, b * self.nodes + a] {
            self.counts[at] = self.counts[at].strict_add_signed(delta);
        }
    }

    /// Counts a chain of these nodes.
    pub fn add(&mut self, set: &[usize]) {
        for (at, a) in set.iter().enumerate() {
            for b in &set[at + 1..] {
                self.change(*a, *b, 1);
            }
        }
    }
}

/// Exchanges members between chains until no exchange lowers the sum of squared pairings plus the weighted domain
/// repeats, or the budget is used up. Each node stays in as many chains as it was, and never twice in one.
pub fn exchange(sets: &mut [Vec<usize>], domains: &[usize]) {
    if sets.iter().all(|set| set.len() < 2) {
        return;
    }
    let mut pairs = Pairs::new(domains.len());
    sets.iter().for_each(|set| pairs.add(set));
    let mut budget = EXCHANGES_MAX;
    loop {
        let mut improved = false;
        for first in 0..sets.len() {
            for second in first + 1..sets.len() {
                let Some(left) = budget.checked_sub((sets[first].len() * sets[second].len()) as u64) else {
                    return;
                };
                budget = left;
                improved |= exchange_two(sets, first, second, domains, &mut pairs);
            }
        }
        if !improved {
            return;
        }
    }
}

/// Makes the first helpful exchange between two chains.
fn exchange_two(
    sets: &mut [Vec<usize>],
    first: usize,
    second: usize,
    domains: &[usize],
    pairs: &mut Pairs,
) -> bool {
    for a in 0..sets[first].len() {
        for b in 0..sets[second].len() {
            let (x, y) = (sets[first][a], sets[second][b]);
            if sets[first].contains(&y) || sets[second].contains(&x) {
                continue;
            }
            if gain(&sets[first], &sets[second], x, y, domains, pairs) <= 0 {
                continue;
            }
            for other in others(&sets[first], x) {
                pairs.change(x, other, -1);
                pairs.change(y, other, 1);
            }
            for other in others(&sets[second], y) {
                pairs.change(y, other, -1);
                pairs.change(x, other, 1);
            }
            (sets[first][a], sets[second][b]) = (y, x);
            return true;
        }
    }
    false
}

fn others(set: &[usize], without: usize) -> impl Iterator<Item = usize> {
    set.iter().copied().filter(move |node| *node != without)
}

/// By how much the cost falls when `x` of `first` and `y` of `second` change places.
fn gain(first: &[usize], second: &[usize], x: usize, y: usize, domains: &[usize], pairs: &Pairs) -> i64 {
    let mut gain = 0;
    let mut leave = |a: usize, b: usize| {
        let count = i64::from(pairs.count(a, b));
        gain += 2 * count - 1 + if domains[a] == domains[b] { REPEAT_WEIGHT } else { 0 };
    };
    others(first, x).for_each(|other| leave(x, other));
    others(second, y).for_each(|other| leave(y, other));
    let mut enter = |a: usize, b: usize| {
        let count = i64::from(pairs.count(a, b));
        gain -= 2 * count + 1 + if domains[a] == domains[b] { REPEAT_WEIGHT } else { 0 };
    };
    others(first, x).for_each(|other| enter(y, other));
    others(second, y).for_each(|other| enter(x, other));
    // With a member of both chains x and y share as many chains as before. The sums above took each such pairing away
    // (2c - 1) and added it again (2c + 1) without seeing the first when doing the second: two too little for x, two for y.
    gain += 4 * others(first, x).filter(|node| second.contains(node)).count() as i64;
    gain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(sets: &[Vec<usize>], domains: &[usize]) -> i64 {
        let mut pairs = Pairs::new(domains.len());
        sets.iter().for_each(|set| pairs.add(set));
        let mut cost = 0;
        for a in 0..domains.len() {
            for b in a + 1..domains.len() {
                cost += i64::from(pairs.count(a, b)).pow(2);
            }
        }
        let repeats = |set: &Vec<usize>| {
            let pair = |(at, a): (usize, &usize)| {
                set[at + 1..].iter().filter(|b| domains[**b] == domains[*a]).count()
            };
            set.iter().enumerate().map(pair).sum::<usize>() as i64
        };
        cost + REPEAT_WEIGHT * sets.iter().map(repeats).sum::<i64>()
    }

    /// The gain is computed from differences; here against the cost itself.
    #[test]
    fn the_gain_is_the_fall_of_the_cost() {
        let domains = [0, 0, 1, 1, 2, 2, 3];
        let sets = vec![vec![0, 1, 2], vec![2, 3, 4], vec![0, 1, 5], vec![4, 5, 6], vec![1, 2, 6]];
        let mut pairs = Pairs::new(domains.len());
        sets.iter().for_each(|set| pairs.add(set));
        let mut tried = 0;
        for first in 0..sets.len() {
            for second in 0..sets.len() {
                for a in 0..3 {
                    for b in 0..3 {
                        let (x, y) = (sets[first][a], sets[second][b]);
                        if first == second || sets[first].contains(&y) || sets[second].contains(&x) {
                            continue;
                        }
                        let mut after = sets.clone();
                        (after[first][a], after[second][b]) = (y, x);
                        let expected = cost(&sets, &domains) - cost(&after, &domains);
                        let found = gain(&sets[first], &sets[second], x, y, &domains, &pairs);
                        assert_eq!(found, expected, "{first} {second} {x} {y}");
                        tried += 1;
                    }
                }
            }
        }
        assert!(tried > 50);
    }
}
