//! Chains under power cuts and message loss.

use corefs_sim::chain::{Canary, Config, Counts, run};

fn all(config: Config, seeds: std::ops::Range<u64>) -> Counts {
    let mut sum = Counts::default();
    for seed in seeds {
        let counts = run(seed, config).unwrap_or_else(|what| panic!("{config:?}: {what}"));
        sum.acknowledged += counts.acknowledged;
        sum.refused += counts.refused;
        sum.reads += counts.reads;
        sum.reads_pending += counts.reads_pending;
        sum.power_cuts += counts.power_cuts;
        sum.recovered_pendings += counts.recovered_pendings;
        sum.lost_messages += counts.lost_messages;
        sum.fenced += counts.fenced;
        sum.retries += counts.retries;
        sum.chunks_compared += counts.chunks_compared;
    }
    sum
}

#[test]
fn chains_of_three_keep_what_they_acknowledged() {
    let counts = all(Config::default(), 1..25);
    // The simulation is worth something only if everything that is rare in life happened in it.
    assert!(
        counts.power_cuts > 200 && counts.recovered_pendings > 50 && counts.lost_messages > 300,
        "{counts:?}"
    );
    assert!(counts.acknowledged > 2000 && counts.reads > 1000 && counts.reads_pending > 100, "{counts:?}");
    assert!(counts.fenced > 10 && counts.retries > 500, "{counts:?}");
}

/// The tail has less room than the others: what it refuses is undone everywhere, and the next update takes its version.
#[test]
fn what_the_tail_refuses_is_undone() {
    let config = Config { tail_bytes: 1 << 20, chunks: 120, cuts: 6, ..Config::default() };
    let counts = all(config, 1..12);
    assert!(counts.refused > 100, "{counts:?}");
}

/// A copy of an update that waited somewhere for seconds comes after its refusal: by then it is undone everywhere else.
#[test]
fn late_copies_of_refused_updates_stay_refused() {
    let config = Config {
        tail_bytes: 1 << 20,
        chunks: 120,
        cuts: 3,
        cut_every: 20_000,
        slow: 30,
        ..Config::default()
    };
    let counts = all(config, 1..20);
    assert!(counts.refused > 500, "{counts:?}");
}

#[test]
fn quick_cuts_find_recovery_at_work() {
    all(Config { cut_every: 400, cuts: 20, ..Config::default() }, 200..220);
}

#[test]
fn so_do_chains_of_two() {
    all(Config { replicas: 2, ..Config::default() }, 100..120);
}

#[test]
fn one_seed_is_one_run() {
    assert_eq!(run(5, Config::default()), run(5, Config::default()));
}

fn caught(canary: Canary) {
    let config = Config { canary: Some(canary), ..Config::default() };
    let failure = (1..60).find_map(|seed| {
        std::panic::catch_unwind(|| run(seed, config)).map_or(Some(()), |r| r.err().map(drop))
    });
    assert!(failure.is_some(), "the checks are blind to {canary:?}");
}

#[test]
fn a_removed_flush_is_caught() {
    caught(Canary::FlushRemoved);
}

#[test]
fn an_acknowledgment_before_the_successor_has_it_is_caught() {
    caught(Canary::AnswersInvented);
}

#[test]
fn a_read_that_ignores_pending_updates_is_caught() {
    caught(Canary::ReadsUnguarded);
}
