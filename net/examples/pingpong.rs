//! How many 4 KiB replies a second one core serves and another takes, and what each costs.
//!
//! ```text
//! cargo run --release -p corefs-net --example pingpong -- [--batch 16] [--batches 8] [--size 4096] [--seconds 5]
//!                                                         [--busy-poll-us 50] [--unix] [--node]
//! ```
//! One request frame asks for a batch; each reply is a frame of its own, as on the data path. `--batches` of them are in
//! flight. Client and server are two processes on two cores. `--node` runs the client through `Node::expect` and `post`
//! instead of a sink of its own.

use corefs_net::buffer::BLOCK_MIN;
use corefs_net::executor;
use corefs_net::{
    Address, Bell, Buffer, Completion, ConnId, Flow, FrameSink, Identity, Node, NodeConfig, Payload, Peer,
    Placement, Pool, Ring, RingConfig, Role, Tcp, TcpConfig,
};
use corefs_wire::frame::{Header, Kind};
use corefs_wire::{Error, Uuid};
use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

#[derive(Clone)]
struct Options {
    batch: usize,
    batches: usize,
    size: usize,
    seconds: u64,
    busy_poll_us: u64,
    unix: bool,
    node: bool,
    server: bool,
}

fn main() {
    let options = options();
    let core = usize::from(options.server);
    let executor = executor::builder(glommio::Placement::Fixed(core));
    let run = move || async move {
        match (options.server, options.node) {
            (true, _) => serve(&options).await,
            (false, true) => ask_by_node(&options).await,
            (false, false) => ask(&options).await,
        }
    };
    executor.spawn(run).unwrap().join().unwrap();
}

fn options() -> Options {
    let mut options = Options {
        batch: 16,
        batches: 8,
        size: 4096,
        seconds: 5,
        busy_poll_us: 50,
        unix: false,
        node: false,
        server: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|n| n.parse().ok()).expect("a number");
        match word.as_str() {
            "--batch" => options.batch = number() as usize,
            "--batches" => options.batches = number() as usize,
            "--size" => options.size = number() as usize,
            "--seconds" => options.seconds = number(),
            "--busy-poll-us" => options.busy_poll_us = number(),
            "--unix" => options.unix = true,
            "--node" => options.node = true,
            "--server" => options.server = true,
            other => panic!("unknown option {other}"),
        }
    }
    options
}

fn identity() -> Identity {
    Identity { role: Role::Tool, id: 0, incarnation: 0, cluster: Uuid::NIL, secret: None }
}

fn ring(options: &Options) -> Ring {
    let busy_poll = Duration::from_micros(options.busy_poll_us);
    Ring::new(&RingConfig { busy_poll, ..RingConfig::default() }).unwrap()
}

/// User and system time of this process (microseconds).
fn cpu_us() -> (u64, u64) {
    let us = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    // SAFETY: fills a structure of ours.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        (us(usage.ru_utime), us(usage.ru_stime))
    }
}

/// Ring, sockets and the loop over them: what a shard does.
struct Loop<S> {
    ring: Ring,
    tcp: Tcp,
    sink: S,
    completions: Vec<Completion>,
    bell: Bell,
    turns: u64,
}

impl<S: FrameSink> Loop<S> {
    fn new(options: &Options, sink: S) -> Self {
        let (ring, tcp) = (ring(options), Tcp::new(TcpConfig::new(identity())));
        Self { ring, tcp, sink, completions: Vec::new(), bell: Bell::new(), turns: 0 }
    }

    /// What has happened.
    fn take(&mut self) {
        self.turns += 1;
        for completion in self.completions.drain(..) {
            self.tcp.complete(completion, &mut self.sink);
        }
        self.tcp.advance(Instant::now(), &mut self.sink);
    }

    /// What follows from it leaves; then until something else happens.
    async fn rest(&mut self) {
        self.tcp.flush(&mut self.ring);
        self.ring.turn(&mut self.completions).unwrap();
        if self.completions.is_empty() && !self.tcp.has_work() {
            self.ring.park(&self.bell, &mut self.completions).await.unwrap();
        } else {
            self.ring.breathe().await.unwrap();
        }
    }
}

/// The server: each request asks for so many replies of so many bytes.
struct Asked {
    requests: Vec<(ConnId, u64, u32)>,
    gone: bool,
    served: u64,
}

impl FrameSink for Asked {
    fn place(&mut self, _: ConnId, _: &Header, _: &[u8], _: Option<Buffer>) -> Placement {
        Placement::Discard
    }

    fn frame(&mut self, conn: ConnId, header: &Header, body: &[u8], _: Option<Buffer>) -> Flow {
        let count = u32::from_le_bytes(*body.first_chunk().unwrap());
        self.requests.push((conn, header.request(), count));
        Flow::Continue
    }

    fn opened(&mut self, _: ConnId, _: &Peer) {}

    fn closed(&mut self, _: ConnId, _: Error) {
        self.gone = true;
    }
}

async fn serve(options: &Options) {
    let pool = Pool::new(64 << 20).unwrap();
    let mut block = pool.get(options.size.max(BLOCK_MIN)).unwrap();
    block.get_mut().unwrap().fill(7);
    let size = options.size;
    let mut server = Loop::new(options, Asked { requests: Vec::new(), gone: false, served: 0 });
    let path = std::env::temp_dir().join(format!("corefs-pingpong-{}", std::process::id()));
    let address = if options.unix { Address::Unix(path) } else { "127.0.0.1:0".parse().unwrap() };
    println!("{}", server.tcp.listen(&address).unwrap());
    while !server.sink.gone {
        server.rest().await;
        server.take();
        for (conn, request, count) in server.sink.requests.drain(..) {
            server.sink.served += u64::from(count);
            for n in 0..u64::from(count) {
                let data = Payload::new(block.clone(), 0..size);
                // A client that is gone needs no reply.
                let _ = server.tcp.send(conn, Kind::Reply, 1, request + n, 0, &[0; 20], Some(data));
            }
        }
    }
    let (user, system) = cpu_us();
    let served = server.sink.served.max(1);
    let per = |us: u64| us as f64 / served as f64;
    let enters = server.ring.counters().enters as f64 / served as f64;
    println!(
        "server: {:.2} us/op ({:.2} user, {:.2} system), {enters:.3} enters/op, {} parks, {} turns",
        per(user + system),
        per(user),
        per(system),
        server.ring.counters().parks,
        server.turns
    );
}

/// The client with a sink of its own.
struct Taker {
    pool: Pool,
    open: bool,
    /// Replies that each batch still awaits.
    left: Vec<usize>,
    done: Vec<usize>,
    replies: u64,
}

impl FrameSink for Taker {
    fn place(&mut self, _: ConnId, header: &Header, _: &[u8], _: Option<Buffer>) -> Placement {
        match self.pool.get(header.data_len()) {
            Some(buffer) => Placement::Into { buffer, offset: 0 },
            None => Placement::Discard,
        }
    }

    fn frame(&mut self, _: ConnId, header: &Header, _: &[u8], data: Option<Buffer>) -> Flow {
        assert_eq!(data.unwrap()[0], 7);
        let batch = (header.request() >> 32) as usize;
        self.replies += 1;
        self.left[batch] -= 1;
        if self.left[batch] == 0 {
            self.done.push(batch);
        }
        Flow::Continue
    }

    fn opened(&mut self, _: ConnId, _: &Peer) {
        self.open = true;
    }

    fn closed(&mut self, _: ConnId, error: Error) {
        panic!("the server left: {error}");
    }
}

/// Starts the server process; its address, and its last words.
fn start_server(options: &Options) -> (Address, impl FnOnce()) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("--server").args(["--size", &options.size.to_string()]);
    command.args(["--busy-poll-us", &options.busy_poll_us.to_string()]);
    if options.unix {
        command.arg("--unix");
    }
    let mut server = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let address = lines.next().unwrap().unwrap().parse().unwrap();
    let finish = move || {
        lines.for_each(|line| println!("{}", line.unwrap()));
        server.wait().unwrap();
    };
    (address, finish)
}

fn report(options: &Options, replies: u64, elapsed: Duration, before: (u64, u64), enters: u64) {
    let after = cpu_us();
    let per = |us: u64| us as f64 / replies as f64;
    let (user, system) = (after.0 - before.0, after.1 - before.1);
    println!(
        "{} x {} x {} bytes: {:.0} K replies/s",
        options.batch,
        options.batches,
        options.size,
        replies as f64 / elapsed.as_secs_f64() / 1000.0
    );
    println!(
        "client: {:.2} us/op ({:.2} user, {:.2} system), {:.3} enters/op",
        per(user + system),
        per(user),
        per(system),
        enters as f64 / replies as f64
    );
    std::io::stdout().flush().unwrap();
}

async fn ask(options: &Options) {
    let (address, finish) = start_server(options);
    let taker = Taker {
        pool: Pool::new(64 << 20).unwrap(),
        open: false,
        left: vec![0; options.batches],
        done: (0..options.batches).collect(),
        replies: 0,
    };
    let mut client = Loop::new(options, taker);
    let conn = client.tcp.connect(&address).unwrap();
    while !client.sink.open {
        client.rest().await;
        client.take();
    }
    let (batch, started, before) = (options.batch, Instant::now(), cpu_us());
    while started.elapsed() < Duration::from_secs(options.seconds) {
        for which in client.sink.done.drain(..) {
            client.sink.left[which] = batch;
            let mut body = vec![0; 48 + 56 * batch];
            body[..4].copy_from_slice(&(batch as u32).to_le_bytes());
            client.tcp.send(conn, Kind::Request, 1, (which as u64) << 32, 0, &body, None).unwrap();
        }
        client.rest().await;
        client.take();
    }
    report(options, client.sink.replies, started.elapsed(), before, client.ring.counters().enters);
    drop(client);
    finish();
}

async fn ask_by_node(options: &Options) {
    let (address, finish) = start_server(options);
    let mut config = NodeConfig::new(identity());
    config.ring.busy_poll = Duration::from_micros(options.busy_poll_us);
    let node = Node::start(config).unwrap();
    let conn = node.connection(&address).await.unwrap();
    let (replies, started, before) = (Rc::new(Cell::new(0)), Instant::now(), cpu_us());
    let end = started + Duration::from_secs(options.seconds);
    let tasks: Vec<_> = (0..options.batch * options.batches)
        .map(|_| {
            let (node, replies) = (node.clone(), replies.clone());
            glommio::spawn_local(async move {
                while Instant::now() < end {
                    let expected = node.expect(conn, None).unwrap();
                    let mut body = [0; 104];
                    body[0] = 1;
                    node.post(conn, Kind::Request, 1, expected.request_id(), &body, None).unwrap();
                    let reply = expected.await.unwrap();
                    assert_eq!(reply.data.unwrap()[0], 7);
                    replies.set(replies.get() + 1);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await;
    }
    report(options, replies.get(), started.elapsed(), before, 0);
    node.shutdown().await;
    finish();
}
