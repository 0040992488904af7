//! A link that goes down and comes up again, as the device itself tells it.
//!
//! `COREFS_TEST_RDMA_LINK` names the interface of the devices, which is taken down: in a guest.

use crate::world::{Tested, World, identity, open, until};
use corefs_net::rdma::{Choice, Rdma, RdmaConfig};
use corefs_net::{ConnId, TcpConfig};
use corefs_wire::ErrorCode;
use std::process::Command;
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
        until(client, server, "the end", |client, _| client.sink.closed.len() > closed);
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
        until(&mut client, &mut server, "both ends to be told", |client, server| {
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
        until(&mut client, &mut server, "the ends", |client, server| {
            client.sink.closed.len() == closed + 2 && server.net.live() == 1
        });
    }
}
