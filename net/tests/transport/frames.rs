//! Frames get through, whole, in order, to where they belong.

use crate::world::{Here, Policy, Scene, World, open, pair, until};
use corefs_net::{Address, Payload, Tcp, Transport};
use corefs_wire::ErrorCode;
use corefs_wire::frame::Kind;
use corefs_wire::limits::{FRAME_BODY_MAX, FRAME_DATA_MAX};

pub fn frames_of_all_sizes_arrive_in_order_and_are_answered<S: Scene>() {
    let (mut server, mut client, conn) = pair::<S>();
    let sizes = [
        (0, 0),
        (1, 1),
        (100, 4096),
        (0, 4096),
        (5000, 0),
        (40_000, 70_000),
        (FRAME_BODY_MAX, FRAME_DATA_MAX),
    ];
    for (n, (body, data)) in sizes.into_iter().enumerate() {
        client.send(conn, n as u64, &vec![n as u8; body], &vec![!(n as u8); data]);
    }
    until(&mut client, &mut server, "all frames", |_, server| server.sink.frames.len() == sizes.len());
    for (n, (body, data)) in sizes.into_iter().enumerate() {
        let frame = server.sink.frames.pop_front().unwrap();
        assert_eq!(
            (frame.header.request(), frame.header.op(), frame.header.kind()),
            (n as u64, 9, Kind::Request)
        );
        assert!(
            frame.body == vec![n as u8; body] && frame.data.unwrap_or_default() == vec![!(n as u8); data]
        );
        server.net.send(frame.conn, Kind::Reply, 9, n as u64, 107, b"no", None).unwrap();
    }
    until(&mut client, &mut server, "all replies", |client, _| client.sink.frames.len() == sizes.len());
    assert!(
        client.sink.frames.iter().all(|f| f.header.status() == 107 && f.body == b"no" && f.data.is_none())
    );
    assert_eq!(server.in_use(), 0);
}

#[test]
fn a_turn_leaves_in_one_write() {
    let (mut server, mut client, conn) = pair::<Here<Tcp>>();
    let before = client.net.counters(conn).unwrap();
    for n in 0..100 {
        client.send(conn, n, b"body", b"data");
    }
    until(&mut client, &mut server, "all frames", |_, server| server.sink.frames.len() == 100);
    let after = client.net.counters(conn).unwrap();
    assert_eq!((after.sends - before.sends, after.frames_out - before.frames_out), (1, 100));
    assert_eq!(after.bytes_out - before.bytes_out, 100 * 48);
}

pub fn payloads_are_sent_from_where_they_are_and_given_back<S: Scene>() {
    let (mut server, mut client, conn) = pair::<S>();
    let mut buffer = client.sink.pool.get(8192).unwrap();
    buffer.get_mut().unwrap()[100..200].fill(7);
    for _ in 0..3 {
        let payload = Payload::new(buffer.clone(), 100..200);
        client.net.send(conn, Kind::Request, 1, 1, 0, b"", Some(payload)).unwrap();
    }
    drop(buffer);
    assert_eq!(client.sink.pool.in_use(), 8192);
    until(&mut client, &mut server, "the frames", |client, server| {
        server.sink.frames.len() == 3 && client.sink.pool.in_use() == 0
    });
    assert!(server.sink.frames.iter().all(|frame| frame.data.as_deref() == Some(&[7; 100])));
}

pub fn large_data_are_not_copied<S: Scene>() {
    let (mut server, mut client, conn) = pair::<S>();
    client.send(conn, 1, b"", &vec![1; FRAME_DATA_MAX]);
    client.send(conn, 2, b"", &[2; 100]);
    until(&mut client, &mut server, "both frames", |_, server| server.sink.frames.len() == 2);
    let counters = server.net.counters(server.sink.opened[0].0).unwrap();
    assert_eq!(counters.copied + counters.direct, FRAME_DATA_MAX as u64 + 100);
    assert!(counters.copied <= (16 << 10) + 100, "{counters:?}: only what fits the receive buffer is copied");
}

pub fn data_that_nobody_wants_are_read_and_forgotten<S: Scene>() {
    let (mut server, mut client, conn) = pair::<S>();
    server.sink.policy = Policy::Discard;
    for n in 0..10 {
        client.send(conn, n, b"x", &vec![1; 100_000]);
    }
    until(&mut client, &mut server, "all frames", |_, server| server.sink.frames.len() == 10);
    assert!(server.sink.frames.iter().all(|frame| frame.data.is_none() && frame.body == b"x"));
}

pub fn the_same_over_unix_sockets<S: Scene>() {
    let directory = tempfile::tempdir().unwrap();
    let address = Address::Unix(directory.path().join("socket"));
    let (mut server, mut client) = (World::<S::Server>::plain(), World::<S::Client>::plain());
    server.net.listen(&address).unwrap();
    let again = World::<S::Server>::plain().net.listen(&address).unwrap_err();
    assert_eq!(again.code, ErrorCode::AddressInUse);
    let conn = open(&mut client, &mut server, &address);
    assert_eq!(server.sink.opened[0].1.address, address);
    client.send(conn, 1, b"body", &vec![5; FRAME_DATA_MAX]);
    until(&mut client, &mut server, "the frame", |_, server| server.sink.frames.len() == 1);
    assert_eq!(server.sink.frames[0].data.as_ref().unwrap().len(), FRAME_DATA_MAX);
    drop(server);
    assert!(!directory.path().join("socket").exists(), "the socket's file goes with its listener");
}

pub fn a_socket_file_left_by_a_dead_process_is_taken_over_but_nothing_else_is<S: Scene>() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    World::<S::Server>::plain().net.listen(&Address::Unix(path.clone())).unwrap();
    std::fs::write(&path, "precious").unwrap();
    assert!(World::<S::Server>::plain().net.listen(&Address::Unix(path.clone())).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

pub fn what_is_too_long_is_refused_before_it_is_queued<S: Scene>() {
    let (_server, mut client, conn) = pair::<S>();
    let long = vec![0; FRAME_DATA_MAX + 1];
    let error = client.net.send(conn, Kind::Request, 1, 1, 0, b"", Some(long.into())).unwrap_err();
    assert_eq!((error.code, client.net.queued(conn)), (ErrorCode::InvalidArgument, 0));
}
