//! Receives that queue pairs share (ibv_create_srq(3)), so that the memory of many connections is what they use and not what each might.
//!
//! Invariants
//! - A buffer that is posted is the queue's until a completion names its place, or until the queue has been destroyed, which its queue pairs outlive never.
//! - For each connection there are as many receives as it has credits, until [`POSTED_MAX`] are posted: then more may be promised than is there. A message that finds no
//!   receive is sent again by the peer's device until there is one (RNR NAK; [`connect`](super::connect) lets it do so for ever), which is soon: receives are posted
//!   again each turn from the arena, whether the frames that came in the old ones have been taken or not. What a connection may keep of them are its credits.
//! - A receive that completed for a queue pair that is gone is nobody's, also if another one has its number by now ([`claim`](super::seat::Seat::claim)).
//! - A queue pair that ends in the middle of a message takes a receive with it, and devices throw away what they completed and nobody took: such receives never
//!   complete (InfiniBand Architecture, 10.3.1). [`detach`](SharedReceives::detach) counts the most that may be missing, others are posted in their place, and when
//!   too many are, [`is_worn`](SharedReceives::is_worn): new connections are to share another queue, and this one goes with its last.

use super::library::made;
use super::memory::{Domain, Region};
use super::queue_pair::{PLACES_MAX, name};
use super::work::Chain;
use crate::buffer::{Buffer, Pool};
use corefs_wire::{Error, ErrorCode, Result};
use ibverbs_sys as sys;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// Receives that are posted at most: 64 connections with 8 credits each have one for every credit; with more, the likelihood counts that few speak at once.
pub const POSTED_MAX: u16 = 512;
const _: () = assert!(POSTED_MAX as u32 <= PLACES_MAX);

pub struct SharedReceives {
    raw: *mut sys::ibv_srq,
    state: RefCell<State>,
    /// Receives for each connection.
    each: u16,
    message: u32,
    arena: Pool,
    regions: Vec<Rc<Region>>,
    domain: Rc<Domain>,
}

struct State {
    places: Vec<Option<Buffer>>,
    free: Vec<u16>,
    /// Whose frames have been taken, to be posted before others of the arena.
    spare: Vec<Buffer>,
    chain: Chain,
    /// The owners' names, by the queue pairs' numbers.
    owners: HashMap<u32, u64>,
    /// Receives that may never complete.
    lost: usize,
    /// In the names of completions.
    name: u64,
}

impl SharedReceives {
    /// A queue whose completions are named by `name` (52 bits), for connections with `each` credits and messages of `message` bytes. Nothing is posted yet.
    pub fn new(
        domain: &Rc<Domain>,
        regions: Vec<Rc<Region>>,
        arena: &Pool,
        (each, message): (u16, u32),
        name: u64,
    ) -> Result<Rc<Self>> {
        // SAFETY: all zeros is a valid set of attributes.
        let mut init: sys::ibv_srq_init_attr = unsafe { std::mem::zeroed() };
        init.attr.max_wr = POSTED_MAX.into();
        init.attr.max_sge = 1;
        // SAFETY: the domain is there, and held by the queue.
        let raw = unsafe { (domain.context.library.create_srq)(domain.raw(), &mut init) };
        let raw = made("ibv_create_srq", raw)?;
        let state = State {
            places: (0..POSTED_MAX).map(|_| None).collect(),
            free: (0..POSTED_MAX).rev().collect(),
            spare: Vec::with_capacity(POSTED_MAX.into()),
            chain: Chain::default(),
            owners: HashMap::new(),
            lost: 0,
            name,
        };
        let (state, arena, domain) = (RefCell::new(state), arena.clone(), Rc::clone(domain));
        Ok(Rc::new(Self { raw, state, each, message, arena, regions, domain }))
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_srq {
        self.raw
    }

    pub fn name(&self) -> u64 {
        self.state.borrow().name
    }

    /// A queue pair shares it from now on.
    pub fn attach(&self, queue_pair: u32, owner: u64) {
        self.state.borrow_mut().owners.insert(queue_pair, owner);
    }

    /// A queue pair is gone, and with it perhaps so many receives.
    pub fn detach(&self, queue_pair: u32, lost: u32) {
        let state = &mut *self.state.borrow_mut();
        state.owners.remove(&queue_pair);
        state.lost = (state.lost + lost as usize).min(POSTED_MAX.into());
    }

    /// Whether so many receives may be missing that others should be shared.
    pub fn is_worn(&self) -> bool {
        self.state.borrow().lost > usize::from(POSTED_MAX) / 2
    }

    /// The buffer of a receive that has completed, whatever came of it, and the owner of the queue pair that it was for, if that is still there.
    #[inline]
    pub fn taken(&self, place: u64, queue_pair: u32) -> Result<(Buffer, Option<u64>)> {
        let state = &mut *self.state.borrow_mut();
        let buffer = state.places.get_mut(place as usize).and_then(Option::take);
        let unknown =
            || Error::new(ErrorCode::Internal, "the RDMA device completed a receive that wasn't posted");
        let buffer = buffer.ok_or_else(unknown)?;
        state.free.push(place as u16);
        Ok((buffer, state.owners.get(&queue_pair).copied()))
    }

    /// The frame of this buffer has been taken.
    #[inline]
    pub fn give(&self, buffer: Buffer) {
        let mut state = self.state.borrow_mut();
        // More are in the arena's hands than can be posted: it is used for others.
        if state.spare.len() < usize::from(POSTED_MAX) {
            state.spare.push(buffer);
        }
    }

    /// Posts what is missing, with one doorbell; less where the arena has no more, which the next turns make up for. An error is the end of all that share it.
    pub fn refill(&self) -> Result<()> {
        let state = &mut *self.state.borrow_mut();
        let wanted = state.owners.len() * usize::from(self.each) + state.lost;
        let wanted = wanted.min(state.places.len());
        let mut posted = state.places.len() - state.free.len();
        if posted >= wanted {
            state.spare.clear();
            return Ok(());
        }
        while posted < wanted
            && let Some(buffer) = state.spare.pop().or_else(|| self.arena.get(self.message as usize))
            && let Some(place) = state.free.pop()
        {
            let key = self.regions.iter().find_map(|region| region.key_of(&buffer));
            let Some(lkey) = key else { panic!("memory that isn't registered with the device") };
            let piece = sys::ibv_sge { addr: buffer.as_ptr() as u64, length: buffer.len() as u32, lkey };
            state.chain.receive(name(state.name, true, place.into()), piece);
            state.places[usize::from(place)] = Some(buffer);
            posted += 1;
        }
        // SAFETY: what the requests name is in `places` until they complete or the queue is destroyed; the regions are held.
        unsafe { state.chain.post_shared(self.raw, self.domain.context.ops()) }
    }

    /// Whether receives are missing, because the arena was short.
    pub fn is_short(&self) -> bool {
        let state = self.state.borrow();
        let wanted = state.owners.len() * usize::from(self.each);
        state.places.len() - state.free.len() < wanted.min(state.places.len()) / 2
    }

    /// Work requests and doorbells so far.
    pub fn counters(&self) -> (u64, u64) {
        let state = self.state.borrow();
        (state.chain.requests, state.chain.doorbells)
    }
}

impl Drop for SharedReceives {
    fn drop(&mut self) {
        // SAFETY: queue pairs that share it hold it, and so are gone. When this returns, the device touches none of its memory any more.
        let result = unsafe { (self.domain.context.library.destroy_srq)(self.raw) };
        if result != 0 {
            tracing::error!(result, "shared receives of RDMA can't be destroyed: their memory is given up");
            std::mem::forget(std::mem::take(&mut self.state.get_mut().places));
            std::mem::forget(std::mem::take(&mut self.regions));
        }
    }
}
