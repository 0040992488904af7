//! Real shards on real files, each on its own thread, and a small client that speaks the data protocol to them.

use corefs_engine::disk::BlockingDisk;
use corefs_engine::disk::file::DiskFile;
use corefs_engine::disk::open::Extent;
use corefs_engine::disk::way::Choice;
use corefs_engine::event::Nanos;
use corefs_engine::mesh::{Fate, ShardHandle, ShardMessage, ShardReport, answer};
use corefs_engine::shard::{Shard, ShardConfig, SliceSpec};
use corefs_net::{Address, Identity, Node, NodeConfig, Payload, Role};
use corefs_wire::control::mgmtd::TargetState;
use corefs_wire::data::{self, FORWARDED, Prefix, ReadEntry, Update, UpdateKind, UpdateReply, op};
use corefs_wire::frame::Kind;
use corefs_wire::limits::BLOCK;
use corefs_wire::routing::{self, Chain, Member, RoutingInfo};
use corefs_wire::{
    ChainId, ChunkId, ClientId, Error, ErrorCode, InodeId, NodeId, Result, ShardIndex, SliceIndex, TargetId,
    UpdateTag, Uuid,
};
use glommio::{LocalExecutor, Placement};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use zerocopy::IntoBytes;

pub const CLUSTER: Uuid = Uuid([7; 16]);
pub const CHUNK: u32 = 64 << 10;
pub const PATIENCE: Duration = Duration::from_secs(30);

fn executor() -> LocalExecutor {
    corefs_net::executor::builder(Placement::Unbound).make().unwrap()
}

/// How a cluster of one-shard nodes is laid out: every node has `slices` slices, every chain has one target on each of
/// `replicas` neighbouring nodes.
#[derive(Clone, Copy)]
pub struct Shape {
    pub nodes: u32,
    pub replicas: u32,
    pub slices: u16,
    pub slice_bytes: u64,
    pub chains: u64,
}

pub const SMALL: Shape = Shape { nodes: 1, replicas: 1, slices: 2, slice_bytes: 16 << 20, chains: 2 };
pub const THREE: Shape = Shape { nodes: 3, replicas: 3, slices: 2, slice_bytes: 16 << 20, chains: 2 };

pub struct Running {
    pub handle: ShardHandle,
    pub address: String,
    /// Of the disk, as any other shard on it would share it.
    pub fate: Fate,
    thread: JoinHandle<Result<()>>,
}

/// The cluster. Shards that were stopped or killed are `None`.
pub struct Cluster {
    shape: Shape,
    dir: PathBuf,
    /// The one node's disk, if it is no file in `dir`.
    drive: Option<PathBuf>,
    /// By which way nodes that are started from now on reach their disks.
    pub way: Choice,
    /// Whether they tell the disk what is free.
    pub discard: bool,
    pub shards: Vec<Option<Running>>,
    version: u64,
    pub chain_version: u64,
    /// States of the targets of nodes that don't serve.
    pub states: BTreeMap<u32, TargetState>,
    /// Targets that have left their chains.
    pub left: BTreeSet<TargetId>,
    pub record: bool,
    /// Warmed-up reads may not ask for memory.
    strict: bool,
    /// Of nodes that are started from now on.
    pub scrub_rate: u64,
    pub lease_at_start: bool,
}

impl Cluster {
    /// Formats and starts all nodes in `dir`, and grants them a lease without end.
    pub fn start(dir: &Path, shape: Shape) -> Self {
        Self::start_on(dir, shape, None, Choice::Auto)
    }

    /// The same on a drive, which is overwritten.
    pub fn start_on(dir: &Path, shape: Shape, drive: Option<&Path>, way: Choice) -> Self {
        Self::launch_all(dir, shape, drive, way, (true, true)).unwrap()
    }

    /// For so many reads that wait that their queues may grow at any time.
    pub fn start_for_crowds(dir: &Path, shape: Shape) -> Self {
        Self::launch_all(dir, shape, None, Choice::Auto, (true, false)).unwrap()
    }

    /// What was started on a drive before, by another process.
    pub fn continue_on(dir: &Path, shape: Shape, drive: &Path, way: Choice) -> Result<Self> {
        Self::launch_all(dir, shape, Some(drive), way, (false, true))
    }

    fn launch_all(
        dir: &Path,
        shape: Shape,
        drive: Option<&Path>,
        way: Choice,
        (format, strict): (bool, bool),
    ) -> Result<Self> {
        let mut cluster = Self {
            shape,
            dir: dir.to_path_buf(),
            drive: drive.map(Path::to_path_buf),
            way,
            discard: false,
            shards: Vec::new(),
            version: 0,
            chain_version: 0,
            states: BTreeMap::new(),
            left: BTreeSet::new(),
            record: false,
            strict,
            scrub_rate: 0,
            lease_at_start: true,
        };
        for node in 1..=shape.nodes {
            let running = cluster.launch(node, format)?;
            cluster.shards.push(Some(running));
        }
        cluster.publish();
        cluster.lease(Nanos::MAX);
        Ok(cluster)
    }

    pub fn disk_path(&self, node: u32) -> PathBuf {
        self.drive.clone().unwrap_or_else(|| self.dir.join(format!("disk-{node}")))
    }

    fn launch(&self, node: u32, format: bool) -> Result<Running> {
        let bytes = u64::from(self.shape.slices) * self.shape.slice_bytes;
        let path = self.disk_path(node);
        let mut disk = if format { DiskFile::create(&path, bytes)? } else { DiskFile::open(&path)? };
        if format && self.drive.is_some() {
            // Stores have fixed names here, so what earlier tests left on the drive would pass for theirs.
            for at in (0..bytes).step_by(1 << 20) {
                disk.write_at(at, &[0; 1 << 20])?;
            }
            disk.flush()?;
        }
        let fate = disk.fate().clone();
        let slice_bytes = self.shape.slice_bytes;
        let slices = (0..self.shape.slices)
            .map(|index| SliceSpec {
                index: SliceIndex(index),
                disk: 0,
                extent: Extent { base: u64::from(index) * slice_bytes, bytes: slice_bytes },
                store: Uuid([node as u8, index as u8, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
                format,
            })
            .collect();
        let identity =
            Identity { role: Role::Storage, id: node.into(), incarnation: 1, cluster: CLUSTER, secret: None };
        let config = ShardConfig {
            node: NodeId(node),
            shard: ShardIndex(0),
            identity,
            listen: "127.0.0.1:0".parse()?,
            disks: vec![disk],
            slices,
            way: self.way,
            discard: self.discard,
            busy_poll: Duration::ZERO,
            transport: corefs_net::transport::Choice::Tcp,
            resync_rate: corefs_engine::chain::RATE_DEFAULT,
            scrub_rate: self.scrub_rate,
            pool_bytes: 16 << 20,
            record: self.record.then(|| self.dir.join(format!("record-{node}"))),
            strict: self.strict,
        };
        let (started, wait) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            executor().run(async move {
                let opened = |shard: Shard| match shard.unopened().first() {
                    Some((_, error)) => Err(error.clone()),
                    None => Ok(shard),
                };
                let shard = match Shard::start(config).and_then(opened) {
                    Ok(shard) => shard,
                    Err(error) => {
                        started.send(Err(error.clone())).unwrap();
                        return Err(error);
                    }
                };
                started.send(Ok((shard.handle(), shard.address().to_string()))).unwrap();
                shard.run()
            })
        });
        match wait.recv_timeout(PATIENCE).expect("the shard starts") {
            Ok((handle, address)) => Ok(Running { handle, address, fate, thread }),
            Err(error) => {
                let _ = thread.join().unwrap();
                Err(error)
            }
        }
    }

    /// The routing of the present shards; chain versions as given.
    pub fn routing(&self) -> RoutingInfo {
        let mut routing = RoutingInfo {
            version: self.version,
            cluster: CLUSTER,
            chunk_size: CHUNK,
            replicas: self.shape.replicas,
            ..RoutingInfo::default()
        };
        for (index, shard) in self.shards.iter().enumerate() {
            let id = NodeId(index as u32 + 1);
            let address = shard.as_ref().map_or("127.0.0.1:1".to_string(), |shard| shard.address.clone());
            let node = routing::Node {
                id,
                incarnation: 1,
                alive: shard.is_some(),
                control: "127.0.0.1:1".into(),
                shards: vec![address],
                slice_shards: vec![ShardIndex(0); usize::from(self.shape.slices)],
                domain: String::new(),
            };
            routing.nodes.insert(id, node);
        }
        for chain in 0..self.shape.chains {
            let mut members = Vec::new();
            for replica in 0..self.shape.replicas {
                let id = Self::target(chain, replica);
                if self.left.contains(&id) {
                    continue;
                }
                let node = NodeId((chain as u32 + replica) % self.shape.nodes + 1);
                let slice = SliceIndex((chain % u64::from(self.shape.slices)) as u16);
                let target = routing::Target { id, node, slice, chain: ChainId(chain + 1) };
                routing.targets.insert(id, target);
                let state = self.states.get(&node.0).copied().unwrap_or(TargetState::Serving);
                members.push(Member { target: id, state });
            }
            // As the manager orders them.
            members.sort_by_key(|member| match member.state {
                TargetState::Serving => 0,
                TargetState::Syncing => 1,
                _ => 2,
            });
            let chain = Chain { id: ChainId(chain + 1), version: self.chain_version, members };
            routing.chains.insert(chain.id, chain);
        }
        routing
    }

    /// The target of a chain (from 0) at a position.
    pub fn target(chain: u64, replica: u32) -> TargetId {
        TargetId(chain * 10 + u64::from(replica) + 1)
    }

    /// Tells everybody a new routing version with new chain versions.
    pub fn publish(&mut self) {
        self.version += 1;
        self.chain_version += 1;
        let routing = self.routing();
        for shard in self.shards.iter().flatten() {
            shard.handle.send(ShardMessage::Routing(Box::new(routing.clone()))).unwrap();
        }
    }

    pub fn lease(&self, until: Nanos) {
        for shard in self.shards.iter().flatten() {
            shard.handle.send(ShardMessage::Lease { until }).unwrap();
        }
    }

    pub fn report(&self, node: u32) -> ShardReport {
        let (answer, awaited) = answer();
        let shard = self.shards[node as usize - 1].as_ref().unwrap();
        shard.handle.send(ShardMessage::Report(answer)).unwrap();
        futures_lite::future::block_on(awaited).expect("the shard reports")
    }

    /// Waits until all targets of a node hold everything.
    pub fn wait_until_filled(&self, node: u32) {
        let began = std::time::Instant::now();
        while !self.report(node).targets.iter().all(|target| target.up_to_date) {
            assert!(
                began.elapsed() < PATIENCE,
                "node {node} is never filled: {:?}",
                self.report(node).targets
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn counter(&self, node: u32, name: &str) -> u64 {
        let report = self.report(node);
        report.counters.iter().find(|(found, _)| found == name).map(|(_, value)| *value).unwrap()
    }

    /// Ends a node at once, whatever is under way.
    pub fn kill(&mut self, node: u32) {
        let shard = self.shards[node as usize - 1].take().unwrap();
        shard.handle.send(ShardMessage::Abort).unwrap();
        shard.thread.join().unwrap().unwrap();
    }

    /// Ends a node properly.
    pub fn stop(&mut self, node: u32) {
        let shard = self.shards[node as usize - 1].take().unwrap();
        let (answer, awaited) = answer();
        shard.handle.send(ShardMessage::Drain(answer)).unwrap();
        futures_lite::future::block_on(awaited).expect("the shard drains");
        shard.thread.join().unwrap().unwrap();
    }

    /// Starts a node again and tells everybody.
    pub fn restart(&mut self, node: u32) -> Result<()> {
        let running = self.launch(node, false)?;
        self.shards[node as usize - 1] = Some(running);
        self.publish();
        if self.lease_at_start {
            self.lease(Nanos::MAX);
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for shard in self.shards.iter_mut().filter_map(Option::take) {
            let _ = shard.handle.send(ShardMessage::Abort);
            let result = shard.thread.join();
            assert!(std::thread::panicking() || result.is_ok_and(|result| result.is_ok()), "a shard failed");
        }
    }
}

/// What a read brought.
#[derive(Debug, PartialEq)]
pub struct Found {
    pub version: u64,
    pub length: u32,
    pub data: Vec<u8>,
}

/// Speaks to shards from an executor of its own.
pub struct Client {
    pub node: Node,
    routing: RoutingInfo,
    id: u64,
    sequence: Cell<u64>,
}

/// Runs `work` with a client of the cluster.
pub fn with_client<T>(cluster: &Cluster, work: impl AsyncFnOnce(&Client) -> T) -> T {
    let routing = cluster.routing();
    executor().run(async move {
        let identity = Identity { role: Role::Client, id: 9, incarnation: 1, cluster: CLUSTER, secret: None };
        let mut config = NodeConfig::new(identity);
        config.pool_bytes = 16 << 20;
        let node = Node::start(config).unwrap();
        // Every client is another process to the shards: its tags are new.
        static CLIENTS: AtomicU64 = AtomicU64::new(1);
        // Also after another process of these tests has used the same disk.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let id = now + CLIENTS.fetch_add(1, Ordering::Relaxed);
        let client = Client { node, routing, id, sequence: Cell::new(0) };
        let result = work(&client).await;
        client.node.shutdown().await;
        result
    })
}

pub fn chunk(inode: u64, index: u32) -> ChunkId {
    ChunkId::new(InodeId(inode), index)
}

/// Which replica of which chain is addressed.
#[derive(Clone, Copy)]
pub struct At {
    pub chain: u64,
    pub replica: u32,
}

pub const HEAD: At = At { chain: 0, replica: 0 };

impl Client {
    pub fn address(&self, at: At) -> Address {
        self.routing.owner(Cluster::target(at.chain, at.replica)).unwrap().address.parse().unwrap()
    }

    pub fn chain_version(&self, at: At) -> u64 {
        self.routing.chains[&ChainId(at.chain + 1)].version
    }

    pub fn entry(&self, at: At, chunk: ChunkId, offset: u32, length: u32) -> ReadEntry {
        ReadEntry {
            request: 0.into(),
            chain: (at.chain + 1).into(),
            chain_version: self.chain_version(at).into(),
            target: Cluster::target(at.chain, at.replica).0.into(),
            inode: chunk.inode.0.into(),
            index: chunk.index.into(),
            generation: chunk.generation.into(),
            offset: offset.into(),
            length: length.into(),
        }
    }

    /// Reads whole blocks and verifies them.
    pub async fn read(&self, at: At, chunk: ChunkId, offset: u32, length: u32) -> Result<Found> {
        self.read_batch(at, &[self.entry(at, chunk, offset, length)]).await.pop().unwrap()
    }

    /// Reads again while the chunk is busy.
    pub async fn read_settled(&self, at: At, chunk: ChunkId, offset: u32, length: u32) -> Result<Found> {
        loop {
            match self.read(at, chunk, offset, length).await {
                Err(error) if error.code == ErrorCode::Pending => {
                    self.node.sleep(Duration::from_millis(10)).await;
                }
                other => return other,
            }
        }
    }

    pub async fn read_batch(&self, at: At, entries: &[ReadEntry]) -> Vec<Result<Found>> {
        let conn = match self.node.connection(&self.address(at)).await {
            Ok(conn) => conn,
            Err(error) => return entries.iter().map(|_| Err(error.clone())).collect(),
        };
        let mut body = Prefix::default().as_bytes().to_vec();
        let mut expected = Vec::new();
        for entry in entries {
            let reply = self.node.expect(conn, None).unwrap().within(PATIENCE);
            let mut entry = *entry;
            entry.request = reply.request_id().into();
            body.extend_from_slice(entry.as_bytes());
            expected.push(reply);
        }
        self.node.post(conn, Kind::Request, op::READ, u64::MAX, &body, None).unwrap();
        let mut found = Vec::new();
        for reply in expected {
            found.push(reply.await.and_then(|reply| check(&reply.body, reply.data.as_deref())));
        }
        found
    }

    /// An update with a fresh tag.
    pub fn update(&self, at: At, chunk: ChunkId, kind: UpdateKind, offset: u32, length: u32) -> Update {
        self.sequence.set(self.sequence.get() + 1);
        let mut update = Update {
            chain: (at.chain + 1).into(),
            chain_version: self.chain_version(at).into(),
            target: Cluster::target(at.chain, at.replica).0.into(),
            inode: chunk.inode.0.into(),
            index: chunk.index.into(),
            generation: chunk.generation.into(),
            kind: kind as u8,
            offset: offset.into(),
            length: length.into(),
            chunk_size: CHUNK.into(),
            ..Update::default()
        };
        update.set_tag(UpdateTag {
            client: ClientId(self.id),
            sequence: self.sequence.get(),
            incarnation: 1,
            channel: 0,
        });
        update
    }

    /// Sends an update as it is, with the payload's true checksums.
    pub async fn send(&self, at: At, update: Update, payload: &[u8]) -> Result<UpdateReply> {
        let mut crcs = Vec::new();
        data::segment_crcs(update.offset.get() as usize, payload, |crc| crcs.push(crc));
        self.send_with(at, update, payload, &crcs).await
    }

    pub async fn send_with(
        &self,
        at: At,
        mut update: Update,
        payload: &[u8],
        crcs: &[u32],
    ) -> Result<UpdateReply> {
        update.crcs = (crcs.len() as u32).into();
        let mut body = Prefix::default().as_bytes().to_vec();
        body.extend_from_slice(update.as_bytes());
        crcs.iter().for_each(|crc| body.extend_from_slice(&crc.to_le_bytes()));
        let payload = (!payload.is_empty()).then(|| Payload::from(payload.to_vec()));
        let reply = self.node.call(&self.address(at), op::UPDATE, &body, payload, PATIENCE).await?;
        UpdateReply::parse(&reply.body)
    }

    pub async fn write(&self, at: At, chunk: ChunkId, offset: u32, bytes: &[u8]) -> Result<UpdateReply> {
        let update = self.update(at, chunk, UpdateKind::Write, offset, bytes.len() as u32);
        self.send(at, update, bytes).await
    }

    pub async fn truncate(&self, at: At, chunk: ChunkId, length: u32) -> Result<UpdateReply> {
        self.send(at, self.update(at, chunk, UpdateKind::Truncate, 0, length), &[]).await
    }

    pub async fn remove(&self, at: At, chunk: ChunkId) -> Result<UpdateReply> {
        self.send(at, self.update(at, chunk, UpdateKind::Remove, 0, 0), &[]).await
    }

    pub async fn list(&self, at: At, inode: u64) -> Result<Vec<(u32, u32)>> {
        let list = data::List {
            chain: (at.chain + 1).into(),
            chain_version: self.chain_version(at).into(),
            target: Cluster::target(at.chain, at.replica).0.into(),
            inode: inode.into(),
            from_index: 0.into(),
            limit: 1000.into(),
        };
        let mut body = Prefix::default().as_bytes().to_vec();
        body.extend_from_slice(list.as_bytes());
        let reply = self.node.call(&self.address(at), op::LIST, &body, None, PATIENCE).await?;
        let entries = data::list_entries(&reply.body)?;
        Ok(entries.iter().map(|entry| (entry.index.get(), entry.length.get())).collect())
    }

    /// A copy of an update as a predecessor would send it.
    pub fn forwarded(update: Update, version: u64) -> Update {
        Update { flags: FORWARDED, version: version.into(), ..update }
    }
}

fn check(body: &[u8], data: Option<&[u8]>) -> Result<Found> {
    let (reply, crcs) = data::read_reply(body)?;
    let bytes = data.map_or(&[][..], |data| &data[..crcs.len() * BLOCK]);
    for (block, crc) in bytes.chunks(BLOCK).zip(crcs) {
        if corefs_wire::checksum::crc32c(block) != crc.get() {
            return Err(Error::new(ErrorCode::ChecksumMismatch, "a block that the server vouched for"));
        }
    }
    Ok(Found { version: reply.commit_version.get(), length: reply.chunk_length.get(), data: bytes.to_vec() })
}

/// Bytes that tell where they belong.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}
