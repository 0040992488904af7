//! Peers whose process stands still, while their adapter and their kernel go on answering for them.

use crate::world::{Here, World, pair, until};
use corefs_net::rdma::Rdma;
use corefs_net::{ConnId, Payload};
use corefs_wire::frame::Kind;
use std::time::Duration;

const REPLY: usize = 1 << 20;

/// Sends so many replies, of which as many as fit are in the pool and the others elsewhere.
fn send_replies(server: &mut World<Rdma>, conn: ConnId, count: u64) {
    for request in 0..count {
        let data = match server.sink.pool.get(REPLY) {
            Some(buffer) => Payload::from(buffer),
            None => vec![0; REPLY].into(),
        };
        server.net.send(conn, Kind::Reply, 1, request, 0, b"", Some(data)).unwrap();
    }
}

/// Looks as often as it takes to see that nothing was given: 10 s.
fn until_given_up(server: &mut World<Rdma>) {
    for _ in 0..100 {
        server.later += Duration::from_millis(100);
        server.turn();
        assert!(server.sink.closed.is_empty(), "there is time yet");
    }
    for _ in 0..20 {
        server.later += Duration::from_millis(100);
        server.turn();
    }
    assert_eq!(server.in_use(), 0, "its memory is free at once");
    // What it is told has its time, too.
    server.later += Duration::from_secs(6);
    server.until_ends("the end", |server| !server.sink.closed.is_empty());
}

#[test]
fn a_peer_that_takes_no_replies_is_given_up() {
    if !super::is_there() {
        return;
    }
    let (mut server, mut client, conn) = pair::<Here<Rdma>>();
    let accepted = server.sink.opened.last().unwrap().0;
    send_replies(&mut server, accepted, 32);
    assert!(server.in_use() > 0);
    until_given_up(&mut server);
    client.until_ends("the other end", |client| !client.net.is_open(conn) && !client.sink.closed.is_empty());
}

/// Small ones, which go with their messages: it gives no credits.
#[test]
fn a_peer_that_gives_no_credits_is_given_up() {
    if !super::is_there() {
        return;
    }
    let (mut server, _client, _) = pair::<Here<Rdma>>();
    let accepted = server.sink.opened.last().unwrap().0;
    for request in 0..100 {
        server.net.send(accepted, Kind::Reply, 1, request, 0, &[1; 100], None).unwrap();
    }
    until_given_up(&mut server);
}

#[test]
fn a_peer_that_takes_replies_slowly_is_not_given_up() {
    const REPLIES: u64 = 12;
    if !super::is_there() {
        return;
    }
    let (mut server, mut client, _) = pair::<Here<Rdma>>();
    let accepted = server.sink.opened.last().unwrap().0;
    send_replies(&mut server, accepted, REPLIES);
    for taken in 0..REPLIES as usize {
        until(&mut client, &mut server, "a reply", |client, _| client.sink.frames.len() > taken);
        // It says that it has read it, and stops for 9 s.
        client.turn();
        for _ in 0..90 {
            server.later += Duration::from_millis(100);
            server.turn();
        }
        assert!(server.sink.closed.is_empty(), "after {taken} replies");
    }
    assert!(server.net.is_by_queue_pair(accepted));
}

/// It has nothing to take, and says nothing for long.
#[test]
fn a_peer_that_owes_nothing_is_not_given_up() {
    if !super::is_there() {
        return;
    }
    let (mut server, mut client, conn) = pair::<Here<Rdma>>();
    client.send(conn, 1, b"", b"");
    until(&mut client, &mut server, "the request", |_, server| !server.sink.frames.is_empty());
    for _ in 0..300 {
        server.later += Duration::from_millis(100);
        server.turn();
    }
    assert!(server.sink.closed.is_empty() && server.net.is_open(server.sink.opened[0].0));
}
