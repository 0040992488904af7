//! Listeners and connections of one executor, driven by its turn loop. Works over TCP and Unix sockets.
//!
//! One turn of the loop that owns a [`Tcp`]: `ring.turn`; [`Tcp::complete`] for each completion whose source is
//! `Source::TCP`; [`Tcp::advance`]; the owner's own work, which [`Tcp::send`]s; [`Tcp::flush`].

use crate::address::Address;
use crate::buffer::Payload;
use crate::contract::FrameSink;
use crate::handshake::Identity;
use crate::ring::{Completion, Ring};
use corefs_wire::Result;
use corefs_wire::frame::Kind;
use std::time::Instant;

/// A connection of this executor. Stale ids are harmless: whatever is asked of them fails or does nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ConnId {
    pub index: u32,
    pub generation: u32,
}

/// How a [`Tcp`] behaves.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    pub identity: Identity,
    /// Most connections at once, at most `limits::CONNECTIONS_MAX`.
    pub connections_max: usize,
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
    /// Bytes of bulk data that were copied out of the receive buffer, and that went straight to their place.
    pub copied: u64,
    pub direct: u64,
}

/// The driver of one executor's sockets. Passive: acts only in `complete`, `advance` and `flush`.
pub struct Tcp {}

#[allow(unused_variables)]
impl Tcp {
    pub fn new(config: TcpConfig) -> Self {
        todo!()
    }

    /// Listens; port 0 takes a free one. Returns the address in use. `AddressInUse`, or `BadConfig` for an address that
    /// other machines can reach when there is no secret.
    pub fn listen(&mut self, address: &Address) -> Result<Address> {
        todo!()
    }

    /// Starts a connection. [`FrameSink::opened`] or [`FrameSink::closed`] follows. `Overloaded` at the bound.
    pub fn connect(&mut self, address: &Address) -> Result<ConnId> {
        todo!()
    }

    /// Queues a frame; [`flush`](Self::flush) sends it. The body is copied, the payload is held until it is sent.
    /// `ConnectionLost` if the connection isn't open; `Overloaded` if too much is queued already (nothing is queued then).
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
        todo!()
    }

    /// Takes a completion of `Source::TCP`.
    pub fn complete(&mut self, completion: Completion, sink: &mut impl FrameSink) {
        todo!()
    }

    /// Once a turn: frames of resumed connections, ends of closed ones, handshakes that took too long.
    pub fn advance(&mut self, now: Instant, sink: &mut impl FrameSink) {
        todo!()
    }

    /// Starts receives, connects, and at most one gathered send for each connection that has something queued.
    pub fn flush(&mut self, ring: &mut Ring) {
        todo!()
    }

    /// Ends a connection once what is queued has been sent (within limits::HANDSHAKE_SECONDS).
    pub fn close(&mut self, conn: ConnId) {
        todo!()
    }

    /// Stops receiving from a connection.
    pub fn pause(&mut self, conn: ConnId) {
        todo!()
    }

    /// Undoes `pause`, `Flow::Pause` and `Placement::Wait`.
    pub fn resume(&mut self, conn: ConnId) {
        todo!()
    }

    /// Whether the handshake has succeeded and the connection has not ended.
    pub fn is_open(&self, conn: ConnId) -> bool {
        todo!()
    }

    /// Bytes queued and not yet taken by the kernel.
    pub fn queued(&self, conn: ConnId) -> usize {
        todo!()
    }

    pub fn counters(&self, conn: ConnId) -> Option<ConnCounters> {
        todo!()
    }

    /// Stops listening; connections stay.
    pub fn stop_listening(&mut self, ring: &mut Ring) {
        todo!()
    }

    /// Connections in any state, and listeners. When both are 0 nothing of it is in flight.
    pub fn live(&self) -> usize {
        todo!()
    }
}
