//! Reads that are late are asked for at another replica, too, and the first answer is taken.
//!
//! When that is, and how often it may be, says [`pace`](crate::route::pace). Each attempt has memory of its own: a reply that is still
//! on its way lands nowhere else, whoever has won.
//!
//! The slower attempt is left behind, not forgotten: its owner still works on it, so it counts as load there until it has
//! answered, and who doesn't within the time of a first attempt is suspected, as if somebody had waited. So a replica that stands still gets no
//! more reads than are needed to see it.

use super::read::{Asked, Asking, Unfinished};
use super::{ATTEMPT, FIRST_ATTEMPT, OWNER_READS_MAX, Outstanding, Place, Storage};
use crate::route::At;
use crate::route::select::Positions;
use corefs_net::rpc::Expected;
use corefs_net::{Buffer, ConnId, Reply};
use corefs_wire::Result;
use corefs_wire::data::ReadEntry;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Attempts of which another was faster, and which have no answer yet.
const LEFT_BEHIND_MAX: usize = 256;

/// A late read for which nobody else could be asked is looked at again after this: somebody may have been connected to, or may have answered.
const AGAIN: Duration = Duration::from_millis(10);

/// One attempt of a read that is under way.
pub struct Attempt<'a> {
    pub(super) asked: Asked,
    pub(super) conn: ConnId,
    pub(super) expected: Expected,
    /// Until the answer is known.
    pub(super) counted: Outstanding<'a>,
}

/// An attempt that nobody waits for any more.
pub(super) struct LeftBehind {
    asked: Asked,
    conn: ConnId,
    expected: Expected,
}

impl Asking<'_> {
    /// Whether another replica was asked, too.
    pub fn is_hedged(&self) -> bool {
        self.second.is_some()
    }

    /// The first attempt has no answer yet, and is late.
    #[cold]
    pub(super) fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<Result<Buffer, Unfinished>> {
        if self.due.take().is_some() {
            let second = self.storage.ask_second(self.place, self.entry, self.attempt.asked);
            self.second = second.map(Box::new);
        }
        let Some(second) = &mut self.second else { return self.wait_again() };
        let Poll::Ready(reply) = Pin::new(&mut second.expected).poll(context) else { return Poll::Pending };
        self.storage.note(second.asked.owner, second.conn, &reply);
        let answer = self.storage.judge(reply, self.entry.length.get() as usize, second.asked);
        let Some(second) = self.second.take() else { return Poll::Pending };
        if matches!(answer, Err(Unfinished::Failed(_))) {
            // The first may still answer; or somebody else, with newer routing.
            return self.wait_again();
        }
        self.storage.ground.counters.borrow_mut().hedges_won += 1;
        self.took();
        let first = std::mem::replace(&mut self.attempt, *second);
        self.storage.leave_behind(first);
        Poll::Ready(answer)
    }

    /// Nobody else is asked just now.
    fn wait_again<T>(&mut self) -> Poll<T> {
        let again = self.storage.node.now() + AGAIN;
        self.attempt.expected.nudge(again);
        self.due = Some(again);
        Poll::Pending
    }

    /// The first attempt has ended while another is under way.
    #[cold]
    pub(super) fn first_ended(
        &mut self,
        reply: Result<Reply>,
        context: &mut Context<'_>,
    ) -> Poll<Result<Buffer, Unfinished>> {
        let answer = self.storage.judge(reply, self.entry.length.get() as usize, self.attempt.asked);
        match self.second.take() {
            // What would be done next is under way already.
            Some(second) if matches!(answer, Err(Unfinished::Failed(_))) => {
                self.attempt = *second;
                Pin::new(self).poll(context)
            }
            second => {
                second.into_iter().for_each(|second| self.storage.leave_behind(*second));
                self.took();
                Poll::Ready(answer)
            }
        }
    }

    /// Tells the pace how long this read took.
    #[inline]
    pub(super) fn took(&self) {
        if self.attempt.asked.of > 1 {
            let time = self.storage.node.now().saturating_duration_since(self.began);
            self.storage.pace.borrow_mut().took(self.entry.length.get() as usize, time);
        }
    }
}

impl Storage {
    /// Asks another replica for a read, if there is one that can be asked at once and isn't suspected, and memory to spare.
    fn ask_second<'a>(&'a self, place: &Place, mut entry: ReadEntry, first: Asked) -> Option<Attempt<'a>> {
        let mut avoid = Positions::NONE;
        avoid.insert(first.position);
        let asked = self.pick(place, &mut entry, At::Other, avoid).ok()?;
        let owner = asked.owner;
        // Attempts that were left behind hold their memory for as long as somebody may write to it.
        let crowded = self.left_behind.borrow().len() >= LEFT_BEHIND_MAX;
        // Positions mean something for one version of the chain only.
        if owner == first.owner
            || crowded
            || self.reluctance(owner) >= OWNER_READS_MAX
            || !self.ground.pool.is_ample()
        {
            return None;
        }
        let conn = self.open(owner)?;
        let length = entry.length.get() as usize;
        let dest = match self.may_stay(Some(conn), length) {
            true => None,
            false => Some((self.ground.pool.get(length)?, 0)),
        };
        let reads = self.ground.counters.borrow().reads;
        if !self.pace.borrow_mut().allows(reads) {
            return None;
        }
        let expected = self.node.expect(conn, dest).ok()?.within(ATTEMPT);
        let counted = self.count(owner);
        entry.request = expected.request_id().into();
        self.gather(owner, &entry);
        self.ground.counters.borrow_mut().hedged_reads += 1;
        Some(Attempt { asked, conn, expected, counted })
    }

    /// Nobody waits for an attempt any more.
    #[cold]
    fn leave_behind(&self, attempt: Attempt<'_>) {
        let Attempt { asked, conn, expected, counted } = attempt;
        counted.keep();
        let expected = expected.within(FIRST_ATTEMPT);
        self.left_behind.borrow_mut().push(LeftBehind { asked, conn, expected });
    }

    /// Takes note of the attempts left behind that have ended.
    #[cold]
    pub(super) fn look_behind(&self) {
        let mut context = Context::from_waker(Waker::noop());
        self.left_behind.borrow_mut().retain_mut(|LeftBehind { asked, conn, expected }| {
            let Poll::Ready(reply) = Pin::new(expected).poll(&mut context) else { return true };
            self.note(asked.owner, *conn, &reply);
            self.release(asked.owner);
            false
        });
    }
}
