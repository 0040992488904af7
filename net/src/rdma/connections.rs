//! What is known of each connection beyond what TCP knows: where it is on its way to a queue pair, and that.
//!
//! [`Inner`] is everything of the driver but TCP, and stands between TCP and the sink: what belongs to the exchange is kept, what happens to a connection is
//! noted. TCP's driver is busy while it calls, so what is to be done with connections there is left as [`Errand`]s.

use super::completion::Completion;
use super::device::Context;
use super::distrust::Distrust;
use super::lane::Lane;
use super::seat::{self, Seat};
use super::survey::Road;
use super::upgrade::Stage;
use super::watch::Watch;
use super::{RdmaConfig, queue_pair, setup};
use crate::address::Address;
use crate::buffer::{Buffer, Pool};
use crate::contract::{Flow, FrameSink, Placement};
use crate::costs::Costs;
use crate::handshake::{Peer, capability};
use crate::place::Network;
use crate::tcp::{ConnId, Tcp};
use corefs_wire::frame::{Header, Kind};
use corefs_wire::limits::CONNECTION_SEND_MAX;
use corefs_wire::{Error, ErrorCode};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How often deadlines are looked at while there are any.
const TICK: Duration = Duration::from_millis(100);
/// And memory that something waits for.
const SHORT: Duration = Duration::from_millis(5);
/// What a queue pair has after the end of its connection to finish what came before: a device needs microseconds, soft-RoCE, which is threads of the
/// kernel, a turn on a core.
const LAST_WORDS: Duration = Duration::from_millis(20);
/// An accepted connection with more than this queued takes no further requests, as of TCP.
const THROTTLE: usize = CONNECTION_SEND_MAX / 8;

/// Everything but TCP, so that it can be the sink of that.
pub(super) struct Inner {
    pub(super) config: RdmaConfig,
    /// What data are placed in, which every device has to reach.
    pub(super) pool: Pool,
    pub(super) seats: Vec<Seat>,
    /// Seats so far, and what those have cost that are no more.
    pub(super) numbers: u32,
    pub(super) retired: Costs,
    /// Tells of devices that come and go, and its descriptor is being polled.
    pub(super) watch: Option<Watch>,
    pub(super) watching: bool,
    /// When devices are to be looked for.
    pub(super) next_look: Option<Instant>,
    pub(super) roads: Vec<(Road, usize)>,
    /// What this machine's interfaces are connected to.
    pub(super) networks: Vec<Network>,
    pub(super) entries: Vec<Option<Entry>>,
    pub(super) lanes: usize,
    /// Connections that `flush` is to look at, and `advance`.
    pub(super) dirty: Vec<ConnId>,
    pub(super) ready: Vec<ConnId>,
    /// The list that isn't in use, so that none is made each turn.
    pub(super) spare_ready: Vec<ConnId>,
    /// What is to be done with TCP connections, whose driver is busy calling us.
    pub(super) errands: VecDeque<Errand>,
    /// Addresses whose queue pairs fail.
    pub(super) distrust: Distrust,
    /// Peers without RDMA are refused where it is asked for.
    pub(super) insists: bool,
    /// Some connection has a deadline; some waits for memory.
    pub(super) timed: bool,
    pub(super) short: bool,
    pub(super) now: Instant,
    pub(super) next_scan: Instant,
    /// The list that a scan takes, so that none is made each time.
    pub(super) scanned: Vec<ConnId>,
    /// When connections are to be looked at that are owed something: each tenth of a second, however often memory is looked for.
    pub(super) next_looks: Instant,
}

/// Something to be done with a TCP connection.
pub(super) enum Errand {
    /// An operation, its status and body.
    Say(ConnId, u16, u32, Vec<u8>),
    /// An offer is to be made.
    Offer(ConnId),
    /// The peer has said this.
    Said(ConnId, u16, u32, Vec<u8>),
    /// The queue pair works: frames may flow.
    Open(ConnId),
    /// Frames may flow by TCP.
    Plain(ConnId),
    /// Frames that followed what was said may be taken.
    Resume(ConnId),
    /// Both ends know that nothing more comes.
    Close(ConnId, Error),
    /// The peer is told why.
    Fail(ConnId, Error),
}

/// A connection beyond what TCP knows of it.
pub(super) struct Entry {
    pub(super) generation: u32,
    /// Somebody made it to us.
    pub(super) accepted: bool,
    /// Where it was made to, if we made it.
    pub(super) address: Option<Address>,
    /// Why it goes by TCP.
    pub(super) why: Option<String>,
    /// The sink has heard of it.
    pub(super) known: bool,
    /// It goes by TCP, but an offer may still be answered, which leads to nothing.
    pub(super) unanswered: bool,
    pub(super) stage: Stage,
    /// When the present stage must be over.
    pub(super) deadline: Option<Instant>,
    pub(super) dirty: bool,
    pub(super) ready: bool,
}

impl Entry {
    /// One that we make to this address, or that somebody made to us.
    pub(super) fn new(generation: u32, address: Option<Address>) -> Self {
        let accepted = address.is_none();
        Self {
            generation,
            accepted,
            address,
            why: None,
            known: !accepted,
            unanswered: false,
            stage: Stage::Greeting,
            deadline: None,
            dirty: false,
            ready: false,
        }
    }
}

impl Inner {
    pub(super) fn entry(&self, conn: ConnId) -> Option<&Entry> {
        let entry = self.entries.get(conn.index as usize)?.as_ref()?;
        (entry.generation == conn.generation).then_some(entry)
    }

    pub(super) fn entry_mut(&mut self, conn: ConnId) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(conn.index as usize)?.as_mut()?;
        (entry.generation == conn.generation).then_some(entry)
    }

    pub(super) fn put(&mut self, conn: ConnId, entry: Entry) {
        let index = conn.index as usize;
        if self.entries.len() <= index {
            self.entries.resize_with(index + 1, || None);
        }
        self.entries[index] = Some(entry);
    }

    /// `flush` is to look at it.
    pub(super) fn touch(&mut self, conn: ConnId) {
        if let Some(entry) = self.entry_mut(conn)
            && !std::mem::replace(&mut entry.dirty, true)
        {
            self.dirty.push(conn);
        }
    }

    /// `advance` is to look at it.
    pub(super) fn look_at(&mut self, conn: ConnId) {
        if let Some(entry) = self.entry_mut(conn)
            && !std::mem::replace(&mut entry.ready, true)
        {
            self.ready.push(conn);
        }
    }

    /// Takes what has completed to its connections.
    pub(super) fn poll(&mut self) {
        for index in 0..self.seats.len() {
            if self.lanes == 0 {
                continue;
            }
            let found = match self.seats[index].poll() {
                Ok(found) => found,
                Err(error) => {
                    let context = Rc::clone(&self.seats[index].domain.context);
                    self.break_all(&context, None, &error);
                    continue;
                }
            };
            for completion in &found {
                let owner = queue_pair::owner(completion.name);
                if seat::is_shared(owner) {
                    self.shared(index, completion);
                    continue;
                }
                let conn = seat::conn(owner);
                let lane = self.entry_mut(conn).and_then(|entry| entry.stage.lane_mut());
                // Of a queue pair that was destroyed something may be left.
                let Some(lane) = lane else { continue };
                match lane.completed(completion.name, completion.outcome) {
                    Ok(()) => {
                        self.look_at(conn);
                        self.touch(conn);
                    }
                    Err(error) => self.broken(conn, error),
                }
            }
            self.seats[index].give_back(found);
        }
    }

    /// Takes the completion of a receive that connections share to its own.
    fn shared(&mut self, index: usize, completion: &Completion) {
        let (buffer, owner) = match self.seats[index].taken(completion) {
            Ok(taken) => taken,
            // Left behind by a queue that went with its last connection.
            Err(error) => return tracing::debug!(%error, "a completion without an owner"),
        };
        let Some(conn) = owner.map(seat::conn) else { return };
        let Some(lane) = self.entry_mut(conn).and_then(|entry| entry.stage.lane_mut()) else { return };
        match lane.completed_shared(buffer, completion.outcome) {
            Ok(()) => {
                self.look_at(conn);
                self.touch(conn);
            }
            Err(error) => self.broken(conn, error),
        }
    }

    /// Posts receives that connections share in the place of those that were used.
    pub(super) fn refill(&mut self) {
        for index in 0..self.seats.len() {
            if let Err(error) = self.seats[index].refill() {
                let context = Rc::clone(&self.seats[index].domain.context);
                self.break_all(&context, None, &error);
            }
            if self.seats[index].is_short() {
                self.short = true;
                self.next_scan = self.next_scan.min(self.now + SHORT);
            }
        }
    }

    pub(super) fn flush(&mut self, conn: ConnId) {
        let Some(entry) = self.entry_mut(conn) else { return };
        entry.dirty = false;
        let accepted = entry.accepted;
        let Some(lane) = entry.stage.lane_mut() else { return };
        match lane.flush() {
            Ok(news) => {
                let (short, owed) = (lane.is_short(), accepted && lane.is_owed() || !lane.is_idle());
                self.errands.extend(news.map(|news| Errand::Say(conn, setup::op::NEWS, 0, news)));
                if owed && !self.timed && !self.short {
                    // Mostly it is over by then, and nobody is woken for it now.
                    self.next_scan = self.next_scan.max(self.now + TICK);
                }
                self.timed |= owed;
                if short {
                    self.short = true;
                    self.next_scan = self.next_scan.min(self.now + SHORT);
                }
            }
            Err(error) => self.broken(conn, error),
        }
    }

    pub(super) fn deliver(&mut self, conn: ConnId, sink: &mut impl FrameSink) {
        let Some(entry) = self.entry_mut(conn) else { return };
        entry.ready = false;
        let accepted = entry.accepted;
        match &mut entry.stage {
            Stage::Proving(lane) if lane.heard => self.errands.push_back(Errand::Open(conn)),
            Stage::Open(lane) | Stage::Draining(lane) => {
                let throttled = accepted && lane.queued() > THROTTLE;
                match lane.deliver(conn, throttled, sink) {
                    Ok(false) => (),
                    Ok(true) => {
                        self.drop_lane(conn);
                        let error = Error::new(ErrorCode::ConnectionLost, "the peer closed the connection");
                        self.errands.push_back(Errand::Close(conn, error));
                    }
                    Err(error) => self.broken(conn, error),
                }
                self.touch(conn);
            }
            _ => (),
        }
    }

    /// What came before the end of a connection is announced before that. A frame may wait for a window to be shut, which takes the device no time
    /// worth mentioning; nothing else is waited for.
    pub(super) fn last_words(&mut self, conn: ConnId, sink: &mut impl FrameSink) {
        let until = Instant::now() + LAST_WORDS;
        loop {
            self.poll();
            sink.taken();
            if !self.entry(conn).is_some_and(|entry| matches!(entry.stage, Stage::Open(_))) {
                return;
            }
            self.deliver(conn, sink);
            self.flush(conn);
            let Some(Stage::Open(lane)) = self.entry(conn).map(|entry| &entry.stage) else { return };
            if !lane.awaits_device() || Instant::now() >= until {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// The queue pair failed, or the peer did what it may not.
    pub(super) fn broken(&mut self, conn: ConnId, error: Error) {
        let Some(entry) = self.entry_mut(conn) else { return };
        let unproved = matches!(entry.stage, Stage::Offered(_) | Stage::Proving(_));
        if unproved && !entry.accepted && error.code != ErrorCode::BadFrame {
            return self.fall_back(conn, &error);
        }
        self.drop_lane(conn);
        self.errands.push_back(Errand::Fail(conn, error));
    }

    /// A device is broken, or one of its ports.
    pub(super) fn break_all(&mut self, context: &Rc<Context>, port: Option<u8>, error: &Error) {
        let conn = |(index, entry): (usize, &Option<Entry>)| {
            let entry = entry.as_ref()?;
            let concerned = entry.stage.lane().is_some_and(|lane| lane.is_at(context, port));
            concerned.then_some(ConnId { index: index as u32, generation: entry.generation })
        };
        let all: Vec<ConnId> = self.entries.iter().enumerate().filter_map(conn).collect();
        all.into_iter().for_each(|conn| self.broken(conn, error.clone()));
    }

    /// Destroys the queue pair of a connection, if it has one; only its end is left of it.
    pub(super) fn drop_lane(&mut self, conn: ConnId) {
        let Some(entry) = self.entry_mut(conn) else { return };
        let stage = std::mem::replace(&mut entry.stage, Stage::Over);
        entry.deadline = None;
        let address = entry.address.clone();
        self.lanes -= usize::from(stage.has_lane());
        if let (Stage::Open(lane), Some(address)) = (&stage, address) {
            self.judge(lane, &address);
        }
    }

    /// What the end of a queue pair says of the path to this address.
    fn judge(&mut self, lane: &Lane, address: &Address) {
        if !lane.is_unanswered() {
            return self.distrust.worked(address);
        }
        if self.distrust.failed(address, Instant::now()) {
            tracing::warn!(%address, "RDMA to this address fails again and again before anything is answered: it is left to TCP for a minute");
        }
    }

    /// Looks at all deadlines, at everybody who waits for memory, and at everybody who is owed something.
    pub(super) fn scan(&mut self, tcp: &Tcp) {
        self.next_scan = self.now + TICK;
        self.timed = false;
        self.short = false;
        let looks = self.now >= self.next_looks;
        if looks {
            self.next_looks = self.now + TICK;
        }
        let mut all = std::mem::take(&mut self.scanned);
        all.extend(tcp.connections());
        for conn in all.drain(..) {
            let now = self.now;
            let Some(entry) = self.entry_mut(conn) else { continue };
            let late = entry.deadline.is_some_and(|deadline| deadline <= now);
            let waits = entry.deadline.is_some();
            let (accepted, open) = (entry.accepted, matches!(entry.stage, Stage::Open(_)));
            let Some(lane) = entry.stage.lane_mut() else {
                self.end_stage(conn, late, waits);
                continue;
            };
            let (recalls, short) = (lane.end_recalls(now), lane.is_short());
            let worn = lane.is_worn().then_some("the peer doesn't answer for what was granted to it");
            // One that is closing has its deadline.
            if open && let Some(why) = worn.or_else(|| looks.then(|| lane.look(accepted)).flatten()) {
                self.broken(conn, lost(why.to_string()));
                continue;
            }
            let owed = open && (accepted && lane.is_owed() || !lane.is_idle());
            self.end_stage(conn, late, waits);
            self.timed |= owed || recalls == Some(true);
            if short || recalls.is_some() {
                self.touch(conn);
            }
        }
        self.scanned = all;
    }

    /// Ends a stage whose time is over.
    fn end_stage(&mut self, conn: ConnId, late: bool, waits: bool) {
        match late {
            true => self.too_late(conn),
            false => self.timed |= waits,
        }
    }
}

pub(super) fn lost(what: String) -> Error {
    Error::new(ErrorCode::ConnectionLost, what)
}

/// Stands between TCP and the sink: what belongs to us is kept.
pub(super) struct Filter<'a, S> {
    pub(super) inner: &'a mut Inner,
    pub(super) sink: &'a mut S,
}

impl<S: FrameSink> FrameSink for Filter<'_, S> {
    fn place(&mut self, conn: ConnId, header: &Header, body: &[u8], here: Option<Buffer>) -> Placement {
        match self.inner.entry(conn).map(|entry| &entry.stage) {
            Some(Stage::Plain) => self.sink.place(conn, header, body, here),
            _ => Placement::Discard,
        }
    }

    fn frame(&mut self, conn: ConnId, header: &Header, body: &[u8], data: Option<Buffer>) -> Flow {
        if let Some(entry) = self.inner.entry_mut(conn)
            && entry.unanswered
            && header.kind() == Kind::Request
            && header.op() == setup::op::ANSWER
        {
            entry.unanswered = false;
            return Flow::Continue;
        }
        match self.inner.entry(conn).map(|entry| &entry.stage) {
            Some(Stage::Plain) => return self.sink.frame(conn, header, body, data),
            // The first thing that is said decides what the connection is, so what follows waits for that.
            Some(Stage::Greeting | Stage::Expecting | Stage::Offered(_) | Stage::Proving(_))
                if header.data_len() == 0 && setup::op::is_ours(header.op()) => {}
            Some(Stage::Open(_) | Stage::Draining(_)) if header.op() == setup::op::NEWS => {}
            // Our greeting was lost, or late: the peer has given up what we think is open.
            Some(Stage::Open(_)) if header.data_len() == 0 && header.op() == setup::op::DECLINE => {}
            Some(Stage::Over) => return Flow::Continue,
            _ => {
                let what = "a frame on the wrong road: this connection goes by RDMA";
                self.inner.errands.push_back(Errand::Fail(conn, Error::new(ErrorCode::BadFrame, what)));
                self.inner.drop_lane(conn);
                return Flow::Continue;
            }
        }
        self.inner.errands.push_back(Errand::Said(conn, header.op(), header.status(), body.to_vec()));
        Flow::Pause
    }

    fn opened(&mut self, conn: ConnId, peer: &Peer) {
        if self.inner.entry(conn).is_none() {
            self.inner.put(conn, Entry::new(conn.generation, None));
        }
        let able = peer.capabilities & capability::RDMA != 0;
        if !self.inner.met(conn, able) {
            self.sink.opened(conn, peer);
        }
    }

    fn closed(&mut self, conn: ConnId, error: Error) {
        self.inner.last_words(conn, self.sink);
        self.inner.drop_lane(conn);
        let known = self.inner.entry(conn).is_some_and(|entry| entry.known);
        if self.inner.entry(conn).is_some() {
            self.inner.entries[conn.index as usize] = None;
        }
        if known {
            self.sink.closed(conn, error);
        }
    }
}
