//! Shutting down.

use crate::{LONG, config, op, run, serve, until};
use corefs_net::Node;
use corefs_wire::ErrorCode;

#[test]
fn what_is_in_progress_is_answered_and_the_rest_refused() {
    run(|| async {
        let (server, service, address) = serve();
        let client = Node::start(config()).unwrap();
        let held = {
            let (client, address) = (client.clone(), address.clone());
            glommio::spawn_local(async move { client.call(&address, op::HOLD, b"", None, LONG).await })
        };
        until("the request", || service.seen.get() == 1).await;
        let stopping = {
            let server = server.clone();
            glommio::spawn_local(async move { server.shutdown().await })
        };
        let refused = loop {
            match client.call(&address, op::ECHO, b"", None, LONG).await {
                Ok(_) => continue,
                Err(error) => break error,
            }
        };
        assert_eq!(refused.code, ErrorCode::ShuttingDown);
        let (_, responder) = service.held.borrow_mut().pop().unwrap();
        responder.ok(b"just in time", None);
        assert_eq!(&*held.await.unwrap().body, b"just in time");
        stopping.await;
        server.shutdown().await;
        let error = client.call(&address, op::ECHO, b"", None, LONG).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unreachable);
        let error = server.call(&address, op::ECHO, b"", None, LONG).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::ShuttingDown);
        assert!(server.remote().run(Box::new(|_| ())).is_err_and(|e| e.code == ErrorCode::ShuttingDown));
    });
}

#[test]
fn calls_of_our_own_end_with_the_node() {
    run(|| async {
        let (_server, service, address) = serve();
        let client = Node::start(config()).unwrap();
        let call = {
            let client = client.clone();
            glommio::spawn_local(async move { client.call(&address, op::HOLD, b"", None, LONG).await })
        };
        let sleep = {
            let client = client.clone();
            glommio::spawn_local(async move { client.sleep(LONG * 100).await })
        };
        until("the request", || service.seen.get() == 1).await;
        client.shutdown().await;
        assert_eq!(call.await.unwrap_err().code, ErrorCode::ConnectionLost);
        sleep.await;
    });
}

#[test]
fn a_node_with_nothing_to_do_sleeps() {
    run(|| async {
        let cpu = || {
            // SAFETY: fills a structure of ours.
            let usage = unsafe {
                let mut usage: libc::rusage = std::mem::zeroed();
                libc::getrusage(libc::RUSAGE_THREAD, &mut usage);
                usage
            };
            let ms = |time: libc::timeval| time.tv_sec * 1000 + time.tv_usec / 1000;
            ms(usage.ru_utime) + ms(usage.ru_stime)
        };
        let (_server, _, address) = serve();
        let client = Node::start(config()).unwrap();
        client.call(&address, op::ECHO, b"", None, LONG).await.unwrap();
        let before = cpu();
        glommio::timer::sleep(std::time::Duration::from_secs(1)).await;
        let used = cpu() - before;
        assert!(used < 300, "{used} ms of one idle second");
        println!("an idle second of two nodes cost {used} ms");
    });
}
