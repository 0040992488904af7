//! Managers over a store in which commits conflict, fail, and end unknown: seeds, many of them. Whatever happens, what was
//! answered stays true.

use crate::support::*;
use corefs_kv::Mem;
use corefs_kv::mem::Faults;
use corefs_kv::prng::Prng;
use corefs_mgmtd::cluster::formation::Wanted;
use corefs_mgmtd::ops;
use corefs_wire::control::mgmtd::*;
use std::collections::{BTreeMap, BTreeSet};

/// What clients of the cluster know from replies.
#[derive(Default)]
struct Told {
    nodes: BTreeMap<u8, u32>,
    incarnations: BTreeMap<u8, u64>,
    live: BTreeSet<u64>,
    ended: BTreeSet<u64>,
    version: u64,
}

async fn one_step(manager: &Manager, random: &mut Prng, told: &mut Told) {
    let name = (random.below(5) + 1) as u8;
    match random.below(6) {
        0 | 1 => {
            let incarnation = told.incarnations.entry(name).or_insert(1);
            *incarnation += u64::from(random.below(3) == 0);
            let mut request = node_request(name, *incarnation, 4);
            request.node = told.nodes.get(&name).copied().filter(|_| random.below(2) == 0).unwrap_or(0);
            if let Ok(reply) = ops::register_node(manager, request).await {
                let id = *told.nodes.entry(name).or_insert(reply.node);
                assert_eq!(id, reply.node, "a node's number never changes");
                assert!(reply.routing.version >= told.version);
                told.version = reply.routing.version;
            }
        }
        2 | 3 => {
            if let Ok(client) = renew_client(manager, 0).await {
                assert!(
                    !told.ended.contains(&client) && told.live.insert(client),
                    "a number given out twice"
                );
            }
        }
        4 => {
            if let Some(client) = told.live.iter().next().copied() {
                let mut request = EndClientT::default();
                request.client = client;
                // An error leaves open whether it ended.
                told.live.remove(&client);
                if ops::end_client(manager, request).await.is_ok() {
                    told.ended.insert(client);
                }
            }
        }
        _ => {
            if let Ok(routing) = routing(manager).await {
                assert!(routing.version >= told.version, "versions rise");
                told.version = routing.version;
            }
        }
    }
}

#[test]
fn what_was_answered_stays_true() {
    for seed in 0..60 {
        let clock = TestClock::default();
        run(&clock, async {
            let engine = Mem::with_faults(seed, Faults::STORM);
            let (mut random, mut told) = (Prng::new(seed), Told::default());
            let mut process = 0;
            for _ in 0..5 {
                process += 1;
                let manager = loop {
                    // Opening gives up when the store is too bad; a person would start it again.
                    if let Ok(manager) = open(&engine, &clock, process, wanted(4, 2, 6)).await {
                        break manager;
                    }
                };
                for _ in 0..40 {
                    elect(&manager, &clock).await;
                    one_step(&manager, &mut random, &mut told).await;
                    clock.advance(random.below(300));
                }
                if random.below(2) == 0 {
                    let _may_fail = manager.release().await;
                }
            }
            engine.set_faults(Faults::default());
            engine.settle();
            let manager = lead(&engine, &clock, 99, Wanted::default()).await;
            let status = ops::get_status(&manager, GetStatusT::default()).await.unwrap();
            assert!(status.routing.version > told.version);
            for (name, id) in &told.nodes {
                let node = status.nodes.iter().find(|node| node.node == *id).unwrap();
                assert_eq!(node.slices[0].store[0], *name);
            }
            let stores: BTreeSet<&Vec<u8>> =
                status.nodes.iter().flat_map(|node| &node.slices).map(|slice| &slice.store).collect();
            assert_eq!(stores.len(), status.nodes.len() * 4, "no node was taken in twice");
            let known = alive(&manager, &told.live.iter().copied().collect::<Vec<_>>()).await;
            assert!(known.iter().all(|alive| *alive), "a live client was lost");
            let gone = alive(&manager, &told.ended.iter().copied().collect::<Vec<_>>()).await;
            assert!(gone.iter().all(|alive| !*alive), "an ended client lives");
            if status.nodes.len() >= 4 {
                assert_eq!(status.routing.chains.len(), 12);
            }
        });
    }
}
