//! Every order in which things can happen to a chain of three replicas, tried out: the very machines of the chain
//! (`corefs_engine::chain`) and of the manager (`corefs_mgmtd::cluster`) over a small world, by `stateright`.
//!
//! What is abstracted: time (a node's lease ends before the manager takes it for dead), the disk (a write and its record reach
//! it together, a commit may be lost with the power), the walk of filling (one chunk, sent whole), the way of clients (an update comes at
//! once, by routing as old as the head's; an acknowledgment isn't lost). In every state that can be reached, readers look at
//! every replica that would answer them.
//!
//! What is left out because it comes to the same, so that all of it can be tried (`world`):
//!
//! - names: attempts and chain versions are numbered anew after each step, and which client asks first makes no difference;
//! - what nobody will ever listen to: messages of chain versions that their receiver has left, and answers to attempts that are over;
//! - waiting for what is certain: a refusal after which the sender only pauses is heard at once;
//! - the queue of the head: a client asks when the head has nothing to do, since an update that waits begins just then. Some tests have
//!   the queue.

mod disk;
mod node;
mod world;

use stateright::{Checker, Model};
use world::{Bounds, Broken};

/// Explores everything within the bounds, or the first so many states. What didn't hold, if anything, and how many states
/// there were.
fn explore(model: Bounds, most: Option<usize>) -> (Option<String>, usize) {
    let (broken, all) = (model.broken, most.is_none());
    let mut builder = model.checker().threads(2);
    if let Some(most) = most {
        builder = builder.target_state_count(most);
    }
    // The shortest way to what is broken; else depth first, which remembers names of states only.
    let shortest = broken != Broken::Nothing || !all;
    if shortest {
        conclude(builder.spawn_bfs().join(), all)
    } else {
        conclude(builder.spawn_dfs().join(), all)
    }
}

fn conclude(checker: impl Checker<Bounds>, all: bool) -> (Option<String>, usize) {
    let states = checker.unique_state_count();
    let Bounds { writes, failures, rotations, broken, .. } = checker.model();
    println!("{writes} writes, {failures} failures, {rotations} rotations, {broken:?}: {states} states");
    let names = ["nothing acknowledged is lost", "it comes to rest only when it is whole"];
    let fault = names.into_iter().find_map(|name| {
        let path = checker.discovery(name)?;
        let what = path.last_state().fault.unwrap_or("it came to rest too soon");
        let actions: Vec<String> = path.into_actions().iter().map(|action| format!("  {action:?}")).collect();
        Some(format!("{what}, after\n{}", actions.join("\n")))
    });
    let ends = fault.is_some() || checker.discovery("everything is done").is_some();
    assert!(ends || !all, "nothing ever ends well");
    (fault, states)
}

/// Everything, or the states nearest to the beginning.
fn holds(model: Bounds, most: Option<usize>, states_at_least: usize) {
    let (fault, states) = explore(model, most);
    assert!(fault.is_none(), "{}", fault.unwrap_or_default());
    assert!(states >= states_at_least, "only {states} states: the world is smaller than it was meant to be");
}

fn sound(writes: u8, failures: u8) -> Bounds {
    Bounds::new(writes, failures, Broken::Nothing)
}

#[test]
fn three_writes_without_a_failure_are_all_there() {
    holds(Bounds { queues: true, ..sound(3, 0) }, None, 40);
}

/// All there is to it.
#[test]
fn a_failure_at_any_moment_of_a_write_loses_nothing() {
    holds(sound(1, 1), None, 2000);
}

#[test]
fn updates_that_wait_for_each_other_lose_nothing() {
    holds(Bounds { queues: true, ..sound(2, 1) }, Some(100_000), 10_000);
}

/// The states nearest to the beginning.
#[test]
fn two_failures_and_three_writes_lose_nothing() {
    holds(sound(3, 2), Some(100_000), 20_000);
}

/// All of it: `cargo test --release -p corefs-sim --test model -- --ignored`.
#[test]
#[ignore = "takes minutes"]
fn two_failures_at_any_moments_of_three_writes_lose_nothing() {
    holds(sound(3, 2), None, 3_000_000);
}

/// A head that is handed on, and both others fail.
#[test]
fn a_head_that_is_handed_on_loses_nothing() {
    holds(Bounds { rotations: 1, ..sound(1, 1) }, None, 2000);
    holds(Bounds { rotations: 1, ..sound(2, 2) }, Some(100_000), 20_000);
}

/// All of it, as above.
#[test]
#[ignore = "takes minutes"]
fn a_head_that_is_handed_on_and_two_failures_lose_nothing() {
    holds(Bounds { rotations: 1, ..sound(1, 2) }, None, 1_000_000);
}

#[test]
#[ignore = "takes minutes"]
fn a_replica_that_serves_though_it_was_given_something_is_found() {
    found_in(Bounds { rotations: 1, ..Bounds::new(1, 2, Broken::SparedAnyway) });
}

fn found(broken: Broken, writes: u8, failures: u8) {
    found_in(Bounds::new(writes, failures, broken));
}

fn found_in(bounds: Bounds) {
    let broken = bounds.broken;
    let (fault, _) = explore(bounds, None);
    let fault = fault.unwrap_or_else(|| panic!("the model is blind to {broken:?}"));
    println!("{broken:?}: {fault}");
}

#[test]
fn an_acknowledgment_before_the_tail_has_it_is_found() {
    found(Broken::AnswersInvented, 1, 1);
}

#[test]
fn reads_that_ignore_what_is_pending_are_found() {
    found(Broken::ReadsUnguarded, 1, 0);
}

#[test]
fn filling_that_is_skipped_is_found() {
    found(Broken::FillingSkipped, 1, 1);
}

#[test]
fn a_node_that_is_buried_while_it_has_its_lease_is_found() {
    found(Broken::DeadTooSoon, 1, 1);
}
