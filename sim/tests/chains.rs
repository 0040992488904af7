//! Chains whose members die, come back and are filled.

use corefs_sim::chain::{Config, Counts, run};
use corefs_sim::lives;
use std::collections::BTreeMap;

fn all(config: Config, seeds: std::ops::Range<u64>) -> BTreeMap<&'static str, u64> {
    let mut sum = BTreeMap::new();
    for seed in seeds {
        let counts = run(seed, config).unwrap_or_else(|what| panic!("{config:?}: {what}"));
        for (name, count) in Counts::list(&counts) {
            *sum.entry(name).or_default() += count;
        }
    }
    sum
}

fn at_least(counts: &BTreeMap<&'static str, u64>, expected: &[(&str, u64)]) {
    for (name, least) in expected {
        assert!(counts[name] >= *least, "only {} {name}: {counts:?}", counts[name]);
    }
}

/// Lives of chains alone: whatever is done to metadata servers and clients of names moves none of their seeds.
fn without_names() -> Config {
    Config { servers: 0, namers: 0, ..Config::default() }
}

#[test]
fn chains_of_three_keep_what_they_acknowledged() {
    let counts = all(Config::default(), 1..51);
    // The simulation is worth something only if everything that is rare in life happened in it.
    at_least(
        &counts,
        &[
            ("acknowledged", 30_000),
            ("reads", 20_000),
            ("retries", 5000),
            ("power_cuts", 100),
            ("blackouts", 5),
            ("pauses", 20),
            ("clock_leaps", 10),
            ("partitions", 20),
            ("one_way_partitions", 20),
            ("isolations", 20),
            ("manager_deaths", 10),
            ("store_troubles", 20),
            ("write_errors", 5),
            ("flush_errors", 5),
            ("slow_disks", 20),
            ("rotten", 10),
            ("misdirected", 5),
            ("several_at_once", 40),
            ("lost_messages", 1000),
            ("late_messages", 500),
            ("repeated_messages", 1000),
            ("store_conflicts", 10),
            ("fenced", 100),
            ("reads_pending", 1000),
            ("reads_damaged", 5),
            ("recovered_pendings", 50),
            ("replicas_filled", 400),
            ("total_losses", 30),
            ("reigns", 60),
            ("manager_pauses", 10),
            ("store_cuts", 5),
            ("store_unknown", 40),
            ("fills", 2000),
            ("rows_handed_over", 2000),
            ("refused_stale", 1000),
            ("refused_needs_whole", 50),
            ("refused_base_differs", 1),
            ("operations_ordered", 50_000),
        ],
    );
}

#[test]
fn so_do_those_whose_nodes_hear_of_routing_at_once() {
    let counts = all(Config { news: true, ..Config::default() }, 400..420);
    at_least(&counts, &[("news", 500), ("replicas_filled", 100), ("total_losses", 10)]);
    all(Config { news: true, fault_every: 1500, faults: 30, ..Config::default() }, 420..426);
}

#[test]
fn so_do_chains_of_two_and_of_one() {
    all(Config { replicas: 2, ..Config::default() }, 100..112);
    all(Config { replicas: 1, ..Config::default() }, 200..206);
}

/// Its answer was lost: the others have the block as pending.
#[test]
fn a_damaged_block_that_only_the_tail_has_committed_is_repaired() {
    run(1050, Config { fault_every: 1500, faults: 30, ..without_names() }).unwrap();
}

/// The only one that served had a damaged block. Whoever came back had the very same one, in an older version, and had it replaced part by part,
/// until the filler came to the part that it couldn't read.
#[test]
fn a_fill_looks_at_everything_before_it_replaces_what_may_be_the_last_good_copy() {
    run(150, Config { replicas: 2, fault_every: 1500, faults: 30, ..without_names() }).unwrap();
}

/// An earlier fill had ended half way. In the middle of the next one the chunk was what it had been at its beginning, just when a copy of the first
/// part came: it was set back, and missed the second part from then on. The seed is of an earlier form of the simulation
/// and doesn't come to that any more; that a permit is good once is a test of `corefs_engine::target::permits`.
#[test]
fn a_part_of_a_fill_that_comes_twice_sets_nothing_back() {
    run(2_026_112_947_093, Config { news: true, ..Config::default() }).unwrap();
}

/// Removed on the filler, there at the replica: the removal took the version of the filler's pending update, which was refused for ever.
/// The seed is of an earlier form of the simulation and doesn't come to that any more; which version a removal has is a test of
/// `corefs_engine::chain::fill` (`only_what_differs_is_sent`).
#[test]
fn a_removal_that_fills_leaves_room_for_the_next_update() {
    run(2_026_112_700_403, Config { news: true, ..Config::default() }).unwrap();
}

/// Whoever was asked for it took it for damaged. The seed is of an earlier form of the simulation and doesn't come to that any more; who is
/// given a pending block, and when, is a test of `corefs_sim::chain::node`.
#[test]
fn nobody_is_given_a_block_that_is_still_being_written() {
    run(2_026_112_650_039, Config::default()).unwrap();
}

/// It waited for a damaged block, and meanwhile its head was left out. The seed is of an earlier form of the simulation and doesn't come to
/// that any more; that it is refused without a lease is a test of `corefs_sim::chain::node`.
#[test]
fn an_update_that_was_held_begins_only_under_a_lease() {
    run(2_026_112_638_513, Config::default()).unwrap();
}

#[test]
fn faults_that_follow_each_other_quickly_find_recovery_at_work() {
    let counts = all(Config { fault_every: 1500, faults: 30, ..Config::default() }, 300..310);
    at_least(&counts, &[("total_losses", 5), ("replicas_filled", 50)]);
}

/// A replica that had said that it was filled couldn't read a block for an update, and was given the whole chunk once more, part by
/// part. The manager had heard that it was filled: it came to serve with half of the chunk, and the rest read as zeros.
/// The seeds are of an earlier form of the simulation and don't come to that any more: a block is repaired in place now, and nothing is filled
/// because of it. That such a fill is refused is a test of `corefs_sim::chain::node`.
#[test]
fn a_replica_that_said_that_it_is_filled_takes_no_more_fills() {
    let quick = Config { fault_every: 1500, faults: 30, ..Config::default() };
    for seed in [1163, 1614, 2176] {
        run(seed, quick).unwrap();
    }
}

/// Its blocks were being read and merged when the member that came after was taken out: by its own flush the replica would have committed, for
/// a head of the earlier version, what the others lacked, and shown it.
#[test]
fn an_update_that_was_prepared_while_its_chain_changed_is_not_committed_by_a_replica_that_had_become_last() {
    run(249, Config { replicas: 2, ..without_names() }).unwrap();
    for seed in [428, 545] {
        run(seed, Config { fault_every: 1500, faults: 30, ..without_names() }).unwrap();
    }
}

/// A target had just moved to the node, and routing of before, which doesn't name it, came after that: the target was removed, and the chain
/// waited for it for ever; or it was to be made again.
#[test]
fn a_target_is_not_removed_by_routing_that_came_late() {
    run(210, Config { news: true, ..without_names() }).unwrap();
    run(411, Config { replicas: 2, ..without_names() }).unwrap();
}

/// Lives without a fault in which the last node has less room than the others.
fn cramped() -> Config {
    Config {
        spares: 0,
        last_bytes: 1 << 20,
        chunks: 120,
        faults: 0,
        least_ms: 20_000,
        think: 10,
        ..Config::default()
    }
}

/// One node has less room than the others: what it refuses is undone everywhere, and the next update takes its version.
#[test]
fn what_one_replica_refuses_is_undone() {
    at_least(&all(cramped(), 1..6), &[("refused", 100)]);
}

/// A copy of an update that waited somewhere for seconds comes after its refusal: by then it is undone everywhere else, and its client has gone on. (With seed 5
/// the copy comes to the head, which has room again.)
#[test]
fn late_copies_of_refused_updates_stay_refused() {
    let config = Config { least_ms: 40_000, slow: 30, ..cramped() };
    at_least(&all(config, 1..6), &[("refused", 100)]);
}

/// A block was damaged where only one replica served, and a metadata server cut a file in the middle of it. Its client was told so.
#[test]
fn a_file_is_cut_in_a_block_that_nobody_has() {
    run(2_026_112_869_446, Config::default()).unwrap();
}

#[test]
fn one_seed_is_one_run() {
    assert_eq!(run(5, Config::default()), run(5, Config::default()));
}

/// Two jobs find the same as one, and say which seed it was.
#[test]
fn many_lives_are_their_seeds() {
    let of = |jobs| lives::all(7, 4, jobs, Config::default(), |_| {});
    let (one, two) = (of(1), of(2));
    assert_eq!(one.counts, two.counts);
    assert_eq!(one.counts.iter().map(|(seed, _)| *seed).collect::<Vec<_>>(), [7, 8, 9, 10]);
    assert!(one.json()["counts"]["acknowledged"]["median"].as_u64() > Some(100));
}

#[test]
fn a_life_without_faults_or_with_little_to_do_is_no_evidence() {
    let told = |config| lives::live(1, config).unwrap_err();
    assert!(told(Config { faults: 0, ..Config::default() }).contains("too quiet"));
    let short =
        Config { least_ms: 1000, faults: 3, fault_every: 1000, least_operations: 10, ..Config::default() };
    assert!(told(short).contains("too quiet"));
}
