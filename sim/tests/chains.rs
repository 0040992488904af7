//! Chains whose members die, come back and are filled.

use corefs_sim::chain::{Canary, Config, Counts, run};
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

#[test]
fn chains_of_three_keep_what_they_acknowledged() {
    let counts = all(Config::default(), 1..25);
    // The simulation is worth something only if everything that is rare in life happened in it.
    at_least(
        &counts,
        &[
            ("acknowledged", 10_000),
            ("reads", 8000),
            ("reads_pending", 100),
            ("recovered_pendings", 20),
            ("lost_messages", 1000),
            ("fenced", 10),
            ("retries", 1000),
            ("power_cuts", 100),
            ("blackouts", 5),
            ("pauses", 10),
            ("partitions", 30),
            ("manager_deaths", 5),
            ("replicas_filled", 200),
            ("total_losses", 5),
            ("fills", 1000),
            ("rows_handed_over", 500),
        ],
    );
}

#[test]
fn so_do_chains_of_two_and_of_one() {
    all(Config { replicas: 2, ..Config::default() }, 100..112);
    all(Config { replicas: 1, ..Config::default() }, 200..206);
}

#[test]
fn faults_that_follow_each_other_quickly_find_recovery_at_work() {
    let counts = all(Config { fault_every: 1500, faults: 30, ..Config::default() }, 300..310);
    at_least(&counts, &[("total_losses", 5), ("replicas_filled", 50)]);
}

/// One node has less room than the others: what it refuses is undone everywhere, and the next update takes its version.
#[test]
fn what_one_replica_refuses_is_undone() {
    let config =
        Config { last_bytes: 1 << 20, chunks: 120, faults: 0, calm: 20_000, think: 10, ..Config::default() };
    at_least(&all(config, 1..6), &[("refused", 100)]);
}

/// A copy of an update that waited somewhere for seconds comes after its refusal: by then it is undone everywhere else.
#[test]
fn late_copies_of_refused_updates_stay_refused() {
    let config = Config {
        last_bytes: 1 << 20,
        chunks: 120,
        faults: 0,
        calm: 40_000,
        think: 10,
        slow: 30,
        ..Config::default()
    };
    at_least(&all(config, 1..6), &[("refused", 100)]);
}

/// The row of an update that its filler only had pending told the client that it was done; the update was lost when the filler died,
/// and another one had its version.
#[test]
fn rows_of_pending_updates_are_not_handed_over() {
    run(184, Config::default()).unwrap();
}

/// A replica with a removal committed and a write pending said that the chunk isn't there, after the tail had shown the write.
#[test]
fn that_a_chunk_is_gone_is_shown_by_the_rule_of_reads() {
    run(108, Config::default()).unwrap();
}

#[test]
fn one_seed_is_one_run() {
    assert_eq!(run(5, Config::default()), run(5, Config::default()));
}

fn caught(canary: Canary, config: Config) {
    let config = Config { canary: Some(canary), ..config };
    let failure = (1..80).find_map(|seed| {
        std::panic::catch_unwind(|| run(seed, config)).map_or(Some(()), |r| r.err().map(drop))
    });
    assert!(failure.is_some(), "the checks are blind to {canary:?}");
}

/// Restarts, again and again, while clients are busy.
fn busy() -> Config {
    Config { fault_every: 2500, faults: 30, think: 20, ..Config::default() }
}

#[test]
fn a_removed_flush_is_caught() {
    caught(Canary::FlushRemoved, busy());
}

#[test]
fn an_acknowledgment_before_the_successor_has_it_is_caught() {
    caught(Canary::AnswersInvented, Config::default());
}

#[test]
fn a_read_that_ignores_pending_updates_is_caught() {
    caught(Canary::ReadsUnguarded, Config::default());
}

#[test]
fn rows_that_are_not_handed_over_are_caught() {
    caught(Canary::RowsForgotten, Config { loss: 60, ..busy() });
}

#[test]
fn a_lease_counted_from_its_receipt_is_caught() {
    caught(Canary::LeaseFromReceipt, Config { slow: 100, ..busy() });
}

#[test]
fn a_lease_given_before_the_chains_know_is_caught() {
    caught(Canary::LeaseTooSoon, busy());
}

#[test]
fn filling_that_is_skipped_is_caught() {
    caught(Canary::FillingSkipped, Config::default());
}
