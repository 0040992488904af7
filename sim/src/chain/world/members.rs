//! Nodes and the manager: registration, leases, routing, changes of chains.

use super::*;
use crate::chain::manager::Registration;
use corefs_mgmtd::cluster::state::Member;
use corefs_wire::control::mgmtd::{TargetHealthT, TargetState};

impl World {
    /// A node comes up.
    pub(super) fn start(&mut self, node: usize) -> Result<(), String> {
        self.truth.counts.recovered_pendings += self.nodes[node].power_on()?;
        let epoch = self.nodes[node].epoch;
        let place = &mut self.places[node];
        (place.registered, place.stopped_until, place.tick_at) = (false, 0, Nanos::MAX);
        self.look(node)?;
        // What was committed in memory only may be pending again, or gone.
        let place = &mut self.places[node];
        let seen = &place.seen;
        let holds = |chunk: ChunkId, version: u64| {
            seen.values().any(|chunks| chunks[chunk.index as usize].0.0 >= version)
        };
        place.unsettled.retain(|chunk, (version, _)| holds(*chunk, *version));
        self.schedule_tick(node);
        let delay = self.prng.below(50 * MILLI);
        self.after(delay, Happening::Beat { node, epoch });
        Ok(())
    }

    /// A node renews its lease, if the manager finds that it may.
    pub(super) fn heard(&mut self, beat: Heartbeat, epoch: u32, sent: Nanos) {
        let (node, now_ms) = (beat.node, self.now / MILLI);
        if !self.manager.leads(now_ms) {
            return;
        }
        let complains = beat.targets.values().any(|health| health.unreached.is_some());
        self.truth.counts.complaints += u64::from(complains);
        let mut heard = self.manager.heartbeat(now_ms, beat);
        if heard != Heard::Lease && self.config.canary == Some(Canary::LeaseTooSoon) {
            heard = Heard::Lease;
        }
        match heard {
            Heard::Lease => {
                let routing = Rc::clone(&self.manager.routing);
                self.send(End::Manager, End::Node(node), Happening::Leased { node, epoch, sent, routing });
            }
            Heard::Wait => self.truth.counts.leases_withheld += 1,
            Heard::Unknown => self.send(End::Manager, End::Node(node), Happening::Unknown { node, epoch }),
        }
    }

    pub(super) fn store(&mut self, change: Option<Change>) {
        let Some(change) = change else { return };
        self.number += 1;
        let number = self.number;
        self.change = Some((number, change));
        let mut delay = self.prng.between(1, self.config.store_ms) * MILLI;
        // A conflict: the transaction is done again.
        while self.now < self.trouble_until && self.prng.chance(1, 2) {
            self.truth.counts.store_conflicts += 1;
            delay += self.prng.between(5, 300) * MILLI;
        }
        self.after(delay, Happening::Stored { number });
    }

    /// A change reached the store, or nobody knows whether it did: then the manager steps down, and finds out when it leads
    /// again.
    pub(super) fn stored(&mut self, number: u64) -> Result<(), String> {
        if self.change.as_ref().is_none_or(|(stored, _)| *stored != number) {
            return Ok(());
        }
        if self.now < self.trouble_until && self.prng.chance(1, 3) {
            self.truth.counts.store_unknown += 1;
            self.depose();
            return Ok(());
        }
        let change = self.change.take().map(|(_, change)| change);
        change.map_or(Ok(()), |change| self.adopt(change))
    }

    /// The manager leads no more. Its last change reached the store, or it didn't.
    pub(super) fn depose(&mut self) {
        let stored = self.change.take().filter(|_| self.prng.chance(1, 2));
        if let Some((_, change)) = stored {
            self.manager.state_stored(change);
            self.note_members();
        }
        self.manager.replace(self.now / MILLI);
    }

    fn adopt(&mut self, change: Change) -> Result<(), String> {
        let before = self.manager.state.chains.clone();
        let registered = self.manager.stored(self.now / MILLI, change).map_err(|error| error.to_string())?;
        self.note_members();
        self.tell_news();
        let counts = &mut self.truth.counts;
        for (id, chain) in &self.manager.state.chains {
            let Some(old) = before.get(id) else { continue };
            let Some(changes) = chain.version.checked_sub(old.version) else {
                return Err(format!("{id} went back from version {} to {}", old.version, chain.version));
            };
            counts.chain_changes += changes;
            let left = |member: &&Member| chain.members.iter().all(|now| now.target != member.target);
            counts.replicas_moved += old.members.iter().filter(left).count() as u64;
            let state = |members: &[Member], target| {
                members.iter().find(|member| member.target == target).map(|member| member.state)
            };
            for member in chain.members.iter().filter(|member| member.state == Public::Serving) {
                let filled = state(&old.members, member.target) == Some(Public::Syncing);
                counts.replicas_filled += u64::from(filled);
            }
            let served = |members: &[Member]| members.iter().any(|member| member.state == Public::Serving);
            counts.total_losses += u64::from(served(&old.members) && !served(&chain.members));
        }
        if let Some(Registration { node, incarnation, sent }) = registered {
            let (routing, epoch) = (Rc::clone(&self.manager.routing), incarnation as u32);
            let leased = Happening::Leased { node, epoch, sent, routing };
            self.send(End::Manager, End::Node(node), leased);
        }
        Ok(())
    }

    /// Everybody who is registered hears of what has changed. The message may be lost or late: leases bring it, too.
    fn tell_news(&mut self) {
        for node in 0..self.nodes.len() {
            if self.config.news && self.places[node].registered {
                let (epoch, routing) = (self.nodes[node].epoch, Rc::clone(&self.manager.routing));
                self.send(End::Manager, End::Node(node), Happening::News { node, epoch, routing });
            }
        }
    }

    pub(super) fn news(&mut self, node: usize, epoch: u32, routing: &RoutingInfo) -> Result<(), String> {
        if !self.lives(node, epoch) {
            return Ok(());
        }
        self.truth.counts.news += 1;
        let now = self.clock(node);
        self.nodes[node].routing(now, routing);
        self.gather(node);
        self.check_heads()
    }

    /// A node says that it is there.
    pub(super) fn beat(&mut self, node: usize, epoch: u32) {
        if !self.lives(node, epoch) {
            return;
        }
        self.after(333 * MILLI, Happening::Beat { node, epoch });
        let sent = self.clock(node);
        if !self.places[node].registered {
            return self.send(End::Node(node), End::Manager, Happening::Register { node, epoch, sent });
        }
        let canary = self.config.canary;
        let (skips, unheard) =
            (canary == Some(Canary::FillingSkipped), canary == Some(Canary::FilledUnheard));
        let health = |said: &TargetHealthT| TargetHealth {
            up_to_date: (said.up_to_date && !unheard || skips).then_some(said.chain_version),
            version: said.chain_version,
            failed: said.failed,
            unreached: (said.unreached != 0).then_some(TargetId(said.unreached)),
            ..TargetHealth::default()
        };
        let targets = self.nodes[node].healths(sent);
        let targets = targets.iter().map(|said| (TargetId(said.target), health(said))).collect();
        let dead = self.nodes[node].is_dead();
        let beat = Heartbeat { node, incarnation: epoch.into(), targets, dead };
        self.send(End::Node(node), End::Manager, Happening::Heartbeat { beat, epoch, sent });
    }

    /// A node hears from the manager: routing, and until when its lease runs.
    pub(super) fn leased(
        &mut self,
        node: usize,
        epoch: u32,
        sent: Nanos,
        routing: &RoutingInfo,
    ) -> Result<(), String> {
        if !self.lives(node, epoch) {
            return Ok(());
        }
        self.places[node].registered = true;
        let now = self.clock(node);
        if self.config.canary == Some(Canary::PendingsKept) {
            self.keep_pendings(node, now, routing);
        }
        self.nodes[node].routing(now, routing);
        let from = if self.config.canary == Some(Canary::LeaseFromReceipt) { now } else { sent };
        self.nodes[node].lease(now, from + TERMS.lease_ms * MILLI);
        self.gather(node);
        self.check_heads()
    }

    /// Never two heads of a chain hold a lease, unless the chain is about to be told that the earlier one isn't any more, and
    /// commits nothing without it.
    pub(super) fn check_heads(&self) -> Result<(), String> {
        if self.config.black_box {
            return Ok(());
        }
        for chain in self.manager.state.chains.values() {
            let mut heads = Vec::new();
            for member in &chain.members {
                let node = member.node.0 as usize - 1;
                if self.places[node].stopped_until > self.now {
                    continue;
                }
                let role = self.nodes[node].leased_role(self.clock(node), member.target);
                heads.extend(role.filter(|role| role.head).map(|role| (node, role.version)));
            }
            let counts = |node: usize| {
                let here = chain.members.iter().find(|member| member.node == id(node));
                here.is_some_and(|member| matches!(member.state, Public::Serving | Public::Syncing))
            };
            let newest = heads.iter().map(|(_, version)| *version).max().unwrap_or(0);
            let stale = heads.iter().any(|(node, version)| *version < newest && !counts(*node));
            let same = heads.iter().filter(|(_, version)| *version == newest).count() > 1;
            if stale || same {
                return Err(format!("two heads hold a lease (node, chain version): {heads:?}"));
            }
        }
        Ok(())
    }

    /// The canary: whoever is to be filled believes for a moment that it serves alone, and so commits what it has pending.
    fn keep_pendings(&mut self, node: usize, now: Nanos, routing: &RoutingInfo) {
        let mut lie = routing.clone();
        for chain in lie.chains.values_mut() {
            let here = |target| routing.targets.get(&target).is_some_and(|target| target.node == id(node));
            let Some(at) = chain.members.iter().position(|member| here(member.target)) else { continue };
            if chain.members[at].state == TargetState::Syncing {
                chain.version -= 1;
                chain.members.swap(0, at);
                chain.members.truncate(1);
                chain.members[0].state = TargetState::Serving;
            }
        }
        self.nodes[node].lease(now, now + MILLI);
        self.nodes[node].routing(now, &lie);
    }

    /// What everybody may know never goes back, and neither does the version of any chain.
    pub(super) fn check_routing(&mut self) -> Result<(), String> {
        if Rc::ptr_eq(&self.routing, &self.manager.routing) {
            return Ok(());
        }
        let (before, now) = (&self.routing, &self.manager.routing);
        if now.version <= before.version {
            return Err(format!("routing went from version {:x} to {:x}", before.version, now.version));
        }
        for (id, chain) in &now.chains {
            let old = before.chains.get(id).map_or(0, |chain| chain.version);
            if chain.version < old {
                return Err(format!("routing went back: {id} from version {old} to {}", chain.version));
            }
        }
        self.routing = Rc::clone(now);
        Ok(())
    }
}
