//! The client of `wire` and `bare`: one core's reads, kept in flight by one loop over one ring.

use super::identity;
use crate::driver::Live;
use crate::report::Tally;
use crate::series::Recorder;
use crate::workload::{Offsets, Until, Workload};
use corefs_net::{
    Address, Buffer, Completion, ConnId, Flow, FrameSink, Peer, Placement, Pool, Ring, RingConfig, Role,
    Source, Tcp, TcpConfig, Token,
};
use corefs_wire::data::{Prefix, ReadEntry, op};
use corefs_wire::error::decode_error;
use corefs_wire::frame::{Header, Kind};
use corefs_wire::limits::{BLOCK, READ_BATCH_MAX};
use corefs_wire::{Error, ErrorCode, Result};
use std::ops::Range;
use std::time::{Duration, Instant, SystemTime};
use zerocopy::IntoBytes;

/// How often the loop looks whether it is to stop, even if nothing completes.
const TICK: Duration = Duration::from_millis(50);

/// Reads of one core from `begin` until the workload is over.
pub fn drive(
    addresses: &[Address],
    workload: &Workload,
    core: u32,
    begin: Instant,
    busy_poll: Duration,
    live: &Live,
) -> Result<Tally> {
    let Until::Elapsed { warmup, measured } = workload.until else {
        return Err(Error::new(ErrorCode::Internal, "wire and bare are measured by time"));
    };
    let mut ring = Ring::new(&RingConfig { busy_poll, ..RingConfig::default() })?;
    let mut tcp = Tcp::new(TcpConfig::new(identity(Role::Client)));
    let conns: Vec<ConnId> = addresses.iter().map(|address| tcp.connect(address)).collect::<Result<_>>()?;
    let lanes = workload.lanes() as usize;
    let slots = lanes * workload.batch as usize;
    let pool = Pool::with_huge_pages(slots * (workload.block as usize).next_power_of_two())?;
    ring.register_pool(&pool);
    let slot = |number: usize| {
        let buffer = pool.get(workload.block as usize).ok_or(ErrorCode::Internal)?;
        Ok(Slot { lane: number / workload.batch as usize, buffer: Some(buffer) })
    };
    let until_counted = (begin + warmup).saturating_duration_since(Instant::now());
    let mut desk = Desk {
        slots: (0..slots).map(slot).collect::<Result<_>>()?,
        lanes: vec![Lane { left: 0, good: 0, start: begin }; lanes],
        idle: Vec::with_capacity(lanes),
        open: 0,
        block: workload.block as usize,
        tally: Tally::default(),
        recorder: Recorder::new(SystemTime::now() + until_counted, Some(measured)),
        live,
        counted: begin + warmup..begin + warmup + measured,
        now: begin,
        lost: None,
    };
    let mut asking = Asking {
        batches: vec![(Vec::new(), 0); conns.len()],
        conns,
        offsets: workload.offsets(core),
        workload,
    };
    let mut completions = Vec::with_capacity(1024);
    let mut started = false;
    let mut ticking = false;
    loop {
        turn(&mut ring, &mut tcp, &mut desk, &mut completions, &mut ticking)?;
        if let Some(error) = desk.lost.take() {
            return Err(error);
        }
        if live.stopped() || desk.now >= desk.counted.end {
            break;
        }
        if !started && desk.open == asking.conns.len() && desk.now >= begin {
            started = true;
            desk.idle.extend(0..lanes);
        }
        while let Some(lane) = desk.idle.pop() {
            asking.ask(lane, &mut desk, &mut tcp)?;
        }
        asking.send(&mut tcp)?;
        tcp.flush(&mut ring);
    }
    let mut tally = desk.tally;
    tally.elapsed = match live.stopped() {
        true => desk.now.saturating_duration_since(desk.counted.start),
        false => measured,
    };
    (tally.series, tally.latencies) = desk.recorder.finish(tally.elapsed);
    Ok(tally)
}

fn turn(
    ring: &mut Ring,
    tcp: &mut Tcp,
    desk: &mut Desk<'_>,
    completions: &mut Vec<Completion>,
    ticking: &mut bool,
) -> Result<()> {
    if !std::mem::replace(ticking, true) {
        ring.timeout(TICK, Token::new(Source::TIMER, 0));
    }
    tcp.flush(ring);
    match tcp.has_work() {
        true => ring.turn(completions)?,
        false => ring.rest(&mut (), completions)?,
    }
    desk.now = Instant::now();
    for completion in completions.drain(..) {
        match completion.token.source() {
            Source::TCP => tcp.complete(completion, desk),
            _ => *ticking = false,
        }
    }
    tcp.advance(desk.now, desk);
    Ok(())
}

/// A read in flight, by its request's number.
struct Slot {
    lane: usize,
    /// Its own for the whole run, but while data flow into it.
    buffer: Option<Buffer>,
}

/// A batch in flight.
#[derive(Clone)]
struct Lane {
    left: u32,
    good: u64,
    start: Instant,
}

/// Takes replies.
struct Desk<'a> {
    slots: Vec<Slot>,
    lanes: Vec<Lane>,
    /// Lanes whose batch is done.
    idle: Vec<usize>,
    open: usize,
    block: usize,
    tally: Tally,
    recorder: Recorder,
    live: &'a Live,
    counted: Range<Instant>,
    now: Instant,
    lost: Option<Error>,
}

impl FrameSink for Desk<'_> {
    fn place(&mut self, _conn: ConnId, header: &Header, _body: &[u8], _here: Option<Buffer>) -> Placement {
        let slot = self.slots.get_mut(header.request() as usize);
        match slot.and_then(|slot| slot.buffer.take()) {
            Some(buffer) if header.data_len() <= buffer.len() => Placement::Into { buffer, offset: 0 },
            _ => Placement::Discard,
        }
    }

    fn frame(&mut self, _conn: ConnId, header: &Header, body: &[u8], data: Option<Buffer>) -> Flow {
        let Some(slot) = self.slots.get_mut(header.request() as usize) else { return Flow::Continue };
        let lane = &mut self.lanes[slot.lane];
        if data.is_some() && header.status() == 0 && header.data_len() == self.block {
            lane.good += 1;
        } else {
            self.tally.errors += 1;
            let why = || decode_error(header.status(), body).to_string();
            self.tally.first_error.get_or_insert_with(why);
        }
        if data.is_some() {
            slot.buffer = data;
        }
        lane.left -= 1;
        if lane.left == 0 {
            if self.counted.contains(&self.now) {
                self.tally.operations += lane.good;
                self.tally.bytes += lane.good * self.block as u64;
                let latency = (self.now - lane.start).as_nanos() as u64;
                self.recorder.record(self.now - self.counted.start, latency, lane.good, self.live);
            }
            self.idle.push(slot.lane);
        }
        Flow::Continue
    }

    fn opened(&mut self, _conn: ConnId, _peer: &Peer) {
        self.open += 1;
    }

    fn closed(&mut self, _conn: ConnId, error: Error) {
        self.lost = Some(error);
    }
}

/// Makes requests and gathers those of a turn for each connection.
struct Asking<'a> {
    conns: Vec<ConnId>,
    /// By connection: the body, and how many reads are in it.
    batches: Vec<(Vec<u8>, usize)>,
    offsets: Offsets,
    workload: &'a Workload,
}

impl Asking<'_> {
    fn ask(&mut self, lane: usize, desk: &mut Desk<'_>, tcp: &mut Tcp) -> Result<()> {
        let batch = self.workload.batch as usize;
        desk.lanes[lane] = Lane { left: batch as u32, good: 0, start: desk.now };
        for slot in lane * batch..(lane + 1) * batch {
            let Some(offset) = self.offsets.next() else { return Err(ErrorCode::Internal.into()) };
            let number = offset / BLOCK as u64;
            let entry = ReadEntry {
                request: (slot as u64).into(),
                index: (number as u32).into(),
                length: (self.workload.block as u32).into(),
                ..ReadEntry::default()
            };
            let to = (offset / self.workload.block) as usize % self.conns.len();
            let (body, entries) = &mut self.batches[to];
            if *entries == 0 {
                body.extend_from_slice(Prefix::default().as_bytes());
            }
            body.extend_from_slice(entry.as_bytes());
            *entries += 1;
            if *entries == READ_BATCH_MAX {
                self.send_to(to, tcp)?;
            }
        }
        Ok(())
    }

    fn send(&mut self, tcp: &mut Tcp) -> Result<()> {
        (0..self.conns.len()).try_for_each(|to| self.send_to(to, tcp))
    }

    fn send_to(&mut self, to: usize, tcp: &mut Tcp) -> Result<()> {
        let (body, entries) = &mut self.batches[to];
        if std::mem::take(entries) > 0 {
            tcp.send(self.conns[to], Kind::Request, op::READ, 0, 0, body, None)?;
            body.clear();
        }
        Ok(())
    }
}
