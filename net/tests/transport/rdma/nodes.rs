//! Endpoints whose calls go by RDMA: replies in the caller's buffer, requests that nobody awaits any more, and executors that sleep in between.

use super::is_there;
use crate::world::identity;
use corefs_net::rpc::Expected;
use corefs_net::transport::Choice;
use corefs_net::{Address, ConnId, Node, NodeConfig, Request, Responder, Service, executor};
use corefs_wire::frame::Kind;
use glommio::Placement;
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);
const LEN: usize = 8192;

/// Answers with what came, at once or when it is told to.
#[derive(Default)]
struct Echo {
    holds: bool,
    held: RefCell<Vec<(Request, Responder)>>,
}

fn answer(request: Request, responder: Responder) {
    responder.ok(&request.body, request.data.map(Into::into));
}

impl Service for Echo {
    fn request(&self, request: Request, responder: Responder) {
        match self.holds {
            true => self.held.borrow_mut().push((request, responder)),
            false => answer(request, responder),
        }
    }
}

fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F + Send + 'static) {
    let executor = executor::builder(Placement::Unbound).spawn(|| async move { test().await });
    executor.unwrap().join().unwrap();
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < LONG, "waited in vain for: {what}");
        glommio::timer::sleep(Duration::from_millis(1)).await;
    }
}

fn node() -> Node {
    Node::start(NodeConfig {
        transport: Choice::Rdma,
        pool_bytes: 8 << 20,
        ..NodeConfig::new(identity(None))
    })
    .unwrap()
}

fn serve(holds: bool) -> (Node, Rc<Echo>, Address) {
    let (node, service) = (node(), Rc::new(Echo { holds, ..Echo::default() }));
    node.serve(service.clone());
    let address = node.listen(&"127.0.0.1:0".parse().unwrap()).unwrap();
    (node, service, address)
}

/// Sends `LEN` bytes of `byte`, to come back at `offset` of a buffer of the pool.
fn ask(node: &Node, conn: ConnId, byte: u8, offset: usize) -> Expected {
    let mut buffer = node.pool().get(offset + LEN).unwrap();
    buffer.get_mut().unwrap().fill(0xEE);
    let expected = node.expect(conn, Some((buffer, offset))).unwrap();
    node.post(conn, Kind::Request, 1, expected.request_id(), &[byte], Some(vec![byte; LEN].into())).unwrap();
    expected
}

#[test]
fn calls_find_their_buffers_and_sleepers_wake() {
    if !is_there() {
        return;
    }
    run(|| async {
        let (server, _, address) = serve(false);
        let client = node();
        let conn = client.connection(&address).await.unwrap();
        for round in 0..60u8 {
            let all: Vec<Expected> =
                (0..4).map(|n| ask(&client, conn, round.wrapping_mul(4) + n, 100)).collect();
            for (n, expected) in all.into_iter().enumerate() {
                let reply = expected.within(LONG).await.unwrap();
                let (byte, data) = (round.wrapping_mul(4) + n as u8, reply.data.unwrap());
                assert_eq!((reply.body[0], reply.data_len), (byte, LEN));
                assert!(
                    data[100..100 + LEN].iter().all(|found| *found == byte) && data[..100] == [0xEE; 100]
                );
            }
            // Both sleep, so that the next request has to wake them.
            if round % 2 == 0 {
                glommio::timer::sleep(Duration::from_millis(20)).await;
            }
        }
        let counters = client.counters(conn).unwrap();
        assert!(counters.direct >= 240 * LEN as u64, "{counters:?}: data went straight into their buffers");
        assert_eq!(client.pool().in_use(), 0);
        client.shutdown().await;
        server.shutdown().await;
    });
}

#[test]
fn a_buffer_that_nobody_awaits_comes_back_though_nothing_is_answered() {
    if !is_there() {
        return;
    }
    run(|| async {
        let (server, service, address) = serve(true);
        let client = node();
        let conn = client.connection(&address).await.unwrap();
        for round in 0..10 {
            let expected = ask(&client, conn, 7, 0);
            match round % 2 {
                // The peer knows of the buffer, and the time for the answer is over or somebody lost interest.
                0 => drop(expected.within(Duration::from_millis(50)).await.unwrap_err()),
                _ => {
                    until("the request", || !service.held.borrow().is_empty()).await;
                    drop(expected);
                }
            }
            until("the buffer", || client.pool().in_use() == 0).await;
            // A late answer lands nowhere, and disturbs nobody.
            let mut guard = client.pool().get(LEN).unwrap();
            guard.get_mut().unwrap().fill(0x77);
            until("the request", || !service.held.borrow().is_empty()).await;
            service.held.borrow_mut().drain(..).for_each(|(request, responder)| answer(request, responder));
            let expected = ask(&client, conn, 9, 0);
            until("the next request", || !service.held.borrow().is_empty()).await;
            service.held.borrow_mut().drain(..).for_each(|(request, responder)| answer(request, responder));
            let reply = expected.within(LONG).await.unwrap();
            assert_eq!((reply.body[0], &reply.data.unwrap()[..LEN]), (9, &[9; LEN][..]));
            assert!(guard.iter().all(|byte| *byte == 0x77), "a late write landed");
        }
        // Or at the connection's end.
        drop(ask(&client, conn, 7, 0));
        until("the request", || !service.held.borrow().is_empty()).await;
        client.close(conn);
        until("the buffer", || client.pool().in_use() == 0).await;
        service.held.borrow_mut().clear();
        client.shutdown().await;
        server.shutdown().await;
    });
}

#[test]
fn what_was_granted_for_a_request_that_is_not_sent_comes_back() {
    if !is_there() {
        return;
    }
    run(|| async {
        let (server, _, address) = serve(false);
        let client = node();
        let conn = client.connection(&address).await.unwrap();
        let too_long = vec![0; corefs_wire::limits::FRAME_BODY_MAX + 1];
        // More often than grants may be open.
        for _ in 0..200 {
            let expected = client.expect(conn, Some((client.pool().get(LEN).unwrap(), 0))).unwrap();
            client.post(conn, Kind::Request, 1, expected.request_id(), &too_long, None).unwrap_err();
            drop(expected);
            until("the buffer", || client.pool().in_use() == 0).await;
        }
        let reply = ask(&client, conn, 5, 0).within(LONG).await.unwrap();
        assert_eq!(reply.data_len, LEN);
        client.shutdown().await;
        server.shutdown().await;
    });
}
