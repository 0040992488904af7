//! Connections to owners of other replicas, opened when first needed, and the forwards, questions and fetches in flight on them.

use crate::event::{Nanos, OpId};
use corefs_net::ConnId;
use corefs_wire::{ChunkId, TargetId};
use slab::Slab;

/// An update sent on, or waiting for its connection to open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Forward {
    pub op: OpId,
    pub target: TargetId,
    pub chunk: ChunkId,
    pub attempt: u64,
    pub route: Route,
}

/// Where a forward goes, and what the successor is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    pub to: TargetId,
    pub version: u64,
    pub chain_version: u64,
    pub base: u64,
}

/// A question to a successor that is being filled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    pub target: TargetId,
    pub ticket: u64,
    pub op: u16,
    pub body: Vec<u8>,
}

/// Blocks that another replica is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fetch {
    pub ticket: u64,
    /// Most bytes that may come.
    pub bytes: usize,
    pub body: Vec<u8>,
}

/// What is sent to another owner.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sent {
    Forward(Forward),
    Question(Question),
    Fetch(Fetch),
}

struct InFlight {
    sent: Sent,
    conn: ConnId,
    /// Tells it from an earlier one in the same place.
    serial: u32,
    since: Nanos,
}

struct Link {
    address: String,
    conn: ConnId,
    open: bool,
    waiting: Vec<usize>,
}

/// Outgoing connections of one shard, and what was sent on them.
#[derive(Default)]
pub struct Links {
    links: Vec<Link>,
    in_flight: Slab<InFlight>,
    serial: u32,
    /// Those whose connection has opened.
    pub sendable: Vec<usize>,
}

impl Links {
    /// The connection to `address`, if there is one.
    pub fn find(&self, address: &str) -> Option<ConnId> {
        self.links.iter().find(|link| link.address == address).map(|link| link.conn)
    }

    pub fn is_open(&self, address: &str) -> bool {
        self.links.iter().any(|link| link.address == address && link.open)
    }

    pub fn add(&mut self, address: &str, conn: ConnId) {
        self.links.push(Link { address: address.to_string(), conn, open: false, waiting: Vec::new() });
    }

    /// Enters something to be sent on `conn`; it is sendable now or once the connection is open.
    pub fn put(&mut self, conn: ConnId, sent: Sent, since: Nanos) -> usize {
        self.serial = self.serial.wrapping_add(1);
        let key = self.in_flight.insert(InFlight { sent, conn, serial: self.serial, since });
        match self.links.iter_mut().find(|link| link.conn == conn) {
            Some(link) if !link.open => link.waiting.push(key),
            _ => self.sendable.push(key),
        }
        key
    }

    /// What it is, its connection, and the number under which it is sent, if it is still wanted.
    pub fn get(&self, key: usize) -> Option<(&Sent, ConnId, u64)> {
        let found = self.in_flight.get(key)?;
        Some((&found.sent, found.conn, u64::from(found.serial) << 32 | key as u64))
    }

    /// Forgets something sent: a late answer finds nothing.
    pub fn remove(&mut self, key: usize) -> Option<Sent> {
        for link in &mut self.links {
            link.waiting.retain(|waiting| *waiting != key);
        }
        self.sendable.retain(|sendable| *sendable != key);
        self.in_flight.try_remove(key).map(|found| found.sent)
    }

    /// Looks at what `request` on `conn` was.
    pub fn peek(&self, conn: ConnId, request: u64) -> Option<&Sent> {
        let known = self.in_flight.get(request as u32 as usize)?;
        let same = known.conn == conn && u64::from(known.serial) == request >> 32;
        same.then_some(&known.sent)
    }

    /// What `request` on `conn` was.
    pub fn take(&mut self, conn: ConnId, request: u64) -> Option<Sent> {
        self.peek(conn, request)?;
        Some(self.in_flight.remove(request as u32 as usize).sent)
    }

    pub fn opened(&mut self, conn: ConnId) {
        if let Some(link) = self.links.iter_mut().find(|link| link.conn == conn) {
            link.open = true;
            self.sendable.append(&mut link.waiting);
        }
    }

    /// The connection is gone, with all that was sent on it.
    pub fn closed(&mut self, conn: ConnId) -> Vec<Sent> {
        self.links.retain(|link| link.conn != conn);
        let lost = |(key, found): (usize, &InFlight)| (found.conn == conn).then_some(key);
        let keys: Vec<usize> = self.in_flight.iter().filter_map(lost).collect();
        keys.into_iter().filter_map(|key| self.remove(key)).collect()
    }

    /// Connections on which something waits for an answer, and since when.
    pub fn busy(&self) -> impl Iterator<Item = (ConnId, Nanos)> {
        let of = |conn: ConnId| self.in_flight.iter().filter(move |(_, found)| found.conn == conn);
        let waits = move |conn: ConnId| Some((conn, of(conn).map(|(_, found)| found.since).min()?));
        self.links.iter().filter(|link| link.open).filter_map(move |link| waits(link.conn))
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::InodeId;

    #[test]
    fn forwards_wait_for_their_connection_and_late_answers_find_nothing() {
        let mut links = Links::default();
        let conn = ConnId { index: 1, generation: 1 };
        links.add("somewhere", conn);
        let chunk = ChunkId::new(InodeId(1), 0);
        let route = Route { to: TargetId(2), version: 3, chain_version: 4, base: 0 };
        let forward =
            |attempt| Sent::Forward(Forward { op: OpId(7), target: TargetId(1), chunk, attempt, route });
        let first = links.put(conn, forward(1), 10);
        assert!(links.sendable.is_empty());
        links.opened(conn);
        assert_eq!(links.sendable, [first]);
        let request = links.get(first).unwrap().2;
        links.remove(first);
        let again = links.put(conn, forward(2), 20);
        assert_eq!((first, links.sendable.as_slice()), (again, [again].as_slice()));
        assert_eq!(links.take(conn, request), None, "an answer to the first attempt");
        let request = links.get(again).unwrap().2;
        assert_eq!(links.take(ConnId { index: 9, generation: 0 }, request), None);
        assert_eq!(links.take(conn, request), Some(forward(2)));
        links.put(conn, forward(3), 30);
        let question = Question { target: TargetId(1), ticket: 5, op: 4, body: vec![1] };
        links.put(conn, Sent::Question(question.clone()), 40);
        assert_eq!(links.busy().collect::<Vec<_>>(), [(conn, 30)]);
        let lost = links.closed(conn);
        assert_eq!(lost, [forward(3), Sent::Question(question)]);
        assert_eq!((links.find("somewhere"), links.in_flight()), (None, 0));
    }
}
