//! The answering side: requests of peers, how many each has unanswered, and the replies owed.

use super::{Node, Request, State};
use crate::buffer::Payload;
use crate::handshake::Peer;
use crate::tcp::ConnId;
use corefs_wire::error::encode_error;
use corefs_wire::frame::Kind;
use corefs_wire::limits::CONNECTION_REQUESTS_MAX;
use corefs_wire::{Error, ErrorCode};
use std::rc::Rc;

/// Who answers requests. Implementations that wait for anything spawn a local task.
pub trait Service {
    fn request(&self, request: Request, responder: Responder);
}

/// Open connections and their unanswered requests.
#[derive(Default)]
pub struct Served {
    /// By connection index.
    open: Vec<Option<Open>>,
    unanswered: usize,
}

struct Open {
    generation: u32,
    peer: Rc<Peer>,
    unanswered: usize,
}

impl Served {
    pub fn opened(&mut self, conn: ConnId, peer: &Peer) {
        let index = conn.index as usize;
        if self.open.len() <= index {
            self.open.resize_with(index + 1, || None);
        }
        self.open[index] =
            Some(Open { generation: conn.generation, peer: Rc::new(peer.clone()), unanswered: 0 });
    }

    pub fn closed(&mut self, conn: ConnId) {
        if let Some(open) = self.get(conn) {
            self.unanswered -= open.unanswered;
            self.open[conn.index as usize] = None;
        }
    }

    pub fn peer(&mut self, conn: ConnId) -> Option<Rc<Peer>> {
        self.get(conn).map(|open| Rc::clone(&open.peer))
    }

    /// One more request. `false` when the connection has as many as it may.
    pub fn add(&mut self, conn: ConnId) -> bool {
        let Some(open) = self.get(conn) else { return true };
        open.unanswered += 1;
        let more = open.unanswered < CONNECTION_REQUESTS_MAX;
        self.unanswered += 1;
        more
    }

    /// One is answered. `true` if the connection was at its bound and may go on.
    fn remove(&mut self, conn: ConnId) -> bool {
        let Some(open) = self.get(conn) else { return false };
        open.unanswered -= 1;
        let resume = open.unanswered + 1 == CONNECTION_REQUESTS_MAX;
        self.unanswered -= 1;
        resume
    }

    /// Requests of all connections.
    pub fn unanswered(&self) -> usize {
        self.unanswered
    }

    fn get(&mut self, conn: ConnId) -> Option<&mut Open> {
        let open = self.open.get_mut(conn.index as usize)?.as_mut();
        open.filter(|open| open.generation == conn.generation)
    }
}

/// Owes one reply; dropped without, it replies `Internal`.
pub struct Responder {
    node: Node,
    conn: ConnId,
    op: u16,
    request: u64,
    owed: bool,
}

impl Responder {
    /// Replies. A payload beyond limits::FRAME_DATA_MAX is replaced by the error.
    pub fn ok(mut self, body: &[u8], payload: Option<Payload>) {
        self.reply(0, body, payload);
    }

    pub fn err(mut self, error: &Error) {
        self.refuse(error);
    }

    /// Either, for a typed result.
    pub fn done(self, outcome: Result<Vec<u8>, Error>) {
        match outcome {
            Ok(body) => self.ok(&body, None),
            Err(error) => self.err(&error),
        }
    }

    fn refuse(&mut self, error: &Error) {
        self.reply(error.code as u32, &encode_error(error), None);
    }

    fn reply(&mut self, status: u32, body: &[u8], payload: Option<Payload>) {
        let inner = &self.node.0;
        let sent = inner.carrier.borrow_mut().send(
            self.conn,
            Kind::Reply,
            self.op,
            self.request,
            status,
            body,
            payload,
        );
        match sent {
            // Nobody is left who could want it.
            Ok(()) | Err(Error { code: ErrorCode::ConnectionLost, .. }) => (),
            // The peer takes no replies: it loses them all.
            Err(Error { code: ErrorCode::Overloaded, .. }) => inner.carrier.borrow_mut().close(self.conn),
            Err(error) => return self.refuse(&error),
        }
        self.owed = false;
        if inner.served.borrow_mut().remove(self.conn) {
            inner.carrier.borrow_mut().resume(self.conn);
        }
        inner.bell.ring();
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if self.owed {
            self.refuse(&Error::new(ErrorCode::Internal, "the request was dropped without an answer"));
        }
    }
}

/// A request that has arrived and waits for its turn.
pub struct Arrived {
    pub conn: ConnId,
    pub op: u16,
    pub number: u64,
    pub body: Vec<u8>,
    pub data: Option<crate::buffer::Buffer>,
}

impl Node {
    /// Hands a request to the service, or refuses it.
    pub(super) fn dispatch(&self, arrived: Arrived) {
        let Arrived { conn, op, number, body, data } = arrived;
        let responder = Responder { node: self.clone(), conn, op, request: number, owed: true };
        let Some(peer) = self.peer(conn) else { return };
        if self.0.state.get() != State::Running {
            return responder.err(&Error::new(ErrorCode::ShuttingDown, "this server is stopping"));
        }
        let service = self.0.service.borrow().clone();
        match service {
            Some(service) => service.request(Request { peer, conn, op, body, data }, responder),
            None => {
                let what = format!("operation {op:#06x} is not served here");
                responder.err(&Error::new(ErrorCode::UnknownOperation, what));
            }
        }
    }
}
