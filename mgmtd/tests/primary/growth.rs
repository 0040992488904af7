//! Nodes and disks come and go by request, over a store and heartbeats.

use crate::support::*;
use corefs_kv::Mem;
use corefs_mgmtd::cluster::formation::Wanted;
use corefs_mgmtd::ops;
use corefs_wire::control::mgmtd::*;
use corefs_wire::{ErrorCode, Result};

async fn change(manager: &Manager, node: u32, change: NodeChange, dry_run: bool) -> Result<MovesT> {
    let mut request = ChangeNodeT::default();
    (request.node, request.change, request.dry_run) = (node, change, dry_run);
    ops::change_node(manager, request).await
}

async fn moving(manager: &Manager, change: MovingChange) -> MovesT {
    let mut request = ChangeMovingT::default();
    request.change = change;
    ops::change_moving(manager, request).await.unwrap()
}

async fn status(manager: &Manager) -> StatusT {
    ops::get_status(manager, GetStatusT::default()).await.unwrap()
}

/// All nodes of `names` say that they are well and that whoever was to be filled is.
async fn beat(manager: &Manager, names: &[u8]) {
    let status = status(manager).await;
    for name in names {
        let Some(node) = status.nodes.iter().find(|node| node.slices[0].store[0] == *name) else { continue };
        let mut request = NodeHeartbeatT::default();
        (request.node, request.incarnation, request.slices) = (node.node, 1, node.slices.clone());
        for chain in &status.routing.chains {
            for member in &chain.members {
                let mut health = TargetHealthT::default();
                (health.target, health.used, health.chunks) = (member.target, 1 << 20, 2);
                (health.up_to_date, health.chain_version) =
                    (member.state == TargetState::Syncing, chain.version);
                let on =
                    status.routing.targets.iter().find(|target| target.id == member.target).unwrap().node;
                request.targets.extend((on == node.node).then_some(health));
            }
        }
        let _answered = ops::node_heartbeat(manager, request).await;
    }
}

/// Until nothing moves.
async fn settle(manager: &Manager, clock: &TestClock, names: &[u8]) {
    for _ in 0..2000 {
        clock.advance(260);
        manager.step().await;
        beat(manager, names).await;
        manager.upkeep().await.unwrap();
        let moves = moving(manager, MovingChange::Look).await;
        if moves.moves.is_empty() && moves.leaving == 0 && moves.rotations == 0 && !moves.balance {
            return;
        }
    }
    panic!("it never ends: {:?}", moving(manager, MovingChange::Look).await);
}

fn targets_on(status: &StatusT, node: u32) -> usize {
    status.routing.targets.iter().filter(|target| target.node == node).count()
}

async fn register(manager: &Manager, names: &[u8]) {
    for name in names {
        ops::register_node(manager, node_request(*name, 1, 4)).await.unwrap();
    }
}

#[test]
fn a_node_comes_another_one_goes_and_a_new_primary_goes_on() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::default();
        let manager = lead(&engine, &clock, 1, wanted(3, 3, 8)).await;
        let early = change(&manager, 1, NodeChange::Empty, false).await;
        assert_eq!(early.unwrap_err().code, ErrorCode::NotReady);
        register(&manager, &[1, 2, 3, 4]).await;
        beat(&manager, &[1, 2, 3, 4]).await;
        let spare = status(&manager).await;
        assert!(spare.problems.iter().any(|problem| problem.remedy.contains("corefs node add 4")));
        assert_eq!(targets_on(&spare, 4), 0);
        // Looking changes nothing.
        let version = spare.routing.version;
        let plan = change(&manager, 4, NodeChange::Use, true).await.unwrap();
        assert_eq!((plan.moves.len(), plan.least, plan.moves[0].bytes), (6, 6, 1 << 20));
        assert_eq!(status(&manager).await.routing.version, version);
        change(&manager, 4, NodeChange::Use, false).await.unwrap();
        manager.upkeep().await.unwrap();
        assert!(targets_on(&status(&manager).await, 4) > 0, "it begins");
        // The primary is replaced in the middle.
        manager.release().await.unwrap();
        let manager = lead(&engine, &clock, 2, Wanted::default()).await;
        manager.upkeep().await.unwrap();
        settle(&manager, &clock, &[1, 2, 3, 4]).await;
        let even = status(&manager).await;
        assert_eq!([1, 2, 3, 4].map(|node| targets_on(&even, node)), [6; 4]);

        let refused = change(&manager, 2, NodeChange::Forget, false).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::NotEmpty);
        change(&manager, 2, NodeChange::Empty, false).await.unwrap();
        assert!(moving(&manager, MovingChange::Pause).await.paused);
        clock.advance(260);
        manager.step().await;
        beat(&manager, &[1, 2, 3, 4]).await;
        manager.upkeep().await.unwrap();
        assert_eq!(targets_on(&status(&manager).await, 2), 6, "nothing begins while it is paused");
        moving(&manager, MovingChange::Resume).await;
        settle(&manager, &clock, &[1, 2, 3, 4]).await;
        assert_eq!(targets_on(&status(&manager).await, 2), 0);
        let alive = change(&manager, 2, NodeChange::Forget, false).await.unwrap_err();
        assert_eq!(alive.code, ErrorCode::NotPermitted);
        for _ in 0..8 {
            clock.advance(260);
            manager.step().await;
            beat(&manager, &[1, 3, 4]).await;
            manager.upkeep().await.unwrap();
        }
        change(&manager, 2, NodeChange::Forget, false).await.unwrap();
        assert!(status(&manager).await.nodes.iter().all(|node| node.node != 2));
        // Three replicas don't fit on two nodes: refused as a whole.
        let stuck = change(&manager, 3, NodeChange::Empty, false).await.unwrap_err();
        assert_eq!(stuck.code, ErrorCode::TooFewNodes);
        assert!(moving(&manager, MovingChange::Look).await.moves.is_empty());
    });
}

/// Whoever leads anew has heard nobody yet: that nothing can move then doesn't mean that nothing is to move.
#[test]
fn what_waits_for_a_silent_node_is_not_forgotten() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::default();
        let manager = lead(&engine, &clock, 1, wanted(3, 3, 8)).await;
        register(&manager, &[1, 2, 3, 4]).await;
        beat(&manager, &[1, 2, 3, 4]).await;
        moving(&manager, MovingChange::Pause).await;
        change(&manager, 4, NodeChange::Use, false).await.unwrap();
        manager.release().await.unwrap();
        let manager = lead(&engine, &clock, 2, Wanted::default()).await;
        manager.upkeep().await.unwrap();
        let mut request = ChangeMovingT::default();
        request.change = MovingChange::Resume;
        let early = ops::change_moving(&manager, request).await.unwrap_err();
        assert_eq!(early.code, ErrorCode::NotReady, "nobody can say yet what moves");
        // The new node is away, for so long that it is dead.
        for _ in 0..6 {
            clock.advance(260);
            manager.step().await;
            beat(&manager, &[1, 2, 3]).await;
            manager.upkeep().await.unwrap();
        }
        assert!(moving(&manager, MovingChange::Resume).await.balance);
        clock.advance(260);
        manager.upkeep().await.unwrap();
        assert!(moving(&manager, MovingChange::Look).await.balance, "it is still to have its share");
        settle(&manager, &clock, &[1, 2, 3, 4]).await;
        let even = status(&manager).await;
        assert_eq!([1, 2, 3, 4].map(|node| targets_on(&even, node)), [6; 4]);
    });
}

/// What would move if a disk or a node came that isn't there yet.
#[test]
fn a_plan_with_what_does_not_exist_yet_is_that_of_what_then_exists() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::default();
        let manager = lead(&engine, &clock, 1, wanted(3, 3, 8)).await;
        register(&manager, &[1, 2, 3]).await;
        beat(&manager, &[1, 2, 3]).await;
        let before = status(&manager).await;
        let assumed = |disk: u16| {
            let mut slice = NewSliceT::default();
            (slice.capacity, slice.disk) = (1 << 30, disk);
            Some(vec![slice; 4])
        };
        let ask = async |node, change, slices: &[u16], assumed, dry_run| {
            let mut request = ChangeNodeT::default();
            (request.node, request.change, request.slices) = (node, change, slices.to_vec());
            (request.assumed, request.dry_run) = (assumed, dry_run);
            ops::change_node(&manager, request).await
        };
        // A second disk in the place of the first, and one beside it.
        let replaced = ask(2, NodeChange::Empty, &[0, 1, 2, 3], assumed(1), true).await.unwrap();
        assert_eq!((replaced.moves.len(), replaced.least, replaced.stuck.len()), (8, 8, 0));
        assert_eq!(replaced.least_bytes, 8 << 20);
        assert!(replaced.moves.iter().all(|one| (one.from_node, one.to_node) == (2, 2) && one.to_slice >= 4));
        let beside = ask(2, NodeChange::Use, &[], assumed(1), true).await.unwrap();
        assert_eq!((beside.moves.len(), beside.least), (4, 4));
        let refused = async |node, slices| code(ask(node, NodeChange::Use, &[], slices, true).await);
        assert_eq!(refused(9, assumed(1)).await, Some(ErrorCode::InvalidArgument));
        assert_eq!(refused(2, Some(vec![])).await, Some(ErrorCode::InvalidArgument));
        assert_eq!(
            refused(2, Some(vec![NewSliceT::default(); 5000])).await,
            Some(ErrorCode::InvalidArgument)
        );
        let real = ask(2, NodeChange::Use, &[], assumed(1), false).await;
        assert_eq!(code(real), Some(ErrorCode::InvalidArgument), "it can only be shown");
        let supposed = ask(0, NodeChange::Use, &[], assumed(0), true).await.unwrap();
        assert_eq!(status(&manager).await.routing, before.routing, "looking changes nothing");
        assert_eq!(status(&manager).await.nodes.len(), 3);
        // The very same as when it is there.
        register(&manager, &[4]).await;
        beat(&manager, &[1, 2, 3, 4]).await;
        let real = change(&manager, 4, NodeChange::Use, true).await.unwrap();
        assert_eq!((supposed.moves, supposed.rotations), (real.moves, real.rotations));
    });
}

/// Each of the slices that stay could take one of the targets, but for a few bytes.
#[test]
fn a_node_is_not_emptied_without_room_for_all_of_it_and_the_bytes_that_lack_are_told() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::default();
        let manager = lead(&engine, &clock, 1, wanted(3, 2, 8)).await;
        register(&manager, &[1, 2, 3]).await;
        beat(&manager, &[1, 2, 3]).await;
        let say = async |spare: u64| {
            let status = status(&manager).await;
            for node in &status.nodes {
                let mut request = NodeHeartbeatT::default();
                (request.node, request.incarnation, request.slices) = (node.node, 1, node.slices.clone());
                for slice in &mut request.slices {
                    slice.used = slice.capacity - slice.capacity / 64 - spare;
                }
                for target in status.routing.targets.iter().filter(|target| target.node == node.node) {
                    let mut health = TargetHealthT::default();
                    (health.target, health.used) = (target.id, 1 << 20);
                    request.targets.push(health);
                }
                ops::node_heartbeat(&manager, request).await.unwrap();
            }
        };
        // One fits on each of eight slices; not a ninth.
        say((1 << 20) + 1).await;
        assert_eq!(change(&manager, 3, NodeChange::Empty, true).await.unwrap().moves.len(), 8);
        say(1 << 20).await;
        let before = status(&manager).await;
        let refused = change(&manager, 3, NodeChange::Empty, false).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::TooFewNodes);
        assert!(refused.message.contains(&format!("{} bytes", 8 << 20)), "{}", refused.message);
        assert_eq!(status(&manager).await.nodes, before.nodes);
    });
}

/// Whoever has emptied a disk to take it out doesn't get it filled again by taking another one into use.
#[test]
fn an_emptied_disk_comes_into_use_again_only_with_its_whole_node() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::default();
        let manager = lead(&engine, &clock, 1, wanted(4, 2, 8)).await;
        register(&manager, &[1, 2, 3, 4]).await;
        beat(&manager, &[1, 2, 3, 4]).await;
        let mut request = ChangeNodeT::default();
        (request.node, request.change, request.slices) = (1, NodeChange::Empty, vec![0]);
        ops::change_node(&manager, request).await.unwrap();
        let standings = async || -> Vec<Standing> {
            status(&manager).await.nodes[0].slices.iter().map(|slice| slice.standing).collect()
        };
        let some = [Standing::Leaving, Standing::Active, Standing::Active, Standing::Active];
        change(&manager, 1, NodeChange::Use, false).await.unwrap();
        assert_eq!(standings().await, some);
        change(&manager, 1, NodeChange::Empty, false).await.unwrap();
        change(&manager, 1, NodeChange::Use, false).await.unwrap();
        assert_eq!(standings().await, [Standing::Active; 4]);
    });
}

#[test]
fn nonsense_is_refused_and_changes_nothing() {
    let clock = TestClock::default();
    run(&clock, async {
        let engine = Mem::default();
        let manager = lead(&engine, &clock, 1, wanted(2, 1, 8)).await;
        register(&manager, &[1, 2]).await;
        beat(&manager, &[1, 2]).await;
        let before = status(&manager).await;
        let code = async |node, what, slices: &[u16]| {
            let mut request = ChangeNodeT::default();
            (request.node, request.change, request.slices) = (node, what, slices.to_vec());
            ops::change_node(&manager, request).await.map(drop).map_err(|error| error.code)
        };
        let invalid = Err(ErrorCode::InvalidArgument);
        assert_eq!(code(9, NodeChange::Empty, &[]).await, invalid);
        assert_eq!(code(0, NodeChange::Use, &[]).await, invalid);
        assert_eq!(code(1, NodeChange::Empty, &[4]).await, invalid);
        assert_eq!(code(1, NodeChange(7), &[]).await, invalid);
        let mut request = ChangeMovingT::default();
        request.change = MovingChange(9);
        assert_eq!(
            ops::change_moving(&manager, request).await.map(drop).map_err(|error| error.code),
            invalid
        );
        assert_eq!(status(&manager).await.routing, before.routing);
    });
}
