//! Work from other threads, and executors on threads of their own.

use crate::{LONG, config, op, run, serve};
use corefs_net::{Address, Node, Remote};
use std::sync::mpsc;
use std::thread;

#[test]
fn blocking_callers_hand_their_work_over() {
    let (tell, told) = mpsc::channel::<(Remote, Address)>();
    let (stop, stopped) = mpsc::channel::<()>();
    let server = thread::spawn(move || {
        run(move || async move {
            let (node, _, address) = serve();
            tell.send((node.remote(), address)).unwrap();
            crate::until("the end", || stopped.try_recv().is_ok()).await;
            node.shutdown().await;
        });
    });
    let (remote, address) = told.recv().unwrap();
    let threads: Vec<_> = (0..4u8)
        .map(|thread| {
            let (remote, address) = (remote.clone(), address.clone());
            thread::spawn(move || {
                for n in 0..200u8 {
                    let (answer, answered) = mpsc::channel();
                    let address = address.clone();
                    let work = move |node: Node| {
                        glommio::spawn_local(async move {
                            let reply = node.call(&address, op::ECHO, &[thread, n], None, LONG).await;
                            answer.send(reply.map(|reply| reply.body.to_vec())).unwrap();
                        })
                        .detach();
                    };
                    remote.run(Box::new(work)).unwrap();
                    assert_eq!(answered.recv().unwrap().unwrap(), [thread, n]);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    stop.send(()).unwrap();
    server.join().unwrap();
}

#[test]
fn executors_on_different_threads_talk() {
    let (tell, told) = mpsc::channel::<Address>();
    let (stop, stopped) = mpsc::channel::<()>();
    let server = thread::spawn(move || {
        run(move || async move {
            let (node, service, address) = serve();
            tell.send(address).unwrap();
            crate::until("the end", || stopped.try_recv().is_ok()).await;
            assert_eq!(service.seen.get(), 8 * 300);
            node.shutdown().await;
        });
    });
    run(move || async move {
        let address = told.recv().unwrap();
        let client = Node::start(config()).unwrap();
        let tasks: Vec<_> = (0..8u8)
            .map(|task| {
                let (client, address) = (client.clone(), address.clone());
                glommio::spawn_local(async move {
                    for n in 0..300u32 {
                        let data = vec![task; n as usize * 16 + 1];
                        let reply =
                            client.call(&address, op::ECHO, &[task], Some(data.into()), LONG).await.unwrap();
                        assert!(reply.data.unwrap().iter().all(|byte| *byte == task));
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        client.shutdown().await;
        stop.send(()).unwrap();
    });
    server.join().unwrap();
}
