//! Which slices may take targets, and how many bytes each of them has left for that: what is promised to one target isn't
//! promised to another.
//!
//! A heartbeat says what is on a slice now. What is on its way there comes on top: a member that is being filled, or is to be,
//! needs as much as the largest replica of its chain, less what it has already. What a target leaves behind is free only
//! when a heartbeat says so; a plan, which looks beyond that, gives it back itself.

use super::bytes_of;
use crate::cluster::liveness::{Liveness, SliceHealth};
use crate::cluster::state::{Member, Standing, State};
use crate::cluster::transition::Public;
use corefs_wire::{ChainId, NodeId, SliceIndex};
use std::collections::BTreeMap;

/// A move leaves this part of a slice's capacity free: chunks are written beside what they replace, and what was reported is a
/// heartbeat old.
const KEPT_FREE: u64 = 64;

/// Bytes of a slice.
#[derive(Clone, Copy, Default)]
struct Bytes {
    free: u64,
    /// Left behind by targets that have moved on, in a plan.
    given: u64,
    promised: u64,
}

impl Bytes {
    fn left(self) -> u64 {
        self.free.saturating_add(self.given).saturating_sub(self.promised)
    }
}

/// The slices of a node, by their numbers; `None`: it takes nothing, being dead or not in use.
#[derive(Clone, Default)]
struct Room {
    slices: Vec<Option<Bytes>>,
    /// What the slice has left that has most.
    largest: u64,
}

impl Room {
    fn measure(&mut self) {
        self.largest = self.slices.iter().flatten().map(|bytes| bytes.left()).max().unwrap_or(0);
    }
}

#[derive(Clone)]
pub(super) struct Space {
    /// Of the largest replica of each chain.
    bytes: BTreeMap<ChainId, u64>,
    /// Of nodes that live and have spoken.
    rooms: BTreeMap<NodeId, Room>,
}

impl Space {
    pub(super) fn of(state: &State, liveness: &Liveness) -> Self {
        let bytes = state.chains.iter().map(|(id, chain)| (*id, bytes_of(chain, liveness))).collect();
        let mut out = Self { bytes, rooms: BTreeMap::new() };
        for (id, node) in &state.nodes {
            if !liveness.node(*id).is_some_and(|heard| heard.alive && heard.spoke) {
                continue;
            }
            let free = |health: &SliceHealth| {
                health.capacity.saturating_sub(health.used).saturating_sub(health.capacity / KEPT_FREE)
            };
            let slices = node.slices.iter().zip(liveness.slices(*id)).map(|(slice, health)| {
                let takes = slice.standing == Standing::Active && !health.dead;
                takes.then(|| Bytes { free: free(health), ..Bytes::default() })
            });
            out.rooms.insert(*id, Room { slices: slices.collect(), largest: 0 });
        }
        let comes = |member: &Member| !member.leaving && member.state != Public::Serving;
        for (chain, member) in state.members().filter(|(_, member)| comes(member)) {
            let has = liveness.target(member.target).map_or(0, |health| health.used);
            let lacks = out.bytes(chain).saturating_sub(has);
            if let Some(bytes) = out.slice_mut(member.node, member.slice) {
                bytes.promised = bytes.promised.saturating_add(lacks);
            }
        }
        out.rooms.values_mut().for_each(Room::measure);
        out
    }

    fn slice_mut(&mut self, node: NodeId, slice: SliceIndex) -> Option<&mut Bytes> {
        self.rooms.get_mut(&node)?.slices.get_mut(usize::from(slice.0))?.as_mut()
    }

    /// What a replica of the chain needs.
    pub(super) fn bytes(&self, chain: ChainId) -> u64 {
        self.bytes.get(&chain).copied().unwrap_or(0)
    }

    /// Whether a node has a slice with so many bytes left.
    pub(super) fn has_room(&self, node: NodeId, bytes: u64) -> bool {
        self.rooms.get(&node).is_some_and(|room| room.largest > bytes)
    }

    /// Whether a node has a slice that takes targets, were there room on it.
    pub(super) fn takes_any(&self, node: NodeId) -> bool {
        self.rooms.get(&node).is_some_and(|room| room.slices.iter().any(Option::is_some))
    }

    /// What a slice has left; `None`: it takes nothing.
    pub(super) fn left(&self, node: NodeId, slice: SliceIndex) -> Option<u64> {
        let bytes = self.rooms.get(&node)?.slices.get(usize::from(slice.0))?;
        bytes.map(Bytes::left)
    }

    pub(super) fn fits(&self, node: NodeId, slice: SliceIndex, bytes: u64) -> bool {
        self.left(node, slice).is_some_and(|left| left > bytes)
    }

    /// A replica of the chain comes to that slice.
    pub(super) fn promise(&mut self, chain: ChainId, node: NodeId, slice: SliceIndex) {
        let needs = self.bytes(chain);
        self.change(node, slice, |bytes| bytes.promised = bytes.promised.saturating_add(needs));
    }

    /// A member has left, in a plan.
    pub(super) fn give_back(&mut self, chain: ChainId, member: &Member, liveness: &Liveness) {
        let had = liveness.target(member.target).map_or(self.bytes(chain), |health| health.used);
        self.change(member.node, member.slice, |bytes| bytes.given = bytes.given.saturating_add(had));
    }

    fn change(&mut self, node: NodeId, slice: SliceIndex, change: impl FnOnce(&mut Bytes)) {
        if let Some(bytes) = self.slice_mut(node, slice) {
            change(bytes);
        }
        if let Some(room) = self.rooms.get_mut(&node) {
            room.measure();
        }
    }
}
