//! The one task of a node: its turn loop.
//!
//! A turn: completions become frames, replies wake their requesters, requests go to the service; everybody who was woken
//! runs; the hooks of the turn's end run; everything queued leaves. So what a turn causes leaves together.

use super::serving::Arrived;
use super::table::Place;
use super::{Inner, Node, State};
use crate::buffer::Buffer;
use crate::contract::{Flow, FrameSink, Placement};
use crate::handshake::Peer;
use crate::mailbox::Receiver;
use crate::ring::{Alarm, Beside, Completion, Ring, Source, Token};
use crate::tcp::ConnId;
use crate::transport::Carrier;
use corefs_wire::frame::{Header, Kind};
use corefs_wire::{Error, ErrorCode, Result};
use std::time::{Duration, Instant};

/// Deadlines and hooks of whoever awaits something are looked at this often.
const FINE: Duration = Duration::from_millis(10);
/// And this often when nobody does.
const COARSE: Duration = Duration::from_secs(1);
/// What requests in progress have to be answered when the node shuts down.
const GRACE: Duration = Duration::from_secs(5);
/// Closures from other threads that run in one turn.
const MAIL_MAX: usize = 256;

pub type Mail = Box<dyn FnOnce(Node) + Send>;

pub struct Pump {
    node: Node,
    ring: Ring,
    mail: Receiver<Mail>,
    completions: Vec<Completion>,
    arrived: Vec<Arrived>,
    timers: Timers,
    stopping_since: Option<Instant>,
}

/// What is due, and the timeouts in flight that wake a sleeper for it. An executor that is awake looks at the clock each turn, so they are queued only before it sleeps.
struct Timers {
    next_tick: Instant,
    fine_armed: bool,
    coarse_armed: bool,
    /// What wakes it at an exact time, and when.
    exact_armed: Option<Instant>,
}

/// What such a thread has beside its ring: its connections, and what is due while it polls.
struct Awake<'a> {
    inner: &'a Inner,
    timers: &'a mut Timers,
    timer: Option<Instant>,
    due: Option<Instant>,
}

impl Beside for Awake<'_> {
    #[inline]
    fn look(&mut self) -> bool {
        self.inner.carrier.borrow_mut().look() || self.due.is_some_and(|due| Instant::now() >= due)
    }

    fn lie_down(&mut self, ring: &mut Ring) -> bool {
        self.timers.arm(self.inner, self.timer, ring);
        self.inner.carrier.borrow_mut().lie_down(ring)
    }
}

impl Timers {
    /// Whether ticks are wanted often, and whether they are wanted at all.
    fn wanted(inner: &Inner) -> (bool, bool) {
        let hooked = inner.ticked.borrow().is_some();
        let (awaited, timed) = {
            let table = inner.table.borrow();
            (!table.is_empty(), table.is_timed())
        };
        let tick = inner.carrier.borrow().next_tick();
        let fine = timed
            || (hooked && awaited)
            || !inner.sleepers.borrow().is_empty()
            || tick.is_some_and(|at| at < inner.now.get() + COARSE)
            || !inner.waiting.borrow().is_empty()
            || inner.state.get() != State::Running;
        (fine, fine || hooked || tick.is_some() || !inner.links.borrow().is_empty())
    }

    /// When the next turn is wanted even if nothing happens, of an executor that has a timer then.
    fn due(&self, inner: &Inner, timer: Option<Instant>) -> Option<Instant> {
        let tick = match Self::wanted(inner) {
            (true, _) => Some(self.next_tick),
            (false, true) => Some(self.next_tick + COARSE),
            (false, false) => None,
        };
        [tick, Self::exact(inner, timer)].into_iter().flatten().min()
    }

    /// What a tick would be too coarse for: the executor's timer, and whoever has waited long enough to be told.
    fn exact(inner: &Inner, timer: Option<Instant>) -> Option<Instant> {
        [timer, inner.table.borrow().next_nudge()].into_iter().flatten().min()
    }

    /// Has what is wanted wake the ring.
    fn arm(&mut self, inner: &Inner, timer: Option<Instant>, ring: &mut Ring) {
        let (fine, coarse) = Self::wanted(inner);
        if fine && !std::mem::replace(&mut self.fine_armed, true) {
            ring.timeout(FINE, FINE_TICK);
        }
        if coarse && !std::mem::replace(&mut self.coarse_armed, true) {
            ring.timeout(COARSE, COARSE_TICK);
        }
        if let Some(at) = Self::exact(inner, timer)
            && self.exact_armed.is_none_or(|armed| armed > at)
        {
            self.exact_armed = Some(at);
            ring.timeout(at.saturating_duration_since(Instant::now()), EXACT_TICK);
        }
    }

    /// Takes a timeout's completion.
    fn woken(&mut self, token: Token) {
        match token {
            FINE_TICK => self.fine_armed = false,
            EXACT_TICK => self.exact_armed = None,
            _ => self.coarse_armed = false,
        }
    }
}

/// Takes the frames of a turn.
struct Inlet<'a> {
    inner: &'a Inner,
    arrived: &'a mut Vec<Arrived>,
}

impl FrameSink for Inlet<'_> {
    fn place(&mut self, conn: ConnId, header: &Header, _body: &[u8], here: Option<Buffer>) -> Placement {
        if header.kind() == Kind::Reply {
            match self.inner.table.borrow_mut().place(conn, header.request(), header.data_len()) {
                Place::Given(buffer, offset) => return Placement::Into { buffer, offset },
                Place::Nowhere => return Placement::Discard,
                Place::Any => {
                    // What it would wait for may be behind it: replies that have their places, and whose end frees them.
                    let own = || self.inner.pool.get(header.data_len());
                    return match here {
                        Some(here) => Placement::Here(here),
                        None => {
                            own().map_or(Placement::Discard, |buffer| Placement::Into { buffer, offset: 0 })
                        }
                    };
                }
            }
        }
        match self.inner.pool.get(header.data_len()) {
            Some(buffer) => Placement::Into { buffer, offset: 0 },
            None => {
                self.inner.waiting.borrow_mut().push(conn);
                Placement::Wait
            }
        }
    }

    fn frame(&mut self, conn: ConnId, header: &Header, body: &[u8], data: Option<Buffer>) -> Flow {
        if header.kind() == Kind::Reply {
            // A reply that nobody awaits any more is dropped here.
            self.inner.table.borrow_mut().complete(conn, header, body, data);
            return Flow::Continue;
        }
        self.arrived.push(Arrived {
            conn,
            op: header.op(),
            number: header.request(),
            body: body.to_vec(),
            data,
        });
        if self.inner.served.borrow_mut().add(conn) { Flow::Continue } else { Flow::Pause }
    }

    fn opened(&mut self, conn: ConnId, peer: &Peer) {
        self.inner.served.borrow_mut().opened(conn, peer);
        self.inner.links.borrow_mut().opened(conn);
    }

    fn closed(&mut self, conn: ConnId, error: Error) {
        let lost = Error { code: ErrorCode::ConnectionLost, ..error.clone() };
        self.inner.table.borrow_mut().fail(Some(conn), &lost);
        self.inner.links.borrow_mut().closed(conn, &error);
        self.inner.served.borrow_mut().closed(conn);
    }
}

impl Pump {
    pub fn new(node: Node, ring: Ring, mail: Receiver<Mail>) -> Self {
        Self {
            node,
            ring,
            mail,
            completions: Vec::new(),
            arrived: Vec::new(),
            timers: Timers {
                next_tick: Instant::now(),
                fine_armed: false,
                coarse_armed: false,
                exact_armed: None,
            },
            stopping_since: None,
        }
    }

    /// Until the node has shut down; among other tasks of a glommio executor.
    pub async fn run(mut self) {
        let outcome = self.turns().await;
        self.stop(outcome);
    }

    pub fn alarm(&self) -> Alarm {
        self.ring.alarm()
    }

    /// Puts something else in the place of the ring, which no kernel takes for one.
    #[cfg(test)]
    pub fn break_ring(&self) {
        self.ring.break_it();
    }

    /// The second half of a turn, after everybody who was woken by [`take`](Self::take) has run: what they queued leaves. Sleeps if
    /// nothing is left to do, until `timer` at most. `false` when the node has shut down. For a thread of its own.
    pub fn end_turn(&mut self, timer: Option<Instant>) -> bool {
        self.node.0.bell.take();
        self.finish();
        if self.node.0.state.get() != State::Running && self.has_stopped() {
            self.stop(Ok(()));
            return false;
        }
        let inner = &*self.node.0;
        let idle = !inner.bell.is_rung() && self.mail.is_empty() && !inner.carrier.borrow().has_work();
        let outcome = match idle {
            true => {
                let due = self.timers.due(inner, timer);
                let mut awake = Awake { inner, timers: &mut self.timers, timer, due };
                self.ring.rest(&mut awake, &mut self.completions)
            }
            false => self.ring.turn(&mut self.completions),
        };
        match outcome {
            Ok(()) => true,
            Err(error) => {
                self.stop(Err(error));
                false
            }
        }
    }

    /// Everybody who waits is told.
    fn stop(&mut self, outcome: Result<()>) {
        let error = match outcome {
            Ok(()) => Error::new(ErrorCode::ShuttingDown, "this node has shut down"),
            Err(error) => {
                tracing::error!(%error, "the ring has failed; this node can't go on");
                error
            }
        };
        self.ring.drain();
        let inner = &self.node.0;
        inner.state.set(State::Stopped);
        inner.table.borrow_mut().fail(None, &error);
        inner.sleepers.borrow_mut().wake_all(Instant::now());
        inner.stopped.set(());
    }

    async fn turns(&mut self) -> Result<()> {
        let bell = self.node.0.bell.clone();
        loop {
            let busy = !self.completions.is_empty() || bell.is_rung();
            self.take();
            if busy {
                self.ring.breathe().await?;
            }
            bell.take();
            self.finish();
            if self.node.0.state.get() != State::Running && self.has_stopped() {
                return Ok(());
            }
            self.ring.turn(&mut self.completions)?;
            let idle = self.completions.is_empty() && !bell.is_rung() && self.mail.is_empty();
            if idle && !self.node.0.carrier.borrow().has_work() && self.lie_down() {
                self.ring.park(&bell, &mut self.completions).await?;
            } else if !busy {
                self.ring.breathe().await?;
            }
        }
    }

    /// Has whatever comes from now on wake the ring, among other tasks of an executor, which don't let it poll anything else. `false` if something has come.
    fn lie_down(&mut self) -> bool {
        let inner = &*self.node.0;
        self.timers.arm(inner, None, &mut self.ring);
        inner.carrier.borrow_mut().lie_down(&mut self.ring)
    }

    /// The first half of a turn: what has happened.
    pub fn take(&mut self) {
        let now = Instant::now();
        let inner = &self.node.0;
        inner.now.set(now);
        {
            let mut carrier = inner.carrier.borrow_mut();
            let mut inlet = Inlet { inner, arrived: &mut self.arrived };
            for completion in self.completions.drain(..) {
                match completion.token.source() {
                    source if Carrier::owns(source) => carrier.complete(completion, &mut inlet),
                    _ => self.timers.woken(completion.token),
                }
            }
            carrier.advance(now, &mut inlet);
        }
        for arrived in self.arrived.drain(..) {
            self.node.dispatch(arrived);
        }
        self.ring.heard_alarm();
        for _ in 0..MAIL_MAX {
            let Some(work) = self.mail.pop() else { break };
            work(self.node.clone());
        }
        if now >= self.timers.next_tick {
            self.tick(now);
        }
        self.node.0.table.borrow_mut().nudge(now);
    }

    /// What follows from it.
    fn finish(&mut self) {
        let inner = &self.node.0;
        let hook = inner.turn_end.borrow().clone();
        if let Some(hook) = hook {
            hook(&self.node);
        }
        self.retry_waiting();
        self.take_back();
        self.node.0.carrier.borrow_mut().flush(&mut self.ring);
        self.node.0.ring_counters.set(self.ring.counters());
    }

    /// What was granted to replies that nobody awaits any more is taken back.
    fn take_back(&mut self) {
        let inner = &self.node.0;
        let mut table = inner.table.borrow_mut();
        while let Some((conn, request)) = table.take_abandoned() {
            inner.carrier.borrow_mut().revoke(conn, request);
        }
    }

    /// Connections that had no buffer ask again once there are some.
    fn retry_waiting(&mut self) {
        let inner = &self.node.0;
        if inner.waiting.borrow().is_empty() || !inner.pool_bell.take() {
            return;
        }
        let waiting = std::mem::take(&mut *inner.waiting.borrow_mut());
        let mut carrier = inner.carrier.borrow_mut();
        waiting.into_iter().for_each(|conn| carrier.resume(conn));
    }

    fn tick(&mut self, now: Instant) {
        self.timers.next_tick = now + FINE;
        let inner = &self.node.0;
        inner.table.borrow_mut().expire(now);
        inner.sleepers.borrow_mut().wake(now);
        let idle = {
            let (carrier, mut table) = (inner.carrier.borrow(), inner.table.borrow_mut());
            let frames = |conn| {
                let quiet = table.in_flight(conn) == 0;
                carrier.counters(conn).filter(|_| quiet).map(|counters| counters.frames_out)
            };
            inner.links.borrow_mut().take_idle(now, inner.idle, frames)
        };
        idle.into_iter().for_each(|conn| inner.carrier.borrow_mut().close(conn));
        let hook = inner.ticked.borrow().clone();
        if let Some(hook) = hook {
            hook(&self.node, now);
        }
    }

    /// Goes on with shutting down: no new connections; what is in progress is answered; everything is closed.
    fn has_stopped(&mut self) -> bool {
        let inner = &self.node.0;
        let mut carrier = inner.carrier.borrow_mut();
        let since = *self.stopping_since.get_or_insert_with(|| {
            carrier.stop_listening(&mut self.ring);
            Instant::now()
        });
        let unanswered = inner.served.borrow().unanswered();
        if unanswered > 0 && since.elapsed() < GRACE {
            return false;
        }
        for conn in carrier.connections() {
            carrier.close(conn);
        }
        carrier.flush(&mut self.ring);
        carrier.live() == 0
    }
}

const FINE_TICK: Token = Token::new(Source::TIMER, 1);
const COARSE_TICK: Token = Token::new(Source::TIMER, 2);
const EXACT_TICK: Token = Token::new(Source::TIMER, 3);
