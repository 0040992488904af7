//! Executors that rest between completions of a device: no wake-up is lost however the moments fall, and those that poll need no kernel.

use crate::world::{Tested, World, open_alone};
use corefs_net::costs::Costs;
use corefs_net::rdma::Rdma;
use corefs_net::ring::RingCounters;
use corefs_net::{Address, ConnId};
use corefs_wire::frame::Kind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);
const ROUNDS: u64 = 300;

/// What one end's thread has done, after the first exchange.
struct Spent {
    ring: RingCounters,
    costs: Costs,
}

/// Turns a world until `done`, sleeping in between.
fn rest_until(world: &mut World<Rdma>, mut done: impl FnMut(&mut World<Rdma>) -> bool) {
    while !done(world) {
        world.rest();
    }
}

fn serve(mut server: World<Rdma>, over: &AtomicBool) -> Spent {
    let mut first = None;
    while !over.load(Ordering::SeqCst) {
        server.rest();
        while let Some(frame) = server.sink.frames.pop_front() {
            let data = frame.data.map(Into::into);
            server.net.send(frame.conn, Kind::Reply, 9, frame.header.request(), 0, b"", data).unwrap();
            let spent = (server.ring.counters(), server.net.costs());
            first.get_or_insert(spent);
        }
    }
    since(first.unwrap(), &server)
}

fn since((ring, costs): (RingCounters, Costs), world: &World<Rdma>) -> Spent {
    let (now, spent) = (world.ring.counters(), world.net.costs());
    Spent {
        ring: RingCounters { enters: now.enters - ring.enters, parks: now.parks - ring.parks, ..now },
        costs: Costs {
            rdma_arms: spent.rdma_arms - costs.rdma_arms,
            rdma_wakes: spent.rdma_wakes - costs.rdma_wakes,
            ..spent
        },
    }
}

fn exchange(client: &mut World<Rdma>, conn: ConnId, request: u64) {
    client.send(conn, request, b"", &[request as u8; 100]);
    rest_until(client, |client| !client.sink.frames.is_empty());
    let reply = client.sink.frames.pop_front().unwrap();
    assert_eq!((reply.header.request(), reply.data.unwrap()), (request, vec![request as u8; 100]));
}

/// Requests and replies, one at a time, between two threads that poll for so long before they sleep; `pause` is what the client waits after a reply.
fn talk(busy_poll: Duration, pause: impl Fn(u64) -> Duration) -> [Spent; 2] {
    let (tell, told) = mpsc::channel::<Address>();
    let over = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&over);
    let (alarmed, alarm) = mpsc::channel();
    let server = std::thread::spawn(move || {
        let mut server = World::<Rdma>::plain();
        server.ring.set_busy_poll(busy_poll);
        tell.send(server.net.listen(&Rdma::local()).unwrap()).unwrap();
        alarmed.send(server.ring.alarm()).unwrap();
        serve(server, &seen)
    });
    let mut client = World::<Rdma>::plain();
    client.ring.set_busy_poll(busy_poll);
    let conn = open_alone(&mut client, &told.recv().unwrap());
    assert!(client.net.is_by_queue_pair(conn));
    exchange(&mut client, conn, 0);
    let before = (client.ring.counters(), client.net.costs());
    for request in 1..ROUNDS {
        let pause = pause(request);
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        exchange(&mut client, conn, request);
    }
    let client = since(before, &client);
    over.store(true, Ordering::SeqCst);
    alarm.recv().unwrap().raise();
    [client, server.join().unwrap()]
}

#[test]
fn sleepers_are_woken_by_completions_whenever_they_come() {
    if !super::is_there() {
        return;
    }
    let both = talk(Duration::ZERO, |_| Duration::ZERO);
    assert!(both.iter().all(|spent| spent.ring.parks > ROUNDS / 4 && spent.costs.rdma_wakes > ROUNDS / 4));
    // The end of the polling, and so the arming, falls into all moments of the exchange.
    for poll in [20, 100, 300, 1000, 3000] {
        talk(Duration::from_micros(poll), |n| Duration::from_micros(n % 7 * poll / 3));
    }
}

#[test]
fn who_polls_neither_arms_nor_enters_the_kernel() {
    if !super::is_there() {
        return;
    }
    let both = talk(LONG, |_| Duration::ZERO);
    for (name, spent) in ["client", "server"].iter().zip(both) {
        let each = |count: u64| count as f64 / ROUNDS as f64;
        let (enters, arms) = (each(spent.ring.enters), each(spent.costs.rdma_arms));
        println!("{name}, polling: an exchange is {enters:.3} system calls of the ring, {arms:.3} arms");
        assert!(enters < 0.1 && arms == 0.0, "{name}: {enters} system calls and {arms} arms an exchange");
    }
}
