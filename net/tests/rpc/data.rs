//! The pieces that the data path uses: expected replies, their places, hooks of the turn.

use crate::{LONG, RECEIVE_BLOCK, config, op, run, serve, until};
use corefs_net::Node;
use corefs_wire::ErrorCode;
use corefs_wire::frame::Kind;
use corefs_wire::limits::CONNECTION_REQUESTS_MAX;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

#[test]
fn data_land_where_they_were_expected() {
    run(|| async {
        let (_server, _, address) = serve();
        let client = Node::start(config()).unwrap();
        let conn = client.connection(&address).await.unwrap();
        for len in [1, 4096, 300_000] {
            let mut buffer = client.pool().get(len + 20).unwrap();
            buffer.get_mut().unwrap().fill(0xEE);
            let address = buffer.as_ptr();
            let expected = client.expect(conn, Some((buffer, 10))).unwrap();
            let data = vec![5; len];
            client
                .post(conn, Kind::Request, op::ECHO, expected.request_id(), b"", Some(data.into()))
                .unwrap();
            let reply = expected.await.unwrap();
            let buffer = reply.data.unwrap();
            assert_eq!((buffer.as_ptr(), reply.data_len), (address, len));
            assert!(buffer[10..10 + len].iter().all(|byte| *byte == 5));
            assert!(buffer[..10].iter().chain(&buffer[10 + len..]).all(|byte| *byte == 0xEE));
        }
        assert!(client.pool().in_use() <= RECEIVE_BLOCK);
    });
}

#[test]
fn data_that_do_not_fit_their_place_touch_nothing() {
    run(|| async {
        let (_server, _, address) = serve();
        let client = Node::start(config()).unwrap();
        let conn = client.connection(&address).await.unwrap();
        let expected = client.expect(conn, Some((client.pool().get(100).unwrap(), 1))).unwrap();
        let data = vec![5; 100];
        client.post(conn, Kind::Request, op::ECHO, expected.request_id(), b"", Some(data.into())).unwrap();
        assert_eq!(expected.await.unwrap_err().code, ErrorCode::BadFrame);
        assert!(client.call(&address, op::ECHO, b"", None, LONG).await.is_ok(), "the connection lives");
    });
}

/// Memory that it would wait for is that of the replies behind it.
#[test]
fn a_reply_without_a_place_does_not_wait_for_memory_and_holds_up_nobody() {
    run(|| async {
        let (_server, _, address) = serve();
        let client = Node::start(config()).unwrap();
        let conn = client.connection(&address).await.unwrap();
        let without = client.expect(conn, None).unwrap().within(LONG);
        let all: Vec<_> = std::iter::from_fn(|| client.pool().get(4096)).collect();
        let len = corefs_net::tcp::LENT_MAX + 1;
        let data = vec![5; len];
        client.post(conn, Kind::Request, op::ECHO, without.request_id(), b"", Some(data.into())).unwrap();
        assert_eq!(without.await.unwrap_err().code, ErrorCode::Overloaded);
        let behind = client.call(&address, op::ECHO, b"behind", None, LONG).await.unwrap();
        assert_eq!(&*behind.body, b"behind");
        drop(all);
        let data = vec![6; len];
        let again = client.call(&address, op::ECHO, b"", Some(data.into()), LONG).await.unwrap();
        assert_eq!(again.data.unwrap()[..len], vec![6; len]);
    });
}

#[test]
fn a_dropped_expectation_discards_its_late_reply() {
    run(|| async {
        let (_server, service, address) = serve();
        let client = Node::start(config()).unwrap();
        let conn = client.connection(&address).await.unwrap();
        let expected = client.expect(conn, Some((client.pool().get(4096).unwrap(), 0))).unwrap();
        let request = expected.request_id();
        client.post(conn, Kind::Request, op::HOLD, request, b"", None).unwrap();
        until("the request", || service.seen.get() == 1).await;
        drop(expected);
        assert_eq!(client.pool().in_use(), 0, "its buffer is free at once");
        // Whoever has the slot now doesn't get the other's reply.
        let other = client.expect(conn, None).unwrap().within(LONG);
        assert_eq!(other.request_id() as u32, request as u32);
        client.post(conn, Kind::Request, op::ECHO, other.request_id(), b"mine", None).unwrap();
        let (_, responder) = service.held.borrow_mut().pop().unwrap();
        responder.ok(b"yours", Some(vec![1; 4096].into()));
        assert_eq!(&*other.await.unwrap().body, b"mine");
    });
}

#[test]
fn expectations_end_in_time_or_with_their_connection() {
    run(|| async {
        let (_server, service, address) = serve();
        let client = Node::start(config()).unwrap();
        let conn = client.connection(&address).await.unwrap();
        let late = client.expect(conn, None).unwrap().within(Duration::from_millis(30));
        let lost: Vec<_> = (0..10).map(|_| client.expect(conn, None).unwrap()).collect();
        for expected in &lost {
            client.post(conn, Kind::Request, op::HOLD, expected.request_id(), b"", None).unwrap();
        }
        assert_eq!(late.await.unwrap_err().code, ErrorCode::TimedOut);
        until("the requests", || service.seen.get() == 10).await;
        let accepted = service.held.borrow()[0].0.conn;
        service.node.borrow().as_ref().unwrap().close(accepted);
        for expected in lost {
            assert_eq!(expected.await.unwrap_err().code, ErrorCode::ConnectionLost);
        }
        assert!(client.expect(conn, None).is_err_and(|error| error.code == ErrorCode::ConnectionLost));
        // Replies to a connection that is gone go nowhere.
        service.held.borrow_mut().drain(..).for_each(|(_, responder)| responder.ok(b"", None));
        assert!(client.call(&address, op::ECHO, b"", None, LONG).await.is_ok());
    });
}

#[test]
fn what_a_hook_posts_leaves_in_the_same_turn() {
    run(|| async {
        let (_server, _, address) = serve();
        let client = Node::start(config()).unwrap();
        let conn = client.connection(&address).await.unwrap();
        let gathered: Rc<RefCell<Vec<u64>>> = Rc::default();
        let queue = gathered.clone();
        client.on_turn_end(Rc::new(move |node| {
            for request in queue.borrow_mut().drain(..) {
                node.post(conn, Kind::Request, op::ECHO, request, b"", None).unwrap();
            }
        }));
        let before = client.counters(conn).unwrap();
        let expected: Vec<_> = (0..32).map(|_| client.expect(conn, None).unwrap()).collect();
        gathered.borrow_mut().extend(expected.iter().map(|expected| expected.request_id()));
        client.wake();
        for expected in expected {
            expected.await.unwrap();
        }
        let after = client.counters(conn).unwrap();
        assert_eq!((after.frames_out - before.frames_out, after.sends - before.sends), (32, 1));
    });
}

#[test]
fn ticks_come_while_something_is_awaited() {
    run(|| async {
        let (_server, _, address) = serve();
        let client = Node::start(config()).unwrap();
        let ticks = Rc::new(Cell::new(0));
        let count = ticks.clone();
        client.on_tick(Rc::new(move |_, _| count.set(count.get() + 1)));
        let conn = client.connection(&address).await.unwrap();
        let expected = client.expect(conn, None).unwrap();
        client.post(conn, Kind::Request, op::HOLD, expected.request_id(), b"", None).unwrap();
        until("ticks", || ticks.get() >= 20).await;
    });
}

#[test]
fn requests_in_flight_are_bounded_at_both_ends() {
    run(|| async {
        let (_server, service, address) = serve();
        let client = Node::start(config()).unwrap();
        let conn = client.connection(&address).await.unwrap();
        let mut all: Vec<_> =
            (0..CONNECTION_REQUESTS_MAX).map(|_| client.expect(conn, None).unwrap()).collect();
        let refused = client.expect(conn, None);
        assert!(refused.is_err_and(|error| error.code == ErrorCode::Overloaded));
        for expected in &all {
            client.post(conn, Kind::Request, op::HOLD, expected.request_id(), b"", None).unwrap();
        }
        // A client that keeps no count itself is held back by the server: these are read only when others are answered.
        all.truncate(CONNECTION_REQUESTS_MAX - 10);
        let more: Vec<_> = (0..10).map(|_| client.expect(conn, None).unwrap()).collect();
        for expected in &more {
            client.post(conn, Kind::Request, op::ECHO, expected.request_id(), b"", None).unwrap();
        }
        until("the bound", || service.seen.get() >= CONNECTION_REQUESTS_MAX).await;
        glommio::timer::sleep(Duration::from_millis(50)).await;
        assert_eq!(service.seen.get(), CONNECTION_REQUESTS_MAX);
        let held = std::mem::take(&mut *service.held.borrow_mut());
        held.into_iter().for_each(|(_, responder)| responder.ok(b"", None));
        for expected in more {
            expected.await.unwrap();
        }
        assert_eq!(service.seen.get(), CONNECTION_REQUESTS_MAX + 10);
    });
}
