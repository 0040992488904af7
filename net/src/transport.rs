//! The calls that every transport has, so that whoever uses one needn't name it. Chosen at compile time: a call costs what it costs.

use crate::address::Address;
use crate::buffer::{Buffer, Payload};
use crate::contract::FrameSink;
use crate::handshake::Peer;
use crate::ring::{Completion, Ring, Source};
use crate::tcp::{ConnCounters, ConnId, Tcp};
use corefs_wire::Result;
use corefs_wire::frame::Kind;
use std::time::Instant;

/// A driver of one executor's connections; what its calls mean is said at [`Tcp`]'s.
pub trait Transport {
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
