//! Sending to others of a chain: updates to the next, questions when it is being filled, questions for blocks to any.

use super::Shard;
use super::links::{Fetch, Forward, Question, Route, Sent};
use crate::event::{Event, Nanos, OpId};
use corefs_net::{Address, ConnId, Payload};
use corefs_wire::data::{self, FORWARDED, Prefix, op};
use corefs_wire::frame::Kind;
use corefs_wire::{ChunkId, Error, ErrorCode, Result, TargetId};
use std::time::Duration;
use zerocopy::IntoBytes;

/// How long nothing of what was sent to another owner may stay without the kernel's acknowledgment there.
const DEAD_AFTER: Duration = Duration::from_millis(1500);
/// After how long without an answer another owner is asked whether it is there. What was sent may have been acknowledged, and the answer be what is lost: then nothing is
/// on its way that could stay without an acknowledgment, until the update is sent once more.
const PING_AFTER: Nanos = 400_000_000;
/// No place of what is in flight: the answer finds nothing.
const PING_REQUEST: u64 = u64::MAX;

impl Shard {
    /// Enters a forward; it leaves at once or when its connection is open.
    pub(super) fn forward(&mut self, op: OpId, target: TargetId, chunk: ChunkId, attempt: u64, route: Route) {
        if let Some(earlier) = self.desk.ops.update(op).forward.take() {
            self.desk.links.remove(earlier);
        }
        match self.link(route.to) {
            Ok(conn) => {
                let forward = Forward { op, target, chunk, attempt, route };
                let key = self.desk.links.put(conn, Sent::Forward(forward), self.desk.now);
                self.desk.ops.update(op).forward = Some(key);
                self.send_forwards();
            }
            Err(error) => self.desk.tell(Event::Answered { target, chunk, attempt, result: Err(error) }),
        }
    }

    /// Enters a question to the owner of `to`; it leaves as a forward does.
    pub(super) fn question(&mut self, to: TargetId, question: Question) {
        match self.link(to) {
            Ok(conn) => {
                self.desk.links.put(conn, Sent::Question(question), self.desk.now);
                self.send_forwards();
            }
            Err(error) => self.desk.lost(Sent::Question(question), &error),
        }
    }

    /// Enters a question for another replica's blocks; it leaves as a forward does.
    pub(super) fn fetch(&mut self, to: TargetId, fetch: Fetch) {
        match self.link(to) {
            Ok(conn) => {
                self.desk.links.put(conn, Sent::Fetch(fetch), self.desk.now);
                self.send_forwards();
            }
            Err(error) => self.desk.lost(Sent::Fetch(fetch), &error),
        }
    }

    /// The connection to the owner of a target.
    fn link(&mut self, to: TargetId) -> Result<ConnId> {
        let missing = || Error::new(ErrorCode::UnknownChain, format!("routing has no owner of {to}"));
        let owner = self.routing.owner(to).ok_or_else(missing)?;
        if let Some(conn) = self.desk.links.find(owner.address) {
            return Ok(conn);
        }
        let conn = self.carrier.connect(&owner.address.parse::<Address>()?)?;
        self.desk.links.add(owner.address, conn);
        Ok(conn)
    }

    /// Ends connections to others whose machines acknowledge nothing of what was sent, which TCP alone would try again for minutes. A process
    /// that is slow or stands still is none of them: its kernel goes on acknowledging. Called with each heartbeat.
    pub(super) fn end_dead_links(&mut self) {
        let busy: Vec<(ConnId, Nanos)> = self.desk.links.busy().collect();
        for (conn, since) in busy {
            if self.carrier.unacknowledged(conn).is_some_and(|since| since >= DEAD_AFTER) {
                self.carrier.abort(conn, "the other end acknowledges nothing");
            } else if since + PING_AFTER < self.desk.now {
                let body = Prefix::default();
                // A connection that takes nothing any more tells its end by itself.
                let _full =
                    self.carrier.send(conn, Kind::Request, op::PING, PING_REQUEST, 0, body.as_bytes(), None);
            }
        }
    }

    /// Sends everything whose connection is open.
    pub(super) fn send_forwards(&mut self) {
        for key in std::mem::take(&mut self.desk.links.sendable) {
            let Some((sent, conn, request)) = self.desk.links.get(key) else { continue };
            let outcome = match sent {
                Sent::Forward(forward) => {
                    let forward = *forward;
                    self.send_forward(&forward, conn, request)
                }
                Sent::Question(question) => {
                    self.carrier.send(conn, Kind::Request, question.op, request, 0, &question.body, None)
                }
                Sent::Fetch(fetch) => {
                    self.carrier.send(conn, Kind::Request, op::FETCH, request, 0, &fetch.body, None)
                }
            };
            if let Err(error) = outcome
                && let Some(sent) = self.desk.links.remove(key)
            {
                self.desk.lost(sent, &error);
            }
        }
    }

    fn send_forward(&mut self, forward: &Forward, conn: ConnId, request: u64) -> Result<()> {
        let update = self.desk.ops.update(forward.op);
        let mut message = update.message;
        let Route { to, version, chain_version, base } = forward.route;
        message.target = to.0.into();
        message.version = version.into();
        message.chain_version = chain_version.into();
        message.base = base.into();
        message.flags |= FORWARDED;
        self.body.clear();
        self.body.extend_from_slice(data::Prefix::default().as_bytes());
        self.body.extend_from_slice(message.as_bytes());
        update.crcs.iter().for_each(|crc| self.body.extend_from_slice(&crc.to_le_bytes()));
        let payload = update.buffer.as_ref().filter(|_| !update.payload.is_empty());
        let payload = payload.map(|buffer| Payload::new(buffer.clone(), update.payload.clone()));
        self.desk.counters.forwards += 1;
        self.carrier.send(conn, Kind::Request, op::UPDATE, request, 0, &self.body, payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::ground::shard;
    use crate::shard::links::Fetch;
    use std::time::Instant;

    fn until(shards: [&mut Shard; 2], what: &str, done: impl Fn(&Shard, &Shard) -> bool) {
        let [one, other] = shards;
        let began = Instant::now();
        while !done(one, other) {
            assert!(began.elapsed() < Duration::from_secs(20), "{what} doesn't come");
            for shard in [&mut *one, &mut *other] {
                shard.rest().unwrap();
                shard.turn();
            }
        }
    }

    #[test]
    fn another_owner_that_owes_an_answer_for_long_is_asked_whether_it_is_there() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut asking, mut silent) = (shard(here.path()), shard(there.path()));
        let address = silent.address().to_string();
        let conn = asking.carrier.connect(&silent.address().clone()).unwrap();
        asking.desk.links.add(&address, conn);
        until([&mut asking, &mut silent], "a connection", |asking, _| asking.desk.links.is_open(&address));
        // Its answer was lost.
        let fetch = Sent::Fetch(Fetch { ticket: 1, bytes: 0, body: Vec::new() });
        asking.desk.links.put(conn, fetch, asking.desk.now);
        asking.desk.links.sendable.clear();
        asking.end_dead_links();
        asking.desk.now += PING_AFTER;
        asking.end_dead_links();
        assert_eq!(asking.desk.links.in_flight(), 1);
        asking.desk.now += 1;
        asking.end_dead_links();
        until([&mut asking, &mut silent], "a ping", |_, silent| silent.desk.counters.pings > 0);
        // The answer to that is no answer to what was asked.
        for _ in 0..3 {
            silent.turn();
            asking.rest().unwrap();
            asking.turn();
        }
        assert_eq!((silent.desk.counters.pings, silent.desk.counters.bad_frames), (1, 0));
        assert_eq!((asking.desk.links.in_flight(), asking.desk.links.is_open(&address)), (1, true));
        asking.dispose();
        silent.dispose();
    }
}
