//! Calls and how they end.

use crate::{LONG, RECEIVE_BLOCK, config, local, op, run, serve, until};
use corefs_net::{Address, Node, NodeConfig};
use corefs_wire::ErrorCode;
use corefs_wire::control::{Message, process};
use std::time::Duration;

#[test]
fn a_call_is_answered() {
    run(|| async {
        let (_server, _, address) = serve();
        let client = Node::start(config()).unwrap();
        let reply = client.call(&address, op::ECHO, b"body", Some(vec![7; 5000].into()), LONG).await.unwrap();
        assert_eq!((&*reply.body, reply.data_len), (b"body".as_slice(), 5000));
        assert_eq!(reply.data.unwrap().as_slice(), [7; 5000]);
        let slept = client.call(&address, op::SLEEP, b"", None, LONG).await.unwrap();
        assert_eq!((&*slept.body, slept.data.is_none()), (b"slept".as_slice(), true));
    });
}

#[test]
fn a_refusal_arrives_as_it_was_given() {
    run(|| async {
        let (_server, _, address) = serve();
        let client = Node::start(config()).unwrap();
        let error = client.call(&address, op::REFUSE, b"", None, LONG).await.unwrap_err();
        assert_eq!((error.code, error.expected, error.actual), (ErrorCode::NoSpace, 1, 2));
        assert_eq!(error.message, "nothing left");
        let error = client.call(&address, op::DROP, b"", None, LONG).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Internal);
        let silent = Node::start(config()).unwrap();
        let address = silent.listen(&local()).unwrap();
        let error = client.call(&address, op::ECHO, b"", None, LONG).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::UnknownOperation);
    });
}

#[test]
fn a_typed_call_checks_its_reply() {
    run(|| async {
        let (_server, _, address) = serve();
        let client = Node::start(config()).unwrap();
        let ask = process::GetProcessT::default();
        // The oddity answers an operation that it doesn't know with five bytes that are no message.
        let error = client.ask(&address, &ask, LONG).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::BadFrame);
        assert!(process::GetProcessT::decode(&ask.encode()).is_ok());
    });
}

#[test]
fn without_an_answer_a_call_times_out_and_the_late_reply_harms_nobody() {
    run(|| async {
        let (_server, service, address) = serve();
        let client = Node::start(config()).unwrap();
        let error = client.call(&address, op::HOLD, b"", None, Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::TimedOut);
        assert!(error.message.contains(&address.to_string()), "{error}");
        let (_, responder) = service.held.borrow_mut().pop().unwrap();
        responder.ok(b"late", Some(vec![1; 100_000].into()));
        let reply = client.call(&address, op::ECHO, b"in time", None, LONG).await.unwrap();
        assert_eq!(&*reply.body, b"in time");
        assert!(client.pool().in_use() <= RECEIVE_BLOCK, "what came late is thrown away");
    });
}

#[test]
fn nobody_there_is_unreachable_and_a_new_try_succeeds() {
    run(|| async {
        let (server, _, address) = serve();
        server.shutdown().await;
        let client = Node::start(config()).unwrap();
        for _ in 0..2 {
            let error = client.call(&address, op::ECHO, b"", None, LONG).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::Unreachable);
        }
        let again = Node::start(config()).unwrap();
        again.listen(&address).unwrap();
        let error = client.call(&address, op::ECHO, b"", None, LONG).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::UnknownOperation);
    });
}

#[test]
fn strangers_are_told_why_they_may_not_call() {
    run(|| async {
        let (_server, _, address) = serve();
        let mut stranger = config();
        stranger.identity.secret = None;
        let error =
            Node::start(stranger).unwrap().call(&address, op::ECHO, b"", None, LONG).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::AuthenticationFailed);
    });
}

#[test]
fn calls_share_one_connection_and_idle_ones_are_closed() {
    run(|| async {
        let (_server, service, address) = serve();
        let client = Node::start(NodeConfig { idle: Duration::from_millis(200), ..config() }).unwrap();
        let calls = (0..50u8).map(|n| {
            let (client, address) = (client.clone(), address.clone());
            glommio::spawn_local(async move {
                let reply = client.call(&address, op::ECHO, &[n], None, LONG).await.unwrap();
                assert_eq!(*reply.body, [n]);
            })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await;
        }
        let conn = client.connection(&address).await.unwrap();
        assert_eq!((service.seen.get(), client.counters(conn).unwrap().frames_out), (50, 50));
        until("the idle connection to close", || client.counters(conn).is_none()).await;
        assert!(client.call(&address, op::ECHO, b"", None, LONG).await.is_ok(), "it is opened again");
    });
}

#[test]
fn a_connection_that_awaits_a_reply_is_not_idle() {
    run(|| async {
        let (_server, service, address) = serve();
        let client = Node::start(NodeConfig { idle: Duration::from_millis(50), ..config() }).unwrap();
        let releaser = glommio::spawn_local(async move {
            until("the request", || service.seen.get() == 1).await;
            glommio::timer::sleep(Duration::from_millis(1500)).await;
            let (_, responder) = service.held.borrow_mut().pop().unwrap();
            responder.ok(b"at last", None);
        });
        let reply = client.call(&address, op::HOLD, b"", None, LONG).await.unwrap();
        assert_eq!(&*reply.body, b"at last");
        releaser.await;
    });
}

#[test]
fn over_unix_sockets_too() {
    run(|| async {
        let directory = tempfile::tempdir().unwrap();
        let address = Address::Unix(directory.path().join("kv.sock"));
        let (server, _, _) = serve();
        server.listen(&address).unwrap();
        let client = Node::start(config()).unwrap();
        let reply =
            client.call(&address, op::ECHO, b"body", Some(vec![1; 1 << 20].into()), LONG).await.unwrap();
        assert_eq!(reply.data_len, 1 << 20);
    });
}
