//! Connections come, are refused, go, and their ids with them.

use crate::world::{CLUSTER, Tested, World, identity, open, pair, until};
use corefs_net::{Address, Identity, TcpConfig};
use corefs_wire::frame::Kind;
use corefs_wire::{ErrorCode, Uuid};
use std::time::Duration;

/// Why a client with one identity can't open a connection to a server with another; both sides' views.
fn refusal<T: Tested>(client: Identity, server: Identity) -> ErrorCode {
    let (mut server, mut client) =
        (World::<T>::new(TcpConfig::new(server)), World::<T>::new(TcpConfig::new(client)));
    let address = server.net.listen(&T::local()).unwrap();
    client.net.connect(&address).unwrap();
    until(&mut client, &mut server, "the refusal", |client, server| {
        client.sink.closed.len() == 1 && server.net.live() == 1
    });
    assert!(server.sink.opened.is_empty() && server.sink.closed.is_empty() && client.sink.opened.is_empty());
    assert_eq!(client.net.live(), 0);
    client.sink.closed[0].1.code
}

pub fn handshakes_that_must_fail_say_why<T: Tested>() {
    assert_eq!(refusal::<T>(identity(None), identity(Some(1))), ErrorCode::AuthenticationFailed);
    assert_eq!(refusal::<T>(identity(Some(2)), identity(Some(1))), ErrorCode::AuthenticationFailed);
    let stranger = Identity { cluster: Uuid([9; 16]), ..identity(None) };
    assert_eq!(refusal::<T>(stranger, identity(None)), ErrorCode::WrongCluster);
}

pub fn a_client_that_knows_nothing_is_told<T: Tested>() {
    let (mut server, mut client) = (
        World::<T>::plain(),
        World::<T>::new(TcpConfig::new(Identity { cluster: Uuid::NIL, ..identity(None) })),
    );
    let address = server.net.listen(&T::local()).unwrap();
    let conn = open(&mut client, &mut server, &address);
    assert_eq!(client.sink.opened[0].1.cluster, CLUSTER);
    assert_eq!(client.net.peer(conn).unwrap().address, address);
}

pub fn with_the_secret_both_are_authenticated<T: Tested>() {
    let config = || TcpConfig::new(identity(Some(1)));
    let (mut server, mut client) = (World::<T>::new(config()), World::<T>::new(config()));
    let address = server.net.listen(&T::local()).unwrap();
    open(&mut client, &mut server, &address);
    assert!(client.sink.opened[0].1.authenticated && server.sink.opened[0].1.authenticated);
}

pub fn listeners_refuse_what_they_must<T: Tested>() {
    let everywhere: Address = "0.0.0.0:0".parse().unwrap();
    assert_eq!(World::<T>::plain().net.listen(&everywhere).unwrap_err().code, ErrorCode::BadConfig);
    let mut server = World::<T>::new(TcpConfig::new(identity(Some(1))));
    server.net.listen(&everywhere).unwrap();
    let address = server.net.listen(&T::local()).unwrap();
    let error = World::<T>::plain().net.listen(&address).unwrap_err();
    assert_eq!(error.code, ErrorCode::AddressInUse);
    assert!(error.message.contains(&address.to_string()), "{error} names the address");
}

pub fn nobody_there_is_said_so<T: Tested>() {
    let mut server = World::<T>::plain();
    let address = server.net.listen(&T::local()).unwrap();
    drop(server);
    let mut client = World::<T>::plain();
    for address in [address, Address::Unix("/nonexistent/socket".into())] {
        let conn = client.net.connect(&address).unwrap();
        client.until("the failure", |client| client.sink.closed.iter().any(|(closed, _)| *closed == conn));
        assert_eq!(client.sink.closed.last().unwrap().1.code, ErrorCode::Unreachable);
    }
    assert_eq!(client.net.live(), 0);
}

pub fn a_listener_that_has_rested_for_longer_than_its_patience_lets_peers_in<T: Tested>() {
    let config = || TcpConfig { patience: Duration::from_millis(300), ..TcpConfig::new(identity(None)) };
    let (mut server, mut client) = (World::<T>::new(config()), World::<T>::new(config()));
    let address = server.net.listen(&T::local()).unwrap();
    // Nothing turns its loop meanwhile.
    std::thread::sleep(Duration::from_millis(400));
    open(&mut client, &mut server, &address);
}

pub fn a_peer_that_never_answers_the_handshake_is_given_up<T: Tested>() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = World::<T>::plain();
    client.net.connect(&silent.local_addr().unwrap().into()).unwrap();
    let mut server = World::<T>::plain();
    let address = server.net.listen(&T::local()).unwrap();
    let Address::Tcp(socket) = address else { panic!() };
    let _silent = std::net::TcpStream::connect(socket).unwrap();
    until(&mut client, &mut server, "the connections", |client, server| {
        server.net.live() == 2 && client.net.live() == 1
    });
    for _ in 0..100 {
        client.turn();
        server.turn();
    }
    assert_eq!((client.net.live(), server.net.live()), (1, 2), "there is time yet");
    (client.later, server.later) = (Duration::from_secs(6), Duration::from_secs(6));
    until(&mut client, &mut server, "both to give up", |client, server| {
        client.net.live() == 0 && server.net.live() == 1
    });
    assert_eq!(client.sink.closed[0].1.code, ErrorCode::Unreachable);
    assert!(server.sink.closed.is_empty(), "it was never announced");
}

pub fn closing_sends_what_is_queued_first<T: Tested>() {
    let (mut server, mut client, conn) = pair::<T>();
    client.send(conn, 1, b"last words", &vec![1; 1 << 20]);
    client.net.close(conn);
    assert!(!client.net.is_open(conn));
    let refused = client.net.send(conn, Kind::Request, 1, 1, 0, b"", None).unwrap_err();
    assert_eq!(refused.code, ErrorCode::ConnectionLost);
    until(&mut client, &mut server, "both to close", |client, server| {
        client.sink.closed.len() == 1 && server.sink.closed.len() == 1
    });
    assert_eq!(server.sink.frames[0].body, b"last words");
    assert_eq!((client.net.live(), server.net.live()), (0, 1));
    assert!([&client, &server].iter().all(|world| world.sink.closed[0].1.code == ErrorCode::ConnectionLost));
}

pub fn a_stale_id_is_harmless<T: Tested>() {
    let (mut server, mut client, old) = pair::<T>();
    let address = client.sink.opened[0].1.address.clone();
    client.net.close(old);
    until(&mut client, &mut server, "the end", |client, _| client.net.live() == 0);
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

pub fn many_connections_talk_at_once_and_the_bound_holds<T: Tested>() {
    const BOUND: usize = 200;
    let mut server = World::<T>::new(TcpConfig { connections_max: BOUND, ..TcpConfig::new(identity(None)) });
    let address = server.net.listen(&T::local()).unwrap();
    let mut client = World::<T>::plain();
    let conns: Vec<_> = (0..BOUND).map(|_| client.net.connect(&address).unwrap()).collect();
    until(&mut client, &mut server, "all to open", |client, server| {
        client.sink.opened.len() == BOUND && server.sink.opened.len() == BOUND
    });
    client.net.connect(&address).unwrap();
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
    let full = World::<T>::new(TcpConfig { connections_max: 0, ..TcpConfig::new(identity(None)) })
        .net
        .connect(&address);
    assert_eq!(full.unwrap_err().code, ErrorCode::Overloaded);
}

pub fn listening_can_stop_while_connections_stay<T: Tested>() {
    let (mut server, mut client, conn) = pair::<T>();
    let address = client.sink.opened[0].1.address.clone();
    server.net.stop_listening(&mut server.ring);
    until(&mut client, &mut server, "the listener to go", |_, server| server.net.live() == 1);
    client.net.connect(&address).unwrap();
    client.send(conn, 1, b"hello", b"");
    until(&mut client, &mut server, "refusal and frame", |client, server| {
        client.sink.closed.len() == 1 && server.sink.frames.len() == 1
    });
    assert_eq!(client.sink.closed[0].1.code, ErrorCode::Unreachable);
}

pub fn dropping_everything_in_the_middle_of_it_is_sound<T: Tested>() {
    for ring_first in [true, false] {
        let (mut server, mut client, conn) = pair::<T>();
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
        client.until("the end", |client| client.sink.closed.len() == 1);
    }
}
