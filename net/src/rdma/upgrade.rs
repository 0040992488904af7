//! How a connection comes to its queue pair: the exchange of [`setup`](super::setup), played by both ends.
//!
//! ```text
//!            offer          answer            something came by the queue pair
//!  Greeting -------> Offered -------> Proving --------------------------------> Open --> Draining --> Over
//!     |  \-> Expecting --------------^   |
//!     \--------------\--------------------\--> Plain  (no RDMA at one end, refused, declined, not answered, or the path doesn't work)
//! ```

use super::connections::{Errand, Inner};
use super::lane::{Lane, Plan};
use super::setup::{Terms, op};
use super::survey::{Sign, choose};
use super::{Choice, Rdma, seat};
use crate::contract::FrameSink;
use crate::handshake;
use crate::tcp::ConnId;
use corefs_wire::error::{decode_error, encode_error};
use corefs_wire::frame::Kind;
use corefs_wire::{Error, ErrorCode, Result};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

/// Where a connection is in its life.
pub enum Stage {
    /// TCP is at its handshake, or an offer is about to be made.
    Greeting,
    /// Frames go by TCP.
    Plain,
    /// We have made an offer.
    Offered(Box<Lane>),
    /// The peer is to make one.
    Expecting,
    /// The queue pair is connected; nothing has come by it yet.
    Proving(Box<Lane>),
    /// Frames go by it.
    Open(Box<Lane>),
    /// Closed by this side: what is queued is still sent.
    Draining(Box<Lane>),
    /// Only the TCP connection's end is awaited.
    Over,
}

impl Stage {
    pub fn has_lane(&self) -> bool {
        matches!(self, Self::Offered(_) | Self::Proving(_) | Self::Open(_) | Self::Draining(_))
    }

    pub fn lane(&self) -> Option<&Lane> {
        match self {
            Self::Offered(lane) | Self::Proving(lane) | Self::Open(lane) | Self::Draining(lane) => Some(lane),
            Self::Greeting | Self::Plain | Self::Expecting | Self::Over => None,
        }
    }

    /// A queue pair whose completions count.
    pub fn lane_mut(&mut self) -> Option<&mut Lane> {
        match self {
            Self::Offered(lane) | Self::Proving(lane) | Self::Open(lane) | Self::Draining(lane) => Some(lane),
            Self::Greeting | Self::Plain | Self::Expecting | Self::Over => None,
        }
    }
}

/// How much longer than the side that connects the other one waits: who connects decides that a path doesn't work, and what it says of that has to find
/// somebody who still listens.
const PATIENCE: u32 = 3;

impl Inner {
    /// The handshake is done, with a peer that is able to go by RDMA or not. `false` if frames may flow at once.
    pub(super) fn met(&mut self, conn: ConnId, able: bool) -> bool {
        let Some(entry) = self.entry(conn) else { return true };
        let accepted = entry.accepted;
        if able && accepted {
            let deadline = self.deadline(accepted);
            self.timed = true;
            if let Some(entry) = self.entry_mut(conn) {
                (entry.stage, entry.deadline) = (Stage::Expecting, Some(deadline));
            }
            return true;
        }
        if able {
            self.errands.push_back(Errand::Offer(conn));
            return true;
        }
        let why = match self.roads.is_empty() {
            true => "no RDMA port can be used here",
            false => "the other side offers no RDMA: `corefs doctor` says there why",
        };
        if self.insists && self.config.choice == Choice::Firm && !accepted {
            self.refuse(conn, why);
            return true;
        }
        if let Some(entry) = self.entry_mut(conn) {
            (entry.stage, entry.known, entry.why) = (Stage::Plain, true, Some(why.to_string()));
        }
        false
    }

    fn deadline(&self, accepted: bool) -> Instant {
        Instant::now() + self.config.tcp.patience * if accepted { PATIENCE } else { 1 }
    }

    /// Ends a connection that can't go by RDMA but must.
    fn refuse(&mut self, conn: ConnId, why: &str) {
        self.drop_lane(conn);
        let error = Error::new(ErrorCode::Unreachable, format!("RDMA was asked for: {why}"));
        self.errands.push_back(Errand::Fail(conn, error));
    }

    /// A path that doesn't work isn't used; frames go by TCP.
    pub(super) fn fall_back(&mut self, conn: ConnId, why: &Error) {
        tracing::warn!(%why, "an RDMA path doesn't work; going on over TCP");
        if self.config.choice == Choice::Firm {
            return self.refuse(conn, &why.to_string());
        }
        self.decline(conn, &why.message);
    }

    /// Frames go by TCP, which the other side is told.
    pub(super) fn decline(&mut self, conn: ConnId, why: &str) {
        let offered = self.entry(conn).is_some_and(|entry| matches!(entry.stage, Stage::Offered(_)));
        self.drop_lane(conn);
        if let Some(entry) = self.entry_mut(conn) {
            entry.unanswered = offered;
            entry.why = Some(why.to_string());
        }
        self.errands.push_back(Errand::Say(conn, op::DECLINE, 0, Vec::new()));
        self.errands.push_back(Errand::Plain(conn));
    }

    /// Whether an offer to where this connection leads would be in vain, as others were.
    fn is_distrusted(&self, conn: ConnId) -> bool {
        let address = self.entry(conn).and_then(|entry| entry.address.as_ref());
        self.config.choice == Choice::Auto
            && address.is_some_and(|to| self.distrust.rests(to, Instant::now()))
    }

    /// The time of the present stage is over.
    pub(super) fn too_late(&mut self, conn: ConnId) {
        let Some(entry) = self.entry_mut(conn) else { return };
        let accepted = entry.accepted;
        match entry.stage {
            Stage::Offered(_) if !accepted => {
                let error = Error::new(ErrorCode::TimedOut, "the offer was not answered in time");
                self.fall_back(conn, &error);
            }
            Stage::Proving(_) if !accepted => {
                let error = Error::new(ErrorCode::TimedOut, "nothing came by the queue pair in time");
                self.fall_back(conn, &error);
            }
            Stage::Draining(_) => {
                self.drop_lane(conn);
                let error = Error::new(ErrorCode::ConnectionLost, "the peer did not take what was sent");
                self.errands.push_back(Errand::Close(conn, error));
            }
            _ => {
                self.drop_lane(conn);
                let error = Error::new(ErrorCode::Unreachable, "no agreement on RDMA in time");
                self.errands.push_back(Errand::Fail(conn, error));
            }
        }
    }

    /// A queue pair on the best road for a connection that goes out from `local`.
    fn lane(&mut self, conn: ConnId, local: Option<IpAddr>) -> Result<Box<Lane>> {
        if self.lanes >= self.config.queue_pairs_max {
            return Err(Error::new(ErrorCode::Overloaded, "too many queue pairs"));
        }
        let signs = self.roads.iter().map(|(road, _)| Sign::from(road));
        let Some(at) = choose(signs, local, self.config.numa, &self.networks) else {
            return Err(Error::new(ErrorCode::Unreachable, "no RDMA port can be used now"));
        };
        let (seat, lanes) = (self.roads[at].1, self.lanes);
        let shared = match lanes >= self.config.shared_from {
            true => Some(self.seats[seat].share(&self.config)?),
            false => None,
        };
        let lends = self.config.lends && self.entry(conn).is_some_and(|entry| !entry.accepted);
        let (road, seat) = (&self.roads[at].0, &mut self.seats[seat]);
        let sharing = shared.is_some();
        let random = handshake::random()?;
        let sequence = u32::from_le_bytes([random[0], random[1], random[2], 0]);
        let lane = Lane::new(Plan {
            domain: &seat.domain,
            completions: &seat.completions,
            regions: seat.regions.clone(),
            port: &road.port,
            gid: road.gid,
            arena: seat.arena.clone(),
            shared,
            receives: if sharing { self.config.shared_receives } else { self.config.receives },
            message: self.config.message,
            grants: self.config.grants,
            lends,
            sends: if sharing { seat.sends_sharing } else { seat.sends },
            ended: Rc::clone(&seat.ended),
            owner: seat::owner(conn),
            sequence,
        })?;
        if sharing {
            seat.claim(lane.number())?;
        }
        Ok(Box::new(lane))
    }

    /// Gives a connection its queue pair.
    fn set_lane(&mut self, conn: ConnId, stage: Stage) {
        let accepted = self.entry(conn).is_some_and(|entry| entry.accepted);
        let deadline = self.deadline(accepted);
        self.timed = true;
        self.lanes += 1;
        if let Some(entry) = self.entry_mut(conn) {
            (entry.stage, entry.deadline) = (stage, Some(deadline));
        }
        self.touch(conn);
    }
}

impl Rdma {
    /// Does what is to be done with TCP connections.
    pub(super) fn run_errands(&mut self, sink: &mut impl FrameSink) {
        while let Some(errand) = self.inner.errands.pop_front() {
            match errand {
                Errand::Offer(conn) => self.offer(conn),
                Errand::Said(conn, code, status, body) => {
                    self.said(conn, code, status, &body);
                    // What follows waited for what this leads to, which may be an errand still.
                    self.inner.errands.push_back(Errand::Resume(conn));
                }
                Errand::Open(conn) => self.open(conn, sink),
                Errand::Plain(conn) => self.plain(conn, sink),
                other => self.run_silent(other),
            }
        }
    }

    /// The same without a sink: what needs one waits for the next turn.
    pub(super) fn run_silent_errands(&mut self) {
        for _ in 0..self.inner.errands.len() {
            match self.inner.errands.pop_front() {
                Some(
                    errand @ (Errand::Say(..) | Errand::Close(..) | Errand::Fail(..) | Errand::Resume(_)),
                ) => {
                    self.run_silent(errand);
                }
                other => self.inner.errands.extend(other),
            }
        }
    }

    fn run_silent(&mut self, errand: Errand) {
        match errand {
            // A connection that has ended is told of by TCP.
            Errand::Say(conn, code, status, body) => {
                let _ = self.tcp.send(conn, Kind::Request, code, 0, status, &body, None);
            }
            Errand::Close(conn, error) => self.tcp.close_for(conn, error),
            Errand::Fail(conn, error) => self.tcp.fail(conn, error),
            Errand::Resume(conn) => self.tcp.resume(conn),
            Errand::Offer(_) | Errand::Said(..) | Errand::Open(_) | Errand::Plain(_) => {
                unreachable!("it needs the sink")
            }
        }
    }

    fn say(&mut self, conn: ConnId, code: u16, status: u32, body: Vec<u8>) {
        self.inner.errands.push_back(Errand::Say(conn, code, status, body));
    }

    fn offer(&mut self, conn: ConnId) {
        if !matches!(self.inner.entry(conn), Some(entry) if matches!(entry.stage, Stage::Greeting)) {
            return;
        }
        if self.inner.is_distrusted(conn) {
            return self.inner.decline(conn, "RDMA has failed again and again on the way there");
        }
        match self.inner.lane(conn, self.tcp.local(conn)) {
            Ok(lane) => {
                let terms = lane.terms().encode();
                self.inner.set_lane(conn, Stage::Offered(lane));
                self.say(conn, op::OFFER, 0, terms);
            }
            Err(error) => self.inner.fall_back(conn, &error),
        }
    }

    /// The peer has said something of the exchange.
    fn said(&mut self, conn: ConnId, code: u16, status: u32, body: &[u8]) {
        let Some(entry) = self.inner.entry_mut(conn) else { return };
        let accepted = entry.accepted;
        let outcome = match (&mut entry.stage, code) {
            (Stage::Expecting, op::OFFER) => self.offered(conn, body),
            (Stage::Offered(_), op::ANSWER) => self.answered(conn, status, body),
            (Stage::Expecting | Stage::Proving(_), op::DECLINE) if accepted => {
                self.inner.drop_lane(conn);
                self.plain_or_refused(conn, "the other side declined");
                Ok(())
            }
            // It never heard that we are open. Nothing is lost if nothing was said.
            (Stage::Open(lane), op::DECLINE) if accepted && lane.is_fresh() => {
                self.inner.drop_lane(conn);
                self.unopen(conn);
                Ok(())
            }
            (Stage::Proving(lane) | Stage::Open(lane) | Stage::Draining(lane), op::NEWS) => {
                let outcome = lane.news(body);
                self.inner.look_at(conn);
                self.inner.touch(conn);
                outcome
            }
            (Stage::Over, _) => Ok(()),
            _ => Err(Error::mismatch(ErrorCode::BadFrame, 0, code.into(), "RDMA: said out of turn")),
        };
        if let Err(error) = outcome {
            self.inner.drop_lane(conn);
            self.inner.errands.push_back(Errand::Fail(conn, error));
        }
    }

    /// A connection that was announced goes on over TCP.
    fn unopen(&mut self, conn: ConnId) {
        if let Some(entry) = self.inner.entry_mut(conn) {
            (entry.stage, entry.why) = (Stage::Plain, Some("the other side declined".to_string()));
        }
    }

    /// Whoever connects decides whether TCP will do.
    fn plain_or_refused(&mut self, conn: ConnId, why: &str) {
        let accepted = self.inner.entry(conn).is_some_and(|entry| entry.accepted);
        if let Some(entry) = self.inner.entry_mut(conn) {
            entry.why = Some(why.to_string());
        }
        match self.inner.config.choice {
            Choice::Firm if !accepted => self.inner.refuse(conn, why),
            _ => self.inner.errands.push_back(Errand::Plain(conn)),
        }
    }

    /// The other side's terms; inside, why we can't agree. What can't be terms ends the connection.
    fn terms(body: &[u8]) -> Result<Result<Terms>> {
        match Terms::decode(body) {
            Err(error) if error.code == ErrorCode::BadFrame => Err(error),
            other => Ok(other),
        }
    }

    /// Terms that break the protocol end the connection; whatever else is in the way is answered, and frames go by TCP.
    fn offered(&mut self, conn: ConnId, body: &[u8]) -> Result<()> {
        let theirs = Self::terms(body)?;
        let (local, patience) = (self.tcp.local(conn), self.inner.config.patience);
        let made = theirs.and_then(|theirs| {
            let mut lane = self.inner.lane(conn, local)?;
            lane.connect(theirs, patience)?;
            Ok(lane)
        });
        match made {
            Ok(lane) => {
                let terms = lane.terms().encode();
                self.inner.set_lane(conn, Stage::Proving(lane));
                self.say(conn, op::ANSWER, 0, terms);
            }
            Err(error) => {
                tracing::info!(%error, "an offer to go by RDMA is refused");
                self.say(conn, op::ANSWER, error.code as u32, encode_error(&error));
                self.plain_or_refused(conn, &error.message);
            }
        }
        Ok(())
    }

    fn answered(&mut self, conn: ConnId, status: u32, body: &[u8]) -> Result<()> {
        if status != 0 {
            let error = decode_error(status, body);
            tracing::info!(%error, "the offer to go by RDMA was refused; going on over TCP");
            self.inner.drop_lane(conn);
            self.plain_or_refused(conn, &error.message);
            return Ok(());
        }
        let theirs = match Self::terms(body)? {
            Ok(theirs) => theirs,
            Err(error) => {
                self.inner.fall_back(conn, &error);
                return Ok(());
            }
        };
        let patience = self.inner.config.patience;
        let Some(entry) = self.inner.entry_mut(conn) else { return Ok(()) };
        let Stage::Offered(mut lane) = std::mem::replace(&mut entry.stage, Stage::Over) else {
            return Ok(());
        };
        match lane.connect(theirs, patience) {
            Ok(()) => {
                lane.greet();
                entry.stage = Stage::Proving(lane);
                self.inner.touch(conn);
            }
            Err(error) => {
                entry.stage = Stage::Offered(lane);
                self.inner.fall_back(conn, &error);
            }
        }
        Ok(())
    }

    /// Something has come by the queue pair: it is used from now on.
    fn open(&mut self, conn: ConnId, sink: &mut impl FrameSink) {
        let Some(entry) = self.inner.entry_mut(conn) else { return };
        let mut lane = match std::mem::replace(&mut entry.stage, Stage::Over) {
            Stage::Proving(lane) => lane,
            other => return entry.stage = other,
        };
        if entry.accepted {
            lane.greet();
        }
        entry.stage = Stage::Open(lane);
        self.announce(conn, sink);
        self.inner.touch(conn);
        self.inner.look_at(conn);
    }

    fn plain(&mut self, conn: ConnId, sink: &mut impl FrameSink) {
        let Some(entry) = self.inner.entry_mut(conn) else { return };
        // It may have ended meanwhile.
        if !self.tcp.is_open(conn) {
            return;
        }
        entry.stage = Stage::Plain;
        self.announce(conn, sink);
        self.inner.errands.push_back(Errand::Resume(conn));
    }

    fn announce(&mut self, conn: ConnId, sink: &mut impl FrameSink) {
        let Some(entry) = self.inner.entry_mut(conn) else { return };
        entry.deadline = None;
        entry.known = true;
        if let Some(peer) = self.tcp.peer(conn) {
            sink.opened(conn, peer);
        }
    }
}
