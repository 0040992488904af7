//! One executor's ring, sockets and a sink that writes everything down, driven by hand.

use corefs_net::handshake::Secret;
use corefs_net::{
    Address, Buffer, Completion, ConnId, Flow, FrameSink, Identity, Peer, Placement, Pool, Ring, RingConfig,
    Role, Tcp, TcpConfig,
};
use corefs_wire::frame::{Header, Kind};
use corefs_wire::{Error, Uuid};
use std::collections::VecDeque;
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
const OFFSET: usize = 17;

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

pub struct World {
    pub ring: Ring,
    pub tcp: Tcp,
    pub sink: Sink,
    completions: Vec<Completion>,
    /// Added to the clock, to make time pass.
    pub later: Duration,
}

impl World {
    pub fn new(config: TcpConfig) -> Self {
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
        Self { ring, tcp: Tcp::new(config), sink, completions: Vec::new(), later: Duration::ZERO }
    }

    pub fn plain() -> Self {
        Self::new(TcpConfig::new(identity(None)))
    }

    pub fn turn(&mut self) {
        self.tcp.flush(&mut self.ring);
        self.ring.turn(&mut self.completions).unwrap();
        for completion in self.completions.drain(..) {
            self.tcp.complete(completion, &mut self.sink);
        }
        self.tcp.advance(Instant::now() + self.later, &mut self.sink);
    }

    pub fn send(&mut self, conn: ConnId, request: u64, body: &[u8], data: &[u8]) {
        self.tcp.send(conn, Kind::Request, 9, request, 0, body, Some(data.to_vec().into())).unwrap();
    }

    /// Turns this world until `done`.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let started = Instant::now();
        while !done(self) {
            self.turn();
            std::thread::yield_now();
            assert!(started.elapsed() < PATIENCE, "waited in vain for: {what}");
        }
    }
}

/// Turns both until `done`.
pub fn until(a: &mut World, b: &mut World, what: &str, mut done: impl FnMut(&mut World, &mut World) -> bool) {
    a.until(what, |a| {
        b.turn();
        done(a, b)
    });
}

pub fn local() -> Address {
    "127.0.0.1:0".parse().unwrap()
}

/// A server, a client, and the client's open connection to it.
pub fn pair() -> (World, World, ConnId) {
    let (mut server, mut client) = (World::plain(), World::plain());
    let address = server.tcp.listen(&local()).unwrap();
    let conn = open(&mut client, &mut server, &address);
    (server, client, conn)
}

/// Opens one more connection.
pub fn open(client: &mut World, server: &mut World, address: &Address) -> ConnId {
    let conn = client.tcp.connect(address).unwrap();
    let before = server.sink.opened.len();
    until(client, server, "the connection to open", |client, server| {
        client.tcp.is_open(conn) && server.sink.opened.len() > before
    });
    conn
}
