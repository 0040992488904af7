//! Listeners and connections of one executor, driven by its turn loop. Works over TCP and Unix sockets.
//!
//! One turn of the loop that owns a [`Tcp`]: `ring.turn`; [`Tcp::complete`] for each completion whose source is
//! `Source::TCP`; [`Tcp::advance`]; the owner's own work, which [`Tcp::send`]s; [`Tcp::flush`].
//! It may park when [`Tcp::has_work`] is false, until [`Tcp::next_tick`].
//!
//! Invariants
//! - A connection has at most one receive and one send in flight, and memory that they name belongs to the connection, which
//!   is forgotten only when both have completed, however it ended.
//! - Whatever a peer sends can end its own connection and nothing else.
//! - In the steady state a frame costs no task, no allocation and no lock.
//! - [`FrameSink::closed`] comes once for each id the sink has heard of, and is the last that is said about it.

mod connection;
mod inbox;
mod listener;
mod outbox;
mod slots;
mod socket;

pub use inbox::LENT_MAX;

use crate::address::Address;
use crate::buffer::{Payload, Pool};
use crate::contract::FrameSink;
use crate::costs::Costs;
use crate::handshake::{CAPABILITIES, Identity, Peer};
use crate::ring::{Completion, Ring, Source, Token};
use connection::{Connection, Operation};
use corefs_wire::frame::{Header, Kind};
use corefs_wire::limits::{
    CONNECTION_SEND_MAX, CONNECTIONS_MAX, FRAME_BODY_MAX, FRAME_DATA_MAX, HANDSHAKE_SECONDS,
};
use corefs_wire::{Error, ErrorCode, Result};
use listener::Listener;
use slots::Slots;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// How often deadlines are looked at while there are any.
const TICK: Duration = Duration::from_millis(100);

/// A connection of this executor. Stale ids are harmless: whatever is asked of them fails or does nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ConnId {
    /// Dense: owners may keep tables by it.
    pub index: u32,
    pub generation: u32,
}

/// How a [`Tcp`] behaves.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    pub identity: Identity,
    /// Most connections at once, at most `limits::CONNECTIONS_MAX`.
    pub connections_max: usize,
    /// What a peer has for its handshake, and a closing connection for what is still queued.
    pub patience: Duration,
    /// What an outgoing connection has until it is open.
    pub connecting: Duration,
    /// Abilities that are offered in the handshake: bits of [`capability`](crate::handshake::capability).
    pub capabilities: u64,
}

impl TcpConfig {
    pub fn new(identity: Identity) -> Self {
        let patience = Duration::from_secs(HANDSHAKE_SECONDS);
        let (connections_max, connecting) = (CONNECTIONS_MAX, patience);
        Self { identity, connections_max, patience, connecting, capabilities: CAPABILITIES }
    }
}

/// What a connection has done so far.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct ConnCounters {
    pub frames_in: u64,
    pub frames_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub receives: u64,
    pub sends: u64,
    /// Bytes of bulk data that were copied out of the receive buffer, and that went straight to their place. Those that were lent
    /// are neither.
    pub copied: u64,
    pub direct: u64,
}

/// The driver of one executor's sockets. Passive: acts only in `complete`, `advance` and `flush`.
pub struct Tcp {
    config: TcpConfig,
    /// Where data are lent.
    pool: Option<Pool>,
    connections: Slots<Connection>,
    listeners: Vec<Option<Listener>>,
    /// Connections that `flush` is to look at.
    dirty: Vec<ConnId>,
    /// Connections that `advance` is to look at.
    ready: Vec<ConnId>,
    /// Some listener isn't accepting.
    idle_listeners: bool,
    /// Some connection has a deadline or is owed something, or some listener waits to try again.
    timed: bool,
    now: Instant,
    next_scan: Instant,
    /// Bytes that connections which are gone had copied.
    copied: u64,
}

impl Tcp {
    pub fn new(config: TcpConfig) -> Self {
        assert!(config.connections_max <= CONNECTIONS_MAX && CONNECTIONS_MAX < 1 << INDEX_BITS);
        let now = Instant::now();
        Self {
            connections: Slots::new(config.connections_max),
            config,
            pool: None,
            listeners: Vec::new(),
            dirty: Vec::new(),
            ready: Vec::new(),
            idle_listeners: false,
            timed: false,
            now,
            next_scan: now,
            copied: 0,
        }
    }

    /// From now on connections that this side makes may receive into blocks of `pool`, and lend small data where they lie.
    pub fn lend(&mut self, pool: Pool) {
        self.pool = Some(pool);
    }

    /// Connections from now on have these abilities, too.
    #[cfg(feature = "rdma")]
    pub(crate) fn offer(&mut self, capabilities: u64) {
        self.config.capabilities |= capabilities;
    }

    /// Data that come on such a connection may be lent up to so many bytes.
    pub fn carries(&self, _conn: ConnId) -> usize {
        if self.pool.is_some() { LENT_MAX } else { 0 }
    }

    /// Starts a connection. [`FrameSink::opened`] or [`FrameSink::closed`] follows. `Overloaded` at the bound.
    pub fn connect(&mut self, address: &Address) -> Result<ConnId> {
        let made = Connection::to(address.clone(), self.config.capabilities, self.pool.clone());
        let mut connection = made.map_err(|error| error.of(address))?;
        connection.deadline = Some(Instant::now() + self.config.connecting);
        let full = || Error::new(ErrorCode::Overloaded, "too many connections");
        let id = self.connections.insert(connection).ok_or_else(full)?;
        self.timed = true;
        self.touch(id);
        Ok(id)
    }

    /// Queues a frame; [`flush`](Self::flush) sends it. The body is copied, the payload is held until it is sent.
    /// `ConnectionLost` if the connection isn't open; `Overloaded` if too much is queued already; `InvalidArgument` if a part
    /// is longer than a frame may carry. Nothing is queued then.
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
        let data = data.filter(|data| !data.is_empty());
        let data_len = data.as_ref().map_or(0, Payload::len);
        if body.len() > FRAME_BODY_MAX || data_len > FRAME_DATA_MAX {
            return Err(Error::new(ErrorCode::InvalidArgument, "longer than a frame may be"));
        }
        let lost = || Error::new(ErrorCode::ConnectionLost, "the connection is not open");
        let open = self.connections.get_mut(conn).filter(|connection| connection.is_open());
        let connection = open.ok_or_else(lost)?;
        if connection.outbox.len() + body.len() + data_len > CONNECTION_SEND_MAX {
            return Err(Error::new(ErrorCode::Overloaded, "too much is queued for this peer"));
        }
        let header = Header::new(kind, op, request, status, body, data_len);
        connection.outbox.push(header.as_bytes(), body, data);
        connection.count_frame_out();
        self.touch(conn);
        Ok(())
    }

    /// Takes a completion of `Source::TCP`.
    pub fn complete(&mut self, completion: Completion, sink: &mut impl FrameSink) {
        debug_assert_eq!(completion.token.source(), Source::TCP);
        let (operation, id) = named(completion.token);
        let Some(operation) = operation else { return self.accepted(id.index, completion) };
        let patience = self.config.patience;
        let Some(connection) = self.connections.get_mut(id) else {
            unreachable!("a connection is forgotten only when nothing of it is in flight")
        };
        connection.complete(operation, completion, &self.config.identity);
        connection.deliver(id, &self.config.identity, patience, sink);
        self.settle(id, sink);
    }

    /// Once a turn: frames of resumed connections, ends of closed ones, handshakes that took too long.
    pub fn advance(&mut self, now: Instant, sink: &mut impl FrameSink) {
        self.now = now;
        if !self.ready.is_empty() {
            let patience = self.config.patience;
            for id in std::mem::take(&mut self.ready) {
                if let Some(connection) = self.connections.get_mut(id) {
                    connection.ready = false;
                    connection.deliver(id, &self.config.identity, patience, sink);
                    self.settle(id, sink);
                }
            }
        }
        if self.timed && now >= self.next_scan {
            self.scan(sink);
        }
    }

    /// Starts receives, connects, and at most one gathered send for each connection that has something queued.
    pub fn flush(&mut self, ring: &mut Ring) {
        if self.idle_listeners {
            self.accept(ring);
        }
        while let Some(id) = self.dirty.pop() {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.dirty = false;
                connection.start(id, ring);
                self.timed |= connection.is_owed();
            }
        }
    }

    /// Ends a connection once what is queued has been sent, or after the patience of the configuration.
    pub fn close(&mut self, conn: ConnId) {
        let deadline = self.deadline();
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.drain(Error::new(ErrorCode::ConnectionLost, "closed by this side"), deadline);
            self.timed = true;
            self.touch(conn);
            self.look_at(conn);
        }
    }

    /// Ends a connection at once; [`FrameSink::closed`] follows.
    pub fn abort(&mut self, conn: ConnId, why: &str) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.abort(why);
            self.touch(conn);
            self.look_at(conn);
        }
    }

    /// If something was sent again and again and the peer's kernel never acknowledged it: how long nothing has been heard of it. `None`
    /// also for what isn't TCP.
    pub fn unacknowledged(&self, conn: ConnId) -> Option<Duration> {
        self.connections.get(conn).and_then(Connection::unacknowledged)
    }

    /// As [`close`](Self::close), for a reason of the caller's.
    #[cfg(feature = "rdma")]
    pub(crate) fn close_for(&mut self, conn: ConnId, reason: Error) {
        let deadline = self.deadline();
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.drain(reason, deadline);
            self.timed = true;
            self.touch(conn);
            self.look_at(conn);
        }
    }

    /// Tells the peer why, and closes.
    #[cfg(feature = "rdma")]
    pub(crate) fn fail(&mut self, conn: ConnId, error: Error) {
        let patience = self.config.patience;
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.fail(error, patience);
            self.timed = true;
            self.touch(conn);
            self.look_at(conn);
        }
    }

    /// The address that a connection goes out from, `None` for Unix sockets.
    #[cfg(feature = "rdma")]
    pub(crate) fn local(&self, conn: ConnId) -> Option<std::net::IpAddr> {
        self.connections.get(conn)?.local()
    }

    /// Stops receiving from a connection. What is in flight already may still arrive, but is not announced; that the
    /// peer closes isn't noticed either, but by sends that fail.
    pub fn pause(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.pause();
        }
    }

    /// Undoes `pause`, `Flow::Pause` and `Placement::Wait`.
    pub fn resume(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.resume();
            self.look_at(conn);
        }
    }

    /// Whether the handshake has succeeded and the connection has not ended.
    pub fn is_open(&self, conn: ConnId) -> bool {
        self.connections.get(conn).is_some_and(Connection::is_open)
    }

    /// Who is on the other side, once that is known.
    pub fn peer(&self, conn: ConnId) -> Option<&Peer> {
        self.connections.get(conn)?.peer()
    }

    /// Bytes queued and not yet taken by the kernel.
    pub fn queued(&self, conn: ConnId) -> usize {
        self.connections.get(conn).map_or(0, |connection| connection.outbox.len())
    }

    pub fn counters(&self, conn: ConnId) -> Option<ConnCounters> {
        self.connections.get(conn).map(Connection::counters)
    }

    /// What all connections have cost.
    pub fn costs(&self) -> Costs {
        let open = self.connections.ids().filter_map(|id| self.counters(id)).map(|counters| counters.copied);
        Costs { copied_bytes: self.copied + open.sum::<u64>(), ..Costs::default() }
    }

    /// The ids of all connections, in whatever state.
    pub fn connections(&self) -> impl Iterator<Item = ConnId> + '_ {
        self.connections.ids()
    }

    /// Connections in any state, and listeners. When it is 0 nothing of this is in flight.
    pub fn live(&self) -> usize {
        self.connections.len() + self.listeners.iter().flatten().count()
    }

    /// Whether `advance` or `flush` has something to do: don't park now.
    pub fn has_work(&self) -> bool {
        !self.dirty.is_empty() || !self.ready.is_empty() || self.idle_listeners
    }

    /// When `advance` is to be called even if nothing happens.
    pub fn next_tick(&self) -> Option<Instant> {
        self.timed.then_some(self.next_scan)
    }

    /// From the clock: the time of the last turn may be long past, when the loop has rested since.
    fn deadline(&self) -> Instant {
        Instant::now() + self.config.patience
    }

    /// `flush` is to look at it.
    fn touch(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id)
            && !std::mem::replace(&mut connection.dirty, true)
        {
            self.dirty.push(id);
        }
    }

    /// `advance` is to look at it.
    fn look_at(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id)
            && !std::mem::replace(&mut connection.ready, true)
        {
            self.ready.push(id);
        }
    }

    /// After anything happened to a connection: forgets it if it is over.
    fn settle(&mut self, id: ConnId, sink: &mut impl FrameSink) {
        let Some(connection) = self.connections.get(id) else { return };
        if !connection.is_over() {
            self.timed |= connection.deadline.is_some();
            return self.touch(id);
        }
        let removed = self.connections.remove(id);
        self.copied += removed.as_ref().map_or(0, |connection| connection.counters().copied);
        if let Some(reason) = removed.and_then(|connection| connection.farewell()) {
            sink.closed(id, reason);
        }
    }

    /// Looks at all deadlines.
    fn scan(&mut self, sink: &mut impl FrameSink) {
        self.next_scan = self.now + TICK;
        let ids: Vec<ConnId> = self.connections.ids().collect();
        self.timed = false;
        self.retry_listeners();
        for id in ids {
            let Some(connection) = self.connections.get_mut(id) else { continue };
            match connection.deadline {
                Some(deadline) if deadline <= self.now => {
                    connection.too_late();
                    self.settle(id, sink);
                }
                Some(_) => self.timed = true,
                None => {
                    connection.look();
                    self.timed |= connection.is_owed();
                    self.settle(id, sink);
                }
            }
        }
    }
}

impl Drop for Tcp {
    /// The kernel may still read and write memory of connections whose operations haven't completed. They are given up to it
    /// rather than freed, so that no order of dropping is unsound.
    fn drop(&mut self) {
        for id in self.connections.ids().collect::<Vec<_>>() {
            if let Some(mut connection) = self.connections.remove(id) {
                connection.end(ErrorCode::ShuttingDown.into());
                if connection.in_flight() {
                    Box::leak(connection);
                }
            }
        }
    }
}

// A token of ours: operation (4 bits), index (20 bits), generation (32 bits).
const INDEX_BITS: u32 = 20;
const ACCEPT: u64 = 0;

fn token(operation: Operation, id: ConnId) -> Token {
    let number = match operation {
        Operation::Connect => 1,
        Operation::Receive => 2,
        Operation::Send => 3,
    };
    name(number, id)
}

fn name(operation: u64, id: ConnId) -> Token {
    let payload = operation << (32 + INDEX_BITS) | u64::from(id.index) << 32 | u64::from(id.generation);
    Token::new(Source::TCP, payload)
}

/// What a token names; no operation for an accept, whose index is the listener's.
fn named(token: Token) -> (Option<Operation>, ConnId) {
    let payload = token.payload();
    let index = (payload >> 32) as u32 & ((1 << INDEX_BITS) - 1);
    let operation = match payload >> (32 + INDEX_BITS) {
        1 => Some(Operation::Connect),
        2 => Some(Operation::Receive),
        3 => Some(Operation::Send),
        _ => None,
    };
    (operation, ConnId { index, generation: payload as u32 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_name_what_they_were_made_of() {
        let id = ConnId { index: CONNECTIONS_MAX as u32 - 1, generation: u32::MAX };
        for operation in [Operation::Connect, Operation::Receive, Operation::Send] {
            assert_eq!(named(token(operation, id)), (Some(operation), id));
        }
        let listener = ConnId { index: 7, generation: 0 };
        assert_eq!(named(name(ACCEPT, listener)), (None, listener));
    }
}
