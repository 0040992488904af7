//! Chains after somebody died, came back or was filled: the [table](super::transition) applied to what is known.
//!
//! # Why nothing that was acknowledged is lost
//!
//! 1. An update is acknowledged, or shown to a reader, only after every serving member of its chain version has it on its
//!    disk, and the one that is being filled as well (engine, chain replication). So whichever serving member is left has
//!    it, at least as pending; it sends its pendings on again under the new version before it takes anything new.
//! 2. A member is taken out only when it can't serve any more: its lease has run out on its own clock before it does here
//!    (it counts from sending, we from receiving, plus a margin), its process is gone, or its slice refuses everything. From
//!    then until the change is stored its node gets no lease: [`may_renew`].
//!    One that lives and isn't reached by its neighbour first becomes one that is being filled, as in 4: only when it has said that it knows
//!    so, and still isn't reached, is it taken out. Nothing of this depends on whose fault it is.
//! 3. A member comes in only when it says that it was filled completely under the very chain version that is still the
//!    chain's, or was spared (4), or after a total loss if it belongs to the last set that served: everything that was acknowledged is on each
//!    of that set.
//! 4. A member leaves when all that stay serve. It has everything as well until then, and could be read; so it first becomes
//!    one that is being filled, which answers no reads, and nothing is committed without it. It goes when it says that it has
//!    everything under that very chain version: then it knows that it doesn't serve, and what is committed without it can't
//!    be missed by anybody who reads there.
//!    Who gave its head away, or way to a neighbour, has everything too until something of that is replaced by a fill. Should the others be gone
//!    before it was filled it waits, under a version under which nothing that was sent to it is let in; and if it then says that nothing was replaced, it serves.
//!    Should all others be gone before it has said that it knows, it stays: whoever comes back has it behind him.
//! 5. Every change raises the chain version, in the transaction that checks the manager's lease; messages of other versions
//!    are refused. So updates of an old and of a new configuration never mix.
//! 6. A node is recognised by the store uuids of its slices, and its directory is locked by one process.

use super::liveness::{Liveness, SliceHealth};
use super::state::{Chain, Member, State};
use super::transition::{Local, Public, Seat, advance};
use corefs_wire::{NodeId, TargetId};

/// A restart or a total loss takes some steps through the table; none takes more than this.
const PASSES_MAX: usize = 4;

/// A node that registers right now as another process, and how it says that its slices are: what was heard of the earlier process
/// counts no more, and who comes back without a disk has nothing to serve from it.
#[derive(Clone, Copy)]
pub struct Restart<'a> {
    pub node: NodeId,
    pub slices: &'a [SliceHealth],
}

/// Applies the table to every chain until nothing changes. How many chains changed.
pub fn reconfigure(state: &mut State, liveness: &Liveness, restarted: Option<Restart<'_>>) -> usize {
    let mut changed = 0;
    for chain in state.chains.values_mut() {
        let (before, trouble) = (chain.version, Trouble::of(chain, liveness));
        for pass in 0..PASSES_MAX {
            if !step(chain, liveness, &trouble, restarted, pass == 0) {
                break;
            }
        }
        changed += usize::from(chain.version != before);
    }
    changed
}

/// Whether [`reconfigure`] would change anything.
pub fn is_due(state: &State, liveness: &Liveness) -> bool {
    let due = |chain: &Chain| step(&mut chain.clone(), liveness, &Trouble::of(chain, liveness), None, true);
    state.chains.values().any(due)
}

/// Whether a node may be given a lease: not while it counts as dead and some chain still has to be told.
pub fn may_renew(state: &State, liveness: &Liveness, node: NodeId) -> bool {
    let counts =
        |member: &Member| member.node == node && matches!(member.state, Public::Serving | Public::Syncing);
    liveness.node_alive(node) || !state.chains.values().flat_map(|chain| &chain.members).any(counts)
}

/// Which members have neighbours that they don't reach, or that don't reach them, as was said under the chain's present version.
struct Trouble {
    /// Serves with others, and is to give way.
    gives_way: Option<TargetId>,
    /// Is being filled, and isn't reached by who fills it.
    unfilled: Option<TargetId>,
}

impl Trouble {
    fn of(chain: &Chain, liveness: &Liveness) -> Self {
        let mut found = Self { gives_way: None, unfilled: None };
        let serving = chain.members.iter().filter(|member| member.state == Public::Serving).count();
        for (one, other) in chain.members.iter().zip(chain.members.iter().skip(1)) {
            // One of these two has just said that it can't reach the other, and is to be filled by it or to fill it: that this fails needn't be
            // waited for.
            let fills = one.state == Public::Serving && other.state == Public::Syncing;
            let cuts = liveness.cuts();
            if fills && (cuts.has_said(other.target, one.node) || cuts.has_said(one.target, other.node)) {
                found.unfilled = Some(other.target);
            }
            if !complains(chain, one, other, liveness) {
                continue;
            }
            let earlier = liveness.cuts().to_blame(one.node, other.node) == one.node;
            if earlier && serving > 1 {
                found.gives_way.get_or_insert(one.target);
            } else if other.state == Public::Serving {
                found.gives_way.get_or_insert(other.target);
            } else {
                found.unfilled = Some(other.target);
            }
        }
        found
    }
}

/// Whether a member that serves says that it can't reach the next one, which it must.
fn complains(chain: &Chain, one: &Member, other: &Member, liveness: &Liveness) -> bool {
    let says = liveness.complains_of(one.target) == Some(other.target)
        && liveness.target(one.target).is_some_and(|health| health.version == chain.version);
    let must = one.state == Public::Serving && matches!(other.state, Public::Serving | Public::Syncing);
    says && must && one.node != other.node
}

/// One application of the table; whether anything changed.
fn step(
    chain: &mut Chain,
    liveness: &Liveness,
    trouble: &Trouble,
    restarted: Option<Restart<'_>>,
    first: bool,
) -> bool {
    let serving = chain.members.iter().filter(|member| member.state == Public::Serving).count();
    let gives_way = |member: &Member| {
        trouble.gives_way == Some(member.target) && member.state == Public::Serving && serving > 1
    };
    let seat = |member: &Member| Seat {
        target: member.target,
        public: member.state,
        local: match local(chain.version, member, liveness, restarted, first) {
            Local::UpToDate | Local::Online | Local::Behind if gives_way(member) => Local::Cut,
            Local::Online if first && trouble.unfilled == Some(member.target) => Local::Offline,
            _ if keeps_out(chain, member, liveness) => Local::Offline,
            local => local,
        },
        leaving: member.leaving,
    };
    let seats: Vec<Seat> = chain.members.iter().map(seat).collect();
    let (order, changed) = advance(&seats, &chain.last_set);
    if !changed {
        return false;
    }
    let of = |target| chain.members.iter().find(|member| member.target == target);
    let members = order.iter().filter_map(|(target, state)| Some(Member { state: *state, ..*of(*target)? }));
    chain.members = members.collect();
    chain.version += 1;
    let serving = || chain.members.iter().filter(|member| member.state == Public::Serving);
    if serving().next().is_some() {
        chain.last_set = serving().map(|member| member.target).collect();
    }
    debug_assert!(
        chain.last_set.iter().all(|last| chain.members.iter().any(|member| member.target == *last))
    );
    true
}

/// Whether a member that is away was out of reach for who would fill it, so lately that it isn't tried again yet. What would put it out again
/// ([`Trouble`]) keeps it out.
fn keeps_out(chain: &Chain, member: &Member, liveness: &Liveness) -> bool {
    let filler = chain.members.iter().rfind(|other| other.state == Public::Serving);
    let cuts = liveness.cuts();
    let out = |filler: &Member| {
        cuts.keeps_out(filler.node, member.node, member.target) || cuts.has_said(filler.target, member.node)
    };
    matches!(member.state, Public::Waiting | Public::Offline) && filler.is_some_and(out)
}

/// What is known of a member.
fn local(
    version: u64,
    member: &Member,
    liveness: &Liveness,
    restarted: Option<Restart<'_>>,
    first: bool,
) -> Local {
    let is_dead =
        |slices: &[SliceHealth]| slices.get(usize::from(member.slice.0)).is_some_and(|slice| slice.dead);
    if let Some(restarted) = restarted.filter(|restarted| restarted.node == member.node) {
        return match first {
            _ if is_dead(restarted.slices) => Local::Offline,
            true => Local::Restarted,
            false => Local::Online,
        };
    }
    let Some(node) = liveness.node(member.node).filter(|node| node.alive) else { return Local::Offline };
    let dead = is_dead(liveness.slices(member.node));
    let health = liveness.target(member.target);
    let knows = health.is_some_and(|health| health.version == version);
    // Who serves, or may believe so, isn't taken out for having failed to be filled earlier.
    let counts = match member.state {
        Public::Serving | Public::LastServing => false,
        Public::Syncing => knows,
        Public::Waiting | Public::Offline => true,
    };
    if dead || counts && health.is_some_and(|health| health.failed) {
        return Local::Offline;
    }
    match member.state {
        // A new primary assumes that everybody lives: enough to leave things as they are, not to change them.
        Public::Offline | Public::Waiting | Public::LastServing if !node.spoke => Local::Offline,
        _ if health.is_some_and(|health| health.up_to_date == Some(version)) => Local::UpToDate,
        _ if knows => Local::Online,
        _ => Local::Behind,
    }
}

#[cfg(test)]
mod tests {
    use super::super::liveness::{SliceHealth, TargetHealth, tests::TERMS};
    use super::super::moves;
    use super::super::state::tests::formed;
    use super::*;
    use corefs_wire::{ChainId, TargetId};
    use std::collections::BTreeMap;

    const CHAIN: ChainId = ChainId(1);

    /// Three nodes, three replicas; everybody was heard of at 0.
    fn world() -> (State, Liveness) {
        let state = formed(3, 3);
        let mut liveness = Liveness::new(TERMS);
        for node in 1..=3 {
            liveness.hear_node(NodeId(node), vec![SliceHealth::default(); 8], 0);
        }
        (state, liveness)
    }

    fn states(state: &State) -> Vec<Public> {
        state.chains[&CHAIN].members.iter().map(|member| member.state).collect()
    }

    fn nodes(state: &State) -> Vec<u32> {
        state.chains[&CHAIN].members.iter().map(|member| member.node.0).collect()
    }

    fn hear(liveness: &mut Liveness, node: u32, now_ms: u64) {
        liveness.hear_node(NodeId(node), vec![SliceHealth::default(); 8], now_ms);
    }

    fn back(node: u32) -> Option<Restart<'static>> {
        Some(Restart { node: NodeId(node), slices: &[] })
    }

    fn say(liveness: &mut Liveness, state: &State, position: usize, health: TargetHealth) {
        let member = state.chains[&CHAIN].members[position];
        let now_ms = liveness.node(member.node).map_or(0, |heard| heard.at_ms);
        liveness.hear_targets(member.node, BTreeMap::from([(member.target, health)]), now_ms);
    }

    #[test]
    fn a_node_that_falls_silent_is_taken_out_filled_and_taken_in_again() {
        use Public::{Offline, Serving, Syncing};
        let (mut state, mut liveness) = world();
        assert!(!is_due(&state, &liveness));
        let lost = NodeId(nodes(&state)[0]);
        let others: Vec<u32> = nodes(&state)[1..].to_vec();
        others.iter().for_each(|node| hear(&mut liveness, *node, 1000));
        assert!(may_renew(&state, &liveness, lost));
        liveness.expire(1201);
        assert!(is_due(&state, &liveness));
        assert!(!may_renew(&state, &liveness, lost), "it serves for the others, who must be told first");
        assert_eq!(reconfigure(&mut state, &liveness, None), state.chains.len());
        state.check().unwrap();
        assert_eq!((states(&state), nodes(&state)[2]), (vec![Serving, Serving, Offline], lost.0));
        assert_eq!(state.chains[&CHAIN].version, 2);
        assert!(may_renew(&state, &liveness, lost));
        // The same process is back: it has missed updates.
        hear(&mut liveness, lost.0, 1500);
        reconfigure(&mut state, &liveness, None);
        assert_eq!(states(&state), [Serving, Serving, Syncing]);
        let version = state.chains[&CHAIN].version;
        let claim = |version| TargetHealth { up_to_date: Some(version), ..TargetHealth::default() };
        say(&mut liveness, &state, 2, claim(version - 1));
        assert!(!is_due(&state, &liveness), "a claim of an earlier version counts for nothing");
        say(&mut liveness, &state, 2, claim(version));
        reconfigure(&mut state, &liveness, None);
        assert_eq!((states(&state), state.chains[&CHAIN].version), (vec![Serving; 3], version + 1));
        assert_eq!(state.chains[&CHAIN].last_set.len(), 3);
    }

    #[test]
    fn a_restarted_process_never_serves_straight_on() {
        let (mut state, liveness) = world();
        let node = nodes(&state)[1];
        reconfigure(&mut state, &liveness, back(node));
        state.check().unwrap();
        assert_eq!(states(&state), [Public::Serving, Public::Serving, Public::Syncing]);
        assert_eq!((nodes(&state)[2], state.chains[&CHAIN].version), (node, 3));
        // Its replica is the only one: it is complete.
        let mut alone = formed(1, 1);
        let mut liveness = Liveness::new(TERMS);
        liveness.hear_node(NodeId(1), vec![SliceHealth::default(); 8], 0);
        reconfigure(&mut alone, &liveness, back(1));
        assert_eq!((states(&alone), alone.chains[&CHAIN].version), (vec![Public::Serving], 3));
    }

    #[test]
    fn after_total_loss_the_first_of_the_last_set_serves() {
        use Public::{LastServing, Offline, Serving, Syncing};
        let (mut state, mut liveness) = world();
        let order = nodes(&state);
        liveness.expire(5000);
        reconfigure(&mut state, &liveness, None);
        assert_eq!(states(&state), [LastServing, Offline, Offline]);
        assert_eq!(state.chains[&CHAIN].last_set.len(), 3);
        reconfigure(&mut state, &liveness, back(order[2]));
        hear(&mut liveness, order[2], 6000);
        assert_eq!((states(&state), nodes(&state)[0]), (vec![Serving, Offline, Offline], order[2]));
        assert_eq!(state.chains[&CHAIN].last_set.len(), 1);
        state.check().unwrap();
        reconfigure(&mut state, &liveness, back(order[0]));
        hear(&mut liveness, order[0], 6000);
        assert_eq!((states(&state), nodes(&state)[1]), (vec![Serving, Syncing, Offline], order[0]));
        // The one that isn't complete doesn't stand in; and it stays until it has said that it knows what it is.
        liveness.expire(6500);
        hear(&mut liveness, order[0], 7500);
        liveness.expire(7600);
        reconfigure(&mut state, &liveness, None);
        assert_eq!(states(&state)[..2], [LastServing, Syncing]);
        let version = state.chains[&CHAIN].version;
        say(&mut liveness, &state, 1, TargetHealth { version, ..TargetHealth::default() });
        reconfigure(&mut state, &liveness, None);
        assert_eq!(states(&state)[..2], [LastServing, Public::Waiting]);
    }

    /// It has given its head away, or way to a neighbour, and then the others die: it holds everything, and says so when it knows that nobody serves.
    #[test]
    fn who_was_spared_serves_when_the_others_are_gone() {
        use Public::{LastServing, Offline, Serving, Syncing, Waiting};
        let (mut state, mut liveness) = world();
        let order = nodes(&state);
        moves::apply(&mut state, moves::Step::Rotate { chain: CHAIN });
        assert_eq!((states(&state), nodes(&state)[2]), (vec![Serving, Serving, Syncing], order[0]));
        let claim = |version, spared: bool| TargetHealth {
            version,
            up_to_date: spared.then_some(version),
            ..TargetHealth::default()
        };
        say(&mut liveness, &state, 2, claim(2, false));
        hear(&mut liveness, order[0], 1000);
        liveness.expire(1201);
        reconfigure(&mut state, &liveness, None);
        assert_eq!(states(&state), [LastServing, Waiting, Offline]);
        assert_eq!(nodes(&state)[1], order[0]);
        let version = state.chains[&CHAIN].version;
        let mut other = state.clone();
        // What it says under the version before counts for nothing: who filled it may still have sent something.
        say(&mut liveness, &state, 1, claim(version - 1, true));
        assert!(!is_due(&state, &liveness));
        say(&mut liveness, &state, 1, claim(version, false));
        assert!(!is_due(&state, &liveness), "it was given something");
        say(&mut liveness, &state, 1, claim(version, true));
        reconfigure(&mut state, &liveness, None);
        state.check().unwrap();
        assert_eq!((states(&state)[0], nodes(&state)[0]), (Serving, order[0]));
        assert_eq!(state.chains[&CHAIN].last_set.len(), 1);
        // Whoever served is back first: then that one does.
        reconfigure(&mut other, &liveness, back(order[1]));
        assert_eq!((states(&other)[0], nodes(&other)[0]), (Serving, order[1]));
    }

    /// All nodes died; the first to come back has lost a disk. What it had there is no copy of anything: the others have.
    #[test]
    fn who_comes_back_without_its_disk_serves_nothing_from_it() {
        use Public::{LastServing, Offline, Serving};
        let (mut state, mut liveness) = world();
        let order = nodes(&state);
        liveness.expire(5000);
        reconfigure(&mut state, &liveness, None);
        let first = state.chains[&CHAIN].members[0];
        let mut slices = [SliceHealth::default(); 8];
        slices[usize::from(first.slice.0)].dead = true;
        let restart = Restart { node: first.node, slices: &slices };
        reconfigure(&mut state, &liveness, Some(restart));
        liveness.hear_node(first.node, slices.to_vec(), 6000);
        reconfigure(&mut state, &liveness, None);
        assert_eq!(states(&state), [LastServing, Offline, Offline]);
        assert_eq!(state.chains[&CHAIN].last_set.len(), 3, "the others are complete");
        let elsewhere = |chain: &&Chain| {
            let on = |member: &&Member| member.node == first.node;
            chain.members.iter().find(on).is_some_and(|member| member.slice != first.slice)
        };
        assert!(state.chains.values().filter(elsewhere).all(|chain| chain.members[0].state == Serving));
        reconfigure(&mut state, &liveness, back(order[2]));
        hear(&mut liveness, order[2], 6100);
        assert_eq!((states(&state), nodes(&state)[0]), (vec![Serving, Offline, Offline], order[2]));
        state.check().unwrap();
    }

    #[test]
    fn a_dead_slice_and_a_failed_filling_take_only_their_targets_out() {
        let (mut state, mut liveness) = world();
        let member = state.chains[&CHAIN].members[0];
        let mut slices = vec![SliceHealth::default(); 8];
        slices[usize::from(member.slice.0)].dead = true;
        liveness.hear_node(member.node, slices, 0);
        reconfigure(&mut state, &liveness, None);
        let out: Vec<TargetId> = state
            .chains
            .values()
            .flat_map(|chain| &chain.members)
            .filter(|member| member.state == Public::Offline)
            .map(|member| member.target)
            .collect();
        assert!(out.contains(&member.target) && out.len() * 3 < state.chains.len() * 3 / 2, "{}", out.len());
        hear(&mut liveness, member.node.0, 0);
        reconfigure(&mut state, &liveness, None);
        assert_eq!(states(&state)[2], Public::Syncing);
        let failed = TargetHealth { failed: true, ..TargetHealth::default() };
        say(&mut liveness, &state, 2, failed);
        assert!(!is_due(&state, &liveness), "it says that of an earlier time");
        say(&mut liveness, &state, 2, TargetHealth { version: state.chains[&CHAIN].version, ..failed });
        reconfigure(&mut state, &liveness, None);
        assert_eq!(states(&state)[2], Public::Offline);
    }

    /// The member at a position says that it can't reach the next one, and the manager looks.
    fn complain(state: &mut State, liveness: &mut Liveness, position: usize, now_ms: u64) {
        let (version, next) =
            (state.chains[&CHAIN].version, state.chains[&CHAIN].members[position + 1].target);
        let health = TargetHealth { version, unreached: Some(next), ..TargetHealth::default() };
        say(liveness, state, position, health);
        look(state, liveness, now_ms);
        state.check().unwrap();
    }

    /// The manager looks, and everybody has just been heard of.
    fn look(state: &mut State, liveness: &mut Liveness, now_ms: u64) {
        (1..=3).for_each(|node| hear(liveness, node, now_ms));
        liveness.expire(now_ms);
        reconfigure(state, liveness, None);
    }

    fn knows(liveness: &mut Liveness, state: &State, position: usize, complete: bool) {
        let version = state.chains[&CHAIN].version;
        let up_to_date = complete.then_some(version);
        say(liveness, state, position, TargetHealth { version, up_to_date, ..TargetHealth::default() });
    }

    /// As [`world`], and everybody has said what targets they have.
    fn spoken() -> (State, Liveness) {
        let (state, mut liveness) = world();
        (0..3).for_each(|position| knows(&mut liveness, &state, position, false));
        (state, liveness)
    }

    #[test]
    fn one_that_its_neighbour_cannot_reach_goes_behind_somebody_who_can() {
        use Public::{Serving, Syncing};
        let (mut state, mut liveness) = spoken();
        let order = nodes(&state);
        complain(&mut state, &mut liveness, 0, 100);
        assert_eq!(states(&state), [Serving, Serving, Syncing]);
        assert_eq!(nodes(&state), [order[0], order[2], order[1]]);
        assert!(!is_due(&state, &liveness), "now somebody else is its neighbour");
        knows(&mut liveness, &state, 2, true);
        reconfigure(&mut state, &liveness, None);
        assert_eq!((states(&state), nodes(&state)), (vec![Serving; 3], vec![order[0], order[2], order[1]]));
    }

    #[test]
    fn one_that_nobody_can_fill_is_taken_out_when_it_knows_that_it_does_not_serve_and_tried_again_later() {
        use Public::{Offline, Serving, Syncing};
        let (mut state, mut liveness) = spoken();
        let last = nodes(&state)[2];
        complain(&mut state, &mut liveness, 1, 100);
        assert_eq!((states(&state), nodes(&state)[2]), (vec![Serving, Serving, Syncing], last));
        complain(&mut state, &mut liveness, 1, 200);
        assert_eq!(states(&state), [Serving, Serving, Syncing], "it may still answer reads");
        knows(&mut liveness, &state, 1, false);
        knows(&mut liveness, &state, 2, false);
        assert!(is_due(&state, &liveness), "nobody need complain of it once more");
        look(&mut state, &mut liveness, 300);
        assert_eq!((states(&state), nodes(&state)[2]), (vec![Serving, Serving, Offline], last));
        for (now_ms, expected) in [(5000, Offline), (10_199, Offline), (10_200, Syncing)] {
            look(&mut state, &mut liveness, now_ms);
            assert_eq!(states(&state)[2], expected, "{now_ms}");
            let version = state.chains[&CHAIN].version;
            knows(&mut liveness, &state, 2, false);
            look(&mut state, &mut liveness, now_ms);
            assert_eq!(state.chains[&CHAIN].version, version, "{now_ms}: it is out for good, or for no time");
        }
    }

    #[test]
    fn one_that_reaches_nobody_gives_way_itself() {
        use Public::{Serving, Syncing};
        let (mut state, mut liveness) = spoken();
        let order = nodes(&state);
        complain(&mut state, &mut liveness, 0, 100);
        knows(&mut liveness, &state, 2, true);
        complain(&mut state, &mut liveness, 0, 200);
        assert_eq!(nodes(&state), [order[2], order[1], order[0]], "the second complaint tells who it is");
        assert_eq!(states(&state), [Serving, Serving, Syncing]);
    }

    #[test]
    fn one_that_gave_way_to_who_would_fill_it_is_out_as_soon_as_it_knows() {
        use Public::{Offline, Serving, Syncing};
        let (mut state, mut liveness) = spoken();
        let [first, second, third] = nodes(&state)[..] else { panic!("three replicas") };
        // In some other chain the first two can't reach each other, either.
        let (other, from, to) = state
            .chains
            .iter()
            .flat_map(|(id, chain)| chain.members.windows(2).map(move |pair| (*id, pair[0], pair[1])))
            .find(|(id, from, to)| {
                *id != CHAIN && [(first, second), (second, first)].contains(&(from.node.0, to.node.0))
            })
            .expect("they are neighbours elsewhere, too");
        let heard = |member: &Member, unreached| {
            let version = state.chains[&other].version;
            let health = TargetHealth { version, unreached, ..TargetHealth::default() };
            (member.node, BTreeMap::from([(member.target, health)]))
        };
        for (node, targets) in [heard(&to, None), heard(&from, Some(to.target))] {
            liveness.hear_targets(node, targets, 0);
        }
        (1..=3).for_each(|node| hear(&mut liveness, node, 50));
        liveness.expire(50);
        (0..3).for_each(|position| knows(&mut liveness, &state, position, false));
        complain(&mut state, &mut liveness, 1, 100);
        assert_eq!(
            (states(&state), nodes(&state)),
            (vec![Serving, Serving, Syncing], vec![first, third, second])
        );
        assert!(!is_due(&state, &liveness), "it may still answer reads");
        knows(&mut liveness, &state, 2, false);
        assert!(is_due(&state, &liveness), "nobody need complain of it");
        reconfigure(&mut state, &liveness, None);
        assert_eq!(
            (states(&state), nodes(&state)),
            (vec![Serving, Serving, Offline], vec![first, third, second])
        );
        for (now_ms, expected) in [(10_099, Offline), (10_100, Syncing)] {
            look(&mut state, &mut liveness, now_ms);
            assert_eq!(states(&state)[2], expected, "{now_ms}");
        }
    }

    #[test]
    fn one_that_is_being_filled_makes_room_for_one_that_is_not_reached() {
        use Public::{Serving, Syncing, Waiting};
        let (mut state, mut liveness) = spoken();
        let order = nodes(&state);
        reconfigure(&mut state, &liveness, back(order[2]));
        assert_eq!(states(&state), [Serving, Serving, Syncing]);
        complain(&mut state, &mut liveness, 0, 100);
        assert_eq!(states(&state), [Serving, Serving, Syncing], "it may not know yet what it is");
        knows(&mut liveness, &state, 2, false);
        complain(&mut state, &mut liveness, 0, 200);
        assert_eq!((states(&state), nodes(&state)), (vec![Serving, Syncing, Waiting], order));
    }

    #[test]
    fn who_alone_serves_goes_on() {
        use Public::{Offline, Serving};
        let (mut state, mut liveness) = spoken();
        let order = nodes(&state);
        hear(&mut liveness, order[0], 1300);
        liveness.expire(1300);
        reconfigure(&mut state, &liveness, None);
        assert_eq!(states(&state), [Serving, Offline, Offline]);
        hear(&mut liveness, order[1], 1400);
        reconfigure(&mut state, &liveness, None);
        for now_ms in [1500, 1600] {
            knows(&mut liveness, &state, 1, false);
            complain(&mut state, &mut liveness, 0, now_ms);
            assert_eq!((states(&state)[0], nodes(&state)[0]), (Serving, order[0]));
        }
        assert!(states(&state).contains(&Offline), "out of its reach");
    }

    #[test]
    fn a_new_primary_changes_nothing_on_hearsay() {
        let (mut state, mut liveness) = world();
        let order = nodes(&state);
        order[1..].iter().for_each(|node| hear(&mut liveness, *node, 1000));
        liveness.expire(1201);
        reconfigure(&mut state, &liveness, None);
        let mut fresh = Liveness::new(TERMS);
        (1..=3).for_each(|node| fresh.assume_node(NodeId(node), 0));
        assert!(!is_due(&state, &fresh));
        hear(&mut fresh, order[0], 10);
        assert!(is_due(&state, &fresh));
    }
}
