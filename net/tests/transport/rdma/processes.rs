//! Two processes: this one serves, and a child of it asks, until it is killed.

use super::{is_there, next_devices};
use crate::world::{OFFSET, World, open_alone};
use corefs_net::Address;
use corefs_net::rdma::Rdma;
use corefs_wire::frame::Kind;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ADDRESS: &str = "COREFS_TEST_RDMA_ADDRESS";

/// This program again, running the test `name` alone; it tells of failures only.
fn child(name: &str, address: &Address) -> Child {
    let program = std::env::current_exe().unwrap();
    let arguments = ["--ignored", "--exact", "--nocapture", name];
    Command::new(program)
        .args(arguments)
        .env(ADDRESS, address.to_string())
        .env("COREFS_TEST_RDMA", next_devices().join(" "))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn serve() -> (World<Rdma>, Address) {
    let mut server = World::<Rdma>::plain();
    let address = server.net.listen(&"127.0.0.1:0".parse().unwrap()).unwrap();
    (server, address)
}

/// Answers every request with its own data; returns how many.
fn answer(server: &mut World<Rdma>) -> usize {
    server.turn();
    let count = server.sink.frames.len();
    while let Some(frame) = server.sink.frames.pop_front() {
        let data = frame.data.map(Into::into);
        // A peer that was killed needs no answer.
        let _ = server.net.send(frame.conn, Kind::Reply, 9, frame.header.request(), 0, &frame.body, data);
    }
    count
}

#[test]
#[ignore = "the child of the_same_between_two_processes"]
fn asks_and_checks() {
    let address: Address = std::env::var(ADDRESS).unwrap().parse().unwrap();
    let mut client = World::<Rdma>::plain();
    let conn = open_alone(&mut client, &address);
    assert!(client.net.is_by_queue_pair(conn));
    for round in 0..30u64 {
        let len = [10, 5000, 200_000][round as usize % 3];
        for n in 0..10 {
            client.send(conn, round * 10 + n, &[n as u8; 50], &vec![round as u8; len]);
        }
        client.until("the replies", |client| client.sink.frames.len() == 10);
        for (n, frame) in client.sink.frames.drain(..).enumerate() {
            assert_eq!((frame.header.request(), frame.body), (round * 10 + n as u64, vec![n as u8; 50]));
            assert!(frame.data.unwrap() == vec![round as u8; len]);
        }
    }
    client.net.close(conn);
    client.until_ends("the end", |client| client.sink.closed.len() == 1);
}

#[test]
fn the_same_between_two_processes() {
    if !is_there() {
        return;
    }
    let (mut server, address) = serve();
    let mut child = child("rdma::processes::asks_and_checks", &address);
    let started = Instant::now();
    while server.sink.closed.is_empty() {
        answer(&mut server);
        std::thread::yield_now();
        assert!(started.elapsed() < Duration::from_secs(120), "the child isn't done");
    }
    assert!(child.wait().unwrap().success());
    assert_eq!(server.sink.pool.in_use(), 0);
}

#[test]
#[ignore = "the child of a_peer_that_is_killed_is_missed_at_once"]
fn asks_for_ever() {
    let address: Address = std::env::var(ADDRESS).unwrap().parse().unwrap();
    let mut client = World::<Rdma>::plain();
    let conn = open_alone(&mut client, &address);
    for round in 0.. {
        for n in 0..4 {
            let buffer = client.sink.pool.get(OFFSET + 100_000).unwrap();
            let _ = client.net.grant(conn, round * 4 + n, buffer, OFFSET);
            client.send(conn, round * 4 + n, b"", &[round as u8; 100_000]);
        }
        client.until("the replies", |client| client.sink.frames.len() == 4);
        client.sink.frames.clear();
    }
}

#[test]
fn a_peer_that_is_killed_is_missed_at_once() {
    if !is_there() {
        return;
    }
    let (mut server, address) = serve();
    for round in 0..5 {
        let mut child = child("rdma::processes::asks_for_ever", &address);
        let started = Instant::now();
        let mut answered = 0;
        while answered < 40 + round * 7 {
            answered += answer(&mut server);
            assert!(started.elapsed() < Duration::from_secs(120), "{answered} answers");
        }
        // In the middle of it.
        child.kill().unwrap();
        let killed = Instant::now();
        while server.sink.closed.len() <= round {
            answer(&mut server);
            assert!(killed.elapsed() < Duration::from_secs(60), "nobody noticed");
        }
        child.wait().unwrap();
        println!("round {round}: noticed after {:?}, {answered} requests", killed.elapsed());
        assert_eq!((server.sink.pool.in_use(), server.net.live()), (0, 1));
    }
}
