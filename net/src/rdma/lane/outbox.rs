//! What waits to be sent, and how it becomes messages.
//!
//! A frame's header and body are kept together, its data where they are. When there is a credit, a place in the queue and a buffer to compose in, they
//! become one message or several. Data that fit travel with it, from where they are; the data of a reply go straight into the memory that the
//! peer has granted for it, before the message on the same queue pair; all others are opened to the peer, which reads and then releases them.

use super::super::message::{Data, Envelope, Grant, Kind, PREFIX, RELEASES_MAX, envelope_len};
use super::super::setup::GRANTS_MAX;
use super::{Lane, Purpose, tag};
use crate::buffer::Payload;
use corefs_wire::Result;
use corefs_wire::frame::{HEADER, Header, Kind as FrameKind};
use std::collections::VecDeque;
use zerocopy::IntoBytes;

/// Places in the send queue that one message may take, with a binding or a write before it.
const ROOM: usize = 2;
/// What a reply may have beside its data, if these are to go with it (bytes): lists, a header, and a body with the checksums of some blocks.
pub const BESIDE: usize = PREFIX + RELEASES_MAX * 4 + HEADER + 512;
/// And what grants leave free, so that messages, reads and invalidations find a place.
pub const ROOM_KEPT: usize = 16;
/// Data up to so many bytes are copied behind the body: a second piece costs the device more (bytes).
const COPIED_MAX: usize = 256;
/// Memory of frames that have been sent is used again up to so many bytes.
const KEEP_BYTES: usize = 16 << 10;
const KEEP: usize = 64;

struct Frame {
    /// Header and body; of these, so many have been sent.
    bytes: Vec<u8>,
    sent: usize,
    data: Option<Payload>,
    /// Bytes of data that are counted as waiting.
    counted: usize,
    /// The number of the request that it answers.
    answers: Option<u64>,
    /// So many of the grants that wait are told by it.
    grants: usize,
}

enum Item {
    Frame(Frame),
    Bye,
}

#[derive(Default)]
pub struct Outbox {
    items: VecDeque<Item>,
    bytes: usize,
    /// Grants that haven't been told, in the order of the frames that tell them; of the last, `loose` are for the next frame.
    grants: VecDeque<Grant>,
    loose: usize,
    kept: Vec<Vec<u8>>,
    /// Bye was said: the peer takes nothing more, not even news.
    over: bool,
}

impl Outbox {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a frame waits, or a part of one.
    pub fn has_items(&self) -> bool {
        !self.items.is_empty()
    }

    pub fn grant(&mut self, grant: Grant) {
        self.grants.push_back(grant);
        self.loose += 1;
    }

    /// What was granted last and hasn't been told.
    #[cfg(test)]
    pub fn granted(&self) -> Option<Grant> {
        self.grants.back().copied()
    }

    /// Takes back what hasn't been told; `false` if it has.
    pub fn forget(&mut self, request: u64) -> bool {
        let Some(at) = self.grants.iter().position(|grant| grant.request == request) else { return false };
        self.grants.remove(at);
        let mut before = 0;
        for item in &mut self.items {
            let Item::Frame(frame) = item else { continue };
            before += frame.grants;
            if at < before {
                frame.grants -= 1;
                return true;
            }
        }
        self.loose -= 1;
        true
    }
}

impl Lane {
    /// Queues a frame; its lengths are the caller's to check.
    pub fn send(&mut self, header: &Header, body: &[u8], data: Option<Payload>) {
        let mut bytes = self.outbox.kept.pop().unwrap_or_default();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(body);
        let counted = data.as_ref().map_or(0, Payload::len);
        self.outbox.bytes += bytes.len() + counted;
        let answers = (header.kind() == FrameKind::Reply).then(|| header.request());
        let grants = std::mem::take(&mut self.outbox.loose);
        self.outbox.items.push_back(Item::Frame(Frame { bytes, sent: 0, data, counted, answers, grants }));
        self.counters.frames_out += 1;
    }

    /// Says, behind everything that is queued, that nothing more comes. What comes from the peer is thrown away from now on.
    pub fn bye(&mut self) {
        self.outbox.items.push_back(Item::Bye);
        self.discard();
    }

    /// Posts receives, composes as many messages as can be sent, and rings. What is owed and can't be told by a message is returned, for TCP.
    pub fn flush(&mut self) -> Result<Option<Vec<u8>>> {
        if self.theirs.is_none() {
            return Ok(None);
        }
        while self.pair.wants_receive()
            && let Some(buffer) = self.spare.pop()
        {
            self.pair.receive(buffer);
            self.owed += 1;
        }
        self.shut_windows();
        self.start_reads();
        if self.greeting && self.can_send() {
            self.put_greeting();
        }
        while !self.greeting && self.can_send() && self.compose() {}
        if !self.outbox.over {
            self.tell_recalls();
        }
        let owes = !self.releases.is_empty() || self.owed * 2 >= u32::from(self.ours.receives);
        let must = owes && !self.outbox.over;
        let mut by_tcp = None;
        if must {
            if self.can_send() {
                self.put(Kind::News, Data::None, 0, 0, &[], None);
            } else if self.credits == 0 && !self.greeting {
                by_tcp = Some(self.news_for_tcp());
            }
        }
        self.pair.post()?;
        Ok(by_tcp)
    }

    /// Whether a `flush` later may do what this one couldn't, without anything happening on the queue pair: memory of the arena was short.
    pub fn is_short(&self) -> bool {
        !self.outbox.items.is_empty() && self.may_send()
    }

    /// Whether there is a credit and room; memory for a message there is, or may be.
    fn may_send(&self) -> bool {
        let staged = !self.staging.is_empty() || self.stages < self.ours.receives;
        self.credits > 0 && staged && self.pair.room() >= ROOM
    }

    /// Proves the path, by the longest message that there may be. To peers that don't know it, the least that they understand.
    fn put_greeting(&mut self) {
        let known = self.theirs.is_some_and(|theirs| theirs.kinds >= Kind::Greeting as u8);
        self.put(if known { Kind::Greeting } else { Kind::News }, Data::None, 0, 0, &[], None);
        self.greeting = false;
    }

    /// Whether a message can be composed now.
    pub(super) fn can_send(&mut self) -> bool {
        if !self.may_send() {
            return false;
        }
        if self.staging.is_empty()
            && let Some(stage) = self.block()
        {
            self.stages += 1;
            self.staging.push(stage);
        }
        !self.staging.is_empty()
    }

    fn news_for_tcp(&mut self) -> Vec<u8> {
        let count = self.releases.len().min(RELEASES_MAX);
        let envelope = Envelope {
            kind: Kind::News,
            data: Data::None,
            credits: self.owed as u16,
            grants: &[],
            releases: &self.releases[..count],
            rest: 0,
        };
        let mut bytes = vec![0; envelope.len()];
        envelope.encode(&[], &mut bytes);
        self.releases.drain(..count);
        self.allowed += std::mem::take(&mut self.owed);
        bytes
    }

    /// One message of the first item. `false` if there is none, or it has to wait.
    fn compose(&mut self) -> bool {
        let Some(item) = self.outbox.items.pop_front() else { return false };
        let mut frame = match item {
            Item::Bye => {
                self.put(Kind::Bye, Data::None, 0, 0, &[], None);
                self.outbox.over = true;
                return true;
            }
            Item::Frame(frame) => frame,
        };
        let (kind, data, follows) = if frame.sent > 0 {
            (Kind::More, Data::None, None)
        } else {
            match self.prepare(&mut frame) {
                Some((data, follows)) => (Kind::Frame, data, follows),
                None => {
                    self.outbox.items.push_front(Item::Frame(frame));
                    return false;
                }
            }
        };
        let space = self.room_for_piece(frame.grants, data);
        let piece = (frame.bytes.len() - frame.sent).min(space);
        let rest = frame.bytes.len() - frame.sent - piece;
        let range = frame.sent..frame.sent + piece;
        self.put(kind, data, frame.grants, rest as u32, &frame.bytes[range], follows);
        frame.sent += piece;
        frame.grants = 0;
        if rest > 0 {
            self.outbox.items.push_front(Item::Frame(frame));
        } else {
            self.finish(frame);
        }
        true
    }

    fn finish(&mut self, frame: Frame) {
        self.outbox.bytes -= frame.bytes.len() + frame.counted;
        let mut bytes = frame.bytes;
        if bytes.capacity() <= KEEP_BYTES && self.outbox.kept.len() < KEEP {
            bytes.clear();
            self.outbox.kept.push(bytes);
        }
    }

    /// Says how a frame's data go, and starts them if they go before it. `None`: it has to wait for memory or a window.
    fn prepare(&mut self, frame: &mut Frame) -> Option<(Data, Option<Payload>)> {
        let granted = frame.answers.and_then(|request| {
            let at = self.granted.iter().position(|grant| grant.request == request)?;
            Some((at, self.granted[at].to))
        });
        let Some(data) = frame.data.take() else {
            // The request is answered: its grant is over.
            if let Some((at, _)) = granted {
                self.granted.swap_remove(at);
            }
            return Some((Data::None, None));
        };
        let len = data.len();
        let fits = frame.bytes.len() + len <= self.room_for_piece(frame.grants, Data::Inline);
        if let Some((at, to)) = granted {
            if to.len as usize >= len {
                let data = self.reach(frame, data)?;
                self.granted.swap_remove(at);
                self.pair.write(data, to, tag(Purpose::Message, 0));
                return Some((Data::Written, None));
            }
            // The requester didn't expect so much: it is asked where that goes.
            self.granted.swap_remove(at);
        }
        if fits {
            return Some((Data::Inline, Some(data)));
        }
        let data = self.reach(frame, data)?;
        match self.pair.open_to_reads(data) {
            Ok(source) => {
                self.sources.push((source.slot, len));
                self.source_bytes += len;
                Some((Data::Pull(source), None))
            }
            Err(data) => {
                frame.data = Some(data);
                None
            }
        }
    }

    fn reach(&mut self, frame: &mut Frame, data: Payload) -> Option<Payload> {
        self.reachable(data).map_err(|data| frame.data = Some(data)).ok()
    }

    /// Bytes of a piece that fit a message, or of a piece and data.
    fn room_for_piece(&self, grants: usize, data: Data) -> usize {
        let theirs = self.theirs.map_or(0, |theirs| theirs.message);
        let envelope = envelope_len(grants, self.releases.len().min(RELEASES_MAX), data);
        (theirs.min(self.ours.message) as usize).saturating_sub(envelope)
    }

    /// Queues a message; there is a credit and a place for it.
    pub(super) fn put(
        &mut self,
        kind: Kind,
        data: Data,
        grants: usize,
        rest: u32,
        piece: &[u8],
        follows: Option<Payload>,
    ) {
        let Some(mut head) = self.staging.pop() else { unreachable!("looked at before") };
        let count = self.releases.len().min(RELEASES_MAX);
        let envelope = Envelope {
            kind,
            data,
            credits: self.owed as u16,
            grants: &self.outbox.grants.make_contiguous()[..grants],
            releases: &self.releases[..count],
            rest,
        };
        let longest = self.theirs.map_or(0, |theirs| theirs.message).min(self.ours.message) as usize;
        head.set_len(self.ours.message as usize);
        let Some(to) = head.get_mut() else { unreachable!("staging is nobody else's") };
        let mut len = envelope.encode(piece, to);
        if kind == Kind::Greeting {
            // What the memory held before is nobody's business.
            to[len..longest].fill(0);
            len = longest;
        }
        let mut copied = 0;
        let follows = follows.and_then(|data| {
            let bytes = data.as_slice();
            if bytes.len() > COPIED_MAX && self.pair.reaches(bytes) {
                return Some(data);
            }
            to[len..len + bytes.len()].copy_from_slice(bytes);
            len += bytes.len();
            copied = bytes.len();
            None
        });
        head.set_len(len);
        self.counters.copied += copied as u64;
        self.counters.bytes_out += (len + follows.as_ref().map_or(0, Payload::len)) as u64;
        self.pair.send(head, follows, tag(Purpose::Message, 0));
        self.outbox.grants.drain(..grants);
        self.releases.drain(..count);
        self.credits -= 1;
        self.allowed += std::mem::take(&mut self.owed);
    }
}

// The least message holds all lists and a header, so that every frame goes forward.
const _: () = assert!(
    super::super::setup::MESSAGE_MIN as usize
        > super::super::message::PREFIX + (GRANTS_MAX as usize + 1) * 24 + RELEASES_MAX * 4 + HEADER
);
