//! The server as a process would run it: real sockets, a manager that says what managers say, a store in memory.

use corefs_kv::Mem;
use corefs_kv::embedded::{Embedded, Options};
use corefs_meta::server::{MetaOptions, MetaServer, MetaThread};
use corefs_net::{Address, Identity, Node, NodeConfig, Request, Responder, Role, Service, executor};
use corefs_wire::control::mgmtd::*;
use corefs_wire::control::process::GetProcessT;
use corefs_wire::control::{Call, Message, meta::*};
use corefs_wire::routing::{Chain, Member, RoutingInfo, Target};
use corefs_wire::{ChainId, ErrorCode, NodeId, Result, ShardIndex, SliceIndex, TargetId, Uuid};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

const CLUSTER: Uuid = Uuid([7; 16]);
const PATIENCE: Duration = Duration::from_secs(20);

/// What a manager knows of a cluster with one storage node that nobody can reach.
fn routing() -> RoutingInfo {
    let (node, target, chain) = (NodeId(1), TargetId(1), ChainId(1));
    let member = Member { target, state: TargetState::Serving };
    RoutingInfo {
        version: 5,
        cluster: CLUSTER,
        chunk_size: 1 << 20,
        replicas: 1,
        nodes: [(
            node,
            corefs_wire::routing::Node {
                id: node,
                incarnation: 1,
                alive: true,
                control: "127.0.0.1:1".into(),
                shards: vec!["127.0.0.1:1".into()],
                slice_shards: vec![ShardIndex(0)],
                domain: String::new(),
            },
        )]
        .into(),
        targets: [(target, Target { id: target, node, slice: SliceIndex(0), chain })].into(),
        chains: [(chain, Chain { id: chain, version: 1, members: vec![member] })].into(),
        tables: [((1, 1), vec![chain])].into(),
        metas: Vec::new(),
    }
}

#[derive(Default)]
struct Manager {
    registered: RefCell<Vec<RegisterMetaT>>,
    asked: Cell<u32>,
}

impl Service for Manager {
    fn request(&self, request: Request, responder: Responder) {
        let reply = match request.op {
            RegisterMetaT::OP => {
                let registered = RegisterMetaT::decode(&request.body).unwrap();
                let mut reply = MetaRegisteredT::default();
                (reply.lease_ms, reply.cluster) = (300, CLUSTER.0.to_vec());
                if registered.routing_version < 5 {
                    reply.routing = Some(Box::new(routing().to_message()));
                }
                self.registered.borrow_mut().push(registered);
                reply.encode()
            }
            CheckClientsT::OP => {
                self.asked.set(self.asked.get() + 1);
                let mut reply = CheckClientsReplyT::default();
                reply.alive = vec![true; CheckClientsT::decode(&request.body).unwrap().clients.len()];
                reply.encode()
            }
            GetStatusT::OP => {
                let (mut status, mut node, mut slice) =
                    (StatusT::default(), NodeStatusT::default(), SliceInfoT::default());
                (slice.capacity, slice.used, slice.standing) = (1000, 300, Standing::Active);
                (node.alive, node.slices) = (true, vec![slice]);
                (status.replicas, status.nodes) = (1, vec![node]);
                status.encode()
            }
            _ => return responder.err(&ErrorCode::UnknownOperation.into()),
        };
        responder.ok(&reply, None);
    }
}

fn node(role: Role, cluster: Uuid) -> Node {
    let identity = Identity { role, id: 0, incarnation: 1, cluster, secret: None };
    Node::start(NodeConfig { pool_bytes: 1 << 20, ..NodeConfig::new(identity) }).unwrap()
}

fn anywhere() -> Address {
    "127.0.0.1:0".parse().unwrap()
}

/// A manager, a server over an empty store, and somebody who calls it.
struct World {
    manager: Rc<Manager>,
    manager_node: Node,
    manager_address: Address,
    server: MetaServer<Mem>,
    caller: Node,
    address: Address,
    sequence: Cell<u64>,
}

impl World {
    async fn start() -> Self {
        let (manager, manager_node) = (Rc::new(Manager::default()), node(Role::Manager, CLUSTER));
        let manager_address = manager_node.listen(&anywhere()).unwrap();
        manager_node.serve(manager.clone());
        let options =
            MetaOptions { listen: anywhere(), managers: vec![manager_address.clone()], secret: None };
        let server = MetaServer::start(options, Mem::new()).await.unwrap();
        let address = server.address().clone();
        Self {
            manager,
            manager_node,
            manager_address,
            server,
            caller: node(Role::Client, CLUSTER),
            address,
            sequence: Cell::new(0),
        }
    }

    async fn ask<C: Call>(&self, call: &C) -> Result<C::Reply> {
        self.caller.ask(&self.address, call, PATIENCE).await
    }

    fn number(&self) -> Box<CallerT> {
        self.sequence.set(self.sequence.get() + 1);
        let mut caller = CallerT::default();
        (caller.client, caller.incarnation, caller.sequence) = (100, 1, self.sequence.get());
        Box::new(caller)
    }

    fn file(&self, name: &str) -> CreateT {
        let mut request = CreateT::default();
        (request.caller, request.parent, request.name) = (self.number(), 1, name.as_bytes().to_vec());
        (request.mode, request.exclusive) = (0o644, true);
        request
    }

    async fn end(self) {
        self.server.stop().await.unwrap();
        self.caller.shutdown().await;
        self.manager_node.shutdown().await;
    }
}

fn run(test: impl AsyncFnOnce(World) + Send + 'static) {
    let executor = executor::builder(glommio::Placement::Unbound);
    let thread = executor.spawn(move || async move { test(World::start().await).await });
    thread.unwrap().join().unwrap();
}

#[test]
fn answers_every_operation() {
    run(async |world: World| {
        let created = world.ask(&world.file("a")).await.unwrap();
        assert_eq!((created.attr.layout.chunk_size, created.attr.layout.stripe), (1 << 20, 1));
        let mut lookup = LookupT::default();
        (lookup.parent, lookup.name) = (1, b"a".to_vec());
        assert_eq!(world.ask(&lookup).await.unwrap().attr, created.attr);
        let mut open = OpenT::default();
        (open.caller, open.inode, open.write) = (world.number(), created.attr.inode, true);
        let opened = world.ask(&open).await.unwrap();
        let mut sync = SyncLengthT::default();
        (sync.caller, sync.inode, sync.session) = (world.number(), created.attr.inode, opened.session);
        sync.length = 77;
        assert_eq!(world.ask(&sync).await.unwrap().attr.size, 77);
        let mut close = CloseT::default();
        (close.caller, close.inode, close.session) = (world.number(), created.attr.inode, opened.session);
        assert_eq!(world.ask(&close).await.unwrap().attr.size, 77);
        let mut set = SetAttrT::default();
        (set.caller, set.inode, set.set.mask, set.set.mode) = (world.number(), created.attr.inode, 1, 0o600);
        assert_eq!(world.ask(&set).await.unwrap().attr.mode, 0o600);
        let mut link = LinkT::default();
        (link.caller, link.inode, link.parent, link.name) =
            (world.number(), created.attr.inode, 1, b"b".to_vec());
        assert_eq!(world.ask(&link).await.unwrap().attr.nlink, 2);
        let mut rename = RenameT::default();
        (rename.caller, rename.parent, rename.name) = (world.number(), 1, b"b".to_vec());
        (rename.new_parent, rename.new_name) = (1, b"c".to_vec());
        world.ask(&rename).await.unwrap();
        let mut unlink = UnlinkT::default();
        (unlink.caller, unlink.parent, unlink.name) = (world.number(), 1, b"c".to_vec());
        world.ask(&unlink).await.unwrap();
        let mut directory = world.file("d");
        directory.kind = Kind::Directory;
        world.ask(&directory).await.unwrap();
        let mut rmdir = RmDirT::default();
        (rmdir.caller, rmdir.parent, rmdir.name) = (world.number(), 1, b"d".to_vec());
        world.ask(&rmdir).await.unwrap();
        let mut symlink = world.file("s");
        (symlink.kind, symlink.symlink_target) = (Kind::Symlink, b"a".to_vec());
        let mut read_link = ReadLinkT::default();
        read_link.inode = world.ask(&symlink).await.unwrap().attr.inode;
        assert_eq!(world.ask(&read_link).await.unwrap().target, b"a");
        let mut read_dir = ReadDirT::default();
        (read_dir.inode, read_dir.plus) = (1, true);
        assert_eq!(world.ask(&read_dir).await.unwrap().entries.len(), 2);
        let mut get_attr = GetAttrT::default();
        get_attr.inodes = vec![1];
        assert_eq!(world.ask(&get_attr).await.unwrap().results[0].attr.as_ref().unwrap().size, 2);
        let space = world.ask(&StatFsT::default()).await.unwrap();
        assert_eq!((space.total, space.free, space.files), (1000, 700, 3));
        let process = world.ask(&GetProcessT::default()).await.unwrap();
        let counted =
            |name: &str| process.counters.iter().find(|counter| counter.name == name).map(|c| c.value);
        assert_eq!((process.role.as_str(), counted("meta.create.ok")), ("meta", Some(3)));
        assert!(world.server.namespace().check().await.unwrap().is_clean());
        world.end().await;
    });
}

fn watch(client: u64, (life, since): (u64, u64), wait_ms: u32) -> WatchT {
    let mut request = WatchT::default();
    (request.client, request.life, request.since, request.wait_ms) = (client, life, since, wait_ms);
    request
}

#[test]
fn who_watches_hears_of_what_others_change_and_of_the_end() {
    run(async |world: World| {
        let first = world.ask(&watch(200, (0, 0), 0)).await.unwrap();
        assert!(first.lost && first.next > 0 && first.life > 0);
        let place = (first.life, first.next);
        let world = Rc::new(world);
        let waits = {
            let world = Rc::clone(&world);
            glommio::spawn_local(async move { world.ask(&watch(200, place, 5000)).await })
        };
        let created = world.ask(&world.file("a")).await.unwrap();
        let told = waits.await.unwrap();
        assert!(!told.lost && told.names.len() == 1 && told.names[0].name == b"a");
        assert!(told.inodes.contains(&1) && told.inodes.contains(&created.attr.inode));
        // Whoever did it isn't told, nor anybody twice, however long they wait.
        for (client, place) in [(100, place), (200, (told.life, told.next))] {
            let nothing = world.ask(&watch(client, place, 50)).await.unwrap();
            assert!(!nothing.lost && nothing.names.is_empty() && nothing.inodes.is_empty());
            assert_eq!(nothing.next, told.next);
        }
        for (life, since) in
            [(first.life + 1, first.next), (first.life, u64::MAX), (first.life, told.next + 1)]
        {
            let lost = world.ask(&watch(200, (life, since), 5000)).await.unwrap();
            assert!(lost.lost && lost.names.is_empty() && lost.next == told.next);
        }
        let last = watch(200, (told.life, told.next), 5000);
        let (caller, address) = (world.caller.clone(), world.address.clone());
        let waits = glommio::spawn_local(async move { caller.ask(&address, &last, PATIENCE).await });
        // It waits once somebody else's question, sent later, was answered.
        assert!(!world.ask(&watch(100, (told.life, told.next), 10)).await.unwrap().lost);
        let Ok(world) = Rc::try_unwrap(world) else { panic!("somebody still has it") };
        world.server.stop().await.unwrap();
        assert_eq!(waits.await.unwrap_err().code, ErrorCode::ShuttingDown);
        world.caller.shutdown().await;
        world.manager_node.shutdown().await;
    });
}

#[test]
fn refuses_what_it_does_not_understand() {
    run(async |world: World| {
        let call = async |op, body: &[u8]| {
            let reply = world.caller.call(&world.address, op, body, None, PATIENCE).await;
            reply.map(drop).unwrap_err().code
        };
        assert_eq!(call(LookupT::OP, b"garbage").await, ErrorCode::BadFrame);
        assert_eq!(call(0x0399, b"").await, ErrorCode::UnknownOperation);
        assert_eq!(call(RegisterMetaT::OP, b"").await, ErrorCode::UnknownOperation);
        // Others, and this very connection, are served on.
        world.ask(&world.file("a")).await.unwrap();
        let mut again = world.file("a");
        assert_eq!(world.ask(&again).await.unwrap_err().code, ErrorCode::Exists);
        again.name = b"a/b".to_vec();
        assert_eq!(world.ask(&again).await.unwrap_err().code, ErrorCode::InvalidName);
        world.end().await;
    });
}

#[test]
fn many_requests_are_in_progress_at_once() {
    run(async |world: World| {
        let requests: Vec<CreateT> = (0..500).map(|number| world.file(&number.to_string())).collect();
        let world = Rc::new(world);
        let tasks: Vec<_> = requests
            .into_iter()
            .map(|request| {
                let world = Rc::clone(&world);
                glommio::spawn_local(async move { world.ask(&request).await.map(|reply| reply.attr.inode) })
            })
            .collect();
        let mut inodes = Vec::new();
        for task in tasks {
            inodes.push(task.await.unwrap());
        }
        inodes.sort_unstable();
        inodes.dedup();
        assert_eq!(inodes.len(), 500);
        assert!(world.server.namespace().check().await.unwrap().is_clean());
        Rc::into_inner(world).unwrap().end().await;
    });
}

#[test]
fn stays_known_and_ends_cleanly() {
    run(async |world: World| {
        while world.manager.registered.borrow().len() < 3 || world.manager.asked.get() < 1 {
            // A session of a client: somebody has to be asked about.
            if world.manager.registered.borrow().len() == 1 {
                let mut request = world.file(&world.sequence.get().to_string());
                request.open = true;
                world.ask(&request).await.unwrap();
            }
            world.caller.sleep(Duration::from_millis(20)).await;
        }
        {
            let registered = world.manager.registered.borrow();
            assert_eq!((registered[0].routing_version, registered[1].routing_version), (0, 5));
            assert!(registered.iter().all(|one| one.address == world.address.to_string()));
        }
        let (manager, caller, address) =
            (world.manager_node.clone(), world.caller.clone(), world.address.clone());
        world.server.stop().await.unwrap();
        let refused = caller.ask(&address, &StatFsT::default(), PATIENCE).await.unwrap_err();
        assert!(matches!(refused.code, ErrorCode::Unreachable | ErrorCode::ConnectionLost), "{refused}");
        // The address is free again.
        let heir = node(Role::Meta, CLUSTER);
        heir.listen(&address).unwrap();
        for node in [heir, caller, manager] {
            node.shutdown().await;
        }
    });
}

/// What a thread with a server says, and the thread.
fn thread_on(
    listen: &str,
    managers: Vec<Address>,
) -> (mpsc::Receiver<Option<Address>>, MetaThread, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path(), Options::default()).unwrap();
    let (tell, told) = mpsc::channel();
    let tell_failed = tell.clone();
    let options = MetaOptions { listen: listen.parse().unwrap(), managers, secret: None };
    let ready = move |address: &Address| tell.send(Some(address.clone())).unwrap();
    let thread = MetaThread::start(options, store, ready, move || tell_failed.send(None).unwrap()).unwrap();
    (told, thread, directory)
}

async fn hears(world: &World, told: &mpsc::Receiver<Option<Address>>) -> Option<Address> {
    for _ in 0..2000 {
        match told.try_recv() {
            Ok(said) => return said,
            Err(_) => world.caller.sleep(Duration::from_millis(10)).await,
        }
    }
    panic!("the thread said nothing")
}

/// Stops it while the manager, which is on this thread, goes on.
async fn stop(world: &World, thread: MetaThread) -> Result<()> {
    let stopping = std::thread::spawn(move || thread.stop());
    while !stopping.is_finished() {
        world.caller.sleep(Duration::from_millis(1)).await;
    }
    stopping.join().unwrap()
}

#[test]
fn a_server_lives_on_a_thread_of_the_process_that_has_the_store() {
    run(async |world: World| {
        let (told, thread, _directory) = thread_on("127.0.0.1:0", vec![world.manager_address.clone()]);
        let address = hears(&world, &told).await.expect("it serves");
        let created = world.caller.ask(&address, &world.file("a"), PATIENCE).await.unwrap();
        let mut lookup = LookupT::default();
        (lookup.parent, lookup.name) = (1, b"a".to_vec());
        assert_eq!(world.caller.ask(&address, &lookup, PATIENCE).await.unwrap().attr, created.attr);
        stop(&world, thread).await.unwrap();
        assert!(told.try_recv().is_err(), "one that was stopped hasn't failed");
        world.end().await;
    });
}

#[test]
fn a_thread_that_cannot_serve_says_so() {
    run(async |world: World| {
        let (told, thread, _directory) =
            thread_on(&world.address.to_string(), vec![world.manager_address.clone()]);
        assert_eq!(hears(&world, &told).await, None);
        assert_eq!(stop(&world, thread).await.unwrap_err().code, ErrorCode::AddressInUse);
        world.end().await;
    });
}

#[test]
fn a_thread_that_waits_for_a_manager_can_be_stopped() {
    let (told, thread, _directory) = thread_on("127.0.0.1:0", vec!["127.0.0.1:1".parse().unwrap()]);
    std::thread::sleep(Duration::from_millis(50));
    thread.stop().unwrap();
    assert!(told.try_recv().is_err());
}
