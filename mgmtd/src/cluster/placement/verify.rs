//! What a placement is worth, computed from the placement alone.

use super::{PlannedChain, Room, number_domains, quota};
use corefs_wire::{Error, ErrorCode, Result};
use std::collections::BTreeMap;
use std::fmt;

/// The smallest and the largest of some counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Span {
    pub min: u64,
    pub max: u64,
}

impl Span {
    /// Of no counts at all: 0 to 0.
    fn of(counts: impl IntoIterator<Item = u64>) -> Self {
        let start = None::<Self>;
        let widen = |span: Option<Self>, count: u64| {
            let span = span.unwrap_or(Self { min: count, max: count });
            Some(Self { min: span.min.min(count), max: span.max.max(count) })
        };
        counts.into_iter().fold(start, widen).unwrap_or(Self { min: 0, max: 0 })
    }

    pub fn gap(&self) -> u64 {
        self.max - self.min
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min)
        } else {
            write!(f, "{} to {}", self.min, self.max)
        }
    }
}

/// How evenly a placement spreads.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Imbalance {
    pub chains: usize,
    /// Targets of a node.
    pub targets: Span,
    /// Of each position in a chain, the head's first: how often it falls on a node.
    pub positions: Vec<Span>,
    /// Chains that two nodes share.
    pub pairs: Span,
    /// Targets of a slice: the node where they differ most.
    pub slices: Span,
    /// Replicas that share the domain of an earlier replica of their chain.
    pub domain_repeats: u64,
}

impl fmt::Display for Imbalance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} chains; a node has {} targets, heads ", self.chains, self.targets)?;
        for (at, position) in self.positions.iter().enumerate() {
            let between = ["", ", then "][usize::from(at > 0)];
            write!(f, "{between}{position}")?;
        }
        write!(f, "; two nodes share {} chains; a slice has {} targets", self.pairs, self.slices)?;
        if self.domain_repeats > 0 {
            write!(f, "; {} replicas share a domain with another of their chain", self.domain_repeats)?;
        }
        Ok(())
    }
}

/// Checks the rules (`Internal` naming the one that is broken) and measures the aims.
pub fn verify(rooms: &[Room], replicas: usize, plan: &[PlannedChain]) -> Result<Imbalance> {
    let broken = |what: String| Err(Error::new(ErrorCode::Internal, format!("placement: {what}")));
    let mut targets = vec![0u64; rooms.len()];
    for (index, chain) in plan.iter().enumerate() {
        if chain.len() != replicas {
            return broken(format!("chain {index} has {} replicas, not {replicas}", chain.len()));
        }
        for (position, replica) in chain.iter().enumerate() {
            let Some(room) = rooms.get(replica.room) else {
                return broken(format!("chain {index} is on a node that isn't there"));
            };
            if !room.slices.contains(&replica.slice) {
                return broken(format!(
                    "chain {index} is on {} which {} doesn't offer",
                    replica.slice, room.node
                ));
            }
            if chain[..position].iter().any(|other| other.room == replica.room) {
                return broken(format!("chain {index} has two replicas on {}", room.node));
            }
            targets[replica.room] += 1;
        }
    }
    let out = measure(rooms, plan);
    let domains = number_domains(rooms);
    let enough = quota::enough(&domains, replicas);
    if enough && out.domain_repeats > 0 {
        return broken(format!("there are domains for all replicas: {out}"));
    }
    if out.slices.gap() > 1
        || !are_even(&targets, &domains, if enough { plan.len() as u64 } else { u64::MAX })
    {
        return broken(format!("shares differ: {out}"));
    }
    Ok(out)
}

/// Measures the aims, of any chains: also of a cluster that is changing. What is on no room's slices counts for nothing.
pub fn measure(rooms: &[Room], chains: &[PlannedChain]) -> Imbalance {
    let longest = chains.iter().map(Vec::len).max().unwrap_or(0);
    let mut targets = vec![0u64; rooms.len()];
    let mut positions = vec![vec![0u64; rooms.len()]; longest];
    let mut pairs = BTreeMap::new();
    let mut slices: Vec<BTreeMap<_, u64>> =
        rooms.iter().map(|room| room.slices.iter().map(|slice| (*slice, 0)).collect()).collect();
    let mut domain_repeats = 0;
    for chain in chains {
        for (position, replica) in chain.iter().enumerate() {
            let on_slice = slices.get_mut(replica.room).and_then(|slices| slices.get_mut(&replica.slice));
            let Some(on_slice) = on_slice else { continue };
            *on_slice += 1;
            targets[replica.room] += 1;
            positions[position][replica.room] += 1;
            let before = &chain[..position];
            for other in before {
                let pair = (other.room.min(replica.room), other.room.max(replica.room));
                *pairs.entry(pair).or_insert(0u64) += 1;
            }
            let domain = &rooms[replica.room].domain;
            let same_domain = |other: &super::Replica| {
                rooms.get(other.room).is_some_and(|other| !domain.is_empty() && other.domain == *domain)
            };
            domain_repeats += u64::from(before.iter().any(same_domain));
        }
    }
    Imbalance {
        chains: chains.len(),
        targets: Span::of(targets.iter().copied()),
        positions: positions.into_iter().map(Span::of).collect(),
        pairs: Span::of(all_pairs(rooms.len()).map(|pair| pairs.get(&pair).copied().unwrap_or(0))),
        slices: slices
            .iter()
            .map(|slices| Span::of(slices.values().copied()))
            .max_by_key(Span::gap)
            .unwrap_or(Span { min: 0, max: 0 }),
        domain_repeats,
    }
}

/// Whether nodes carry the same to within one, but for those of domains that carry all they may.
fn are_even(targets: &[u64], domains: &[usize], most: u64) -> bool {
    let mut of_domain: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    domains
        .iter()
        .zip(targets)
        .for_each(|(domain, targets)| of_domain.entry(*domain).or_default().push(*targets));
    let open = of_domain.values().filter(|targets| targets.iter().sum::<u64>() < most).flatten().min();
    let largest = targets.iter().max();
    of_domain.values().all(|targets| Span::of(targets.iter().copied()).gap() <= 1)
        && open.zip(largest).is_none_or(|(least, most)| most - least <= 1)
}

fn all_pairs(nodes: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..nodes).flat_map(move |a| (a + 1..nodes).map(move |b| (a, b)))
}

#[cfg(test)]
mod tests {
    use super::super::{Replica, Room};
    use super::*;
    use corefs_wire::{NodeId, SliceIndex};

    fn room(node: u32) -> Room {
        Room { node: NodeId(node), domain: String::new(), slices: vec![SliceIndex(0), SliceIndex(1)] }
    }

    fn replica(room: usize, slice: u16) -> Replica {
        Replica { room, slice: SliceIndex(slice) }
    }

    #[test]
    fn broken_rules_are_named() {
        let rooms = [room(1), room(2)];
        let check = |plan: &[PlannedChain]| verify(&rooms, 2, plan).map(drop).map_err(|error| error.message);
        let good = vec![replica(0, 0), replica(1, 0)];
        assert_eq!(check(std::slice::from_ref(&good)), Ok(()));
        let twice = check(&[vec![replica(0, 0), replica(0, 1)]]).unwrap_err();
        assert!(twice.contains("two replicas on node-1"), "{twice}");
        assert!(check(&[vec![replica(0, 0)]]).unwrap_err().contains("1 replicas"));
        assert!(check(&[vec![replica(0, 7), replica(1, 0)]]).unwrap_err().contains("slice-7"));
        assert!(check(&[vec![replica(0, 0), replica(2, 0)]]).unwrap_err().contains("isn't there"));
        assert!(check(&[good.clone(), good]).unwrap_err().contains("shares differ"));
    }
}
