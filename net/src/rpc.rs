//! The async endpoint of control roles and of clients: calls, services, deadlines.
//!
//! A [`Node`] is one ring, one [`Carrier`] and one turn loop on the current executor. Its handles are for tasks of
//! that executor; [`Remote`] is for other threads.
//!
//! - **Calls**: [`Node::ask`] (typed), [`Node::call`]; connections are opened on demand, shared, and closed when idle.
//! - **Services**: [`Node::listen`], [`Node::serve`]; each request comes with a [`Responder`] that owes one reply.
//! - **The data path's pieces**: [`Node::connection`], [`Node::expect`], [`Node::post`], [`Node::on_turn_end`].

mod body;
mod latch;
mod links;
mod pump;
mod serving;
mod sleepers;
mod table;

pub use body::Body;
pub use serving::{Responder, Service};

use crate::address::Address;
use crate::bell::Bell;
use crate::buffer::{Buffer, POOL_DEFAULT, Payload, Pool};
use crate::costs::Costs;
use crate::executor;
use crate::handshake::{Identity, Peer};
use crate::mailbox::{Refused, Sender, mailbox};
use crate::ring::{Ring, RingConfig, RingCounters};
use crate::tcp::{ConnCounters, ConnId, TcpConfig};
use crate::transport::{Carrier, Choice, Way};
use corefs_wire::control::{Call, Message};
use corefs_wire::frame::Kind;
use corefs_wire::{Error, ErrorCode, Result};
use futures_lite::FutureExt;
use glommio::{Latency, Shares};
use latch::Latch;
use links::Links;
use pump::Mail;
pub(crate) use pump::Pump;
use serving::Served;
use sleepers::Sleepers;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use table::Table;

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
    /// By what its connections go.
    pub transport: Choice,
}

impl NodeConfig {
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            ring: RingConfig::default(),
            pool_bytes: POOL_DEFAULT,
            idle: Duration::from_secs(60),
            mailbox: 1024,
            transport: Choice::Tcp,
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
    pub body: Body,
    /// The data: in the buffer (and at the offset) that `expect` named, else from the start of one that may be a part of a
    /// block, the rest of which is other replies'.
    pub data: Option<Buffer>,
    /// Bytes of data that came; 0 if none did, even when a buffer comes back.
    pub data_len: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Running,
    Stopping,
    Stopped,
}

type TurnHook = Rc<dyn Fn(&Node)>;
type TickHook = Rc<dyn Fn(&Node, Instant)>;

struct Inner {
    carrier: RefCell<Carrier>,
    pool: Pool,
    /// Rung by whoever queues something for the pump.
    bell: Bell,
    /// Rung when the pool has a buffer again.
    pool_bell: Bell,
    /// Connections that wait for one.
    waiting: RefCell<Vec<ConnId>>,
    table: RefCell<Table>,
    links: RefCell<Links>,
    served: RefCell<Served>,
    service: RefCell<Option<Rc<dyn Service>>>,
    turn_end: RefCell<Option<TurnHook>>,
    ticked: RefCell<Option<TickHook>>,
    sleepers: RefCell<Sleepers>,
    mail: Sender<Mail>,
    state: Cell<State>,
    stopped: Latch<()>,
    /// When the present turn began.
    now: Cell<Instant>,
    ring_counters: Cell<RingCounters>,
    idle: Duration,
    transport: Choice,
}

/// The endpoint of one executor; clones are handles of the same. `!Send`.
#[derive(Clone)]
pub struct Node(Rc<Inner>);

impl Node {
    /// Starts the endpoint on the current executor, which is of one of the kinds in [`executor`]. It runs
    /// until [`shutdown`](Self::shutdown).
    pub fn start(config: NodeConfig) -> Result<Self> {
        let ring = Ring::new(&config.ring)?;
        let (mail, receiver) = mailbox(config.mailbox.max(1), ring.alarm());
        let (pool, bell) = (Pool::with_huge_pages(config.pool_bytes)?, Bell::new());
        let mut carrier = Carrier::new(config.transport, TcpConfig::new(config.identity), &pool)?;
        carrier.lend(pool.clone());
        let inner = Inner {
            carrier: RefCell::new(carrier),
            pool,
            pool_bell: Bell::echo(&bell),
            bell,
            waiting: RefCell::default(),
            table: RefCell::default(),
            links: RefCell::default(),
            served: RefCell::default(),
            service: RefCell::default(),
            turn_end: RefCell::default(),
            ticked: RefCell::default(),
            sleepers: RefCell::default(),
            mail,
            state: Cell::new(State::Running),
            stopped: Latch::new(),
            now: Cell::new(Instant::now()),
            ring_counters: Cell::default(),
            idle: config.idle,
            transport: config.transport,
        };
        inner.pool.set_bell(inner.pool_bell.clone());
        let node = Self(Rc::new(inner));
        let pump = Pump::new(node.clone(), ring, receiver);
        if let Some(alone) = executor::current() {
            alone.drive(pump);
            return Ok(node);
        }
        let queue = glommio::executor().create_task_queue(Shares::default(), Latency::NotImportant, "net");
        let task = glommio::spawn_local_into(pump.run(), queue).map_err(|error| {
            Error::new(ErrorCode::Internal, format!("starting the network task: {error}"))
        })?;
        task.detach();
        Ok(node)
    }

    /// As [`Tcp::listen`](crate::Tcp::listen).
    pub fn listen(&self, address: &Address) -> Result<Address> {
        let address = self.0.carrier.borrow_mut().listen(address)?;
        self.wake();
        Ok(address)
    }

    /// Sets who answers; without it every request is answered `UnknownOperation`.
    pub fn serve(&self, service: Rc<dyn Service>) {
        *self.0.service.borrow_mut() = Some(service);
    }

    /// A typed [`call`](Self::call).
    pub async fn ask<C: Call>(&self, address: &Address, call: &C, deadline: Duration) -> Result<C::Reply> {
        let reply = self.call(address, C::OP, &call.encode(), None, deadline).await?;
        C::Reply::decode(&reply.body).map_err(|error| error.of(C::NAME))
    }

    /// An [`ask`](Self::ask) that may take long on purpose: it has a timer of its own, and not the ticks that short deadlines need, which
    /// would wake an idle process all the time. `reach` is how long the connection may take.
    pub async fn ask_patiently<C: Call>(
        &self,
        address: &Address,
        call: &C,
        reach: Duration,
        deadline: Duration,
    ) -> Result<C::Reply> {
        let conn = self.within(reach, self.connection(address)).await?;
        let expected = self.expect(conn, None)?;
        self.post(conn, Kind::Request, C::OP, expected.request_id(), &call.encode(), None)?;
        let late = async {
            executor::sleep(deadline).await;
            Err(Error::new(
                ErrorCode::TimedOut,
                format!("{} at {address}: not done in {deadline:?}", C::NAME),
            ))
        };
        C::Reply::decode(&expected.or(late).await?.body).map_err(|error| error.of(C::NAME))
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
        let called = async {
            let conn = self.connection(address).await?;
            let expected = self.expect(conn, None)?;
            self.post(conn, Kind::Request, op, expected.request_id(), body, payload)?;
            expected.await
        };
        self.within(deadline, called).await.map_err(|error| match error.code {
            ErrorCode::TimedOut => error.of(address),
            _ => error,
        })
    }

    /// The open connection to `address`, made if there is none.
    pub async fn connection(&self, address: &Address) -> Result<ConnId> {
        if self.0.state.get() != State::Running {
            return Err(Error::new(ErrorCode::ShuttingDown, "this node is stopping"));
        }
        let known = self.0.links.borrow().get(address);
        let opening = match known {
            Some(opening) => opening,
            None => {
                let conn = self.0.carrier.borrow_mut().connect(address)?;
                self.wake();
                self.0.links.borrow_mut().insert(address.clone(), conn, self.0.now.get())
            }
        };
        opening.get().await
    }

    /// The other side of an open connection.
    pub fn peer(&self, conn: ConnId) -> Option<Rc<Peer>> {
        self.0.served.borrow_mut().peer(conn)
    }

    pub fn counters(&self, conn: ConnId) -> Option<ConnCounters> {
        self.0.carrier.borrow().counters(conn)
    }

    /// By what its connections were to go.
    pub fn transport(&self) -> Choice {
        self.0.transport
    }

    /// By what a connection goes.
    pub fn way(&self, conn: ConnId) -> Way {
        self.0.carrier.borrow().way(conn)
    }

    /// Data of a reply on `conn` that need no place of their own (bytes): they come with its message, or may stay where they arrive.
    #[inline]
    pub fn carries(&self, conn: ConnId) -> usize {
        self.0.carrier.borrow().carries(conn)
    }

    /// What all connections of this node have cost.
    pub fn costs(&self) -> Costs {
        self.0.carrier.borrow().costs()
    }

    /// What its ring has done, up to the end of the last turn.
    pub fn ring_counters(&self) -> RingCounters {
        self.0.ring_counters.get()
    }

    /// Closes a connection once what is queued has been sent; its requests end with `ConnectionLost`.
    pub fn close(&self, conn: ConnId) {
        self.0.carrier.borrow_mut().close(conn);
        self.wake();
    }

    /// Reserves a request number on `conn`; its reply's data go to `dest` (a unique buffer, an offset in it), or stay where they
    /// arrive if they are few, or go to a buffer of the pool. Follow with [`post`](Self::post). `ConnectionLost`, or `Overloaded` at
    /// limits::CONNECTION_REQUESTS_MAX. A buffer whose data were on their way when the connection ended is lost with it. By RDMA the buffer is the peer's to
    /// write to until the reply; when that isn't awaited any more it is taken back, and free when the peer can't write there any more.
    pub fn expect(&self, conn: ConnId, dest: Option<(Buffer, usize)>) -> Result<Expected> {
        if !self.0.carrier.borrow().is_open(conn) {
            return Err(Error::new(ErrorCode::ConnectionLost, "the connection is not open"));
        }
        assert!(dest.as_ref().is_none_or(|(buffer, _)| buffer.is_unique()), "a destination has one owner");
        let request = self.0.table.borrow_mut().insert(conn, None)?;
        if let Some((buffer, offset)) = dest {
            let granted = self.0.carrier.borrow_mut().grant(conn, request, buffer, offset);
            let mut table = self.0.table.borrow_mut();
            match granted {
                Ok(()) => table.set_granted(request),
                Err(buffer) => table.set_place(request, (buffer, offset)),
            }
        }
        Ok(Expected { node: self.clone(), request })
    }

    /// Queues a frame; everything queued in a turn leaves in one write for each connection. Errors as [`Tcp::send`](crate::Tcp::send).
    pub fn post(
        &self,
        conn: ConnId,
        kind: Kind,
        op: u16,
        request: u64,
        body: &[u8],
        payload: Option<Payload>,
    ) -> Result<()> {
        self.0.carrier.borrow_mut().send(conn, kind, op, request, 0, body, payload)?;
        self.wake();
        Ok(())
    }

    /// `hook` is called once a turn before what is queued leaves; it replaces the one before.
    pub fn on_turn_end(&self, hook: Rc<dyn Fn(&Node)>) {
        *self.0.turn_end.borrow_mut() = Some(hook);
    }

    /// `hook` is called about every 10 ms while replies are awaited, else about once a second; it replaces the one before.
    pub fn on_tick(&self, hook: TickHook) {
        *self.0.ticked.borrow_mut() = Some(hook);
        self.wake();
    }

    /// Makes sure that a turn runs soon: for whoever gathers work for `on_turn_end`.
    pub fn wake(&self) {
        self.0.bell.ring();
    }

    /// When the present turn began: a clock that costs nothing.
    pub fn now(&self) -> Instant {
        self.0.now.get()
    }

    /// Resolves after about `duration` (a coarse tick of 10 ms), or when the node has shut down.
    pub async fn sleep(&self, duration: Duration) {
        let key = self.0.sleepers.borrow_mut().insert(Instant::now() + duration);
        let sleeper = Sleeper { node: self, key };
        self.wake();
        poll_fn(|context| {
            let stopped = sleeper.node.0.state.get() == State::Stopped;
            let due = sleeper.node.0.sleepers.borrow_mut().poll(key, Instant::now(), context.waker());
            if due || stopped { Poll::Ready(()) } else { Poll::Pending }
        })
        .await
    }

    /// `future`, or `TimedOut` after about `duration`.
    pub async fn within<T>(&self, duration: Duration, future: impl Future<Output = Result<T>>) -> Result<T> {
        let late = async {
            self.sleep(duration).await;
            Err(Error::new(ErrorCode::TimedOut, format!("not done in {duration:?}")))
        };
        future.or(late).await
    }

    pub fn pool(&self) -> Pool {
        self.0.pool.clone()
    }

    /// A handle for other threads.
    pub fn remote(&self) -> Remote {
        Remote(self.0.mail.clone())
    }

    /// Stops accepting, answers what is in progress (for 5 s at most), sends, closes everything and ends the task. Requests
    /// that arrive meanwhile are answered `ShuttingDown`; calls of our own end with `ConnectionLost` or `ShuttingDown`.
    pub async fn shutdown(&self) {
        if self.0.state.get() == State::Running {
            self.0.state.set(State::Stopping);
            self.wake();
        }
        self.stopped().await;
    }

    /// Until it has shut down, or has ended because its ring failed.
    pub async fn stopped(&self) {
        self.0.stopped.get().await;
    }
}

/// Takes its entry out of the list however the wait ends.
struct Sleeper<'a> {
    node: &'a Node,
    key: usize,
}

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        self.node.0.sleepers.borrow_mut().remove(self.key);
    }
}

/// The reply to one request. Dropping it discards a late reply.
#[must_use = "dropped, it discards the reply"]
pub struct Expected {
    node: Node,
    request: u64,
}

impl Expected {
    /// The number to post the request under.
    pub fn request_id(&self) -> u64 {
        self.request
    }

    /// Resolves with `TimedOut` if there is no reply after about `duration` (a coarse tick of 10 ms).
    pub fn within(self, duration: Duration) -> Self {
        self.node.0.table.borrow_mut().set_deadline(self.request, self.node.now() + duration);
        self
    }

    /// Has whoever awaits it looked at again at `at`, within half a millisecond, if there is no reply by then.
    pub fn nudge(&self, at: Instant) {
        self.node.0.table.borrow_mut().set_nudge(self.request, at);
    }
}

impl Future for Expected {
    /// The reply, or the error that the peer sent, or `ConnectionLost`, `TimedOut`.
    type Output = Result<Reply>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.node.0.table.borrow_mut().poll(self.request, context.waker())
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        let mut table = self.node.0.table.borrow_mut();
        table.forget(self.request);
        if table.has_abandoned() {
            self.node.0.bell.ring();
        }
    }
}

/// Hands work over to a [`Node`] from another thread.
#[derive(Clone)]
pub struct Remote(Sender<Mail>);

impl Remote {
    /// Runs `work` on the node's executor. `Overloaded` when too much waits, `ShuttingDown` when the node is gone. Work that
    /// still waits when the node stops is dropped.
    pub fn run(&self, work: Mail) -> Result<()> {
        self.0.try_send(work).map_err(|refused| match refused {
            Refused::Full(_) => Error::new(ErrorCode::Overloaded, "too much waits for this executor"),
            Refused::Closed(_) => Error::new(ErrorCode::ShuttingDown, "this executor has stopped"),
        })
    }
}
