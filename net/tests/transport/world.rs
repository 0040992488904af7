//! One executor's ring, sockets and a sink that writes everything down, driven by hand; in this process, or in [another one](crate::far).

use crate::far::{FAR_ADDRESS, Far};
pub use corefs_net::Flow;
use corefs_net::handshake::Secret;
use corefs_net::{
    Address, Buffer, Completion, ConnId, FrameSink, Identity, Peer, Placement, Pool, Ring, RingConfig, Role,
    Tcp, TcpConfig, Transport,
};
#[cfg(feature = "rdma")]
use corefs_net::{Source, Token};
use corefs_wire::frame::{Header, Kind};
use corefs_wire::{Error, Uuid};
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

pub const CLUSTER: Uuid = Uuid([3; 16]);

/// Longest any of these tests may wait for anything: far beyond what it takes, so that a hang fails and load doesn't.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn identity(secret: Option<u8>) -> Identity {
    let secret = secret.map(|byte| Secret::new([byte; 32]));
    Identity { role: Role::Storage, id: 1, incarnation: 1, cluster: CLUSTER, secret }
}

pub struct Frame {
    pub conn: ConnId,
    pub header: Header,
    pub body: Vec<u8>,
    pub data: Option<Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    Place,
    Wait,
    Discard,
}

pub struct Sink {
    pub pool: Pool,
    pub policy: Policy,
    pub flow: Flow,
    pub asked: usize,
    pub frames: VecDeque<Frame>,
    pub opened: Vec<(ConnId, Peer)>,
    pub closed: Vec<(ConnId, Error)>,
}

/// Where in its buffer data are placed.
pub const OFFSET: usize = 17;

impl FrameSink for Sink {
    fn place(&mut self, _conn: ConnId, header: &Header, _body: &[u8], _here: Option<Buffer>) -> Placement {
        self.asked += 1;
        match self.policy {
            Policy::Wait => Placement::Wait,
            Policy::Discard => Placement::Discard,
            Policy::Place => match self.pool.get(header.data_len() + OFFSET) {
                Some(buffer) => Placement::Into { buffer, offset: OFFSET },
                None => Placement::Wait,
            },
        }
    }

    fn frame(&mut self, conn: ConnId, header: &Header, body: &[u8], data: Option<Buffer>) -> Flow {
        let data = data.map(|buffer| buffer[OFFSET..OFFSET + header.data_len()].to_vec());
        self.frames.push_back(Frame { conn, header: *header, body: body.to_vec(), data });
        self.flow
    }

    fn opened(&mut self, conn: ConnId, peer: &Peer) {
        self.opened.push((conn, peer.clone()));
    }

    fn closed(&mut self, conn: ConnId, error: Error) {
        assert!(self.closed.iter().all(|(closed, _)| *closed != conn), "{conn:?} closed twice");
        self.closed.push((conn, error));
    }
}

/// What a test asks for of an end.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// All bytes of the secret.
    pub secret: Option<u8>,
    pub cluster: Uuid,
    pub patience: Option<Duration>,
    pub connections_max: Option<usize>,
}

impl Default for Setting {
    fn default() -> Self {
        // Whoever listens where other machines might reach it has a secret.
        let secret = std::env::var_os(FAR_ADDRESS).map(|_| 7);
        Self { secret, cluster: CLUSTER, patience: None, connections_max: None }
    }
}

impl Setting {
    pub fn config(&self) -> TcpConfig {
        let usual = TcpConfig::new(Identity { cluster: self.cluster, ..identity(self.secret) });
        let patience = self.patience.unwrap_or(usual.patience);
        let connections_max = self.connections_max.unwrap_or(usual.connections_max);
        TcpConfig { patience, connections_max, ..usual }
    }
}

/// A transport, and how the suite makes it.
pub trait Tested: Transport + Sized {
    /// Tells another process which one it is to be.
    const NAME: &'static str;

    /// One that places data in `pool`.
    fn make(setting: &Setting, pool: &Pool) -> Self;
    /// Where its listeners listen.
    fn local() -> Address;
    /// Whether a connection goes the way that is tested.
    fn is_its_own(&self, conn: ConnId) -> bool;

    /// Variables for a process that makes the next one of this kind.
    fn elsewhere() -> Vec<(String, String)> {
        Vec::new()
    }

    fn turn(world: &mut World<Self>) {
        world.turn_here();
    }

    /// Bytes of its buffers that somebody has.
    fn in_use(world: &World<Self>) -> usize {
        world.sink.pool.in_use()
    }
}

/// Where the two ends of a test are.
pub trait Scene {
    type Server: Tested;
    type Client: Tested;
}

/// Both on this thread.
pub struct Here<T>(PhantomData<T>);

impl<T: Tested> Scene for Here<T> {
    type Server = T;
    type Client = T;
}

/// The server in a process of its own.
pub struct Apart<T>(PhantomData<T>);

impl<T: Tested> Scene for Apart<T> {
    type Server = Far<T>;
    type Client = T;
}

impl Tested for Tcp {
    const NAME: &'static str = "tcp";

    fn make(setting: &Setting, _pool: &Pool) -> Self {
        Self::new(setting.config())
    }

    fn local() -> Address {
        "127.0.0.1:0".parse().unwrap()
    }

    fn is_its_own(&self, _conn: ConnId) -> bool {
        true
    }
}

pub struct World<T> {
    pub ring: Ring,
    pub net: T,
    pub sink: Sink,
    completions: Vec<Completion>,
    /// [`rest`](Self::rest) has a timeout in flight.
    #[cfg(feature = "rdma")]
    watched: bool,
    /// Added to the clock, to make time pass.
    pub later: Duration,
    /// Connections of this end may end at any time: its peers are badly behaved.
    pub may_end: bool,
}

impl<T: Tested> World<T> {
    pub fn with(setting: Setting) -> Self {
        Self::of(|pool| T::make(&setting, pool))
    }

    /// With this transport, which places data in the pool.
    pub fn of(make: impl FnOnce(&Pool) -> T) -> Self {
        let ring = Ring::new(&RingConfig { entries: 64, completions: 256, ..Default::default() }).unwrap();
        let sink = Sink {
            pool: Pool::new(4 << 20).unwrap(),
            policy: Policy::Place,
            flow: Flow::Continue,
            asked: 0,
            frames: VecDeque::new(),
            opened: Vec::new(),
            closed: Vec::new(),
        };
        let net = make(&sink.pool);
        Self {
            ring,
            net,
            sink,
            completions: Vec::new(),
            #[cfg(feature = "rdma")]
            watched: false,
            later: Duration::ZERO,
            may_end: false,
        }
    }

    pub fn plain() -> Self {
        Self::with(Setting::default())
    }

    pub fn turn(&mut self) {
        T::turn(self);
    }

    pub fn in_use(&self) -> usize {
        T::in_use(self)
    }

    /// What is done in this process in a turn.
    fn turn_here(&mut self) {
        self.net.flush(&mut self.ring);
        self.ring.turn(&mut self.completions).unwrap();
        for completion in self.completions.drain(..) {
            assert!(T::owns(completion.token.source()));
            self.net.complete(completion, &mut self.sink);
        }
        self.net.advance(Instant::now() + self.later, &mut self.sink);
    }

    /// As [`turn`](Self::turn), but waits until there is something to do. Who waits for a third of the tests' patience has missed a wake-up.
    #[cfg(feature = "rdma")]
    pub fn rest(&mut self) {
        const WATCHDOG: Token = Token::new(Source::TIMER, 0);
        self.net.flush(&mut self.ring);
        if self.net.has_work() {
            return self.turn_here();
        }
        if !std::mem::replace(&mut self.watched, true) {
            self.ring.timeout(PATIENCE, WATCHDOG);
        }
        let began = Instant::now();
        self.ring.rest(&mut self.net, &mut self.completions).unwrap();
        for completion in self.completions.drain(..) {
            if completion.token == WATCHDOG {
                self.watched = false;
                assert!(began.elapsed() < PATIENCE / 3, "a wake-up was lost");
                continue;
            }
            self.net.complete(completion, &mut self.sink);
        }
        self.net.advance(Instant::now() + self.later, &mut self.sink);
    }

    pub fn send(&mut self, conn: ConnId, request: u64, body: &[u8], data: &[u8]) {
        self.net.send(conn, Kind::Request, 9, request, 0, body, Some(data.to_vec().into())).unwrap();
    }

    /// Turns this world until `done`. A connection that ends meanwhile will not bring what is awaited: the test fails at once, and says why it ended.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let before = self.sink.closed.len();
        self.until_ends(what, |world| done(world) || world.check_ends(what, before));
    }

    /// The same for what connections may end before, or what is an end itself.
    pub fn until_ends(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let started = Instant::now();
        while !done(self) {
            self.turn();
            std::thread::yield_now();
            let closed = &self.sink.closed;
            assert!(started.elapsed() < PATIENCE, "waited in vain for: {what}; ended have: {closed:?}");
        }
    }

    /// No connection has ended since so many had, unless it may. Nothing that is waited for has happened by that.
    fn check_ends(&self, what: &str, before: usize) -> bool {
        let ended = &self.sink.closed[before..];
        assert!(ended.is_empty() || self.may_end, "a connection ended instead of: {what}: {ended:?}");
        false
    }
}

/// Turns both until `done`, as [`World::until`].
pub fn until<A: Tested, B: Tested>(
    a: &mut World<A>,
    b: &mut World<B>,
    what: &str,
    mut done: impl FnMut(&mut World<A>, &mut World<B>) -> bool,
) {
    let before = b.sink.closed.len();
    a.until(what, |a| {
        b.turn();
        done(a, b) || b.check_ends(what, before)
    });
}

/// The same as [`World::until_ends`].
pub fn until_ends<A: Tested, B: Tested>(
    a: &mut World<A>,
    b: &mut World<B>,
    what: &str,
    mut done: impl FnMut(&mut World<A>, &mut World<B>) -> bool,
) {
    a.until_ends(what, |a| {
        b.turn();
        done(a, b)
    });
}

/// A server, a client, and the client's open connection to it.
pub fn pair<S: Scene>() -> (World<S::Server>, World<S::Client>, ConnId) {
    let (mut server, mut client) = (World::<S::Server>::plain(), World::<S::Client>::plain());
    let address = server.net.listen(&S::Server::local()).unwrap();
    let conn = open(&mut client, &mut server, &address);
    assert!(client.net.is_its_own(conn), "the connection goes another way");
    (server, client, conn)
}

/// Opens one more connection.
pub fn open<C: Tested, S: Tested>(client: &mut World<C>, server: &mut World<S>, address: &Address) -> ConnId {
    let conn = client.net.connect(address).unwrap();
    let before = server.sink.opened.len();
    until(client, server, "the connection to open", |client, server| {
        client.net.is_open(conn) && server.sink.opened.len() > before
    });
    conn
}

/// Opens a connection to another process.
#[cfg(feature = "rdma")]
pub fn open_alone<T: Tested>(client: &mut World<T>, address: &Address) -> ConnId {
    let conn = client.net.connect(address).unwrap();
    client.until("the connection to open", |client| client.net.is_open(conn));
    conn
}
