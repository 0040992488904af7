//! What each operation answers, to sensible requests and to nonsense.

use crate::support::*;
use corefs_kv::Mem;
use corefs_mgmtd::cluster::formation::Wanted;
use corefs_mgmtd::{Clock, ops};
use corefs_wire::ErrorCode;
use corefs_wire::control::Message;
use corefs_wire::control::mgmtd::*;
use corefs_wire::limits::FRAME_BODY_MAX;
use futures_lite::future;

#[test]
fn nonsense_registrations_are_typed_errors_and_change_nothing() {
    type Change = fn(&mut RegisterNodeT);
    let nonsense: &[(&str, Change)] = &[
        ("no shards", |request| request.shards.clear()),
        ("too many shards", |request| {
            request.shards = (0..300).map(|port| format!("1.1.1.1:{}", port + 1)).collect()
        }),
        ("no address", |request| request.control = "somewhere".into()),
        ("empty address", |request| request.control = String::new()),
        ("port 0", |request| request.shards[0] = "1.1.1.1:0".into()),
        ("wildcard", |request| request.shards[0] = "0.0.0.0:5".into()),
        ("endless address", |request| request.control = "x".repeat(1 << 20)),
        ("one address twice", |request| request.shards[1] = request.shards[0].clone()),
        ("endless domain", |request| request.domain = "x".repeat(300)),
        ("domain with control characters", |request| request.domain = "a\nb".into()),
        ("no slices", |request| request.slices.clear()),
        ("too many slices", |request| request.slices = vec![request.slices[0].clone(); 2000]),
        ("slices out of order", |request| request.slices.swap(0, 1)),
        ("slice on a shard that isn't there", |request| request.slices[0].shard = 2),
        ("store that is no uuid", |request| request.slices[0].store = vec![1; 15]),
        ("nil store", |request| request.slices[0].store = vec![0; 16]),
        ("one store twice", |request| request.slices[1].store = request.slices[0].store.clone()),
        ("no capacity", |request| request.slices[1].capacity = 0),
    ];
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::new();
        let manager = lead(&engine, &clock, 1, wanted(2, 1, 4)).await;
        register_all(&manager, 2, 1, 4).await;
        let (rows, before) = (engine.dump(), routing(&manager).await.unwrap());
        for (what, change) in nonsense {
            for name in [1, 9] {
                let mut request = node_request(name, 2, 4);
                change(&mut request);
                let outcome = ops::register_node(&manager, request).await;
                assert_eq!(code(outcome), Some(ErrorCode::InvalidArgument), "{what}");
            }
        }
        assert_eq!(engine.dump(), rows);
        assert_eq!(routing(&manager).await.unwrap(), before);
    });
}

#[test]
fn a_node_whose_shards_outgrow_the_routing_table_is_refused_and_changes_nothing() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::new();
        let manager = lead(&engine, &clock, 1, wanted(3, 3, 8)).await;
        register_all(&manager, 3, 1, 4).await;
        let mut last = NodeRegisteredT::default();
        for name in 4..=255 {
            let mut request = node_request(name, 1, 4);
            let address = |shard| format!("unix:/{}/{name}/{shard}", "x".repeat(80));
            request.shards = (0..256).map(address).collect();
            let rows = engine.dump();
            match ops::register_node(&manager, request).await {
                Ok(reply) => last = reply,
                Err(error) => {
                    assert_eq!(error.code, ErrorCode::Overloaded, "{error}");
                    assert!(error.message.contains("fewer shards"), "{error}");
                    assert_eq!(engine.dump(), rows);
                    let told = last.encode().len();
                    assert!((FRAME_BODY_MAX / 2..FRAME_BODY_MAX).contains(&told), "{told} bytes");
                    assert_eq!(routing(&manager).await.unwrap().nodes.len(), usize::from(name) - 1);
                    // A usual one still finds room.
                    ops::register_node(&manager, node_request(name, 1, 4)).await.unwrap();
                    return;
                }
            }
        }
        panic!("nobody was refused");
    });
}

#[test]
fn other_nonsense_is_a_typed_error_too() {
    let clock = TestClock::default();
    run(&clock, async {
        let manager = lead(&Mem::new(), &clock, 1, wanted(1, 1, 4)).await;
        register_all(&manager, 1, 1, 4).await;
        let beat = |change: fn(&mut NodeHeartbeatT)| {
            let mut request = heartbeat(1, 1, 1, 4);
            change(&mut request);
            request
        };
        type Change = fn(&mut NodeHeartbeatT);
        let cases: &[(Change, ErrorCode)] = &[
            (|request| request.node = 0, ErrorCode::NodeConflict),
            (|request| request.node = u32::MAX, ErrorCode::NodeConflict),
            (|request| request.incarnation = 77, ErrorCode::NodeConflict),
            (|request| request.slices.clear(), ErrorCode::InvalidArgument),
            (|request| request.slices.swap(0, 1), ErrorCode::InvalidArgument),
            (|request| request.slices[2].store = vec![], ErrorCode::InvalidArgument),
        ];
        for (change, expected) in cases {
            let outcome = ops::node_heartbeat(&manager, beat(*change)).await;
            assert_eq!(code(outcome), Some(*expected));
        }
        assert!(
            ops::node_heartbeat(&manager, beat(|request| request.routing_version = u64::MAX)).await.is_ok()
        );
        for address in ["", "localhost:1", "1.2.3.4:0", "unix:relative"] {
            let mut request = RegisterMetaT::default();
            request.address = address.into();
            assert_eq!(code(ops::register_meta(&manager, request).await), Some(ErrorCode::InvalidArgument));
        }
        let mut request = RenewClientT::default();
        request.name = "n".repeat(10_000);
        assert_eq!(code(ops::renew_client(&manager, request).await), Some(ErrorCode::InvalidArgument));
        assert_eq!(code(renew_client(&manager, u64::MAX).await), Some(ErrorCode::LeaseExpired));
        let mut request = CheckClientsT::default();
        request.clients = vec![1; 100_000];
        assert_eq!(code(ops::check_clients(&manager, request).await), Some(ErrorCode::InvalidArgument));
        let mut request = EndClientT::default();
        request.client = 1234;
        assert!(ops::end_client(&manager, request).await.is_ok());
    });
}

#[test]
fn a_restarted_node_is_filled_before_it_serves_and_routing_shows_it() {
    let clock = TestClock::default();
    run(&clock, async {
        let manager = lead(&Mem::new(), &clock, 1, wanted(3, 3, 8)).await;
        register_all(&manager, 3, 1, 4).await;
        let before = routing(&manager).await.unwrap();
        let mut again = node_request(2, 2, 4);
        again.node = 2;
        for _ in 0..3 {
            ops::register_node(&manager, again.clone()).await.unwrap();
        }
        let after = routing(&manager).await.unwrap();
        assert!(after.version > before.version && after.nodes.len() == 3);
        assert!(after.chains.values().all(|chain| chain.version == 3 && chain.serving().count() == 2));
        assert_eq!(
            code(ops::node_heartbeat(&manager, heartbeat(2, 2, 1, 4)).await),
            Some(ErrorCode::NodeConflict)
        );
        assert!(ops::node_heartbeat(&manager, heartbeat(2, 2, 2, 4)).await.is_ok());
        manager.upkeep().await.unwrap();
        assert_eq!(routing(&manager).await.unwrap().chains, after.chains, "nothing more is known");
        // It says that it was filled: half of its targets under an older version.
        let filled = |version| {
            let mut beat = heartbeat(2, 2, 2, 4);
            for target in after.targets.values().filter(|target| target.node.0 == 2) {
                let mut health = TargetHealthT::default();
                (health.target, health.up_to_date, health.chain_version) = (target.id.0, true, version);
                beat.targets.push(health);
            }
            beat
        };
        for (version, serving) in [(2, 2), (3, 3)] {
            ops::node_heartbeat(&manager, filled(version)).await.unwrap();
            manager.upkeep().await.unwrap();
            let chains = routing(&manager).await.unwrap().chains;
            assert!(chains.values().all(|chain| chain.serving().count() == serving), "{version}");
        }
    });
}

#[test]
fn a_silent_node_gets_no_lease_until_its_chains_go_on_without_it() {
    let clock = TestClock::default();
    run(&clock, async {
        let manager = lead(&Mem::new(), &clock, 1, wanted(3, 3, 8)).await;
        register_all(&manager, 3, 1, 4).await;
        for _ in 0..3 {
            clock.advance(500);
            manager.step().await;
            manager.step().await;
            for node in [1, 2] {
                ops::node_heartbeat(&manager, heartbeat(node, node as u8, 1, 4)).await.unwrap();
            }
        }
        // The change that takes node 3 out is on its way when the node speaks again.
        let beat = async { code(ops::node_heartbeat(&manager, heartbeat(3, 3, 1, 4)).await) };
        let upkeep = manager.upkeep();
        let (refused, changed) = {
            let mut upkeep = Box::pin(upkeep);
            let first = future::poll_once(upkeep.as_mut()).await;
            let refused = beat.await;
            (
                refused,
                match first {
                    Some(outcome) => outcome,
                    None => upkeep.await,
                },
            )
        };
        changed.unwrap();
        let chains = routing(&manager).await.unwrap().chains;
        assert!(chains.values().all(|chain| chain.serving().count() == 2 && chain.version == 2));
        // A store in memory may have been done at once: then the change was stored, and the lease is harmless.
        assert!(refused.is_none_or(|code| code == ErrorCode::NotReady), "{refused:?}");
        ops::node_heartbeat(&manager, heartbeat(3, 3, 1, 4)).await.unwrap();
        manager.upkeep().await.unwrap();
        let chains = routing(&manager).await.unwrap().chains;
        assert!(chains.values().all(|chain| chain.members.last().unwrap().state == TargetState::Syncing));
    });
}

fn elsewhere(name: u8, incarnation: u64) -> RegisterNodeT {
    let mut request = node_request(name, incarnation, 4);
    request.control = "127.0.9.9:1".into();
    request.shards = vec!["127.0.9.9:2".into(), "127.0.9.9:3".into()];
    request
}

#[test]
fn a_second_living_process_with_a_nodes_number_is_refused() {
    let clock = TestClock::default();
    run(&clock, async {
        let manager = lead(&Mem::new(), &clock, 1, wanted(1, 1, 4)).await;
        register_all(&manager, 1, 1, 4).await;
        clock.advance(50);
        let second = ops::register_node(&manager, elsewhere(1, 2));
        let first_speaks = async {
            clock.sleep(300).await;
            ops::node_heartbeat(&manager, heartbeat(1, 1, 1, 4)).await.unwrap();
        };
        let (outcome, ()) = future::zip(second, first_speaks).await;
        let error = outcome.unwrap_err();
        assert_eq!(error.code, ErrorCode::NodeConflict);
        assert!(error.message.contains("127.0.1.1:1"), "{error}");
        assert_eq!(clock.now_ms(), 350);
    });
}

#[test]
fn a_restart_at_other_addresses_waits_for_the_old_lease() {
    let clock = TestClock::default();
    run(&clock, async {
        let manager = lead(&Mem::new(), &clock, 1, wanted(1, 1, 4)).await;
        register_all(&manager, 1, 1, 4).await;
        // The manager goes on renewing, the old process is silent.
        let renew = async {
            loop {
                let pause = manager.step().await;
                clock.sleep(pause).await;
            }
        };
        let outcome =
            future::or(async { Some(ops::register_node(&manager, elsewhere(1, 2)).await) }, async {
                renew.await;
                None
            });
        assert_eq!(outcome.await.unwrap().unwrap().node, 1);
        assert_eq!(clock.now_ms(), 1201);
        let routing = routing(&manager).await.unwrap();
        assert_eq!(routing.nodes.values().next().unwrap().control, "127.0.9.9:1");
    });
}

#[test]
fn a_long_poll_is_answered_by_news_by_time_or_by_the_end_of_the_lead() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::new();
        let manager = lead(&engine, &clock, 1, wanted(1, 1, 4)).await;
        let poll = |have: u64, wait_ms: u32| {
            let mut request = GetRoutingT::default();
            (request.have, request.wait_ms) = (have, wait_ms);
            ops::get_routing(&manager, request)
        };
        // Not formed yet: by time, then by news.
        assert_eq!(code(poll(0, 100).await), Some(ErrorCode::NotReady));
        assert_eq!(clock.now_ms(), 100);
        let (formed, _) =
            future::zip(poll(0, 500), ops::register_node(&manager, node_request(1, 1, 4))).await;
        let version = formed.unwrap().routing.unwrap().version;
        assert_eq!(clock.now_ms(), 100);
        assert!(poll(version, 50).await.unwrap().routing.is_none());
        assert_eq!(clock.now_ms(), 150);
        let restart = async {
            clock.sleep(20).await;
            ops::register_node(&manager, node_request(1, 2, 4)).await.unwrap();
        };
        let (news, ()) = future::zip(poll(version, 500), restart).await;
        assert!(news.unwrap().routing.unwrap().version > version);
        assert_eq!(clock.now_ms(), 170);
        let stop = async {
            clock.sleep(20).await;
            manager.release().await.unwrap();
        };
        let (outcome, ()) = future::zip(poll(u64::MAX, 500), stop).await;
        assert_eq!(code(outcome), Some(ErrorCode::NotPrimary));
        assert_eq!(clock.now_ms(), 190);
    });
}

#[test]
fn only_so_many_may_wait() {
    let clock = TestClock::default();
    run(&clock, async {
        let manager = lead(&Mem::new(), &clock, 1, wanted(1, 1, 4)).await;
        register_all(&manager, 1, 1, 4).await;
        let poll = || {
            let mut request = GetRoutingT::default();
            (request.have, request.wait_ms) = (u64::MAX, 500);
            ops::get_routing(&manager, request)
        };
        let mut waiting: Vec<_> = (0..ops::WAITERS_MAX).map(|_| Box::pin(poll())).collect();
        for one in &mut waiting {
            assert!(future::poll_once(one.as_mut()).await.is_none());
        }
        assert_eq!(code(poll().await), Some(ErrorCode::Overloaded));
        // Whoever goes away makes room.
        waiting.pop();
        assert!(poll().await.unwrap().routing.is_none());
    });
}

#[test]
fn a_dead_client_stays_dead() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::new();
        let manager = lead(&engine, &clock, 1, wanted(1, 1, 4)).await;
        register_all(&manager, 1, 1, 4).await;
        let first = renew_client(&manager, 0).await.unwrap();
        let second = renew_client(&manager, 0).await.unwrap();
        let third = renew_client(&manager, 0).await.unwrap();
        assert_eq!([first, second, third], [1, 2, 3]);
        for _ in 0..6 {
            clock.advance(900);
            manager.step().await;
            renew_client(&manager, second).await.unwrap();
        }
        let mut end = EndClientT::default();
        end.client = third;
        ops::end_client(&manager, end).await.unwrap();
        manager.upkeep().await.unwrap();
        let all = [0, first, second, third, 4, u64::MAX];
        let expected = [false, false, true, false, false, false];
        assert_eq!(alive(&manager, &all).await, expected);
        assert_eq!(code(renew_client(&manager, first).await), Some(ErrorCode::LeaseExpired));
        assert_eq!(code(renew_client(&manager, third).await), Some(ErrorCode::LeaseExpired));
        // Nor does a change of primary revive it, and its number isn't given out again.
        manager.release().await.unwrap();
        let manager = lead(&engine, &clock, 2, Wanted::default()).await;
        assert_eq!(alive(&manager, &all).await, expected);
        assert_eq!(code(renew_client(&manager, first).await), Some(ErrorCode::LeaseExpired));
        assert_eq!(renew_client(&manager, 0).await, Ok(4));
        assert_eq!(renew_client(&manager, second).await, Ok(second));
    });
}

#[test]
fn metadata_servers_come_die_and_are_forgotten() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::new();
        let manager = lead(&engine, &clock, 1, wanted(1, 1, 4)).await;
        register_all(&manager, 1, 1, 4).await;
        let meta = || {
            let mut request = RegisterMetaT::default();
            (request.address, request.incarnation) = ("127.0.0.1:70".into(), 1);
            request
        };
        let reply = ops::register_meta(&manager, meta()).await.unwrap();
        assert_eq!(reply.routing.unwrap().metas, ["127.0.0.1:70"]);
        let rows = engine.dump();
        ops::register_meta(&manager, meta()).await.unwrap();
        assert_eq!(engine.dump(), rows, "a heartbeat");
        clock.advance(700);
        manager.step().await;
        clock.advance(501);
        manager.step().await;
        manager.upkeep().await.unwrap();
        assert!(routing(&manager).await.unwrap().metas.is_empty());
        let status = ops::get_status(&manager, GetStatusT::default()).await.unwrap();
        assert!(!status.metas[0].alive && status.metas[0].seen_ms_ago == 1201);
        clock.advance(60_000);
        manager.step().await;
        manager.upkeep().await.unwrap();
        let status = ops::get_status(&manager, GetStatusT::default()).await.unwrap();
        assert!(status.metas.is_empty());
        let space: u64 = status.nodes[0].slices.iter().map(|slice| slice.capacity).sum();
        assert_eq!((space, status.clients, status.expected_nodes), (4 << 30, 0, 1));
    });
}

/// Its end was due, and while that waited for another change it spoke.
#[test]
fn a_client_that_renews_before_its_end_is_decided_keeps_its_lease() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::new();
        let manager = lead(&engine, &clock, 1, wanted(1, 1, 4)).await;
        register_all(&manager, 1, 1, 4).await;
        let client = renew_client(&manager, 0).await.unwrap();
        for _ in 0..6 {
            clock.advance(900);
            manager.step().await;
        }
        engine.script([Some(corefs_kv::mem::Fault::UnknownNever)]);
        let mut other = Box::pin(renew_client(&manager, 0));
        assert!(future::poll_once(other.as_mut()).await.is_none(), "it is being stored");
        let mut upkeep = Box::pin(manager.upkeep());
        assert!(future::poll_once(upkeep.as_mut()).await.is_none(), "it waits for its turn");
        assert_eq!(renew_client(&manager, client).await, Ok(client));
        let other = other.await.unwrap();
        upkeep.await.unwrap();
        assert_eq!(alive(&manager, &[client, other]).await, [true, true]);
        assert_eq!(renew_client(&manager, client).await, Ok(client));
    });
}

/// Between the decision that a lease is over and its being stored, the client is neither dead nor able to go on.
#[test]
fn a_client_whose_end_is_being_stored_can_not_renew() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::new();
        let manager = lead(&engine, &clock, 1, wanted(1, 1, 4)).await;
        register_all(&manager, 1, 1, 4).await;
        let client = renew_client(&manager, 0).await.unwrap();
        for _ in 0..6 {
            clock.advance(900);
            manager.step().await;
        }
        assert_eq!(alive(&manager, &[client]).await, [true], "nobody has looked yet");
        engine.script([Some(corefs_kv::mem::Fault::UnknownNever)]);
        let mut upkeep = Box::pin(manager.upkeep());
        assert!(future::poll_once(upkeep.as_mut()).await.is_none());
        assert_eq!(code(renew_client(&manager, client).await), Some(ErrorCode::LeaseExpired));
        assert_eq!(alive(&manager, &[client]).await, [true], "it isn't stored yet");
        upkeep.await.unwrap();
        assert_eq!(alive(&manager, &[client]).await, [false]);
    });
}
