//! What becomes of connections when devices say something, go, or come.
//!
//! A device that is gone, as it says itself or as its node's removal tells, loses its connections at once, and with the next flush its seat: memory, queues and the open device are given back, for
//! which the kernel may be waiting. From then on it is looked for, and taken when it is there; connections that were made meanwhile stay on TCP.

use super::connections::{Inner, lost};
use super::event::Event;
use super::seat::{self, Seat};
use super::survey::Survey;
use super::watch;
use crate::place::Network;
use crate::ring::{Ring, Source, Token};
use std::rc::Rc;
use std::sync::Once;
use std::time::{Duration, Instant};

/// How often devices are looked for while there are none any more; they are in any case when the directory of devices changes.
const LOOK: Duration = Duration::from_secs(2);
/// How often while there never were any, but something that may become one: a port may get its link or its address later, of which nothing tells.
const LOOK_FIRST: Duration = Duration::from_secs(30);

/// Says once in each process why it goes by TCP.
pub(super) fn say_why_not(obstacles: impl Iterator<Item = String>) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        let why = obstacles.collect::<Vec<_>>().join("; ");
        tracing::info!(why, "RDMA can't be used: everything goes by TCP, until a device comes");
    });
}

/// When devices are to be looked for, of a process that starts with these.
pub(super) fn first_look(now: Instant, seats: &[Seat]) -> Option<Instant> {
    (seats.is_empty() && watch::is_there()).then(|| now + LOOK_FIRST)
}

impl Inner {
    /// Takes a completion of the ring's, by its token's payload. What is left of a seat that is no more is nobody's.
    pub(super) fn complete(&mut self, payload: u64) {
        if payload == seat::WATCH {
            return self.devices_changed();
        }
        let Some(at) = self.seats.iter().position(|seat| seat.is_meant(payload)) else { return };
        match payload & seat::EVENTS {
            0 => self.seats[at].woken(),
            _ => self.hear(at),
        }
    }

    /// Has whatever devices say from now on, and whatever comes and goes of them, wake `ring`; gives back those that are gone.
    pub(super) fn watch(&mut self, ring: &mut Ring) {
        if self.seats.iter().any(|seat| seat.gone) {
            self.retire(ring);
        }
        self.seats.iter_mut().for_each(|seat| seat.watch(ring));
        if let Some(watch) = &self.watch
            && !std::mem::replace(&mut self.watching, true)
        {
            ring.when_readable(watch.fd(), Token::new(Source::RDMA, seat::WATCH));
        }
    }

    /// Takes what a device has said unasked.
    fn hear(&mut self, at: usize) {
        self.seats[at].heard();
        let context = Rc::clone(&self.seats[at].domain.context);
        let name = context.name().to_string();
        while let Some(event) = context.event() {
            match event {
                Event::PortDown(port) => {
                    tracing::warn!(
                        device = name,
                        port,
                        "an RDMA port is down: its connections end, others go by another port or TCP"
                    );
                    self.break_all(
                        &context,
                        Some(port),
                        &lost(format!("RDMA: port {port} of {name} is down")),
                    );
                }
                Event::PortUp(port) => {
                    tracing::info!(device = name, port, "an RDMA port is up: new connections may go by it")
                }
                Event::QueuePair { owner } => self.queue_pair_failed(owner, &name),
                Event::Queues => {
                    tracing::error!(
                        device = name,
                        "an RDMA device's queues have failed: all of its connections end"
                    );
                    self.break_all(&context, None, &lost(format!("RDMA: a queue of {name} failed")));
                }
                Event::Gone => self.lose(at),
                Event::PortChanged | Event::Other => (),
            }
            if event == Event::Gone {
                break;
            }
        }
        // Whatever it was, which ports can be used and by what addresses is asked anew: this is rare.
        self.roads = seat::roads(&self.seats);
        self.networks = Network::all();
    }

    /// A device says so of a queue pair, by its owner's name.
    pub(super) fn queue_pair_failed(&mut self, owner: u64, device: &str) {
        self.broken(seat::conn(owner), lost(format!("RDMA: the queue pair failed, says {device}")));
    }

    /// The directory of devices has changed.
    fn devices_changed(&mut self) {
        self.watching = false;
        self.watch.iter().for_each(|watch| watch.heard());
        if self.seats.is_empty() && !watch::is_there() {
            return;
        }
        for at in 0..self.seats.len() {
            if !self.seats[at].gone && self.seats[at].domain.context.is_gone() {
                self.lose(at);
            }
        }
        self.roads = seat::roads(&self.seats);
        self.next_look = Some(Instant::now());
    }

    /// A device is gone, or about to go when nobody has it any more.
    fn lose(&mut self, at: usize) {
        let context = Rc::clone(&self.seats[at].domain.context);
        let device = context.name();
        tracing::error!(
            device,
            "an RDMA device is gone: its connections end, others go by TCP until it is back"
        );
        self.break_all(&context, None, &lost(format!("RDMA: the device {device} is gone")));
        self.seats[at].gone = true;
    }

    /// Gives back what is gone.
    fn retire(&mut self, ring: &mut Ring) {
        self.roads.clear();
        let (gone, left): (Vec<Seat>, Vec<Seat>) =
            std::mem::take(&mut self.seats).into_iter().partition(|seat| seat.gone);
        self.seats = left;
        for mut seat in gone {
            seat.leave(ring);
            self.retired = self.retired.plus(seat.costs());
        }
        self.roads = seat::roads(&self.seats);
        self.next_look = Some(self.now + LOOK);
    }

    /// Takes devices that have come. Where there are none, looks again later.
    pub(super) fn look_for_devices(&mut self) {
        let known: Vec<String> =
            self.seats.iter().map(|seat| seat.domain.context.name().to_string()).collect();
        let survey = Survey::but(&known, &self.config.devices);
        let found = survey.roads();
        let (came, _) = seat::take(&survey, &mut self.config, &self.pool, self.numbers);
        self.numbers += came.len() as u32;
        for seat in &came {
            let device = seat.domain.context.name();
            tracing::info!(device, "an RDMA device has come: new connections may go by it");
        }
        self.seats.extend(came);
        self.roads = seat::roads(&self.seats);
        self.networks = Network::all();
        // One that came and can't be used isn't asked again: why not is in the log.
        let often = if self.numbers > 0 { LOOK } else { LOOK_FIRST };
        let again = self.seats.is_empty() && found.is_empty() && (self.numbers > 0 || watch::is_there());
        self.next_look = again.then(|| self.now + often);
    }
}
