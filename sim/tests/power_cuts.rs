//! A short share of the power cuts that `examples/power_cuts.rs` runs by the ten thousand.

use corefs_sim::store::{Canary, Counts, Run, Way, run};

/// Canaries must be caught within so many runs.
const RUNS_MAX: u64 = 60;

fn caught(canary: Canary) {
    let failure = (1..=RUNS_MAX).find_map(|seed| run(seed, 20, Some(canary)).err());
    let failure = failure.unwrap_or_else(|| panic!("the checks are blind to {canary:?}"));
    let again = run(failure.seed, failure.cut, Some(canary)).unwrap_err();
    assert_eq!(failure, again, "a failing seed fails again, in the same way");
}

#[test]
fn nothing_is_lost_in_a_thousand_cuts() {
    let mut counts = Counts::default();
    for seed in 1..=50 {
        counts.add(&run(seed, 20, None).unwrap_or_else(|failure| panic!("{failure}")));
    }
    // The simulation is worth something only if everything that is rare in life happened in it.
    assert_eq!(counts.cuts, 1000);
    assert!(counts.recovery_cuts > 50 && counts.batches_survived > 20 && counts.blocks_discarded > 20);
    assert!(counts.checkpoints > 200 && counts.no_space > 200 && counts.journal_full > 200);
    assert!(counts.acknowledged > 5_000 && counts.dropped > 500 && counts.duplicates > 20);
    assert!(counts.committed_early > 500, "{counts:?}");
    for way in Way::ALL {
        assert!(counts.reused[way as usize] > 10, "{way:?} isn't followed by reuse: {counts:?}");
    }
}

/// A batch that only removed what never was leaves no other trace than a tombstone. The check took the state before it for the
/// state after it, and then complained of the next update of that chunk.
#[test]
fn a_removal_of_what_never_was_survives_unnoticed() {
    run(20_261_167, 20, None).unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn one_seed_is_one_run_bit_for_bit() {
    let images = [(); 2].map(|()| {
        let mut run = Run::new(7, None).unwrap();
        (0..10).for_each(|_| run.until_cut().unwrap());
        let image = run.disk().image();
        (image, run.finish())
    });
    assert!(images[0] == images[1], "the same seed made another run");
}

#[test]
fn a_removed_flush_is_caught() {
    caught(Canary::FlushRemoved);
}

#[test]
fn an_acknowledgment_before_the_flush_is_caught() {
    caught(Canary::AcknowledgedBeforeFlush);
}

#[test]
fn a_block_reused_early_is_caught() {
    caught(Canary::BlockReusedEarly);
}

#[test]
fn a_pin_released_early_is_caught() {
    caught(Canary::PinReleasedEarly);
}
