//! Elections, restarts and take-overs: who may write, who answers, and that nothing that was decided is forgotten.

use crate::support::*;
use corefs_kv::{Mem, Transaction};
use corefs_mgmtd::cluster::formation::Wanted;
use corefs_mgmtd::{Clock, ops};
use corefs_wire::ErrorCode;
use corefs_wire::routing::{Chain, RoutingInfo};
use futures_lite::future;

/// What a restart may change of routing: its version.
fn same_but_version(mut a: RoutingInfo, b: RoutingInfo) {
    assert!(a.version < b.version, "{} then {}", a.version, b.version);
    a.version = b.version;
    assert_eq!(a, b);
}

#[test]
fn a_killed_manager_is_back_within_two_seconds_with_the_same_routing() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::new();
        let manager = lead(&engine, &clock, 1, wanted(3, 3, 8)).await;
        register_all(&manager, 3, 1, 4).await;
        let mut meta = corefs_wire::control::mgmtd::RegisterMetaT::default();
        (meta.address, meta.incarnation) = ("127.0.0.1:9".into(), 4);
        ops::register_meta(&manager, meta).await.unwrap();
        let before = routing(&manager).await.unwrap();
        drop(manager);
        clock.advance(30);
        let killed_ms = clock.now_ms();
        let manager = lead(&engine, &clock, 2, Wanted::default()).await;
        let took = clock.now_ms() - killed_ms;
        assert!((1000..2000).contains(&took), "{took} ms");
        let after = routing(&manager).await.unwrap();
        same_but_version(before, after.clone());
        assert_eq!(after.metas, ["127.0.0.1:9"]);
        // Everybody has a full lease to speak; those who don't are dead.
        ops::node_heartbeat(&manager, heartbeat(2, 2, 1, 4)).await.unwrap();
        clock.advance(900);
        manager.step().await;
        clock.advance(301);
        ops::node_heartbeat(&manager, heartbeat(2, 2, 1, 4)).await.unwrap();
        manager.step().await;
        manager.upkeep().await.unwrap();
        let later = routing(&manager).await.unwrap();
        assert!(later.version > after.version);
        let dead: Vec<u32> = later.nodes.values().filter(|node| !node.alive).map(|node| node.id.0).collect();
        assert_eq!(dead, [1, 3]);
        let nodes = |chain: &Chain| -> Vec<u32> {
            chain.serving().map(|target| later.targets[&target].node.0).collect()
        };
        assert!(later.chains.values().all(|chain| chain.version == 2 && nodes(chain) == [2]));
    });
}

#[test]
fn a_clean_stop_hands_over_at_once() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::new();
        let first = lead(&engine, &clock, 1, wanted(1, 1, 4)).await;
        first.release().await.unwrap();
        assert!(!first.leads());
        let second = lead(&engine, &clock, 2, Wanted::default()).await;
        assert_eq!(clock.now_ms(), 0);
        let error = {
            first.step().await;
            routing(&first).await.unwrap_err()
        };
        assert_eq!(error.code, ErrorCode::NotPrimary);
        assert!(error.message.contains(&second.settings().address), "{error}");
    });
}

/// A leader that is cut off from all nodes and not from the store renews its lease for ever, and they can't renew theirs.
#[test]
fn a_leader_that_hears_no_node_gives_way_to_one_that_does() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::new();
        let first = lead(&engine, &clock, 1, wanted(3, 3, 8)).await;
        let second = open(&engine, &clock, 2, Wanted::default()).await.unwrap();
        register_all(&first, 3, 1, 4).await;
        let cut_ms = clock.now_ms();
        let old = async {
            loop {
                let pause = first.step().await.clamp(1, 100);
                let _ = first.upkeep().await;
                clock.sleep(pause).await;
            }
        };
        let new = async {
            while !second.leads() {
                let pause = second.step().await;
                clock.sleep(pause).await;
            }
            let took = clock.now_ms() - cut_ms;
            assert!((1200..=1800).contains(&took), "{took} ms");
            // Nobody was declared dead by whoever heard nobody, and nobody is as long as they speak.
            for _ in 0..40 {
                for name in 1..=3 {
                    ops::node_heartbeat(&second, heartbeat(u32::from(name), name, 1, 4)).await.unwrap();
                }
                second.step().await;
                second.upkeep().await.unwrap();
                clock.sleep(100).await;
            }
            let routing = routing(&second).await.unwrap();
            assert!(routing.nodes.values().all(|node| node.alive));
            assert!(routing.chains.values().all(|chain| chain.version == 1));
        };
        future::or(old, new).await;
        assert!(second.leads() && !first.leads());
        assert_eq!(first.counts.gave_way.get(), 1);
    });
}

/// All nodes are dead, and several managers live: each has its chance once, and then the dead are dead.
#[test]
fn managers_do_not_hand_the_lead_round_for_ever() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::new();
        let first = lead(&engine, &clock, 1, wanted(3, 3, 8)).await;
        let second = open(&engine, &clock, 2, Wanted::default()).await.unwrap();
        register_all(&first, 3, 1, 4).await;
        while clock.now_ms() < 15_000 {
            for manager in [&first, &second] {
                manager.step().await;
                let _ = manager.upkeep().await;
            }
            clock.sleep(100).await;
        }
        let leads = if first.leads() { &first } else { &second };
        assert!(routing(leads).await.unwrap().nodes.values().all(|node| !node.alive));
        assert_eq!((first.counts.gave_way.get(), second.counts.gave_way.get()), (1, 1));
    });
}

/// Nobody else is there to lead: then those who are silent are dead, once and without further ado.
#[test]
fn a_leader_that_nobody_relieves_believes_what_it_hears() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::new();
        let manager = lead(&engine, &clock, 1, wanted(2, 2, 8)).await;
        register_all(&manager, 2, 1, 4).await;
        let turn = async || {
            let pause = manager.step().await.clamp(1, 100);
            let _ = manager.upkeep().await;
            clock.sleep(pause).await;
        };
        while clock.now_ms() < 5000 {
            turn().await;
        }
        assert!(manager.leads());
        assert_eq!(manager.counts.gave_way.get(), 1);
        assert!(routing(&manager).await.unwrap().nodes.values().all(|node| !node.alive));
        // They come back and fall silent again: it asks again whether somebody else hears them.
        register_all(&manager, 2, 2, 4).await;
        while clock.now_ms() < 12_000 {
            turn().await;
        }
        assert!(manager.leads());
        assert_eq!(manager.counts.gave_way.get(), 2);
    });
}

#[test]
fn a_candidate_waits_while_the_primary_renews_and_names_it() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::new();
        let primary = lead(&engine, &clock, 1, wanted(1, 1, 4)).await;
        let candidate = open(&engine, &clock, 2, Wanted::default()).await.unwrap();
        let renews = async {
            for _ in 0..40 {
                let pause = primary.step().await;
                clock.sleep(pause).await;
            }
        };
        let waits = async {
            loop {
                let pause = candidate.step().await;
                assert!(!candidate.leads(), "two primaries at {}", clock.now_ms());
                clock.sleep(pause).await;
            }
        };
        future::or(renews, waits).await;
        assert!(clock.now_ms() >= 9000 && primary.leads());
        assert!(routing(&candidate).await.unwrap_err().message.contains("127.0.0.1:1001"));
    });
}

/// A primary whose clock stands still believes in its lease for ever: the store stops it.
#[test]
fn a_stale_primary_cannot_write() {
    let (stuck, clock) = (TestClock::default(), TestClock::default());
    run(&clock, async {
        let engine = Mem::new();
        let old = lead(&engine, &stuck, 1, wanted(2, 1, 4)).await;
        register_all(&old, 2, 1, 4).await;
        let new = lead(&engine, &clock, 2, Wanted::default()).await;
        assert!(old.leads() && new.leads(), "the old one can't know");
        let before = engine.dump();
        let outcome = ops::register_node(&old, node_request(3, 1, 4)).await;
        assert_eq!(code(outcome), Some(ErrorCode::NotPrimary));
        assert_eq!(engine.dump(), before, "nothing was written");
        assert!(!old.leads(), "now it knows");
        let reply = ops::register_node(&new, node_request(3, 1, 4)).await.unwrap();
        assert_eq!(reply.node, 3);
        old.step().await;
        assert!(!old.leads() && new.leads());
    });
}

#[test]
fn heartbeats_write_nothing() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::new();
        let manager = lead(&engine, &clock, 1, wanted(2, 2, 4)).await;
        register_all(&manager, 2, 1, 4).await;
        let client = renew_client(&manager, 0).await.unwrap();
        let version = engine.begin_version().await;
        for _ in 0..20 {
            ops::node_heartbeat(&manager, heartbeat(1, 1, 1, 4)).await.unwrap();
            renew_client(&manager, client).await.unwrap();
            // Registering again with nothing new is as cheap.
            ops::register_node(&manager, node_request(2, 1, 4)).await.unwrap();
        }
        assert_eq!(engine.begin_version().await, version);
    });
}

trait Version {
    async fn begin_version(&self) -> u64;
}

impl Version for Mem {
    async fn begin_version(&self) -> u64 {
        use corefs_kv::KvEngine;
        self.begin().read_version().await.unwrap()
    }
}

#[test]
fn a_lost_store_is_survived_and_the_lead_regained() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::new();
        let manager = lead(&engine, &clock, 1, wanted(1, 1, 4)).await;
        register_all(&manager, 1, 1, 4).await;
        let before = routing(&manager).await.unwrap();
        engine.script([Some(corefs_kv::mem::Fault::Unavailable); 60]);
        for _ in 0..20 {
            let pause = manager.step().await;
            clock.sleep(pause).await;
        }
        clock.advance(2000);
        assert_eq!(code(routing(&manager).await), Some(ErrorCode::NotPrimary), "its lease ran out");
        for _ in 0..60 {
            let pause = manager.step().await;
            clock.sleep(pause).await;
        }
        // Nobody else took over, so the reign goes on.
        assert_eq!(routing(&manager).await.unwrap().version, before.version);
        // A change that can't be stored ends the reign; the next one starts from what is stored.
        engine.script([Some(corefs_kv::mem::Fault::UnknownDone)]);
        assert_eq!(renew_client(&manager, 0).await, Ok(1), "the second attempt sees that the first happened");
        engine.script([Some(corefs_kv::mem::Fault::Unavailable); 200]);
        assert!(ops::register_node(&manager, node_request(2, 1, 4)).await.is_err());
        assert!(!manager.leads());
        elect(&manager, &clock).await;
        let after = routing(&manager).await.unwrap();
        assert!(after.version > before.version);
        assert_eq!(after.nodes.len(), 1);
    });
}

/// A manager dies with a change on its way. The change arrives after another has taken over: it must not happen, for the
/// new one has already loaded what it leads.
#[test]
fn a_change_that_arrives_after_a_take_over_does_not_happen() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::new();
        let old = lead(&engine, &clock, 1, wanted(1, 1, 4)).await;
        register_all(&old, 1, 1, 4).await;
        engine.script([Some(corefs_kv::mem::Fault::UnknownLate)]);
        let mut change = Box::pin(ops::register_node(&old, node_request(2, 1, 4)));
        assert!(future::poll_once(change.as_mut()).await.is_none(), "it waits to try again");
        drop(change);
        drop(old);
        // What is late arrives behind the next commit: the one that takes over.
        let new = lead(&engine, &clock, 2, Wanted::default()).await;
        engine.settle();
        let reply = ops::register_node(&new, node_request(3, 1, 4)).await.unwrap();
        assert_eq!((reply.node, routing(&new).await.unwrap().nodes.len()), (2, 2));
        new.release().await.unwrap();
        let third = lead(&engine, &clock, 3, Wanted::default()).await;
        assert_eq!(routing(&third).await.unwrap().nodes.len(), 2);
    });
}

/// The change of a primary that was slow arrives while another takes over. If it is stored, the new one must know of it: nobody else tells.
#[test]
fn what_is_stored_during_a_take_over_is_known_after_it() {
    use corefs_kv::mem::Faults;
    let mut stored = [0; 2];
    for seed in 0..300 {
        let clock = TestClock::default();
        run(&clock, async {
            let engine = Mem::with_faults(seed, Faults { yields: 600, ..Faults::default() });
            let old = lead(&engine, &clock, 1, wanted(1, 1, 4)).await;
            register_all(&old, 1, 1, 4).await;
            let new = open(&engine, &clock, 2, Wanted::default()).await.unwrap();
            new.step().await;
            let mut change = Box::pin(renew_client(&old, 0));
            if future::poll_once(change.as_mut()).await.is_some() {
                return;
            }
            clock.advance(1300);
            let first = match seed % 2 {
                0 => future::zip(change, new.step()).await.0,
                _ => future::zip(new.step(), change).await.1,
            };
            assert!(new.leads());
            stored[usize::from(first.is_ok())] += 1;
            let second = renew_client(&new, 0).await.unwrap();
            assert_ne!(first, Ok(second), "a number given out twice (seed {seed})");
            assert!(first.is_err() || alive(&new, &[1]).await == [true], "a client lost (seed {seed})");
            // And what is answered is stored.
            drop((old, new));
            let third = lead(&engine, &clock, 3, Wanted::default()).await;
            assert_eq!(alive(&third, &[second]).await, [true], "seed {seed}");
        });
    }
    assert!(stored.iter().all(|count| *count > 5), "both orders came about: {stored:?}");
}

/// While the store is away no manager answers, so nobody can be heard. That is nobody's death.
#[test]
fn nobody_dies_of_a_store_that_was_away() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::new();
        let manager = lead(&engine, &clock, 1, wanted(3, 3, 8)).await;
        register_all(&manager, 3, 1, 4).await;
        let client = renew_client(&manager, 0).await.unwrap();
        let before = routing(&manager).await.unwrap();
        engine.script([Some(corefs_kv::mem::Fault::Unavailable); 200]);
        while clock.now_ms() < 20_000 {
            let pause = manager.step().await;
            assert!(manager.upkeep().await.is_err() || clock.now_ms() < 1000);
            clock.sleep(pause.max(200)).await;
        }
        engine.script([]);
        elect(&manager, &clock).await;
        // One node is faster than the others, and than the client.
        ops::node_heartbeat(&manager, heartbeat(1, 1, 1, 4)).await.unwrap();
        manager.upkeep().await.unwrap();
        assert_eq!(routing(&manager).await.unwrap().version, before.version, "nothing has changed");
        assert_eq!(alive(&manager, &[client]).await, [true]);
        // Who doesn't speak within a lease from now on is dead.
        for _ in 0..5 {
            clock.advance(300);
            manager.step().await;
            ops::node_heartbeat(&manager, heartbeat(1, 1, 1, 4)).await.unwrap();
            manager.upkeep().await.unwrap();
        }
        let after = routing(&manager).await.unwrap();
        let alive: Vec<u32> = after.nodes.values().filter(|node| node.alive).map(|node| node.id.0).collect();
        assert_eq!(alive, [1]);
    });
}

/// The generation in the counters row: a change planned on anything but the newest state isn't stored.
#[test]
fn a_change_planned_on_another_state_does_not_happen() {
    use corefs_kv::KvEngine;
    use corefs_mgmtd::rows;
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::new();
        let manager = lead(&engine, &clock, 1, wanted(1, 1, 4)).await;
        register_all(&manager, 1, 1, 4).await;
        let mut txn = engine.begin();
        let stored = txn.get(&rows::counters_key(), corefs_kv::Isolation::Snapshot).await.unwrap().unwrap();
        let mut numbers = rows::read_numbers(&stored).unwrap();
        numbers.generation += 5;
        txn.set(&rows::counters_key(), &rows::write_numbers(&numbers));
        txn.commit().await.unwrap();
        let before = engine.dump();
        assert_eq!(code(renew_client(&manager, 0).await), Some(ErrorCode::Internal));
        assert_eq!(engine.dump(), before);
        assert!(!manager.leads(), "memory and store differ: it starts over");
        elect(&manager, &clock).await;
        assert_eq!(renew_client(&manager, 0).await, Ok(1));
    });
}

/// Two managers that start together both see that nobody leads: one of them wins.
#[test]
fn of_two_that_reach_for_the_lead_one_gets_it() {
    for seed in 0..50 {
        let clock = TestClock::default();
        run(&clock, async {
            let interleave = corefs_kv::mem::Faults { yields: 500, ..Default::default() };
            let engine = Mem::with_faults(seed, interleave);
            let first = open(&engine, &clock, 1, Wanted::default()).await.unwrap();
            let second = open(&engine, &clock, 2, Wanted::default()).await.unwrap();
            future::zip(first.step(), second.step()).await;
            assert!(first.leads() != second.leads(), "seed {seed}");
        });
    }
}
