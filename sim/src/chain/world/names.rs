//! Metadata servers, their clients, and what is done to chunks for them.

use super::*;
use crate::chain::manager::OwnClock;
use crate::chain::names::{Plan, Wanted};
use crate::chain::wire::{Weather, Wire};

/// Virtual time that a client of names pauses at most.
const THINK: Nanos = 1500 * MILLI;

impl World {
    pub(super) fn names(config: &Config, managers: &Managers, prng: &mut Prng) -> Names {
        let (timers, spawner) = (managers.timers.clone(), managers.tasks.spawner());
        let weather = Weather { loss: config.loss, slow: config.slow };
        let wire = Wire::new(timers.clone(), spawner.clone(), prng.fork(), weather);
        let plan =
            Plan { servers: config.servers, clients: config.namers, think: THINK, canary: config.canary };
        let place = (managers.store.clone(), Rc::clone(&managers.machines));
        let clock = |prng: &mut Prng| OwnClock::new(timers.clone(), DRIFT_PPM, prng);
        Names::new(&plan, wire, spawner, place, clock, &managers.outcomes, prng)
    }

    /// What metadata servers want done to chunks is begun, by hands that are free.
    pub(super) fn lend_hands(&mut self) {
        for hand in self.config.clients..self.clients.len() {
            if self.clients[hand].wish.is_some() {
                continue;
            }
            let Some(ask) = self.names.common.asks.next() else { return };
            self.truth.counts.names_chunks += 1;
            let chunk = ChunkId::new(InodeId(1), (ask.inode.0 % u64::from(self.config.chunks)) as u32);
            let kind = match ask.wanted {
                Wanted::Remove => UpdateKind::Remove,
                Wanted::Truncate { length } => {
                    UpdateKind::Truncate { len: length.min(u64::from(CHUNK)) as u32 }
                }
            };
            let wish = self.new_update(hand, chunk, kind, Vec::new());
            self.clients[hand].ask = Some(ask);
            self.begin(hand, wish);
        }
    }

    /// A hand has done what was wanted, or can't.
    pub(super) fn hand_back(&mut self, hand: usize, result: Result<()>) {
        if let Some(ask) = self.clients[hand].ask.take() {
            ask.outcome.put(result);
            self.names.common.asks.ended();
        }
    }

    /// A process stands still, while its clock goes on.
    pub(super) fn hold_still(&mut self, owner: Owner, duration: Nanos) {
        let until = self.now + duration;
        self.still.insert(owner, until);
        self.managers.tasks.stand_still(owner, true);
        self.after(duration, Happening::ProcessGoesOn { owner, until });
    }

    pub(super) fn kill_server(&mut self, server: usize, duration: Nanos) {
        if self.names.is_server_up(server) {
            let owner = self.names.common.first_server + server;
            self.still.remove(&owner);
            self.names.server_died(server);
            self.managers.tasks.kill(owner);
            self.after(duration, Happening::ServerUp { server });
        }
    }

    pub(super) fn kill_namer(&mut self, namer: usize, duration: Nanos) {
        let owner = self.names.common.first_client + namer;
        self.still.remove(&owner);
        self.names.client_died(namer);
        self.managers.tasks.kill(owner);
        self.after(duration, Happening::NamerUp { namer });
    }
}
