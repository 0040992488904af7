//! One core's storage server: its ring, its sockets, its disks, its targets, and the turn that drives them.
//!
//! A shard belongs to the thread that made it, and so do all its parts. Nothing in here is shared: no lock, no atomic, no
//! channel; other cores reach it through [`mesh`](crate::mesh) alone, with control messages.
//!
//! | file | is |
//! |---|---|
//! | [`desk`] | takes frames and turns them into events |
//! | `turn` | the loop: gather, decide, perform, park |
//! | `perform` | does what the targets decided; tells them what became of it |
//! | `reads`, `updates`, `forward` | the three roads through it |
//! | `joining` | slices of a disk that comes while it serves |
//! | `patience` | disks that don't answer |
//! | `filling` | what is said to and by a replica that is being filled |
//! | `upkeep` | verifying what is stored, and writing good blocks over bad ones |
//! | [`ops`], [`links`], [`counters`] | its tables |

pub mod counters;
pub mod desk;
pub mod links;
pub mod ops;

mod filling;
mod forward;
#[cfg(test)]
mod ground;
mod joining;
mod patience;
mod perform;
mod reads;
mod turn;
mod updates;
mod upkeep;

pub use turn::boottime;

use crate::chain::Pace;
use crate::disk::Pages;
use crate::disk::file::DiskFile;
use crate::disk::open::{Extent, format_slice, recover_slice};
use crate::disk::record::Recorder;
use crate::disk::uring::Disks;
use crate::disk::way::Choice;
use crate::event::Event;
use crate::mesh::{ShardHandle, ShardMessage, ShardReport, mail};
use crate::store::{Geometry, RecoveryReport, Store};
use crate::targets::Targets;
use corefs_net::mailbox::Receiver;
use corefs_net::transport::Choice as Transport;
use corefs_net::{Address, Buffer, Carrier, Completion, Identity, Pool, Ring, RingConfig, TcpConfig};
use corefs_wire::control::mgmtd::TargetHealthT;
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{Error, NodeId, Result, ShardIndex, SliceIndex, TargetId, Uuid};
use desk::Desk;
use slab::Slab;
use std::path::PathBuf;
use std::time::Duration;

/// How long a connection to another node may take to open: while it does, chains that go over it wait.
const CONNECTING: Duration = Duration::from_millis(1500);

/// A slice that the shard is to open.
#[derive(Clone, Debug)]
pub struct SliceSpec {
    pub index: SliceIndex,
    /// Position in [`ShardConfig::disks`].
    pub disk: usize,
    pub extent: Extent,
    pub store: Uuid,
    /// It is new: make an empty store of it first.
    pub format: bool,
}

/// What a shard is made of. Travels to its thread before it starts.
pub struct ShardConfig {
    pub node: NodeId,
    pub shard: ShardIndex,
    pub identity: Identity,
    pub listen: Address,
    pub disks: Vec<DiskFile>,
    pub slices: Vec<SliceSpec>,
    /// By which way disks are reached.
    pub way: Choice,
    /// Block devices are told at the start which space is free.
    pub discard: bool,
    /// How long it polls before it sleeps.
    pub busy_poll: Duration,
    /// By what connections go.
    pub transport: Transport,
    /// Bytes a second at which it fills replicas that came back.
    pub resync_rate: u64,
    /// Bytes a second at which it verifies what it stores; 0: not by itself.
    pub scrub_rate: u64,
    /// Bytes of buffers.
    pub pool_bytes: usize,
    /// Where to log everything that the disks are asked.
    pub record: Option<PathBuf>,
    /// In debug builds: ends the process where a read of a warmed-up shard asks for memory.
    pub strict: bool,
}

/// Memory of a batch's write on its way to the disk.
enum BatchMemory {
    Pooled(Buffer),
    Heap(Pages),
}

/// A part of a batch in flight.
struct BatchWrite {
    slice: SliceIndex,
    memory: BatchMemory,
    len: u32,
    /// In which step it was asked for.
    asked: u32,
}

/// See the module's documentation. `!Send`.
pub struct Shard {
    /// First: dropped first, it ends what is in flight before the memory goes.
    ring: Ring,
    carrier: Carrier,
    disks: Disks,
    desk: Desk,
    batches: Slab<BatchWrite>,
    checks: Slab<upkeep::Checking>,
    mends: Slab<upkeep::Mending>,
    joining: Vec<joining::Joining>,
    patience: patience::Patience,
    handle: ShardHandle,
    mailbox: Receiver<ShardMessage>,
    routing: RoutingInfo,
    address: Address,
    recovered: Vec<(SliceIndex, RecoveryReport)>,
    unopened: Vec<(SliceIndex, Error)>,
    completions: Vec<Completion>,
    /// The memory of the read that is finished next, or null: only to be fetched ahead.
    upcoming: *const u8,
    /// Scratch space for bodies and CRCs.
    body: Vec<u8>,
    crcs: Vec<u32>,
    /// When the timer in flight goes off.
    timer: Option<u64>,
    ending: turn::Ending,
    shard: ShardIndex,
    node: NodeId,
    cluster: Uuid,
}

impl Shard {
    /// Opens disks and slices, then listens. A slice that can't be opened is left out ([`Self::unopened`]), with an error that
    /// names what is damaged and where: the others are none the worse for it.
    pub fn start(config: ShardConfig) -> Result<Self> {
        let ring_config = RingConfig { busy_poll: config.busy_poll, ..RingConfig::default() };
        let mut ring = Ring::new(&ring_config)?;
        let pool = Pool::with_huge_pages(config.pool_bytes)?;
        ring.register_pool(&pool);
        let (handle, mailbox) = mail(ring.alarm());
        let mut disks = Disks::new(config.way);
        let mut targets = Targets::new(config.node, config.shard);
        targets.set_pace(Pace::of_rate(config.resync_rate));
        targets.set_scrub_rate(config.scrub_rate);
        let cluster = config.identity.cluster;
        let opened: Vec<_> = config.disks.into_iter().map(|disk| disks.add(&mut ring, &pool, disk)).collect();
        let (mut recovered, mut unopened) = (Vec::new(), Vec::new());
        let mut recorder = config.record.as_deref().map(Recorder::create).transpose()?;
        for spec in &config.slices {
            let found = opened[spec.disk].clone().and_then(|disk| {
                let mut file = disks.blocking(disk)?;
                let name = file.path().display().to_string();
                let what = |error: Error| error.of(format_args!("{} in {name}", spec.index));
                let (store, report) = open_slice(&mut file, (cluster, config.node), spec).map_err(what)?;
                Ok((disk, file, store, report))
            });
            let (disk, mut file, store, report) = match found {
                Ok(found) => found,
                Err(error) => {
                    unopened.push((spec.index, error));
                    continue;
                }
            };
            if let Some(recorder) = &mut recorder {
                recorder.begin_with(spec.index, &mut file, spec.extent, store.geometry(), spec.format)?;
            }
            recovered.push((spec.index, report));
            disks.place(spec.index, disk, spec.extent);
            if config.discard {
                disks.discard(spec.index, &store);
            }
            targets.add_slice(spec.index, disk, store);
        }
        // A large journal is kept until it is replayed.
        corefs_net::heap::give_back();
        if let Some(recorder) = recorder {
            disks.record(recorder);
        }
        let tcp = TcpConfig { connecting: CONNECTING, ..TcpConfig::new(config.identity) };
        let mut carrier = Carrier::new(config.transport, tcp, &pool)?;
        // It reaches other shards only.
        carrier.insist();
        let address = carrier.listen(&config.listen)?;
        Ok(Self {
            ring,
            carrier,
            disks,
            desk: Desk::new(pool, targets, config.strict),
            batches: Slab::new(),
            checks: Slab::new(),
            mends: Slab::new(),
            joining: Vec::new(),
            patience: patience::Patience::default(),
            handle,
            mailbox,
            routing: RoutingInfo::default(),
            address,
            recovered,
            unopened,
            completions: Vec::with_capacity(1024),
            upcoming: std::ptr::null(),
            body: Vec::new(),
            crcs: Vec::new(),
            timer: None,
            ending: turn::Ending::No,
            shard: config.shard,
            node: config.node,
            cluster,
        })
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Slices that couldn't be opened, and why.
    pub fn unopened(&self) -> &[(SliceIndex, Error)] {
        &self.unopened
    }

    /// For other threads.
    pub fn handle(&self) -> ShardHandle {
        self.handle.clone()
    }

    /// What an onlooker may know.
    pub fn report(&self) -> ShardReport {
        let mut counters: Vec<(String, u64)> = Vec::new();
        counters.extend(self.desk.counters.list().into_iter().map(|(name, value)| (name.to_string(), value)));
        let ring = counters::of_ring(self.ring.counters());
        counters.extend(ring.into_iter().map(|(name, value)| (name.to_string(), value)));
        counters.extend(self.disks.counters().into_iter().map(|(name, value)| (name.to_string(), value)));
        let costs = self.carrier.costs().list();
        counters.extend(costs.into_iter().map(|(name, value)| (name.to_string(), value)));
        counters.push(("allocations".into(), corefs_net::heap::allocations()));
        counters.push(("connections".into(), self.carrier.live() as u64));
        counters.push(("connections_by_rdma".into(), self.carrier.by_queue_pair() as u64));
        counters.push(("pool_bytes_in_use".into(), self.desk.pool.in_use() as u64));
        let upkeep = self.desk.targets.upkeep();
        counters.push(("damaged_blocks".into(), upkeep.damaged));
        counters.push(("repaired_blocks".into(), upkeep.repaired));
        counters.push(("unrepaired_blocks".into(), upkeep.unrepaired));
        counters.push(("repairs_waiting".into(), upkeep.waiting));
        counters.push(("operations_open".into(), self.desk.ops.len() as u64));
        ShardReport {
            shard: self.shard,
            counters,
            slices: self.desk.targets.slice_infos(),
            targets: self.target_healths(),
            recovered: self.recovered.clone(),
            upkeep,
        }
    }

    /// As the targets see themselves; but a successor to which a connection is open is reached, however late it answers.
    fn target_healths(&self) -> Vec<TargetHealthT> {
        let mut healths = self.desk.targets.target_healths(turn::boottime());
        let open = |target: u64| {
            let owner = self.routing.owner(TargetId(target));
            owner.is_some_and(|owner| self.desk.links.is_open(owner.address))
        };
        let wrong = healths.iter_mut().filter(|health| health.unreached != 0 && open(health.unreached));
        wrong.for_each(|health| health.unreached = 0);
        healths
    }

    fn take_routing(&mut self, routing: RoutingInfo) {
        if routing.version < self.routing.version {
            return;
        }
        self.desk.tell(Event::Routing(&routing));
        self.routing = routing;
    }
}

/// Makes an empty store if the slice is new, and recovers it. `owner` is the cluster and the node.
fn open_slice(
    file: &mut DiskFile,
    owner: (Uuid, NodeId),
    spec: &SliceSpec,
) -> Result<(Store, RecoveryReport)> {
    let (cluster, node) = owner;
    if spec.format {
        let geometry = Geometry::for_slice(cluster, spec.store, node, spec.index, spec.extent.bytes)?;
        format_slice(file, spec.extent.base, &geometry)?;
    }
    let (store, report) = recover_slice(file, spec.extent, cluster, spec.store, &mut |_| ())?;
    tracing::info!(slice = %spec.index, chunks = report.chunks, pendings = report.pendings,
        records = report.records_replayed, "slice recovered");
    Ok((store, report))
}
