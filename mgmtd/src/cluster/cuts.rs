//! Nodes that live, and can't reach each other. A chain in which one follows the other stands still, and no lease runs out.
//!
//! Which of the two is to blame can't be known from one complaint: the one that more others have trouble with is. If that decides nothing,
//! the one that comes later in the chain gives way. What was complained of is remembered for a while, because a chain that has gone on
//! without one of them gives no cause for complaints any more.

use corefs_wire::{NodeId, TargetId};
use std::collections::BTreeMap;

/// How long it counts that two nodes couldn't reach each other (milliseconds).
const REMEMBERED_MS: u64 = OUT_MS_MAX;
/// How long a target that nobody could fill stays out, the first time and at most (milliseconds). Each attempt holds its chain's writes up
/// for some seconds, should it fail.
const OUT_MS: u64 = 10_000;
const OUT_MS_MAX: u64 = 60_000;
/// After so long it counts as the first time again (milliseconds).
const FORGIVEN_MS: u64 = 300_000;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Out {
    since_ms: u64,
    for_ms: u64,
    /// As of the last [`Cuts::remember`].
    still: bool,
}

/// A target can't reach the next one of its chain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Complaint {
    pub from: (NodeId, TargetId),
    pub of: (NodeId, TargetId),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Cuts {
    /// The lower number first; when it was last said.
    pairs: BTreeMap<(NodeId, NodeId), u64>,
    out: BTreeMap<TargetId, Out>,
    /// Which target complained of which node less than [`OUT_MS`] ago: its own node, and when.
    said: BTreeMap<(TargetId, NodeId), (NodeId, u64)>,
}

impl Cuts {
    /// What is said now. Whether what follows for chains has changed.
    pub fn remember(&mut self, complaints: &[Complaint], now_ms: u64) -> bool {
        let before: Vec<(NodeId, NodeId)> = self.pairs.keys().copied().collect();
        let said = self.said.len();
        self.pairs.retain(|_, at| now_ms.saturating_sub(*at) < REMEMBERED_MS);
        self.said.retain(|_, (_, at)| now_ms.saturating_sub(*at) < OUT_MS);
        let mut changed = self.said.len() != said;
        for Complaint { from, of } in complaints.iter().filter(|complaint| complaint.from.0 != complaint.of.0)
        {
            self.pairs.insert(pair(from.0, of.0), now_ms);
            self.said.insert((from.1, of.0), (from.0, now_ms));
            let target = of.1;
            let known = self.out.get(&target);
            if known.is_some_and(|out| out.still) {
                continue;
            }
            let longer = known.map_or(OUT_MS, |out| (2 * out.for_ms).min(OUT_MS_MAX));
            self.out.insert(target, Out { since_ms: now_ms, for_ms: longer, still: true });
        }
        changed |= !before.iter().eq(self.pairs.keys());
        self.out.retain(|_, out| now_ms.saturating_sub(out.since_ms) < FORGIVEN_MS);
        for out in self.out.values_mut() {
            let still = now_ms.saturating_sub(out.since_ms) < out.for_ms;
            changed |= out.still && !still;
            out.still = still;
        }
        changed
    }

    /// A node was dead, which explains everything.
    pub fn forget_node(&mut self, node: NodeId) {
        self.pairs.retain(|(one, other), _| *one != node && *other != node);
        self.said.retain(|(_, of), (from, _)| *of != node && *from != node);
    }

    pub fn forget_target(&mut self, target: TargetId) {
        self.out.remove(&target);
        self.said.retain(|(from, _), _| *from != target);
    }

    /// Whether it isn't worth the attempt to fill a target on `node` from `filler`: it said so itself when it came before that one, or it was
    /// complained of.
    pub fn keeps_out(&self, filler: NodeId, node: NodeId, target: TargetId) -> bool {
        let out = || self.out.get(&target).is_some_and(|out| out.still);
        self.has_said(target, filler) || self.pairs.contains_key(&pair(filler, node)) && out()
    }

    /// Whether a target said lately that it can't reach the one of its chain that is on the node `of`.
    pub fn has_said(&self, target: TargetId, of: NodeId) -> bool {
        self.said.contains_key(&(target, of))
    }

    /// Which of two nodes, `later` following `earlier` in a chain, is to give way.
    pub fn to_blame(&self, earlier: NodeId, later: NodeId) -> NodeId {
        if self.troubles(earlier) > self.troubles(later) { earlier } else { later }
    }

    /// With how many others a node has trouble.
    fn troubles(&self, node: NodeId) -> usize {
        self.pairs.keys().filter(|(one, other)| *one == node || *other == node).count()
    }

    /// Pairs of nodes that couldn't reach each other lately.
    pub fn pairs(&self) -> impl Iterator<Item = (NodeId, NodeId)> {
        self.pairs.keys().copied()
    }
}

fn pair(one: NodeId, other: NodeId) -> (NodeId, NodeId) {
    (one.min(other), one.max(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(from: u32, of: u32) -> Complaint {
        let target = |node: u32| (NodeId(node), TargetId(node.into()));
        Complaint { from: target(from), of: target(of) }
    }

    #[test]
    fn whoever_has_more_trouble_is_to_blame() {
        let mut cuts = Cuts::default();
        let blame = |cuts: &Cuts, earlier, later| cuts.to_blame(NodeId(earlier), NodeId(later)).0;
        assert!(cuts.remember(&[complaint(1, 2)], 0));
        assert_eq!((blame(&cuts, 1, 2), blame(&cuts, 2, 1)), (2, 1), "the later one");
        assert!(cuts.remember(&[complaint(1, 3)], 1000));
        assert_eq!((blame(&cuts, 1, 3), blame(&cuts, 3, 1)), (1, 1), "what was said before counts");
        assert!(!cuts.remember(&[complaint(3, 1)], 2000), "the same two");
        assert!(cuts.remember(&[], REMEMBERED_MS), "the first is forgotten");
        assert_eq!(blame(&cuts, 1, 3), 3);
        assert_eq!(cuts.pairs().collect::<Vec<_>>(), [(NodeId(1), NodeId(3))]);
        assert!(!Cuts::default().remember(&[complaint(1, 1)], 0), "a node reaches itself");
    }

    #[test]
    fn what_was_said_is_known_for_a_while_by_target_and_direction() {
        let mut cuts = Cuts::default();
        cuts.remember(&[complaint(1, 2)], 100);
        let said = |cuts: &Cuts, target: u64, of: u32| cuts.has_said(TargetId(target), NodeId(of));
        assert!(said(&cuts, 1, 2) && !said(&cuts, 2, 1), "the other one said nothing");
        assert!(!said(&cuts, 7, 2), "another target, wherever it is, may be reached by it");
        cuts.remember(&[complaint(2, 1)], 200);
        assert!(said(&cuts, 1, 2) && said(&cuts, 2, 1), "one doesn't forget for the other");
        assert!(!cuts.remember(&[], 99 + OUT_MS) && said(&cuts, 1, 2));
        assert!(cuts.remember(&[], 100 + OUT_MS), "it may be tried");
        assert!(!said(&cuts, 1, 2) && said(&cuts, 2, 1));
        cuts.forget_node(NodeId(1));
        assert!(!said(&cuts, 2, 1));
    }

    #[test]
    fn who_cannot_be_filled_stays_out_longer_each_time() {
        let mut cuts = Cuts::default();
        let keeps_out = |cuts: &Cuts| cuts.keeps_out(NodeId(1), NodeId(2), TargetId(2));
        let mut now = 0;
        for expected in [10, 20, 40, 60, 60] {
            cuts.remember(&[complaint(1, 2)], now);
            assert!(keeps_out(&cuts) && !cuts.keeps_out(NodeId(3), NodeId(2), TargetId(2)));
            cuts.remember(&[complaint(1, 2)], now + 1);
            cuts.remember(&[], now + expected * 1000 - 1);
            assert!(keeps_out(&cuts), "{expected}");
            assert!(cuts.remember(&[], now + expected * 1000), "it may be tried again");
            assert!(!keeps_out(&cuts));
            now += expected * 1000 + 2000;
        }
        cuts.remember(&[], now + FORGIVEN_MS);
        cuts.remember(&[complaint(1, 2)], now + FORGIVEN_MS + 1);
        assert!(cuts.remember(&[], now + FORGIVEN_MS + 1 + OUT_MS) && !keeps_out(&cuts));
    }
}
