//! Grants that are taken back, because nobody awaits the reply any more.
//!
//! A peer that has been told of a grant may write there at any time, and one that writes to a window which is shut loses its queue pair. So it is asked first: it
//! forgets the grant and says so, behind whatever it has written before. Then the window is shut, and only when that is done the buffer is free. A shard whose
//! disk hangs answers that at once. Whoever doesn't answer in time, or doesn't know the question, has its window shut all the same: a write that
//! comes then ends the connection, and lands nowhere. Such a window isn't used again before the answer, since keys are few; when as many are idle so as may be open
//! at a time, the connection ends.

use super::super::message::{Data, Kind};
use super::super::setup::GRANTS_MAX;
use super::Lane;
use corefs_wire::{Error, ErrorCode, Result};
use std::time::{Duration, Instant};

/// What a peer has to say that it won't write: far more than a round trip, and less than it takes until reads that are asked again and again have taken all memory.
const ANSWER: Duration = Duration::from_secs(2);
/// Answers that may wait for credits. Whoever keeps its own rules has far fewer.
const ANSWERS_MAX: usize = 16 * GRANTS_MAX as usize;
const REQUEST: usize = size_of::<u64>();

#[derive(Default)]
pub struct Recalls {
    /// Requests whose grants the peer is to forget, and those of its grants that we have forgotten.
    ask: Vec<u64>,
    answer: Vec<u64>,
    /// Requests that the peer owes an answer for, and the slots of the windows that were shut without it.
    pub unanswered: Vec<(u64, u64)>,
}

impl Lane {
    /// Takes back what was granted to `request`. Whether that waits for the peer, so that [`end_recalls`](Self::end_recalls) is to be called from time to time.
    pub fn revoke(&mut self, request: u64, now: Instant) -> bool {
        let Some(at) = self.open.iter().position(|open| open.request == request) else { return false };
        if self.outbox.forget(request) {
            // Nobody has the key.
            let open = self.open.swap_remove(at);
            self.to_shut.push(open.slot);
            return false;
        }
        if self.open[at].until.is_some() {
            return true;
        }
        self.open[at].until = Some(now + ANSWER);
        if self.theirs.is_some_and(|theirs| theirs.kinds >= Kind::Recall as u8) {
            self.recalls.ask.push(request);
        }
        true
    }

    /// Shuts what was taken back in vain. `None` if nothing was taken back; else whether more of it waits.
    pub fn end_recalls(&mut self, now: Instant) -> Option<bool> {
        if self.open.iter().all(|open| open.until.is_none()) {
            return None;
        }
        while let Some(at) = self.open.iter().position(|open| open.until.is_some_and(|until| until <= now)) {
            let open = self.open.swap_remove(at);
            self.pair.set_spent(open.slot, true);
            self.recalls.unanswered.push((open.request, open.slot));
            self.to_shut.push(open.slot);
        }
        Some(self.open.iter().any(|open| open.until.is_some()))
    }

    /// Whether so many windows were shut without the peer's word that none may be left.
    pub fn is_worn(&self) -> bool {
        self.recalls.unanswered.len() >= self.ours.grants.into()
    }

    /// The peer takes its grants back, or says that it won't use these of ours.
    pub(super) fn recalled(&mut self, kind: Kind, piece: &[u8]) -> Result<()> {
        let requests = piece.chunks_exact(REQUEST).map(|bytes| {
            let mut number = [0; REQUEST];
            number.copy_from_slice(bytes);
            u64::from_le_bytes(number)
        });
        for request in requests {
            if kind == Kind::Recall {
                self.granted.retain(|grant| grant.request != request);
                self.recalls.answer.push(request);
            } else if let Some(at) =
                self.open.iter().position(|open| open.request == request && open.until.is_some())
            {
                let open = self.open.swap_remove(at);
                self.to_shut.push(open.slot);
            } else if let Some(at) = self.recalls.unanswered.iter().position(|(late, _)| *late == request) {
                let (_, slot) = self.recalls.unanswered.swap_remove(at);
                self.pair.set_spent(slot, false);
            }
        }
        if self.recalls.answer.len() > ANSWERS_MAX {
            return Err(Error::new(
                ErrorCode::BadFrame,
                "RDMA: more grants are taken back than there can be",
            ));
        }
        Ok(())
    }

    /// Says what is to be said of that, as far as there are credits.
    pub(super) fn tell_recalls(&mut self) {
        while !self.recalls.ask.is_empty() && self.can_send() {
            let piece = Piece::of(&mut self.recalls.ask);
            self.put(Kind::Recall, Data::None, 0, 0, piece.bytes(), None);
        }
        while !self.recalls.answer.is_empty() && self.can_send() {
            let piece = Piece::of(&mut self.recalls.answer);
            self.put(Kind::Recalled, Data::None, 0, 0, piece.bytes(), None);
        }
    }
}

/// The numbers that fit one message.
struct Piece([u8; GRANTS_MAX as usize * REQUEST], usize);

impl Piece {
    /// Takes them out of the list.
    fn of(requests: &mut Vec<u64>) -> Self {
        let count = requests.len().min(GRANTS_MAX.into());
        let mut piece = Self([0; GRANTS_MAX as usize * REQUEST], count * REQUEST);
        for (to, request) in piece.0.chunks_exact_mut(REQUEST).zip(requests.drain(..count)) {
            to.copy_from_slice(&request.to_le_bytes());
        }
        piece
    }

    fn bytes(&self) -> &[u8] {
        &self.0[..self.1]
    }
}
