//! Requests that await their reply. Pure but for wakers: no clock, no I/O.
//!
//! A request number is a slot of the table and how often the slot was used before. So a late reply to a request that was given
//! up finds nothing, whoever uses the slot now, and is thrown away.

use super::Reply;
use crate::buffer::Buffer;
use crate::tcp::ConnId;
use corefs_wire::error::decode_error;
use corefs_wire::frame::Header;
use corefs_wire::limits::CONNECTION_REQUESTS_MAX;
use corefs_wire::{Error, ErrorCode, Result};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// Whoever is to be nudged is looked for no more often: all requests are looked through.
const NUDGES_APART: Duration = Duration::from_micros(500);

#[derive(Default)]
pub struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Requests in flight by connection index, for the generation that has them.
    counts: Vec<(u32, usize)>,
    /// Requests that may still time out.
    timed: usize,
    /// Granted to replies that nobody awaits any more.
    abandoned: Vec<(ConnId, u64)>,
    /// When somebody is to be nudged, or was to be: the reply may have come since.
    next_nudge: Option<Instant>,
}

struct Slot {
    generation: u32,
    state: State,
}

enum State {
    Free,
    Waiting {
        conn: ConnId,
        place: Option<(Buffer, usize)>,
        /// Instead of a place, memory of ours is open to the peer.
        granted: bool,
        waker: Option<Waker>,
        deadline: Option<Instant>,
        nudge: Option<Instant>,
    },
    Done(Result<Reply>),
}

/// Where the data of a reply go.
pub enum Place {
    Given(Buffer, usize),
    /// The requester leaves it to us.
    Any,
    /// Nobody awaits this reply, or its data don't fit.
    Nowhere,
}

impl Table {
    /// A number for a request on `conn`. `Overloaded` at the bound.
    pub fn insert(&mut self, conn: ConnId, place: Option<(Buffer, usize)>) -> Result<u64> {
        let count = self.count(conn);
        if *count >= CONNECTION_REQUESTS_MAX {
            return Err(Error::new(ErrorCode::Overloaded, "too many requests in flight on one connection"));
        }
        *count += 1;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, state: State::Free });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.state = State::Waiting { conn, place, granted: false, waker: None, deadline: None, nudge: None };
        Ok(u64::from(slot.generation) << 32 | u64::from(index))
    }

    /// Requests in flight on `conn`.
    pub fn in_flight(&mut self, conn: ConnId) -> usize {
        *self.count(conn)
    }

    /// Whether any request has a deadline.
    pub fn is_timed(&self) -> bool {
        self.timed > 0
    }

    /// Whether nothing awaits a reply or to be looked at.
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    pub fn set_deadline(&mut self, request: u64, at: Instant) {
        if let Some(State::Waiting { deadline, .. }) = self.state(request)
            && deadline.replace(at).is_none()
        {
            self.timed += 1;
        }
    }

    /// Whoever awaits the reply is woken at that time, once, if it hasn't come.
    pub fn set_nudge(&mut self, request: u64, at: Instant) {
        if let Some(State::Waiting { nudge, .. }) = self.state(request) {
            *nudge = Some(at);
            if self.next_nudge.is_none_or(|next| at < next) {
                self.next_nudge = Some(at);
            }
        }
    }

    /// When [`nudge`](Self::nudge) is to be called, if at all.
    pub fn next_nudge(&self) -> Option<Instant> {
        self.next_nudge
    }

    /// Wakes whoever was to be woken by now.
    #[inline]
    pub fn nudge(&mut self, now: Instant) {
        if self.next_nudge.is_some_and(|next| next <= now) {
            self.nudge_all(now);
        }
    }

    fn nudge_all(&mut self, now: Instant) {
        let mut next: Option<Instant> = None;
        for Slot { state, .. } in &mut self.slots {
            let State::Waiting { nudge, waker, .. } = state else { continue };
            match *nudge {
                Some(at) if at <= now => {
                    *nudge = None;
                    waker.iter().for_each(Waker::wake_by_ref);
                }
                Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                None => (),
            }
        }
        self.next_nudge = next.map(|next| next.max(now + NUDGES_APART));
    }

    /// Where the data of the reply to a request are to go, which was inserted without a place.
    pub fn set_place(&mut self, request: u64, to: (Buffer, usize)) {
        if let Some(State::Waiting { place, .. }) = self.state(request) {
            *place = Some(to);
        }
    }

    /// The peer may write the data of the reply to a request to memory that was granted for it.
    pub fn set_granted(&mut self, request: u64) {
        if let Some(State::Waiting { granted, .. }) = self.state(request) {
            *granted = true;
        }
    }

    /// Whether there is something for [`take_abandoned`](Self::take_abandoned).
    pub fn has_abandoned(&self) -> bool {
        !self.abandoned.is_empty()
    }

    /// A grant that is to be taken back, because nobody awaits its reply any more.
    pub fn take_abandoned(&mut self) -> Option<(ConnId, u64)> {
        self.abandoned.pop()
    }

    /// Where the data of the reply to `request` on `from` go.
    pub fn place(&mut self, from: ConnId, request: u64, data_len: usize) -> Place {
        match self.state(request) {
            Some(State::Waiting { conn, place, .. }) if *conn == from => {
                let fits = |(buffer, offset): &mut (Buffer, usize)| {
                    *offset <= buffer.len() && data_len <= buffer.len() - *offset
                };
                match place.take_if(fits) {
                    Some((buffer, offset)) => Place::Given(buffer, offset),
                    None if place.is_some() => Place::Nowhere,
                    None => Place::Any,
                }
            }
            _ => Place::Nowhere,
        }
    }

    /// A reply has come. `false` if nobody awaits it.
    pub fn complete(&mut self, from: ConnId, header: &Header, body: &[u8], data: Option<Buffer>) -> bool {
        let waiting = self.state(header.request());
        let Some(State::Waiting { conn, place, .. }) = waiting.filter(|state| state.is_on(from)) else {
            return false;
        };
        debug_assert_eq!(*conn, from);
        let outcome = if header.status() != 0 {
            Err(decode_error(header.status(), body))
        } else if header.data_len() > 0 && data.is_none() && place.is_none() {
            Err(Error::new(ErrorCode::Overloaded, "no memory for the data of a reply that had no place"))
        } else if header.data_len() > 0 && data.is_none() {
            Err(Error::new(ErrorCode::BadFrame, "the reply has more data than its place holds"))
        } else {
            // A reply without data leaves the buffer that it was given unused: it goes back all the same.
            let data = data.or_else(|| place.take().map(|(buffer, _)| buffer));
            Ok(Reply { body: body.into(), data, data_len: header.data_len() })
        };
        self.finish(header.request(), outcome);
        true
    }

    /// All requests on `conn`, or on any, end with `error`.
    pub fn fail(&mut self, conn: Option<ConnId>, error: &Error) {
        self.finish_where(error, |state| match conn {
            Some(conn) => state.is_on(conn),
            None => matches!(state, State::Waiting { .. }),
        });
    }

    /// Requests whose deadline has passed end with `TimedOut`.
    pub fn expire(&mut self, now: Instant) {
        let error = Error::new(ErrorCode::TimedOut, "no reply before the deadline");
        let late = |state: &State| matches!(state, State::Waiting { deadline: Some(at), .. } if *at <= now);
        for index in 0..self.slots.len() {
            let Slot { generation, state } = &self.slots[index];
            if late(state) {
                self.abandon(u64::from(*generation) << 32 | index as u64);
            }
        }
        self.finish_where(&error, late);
    }

    pub fn poll(&mut self, request: u64, by: &Waker) -> Poll<Result<Reply>> {
        match self.state(request) {
            Some(State::Waiting { waker, .. }) => {
                match waker {
                    Some(waker) => waker.clone_from(by),
                    None => *waker = Some(by.clone()),
                }
                Poll::Pending
            }
            Some(state @ State::Done(_)) => match std::mem::replace(state, State::Free) {
                State::Done(outcome) => {
                    self.release(request);
                    Poll::Ready(outcome)
                }
                _ => unreachable!("it was done a line ago"),
            },
            _ => Poll::Ready(Err(Error::new(ErrorCode::Internal, "this reply was taken before"))),
        }
    }

    /// Nobody awaits the reply any more. Its buffer, unless data are flowing into it now, is free at once.
    pub fn forget(&mut self, request: u64) {
        if self.state(request).is_some() {
            self.abandon(request);
            self.leave(request);
            self.release(request);
        }
    }

    /// Notes what was granted to a request that waits and is about to be given up.
    fn abandon(&mut self, request: u64) {
        if let Some(State::Waiting { conn, granted: true, .. }) = self.state(request) {
            let conn = *conn;
            self.abandoned.push((conn, request));
        }
    }

    fn finish_where(&mut self, error: &Error, which: impl Fn(&State) -> bool) {
        for index in 0..self.slots.len() {
            let Slot { generation, state } = &self.slots[index];
            if which(state) {
                self.finish(u64::from(*generation) << 32 | index as u64, Err(error.clone()));
            }
        }
    }

    fn finish(&mut self, request: u64, outcome: Result<Reply>) {
        let waker = self.leave(request);
        if let Some(state) = self.state(request) {
            *state = State::Done(outcome);
        }
        waker.into_iter().for_each(Waker::wake);
    }

    /// Takes a waiting request out of the counts.
    fn leave(&mut self, request: u64) -> Option<Waker> {
        let Some(State::Waiting { conn, waker, deadline, .. }) = self.state(request) else { return None };
        let (conn, waker, timed) = (*conn, waker.take(), deadline.take().is_some());
        self.timed -= usize::from(timed);
        *self.count(conn) -= 1;
        waker
    }

    fn release(&mut self, request: u64) {
        let index = request as u32;
        let slot = &mut self.slots[index as usize];
        *slot = Slot { generation: slot.generation.wrapping_add(1), state: State::Free };
        self.free.push(index);
    }

    fn state(&mut self, request: u64) -> Option<&mut State> {
        let slot = self.slots.get_mut(request as u32 as usize)?;
        let present = slot.generation == (request >> 32) as u32 && !matches!(slot.state, State::Free);
        present.then_some(&mut slot.state)
    }

    fn count(&mut self, conn: ConnId) -> &mut usize {
        let index = conn.index as usize;
        if self.counts.len() <= index {
            self.counts.resize(index + 1, (0, 0));
        }
        let (generation, count) = &mut self.counts[index];
        if *generation != conn.generation {
            (*generation, *count) = (conn.generation, 0);
        }
        count
    }
}

impl State {
    fn is_on(&self, on: ConnId) -> bool {
        matches!(self, State::Waiting { conn, .. } if *conn == on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Pool;
    use corefs_wire::frame::Kind;
    use std::time::Duration;

    const CONN: ConnId = ConnId { index: 3, generation: 1 };
    const OTHER: ConnId = ConnId { index: 3, generation: 2 };

    fn reply(table: &mut Table, conn: ConnId, request: u64, status: u32, body: &[u8]) -> bool {
        table.complete(conn, &Header::new(Kind::Reply, 0, request, status, body, 0), body, None)
    }

    fn poll(table: &mut Table, request: u64) -> Poll<Result<Reply>> {
        table.poll(request, Waker::noop())
    }

    #[test]
    fn a_reply_finds_its_request_once() {
        let mut table = Table::default();
        let (a, b) = (table.insert(CONN, None).unwrap(), table.insert(CONN, None).unwrap());
        assert!(poll(&mut table, a).is_pending());
        assert!(reply(&mut table, CONN, b, 0, b"b") && !reply(&mut table, CONN, b, 0, b"again"));
        assert!(matches!(poll(&mut table, b), Poll::Ready(Ok(Reply { body, .. })) if *body == *b"b"));
        assert!(poll(&mut table, a).is_pending());
        assert!(reply(&mut table, CONN, a, ErrorCode::NoSpace as u32, b""));
        assert!(matches!(poll(&mut table, a), Poll::Ready(Err(error)) if error.code == ErrorCode::NoSpace));
        assert!(table.is_empty());
    }

    #[test]
    fn late_and_foreign_replies_find_nothing() {
        let mut table = Table::default();
        let old = table.insert(CONN, None).unwrap();
        table.forget(old);
        let new = table.insert(CONN, None).unwrap();
        assert_eq!(old as u32, new as u32, "the slot is used again");
        assert!(!reply(&mut table, CONN, old, 0, b"") && !reply(&mut table, OTHER, new, 0, b""));
        assert!(matches!(table.place(CONN, old, 1), Place::Nowhere));
        assert!(matches!(table.place(OTHER, new, 1), Place::Nowhere));
        assert!(poll(&mut table, new).is_pending() && !reply(&mut table, CONN, u64::MAX, 0, b""));
        assert_eq!(table.in_flight(CONN), 1);
    }

    #[test]
    fn a_place_is_used_only_if_the_data_fit() {
        let pool = Pool::new(1).unwrap();
        let mut table = Table::default();
        let mut ask = |data_len| {
            let request = table.insert(CONN, Some((pool.get(100).unwrap(), 40))).unwrap();
            matches!(table.place(CONN, request, data_len), Place::Given(_, 40))
        };
        assert!(ask(60) && !ask(61) && !ask(usize::MAX));
        let request = table.insert(CONN, Some((pool.get(100).unwrap(), 101))).unwrap();
        assert!(matches!(table.place(CONN, request, 0), Place::Nowhere));
    }

    #[test]
    fn the_end_of_a_connection_and_of_time_fail_what_they_must() {
        let mut table = Table::default();
        let now = Instant::now();
        let (lost, late) =
            (table.insert(CONN, None).unwrap(), table.insert(ConnId { index: 9, ..CONN }, None).unwrap());
        let patient = table.insert(ConnId { index: 9, ..CONN }, None).unwrap();
        table.set_deadline(late, now);
        table.set_deadline(patient, now + Duration::from_secs(1));
        table.fail(Some(CONN), &ErrorCode::ConnectionLost.into());
        table.expire(now);
        assert!(matches!(poll(&mut table, lost), Poll::Ready(Err(e)) if e.code == ErrorCode::ConnectionLost));
        assert!(matches!(poll(&mut table, late), Poll::Ready(Err(e)) if e.code == ErrorCode::TimedOut));
        assert!(poll(&mut table, patient).is_pending() && table.is_timed());
        table.forget(patient);
        assert!(!table.is_timed() && table.is_empty());
    }

    #[test]
    fn what_was_granted_is_taken_back_when_nobody_awaits_it() {
        let mut table = Table::default();
        let now = Instant::now();
        let mut ask = |granted| {
            let request = table.insert(CONN, None).unwrap();
            if granted {
                table.set_granted(request);
            }
            request
        };
        let (late, dropped, answered, plain, lost) = (ask(true), ask(true), ask(true), ask(false), ask(true));
        assert!(reply(&mut table, CONN, answered, 0, b""));
        table.forget(answered);
        table.forget(plain);
        assert!(!table.has_abandoned(), "the reply brought it back, or nothing was granted");
        table.set_deadline(late, now);
        table.expire(now);
        table.forget(late);
        table.forget(dropped);
        assert_eq!(table.take_abandoned(), Some((CONN, dropped)));
        assert_eq!((table.take_abandoned(), table.take_abandoned()), (Some((CONN, late)), None));
        table.fail(Some(CONN), &ErrorCode::ConnectionLost.into());
        table.forget(lost);
        assert!(!table.has_abandoned(), "what was granted on a connection goes with it");
    }

    #[test]
    fn who_waits_too_long_is_nudged_once() {
        struct Count(std::sync::atomic::AtomicU32);
        impl std::task::Wake for Count {
            fn wake(self: std::sync::Arc<Self>) {
                self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
        let count = std::sync::Arc::new(Count(Default::default()));
        let woken = || count.0.load(std::sync::atomic::Ordering::Relaxed);
        let (mut table, start) = (Table::default(), Instant::now());
        let after = |millis| start + Duration::from_millis(millis);
        let requests: Vec<u64> = (0..3).map(|_| table.insert(CONN, None).unwrap()).collect();
        for (request, millis) in requests.iter().zip([5, 3, 9]) {
            table.set_nudge(*request, after(millis));
            assert!(table.poll(*request, &Waker::from(count.clone())).is_pending());
        }
        assert_eq!(table.next_nudge(), Some(after(3)));
        assert!(reply(&mut table, CONN, requests[1], 0, b"") && woken() == 1, "the reply has come in time");
        table.nudge(after(4));
        assert_eq!((woken(), table.next_nudge()), (1, Some(after(5))), "nobody is late");
        table.nudge(after(6));
        assert_eq!((woken(), table.next_nudge()), (2, Some(after(9))));
        table.nudge(after(8));
        assert!(poll(&mut table, requests[0]).is_pending(), "a nudge ends nothing");
        table.forget(requests[2]);
        table.nudge(after(20));
        assert_eq!((woken(), table.next_nudge()), (2, None), "who gave up is not woken");
    }

    #[test]
    fn requests_in_flight_are_bounded() {
        let mut table = Table::default();
        let all: Vec<u64> = (0..CONNECTION_REQUESTS_MAX).map(|_| table.insert(CONN, None).unwrap()).collect();
        assert_eq!(table.insert(CONN, None).unwrap_err().code, ErrorCode::Overloaded);
        assert!(
            table.insert(ConnId { index: 0, generation: 0 }, None).is_ok(),
            "other connections have room"
        );
        table.forget(all[5]);
        assert!(table.insert(CONN, None).is_ok());
    }
}
