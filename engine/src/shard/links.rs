//! Connections to successors' owners, opened when first needed, and the forwards in flight on them.

use crate::event::OpId;
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
    /// The successor, and what it is to be told.
    pub to: TargetId,
    pub version: u64,
    pub chain_version: u64,
    conn: ConnId,
    /// Tells it from an earlier one in the same place.
    serial: u32,
}

struct Link {
    address: String,
    conn: ConnId,
    open: bool,
    waiting: Vec<usize>,
}

/// Outgoing connections and forwards of one shard.
#[derive(Default)]
pub struct Links {
    links: Vec<Link>,
    forwards: Slab<Forward>,
    serial: u32,
    /// Forwards whose connection has opened.
    pub sendable: Vec<usize>,
}

/// Where a forward goes.
pub struct Route {
    pub to: TargetId,
    pub version: u64,
    pub chain_version: u64,
}

impl Links {
    /// The connection to `address`, if there is one.
    pub fn find(&self, address: &str) -> Option<ConnId> {
        self.links.iter().find(|link| link.address == address).map(|link| link.conn)
    }

    pub fn add(&mut self, address: &str, conn: ConnId) {
        self.links.push(Link { address: address.to_string(), conn, open: false, waiting: Vec::new() });
    }

    /// Enters a forward on `conn`; it is sendable now or once the connection is open.
    pub fn put(
        &mut self,
        conn: ConnId,
        op: OpId,
        target: TargetId,
        chunk: ChunkId,
        attempt: u64,
        route: Route,
    ) -> usize {
        self.serial = self.serial.wrapping_add(1);
        let Route { to, version, chain_version } = route;
        let serial = self.serial;
        let key = self.forwards.insert(Forward {
            op,
            target,
            chunk,
            attempt,
            to,
            version,
            chain_version,
            conn,
            serial,
        });
        match self.links.iter_mut().find(|link| link.conn == conn) {
            Some(link) if !link.open => link.waiting.push(key),
            _ => self.sendable.push(key),
        }
        key
    }

    /// Its connection and the number under which it is sent, if it is still wanted.
    pub fn get(&self, key: usize) -> Option<(&Forward, ConnId, u64)> {
        let forward = self.forwards.get(key)?;
        Some((forward, forward.conn, u64::from(forward.serial) << 32 | key as u64))
    }

    /// Forgets a forward: a late answer finds nothing.
    pub fn remove(&mut self, key: usize) -> Option<Forward> {
        for link in &mut self.links {
            link.waiting.retain(|waiting| *waiting != key);
        }
        self.sendable.retain(|sendable| *sendable != key);
        self.forwards.try_remove(key)
    }

    /// The forward that `request` on `conn` was.
    pub fn take(&mut self, conn: ConnId, request: u64) -> Option<Forward> {
        let key = request as u32 as usize;
        let known = self.forwards.get(key)?;
        let same = known.conn == conn && u64::from(known.serial) == request >> 32;
        same.then(|| self.forwards.remove(key))
    }

    pub fn opened(&mut self, conn: ConnId) {
        if let Some(link) = self.links.iter_mut().find(|link| link.conn == conn) {
            link.open = true;
            self.sendable.append(&mut link.waiting);
        }
    }

    /// The connection is gone, with all forwards on it.
    pub fn closed(&mut self, conn: ConnId) -> Vec<Forward> {
        self.links.retain(|link| link.conn != conn);
        let lost = |(key, forward): (usize, &Forward)| (forward.conn == conn).then_some(key);
        let keys: Vec<usize> = self.forwards.iter().filter_map(lost).collect();
        keys.into_iter().filter_map(|key| self.remove(key)).collect()
    }

    pub fn in_flight(&self) -> usize {
        self.forwards.len()
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
        let route = || Route { to: TargetId(2), version: 3, chain_version: 4 };
        let first = links.put(conn, OpId(7), TargetId(1), chunk, 1, route());
        assert!(links.sendable.is_empty());
        links.opened(conn);
        assert_eq!(links.sendable, [first]);
        let request = links.get(first).unwrap().2;
        links.remove(first);
        let again = links.put(conn, OpId(7), TargetId(1), chunk, 2, route());
        assert_eq!((first, links.sendable.as_slice()), (again, [again].as_slice()));
        assert_eq!(links.take(conn, request), None, "an answer to the first attempt");
        let request = links.get(again).unwrap().2;
        assert_eq!(links.take(ConnId { index: 9, generation: 0 }, request), None);
        assert_eq!(links.take(conn, request).map(|forward| forward.attempt), Some(2));
        links.put(conn, OpId(7), TargetId(1), chunk, 3, route());
        assert_eq!((links.closed(conn).len(), links.find("somewhere"), links.in_flight()), (1, None, 0));
    }
}
