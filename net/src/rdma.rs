//! RDMA: frames by reliable connected queue pairs, beside the TCP connection that each was agreed on.
//!
//! An [`Rdma`] is a [`Tcp`] whose connections go on over a queue pair where both ends have a path and it works; others stay what they are. So it has the
//! same calls, a client without RDMA reaches the same listener, and whoever uses it needn't know what carries a frame. One turn of the loop
//! that owns it is as of a `Tcp`; completions of `Source::RDMA` are its, too.
//!
//! | module | is |
//! |---|---|
//! | [`survey`] | what this machine has, what is used, why not the rest |
//! | [`library`], [`device`], [`memory`], [`window`], [`completion`], [`queue_pair`], [`connect`], [`work`] | the verbs, made safe: the law of memory is in [`queue_pair`] |
//! | [`setup`], [`message`] | the bytes: terms of the two ends, messages; pure |
//! | [`lane`] | one connection's queue pair: credits, frames, data |
//! | [`event`] | what a device says unasked: ports that go down and come up |
//! | [`watch`], [`arrivals`] | devices that come and go, and what becomes of connections then |
//! | [`place`](crate::place) | NUMA nodes and networks, by which a port is chosen |
//! | [`shared`] | receives that many connections share |
//! | [`seat`] | a device, as this executor uses it |
//! | [`distrust`] | paths that were proved and failed all the same |
//! | [`connections`] | what is known of each connection beyond what TCP knows |
//! | [`upgrade`] | how a connection comes to its queue pair |
//!
//! Invariants
//! - Whatever goes wrong with a queue pair ends its connection and nothing else; it is destroyed at once, and [`FrameSink::closed`] comes when the TCP
//!   connection is gone, too. A connection that isn't open yet goes on over TCP instead, unless the choice is firm.
//! - A port that goes down ends its connections at once; those that are made meanwhile go by another port or stay on TCP, and by it again when it is up.
//! - A device that is taken out ends its connections, too, and nothing of it is kept, so that it can go. When it is there again, new connections go by it; so
//!   they do by one that comes when there was none.
//! - The TCP connection tells each end when the other one is gone: no queue pair outlives its peer's process for longer than that takes.
//! - A frame costs no task, no lock, and in the steady state no allocation; while there is work the kernel is entered only as far as the device's own code does
//!   that (soft-RoCE's doorbell is a system call, adapters' are writes to memory).

mod arrivals;
mod completion;
mod connect;
mod connections;
pub mod device;
mod distrust;
mod event;
mod lane;
mod library;
mod memory;
mod message;
mod queue_pair;
mod seat;
pub mod setup;
mod shared;
pub mod survey;
mod upgrade;
mod watch;
mod window;
mod work;

pub use connect::Patience;
pub use library::outlive_devices;

use crate::address::Address;
use crate::buffer::{Buffer, Payload, Pool};
use crate::contract::FrameSink;
use crate::costs::Costs;
use crate::handshake::{Peer, capability};
use crate::place::Network;
use crate::ring::{Beside, Completion, Ring, Source};
use crate::tcp::{ConnCounters, ConnId, Tcp, TcpConfig};
use crate::transport::Way;
use connections::{Entry, Filter, Inner};
use corefs_wire::frame::{Header, Kind};
use corefs_wire::limits::{CONNECTION_SEND_MAX, FRAME_BODY_MAX, FRAME_DATA_MAX};
use corefs_wire::{Error, ErrorCode, Result};
use distrust::Distrust;
use lane::Lane;
use seat::Seat;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use survey::{Road, Survey};
use upgrade::Stage;
use watch::Watch;

/// Whether connections go by RDMA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// Where both ends have a path that works.
    Auto,
    /// A path that doesn't work is an error for the side that connects. Peers without RDMA are reached by TCP, unless that [insists](Rdma::insist).
    Firm,
}

/// How an [`Rdma`] behaves.
#[derive(Clone, Debug)]
pub struct RdmaConfig {
    pub tcp: TcpConfig,
    pub choice: Choice,
    /// Names of the devices that may be used; empty for all.
    pub devices: Vec<String>,
    /// Queue pairs at once; further connections stay on TCP. Fewer where the device holds fewer completions, or lets none share receives.
    pub queue_pairs_max: usize,
    /// So many connections have receives of their own; those that are made while there are more share them, and have fewer credits.
    pub shared_from: usize,
    pub shared_receives: u16,
    /// Messages that a peer may send before they are taken, and the bytes of each (`setup` has the bounds).
    pub receives: u16,
    pub message: u32,
    /// Ranges that a connection may have open for replies.
    pub grants: u16,
    /// Memory for messages and for data that lie where the device can't reach them (bytes, pinned, of each device).
    pub arena_bytes: usize,
    /// Small data that come on connections made by this side may be lent where they arrived.
    pub lends: bool,
    pub patience: Patience,
    /// The NUMA node of the executor's core, whose ports are preferred.
    pub numa: Option<u32>,
}

impl RdmaConfig {
    pub fn new(tcp: TcpConfig) -> Self {
        Self {
            tcp,
            choice: Choice::Auto,
            devices: Vec::new(),
            queue_pairs_max: 256,
            // With 32 receives and as many messages to be sent, a connection has 512 KiB: 8 MiB for those of the first clients and neighbours. Where there are more,
            // they are clients, who speak in turns.
            shared_from: 16,
            shared_receives: 8,
            receives: 32,
            message: 8 << 10,
            grants: setup::GRANTS_MAX,
            arena_bytes: 64 << 20,
            lends: true,
            // 0.27 s, seven times: a path that is gone is noticed in two seconds.
            patience: Patience { timeout: 16, retries: 7 },
            numa: None,
        }
    }
}

/// What a queue pair has asked of its device.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Verbs {
    /// Work requests: receives, messages, writes, reads, bindings, invalidations.
    pub requests: u64,
    /// Calls that handed over one or more of them.
    pub doorbells: u64,
    pub completions: u64,
}

/// What is missing where RDMA was asked for.
fn missing(survey: &Survey, refused: Vec<Error>) -> Error {
    let refused = refused.into_iter().map(|error| error.message);
    let why = survey.obstacles().into_iter().chain(refused).collect::<Vec<_>>().join("; ");
    let code = survey.obstacle.as_ref().map_or(ErrorCode::Os, |error| error.code);
    Error::new(code, format!("RDMA was asked for: {why}"))
}

/// Whether this machine has RDMA that can be used, as far as looking tells; else what is missing, as [`Rdma::new`] says it.
pub fn find() -> Result<()> {
    let survey = Survey::take(&[]);
    if survey.roads().is_empty() { Err(missing(&survey, Vec::new())) } else { Ok(()) }
}

/// See the module's documentation.
pub struct Rdma {
    tcp: Tcp,
    inner: Inner,
}

impl Rdma {
    /// A driver that places data in `pool` and sends them from there. It uses what RDMA this machine has, and goes by TCP alone where it has none, unless
    /// the choice is firm: then `Os` or `NotFound` says what is missing.
    pub fn new(mut config: RdmaConfig, pool: &Pool) -> Result<Self> {
        let survey = Survey::take(&config.devices);
        let (seats, refused) = seat::take(&survey, &mut config, pool, 0);
        let roads = seat::roads(&seats);
        if roads.is_empty() && config.choice == Choice::Firm {
            return Err(missing(&survey, refused));
        }
        if !roads.is_empty() {
            config.tcp.capabilities |= capability::RDMA;
        }
        if roads.is_empty() {
            let refused = refused.into_iter().map(|error| error.message);
            arrivals::say_why_not(survey.obstacles().into_iter().chain(refused));
        }
        let now = Instant::now();
        let inner = Inner {
            watch: Watch::new(),
            watching: false,
            next_look: arrivals::first_look(now, &seats),
            pool: pool.clone(),
            numbers: seats.len() as u32,
            retired: Costs::default(),
            seats,
            roads,
            networks: Network::all(),
            entries: Vec::new(),
            lanes: 0,
            dirty: Vec::new(),
            ready: Vec::new(),
            spare_ready: Vec::new(),
            errands: VecDeque::new(),
            distrust: Distrust::default(),
            insists: false,
            timed: false,
            short: false,
            now,
            next_scan: now,
            scanned: Vec::new(),
            next_looks: now,
            config,
        };
        Ok(Self { tcp: Tcp::new(inner.config.tcp.clone()), inner })
    }

    /// As [`Tcp::abort`]: what goes by the queue pair ends with the connection beside it.
    pub fn abort(&mut self, conn: ConnId, why: &str) {
        self.tcp.abort(conn, why);
    }

    /// As [`Tcp::unacknowledged`], of what goes by TCP. A queue pair's adapter gives up by itself and says so.
    pub fn unacknowledged(&self, conn: ConnId) -> Option<Duration> {
        self.tcp.unacknowledged(conn)
    }

    /// The roads that are used, the best first.
    pub fn roads(&self) -> impl Iterator<Item = &Road> + '_ {
        self.inner.roads.iter().map(|(road, _)| road)
    }

    /// Whether a connection goes by a queue pair now.
    pub fn is_by_queue_pair(&self, conn: ConnId) -> bool {
        matches!(self.inner.entry(conn), Some(Entry { stage: Stage::Open(_), .. }))
    }

    /// Connections that go by a queue pair now.
    pub fn by_queue_pair(&self) -> usize {
        let open = |entry: &&Entry| matches!(entry.stage, Stage::Open(_));
        self.inner.entries.iter().flatten().filter(open).count()
    }

    /// As [`Tcp::lend`], for connections that stay on TCP.
    pub fn lend(&mut self, pool: Pool) {
        self.tcp.lend(pool);
    }

    /// As [`Tcp::connect`].
    pub fn connect(&mut self, address: &Address) -> Result<ConnId> {
        let conn = self.tcp.connect(address)?;
        self.inner.put(conn, Entry::new(conn.generation, Some(address.clone())));
        Ok(conn)
    }

    /// As [`Tcp::listen`].
    pub fn listen(&mut self, address: &Address) -> Result<Address> {
        self.tcp.listen(address)
    }

    /// As [`Tcp::stop_listening`].
    pub fn stop_listening(&mut self, ring: &mut Ring) {
        self.tcp.stop_listening(ring);
    }

    /// As [`Tcp::send`]. The data of a reply go into the memory that was granted for it, if it was.
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
        let lost = || Error::new(ErrorCode::ConnectionLost, "the connection is not open");
        let lane = match self.inner.entry_mut(conn).map(|entry| &mut entry.stage) {
            Some(Stage::Plain) => return self.tcp.send(conn, kind, op, request, status, body, data),
            Some(Stage::Open(lane)) => lane,
            _ => return Err(lost()),
        };
        let data = data.filter(|data| !data.is_empty());
        let data_len = data.as_ref().map_or(0, Payload::len);
        if body.len() > FRAME_BODY_MAX || data_len > FRAME_DATA_MAX {
            return Err(Error::new(ErrorCode::InvalidArgument, "longer than a frame may be"));
        }
        if lane.queued() + body.len() + data_len > CONNECTION_SEND_MAX {
            return Err(Error::new(ErrorCode::Overloaded, "too much is queued for this peer"));
        }
        lane.send(&Header::new(kind, op, request, status, body, data_len), body, data);
        self.inner.touch(conn);
        Ok(())
    }

    /// Opens `buffer[offset..]` to the data of the reply to `request`, which is to be sent next on this connection: the peer's device writes them there, and
    /// the buffer comes back in [`FrameSink::frame`] with that reply, whether it has data or not. Until then it is the transport's: also when nobody
    /// awaits the reply any more, and until the queue pair is destroyed if there is none. Given back if it can't be opened (no queue pair; too
    /// many are open; not of the pool): then the reply asks [`FrameSink::place`].
    pub fn grant(
        &mut self,
        conn: ConnId,
        request: u64,
        buffer: Buffer,
        offset: usize,
    ) -> std::result::Result<(), Buffer> {
        match self.inner.entry_mut(conn).map(|entry| &mut entry.stage) {
            Some(Stage::Open(lane)) => lane.grant(request, buffer, offset)?,
            _ => return Err(buffer),
        }
        self.inner.touch(conn);
        Ok(())
    }

    /// Takes back what was granted for a reply that nobody awaits. Its buffer is free when the peer has said that it won't write there, or hasn't said so in time,
    /// and the device has confirmed that it can't any more; at once where the peer was never told. A reply that comes before that is announced, with the
    /// buffer; one that comes later says where its data are to go, as if nothing had been granted.
    pub fn revoke(&mut self, conn: ConnId, request: u64) {
        let now = Instant::now();
        if let Some(Stage::Open(lane)) = self.inner.entry_mut(conn).map(|entry| &mut entry.stage) {
            let waits = lane.revoke(request, now);
            self.inner.timed |= waits;
            self.inner.touch(conn);
        }
    }

    /// From now on peers without RDMA are refused where the choice is firm, rather than reached by TCP.
    pub fn insist(&mut self) {
        self.inner.insists = true;
    }

    /// Data of a reply on this connection that come with its message, or may be lent where they arrive (bytes).
    pub fn carries(&self, conn: ConnId) -> usize {
        match self.inner.entry(conn).map(|entry| &entry.stage) {
            Some(Stage::Open(lane)) => lane.carries(),
            _ => self.tcp.carries(conn),
        }
    }

    /// By what a connection goes: the port and its address, or why it is TCP.
    pub fn way(&self, conn: ConnId) -> Way {
        let entry = self.inner.entry(conn);
        match entry.map(|entry| &entry.stage) {
            Some(Stage::Open(lane) | Stage::Draining(lane)) => Way::Rdma(lane.port()),
            _ => Way::Tcp(entry.and_then(|entry| entry.why.clone()).unwrap_or_default()),
        }
    }

    /// Takes a completion of `Source::TCP` or `Source::RDMA`.
    pub fn complete(&mut self, completion: Completion, sink: &mut impl FrameSink) {
        if completion.token.source() == Source::RDMA {
            self.inner.complete(completion.token.payload());
            return;
        }
        self.tcp.complete(completion, &mut Filter { inner: &mut self.inner, sink });
        self.run_errands(sink);
    }

    /// As [`Tcp::advance`]; also takes what the queue pairs have completed.
    pub fn advance(&mut self, now: Instant, sink: &mut impl FrameSink) {
        self.inner.now = now;
        if self.inner.next_look.is_some_and(|at| at <= now) {
            self.inner.look_for_devices();
            if !self.inner.roads.is_empty() {
                self.tcp.offer(capability::RDMA);
            }
        }
        self.tcp.advance(now, &mut Filter { inner: &mut self.inner, sink });
        self.inner.poll();
        if !self.inner.ready.is_empty() {
            sink.taken();
        }
        self.run_errands(sink);
        let mut looked_at =
            std::mem::replace(&mut self.inner.ready, std::mem::take(&mut self.inner.spare_ready));
        for conn in looked_at.drain(..) {
            self.inner.deliver(conn, sink);
        }
        self.inner.spare_ready = looked_at;
        if (self.inner.timed || self.inner.short) && now >= self.inner.next_scan {
            self.inner.scan(&self.tcp);
        }
        self.run_errands(sink);
    }

    /// As [`Tcp::flush`]; rings one doorbell for each queue pair that has something to do.
    pub fn flush(&mut self, ring: &mut Ring) {
        while let Some(conn) = self.inner.dirty.pop() {
            self.inner.flush(conn);
        }
        self.inner.refill();
        self.run_silent_errands();
        self.tcp.flush(ring);
        self.inner.watch(ring);
    }

    /// As [`Tcp::close`].
    pub fn close(&mut self, conn: ConnId) {
        let deadline = Instant::now() + self.inner.config.tcp.patience;
        let Some(entry) = self.inner.entry_mut(conn) else { return self.tcp.close(conn) };
        match std::mem::replace(&mut entry.stage, Stage::Over) {
            Stage::Open(mut lane) => {
                lane.bye();
                entry.stage = Stage::Draining(lane);
                entry.deadline = Some(deadline);
                self.inner.timed = true;
                self.inner.touch(conn);
                self.inner.look_at(conn);
            }
            Stage::Draining(lane) => entry.stage = Stage::Draining(lane),
            stage => {
                self.inner.lanes -= usize::from(stage.has_lane());
                self.tcp.close(conn);
            }
        }
    }

    /// As [`Tcp::pause`].
    pub fn pause(&mut self, conn: ConnId) {
        match self.inner.entry_mut(conn).map(|entry| &mut entry.stage) {
            Some(Stage::Open(lane)) => lane.paused = true,
            Some(Stage::Plain) => self.tcp.pause(conn),
            _ => (),
        }
    }

    /// As [`Tcp::resume`].
    pub fn resume(&mut self, conn: ConnId) {
        match self.inner.entry_mut(conn).map(|entry| &mut entry.stage) {
            Some(Stage::Open(lane)) => {
                (lane.paused, lane.waiting) = (false, false);
                self.inner.look_at(conn);
            }
            Some(Stage::Plain) => self.tcp.resume(conn),
            _ => (),
        }
    }

    /// As [`Tcp::is_open`].
    pub fn is_open(&self, conn: ConnId) -> bool {
        let stage = self.inner.entry(conn).map(|entry| &entry.stage);
        matches!(stage, Some(Stage::Open(_) | Stage::Plain)) && self.tcp.is_open(conn)
    }

    /// As [`Tcp::peer`].
    pub fn peer(&self, conn: ConnId) -> Option<&Peer> {
        self.tcp.peer(conn)
    }

    /// As [`Tcp::queued`]; data that the peer is to read count until it has.
    pub fn queued(&self, conn: ConnId) -> usize {
        match self.inner.entry(conn).map(|entry| &entry.stage) {
            Some(Stage::Open(lane) | Stage::Draining(lane)) => lane.queued(),
            _ => self.tcp.queued(conn),
        }
    }

    /// Whether nothing is queued, and the peer's device has all that was.
    pub fn is_sent(&self, conn: ConnId) -> bool {
        match self.inner.entry(conn).map(|entry| &entry.stage) {
            Some(Stage::Open(lane) | Stage::Draining(lane)) => lane.is_sent(),
            _ => self.tcp.queued(conn) == 0,
        }
    }

    /// What the queue pair of a connection has done, or its TCP connection if it has none.
    pub fn counters(&self, conn: ConnId) -> Option<ConnCounters> {
        match self.inner.entry(conn).map(|entry| &entry.stage) {
            Some(Stage::Open(lane) | Stage::Draining(lane)) => Some(lane.counters()),
            _ => self.tcp.counters(conn),
        }
    }

    /// What a connection's queue pair has asked of the device, if it has one.
    pub fn verbs(&self, conn: ConnId) -> Option<Verbs> {
        match self.inner.entry(conn).map(|entry| &entry.stage) {
            Some(Stage::Open(lane) | Stage::Draining(lane)) => Some(lane.verbs()),
            _ => None,
        }
    }

    /// Bytes of the arenas for messages that are in use: receives, shared ones included, and messages on their way.
    pub fn messages_in_use(&self) -> usize {
        self.inner.seats.iter().map(|seat| seat.arena.in_use()).sum()
    }

    /// What all connections have cost, by queue pairs and by TCP.
    pub fn costs(&self) -> Costs {
        let open =
            self.inner.entries.iter().flatten().filter_map(|entry| entry.stage.lane()).map(Lane::costs);
        let ended = self.inner.seats.iter().map(Seat::costs);
        open.chain(ended).fold(self.tcp.costs().plus(self.inner.retired), Costs::plus)
    }

    /// As [`Tcp::connections`].
    pub fn connections(&self) -> impl Iterator<Item = ConnId> + '_ {
        self.tcp.connections()
    }

    /// As [`Tcp::live`].
    pub fn live(&self) -> usize {
        self.tcp.live()
    }

    /// As [`Tcp::has_work`].
    pub fn has_work(&self) -> bool {
        let inner = &self.inner;
        let waits = !inner.dirty.is_empty() || !inner.ready.is_empty() || !inner.errands.is_empty();
        waits || self.tcp.has_work()
    }

    /// As [`Tcp::next_tick`].
    pub fn next_tick(&self) -> Option<Instant> {
        let ours = (self.inner.timed || self.inner.short).then_some(self.inner.next_scan);
        [self.tcp.next_tick(), ours, self.inner.next_look].into_iter().flatten().min()
    }
}

/// Completion queues are no entries of a ring.
impl Beside for Rdma {
    #[inline]
    fn look(&mut self) -> bool {
        self.inner.lanes > 0 && self.inner.seats.iter_mut().any(Seat::look)
    }

    fn lie_down(&mut self, ring: &mut Ring) -> bool {
        self.inner.lanes == 0 || self.inner.seats.iter_mut().all(|seat| seat.lie_down(ring))
    }
}
