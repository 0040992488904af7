//! Targets come and go as routing says.

use super::Targets;
use crate::chain::{Input, Role};
use crate::event::{Nanos, Output, Outputs};
use crate::target::Target;
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{ChainId, TargetId};
use std::collections::{BTreeMap, BTreeSet};

/// How often it is tried again to make or remove targets (nanoseconds).
const AGAIN: Nanos = 50_000_000;

/// What a target that is to be here needs: its slice (a position), its chain, and its role.
type Wanted = (usize, ChainId, Option<Role>);

/// What routing asks for and couldn't be done at once; tried again now and then.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Owed {
    /// Targets that are to be here.
    missing: BTreeMap<TargetId, Wanted>,
    /// Targets that are no members of any chain: their chunks go.
    gone: BTreeSet<TargetId>,
    /// When to try again.
    pub(super) due: Option<Nanos>,
}

impl Owed {
    /// Targets that can't be made here for the time being, and the chain versions that they should know.
    pub(super) fn missing(&self) -> impl Iterator<Item = (TargetId, u64)> {
        self.missing.iter().map(|(id, (_, _, role))| (*id, role.as_ref().map_or(0, |role| role.version)))
    }
}

impl Targets {
    /// Creates the targets that routing places in slices of this shard, tells every target its role, and removes those that routing
    /// doesn't name.
    pub(super) fn place(&mut self, now: Nanos, routing: &RoutingInfo, out: &mut Outputs) {
        for target in routing.targets.values() {
            let owner = routing.owner(target.id);
            if !owner.is_some_and(|owner| owner.node == self.node && owner.shard == self.shard) {
                continue;
            }
            let chain = routing.chains.get(&target.chain);
            let role = chain.and_then(|chain| Role::of(target.id, chain));
            if !self.targets.contains_key(&target.id) {
                if let Some(position) = self.position(target.slice).filter(|at| self.slices[*at].alive()) {
                    self.create(now, target.id, (position, target.chain, role), out);
                }
            } else if let Some(role) = role {
                self.tell(now, target.id, Input::Role(role), out);
            }
        }
        // Numbers of targets are never used again, and routing only goes forward: what it doesn't name any more is gone for good.
        let gone = |(id, target): &(&TargetId, &Target)| {
            !routing.targets.contains_key(*id) && !target.replica().is_gone()
        };
        let gone: Vec<TargetId> = self.targets.iter().filter(gone).map(|(id, _)| *id).collect();
        for id in gone {
            self.with(now, id, out, Target::leave);
            self.owed.gone.insert(id);
        }
        self.owed.missing.retain(|id, _| routing.targets.contains_key(id));
        self.pay(now, out);
    }

    fn create(&mut self, now: Nanos, id: TargetId, wanted: Wanted, out: &mut Outputs) {
        let (position, chain, role) = wanted;
        let slice = &mut self.slices[position];
        match slice.store.create_target(id, chain) {
            Ok(_) => {
                slice.hurry();
                self.owed.missing.remove(&id);
                self.targets.insert(id, Target::new(id, position));
                if let Some(role) = role {
                    self.tell(now, id, Input::Role(role), out);
                }
            }
            Err(error) => {
                if self.owed.missing.insert(id, (position, chain, role)).is_none() {
                    out.push(Output::TargetFailed { target: id, error });
                }
            }
        }
    }

    /// Makes targets that are to be here and removes those that aren't any more, as far as that can be done now.
    pub(super) fn pay(&mut self, now: Nanos, out: &mut Outputs) {
        for id in std::mem::take(&mut self.owed.gone) {
            let Some(position) = self.targets.get(&id).map(Target::slice) else { continue };
            let slice = &mut self.slices[position];
            if !slice.alive() {
                continue;
            }
            match slice.store.remove_target(id) {
                Ok(_) => slice.hurry(),
                // An update is being prepared, or the journal waits for its checkpoint.
                Err(_) => drop(self.owed.gone.insert(id)),
            }
        }
        for (id, wanted) in self.owed.missing.clone() {
            if self.slices[wanted.0].alive() {
                self.create(now, id, wanted, out);
            }
        }
        let more = !self.owed.gone.is_empty() || !self.owed.missing.is_empty();
        self.owed.due = more.then_some(now + AGAIN);
    }
}
