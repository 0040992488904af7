//! What no life comes to any more, or can't: told to one node alone.

use super::*;
use crate::chain::config::SLICE_BYTES;
use crate::tasks::MILLI;
use corefs_engine::chain::{Begun, Input, Moment, Replica, Step};
use corefs_wire::routing::{Chain, Member, Node, Target};
use corefs_wire::{ClientId, InodeId, NodeId};

const CHAIN: ChainId = ChainId(1);
const CHUNK: ChunkId = ChunkId::new(InodeId(1), 0);
const CLIENT: Requester = Requester::Client { client: 0, attempt: 1 };
const REPLICA: Requester = Requester::Replica { node: 1, epoch: 1, ticket: 9 };

/// Targets 1 and 2, on nodes of these numbers.
fn chain(states: [TargetState; 2]) -> Chain {
    let member = |(state, n)| Member { target: TargetId(n), state };
    Chain { id: CHAIN, version: 1, members: states.into_iter().zip(1..).map(member).collect() }
}

/// A node of that index under a lease, and its clock.
fn started(index: usize, states: [TargetState; 2]) -> (SimNode, Nanos) {
    let mut routing = RoutingInfo { version: 1, cluster: CLUSTER, ..RoutingInfo::default() };
    for n in 1..=2 {
        let (id, target) = (NodeId(n), TargetId(n.into()));
        let (control, domain) = Default::default();
        let (shards, slice_shards) = (vec![format!("127.0.0.{n}:1")], vec![ShardIndex(0)]);
        let node = Node { id, incarnation: 1, alive: true, control, shards, slice_shards, domain };
        routing.nodes.insert(id, node);
        routing.targets.insert(target, Target { id: target, node: id, slice: SLICE, chain: CHAIN });
    }
    routing.chains.insert(CHAIN, chain(states));
    let (mut node, mut now) = (SimNode::new(index, SLICE_BYTES, &mut Prng::new(1)), MILLI);
    node.power_on(true).unwrap();
    node.routing(now, &routing);
    node.lease(now, 1000 * MILLI);
    work(&mut node, &mut now, |_| true);
    (node, now)
}

/// What its disk is to do of these, and what comes of that.
fn work(node: &mut SimNode, now: &mut Nanos, does: impl Fn(&Job) -> bool) {
    while let Some(at) = node.jobs.iter().position(&does) {
        *now += MILLI;
        let job = node.jobs.remove(at);
        node.finish(*now, job).unwrap();
    }
}

/// One byte is written.
fn offer() -> Offer {
    let tag = UpdateTag { client: ClientId(1), sequence: 1, incarnation: 1, channel: 0 };
    Offer {
        chunk: CHUNK,
        kind: UpdateKind::Write { offset: 0, len: 1 },
        tag,
        truncate_epoch: 0,
        chain: CHAIN,
        chain_version: 1,
        forwarded: None,
        base: 0,
        fill: None,
    }
}

fn message(target: u64, offer: Offer) -> Message {
    Message { target: TargetId(target), offer, payload: [7].into() }
}

const SERVING: [TargetState; 2] = [TargetState::Serving; 2];

/// The end is held against what is committed. A machine is idle only when nothing is pending, so here nobody waits for that.
#[test]
fn a_replica_that_has_something_pending_is_not_at_its_end() {
    let (mut node, mut now) = started(0, SERVING);
    node.update(now, CLIENT, message(1, offer()));
    work(&mut node, &mut now, |_| true);
    let forward = node.sent.iter().find_map(|sent| match sent {
        Sent::Forward { forward, .. } => Some(*forward),
        _ => None,
    });
    assert!(!node.is_idle());
    let said = node.held(TargetId(1), CHUNK).unwrap_err();
    assert!(said.contains("is still pending"), "{said}");
    // The successor has it.
    let crc = corefs_wire::checksum::crc32c(&[&[7][..], &[0; BLOCK - 1]].concat());
    let ack = Ack { version: 1, length: 1, merged_crc: merged_crc(&[crc]) };
    node.answered(now, forward.expect("it was sent on"), Ok(ack));
    assert_eq!(node.held(TargetId(1), CHUNK).unwrap().bytes, Some(vec![7]));
    node.dispose();
}

#[test]
fn nobody_is_given_a_block_that_is_still_being_written() {
    let (mut node, mut now) = started(0, SERVING);
    node.update(now, CLIENT, message(1, offer()));
    work(&mut node, &mut now, |job| matches!(job, Job::Merge { .. }));
    assert!(node.jobs.iter().any(|job| matches!(job, Job::Data { .. })));
    let entry = ReadEntry {
        chain: CHAIN.0.into(),
        chain_version: 1.into(),
        target: 1.into(),
        inode: CHUNK.inode.0.into(),
        index: CHUNK.index.into(),
        length: (BLOCK as u32).into(),
        ..ReadEntry::default()
    };
    let fetch = Fetch { ticket: 9, to: TargetId(1), entry, pending: true };
    let given = |node: &mut SimNode, now: &mut Nanos| {
        node.sent.clear();
        node.wanted(*now, REPLICA, &fetch);
        work(node, now, |job| matches!(job, Job::Read { .. }));
        match node.sent.pop() {
            Some(Sent::Read { to: REPLICA, result }) => result.map_err(|error| error.code),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(given(&mut node, &mut now), Err(ErrorCode::NoSuchChunk));
    work(&mut node, &mut now, |_| true);
    let (version, bytes) = given(&mut node, &mut now).expect("it is on the disk");
    assert_eq!((version, bytes[0], bytes.len()), (1, 7, BLOCK));
    node.dispose();
}

#[test]
fn a_replica_that_said_that_it_is_filled_takes_no_more_fills() {
    let (mut node, mut now) = started(1, [TargetState::Serving, TargetState::Syncing]);
    let ask = |node: &mut SimNode, now, ask| {
        let (target, to, ticket, chain_version) = (TargetId(1), TargetId(2), 1, 1);
        node.asked(now, &Question { target, ticket, to, chain: CHAIN, chain_version, ask }).unwrap()
    };
    let fill = |node: &mut SimNode, now: &mut Nanos, version| {
        let compare = Ask::Compare { from: CHUNK, last: CHUNK, digest: 1 };
        let Told::Differs { permit, .. } = ask(node, *now, compare) else { panic!("they differ") };
        let kind = UpdateKind::FullReplace { len: 1, total: 1 };
        let offer = Offer { kind, forwarded: Some(version), fill: Some(permit), ..offer() };
        let forward = Forwarded { target: TargetId(1), chunk: CHUNK, attempt: version };
        let from = Requester::Node { node: 0, epoch: 1, forward };
        node.sent.clear();
        node.update(*now, from, message(2, offer));
        work(node, now, |_| true);
        match node.sent.pop() {
            Some(Sent::Answer { result, .. }) => result.map(|ack| ack.version).map_err(|error| error.code),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(fill(&mut node, &mut now, 4), Ok(4));
    let rows = Ask::Rows { floor: 0, rows: Vec::new(), finish: true };
    assert_eq!(ask(&mut node, now, rows), Told::Taken);
    assert_eq!(fill(&mut node, &mut now, 5), Err(ErrorCode::NotServing));
    node.dispose();
}

#[test]
fn an_update_that_was_held_begins_only_under_a_lease() {
    let due = |leased| {
        let (mut replica, mut steps) = (Replica::default(), Vec::new());
        let moment = Moment { now: MILLI, leased: true };
        let role = Role::of(TargetId(1), &chain(SERVING)).unwrap();
        let overloaded = Err(Error::new(ErrorCode::Overloaded, "a damaged block is being repaired"));
        for input in [
            Input::Role(role),
            Input::Offer { op: OpId(1), offer: offer() },
            Input::Begun { chunk: CHUNK, result: Ok(Begun::Fresh { version: 1 }) },
            Input::Applied { chunk: CHUNK, result: overloaded },
        ] {
            steps.clear();
            replica.handle(moment, input, &mut steps);
        }
        let Some(Step::Wake { at, attempt, .. }) = steps.pop() else { panic!("it is held: {steps:?}") };
        steps.clear();
        replica.handle(Moment { now: at, leased }, Input::Due { chunk: CHUNK, attempt }, &mut steps);
        steps
    };
    assert!(matches!(due(true)[..], [Step::Begin { .. }]));
    let fenced = due(false);
    let expired = |error: &Error| error.code == ErrorCode::LeaseExpired;
    assert!(
        matches!(&fenced[..], [Step::Reply { result: Err(error), .. }, Step::End { .. }] if expired(error)),
        "{fenced:?}"
    );
}
