//! What goes wrong: power, pauses, clocks, partitions, disks, the manager and its store; often several at once.

use super::*;
use crate::chain::kv::TROUBLE;
use corefs_mgmtd::cluster::state::Standing;
use corefs_wire::SliceIndex;
use corefs_wire::control::mgmtd::{ChangeNodeT, NodeChange};

/// One kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    Power,
    /// All nodes lose power at once.
    Blackout,
    /// A node stands still, while its clock goes on.
    Pause,
    /// A node's clock leaps ahead, as after a sleep.
    Leap,
    /// A link is cut, one way or both.
    Link,
    /// All links of a node are cut.
    Isolation,
    ManagerDeath,
    /// A manager stands still, while its clock goes on.
    ManagerPause,
    /// A manager doesn't reach the store.
    StoreCut,
    /// A metadata server dies, or stands still.
    ServerDeath,
    ServerPause,
    /// A client of names dies, or stands still: now and then for longer than its lease.
    NamerDeath,
    NamerPause,
    /// Links between a client of names and metadata servers and managers are cut, one way or both.
    NamerCut,
    /// Commits of the managers' store conflict, and some end nobody knows how.
    Store,
    /// Writes or flushes of a disk fail from now on.
    DiskError,
    SlowDisk,
    Rot,
    Misdirected,
    /// Everything is verified.
    Scrub,
    /// A node is emptied, or taken into use again: its targets move.
    Move,
}

/// How likely each is.
const WEIGHTS: [(Fault, u64); 21] = [
    (Fault::Power, 8),
    (Fault::Blackout, 1),
    (Fault::Pause, 2),
    (Fault::Leap, 1),
    (Fault::Link, 4),
    (Fault::Isolation, 2),
    (Fault::ManagerDeath, 2),
    (Fault::ManagerPause, 1),
    (Fault::StoreCut, 1),
    (Fault::ServerDeath, 2),
    (Fault::ServerPause, 2),
    (Fault::NamerDeath, 1),
    (Fault::NamerPause, 2),
    (Fault::NamerCut, 2),
    (Fault::Store, 2),
    (Fault::DiskError, 2),
    (Fault::SlowDisk, 2),
    (Fault::Rot, 8),
    (Fault::Misdirected, 4),
    (Fault::Scrub, 2),
    (Fault::Move, 5),
];

impl World {
    pub(super) fn schedule_fault(&mut self) {
        if self.faults_left > 0 {
            let delay = self.prng.between(5, self.config.fault_every) * MILLI;
            self.after(delay, Happening::Fault);
        }
    }

    pub(super) fn fault(&mut self) {
        let mut together = 1;
        if self.prng.chance(1, 6) {
            together = self.prng.between(2, 4);
            self.truth.counts.several_at_once += 1;
        }
        for _ in 0..together {
            let fault = self.draw();
            self.strike(fault);
        }
        let now = self.now;
        self.cuts.retain(|(_, _, until)| *until > now);
        self.truth.counts.faults += together;
        self.faults_left -= 1;
        self.schedule_fault();
    }

    fn draw(&mut self) -> Fault {
        let mut left = self.prng.below(WEIGHTS.iter().map(|(_, weight)| weight).sum());
        for (fault, weight) in WEIGHTS {
            match left.checked_sub(weight) {
                Some(less) => left = less,
                None => return fault,
            }
        }
        unreachable!("less than all weights")
    }

    fn strike(&mut self, fault: Fault) {
        let node = self.prng.below(self.nodes.len() as u64) as usize;
        let duration = self.prng.between(50, 4000) * MILLI;
        let until = self.now + duration;
        let counts = &mut self.truth.counts;
        match fault {
            Fault::Power => self.cut_power(node),
            Fault::Blackout => {
                counts.blackouts += 1;
                (0..self.nodes.len()).for_each(|node| self.cut_power(node));
            }
            Fault::Pause => {
                counts.pauses += 1;
                self.places[node].stopped_until = until;
            }
            Fault::Leap => {
                counts.clock_leaps += 1;
                self.places[node].offset += duration;
                self.schedule_tick(node);
            }
            Fault::Link => self.cut_link(node, until),
            Fault::Isolation => {
                counts.isolations += 1;
                let managers = (0..self.managers.count()).map(End::Manager);
                let all = (0..self.nodes.len()).map(End::Node).chain(managers).chain([End::Clients]);
                for peer in all.filter(|peer| *peer != End::Node(node)) {
                    self.cuts.extend([(End::Node(node), peer, until), (peer, End::Node(node), until)]);
                }
            }
            Fault::ManagerDeath => {
                let manager = self.some_manager();
                self.truth.counts.manager_deaths += 1;
                if self.managers.is_up(manager) {
                    self.managers.kill(manager);
                    self.after(duration, Happening::ManagerUp { manager });
                }
            }
            Fault::ManagerPause => {
                let manager = self.some_manager();
                self.truth.counts.manager_pauses += 1;
                if self.managers.is_up(manager) {
                    self.managers.stop(manager, until);
                    self.after(duration, Happening::ManagerGoesOn { manager });
                }
            }
            Fault::StoreCut => {
                let manager = self.some_manager();
                self.truth.counts.store_cuts += 1;
                self.managers.cut_store(manager, until);
                if let Some(server) = self.some_of(self.names.servers()) {
                    self.names.cut_store(server, until);
                }
            }
            Fault::ServerDeath => {
                counts.server_deaths += 1;
                let server = self.some_of(self.names.servers());
                server.into_iter().for_each(|server| self.kill_server(server, duration));
            }
            Fault::ServerPause => {
                counts.server_pauses += 1;
                let server = self.some_of(self.names.servers());
                let owner = server.map(|server| self.names.common.first_server + server);
                owner.into_iter().for_each(|owner| self.hold_still(owner, duration));
            }
            Fault::NamerDeath => {
                counts.namer_deaths += 1;
                let namer = self.some_of(self.names.clients());
                namer.into_iter().for_each(|namer| self.kill_namer(namer, duration));
            }
            Fault::NamerCut => {
                counts.namer_cuts += 1;
                self.cut_namer(duration);
            }
            Fault::NamerPause => {
                counts.namer_pauses += 1;
                let namer = self.some_of(self.names.clients());
                let owner = namer.map(|namer| self.names.common.first_client + namer);
                let longer = if self.prng.chance(1, 3) { 8 } else { 1 };
                owner.into_iter().for_each(|owner| self.hold_still(owner, longer * duration));
            }
            Fault::Store => {
                counts.store_troubles += 1;
                self.trouble_until = until;
                self.managers.store.set_faults(TROUBLE);
                self.after(duration, Happening::StoreWell);
            }
            Fault::DiskError => self.fail_disk(node),
            Fault::SlowDisk => {
                counts.slow_disks += 1;
                self.places[node].slow_until = until;
            }
            Fault::Rot => self.damage(node, false),
            Fault::Move => self.stand(node),
            Fault::Misdirected => self.damage(node, true),
            Fault::Scrub => {
                counts.scrubs += 1;
                let now = self.clock(node);
                self.nodes[node].scrub(now);
                self.gather(node);
            }
        }
    }

    /// One of so many, if there are any.
    fn some_of(&mut self, many: usize) -> Option<usize> {
        (many > 0).then(|| self.prng.below(many as u64) as usize)
    }

    /// Cuts what is between a client of names and a manager or metadata server, or all of them: then now and then for longer than its lease.
    fn cut_namer(&mut self, duration: Nanos) {
        let Some(namer) = self.some_of(self.names.clients()) else { return };
        let common = Rc::clone(&self.names.common);
        // Managers have the numbers before the servers'.
        let all = 0..common.first_client;
        let one = self.prng.below(all.end as u64) as usize;
        let (peers, longer) = match self.prng.below(3) {
            0 => (all, 8),
            1 => (all, 1),
            _ => (one..one + 1, 1),
        };
        let (owner, until) = (common.first_client + namer, self.now + longer * duration);
        let (there, back) = (self.prng.chance(2, 3), self.prng.chance(2, 3));
        for peer in peers {
            if there {
                common.wire.cut(owner, peer, until);
            }
            if back {
                common.wire.cut(peer, owner, until);
            }
        }
    }

    /// Whoever leads, mostly.
    fn some_manager(&mut self) -> usize {
        let any = self.prng.below(self.managers.count() as u64) as usize;
        self.managers.leader().filter(|_| self.prng.chance(2, 3)).unwrap_or(any)
    }

    /// People empty a node, or take one that is emptied into use again.
    fn stand(&mut self, node: usize) {
        let Some(leader) = self.managers.leader() else { return };
        let mut request = ChangeNodeT::default();
        request.node = id(node).0;
        let leaves = self.managers.state.standing(id(node), SliceIndex(0)) == Some(Standing::Leaving);
        request.change = if leaves { NodeChange::Use } else { NodeChange::Empty };
        self.managers.change_node(leader, request);
    }

    fn cut_link(&mut self, node: usize, until: Nanos) {
        let other = self.prng.below(self.nodes.len() as u64) as usize;
        let peer = match self.prng.below(3) {
            0 => End::Manager(self.some_manager()),
            1 => End::Clients,
            _ => End::Node(other),
        };
        let (one, other) =
            if self.prng.chance(1, 2) { (End::Node(node), peer) } else { (peer, End::Node(node)) };
        self.cuts.push((one, other, until));
        let counts = &mut self.truth.counts;
        if self.prng.chance(1, 2) {
            counts.partitions += 1;
            self.cuts.push((other, one, until));
        } else {
            counts.one_way_partitions += 1;
        }
    }

    pub(super) fn cut_power(&mut self, node: usize) {
        if !self.nodes[node].is_on() {
            return;
        }
        let jobs = std::mem::take(&mut self.places[node].jobs).into_values().collect();
        self.nodes[node].power_cut(jobs, &mut self.prng);
        self.truth.counts.power_cuts += 1;
        self.places[node].stopped_until = 0;
        let pause = match self.prng.below(3) {
            0 => self.prng.between(1, 500),
            _ => self.prng.between(500, 6000),
        };
        self.after(pause * MILLI, Happening::On { node });
    }

    /// A disk fails, and is another's worry until its node is started anew.
    fn fail_disk(&mut self, node: usize) {
        if !self.nodes[node].is_on() || self.nodes[node].is_failing() {
            return;
        }
        let flushes_only = self.prng.chance(1, 2);
        self.nodes[node].fail_disk(flushes_only);
        let counts = &mut self.truth.counts;
        let count = if flushes_only { &mut counts.flush_errors } else { &mut counts.write_errors };
        *count += 1;
        let epoch = self.nodes[node].epoch;
        let later = self.prng.between(1000, 8000) * MILLI;
        self.after(later, Happening::Restart { node, epoch });
    }

    /// Nothing new begins, nothing fails any more.
    pub(super) fn end_faults(&mut self) {
        self.ending = true;
        self.cuts.clear();
        self.trouble_until = 0;
        self.managers.store.set_faults(Faults::default());
        self.managers.store.settle();
        (0..self.managers.count()).for_each(|manager| self.managers.cut_store(manager, 0));
        self.names.end();
        for node in 0..self.nodes.len() {
            self.places[node].slow_until = 0;
            let now = self.clock(node);
            self.nodes[node].scrub(now);
            self.gather(node);
        }
    }
}
