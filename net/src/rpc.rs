//! The async endpoint of control roles and of clients: calls, services, deadlines.

use crate::address::Address;
use crate::buffer::{Buffer, POOL_DEFAULT, Payload, Pool};
use crate::handshake::{Identity, Peer};
use crate::ring::RingConfig;
use crate::tcp::ConnId;
use corefs_wire::frame::Kind;
use corefs_wire::{Error, Result};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// How a node's endpoint is set up.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub identity: Identity,
    pub ring: RingConfig,
    /// Arena for data of requests and replies (bytes).
    pub pool_bytes: usize,
    /// Connections that nobody used for so long are closed.
    pub idle: Duration,
    /// Closures from other threads that may wait.
    pub mailbox: usize,
}

impl NodeConfig {
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            ring: RingConfig::default(),
            pool_bytes: POOL_DEFAULT,
            idle: Duration::from_secs(60),
            mailbox: 1024,
        }
    }
}

/// A request from a peer.
#[derive(Debug)]
pub struct Request {
    pub peer: Rc<Peer>,
    pub conn: ConnId,
    pub op: u16,
    pub body: Vec<u8>,
    pub data: Option<Buffer>,
}

/// A successful answer.
#[derive(Debug)]
pub struct Reply {
    pub body: Vec<u8>,
    pub data: Option<Buffer>,
}

/// Who answers requests. Implementations that wait for anything spawn a local task.
pub trait Service {
    fn request(&self, request: Request, responder: Responder);
}

/// Owes one reply; dropped without, it replies `Internal`.
pub struct Responder {}

#[allow(unused_variables)]
impl Responder {
    pub fn ok(self, body: &[u8], payload: Option<Payload>) {
        todo!()
    }

    pub fn err(self, error: &Error) {
        todo!()
    }
}

/// The endpoint of one executor; clones are handles of the same. `!Send`.
#[derive(Clone)]
pub struct Node {}

#[allow(unused_variables)]
impl Node {
    /// Starts the endpoint's one task on the current glommio executor. It runs until [`shutdown`](Self::shutdown).
    pub fn start(config: NodeConfig) -> Result<Self> {
        todo!()
    }

    pub fn listen(&self, address: &Address) -> Result<Address> {
        todo!()
    }

    /// Sets who answers; without it every request is answered `UnknownOperation`.
    pub fn serve(&self, service: Rc<dyn Service>) {
        todo!()
    }

    /// One call on a connection opened on demand and kept. `Unreachable`, `ConnectionLost`, `TimedOut`, or the error that
    /// the peer replied.
    pub async fn call(
        &self,
        address: &Address,
        op: u16,
        body: &[u8],
        payload: Option<Payload>,
        deadline: Duration,
    ) -> Result<Reply> {
        todo!()
    }

    /// The open connection to `address`, made if there is none.
    pub async fn connection(&self, address: &Address) -> Result<ConnId> {
        todo!()
    }

    /// The other side of an open connection.
    pub fn peer(&self, conn: ConnId) -> Option<Rc<Peer>> {
        todo!()
    }

    /// Reserves a request number on `conn`; its reply's data go to `dest` (buffer, offset), or to a buffer of the pool.
    /// Follow with [`post`](Self::post). `ConnectionLost`, or `Overloaded` at limits::CONNECTION_REQUESTS_MAX.
    pub fn expect(&self, conn: ConnId, dest: Option<(Buffer, usize)>) -> Result<Expected> {
        todo!()
    }

    /// Queues a frame; everything queued in a turn leaves in one write for each connection.
    pub fn post(
        &self,
        conn: ConnId,
        kind: Kind,
        op: u16,
        request: u64,
        body: &[u8],
        payload: Option<Payload>,
    ) -> Result<()> {
        todo!()
    }

    /// Called once a turn before what is queued leaves. Keeps the turn loop awake only by what it posts.
    pub fn on_turn_end(&self, hook: Rc<dyn Fn(&Node)>) {
        todo!()
    }

    /// Called about every 10 ms while replies are awaited, else at least once a second.
    pub fn on_tick(&self, hook: Rc<dyn Fn(&Node, Instant)>) {
        todo!()
    }

    /// Makes sure that a turn runs soon: for whoever gathers work for `on_turn_end`.
    pub fn wake(&self) {
        todo!()
    }

    /// Resolves after about `duration` (a coarse tick of 10 ms).
    pub async fn sleep(&self, duration: Duration) {
        todo!()
    }

    /// `future`, or `TimedOut` after about `duration`.
    pub async fn within<T>(&self, duration: Duration, future: impl Future<Output = Result<T>>) -> Result<T> {
        todo!()
    }

    pub fn pool(&self) -> Pool {
        todo!()
    }

    /// A handle for other threads.
    pub fn remote(&self) -> Remote {
        todo!()
    }

    /// Stops accepting, answers what is in progress (for some seconds), sends, closes everything and ends the task.
    pub async fn shutdown(&self) {
        todo!()
    }
}

/// The reply to one request. Dropping it discards a late reply.
pub struct Expected {}

#[allow(unused_variables)]
impl Expected {
    pub fn request_id(&self) -> u64 {
        todo!()
    }

    /// Resolves with `TimedOut` if there is no reply after about `duration`.
    #[must_use]
    pub fn within(self, duration: Duration) -> Self {
        todo!()
    }
}

impl Future for Expected {
    /// The reply, or the error that the peer sent, or `ConnectionLost`, `TimedOut`.
    type Output = Result<Reply>;

    fn poll(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Self::Output> {
        todo!()
    }
}

/// Hands work over to a [`Node`] from another thread.
#[derive(Clone)]
pub struct Remote {}

#[allow(unused_variables)]
impl Remote {
    /// Runs `work` on the node's executor. `Overloaded` when too much waits, `ShuttingDown` when the node is gone.
    pub fn run(&self, work: Box<dyn FnOnce(Node) + Send>) -> Result<()> {
        todo!()
    }
}
