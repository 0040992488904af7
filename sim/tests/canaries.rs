//! That the checks of the simulated chains can fail: a rule is broken on purpose, in the simulated world, and some life must end with
//! the words of the check that is named. Other checks may say so first in other lives; which ones isn't asserted.
//!
//! So each check of `chain::world` and its parts and of `chain::names` has a canary here, and those of `chain::truth` that a life can come to.
//! Not shown to fail here:
//!
//! - `two heads take updates`, a gap between versions, a read of a removal: other checks come before them in all lives that were tried. Nor
//!   `began after`, which follows from the others. All of [`truth`](corefs_sim::chain::truth) is given forged histories in its own unit tests;
//! - `still pending` at the end: no machine is idle before. A unit test of `chain::node`;
//! - a slice or target that fails though its disk doesn't: canaries of flushes are caught when it is opened;
//! - that messages and rows can be read at all (`what is stored`, `routing:`, `a manager doesn't understand`), that a client of names gets a
//!   directory and isn't refused a lock for another reason than that somebody has it, that anything happens at all, and that the power is on.
//!   Nothing breaks a rule there, these say that the simulation is at fault.

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
    caught(Canary::AnswersInvented, Config::default(), &["had been shown"]);
    caught(Canary::AnswersInvented, Config::default(), &["here and"]);
}

#[test]
fn a_read_that_ignores_pending_updates_is_caught() {
    caught(Canary::ReadsUnguarded, Config::default(), &["had been shown"]);
    caught(Canary::ReadsUnguarded, Config::default(), &["which nobody committed"]);
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
    caught(Canary::PendingsKept, Config::default(), &["acknowledged as version", "here and"]);
    caught(Canary::PendingsKept, seen_by_clients(Config::default()), BLACK_BOX);
}

#[test]
fn a_comparison_that_finds_everything_equal_is_caught() {
    caught(Canary::ComparisonsInvented, busy(), &["differ, says"]);
    caught(Canary::ComparisonsInvented, busy(), &["had been shown"]);
}

#[test]
fn a_lease_counted_from_its_receipt_is_caught() {
    caught(Canary::LeaseFromReceipt, Config { slow: 100, ..busy() }, &["two heads hold a lease"]);
}

/// It does harm only while a change of chains is being stored, and until the node hears of it: the store is slow here, and one
/// heartbeat in five is lost, one way or the other. Clients ask again soon, so that somebody writes by the new routing meanwhile.
fn slow_control() -> Config {
    Config { store_ms: 2000, loss: 100, patience: 30, ..busy() }
}

#[test]
fn a_lease_given_before_the_chains_know_is_caught() {
    caught(Canary::LeaseTooSoon, slow_control(), &["two heads hold a lease"]);
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
    caught(Canary::ReignNotCounted, Config::default(), &["routing went from version"]);
}

#[test]
fn one_version_of_two_routings_is_caught() {
    caught(Canary::RoutingUncounted, Config::default(), &["two routings with version"]);
}

/// What it led by is gone with the manager: the next one doesn't know of it.
#[test]
fn a_change_that_is_told_and_not_stored_is_caught() {
    caught(Canary::CommitsForgotten, Config::default(), &["routing went back: "]);
}

#[test]
fn a_manager_that_leads_by_other_rows_is_caught() {
    caught(Canary::CommitsTorn, Config::default(), &["leads by other rows than those that are stored"]);
}

/// A change takes long here: an earlier leader's overtakes what was stored since.
#[test]
fn a_stored_chain_that_goes_back_is_caught() {
    let config = Config { store_ms: 2000, ..without_names(busy()) };
    caught(Canary::ConflictsOverlooked, config, &["went back from version"]);
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

/// Nobody is there to differ from, and hardly any chunk is read again before the end.
#[test]
fn an_end_that_lacks_the_last_update_is_caught() {
    let alone =
        Config { replicas: 1, spares: 0, chunks: 100, think: 1000, ..without_names(Config::default()) };
    let short = Config { faults: 4, fault_every: 2000, least_ms: 3000, least_operations: 20, ..alone };
    caught(Canary::FlushRemoved, short, &["ended with version 0, the history with 1"]);
}

/// An update that fails nobody knows how may be committed already, or be later.
#[test]
fn a_refusal_of_what_is_committed_is_caught() {
    caught(Canary::DoubtsCalledRefusals, Config::default(), &["was refused, and is committed as version"]);
    caught(Canary::DoubtsCalledRefusals, Config::default(), &["was refused and is version"]);
}

fn without_names(config: Config) -> Config {
    Config { servers: 0, namers: 0, ..config }
}

/// Many clients of names, and little else.
fn crowded() -> Config {
    Config { namers: 16, clients: 1, faults: 2, fault_every: 2000, least_operations: 20, ..Config::default() }
}

/// Fights for names are what conflicts are for. Of what is counted some is counted once for two.
#[test]
fn a_store_that_overlooks_conflicts_is_caught() {
    let fights = Config { least_ms: 20_000, ..crowded() };
    caught(Canary::ConflictsOverlooked, fights, &["in the arena is had by"]);
    caught(Canary::ConflictsOverlooked, fights, &["WrongInodeCount"]);
}

/// Late copies are done again: at once, or when their client has ended.
#[test]
fn requests_without_a_number_are_caught() {
    let late = Config { namers: 8, slow: 50, loss: 0, least_ms: 6000, ..crowded() };
    caught(Canary::RequestsUnnumbered, late, &["was told"]);
    caught(Canary::RequestsUnnumbered, late, &["can't give"]);
    caught(Canary::RequestsUnnumbered, late, &["in the arena is held by"]);
    caught(Canary::RequestsUnnumbered, late, &["which should be one of"]);
}

#[test]
fn chunks_that_are_removed_of_what_is_there_are_caught() {
    caught(Canary::CutsRemove, Config::default(), &["were removed, and it is still there"]);
    caught(Canary::MovesLose, Config::default(), &["went to chunks of"]);
}

#[test]
fn what_dead_clients_and_removed_files_leave_for_ever_is_caught() {
    caught(Canary::ChunksUnreached, Config::default(), &["a session can't be settled"]);
    caught(Canary::ChunksUnreached, Config::default(), &["garbage stays"]);
}
