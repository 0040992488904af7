//! Memory that is opened for one reply: the data land in it, and it comes back.

use crate::world::{Here, World, pair, until};
use corefs_net::rdma::Rdma;
use corefs_net::{Buffer, Completion, ConnId, Flow, FrameSink, Peer, Placement, Transport};
use corefs_wire::Error;
use corefs_wire::frame::{Header, Kind};
use std::time::{Duration, Instant};

/// Keeps what comes, buffers included, and never says where to place anything.
#[derive(Default)]
struct Keeper {
    replies: Vec<(u64, usize, Option<Buffer>)>,
    closed: usize,
}

impl FrameSink for Keeper {
    fn place(&mut self, _: ConnId, _: &Header, _: &[u8], _: Option<Buffer>) -> Placement {
        Placement::Discard
    }

    fn frame(&mut self, _: ConnId, header: &Header, _: &[u8], data: Option<Buffer>) -> Flow {
        self.replies.push((header.request(), header.data_len(), data));
        Flow::Continue
    }

    fn opened(&mut self, _: ConnId, _: &Peer) {}

    fn closed(&mut self, _: ConnId, _: Error) {
        self.closed += 1;
    }
}

/// One turn of a client whose frames go to `keeper`.
fn turn(client: &mut World<Rdma>, keeper: &mut Keeper) {
    let mut completions: Vec<Completion> = Vec::new();
    client.net.flush(&mut client.ring);
    client.ring.turn(&mut completions).unwrap();
    completions.into_iter().for_each(|completion| client.net.complete(completion, keeper));
    client.net.advance(Instant::now(), keeper);
}

fn await_replies(client: &mut World<Rdma>, server: &mut World<Rdma>, keeper: &mut Keeper, count: usize) {
    let started = Instant::now();
    while keeper.replies.len() < count {
        turn(client, keeper);
        server.turn();
        assert!(started.elapsed() < Duration::from_secs(60), "{} of {count} replies", keeper.replies.len());
    }
}

/// Asks for `request`, with a place for `len` bytes at `offset`.
fn ask(client: &mut World<Rdma>, conn: ConnId, request: u64, offset: usize, len: usize) {
    let mut buffer = client.sink.pool.get(offset + len).unwrap();
    buffer.get_mut().unwrap().fill(0xEE);
    assert!(client.net.grant(conn, request, buffer, offset).is_ok());
    client.net.send(conn, Kind::Request, 1, request, 0, b"", None).unwrap();
}

#[test]
fn replies_land_where_they_were_wanted() {
    if !super::is_there() {
        return;
    }
    let (mut server, mut client, conn) = pair::<Here<Rdma>>();
    let mut keeper = Keeper::default();
    // (place, reply): as long as the place, shorter, tiny, none at all, longer than the place.
    let cases = [
        (4096, 4096),
        (1 << 20, 1 << 20),
        (100_000, 60_001),
        (4096, 3),
        (4096, 0),
        (4096, 4097),
        (4096, 300_000),
    ];
    for round in 0..20u64 {
        for (n, (place, _)) in cases.into_iter().enumerate() {
            ask(&mut client, conn, round * 10 + n as u64, 17, place);
            turn(&mut client, &mut keeper);
        }
        let asked = |server: &World<Rdma>| server.sink.frames.len() == cases.len();
        let started = Instant::now();
        while !asked(&server) {
            turn(&mut client, &mut keeper);
            server.turn();
            assert!(started.elapsed() < Duration::from_secs(60), "the requests");
        }
        while let Some(frame) = server.sink.frames.pop_front() {
            let request = frame.header.request();
            let len = cases[(request % 10) as usize].1;
            let data = vec![request as u8; len];
            // From registered memory, or from elsewhere.
            let payload = match round % 2 {
                0 => data.into(),
                _ => {
                    let mut buffer = server.sink.pool.get(len.max(1)).unwrap();
                    buffer.set_len(len);
                    buffer.get_mut().unwrap().copy_from_slice(&data);
                    buffer.into()
                }
            };
            server.net.send(frame.conn, Kind::Reply, 1, request, 0, b"", Some(payload)).unwrap();
        }
        await_replies(&mut client, &mut server, &mut keeper, cases.len());
        for (n, (request, data_len, data)) in keeper.replies.drain(..).enumerate() {
            let (place, len) = cases[n];
            assert_eq!((request, data_len), (round * 10 + n as u64, len));
            let Some(data) = data else {
                assert!(len > place, "only data that don't fit go nowhere");
                continue;
            };
            assert!(len <= place && data.len() == 17 + place);
            assert!(data[17..17 + len].iter().all(|byte| *byte == request as u8));
            assert!(data[..17].iter().chain(&data[17 + len..]).all(|byte| *byte == 0xEE), "beside the data");
        }
        assert_eq!(client.sink.pool.in_use(), 0);
    }
    let counters = client.net.counters(conn).unwrap();
    assert!(counters.direct > counters.copied, "{counters:?}");
}

#[test]
fn as_many_as_were_agreed_on_are_open_and_no_more() {
    if !super::is_there() {
        return;
    }
    let (mut server, mut client, conn) = pair::<Here<Rdma>>();
    let mut keeper = Keeper::default();
    let mut open = 0;
    let refused = loop {
        let buffer = client.sink.pool.get(4096).unwrap();
        match client.net.grant(conn, open, buffer, 0) {
            Ok(()) => {
                client.net.send(conn, Kind::Request, 1, open, 0, b"", None).unwrap();
                open += 1;
            }
            Err(buffer) => break buffer,
        }
        // Each takes places in the queue until the device has seen it.
        for _ in 0..200 {
            turn(&mut client, &mut keeper);
            server.turn();
        }
    };
    assert_eq!((open, refused.len()), (64, 4096));
    drop(refused);
    while let Some(frame) = server.sink.frames.pop_front() {
        server
            .net
            .send(frame.conn, Kind::Reply, 1, frame.header.request(), 0, b"", Some(vec![1; 4096].into()))
            .unwrap();
    }
    await_replies(&mut client, &mut server, &mut keeper, 64);
    keeper.replies.clear();
    assert_eq!(client.sink.pool.in_use(), 0);
}

#[test]
fn what_is_taken_back_is_free_when_the_device_says_so() {
    if !super::is_there() {
        return;
    }
    let (mut server, mut client, conn) = pair::<Here<Rdma>>();
    let mut keeper = Keeper::default();
    // Not sent: nobody has the key.
    let buffer = client.sink.pool.get(4096).unwrap();
    assert!(client.net.grant(conn, 1, buffer, 0).is_ok());
    client.net.revoke(conn, 1);
    assert_eq!(client.sink.pool.in_use(), 4096, "not before the device has confirmed it");
    let started = Instant::now();
    while client.sink.pool.in_use() > 0 {
        turn(&mut client, &mut keeper);
        server.turn();
        assert!(started.elapsed() < Duration::from_secs(60), "the buffer");
    }
    // Sent, taken back from a peer that doesn't say that it won't write, and answered all the same: the key opens nothing any more.
    ask(&mut client, conn, 2, 0, 100_000);
    let asked = Instant::now();
    while server.sink.frames.is_empty() {
        turn(&mut client, &mut keeper);
        server.turn();
        assert!(asked.elapsed() < Duration::from_secs(60), "the request");
    }
    client.net.revoke(conn, 2);
    while client.sink.pool.in_use() > 0 {
        turn(&mut client, &mut keeper);
    }
    let mut guard = client.sink.pool.get(131_072).unwrap();
    guard.get_mut().unwrap().fill(0x77);
    let accepted = server.sink.frames[0].conn;
    server.net.send(accepted, Kind::Reply, 1, 2, 0, b"", Some(vec![1; 100_000].into())).unwrap();
    while keeper.closed == 0 || server.sink.closed.is_empty() {
        turn(&mut client, &mut keeper);
        server.turn();
        assert!(asked.elapsed() < Duration::from_secs(60), "the end of the connection");
    }
    assert!(
        guard.iter().all(|byte| *byte == 0x77),
        "a late write landed in memory that was handed out again"
    );
}

#[test]
fn what_is_taken_back_of_a_peer_that_answers_late_harms_neither_memory_nor_connection() {
    if !super::is_there() {
        return;
    }
    let (mut server, mut client, conn) = pair::<Here<Rdma>>();
    let mut keeper = Keeper::default();
    let started = Instant::now();
    let turns = |client: &mut World<Rdma>, server: &mut World<Rdma>, keeper: &mut Keeper| {
        turn(client, keeper);
        server.turn();
        assert!(started.elapsed() < Duration::from_secs(60), "{} bytes in use", client.sink.pool.in_use());
    };
    // As many as may be open, again and again, as of reads of a disk that hangs: each time all of their memory comes back, though nothing is answered.
    for round in 0..3u64 {
        let requests = round * 100..round * 100 + 8;
        for request in requests.clone() {
            ask(&mut client, conn, request, 0, 100_000);
        }
        while server.sink.frames.len() < 8 * (round as usize + 1) {
            turns(&mut client, &mut server, &mut keeper);
        }
        requests.for_each(|request| client.net.revoke(conn, request));
        assert!(client.sink.pool.in_use() > 0, "not before the peer has said that it won't write");
        while client.sink.pool.in_use() > 0 {
            turns(&mut client, &mut server, &mut keeper);
        }
    }
    assert!(started.elapsed() < Duration::from_secs(30) && keeper.closed == 0);
    // The disk wakes up: what is answered now lands nowhere, and the connection goes on.
    let mut guards: Vec<Buffer> = std::iter::from_fn(|| client.sink.pool.get(131_072)).collect();
    guards.iter_mut().for_each(|guard| guard.get_mut().unwrap().fill(0x77));
    while let Some(frame) = server.sink.frames.pop_front() {
        let request = frame.header.request();
        server.net.send(frame.conn, Kind::Reply, 1, request, 0, b"", Some(vec![1; 100_000].into())).unwrap();
    }
    while keeper.replies.len() < 24 {
        turns(&mut client, &mut server, &mut keeper);
    }
    assert!(guards.iter().all(|guard| guard.iter().all(|byte| *byte == 0x77)), "a late write landed");
    drop(guards);
    keeper.replies.clear();
    ask(&mut client, conn, 999, 0, 100_000);
    while server.sink.frames.is_empty() {
        turns(&mut client, &mut server, &mut keeper);
    }
    let frame = server.sink.frames.pop_front().unwrap();
    server.net.send(frame.conn, Kind::Reply, 1, 999, 0, b"", Some(vec![2; 100_000].into())).unwrap();
    while keeper.replies.is_empty() {
        turns(&mut client, &mut server, &mut keeper);
    }
    let (request, len, data) = keeper.replies.pop().unwrap();
    assert!(request == 999 && data.is_some_and(|data| data[..len] == [2; 100_000]));
    assert_eq!((keeper.closed, server.sink.closed.len()), (0, 0));
}

/// Says that data belong in memory that the device doesn't know.
struct Stranger(corefs_net::Pool, Vec<Error>);

impl FrameSink for Stranger {
    fn place(&mut self, _: ConnId, header: &Header, _: &[u8], _: Option<Buffer>) -> Placement {
        Placement::Into { buffer: self.0.get(header.data_len()).unwrap(), offset: 0 }
    }

    fn frame(&mut self, _: ConnId, _: &Header, _: &[u8], _: Option<Buffer>) -> Flow {
        Flow::Continue
    }

    fn opened(&mut self, _: ConnId, _: &Peer) {}

    fn closed(&mut self, _: ConnId, error: Error) {
        self.1.push(error);
    }
}

#[test]
fn a_place_that_the_device_does_not_reach_is_an_error() {
    if !super::is_there() {
        return;
    }
    let (mut server, mut client, _) = pair::<Here<Rdma>>();
    let accepted = server.sink.opened[0].0;
    server.net.send(accepted, Kind::Request, 1, 1, 0, b"", Some(vec![1; 100_000].into())).unwrap();
    let mut stranger = Stranger(corefs_net::Pool::new(1 << 20).unwrap(), Vec::new());
    let started = Instant::now();
    while stranger.1.is_empty() {
        server.turn();
        let mut completions: Vec<Completion> = Vec::new();
        client.net.flush(&mut client.ring);
        client.ring.turn(&mut completions).unwrap();
        completions.into_iter().for_each(|completion| client.net.complete(completion, &mut stranger));
        client.net.advance(Instant::now(), &mut stranger);
        assert!(started.elapsed() < Duration::from_secs(60), "the end of the connection");
    }
    assert_eq!(stranger.1[0].code, corefs_wire::ErrorCode::InvalidArgument);
}

#[test]
fn what_a_connection_carries_comes_with_its_message() {
    if !super::is_there() {
        return;
    }
    let (mut server, mut client, conn) = pair::<Here<Rdma>>();
    let accepted = server.sink.opened[0].0;
    let carried = client.net.carries(conn);
    assert!((4096..8192).contains(&carried), "a block, and not two: {carried}");
    // As the reply to a read of so many blocks: the checksums are its body.
    let mut direct_after = |len: usize| {
        let data = vec![3; len].into();
        server.net.send(accepted, Kind::Reply, 1, 1, 0, &[5; 512], Some(data)).unwrap();
        until(&mut client, &mut server, "the reply", |client, _| client.sink.frames.pop_front().is_some());
        client.net.counters(conn).unwrap().direct
    };
    assert_eq!(direct_after(carried), 0, "it had to be read");
    assert_eq!(direct_after(8192), 8192, "what is longer has to be, so it is granted a place");
}

#[test]
fn what_came_before_the_end_is_announced_before_it() {
    if !super::is_there() {
        return;
    }
    let mut whole = 0;
    for _ in 0..10 {
        let (mut server, mut client, conn) = pair::<Here<Rdma>>();
        let mut keeper = Keeper::default();
        for request in 0..8 {
            ask(&mut client, conn, request, 0, 4096);
        }
        let started = Instant::now();
        while server.sink.frames.len() < 8 {
            turn(&mut client, &mut keeper);
            server.turn();
            assert!(started.elapsed() < Duration::from_secs(60), "the requests");
        }
        let accepted = server.sink.frames[0].conn;
        while let Some(frame) = server.sink.frames.pop_front() {
            let request = frame.header.request();
            server.net.send(accepted, Kind::Reply, 1, request, 0, b"", Some(vec![9; 4096].into())).unwrap();
        }
        // The server ends as a shard does: when its peer's device has everything.
        while !server.net.is_sent(accepted) {
            server.turn();
            assert!(started.elapsed() < Duration::from_secs(60), "the acknowledgments");
        }
        drop(server);
        while keeper.closed == 0 {
            turn(&mut client, &mut keeper);
            assert!(started.elapsed() < Duration::from_secs(60), "the end");
        }
        whole += usize::from(keeper.replies.len() == 8);
        assert!(
            keeper.replies.iter().all(|(.., data)| data.as_ref().is_some_and(|data| data[..] == [9; 4096]))
        );
    }
    // The device has 20 ms for it, and this one is threads of a kernel that may have other work.
    assert!(whole >= 7, "{whole} of 10");
}

#[test]
fn the_end_of_a_connection_gives_everything_back() {
    if !super::is_there() {
        return;
    }
    let (server, mut client, conn) = pair::<Here<Rdma>>();
    for request in 0..10 {
        ask(&mut client, conn, request, 0, 4096);
    }
    assert_eq!(client.sink.pool.in_use(), 10 * 4096);
    drop(server);
    client.until_ends("the end", |client| client.sink.closed.len() == 1);
    assert_eq!(client.sink.pool.in_use(), 0);
    let buffer = client.sink.pool.get(10).unwrap();
    assert!(client.net.grant(conn, 99, buffer, 0).is_err(), "a connection that is gone takes nothing");
}

#[test]
fn a_connection_by_tcp_gives_a_grant_back() {
    let mut client = World::<corefs_net::Tcp>::plain();
    let mut server = World::<corefs_net::Tcp>::plain();
    let address = Transport::listen(&mut server.net, &"127.0.0.1:0".parse().unwrap()).unwrap();
    let conn = crate::world::open(&mut client, &mut server, &address);
    let buffer = client.sink.pool.get(100).unwrap();
    assert_eq!(client.net.grant(conn, 1, buffer, 0).unwrap_err().len(), 100);
    until(&mut client, &mut server, "nothing", |_, _| true);
}
