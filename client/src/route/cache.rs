//! The newest routing that we have, made ready for the data path: chains and owners by dense index, so that finding the
//! owner of a chunk is two array accesses.
//!
//! Invariants
//! - Routing only gets newer. Each installation raises the generation; a [`Stripe`] knows the generation it was made from.
//! - An [`OwnerIndex`] means the same address as long as somebody uses it: an index is given to another address only
//!   when no chain names it and its user says that nothing is under way.

use corefs_wire::layout::{Layout, pick};
use corefs_wire::limits::MEMBERS_MAX;
use corefs_wire::routing::{Chain, RoutingInfo};
use corefs_wire::{ChainId, Error, ErrorCode, Result, TargetId};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Position of a shard's address in the cache.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OwnerIndex(pub u32);

/// Position of a chain in the cache, as of one generation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ChainIndex(u32);

/// A serving replica of a chain and the core it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Replica {
    pub target: TargetId,
    pub owner: OwnerIndex,
}

/// What the data path must know of a chain.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ChainRoute {
    pub id: ChainId,
    pub version: u64,
    /// The serving ones in chain order whose owner is known: the last of them is the tail.
    pub serving: Vec<Replica>,
    /// Who takes updates.
    pub head: Option<Replica>,
}

/// The chains that a file's layout spreads it over.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Stripe {
    generation: u64,
    width: u32,
    chains: Vec<ChainIndex>,
}

impl Stripe {
    /// The chain of a chunk.
    #[inline]
    pub fn chain(&self, index: u32) -> ChainIndex {
        // Slots beyond the table's length repeat it, see `layout::pick`.
        self.chains[(index % self.width) as usize % self.chains.len()]
    }

    /// Each chain once.
    pub fn chains(&self) -> &[ChainIndex] {
        &self.chains
    }

    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// The newest routing.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    info: Rc<RoutingInfo>,
    generation: u64,
    chains: Vec<ChainRoute>,
    by_id: BTreeMap<ChainId, ChainIndex>,
    /// By owner index; free ones are empty.
    addresses: Vec<String>,
    by_address: BTreeMap<String, OwnerIndex>,
}

impl Cache {
    pub fn info(&self) -> &Rc<RoutingInfo> {
        &self.info
    }

    /// Rises with each installation; 0 before the first.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Takes newer routing; says whether it was. Addresses that it doesn't name are forgotten unless `busy`,
    /// which is asked about those only.
    pub fn install(&mut self, info: RoutingInfo, busy: impl Fn(OwnerIndex) -> bool) -> bool {
        if self.generation > 0 && info.version <= self.info.version {
            return false;
        }
        self.generation += 1;
        self.forget_addresses(&info, busy);
        self.chains.clear();
        self.by_id.clear();
        for chain in info.chains.values() {
            let route = self.route_of(&info, chain);
            self.by_id.insert(chain.id, ChainIndex(self.chains.len() as u32));
            self.chains.push(route);
        }
        self.info = Rc::new(info);
        true
    }

    fn route_of(&mut self, info: &RoutingInfo, chain: &Chain) -> ChainRoute {
        let mut replica = |target| {
            let owner = self.intern(info.owner(target)?.address);
            Some(Replica { target, owner })
        };
        let serving: Vec<Replica> = chain.serving().filter_map(&mut replica).collect();
        assert!(serving.len() <= MEMBERS_MAX, "routing was checked when it was read");
        let head = chain.head().and_then(&mut replica);
        ChainRoute { id: chain.id, version: chain.version, serving, head }
    }

    fn forget_addresses(&mut self, info: &RoutingInfo, busy: impl Fn(OwnerIndex) -> bool) {
        let named = |address: &String| info.nodes.values().any(|node| node.shards.contains(address));
        let addresses = &mut self.addresses;
        self.by_address.retain(|address, owner| {
            let keep = named(address) || busy(*owner);
            if !keep {
                addresses[owner.0 as usize].clear();
            }
            keep
        });
    }

    fn intern(&mut self, address: &str) -> OwnerIndex {
        if let Some(owner) = self.by_address.get(address) {
            return *owner;
        }
        let free = self.addresses.iter().position(String::is_empty);
        let at = free.unwrap_or_else(|| {
            self.addresses.push(String::new());
            self.addresses.len() - 1
        });
        self.addresses[at] = address.to_owned();
        self.by_address.insert(address.to_owned(), OwnerIndex(at as u32));
        OwnerIndex(at as u32)
    }

    /// Where an owner listens; empty for one that was forgotten.
    pub fn address(&self, owner: OwnerIndex) -> &str {
        self.addresses.get(owner.0 as usize).map_or("", String::as_str)
    }

    /// Owner indexes are below this.
    pub fn owners(&self) -> usize {
        self.addresses.len()
    }

    /// A chain of a [`Stripe`] of this generation.
    #[inline]
    pub fn chain(&self, index: ChainIndex) -> &ChainRoute {
        &self.chains[index.0 as usize]
    }

    pub fn chain_by_id(&self, id: ChainId) -> Option<&ChainRoute> {
        self.by_id.get(&id).map(|index| self.chain(*index))
    }

    /// The chains of a layout. `UnknownChain` if its table isn't in our routing.
    pub fn stripe(&self, layout: &Layout) -> Result<Stripe> {
        let unknown = || {
            let (table, version) = (layout.table_id, layout.table_version);
            let what =
                format!("chain table {table} version {version} isn't in routing {}", self.info.version);
            Error::new(ErrorCode::UnknownChain, what)
        };
        let table = self.info.tables.get(&(layout.table_id, layout.table_version)).ok_or_else(unknown)?;
        let n = table.len() as u64;
        let chain = |slot| {
            let id = table.get(pick(n, layout.seed, slot)? as usize)?;
            self.by_id.get(id).copied()
        };
        let distinct = u64::from(layout.stripe).min(n);
        let chains: Option<Vec<ChainIndex>> = (0..distinct).map(chain).collect();
        let chains = chains.filter(|chains| !chains.is_empty()).ok_or_else(unknown)?;
        Ok(Stripe { generation: self.generation, width: layout.stripe, chains })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use corefs_wire::control::mgmtd::TargetState;
    use corefs_wire::routing::{Member, Node, Target};
    use corefs_wire::{NodeId, ShardIndex, SliceIndex, Uuid};

    /// Nodes with one shard each, at these addresses; `chains` chains over all of them, rotated.
    pub fn routing(version: u64, addresses: &[&str], chains: u64) -> RoutingInfo {
        let mut info =
            RoutingInfo { version, cluster: Uuid([7; 16]), chunk_size: 65536, ..Default::default() };
        info.replicas = addresses.len() as u32;
        for (at, address) in addresses.iter().enumerate() {
            let id = NodeId(at as u32 + 1);
            let node = Node {
                id,
                incarnation: 1,
                alive: true,
                control: String::new(),
                shards: vec![(*address).into()],
                slice_shards: vec![ShardIndex(0)],
                domain: String::new(),
            };
            info.nodes.insert(id, node);
        }
        for chain in 1..=chains {
            let member = |at: usize| {
                let node = (at as u64 + chain) % addresses.len() as u64;
                let (target, node) = (TargetId(chain * 100 + node), NodeId(node as u32 + 1));
                info.targets
                    .insert(target, Target { id: target, node, slice: SliceIndex(0), chain: ChainId(chain) });
                Member { target, state: TargetState::Serving }
            };
            let members = (0..addresses.len()).map(member).collect();
            info.chains.insert(ChainId(chain), Chain { id: ChainId(chain), version, members });
        }
        info.tables.insert((1, 1), (1..=chains).map(ChainId).collect());
        info
    }

    const LAYOUT: Layout = Layout { chunk_size: 65536, stripe: 5, table_id: 1, table_version: 1, seed: 3 };

    #[test]
    fn agrees_with_the_wire_about_every_chunk() {
        for (stripe, chains) in [(1, 1), (1, 4), (4, 4), (5, 4), (7, 3), (3, 8), (u32::MAX, 5)] {
            let info = routing(1, &["a:1", "b:1"], chains);
            let mut cache = Cache::default();
            assert!(cache.install(info.clone(), |_| false));
            let layout = Layout { stripe, ..LAYOUT };
            let made = cache.stripe(&layout).unwrap();
            for index in (0..40).chain(u32::MAX - 3..=u32::MAX) {
                let expected = info.chain_of(&layout, index).unwrap();
                let found = cache.chain(made.chain(index));
                assert_eq!((found.id, found.version), (expected.id, expected.version), "chunk {index}");
                assert_eq!(found.head.map(|head| head.target), expected.head());
                let owner = |replica: &Replica| cache.address(replica.owner).to_owned();
                let expected: Vec<_> = expected.serving().map(|id| info.owner(id).unwrap().address).collect();
                assert_eq!(found.serving.iter().map(owner).collect::<Vec<_>>(), expected);
            }
        }
    }

    #[test]
    fn only_newer_routing_is_taken() {
        let mut cache = Cache::default();
        assert!(cache.install(routing(5, &["a:1"], 1), |_| false));
        let stripe = cache.stripe(&LAYOUT).unwrap();
        assert!(!cache.install(routing(5, &["b:1"], 1), |_| false));
        assert!(!cache.install(routing(4, &["b:1"], 1), |_| false));
        assert_eq!(stripe.generation(), cache.generation());
        assert!(cache.install(routing(6, &["b:1"], 1), |_| false));
        assert_ne!(stripe.generation(), cache.generation());
    }

    #[test]
    fn an_address_in_use_keeps_its_index() {
        let mut cache = Cache::default();
        cache.install(routing(1, &["a:1", "b:1"], 1), |_| false);
        let index = |cache: &Cache, address: &str| cache.by_address.get(address).copied();
        let (a, b) = (index(&cache, "a:1").unwrap(), index(&cache, "b:1").unwrap());
        cache.install(routing(2, &["c:1", "d:1"], 1), |owner| owner == a);
        assert_eq!((cache.address(a), index(&cache, "a:1")), ("a:1", Some(a)));
        assert_eq!(index(&cache, "b:1"), None);
        assert!([index(&cache, "c:1"), index(&cache, "d:1")].contains(&Some(b)), "b's index is used again");
        assert_eq!(cache.owners(), 3);
    }

    #[test]
    fn a_table_that_is_not_there_is_unknown() {
        let mut cache = Cache::default();
        assert_eq!(cache.stripe(&LAYOUT).unwrap_err().code, ErrorCode::UnknownChain);
        let mut info = routing(1, &["a:1"], 1);
        info.tables.insert((2, 1), Vec::new());
        cache.install(info, |_| false);
        let empty = Layout { table_id: 2, ..LAYOUT };
        assert_eq!(cache.stripe(&empty).unwrap_err().code, ErrorCode::UnknownChain);
    }
}
