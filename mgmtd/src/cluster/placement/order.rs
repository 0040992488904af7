//! Which member of a chain comes first, and which chain comes first in the table.

use std::collections::VecDeque;

/// Orders the members of each chain so that every position (head, second, ...) falls on a node as often as any other
/// position does, to within one: so positions are as even over nodes as targets are. Position after position, one of
/// each chain's remaining members is chosen, then choices are shifted along paths of chains from nodes that have too
/// many to nodes that can take one. That always succeeds: choosing each with probability 1 / positions left would meet the
/// bounds, so a flow does, so an integral flow does.
pub fn order_members(sets: &[Vec<usize>], nodes: usize) -> Vec<Vec<usize>> {
    let mut rest: Vec<Vec<usize>> = sets.to_vec();
    let mut ordered: Vec<Vec<usize>> = vec![Vec::new(); sets.len()];
    while rest.iter().any(|set| !set.is_empty()) {
        let chosen = Position::new(&rest, nodes).choose();
        for ((rest, ordered), chosen) in rest.iter_mut().zip(&mut ordered).zip(chosen) {
            rest.retain(|node| *node != chosen);
            ordered.push(chosen);
        }
    }
    ordered
}

/// The choice of one member from each chain.
struct Position<'a> {
    sets: &'a [Vec<usize>],
    chosen: Vec<usize>,
    /// By node: how often chosen, and how often it should be.
    count: Vec<usize>,
    low: Vec<usize>,
    high: Vec<usize>,
}

impl<'a> Position<'a> {
    fn new(sets: &'a [Vec<usize>], nodes: usize) -> Self {
        let mut degree = vec![0usize; nodes];
        sets.iter().flatten().for_each(|node| degree[*node] += 1);
        let positions = sets.first().map_or(1, Vec::len);
        let (low, high) =
            degree.iter().map(|degree| (degree / positions, degree.div_ceil(positions))).unzip();
        let mut count = vec![0; nodes];
        let mut chosen = Vec::with_capacity(sets.len());
        for set in sets {
            let Some(node) = set.iter().copied().min_by_key(|node| count[*node]) else {
                unreachable!("all chains have as many members")
            };
            count[node] += 1;
            chosen.push(node);
        }
        Self { sets, chosen, count, low, high }
    }

    fn choose(mut self) -> Vec<usize> {
        while self.shift(
            |this, node| this.count[node] > this.high[node],
            |this, node| this.count[node] < this.high[node],
        ) {}
        while self.shift(
            |this, node| this.count[node] > this.low[node],
            |this, node| this.count[node] < this.low[node],
        ) {}
        let fits = |node: usize| (self.low[node]..=self.high[node]).contains(&self.count[node]);
        assert!((0..self.count.len()).all(fits), "an even choice always exists");
        self.chosen
    }

    /// Takes one choice off a node that `gives` and hands it, along a shortest path of chains, to one that `takes`.
    fn shift(&mut self, gives: fn(&Self, usize) -> bool, takes: fn(&Self, usize) -> bool) -> bool {
        let nodes = self.count.len();
        let mut chains_of: Vec<Vec<usize>> = vec![Vec::new(); nodes];
        self.chosen.iter().enumerate().for_each(|(chain, node)| chains_of[*node].push(chain));
        // For each node reached: the chain whose choice would move to it, and the node that it would move from.
        let mut came: Vec<Option<(usize, usize)>> = vec![None; nodes];
        let mut queue: VecDeque<usize> = (0..nodes).filter(|node| gives(self, *node)).collect();
        let mut reached: Vec<bool> = (0..nodes).map(|node| gives(self, node)).collect();
        while let Some(node) = queue.pop_front() {
            if takes(self, node) {
                let mut at = node;
                while let Some((chain, previous)) = came[at] {
                    self.chosen[chain] = at;
                    at = previous;
                }
                self.count[node] += 1;
                self.count[at] -= 1;
                return true;
            }
            for chain in &chains_of[node] {
                for next in &self.sets[*chain] {
                    if !std::mem::replace(&mut reached[*next], true) {
                        came[*next] = Some((*chain, node));
                        queue.push_back(*next);
                    }
                }
            }
        }
        false
    }
}

/// How many chains of one head are compared for the next place in the table.
const LOOK_AHEAD: usize = 16;

/// Orders the chains so that heads take turns, and neighbours share few nodes: a file over few chains uses many nodes.
pub fn order_table(chains: Vec<Vec<usize>>, nodes: usize) -> Vec<Vec<usize>> {
    let mut by_head: Vec<VecDeque<Vec<usize>>> = vec![VecDeque::new(); nodes];
    let total = chains.len();
    for chain in chains {
        by_head[chain[0]].push_back(chain);
    }
    let mut table: Vec<Vec<usize>> = Vec::with_capacity(total);
    let mut uses = vec![0u32; nodes];
    while table.len() < total {
        for waiting in &mut by_head {
            let last = table.last();
            let score = |chain: &Vec<usize>| {
                let shared = chain.iter().filter(|node| last.is_some_and(|last| last.contains(node))).count();
                let used: u32 = chain.iter().map(|node| uses[*node]).sum();
                (used, shared)
            };
            let candidates = waiting.iter().take(LOOK_AHEAD).enumerate();
            let best = candidates.min_by_key(|(_, chain)| score(chain)).map(|(position, _)| position);
            if let Some(chain) = best.and_then(|position| waiting.remove(position)) {
                chain.iter().for_each(|node| uses[*node] += 1);
                table.push(chain);
            }
        }
    }
    table
}
