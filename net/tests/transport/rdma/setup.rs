//! How connections come to their queue pairs, or don't: peers without RDMA, peers that say garbage, and bounds.

use super::{config, is_there};
use crate::world::{Here, Tested, World, identity, open, pair, until, until_ends};
use corefs_net::handshake::{Handshake, Step, capability};
use corefs_net::rdma::setup::{KINDS, Terms, op};
use corefs_net::rdma::{Choice, Rdma, RdmaConfig};
use corefs_net::transport::Way;
use corefs_net::{Address, ConnId, Tcp, TcpConfig};
use corefs_wire::ErrorCode;
use corefs_wire::error::decode_error;
use corefs_wire::frame::{HEADER, Header, Kind};
use corefs_wire::limits::FRAME_BODY_MAX;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

fn world(change: impl FnOnce(&mut RdmaConfig)) -> World<Rdma> {
    let mut config = config(TcpConfig::new(identity(None)));
    change(&mut config);
    World::of(|pool| Rdma::new(config, pool).unwrap())
}

/// Turns two worlds of different transports.
fn until_both<A: Tested, B: Tested>(
    a: &mut World<A>,
    b: &mut World<B>,
    what: &str,
    mut done: impl FnMut(&World<A>, &World<B>) -> bool,
) {
    a.until(what, |a| {
        b.turn();
        done(a, b)
    });
}

#[test]
fn without_devices_everything_goes_by_tcp() {
    // Runs on any machine.
    let nothing = |config: &mut RdmaConfig| config.devices = vec!["nosuch0".to_string()];
    let mut server = without_devices(nothing);
    let mut client = without_devices(nothing);
    let address = server.net.listen(&Rdma::local()).unwrap();
    let conn = open(&mut client, &mut server, &address);
    assert!(!client.net.is_by_queue_pair(conn) && client.net.roads().next().is_none());
    client.send(conn, 1, b"body", &[5; 100_000]);
    until(&mut client, &mut server, "the frame", |_, server| server.sink.frames.len() == 1);
    let buffer = client.sink.pool.get(10).unwrap();
    assert!(client.net.grant(conn, 1, buffer, 0).is_err());
    client.net.close(conn);
    until_ends(&mut client, &mut server, "the end", |client, server| {
        client.sink.closed.len() == 1 && server.sink.closed.len() == 1
    });
}

fn without_devices(change: impl FnOnce(&mut RdmaConfig)) -> World<Rdma> {
    let mut config = RdmaConfig::new(TcpConfig::new(identity(None)));
    change(&mut config);
    World::of(|pool| Rdma::new(config, pool).unwrap())
}

#[test]
fn rdma_that_is_asked_for_and_is_not_there_is_an_error() {
    let mut config = RdmaConfig::new(TcpConfig::new(identity(None)));
    (config.choice, config.devices) = (Choice::Firm, vec!["nosuch0".to_string()]);
    let pool = corefs_net::Pool::new(1).unwrap();
    let error = Rdma::new(config, &pool).err().unwrap();
    assert!(error.message.starts_with("RDMA was asked for"), "{error}");
}

#[test]
fn both_kinds_of_peers_reach_each_other() {
    if !is_there() {
        return;
    }
    let (mut server, mut client) = (World::<Rdma>::plain(), World::<Tcp>::plain());
    let address = server.net.listen(&Rdma::local()).unwrap();
    let conn = client.net.connect(&address).unwrap();
    client.until("to open", |client| {
        server.turn();
        client.net.is_open(conn) && server.sink.opened.len() == 1
    });
    client.send(conn, 1, b"by TCP", &[1; 5000]);
    until_both(&mut client, &mut server, "the frame", |_, server| server.sink.frames.len() == 1);
    assert!(!server.net.is_by_queue_pair(server.sink.opened[0].0));

    let (mut server, mut client) = (World::<Tcp>::plain(), World::<Rdma>::plain());
    let address = server.net.listen(&Tcp::local()).unwrap();
    let conn = client.net.connect(&address).unwrap();
    until_both(&mut client, &mut server, "to open", |client, _| client.net.is_open(conn));
    client.send(conn, 1, b"by TCP", &[1; 5000]);
    until_both(&mut client, &mut server, "the frame", |_, server| server.sink.frames.len() == 1);
    assert!(!client.net.is_by_queue_pair(conn));
}

#[test]
fn who_is_firm_does_not_fall_back() {
    if !is_there() {
        return;
    }
    let firm = |config: &mut RdmaConfig| config.choice = Choice::Firm;
    // The server has no queue pair left: it says so, and the client doesn't go on over TCP.
    let mut server = world(|config| config.queue_pairs_max = 0);
    let mut client = world(firm);
    let address = server.net.listen(&Rdma::local()).unwrap();
    client.net.connect(&address).unwrap();
    until_ends(&mut client, &mut server, "the refusal", |client, server| {
        client.sink.closed.len() == 1 && server.net.live() == 1
    });
    assert_eq!(client.sink.closed[0].1.code, ErrorCode::Unreachable);
    assert!(client.sink.opened.is_empty());
    // A peer without RDMA is reached by TCP, unless that is refused.
    let (mut server, mut client) = (World::<Tcp>::plain(), world(firm));
    let address = server.net.listen(&Tcp::local()).unwrap();
    let conn = client.net.connect(&address).unwrap();
    until_both(&mut client, &mut server, "to open", |client, _| client.net.is_open(conn));
    client.net.insist();
    client.net.connect(&address).unwrap();
    until_ends(&mut client, &mut server, "the refusal", |client, _| client.sink.closed.len() == 1);
    let error = &client.sink.closed[0].1;
    assert_eq!(error.code, ErrorCode::Unreachable);
    assert!(error.message.contains("the other side offers no RDMA: `corefs doctor`"), "{error}");
    // Both have it.
    let (mut server, mut client) = (world(firm), world(firm));
    let address = server.net.listen(&Rdma::local()).unwrap();
    let conn = open(&mut client, &mut server, &address);
    assert!(client.net.is_by_queue_pair(conn));
}

#[test]
fn beyond_the_bound_of_queue_pairs_connections_stay_on_tcp() {
    if !is_there() {
        return;
    }
    for (of_server, of_client) in [(1, 9), (9, 1)] {
        let mut server = world(|config| config.queue_pairs_max = of_server);
        let mut client = world(|config| config.queue_pairs_max = of_client);
        let address = server.net.listen(&Rdma::local()).unwrap();
        let first = open(&mut client, &mut server, &address);
        let second = open(&mut client, &mut server, &address);
        assert!(client.net.is_by_queue_pair(first) && !client.net.is_by_queue_pair(second));
        for (n, conn) in [first, second].into_iter().enumerate() {
            client.send(conn, n as u64, b"", &[1; 30_000]);
        }
        until(&mut client, &mut server, "both frames", |_, server| server.sink.frames.len() == 2);
        // A place that is free is used again.
        client.net.close(first);
        until_ends(&mut client, &mut server, "the end", |client, server| {
            client.sink.closed.len() == 1 && server.sink.closed.len() == 1
        });
        let third = open(&mut client, &mut server, &address);
        assert!(client.net.is_by_queue_pair(third));
    }
}

/// A raw socket that has done its handshake, and said that it is able to go by RDMA.
struct Raw(TcpStream);

impl Raw {
    fn open(server: &mut World<Rdma>, address: &Address) -> Self {
        let Address::Tcp(socket) = address else { panic!() };
        let socket = TcpStream::connect(socket).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut raw = Self(socket);
        let identity = identity(None);
        let (mut handshake, hello) =
            Handshake::connect_with(capability::RDMA, &identity, address.clone(), [1; 32]);
        raw.say(Kind::Handshake, hello.op, &hello.body);
        loop {
            let (header, body) = raw.hear(server).unwrap();
            match handshake.message(&identity, header.op(), &body).unwrap() {
                Step::Send(message) => raw.say(Kind::Handshake, message.op, &message.body),
                Step::Done(_, peer) => {
                    assert_eq!(peer.capabilities, capability::RDMA);
                    return raw;
                }
            }
        }
    }

    fn say(&mut self, kind: Kind, code: u16, body: &[u8]) {
        let header = Header::new(kind, code, 0, 0, body, 0);
        self.0.write_all(&[header.as_bytes(), body].concat()).unwrap();
    }

    fn hear(&mut self, server: &mut World<Rdma>) -> Option<(Header, Vec<u8>)> {
        let mut head = [0; HEADER];
        self.fill(server, &mut head)?;
        let header = Header::parse(&head, FRAME_BODY_MAX).unwrap();
        let mut body = vec![0; header.body_len()];
        self.fill(server, &mut body)?;
        Some((header, body))
    }

    fn fill(&mut self, server: &mut World<Rdma>, mut to: &mut [u8]) -> Option<()> {
        let started = Instant::now();
        while !to.is_empty() {
            assert!(started.elapsed() < Duration::from_secs(60), "the server neither answers nor closes");
            match self.0.read(to) {
                Ok(0) => return None,
                Ok(count) => to = &mut to[count..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => server.turn(),
                Err(_) => return None,
            }
        }
        Some(())
    }

    /// Reads until the server closes: the error it gave.
    fn last_words(&mut self, server: &mut World<Rdma>) -> Option<ErrorCode> {
        let mut words = None;
        while let Some((header, body)) = self.hear(server) {
            if header.kind() == Kind::Handshake && header.status() != 0 {
                words = Some(decode_error(header.status(), &body).code);
                let _ = self.0.shutdown(std::net::Shutdown::Write);
            }
        }
        words
    }
}

/// Terms as a good peer has them, but of a queue pair that isn't there.
fn terms(server: &World<Rdma>) -> Terms {
    let road = server.net.roads().next().unwrap();
    Terms {
        link: road.gid.link,
        mtu: road.port.mtu,
        queue_pair: 0x12_3456,
        sequence: 1,
        gid: road.gid.bytes,
        lid: road.port.lid,
        reads_in: 1,
        reads_out: 1,
        receives: 16,
        message: 8192,
        grants: 4,
        shared: false,
        kinds: KINDS,
    }
}

#[test]
fn garbage_instead_of_terms_ends_that_connection_alone() {
    if !is_there() {
        return;
    }
    let (mut server, mut client, conn) = pair::<Here<Rdma>>();
    let address = client.sink.opened[0].1.address.clone();
    let good = terms(&server).encode();
    let mut cases: Vec<(u16, Vec<u8>)> = vec![
        (op::OFFER, Vec::new()),
        // The last two bytes aren't everybody's.
        (op::OFFER, good[..good.len() - 3].to_vec()),
        (op::OFFER, [&good[..4], &[0xFF; 4000][..]].concat()),
        (op::ANSWER, good.clone()),
        (op::NEWS, vec![0; 16]),
        (0x0001, b"a request before an offer".to_vec()),
    ];
    for at in [11, 15] {
        let mut bad = good.clone();
        bad[at] = 0xEE;
        cases.push((op::OFFER, bad));
    }
    let opened = server.sink.opened.len();
    for (code, body) in cases {
        let mut raw = Raw::open(&mut server, &address);
        raw.say(Kind::Request, code, &body);
        let words = raw.last_words(&mut server);
        assert_eq!(words, Some(ErrorCode::BadFrame));
    }
    assert_eq!((server.sink.opened.len(), server.sink.closed.len()), (opened, 0), "none was ever announced");
    client.send(conn, 1, b"still here", b"");
    until(&mut client, &mut server, "the neighbour's frame", |_, server| server.sink.frames.len() == 1);
    assert!(client.net.is_by_queue_pair(conn));
}

#[test]
fn an_offer_that_does_not_fit_is_answered_and_tcp_goes_on() {
    if !is_there() {
        return;
    }
    let mut server = World::<Rdma>::plain();
    let address = server.net.listen(&Rdma::local()).unwrap();
    let mut raw = Raw::open(&mut server, &address);
    let other = Terms { link: corefs_net::rdma::device::Link::InfiniBand, lid: 1, ..terms(&server) };
    raw.say(Kind::Request, op::OFFER, &other.encode());
    raw.say(Kind::Request, 0x0001, b"sent without waiting for the answer");
    let (header, body) = raw.hear(&mut server).unwrap();
    assert_eq!(
        (header.op(), decode_error(header.status(), &body).code),
        (op::ANSWER, ErrorCode::InvalidArgument)
    );
    server.until("the frame by TCP", |server| server.sink.frames.len() == 1);
    // And one that declines at once.
    let mut raw = Raw::open(&mut server, &address);
    raw.say(Kind::Request, op::DECLINE, b"");
    raw.say(Kind::Request, 0x0001, b"by TCP");
    server.until("the frame by TCP", |server| server.sink.frames.len() == 2);
    assert_eq!(server.sink.opened.len(), 2);
}

#[test]
fn terms_of_a_later_version_lead_to_tcp() {
    if !is_there() {
        return;
    }
    let mut server = World::<Rdma>::plain();
    let address = server.net.listen(&Rdma::local()).unwrap();
    let good = terms(&server).encode();
    // The version, the link, the MTU, the scope of keys, bytes of a message, grants.
    let mut raws = Vec::new();
    for (n, at) in [0, 1, 2, 3, 18, 23].into_iter().enumerate() {
        let mut later = good.clone();
        later[at] = 0xEE;
        let mut raw = Raw::open(&mut server, &address);
        raw.say(Kind::Request, op::OFFER, &later);
        let (header, body) = raw.hear(&mut server).unwrap();
        assert_eq!(header.op(), op::ANSWER);
        let code = decode_error(header.status(), &body).code;
        assert!(matches!(code, ErrorCode::VersionMismatch | ErrorCode::InvalidArgument), "{at}: {code:?}");
        raw.say(Kind::Request, 0x0001, b"by TCP");
        server.until("the frame by TCP", |server| server.sink.frames.len() == n + 1);
        raws.push(raw);
    }
    assert!(server.sink.closed.is_empty());
}

/// A listener of a later version, which answers an offer with terms that nobody here knows.
fn later_listener() -> (std::net::TcpListener, Address) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    listener.set_nonblocking(true).unwrap();
    (listener, address)
}

/// A client that has made an offer to a listener that is able to go by RDMA, its connection, and the other end of that.
fn offered(change: impl FnOnce(&mut RdmaConfig)) -> (World<Rdma>, ConnId, Raw) {
    let mut client = world(change);
    let (listener, address) = later_listener();
    let conn = client.net.connect(&address).unwrap();
    let mut taken = None;
    client.until("the connection", |_| {
        taken = listener.accept().ok();
        taken.is_some()
    });
    let socket = taken.unwrap().0;
    socket.set_nonblocking(true).unwrap();
    let (mut raw, identity) = (Raw(socket), identity(None));
    let mut handshake = Handshake::accept_with(capability::RDMA, address, [2; 32]);
    loop {
        let (header, body) = raw.hear(&mut client).unwrap();
        if header.op() == op::OFFER {
            return (client, conn, raw);
        }
        match handshake.message(&identity, header.op(), &body).unwrap() {
            Step::Send(message) | Step::Done(Some(message), _) => {
                raw.say(Kind::Handshake, message.op, &message.body)
            }
            Step::Done(None, _) => panic!("an acceptor has the last word"),
        }
    }
}

#[test]
fn an_answer_of_a_later_version_is_declined() {
    if !is_there() {
        return;
    }
    let (mut client, conn, mut raw) = offered(|_| {});
    let mut later = terms(&client).encode();
    later[0] = 0xEE;
    raw.say(Kind::Request, op::ANSWER, &later);
    let (header, _) = raw.hear(&mut client).unwrap();
    assert_eq!(header.op(), op::DECLINE);
    client.until("to open", |client| client.net.is_open(conn));
    assert!(matches!(client.net.way(conn), Way::Tcp(why) if why.contains("version")));
}

/// As by a shard that has just been started, or is at a long turn.
#[test]
fn an_offer_that_is_answered_too_late_leads_to_tcp() {
    if !is_there() {
        return;
    }
    let (mut client, conn, mut raw) = offered(|_| {});
    client.later = Duration::from_secs(6);
    let (header, _) = raw.hear(&mut client).unwrap();
    assert_eq!(header.op(), op::DECLINE);
    client.until("to open", |client| client.net.is_open(conn) && client.sink.opened.len() == 1);
    assert!(matches!(client.net.way(conn), Way::Tcp(why) if why.contains("not answered")));
    // The answer leads to nothing, and what comes behind it is taken.
    let terms = terms(&client).encode();
    raw.say(Kind::Request, op::ANSWER, &terms);
    raw.say(Kind::Request, 0x0001, b"by TCP");
    client.until("the frame by TCP", |client| !client.sink.frames.is_empty());
    assert_eq!((client.sink.frames.len(), client.sink.frames[0].body.as_slice()), (1, b"by TCP".as_slice()));
    // Where there must be RDMA, that is the end.
    let (mut client, _, mut raw) = offered(|config| config.choice = Choice::Firm);
    client.later = Duration::from_secs(6);
    assert_eq!(raw.last_words(&mut client), Some(ErrorCode::Unreachable));
}

#[test]
fn a_path_that_does_not_work_is_given_up() {
    if !is_there() {
        return;
    }
    let mut server = World::<Rdma>::plain();
    let address = server.net.listen(&Rdma::local()).unwrap();
    // A queue pair that isn't there never says anything; the peer declines, as ours do.
    let mut raw = Raw::open(&mut server, &address);
    let terms = terms(&server).encode();
    raw.say(Kind::Request, op::OFFER, &terms);
    let (header, _) = raw.hear(&mut server).unwrap();
    assert_eq!((header.op(), header.status()), (op::ANSWER, 0));
    raw.say(Kind::Request, op::DECLINE, b"");
    raw.say(Kind::Request, 0x0001, b"by TCP");
    server.until("the frame by TCP", |server| server.sink.frames.len() == 1);
    // One that says nothing at all is closed when its time is over.
    let mut silent = Raw::open(&mut server, &address);
    silent.say(Kind::Request, op::OFFER, &terms);
    assert_eq!(silent.hear(&mut server).unwrap().0.op(), op::ANSWER);
    let mut late = Raw::open(&mut server, &address);
    late.say(Kind::Request, op::OFFER, &terms);
    assert_eq!(late.hear(&mut server).unwrap().0.op(), op::ANSWER);
    let mut mute = Raw::open(&mut server, &address);
    for _ in 0..50 {
        server.turn();
    }
    // Who connects gives up first, after 5 s; it is heard by whoever it connected to.
    server.later = Duration::from_secs(12);
    for _ in 0..50 {
        server.turn();
    }
    late.say(Kind::Request, op::DECLINE, b"");
    late.say(Kind::Request, 0x0001, b"by TCP");
    server.until("the late one's frame by TCP", |server| server.sink.frames.len() == 2);
    server.later = Duration::from_secs(16);
    assert_eq!(silent.last_words(&mut server), Some(ErrorCode::Unreachable));
    assert_eq!(mute.last_words(&mut server), Some(ErrorCode::Unreachable));
    assert_eq!(server.sink.opened.len(), 2);
}
