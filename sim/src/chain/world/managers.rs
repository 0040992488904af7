//! What managers answer, and what they store.

use super::*;
use crate::chain::manager::Reply;
use corefs_mgmtd::cluster::state::{Chain, Member};
use corefs_wire::control::mgmtd::RoutingT;

impl World {
    /// Managers go on, and their answers leave; what they stored meanwhile is looked at.
    pub(super) fn manage(&mut self) -> Result<(), String> {
        let replies = self.managers.run();
        for (at, ticket) in self.managers.timers.take_fresh() {
            self.after(at - self.now, Happening::Moment { ticket });
        }
        let before = self.managers.state.chains.clone();
        if self.managers.look().map_err(|error| format!("what is stored: {error}"))? {
            self.note_members();
            self.compare(&before)?;
        }
        if !replies.is_empty() {
            if self.managers.leaders() > 1 {
                return Err("two managers lead".into());
            }
            if let Some(manager) = self.managers.astray() {
                return Err(format!("manager {manager} leads by other rows than those that are stored"));
            }
        }
        for (manager, reply) in replies {
            self.reply(manager, reply)?;
        }
        self.lend_hands();
        self.names.common.failure.borrow_mut().take().map_or(Ok(()), Err)
    }

    fn reply(&mut self, manager: usize, reply: Reply) -> Result<(), String> {
        let (node, happening) = match reply {
            Reply::Registered { node, epoch, sent, result } => match result {
                Ok(routing) => {
                    let routing = Some(self.given_out(&routing)?);
                    (node, Happening::Leased { node, epoch, manager, sent, routing })
                }
                Err(error) => (node, Happening::Refused { node, epoch, manager, code: error.code }),
            },
            Reply::Heartbeat { node, epoch, sent, result } => match result {
                Ok(routing) => {
                    let routing = routing.map(|routing| self.given_out(&routing)).transpose()?;
                    (node, Happening::Leased { node, epoch, manager, sent, routing })
                }
                Err(error) => {
                    let withheld = error.code == ErrorCode::NotReady;
                    self.truth.counts.leases_withheld += u64::from(withheld);
                    if error.code == ErrorCode::InvalidArgument {
                        return Err(format!("a manager doesn't understand node {node}: {error}"));
                    }
                    if withheld && self.config.canary == Some(Canary::LeaseTooSoon) {
                        (node, Happening::Leased { node, epoch, manager, sent, routing: None })
                    } else {
                        (node, Happening::Refused { node, epoch, manager, code: error.code })
                    }
                }
            },
            Reply::News { node, epoch, poll, result } => match result {
                Ok(routing) => {
                    let routing = routing.map(|routing| self.given_out(&routing)).transpose()?;
                    (node, Happening::News { node, epoch, poll, routing })
                }
                // It asks again when it has waited.
                Err(_) => return Ok(()),
            },
            Reply::Moves { result } => {
                self.truth.counts.moves_asked += u64::from(result.is_ok());
                return Ok(());
            }
        };
        self.send(End::Manager(manager), End::Node(node), happening);
        Ok(())
    }

    /// A manager gives routing out: it never goes back, neither does the version of any chain, and one version is one routing.
    pub(super) fn given_out(&mut self, routing: &RoutingT) -> Result<Rc<RoutingInfo>, String> {
        let mut now = RoutingInfo::from_message(routing).map_err(|error| format!("routing: {error}"))?;
        match self.config.canary {
            Some(Canary::ReignNotCounted) => now.version = (now.version & u64::from(u32::MAX)) + 1,
            Some(Canary::RoutingUncounted) => now.version |= 1,
            _ => {}
        }
        let before = &self.routing;
        if now.version < before.version {
            return Err(format!("routing went from version {:x} to {:x}", before.version, now.version));
        }
        if now.version == before.version {
            return match now == **before {
                true => Ok(Rc::clone(before)),
                false => Err(format!("two routings with version {:x}", now.version)),
            };
        }
        for (id, chain) in &now.chains {
            let old = before.chains.get(id).map_or(0, |chain| chain.version);
            if chain.version < old {
                return Err(format!("routing went back: {id} from version {old} to {}", chain.version));
            }
        }
        self.routing = Rc::new(now);
        *self.names.common.routing.borrow_mut() = Rc::clone(&self.routing);
        Ok(Rc::clone(&self.routing))
    }

    /// Other chains are stored than before.
    fn compare(&mut self, before: &BTreeMap<ChainId, Chain>) -> Result<(), String> {
        let counts = &mut self.truth.counts;
        for (id, chain) in &self.managers.state.chains {
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
        Ok(())
    }
}
