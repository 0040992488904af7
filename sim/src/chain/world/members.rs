//! Nodes, and what managers tell them: registration, leases, routing.

use super::*;
use corefs_wire::control::mgmtd::{TargetHealthT, TargetState};

impl World {
    /// A node comes up.
    pub(super) fn start(&mut self, node: usize) -> Result<(), String> {
        self.truth.counts.recovered_pendings += self.nodes[node].power_on()?;
        let epoch = self.nodes[node].epoch;
        let place = &mut self.places[node];
        (place.registered, place.stopped_until, place.tick_at) = (false, 0, Nanos::MAX);
        (place.version, place.answered) = (0, true);
        place.poll += 1;
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

    /// A node says that it is there.
    pub(super) fn beat(&mut self, node: usize, epoch: u32) {
        if !self.lives(node, epoch) {
            return;
        }
        self.after(333 * MILLI, Happening::Beat { node, epoch });
        let (sent, dead) = (self.clock(node), self.nodes[node].is_dead());
        // Whoever doesn't answer isn't asked again.
        let (managers, place) = (self.managers.count(), &mut self.places[node]);
        if !std::mem::take(&mut place.answered) {
            place.manager = (place.manager + 1) % managers;
        }
        let (manager, have) = (place.manager, place.version);
        if !place.registered {
            let register = Happening::Register { manager, node, epoch, sent, dead };
            return self.send(End::Node(node), End::Manager(manager), register);
        }
        let canary = self.config.canary;
        let (skips, unheard) =
            (canary == Some(Canary::FillingSkipped), canary == Some(Canary::FilledUnheard));
        let mut request = Box::<NodeHeartbeatT>::default();
        (request.node, request.incarnation, request.routing_version) = (id(node).0, epoch.into(), have);
        request.slices = slices(node, dead);
        request.targets = self.nodes[node].healths(sent);
        for said in &mut request.targets {
            said.up_to_date = said.up_to_date && !unheard || skips;
        }
        let complains = request.targets.iter().any(|said: &TargetHealthT| said.unreached != 0);
        self.truth.counts.complaints += u64::from(complains);
        let beat = Happening::Heartbeat { manager, node, epoch, sent, request };
        self.send(End::Node(node), End::Manager(manager), beat);
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
    pub(super) fn refused(&mut self, node: usize, epoch: u32, code: ErrorCode) {
        if !self.lives(node, epoch) {
            return;
        }
        let managers = self.managers.count();
        let place = &mut self.places[node];
        place.answered = true;
        match code {
            ErrorCode::NodeConflict => {
                self.truth.counts.registered_again += u64::from(place.registered);
                place.registered = false;
            }
            ErrorCode::NotReady => {}
            _ => place.manager = (place.manager + 1) % managers,
        }
    }

    /// A node hears from a manager until when its lease runs, and routing if it has older.
    pub(super) fn leased(
        &mut self,
        node: usize,
        epoch: u32,
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
        place.answered = true;
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
