//! Clusters of many shapes form through the operations, and what clients are told is balanced.

use crate::support::*;
use corefs_kv::Mem;
use corefs_mgmtd::cluster::formation::Wanted;
use corefs_mgmtd::cluster::placement::{Replica, Room, verify};
use corefs_mgmtd::ops;
use corefs_wire::control::mgmtd::{GetRoutingT, GetStatusT};
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{ErrorCode, SliceIndex};

/// The placement that routing shows, as the verifier wants it.
fn placement(routing: &RoutingInfo) -> (Vec<Room>, Vec<Vec<Replica>>) {
    let rooms: Vec<Room> = routing
        .nodes
        .values()
        .map(|node| Room {
            node: node.id,
            domain: node.domain.clone(),
            slices: (0..node.slice_shards.len() as u16).map(SliceIndex).collect(),
        })
        .collect();
    let replica = |target| {
        let target = &routing.targets[&target];
        let room = rooms.iter().position(|room| room.node == target.node).unwrap();
        Replica { room, slice: target.slice }
    };
    let chains = &routing.tables[&(1, 1)];
    let plan = chains.iter().map(|chain| routing.chains[chain].serving().map(replica).collect()).collect();
    (rooms, plan)
}

#[test]
fn every_shape_forms_balanced() {
    for (nodes, replicas, targets) in [
        (1, 1, 32),
        (1, 1, 1),
        (2, 1, 8),
        (2, 2, 32),
        (3, 3, 32),
        (4, 3, 16),
        (5, 2, 7),
        (6, 3, 32),
        (9, 4, 10),
    ] {
        let clock = TestClock::default();
        run(&clock, async {
            let engine = Mem::new();
            let manager = lead(&engine, &clock, 1, wanted(u32::from(nodes), replicas, targets)).await;
            assert_eq!(corefs_mgmtd::Clock::now_ms(&clock), 0, "a first start leads at once");
            for name in 1..nodes {
                ops::register_node(&manager, node_request(name, 1, 8)).await.unwrap();
                assert_eq!(code(routing(&manager).await), Some(ErrorCode::NotReady));
            }
            ops::register_node(&manager, node_request(nodes, 1, 8)).await.unwrap();
            let routing = routing(&manager).await.unwrap();
            let (rooms, plan) = placement(&routing);
            assert_eq!(plan.len() as u32, u32::from(nodes) * targets / replicas);
            let imbalance = verify(&rooms, replicas as usize, &plan).unwrap();
            let even = imbalance.positions.iter().all(|position| position.gap() <= 1);
            assert!(even && imbalance.pairs.gap() <= 2, "{nodes} nodes, {replicas} replicas: {imbalance}");
        });
    }
}

#[test]
fn more_replicas_than_nodes_is_said_with_a_remedy() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::new();
        let manager = lead(&engine, &clock, 1, wanted(1, 3, 32)).await;
        register_all(&manager, 1, 1, 4).await;
        assert_eq!(code(routing(&manager).await), Some(ErrorCode::TooFewNodes));
        let status = ops::get_status(&manager, GetStatusT::default()).await.unwrap();
        assert!(status.problems[0].what.contains("--replicas 1"), "{:?}", status.problems);
        // Nothing depends on the numbers yet: a start with better ones forms the cluster.
        manager.release().await.unwrap();
        let manager = lead(&engine, &clock, 2, Wanted { replicas: Some(1), ..Wanted::default() }).await;
        manager.upkeep().await.unwrap();
        ops::register_node(&manager, node_request(1, 1, 4)).await.unwrap();
        assert_eq!(routing(&manager).await.unwrap().chains.len(), 32);
    });
}

#[test]
fn a_later_start_with_other_numbers_is_refused() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::new();
        let manager = lead(&engine, &clock, 1, wanted(2, 2, 4)).await;
        register_all(&manager, 2, 1, 4).await;
        let error = open(&engine, &clock, 2, wanted(2, 1, 4)).await.err().unwrap();
        assert_eq!(error.code, ErrorCode::BadConfig);
        assert!(error.message.contains("replicas is 2, not 1"), "{error}");
        assert!(open(&engine, &clock, 2, wanted(2, 2, 4)).await.is_ok());
        let reopened = open(&engine, &clock, 2, Wanted::default()).await.unwrap();
        assert_eq!(reopened.cluster(), manager.cluster());
        let mut foreign = settings(3, Wanted::default());
        foreign.expected_cluster = Some(corefs_wire::Uuid([7; 16]));
        let outcome = corefs_mgmtd::Primary::open(engine.clone(), clock.clone(), foreign).await;
        assert_eq!(code(outcome), Some(ErrorCode::WrongCluster));
    });
}

#[test]
fn a_node_with_a_dead_disk_does_not_count_until_it_is_well() {
    let clock = TestClock::default();
    run(&clock, async {
        let manager = lead(&Mem::new(), &clock, 1, wanted(2, 2, 4)).await;
        let mut dead = node_request(1, 1, 2);
        dead.slices.iter_mut().for_each(|slice| slice.dead = true);
        ops::register_node(&manager, dead).await.unwrap();
        ops::register_node(&manager, node_request(2, 1, 2)).await.unwrap();
        assert_eq!(code(routing(&manager).await), Some(ErrorCode::NotReady));
        ops::node_heartbeat(&manager, heartbeat(1, 1, 1, 2)).await.unwrap();
        manager.upkeep().await.unwrap();
        assert_eq!(routing(&manager).await.unwrap().chains.len(), 4);
        let unknown_wait = ops::get_routing(&manager, GetRoutingT::default()).await;
        assert!(unknown_wait.unwrap().routing.is_some());
    });
}
