//! The real shard code over a recording disk: at any moment of the run, any image that a power cut could have left holds what
//! was acknowledged.

use corefs_engine::disk::file::DiskFile;
use corefs_engine::disk::open::Extent;
use corefs_engine::disk::way::Choice;
use corefs_engine::mesh::ShardMessage;
use corefs_engine::shard::{Shard, ShardConfig, SliceSpec};
use corefs_engine::store::disk_log::{DiskEvent, DiskLogReader};
use corefs_net::{Address, Identity, Node, NodeConfig, Payload, Role};
use corefs_sim::prng::Prng;
use corefs_sim::recording::{Playback, RecordingCounts};
use corefs_wire::control::mgmtd::TargetState;
use corefs_wire::data::{self, Prefix, Update, UpdateKind, op};
use corefs_wire::routing::{self, Chain, Member, RoutingInfo, Target};
use corefs_wire::{ChainId, NodeId, ShardIndex, SliceIndex, TargetId, Uuid};
use glommio::Placement;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;
use zerocopy::IntoBytes;

const CLUSTER: Uuid = Uuid([4; 16]);
const SLICES: u16 = 2;
const SLICE_BYTES: u64 = 2 << 20;
const CHUNK: u32 = 64 << 10;
/// Updates of each writer.
const UPDATES: u64 = 60;
const WRITERS: u64 = 6;

fn identity(role: Role) -> Identity {
    Identity { role, id: 1, incarnation: 1, cluster: CLUSTER, secret: None }
}

/// Runs a shard on `disk` while `work` talks to it at its address; the shard is ended without ceremony.
fn with_shard(disk: &Path, log: &Path, format: bool, work: impl AsyncFnOnce(&Node, Address)) {
    let bytes = SLICE_BYTES * u64::from(SLICES);
    let file = if format { DiskFile::create(disk, bytes) } else { DiskFile::open(disk) };
    let slice = |index: u16| SliceSpec {
        index: SliceIndex(index),
        disk: 0,
        extent: Extent { base: u64::from(index) * SLICE_BYTES, bytes: SLICE_BYTES },
        store: Uuid([index as u8 + 1; 16]),
        format,
    };
    let config = ShardConfig {
        node: NodeId(1),
        shard: ShardIndex(0),
        identity: identity(Role::Storage),
        listen: "127.0.0.1:0".parse().unwrap(),
        disks: vec![file.unwrap()],
        slices: (0..SLICES).map(slice).collect(),
        way: Choice::Auto,
        discard: false,
        busy_poll: Duration::ZERO,
        transport: corefs_net::transport::Choice::Tcp,
        resync_rate: corefs_engine::chain::RATE_DEFAULT,
        scrub_rate: 0,
        pool_bytes: 16 << 20,
        record: Some(log.to_path_buf()),
        strict: false,
    };
    let (started, wait) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let executor = corefs_net::executor::builder(Placement::Unbound).make().unwrap();
        executor.run(async move {
            let shard = Shard::start(config).unwrap();
            assert!(shard.unopened().is_empty(), "{:?}", shard.unopened());
            started.send((shard.handle(), shard.address().clone())).unwrap();
            shard.run().unwrap();
        });
    });
    let (handle, address) = wait.recv().unwrap();
    handle.send(ShardMessage::Routing(Box::new(routing(&address)))).unwrap();
    handle.send(ShardMessage::Lease { until: u64::MAX }).unwrap();
    let executor = corefs_net::executor::builder(Placement::Unbound).make().unwrap();
    executor.run(async {
        let node = Node::start(NodeConfig { pool_bytes: 8 << 20, ..NodeConfig::new(identity(Role::Client)) });
        let node = node.unwrap();
        work(&node, address).await;
        node.shutdown().await;
    });
    handle.send(ShardMessage::Abort).unwrap();
    thread.join().unwrap();
}

fn routing(address: &Address) -> RoutingInfo {
    let id = NodeId(1);
    let mut routing = RoutingInfo { version: 1, cluster: CLUSTER, ..RoutingInfo::default() };
    let (shards, slice_shards) = (vec![address.to_string()], vec![ShardIndex(0); usize::from(SLICES)]);
    let (control, domain) = (String::new(), String::new());
    let node = routing::Node { id, incarnation: 1, alive: true, control, shards, slice_shards, domain };
    routing.nodes.insert(id, node);
    for n in 0..SLICES {
        let (target, chain) = (TargetId(u64::from(n) + 1), ChainId(u64::from(n) + 1));
        routing.targets.insert(target, Target { id: target, node: id, slice: SliceIndex(n), chain });
        let members = vec![Member { target, state: TargetState::Serving }];
        routing.chains.insert(chain, Chain { id: chain, version: 1, members });
    }
    routing
}

/// One writer's updates of chunks that all writers share.
async fn writes(node: &Node, address: &Address, writer: u64, prng: &mut Prng) {
    for sequence in 1..=UPDATES {
        let chain = 1 + prng.below(SLICES.into());
        let (offset, length) =
            (prng.below(CHUNK as u64 / 2) as u32, prng.between(1, CHUNK as u64 / 2) as u32);
        let kind = match prng.below(12) {
            0 => UpdateKind::Truncate,
            1 => UpdateKind::Remove,
            _ => UpdateKind::Write,
        };
        let mut payload = vec![0; if kind == UpdateKind::Write { length as usize } else { 0 }];
        prng.fill(&mut payload);
        let mut crcs = Vec::new();
        data::segment_crcs(offset as usize, &payload, |crc| crcs.extend_from_slice(&crc.to_le_bytes()));
        let update = Update {
            chain: chain.into(),
            chain_version: 1.into(),
            target: chain.into(),
            inode: 1.into(),
            index: (prng.below(5) as u32).into(),
            kind: kind as u8,
            offset: if kind == UpdateKind::Write { offset } else { 0 }.into(),
            length: length.into(),
            chunk_size: CHUNK.into(),
            client: (writer + 1).into(),
            incarnation: 1.into(),
            sequence: sequence.into(),
            crcs: (crcs.len() as u32 / 4).into(),
            ..Update::default()
        };
        let body = [Prefix::default().as_bytes(), update.as_bytes(), &crcs].concat();
        let payload = (!payload.is_empty()).then(|| Payload::from(payload));
        let sent = node.call(address, op::UPDATE, &body, payload, Duration::from_secs(30)).await;
        sent.unwrap_or_else(|error| panic!("{error}"));
    }
}

async fn all_writers(node: &Node, address: Address, seed: u64) {
    let writer = |writer: u64| {
        let (node, address) = (node.clone(), address.clone());
        glommio::spawn_local(async move {
            writes(&node, &address, writer + seed * 100, &mut Prng::new(seed * 1000 + writer)).await;
        })
    };
    let tasks: Vec<_> = (0..WRITERS).map(writer).collect();
    for task in tasks {
        task.await;
    }
}

#[test]
fn every_image_of_a_real_run_keeps_what_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, log) = (dir.path().join("disk"), dir.path().join("log"));
    for (seed, format) in [(1, true), (2, false)] {
        with_shard(&disk, &log, format, async |node, address| all_writers(node, address, seed).await);
        let log = std::fs::read(&log).unwrap();
        let counts = check(&log, seed).unwrap_or_else(|what| panic!("{what}"));
        assert!(counts.images > 100 && counts.promises > 1000, "{counts:?}");
    }
}

/// Plays a log back and cuts the power now and then. It begins with what the slices held: from there on images must be good.
fn check(log: &[u8], seed: u64) -> Result<RecordingCounts, String> {
    let images = (0..SLICES).map(|slice| (slice.into(), vec![0; SLICE_BYTES as usize])).collect();
    let mut playback = Playback::new(log, images).map_err(|error| error.to_string())?;
    let mut prng = Prng::new(seed);
    let mut counts = RecordingCounts::default();
    let flushes = |event: &Result<DiskEvent<'_>, _>| matches!(event, Ok(DiskEvent::FlushCompleted { .. }));
    let begun = DiskLogReader::new(log).enumerate().filter(|(_, event)| flushes(event));
    let begun = begun.map(|(position, _)| position).nth(usize::from(SLICES) - 1).ok_or("no beginning")?;
    while playback.advance() {
        counts.events += 1;
        if counts.events > begun as u64 && counts.events.is_multiple_of(29) {
            counts.promises += playback.check_cut(CLUSTER, &mut prng)?;
            counts.images += u64::from(SLICES);
        }
    }
    Ok(counts)
}

#[test]
fn a_shard_that_lied_would_be_caught() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, log) = (dir.path().join("disk"), dir.path().join("log"));
    with_shard(&disk, &log, true, async |node, address| all_writers(node, address, 3).await);
    let log = std::fs::read(&log).unwrap();
    // The same run, if its flushes had done nothing.
    let lied = without_flushes(&log, usize::from(SLICES));
    assert!(check(&log, 3).is_ok() && check(&lied, 3).is_err());
}

/// Drops all flushes but the first `keep`.
fn without_flushes(log: &[u8], keep: usize) -> Vec<u8> {
    let (mut out, mut kept) = (Vec::new(), 0);
    for event in DiskLogReader::new(log) {
        let event = event.unwrap();
        match event {
            DiskEvent::FlushCompleted { .. } if kept >= keep => {}
            DiskEvent::FlushCompleted { .. } => {
                kept += 1;
                event.encode(&mut out);
            }
            _ => event.encode(&mut out),
        }
    }
    out
}
