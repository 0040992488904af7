//! A link that goes down and comes up again, as the device itself tells it, and a device that is taken out and put in again, which soft-RoCE doesn't tell.
//!
//! `COREFS_TEST_RDMA_LINK` names the interface of the device, which is taken down: in a guest.

use crate::world::{Tested, World, identity, open, until, until_ends};
use corefs_net::rdma::{Choice, Rdma, RdmaConfig};
use corefs_net::transport::Way;
use corefs_net::{ConnId, TcpConfig};
use corefs_wire::ErrorCode;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// The interface, or a line that says why there is none.
fn link() -> Option<String> {
    let named = std::env::var("COREFS_TEST_RDMA_LINK").ok().filter(|_| super::is_there());
    if named.is_none() && super::is_there() {
        println!("left out: COREFS_TEST_RDMA_LINK names no interface that may be taken down");
    }
    named
}

fn set(link: &str, state: &str) {
    assert!(Command::new("/usr/bin/ip").args(["link", "set", link, state]).status().unwrap().success());
}

/// Connects until a connection goes by a queue pair: what the link's state means is told some time after it has changed.
fn open_by_rdma(client: &mut World<Rdma>, server: &mut World<Rdma>, address: &corefs_net::Address) -> ConnId {
    let started = Instant::now();
    loop {
        let conn = open(client, server, address);
        if client.net.is_by_queue_pair(conn) {
            return conn;
        }
        client.net.close(conn);
        let closed = client.sink.closed.len();
        until_ends(client, server, "the end", |client, _| client.sink.closed.len() > closed);
        assert!(started.elapsed() < Duration::from_secs(60), "RDMA isn't tried again");
    }
}

#[test]
fn connections_end_with_their_port_and_come_back_to_it() {
    let Some(link) = link() else { return };
    // One that had to wait for the device to give up would wait for 15 s and more.
    let (mut server, mut client) = (World::<Rdma>::plain(), World::<Rdma>::plain());
    let address = server.net.listen(&Rdma::local()).unwrap();
    for round in 0..3 {
        let conns: Vec<ConnId> = (0..3).map(|_| open_by_rdma(&mut client, &mut server, &address)).collect();
        let buffer = client.sink.pool.get(4096).unwrap();
        assert!(client.net.grant(conns[0], 1, buffer, 0).is_ok());
        client.send(conns[0], 1, b"in the middle", b"");
        let (ours, theirs) = (client.sink.closed.len(), server.sink.closed.len());
        set(&link, "down");
        let down = Instant::now();
        until_ends(&mut client, &mut server, "both ends to be told", |client, server| {
            client.sink.closed.len() >= ours + 3 && server.sink.closed.len() >= theirs + 3
        });
        println!("round {round}: told after {:?}", down.elapsed());
        let told = |closed: &[(ConnId, corefs_wire::Error)]| {
            closed.iter().any(|(_, error)| error.message.contains("is down"))
        };
        assert!(told(&client.sink.closed[ours..]) || told(&server.sink.closed[theirs..]), "a clear reason");
        assert!(client.sink.closed[ours..].iter().all(|(_, error)| error.code == ErrorCode::ConnectionLost));
        assert_eq!(client.sink.pool.in_use(), 0, "what was granted is free");
        // Meanwhile by TCP; who insists is told why not.
        let plain = open(&mut client, &mut server, &address);
        assert!(!client.net.is_by_queue_pair(plain));
        let config = RdmaConfig { choice: Choice::Firm, ..super::config(TcpConfig::new(identity(None))) };
        let refused = Rdma::new(config, &client.sink.pool).err().unwrap();
        assert!(refused.message.contains("the link is down"), "{refused}");
        set(&link, "up");
        let again = open_by_rdma(&mut client, &mut server, &address);
        client.send(again, 7, b"by the queue pair", &[7; 10_000]);
        until(&mut client, &mut server, "the frame", |_, server| {
            server.sink.frames.iter().any(|frame| frame.body == b"by the queue pair")
        });
        client.send(plain, 8, b"by TCP still", b"");
        until(&mut client, &mut server, "the frame", |_, server| {
            server.sink.frames.iter().any(|frame| frame.body == b"by TCP still")
        });
        server.sink.frames.clear();
        let closed = client.sink.closed.len();
        client.net.close(again);
        client.net.close(plain);
        until_ends(&mut client, &mut server, "the ends", |client, server| {
            client.sink.closed.len() == closed + 2 && server.net.live() == 1
        });
    }
}

/// `rdma link` of iproute2.
fn rdma(arguments: &[&str]) -> Child {
    Command::new("/usr/bin/rdma").arg("link").args(arguments).spawn().unwrap()
}

#[test]
fn a_device_that_is_taken_out_is_let_go_and_used_again_when_it_is_back() {
    let Some(link) = link() else { return };
    let device = std::env::var("COREFS_TEST_RDMA").unwrap();
    let (mut server, mut client) = (World::<Rdma>::plain(), World::<Rdma>::plain());
    let address = server.net.listen(&Rdma::local()).unwrap();
    for round in 0..3 {
        let conns: Vec<ConnId> = (0..3).map(|_| open_by_rdma(&mut client, &mut server, &address)).collect();
        let buffer = client.sink.pool.get(4096).unwrap();
        assert!(client.net.grant(conns[0], 1, buffer, 0).is_ok());
        client.send(conns[0], 1, b"in the middle", &[1; 100_000]);
        let (ours, theirs) = (client.sink.closed.len(), server.sink.closed.len());
        // Returns when nobody has the device open any more.
        let mut taken_out = rdma(&["delete", &device]);
        until_ends(&mut client, &mut server, "the device to be let go", |client, server| {
            let told = client.sink.closed.len() >= ours + 3 && server.sink.closed.len() >= theirs + 3;
            told && taken_out.try_wait().unwrap().is_some()
        });
        assert!(taken_out.wait().unwrap().success());
        let told = &client.sink.closed[ours..];
        assert!(told.iter().all(|(_, error)| error.code == ErrorCode::ConnectionLost), "{told:?}");
        let all = told.iter().chain(&server.sink.closed[theirs..]);
        assert!(all.into_iter().any(|(_, error)| error.message.contains("is gone")), "a clear reason");
        assert_eq!(client.sink.pool.in_use(), 0, "what was granted is free");
        let plain = open(&mut client, &mut server, &address);
        assert!(!client.net.is_by_queue_pair(plain) && client.net.roads().next().is_none());
        client.send(plain, 8, b"by TCP", b"");
        until(&mut client, &mut server, "the frame", |_, server| {
            server.sink.frames.iter().any(|frame| frame.body == b"by TCP")
        });
        assert!(rdma(&["add", &device, "type", "rxe", "netdev", &link]).wait().unwrap().success());
        let back = Instant::now();
        let again = open_by_rdma(&mut client, &mut server, &address);
        println!("round {round}: used again {:?} after it was put in", back.elapsed());
        client.send(again, 7, b"by the queue pair", &[7; 10_000]);
        until(&mut client, &mut server, "the frame", |_, server| {
            server.sink.frames.iter().any(|frame| frame.body == b"by the queue pair")
        });
        server.sink.frames.clear();
        let closed = client.sink.closed.len();
        client.net.close(again);
        client.net.close(plain);
        until_ends(&mut client, &mut server, "the ends", |client, server| {
            client.sink.closed.len() == closed + 2 && server.net.live() == 1
        });
    }
}

#[test]
fn a_device_that_comes_after_the_start_is_used() {
    let Some(link) = link() else { return };
    let device = std::env::var("COREFS_TEST_RDMA").unwrap();
    assert!(rdma(&["delete", &device]).wait().unwrap().success());
    let world = || World::of(|pool| Rdma::new(super::config(TcpConfig::new(identity(None))), pool).unwrap());
    let (mut server, mut client) = (world(), world());
    let address = server.net.listen(&Rdma::local()).unwrap();
    let plain = open(&mut client, &mut server, &address);
    let why = match client.net.way(plain) {
        Way::Tcp(why) => why,
        Way::Rdma(port) => panic!("by {port}, which was taken out"),
    };
    assert_eq!(why, "no RDMA port can be used here");
    assert!(rdma(&["add", &device, "type", "rxe", "netdev", &link]).wait().unwrap().success());
    let conn = open_by_rdma(&mut client, &mut server, &address);
    client.send(conn, 1, b"by the queue pair", &[7; 10_000]);
    until(&mut client, &mut server, "the frame", |_, server| server.sink.frames.len() == 1);
}
