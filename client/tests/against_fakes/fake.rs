//! A small cluster on one executor, over real sockets and real frames: a manager, storage shards and a metadata server,
//! each of which can be told to misbehave. What is real in the cluster is tested end to end elsewhere; this is for
//! what real servers rarely do.
#![allow(clippy::unwrap_used)]

pub mod meta;
pub mod storage;

use corefs_client::{Client, ClientOptions, Credentials, File, Kind, OpenOptions};
use corefs_net::handshake::{Identity, Role};
use corefs_net::{Address, Node, NodeConfig, Request, Responder, Service};
use corefs_wire::control::mgmtd::{
    ClientLeaseT, EndClientReplyT, EndClientT, GetRoutingT, RenewClientT, RoutingReplyT, TargetState,
};
use corefs_wire::control::{Call, Message};
use corefs_wire::layout::Layout;
use corefs_wire::routing::{Chain, Member, Node as NodeInfo, RoutingInfo, Target};
use corefs_wire::{
    ChainId, Error, ErrorCode, InodeId, NodeId, Result, ShardIndex, SliceIndex, TargetId, Uuid,
};
use glommio::{LocalExecutorBuilder, Placement};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

pub const CLUSTER: Uuid = Uuid([9; 16]);
pub const CHUNK: u32 = 64 << 10;
/// Over all chains of the one table.
pub const LAYOUT: Layout = Layout { chunk_size: CHUNK, stripe: 4, table_id: 1, table_version: 1, seed: 5 };

/// Runs a test on an executor of its own.
pub fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F + Send + 'static) {
    LocalExecutorBuilder::new(Placement::Unbound)
        .spawn(move || async move { test().await })
        .unwrap()
        .join()
        .unwrap();
}

/// A server's endpoint.
pub fn node(role: Role) -> Node {
    let identity = Identity { role, id: 1, incarnation: 1, cluster: CLUSTER, secret: None };
    let mut config = NodeConfig::new(identity);
    config.ring.busy_poll = Duration::ZERO;
    config.pool_bytes = 16 << 20;
    Node::start(config).unwrap()
}

pub fn listen(node: &Node, service: Rc<dyn Service>) -> Address {
    node.serve(service);
    node.listen(&"127.0.0.1:0".parse().unwrap()).unwrap()
}

/// Answers a typed request.
pub fn answer<C: Call>(request: &Request, responder: Responder, reply: impl FnOnce(C) -> Result<C::Reply>) {
    match C::decode(&request.body).and_then(reply) {
        Ok(reply) => responder.ok(&reply.encode(), None),
        Err(error) => responder.err(&error),
    }
}

/// The manager: gives out what it was told.
pub struct Manager {
    pub routing: RefCell<RoutingInfo>,
    pub fetches: Cell<u32>,
    pub renewals: Cell<u32>,
    clients: Cell<u64>,
    /// The next client that renews its lease is told that it has none.
    pub ended: Cell<bool>,
    /// No lease is renewed for now.
    pub refusing: Cell<bool>,
    /// Long polls that wait for something newer.
    waiting: RefCell<Vec<Responder>>,
}

impl Manager {
    /// Changes routing, raises its version and tells whoever waits for that.
    pub fn change(&self, change: impl FnOnce(&mut RoutingInfo)) {
        let mut routing = self.routing.borrow_mut();
        change(&mut routing);
        routing.version += 1;
        for responder in self.waiting.take() {
            responder.ok(&reply(&routing).encode(), None);
        }
    }

    /// The same, but only those who ask learn of it.
    pub fn change_silently(&self, change: impl FnOnce(&mut RoutingInfo)) {
        let waiting = self.waiting.take();
        self.change(change);
        *self.waiting.borrow_mut() = waiting;
    }
}

fn reply(routing: &RoutingInfo) -> RoutingReplyT {
    let mut reply = RoutingReplyT::default();
    reply.routing = Some(Box::new(routing.to_message()));
    reply
}

impl Service for Manager {
    fn request(&self, request: Request, responder: Responder) {
        match request.op {
            GetRoutingT::OP => {
                let asked = GetRoutingT::decode(&request.body).unwrap();
                let routing = self.routing.borrow();
                if asked.have < routing.version {
                    self.fetches.set(self.fetches.get() + 1);
                    responder.ok(&reply(&routing).encode(), None);
                } else if asked.wait_ms > 0 {
                    self.waiting.borrow_mut().push(responder);
                } else {
                    responder.ok(&RoutingReplyT::default().encode(), None);
                }
            }
            RenewClientT::OP => answer::<RenewClientT>(&request, responder, |asked| {
                self.renewals.set(self.renewals.get() + 1);
                if self.refusing.get() {
                    return Err(ErrorCode::NotReady.into());
                }
                let client = match asked.client {
                    0 => self.clients.replace(self.clients.get() + 1) + 77,
                    _ if self.ended.take() => return Err(ErrorCode::LeaseExpired.into()),
                    known => known,
                };
                let mut lease = ClientLeaseT::default();
                (lease.client, lease.incarnation, lease.lease_ms) = (client, 3, 300);
                lease.cluster = CLUSTER.0.to_vec();
                Ok(lease)
            }),
            EndClientT::OP => {
                answer::<EndClientT>(&request, responder, |_| Ok(EndClientReplyT::default()));
            }
            _ => responder.err(&Error::from(ErrorCode::UnknownOperation)),
        }
    }
}

/// All of it.
pub struct Cluster {
    pub manager: Rc<Manager>,
    pub manager_address: Address,
    pub shards: Vec<Rc<storage::Shard>>,
    pub meta: Rc<meta::Meta>,
    nodes: Vec<Node>,
}

impl Cluster {
    /// `replicas` storage shards, each with a replica of each of four chains.
    pub fn start(replicas: usize) -> Self {
        let shards: Vec<Rc<storage::Shard>> = (0..replicas).map(|_| storage::Shard::start()).collect();
        let meta = Rc::new(meta::Meta::default());
        let meta_node = node(Role::Meta);
        let meta_address = listen(&meta_node, meta.clone());
        *meta.node.borrow_mut() = Some(meta_node.clone());
        let addresses: Vec<String> = shards.iter().map(|shard| shard.address.to_string()).collect();
        let mut routing = routing(&addresses);
        routing.metas = vec![meta_address.to_string()];
        let manager = Rc::new(Manager {
            routing: RefCell::new(routing),
            fetches: Cell::default(),
            renewals: Cell::default(),
            clients: Cell::default(),
            ended: Cell::default(),
            refusing: Cell::default(),
            waiting: RefCell::default(),
        });
        let manager_node = node(Role::Manager);
        let manager_address = listen(&manager_node, manager.clone());
        let mut nodes = vec![meta_node, manager_node];
        nodes.extend(shards.iter().map(|shard| shard.node.clone()));
        Self { manager, manager_address, shards, meta, nodes }
    }

    pub fn options(&self) -> ClientOptions {
        let mut options = ClientOptions::new(vec![self.manager_address.clone()], None);
        options.busy_poll = Duration::ZERO;
        options.pool_bytes = 32 << 20;
        options
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.options()).await.unwrap()
    }

    pub async fn stop(self) {
        // Responders that are still held answer now.
        self.shards.iter().for_each(|shard| shard.held.borrow_mut().clear());
        self.shards.iter().for_each(|shard| shard.catch_up());
        self.manager.waiting.borrow_mut().clear();
        self.meta.node.take();
        for node in &self.nodes {
            node.shutdown().await;
        }
    }
}

/// Routing of four chains; replica r of each is on node r + 1, the head of chain c on node c mod replicas + 1.
pub fn routing(addresses: &[String]) -> RoutingInfo {
    let mut info = RoutingInfo {
        version: 1,
        cluster: CLUSTER,
        chunk_size: CHUNK,
        replicas: addresses.len() as u32,
        ..Default::default()
    };
    for (at, address) in addresses.iter().enumerate() {
        let id = NodeId(at as u32 + 1);
        let node = NodeInfo {
            id,
            incarnation: 1,
            alive: true,
            control: String::new(),
            shards: vec![address.clone()],
            slice_shards: vec![ShardIndex(0)],
            domain: String::new(),
        };
        info.nodes.insert(id, node);
    }
    for chain in 1..=4u64 {
        let member = |at: usize| {
            let node = (at + chain as usize) % addresses.len();
            let target = TargetId(chain * 100 + node as u64);
            let entry = Target {
                id: target,
                node: NodeId(node as u32 + 1),
                slice: SliceIndex(0),
                chain: ChainId(chain),
            };
            info.targets.insert(target, entry);
            Member { target, state: TargetState::Serving }
        };
        let members = (0..addresses.len()).map(member).collect();
        info.chains.insert(ChainId(chain), Chain { id: ChainId(chain), version: 1, members });
    }
    info.tables.insert((1, 1), (1..=4).map(ChainId).collect());
    info
}

/// Waits until something that others bring about is so.
pub async fn until(node: &Node, mut so: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if so() {
            return;
        }
        node.sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came about");
}

/// Bytes that differ everywhere.
pub fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|at| (at / 7 % 251) as u8 ^ (at as u8) ^ salt).collect()
}

/// A file of `chunks` whole chunks on every shard, opened for reading.
pub async fn file(cluster: &Cluster, client: &Client, chunks: u32) -> (File, Vec<u8>) {
    let attr = cluster.meta.add(1, b"file", Kind::File);
    let bytes = pattern((CHUNK * chunks) as usize, 3);
    cluster.meta.inodes.borrow_mut().get_mut(&attr.inode).unwrap().size = bytes.len() as u64;
    for shard in &cluster.shards {
        for (index, chunk) in bytes.chunks(CHUNK as usize).enumerate() {
            shard.put(attr.inode, index as u32, chunk);
        }
    }
    let file = client.open(&Credentials::root(), InodeId(attr.inode), OpenOptions::default()).await.unwrap();
    (file, bytes)
}
