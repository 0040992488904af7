//! That the checks of the simulated chains can fail: each rule that they are about is broken on purpose, and must be caught.
//! What catches it is named, so that each check is seen to work.

use corefs_sim::chain::{Canary, Config, run};

/// Lives that a canary may survive.
const LIVES_MAX: u64 = 600;

/// The canary is caught, within some lives, by a check whose words are among these.
fn caught(canary: Canary, config: Config, words: &[&str]) {
    let config = Config { canary: Some(canary), ..config };
    let mut others = Vec::new();
    for seed in 1..=LIVES_MAX {
        let failure = match std::panic::catch_unwind(|| run(seed, config)) {
            Ok(Ok(_)) => continue,
            Ok(Err(what)) => what,
            Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".into()),
        };
        if words.iter().any(|word| failure.contains(word)) {
            println!("{canary:?}: {failure}");
            return;
        }
        others.push(failure);
    }
    panic!("the checks named {words:?} are blind to {canary:?}; others said: {others:#?}");
}

/// Restarts, again and again, while clients are busy.
fn busy() -> Config {
    Config { fault_every: 2500, faults: 30, think: 20, ..Config::default() }
}

/// The black box believes no version and knows no node: it sees what clients see.
fn seen_by_clients(config: Config) -> Config {
    Config { black_box: true, ..config }
}

const BLACK_BOX: &[&str] = &["no order of the operations explains them"];

#[test]
fn a_removed_flush_is_caught() {
    caught(Canary::FlushRemoved, busy(), &["known to be flushed"]);
    caught(Canary::FlushRemoved, busy(), &["kind: Checkpoint"]);
}

#[test]
fn an_acknowledgment_before_the_successor_has_it_is_caught() {
    caught(
        Canary::AnswersInvented,
        Config::default(),
        &["acknowledged as version", "had been shown", "is committed"],
    );
}

#[test]
fn a_read_that_ignores_pending_updates_is_caught() {
    caught(Canary::ReadsUnguarded, Config::default(), &["had been shown"]);
    caught(Canary::ReadsUnguarded, seen_by_clients(Config::default()), BLACK_BOX);
}

#[test]
fn that_a_chunk_is_gone_is_shown_by_the_rule_of_reads() {
    caught(Canary::AbsenceUnguarded, Config::default(), &["a read found no"]);
}

#[test]
fn bytes_that_nobody_verified_are_caught() {
    caught(Canary::ReadsUnverified, busy(), &["and other bytes than it has"]);
    caught(Canary::ReadsUnverified, seen_by_clients(busy()), BLACK_BOX);
}

#[test]
fn a_block_reused_early_is_caught() {
    caught(Canary::BlockReusedEarly, Config { think: 5, ..busy() }, &["and nothing has damaged it"]);
}

#[test]
fn rows_that_are_not_handed_over_are_caught() {
    caught(Canary::RowsForgotten, Config { loss: 60, ..busy() }, &["it was done twice"]);
}

#[test]
fn rows_of_pending_updates_that_are_handed_over_are_caught() {
    caught(Canary::PendingRowsHandedOver, busy(), &["acknowledged as version"]);
}

#[test]
fn pendings_kept_by_a_replica_that_is_filled_are_caught() {
    let words = &["acknowledged as version", "here and"];
    caught(Canary::PendingsKept, Config::default(), words);
    caught(Canary::PendingsKept, seen_by_clients(Config::default()), BLACK_BOX);
}

#[test]
fn a_comparison_that_finds_everything_equal_is_caught() {
    caught(Canary::ComparisonsInvented, busy(), &["differ, says"]);
    caught(Canary::ComparisonsInvented, busy(), &["had been shown"]);
}

#[test]
fn a_lease_counted_from_its_receipt_is_caught() {
    caught(Canary::LeaseFromReceipt, Config { slow: 100, ..busy() }, &["two heads"]);
}

/// It does harm only while a change of chains is being stored, and until the node hears of it: the store is slow here, and one
/// heartbeat in five is lost, one way or the other. Clients ask again soon, so that somebody writes by the new routing meanwhile.
fn slow_control() -> Config {
    Config { store_ms: 2000, loss: 100, patience: 30, ..busy() }
}

#[test]
fn a_lease_given_before_the_chains_know_is_caught() {
    caught(Canary::LeaseTooSoon, slow_control(), &["two heads"]);
}

#[test]
fn slow_control_alone_does_no_harm() {
    let withheld: u64 = (1..=10).map(|seed| run(seed, slow_control()).unwrap().leases_withheld).sum();
    assert!(withheld > 20, "only {withheld} leases had to be withheld");
}

#[test]
fn filling_that_is_skipped_is_caught() {
    caught(Canary::FillingSkipped, Config::default(), &["differ, says"]);
    caught(Canary::FillingSkipped, Config::default(), &["had been shown"]);
}

/// Parts of fills have no flush of their own: the last one is for all of them. What follows flushes as well, so there is little to do
/// here, and much that fails.
#[test]
fn a_fill_that_is_not_on_the_disk_is_caught() {
    let idle = Config { replicas: 2, think: 1000, least_operations: 100, ..Config::default() };
    caught(Canary::FillUnflushed, Config { faults: 60, fault_every: 1000, ..idle }, &["had been shown"]);
}

#[test]
fn a_replica_that_never_comes_back_is_caught() {
    caught(Canary::FilledUnheard, Config::default(), &["nothing comes to its end"]);
}

#[test]
fn routing_that_goes_back_is_caught() {
    caught(Canary::ReignNotCounted, Config::default(), &["routing went", "two routings"]);
}

#[test]
fn a_manager_that_leads_for_too_long_is_caught() {
    caught(Canary::ReignTooLong, Config::default(), &["two managers lead"]);
}

/// Nobody reads any more, and nobody fills: only the comparison at the end can see it.
#[test]
fn a_replica_that_lacks_the_last_update_is_caught() {
    caught(Canary::LastAnswersInvented, Config::default(), &["differ in the end"]);
}

/// Fights for names are what conflicts are for.
#[test]
fn a_store_that_overlooks_conflicts_is_caught() {
    caught(Canary::ConflictsOverlooked, Config { namers: 4, ..Config::default() }, &["names:"]);
}

#[test]
fn requests_without_a_number_are_caught() {
    caught(Canary::RequestsUnnumbered, Config::default(), &["names:"]);
}
