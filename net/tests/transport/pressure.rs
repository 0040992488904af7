//! Back-pressure: waiting for buffers, pausing, resuming.

use crate::world::{Policy, Scene, World, pair, until, until_ends};
use corefs_net::{Flow, Transport};
use corefs_wire::ErrorCode;
use corefs_wire::frame::Kind;

pub fn without_a_buffer_the_peer_waits_and_nothing_is_lost<S: Scene>() {
    let (mut server, mut client, conn) = pair::<S>();
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
    assert!(client.net.queued(conn) > 0, "the rest backs up at the sender");
    // Asked again, there is still none; then there is.
    let accepted = server.sink.opened[0].0;
    server.net.resume(accepted);
    assert!(server.net.has_work());
    until(&mut client, &mut server, "the second question", |_, server| server.sink.asked == 2);
    server.sink.policy = Policy::Place;
    server.net.resume(accepted);
    until(&mut client, &mut server, "all frames", |_, server| server.sink.frames.len() == 20);
    for (n, frame) in server.sink.frames.iter().enumerate() {
        assert!(
            frame.header.request() == n as u64 && frame.data.as_ref().unwrap().iter().all(|b| *b == n as u8)
        );
    }
}

pub fn a_paused_connection_announces_exactly_one_frame_each_time<S: Scene>() {
    let (mut server, mut client, conn) = pair::<S>();
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
        server.net.resume(accepted);
    }
}

pub fn pausing_from_outside_holds_too<S: Scene>() {
    let (mut server, mut client, conn) = pair::<S>();
    let accepted = server.sink.opened[0].0;
    server.net.pause(accepted);
    client.send(conn, 1, b"", b"");
    for _ in 0..200 {
        client.turn();
        server.turn();
    }
    assert!(server.sink.frames.is_empty());
    server.net.resume(accepted);
    until(&mut client, &mut server, "the frame", |_, server| server.sink.frames.len() == 1);
}

pub fn a_waiting_connection_can_be_closed<S: Scene>() {
    let (mut server, mut client, conn) = pair::<S>();
    server.sink.policy = Policy::Wait;
    client.send(conn, 1, b"", &vec![1; 1 << 20]);
    until(&mut client, &mut server, "the question", |_, server| server.sink.asked == 1);
    let accepted = server.sink.opened[0].0;
    server.net.close(accepted);
    until_ends(&mut client, &mut server, "the end", |client, server| {
        !client.sink.closed.is_empty() && !server.sink.closed.is_empty()
    });
}

pub fn the_queue_of_a_connection_is_bounded<S: Scene>() {
    let (_server, mut client, conn) = pair::<S>();
    let mut queued = 0;
    let error = loop {
        match client.net.send(conn, Kind::Request, 1, 1, 0, b"", Some(vec![0; 1 << 20].into())) {
            Ok(()) => queued += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((error.code, queued), (ErrorCode::Overloaded, 63));
    assert!(client.net.is_open(conn));
}

pub fn a_buffer_goes_back_when_its_connection_ends_in_the_middle<S: Scene>() {
    let (mut server, mut client, conn) = pair::<S>();
    client.send(conn, 1, b"", &vec![1; 1 << 20]);
    until(&mut client, &mut server, "the placement", |_, server| server.in_use() > 0);
    drop::<World<S::Client>>(client);
    server.until_ends("the end", |server| server.sink.closed.len() == 1);
    assert!(server.in_use() == 0 || !server.sink.frames.is_empty());
}
