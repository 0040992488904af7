//! A virtual clock, an executor that turns it, and cluster members that talk to a manager. No thread, no real time.

use corefs_kv::Mem;
use corefs_mgmtd::cluster::formation::Wanted;
use corefs_mgmtd::cluster::liveness::Terms;
use corefs_mgmtd::{Clock, Primary, Settings, ops};
use corefs_wire::control::mgmtd::*;
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{Error, ErrorCode, Result, Uuid};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

pub const TERMS: Terms =
    Terms { lease_ms: 1000, margin_ms: 200, client_lease_ms: 5000, forget_meta_ms: 60_000 };

/// Time that passes when nothing else can happen.
#[derive(Clone, Default)]
pub struct TestClock(Rc<Sleepers>);

#[derive(Default)]
struct Sleepers {
    now_ms: Cell<u64>,
    next: Cell<u64>,
    waiting: RefCell<BTreeMap<(u64, u64), Waker>>,
}

impl TestClock {
    pub fn advance(&self, ms: u64) {
        self.0.now_ms.set(self.0.now_ms.get() + ms);
        self.wake_due();
    }

    fn wake_due(&self) {
        let due = (self.0.now_ms.get(), u64::MAX);
        let later = self.0.waiting.borrow_mut().split_off(&due);
        let woken = std::mem::replace(&mut *self.0.waiting.borrow_mut(), later);
        woken.into_values().for_each(Waker::wake);
    }

    /// Goes to the next moment that somebody sleeps for; false when nobody does.
    fn jump(&self) -> bool {
        let next = self.0.waiting.borrow().keys().next().map(|(at, _)| *at);
        if let Some(at) = next {
            self.0.now_ms.set(at.max(self.0.now_ms.get()));
            self.wake_due();
        }
        next.is_some()
    }
}

impl Clock for TestClock {
    fn now_ms(&self) -> u64 {
        self.0.now_ms.get()
    }

    async fn sleep(&self, ms: u64) {
        let ticket = self.0.next.get();
        self.0.next.set(ticket + 1);
        Sleep { clock: self.clone(), key: (self.now_ms() + ms, ticket) }.await;
    }
}

struct Sleep {
    clock: TestClock,
    key: (u64, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.clock.now_ms() >= self.key.0 {
            return Poll::Ready(());
        }
        self.clock.0.waiting.borrow_mut().insert(self.key, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.clock.0.waiting.borrow_mut().remove(&self.key);
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `future` to its end; when it waits for nothing but time, time jumps.
pub fn run<T>(clock: &TestClock, future: impl Future<Output = T>) -> T {
    let flag = Arc::new(Flag(AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&flag));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(out) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return out;
        }
        if !flag.0.swap(false, Ordering::Relaxed) {
            assert!(clock.jump(), "waits for something that never happens");
        }
    }
}

pub type Manager = Primary<Mem, TestClock>;

pub fn settings(process: u8, wanted: Wanted) -> Settings {
    Settings {
        process: Uuid([process; 16]),
        address: format!("127.0.0.1:{}", 1000 + u16::from(process)),
        fresh_cluster: Uuid([process ^ 0x80; 16]),
        expected_cluster: None,
        wanted,
        terms: TERMS,
        lease_ms: 1000,
        kv: "memory, for tests".into(),
    }
}

pub fn wanted(nodes: u32, replicas: u32, targets: u32) -> Wanted {
    Wanted { nodes: Some(nodes), replicas: Some(replicas), targets_per_node: Some(targets), chunk_size: None }
}

pub async fn open(engine: &Mem, clock: &TestClock, process: u8, wanted: Wanted) -> Result<Manager> {
    Primary::open(engine.clone(), clock.clone(), settings(process, wanted)).await
}

/// Opens a manager and lets it win the election.
pub async fn lead(engine: &Mem, clock: &TestClock, process: u8, wanted: Wanted) -> Manager {
    let manager = open(engine, clock, process, wanted).await.unwrap();
    elect(&manager, clock).await;
    manager
}

pub async fn elect(manager: &Manager, clock: &TestClock) {
    while !manager.leads() {
        let pause = manager.step().await;
        if !manager.leads() {
            clock.sleep(pause).await;
        }
    }
}

/// A registration of node `name` (its stores follow from the name) with `slices` slices on two shards.
pub fn node_request(name: u8, incarnation: u64, slices: u8) -> RegisterNodeT {
    let mut request = RegisterNodeT::default();
    request.incarnation = incarnation;
    request.control = format!("127.0.1.{name}:1");
    request.shards = vec![format!("127.0.1.{name}:2"), format!("127.0.1.{name}:3")];
    request.slices = slice_infos(name, slices);
    request
}

pub fn slice_infos(name: u8, slices: u8) -> Vec<SliceInfoT> {
    let info = |index: u8| {
        let mut info = SliceInfoT::default();
        info.index = u16::from(index);
        info.shard = u16::from(index % 2);
        info.store = vec![name; 16];
        info.store[15] = index;
        info.capacity = 1 << 30;
        info
    };
    (0..slices).map(info).collect()
}

pub fn heartbeat(node: u32, name: u8, incarnation: u64, slices: u8) -> NodeHeartbeatT {
    let mut request = NodeHeartbeatT::default();
    (request.node, request.incarnation) = (node, incarnation);
    request.slices = slice_infos(name, slices);
    request
}

/// Registers nodes 1 to `nodes`.
pub async fn register_all(manager: &Manager, nodes: u8, incarnation: u64, slices: u8) {
    for name in 1..=nodes {
        let reply = ops::register_node(manager, node_request(name, incarnation, slices)).await.unwrap();
        assert_eq!(reply.node, u32::from(name));
    }
}

pub async fn routing(manager: &Manager) -> Result<RoutingInfo> {
    let reply = ops::get_routing(manager, GetRoutingT::default()).await?;
    RoutingInfo::from_message(&reply.routing.expect("a version above none"))
}

pub async fn renew_client(manager: &Manager, client: u64) -> Result<u64> {
    let mut request = RenewClientT::default();
    (request.client, request.name) = (client, "test".into());
    Ok(ops::renew_client(manager, request).await?.client)
}

pub async fn alive(manager: &Manager, clients: &[u64]) -> Vec<bool> {
    let mut request = CheckClientsT::default();
    request.clients = clients.to_vec();
    ops::check_clients(manager, request).await.unwrap().alive
}

pub fn code<T>(result: Result<T, Error>) -> Option<ErrorCode> {
    result.err().map(|error| error.code)
}
