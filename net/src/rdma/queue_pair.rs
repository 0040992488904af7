//! A reliable connected queue pair, and the law of the memory that it works on.
//!
//! Invariants
//! - **What a work request names is the queue pair's** from the moment it is queued until its completion, or until the queue pair has
//!   been destroyed, which [`Drop`] does before anything else. If the device refuses even that, the memory is given up for good.
//! - What a peer may reach through a [window](super::window) is the queue pair's until the invalidation has completed, or as above.
//! - Requests complete in the order in which they were queued. Only the last of those that are posted together asks for a completion, which
//!   stands for all before it: one doorbell and one completion a turn.
//! - A window whose key a peer may still hold isn't bound again.
//! - There are never more requests than the queues have places ([`QueuePair::room`]), and never more windows than were asked for.
//!
//! How it comes to be connected, and the states it is in, is in [`connect`](super::connect).

use super::completion::CompletionQueue;
use super::device::{Context, Gid, Port};
use super::library::made;
use super::memory::{Domain, Region};
use super::shared::SharedReceives;
use super::window::{Rights, State, Window};
use super::work::{Chain, Operation};
use crate::buffer::{Buffer, Payload};
use crate::contract::RemoteBuf;
use corefs_wire::{Error, ErrorCode, Result};
use ibverbs_sys as sys;
use std::collections::VecDeque;
use std::rc::Rc;

/// Bytes that are asked to travel in the work request itself: credits and small replies.
const INLINE: u32 = 128;
/// Places in a queue that a completion's name can tell apart.
pub const PLACES_MAX: u32 = 1 << 11;
/// Memory of ours that a work request or a window has.
#[derive(Debug)]
pub enum Held {
    Nothing,
    Buffer(Buffer),
    Payload(Payload),
    /// A message and the data that follow it from where they are.
    Both(Buffer, Payload),
}

/// How large a queue pair is to be.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub sends: u32,
    pub receives: u32,
    pub windows: u16,
}

/// What a completion was of.
pub enum Event {
    /// `len` bytes have come in the buffer.
    Received { buffer: Buffer, len: usize },
    /// Requests of ours are done: see [`QueuePair::retired`].
    Sent,
}

struct Posted {
    tag: u64,
    held: Held,
    /// It shuts this window.
    shuts: Option<u16>,
}

pub struct QueuePair {
    pub(super) raw: *mut sys::ibv_qp,
    /// Requests that were queued and haven't completed, and the number of the first.
    sends: VecDeque<Posted>,
    first: u64,
    /// Of those, so many are known to be done.
    done: usize,
    chain: Chain,
    receives: Vec<Option<Buffer>>,
    free: Vec<u16>,
    /// Instead of those: receives that other queue pairs have, too, and how many of them may go with this one.
    shared: Option<Rc<SharedReceives>>,
    lost: u32,
    windows: Vec<Window>,
    free_windows: Vec<u16>,
    sizes: Sizes,
    inline: u32,
    /// Completions are named by this, see [`name`].
    base: u64,
    pub(super) port: u8,
    pub(super) gid: Gid,
    regions: Vec<Rc<Region>>,
    completions: Rc<CompletionQueue>,
    pub(super) domain: Rc<Domain>,
}

/// The name of a completion: whether it is a receive (1 bit), the place in the queue (11 bits), and 52 bits of the owner's.
pub fn name(owner: u64, receive: bool, place: u64) -> u64 {
    debug_assert!(owner >> 52 == 0);
    u64::from(receive) << 63 | (place % u64::from(PLACES_MAX)) << 52 | owner
}

/// The owner that a completion's name has.
pub fn owner(name: u64) -> u64 {
    name & ((1 << 52) - 1)
}

/// The place in the queue that a completion's name has.
pub fn place(name: u64) -> u64 {
    (name >> 52) % u64::from(PLACES_MAX)
}

impl QueuePair {
    /// A queue pair at this port and address, initialised: receives can be queued. Its completions are named by `owner` (52 bits), but those of receives that it
    /// `shared`.
    pub fn new(
        domain: &Rc<Domain>,
        completions: &Rc<CompletionQueue>,
        regions: Vec<Rc<Region>>,
        (port, gid): (&Port, Gid),
        sizes: Sizes,
        shared: Option<Rc<SharedReceives>>,
        owner: u64,
    ) -> Result<Self> {
        assert!(sizes.sends <= PLACES_MAX && sizes.receives <= PLACES_MAX, "{sizes:?}");
        let (raw, inline) = make(domain, completions, sizes, shared.as_deref(), owner)?;
        let own = if shared.is_some() { 0 } else { sizes.receives };
        let mut pair = Self {
            raw,
            sends: VecDeque::with_capacity(sizes.sends as usize),
            first: 0,
            done: 0,
            chain: Chain::default(),
            receives: (0..own).map(|_| None).collect(),
            free: (0..own as u16).rev().collect(),
            shared,
            lost: 0,
            windows: Vec::new(),
            free_windows: Vec::new(),
            sizes,
            inline,
            base: owner,
            port: port.number,
            gid,
            regions,
            completions: Rc::clone(completions),
            domain: Rc::clone(domain),
        };
        pair.initialise()?;
        if let Some(shared) = &pair.shared {
            shared.attach(pair.number(), owner);
        }
        Ok(pair)
    }

    /// The number that the peer needs.
    pub fn number(&self) -> u32 {
        // SAFETY: the queue pair is there as long as this is.
        unsafe { (*self.raw).qp_num }
    }

    /// Whether it goes by a port of this device, `None` for any.
    pub fn is_at(&self, context: &Rc<Context>, port: Option<u8>) -> bool {
        Rc::ptr_eq(&self.domain.context, context) && port.is_none_or(|port| port == self.port)
    }

    /// Requests that can be queued still.
    #[inline]
    pub fn room(&self) -> usize {
        (self.sizes.sends as usize).saturating_sub(self.sends.len())
    }

    /// Whether everything that was queued is done.
    pub fn is_idle(&self) -> bool {
        self.sends.is_empty()
    }

    /// Requests that have been retired so far.
    pub fn retired_so_far(&self) -> u64 {
        self.first
    }

    /// Whether the device can read these bytes where they are.
    #[inline]
    pub fn reaches(&self, bytes: &[u8]) -> bool {
        self.key_of(bytes).is_some()
    }

    #[inline]
    fn key_of(&self, bytes: &[u8]) -> Option<u32> {
        self.regions.iter().find_map(|region| region.key_of(bytes))
    }

    fn piece(&self, bytes: &[u8]) -> sys::ibv_sge {
        let Some(lkey) = self.key_of(bytes) else { panic!("memory that isn't registered with the device") };
        sys::ibv_sge { addr: bytes.as_ptr() as u64, length: bytes.len() as u32, lkey }
    }

    /// Queues a message: all of `head`, and `data` behind it.
    pub fn send(&mut self, head: Buffer, data: Option<Payload>, tag: u64) {
        let mut pieces = [self.piece(&head), sys::ibv_sge::default()];
        let (len, held) = match data {
            None => (1, Held::Buffer(head)),
            Some(data) => {
                pieces[1] = self.piece(data.as_slice());
                (2, Held::Both(head, data))
            }
        };
        self.queue(Operation::Send, &pieces[..len], Posted { tag, held, shuts: None });
    }

    /// Queues a write of `data` to what the peer has opened to us.
    pub fn write(&mut self, data: Payload, to: RemoteBuf, tag: u64) {
        let piece = self.piece(data.as_slice());
        assert!(piece.length <= to.len, "more than the peer has opened");
        let operation = Operation::Write { to: to.addr, key: to.key };
        self.queue(operation, &[piece], Posted { tag, held: Held::Payload(data), shuts: None });
    }

    /// Queues a read of all of `from` to `buffer[offset..]`. The buffer must be unique.
    pub fn read(&mut self, buffer: Buffer, offset: usize, from: RemoteBuf, tag: u64) {
        assert!(buffer.is_unique(), "data are read into a buffer that somebody else may be reading");
        let piece = self.piece(&buffer[offset..offset + from.len as usize]);
        let operation = Operation::Read { from: from.addr, key: from.key };
        self.queue(operation, &[piece], Posted { tag, held: Held::Buffer(buffer), shuts: None });
    }

    /// Opens `buffer[offset..offset + len]` to the peer's writes: what to tell it. The buffer, which must be unique, comes back when the window is
    /// [shut](Self::shut), or now if there is no window or no room.
    pub fn open_to_writes(
        &mut self,
        buffer: Buffer,
        offset: usize,
        len: usize,
    ) -> std::result::Result<RemoteBuf, Buffer> {
        assert!(buffer.is_unique(), "memory is opened to a peer that somebody else may be reading");
        let piece = self.piece(&buffer[offset..offset + len]);
        self.open(Held::Buffer(buffer), piece, Rights::Write).map_err(|held| match held {
            Held::Buffer(buffer) => buffer,
            _ => unreachable!("what was given comes back"),
        })
    }

    /// Opens `data` to the peer's reads, in the same way.
    pub fn open_to_reads(&mut self, data: Payload) -> std::result::Result<RemoteBuf, Payload> {
        let piece = self.piece(data.as_slice());
        self.open(Held::Payload(data), piece, Rights::Read).map_err(|held| match held {
            Held::Payload(data) => data,
            _ => unreachable!("what was given comes back"),
        })
    }

    fn open(
        &mut self,
        held: Held,
        piece: sys::ibv_sge,
        rights: Rights,
    ) -> std::result::Result<RemoteBuf, Held> {
        let region = self.regions.iter().find(|region| {
            // SAFETY: no reference is kept; the piece was made of bytes that `held` has.
            region
                .key_of(unsafe { std::slice::from_raw_parts(piece.addr as *const u8, piece.length as usize) })
                .is_some()
        });
        let region = region.map(|region| region.raw());
        let (Some(region), true, true) = (region, self.room() > 0, piece.length > 0) else {
            return Err(held);
        };
        let Some(slot) = self.free_window() else { return Err(held) };
        let window = &mut self.windows[slot as usize];
        let key = window.next_key();
        (window.key, window.held, window.state) = (key, held, State::Open);
        let operation = Operation::Bind {
            window: window.raw,
            key,
            region,
            from: piece.addr,
            len: piece.length,
            rights: rights.flags(),
        };
        self.queue(operation, &[], Posted { tag: 0, held: Held::Nothing, shuts: None });
        Ok(RemoteBuf { addr: piece.addr, len: piece.length, key, slot: slot.into() })
    }

    fn free_window(&mut self) -> Option<u16> {
        if let Some(slot) = self.free_windows.pop() {
            return Some(slot);
        }
        if self.windows.len() >= usize::from(self.sizes.windows) {
            return None;
        }
        let window = Window::new(&self.domain).ok()?;
        self.windows.push(window);
        Some((self.windows.len() - 1) as u16)
    }

    /// Whether the window is open.
    pub fn is_open(&self, slot: u64) -> bool {
        usize::try_from(slot).is_ok_and(|slot| self.windows.get(slot).is_some_and(|w| w.state == State::Open))
    }

    /// Whether the window opens anything, or may still.
    #[cfg(test)]
    pub fn is_bound(&self, slot: u64) -> bool {
        self.windows[slot as usize].state != State::Free
    }

    /// Invalidates an open window. What it opened comes back under `tag`, when that has completed. `false`, if there is no room now.
    pub fn shut(&mut self, slot: u64, tag: u64) -> bool {
        assert!(self.is_open(slot), "window {slot} isn't open");
        if self.room() == 0 {
            return false;
        }
        let window = &mut self.windows[slot as usize];
        window.state = State::Shutting;
        let operation = Operation::Invalidate { key: window.key };
        self.queue(operation, &[], Posted { tag, held: Held::Nothing, shuts: Some(slot as u16) });
        true
    }

    /// The peer may still use the key of this window, which is shut, or about to be; or it has said that it won't.
    pub fn set_spent(&mut self, slot: u64, spent: bool) {
        let window = &mut self.windows[slot as usize];
        let was = std::mem::replace(&mut window.spent, spent);
        if was && !spent && window.state == State::Free {
            self.free_windows.push(slot as u16);
        }
    }

    fn queue(&mut self, operation: Operation, pieces: &[sys::ibv_sge], posted: Posted) {
        assert!(self.room() > 0, "the send queue is full");
        let number = self.first + self.sends.len() as u64;
        self.chain.send(name(self.base, false, number), operation, pieces, self.inline);
        self.sends.push_back(posted);
    }

    /// Whether a receive can be queued still.
    pub fn wants_receive(&self) -> bool {
        self.shared.is_some() || !self.free.is_empty()
    }

    /// When it ends, so many receives that it shares may go with it: messages that the peer may have sent.
    pub fn may_lose(&mut self, receives: u32) {
        self.lost = receives;
    }

    /// Queues a receive of as many bytes as the buffer, which must be unique, is long; or gives it to those that are shared.
    pub fn receive(&mut self, buffer: Buffer) {
        assert!(buffer.is_unique(), "a message is received into a buffer that somebody else may be reading");
        if let Some(shared) = &self.shared {
            return shared.give(buffer);
        }
        let Some(slot) = self.free.pop() else { panic!("the receive queue is full") };
        let piece = self.piece(&buffer);
        self.chain.receive(name(self.base, true, slot.into()), piece);
        self.receives[usize::from(slot)] = Some(buffer);
    }

    /// Hands over what is queued: receives, then sends, a doorbell each. An error is the end of this queue pair.
    #[inline]
    pub fn post(&mut self) -> Result<()> {
        // SAFETY: what the requests name is in `receives`, `sends` and `windows`, until they complete or the queue pair is destroyed; the regions whose
        // keys they have are held.
        unsafe { self.chain.post(self.raw, self.domain.context.ops()) }
    }

    /// Takes a completion that was named for this queue pair. An error is the end of it.
    pub fn completed(&mut self, name: u64, outcome: std::result::Result<u32, u32>) -> Result<Event> {
        let len = outcome.map_err(|status| self.failure(status))?;
        let place = place(name);
        if name >> 63 == 1 {
            let buffer = self.receives.get_mut(place as usize).and_then(Option::take);
            let Some(buffer) = buffer else { return Err(unknown("a receive that wasn't posted")) };
            self.free.push(place as u16);
            let len = len as usize;
            if len > buffer.len() {
                return Err(unknown("more than its buffer holds"));
            }
            return Ok(Event::Received { buffer, len });
        }
        let behind = place.wrapping_sub(self.first) % u64::from(PLACES_MAX);
        if behind as usize >= self.sends.len() {
            return Err(unknown("a request that wasn't posted"));
        }
        self.done = self.done.max(behind as usize + 1);
        Ok(Event::Sent)
    }

    /// What a completion with this status means.
    pub fn failure(&self, status: u32) -> Error {
        let text = self.completions.status_text(status);
        Error::mismatch(ErrorCode::ConnectionLost, 0, status.into(), format!("RDMA: {text}"))
    }

    /// The next request that is done, in order, and its memory. That of a window is given back here.
    pub fn retired(&mut self) -> Option<(u64, Held)> {
        if self.done == 0 {
            return None;
        }
        self.done -= 1;
        self.first += 1;
        let Posted { tag, held, shuts } = self.sends.pop_front()?;
        let Some(slot) = shuts else { return Some((tag, held)) };
        let window = &mut self.windows[usize::from(slot)];
        window.state = State::Free;
        if !window.spent {
            self.free_windows.push(slot);
        }
        Some((tag, std::mem::replace(&mut window.held, Held::Nothing)))
    }

    /// Work requests and doorbells so far.
    pub fn counters(&self) -> (u64, u64) {
        (self.chain.requests, self.chain.doorbells)
    }
}

fn unknown(what: &str) -> Error {
    Error::new(ErrorCode::Internal, format!("the RDMA device completed {what}"))
}

/// The queue pair, and how many bytes may travel in a request itself.
fn make(
    domain: &Rc<Domain>,
    completions: &Rc<CompletionQueue>,
    sizes: Sizes,
    shared: Option<&SharedReceives>,
    owner: u64,
) -> Result<(*mut sys::ibv_qp, u32)> {
    let mut refusal = None;
    for inline in [INLINE, 0] {
        // SAFETY: all zeros is a valid set of attributes.
        let mut init: sys::ibv_qp_init_attr = unsafe { std::mem::zeroed() };
        // Never followed: events of the queue pair are known by it.
        init.qp_context = owner as *mut std::ffi::c_void;
        init.send_cq = completions.raw();
        init.recv_cq = completions.raw();
        init.srq = shared.map_or(std::ptr::null_mut(), SharedReceives::raw);
        init.qp_type = sys::ibv_qp_type::IBV_QPT_RC;
        init.cap = sys::ibv_qp_cap {
            max_send_wr: sizes.sends,
            max_recv_wr: if shared.is_some() { 0 } else { sizes.receives },
            max_send_sge: 2,
            max_recv_sge: u32::from(shared.is_none()),
            max_inline_data: inline,
        };
        // SAFETY: domain and completion queue are there, and held by the queue pair.
        let raw = unsafe { (domain.context.library.create_qp)(domain.raw(), &mut init) };
        match made("ibv_create_qp", raw) {
            Ok(raw) => return Ok((raw, init.cap.max_inline_data)),
            Err(error) => refusal = Some(error),
        }
    }
    Err(refusal.unwrap_or_else(|| ErrorCode::Internal.into()))
}

impl Drop for QueuePair {
    /// In this order: in the state of error nothing of what is queued is begun any more; without its windows the queue pair can be destroyed;
    /// when that has returned, the memory is ours again. Windows that are given back open nothing.
    fn drop(&mut self) {
        let stopped = self.stop();
        if let Err(error) = stopped {
            tracing::warn!(%error, "an RDMA queue pair can't be stopped");
        }
        self.windows.iter_mut().for_each(Window::give_back);
        let number = self.number();
        // SAFETY: the queue pair is there; when this returns, the device touches nothing of it any more.
        let result = unsafe { (self.domain.context.library.destroy_qp)(self.raw) };
        if let Some(shared) = &self.shared {
            shared.detach(number, self.lost);
        }
        if result == 0 {
            return;
        }
        std::mem::forget(self.shared.take());
        tracing::error!(result, "an RDMA queue pair can't be destroyed: its memory is given up");
        std::mem::forget(std::mem::take(&mut self.sends));
        std::mem::forget(std::mem::take(&mut self.receives));
        std::mem::forget(std::mem::take(&mut self.windows));
        std::mem::forget(std::mem::take(&mut self.regions));
    }
}
