//! Back-pressure: waiting for buffers, pausing, resuming.

use crate::world::{Policy, World, pair, until};
use corefs_net::Flow;
use corefs_wire::ErrorCode;
use corefs_wire::frame::Kind;

#[test]
fn without_a_buffer_the_peer_waits_and_nothing_is_lost() {
    let (mut server, mut client, conn) = pair();
    server.sink.policy = Policy::Wait;
    for n in 0..20 {
        client.send(conn, n, &[n as u8], &vec![n as u8; 300_000]);
    }
    until(&mut client, &mut server, "the question", |_, server| server.sink.asked == 1);
    for _ in 0..200 {
        client.turn();
        server.turn();
    }
    assert_eq!(
        (server.sink.asked, server.sink.frames.len()),
        (1, 0),
        "it is not asked again before it resumes"
    );
    assert!(client.tcp.queued(conn) > 0, "the rest backs up at the sender");
    // Asked again, there is still none; then there is.
    let accepted = server.sink.opened[0].0;
    server.tcp.resume(accepted);
    assert!(server.tcp.has_work());
    until(&mut client, &mut server, "the second question", |_, server| server.sink.asked == 2);
    server.sink.policy = Policy::Place;
    server.tcp.resume(accepted);
    until(&mut client, &mut server, "all frames", |_, server| server.sink.frames.len() == 20);
    for (n, frame) in server.sink.frames.iter().enumerate() {
        assert!(
            frame.header.request() == n as u64 && frame.data.as_ref().unwrap().iter().all(|b| *b == n as u8)
        );
    }
}

#[test]
fn a_paused_connection_announces_exactly_one_frame_each_time() {
    let (mut server, mut client, conn) = pair();
    server.sink.flow = Flow::Pause;
    for n in 0..10 {
        client.send(conn, n, b"", &[1; 10]);
    }
    let accepted = server.sink.opened[0].0;
    for n in 0..10 {
        until(&mut client, &mut server, "one frame", |_, server| server.sink.frames.len() == n + 1);
        for _ in 0..20 {
            client.turn();
            server.turn();
        }
        assert_eq!(server.sink.frames.len(), n + 1);
        server.tcp.resume(accepted);
    }
}

#[test]
fn pausing_from_outside_holds_too() {
    let (mut server, mut client, conn) = pair();
    let accepted = server.sink.opened[0].0;
    server.tcp.pause(accepted);
    client.send(conn, 1, b"", b"");
    for _ in 0..200 {
        client.turn();
        server.turn();
    }
    assert!(server.sink.frames.is_empty());
    server.tcp.resume(accepted);
    until(&mut client, &mut server, "the frame", |_, server| server.sink.frames.len() == 1);
}

#[test]
fn a_waiting_connection_can_be_closed() {
    let (mut server, mut client, conn) = pair();
    server.sink.policy = Policy::Wait;
    client.send(conn, 1, b"", &vec![1; 1 << 20]);
    until(&mut client, &mut server, "the question", |_, server| server.sink.asked == 1);
    let accepted = server.sink.opened[0].0;
    server.tcp.close(accepted);
    until(&mut client, &mut server, "the end", |client, server| {
        !client.sink.closed.is_empty() && !server.sink.closed.is_empty()
    });
}

#[test]
fn the_queue_of_a_connection_is_bounded() {
    let (_server, mut client, conn) = pair();
    let mut queued = 0;
    let error = loop {
        match client.tcp.send(conn, Kind::Request, 1, 1, 0, b"", Some(vec![0; 1 << 20].into())) {
            Ok(()) => queued += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((error.code, queued), (ErrorCode::Overloaded, 63));
    assert!(client.tcp.is_open(conn));
}

#[test]
fn a_buffer_goes_back_when_its_connection_ends_in_the_middle() {
    let (mut server, mut client, conn) = pair();
    client.send(conn, 1, b"", &vec![1; 1 << 20]);
    until(&mut client, &mut server, "the placement", |_, server| server.sink.pool.in_use() > 0);
    drop::<World>(client);
    server.until("the end", |server| server.sink.closed.len() == 1);
    assert!(server.sink.pool.in_use() == 0 || !server.sink.frames.is_empty());
}
