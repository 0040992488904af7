//! Peers that send garbage, stop in the middle, or never read: each harms itself alone.

use crate::world::{Here, Scene, Setting, Tested, World, identity, open, until};
use corefs_net::handshake::{Handshake, Message, Step};
use corefs_net::{Address, ConnId, Tcp, Transport};
use corefs_wire::ErrorCode;
use corefs_wire::error::decode_error;
use corefs_wire::frame::{HEADER, Header, Kind};
use corefs_wire::limits::{FRAME_BODY_MAX, HANDSHAKE_BODY_MAX};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use zerocopy::IntoBytes;

fn frame(kind: Kind, op: u16, request: u64, body: &[u8], data: &[u8]) -> Vec<u8> {
    let header = Header::new(kind, op, request, 0, body, data.len());
    [header.as_bytes(), body, data].concat()
}

fn handshake_frame(message: &Message) -> Vec<u8> {
    frame(Kind::Handshake, message.op, 0, &message.body, b"")
}

/// A server with one well-behaved client, and the address for the others.
struct Town<S: Scene> {
    server: World<S::Server>,
    client: World<S::Client>,
    conn: ConnId,
    address: Address,
    asked: u64,
}

impl<S: Scene> Town<S> {
    fn new() -> Self {
        let (mut server, mut client) = (World::<S::Server>::plain(), World::<S::Client>::plain());
        server.may_end = true;
        let address = server.net.listen(&S::Server::local()).unwrap();
        let conn = open(&mut client, &mut server, &address);
        Self { server, client, conn, address, asked: 0 }
    }

    fn raw(&self) -> TcpStream {
        let Address::Tcp(address) = &self.address else { panic!() };
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    }

    fn turn(&mut self) {
        self.server.turn();
        self.client.turn();
    }

    fn write(&mut self, socket: &mut TcpStream, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match socket.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => self.turn(),
                // The server has had enough of it.
                Err(_) => return,
            }
        }
    }

    /// The next frame from the server, or `None` when it closes.
    fn read(&mut self, socket: &mut TcpStream) -> Option<(Header, Vec<u8>)> {
        let mut head = [0; HEADER];
        self.read_exact(socket, &mut head)?;
        let header = Header::parse(&head, FRAME_BODY_MAX).unwrap();
        let mut body = vec![0; header.body_len()];
        self.read_exact(socket, &mut body)?;
        Some((header, body))
    }

    fn read_exact(&mut self, socket: &mut TcpStream, mut to: &mut [u8]) -> Option<()> {
        let started = std::time::Instant::now();
        while !to.is_empty() {
            assert!(started.elapsed() < Duration::from_secs(60), "the server neither answers nor closes");
            match socket.read(to) {
                Ok(0) => return None,
                Ok(count) => to = &mut to[count..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => self.turn(),
                Err(_) => return None,
            }
        }
        Some(())
    }

    /// A raw socket that has done its handshake.
    fn opened(&mut self) -> TcpStream {
        let identity = identity(Setting::default().secret);
        let mut socket = self.raw();
        let (mut handshake, hello) = Handshake::connect(&identity, self.address.clone(), [1; 32]);
        self.write(&mut socket, &handshake_frame(&hello));
        loop {
            let (header, body) = self.read(&mut socket).unwrap();
            match handshake.message(&identity, header.op(), &body).unwrap() {
                Step::Send(message) => self.write(&mut socket, &handshake_frame(&message)),
                Step::Done(..) => return socket,
            }
        }
    }

    /// Reads until the server closes; the error it gave, if any.
    fn last_words(&mut self, socket: &mut TcpStream) -> Option<ErrorCode> {
        let mut words = None;
        while let Some((header, body)) = self.read(socket) {
            if header.status() != 0 {
                words = Some(decode_error(header.status(), &body).code);
                // What a polite peer does now.
                let _ = socket.shutdown(std::net::Shutdown::Write);
            }
        }
        words
    }

    /// The well-behaved client is still served.
    fn check_neighbour(&mut self) {
        self.asked += 1;
        let asked = self.asked;
        self.client.send(self.conn, asked, b"neighbour", b"");
        let arrived = |_: &mut World<S::Client>, server: &mut World<S::Server>| {
            server
                .sink
                .frames
                .iter()
                .any(|frame| frame.header.request() == asked && frame.body == b"neighbour")
        };
        until(&mut self.client, &mut self.server, "the neighbour's frame", arrived);
        assert!(self.client.sink.closed.is_empty());
    }
}

pub fn violations_before_the_handshake_are_told_and_closed<S: Scene>() {
    let mut town = Town::<S>::new();
    let mut bad_version = frame(Kind::Handshake, 1, 0, b"", b"");
    bad_version[4] = 99;
    let crc = corefs_wire::checksum::crc32c(&bad_version[..HEADER - 4]);
    bad_version[HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
    let cases: [(Vec<u8>, ErrorCode); 8] = [
        (b"GET / HTTP/1.1\r\nHost: example.org\r\nAccept: */*\r\n\r\n".to_vec(), ErrorCode::BadFrame),
        (vec![0; 4096], ErrorCode::BadFrame),
        (bad_version, ErrorCode::VersionMismatch),
        (frame(Kind::Request, 1, 1, b"too early", b""), ErrorCode::BadFrame),
        (frame(Kind::Handshake, 1, 0, b"short", b""), ErrorCode::BadFrame),
        (frame(Kind::Handshake, 3, 0, &[0; 32], b""), ErrorCode::BadFrame),
        (frame(Kind::Handshake, 1, 0, &[0; HANDSHAKE_BODY_MAX + 1], b""), ErrorCode::BadFrame),
        (frame(Kind::Handshake, 1, 0, &[1; 80], b"data"), ErrorCode::BadFrame),
    ];
    for (bytes, expected) in cases {
        let mut socket = town.raw();
        town.write(&mut socket, &bytes);
        assert_eq!(town.last_words(&mut socket), Some(expected), "{:?}", &bytes[..20]);
        town.check_neighbour();
    }
    assert_eq!(town.server.sink.opened.len(), 1);
}

pub fn violations_after_the_handshake_end_that_connection_alone<S: Scene>() {
    let mut town = Town::<S>::new();
    let good = frame(Kind::Request, 1, 1, b"body", &[0; 5000]);
    let mut cases = vec![vec![0xFF; 100], frame(Kind::Handshake, 1, 0, &[0; 80], b"")];
    for at in [0, 4, 5, 20, 24, 39, HEADER] {
        let mut bad = good.clone();
        bad[at] ^= 0x55;
        cases.push(bad);
    }
    let cases_count = cases.len();
    for bad in cases {
        let mut socket = town.opened();
        town.write(&mut socket, &good);
        town.write(&mut socket, &bad);
        town.write(&mut socket, &[7; 100_000]);
        assert!(matches!(town.last_words(&mut socket), Some(ErrorCode::BadFrame)));
        town.check_neighbour();
    }
    let mut server = town.server;
    server.until_ends("all to be forgotten", |server| server.sink.closed.len() == cases_count);
    let served = server.sink.frames.iter().filter(|frame| frame.data.is_some()).count();
    assert_eq!((served, server.in_use()), (cases_count, 0), "each good frame was served before");
}

pub fn peers_that_stop_anywhere_leave_nothing_behind<S: Scene>() {
    let mut town = Town::<S>::new();
    let bytes = frame(Kind::Request, 1, 1, &[1; 300], &[2; 40_000]);
    for length in [1, HEADER - 1, HEADER, HEADER + 1, HEADER + 300, HEADER + 301, 20_000, bytes.len() - 1] {
        let mut socket = town.opened();
        let before = town.server.sink.closed.len();
        town.write(&mut socket, &bytes[..length]);
        for _ in 0..20 {
            town.turn();
        }
        drop(socket);
        town.server.until_ends("the end", |server| server.sink.closed.len() > before);
        assert_eq!(town.server.in_use(), 0, "cut after {length} bytes");
        town.check_neighbour();
    }
}

pub fn slow_peers_get_through_and_disturb_nobody<S: Scene>() {
    let mut town = Town::<S>::new();
    let mut socket = town.opened();
    let bytes = frame(Kind::Request, 77, 1, &[1; 30], &[2; 200]);
    for byte in &bytes {
        town.write(&mut socket, &[*byte]);
        town.turn();
        town.turn();
    }
    town.check_neighbour();
    let slow = |server: &mut World<S::Server>| server.sink.frames.iter().any(|frame| frame.header.op() == 77);
    town.server.until("the slow frame", slow);
    let slow = town.server.sink.frames.iter().find(|frame| frame.header.op() == 77).unwrap();
    assert_eq!(slow.data.as_deref(), Some([2; 200].as_slice()));
}

pub fn a_peer_that_never_reads_is_held_back_and_then_refused<S: Scene>() {
    let mut town = Town::<S>::new();
    let socket = town.opened();
    let conn = town.server.sink.opened.last().unwrap().0;
    let mut refused = None;
    for n in 0..100 {
        let data = vec![0; 1 << 20];
        refused = town.server.net.send(conn, Kind::Reply, 1, n, 0, b"", Some(data.into())).err();
        town.turn();
        if refused.is_some() {
            break;
        }
    }
    assert_eq!(refused.unwrap().code, ErrorCode::Overloaded);
    // Nor are its requests read while so much waits.
    let before = town.server.net.counters(conn).unwrap().frames_in;
    let mut socket = socket;
    town.write(&mut socket, &frame(Kind::Request, 1, 1, b"", b"").repeat(3));
    for _ in 0..50 {
        town.turn();
    }
    town.check_neighbour();
    assert!(town.server.net.counters(conn).unwrap().frames_in <= before + 3);
    town.server.net.close(conn);
    town.server.later = Duration::from_secs(6);
    let gone = |server: &mut World<S::Server>| server.sink.closed.iter().any(|(closed, _)| *closed == conn);
    town.server.until_ends("patience to end", gone);
    town.check_neighbour();
}

/// Looks until what a peer that has stopped was given is given up; a tenth of a second passes with each.
fn until_given_up(town: &mut Town<Here<Tcp>>) {
    let before = town.server.sink.closed.len();
    for _ in 0..100 {
        town.server.later += Duration::from_millis(100);
        town.turn();
        assert_eq!(town.server.sink.closed.len(), before, "there is time yet");
    }
    for _ in 0..20 {
        town.server.later += Duration::from_millis(100);
        town.turn();
    }
    town.server.until_ends("the end", |server| server.sink.closed.len() > before);
    town.check_neighbour();
}

#[test]
fn a_peer_that_stops_in_the_middle_of_its_data_is_given_up() {
    let mut town = Town::<Here<Tcp>>::new();
    let bytes = frame(Kind::Request, 1, 1, &[1; 300], &[2; 400_000]);
    let mut socket = town.opened();
    town.write(&mut socket, &bytes[..200_000]);
    town.server.until("a place", |server| server.sink.pool.in_use() > 0);
    until_given_up(&mut town);
    assert_eq!(town.server.sink.pool.in_use(), 0);
}

#[test]
fn a_peer_that_takes_no_replies_is_given_up() {
    let mut town = Town::<Here<Tcp>>::new();
    let _socket = town.opened();
    let conn = town.server.sink.opened.last().unwrap().0;
    for n in 0..32 {
        town.server.net.send(conn, Kind::Reply, 1, n, 0, b"", Some(vec![0; 1 << 20].into())).unwrap();
    }
    let mut queued = 0;
    town.server.until("the kernel to take no more", |server| {
        std::mem::replace(&mut queued, server.net.queued(conn)) == server.net.queued(conn)
    });
    until_given_up(&mut town);
}

/// It takes a little now and then, of much that was sent together: 2 MiB in 9 s, as over a slow link.
#[test]
fn a_peer_that_takes_replies_slowly_is_not_given_up() {
    let mut town = Town::<Here<Tcp>>::new();
    let mut socket = town.opened();
    let conn = town.server.sink.opened.last().unwrap().0;
    for n in 0..32 {
        town.server.net.send(conn, Kind::Reply, 1, n, 0, b"", Some(vec![0; 1 << 20].into())).unwrap();
    }
    let mut some = vec![0; 2 << 20];
    while town.server.net.queued(conn) > 0 {
        let before = town.server.net.queued(conn);
        town.read_exact(&mut socket, &mut some).unwrap();
        town.server.until("the kernel to take more", |server| server.net.queued(conn) < before);
        for _ in 0..90 {
            town.server.later += Duration::from_millis(100);
            town.turn();
        }
    }
    assert!(town.server.net.is_open(conn));
    town.check_neighbour();
}

/// Each byte is a sign of life, however late it comes.
#[test]
fn a_peer_that_goes_on_is_not_given_up() {
    let mut town = Town::<Here<Tcp>>::new();
    let bytes = frame(Kind::Request, 77, 1, &[1; 30], &[2; 200_000]);
    let mut socket = town.opened();
    for part in bytes.chunks(70_000) {
        town.write(&mut socket, part);
        for _ in 0..90 {
            town.server.later += Duration::from_millis(100);
            town.turn();
        }
    }
    let whole = |server: &mut World<Tcp>| server.sink.frames.iter().any(|frame| frame.header.op() == 77);
    town.server.until("the frame", whole);
}

pub fn random_garbage_from_many_peers_harms_nobody<S: Scene>() {
    let mut town = Town::<S>::new();
    let mut random = 0x2545_F491_4F6C_DD1Du64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for round in 0..300 {
        let mut socket = if round % 2 == 0 { town.raw() } else { town.opened() };
        let mut bytes = frame(
            Kind::Request,
            1,
            next(),
            &vec![1; next() as usize % 300],
            &vec![2; next() as usize % 9000],
        );
        match round % 3 {
            0 => bytes.iter_mut().for_each(|byte| *byte = next() as u8),
            1 => {
                let at = next() as usize % bytes.len().min(200);
                bytes[at] ^= 1 << (next() % 8);
            }
            _ => bytes.truncate(next() as usize % bytes.len()),
        }
        town.write(&mut socket, &bytes);
        town.turn();
        drop(socket);
        if round % 50 == 0 {
            town.check_neighbour();
        }
    }
    town.check_neighbour();
    let mut server = town.server;
    server.until_ends("all to be forgotten", |server| server.net.live() == 2);
    assert_eq!(server.in_use(), 0);
}
