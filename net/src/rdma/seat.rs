//! A device, as one executor uses it: its domain, its memory, the completion queue of all its queue pairs, and how the executor hears of completions.
//!
//! An executor that is awake [looks](Seat::look) at the queue, which is memory. Only one that is about to sleep [arms](Seat::lie_down) it, and looks once more, because what completed before signals nothing.

use super::RdmaConfig;
use super::completion::{self, Completion, CompletionQueue, TAKEN_MAX};
use super::device::{Context, Limits};
use super::memory::{Domain, Region};
use super::queue_pair::{self, PLACES_MAX};
use super::shared::{POSTED_MAX, SharedReceives};
use super::survey::{Road, Survey, roads_of};
use crate::buffer::{Buffer, Pool};
use crate::costs::Costs;
use crate::ring::{Ring, Source, Token};
use crate::tcp::ConnId;
use corefs_wire::limits::CONNECTIONS_MAX;
use corefs_wire::{Error, ErrorCode, Result};
use std::cell::Cell;
use std::rc::Rc;

/// Places in a send queue for each message that a peer has room for: a message may have a binding or a write before it, and an invalidation behind.
const SENDS_A_RECEIVE: u32 = 4;
const SENDS_MIN: u32 = 64;
/// In the token of a ring's completion, beside a seat's number: it is a device's events that have come, not completions.
pub const EVENTS: u64 = 1 << 32;
/// The token's payload when devices may have come or gone.
pub const WATCH: u64 = 1 << 33;
/// Queue pairs at once where each has receives of its own.
const ALONE_MAX: usize = 64;

pub struct Seat {
    /// Its name in tokens. None is used twice, so what is in flight for a seat that is gone is nobody else's.
    number: u32,
    pub domain: Rc<Domain>,
    pub completions: Rc<CompletionQueue>,
    /// The pool of the executor, and the arena.
    pub regions: Vec<Rc<Region>>,
    /// Messages, and copies of data that the device can't reach.
    pub arena: Pool,
    /// Places in the send queue of a queue pair with receives of its own, and of one that shares them.
    pub sends: u32,
    pub sends_sharing: u32,
    /// What new connections share is the last; before it what has been worn out, as long as somebody has it.
    shared: Vec<Rc<SharedReceives>>,
    made: u32,
    /// Work requests and doorbells of those that are gone.
    shared_before: (u64, u64),
    /// The descriptor is being polled; the next completion makes it readable.
    polling: bool,
    armed: bool,
    /// What a look has found that nobody has taken yet.
    found: Vec<Completion>,
    arms: u64,
    wakes: u64,
    /// The descriptor of events is being polled; the device is there no more.
    watching: bool,
    pub gone: bool,
    /// What lanes that are gone have cost.
    pub ended: Rc<Cell<Costs>>,
}

/// A seat for each device that has a road; the first gets the number `first`. Why devices can't be used after all stands behind them, and in the log.
pub fn take(survey: &Survey, config: &mut RdmaConfig, pool: &Pool, first: u32) -> (Vec<Seat>, Vec<Error>) {
    let (mut seats, mut refused) = (Vec::<Seat>::new(), Vec::new());
    let mut seen: Vec<Rc<Context>> = Vec::new();
    for road in survey.roads() {
        if seen.iter().any(|known| Rc::ptr_eq(known, &road.context)) {
            continue;
        }
        let device = road.context.name();
        match Seat::new(&road, config, pool, first + seats.len() as u32) {
            Ok(seat) => seats.push(seat),
            Err(error) => {
                tracing::warn!(device, %error, "this RDMA device can't be used");
                refused.push(error.of(device));
            }
        }
        seen.push(road.context);
    }
    (seats, refused)
}

/// Places in the send queue of a queue pair whose peer has room for so many messages.
fn sends_of(receives: u32, limits: Limits) -> u32 {
    (SENDS_A_RECEIVE * receives).max(SENDS_MIN).min(limits.requests).min(PLACES_MAX)
}

/// Entries of the completion queue: what all queue pairs may complete at once, `each` of one with receives of its own and of one that shares them. Where that is
/// more than `most`, there will be fewer queue pairs.
fn completions_for(config: &mut RdmaConfig, each: (u32, u32), most: u32) -> u32 {
    let count = |many: usize| {
        let alone = many.min(config.shared_from) as u32;
        let sharing = many as u32 - alone;
        let shared = if sharing > 0 { u32::from(POSTED_MAX) } else { 0 };
        alone * each.0 + sharing * each.1 + shared
    };
    let fits = (0..=config.queue_pairs_max).rev().find(|many| count(many + 1) <= most).unwrap_or(0);
    let entries = count(fits + 1).min(most);
    config.queue_pairs_max = fits;
    entries
}

/// The roads of these devices, as their ports are now.
pub fn roads(seats: &[Seat]) -> Vec<(Road, usize)> {
    let mut roads = Vec::new();
    for (at, seat) in seats.iter().enumerate().filter(|(_, seat)| !seat.gone) {
        match seat.domain.context.ports() {
            Ok(ports) => roads.extend(roads_of(&seat.domain.context, &ports).map(|road| (road, at))),
            Err(error) => {
                tracing::warn!(device = seat.domain.context.name(), %error, "an RDMA device doesn't tell of its ports")
            }
        }
    }
    roads.sort_by_key(|(road, _)| road.rank());
    roads
}

impl Seat {
    /// Lowers the bound of queue pairs to what the device's completion queues hold.
    fn new(road: &Road, config: &mut RdmaConfig, pool: &Pool, number: u32) -> Result<Self> {
        let limits = road.context.limits;
        let receives = u32::from(config.receives);
        let sends = sends_of(receives, limits);
        let sends_sharing = sends_of(config.shared_receives.into(), limits);
        if limits.shared_receives < POSTED_MAX.into() {
            // Each has its own then, and they are fewer.
            (config.shared_from, config.queue_pairs_max) =
                (usize::MAX, config.queue_pairs_max.min(ALONE_MAX));
        }
        let wanted = completions_for(config, (sends + receives, sends_sharing), limits.completions);
        let domain = Domain::new(&road.context)?;
        let completions = CompletionQueue::new(&road.context, wanted)?;
        let arena = Pool::with_huge_pages(config.arena_bytes)?;
        let regions =
            vec![Rc::new(Region::register(&domain, pool)?), Rc::new(Region::register(&domain, &arena)?)];
        let (polling, armed) = (false, false);
        Ok(Self {
            number,
            domain,
            completions,
            regions,
            arena,
            sends,
            sends_sharing,
            shared: Vec::new(),
            made: 0,
            shared_before: (0, 0),
            polling,
            armed,
            found: Vec::with_capacity(TAKEN_MAX),
            arms: 0,
            wakes: 0,
            watching: false,
            gone: false,
            ended: Rc::default(),
        })
    }

    /// What has completed. The list is to be [given back](Self::give_back).
    pub fn poll(&mut self) -> Result<Vec<Completion>> {
        let mut found = std::mem::take(&mut self.found);
        self.completions.poll(&mut found)?;
        Ok(found)
    }

    pub fn give_back(&mut self, mut list: Vec<Completion>) {
        assert!(self.found.is_empty(), "what was found meanwhile would be lost");
        list.clear();
        self.found = list;
    }

    /// A queue pair has just been made under this number. What has completed under it, and nobody has taken, was for one before it, and is nobody's: devices use
    /// numbers again, and not all of them take what is left of a queue pair out of the completion queue when it is destroyed. (Completions of its own have its
    /// connection's name; those of receives that are shared have this number only.)
    pub fn claim(&mut self, queue_pair: u32) -> Result<()> {
        self.completions.drain(&mut self.found)?;
        completion::disown(&mut self.found, queue_pair);
        Ok(())
    }

    /// What its lanes have cost that are gone, and the seat itself.
    pub fn costs(&self) -> Costs {
        let shared = self.shared.iter().map(|shared| shared.counters());
        let (requests, doorbells) = shared.fold(self.shared_before, |a, b| (a.0 + b.0, a.1 + b.1));
        let shared = Costs {
            rdma_requests: requests,
            rdma_doorbells: doorbells,
            rdma_arms: self.arms,
            rdma_wakes: self.wakes,
            ..Costs::default()
        };
        self.ended.get().plus(shared)
    }

    /// The receives that the next connection shares.
    pub fn share(&mut self, config: &RdmaConfig) -> Result<Rc<SharedReceives>> {
        self.forget_unused();
        if let Some(shared) = self.shared.last().filter(|shared| !shared.is_worn()) {
            return Ok(Rc::clone(shared));
        }
        self.made += 1;
        let name = SHARED << 32 | u64::from(self.made);
        let sizes = (config.shared_receives, config.message);
        let shared = SharedReceives::new(&self.domain, self.regions.clone(), &self.arena, sizes, name)?;
        self.shared.push(Rc::clone(&shared));
        Ok(shared)
    }

    /// Those that nobody has, but for the last.
    fn forget_unused(&mut self) {
        let last = self.shared.len().saturating_sub(1);
        let mut at = 0;
        let before = &mut self.shared_before;
        self.shared.retain(|shared| {
            let kept = at == last || Rc::strong_count(shared) > 1;
            at += 1;
            if !kept {
                let (requests, doorbells) = shared.counters();
                *before = (before.0 + requests, before.1 + doorbells);
            }
            kept
        });
    }

    /// Of a completion of a receive that is shared: its buffer and whose it is.
    #[inline]
    pub fn taken(&self, completion: &Completion) -> Result<(Buffer, Option<u64>)> {
        let owner = queue_pair::owner(completion.name);
        let shared = self.shared.iter().rev().find(|shared| shared.name() == owner);
        // What a queue that is gone has left in the completion queue names memory that was given back with it.
        let gone =
            || Error::new(ErrorCode::Internal, "the RDMA device completed a receive of a queue that is gone");
        shared.ok_or_else(gone)?.taken(queue_pair::place(completion.name), completion.queue_pair)
    }

    /// Posts receives that are shared in the place of those that were used.
    pub fn refill(&mut self) -> Result<()> {
        self.shared.iter().try_for_each(|shared| shared.refill())
    }

    /// Whether the arena was short of memory for that.
    pub fn is_short(&self) -> bool {
        self.shared.iter().any(|shared| shared.is_short())
    }

    /// Whether something has completed; it is kept for [`poll`](Self::poll). Costs no system call. Whatever is wrong with the queue shows there, so it counts as something.
    #[inline]
    pub fn look(&mut self) -> bool {
        if self.gone {
            return false;
        }
        let looked = self.found.is_empty().then(|| self.completions.poll(&mut self.found));
        !self.found.is_empty() || looked.is_some_and(|outcome| outcome.is_err())
    }

    /// Makes the next completion wake `ring`, whose thread is about to sleep. `false` if something has completed meanwhile, or nothing would wake it: then it is
    /// to be polled on.
    pub fn lie_down(&mut self, ring: &mut Ring) -> bool {
        if self.gone {
            return true;
        }
        if !self.armed {
            self.arms += 1;
            match self.completions.arm() {
                Ok(()) => self.armed = true,
                Err(error) => tracing::warn!(%error, "an RDMA completion queue can't be armed"),
            }
            // What completed before signals nothing.
            if self.look() {
                return false;
            }
        }
        if self.armed && !self.polling {
            self.polling = true;
            ring.when_readable(self.completions.fd(), self.token(0));
        }
        self.armed
    }

    /// Makes the device's next [event](super::event) wake `ring`.
    pub fn watch(&mut self, ring: &mut Ring) {
        if !self.watching && !self.gone {
            self.watching = true;
            ring.when_readable(self.domain.context.events_fd(), self.token(EVENTS));
        }
    }

    fn token(&self, of: u64) -> Token {
        Token::new(Source::RDMA, of | u64::from(self.number))
    }

    /// Whether a token's payload is of this seat.
    pub fn is_meant(&self, payload: u64) -> bool {
        payload & !EVENTS == u64::from(self.number)
    }

    /// Ends what is in flight for it, which would keep the device open when the seat is dropped.
    pub fn leave(&mut self, ring: &mut Ring) {
        for of in [0, EVENTS] {
            ring.cancel(self.token(of));
        }
    }

    /// Its events are about to be taken.
    pub fn heard(&mut self) {
        self.watching = false;
    }

    /// The descriptor has become readable.
    pub fn woken(&mut self) {
        (self.polling, self.armed) = (false, false);
        self.wakes += 1;
        self.completions.heard();
    }
}

/// The name of a connection in completions (52 bits), and back.
pub fn owner(conn: ConnId) -> u64 {
    u64::from(conn.index) << 32 | u64::from(conn.generation)
}

pub fn conn(owner: u64) -> ConnId {
    ConnId { index: (owner >> 32) as u32, generation: owner as u32 }
}

/// Whether a completion's name is of receives that are shared, rather than of a connection.
pub fn is_shared(owner: u64) -> bool {
    owner >> 32 == SHARED
}

/// Instead of a connection's index.
const SHARED: u64 = (1 << 20) - 1;
const _: () = assert!(
    CONNECTIONS_MAX < SHARED as usize,
    "an index has 20 bits in a completion's name, and one is taken"
);
