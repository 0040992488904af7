//! What is wrong with the cluster, each with what to type or to do about it.

use super::domains;
use super::liveness::Liveness;
use super::moves;
use super::state::{Chain, Member, Node, Standing, State};
use super::transition::Public;
use corefs_wire::control::mgmtd::ProblemT;
use corefs_wire::{NodeId, SliceIndex};
use std::collections::BTreeSet;

/// A slice fuller than this is worth a word.
const FULL_PERCENT: u64 = 90;
/// So many of those concerned are named.
const NAMES_SHOWN: usize = 4;

/// In order of weight. Empty: nothing is wrong.
pub fn problems(state: &State, liveness: &Liveness, now_ms: u64) -> Vec<ProblemT> {
    let mut out = Vec::new();
    let mut say = |what: String, remedy: &str| {
        let mut problem = ProblemT::default();
        (problem.what, problem.remedy) = (what, remedy.to_owned());
        out.push(problem);
    };
    if let Err(error) = state.formation.feasible() {
        say(error.message, "stop the manager and start it again with numbers that fit");
    } else if !state.formed() {
        let (expected, found) = (state.formation.nodes, usable_nodes(state, liveness));
        say(
            format!("no chains yet: {found} of {expected} storage nodes have registered with usable slices"),
            "start the missing ones: corefs storage --manager ADDR --dir DIR",
        );
    }
    for (id, node) in &state.nodes {
        match liveness.node(*id) {
            Some(heard) if heard.alive => {}
            Some(heard) => say(
                format!(
                    "{id} ({}) is dead, last heard of {} s ago; its chains go on without it",
                    node.control,
                    now_ms.saturating_sub(heard.at_ms) / 1000
                ),
                &format!(
                    "start it again on its directory: corefs storage --manager ADDR --dir DIR; if the machine is lost: corefs node drain {}",
                    id.0
                ),
            ),
            None => say(format!("{id} ({}) was never heard of", node.control), "start it"),
        }
        let damaged: u64 = liveness.slices(*id).iter().map(|slice| slice.unrepaired).sum();
        if damaged > 0 {
            say(
                format!("{damaged} stored blocks of {id} are damaged, and no replica has them whole"),
                "see which, and try again when missing nodes are back: corefs scrub --now",
            );
        }
        let slices = liveness.slices(*id).iter();
        let differing = slices.fold(0u64, |sum, slice| sum.saturating_add(slice.differing));
        if differing > 0 {
            say(
                format!(
                    "{differing} chunks are out of service: {id} and the next replica hold different bytes, or an update can't be read back"
                ),
                "see the node's log for which and why, and report it; put the files back from another copy",
            );
        }
        let slices = || (0u16..).map(SliceIndex).zip(liveness.slices(*id));
        // What was emptied is nobody's loss.
        let missed = |slice: SliceIndex| {
            state.standing(*id, slice) == Some(Standing::Active)
                || state.members().any(|(_, member)| (member.node, member.slice) == (*id, slice))
        };
        let dead: Vec<SliceIndex> =
            slices().filter(|(at, slice)| slice.dead && missed(*at)).map(|(at, _)| at).collect();
        if !dead.is_empty() {
            let (which, are) = match dead.as_slice() {
                [one] => (one.to_string(), "is"),
                all => (format!("{} slices ({} and others)", all.len(), all[0]), "are"),
            };
            say(
                format!(
                    "{which} of {id} {are} dead: a write or a flush failed or never ended, the recovery was not clean, or the disk can't be opened"
                ),
                "see the node's log; if the disk answers again, start the node again, which recovers what is on it; else replace it: corefs disk replace N --dir DIR",
            );
        }
        for (index, slice) in liveness.slices(*id).iter().enumerate().filter(|(_, slice)| !slice.dead) {
            if slice.capacity > 0 && slice.used / slice.capacity.div_ceil(100).max(1) >= FULL_PERCENT {
                say(
                    format!("slice {index} of {id} is {} % full", slice.used / slice.capacity.div_ceil(100)),
                    "delete files: corefs fs rm PATH",
                );
            }
        }
    }
    for (one, other) in liveness.cuts().pairs() {
        say(
            format!(
                "{one} and {other} can't reach each other, or couldn't within the last minute; their chains go on without one of them"
            ),
            "see to the network between the two; the one left out comes back by itself",
        );
    }
    growth_problems(state, liveness, &mut say);
    domain_problems(state, &mut say);
    chain_problems(state, &mut say);
    missing_replicas(state, liveness, &mut say);
    let silent: Vec<&str> =
        state.metas.keys().filter(|address| !liveness.meta_alive(address)).map(String::as_str).collect();
    if silent.len() == state.metas.len() {
        say("no metadata server is alive".into(), "start one: corefs meta --manager ADDR");
    } else if !silent.is_empty() {
        say(format!("metadata servers are dead: {}", few(&silent)), "start them again: corefs meta");
    }
    out
}

/// The first of them, and how many more: a line is to be read.
fn few<T: AsRef<str>>(names: &[T]) -> String {
    let shown: Vec<&str> = names.iter().take(NAMES_SHOWN).map(AsRef::as_ref).collect();
    match names.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// What came and isn't used, what should move and can't, and what was stopped.
fn growth_problems(state: &State, liveness: &Liveness, say: &mut impl FnMut(String, &str)) {
    // A dead one is of no use to anybody.
    let dead = |id: NodeId, at: usize| liveness.slices(id).get(at).is_some_and(|health| health.dead);
    let unused = |(id, node): &(&NodeId, &Node)| {
        let mut slices = node.slices.iter().enumerate();
        slices.any(|(at, slice)| slice.standing == Standing::Spare && !dead(**id, at))
    };
    let spare: Vec<String> = state.nodes.iter().filter(unused).map(|(id, _)| id.0.to_string()).collect();
    if state.formed() && !spare.is_empty() {
        let remedy = format!("take them into use: corefs node add {}", spare[0]);
        say(format!("nodes or disks hold nothing yet: of node {}", few(&spare)), &remedy);
    }
    if state.moving.paused {
        say("moving targets is paused".into(), "go on: corefs moves resume");
    }
    let leaving = |(_, member): &(_, &Member)| {
        state.standing(member.node, member.slice) == Some(Standing::Leaving) && !member.leaving
    };
    if state.members().any(|member| leaving(&member)) && !state.moving.paused {
        let stuck = moves::stuck(state, liveness);
        if stuck > 0 {
            say(
                format!("{stuck} targets are to leave their slices and have no other place"),
                "add a node or a disk: corefs node add N, corefs disk add --dir DIR",
            );
        }
    }
}

/// Chains that lose two copies when one failure domain does.
fn domain_problems(state: &State, say: &mut impl FnMut(String, &str)) {
    let repeats = domains::repeats(state);
    if repeats == 0 {
        return;
    }
    let remedy = if !domains::are_enough(state) {
        "add a node in another domain: corefs storage --manager ADDR --dir DIR --domain NAME, then corefs node add N"
    } else if state.moving.balance {
        "nothing: they move apart when nodes of all domains are there; see how far that is: corefs moves"
    } else {
        "have them moved apart: corefs moves balance"
    };
    say(format!("{repeats} chains have two copies in one failure domain, and lose both with it"), remedy);
}

/// Chains that nobody serves, and those with fewer copies than they should have.
fn chain_problems(state: &State, say: &mut impl FnMut(String, &str)) {
    let with = |wanted: Public| {
        let has = |chain: &&Chain| chain.members.iter().any(|member| member.state == wanted);
        state.chains.values().filter(has).count()
    };
    let unserved: Vec<&Chain> = state
        .chains
        .values()
        .filter(|chain| chain.members.iter().all(|member| member.state != Public::Serving))
        .collect();
    if !unserved.is_empty() {
        let holders: BTreeSet<NodeId> = unserved
            .iter()
            .flat_map(|chain| chain.members.iter().filter(|member| chain.last_set.contains(&member.target)))
            .map(|member| member.node)
            .collect();
        let holders: Vec<String> = holders.iter().map(ToString::to_string).collect();
        let text = format!(
            "{} chains have lost all replicas: they serve again when one of these is back: {}",
            unserved.len(),
            few(&holders)
        );
        say(text, "start one of them again on its directory: corefs storage --manager ADDR --dir DIR");
    }
    match (with(Public::Syncing), with(Public::Waiting)) {
        (0, 0) => {}
        (filling, waiting) => say(
            format!("{filling} replicas are being filled, {waiting} chains have one that waits for that"),
            "nothing: they serve when that is done, and it shows below",
        ),
    }
}

/// Replicas that nobody fills, though their nodes and slices live: all others are said already, each by its reason.
fn missing_replicas(state: &State, liveness: &Liveness, say: &mut impl FnMut(String, &str)) {
    let served = |chain: &&Chain| chain.members.iter().any(|member| member.state == Public::Serving);
    let missing = |member: &&Member| {
        let health = liveness.slices(member.node).get(usize::from(member.slice.0));
        member.state == Public::Offline
            && !member.leaving
            && liveness.node_alive(member.node)
            && !health.is_some_and(|health| health.dead)
    };
    let members = state.chains.values().filter(served).flat_map(|chain| &chain.members);
    let failed = |member: &&Member| liveness.target(member.target).is_some_and(|health| health.failed);
    let (full, away): (Vec<&Member>, Vec<&Member>) = members.filter(missing).partition(failed);
    let nodes = |members: &[&Member]| {
        let nodes: BTreeSet<NodeId> = members.iter().map(|member| member.node).collect();
        few(&nodes.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    if !full.is_empty() {
        say(
            format!(
                "{} replicas can't be filled, for want of room on their slices: of {}",
                full.len(),
                nodes(&full)
            ),
            "delete files: corefs fs rm PATH; they are tried again every ten seconds",
        );
    }
    if !away.is_empty() {
        say(
            format!("{} replicas are missing, and aren't filled yet: of {}", away.len(), nodes(&away)),
            "nothing: it is tried again; see which: corefs chain ls --broken",
        );
    }
}

fn usable_nodes(state: &State, liveness: &Liveness) -> usize {
    let usable = |id: &NodeId| {
        let slices = liveness.slices(*id);
        slices.is_empty() || slices.iter().any(|slice| !slice.dead)
    };
    state.nodes.keys().filter(|id| usable(id)).count()
}

#[cfg(test)]
mod tests {
    use super::super::formation::Formation;
    use super::super::liveness::{SliceHealth, TargetHealth, tests::TERMS};
    use super::super::state::{Meta, tests::formed};
    use super::*;
    use corefs_wire::Uuid;

    fn texts(state: &State, liveness: &Liveness, now_ms: u64) -> Vec<String> {
        problems(state, liveness, now_ms).into_iter().map(|problem| problem.what).collect()
    }

    #[test]
    fn a_healthy_cluster_has_none_and_each_fault_is_named() {
        let mut state = formed(2, 2);
        state.metas.insert("127.0.0.1:7".into(), Meta { incarnation: 1 });
        let mut liveness = Liveness::new(TERMS);
        let healthy = |used| vec![SliceHealth { capacity: 1000, used, ..SliceHealth::default() }; 8];
        liveness.hear_node(NodeId(1), healthy(0), 0);
        liveness.hear_node(NodeId(2), healthy(0), 0);
        liveness.hear_meta("127.0.0.1:7", 0);
        assert!(texts(&state, &liveness, 1).is_empty());
        let mut lost = state.clone();
        for chain in lost.chains.values_mut() {
            chain.members[0].state = Public::LastServing;
            chain.members[1].state = Public::Waiting;
        }
        let found = texts(&lost, &liveness, 1).join("\n");
        assert!(found.contains("lost all replicas") && found.contains("node-1, node-2"), "{found}");
        assert!(found.contains("one that waits"), "{found}");

        let mut broken = healthy(0);
        broken[3] = SliceHealth { capacity: 1000, used: 950, ..SliceHealth::default() };
        broken[4].dead = true;
        broken[5].differing = 2;
        liveness.expire(5000);
        liveness.hear_node(NodeId(1), broken, 5000);
        let found = texts(&state, &liveness, 5000).join("\n");
        for expected in [
            "slice 3 of node-1 is 95 % full",
            "slice-4 of node-1 is dead",
            "2 chunks are out of service",
            "node-2",
            "no metadata",
        ] {
            assert!(found.contains(expected), "{expected} in {found}");
        }
    }

    #[test]
    fn copies_in_one_failure_domain_are_counted_and_what_helps_is_said() {
        let mut state = formed(4, 2);
        let mut liveness = Liveness::new(TERMS);
        for node in 1..=4 {
            liveness.hear_node(NodeId(node), vec![SliceHealth::default(); 8], 0);
        }
        let found = |state: &State, liveness: &Liveness| {
            let problems = problems(state, liveness, 1).into_iter();
            let of = problems.filter(|problem| problem.what.contains("failure domain"));
            of.map(|problem| format!("{}: {}", problem.what, problem.remedy)).collect::<Vec<_>>().join(
                "
",
            )
        };
        assert_eq!(found(&state, &liveness), "");
        let rack = |state: &mut State, nodes: &[u32]| {
            nodes
                .iter()
                .for_each(|node| state.nodes.get_mut(&NodeId(*node)).unwrap().domain = "rack-1".into());
        };
        rack(&mut state, &[1, 2]);
        let both = |chain: &&Chain| chain.members.iter().all(|member| member.node <= NodeId(2));
        let count = state.chains.values().filter(both).count();
        let said = found(&state, &liveness);
        assert!(
            said.contains(&format!("{count} chains have two")) && said.contains("corefs moves balance"),
            "{said}"
        );
        rack(&mut state, &[3, 4]);
        let said = found(&state, &liveness);
        assert!(
            said.contains(&format!("{} chains", state.chains.len())) && said.contains("--domain NAME"),
            "{said}"
        );
    }

    #[test]
    fn a_replica_that_is_missing_is_a_problem_whatever_its_reason() {
        let mut state = formed(2, 2);
        let mut liveness = Liveness::new(TERMS);
        state.metas.insert("127.0.0.1:7".into(), Meta { incarnation: 1 });
        liveness.hear_meta("127.0.0.1:7", 0);
        for node in 1..=2 {
            liveness.hear_node(NodeId(node), vec![SliceHealth::default(); 8], 0);
        }
        assert!(texts(&state, &liveness, 1).is_empty());
        let away = {
            let member = &mut state.chains.values_mut().next().unwrap().members[1];
            member.state = Public::Offline;
            *member
        };
        let found = texts(&state, &liveness, 1);
        assert!(found.len() == 1 && found[0].contains("1 replicas are missing"), "{found:?}");
        let failed = TargetHealth { failed: true, ..TargetHealth::default() };
        liveness.hear_targets(away.node, [(away.target, failed)].into(), 0);
        let found = texts(&state, &liveness, 1);
        assert!(found.len() == 1 && found[0].contains("want of room"), "{found:?}");
        // A dead slice is said by itself, and says why.
        let mut slices = vec![SliceHealth::default(); 8];
        slices[usize::from(away.slice.0)].dead = true;
        liveness.hear_node(away.node, slices, 0);
        let found = texts(&state, &liveness, 1);
        assert!(found.len() == 1 && found[0].contains("dead"), "{found:?}");
    }

    #[test]
    fn a_dead_slice_that_was_never_used_is_not_to_be_used() {
        let mut state = formed(2, 2);
        let mut liveness = Liveness::new(TERMS);
        let slices = |dead| vec![SliceHealth { dead, ..SliceHealth::default() }; 9];
        for node in 1..=2 {
            liveness.hear_node(NodeId(node), slices(false), 0);
        }
        let known = state.nodes.get_mut(&NodeId(1)).unwrap();
        known
            .slices
            .push(super::super::state::Slice { standing: Standing::Spare, ..known.slices[0].clone() });
        let said =
            |liveness: &Liveness| texts(&state, liveness, 1).iter().any(|text| text.contains("hold nothing"));
        assert!(said(&liveness));
        let mut dead = slices(false);
        dead[8].dead = true;
        liveness.hear_node(NodeId(1), dead, 0);
        assert!(!said(&liveness));
    }

    #[test]
    fn of_many_the_first_are_named() {
        let mut state = formed(2, 2);
        for at in 1..=100 {
            state.metas.insert(format!("127.0.0.1:{at}"), Meta { incarnation: 1 });
        }
        let mut liveness = Liveness::new(TERMS);
        liveness.hear_meta("127.0.0.1:1", 0);
        let found = texts(&state, &liveness, 1).join("\n");
        assert!(
            found.contains("metadata servers are dead: 127.0.0.1:10,") && found.contains(" and 95 more"),
            "{found}"
        );
    }

    #[test]
    fn what_keeps_a_cluster_from_forming_is_said() {
        let none = State::new(Uuid::NIL, Formation { nodes: 3, replicas: 2, ..Formation::default() });
        assert!(texts(&none, &Liveness::new(TERMS), 0)[0].contains("0 of 3"));
        let never = State::new(Uuid::NIL, Formation { nodes: 2, replicas: 3, ..Formation::default() });
        assert!(texts(&never, &Liveness::new(TERMS), 0)[0].contains("--replicas 2"));
    }
}
