//! What a connection receives: bytes into frames, and bulk data to where they belong.
//!
//! ```text
//!  buffer  |--- done ---|-- head, body --|-- what follows --|--- free ---|
//!                     start             .                  end
//! ```
//! The frame under way begins at `start` and its head and body stay there until it is announced. Its data never stay: the
//! part that arrives with the head is copied out, the rest is received straight into the placed buffer, with the free
//! space behind `end` as the second piece, so that one system call also brings what follows.
//!
//! Invariants: `start <= end <= buffer.len()`; while data are awaited (`Data`, `Skip`), nothing but the head and body of their
//! frame is in the buffer. The buffer starts small, grows only as bytes really arrive (a peer that announces a large body
//! costs nothing before it sends it), and shrinks again.

use crate::buffer::Buffer;
use crate::contract::Placement;
use crate::ring::Try;
use corefs_wire::Result;
use corefs_wire::frame::{HEADER, Header};

/// Receive buffer of a quiet connection (bytes).
const START: usize = 16 << 10;
/// Largest receive buffer of a busy one; only a larger body makes it larger (bytes).
const BUSY: usize = 64 << 10;
/// Receives in a row that filled less than a quarter, after which the buffer is halved.
const QUIET: u32 = 256;

pub struct Inbox {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    state: State,
    /// What has arrived has been looked at, and more is needed.
    hungry: bool,
    receiving: Option<Receiving>,
    when: Try,
    quiet: u32,
    pieces: [libc::iovec; 2],
    message: Box<libc::msghdr>,
    pub copied: u64,
    pub direct: u64,
}

enum State {
    Head,
    Body(Header),
    /// The body is whole, its data have no place yet.
    Unplaced(Header),
    /// `left` more bytes go to `buffer[at..]`.
    Data {
        header: Header,
        buffer: Buffer,
        at: usize,
        left: usize,
    },
    /// `left` more bytes are thrown away.
    Skip {
        header: Header,
        left: usize,
    },
    /// Head, body and data are whole.
    Whole(Header, Option<Buffer>),
}

/// What is in flight: how many bytes were asked for, for the data's place and for the buffer.
struct Receiving {
    placed: usize,
    buffered: usize,
}

/// What to do next.
#[derive(PartialEq, Eq, Debug)]
pub enum Next {
    /// Receive more.
    Receive,
    /// Ask where the data of [`Inbox::current`] go, then [`Inbox::place`].
    Place,
    /// Announce the frame, see [`Inbox::take`], then [`Inbox::consume`].
    Announce,
}

/// A receive for the kernel. Its memory is owned by the inbox and stays valid until [`Inbox::received`].
pub enum Receive {
    Buffer { to: *mut u8, len: u32, when: Try },
    Message { message: *mut libc::msghdr, when: Try },
}

impl Default for Inbox {
    fn default() -> Self {
        let piece = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self {
            buffer: vec![0; START].into(),
            start: 0,
            end: 0,
            state: State::Head,
            hungry: true,
            receiving: None,
            when: Try::AtOnce,
            quiet: 0,
            pieces: [piece; 2],
            // SAFETY: all zeros is a valid message without pieces.
            message: Box::new(unsafe { std::mem::zeroed() }),
            copied: 0,
            direct: 0,
        }
    }
}

impl Inbox {
    pub fn in_flight(&self) -> bool {
        self.receiving.is_some()
    }

    /// Goes as far as the bytes that are here allow. An error is a violation of the protocol: nothing more can be read.
    pub fn next(&mut self, body_max: usize) -> Result<Next> {
        let next = self.advance(body_max)?;
        self.hungry = next == Next::Receive;
        Ok(next)
    }

    fn advance(&mut self, body_max: usize) -> Result<Next> {
        loop {
            match &mut self.state {
                State::Head => {
                    let Some(bytes) = self.buffer[self.start..self.end].first_chunk::<HEADER>() else {
                        return Ok(Next::Receive);
                    };
                    self.state = State::Body(Header::parse(bytes, body_max)?);
                }
                State::Body(header) => {
                    let header = *header;
                    if self.end - self.start < HEADER + header.body_len() {
                        return Ok(Next::Receive);
                    }
                    header.check_body(&self.buffer[self.start + HEADER..][..header.body_len()])?;
                    self.state = match header.data_len() {
                        0 => State::Whole(header, None),
                        _ => State::Unplaced(header),
                    };
                }
                State::Unplaced(_) => return Ok(Next::Place),
                State::Data { left: 1.., .. } | State::Skip { left: 1.., .. } => return Ok(Next::Receive),
                State::Data { .. } | State::Skip { .. } => self.finish_data(),
                State::Whole(..) => return Ok(Next::Announce),
            }
        }
    }

    fn finish_data(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Head) {
            State::Data { header, buffer, .. } => State::Whole(header, Some(buffer)),
            State::Skip { header, .. } => State::Whole(header, None),
            other => other,
        };
    }

    /// Header and body of the frame that wants a place.
    pub fn current(&self) -> (&Header, &[u8]) {
        let (State::Unplaced(header) | State::Whole(header, _)) = &self.state else {
            unreachable!("asked for a frame whose body is not whole")
        };
        (header, &self.buffer[self.start + HEADER..][..header.body_len()])
    }

    /// Says where the current frame's data go. `false` if they can't go anywhere now.
    pub fn place(&mut self, placement: Placement) -> bool {
        let State::Unplaced(header) = self.state else { unreachable!("no frame wants a place") };
        let left = header.data_len();
        self.state = match placement {
            Placement::Wait => return false,
            Placement::Discard => State::Skip { header, left },
            Placement::Into { buffer, offset } => {
                assert!(
                    buffer.is_unique(),
                    "data are placed into a buffer that somebody else may be reading"
                );
                assert!(
                    offset <= buffer.len() && left <= buffer.len() - offset,
                    "the data don't fit their place"
                );
                State::Data { header, buffer, at: offset, left }
            }
        };
        // What has arrived already lies behind the body.
        let from = self.start + HEADER + header.body_len();
        let here = left.min(self.end - from);
        self.settle(from, here);
        true
    }

    /// Moves `len` data bytes at `from` of the buffer to their place, and what follows them down.
    fn settle(&mut self, from: usize, len: usize) {
        match &mut self.state {
            State::Data { buffer, at, left, .. } => {
                if let Some(to) = buffer.get_mut() {
                    to[*at..*at + len].copy_from_slice(&self.buffer[from..from + len]);
                }
                (*at, *left) = (*at + len, *left - len);
                self.copied += len as u64;
            }
            State::Skip { left, .. } => *left -= len,
            _ => unreachable!("only data settle"),
        }
        if from + len == self.end {
            self.end = from;
            return;
        }
        // More frames follow. Instead of moving them down over the data, move this frame's head and body up to them.
        let keep = from - self.start;
        self.buffer.copy_within(self.start..from, self.start + len);
        self.start += len;
        debug_assert_eq!(self.start + keep, from + len);
    }

    /// The whole frame; its data leave with it.
    pub fn take(&mut self) -> (Header, &[u8], Option<Buffer>) {
        let State::Whole(header, data) = &mut self.state else { unreachable!("no frame is whole") };
        let (header, data) = (*header, data.take());
        (header, &self.buffer[self.start + HEADER..][..header.body_len()], data)
    }

    /// The frame has been announced: go on behind it.
    pub fn consume(&mut self) {
        let State::Whole(header, _) = &self.state else { unreachable!("no frame is whole") };
        self.start += HEADER + header.body_len();
        self.state = State::Head;
    }

    /// Forgets everything but what is in flight: bytes from here on are only read and thrown away.
    pub fn abandon(&mut self) {
        if self.receiving.is_none() {
            self.state = State::Head;
            self.hungry = true;
            (self.start, self.end) = (0, 0);
        }
    }

    /// The next receive, or `None` while one is in flight or what has arrived has not been looked at.
    pub fn start(&mut self) -> Option<Receive> {
        if self.receiving.is_some() || !self.hungry {
            return None;
        }
        self.hungry = false;
        self.make_room();
        let when = self.when;
        let free = self.buffer.len() - self.end;
        let tail = self.buffer[self.end..].as_mut_ptr();
        let State::Data { buffer, at, left, .. } = &self.state else {
            self.receiving = Some(Receiving { placed: 0, buffered: free });
            return Some(Receive::Buffer { to: tail, len: free as u32, when });
        };
        self.receiving = Some(Receiving { placed: *left, buffered: free });
        let place = buffer.as_mut_ptr().wrapping_add(*at);
        self.pieces = [
            libc::iovec { iov_base: place.cast(), iov_len: *left },
            libc::iovec { iov_base: tail.cast(), iov_len: free },
        ];
        self.message.msg_iov = self.pieces.as_mut_ptr();
        self.message.msg_iovlen = if free > 0 { 2 } else { 1 };
        Some(Receive::Message { message: &raw mut *self.message, when })
    }

    /// The kernel has put `bytes` (> 0) where `start` said; `more` if it knows that more are waiting.
    pub fn received(&mut self, bytes: usize, more: bool) {
        let Some(asked) = self.receiving.take() else { unreachable!("no receive is in flight") };
        assert!(bytes <= asked.placed + asked.buffered, "the kernel received more than there was room for");
        let full = bytes == asked.placed + asked.buffered;
        self.when = if full || more { Try::AtOnce } else { Try::WhenReadable };
        let placed = bytes.min(asked.placed);
        if let State::Data { at, left, .. } = &mut self.state {
            (*at, *left) = (*at + placed, *left - placed);
            self.direct += placed as u64;
        }
        let buffered = bytes - placed;
        self.end += buffered;
        self.learn(buffered, asked.buffered);
        if let State::Skip { left, .. } = self.state {
            self.settle(self.end - buffered, left.min(buffered));
        }
    }

    /// The receive failed or was cancelled.
    pub fn failed(&mut self) {
        self.receiving = None;
        self.hungry = true;
    }

    /// Grows for a busy connection, notices a quiet one.
    fn learn(&mut self, filled: usize, asked: usize) {
        if filled == asked && asked > 0 && self.buffer.len() < BUSY {
            self.resize(self.buffer.len() * 2);
        }
        self.quiet = if filled * 4 < self.buffer.len() { self.quiet + 1 } else { 0 };
    }

    /// Moves what is kept to the front, and makes free space behind it if there is none.
    fn make_room(&mut self) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let len = self.buffer.len();
        if self.end == 0 && len > BUSY {
            self.resize(BUSY);
        } else if self.quiet >= QUIET && len > START && self.end <= len / 2 {
            self.quiet = 0;
            self.resize(len / 2);
        } else if self.end == len && !matches!(self.state, State::Data { .. }) {
            self.resize(len * 2);
        }
    }

    fn resize(&mut self, len: usize) {
        let mut buffer = vec![0; len].into_boxed_slice();
        let kept = self.end - self.start;
        buffer[..kept].copy_from_slice(&self.buffer[self.start..self.end]);
        self.buffer = buffer;
        (self.start, self.end) = (0, kept);
    }
}

#[cfg(test)]
mod tests;
