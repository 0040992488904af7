//! Many connections that share receives: the memory of each, and that nothing is lost where more is promised than is there.

use super::is_there;
use crate::world::{Tested, World, until, until_ends};
use corefs_net::rdma::{Rdma, RdmaConfig};
use corefs_net::{ConnId, TcpConfig};
use corefs_wire::frame::Kind;

/// More than have receives of their own; and if all share, more than there are receives for every credit of.
const MANY: usize = 80;

fn world(shared_from: usize, arena_bytes: usize) -> World<Rdma> {
    World::of(|pool| {
        let config = RdmaConfig {
            queue_pairs_max: MANY,
            shared_from,
            arena_bytes,
            ..super::config(TcpConfig::new(crate::world::identity(None)))
        };
        Rdma::new(config, pool).unwrap()
    })
}

fn open_all(client: &mut World<Rdma>, server: &mut World<Rdma>) -> Vec<ConnId> {
    let address = server.net.listen(&Rdma::local()).unwrap();
    let conns: Vec<ConnId> = (0..MANY).map(|_| client.net.connect(&address).unwrap()).collect();
    until(client, server, "all to open", |client, server| {
        client.sink.opened.len() == MANY && server.sink.opened.len() == MANY
    });
    assert_eq!((client.net.by_queue_pair(), server.net.by_queue_pair()), (MANY, MANY));
    conns
}

#[test]
fn many_connections_take_less_memory_each_and_lose_nothing() {
    if !is_there() {
        return;
    }
    const OWN: usize = 16;
    let (mut server, mut client) = (world(OWN, 32 << 20), world(OWN, 32 << 20));
    let conns = open_all(&mut client, &mut server);
    let kib = |bytes: usize, of: usize| bytes as f64 / of as f64 / 1024.0;
    let all = server.net.messages_in_use();
    let own = OWN * (512 << 10);
    let each = kib(all - own, MANY - OWN);
    println!(
        "{MANY} connections: 512 KiB of pinned memory for each of the first {OWN}, {each:.0} KiB for each of the others; {:.0} KiB on average",
        kib(all, MANY)
    );
    assert!(each < 128.0, "{all} bytes");
    // All speak at once, each as much as it may: more messages than there are receives. Some come in messages, some are fetched.
    const EACH: usize = 12;
    for n in 0..EACH {
        for (at, conn) in conns.iter().enumerate() {
            client.send(
                *conn,
                n as u64,
                &[at as u8; 200],
                &vec![n as u8; if n == 5 { 10_000 } else { 1000 }],
            );
        }
    }
    let mut next = vec![0; MANY];
    until(&mut client, &mut server, "all frames", |_, server| {
        while let Some(frame) = server.sink.frames.pop_front() {
            let (n, at) = (frame.header.request(), frame.body[0] as usize);
            assert_eq!(next[at], n, "frames of a connection come in order");
            next[at] += 1;
            let data = frame.data.unwrap();
            assert!(frame.body.len() == 200 && data.iter().all(|byte| u64::from(*byte) == n));
            server.net.send(frame.conn, Kind::Reply, 1, n, 0, &frame.body, Some(data.into())).unwrap();
        }
        next.iter().all(|count| *count == EACH as u64)
    });
    until(&mut client, &mut server, "all replies", |client, _| client.sink.frames.len() == MANY * EACH);
    assert!(server.sink.closed.is_empty() && client.sink.closed.is_empty());
    // A silent connection that is closed gives back what it had.
    for conn in &conns {
        client.net.close(*conn);
    }
    until_ends(&mut client, &mut server, "the ends", |client, server| {
        client.sink.closed.len() == MANY && server.sink.closed.len() == MANY
    });
    println!("after they were closed: {:.0} KiB in all", kib(server.net.messages_in_use(), 1));
    assert!(server.net.messages_in_use() <= 4 << 20, "what is left are shared receives");
}

#[test]
fn whoever_is_paused_holds_up_nobody_else() {
    if !is_there() {
        return;
    }
    let (mut server, mut client) = (world(0, 32 << 20), world(0, 32 << 20));
    let conns = open_all(&mut client, &mut server);
    // All but the last are held back, with everything that they may send on its way: more than there are receives.
    server.sink.flow = corefs_net::Flow::Pause;
    let (last, rest) = conns.split_last().unwrap();
    for n in 0..20 {
        for conn in rest {
            client.send(*conn, n, &[1; 4000], b"");
        }
    }
    until(&mut client, &mut server, "a frame of each", |_, server| server.sink.frames.len() == rest.len());
    // The others that came wait behind it.
    for _ in 0..100 {
        client.turn();
        server.turn();
    }
    server.sink.flow = corefs_net::Flow::Continue;
    let held: Vec<ConnId> = server.sink.frames.iter().map(|frame| frame.conn).collect();
    assert_eq!(held.len(), rest.len(), "each announces one frame");
    for n in 0..50 {
        client.send(*last, n, b"last", b"");
        until(&mut client, &mut server, "the frame of a neighbour", |_, server| {
            server.sink.frames.iter().any(|frame| frame.body == b"last" && frame.header.request() == n)
        });
    }
    held.iter().for_each(|conn| server.net.resume(*conn));
    until(&mut client, &mut server, "everything", |_, server| {
        server.sink.frames.len() == 50 + 20 * rest.len()
    });
}

#[test]
fn connections_that_end_in_the_middle_leave_the_others_their_receives() {
    if !is_there() {
        return;
    }
    let mut server = world(0, 8 << 20);
    let address = server.net.listen(&Rdma::local()).unwrap();
    let mut steady = world(0, 4 << 20);
    let conn = steady.net.connect(&address).unwrap();
    until(&mut steady, &mut server, "a connection", |steady, _| steady.net.is_open(conn));
    // More ends than the receives that may go with them let one queue bear.
    for round in 0..40u64 {
        let mut other = world(0, 4 << 20);
        let doomed = other.net.connect(&address).unwrap();
        until(&mut other, &mut server, "a connection", |other, _| other.net.is_open(doomed));
        for n in 0..8 {
            other.send(doomed, n, &[2; 3000], b"");
        }
        other.turn();
        let ended = server.sink.closed.len();
        drop(other);
        steady.send(conn, round, b"steady", &[3; 2000]);
        until_ends(&mut steady, &mut server, "the frame, and the end of the other", |_, server| {
            server.sink.closed.len() > ended
                && server
                    .sink
                    .frames
                    .iter()
                    .any(|frame| frame.body == b"steady" && frame.header.request() == round)
        });
        server.sink.frames.clear();
    }
    assert_eq!(server.net.by_queue_pair(), 1);
}
