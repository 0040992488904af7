//! Connections we made, by address: opened on demand, shared, closed when nobody has used them for a while.

use super::latch::Latch;
use crate::address::Address;
use crate::tcp::ConnId;
use corefs_wire::{Error, Result};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The connection to come, or why there is none.
pub type Opening = Latch<Result<ConnId>>;

#[derive(Default)]
pub struct Links {
    by_address: HashMap<Address, Link>,
    by_conn: HashMap<ConnId, Address>,
}

struct Link {
    conn: ConnId,
    opening: Opening,
    /// Frames sent when it was last looked at, and when that had last changed.
    frames: u64,
    used: Instant,
}

impl Links {
    /// The connection to `address`, open or on its way.
    pub fn get(&self, address: &Address) -> Option<Opening> {
        self.by_address.get(address).map(|link| link.opening.clone())
    }

    pub fn insert(&mut self, address: Address, conn: ConnId, now: Instant) -> Opening {
        let opening = Opening::new();
        self.by_conn.insert(conn, address.clone());
        self.by_address.insert(address, Link { conn, opening: opening.clone(), frames: 0, used: now });
        opening
    }

    pub fn opened(&mut self, conn: ConnId) {
        if let Some(link) = self.by_conn.get(&conn).and_then(|address| self.by_address.get(address)) {
            link.opening.set(Ok(conn));
        }
    }

    /// The connection is gone; whoever still waits for it learns why.
    pub fn closed(&mut self, conn: ConnId, error: &Error) {
        if let Some(address) = self.by_conn.remove(&conn)
            && self.by_address.get(&address).is_some_and(|link| link.conn == conn)
            && let Some(link) = self.by_address.remove(&address)
        {
            link.opening.set(Err(error.clone()));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// Takes out the open connections on which nothing was sent for `idle`. `frames` says how many frames a connection
    /// has sent so far, `None` while it awaits replies.
    pub fn take_idle(
        &mut self,
        now: Instant,
        idle: Duration,
        mut frames: impl FnMut(ConnId) -> Option<u64>,
    ) -> Vec<ConnId> {
        let mut taken = Vec::new();
        self.by_address.retain(|_, link| {
            let sent = frames(link.conn);
            if sent != Some(link.frames) || !link.opening.is_set() {
                link.frames = sent.unwrap_or(link.frames);
                link.used = now;
            }
            let stays = now.duration_since(link.used) < idle;
            if !stays {
                taken.push(link.conn);
            }
            stays
        });
        taken.iter().for_each(|conn| drop(self.by_conn.remove(conn)));
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::ErrorCode;
    use futures_lite::future::block_on;

    const CONN: ConnId = ConnId { index: 1, generation: 1 };

    #[test]
    fn an_unused_link_is_taken_and_a_used_one_stays() {
        let (mut links, start) = (Links::default(), Instant::now());
        let address: Address = "127.0.0.1:1".parse().unwrap();
        let opening = links.insert(address.clone(), CONN, start);
        let later = |seconds| start + Duration::from_secs(seconds);
        let idle = Duration::from_secs(10);
        assert!(links.take_idle(later(60), idle, |_| Some(0)).is_empty(), "it isn't open yet");
        links.opened(CONN);
        assert_eq!(block_on(opening.get()), Ok(CONN));
        assert!(links.take_idle(later(69), idle, |_| Some(0)).is_empty());
        assert!(links.take_idle(later(75), idle, |_| Some(1)).is_empty(), "a frame was sent");
        assert!(links.take_idle(later(90), idle, |_| None).is_empty(), "a reply is awaited");
        assert!(links.take_idle(later(99), idle, |_| Some(1)).is_empty());
        assert_eq!(links.take_idle(later(100), idle, |_| Some(1)), [CONN]);
        assert!(links.is_empty() && links.get(&address).is_none());
    }

    #[test]
    fn a_link_that_fails_tells_all_and_makes_room_for_another_try() {
        let mut links = Links::default();
        let address: Address = "127.0.0.1:1".parse().unwrap();
        let first = links.insert(address.clone(), CONN, Instant::now());
        links.closed(CONN, &ErrorCode::Unreachable.into());
        assert_eq!(block_on(first.get()).unwrap_err().code, ErrorCode::Unreachable);
        let newer = ConnId { generation: 2, ..CONN };
        links.insert(address.clone(), newer, Instant::now());
        links.closed(CONN, &ErrorCode::Unreachable.into());
        assert!(links.get(&address).is_some(), "the end of an older connection doesn't touch the newer");
    }
}
