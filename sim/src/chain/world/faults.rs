//! What goes wrong: power, pauses, partitions, the manager's death.

use super::*;

impl World {
    pub(super) fn schedule_fault(&mut self) {
        if self.faults_left > 0 {
            let delay = self.prng.between(5, self.config.fault_every) * MILLI;
            self.after(delay, Happening::Fault);
        }
    }

    pub(super) fn fault(&mut self) {
        let node = self.prng.below(self.nodes.len() as u64) as usize;
        let other = self.prng.below(self.nodes.len() as u64) as usize;
        let duration = self.prng.between(50, 4000) * MILLI;
        let counts = &mut self.truth.counts;
        match self.prng.below(16) {
            0..=5 => self.cut_power(node),
            6 => {
                counts.blackouts += 1;
                (0..self.nodes.len()).for_each(|node| self.cut_power(node));
            }
            7 | 8 => {
                counts.pauses += 1;
                self.places[node].stopped_until = self.now + duration;
            }
            9..=12 => {
                counts.partitions += 1;
                let peer = match self.prng.below(3) {
                    0 => End::Manager,
                    1 => End::Clients,
                    _ => End::Node(other),
                };
                let (until, both) = (self.now + duration, self.prng.chance(1, 2));
                self.cuts.push((End::Node(node), peer, until));
                if both {
                    self.cuts.push((peer, End::Node(node), until));
                }
            }
            13 | 14 => {
                counts.partitions += 1;
                let until = self.now + duration;
                let all = (0..self.nodes.len()).map(End::Node).chain([End::Manager, End::Clients]);
                for peer in all.filter(|peer| *peer != End::Node(node)) {
                    self.cuts.extend([(End::Node(node), peer, until), (peer, End::Node(node), until)]);
                }
            }
            _ => {
                counts.manager_deaths += 1;
                let stored = self.change.take().filter(|_| self.prng.chance(1, 2));
                if let Some((_, change)) = stored {
                    // Its last change reached the store.
                    self.manager.state_stored(change);
                }
                self.manager.replace(self.now / MILLI);
            }
        }
        let now = self.now;
        self.cuts.retain(|(_, _, until)| *until > now);
        self.faults_left -= 1;
        self.schedule_fault();
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
}
