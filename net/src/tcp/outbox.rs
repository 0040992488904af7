//! What waits to be sent on a connection. Two batches: frames are queued into one while the kernel sends the other.
//!
//! Headers and bodies are copied back to back into one byte buffer; payloads stay where they are and are held until the
//! kernel has taken them. A batch leaves in one gathered write unless it has more pieces than the kernel takes, or more bytes
//! than a slow peer takes in good time.

use crate::buffer::Payload;

/// Pieces of one gathered write (IOV_MAX).
const PIECES_MAX: usize = 1024;
/// A gathered write ends with the piece that makes it so long: it completes only as a whole, so that until then nobody sees that the
/// peer goes on, and no payload is free. A peer that takes a tenth of this in a second isn't given up (bytes).
const SEND_BYTES: usize = 1 << 20;
/// A byte buffer that grew beyond this for a large body is given back afterwards.
const KEEP_BYTES: usize = 256 << 10;

#[derive(Default)]
pub struct Outbox {
    queued: Batch,
    flying: Batch,
    /// Bytes of the first part of `flying` that the kernel has taken.
    taken: usize,
    in_flight: bool,
    pieces: Vec<libc::iovec>,
    message: Option<Box<libc::msghdr>>,
}

#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    parts: Vec<Part>,
    /// The kernel has all of so many parts, and so many of `bytes` with them.
    gone: usize,
    gone_bytes: usize,
    /// Bytes of the other parts.
    total: usize,
}

enum Part {
    /// So many of `bytes`, in order.
    Bytes(usize),
    Payload(Payload),
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(len) => *len,
            Self::Payload(payload) => payload.len(),
        }
    }
}

impl Outbox {
    /// Queues a frame.
    pub fn push(&mut self, header: &[u8], body: &[u8], data: Option<Payload>) {
        let batch = &mut self.queued;
        batch.bytes.extend_from_slice(header);
        batch.bytes.extend_from_slice(body);
        let bytes = header.len() + body.len();
        match batch.parts.last_mut() {
            Some(Part::Bytes(len)) => *len += bytes,
            _ => batch.parts.push(Part::Bytes(bytes)),
        }
        batch.total += bytes;
        if let Some(data) = data {
            batch.total += data.len();
            batch.parts.push(Part::Payload(data));
        }
    }

    /// Bytes that the kernel has not taken yet.
    pub fn len(&self) -> usize {
        self.queued.total + self.flying.total - self.taken
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn in_flight(&self) -> bool {
        self.in_flight
    }

    /// Drops what has not been given to the kernel.
    pub fn abandon(&mut self) {
        self.queued.clear();
        if !self.in_flight {
            self.flying.clear();
            self.taken = 0;
        }
    }

    /// The message for the kernel to send next, unless nothing waits or one is in flight. Its memory stays valid and
    /// unchanged until [`sent`](Self::sent), as long as the outbox itself lives.
    pub fn start(&mut self) -> Option<*const libc::msghdr> {
        if self.in_flight {
            return None;
        }
        if self.flying.total == 0 {
            std::mem::swap(&mut self.queued, &mut self.flying);
        }
        if self.flying.total == 0 {
            return None;
        }
        self.flying.gather(self.taken, &mut self.pieces);
        self.in_flight = true;
        // SAFETY: all zeros is a valid message without pieces.
        let message = self.message.get_or_insert_with(|| Box::new(unsafe { std::mem::zeroed() }));
        message.msg_iov = self.pieces.as_mut_ptr();
        message.msg_iovlen = self.pieces.len();
        Some(&raw const **message)
    }

    /// The kernel has taken `bytes` of what `start` gave it.
    pub fn sent(&mut self, bytes: usize) {
        self.in_flight = false;
        self.taken += bytes;
        assert!(self.taken <= self.flying.total, "the kernel sent more than it was given");
        if self.taken == self.flying.total {
            self.taken = 0;
            self.flying.clear();
        } else {
            self.taken = self.flying.let_go(self.taken);
        }
    }
}

impl Batch {
    fn clear(&mut self) {
        self.bytes.clear();
        if self.bytes.capacity() > KEEP_BYTES {
            self.bytes = Vec::new();
        }
        self.parts.clear();
        (self.gone, self.gone_bytes, self.total) = (0, 0, 0);
    }

    /// Drops the parts of which the kernel has taken everything; how much it has taken of the first that is left. Something is.
    fn let_go(&mut self, mut taken: usize) -> usize {
        for part in &mut self.parts[self.gone..] {
            let len = part.len();
            if taken < len {
                break;
            }
            taken -= len;
            self.total -= len;
            self.gone += 1;
            match part {
                Part::Bytes(len) => self.gone_bytes += *len,
                Part::Payload(_) => *part = Part::Bytes(0),
            }
        }
        taken
    }

    /// The pieces behind the first `skip` bytes that are left, at most [`PIECES_MAX`], and no more once they have [`SEND_BYTES`].
    fn gather(&self, mut skip: usize, pieces: &mut Vec<libc::iovec>) {
        pieces.clear();
        let (mut at, mut len) = (self.gone_bytes, 0);
        for part in &self.parts[self.gone..] {
            let bytes = match part {
                Part::Bytes(len) => {
                    at += len;
                    &self.bytes[at - len..at]
                }
                Part::Payload(payload) => payload.as_slice(),
            };
            if skip >= bytes.len() {
                skip -= bytes.len();
                continue;
            }
            if pieces.len() == PIECES_MAX || len >= SEND_BYTES {
                return;
            }
            let rest = &bytes[skip..];
            skip = 0;
            len += rest.len();
            pieces.push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Pool;

    /// What the kernel would read, at most `most` bytes of it.
    fn take(outbox: &mut Outbox, most: usize) -> Vec<u8> {
        let Some(message) = outbox.start() else { return Vec::new() };
        // SAFETY: the outbox keeps the message and its pieces until `sent`.
        let bytes: Vec<u8> = unsafe {
            let pieces = std::slice::from_raw_parts((*message).msg_iov, (*message).msg_iovlen);
            let piece = |p: &libc::iovec| std::slice::from_raw_parts(p.iov_base.cast::<u8>(), p.iov_len);
            pieces.iter().flat_map(|p| piece(p).iter().copied()).take(most).collect()
        };
        outbox.sent(bytes.len());
        bytes
    }

    #[test]
    fn sends_every_byte_once_in_order_however_short_the_writes() {
        let pool = Pool::new(1).unwrap();
        for most in [1, 3, 7, 100, usize::MAX] {
            let (mut outbox, mut expected, mut found) = (Outbox::default(), Vec::new(), Vec::new());
            for n in 0..20u8 {
                let mut buffer = pool.get(50).unwrap();
                buffer.get_mut().unwrap().fill(n);
                let data = (n % 3 == 0).then(|| Payload::new(buffer, 10..20));
                expected.extend([100 + n, n, n]);
                expected.extend(data.iter().flat_map(|data| data.as_slice().to_vec()));
                outbox.push(&[100 + n], &[n, n], data);
                found.extend(take(&mut outbox, most));
            }
            while !outbox.is_empty() {
                found.extend(take(&mut outbox, most));
            }
            assert_eq!((found, pool.in_use()), (expected, 0), "writes of at most {most}");
        }
    }

    #[test]
    fn payloads_are_held_until_they_are_sent() {
        let pool = Pool::new(1).unwrap();
        let mut outbox = Outbox::default();
        outbox.push(b"h", b"", Some(pool.get(10).unwrap().into()));
        assert!(outbox.start().is_some() && outbox.start().is_none());
        outbox.abandon();
        assert_eq!((pool.in_use(), outbox.len()), (4096, 11));
        outbox.sent(11);
        assert_eq!((pool.in_use(), outbox.len()), (0, 0));
    }

    #[test]
    fn much_leaves_in_turns_and_each_payload_is_held_until_it_is_sent() {
        const FRAMES: usize = 5;
        let pool = Pool::new(4 << 20).unwrap();
        let mut outbox = Outbox::default();
        for n in 0..FRAMES as u8 {
            let mut buffer = pool.get(SEND_BYTES / 2).unwrap();
            buffer.get_mut().unwrap().fill(n);
            outbox.push(&[n], b"", Some(buffer.into()));
        }
        let mut found = Vec::new();
        for sent in [2, 4, FRAMES] {
            found.extend(take(&mut outbox, usize::MAX));
            assert_eq!(pool.in_use(), (FRAMES - sent) * SEND_BYTES / 2, "after {sent} frames");
        }
        let expected = (0..FRAMES as u8).flat_map(|n| vec![n; 1 + SEND_BYTES / 2]);
        assert!(outbox.is_empty() && found.into_iter().eq(expected));
    }

    #[test]
    fn more_pieces_than_the_kernel_takes_leave_in_turns() {
        let mut outbox = Outbox::default();
        for n in 0..PIECES_MAX {
            outbox.push(&[1], &[n as u8], Some(vec![n as u8; 2].into()));
        }
        assert_eq!(take(&mut outbox, usize::MAX).len(), PIECES_MAX * 2);
        assert_eq!(take(&mut outbox, usize::MAX).len(), PIECES_MAX * 2);
        assert!(outbox.is_empty());
    }
}
