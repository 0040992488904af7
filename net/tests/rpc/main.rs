//! Nodes that call each other over real sockets, each on an executor of its own or two on one.

mod calls;
mod data;
mod service;
mod stop;
mod threads;

use corefs_net::executor;
use corefs_net::handshake::Secret;
use corefs_net::{Address, Identity, Node, NodeConfig, Request, Responder, RingConfig, Role, Service};
use corefs_wire::{Error, ErrorCode, Uuid};
use glommio::Placement;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

/// What a busy connection has of the pool, to receive into (bytes).
pub const RECEIVE_BLOCK: usize = 64 << 10;

/// Far beyond what anything here takes, so that a hang fails and load doesn't.
pub const LONG: Duration = Duration::from_secs(60);

pub fn config() -> NodeConfig {
    let secret = Some(Secret::new([1; 32]));
    let identity = Identity { role: Role::Meta, id: 7, incarnation: 1, cluster: Uuid([1; 16]), secret };
    let ring = RingConfig { entries: 64, completions: 256, ..RingConfig::default() };
    NodeConfig { ring, pool_bytes: 4 << 20, ..NodeConfig::new(identity) }
}

/// Runs a test on an executor.
pub fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F + Send + 'static) {
    let executor = executor::builder(Placement::Unbound).spawn(|| async move { test().await });
    executor.unwrap().join().unwrap();
}

pub fn local() -> Address {
    "127.0.0.1:0".parse().unwrap()
}

/// Operations of the service under test.
pub mod op {
    /// Replies with what came.
    pub const ECHO: u16 = 0x7001;
    /// Refuses.
    pub const REFUSE: u16 = 0x7002;
    /// Drops the responder.
    pub const DROP: u16 = 0x7003;
    /// Replies when the service is released.
    pub const HOLD: u16 = 0x7004;
    /// Replies after a while.
    pub const SLEEP: u16 = 0x7005;
}

/// A service with every kind of behaviour.
#[derive(Default)]
pub struct Oddity {
    pub held: RefCell<Vec<(Request, Responder)>>,
    pub seen: Cell<usize>,
    pub node: RefCell<Option<Node>>,
}

impl Service for Oddity {
    fn request(&self, request: Request, responder: Responder) {
        self.seen.set(self.seen.get() + 1);
        match request.op {
            op::ECHO => responder.ok(&request.body, request.data.map(Into::into)),
            op::REFUSE => responder.err(&Error::mismatch(ErrorCode::NoSpace, 1, 2, "nothing left")),
            op::DROP => drop(responder),
            op::HOLD => self.held.borrow_mut().push((request, responder)),
            _ => {
                let node = self.node.borrow().clone().unwrap();
                glommio::spawn_local(async move {
                    node.sleep(Duration::from_millis(20)).await;
                    responder.ok(b"slept", None);
                })
                .detach();
            }
        }
    }
}

/// A serving node, its service and its address.
pub fn serve() -> (Node, Rc<Oddity>, Address) {
    let node = Node::start(config()).unwrap();
    let service = Rc::new(Oddity::default());
    *service.node.borrow_mut() = Some(node.clone());
    node.serve(service.clone());
    let address = node.listen(&local()).unwrap();
    (node, service, address)
}

/// Waits, letting the nodes work, until `done`.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !done() {
        assert!(started.elapsed() < LONG, "waited in vain for: {what}");
        glommio::timer::sleep(Duration::from_millis(1)).await;
    }
}
