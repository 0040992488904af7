//! What a connection receives: bytes into frames, and bulk data to where they belong.
//!
//! ```text
//!  buffer  |--- done ---|-- head, body --|-- what follows --|--- free ---|
//!                     start             .                  end
//! ```
//! The frame under way begins at `start` and its head and body stay there until it is announced. Its data, if they have a
//! place elsewhere, don't: the part that arrives with the head is copied out, the rest is received straight into the
//! placed buffer, with the free space behind `end` as the second piece, so that one system call also brings what follows.
//!
//! A busy connection that may lend its memory receives into blocks of a pool. Small data that have arrived in one are lent to
//! whoever wants them where they are: a batch of small replies is received once and copied nowhere.
//!
//! Invariants: `start <= end <= memory.len()`; what is lent lies before `start`, and nothing is moved there; while data
//! are awaited (`Data`, `Skip`), nothing but the head and body of their frame lies behind `start`. The memory starts small,
//! grows only as bytes really arrive (a peer that announces a large body costs nothing before it sends it), and shrinks again.

mod memory;

use crate::buffer::{Buffer, Pool};
use crate::contract::Placement;
use crate::ring::Try;
use corefs_wire::Result;
use corefs_wire::frame::{HEADER, Header};
use memory::Memory;

/// Receive buffer of a quiet connection (bytes).
const START: usize = 16 << 10;
/// Largest receive buffer of a busy one; only a larger body makes it larger (bytes).
const BUSY: usize = 64 << 10;
/// Receives in a row that filled less than a quarter, after which the buffer is halved.
const QUIET: u32 = 256;
/// Larger data are never lent (bytes): most of them arrive straight in their place.
pub const LENT_MAX: usize = 32 << 10;

pub struct Inbox {
    memory: Memory,
    /// Where blocks come from that data are lent in.
    pool: Option<Pool>,
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
    /// Head, body and data are whole. So many bytes of data still lie behind the body.
    Whole(Header, Option<Buffer>, usize),
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

impl Inbox {
    /// With a pool, data of small frames may be lent.
    pub fn new(pool: Option<Pool>) -> Self {
        let piece = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self {
            memory: Memory::own(START),
            pool,
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

    pub fn in_flight(&self) -> bool {
        self.receiving.is_some()
    }

    /// Data of a frame have a place, and more of them are to come.
    pub fn is_placing(&self) -> bool {
        matches!(self.state, State::Data { left: 1.., .. })
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
                    let Some(bytes) = self.memory.bytes(self.start..self.end).first_chunk::<HEADER>() else {
                        return Ok(Next::Receive);
                    };
                    self.state = State::Body(Header::parse(bytes, body_max)?);
                }
                State::Body(header) => {
                    let header = *header;
                    if self.end - self.start < HEADER + header.body_len() {
                        return Ok(Next::Receive);
                    }
                    header.check_body(self.body(&header))?;
                    self.state = match header.data_len() {
                        0 => State::Whole(header, None, 0),
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
            State::Data { header, buffer, .. } => State::Whole(header, Some(buffer), 0),
            State::Skip { header, .. } => State::Whole(header, None, 0),
            other => other,
        };
    }

    /// The body of the frame under way.
    #[inline]
    fn body(&self, header: &Header) -> &[u8] {
        let from = self.start + HEADER;
        self.memory.bytes(from..from + header.body_len())
    }

    /// Header and body of the frame that wants a place, and its data if they are all here and may be lent.
    pub fn current(&self) -> (&Header, &[u8], Option<Buffer>) {
        let State::Unplaced(header) = &self.state else { unreachable!("no frame wants a place") };
        let from = self.start + HEADER + header.body_len();
        let (len, here) = (header.data_len(), self.end - from);
        let lent = if len <= LENT_MAX && len <= here { self.memory.lend(from..from + len) } else { None };
        (header, self.body(header), lent)
    }

    /// Says where the current frame's data go. `false` if they can't go anywhere now.
    pub fn place(&mut self, placement: Placement) -> bool {
        let State::Unplaced(header) = self.state else { unreachable!("no frame wants a place") };
        // What has arrived already lies behind the body.
        let from = self.start + HEADER + header.body_len();
        let len = header.data_len();
        let here = len.min(self.end - from);
        let place = match placement {
            Placement::Wait => return false,
            Placement::Discard => None,
            Placement::Here(data) => {
                assert!(here == len && data.len() == len, "data that `current` has lent");
                Some((data, 0))
            }
            Placement::Into { mut buffer, offset } => {
                assert!(
                    offset <= buffer.len() && len <= buffer.len() - offset,
                    "the data don't fit their place"
                );
                let Some(to) = buffer.get_mut() else {
                    panic!("data are placed into a buffer that somebody else may be reading")
                };
                to[offset..offset + here].copy_from_slice(self.memory.bytes(from..from + here));
                self.copied += here as u64;
                Some((buffer, offset))
            }
        };
        let left = len - here;
        if left > 0 {
            self.end = from;
        }
        self.state = match place {
            place if left == 0 => State::Whole(header, place.map(|(buffer, _)| buffer), len),
            Some((buffer, offset)) => State::Data { header, buffer, at: offset + here, left },
            None => State::Skip { header, left },
        };
        true
    }

    /// The whole frame; its data leave with it.
    pub fn take(&mut self) -> (Header, &[u8], Option<Buffer>) {
        let State::Whole(header, data, _) = &mut self.state else { unreachable!("no frame is whole") };
        let (header, data) = (*header, data.take());
        (header, self.body(&header), data)
    }

    /// The frame has been announced: go on behind it.
    pub fn consume(&mut self) {
        let State::Whole(header, _, behind) = &self.state else { unreachable!("no frame is whole") };
        self.start += HEADER + header.body_len() + behind;
        self.state = State::Head;
    }

    /// Forgets everything but what is in flight: bytes from here on are only read and thrown away.
    pub fn abandon(&mut self) {
        if self.receiving.is_none() {
            self.state = State::Head;
            self.hungry = true;
            (self.start, self.end) = (0, 0);
            if self.memory.is_lent() {
                self.memory = Memory::own(START);
            }
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
        let free = self.memory.len() - self.end;
        let tail = self.memory.at(self.end);
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
        if let State::Skip { left, .. } = &mut self.state {
            // Frames that follow stay; this one's head and body, all that lies before, are moved up to them.
            let skipped = buffered.min(*left);
            *left -= skipped;
            self.memory.shift(self.start..self.end - buffered, self.start + skipped);
            self.start += skipped;
        }
    }

    /// The receive failed or was cancelled.
    pub fn failed(&mut self) {
        self.receiving = None;
        self.hungry = true;
    }

    /// Grows for a busy connection, notices a quiet one.
    fn learn(&mut self, filled: usize, asked: usize) {
        let len = self.memory.len();
        self.quiet = if filled * 4 < len { self.quiet + 1 } else { 0 };
        if filled > START / 2
            && len <= BUSY
            && !self.memory.is_block()
            && let Some(block) = self.block()
        {
            self.move_to(block);
        } else if filled == asked && asked > 0 && len < BUSY {
            self.move_to(Memory::own(len * 2));
        }
    }

    /// A block whose parts may be lent, if there is one to be had.
    fn block(&self) -> Option<Memory> {
        self.pool.as_ref().and_then(|pool| Memory::block(pool, BUSY))
    }

    /// Moves what is kept to the front, and makes free space behind it if there is none.
    fn make_room(&mut self) {
        let (len, kept) = (self.memory.len(), self.end - self.start);
        if self.memory.is_lent() {
            // What is lent stays as it is: on behind it while there is room, then elsewhere.
            if len - self.end < len / 2 {
                self.move_to(self.block().unwrap_or_else(|| Memory::own(len)));
            }
        } else if self.start > 0 {
            self.memory.shift(self.start..self.end, 0);
            (self.start, self.end) = (0, kept);
        }
        let len = self.memory.len();
        if self.end == 0 && len > BUSY {
            self.move_to(Memory::own(BUSY));
        } else if self.quiet >= QUIET && len > START && kept <= len / 2 {
            self.quiet = 0;
            self.move_to(Memory::own(len / 2));
        } else if self.end == len && !matches!(self.state, State::Data { .. }) {
            self.move_to(Memory::own(len * 2));
        }
    }

    /// Goes on in other memory, with what is kept at its front.
    fn move_to(&mut self, mut memory: Memory) {
        memory.fill(self.memory.bytes(self.start..self.end));
        self.memory = memory;
        (self.start, self.end) = (0, self.end - self.start);
    }
}

#[cfg(test)]
mod tests;
