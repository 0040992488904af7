//! One connection: its socket, where it is in its life, what it receives and sends.
//!
//! ```text
//!  Connecting --> Handshake --> Open --> Draining --> Ended --> (gone when nothing is in flight)
//!      \--------------\-----------\---------------------^
//! ```
//! Draining: what is queued (often the error that says why) is still sent; what arrives is thrown away, so that the kernel
//! doesn't answer with a reset that would overtake it. Ended: both directions are shut, so that what is in flight
//! completes. Only then is the connection forgotten and its memory free for others.

use super::inbox::{Inbox, Next, Receive};
use super::outbox::Outbox;
use super::socket::{self, RawAddress};
use super::{ConnCounters, ConnId, token};
use crate::address::Address;
use crate::buffer::Pool;
use crate::contract::{Flow, FrameSink};
use crate::debt::Debt;
use crate::handshake::{self, Handshake, Identity, Message, Peer, Step, op};
use crate::ring::{Completion, Ring};
use corefs_wire::error::{decode_error, encode_error};
use corefs_wire::frame::{Header, Kind};
use corefs_wire::limits::{CONNECTION_SEND_MAX, FRAME_BODY_MAX, HANDSHAKE_BODY_MAX};
use corefs_wire::{Error, ErrorCode, Result};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// An accepted connection with more than this queued takes no further requests: its peer doesn't read.
const THROTTLE: usize = CONNECTION_SEND_MAX / 8;

pub struct Connection {
    socket: OwnedFd,
    address: Address,
    accepted: bool,
    stage: Stage,
    inbox: Inbox,
    pub outbox: Outbox,
    /// Where to connect to; the kernel may hold a pointer to it.
    target: Option<Box<RawAddress>>,
    connecting: bool,
    paused: bool,
    cancelled: bool,
    /// Is in the list of those that `flush` looks at.
    pub dirty: bool,
    /// Is in the list of those that `advance` looks at.
    pub ready: bool,
    /// The sink knows this id: it is told when the connection is gone.
    known: bool,
    /// What is offered in the handshake, by the side that connects.
    capabilities: u64,
    /// When the present stage must be over.
    pub deadline: Option<Instant>,
    peer: Option<Peer>,
    /// Why it ended.
    reason: Option<Error>,
    counters: ConnCounters,
    /// The rest of data that have a place already, and the room for what is queued.
    sending: Debt,
    reading: Debt,
}

enum Stage {
    Connecting,
    Handshake(Box<Handshake>),
    Open,
    Draining { shut: bool },
    Ended,
}

/// The operations that a connection can have in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    Connect,
    Receive,
    Send,
}

impl Connection {
    /// A connection to be made to `address`; data that come on it may be lent in blocks of `pool`.
    pub fn to(address: Address, capabilities: u64, pool: Option<Pool>) -> Result<Self> {
        let target = Box::new(RawAddress::new(&address)?);
        let socket = socket::stream(&address)?;
        Ok(Self {
            target: Some(target),
            known: true,
            capabilities,
            ..Self::new(socket, address, Stage::Connecting, false, pool)
        })
    }

    /// A connection that somebody made to us.
    pub fn from(socket: OwnedFd, address: Address, capabilities: u64) -> Result<Self> {
        let handshake = Handshake::accept_with(capabilities, address.clone(), handshake::random()?);
        let stage = Stage::Handshake(Box::new(handshake));
        Ok(Self::new(socket, address, stage, true, None))
    }

    fn new(socket: OwnedFd, address: Address, stage: Stage, accepted: bool, pool: Option<Pool>) -> Self {
        Self {
            socket,
            address,
            accepted,
            stage,
            inbox: Inbox::new(pool),
            outbox: Outbox::default(),
            target: None,
            connecting: false,
            paused: false,
            cancelled: false,
            dirty: false,
            ready: false,
            known: false,
            capabilities: 0,
            deadline: None,
            peer: None,
            reason: None,
            counters: ConnCounters::default(),
            sending: Debt::default(),
            reading: Debt::default(),
        }
    }

    pub fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open)
    }

    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Ended) && !self.in_flight()
    }

    pub fn in_flight(&self) -> bool {
        self.connecting || self.inbox.in_flight() || self.outbox.in_flight()
    }

    #[cfg(feature = "rdma")]
    pub fn local(&self) -> Option<std::net::IpAddr> {
        socket::local(&self.socket).ok().map(|address| address.ip())
    }

    pub fn peer(&self) -> Option<&Peer> {
        self.peer.as_ref()
    }

    pub fn counters(&self) -> ConnCounters {
        ConnCounters { copied: self.inbox.copied, direct: self.inbox.direct, ..self.counters }
    }

    pub fn count_frame_out(&mut self) {
        self.counters.frames_out += 1;
    }

    /// Why it ended, if the sink is to be told.
    pub fn farewell(self) -> Option<Error> {
        self.known.then(|| self.reason.unwrap_or_else(|| ErrorCode::ConnectionLost.into()))
    }

    pub fn pause(&mut self) {
        self.paused = true;
    }

    pub fn resume(&mut self) {
        self.paused = false;
    }

    /// Takes no further frames and ends once everything queued is sent.
    pub fn drain(&mut self, reason: Error, deadline: Instant) {
        match self.stage {
            Stage::Open | Stage::Handshake(_) => {
                self.stage = Stage::Draining { shut: false };
                self.reason = Some(reason);
                self.deadline = Some(deadline);
                self.inbox.abandon();
            }
            Stage::Connecting => self.end(reason),
            Stage::Draining { .. } | Stage::Ended => (),
        }
    }

    /// Tells the peer why, unless it told us, then ends.
    pub fn fail(&mut self, error: Error, patience: Duration) {
        if self.reason.is_none() {
            let body = encode_error(&error);
            let header = Header::new(Kind::Handshake, op::FAREWELL, 0, error.code as u32, &body, 0);
            self.outbox.push(header.as_bytes(), &body, None);
        }
        self.drain(error, Instant::now() + patience);
    }

    /// Ends at once.
    pub fn end(&mut self, reason: Error) {
        if matches!(self.stage, Stage::Ended) {
            return;
        }
        self.stage = Stage::Ended;
        self.deadline = None;
        self.reason.get_or_insert(reason);
        self.outbox.abandon();
        self.inbox.abandon();
        socket::shut_down(&self.socket, libc::SHUT_RDWR);
    }

    /// Ends at once, in an open connection's words.
    pub fn abort(&mut self, why: &str) {
        self.end(Error::new(ErrorCode::ConnectionLost, why).of(&self.address));
    }

    pub fn unacknowledged(&self) -> Option<Duration> {
        match self.stage {
            Stage::Open | Stage::Draining { .. } => socket::unacknowledged(&self.socket),
            Stage::Connecting | Stage::Handshake(_) | Stage::Ended => None,
        }
    }

    /// The deadline of the present stage has passed.
    pub fn too_late(&mut self) {
        let (code, what) = match self.stage {
            Stage::Connecting => (ErrorCode::Unreachable, "no connection in time"),
            Stage::Handshake(_) => (ErrorCode::Unreachable, "no handshake in time"),
            _ => (ErrorCode::ConnectionLost, "the peer did not take what was sent"),
        };
        self.end(Error::new(code, what).of(&self.address));
    }

    /// Whether an accepted peer keeps memory of this side until it goes on: it is in the middle of its data, or takes no replies.
    pub fn is_owed(&self) -> bool {
        self.accepted && self.is_open() && (self.owes_data() || !self.outbox.is_empty())
    }

    fn owes_data(&self) -> bool {
        self.inbox.is_placing() && !self.paused && !self.throttled()
    }

    /// Ends the connection if what it is owed has not moved at too many looks.
    pub fn look(&mut self) {
        let owed = self.accepted && self.is_open();
        let sending = self.sending.look(owed && self.owes_data(), self.counters.bytes_in);
        let reading = self.reading.look(owed && !self.outbox.is_empty(), self.counters.bytes_out);
        if sending {
            self.abort("the peer stopped in the middle of what it sent");
        } else if reading {
            self.abort("the peer takes no replies");
        }
    }

    /// Starts whatever can be started.
    pub fn start(&mut self, id: ConnId, ring: &mut Ring) {
        match self.stage {
            Stage::Connecting => self.start_connect(id, ring),
            Stage::Ended => self.cancel(id, ring),
            Stage::Handshake(_) | Stage::Open | Stage::Draining { .. } => {
                self.start_send(id, ring);
                self.start_receive(id, ring);
            }
        }
    }

    fn start_connect(&mut self, id: ConnId, ring: &mut Ring) {
        let Some(target) = self.target.as_ref().filter(|_| !self.connecting) else { return };
        self.connecting = true;
        let token = token(Operation::Connect, id);
        // SAFETY: the boxed address lives until the connection is gone, which is after the completion.
        unsafe { ring.connect(self.socket.as_raw_fd(), target.as_ptr(), target.len(), token) };
    }

    fn start_send(&mut self, id: ConnId, ring: &mut Ring) {
        if let Some(message) = self.outbox.start() {
            self.counters.sends += 1;
            // SAFETY: the outbox keeps message, pieces and bytes unchanged until `sent`, and lives until the completion.
            unsafe { ring.sendmsg(self.socket.as_raw_fd(), message, token(Operation::Send, id)) };
        }
        if let Stage::Draining { shut } = &mut self.stage
            && self.outbox.is_empty()
            && !std::mem::replace(shut, true)
        {
            socket::shut_down(&self.socket, libc::SHUT_WR);
        }
    }

    fn start_receive(&mut self, id: ConnId, ring: &mut Ring) {
        let blocked = (self.paused || self.throttled()) && !matches!(self.stage, Stage::Draining { .. });
        if blocked {
            return;
        }
        let (socket, token) = (self.socket.as_raw_fd(), token(Operation::Receive, id));
        let Some(receive) = self.inbox.start() else { return };
        self.counters.receives += 1;
        // SAFETY: the inbox owns this memory, touches it only after `received`, and lives until the completion.
        unsafe {
            match receive {
                Receive::Buffer { to, len, when } => ring.recv(socket, to, len, when, token),
                Receive::Message { message, when } => ring.recvmsg(socket, message, when, token),
            }
        }
    }

    /// Shutting the socket ends what is in flight; a connect in progress needs telling.
    fn cancel(&mut self, id: ConnId, ring: &mut Ring) {
        if self.cancelled {
            return;
        }
        self.cancelled = true;
        let flying = [
            (Operation::Connect, self.connecting),
            (Operation::Receive, self.inbox.in_flight()),
            (Operation::Send, self.outbox.in_flight()),
        ];
        for (operation, _) in flying.into_iter().filter(|(_, in_flight)| *in_flight) {
            ring.cancel(token(operation, id));
        }
    }

    fn throttled(&self) -> bool {
        self.accepted && self.outbox.len() > THROTTLE
    }

    /// Takes a completion of one of its operations.
    pub fn complete(&mut self, operation: Operation, completion: Completion, identity: &Identity) {
        match operation {
            Operation::Connect => self.connected(completion, identity),
            Operation::Receive => self.received(completion),
            Operation::Send => self.sent(completion),
        }
    }

    fn connected(&mut self, completion: Completion, identity: &Identity) {
        self.connecting = false;
        if !matches!(self.stage, Stage::Connecting) {
            return;
        }
        let nonce = completion.check().map_err(Error::from).and_then(|_| handshake::random());
        match nonce {
            Ok(nonce) => {
                let (handshake, hello) =
                    Handshake::connect_with(self.capabilities, identity, self.address.clone(), nonce);
                self.say(hello);
                self.stage = Stage::Handshake(Box::new(handshake));
            }
            Err(error) => {
                self.end(Error::new(ErrorCode::Unreachable, error.message).of(&self.address));
            }
        }
    }

    fn received(&mut self, completion: Completion) {
        if matches!(self.stage, Stage::Ended) {
            return self.inbox.failed();
        }
        match completion.check() {
            Ok(0) => {
                self.inbox.failed();
                self.lost("the peer closed the connection");
            }
            Ok(bytes) => {
                self.counters.bytes_in += bytes as u64;
                self.inbox.received(bytes, io_uring::cqueue::sock_nonempty(completion.flags));
                if matches!(self.stage, Stage::Draining { .. }) {
                    self.inbox.abandon();
                }
            }
            Err(error) => {
                self.inbox.failed();
                if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
                    self.lost(&format!("receiving: {error}"));
                }
            }
        }
    }

    fn sent(&mut self, completion: Completion) {
        match completion.check() {
            Ok(bytes) => {
                self.counters.bytes_out += bytes as u64;
                self.outbox.sent(bytes);
            }
            Err(error) => {
                self.outbox.sent(0);
                if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
                    self.lost(&format!("sending: {error}"));
                }
            }
        }
        if matches!(self.stage, Stage::Ended) {
            self.outbox.abandon();
        }
    }

    fn lost(&mut self, what: &str) {
        let code = match self.stage {
            Stage::Handshake(_) if !self.accepted => ErrorCode::Unreachable,
            _ => ErrorCode::ConnectionLost,
        };
        self.end(Error::new(code, what).of(&self.address));
    }

    fn say(&mut self, message: Message) {
        let header = Header::new(Kind::Handshake, message.op, 0, 0, &message.body, 0);
        self.outbox.push(header.as_bytes(), &message.body, None);
    }

    /// Hands the frames that have arrived to the handshake or the sink, as long as they are wanted. `patience` is for a
    /// connection that must be ended for what it sent.
    pub fn deliver(
        &mut self,
        id: ConnId,
        identity: &Identity,
        patience: Duration,
        sink: &mut impl FrameSink,
    ) {
        while !self.inbox.in_flight() && !self.paused && !self.throttled() {
            let body_max = match self.stage {
                Stage::Open => FRAME_BODY_MAX,
                Stage::Handshake(_) => HANDSHAKE_BODY_MAX,
                _ => return,
            };
            let outcome = match self.inbox.next(body_max) {
                Ok(Next::Receive) => return,
                Ok(Next::Place) => self.place(id, sink),
                Ok(Next::Announce) => {
                    let outcome = self.announce(id, identity, sink);
                    self.inbox.consume();
                    outcome
                }
                Err(error) => Err(error),
            };
            match outcome {
                Ok(Flow::Continue) => (),
                Ok(Flow::Pause) => self.paused = true,
                Err(error) => self.fail(error, patience),
            }
        }
    }

    fn place(&mut self, id: ConnId, sink: &mut impl FrameSink) -> Result<Flow> {
        let (header, body, here) = self.inbox.current();
        if !self.is_open() || header.kind() == Kind::Handshake {
            return Err(Error::new(ErrorCode::BadFrame, "a handshake carries no data"));
        }
        let placement = sink.place(id, header, body, here);
        Ok(if self.inbox.place(placement) { Flow::Continue } else { Flow::Pause })
    }

    fn announce(&mut self, id: ConnId, identity: &Identity, sink: &mut impl FrameSink) -> Result<Flow> {
        let (header, body, data) = self.inbox.take();
        match (&mut self.stage, header.kind()) {
            (_, Kind::Handshake) if header.status() != 0 => {
                let error = decode_error(header.status(), body).of(&self.address);
                self.reason = Some(error.clone());
                Err(error)
            }
            (Stage::Handshake(handshake), Kind::Handshake) => {
                let step = handshake.message(identity, header.op(), body)?;
                self.step(id, step, sink);
                Ok(Flow::Continue)
            }
            (Stage::Open, Kind::Request | Kind::Reply) => {
                self.counters.frames_in += 1;
                Ok(sink.frame(id, &header, body, data))
            }
            _ => Err(Error::new(ErrorCode::BadFrame, "a frame that has no place at this stage")),
        }
    }

    fn step(&mut self, id: ConnId, step: Step, sink: &mut impl FrameSink) {
        match step {
            Step::Send(message) => self.say(message),
            Step::Done(message, peer) => {
                message.into_iter().for_each(|message| self.say(message));
                self.stage = Stage::Open;
                self.deadline = None;
                self.known = true;
                sink.opened(id, &peer);
                self.peer = Some(peer);
            }
        }
    }
}
