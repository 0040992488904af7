//! Nodes, and what managers tell them: registration, leases, routing.

use super::*;
use corefs_wire::control::mgmtd::{TargetHealthT, TargetState};

/// Between two heartbeats, after one that nobody answered, and after which another manager is asked, too: as the real ones have it.
const EVERY: Nanos = 333 * MILLI;
const PAUSE: Nanos = 100 * MILLI;
const SILENCE: Nanos = 200 * MILLI;

impl World {
    /// A node comes up.
    pub(super) fn start(&mut self, node: usize) -> Result<(), String> {
        // Now and then its disk isn't there, until it is started once more.
        let there = self.ending || self.faults_left == 0 || !self.prng.chance(1, 15);
        self.truth.counts.recovered_pendings += self.nodes[node].power_on(there)?;
        let epoch = self.nodes[node].epoch;
        if !there {
            self.truth.counts.disks_absent += 1;
            let later = self.prng.between(1000, 8000) * MILLI;
            self.after(later, Happening::Restart { node, epoch });
        }
        let place = &mut self.places[node];
        (place.registered, place.stopped_until, place.tick_at) = (false, 0, Nanos::MAX);
        place.version = 0;
        (place.poll, place.beat) = (place.poll + 1, place.beat + 1);
        let number = place.beat;
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
        self.after(delay, Happening::Beat { node, epoch, number });
        Ok(())
    }

    /// A node says that it is there: to the manager that answered last, and to the next one when that refuses, or says nothing for a while.
    pub(super) fn beat(&mut self, node: usize, epoch: u32, number: u64) {
        if self.lives(node, epoch) && self.places[node].beat == number {
            self.places[node].asked = 0;
            self.places[node].refusals.clear();
            self.ask_manager(node);
        }
    }

    pub(super) fn silence(&mut self, node: usize, epoch: u32, number: u64) {
        if self.lives(node, epoch) && self.places[node].beat == number {
            self.ask_manager(node);
        }
    }

    /// The next heartbeat comes then; what is heard of this one from now on counts, but nobody waits for it.
    fn beat_again(&mut self, node: usize, pause: Nanos) {
        let epoch = self.nodes[node].epoch;
        self.places[node].beat += 1;
        let number = self.places[node].beat;
        self.after(pause, Happening::Beat { node, epoch, number });
    }

    /// Asks the next manager of this heartbeat; when all were, it has failed.
    fn ask_manager(&mut self, node: usize) {
        let (epoch, managers) = (self.nodes[node].epoch, self.managers.count());
        let place = &mut self.places[node];
        if place.asked == managers {
            place.manager = (place.manager + 1) % managers;
            return self.beat_again(node, PAUSE);
        }
        let manager = (place.manager + place.asked) % managers;
        place.asked += 1;
        let number = place.beat;
        self.after(SILENCE, Happening::Silence { node, epoch, number });
        let message = self.heartbeat(node, manager);
        self.send(End::Node(node), End::Manager(manager), message);
    }

    fn heartbeat(&mut self, node: usize, manager: usize) -> Happening {
        let (epoch, sent, dead) = (self.nodes[node].epoch, self.clock(node), self.nodes[node].is_dead());
        if !self.places[node].registered {
            return Happening::Register { manager, node, epoch, sent, dead };
        }
        let canary = self.config.canary;
        let (skips, unheard) =
            (canary == Some(Canary::FillingSkipped), canary == Some(Canary::FilledUnheard));
        let mut request = Box::<NodeHeartbeatT>::default();
        (request.node, request.incarnation) = (id(node).0, epoch.into());
        request.routing_version = self.places[node].version;
        request.slices = slices(node, dead);
        request.targets = self.nodes[node].healths(sent);
        for said in &mut request.targets {
            said.up_to_date = said.up_to_date && !unheard || skips;
        }
        let complains = request.targets.iter().any(|said: &TargetHealthT| said.unreached != 0);
        self.truth.counts.complaints += u64::from(complains);
        Happening::Heartbeat { manager, node, epoch, sent, request }
    }

    /// A node asks for newer routing: when it has some, and when an earlier question wasn't answered for long.
    pub(super) fn poll(&mut self, node: usize, epoch: u32, poll: u64) {
        if !self.lives(node, epoch) || self.places[node].poll != poll || self.ending && !self.config.news {
            return;
        }
        let place = &mut self.places[node];
        place.poll += 1;
        let (manager, poll, have) = (place.manager, place.poll, place.version);
        self.after(POLL_AGAIN, Happening::Poll { node, epoch, poll });
        let polled = Happening::Polled { manager, node, epoch, poll, have };
        self.send(End::Node(node), End::Manager(manager), polled);
    }

    pub(super) fn news(
        &mut self,
        node: usize,
        epoch: u32,
        poll: u64,
        routing: Option<Rc<RoutingInfo>>,
    ) -> Result<(), String> {
        if !self.lives(node, epoch) || self.places[node].poll != poll {
            return Ok(());
        }
        let again = self.prng.between(1, 20) * MILLI;
        self.after(again, Happening::Poll { node, epoch, poll });
        let Some(routing) = routing else { return Ok(()) };
        self.truth.counts.news += 1;
        let now = self.clock(node);
        self.places[node].version = self.places[node].version.max(routing.version);
        self.nodes[node].routing(now, &routing);
        self.gather(node);
        self.check_heads()
    }

    /// A manager doesn't do what a node asked for.
    pub(super) fn refused(&mut self, node: usize, epoch: u32, manager: usize, code: ErrorCode) {
        if !self.lives(node, epoch) || !self.places[node].refusals.insert(manager) {
            return;
        }
        if code == ErrorCode::NodeConflict {
            self.truth.counts.registered_again += u64::from(self.places[node].registered);
            self.places[node].registered = false;
            return self.beat_again(node, PAUSE);
        }
        self.ask_manager(node);
    }

    /// A node hears from a manager until when its lease runs, and routing if it has older.
    pub(super) fn leased(
        &mut self,
        (node, epoch): (usize, u32),
        manager: usize,
        sent: Nanos,
        routing: Option<Rc<RoutingInfo>>,
    ) -> Result<(), String> {
        if !self.lives(node, epoch) {
            return Ok(());
        }
        let place = &mut self.places[node];
        if !std::mem::replace(&mut place.registered, true) && self.config.news {
            let poll = place.poll;
            self.after(0, Happening::Poll { node, epoch, poll });
        }
        let now = self.clock(node);
        let place = &mut self.places[node];
        place.manager = manager;
        if let Some(routing) = routing {
            place.version = place.version.max(routing.version);
            if self.config.canary == Some(Canary::PendingsKept) {
                self.keep_pendings(node, now, &routing);
            }
            self.nodes[node].routing(now, &routing);
        }
        let from = if self.config.canary == Some(Canary::LeaseFromReceipt) { now } else { sent };
        self.nodes[node].lease(now, from + TERMS.lease_ms * MILLI);
        self.gather(node);
        self.beat_again(node, EVERY);
        self.check_heads()
    }

    /// Never two heads of a chain hold a lease, unless the chain is about to be told that the earlier one isn't any more, and
    /// commits nothing without it.
    pub(super) fn check_heads(&self) -> Result<(), String> {
        if self.config.black_box {
            return Ok(());
        }
        for chain in self.managers.state.chains.values() {
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
}
