//! Who owns what: nodes, targets, chains and chain tables at one version, as every process sees them.

use crate::control::mgmtd::{self, RoutingT, TargetState};
use crate::error::{Error, ErrorCode, Result};
use crate::id::{ChainId, NodeId, ShardIndex, SliceIndex, TargetId, Uuid};
use crate::layout::Layout;
use crate::limits::{CHUNK_MAX, CHUNK_MIN, MEMBERS_MAX, SHARDS_MAX, SLICES_MAX};
use std::collections::BTreeMap;

/// A storage node: where its shards listen, and which shard has which slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    pub id: NodeId,
    pub incarnation: u64,
    pub alive: bool,
    /// Address of the process's control endpoint.
    pub control: String,
    /// Address of each shard, by [`ShardIndex`].
    pub shards: Vec<String>,
    /// Shard of each slice, by [`SliceIndex`].
    pub slice_shards: Vec<ShardIndex>,
    pub domain: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    pub id: TargetId,
    pub node: NodeId,
    pub slice: SliceIndex,
    pub chain: ChainId,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    pub target: TargetId,
    pub state: TargetState,
}

impl Member {
    pub fn serving(&self) -> bool {
        self.state == TargetState::Serving
    }
}

/// A chain's members in order: serving first, the first of them is the head, the last serving one answers for all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    pub id: ChainId,
    pub version: u64,
    pub members: Vec<Member>,
}

impl Chain {
    /// The target that takes the clients' updates.
    pub fn head(&self) -> Option<TargetId> {
        self.members.first().filter(|member| member.serving()).map(|member| member.target)
    }

    /// The targets that answer reads, in chain order.
    pub fn serving(&self) -> impl DoubleEndedIterator<Item = TargetId> {
        self.members.iter().filter(|member| member.serving()).map(|member| member.target)
    }

    /// Who receives updates after `target`: the next member that serves or is being filled.
    pub fn successor(&self, target: TargetId) -> Option<TargetId> {
        let position = self.members.iter().position(|member| member.target == target)?;
        let next = self.members.get(position + 1)?;
        matches!(next.state, TargetState::Serving | TargetState::Syncing).then_some(next.target)
    }
}

/// Which core of the cluster a target belongs to, and where that core listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner<'a> {
    pub node: NodeId,
    pub shard: ShardIndex,
    pub address: &'a str,
}

/// The whole of routing at one version.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RoutingInfo {
    pub version: u64,
    pub cluster: Uuid,
    /// The chunk size of new files unless they ask for another.
    pub chunk_size: u32,
    pub replicas: u32,
    pub nodes: BTreeMap<NodeId, Node>,
    pub targets: BTreeMap<TargetId, Target>,
    pub chains: BTreeMap<ChainId, Chain>,
    /// By table id and version.
    pub tables: BTreeMap<(u32, u32), Vec<ChainId>>,
    /// Addresses of the metadata servers.
    pub metas: Vec<String>,
}

impl RoutingInfo {
    /// The owner of a target: the one place where this is computed.
    pub fn owner(&self, target: TargetId) -> Option<Owner<'_>> {
        let target = self.targets.get(&target)?;
        let node = self.nodes.get(&target.node)?;
        let shard = *node.slice_shards.get(usize::from(target.slice.0))?;
        Some(Owner { node: node.id, shard, address: node.shards.get(usize::from(shard.0))? })
    }

    /// The chain of a file's chunk.
    pub fn chain_of(&self, layout: &Layout, index: u32) -> Result<&Chain> {
        let table = self.tables.get(&(layout.table_id, layout.table_version));
        let chain = table.and_then(|table| layout.chain(table, index)).and_then(|id| self.chains.get(&id));
        chain.ok_or_else(|| {
            let what = format!(
                "chain table {} version {} isn't in routing {}",
                layout.table_id, layout.table_version, self.version
            );
            Error::new(ErrorCode::UnknownChain, what)
        })
    }

    /// Checks a message's references and bounds, so that lookups in what it gives can be trusted.
    pub fn from_message(message: &RoutingT) -> Result<Self> {
        let bad =
            |what: String| Error::new(ErrorCode::BadFrame, format!("routing {}: {what}", message.version));
        let cluster = <[u8; 16]>::try_from(message.cluster.as_slice())
            .map_err(|_| bad("cluster is not a uuid".into()))?;
        if !message.chunk_size.is_power_of_two() || !(CHUNK_MIN..=CHUNK_MAX).contains(&message.chunk_size) {
            return Err(bad(format!("impossible chunk size {}", message.chunk_size)));
        }
        let mut out = Self {
            version: message.version,
            cluster: Uuid(cluster),
            chunk_size: message.chunk_size,
            replicas: message.replicas,
            metas: message.metas.clone(),
            ..Self::default()
        };
        for node in &message.nodes {
            let shards = node.shards.len();
            if shards > SHARDS_MAX || node.slice_shards.len() > SLICES_MAX {
                return Err(bad(format!("node {} has too many shards or slices", node.id)));
            }
            if node.slice_shards.iter().any(|shard| usize::from(*shard) >= shards) {
                return Err(bad(format!("node {} has a slice on a shard it doesn't have", node.id)));
            }
            let id = NodeId(node.id);
            out.nodes.insert(
                id,
                Node {
                    id,
                    incarnation: node.incarnation,
                    alive: node.alive,
                    control: node.control.clone(),
                    shards: node.shards.clone(),
                    slice_shards: node.slice_shards.iter().copied().map(ShardIndex).collect(),
                    domain: node.domain.clone(),
                },
            );
        }
        for target in &message.targets {
            let node = out.nodes.get(&NodeId(target.node));
            if node.is_none_or(|node| usize::from(target.slice) >= node.slice_shards.len()) {
                return Err(bad(format!("target {} is on a slice that isn't there", target.id)));
            }
            let id = TargetId(target.id);
            let (node, slice, chain) = (NodeId(target.node), SliceIndex(target.slice), ChainId(target.chain));
            out.targets.insert(id, Target { id, node, slice, chain });
        }
        for chain in &message.chains {
            let members: Vec<Member> = chain
                .members
                .iter()
                .map(|member| Member { target: TargetId(member.target), state: member.state })
                .collect();
            if members.is_empty() || members.len() > MEMBERS_MAX {
                return Err(bad(format!("chain {} has {} members", chain.id, members.len())));
            }
            if let Some(member) = members.iter().find(|member| !out.targets.contains_key(&member.target)) {
                return Err(bad(format!("chain {} names unknown {}", chain.id, member.target)));
            }
            if chain.version > u32::MAX.into() {
                return Err(bad(format!("chain {} has version {}, above 32 bits", chain.id, chain.version)));
            }
            let id = ChainId(chain.id);
            out.chains.insert(id, Chain { id, version: chain.version, members });
        }
        for table in &message.tables {
            let chains: Vec<ChainId> = table.chains.iter().copied().map(ChainId).collect();
            if let Some(chain) = chains.iter().find(|chain| !out.chains.contains_key(chain)) {
                return Err(bad(format!("table {} names unknown {chain}", table.id)));
            }
            out.tables.insert((table.id, table.version), chains);
        }
        Ok(out)
    }

    pub fn to_message(&self) -> RoutingT {
        let node = |node: &Node| mgmtd::NodeT {
            id: node.id.0,
            incarnation: node.incarnation,
            alive: node.alive,
            control: node.control.clone(),
            shards: node.shards.clone(),
            slice_shards: node.slice_shards.iter().map(|shard| shard.0).collect(),
            domain: node.domain.clone(),
        };
        let target = |target: &Target| mgmtd::TargetT {
            id: target.id.0,
            node: target.node.0,
            slice: target.slice.0,
            chain: target.chain.0,
        };
        let member = |member: &Member| mgmtd::MemberT { target: member.target.0, state: member.state };
        let chain = |chain: &Chain| mgmtd::ChainT {
            id: chain.id.0,
            version: chain.version,
            members: chain.members.iter().map(member).collect(),
        };
        RoutingT {
            version: self.version,
            cluster: self.cluster.0.to_vec(),
            chunk_size: self.chunk_size,
            replicas: self.replicas,
            nodes: self.nodes.values().map(node).collect(),
            targets: self.targets.values().map(target).collect(),
            chains: self.chains.values().map(chain).collect(),
            tables: self
                .tables
                .iter()
                .map(|((id, version), chains)| mgmtd::ChainTableT {
                    id: *id,
                    version: *version,
                    chains: chains.iter().map(|chain| chain.0).collect(),
                })
                .collect(),
            metas: self.metas.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Message;

    fn routing() -> RoutingInfo {
        let (id, target, chain) = (NodeId(1), TargetId(10), ChainId(100));
        let node = Node {
            id,
            incarnation: 5,
            alive: true,
            control: "127.0.0.1:1".into(),
            shards: vec!["127.0.0.1:2".into(), "127.0.0.1:3".into()],
            slice_shards: vec![ShardIndex(0), ShardIndex(1)],
            domain: String::new(),
        };
        RoutingInfo {
            version: 3,
            cluster: Uuid([1; 16]),
            chunk_size: 65536,
            replicas: 1,
            nodes: [(id, node)].into(),
            targets: [(target, Target { id: target, node: id, slice: SliceIndex(1), chain })].into(),
            chains: [(
                chain,
                Chain {
                    id: chain,
                    version: 9,
                    members: vec![Member { target, state: TargetState::Serving }],
                },
            )]
            .into(),
            tables: [((1, 1), vec![chain])].into(),
            metas: vec!["127.0.0.1:4".into()],
        }
    }

    #[test]
    fn survives_the_wire_and_finds_owners() {
        let bytes = routing().to_message().encode();
        let read = RoutingInfo::from_message(&RoutingT::decode(&bytes).unwrap()).unwrap();
        assert_eq!(read, routing());
        let owner = read.owner(TargetId(10)).unwrap();
        assert_eq!((owner.shard, owner.address), (ShardIndex(1), "127.0.0.1:3"));
        assert_eq!(read.owner(TargetId(11)), None);
    }

    #[test]
    fn dangling_references_are_refused() {
        let break_it = |change: fn(&mut RoutingT)| {
            let mut message = routing().to_message();
            change(&mut message);
            RoutingInfo::from_message(&message).map(drop).map_err(|error| error.code)
        };
        let bad = Err(ErrorCode::BadFrame);
        assert_eq!(break_it(|message| message.nodes[0].slice_shards[0] = 2), bad);
        assert_eq!(break_it(|message| message.targets[0].slice = 9), bad);
        assert_eq!(break_it(|message| message.targets[0].node = 9), bad);
        assert_eq!(break_it(|message| message.chains[0].members[0].target = 9), bad);
        assert_eq!(break_it(|message| message.chains[0].members.clear()), bad);
        assert_eq!(break_it(|message| message.tables[0].chains[0] = 9), bad);
        assert_eq!(break_it(|message| message.chunk_size = 0), bad);
        assert_eq!(break_it(|message| message.cluster.clear()), bad);
        assert_eq!(break_it(|_| ()), Ok(()));
    }
}
