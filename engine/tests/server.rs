//! A whole storage node on real threads, sockets and files, under a manager that does the least a manager can.

use corefs_engine::{Options, StorageServer};
use corefs_net::{Address, Identity, Node, NodeConfig, Payload, Request, Responder, Role, Secret, Service};
use corefs_wire::control::mgmtd::{
    NodeHeartbeatReplyT, NodeHeartbeatT, NodeRegisteredT, RegisterNodeT, SliceInfoT, TargetState,
};
use corefs_wire::control::process::GetProcessT;
use corefs_wire::control::{Call, Message};
use corefs_wire::data::{self, Prefix, ReadEntry, Update, UpdateKind, op};
use corefs_wire::frame::Kind;
use corefs_wire::limits::BLOCK;
use corefs_wire::routing::{self, Chain, Member, RoutingInfo, Target};
use corefs_wire::{ChainId, ErrorCode, NodeId, Result, ShardIndex, SliceIndex, TargetId, Uuid};
use glommio::Placement;
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use zerocopy::IntoBytes;

const PATIENCE: Duration = Duration::from_secs(20);
const LEASE_MS: u32 = 300;
const CHAINS: u64 = 8;

/// Takes in one node, gives it a target in each of its first slices, and renews its lease while it pleases.
struct Manager {
    cluster: Uuid,
    routing: RefCell<RoutingInfo>,
    renews: Cell<bool>,
    /// It has forgotten the node until that registers again.
    forgets: Cell<bool>,
    registrations: Cell<u32>,
    beats: Cell<u32>,
    healthy_targets: Cell<usize>,
    dead_slices: RefCell<Vec<u16>>,
}

impl Manager {
    fn new(cluster: Uuid) -> Rc<Self> {
        let routing = RoutingInfo { cluster, chunk_size: 65536, replicas: 1, ..RoutingInfo::default() };
        let (renews, beats, healthy_targets) = (Cell::new(true), Cell::new(0), Cell::new(0));
        let (forgets, registrations, dead_slices) = Default::default();
        let routing = RefCell::new(routing);
        Rc::new(Self {
            cluster,
            routing,
            renews,
            forgets,
            registrations,
            beats,
            healthy_targets,
            dead_slices,
        })
    }

    fn register(&self, request: &RegisterNodeT) -> NodeRegisteredT {
        self.forgets.set(false);
        self.registrations.set(self.registrations.get() + 1);
        self.note_dead(&request.slices);
        let mut routing = self.routing.borrow_mut();
        routing.version += 1;
        let id = NodeId(1);
        let node = routing::Node {
            id,
            incarnation: request.incarnation,
            alive: true,
            control: request.control.clone(),
            shards: request.shards.clone(),
            slice_shards: request.slices.iter().map(|slice| ShardIndex(slice.shard)).collect(),
            domain: request.domain.clone(),
        };
        routing.nodes.insert(id, node);
        for n in 0..CHAINS {
            let (target, chain) = (TargetId(n + 1), ChainId(n + 1));
            let slice = SliceIndex(n as u16);
            routing.targets.insert(target, Target { id: target, node: id, slice, chain });
            let version = routing.version;
            let members = vec![Member { target, state: TargetState::Serving }];
            routing.chains.insert(chain, Chain { id: chain, version, members });
        }
        let mut reply = NodeRegisteredT::default();
        (reply.node, reply.lease_ms) = (1, LEASE_MS);
        reply.cluster = self.cluster.0.to_vec();
        reply.routing = Box::new(routing.to_message());
        reply
    }

    fn note_dead(&self, slices: &[SliceInfoT]) {
        let dead = slices.iter().filter(|slice| slice.dead);
        *self.dead_slices.borrow_mut() = dead.map(|slice| slice.index).collect();
    }

    fn beat(&self, request: &NodeHeartbeatT) -> Result<NodeHeartbeatReplyT> {
        if !self.renews.get() {
            return Err(ErrorCode::NotReady.into());
        }
        if self.forgets.get() {
            return Err(ErrorCode::NodeConflict.into());
        }
        self.beats.set(self.beats.get() + 1);
        self.note_dead(&request.slices);
        self.healthy_targets.set(request.targets.iter().filter(|target| target.up_to_date).count());
        let mut reply = NodeHeartbeatReplyT::default();
        reply.lease_ms = LEASE_MS;
        Ok(reply)
    }
}

/// A manager that doesn't lead.
struct Follower;

impl Service for Follower {
    fn request(&self, _: Request, responder: Responder) {
        responder.err(&ErrorCode::NotPrimary.into());
    }
}

struct Front(Rc<Manager>);

impl Service for Front {
    fn request(&self, request: Request, responder: Responder) {
        let reply = match request.op {
            RegisterNodeT::OP => RegisterNodeT::decode(&request.body).map(|r| self.0.register(&r).encode()),
            NodeHeartbeatT::OP => {
                NodeHeartbeatT::decode(&request.body).and_then(|r| self.0.beat(&r)).map(|r| r.encode())
            }
            _ => Err(ErrorCode::UnknownOperation.into()),
        };
        match reply {
            Ok(body) => responder.ok(&body, None),
            Err(error) => responder.err(&error),
        }
    }
}

/// A manager and a client on one endpoint.
struct Ground {
    node: Node,
    manager: Rc<Manager>,
    address: Address,
    sequence: Cell<u64>,
}

fn ground(cluster: Uuid, test: impl AsyncFnOnce(&Ground)) {
    let executor = corefs_net::executor::builder(Placement::Unbound).make().unwrap();
    executor.run(async move {
        let identity = Identity {
            role: Role::Manager,
            id: 1,
            incarnation: 1,
            cluster,
            secret: Some(Secret::new([5; 32])),
        };
        let node = Node::start(NodeConfig { pool_bytes: 16 << 20, ..NodeConfig::new(identity) }).unwrap();
        let manager = Manager::new(cluster);
        node.serve(Rc::new(Front(Rc::clone(&manager))));
        let address = node.listen(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let ground = Ground { node, manager, address, sequence: Cell::new(0) };
        test(&ground).await;
        ground.node.shutdown().await;
    });
}

impl Ground {
    fn options(&self, dir: &Path) -> Options {
        Options {
            capacity: 128 << 20,
            secret: Some(Secret::new([5; 32])),
            cores: 2,
            busy_poll: Duration::ZERO,
            pool_bytes: 16 << 20,
            ..Options::new(dir, vec![self.address.clone()])
        }
    }

    fn owner(&self, chain: u64) -> (Address, u64) {
        let routing = self.manager.routing.borrow();
        let version = routing.chains[&ChainId(chain)].version;
        (routing.owner(TargetId(chain)).unwrap().address.parse().unwrap(), version)
    }

    async fn write(&self, chain: u64, index: u32, bytes: &[u8]) -> Result<()> {
        let (address, version) = self.owner(chain);
        let mut crcs = Vec::new();
        data::segment_crcs(0, bytes, |crc| crcs.extend_from_slice(&crc.to_le_bytes()));
        self.sequence.set(self.sequence.get() + 1);
        let update = Update {
            chain: chain.into(),
            chain_version: version.into(),
            target: chain.into(),
            inode: 1.into(),
            index: index.into(),
            kind: UpdateKind::Write as u8,
            length: (bytes.len() as u32).into(),
            chunk_size: 65536.into(),
            client: 1.into(),
            incarnation: 1.into(),
            sequence: self.sequence.get().into(),
            crcs: (crcs.len() as u32 / 4).into(),
            ..Update::default()
        };
        let body = [Prefix::default().as_bytes(), update.as_bytes(), &crcs].concat();
        let payload = Some(Payload::from(bytes.to_vec()));
        self.node.call(&address, op::UPDATE, &body, payload, PATIENCE).await.map(drop)
    }

    async fn read(&self, chain: u64, index: u32) -> Result<Vec<u8>> {
        let (address, version) = self.owner(chain);
        let conn = self.node.connection(&address).await?;
        let expected = self.node.expect(conn, None)?.within(PATIENCE);
        let entry = ReadEntry {
            request: expected.request_id().into(),
            chain: chain.into(),
            chain_version: version.into(),
            target: chain.into(),
            inode: 1.into(),
            index: index.into(),
            length: 8192.into(),
            ..ReadEntry::default()
        };
        let body = [Prefix::default().as_bytes(), entry.as_bytes()].concat();
        self.node.post(conn, Kind::Request, op::READ, u64::MAX, &body, None)?;
        let reply = expected.await?;
        let (_, crcs) = data::read_reply(&reply.body)?;
        Ok(reply.data.map_or(Vec::new(), |data| data[..crcs.len() * BLOCK].to_vec()))
    }

    /// Writes chunk `index` of every chain and reads all up to it back.
    async fn exercise(&self, index: u32) {
        for chain in 1..=CHAINS {
            self.write(chain, index, &[chain as u8 + index as u8; 8192]).await.unwrap();
        }
        for chain in 1..=CHAINS {
            for index in 0..=index {
                assert_eq!(self.read(chain, index).await.unwrap(), [chain as u8 + index as u8; 8192]);
            }
        }
    }
}

fn enough_cores() -> bool {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    if cores < 2 {
        eprintln!("SKIPPED: this machine has one core and the node needs two");
    }
    cores >= 2
}

#[test]
fn a_node_joins_serves_and_comes_back_with_everything() {
    if !enough_cores() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("node");
    ground(Uuid([1; 16]), async |ground| {
        for round in 0..4 {
            let server = StorageServer::start(ground.options(&dir)).await.unwrap();
            assert_eq!((server.node(), server.shard_addresses().len()), (NodeId(1), 2));
            ground.exercise(round).await;
            let process = ground.node.ask(server.address(), &GetProcessT::default(), PATIENCE).await.unwrap();
            assert_eq!((process.role.as_str(), process.pid), ("storage", std::process::id()));
            assert!(process.user_us + process.system_us > 0 && process.rss_bytes > 0);
            let count = |name: &str| process.counters.iter().find(|c| c.name == name).unwrap().value;
            assert_eq!(count("updates"), CHAINS);
            assert!(process.shards.iter().all(|shard| shard.counters.iter().any(|c| c.value > 0)));
            let before = ground.manager.beats.get();
            while ground.manager.beats.get() < before + 2 {
                ground.node.sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(ground.manager.healthy_targets.get(), CHAINS as usize);
            if round % 2 == 0 { server.stop().await.unwrap() } else { server.kill().await }
        }
    });
}

/// Nothing but zeros where `slices` of the node's disk were, of eight.
fn wipe(dir: &Path, slices: std::ops::Range<u64>) {
    let disk = std::fs::OpenOptions::new().write(true).open(dir.join("disk-0")).unwrap();
    let bytes = disk.metadata().unwrap().len() / 8 / BLOCK as u64 * BLOCK as u64;
    let zeros = vec![0; bytes as usize];
    for slice in slices {
        std::os::unix::fs::FileExt::write_all_at(&disk, &zeros, slice * bytes).unwrap();
    }
}

#[test]
fn a_slice_that_cannot_be_opened_is_reported_dead_and_the_others_serve() {
    if !enough_cores() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("node");
    ground(Uuid([1; 16]), async |ground| {
        let server = StorageServer::start(ground.options(&dir)).await.unwrap();
        ground.exercise(0).await;
        server.stop().await.unwrap();
        wipe(&dir, 3..4);
        let server = StorageServer::start(ground.options(&dir)).await.unwrap();
        assert_eq!(*ground.manager.dead_slices.borrow(), [3], "said as it registers");
        let before = ground.manager.beats.get();
        while ground.manager.beats.get() < before + 2 {
            ground.node.sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(*ground.manager.dead_slices.borrow(), [3], "and ever after");
        for chain in 1..=CHAINS {
            let found = ground.read(chain, 0).await;
            assert_eq!(found.is_ok(), chain != 4, "chain {chain}: {found:?}");
        }
        server.stop().await.unwrap();
        wipe(&dir, 0..8);
        let refused =
            StorageServer::start(ground.options(&dir)).await.err().expect("nothing is left to serve");
        assert!(refused.message.contains("disk-0"), "{refused}");
    });
}

#[test]
fn shards_fence_themselves_when_nobody_renews_their_lease() {
    if !enough_cores() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    ground(Uuid([1; 16]), async |ground| {
        let server = StorageServer::start(ground.options(&dir.path().join("node"))).await.unwrap();
        ground.exercise(0).await;
        ground.manager.renews.set(false);
        while ground.read(1, 0).await.is_ok() {
            ground.node.sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(ground.read(1, 0).await.unwrap_err().code, ErrorCode::LeaseExpired);
        assert_eq!(ground.write(1, 0, b"x").await.unwrap_err().code, ErrorCode::LeaseExpired);
        ground.manager.renews.set(true);
        while let Err(error) = ground.read(1, 0).await {
            assert_eq!(error.code, ErrorCode::LeaseExpired);
            ground.node.sleep(Duration::from_millis(20)).await;
        }
        server.stop().await.unwrap();
    });
}

#[test]
fn a_node_that_the_leader_has_forgotten_registers_again_whatever_the_other_managers_say() {
    if !enough_cores() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    ground(Uuid([5; 16]), async |ground| {
        let secret = Some(Secret::new([5; 32]));
        let identity =
            Identity { role: Role::Manager, id: 2, incarnation: 1, cluster: Uuid([5; 16]), secret };
        let other = Node::start(NodeConfig { pool_bytes: 1 << 20, ..NodeConfig::new(identity) }).unwrap();
        other.serve(Rc::new(Follower));
        let follower = other.listen(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let mut options = ground.options(dir.path());
        options.managers.push(follower.clone());
        options.managers.insert(0, follower);
        let server = StorageServer::start(options).await.unwrap();
        ground.exercise(0).await;
        ground.manager.forgets.set(true);
        let mut rounds = 0;
        while ground.manager.registrations.get() < 2 {
            ground.node.sleep(Duration::from_millis(50)).await;
            rounds += 1;
            assert!(rounds < 400, "it never registered again");
        }
        server.stop().await.unwrap();
        other.shutdown().await;
    });
}

#[test]
fn a_directory_belongs_to_one_node_of_one_cluster() {
    if !enough_cores() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("node");
    ground(Uuid([1; 16]), async |ground| {
        let server = StorageServer::start(ground.options(&dir)).await.unwrap();
        let again = StorageServer::start(ground.options(&dir)).await.err().unwrap();
        assert_eq!(again.code, ErrorCode::DirectoryInUse, "{again}");
        server.stop().await.unwrap();
        let many = Options { cores: 10_000, ..ground.options(&dir) };
        assert_eq!(StorageServer::start(many).await.err().unwrap().code, ErrorCode::BadConfig);
        let stranger = Options { secret: Some(Secret::new([6; 32])), ..ground.options(&dir) };
        let refused = StorageServer::start(stranger).await.err().unwrap();
        assert_eq!(refused.code, ErrorCode::AuthenticationFailed, "{refused}");
    });
    ground(Uuid([2; 16]), async |ground| {
        let refused = StorageServer::start(ground.options(&dir)).await.err().unwrap();
        assert_eq!(refused.code, ErrorCode::WrongCluster, "{refused}");
    });
}
