//! The calls that every transport has, so that whoever uses one needn't name it. Chosen at compile time: a call costs what it costs.

use crate::address::Address;
use crate::buffer::{Buffer, Payload, Pool};
use crate::contract::FrameSink;
use crate::costs::Costs;
use crate::handshake::Peer;
use crate::ring::{Beside, Completion, Ring, Source};
use crate::tcp::{ConnCounters, ConnId, Tcp, TcpConfig};
use corefs_wire::frame::Kind;
use corefs_wire::{Error, ErrorCode, Result};
use std::time::{Duration, Instant};

/// A driver of one executor's connections; what its calls mean is said at [`Tcp`]'s. What it has beside the ring is to be looked at before the executor sleeps.
pub trait Transport: Beside {
    /// Whether completions of this source are to be given to [`complete`](Self::complete).
    fn owns(source: Source) -> bool;
    fn connect(&mut self, address: &Address) -> Result<ConnId>;
    fn listen(&mut self, address: &Address) -> Result<Address>;
    fn stop_listening(&mut self, ring: &mut Ring);
    #[allow(clippy::too_many_arguments)]
    fn send(
        &mut self,
        conn: ConnId,
        kind: Kind,
        op: u16,
        request: u64,
        status: u32,
        body: &[u8],
        data: Option<Payload>,
    ) -> Result<()>;
    /// Opens `buffer[offset..]` to the data of the reply to `request`, which is sent next. Given back by transports, and for connections, that place
    /// data where [`FrameSink::place`] says.
    fn grant(
        &mut self,
        conn: ConnId,
        request: u64,
        buffer: Buffer,
        offset: usize,
    ) -> std::result::Result<(), Buffer>;
    /// Takes back what was granted.
    fn revoke(&mut self, conn: ConnId, request: u64);
    fn complete(&mut self, completion: Completion, sink: &mut impl FrameSink);
    fn advance(&mut self, now: Instant, sink: &mut impl FrameSink);
    fn flush(&mut self, ring: &mut Ring);
    fn close(&mut self, conn: ConnId);
    fn pause(&mut self, conn: ConnId);
    fn resume(&mut self, conn: ConnId);
    fn is_open(&self, conn: ConnId) -> bool;
    fn peer(&self, conn: ConnId) -> Option<&Peer>;
    fn queued(&self, conn: ConnId) -> usize;
    fn counters(&self, conn: ConnId) -> Option<ConnCounters>;
    fn live(&self) -> usize;
    fn has_work(&self) -> bool;
    fn next_tick(&self) -> Option<Instant>;
}

/// By what connections are to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Choice {
    /// RDMA where both ends have a path that works, TCP otherwise.
    #[default]
    Auto,
    Tcp,
    /// RDMA between storage nodes, and from clients to them: where there is none, or a path doesn't work, that is an error. All others are reached by TCP.
    Rdma,
}

impl std::str::FromStr for Choice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "tcp" => Ok(Self::Tcp),
            "rdma" => Ok(Self::Rdma),
            _ => Err(Error::new(
                ErrorCode::BadConfig,
                format!("transport `{text}`: expected auto, tcp or rdma"),
            )),
        }
    }
}

impl Choice {
    /// An error if that can't be had on this machine, as far as looking tells: before anybody else hears of this process.
    pub fn check(self) -> Result<()> {
        match self {
            Self::Auto | Self::Tcp => Ok(()),
            #[cfg(feature = "rdma")]
            Self::Rdma => crate::rdma::find(),
            #[cfg(not(feature = "rdma"))]
            Self::Rdma => {
                let what = "this corefs is built without RDMA; build it with `cargo build --release --features rdma`";
                Err(Error::new(ErrorCode::BadConfig, what))
            }
        }
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Tcp => "tcp",
            Self::Rdma => "rdma",
        })
    }
}

/// By what a connection goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Way {
    /// And why not by RDMA.
    Tcp(String),
    /// By this port and address.
    Rdma(String),
}

/// The transport that was chosen when the process started. In a build without RDMA there is one, and nothing to decide; else a call costs one branch that
/// is always the same.
#[cfg_attr(
    feature = "rdma",
    expect(clippy::large_enum_variant, reason = "one for a core: TCP is reached without a detour")
)]
pub enum Carrier {
    Tcp(Tcp),
    #[cfg(feature = "rdma")]
    Rdma(Box<crate::rdma::Rdma>),
}

/// The same call of whichever it is.
macro_rules! either {
    ($self:expr, $carrier:ident => $call:expr) => {
        match $self {
            Carrier::Tcp($carrier) => $call,
            #[cfg(feature = "rdma")]
            Carrier::Rdma($carrier) => $call,
        }
    };
}

impl Carrier {
    /// What goes as `choice` says, places data in `pool`, and sends them from there. `BadConfig` or what is missing, if that is RDMA and can't be.
    pub fn new(choice: Choice, config: TcpConfig, pool: &Pool) -> Result<Self> {
        match choice {
            Choice::Tcp => Ok(Self::Tcp(Tcp::new(config))),
            Choice::Auto | Choice::Rdma => Self::with_rdma(choice, config, pool),
        }
    }

    #[cfg(feature = "rdma")]
    fn with_rdma(choice: Choice, config: TcpConfig, pool: &Pool) -> Result<Self> {
        use crate::place::Sysfs;
        use crate::rdma::{Choice as Way, Rdma, RdmaConfig};
        let mut wanted = RdmaConfig::new(config);
        wanted.numa = Sysfs::default().numa_of_thread();
        if choice == Choice::Rdma {
            wanted.choice = Way::Firm;
        }
        // Also where there is no device: one may come.
        let rdma = Rdma::new(wanted, pool)?;
        if let Some(road) = rdma.roads().next() {
            tracing::info!(device = road.context.name(), port = road.port.number, address = %road.gid, "RDMA can be used");
        }
        Ok(Self::Rdma(Box::new(rdma)))
    }

    #[cfg(not(feature = "rdma"))]
    fn with_rdma(choice: Choice, config: TcpConfig, _pool: &Pool) -> Result<Self> {
        choice.check()?;
        Ok(Self::Tcp(Tcp::new(config)))
    }

    /// Where RDMA is demanded, peers that have none are refused from now on, rather than reached by TCP.
    pub fn insist(&mut self) {
        match self {
            Self::Tcp(_) => (),
            #[cfg(feature = "rdma")]
            Self::Rdma(rdma) => rdma.insist(),
        }
    }

    /// By what a connection goes.
    #[cfg_attr(
        not(feature = "rdma"),
        expect(unused_variables, reason = "without RDMA all connections go the same way")
    )]
    pub fn way(&self, conn: ConnId) -> Way {
        match self {
            Self::Tcp(_) if cfg!(feature = "rdma") => Way::Tcp("it was chosen here".into()),
            Self::Tcp(_) => Way::Tcp("this corefs is built without RDMA".into()),
            #[cfg(feature = "rdma")]
            Self::Rdma(rdma) => rdma.way(conn),
        }
    }

    /// Data of a reply on this connection that need no place of their own (bytes): they come with its message, or may stay where they arrive.
    #[inline]
    pub fn carries(&self, conn: ConnId) -> usize {
        match self {
            Self::Tcp(tcp) => tcp.carries(conn),
            #[cfg(feature = "rdma")]
            Self::Rdma(rdma) => rdma.carries(conn),
        }
    }

    /// Whether completions of this source are to be given to [`complete`](Self::complete).
    #[inline]
    pub fn owns(source: Source) -> bool {
        source == Source::TCP || source == Source::RDMA
    }

    /// As [`Tcp::lend`].
    pub fn lend(&mut self, pool: Pool) {
        either!(self, carrier => carrier.lend(pool));
    }

    pub fn connect(&mut self, address: &Address) -> Result<ConnId> {
        either!(self, carrier => carrier.connect(address))
    }

    pub fn listen(&mut self, address: &Address) -> Result<Address> {
        either!(self, carrier => carrier.listen(address))
    }

    pub fn stop_listening(&mut self, ring: &mut Ring) {
        either!(self, carrier => carrier.stop_listening(ring));
    }

    #[inline]
    #[allow(clippy::too_many_arguments)]
    pub fn send(
        &mut self,
        conn: ConnId,
        kind: Kind,
        op: u16,
        request: u64,
        status: u32,
        body: &[u8],
        data: Option<Payload>,
    ) -> Result<()> {
        either!(self, carrier => carrier.send(conn, kind, op, request, status, body, data))
    }

    /// As [`Transport::grant`].
    #[inline]
    pub fn grant(
        &mut self,
        conn: ConnId,
        request: u64,
        buffer: Buffer,
        offset: usize,
    ) -> std::result::Result<(), Buffer> {
        either!(self, carrier => carrier.grant(conn, request, buffer, offset))
    }

    /// As [`Transport::revoke`].
    pub fn revoke(&mut self, conn: ConnId, request: u64) {
        match self {
            Self::Tcp(tcp) => Transport::revoke(tcp, conn, request),
            #[cfg(feature = "rdma")]
            Self::Rdma(rdma) => rdma.revoke(conn, request),
        }
    }

    #[inline]
    pub fn complete(&mut self, completion: Completion, sink: &mut impl FrameSink) {
        either!(self, carrier => carrier.complete(completion, sink));
    }

    #[inline]
    pub fn advance(&mut self, now: Instant, sink: &mut impl FrameSink) {
        either!(self, carrier => carrier.advance(now, sink));
    }

    #[inline]
    pub fn flush(&mut self, ring: &mut Ring) {
        either!(self, carrier => carrier.flush(ring));
    }

    pub fn close(&mut self, conn: ConnId) {
        either!(self, carrier => carrier.close(conn));
    }

    pub fn abort(&mut self, conn: ConnId, why: &str) {
        either!(self, carrier => carrier.abort(conn, why));
    }

    pub fn unacknowledged(&self, conn: ConnId) -> Option<Duration> {
        either!(self, carrier => carrier.unacknowledged(conn))
    }

    pub fn resume(&mut self, conn: ConnId) {
        either!(self, carrier => carrier.resume(conn));
    }

    pub fn is_open(&self, conn: ConnId) -> bool {
        either!(self, carrier => carrier.is_open(conn))
    }

    pub fn queued(&self, conn: ConnId) -> usize {
        either!(self, carrier => carrier.queued(conn))
    }

    /// Whether all that was queued gets there even if this process ends now.
    pub fn is_sent(&self, conn: ConnId) -> bool {
        match self {
            Self::Tcp(tcp) => tcp.queued(conn) == 0,
            #[cfg(feature = "rdma")]
            Self::Rdma(rdma) => rdma.is_sent(conn),
        }
    }

    pub fn counters(&self, conn: ConnId) -> Option<ConnCounters> {
        either!(self, carrier => carrier.counters(conn))
    }

    /// The ids of all connections, in whatever state.
    pub fn connections(&self) -> Vec<ConnId> {
        either!(self, carrier => carrier.connections().collect())
    }

    pub fn live(&self) -> usize {
        either!(self, carrier => carrier.live())
    }

    #[inline]
    pub fn has_work(&self) -> bool {
        either!(self, carrier => carrier.has_work())
    }

    pub fn next_tick(&self) -> Option<Instant> {
        either!(self, carrier => carrier.next_tick())
    }

    /// What all connections have cost.
    pub fn costs(&self) -> Costs {
        either!(self, carrier => carrier.costs())
    }

    /// Connections that go by a queue pair now.
    pub fn by_queue_pair(&self) -> usize {
        match self {
            Self::Tcp(_) => 0,
            #[cfg(feature = "rdma")]
            Self::Rdma(rdma) => rdma.by_queue_pair(),
        }
    }
}

impl Beside for Carrier {
    #[inline]
    fn look(&mut self) -> bool {
        either!(self, carrier => carrier.look())
    }

    #[inline]
    fn lie_down(&mut self, ring: &mut Ring) -> bool {
        either!(self, carrier => carrier.lie_down(ring))
    }
}

/// Sockets are entries of the ring.
impl Beside for Tcp {
    fn look(&mut self) -> bool {
        false
    }

    fn lie_down(&mut self, _: &mut Ring) -> bool {
        true
    }
}

macro_rules! forwarded {
    ($transport:ty) => {
        fn connect(&mut self, address: &Address) -> Result<ConnId> {
            <$transport>::connect(self, address)
        }

        fn listen(&mut self, address: &Address) -> Result<Address> {
            <$transport>::listen(self, address)
        }

        fn stop_listening(&mut self, ring: &mut Ring) {
            <$transport>::stop_listening(self, ring);
        }

        fn send(
            &mut self,
            conn: ConnId,
            kind: Kind,
            op: u16,
            request: u64,
            status: u32,
            body: &[u8],
            data: Option<Payload>,
        ) -> Result<()> {
            <$transport>::send(self, conn, kind, op, request, status, body, data)
        }

        fn complete(&mut self, completion: Completion, sink: &mut impl FrameSink) {
            <$transport>::complete(self, completion, sink);
        }

        fn advance(&mut self, now: Instant, sink: &mut impl FrameSink) {
            <$transport>::advance(self, now, sink);
        }

        fn flush(&mut self, ring: &mut Ring) {
            <$transport>::flush(self, ring);
        }

        fn close(&mut self, conn: ConnId) {
            <$transport>::close(self, conn);
        }

        fn pause(&mut self, conn: ConnId) {
            <$transport>::pause(self, conn);
        }

        fn resume(&mut self, conn: ConnId) {
            <$transport>::resume(self, conn);
        }

        fn is_open(&self, conn: ConnId) -> bool {
            <$transport>::is_open(self, conn)
        }

        fn peer(&self, conn: ConnId) -> Option<&Peer> {
            <$transport>::peer(self, conn)
        }

        fn queued(&self, conn: ConnId) -> usize {
            <$transport>::queued(self, conn)
        }

        fn counters(&self, conn: ConnId) -> Option<ConnCounters> {
            <$transport>::counters(self, conn)
        }

        fn live(&self) -> usize {
            <$transport>::live(self)
        }

        fn has_work(&self) -> bool {
            <$transport>::has_work(self)
        }

        fn next_tick(&self) -> Option<Instant> {
            <$transport>::next_tick(self)
        }
    };
}

impl Transport for Tcp {
    fn owns(source: Source) -> bool {
        source == Source::TCP
    }

    fn grant(&mut self, _: ConnId, _: u64, buffer: Buffer, _: usize) -> std::result::Result<(), Buffer> {
        Err(buffer)
    }

    fn revoke(&mut self, _: ConnId, _: u64) {}

    forwarded!(Tcp);
}

#[cfg(feature = "rdma")]
impl Transport for crate::rdma::Rdma {
    fn owns(source: Source) -> bool {
        source == Source::TCP || source == Source::RDMA
    }

    fn grant(
        &mut self,
        conn: ConnId,
        request: u64,
        buffer: Buffer,
        offset: usize,
    ) -> std::result::Result<(), Buffer> {
        Self::grant(self, conn, request, buffer, offset)
    }

    fn revoke(&mut self, conn: ConnId, request: u64) {
        Self::revoke(self, conn, request);
    }

    forwarded!(crate::rdma::Rdma);
}
