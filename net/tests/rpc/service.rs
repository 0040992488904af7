//! The serving side under pressure.

use crate::{LONG, config, op, run, serve, until};
use corefs_net::{Node, NodeConfig};
use corefs_wire::frame::Kind;

#[test]
fn requests_wait_for_buffers_and_all_are_served() {
    run(|| async {
        let (_server, service, address) = serve();
        let client = Node::start(NodeConfig { pool_bytes: 64 << 20, ..config() }).unwrap();
        // Four times what the server's arena holds: it takes what fits and leaves the rest at the sender.
        let calls: Vec<_> = (0..16u8)
            .map(|n| {
                let (client, address) = (client.clone(), address.clone());
                glommio::spawn_local(async move {
                    let data = vec![n; 1 << 20];
                    let reply = client.call(&address, op::HOLD, &[n], Some(data.into()), LONG).await.unwrap();
                    assert_eq!(*reply.body, [n]);
                })
            })
            .collect();
        until("the arena to be full", || service.held.borrow().len() == 4).await;
        for _ in 0..20 {
            glommio::timer::sleep(std::time::Duration::from_millis(1)).await;
            assert_eq!(service.held.borrow().len(), 4, "there is no room for more");
        }
        let mut answered = 0;
        while answered < 16 {
            until("the next", || !service.held.borrow().is_empty()).await;
            let (request, responder) = service.held.borrow_mut().remove(0);
            let data = request.data.unwrap();
            assert!(data.len() == 1 << 20 && data.iter().all(|byte| *byte == request.body[0]));
            drop(data);
            responder.ok(&request.body, None);
            answered += 1;
        }
        for call in calls {
            call.await;
        }
    });
}

#[test]
fn the_service_knows_who_asks() {
    run(|| async {
        let (_server, service, address) = serve();
        let mut config = config();
        config.identity.id = 99;
        let client = Node::start(config).unwrap();
        let conn = client.connection(&address).await.unwrap();
        let expected = client.expect(conn, None).unwrap();
        client.post(conn, Kind::Request, op::HOLD, expected.request_id(), b"", None).unwrap();
        until("the request", || service.seen.get() == 1).await;
        let (request, responder) = service.held.borrow_mut().pop().unwrap();
        assert!(request.peer.id == 99 && request.peer.authenticated);
        responder.ok(b"", None);
        expected.await.unwrap();
        assert_eq!(client.peer(conn).unwrap().id, 7);
    });
}

#[test]
fn a_reply_that_is_too_long_becomes_an_error() {
    run(|| async {
        let (_server, service, address) = serve();
        let client = Node::start(config()).unwrap();
        let conn = client.connection(&address).await.unwrap();
        let expected = client.expect(conn, None).unwrap();
        client.post(conn, Kind::Request, op::HOLD, expected.request_id(), b"", None).unwrap();
        until("the request", || service.seen.get() == 1).await;
        let (_, responder) = service.held.borrow_mut().pop().unwrap();
        responder.ok(b"", Some(vec![0; (1 << 20) + 1].into()));
        assert_eq!(expected.await.unwrap_err().code, corefs_wire::ErrorCode::InvalidArgument);
    });
}
