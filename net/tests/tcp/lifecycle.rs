//! Connections come, are refused, go, and their ids with them.

use crate::world::{CLUSTER, World, identity, local, open, pair, until};
use corefs_net::{Address, Identity, TcpConfig};
use corefs_wire::frame::Kind;
use corefs_wire::{ErrorCode, Uuid};
use std::time::Duration;

/// Why a client with one identity can't open a connection to a server with another; both sides' views.
fn refusal(client: Identity, server: Identity) -> ErrorCode {
    let (mut server, mut client) = (World::new(TcpConfig::new(server)), World::new(TcpConfig::new(client)));
    let address = server.tcp.listen(&local()).unwrap();
    client.tcp.connect(&address).unwrap();
    until(&mut client, &mut server, "the refusal", |client, server| {
        client.sink.closed.len() == 1 && server.tcp.live() == 1
    });
    assert!(server.sink.opened.is_empty() && server.sink.closed.is_empty() && client.sink.opened.is_empty());
    assert_eq!(client.tcp.live(), 0);
    client.sink.closed[0].1.code
}

#[test]
fn handshakes_that_must_fail_say_why() {
    assert_eq!(refusal(identity(None), identity(Some(1))), ErrorCode::AuthenticationFailed);
    assert_eq!(refusal(identity(Some(2)), identity(Some(1))), ErrorCode::AuthenticationFailed);
    let stranger = Identity { cluster: Uuid([9; 16]), ..identity(None) };
    assert_eq!(refusal(stranger, identity(None)), ErrorCode::WrongCluster);
}

#[test]
fn a_client_that_knows_nothing_is_told() {
    let (mut server, mut client) =
        (World::plain(), World::new(TcpConfig::new(Identity { cluster: Uuid::NIL, ..identity(None) })));
    let address = server.tcp.listen(&local()).unwrap();
    let conn = open(&mut client, &mut server, &address);
    assert_eq!(client.sink.opened[0].1.cluster, CLUSTER);
    assert_eq!(client.tcp.peer(conn).unwrap().address, address);
}

#[test]
fn with_the_secret_both_are_authenticated() {
    let config = || TcpConfig::new(identity(Some(1)));
    let (mut server, mut client) = (World::new(config()), World::new(config()));
    let address = server.tcp.listen(&local()).unwrap();
    open(&mut client, &mut server, &address);
    assert!(client.sink.opened[0].1.authenticated && server.sink.opened[0].1.authenticated);
}

#[test]
fn listeners_refuse_what_they_must() {
    let everywhere: Address = "0.0.0.0:0".parse().unwrap();
    assert_eq!(World::plain().tcp.listen(&everywhere).unwrap_err().code, ErrorCode::BadConfig);
    let mut server = World::new(TcpConfig::new(identity(Some(1))));
    server.tcp.listen(&everywhere).unwrap();
    let address = server.tcp.listen(&local()).unwrap();
    let error = World::plain().tcp.listen(&address).unwrap_err();
    assert_eq!(error.code, ErrorCode::AddressInUse);
    assert!(error.message.contains(&address.to_string()), "{error} names the address");
}

#[test]
fn nobody_there_is_said_so() {
    let mut server = World::plain();
    let address = server.tcp.listen(&local()).unwrap();
    drop(server);
    let mut client = World::plain();
    for address in [address, Address::Unix("/nonexistent/socket".into())] {
        let conn = client.tcp.connect(&address).unwrap();
        client.until("the failure", |client| client.sink.closed.iter().any(|(closed, _)| *closed == conn));
        assert_eq!(client.sink.closed.last().unwrap().1.code, ErrorCode::Unreachable);
    }
    assert_eq!(client.tcp.live(), 0);
}

#[test]
fn a_listener_that_has_rested_for_longer_than_its_patience_lets_peers_in() {
    let config = || TcpConfig { patience: Duration::from_millis(300), ..TcpConfig::new(identity(None)) };
    let (mut server, mut client) = (World::new(config()), World::new(config()));
    let address = server.tcp.listen(&local()).unwrap();
    // Nothing turns its loop meanwhile.
    std::thread::sleep(Duration::from_millis(400));
    open(&mut client, &mut server, &address);
}

#[test]
fn a_peer_that_never_answers_the_handshake_is_given_up() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = World::plain();
    client.tcp.connect(&silent.local_addr().unwrap().into()).unwrap();
    let mut server = World::plain();
    let address = server.tcp.listen(&local()).unwrap();
    let Address::Tcp(socket) = address else { panic!() };
    let _silent = std::net::TcpStream::connect(socket).unwrap();
    until(&mut client, &mut server, "the connections", |client, server| {
        server.tcp.live() == 2 && client.tcp.live() == 1
    });
    for _ in 0..100 {
        client.turn();
        server.turn();
    }
    assert_eq!((client.tcp.live(), server.tcp.live()), (1, 2), "there is time yet");
    (client.later, server.later) = (Duration::from_secs(6), Duration::from_secs(6));
    until(&mut client, &mut server, "both to give up", |client, server| {
        client.tcp.live() == 0 && server.tcp.live() == 1
    });
    assert_eq!(client.sink.closed[0].1.code, ErrorCode::Unreachable);
    assert!(server.sink.closed.is_empty(), "it was never announced");
}

#[test]
fn closing_sends_what_is_queued_first() {
    let (mut server, mut client, conn) = pair();
    client.send(conn, 1, b"last words", &vec![1; 1 << 20]);
    client.tcp.close(conn);
    assert!(!client.tcp.is_open(conn));
    let refused = client.tcp.send(conn, Kind::Request, 1, 1, 0, b"", None).unwrap_err();
    assert_eq!(refused.code, ErrorCode::ConnectionLost);
    until(&mut client, &mut server, "both to close", |client, server| {
        client.sink.closed.len() == 1 && server.sink.closed.len() == 1
    });
    assert_eq!(server.sink.frames[0].body, b"last words");
    assert_eq!((client.tcp.live(), server.tcp.live()), (0, 1));
    assert!([&client, &server].iter().all(|world| world.sink.closed[0].1.code == ErrorCode::ConnectionLost));
}

#[test]
fn a_stale_id_is_harmless() {
    let (mut server, mut client, old) = pair();
    let address = client.sink.opened[0].1.address.clone();
    client.tcp.close(old);
    until(&mut client, &mut server, "the end", |client, _| client.tcp.live() == 0);
    let new = open(&mut client, &mut server, &address);
    assert_eq!(new.index, old.index, "the slot is used again");
    assert!(!client.tcp.is_open(old) && client.tcp.is_open(new));
    assert_eq!(
        client.tcp.send(old, Kind::Request, 1, 1, 0, b"", None).unwrap_err().code,
        ErrorCode::ConnectionLost
    );
    client.tcp.close(old);
    client.tcp.pause(old);
    client.tcp.resume(old);
    client.send(new, 5, b"still here", b"");
    until(&mut client, &mut server, "the frame", |_, server| !server.sink.frames.is_empty());
}

#[test]
fn many_connections_talk_at_once_and_the_bound_holds() {
    const BOUND: usize = 200;
    let mut server = World::new(TcpConfig { connections_max: BOUND, ..TcpConfig::new(identity(None)) });
    let address = server.tcp.listen(&local()).unwrap();
    let mut client = World::plain();
    let conns: Vec<_> = (0..BOUND).map(|_| client.tcp.connect(&address).unwrap()).collect();
    until(&mut client, &mut server, "all to open", |client, server| {
        client.sink.opened.len() == BOUND && server.sink.opened.len() == BOUND
    });
    client.tcp.connect(&address).unwrap();
    until(&mut client, &mut server, "the refusal", |client, _| client.sink.closed.len() == 1);
    for round in 0..5 {
        for conn in &conns {
            client.send(*conn, round, &conn.index.to_le_bytes(), &[conn.index as u8; 3000]);
        }
    }
    until(&mut client, &mut server, "all frames", |_, server| server.sink.frames.len() == BOUND * 5);
    for frame in &server.sink.frames {
        assert_eq!(frame.data.as_deref(), Some([frame.body[0]; 3000].as_slice()));
    }
    let full =
        World::new(TcpConfig { connections_max: 0, ..TcpConfig::new(identity(None)) }).tcp.connect(&address);
    assert_eq!(full.unwrap_err().code, ErrorCode::Overloaded);
}

#[test]
fn listening_can_stop_while_connections_stay() {
    let (mut server, mut client, conn) = pair();
    let address = client.sink.opened[0].1.address.clone();
    server.tcp.stop_listening(&mut server.ring);
    until(&mut client, &mut server, "the listener to go", |_, server| server.tcp.live() == 1);
    client.tcp.connect(&address).unwrap();
    client.send(conn, 1, b"hello", b"");
    until(&mut client, &mut server, "refusal and frame", |client, server| {
        client.sink.closed.len() == 1 && server.sink.frames.len() == 1
    });
    assert_eq!(client.sink.closed[0].1.code, ErrorCode::Unreachable);
}

#[test]
fn dropping_everything_in_the_middle_of_it_is_sound() {
    for ring_first in [true, false] {
        let (mut server, mut client, conn) = pair();
        client.send(conn, 1, b"", &vec![1; 1 << 20]);
        client.turn();
        server.turn();
        let World { ring, tcp, sink, .. } = server;
        if ring_first {
            drop(ring);
            drop(tcp);
        } else {
            drop(tcp);
            drop(ring);
        }
        drop(sink);
        client.until("the end", |client| client.sink.closed.len() == 1);
    }
}
