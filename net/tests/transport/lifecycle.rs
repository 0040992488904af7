//! Connections come, are refused, go, and their ids with them.

use crate::world::{CLUSTER, Scene, Setting, Tested, World, open, pair, until, until_ends};
use corefs_net::{Address, Transport};
use corefs_wire::frame::Kind;
use corefs_wire::{ErrorCode, Uuid};
use std::time::Duration;

/// Why a client with one identity can't open a connection to a server with another; both sides' views.
fn refusal<S: Scene>(client: Setting, server: Setting) -> ErrorCode {
    let (mut server, mut client) = (World::<S::Server>::with(server), World::<S::Client>::with(client));
    let address = server.net.listen(&S::Server::local()).unwrap();
    client.net.connect(&address).unwrap();
    until_ends(&mut client, &mut server, "the refusal", |client, server| {
        client.sink.closed.len() == 1 && server.net.live() == 1
    });
    assert!(server.sink.opened.is_empty() && server.sink.closed.is_empty() && client.sink.opened.is_empty());
    assert_eq!(client.net.live(), 0);
    client.sink.closed[0].1.code
}

pub fn handshakes_that_must_fail_say_why<S: Scene>() {
    let (plain, knowing) = (Setting::default(), Setting { secret: Some(1), ..Setting::default() });
    let ignorant = Setting { secret: None, ..plain };
    assert_eq!(refusal::<S>(ignorant, knowing), ErrorCode::AuthenticationFailed);
    let mistaken = Setting { secret: Some(2), ..plain };
    assert_eq!(refusal::<S>(mistaken, knowing), ErrorCode::AuthenticationFailed);
    let stranger = Setting { cluster: Uuid([9; 16]), ..plain };
    assert_eq!(refusal::<S>(stranger, plain), ErrorCode::WrongCluster);
}

pub fn a_client_that_knows_nothing_is_told<S: Scene>() {
    let mut server = World::<S::Server>::plain();
    let mut client = World::<S::Client>::with(Setting { cluster: Uuid::NIL, ..Setting::default() });
    let address = server.net.listen(&S::Server::local()).unwrap();
    let conn = open(&mut client, &mut server, &address);
    assert_eq!(client.sink.opened[0].1.cluster, CLUSTER);
    assert_eq!(client.net.peer(conn).unwrap().address, address);
}

pub fn with_the_secret_both_are_authenticated<S: Scene>() {
    let knowing = Setting { secret: Some(1), ..Setting::default() };
    let (mut server, mut client) = (World::<S::Server>::with(knowing), World::<S::Client>::with(knowing));
    let address = server.net.listen(&S::Server::local()).unwrap();
    open(&mut client, &mut server, &address);
    assert!(client.sink.opened[0].1.authenticated && server.sink.opened[0].1.authenticated);
}

pub fn listeners_refuse_what_they_must<S: Scene>() {
    let everywhere: Address = "0.0.0.0:0".parse().unwrap();
    assert_eq!(
        World::<S::Server>::with(Setting { secret: None, ..Setting::default() })
            .net
            .listen(&everywhere)
            .unwrap_err()
            .code,
        ErrorCode::BadConfig
    );
    let mut server = World::<S::Server>::with(Setting { secret: Some(1), ..Setting::default() });
    server.net.listen(&everywhere).unwrap();
    let address = server.net.listen(&S::Server::local()).unwrap();
    let error = World::<S::Server>::plain().net.listen(&address).unwrap_err();
    assert_eq!(error.code, ErrorCode::AddressInUse);
    assert!(error.message.contains(&address.to_string()), "{error} names the address");
}

pub fn nobody_there_is_said_so<S: Scene>() {
    let mut server = World::<S::Server>::plain();
    let address = server.net.listen(&S::Server::local()).unwrap();
    drop(server);
    let mut client = World::<S::Client>::plain();
    for address in [address, Address::Unix("/nonexistent/socket".into())] {
        let conn = client.net.connect(&address).unwrap();
        client
            .until_ends("the failure", |client| client.sink.closed.iter().any(|(closed, _)| *closed == conn));
        assert_eq!(client.sink.closed.last().unwrap().1.code, ErrorCode::Unreachable);
    }
    assert_eq!(client.net.live(), 0);
}

pub fn a_listener_that_has_rested_for_longer_than_its_patience_lets_peers_in<S: Scene>() {
    let hasty = Setting { patience: Some(Duration::from_millis(300)), ..Setting::default() };
    let (mut server, mut client) = (World::<S::Server>::with(hasty), World::<S::Client>::with(hasty));
    let address = server.net.listen(&S::Server::local()).unwrap();
    // Nothing turns its loop meanwhile.
    std::thread::sleep(Duration::from_millis(400));
    open(&mut client, &mut server, &address);
}

pub fn a_peer_that_never_answers_the_handshake_is_given_up<S: Scene>() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = World::<S::Client>::plain();
    client.net.connect(&silent.local_addr().unwrap().into()).unwrap();
    let mut server = World::<S::Server>::plain();
    let address = server.net.listen(&S::Server::local()).unwrap();
    let Address::Tcp(socket) = address else { panic!() };
    let _silent = std::net::TcpStream::connect(socket).unwrap();
    until_ends(&mut client, &mut server, "the connections", |client, server| {
        server.net.live() == 2 && client.net.live() == 1
    });
    for _ in 0..100 {
        client.turn();
        server.turn();
    }
    assert_eq!((client.net.live(), server.net.live()), (1, 2), "there is time yet");
    (client.later, server.later) = (Duration::from_secs(6), Duration::from_secs(6));
    until_ends(&mut client, &mut server, "both to give up", |client, server| {
        client.net.live() == 0 && server.net.live() == 1
    });
    assert_eq!(client.sink.closed[0].1.code, ErrorCode::Unreachable);
    assert!(server.sink.closed.is_empty(), "it was never announced");
}

pub fn closing_sends_what_is_queued_first<S: Scene>() {
    let (mut server, mut client, conn) = pair::<S>();
    client.send(conn, 1, b"last words", &vec![1; 1 << 20]);
    client.net.close(conn);
    assert!(!client.net.is_open(conn));
    let refused = client.net.send(conn, Kind::Request, 1, 1, 0, b"", None).unwrap_err();
    assert_eq!(refused.code, ErrorCode::ConnectionLost);
    until_ends(&mut client, &mut server, "both to close", |client, server| {
        client.sink.closed.len() == 1 && server.sink.closed.len() == 1
    });
    assert_eq!(server.sink.frames[0].body, b"last words");
    assert_eq!((client.net.live(), server.net.live()), (0, 1));
    assert!(
        [&client.sink, &server.sink].iter().all(|sink| sink.closed[0].1.code == ErrorCode::ConnectionLost)
    );
}

pub fn a_stale_id_is_harmless<S: Scene>() {
    let (mut server, mut client, old) = pair::<S>();
    let address = client.sink.opened[0].1.address.clone();
    client.net.close(old);
    until_ends(&mut client, &mut server, "the end", |client, _| client.net.live() == 0);
    let new = open(&mut client, &mut server, &address);
    assert_eq!(new.index, old.index, "the slot is used again");
    assert!(!client.net.is_open(old) && client.net.is_open(new));
    assert_eq!(
        client.net.send(old, Kind::Request, 1, 1, 0, b"", None).unwrap_err().code,
        ErrorCode::ConnectionLost
    );
    client.net.close(old);
    client.net.pause(old);
    client.net.resume(old);
    client.send(new, 5, b"still here", b"");
    until(&mut client, &mut server, "the frame", |_, server| !server.sink.frames.is_empty());
}

pub fn many_connections_talk_at_once_and_the_bound_holds<S: Scene>() {
    const BOUND: usize = 200;
    let mut server = World::<S::Server>::with(Setting { connections_max: Some(BOUND), ..Setting::default() });
    let address = server.net.listen(&S::Server::local()).unwrap();
    let mut client = World::<S::Client>::plain();
    let conns: Vec<_> = (0..BOUND).map(|_| client.net.connect(&address).unwrap()).collect();
    until(&mut client, &mut server, "all to open", |client, server| {
        client.sink.opened.len() == BOUND && server.sink.opened.len() == BOUND
    });
    client.net.connect(&address).unwrap();
    until_ends(&mut client, &mut server, "the refusal", |client, _| client.sink.closed.len() == 1);
    for round in 0..5 {
        for conn in &conns {
            client.send(*conn, round, &conn.index.to_le_bytes(), &[conn.index as u8; 3000]);
        }
    }
    until(&mut client, &mut server, "all frames", |_, server| server.sink.frames.len() == BOUND * 5);
    for frame in &server.sink.frames {
        assert_eq!(frame.data.as_deref(), Some([frame.body[0]; 3000].as_slice()));
    }
    let full = World::<S::Client>::with(Setting { connections_max: Some(0), ..Setting::default() })
        .net
        .connect(&address);
    assert_eq!(full.unwrap_err().code, ErrorCode::Overloaded);
}

pub fn listening_can_stop_while_connections_stay<S: Scene>() {
    let (mut server, mut client, conn) = pair::<S>();
    let address = client.sink.opened[0].1.address.clone();
    server.net.stop_listening(&mut server.ring);
    until_ends(&mut client, &mut server, "the listener to go", |_, server| server.net.live() == 1);
    client.net.connect(&address).unwrap();
    client.send(conn, 1, b"hello", b"");
    until_ends(&mut client, &mut server, "refusal and frame", |client, server| {
        client.sink.closed.len() == 1 && server.sink.frames.len() == 1
    });
    assert_eq!(client.sink.closed[0].1.code, ErrorCode::Unreachable);
}

pub fn dropping_everything_in_the_middle_of_it_is_sound<S: Scene>() {
    for ring_first in [true, false] {
        let (mut server, mut client, conn) = pair::<S>();
        client.send(conn, 1, b"", &vec![1; 1 << 20]);
        client.turn();
        server.turn();
        let World { ring, net, sink, .. } = server;
        if ring_first {
            drop(ring);
            drop(net);
        } else {
            drop(net);
            drop(ring);
        }
        drop(sink);
        client.until_ends("the end", |client| client.sink.closed.len() == 1);
    }
}
