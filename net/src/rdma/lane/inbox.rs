//! What has come: messages into frames, data to where they belong, frames to the sink in order.

use super::super::message::{Data, Kind};
use super::{Lane, Purpose, tag};
use crate::buffer::Buffer;
use crate::contract::{Flow, FrameSink, Placement, RemoteBuf};
use crate::tcp::{ConnId, LENT_MAX};
use corefs_wire::frame::{HEADER, Header, Kind as FrameKind};
use corefs_wire::limits::FRAME_BODY_MAX;
use corefs_wire::{Error, ErrorCode, Result};
use std::collections::VecDeque;

/// Header and body that came in several pieces, as far as they have come.
struct Assembly {
    header: Header,
    bytes: Vec<u8>,
    rest: usize,
    data: Data,
}

enum Body {
    /// In the message, from and to.
    Here(usize, usize),
    Own(Vec<u8>),
}

enum State {
    /// Nobody has been asked yet where the data go.
    Unplaced(Source),
    /// They are to be read, when there is room for the request.
    ToRead {
        buffer: Buffer,
        offset: usize,
        from: RemoteBuf,
    },
    /// They are on their way, or the window that they came by is being shut; then this is to be done.
    Busy(Then),
    Whole(Option<Buffer>),
}

/// Where the data of a frame are.
#[derive(Clone, Copy)]
enum Source {
    None,
    /// In the message, from and to.
    Inline(usize, usize),
    Pull(RemoteBuf),
    Written,
}

#[derive(Clone, Copy)]
enum Then {
    /// They are there.
    Announce,
    /// The window was for other data than came: these go into its buffer, at the offset.
    Fill(Source, usize),
    /// These slots of the peer's can be released.
    Release(u32),
}

struct Arrived {
    header: Header,
    body: Body,
    state: State,
    /// The buffer that the message came in; its data were lent, and another one is received into instead.
    message: Option<Buffer>,
    lent: bool,
}

#[allow(clippy::large_enum_variant)] // Nearly all are frames, and a box for each would be an allocation.
enum Item {
    Frame(Arrived),
    Bye,
}

#[derive(Default)]
pub struct Inbox {
    items: VecDeque<Item>,
    /// The number of the first: numbers are never used again.
    first: u64,
    /// So many of the items have a place for their data.
    placed: usize,
    assembly: Option<Assembly>,
    /// Nothing of this connection was on its way when there was no buffer: only the sink knows when there is one.
    wait_is_final: bool,
    /// Bytes of bodies that lie outside of messages, and messages that aren't received again while these are too many.
    owned: usize,
    held_back: Vec<Buffer>,
    /// Everything is thrown away.
    discards: bool,
    /// The peer has said Bye. What may follow are credits and answers of a peer of an earlier version, and of no use any more.
    pub over: bool,
}

impl Inbox {
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.assembly.is_none()
    }
}

fn bad(what: &str) -> Error {
    Error::new(ErrorCode::BadFrame, format!("RDMA: {what}"))
}

impl Lane {
    /// A message that isn't only news.
    pub(super) fn arrived(
        &mut self,
        kind: Kind,
        data: Data,
        rest: u32,
        (from, to): (usize, usize),
        buffer: Buffer,
        len: usize,
    ) -> Result<()> {
        if kind == Kind::Bye {
            self.spare.push(buffer);
            self.inbox.items.push_back(Item::Bye);
            self.allowed = 0;
            self.inbox.over = true;
            return Ok(());
        }
        if self.inbox.discards {
            self.spare.push(buffer);
            return Ok(());
        }
        if kind == Kind::More {
            return self.more(rest as usize, (from, to), buffer);
        }
        if self.inbox.assembly.is_some() {
            return Err(bad("a frame in the middle of another"));
        }
        let piece = &buffer[from..to];
        let Some(head) = piece.first_chunk::<HEADER>() else { return Err(bad("a frame without a header")) };
        let header = Header::parse(head, FRAME_BODY_MAX)?;
        let total = HEADER + header.body_len();
        if total != piece.len() + rest as usize {
            return Err(Error::mismatch(
                ErrorCode::BadFrame,
                total as u64,
                (piece.len() + rest as usize) as u64,
                "RDMA: pieces that don't make up the frame",
            ));
        }
        self.check_data(&header, data, len - to)?;
        if rest > 0 {
            let bytes = piece.to_vec();
            self.inbox.assembly = Some(Assembly { header, bytes, rest: rest as usize, data });
            self.recycle(buffer);
            return Ok(());
        }
        header.check_body(&piece[HEADER..])?;
        let source = match data {
            Data::None => Source::None,
            Data::Inline => Source::Inline(to, len),
            Data::Pull(from) => Source::Pull(from),
            Data::Written => Source::Written,
        };
        self.push(header, Body::Here(from + HEADER, to), source, Some(buffer));
        Ok(())
    }

    /// The length of the data is what the header says, and they can be where they are said to be.
    fn check_data(&self, header: &Header, data: Data, inline: usize) -> Result<()> {
        let found = match data {
            Data::None => 0,
            Data::Inline => inline,
            Data::Pull(from) => from.len as usize,
            Data::Written => {
                let open = self.open.iter().find(|open| open.request == header.request());
                let fits = open.is_some_and(|open| (1..=open.len).contains(&header.data_len()));
                if header.kind() != FrameKind::Reply || !fits {
                    return Err(bad("data were written that nothing was granted for"));
                }
                header.data_len()
            }
        };
        if header.kind() == FrameKind::Handshake {
            return Err(bad("a handshake has no place here"));
        }
        if found != header.data_len() {
            let (expected, actual) = (header.data_len() as u64, found as u64);
            return Err(Error::mismatch(ErrorCode::BadFrame, expected, actual, "RDMA: the frame's data"));
        }
        Ok(())
    }

    fn more(&mut self, rest: usize, (from, to): (usize, usize), buffer: Buffer) -> Result<()> {
        let Some(assembly) = &mut self.inbox.assembly else {
            return Err(bad("a piece of a frame that wasn't begun"));
        };
        if assembly.rest.checked_sub(to - from) != Some(rest) {
            return Err(bad("a piece that is too long, or doesn't fit the others"));
        }
        assembly.bytes.extend_from_slice(&buffer[from..to]);
        assembly.rest = rest;
        if rest == 0
            && let Some(Assembly { header, mut bytes, data, .. }) = self.inbox.assembly.take()
        {
            bytes.drain(..HEADER);
            header.check_body(&bytes)?;
            self.inbox.owned += bytes.len();
            let source = match data {
                Data::Pull(from) => Source::Pull(from),
                Data::Written => Source::Written,
                Data::None | Data::Inline => Source::None,
            };
            self.push(header, Body::Own(bytes), source, None);
        }
        self.recycle(buffer);
        Ok(())
    }

    fn push(&mut self, header: Header, body: Body, source: Source, message: Option<Buffer>) {
        let frame = Arrived { header, body, state: State::Unplaced(source), message, lent: false };
        self.inbox.items.push_back(Item::Frame(frame));
    }

    /// The message may be used again, unless bodies that nobody has taken hold too much already.
    fn recycle(&mut self, buffer: Buffer) {
        if self.inbox.owned > FRAME_BODY_MAX {
            self.inbox.held_back.push(buffer);
        } else {
            self.spare.push(buffer);
        }
    }

    /// From now on nothing is announced.
    pub(super) fn discard(&mut self) {
        self.inbox.discards = true;
        let bye = self.inbox.items.iter().any(|item| matches!(item, Item::Bye));
        let first = self.inbox.first + self.inbox.items.len() as u64;
        for item in std::mem::take(&mut self.inbox.items) {
            if let Item::Frame(Arrived { message, lent: false, .. }) = item {
                self.spare.extend(message);
            }
        }
        self.spare.append(&mut self.inbox.held_back);
        let items = bye.then_some(Item::Bye).into_iter().collect();
        let over = self.inbox.over;
        self.inbox = Inbox { items, first, discards: true, over, ..Inbox::default() };
    }

    /// Hands what has come to the sink, as far as that wants it. `true` when the peer has said that nothing more comes.
    pub fn deliver(&mut self, conn: ConnId, throttled: bool, sink: &mut impl FrameSink) -> Result<bool> {
        loop {
            if !self.inbox.discards && !self.paused && !self.waiting && !throttled {
                self.place_all(conn, sink)?;
            }
            self.start_reads();
            match self.inbox.items.front() {
                Some(Item::Bye) => return Ok(true),
                Some(Item::Frame(frame)) if matches!(frame.state, State::Whole(_)) => {}
                _ => return Ok(false),
            }
            if self.paused || throttled || self.inbox.discards {
                return Ok(false);
            }
            let Some(Item::Frame(frame)) = self.inbox.items.pop_front() else { return Ok(false) };
            self.inbox.first += 1;
            self.inbox.placed = self.inbox.placed.saturating_sub(1);
            self.announce(conn, frame, sink);
            // The buffers that are missing may be those that were just given away: asked again when all of these are.
            if self.waiting && !self.inbox.wait_is_final && self.inbox.placed == 0 {
                self.waiting = false;
            }
        }
    }

    /// There is no buffer now.
    fn wait(&mut self) {
        self.waiting = true;
        self.inbox.wait_is_final = self.inbox.placed == 0;
    }

    fn announce(&mut self, conn: ConnId, frame: Arrived, sink: &mut impl FrameSink) {
        let Arrived { header, body, state, message, lent } = frame;
        let State::Whole(data) = state else { unreachable!("looked at before") };
        self.counters.frames_in += 1;
        let flow = match (&body, &message) {
            (Body::Here(from, to), Some(message)) => sink.frame(conn, &header, &message[*from..*to], data),
            (Body::Own(bytes), _) => sink.frame(conn, &header, bytes, data),
            (Body::Here(..), None) => unreachable!("a body lies in its message"),
        };
        self.paused |= flow == Flow::Pause;
        if let Body::Own(bytes) = &body {
            self.inbox.owned -= bytes.len();
            if self.inbox.owned <= FRAME_BODY_MAX {
                self.spare.append(&mut self.inbox.held_back);
            }
        }
        // What was lent out of a message is not received into again.
        if !lent {
            self.spare.extend(message);
        }
    }

    /// Asks where data go, frame by frame, until one has to wait. An error is the end of the connection.
    fn place_all(&mut self, conn: ConnId, sink: &mut impl FrameSink) -> Result<()> {
        while let Some(Item::Frame(frame)) = self.inbox.items.get_mut(self.inbox.placed) {
            let State::Unplaced(source) = frame.state else {
                self.inbox.placed += 1;
                continue;
            };
            let number = self.inbox.first + self.inbox.placed as u64;
            let request = frame.header.request();
            let granted = match frame.header.kind() {
                FrameKind::Reply => self.open.iter().position(|open| open.request == request),
                _ => None,
            };
            if let Some(at) = granted {
                let (slot, offset, room) = (self.open[at].slot, self.open[at].offset, self.open[at].len);
                if !self.pair.shut(slot, tag(Purpose::Placed, number)) {
                    return Ok(());
                }
                self.open.swap_remove(at);
                let then = match source {
                    Source::Written => {
                        self.counters.direct += frame.header.data_len() as u64;
                        Then::Announce
                    }
                    Source::None => Then::Announce,
                    // Too much for where it was to go: as data that nobody wants.
                    source if frame.header.data_len() > room => Then::Fill(source, usize::MAX),
                    source => Then::Fill(source, offset),
                };
                frame.state = State::Busy(then);
                continue;
            }
            let state = match source {
                Source::None => State::Whole(None),
                // Its grant was revoked on the way: the data went nowhere.
                Source::Written => State::Whole(None),
                Source::Inline(from, to) => match self.place_inline(conn, (from, to), sink) {
                    Some(state) => state,
                    None => return Ok(()),
                },
                Source::Pull(source) => match self.place_pull(conn, source, sink)? {
                    Some(state) => state,
                    None => return Ok(()),
                },
            };
            if let Some(Item::Frame(frame)) = self.inbox.items.get_mut(self.inbox.placed) {
                frame.state = state;
            }
        }
        Ok(())
    }

    fn place_inline(
        &mut self,
        conn: ConnId,
        (from, to): (usize, usize),
        sink: &mut impl FrameSink,
    ) -> Option<State> {
        // A buffer in the place of the one that is lent.
        let instead = if self.lends && to - from <= LENT_MAX { self.block() } else { None };
        let Some(Item::Frame(frame)) = self.inbox.items.get_mut(self.inbox.placed) else { return None };
        let (Body::Here(body, end), Some(message)) = (&frame.body, &frame.message) else {
            unreachable!("data that came in a message")
        };
        let here = instead.is_some().then(|| message.part(from..to));
        let placement = sink.place(conn, &frame.header, &message[*body..*end], here);
        Some(match placement {
            // What was placed before is announced all the same: perhaps that brings the buffer back.
            Placement::Wait => {
                self.wait();
                return None;
            }
            Placement::Discard => State::Whole(None),
            Placement::Here(data) => {
                assert!(data.len() == to - from, "data that were lent");
                frame.lent = true;
                self.spare.extend(instead);
                State::Whole(Some(data))
            }
            Placement::Into { mut buffer, offset } => {
                check_place(&buffer, offset, to - from);
                // A destination has one owner, which was just looked at.
                buffer.get_mut().into_iter().for_each(|all| {
                    all[offset..offset + to - from].copy_from_slice(&message[from..to]);
                });
                self.counters.copied += (to - from) as u64;
                State::Whole(Some(buffer))
            }
        })
    }

    /// `InvalidArgument` for a place that the device can't write to.
    fn place_pull(
        &mut self,
        conn: ConnId,
        from: RemoteBuf,
        sink: &mut impl FrameSink,
    ) -> Result<Option<State>> {
        let Some(Item::Frame(frame)) = self.inbox.items.get(self.inbox.placed) else { return Ok(None) };
        let body = match (&frame.body, &frame.message) {
            (Body::Here(body, end), Some(message)) => &message[*body..*end],
            (Body::Own(bytes), _) => bytes.as_slice(),
            (Body::Here(..), None) => unreachable!("a body lies in its message"),
        };
        Ok(Some(match sink.place(conn, &frame.header, body, None) {
            Placement::Wait => {
                self.wait();
                return Ok(None);
            }
            Placement::Discard => {
                self.releases.push(from.slot as u32);
                State::Whole(None)
            }
            Placement::Here(_) => unreachable!("nothing was lent"),
            Placement::Into { buffer, offset } => {
                check_place(&buffer, offset, from.len as usize);
                if !self.pair.reaches(&buffer) {
                    let what = "RDMA: data are to be placed in memory that isn't of the transport's pool, so that the device can't reach it";
                    return Err(Error::new(ErrorCode::InvalidArgument, what));
                }
                State::ToRead { buffer, offset, from }
            }
        }))
    }

    /// Whether a frame that has come whole waits for our own device alone.
    pub fn awaits_device(&self) -> bool {
        let shutting = |item: &Item| match item {
            Item::Frame(frame) => matches!(frame.state, State::Busy(Then::Announce | Then::Fill(..))),
            Item::Bye => false,
        };
        self.inbox.items.iter().any(shutting)
    }

    /// Starts the reads that there is room for, in order.
    pub(super) fn start_reads(&mut self) {
        let first = self.inbox.first;
        for (at, item) in self.inbox.items.iter_mut().enumerate().take(self.inbox.placed + 1) {
            let Item::Frame(frame) = item else { continue };
            if !matches!(frame.state, State::ToRead { .. }) {
                continue;
            }
            if self.pair.room() < 2 {
                return;
            }
            let State::ToRead { from, .. } = frame.state else { continue };
            let reading = State::Busy(Then::Release(from.slot as u32));
            let State::ToRead { buffer, offset, .. } = std::mem::replace(&mut frame.state, reading) else {
                continue;
            };
            self.counters.direct += u64::from(from.len);
            self.pair.read(buffer, offset, from, tag(Purpose::Pulled, first + at as u64));
        }
    }

    fn frame_mut(&mut self, number: u64) -> Option<&mut Arrived> {
        let at = usize::try_from(number.checked_sub(self.inbox.first)?).ok()?;
        match self.inbox.items.get_mut(at)? {
            Item::Frame(frame) => Some(frame),
            Item::Bye => None,
        }
    }

    /// The data of a frame have been read into its buffer.
    pub(super) fn pulled(&mut self, number: u64, buffer: Buffer) {
        let Some(frame) = self.frame_mut(number) else { return };
        let State::Busy(Then::Release(slot)) = frame.state else { unreachable!("it was being read") };
        frame.state = State::Whole(Some(buffer));
        self.releases.push(slot);
    }

    /// What was granted for a reply is ours again.
    pub(super) fn placed(&mut self, number: u64, mut buffer: Buffer) {
        let Some(frame) = self.frame_mut(number) else { return };
        let State::Busy(then) = frame.state else { unreachable!("its window was being shut") };
        let mut released = None;
        let mut copied = 0;
        frame.state = match then {
            Then::Announce | Then::Release(_) => State::Whole(Some(buffer)),
            Then::Fill(Source::Pull(from), usize::MAX) => {
                released = Some(from.slot as u32);
                State::Whole(None)
            }
            Then::Fill(_, usize::MAX) => State::Whole(None),
            Then::Fill(Source::Pull(from), offset) => State::ToRead { buffer, offset, from },
            Then::Fill(Source::Inline(from, to), offset) => {
                if let (Some(message), Some(all)) = (&frame.message, buffer.get_mut()) {
                    all[offset..offset + to - from].copy_from_slice(&message[from..to]);
                    copied = to - from;
                }
                State::Whole(Some(buffer))
            }
            Then::Fill(Source::None | Source::Written, _) => State::Whole(Some(buffer)),
        };
        self.releases.extend(released);
        self.counters.copied += copied as u64;
    }
}

fn check_place(buffer: &Buffer, offset: usize, len: usize) {
    assert!(offset <= buffer.len() && len <= buffer.len() - offset, "the data don't fit their place");
    assert!(buffer.is_unique(), "data are placed into a buffer that somebody else may be reading");
}
