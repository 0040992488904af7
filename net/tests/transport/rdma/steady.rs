//! What a 4 KiB read costs between two transports, in counts: time means nothing on an emulated device.

use crate::world::{Here, World, pair};
use corefs_net::heap::allocations;
use corefs_net::rdma::Rdma;
use corefs_net::{Buffer, Completion, ConnId, Flow, FrameSink, Peer, Placement};
use corefs_wire::Error;
use corefs_wire::frame::{Header, Kind};
use std::time::{Duration, Instant};

const BATCH: usize = 16;
const LEN: usize = 4096;

/// Takes frames without asking for memory: who asked for what, and the buffers that came back.
struct Quiet {
    asked: Vec<(ConnId, u64)>,
    back: Vec<Buffer>,
}

impl FrameSink for Quiet {
    fn place(&mut self, _: ConnId, _: &Header, _: &[u8], _: Option<Buffer>) -> Placement {
        panic!("everything has a place")
    }

    fn frame(&mut self, conn: ConnId, header: &Header, _: &[u8], data: Option<Buffer>) -> Flow {
        match header.kind() {
            Kind::Request => self.asked.push((conn, header.request())),
            _ => self.back.extend(data),
        }
        Flow::Continue
    }

    fn opened(&mut self, _: ConnId, _: &Peer) {}

    fn closed(&mut self, _: ConnId, error: Error) {
        panic!("{error}")
    }
}

struct Side {
    world: World<Rdma>,
    sink: Quiet,
    completions: Vec<Completion>,
}

impl Side {
    fn new(world: World<Rdma>) -> Self {
        let sink = Quiet { asked: Vec::with_capacity(4 * BATCH), back: Vec::with_capacity(4 * BATCH) };
        Self { world, sink, completions: Vec::with_capacity(64) }
    }

    fn turn(&mut self) {
        let World { ring, net, .. } = &mut self.world;
        net.flush(ring);
        ring.turn(&mut self.completions).unwrap();
        self.completions.drain(..).for_each(|completion| net.complete(completion, &mut self.sink));
        net.advance(Instant::now(), &mut self.sink);
    }
}

/// One batch of reads: asked for one by one, answered in one turn, each into its own place.
fn batch(client: &mut Side, server: &mut Side, conn: ConnId, first: u64) {
    for request in first..first + BATCH as u64 {
        let buffer = client.world.sink.pool.get(LEN).unwrap();
        assert!(client.world.net.grant(conn, request, buffer, 0).is_ok());
        client.world.net.send(conn, Kind::Request, 1, request, 0, &[1; 48], None).unwrap();
    }
    let started = Instant::now();
    while client.sink.back.len() < BATCH {
        client.turn();
        server.turn();
        while let Some((conn, request)) = server.sink.asked.pop() {
            let buffer = server.world.sink.pool.get(LEN).unwrap();
            server.world.net.send(conn, Kind::Reply, 1, request, 0, &[1; 16], Some(buffer.into())).unwrap();
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{} replies", client.sink.back.len());
    }
    client.sink.back.clear();
}

#[test]
fn reads_ask_for_no_memory_and_share_doorbells() {
    if !super::is_there() {
        return;
    }
    let (server, client, conn) = pair::<Here<Rdma>>();
    let accepted = server.sink.opened[0].0;
    let (mut server, mut client) = (Side::new(server), Side::new(client));
    const WARM: u64 = 40;
    const ROUNDS: u64 = 60;
    for round in 0..WARM {
        batch(&mut client, &mut server, conn, round * BATCH as u64);
    }
    let verbs = |side: &Side, conn| side.world.net.verbs(conn).unwrap();
    let before = (verbs(&client, conn), verbs(&server, accepted), allocations());
    let copied = client.world.net.counters(conn).unwrap().copied;
    for round in WARM..WARM + ROUNDS {
        batch(&mut client, &mut server, conn, round * BATCH as u64);
    }
    let reads = (ROUNDS * BATCH as u64) as f64;
    let asked = allocations() - before.2;
    for (name, now, then) in
        [("client", verbs(&client, conn), before.0), ("server", verbs(&server, accepted), before.1)]
    {
        let each = |now: u64, then: u64| (now - then) as f64 / reads;
        let (requests, doorbells) = (each(now.requests, then.requests), each(now.doorbells, then.doorbells));
        let completions = each(now.completions, then.completions);
        println!(
            "{name}: a read is {requests:.2} work requests, {doorbells:.2} doorbells, {completions:.2} completions"
        );
        assert!(doorbells < 1.0, "a turn's requests are rung for together");
    }
    println!("both: {:.3} allocations a read, 0 copies", asked as f64 / reads);
    assert_eq!(client.world.net.counters(conn).unwrap().copied, copied, "every reply landed in its place");
    // Lists grow to the longest that a turn has made of them; when a core was away for a while, that may be longer than any in the warm-up. What a
    // read or a batch asked for itself would be asked for in each round.
    assert!(asked < ROUNDS / 4, "{asked} allocations in {ROUNDS} batches");
}
