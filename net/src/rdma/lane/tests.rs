//! Peers that break the rules with their own device: whatever they do, their connection ends, and nothing else happens.
//!
//! They want a device: `COREFS_TEST_RDMA` names those that may be used, by spaces.

use super::super::message::{Data, Envelope, Grant, Kind as MessageKind};
use super::super::*;
use super::Lane;
use crate::contract::RemoteBuf;
use crate::contract::{Flow, Placement};
use crate::handshake::{Identity, Role};
use crate::ring::RingConfig;
use crate::transport::Way;
use corefs_wire::Uuid;
use corefs_wire::frame::HEADER;
use std::time::Duration;
use zerocopy::IntoBytes;

#[derive(Default)]
struct Log {
    pool: Option<Pool>,
    frames: Vec<(ConnId, u64, Option<Buffer>)>,
    opened: Vec<ConnId>,
    closed: Vec<(ConnId, Error)>,
    flow: Option<Flow>,
}

impl FrameSink for Log {
    fn place(&mut self, _: ConnId, header: &Header, _: &[u8], _: Option<Buffer>) -> Placement {
        match self.pool.as_ref().and_then(|pool| pool.get(header.data_len())) {
            Some(buffer) => Placement::Into { buffer, offset: 0 },
            None => Placement::Wait,
        }
    }

    fn frame(&mut self, conn: ConnId, header: &Header, _: &[u8], data: Option<Buffer>) -> Flow {
        self.frames.push((conn, header.request(), data));
        self.flow.unwrap_or(Flow::Continue)
    }

    fn opened(&mut self, conn: ConnId, _: &Peer) {
        self.opened.push(conn);
    }

    fn closed(&mut self, conn: ConnId, error: Error) {
        assert!(self.closed.iter().all(|(closed, _)| *closed != conn), "{conn:?} closed twice");
        self.closed.push((conn, error));
    }
}

struct End {
    ring: Ring,
    net: Rdma,
    pool: Pool,
    log: Log,
}

impl End {
    fn new(shared_from: usize) -> Self {
        let secret = None;
        let identity =
            Identity { role: Role::Storage, id: 1, incarnation: 1, cluster: Uuid([3; 16]), secret };
        let pool = Pool::new(4 << 20).unwrap();
        let config = RdmaConfig {
            devices: devices(),
            queue_pairs_max: 16,
            shared_from,
            arena_bytes: 16 << 20,
            patience: Patience { timeout: 19, retries: 7 },
            choice: Choice::Firm,
            ..RdmaConfig::new(TcpConfig::new(identity))
        };
        let net = Rdma::new(config, &pool).unwrap();
        let log = Log { pool: Some(pool.clone()), ..Log::default() };
        let ring = Ring::new(&RingConfig { entries: 64, completions: 256, ..RingConfig::default() }).unwrap();
        Self { ring, net, pool, log }
    }

    fn turn(&mut self) {
        let mut completions = Vec::new();
        self.net.flush(&mut self.ring);
        self.ring.turn(&mut completions).unwrap();
        completions.into_iter().for_each(|completion| self.net.complete(completion, &mut self.log));
        self.net.advance(Instant::now(), &mut self.log);
    }

    fn lane(&mut self, conn: ConnId) -> &mut Lane {
        match &mut self.net.inner.entry_mut(conn).unwrap().stage {
            Stage::Open(lane) => lane,
            _ => panic!("the connection isn't open"),
        }
    }
}

fn devices() -> Vec<String> {
    let named = std::env::var("COREFS_TEST_RDMA").unwrap_or_default();
    named.split_whitespace().map(str::to_string).collect()
}

/// A server, an honest client and a hostile one.
struct Town {
    server: End,
    honest: End,
    neighbour: ConnId,
    hostile: End,
    address: Address,
    asked: u64,
}

impl Town {
    /// `None`, and a line that says why, where there is no device.
    fn new() -> Option<Self> {
        Self::with(usize::MAX)
    }

    /// The server's connections share receives when there are so many.
    fn with(shared_from: usize) -> Option<Self> {
        if devices().is_empty() {
            println!("skipped, because COREFS_TEST_RDMA names no device");
            return None;
        }
        let (mut server, honest, hostile) =
            (End::new(shared_from), End::new(usize::MAX), End::new(usize::MAX));
        let address = server.net.listen(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let neighbour = ConnId { index: 0, generation: 0 };
        let mut town = Self { server, honest, neighbour, hostile, address, asked: 0 };
        town.neighbour = town.honest.net.connect(&town.address).unwrap();
        let neighbour = town.neighbour;
        town.until("the neighbour", |town| town.honest.net.is_by_queue_pair(neighbour));
        Some(town)
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let started = Instant::now();
        while !done(self) {
            self.server.turn();
            self.honest.turn();
            self.hostile.turn();
            assert!(started.elapsed() < Duration::from_secs(60), "waited in vain for: {what}");
        }
    }

    /// A connection of the hostile one: its id there, and at the server.
    fn open(&mut self) -> (ConnId, ConnId) {
        let before = self.server.log.opened.len();
        let conn = self.hostile.net.connect(&self.address).unwrap();
        self.until("a connection", |town| {
            town.hostile.net.is_by_queue_pair(conn) && town.server.log.opened.len() > before
        });
        (conn, self.server.log.opened[before])
    }

    /// The server ends this connection, and serves its neighbour.
    fn check_end(&mut self, accepted: ConnId) -> Error {
        self.until("the end", |town| town.server.log.closed.iter().any(|(conn, _)| *conn == accepted));
        self.asked += 1;
        let (asked, neighbour) = (1000 + self.asked, self.neighbour);
        self.honest
            .net
            .send(neighbour, Kind::Request, 1, asked, 0, b"", Some(vec![1; 20_000].into()))
            .unwrap();
        self.until("the neighbour's frame", |town| {
            town.server.log.frames.iter().any(|(_, request, _)| *request == asked)
        });
        self.server.log.frames.clear();
        assert!(self.honest.log.closed.is_empty());
        let found = self.server.log.closed.iter().find(|(conn, _)| *conn == accepted);
        found.map(|(_, error)| error.clone()).unwrap()
    }

    /// Has the hostile one send these bytes as a message, credit or not.
    fn say(&mut self, conn: ConnId, bytes: &[u8]) {
        let lane = self.hostile.lane(conn);
        let mut head = lane.arena.get(bytes.len()).unwrap();
        head.get_mut().unwrap().copy_from_slice(bytes);
        lane.pair.send(head, None, u64::MAX);
        lane.pair.post().unwrap();
    }
}

fn plain(kind: MessageKind, data: Data) -> Envelope<'static> {
    Envelope { kind, data, credits: 0, grants: &[], releases: &[], rest: 0 }
}

fn encoded(envelope: &Envelope<'_>, piece: &[u8], inline: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; envelope.len() + piece.len()];
    envelope.encode(piece, &mut bytes);
    bytes.extend(inline);
    bytes
}

fn frame(kind: Kind, request: u64, body: &[u8], data_len: usize) -> Vec<u8> {
    [Header::new(kind, 1, request, 0, body, data_len).as_bytes(), body].concat()
}

/// It waits longer for receives than cards do ([`connect`](crate::rdma::connect)).
#[test]
fn soft_roce_is_known_by_its_vendor() {
    let Some(mut town) = Town::new() else { return };
    let neighbour = town.neighbour;
    let limits = town.honest.lane(neighbour).pair.domain.context.limits;
    assert_eq!(limits.is_emulated, devices()[0].starts_with("rxe"), "{limits:?}");
}

#[test]
fn messages_that_break_the_rules_end_their_connection_alone() {
    let Some(mut town) = Town::new() else { return };
    const BUF: RemoteBuf = RemoteBuf { addr: 0x1000, len: 100, key: 1, slot: 3 };
    let whole = plain(MessageKind::Frame, Data::None);
    let grants = [Grant { request: 1, to: BUF }, Grant { request: 1, to: BUF }];
    let many: Vec<Grant> = (0..65).map(|request| Grant { request, to: BUF }).collect();
    let request = frame(Kind::Request, 1, b"body", 0);
    let mut flipped = request.clone();
    flipped[HEADER] ^= 1;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![0]),
        ("garbage", vec![0xA5; 8000]),
        (
            "an unknown kind",
            encoded(&whole, &request, b"")
                .into_iter()
                .enumerate()
                .map(|(n, b)| if n == 0 { 9 } else { b })
                .collect(),
        ),
        ("credits out of nothing", encoded(&Envelope { credits: 1000, ..whole }, &request, b"")),
        ("a release of nothing", encoded(&Envelope { releases: &[5], ..whole }, &request, b"")),
        ("two grants for one request", encoded(&Envelope { grants: &grants, ..whole }, &request, b"")),
        ("too many grants", encoded(&Envelope { grants: &many, ..whole }, &request, b"")),
        (
            "data that nothing was granted for",
            encoded(&plain(MessageKind::Frame, Data::Written), &frame(Kind::Reply, 1, b"", 10), b""),
        ),
        (
            "less data than the header says",
            encoded(
                &plain(MessageKind::Frame, Data::Inline),
                &frame(Kind::Request, 1, b"", 10),
                b"123456789",
            ),
        ),
        (
            "a source of another length",
            encoded(&plain(MessageKind::Frame, Data::Pull(BUF)), &frame(Kind::Request, 1, b"", 99), b""),
        ),
        ("a frame without a whole header", encoded(&whole, &request[..HEADER - 1], b"")),
        ("a body that is cut off", encoded(&whole, &request[..HEADER + 2], b"")),
        ("a body with a flipped bit", encoded(&whole, &flipped, b"")),
        ("a handshake", encoded(&whole, &frame(Kind::Handshake, 1, b"", 0), b"")),
        ("the middle of a frame", encoded(&plain(MessageKind::More, Data::None), b"piece", b"")),
        ("more to follow than there is", encoded(&Envelope { rest: 5, ..whole }, &request, b"")),
    ];
    for (what, bytes) in cases {
        let (conn, accepted) = town.open();
        town.say(conn, &bytes);
        let error = town.check_end(accepted);
        assert_eq!(error.code, ErrorCode::BadFrame, "{what}: {error}");
        town.until("the other end", |town| town.hostile.log.closed.iter().any(|(closed, _)| *closed == conn));
    }
    // Right up to the second half.
    let (conn, accepted) = town.open();
    let first = Envelope { rest: 4, ..whole };
    town.say(conn, &encoded(&first, &frame(Kind::Request, 1, b"body", 0)[..HEADER], b""));
    town.say(conn, &encoded(&plain(MessageKind::More, Data::None), b"bod", b""));
    assert_eq!(town.check_end(accepted).code, ErrorCode::BadFrame);
    assert_eq!(town.server.pool.in_use(), 0);
}

/// Peers of earlier versions give credits even then. All of it is found at once.
#[test]
fn what_follows_a_bye_takes_nothing_from_what_came_before() {
    let Some(mut town) = Town::new() else { return };
    let (conn, accepted) = town.open();
    town.server.log.frames.clear();
    town.say(conn, &encoded(&plain(MessageKind::Frame, Data::None), &frame(Kind::Request, 5, b"", 0), b""));
    town.say(conn, &encoded(&plain(MessageKind::Bye, Data::None), b"", b""));
    town.say(conn, &encoded(&plain(MessageKind::News, Data::None), b"", b""));
    town.say(conn, &encoded(&plain(MessageKind::Recalled, Data::None), &7u64.to_le_bytes(), b""));
    // All of it is with the server's device before the server looks.
    while !town.hostile.lane(conn).pair.is_idle() {
        town.hostile.turn();
    }
    town.until("the end", |town| town.server.log.closed.iter().any(|(conn, _)| *conn == accepted));
    assert!(town.server.log.frames.iter().any(|(from, request, _)| (*from, *request) == (accepted, 5)));
    assert_eq!(town.check_end(accepted).code, ErrorCode::ConnectionLost);
}

/// Both owe the other credits when they close, and have taken back what they had granted.
#[test]
fn after_its_bye_an_end_says_nothing_more() {
    let Some(mut town) = Town::new() else { return };
    let (conn, accepted) = town.open();
    for request in 0..40 {
        town.server.net.send(accepted, Kind::Reply, 1, request, 0, b"", None).unwrap();
    }
    town.hostile.net.close(conn);
    town.hostile.turn();
    town.server.turn();
    town.until("both ends", |town| {
        town.server.log.closed.iter().any(|(closed, _)| *closed == accepted)
            && town.hostile.log.closed.iter().any(|(closed, _)| *closed == conn)
    });
    assert_eq!(town.check_end(accepted).code, ErrorCode::ConnectionLost);
}

#[test]
fn messages_beyond_credits_and_receives_end_their_connection_alone() {
    let Some(mut town) = Town::new() else { return };
    // Longer than any receive.
    let (conn, accepted) = town.open();
    town.say(conn, &vec![1; 60_000]);
    town.check_end(accepted);
    // More than there are receives for: the server doesn't take what it was sent.
    let (conn, accepted) = town.open();
    town.server.log.flow = Some(Flow::Pause);
    let bytes = encoded(&plain(MessageKind::Frame, Data::None), &frame(Kind::Request, 1, b"", 0), b"");
    for _ in 0..60 {
        town.say(conn, &bytes);
    }
    town.until("the sender's end", |town| town.hostile.log.closed.iter().any(|(closed, _)| *closed == conn));
    town.server.log.flow = None;
    town.check_end(accepted);
}

#[test]
fn messages_beyond_credits_to_shared_receives_end_their_connection_alone() {
    let Some(mut town) = Town::with(0) else { return };
    let (conn, accepted) = town.open();
    let bytes = encoded(&plain(MessageKind::Frame, Data::None), &frame(Kind::Request, 1, b"", 0), b"");
    // Its neighbours' receives would be there for as many as it likes; not even frames that are taken at once give it more than it is told.
    town.server.log.flow = Some(Flow::Pause);
    for _ in 0..12 {
        town.say(conn, &bytes);
    }
    town.until("the end", |town| town.server.log.closed.iter().any(|(closed, _)| *closed == accepted));
    town.server.log.flow = None;
    assert_eq!(town.check_end(accepted).code, ErrorCode::BadFrame);
    // Longer than a receive: the device says so, of that one's queue pair.
    let (conn, accepted) = town.open();
    town.say(conn, &vec![1; 60_000]);
    town.check_end(accepted);
    let (conn, accepted) = town.open();
    town.say(conn, b"no message at all");
    assert_eq!(town.check_end(accepted).code, ErrorCode::BadFrame);
}

#[test]
fn what_came_for_a_queue_pair_that_is_gone_is_not_for_the_next_one_of_its_number() {
    let Some(mut town) = Town::with(0) else { return };
    let neighbour = town.server.log.opened[0];
    for claimed in [true, false] {
        let (conn, accepted) = town.open();
        let bytes = encoded(&plain(MessageKind::Frame, Data::None), &frame(Kind::Request, 77, b"", 0), b"");
        town.say(conn, &bytes);
        // It is in the server's completion queue, which nobody looks at meanwhile, when the sender has heard that it arrived.
        let started = Instant::now();
        while !town.hostile.lane(conn).pair.is_idle() {
            town.hostile.turn();
            assert!(started.elapsed() < Duration::from_secs(60), "the message isn't acknowledged");
        }
        let number = town.server.lane(accepted).number();
        town.server.net.inner.broken(accepted, connections::lost("the end".to_string()));
        // A device that gave its number to the neighbour's queue pair; soft-RoCE does so only after some ten thousand others.
        let seat = &mut town.server.net.inner.seats[0];
        let shared = seat.share(&town.server.net.inner.config).unwrap();
        shared.attach(number, seat::owner(neighbour));
        if claimed {
            seat.claim(number).unwrap();
        }
        let frames =
            |town: &Town| town.server.log.frames.iter().filter(|(.., request, _)| *request == 77).count();
        town.until("the end", |town| town.server.log.closed.iter().any(|(conn, _)| *conn == accepted));
        shared.detach(number, 0);
        // Unclaimed it is taken for the neighbour's, which shows that this test can.
        assert_eq!(frames(&town), usize::from(!claimed));
        town.server.log.frames.clear();
        if claimed {
            town.check_end(accepted);
            town.server.log.closed.clear();
        }
    }
}

#[test]
fn a_decline_that_comes_late_leads_to_tcp() {
    let Some(mut town) = Town::new() else { return };
    let (client, server) = (town.neighbour, town.server.log.opened[0]);
    // The server has heard the client, and is open; the client has given up, as if the answer had never come.
    town.honest.net.inner.decline(client, "nothing came by the queue pair in time");
    town.until("the server to go over", |town| {
        town.server.net.by_queue_pair() == 0 && town.honest.net.is_open(client)
    });
    town.honest.net.send(client, Kind::Request, 1, 1, 0, b"by TCP", None).unwrap();
    town.until("the frame by TCP", |town| town.server.log.frames.len() == 1);
    town.server.net.send(server, Kind::Reply, 1, 1, 0, b"back", None).unwrap();
    town.until("the answer", |town| town.honest.log.frames.len() == 1);
    assert_eq!((town.server.log.opened.len(), town.server.log.closed.len()), (1, 0));
    // What went by the queue pair may be lost: then it is an end.
    let (conn, accepted) = town.open();
    town.hostile.net.send(conn, Kind::Request, 1, 2, 0, b"by RDMA", None).unwrap();
    town.until("the frame", |town| town.server.log.frames.len() == 2);
    town.hostile.net.inner.decline(conn, "too late");
    town.until("the end", |town| !town.server.log.closed.is_empty());
    let (closed, error) = &town.server.log.closed[0];
    assert_eq!((*closed, error.code), (accepted, ErrorCode::BadFrame));
}

#[test]
fn a_path_that_fails_again_and_again_is_left_to_tcp() {
    let Some(mut town) = Town::new() else { return };
    town.hostile.net.inner.config.choice = Choice::Auto;
    for nth in 0..3 {
        let (conn, _) = town.open();
        assert!(matches!(town.hostile.net.way(conn), Way::Rdma(_)), "{nth}");
        town.hostile.net.send(conn, Kind::Request, 1, nth, 0, b"", None).unwrap();
        // As of a path that loses everything behind the greeting.
        town.hostile.net.inner.broken(conn, connections::lost("retries exceeded".to_string()));
        town.until("its end", |town| town.hostile.log.closed.len() as u64 == nth + 1);
    }
    let conn = town.hostile.net.connect(&town.address).unwrap();
    town.until("a connection", |town| town.hostile.net.is_open(conn));
    assert!(matches!(town.hostile.net.way(conn), Way::Tcp(why) if why.contains("again and again")));
    town.hostile.net.send(conn, Kind::Request, 1, 7, 0, b"by TCP", None).unwrap();
    town.until("the frame", |town| town.server.log.frames.iter().any(|(_, request, _)| *request == 7));
}

#[test]
fn the_greeting_is_as_long_as_a_message_may_be() {
    let Some(mut town) = Town::new() else { return };
    let (client, server) = (town.neighbour, town.server.log.opened[0]);
    let longest = u64::from(town.server.net.inner.config.message);
    for lane in [town.honest.lane(client), town.server.lane(server)] {
        let counters = lane.counters();
        assert_eq!((counters.bytes_in, counters.bytes_out), (longest, longest));
    }
}

/// What an attack does to the connection and to a piece of the server's memory that it isn't about.
fn attack(town: &mut Town, what: &str, act: impl FnOnce(&mut Town, ConnId, ConnId, u64)) {
    let mut guard = town.server.pool.get(8192).unwrap();
    guard.get_mut().unwrap().fill(0x77);
    let (conn, accepted) = town.open();
    act(town, conn, accepted, guard.as_ptr() as u64);
    town.until(what, |town| town.hostile.log.closed.iter().any(|(closed, _)| *closed == conn));
    town.check_end(accepted);
    assert!(guard.iter().all(|byte| *byte == 0x77), "{what}: memory was reached");
}

fn write(town: &mut Town, conn: ConnId, to: RemoteBuf) {
    let payload = town.hostile.pool.get(to.len as usize).unwrap();
    let lane = town.hostile.lane(conn);
    lane.pair.write(payload.into(), to, u64::MAX);
    lane.pair.post().unwrap();
}

fn read(town: &mut Town, conn: ConnId, from: RemoteBuf) {
    let mut buffer = town.hostile.pool.get(from.len as usize).unwrap();
    buffer.get_mut().unwrap().fill(0);
    let lane = town.hostile.lane(conn);
    lane.pair.read(buffer, 0, from, u64::MAX);
    lane.pair.post().unwrap();
}

/// Has the server open `len` bytes at the start of a buffer to its peer's writes.
fn granted(town: &mut Town, accepted: ConnId, len: usize) -> RemoteBuf {
    let buffer = town.server.pool.get(len).unwrap();
    let lane = town.server.lane(accepted);
    let before = lane.open.len();
    assert!(lane.grant(77 + before as u64, buffer, 0).is_ok());
    let to = lane.outbox.granted().unwrap().to;
    town.server.net.inner.touch(accepted);
    for _ in 0..50 {
        town.server.turn();
    }
    to
}

#[test]
fn keys_that_were_not_given_open_nothing() {
    let Some(mut town) = Town::new() else { return };
    for key in [0, 1, 0xDEAD_BEEF, u32::MAX] {
        attack(&mut town, "a key that was guessed", |town, conn, _, at| {
            write(town, conn, RemoteBuf { addr: at, len: 4096, key, slot: 0 });
        });
        attack(&mut town, "a key that was guessed, reading", |town, conn, _, at| {
            read(town, conn, RemoteBuf { addr: at, len: 4096, key, slot: 0 });
        });
    }
    for nth in 0..2 {
        // The keys of the server's own registrations: nobody is told them, and they would open nothing.
        attack(&mut town, "the arena's own key", |town, conn, _, at| {
            let region = town.server.net.inner.seats[0].regions[nth].raw();
            // SAFETY: the registration is there as long as the seat is.
            let key = unsafe { (*region).rkey };
            write(town, conn, RemoteBuf { addr: at, len: 4096, key, slot: 0 });
        });
    }
    let neighbour = town.server.log.opened[0];
    let foreign = granted(&mut town, neighbour, 4096);
    attack(&mut town, "a key of another connection", |town, conn, _, _| write(town, conn, foreign));
    attack(&mut town, "a key that is for writing, reading", |town, conn, accepted, _| {
        let to = granted(town, accepted, 4096);
        read(town, conn, to);
    });
    attack(&mut town, "a key after it was taken back", |town, conn, accepted, _| {
        let to = granted(town, accepted, 4096);
        town.server.lane(accepted).revoke(77, Instant::now());
        town.server.net.inner.touch(accepted);
        town.until("the buffer", |town| !town.server.lane(accepted).pair.is_bound(to.slot));
        write(town, conn, to);
    });
}

/// A window's keys come round: the peer may hold one of 256.
#[test]
fn a_window_that_was_shut_without_a_word_is_not_used_again() {
    let Some(mut town) = Town::new() else { return };
    let (_, accepted) = town.open();
    let to = granted(&mut town, accepted, 4096);
    town.server.net.send(accepted, Kind::Request, 1, 77, 0, b"", None).unwrap();
    let late = Instant::now() + Duration::from_secs(3);
    let until_free = |town: &mut Town, slot: u64| {
        while town.server.lane(accepted).pair.is_bound(slot) {
            town.server.net.inner.touch(accepted);
            town.server.turn();
        }
    };
    // The other end stands still.
    town.server.turn();
    assert!(town.server.lane(accepted).revoke(77, Instant::now()));
    town.server.turn();
    assert_eq!(town.server.lane(accepted).end_recalls(late), Some(false));
    until_free(&mut town, to.slot);
    assert_eq!(town.server.pool.in_use(), 0, "its memory is free");
    for _ in 0..300 {
        let next = granted(&mut town, accepted, 4096);
        assert!(next.slot != to.slot && next.key != to.key);
        assert!(!town.server.lane(accepted).revoke(77, Instant::now()), "it was never told");
        until_free(&mut town, next.slot);
    }
    // Its word comes late.
    town.until("the answer", |town| town.server.lane(accepted).recalls.unanswered.is_empty());
    assert_eq!(granted(&mut town, accepted, 4096).slot, to.slot);
}

#[test]
fn keys_open_their_range_only() {
    let Some(mut town) = Town::new() else { return };
    let (base, len) = town.server.pool.region();
    let end = base as u64 + len as u64;
    attack(&mut town, "beyond the end of the arena", |town, conn, accepted, _| {
        let to = granted(town, accepted, 4096);
        write(town, conn, RemoteBuf { addr: end - 2048, len: 4096, ..to });
    });
    attack(&mut town, "before the start of the arena", |town, conn, accepted, _| {
        let to = granted(town, accepted, 4096);
        write(town, conn, RemoteBuf { addr: base as u64 - 4096, len: 4096, ..to });
    });
    // Within the arena the range is the device's to check, which the soft-RoCE of Linux 6.1 doesn't do: told, not demanded.
    let mut guard = town.server.pool.get(4096).unwrap();
    guard.get_mut().unwrap().fill(0x77);
    let (conn, accepted) = town.open();
    let to = granted(&mut town, accepted, 4096);
    write(&mut town, conn, RemoteBuf { addr: guard.as_ptr() as u64, len: 4096, ..to });
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until && town.server.log.closed.iter().all(|(closed, _)| *closed != accepted) {
        town.server.turn();
        town.hostile.turn();
    }
    // SAFETY: a byte of a buffer that is ours; a device may have changed it behind the compiler's back.
    let reached = unsafe { guard.as_ptr().read_volatile() } != 0x77;
    println!(
        "within the arena, beyond a window's range: {}",
        if reached { "NOT REFUSED by this device" } else { "refused" }
    );
}

#[test]
fn what_a_peer_offers_to_be_read_is_its_own_problem() {
    let Some(mut town) = Town::new() else { return };
    // Data that are said to be where nothing can be read: the server's read fails, and with it the connection.
    let (conn, accepted) = town.open();
    let from = RemoteBuf { addr: 0x1000, len: 100_000, key: 0x1234, slot: 0 };
    let bytes =
        encoded(&plain(MessageKind::Frame, Data::Pull(from)), &frame(Kind::Request, 1, b"", 100_000), b"");
    town.say(conn, &bytes);
    assert_eq!(town.check_end(accepted).code, ErrorCode::ConnectionLost);
    assert_eq!(town.server.pool.in_use(), 0, "the buffer that was placed is free");
    // A grant that leads nowhere: the server's write fails.
    let (conn, accepted) = town.open();
    let grants = [Grant { request: 5, to: RemoteBuf { addr: 0x1000, len: 100_000, key: 0x1234, slot: 5 } }];
    let envelope = Envelope { grants: &grants, ..plain(MessageKind::Frame, Data::None) };
    town.say(conn, &encoded(&envelope, &frame(Kind::Request, 5, b"", 0), b""));
    town.until("the request", |town| town.server.log.frames.iter().any(|(from, ..)| *from == accepted));
    town.server.net.send(accepted, Kind::Reply, 1, 5, 0, b"", Some(vec![7; 100_000].into())).unwrap();
    assert_eq!(town.check_end(accepted).code, ErrorCode::ConnectionLost);
    // What is left is the neighbour's: its receives, and as many messages to compose.
    let left = 2
        * usize::from(town.server.net.inner.config.receives)
        * town.server.net.inner.config.message as usize;
    town.until("the copies to be given up", |town| town.server.net.inner.seats[0].arena.in_use() == left);
}

#[test]
fn a_queue_pair_that_fails_in_the_middle_ends_its_connection_alone() {
    let Some(mut town) = Town::new() else { return };
    for end in 0..4 {
        let (conn, accepted) = town.open();
        // Requests and replies are on their way, each way data that have to be fetched.
        town.hostile.net.send(conn, Kind::Request, 1, 1, 0, b"", Some(vec![1; 300_000].into())).unwrap();
        town.server.net.send(accepted, Kind::Request, 1, 1, 0, b"", Some(vec![2; 300_000].into())).unwrap();
        town.server.turn();
        town.hostile.turn();
        // As after an error that only the device knows: everything that is queued fails.
        let lane = if end % 2 == 0 { town.hostile.lane(conn) } else { town.server.lane(accepted) };
        lane.pair.stop().unwrap();
        let error = town.check_end(accepted);
        assert_eq!(error.code, ErrorCode::ConnectionLost, "{error}");
        town.until("the other end", |town| town.hostile.log.closed.iter().any(|(closed, _)| *closed == conn));
    }
    // What a device says of it, where that comes before any completion.
    let (conn, accepted) = town.open();
    town.server.net.inner.queue_pair_failed(seat::owner(accepted), "the device");
    let error = town.check_end(accepted);
    assert!(error.message.contains("the queue pair failed, says the device"), "{error}");
    town.until("the other end", |town| town.hostile.log.closed.iter().any(|(closed, _)| *closed == conn));
    // And once more for a connection that is no more.
    town.server.net.inner.queue_pair_failed(seat::owner(accepted), "the device");
    let (_, accepted) = town.open();
    town.server.turn();
    assert!(town.server.net.is_by_queue_pair(accepted));
    town.until("the memory", |town| town.server.pool.in_use() == 0);
}
