//! Where the replicas of new chains go. A heuristic proposes ([`place`]); a separate check says what it is worth
//! ([`verify`]), and refuses what breaks a rule.
//!
//! Rules: two replicas of a chain are never on one node, nor in one domain if there are as many domains as replicas; every node
//! carries its share of targets to within one, which is smaller in a domain that is larger than the others together can match
//! ([`quota`]); every slice of a node carries its share to within one. Aims, in this order: replicas of a chain in different domains as far
//! as there are any; as many heads (and second, third members) on each node as on any other; every two nodes share about as many chains,
//! so that when a node is gone its load, and the work of filling it again, spread over all others.
//!
//! Steps: pick nodes for chain after chain (greedy), improve by exchanging members between chains (hill climbing),
//! decide the order within chains (augmenting paths, which is exact), number the chains so that neighbours in the
//! table have different heads, and put each node's targets on its slices in turn.

mod improve;
mod order;
mod quota;
mod verify;

pub use verify::{Imbalance, Span, measure, verify};

use corefs_wire::{Error, ErrorCode, NodeId, Result, SliceIndex};

/// A node that takes targets.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Room {
    pub node: NodeId,
    /// What fails together with it: a rack, a power feed. Empty: only itself.
    pub domain: String,
    /// Slices that can take targets; at least one.
    pub slices: Vec<SliceIndex>,
}

/// One replica of a planned chain: position of its room, and the slice there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Replica {
    pub room: usize,
    pub slice: SliceIndex,
}

/// Members of a planned chain, the head first.
pub type PlannedChain = Vec<Replica>;

/// Places `rooms.len() * targets_per_node / replicas` chains (rounded down) and returns them in the order of the chain
/// table. `TooFewNodes` when there are fewer rooms than replicas; `InvalidArgument` for a room without slices.
pub fn place(rooms: &[Room], replicas: usize, targets_per_node: usize) -> Result<Vec<PlannedChain>> {
    if replicas == 0 || replicas > rooms.len() {
        let (expected, actual) = (replicas as u64, rooms.len() as u64);
        return Err(Error::mismatch(ErrorCode::TooFewNodes, expected, actual, "fewer nodes than replicas"));
    }
    if let Some(room) = rooms.iter().find(|room| room.slices.is_empty()) {
        let text = format!("{} has no usable slice", room.node);
        return Err(Error::new(ErrorCode::InvalidArgument, text));
    }
    let domains = number_domains(rooms);
    let chains = rooms.len() * targets_per_node / replicas;
    let mut sets = choose_nodes(&domains, replicas, chains, quota::quotas(&domains, replicas, chains));
    improve::exchange(&mut sets, &domains);
    let ordered = order::order_members(&sets, rooms.len());
    let table = order::order_table(ordered, rooms.len());
    Ok(put_on_slices(&table, rooms))
}

/// The number of each room's domain: the position of the domain's first room. A room without one is its own.
fn number_domains(rooms: &[Room]) -> Vec<usize> {
    let first = |(position, room): (usize, &Room)| {
        let same = |other: &Room| !room.domain.is_empty() && other.domain == room.domain;
        rooms.iter().position(same).unwrap_or(position)
    };
    rooms.iter().enumerate().map(first).collect()
}

/// Picks each chain's nodes; `left` is how many each node is to be in. Never runs into a corner: a node (or domain) that has as many
/// targets left as there are chains left must be in every one of them, and is taken first.
fn choose_nodes(domains: &[usize], replicas: usize, chains: usize, mut left: Vec<usize>) -> Vec<Vec<usize>> {
    let nodes = domains.len();
    let mut domain_left = vec![0usize; nodes];
    left.iter().zip(domains).for_each(|(left, domain)| domain_left[*domain] += left);
    let mut pairs = improve::Pairs::new(nodes);
    let mut sets = Vec::with_capacity(chains);
    for chain in 0..chains {
        let chains_left = chains - chain;
        let mut set: Vec<usize> = Vec::with_capacity(replicas);
        for _ in 0..replicas {
            let free = (0..nodes).filter(|node| left[*node] > 0 && !set.contains(node));
            let best = free.min_by_key(|node| {
                let forced = left[*node] >= chains_left;
                let domain_used = set.iter().any(|other| domains[*other] == domains[*node]);
                let domain_forced = domain_left[domains[*node]] >= chains_left;
                let shared: u64 = set.iter().map(|other| u64::from(pairs.count(*node, *other))).sum();
                let rotated = (*node + nodes - chain % nodes) % nodes;
                let fullness = usize::MAX - left[*node];
                (!forced, domain_used, !domain_forced, shared, fullness, rotated)
            });
            let Some(node) = best else {
                unreachable!("the sum of what is left is replicas times chains left, none above chains left")
            };
            set.push(node);
        }
        for node in &set {
            left[*node] -= 1;
            domain_left[domains[*node]] -= 1;
        }
        pairs.add(&set);
        sets.push(set);
    }
    sets
}

/// Puts each node's targets on its slices in turn, heads first: so that heads, too, spread over slices and shards.
fn put_on_slices(table: &[Vec<usize>], rooms: &[Room]) -> Vec<PlannedChain> {
    let mut next = vec![0usize; rooms.len()];
    let mut out: Vec<PlannedChain> = table
        .iter()
        .map(|chain| chain.iter().map(|room| Replica { room: *room, slice: SliceIndex(0) }).collect())
        .collect();
    let replicas = table.first().map_or(0, Vec::len);
    for position in 0..replicas {
        for chain in &mut out {
            let replica = &mut chain[position];
            let slices = &rooms[replica.room].slices;
            replica.slice = slices[next[replica.room] % slices.len()];
            next[replica.room] += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rooms(nodes: usize, slices: u16, domains: usize) -> Vec<Room> {
        let domain =
            |node: usize| if domains == 0 { String::new() } else { format!("rack-{}", node % domains) };
        (0..nodes)
            .map(|node| Room {
                node: NodeId(node as u32 + 1),
                domain: domain(node),
                slices: (0..slices).map(SliceIndex).collect(),
            })
            .collect()
    }

    fn imbalance(rooms: &[Room], replicas: usize, targets: usize) -> Imbalance {
        let plan = place(rooms, replicas, targets).unwrap();
        assert_eq!(plan.len(), rooms.len() * targets / replicas);
        verify(rooms, replicas, &plan).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn every_shape_is_balanced() {
        for nodes in [1usize, 2, 3, 4, 5, 6, 7, 9, 12, 20] {
            for replicas in 1..=nodes.min(4) {
                for targets in [1usize, 3, 8, 32, 50] {
                    if nodes * targets < replicas {
                        continue;
                    }
                    let found = imbalance(&rooms(nodes, 8, 0), replicas, targets);
                    let shape = format!("{nodes} nodes, {replicas} replicas, {targets} targets: {found}");
                    assert!(found.targets.gap() <= 1, "{shape}");
                    assert!(found.positions.iter().all(|position| position.gap() <= 1), "{shape}");
                    assert!(found.slices.gap() <= 1, "{shape}");
                    assert!(found.pairs.gap() <= 2, "{shape}");
                    assert_eq!(found.domain_repeats, 0, "{shape}");
                }
            }
        }
    }

    #[test]
    fn replicas_are_in_different_domains_where_there_are_enough() {
        for (nodes, domains, replicas) in [(6, 3, 3), (8, 4, 3), (9, 3, 2), (12, 4, 4), (10, 5, 3)] {
            let found = imbalance(&rooms(nodes, 4, domains), replicas, 32);
            assert_eq!(found.domain_repeats, 0, "{nodes} {domains} {replicas}: {found}");
            assert!(found.positions.iter().all(|position| position.gap() <= 1), "{found}");
        }
        // A small domain carries one replica of every chain if there are no others.
        let mut uneven = rooms(4, 4, 0);
        uneven[..3].iter_mut().for_each(|room| room.domain = "rack-1".into());
        let found = imbalance(&uneven, 2, 32);
        assert_eq!((found.domain_repeats, found.targets), (0, verify::Span { min: 21, max: 64 }), "{found}");
        // Two domains can't hold three replicas apart: as far apart as possible, and said.
        assert_eq!(imbalance(&rooms(6, 4, 2), 3, 8).domain_repeats, 16);
    }

    #[test]
    fn a_large_cluster_is_placed_and_its_neighbours_have_different_heads() {
        let rooms = rooms(100, 16, 0);
        let plan = place(&rooms, 3, 32).unwrap();
        let found = verify(&rooms, 3, &plan).unwrap();
        assert!(
            found.pairs.gap() <= 3 && found.positions.iter().all(|position| position.gap() <= 1),
            "{found}"
        );
        let heads: Vec<usize> = plan.iter().map(|chain| chain[0].room).collect();
        for round in heads.chunks_exact(100).take(plan.len() / 100) {
            let mut seen = round.to_vec();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 100, "each node heads one chain in each hundred");
        }
    }

    #[test]
    fn impossible_requests_are_typed_errors() {
        let code = |result: Result<Vec<PlannedChain>>| result.map(drop).map_err(|error| error.code);
        assert_eq!(code(place(&rooms(2, 4, 0), 3, 8)), Err(ErrorCode::TooFewNodes));
        assert_eq!(code(place(&[], 1, 8)), Err(ErrorCode::TooFewNodes));
        assert_eq!(code(place(&rooms(2, 4, 0), 0, 8)), Err(ErrorCode::TooFewNodes));
        assert_eq!(code(place(&rooms(2, 0, 0), 1, 8)), Err(ErrorCode::InvalidArgument));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_rules_hold_for_any_shape(
            racks in proptest::collection::vec((0usize..5, 1u16..6), 1..12),
            replicas in 1usize..5,
            targets in 1usize..40,
        ) {
            prop_assume!(replicas <= racks.len());
            let rooms: Vec<Room> = racks
                .iter()
                .enumerate()
                .map(|(node, (rack, slices))| Room {
                    node: NodeId(node as u32),
                    domain: if *rack == 0 { String::new() } else { format!("rack-{rack}") },
                    slices: (0..*slices).map(SliceIndex).collect(),
                })
                .collect();
            let plan = place(&rooms, replicas, targets).unwrap();
            let found = verify(&rooms, replicas, &plan);
            prop_assert!(found.is_ok(), "{found:?}");
            let found = found.unwrap();
            let even = found.targets.gap() <= 1;
            prop_assert!(!even || found.positions.iter().all(|position| position.gap() <= 1));
            let domains: std::collections::BTreeSet<usize> = number_domains(&rooms).into_iter().collect();
            prop_assert!(domains.len() < replicas || found.domain_repeats == 0, "{found}");
            prop_assert_eq!(plan, place(&rooms, replicas, targets).unwrap());
        }
    }
}
