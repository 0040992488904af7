//! A device, as one executor uses it: its domain, its memory, the completion queue of all its queue pairs, and the rest between completions.

use super::RdmaConfig;
use super::completion::{Completion, CompletionQueue};
use super::memory::{Domain, Region};
use super::queue_pair::PLACES_MAX;
use super::survey::{Road, Survey, roads_of};
use crate::buffer::Pool;
use crate::costs::Costs;
use crate::ring::{Ring, Source, Token};
use crate::tcp::ConnId;
use corefs_wire::Result;
use corefs_wire::limits::CONNECTIONS_MAX;
use std::cell::Cell;
use std::rc::Rc;

/// Places in a send queue for each message that a peer has room for: a message may have a binding or a write before it, and an invalidation behind.
const SENDS_A_RECEIVE: u32 = 4;
const SENDS_MIN: u32 = 64;
/// In the token of a ring's completion: it is a device's events that have come, not completions.
pub const EVENTS: u64 = 1 << 32;

pub struct Seat {
    pub domain: Rc<Domain>,
    pub completions: Rc<CompletionQueue>,
    /// The pool of the executor, and the arena.
    pub regions: Vec<Rc<Region>>,
    /// Messages, and copies of data that the device can't reach.
    pub arena: Pool,
    /// Places in the send queue of each queue pair.
    pub sends: u32,
    /// The descriptor is being polled; a completion makes it readable; the last look found nothing.
    polling: bool,
    armed: bool,
    quiet: bool,
    /// What was found by the look after arming.
    found: Vec<Completion>,
    arms: u64,
    /// The descriptor of events is being polled; the device is there no more.
    watching: bool,
    pub gone: bool,
    /// What lanes that are gone have cost.
    pub ended: Rc<Cell<Costs>>,
}

/// A seat for each device that has a road, and the roads, each with the place of its seat. A device that can't be used after all is told of in the log.
pub fn take(survey: &Survey, config: &mut RdmaConfig, pool: &Pool) -> (Vec<Seat>, Vec<(Road, usize)>) {
    let mut seats: Vec<Seat> = Vec::new();
    let mut roads: Vec<(Road, usize)> = Vec::new();
    let mut broken: Vec<String> = Vec::new();
    for road in survey.roads() {
        let name = road.context.name();
        if broken.iter().any(|known| known == name) {
            continue;
        }
        let known = seats.iter().position(|seat| Rc::ptr_eq(&seat.domain.context, &road.context));
        let at = match known {
            Some(at) => at,
            None => match Seat::new(&road, config, pool) {
                Ok(seat) => {
                    seats.push(seat);
                    seats.len() - 1
                }
                Err(error) => {
                    tracing::warn!(device = name, %error, "this RDMA device can't be used");
                    broken.push(name.to_string());
                    continue;
                }
            },
        };
        roads.push((road, at));
    }
    (seats, roads)
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
    fn new(road: &Road, config: &mut RdmaConfig, pool: &Pool) -> Result<Self> {
        let limits = road.context.limits;
        let receives = u32::from(config.receives);
        let sends = (SENDS_A_RECEIVE * receives).max(SENDS_MIN).min(limits.requests).min(PLACES_MAX);
        let each = sends + receives;
        let wanted = (config.queue_pairs_max as u32 + 1).saturating_mul(each).min(limits.completions);
        config.queue_pairs_max = config.queue_pairs_max.min((wanted / each) as usize);
        let domain = Domain::new(&road.context)?;
        let completions = CompletionQueue::new(&road.context, wanted)?;
        let arena = Pool::with_huge_pages(config.arena_bytes)?;
        let regions =
            vec![Rc::new(Region::register(&domain, pool)?), Rc::new(Region::register(&domain, &arena)?)];
        let (polling, armed, quiet) = (false, false, false);
        Ok(Self {
            domain,
            completions,
            regions,
            arena,
            sends,
            polling,
            armed,
            quiet,
            found: Vec::new(),
            arms: 0,
            watching: false,
            gone: false,
            ended: Rc::default(),
        })
    }

    /// What has completed. The list is to be [given back](Self::give_back).
    pub fn poll(&mut self) -> Result<Vec<Completion>> {
        let mut found = std::mem::take(&mut self.found);
        self.completions.poll(&mut found)?;
        self.quiet = found.is_empty();
        Ok(found)
    }

    pub fn give_back(&mut self, mut list: Vec<Completion>) {
        list.clear();
        self.found = list;
    }

    /// What its lanes have cost that are gone, and the seat itself.
    pub fn costs(&self) -> Costs {
        Costs { rdma_arms: self.arms, ..self.ended.get() }
    }

    /// Whether it is to be polled again before the executor rests.
    pub fn is_busy(&self) -> bool {
        !self.quiet
    }

    /// If the last look found nothing: makes the next completion wake `ring`.
    pub fn rest(&mut self, index: usize, ring: &mut Ring) {
        if self.quiet && !self.armed {
            self.arms += 1;
            match self.completions.arm() {
                Ok(()) => self.armed = true,
                // It is polled on, then.
                Err(error) => tracing::warn!(%error, "an RDMA completion queue can't be armed"),
            }
            // What completed before signals nothing.
            let looked = self.completions.poll(&mut self.found);
            self.quiet = self.armed && looked.is_ok() && self.found.is_empty();
        }
        if self.armed && !self.polling {
            self.polling = true;
            ring.when_readable(self.completions.fd(), Token::new(Source::RDMA, index as u64));
        }
    }

    /// Makes the device's next [event](super::event) wake `ring`.
    pub fn watch(&mut self, index: usize, ring: &mut Ring) {
        if !self.watching && !self.gone {
            self.watching = true;
            ring.when_readable(
                self.domain.context.events_fd(),
                Token::new(Source::RDMA, EVENTS | index as u64),
            );
        }
    }

    /// Its events are about to be taken.
    pub fn heard(&mut self) {
        self.watching = false;
    }

    /// The descriptor has become readable.
    pub fn woken(&mut self) {
        (self.polling, self.armed, self.quiet) = (false, false, false);
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

const _: () = assert!(CONNECTIONS_MAX < 1 << 20, "an index has 20 bits in a completion's name");
