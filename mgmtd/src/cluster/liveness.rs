//! Who was heard of when. In memory only: heartbeats cost no transaction, and a new primary starts by assuming that
//! everybody it finds in the store lives.
//!
//! A node counts its lease from *sending* a renewal, the manager from *receiving* it, plus a margin for clocks that
//! drift: so whoever is dead here has long stopped serving by itself. A new primary waits one full lease before it
//! declares anyone dead, because an earlier primary may have renewed up to the end of its reign.

use super::cuts::{Complaint, Cuts};
use corefs_wire::{ClientId, NodeId, TargetId};
use std::collections::BTreeMap;

/// How long leases last, in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Terms {
    /// Of storage nodes and metadata servers.
    pub lease_ms: u64,
    /// What is added on the manager's side.
    pub margin_ms: u64,
    /// Of clients.
    pub client_lease_ms: u64,
    /// Metadata servers that were silent for so long are forgotten.
    pub forget_meta_ms: u64,
}

/// Somebody with a lease.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Heard {
    /// When last; of somebody only assumed to live, when that was assumed.
    pub at_ms: u64,
    /// As last reported: changes only in [`Liveness::expire`] and when heard of again, so that the routing version
    /// can follow.
    pub alive: bool,
    /// Heard of by this primary, not only found in the store.
    pub spoke: bool,
}

/// What a heartbeat says of a slice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SliceHealth {
    /// Bytes.
    pub capacity: u64,
    pub used: u64,
    pub dead: bool,
    /// Damaged blocks that no replica has.
    pub unrepaired: u64,
    /// Chunks out of service because replicas hold different bytes.
    pub differing: u64,
}

/// What a heartbeat says of a target.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct TargetHealth {
    /// It holds everything that the chain had under this version: it was filled, or spared (`engine::chain::Replica::is_spared`).
    pub up_to_date: Option<u64>,
    /// The chain version that it knows.
    pub version: u64,
    /// It can't be filled for the time being.
    pub failed: bool,
    /// The next in its chain, if every connection to it fails.
    pub unreached: Option<TargetId>,
    /// Whom it fills, and how far that has come.
    pub fills: Option<Filling>,
    /// Bytes of its chunks, and how many there are.
    pub used: u64,
    pub chunks: u64,
}

/// How far a target has come with filling another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Filling {
    pub to: TargetId,
    /// Chunks compared, of how many.
    pub compared: u64,
    pub to_compare: u64,
    pub sent_chunks: u64,
    pub sent_bytes: u64,
}

/// How quiet it is around the manager.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Silence {
    No,
    /// Nobody has spoken for a while: nobody is to be declared dead yet.
    Perhaps,
    Whole,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Liveness {
    terms: Terms,
    nodes: BTreeMap<NodeId, Heard>,
    slices: BTreeMap<NodeId, Vec<SliceHealth>>,
    targets: BTreeMap<NodeId, BTreeMap<TargetId, TargetHealth>>,
    by_target: BTreeMap<TargetId, NodeId>,
    /// Which target says of which that it can't reach it, and since when.
    complaints: BTreeMap<TargetId, (TargetId, u64)>,
    /// Which nodes couldn't reach each other lately.
    cuts: Cuts,
    /// Something that chains depend on has changed since [`Liveness::settled`].
    unsettled: bool,
    metas: BTreeMap<String, Heard>,
    clients: BTreeMap<ClientId, u64>,
    /// Bytes a second at which each node fills others at most.
    rates: BTreeMap<NodeId, u64>,
    /// How far each filling had come when it was first heard of, by who fills, and when that was.
    begun: BTreeMap<TargetId, (Filling, u64)>,
}

impl Liveness {
    pub fn new(terms: Terms) -> Self {
        let (nodes, slices, targets, by_target) = Default::default();
        let (metas, clients, rates, cuts, complaints, begun) = Default::default();
        let unsettled = true;
        Self {
            terms,
            nodes,
            slices,
            targets,
            by_target,
            complaints,
            cuts,
            unsettled,
            metas,
            clients,
            rates,
            begun,
        }
    }

    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// A new primary found this node in the store.
    pub fn assume_node(&mut self, node: NodeId, now_ms: u64) {
        self.nodes.insert(node, Heard { at_ms: now_ms, alive: true, spoke: false });
    }

    pub fn assume_meta(&mut self, address: &str, now_ms: u64) {
        self.metas.insert(address.to_owned(), Heard { at_ms: now_ms, alive: true, spoke: false });
    }

    /// Nobody could be heard for a while: whoever lived has a full lease from now on, as if this were a new primary.
    pub fn begin_anew(&mut self, now_ms: u64) {
        for heard in self.nodes.values_mut().chain(self.metas.values_mut()).filter(|heard| heard.alive) {
            (heard.at_ms, heard.spoke) = (now_ms, false);
        }
        self.clients.values_mut().for_each(|at_ms| *at_ms = now_ms);
    }

    /// A node registered or sent a heartbeat. Whether it had been dead or unknown: then routing changes.
    pub fn hear_node(&mut self, node: NodeId, slices: Vec<SliceHealth>, now_ms: u64) -> bool {
        let dead = |slices: &[SliceHealth]| slices.iter().map(|slice| slice.dead).collect::<Vec<_>>();
        let same = self.slices.get(&node).is_some_and(|before| dead(before) == dead(&slices));
        self.slices.insert(node, slices);
        let before = self.nodes.insert(node, Heard { at_ms: now_ms, alive: true, spoke: true });
        self.unsettled |= !same || !before.is_some_and(|before| before.alive && before.spoke);
        // A complaint may count now: who is complained of lives.
        self.unsettled |= !self.complaints.is_empty();
        !before.is_some_and(|before| before.alive)
    }

    /// What a node says of its targets.
    pub fn hear_targets(&mut self, node: NodeId, targets: BTreeMap<TargetId, TargetHealth>, now_ms: u64) {
        let matters = |targets: &BTreeMap<TargetId, TargetHealth>| {
            let of = |(id, health): (&TargetId, &TargetHealth)| {
                (*id, health.up_to_date, health.version, health.failed, health.unreached)
            };
            targets.iter().map(of).collect::<Vec<_>>()
        };
        self.unsettled |= self.targets.get(&node).is_none_or(|before| matters(before) != matters(&targets));
        let before = self.targets.get(&node).into_iter().flat_map(BTreeMap::keys);
        for gone in before.filter(|target| !targets.contains_key(target)) {
            self.by_target.remove(gone);
            self.complaints.remove(gone);
            self.begun.remove(gone);
        }
        self.by_target.extend(targets.keys().map(|target| (*target, node)));
        for (target, health) in &targets {
            // One that starts over has compared less than before.
            let said = self.targets.get(&node).and_then(|before| before.get(target)?.fills);
            let goes_on =
                |now: Filling| said.is_some_and(|said| said.to == now.to && said.compared <= now.compared);
            match health.fills {
                Some(now) if self.begun.contains_key(target) && goes_on(now) => {}
                Some(now) => drop(self.begun.insert(*target, (now, now_ms))),
                None => drop(self.begun.remove(target)),
            }
            match health.unreached {
                Some(to) if self.complaints.get(target).is_some_and(|(before, _)| *before == to) => {}
                Some(to) => drop(self.complaints.insert(*target, (to, now_ms))),
                None => drop(self.complaints.remove(target)),
            }
        }
        self.targets.insert(node, targets);
    }

    /// Another process has the node's number now: what the old one said of its targets counts no more.
    pub fn forget_targets(&mut self, node: NodeId) {
        self.forgive(node);
        for target in self.targets.remove(&node).unwrap_or_default().keys() {
            self.by_target.remove(target);
            self.begun.remove(target);
        }
    }

    /// A node is dead, or another process: what was out of its reach, and for whom it was, says nothing any more.
    fn forgive(&mut self, node: NodeId) {
        let targets = self.targets.get(&node).into_iter().flat_map(BTreeMap::keys);
        for target in targets {
            self.complaints.remove(target);
            self.cuts.forget_target(*target);
        }
        let by_target = &self.by_target;
        self.complaints.retain(|_, (to, _)| by_target.get(to) != Some(&node));
        self.cuts.forget_node(node);
    }

    /// How fast a node fills others at most (bytes a second).
    pub fn hear_rate(&mut self, node: NodeId, rate: u64) {
        self.rates.insert(node, rate);
    }

    /// How fast all nodes that live fill others together at most (bytes a second).
    pub fn resync_rate(&self) -> u64 {
        let alive = self.rates.iter().filter(|(node, _)| self.node_alive(**node));
        alive.fold(0, |sum, (_, rate)| sum.saturating_add(*rate))
    }

    /// How long the filling that a target does still takes (milliseconds), if it goes on as it went since it was first heard of. Before anything
    /// was seen of it: all that the target holds, at its node's rate. `None` if that isn't known either.
    pub fn filling_left_ms(&self, from: TargetId, now_ms: u64) -> Option<u64> {
        let health = self.target(from)?;
        let now = health.fills?;
        let left = now.to_compare.saturating_sub(now.compared);
        let (then, at_ms) = self.begun.get(&from)?;
        let (done, ms) = (now.compared.saturating_sub(then.compared), now_ms.saturating_sub(*at_ms));
        if done > 0 && ms > 0 {
            return Some((u128::from(left) * u128::from(ms) / u128::from(done)) as u64);
        }
        let rate = self.rates.get(self.by_target.get(&from)?).copied().filter(|rate| *rate > 0)?;
        let bytes = u128::from(health.used) * u128::from(left) / u128::from(now.to_compare.max(1));
        Some((bytes * 1000 / u128::from(rate)) as u64)
    }

    /// The node is no node of the cluster any more.
    pub fn forget_node(&mut self, node: NodeId) {
        self.forget_targets(node);
        self.nodes.remove(&node);
        self.slices.remove(&node);
        self.rates.remove(&node);
    }

    /// Whether chains may have to change.
    pub fn is_unsettled(&self) -> bool {
        self.unsettled
    }

    /// Chains are as they should be, as far as is known.
    pub fn settled(&mut self) {
        self.unsettled = false;
    }

    pub fn hear_meta(&mut self, address: &str, now_ms: u64) -> bool {
        let before = self.metas.insert(address.to_owned(), Heard { at_ms: now_ms, alive: true, spoke: true });
        !before.is_some_and(|before| before.alive)
    }

    /// A client's lease starts or goes on.
    pub fn hear_client(&mut self, client: ClientId, now_ms: u64) {
        self.clients.insert(client, now_ms);
    }

    pub fn forget_client(&mut self, client: ClientId) {
        self.clients.remove(&client);
    }

    pub fn forget_meta(&mut self, address: &str) {
        self.metas.remove(address);
    }

    /// Whether none of several nodes that live has been heard of for most of a lease, in which all speak twice: more likely it is us whom
    /// nobody reaches. Sure when all of them would be declared dead.
    pub fn silence(&self, now_ms: u64) -> Silence {
        let (limit, most) = (self.terms.lease_ms + self.terms.margin_ms, self.terms.lease_ms * 3 / 4);
        let silent = |heard: &Heard| now_ms.saturating_sub(heard.at_ms);
        let alive = || self.nodes.values().filter(|heard| heard.alive).map(silent);
        match alive().min() {
            Some(least) if least > limit && alive().count() > 1 => Silence::Whole,
            Some(least) if least > most && alive().count() > 1 => Silence::Perhaps,
            _ => Silence::No,
        }
    }

    /// Whether any node was heard of by this primary.
    pub fn heard_any(&self) -> bool {
        self.nodes.values().any(|heard| heard.spoke)
    }

    /// Which nodes can't reach each other, as far as is remembered.
    pub fn cuts(&self) -> &Cuts {
        &self.cuts
    }

    /// Whom a target rightly says that it can't reach: one whose node lives, and was heard of since that was first said. Connections to a process
    /// that dies fail as well, before its lease runs out; but it says nothing any more.
    pub fn complains_of(&self, from: TargetId) -> Option<TargetId> {
        let (to, since_ms) = *self.complaints.get(&from)?;
        let lives = |target: TargetId| self.node(*self.by_target.get(&target)?).filter(|heard| heard.alive);
        let heard = lives(from).and(lives(to)).is_some_and(|heard| heard.spoke && heard.at_ms > since_ms);
        heard.then_some(to)
    }

    /// Who can't reach whom.
    fn complaints(&self) -> Vec<Complaint> {
        let placed = |target: TargetId| Some((*self.by_target.get(&target)?, target));
        let said = self.complaints.keys().filter_map(|from| Some((*from, self.complains_of(*from)?)));
        said.filter_map(|(from, of)| Some(Complaint { from: placed(from)?, of: placed(of)? })).collect()
    }

    /// Marks whoever has been silent for too long as dead. Whether anybody was: then routing changes.
    pub fn expire(&mut self, now_ms: u64) -> bool {
        let complaints = self.complaints();
        self.unsettled |= self.cuts.remember(&complaints, now_ms);
        let limit = self.terms.lease_ms + self.terms.margin_ms;
        let late = |heard: &Heard| heard.alive && now_ms.saturating_sub(heard.at_ms) > limit;
        let died: Vec<NodeId> =
            self.nodes.iter().filter(|(_, heard)| late(heard)).map(|(node, _)| *node).collect();
        let mut changed = false;
        for heard in self.nodes.values_mut().chain(self.metas.values_mut()).filter(|heard| late(heard)) {
            heard.alive = false;
            changed = true;
            self.unsettled = true;
        }
        died.into_iter().for_each(|node| self.forgive(node));
        changed
    }

    /// Clients whose lease ran out. They stay until the caller has stored that and calls
    /// [`forget_client`](Self::forget_client).
    pub fn expired_clients(&self, now_ms: u64) -> Vec<ClientId> {
        let limit = self.terms.client_lease_ms + self.terms.margin_ms;
        let out = |(_, at): &(&ClientId, &u64)| now_ms.saturating_sub(**at) > limit;
        self.clients.iter().filter(out).map(|(client, _)| *client).collect()
    }

    /// Metadata servers that have been silent for so long that their address is not worth keeping.
    pub fn forgettable_metas(&self, now_ms: u64) -> Vec<String> {
        let out = |heard: &Heard| now_ms.saturating_sub(heard.at_ms) > self.terms.forget_meta_ms;
        self.metas.iter().filter(|(_, heard)| out(heard)).map(|(address, _)| address.clone()).collect()
    }

    pub fn node(&self, node: NodeId) -> Option<Heard> {
        self.nodes.get(&node).copied()
    }

    pub fn meta(&self, address: &str) -> Option<Heard> {
        self.metas.get(address).copied()
    }

    pub fn node_alive(&self, node: NodeId) -> bool {
        self.node(node).is_some_and(|heard| heard.alive)
    }

    pub fn meta_alive(&self, address: &str) -> bool {
        self.meta(address).is_some_and(|heard| heard.alive)
    }

    /// Whether the client's number is in use: its lease runs, or it ran out and that isn't stored yet.
    pub fn client_known(&self, client: ClientId) -> bool {
        self.clients.contains_key(&client)
    }

    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// As the last heartbeat said; `None` before the first.
    pub fn target(&self, target: TargetId) -> Option<TargetHealth> {
        self.targets.get(self.by_target.get(&target)?)?.get(&target).copied()
    }

    /// As the last heartbeat said; empty before the first.
    pub fn slices(&self, node: NodeId) -> &[SliceHealth] {
        self.slices.get(&node).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub const TERMS: Terms =
        Terms { lease_ms: 1000, margin_ms: 200, client_lease_ms: 5000, forget_meta_ms: 60_000 };

    #[test]
    fn a_lease_lasts_to_its_end_and_no_longer() {
        let mut liveness = Liveness::new(TERMS);
        let node = NodeId(1);
        assert!(liveness.hear_node(node, vec![], 100), "a new node changes routing");
        assert!(!liveness.hear_node(node, vec![], 200), "a heartbeat doesn't");
        assert!(!liveness.expire(1400) && liveness.node_alive(node));
        assert!(liveness.expire(1401) && !liveness.node_alive(node));
        assert!(!liveness.expire(9999), "dying once is enough");
        assert!(liveness.hear_node(node, vec![], 10_000) && liveness.node_alive(node));
    }

    #[test]
    fn a_new_primary_gives_everybody_a_full_lease() {
        let mut liveness = Liveness::new(TERMS);
        liveness.assume_node(NodeId(1), 5000);
        liveness.assume_meta("a", 5000);
        assert!(!liveness.expire(6200) && liveness.node_alive(NodeId(1)) && liveness.meta_alive("a"));
        assert!(!liveness.hear_node(NodeId(1), vec![], 6200), "it was assumed alive all the time");
        assert!(liveness.expire(6201) && !liveness.meta_alive("a") && liveness.node_alive(NodeId(1)));
        assert!(liveness.forgettable_metas(64_999).is_empty());
        assert_eq!(liveness.forgettable_metas(65_001), ["a"]);
    }

    #[test]
    fn silence_of_all_is_told_from_silence_of_some() {
        let mut liveness = Liveness::new(TERMS);
        liveness.hear_node(NodeId(1), vec![], 0);
        assert_eq!(liveness.silence(9000), Silence::No, "a single node is as likely to be dead");
        liveness.assume_node(NodeId(2), 300);
        assert_eq!(liveness.silence(1050), Silence::No);
        assert_eq!(liveness.silence(1201), Silence::Perhaps, "the second may still speak");
        assert_eq!(liveness.silence(1501), Silence::Whole);
        liveness.hear_node(NodeId(2), vec![], 701);
        assert_eq!(liveness.silence(1201), Silence::No);
        assert!(liveness.expire(1201), "the first is dead");
        assert_eq!(liveness.silence(9000), Silence::No, "one is left");
        let mut fresh = Liveness::new(TERMS);
        (1..=2).for_each(|node| fresh.assume_node(NodeId(node), 0));
        assert!(fresh.silence(1201) == Silence::Whole && !fresh.heard_any() && liveness.heard_any());
    }

    #[test]
    fn complaints_count_when_who_is_complained_of_has_spoken_since() {
        let mut liveness = Liveness::new(TERMS);
        let says = |unreached| TargetHealth { unreached, ..TargetHealth::default() };
        let (one, two) = (TargetId(1), TargetId(2));
        let hear = |liveness: &mut Liveness, node: u64, unreached: Option<TargetId>, now_ms: u64| {
            let targets = BTreeMap::from([(TargetId(node), says(unreached))]);
            liveness.hear_targets(NodeId(node as u32), targets, now_ms);
            liveness.hear_node(NodeId(node as u32), vec![], now_ms);
        };
        hear(&mut liveness, 2, None, 0);
        hear(&mut liveness, 1, Some(two), 100);
        assert_eq!(liveness.complains_of(one), None, "it may be dying");
        liveness.settled();
        hear(&mut liveness, 2, None, 101);
        assert!(liveness.is_unsettled() && liveness.complains_of(one) == Some(two));
        liveness.expire(200);
        assert_eq!(liveness.cuts().pairs().count(), 1);
        hear(&mut liveness, 1, Some(two), 1250);
        liveness.expire(1302);
        assert_eq!(liveness.complains_of(one), None, "it is dead");
        assert_eq!(liveness.cuts().pairs().count(), 0, "which explains everything");
        hear(&mut liveness, 1, Some(two), 1400);
        hear(&mut liveness, 2, None, 1410);
        assert_eq!(liveness.complains_of(one), Some(two));
        hear(&mut liveness, 1, None, 1500);
        assert_eq!(liveness.complains_of(one), None);
    }

    #[test]
    fn nothing_is_left_of_a_target_that_is_gone_and_of_a_node_that_is_forgotten() {
        let mut liveness = Liveness::new(TERMS);
        let says = |unreached| TargetHealth { version: 1, unreached, ..TargetHealth::default() };
        let (one, two, three) = (TargetId(1), TargetId(2), TargetId(3));
        liveness.hear_targets(NodeId(1), [(one, says(Some(two))), (three, says(Some(two)))].into(), 0);
        liveness.hear_targets(NodeId(2), [(two, says(Some(one)))].into(), 0);
        for node in 1..=2 {
            liveness.hear_node(NodeId(node), vec![], 10);
        }
        liveness.expire(20);
        assert_eq!(liveness.cuts().pairs().count(), 1);
        liveness.hear_targets(NodeId(1), [(one, says(Some(two)))].into(), 30);
        assert_eq!((liveness.target(three), liveness.complains_of(three)), (None, None));
        assert_eq!((liveness.by_target.len(), liveness.complaints.len()), (2, 2));
        liveness.forget_node(NodeId(2));
        assert_eq!((liveness.by_target.len(), liveness.complaints.len()), (1, 0));
        assert_eq!(liveness.cuts().pairs().count(), 0);
        liveness.forget_node(NodeId(1));
        assert_eq!(liveness, Liveness { unsettled: true, ..Liveness::new(TERMS) });
    }

    #[test]
    fn how_long_filling_takes_follows_from_how_far_it_came() {
        let mut liveness = Liveness::new(TERMS);
        let (from, to) = (TargetId(1), TargetId(2));
        let mut say = |compared: u64, now_ms: u64| {
            let fills = Filling { to, compared, to_compare: 1000, sent_chunks: 0, sent_bytes: 0 };
            let health = TargetHealth { fills: Some(fills), used: 1 << 20, ..TargetHealth::default() };
            liveness.hear_targets(NodeId(1), [(from, health)].into(), now_ms);
            liveness.hear_rate(NodeId(1), 1 << 18);
            liveness.filling_left_ms(from, now_ms)
        };
        assert_eq!(say(0, 100), Some(4000), "all of it, at the rate that is set");
        assert_eq!(say(100, 1100), Some(9000));
        assert_eq!(say(600, 2100), Some(1333));
        assert_eq!(say(500, 2200), Some(2000), "it starts over: half of it, at the rate that is set");
        liveness.hear_targets(NodeId(1), [(from, TargetHealth::default())].into(), 2300);
        assert_eq!((liveness.filling_left_ms(from, 2300), liveness.begun.len()), (None, 0));
    }

    #[test]
    fn clients_stay_known_until_their_end_is_stored() {
        let mut liveness = Liveness::new(TERMS);
        let client = ClientId(7);
        liveness.hear_client(client, 0);
        assert!(liveness.expired_clients(5200).is_empty());
        assert_eq!(liveness.expired_clients(5201), [client]);
        assert!(liveness.client_known(client));
        liveness.forget_client(client);
        assert!(!liveness.client_known(client) && liveness.clients() == 0);
    }

    #[test]
    fn time_that_stands_still_or_jumps_is_survived() {
        let mut liveness = Liveness::new(TERMS);
        liveness.hear_node(NodeId(1), vec![], u64::MAX);
        assert!(!liveness.expire(0));
    }
}
