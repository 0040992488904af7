//! What a shard adds to the bare ring: random 4 KiB reads of one shard over TCP, beside the bare bound on the same file.
//!
//! ```text
//! cargo run --release -p corefs-engine --example shard_reads -- DIR [MEBIBYTES] [SECONDS] [BATCH] [BATCHES] [ROUNDS]
//! ```
//! The shard is pinned to the first core, the client to the second. CPU is the shard's thread alone, as the scheduler counts
//! it (`/proc/self/task/TID/schedstat`).

use corefs_engine::disk::bench::{self, Direction, Order};
use corefs_engine::disk::file::DiskFile;
use corefs_engine::disk::open::Extent;
use corefs_engine::mesh::{ShardMessage, answer};
use corefs_engine::shard::{Shard, ShardConfig, SliceSpec};
use corefs_net::{
    Address, Buffer, ConnId, Flow, FrameSink, Identity, Payload, Peer, Placement, Pool, Ring, RingConfig,
    Role, Source, Tcp, TcpConfig,
};
use corefs_wire::control::mgmtd::TargetState;
use corefs_wire::data::{self, Prefix, ReadEntry, Update, UpdateKind, op};
use corefs_wire::frame::{Header, Kind};
use corefs_wire::routing::{Chain, Member, Node, RoutingInfo, Target};
use corefs_wire::{ChainId, Error, NodeId, Result, ShardIndex, SliceIndex, TargetId, Uuid};
use glommio::Placement as Core;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

const CLUSTER: Uuid = Uuid([1; 16]);
const CHUNK: u32 = 512 << 10;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |at: usize, default: u64| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let dir = std::path::PathBuf::from(arguments.first().map_or("/tmp/shard_reads", |dir| dir.as_str()));
    let (mebibytes, seconds) = (number(1, 1024), Duration::from_secs(number(2, 5)));
    let (batch, batches, rounds) = (number(3, 16) as usize, number(4, 8) as usize, number(5, 3));
    std::fs::create_dir_all(&dir)?;
    let disk = dir.join("disk");
    let _ = std::fs::remove_file(&disk);
    let bytes = (mebibytes << 20) * 5 / 4 + (64 << 20);
    let (started, wait) = mpsc::channel();
    let file = DiskFile::create(&disk, bytes)?;
    let shard = std::thread::spawn(move || serve(file, bytes, started));
    let (handle, address, thread) = wait.recv().expect("the shard starts")?;
    handle.send(ShardMessage::Routing(Box::new(routing(&address))))?;
    handle.send(ShardMessage::Lease { until: u64::MAX })?;
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    if let Some(core) = cores.get(1) {
        core_affinity::set_for_current(*core);
    }
    let chunks = (mebibytes << 20) / u64::from(CHUNK);
    let mut client = Client::connect(&address.parse()?)?;
    client.fill(chunks)?;
    for round in 0..rounds {
        let options = bench::Options {
            path: disk.clone(),
            block: 4096,
            depth: batch * batches,
            duration: seconds,
            warmup: Duration::from_millis(500),
            direction: Direction::Read,
            order: Order::Random,
            working_set: mebibytes << 20,
            seed: round,
        };
        let bare = std::thread::spawn(move || {
            core_affinity::set_for_current(core_affinity::CoreId { id: 0 });
            let before = cpu_of("thread-self");
            let report = bench::run(&options, &mut |_| (), &mut || false);
            report.map(|report| (report, cpu_of("thread-self") - before))
        });
        let (bare, bare_cpu) = bare.join().expect("the bound runs")?;
        let bare_iops = bare.operations as f64 / bare.elapsed.as_secs_f64();
        client.read(chunks, batch, batches, Duration::from_millis(500), round)?;
        let before = cpu_of(&format!("self/task/{thread}"));
        let (reads, elapsed) = client.read(chunks, batch, batches, seconds, round)?;
        let cpu = cpu_of(&format!("self/task/{thread}")) - before;
        let iops = reads as f64 / elapsed.as_secs_f64();
        println!(
            "bare {bare_iops:.0} IOPS {:.2} us/op (with warm-up)   shard {iops:.0} IOPS {:.2} us/op   ratio {:.3}   errors {}",
            bare_cpu / 1e3 / bare.operations.max(1) as f64,
            cpu / 1e3 / reads.max(1) as f64,
            iops / bare_iops,
            bare.errors + client.desk.errors
        );
    }
    let (tell, _report) = answer();
    handle.send(ShardMessage::Report(tell))?;
    handle.send(ShardMessage::Abort)?;
    shard.join().expect("the shard ends")
}

type Started = Result<(corefs_engine::mesh::ShardHandle, String, i32)>;

fn serve(file: DiskFile, bytes: u64, started: mpsc::Sender<Started>) -> Result<()> {
    let executor = corefs_net::executor::builder(Core::Fixed(0)).make().expect("an executor");
    executor.run(async move {
        let config = ShardConfig {
            node: NodeId(1),
            shard: ShardIndex(0),
            identity: Identity { role: Role::Storage, id: 1, incarnation: 1, cluster: CLUSTER, secret: None },
            listen: "127.0.0.1:0".parse()?,
            disks: vec![file],
            slices: vec![SliceSpec {
                index: SliceIndex(0),
                disk: 0,
                extent: Extent { base: 0, bytes },
                store: Uuid([2; 16]),
            }],
            format: true,
            busy_poll: Duration::from_micros(50),
            resync_rate: corefs_engine::chain::RATE_DEFAULT,
            pool_bytes: 128 << 20,
            record: None,
        };
        let shard = Shard::start(config)?;
        // SAFETY: a plain query.
        let thread = unsafe { libc::gettid() };
        let told = started.send(Ok((shard.handle(), shard.address().to_string(), thread)));
        told.expect("somebody waits");
        shard.run()
    })
}

fn routing(address: &str) -> RoutingInfo {
    let (node, target, chain) = (NodeId(1), TargetId(1), ChainId(1));
    let mut routing =
        RoutingInfo { version: 1, cluster: CLUSTER, chunk_size: CHUNK, replicas: 1, ..Default::default() };
    let shards = vec![address.to_string()];
    let (control, domain, slice_shards) = (String::new(), String::new(), vec![ShardIndex(0)]);
    routing
        .nodes
        .insert(node, Node { id: node, incarnation: 1, alive: true, control, shards, slice_shards, domain });
    routing.targets.insert(target, Target { id: target, node, slice: SliceIndex(0), chain });
    let members = vec![Member { target, state: TargetState::Serving }];
    routing.chains.insert(chain, Chain { id: chain, version: 1, members });
    routing
}

/// Nanoseconds on a CPU, of a thread of ours.
fn cpu_of(task: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{task}/schedstat")).unwrap_or_default();
    text.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0.0)
}

/// Counts replies.
struct Desk {
    pool: Pool,
    opened: bool,
    replies: u64,
    errors: u64,
    /// Reads missing of each batch in flight.
    missing: Vec<usize>,
    done: Vec<usize>,
}

struct Client {
    ring: Ring,
    tcp: Tcp,
    conn: ConnId,
    desk: Desk,
}

impl FrameSink for Desk {
    fn place(&mut self, _: ConnId, header: &Header, _: &[u8]) -> Placement {
        let buffer = self.pool.get(header.data_len()).expect("memory for all that is in flight");
        Placement::Into { buffer, offset: 0 }
    }

    fn frame(&mut self, _: ConnId, header: &Header, _: &[u8], _: Option<Buffer>) -> Flow {
        self.replies += 1;
        self.errors += u64::from(header.status() != 0);
        if header.op() == op::READ {
            let batch = (header.request() >> 32) as usize;
            self.missing[batch] -= 1;
            if self.missing[batch] == 0 {
                self.done.push(batch);
            }
        }
        Flow::Continue
    }

    fn opened(&mut self, _: ConnId, _: &Peer) {
        self.opened = true;
    }

    fn closed(&mut self, _: ConnId, error: Error) {
        panic!("{error}");
    }
}

impl Client {
    fn connect(address: &Address) -> Result<Self> {
        let identity = Identity { role: Role::Client, id: 1, incarnation: 1, cluster: CLUSTER, secret: None };
        let mut ring = Ring::new(&RingConfig::default())?;
        let pool = Pool::new(64 << 20)?;
        ring.register_pool(&pool);
        let mut tcp = Tcp::new(TcpConfig::new(identity));
        let conn = tcp.connect(address)?;
        let desk = Desk { pool, opened: false, replies: 0, errors: 0, missing: Vec::new(), done: Vec::new() };
        let mut client = Self { ring, tcp, conn, desk };
        while !client.desk.opened {
            client.turn()?;
        }
        Ok(client)
    }

    fn turn(&mut self) -> Result<()> {
        let mut completions = Vec::new();
        self.tcp.flush(&mut self.ring);
        self.ring.wait(&mut completions)?;
        for completion in completions {
            if completion.token.source() == Source::TCP {
                self.tcp.complete(completion, &mut self.desk);
            }
        }
        self.tcp.advance(Instant::now(), &mut self.desk);
        Ok(())
    }

    /// Writes every chunk, eight at a time.
    fn fill(&mut self, chunks: u64) -> Result<()> {
        let started = Instant::now();
        for first in (0..chunks).step_by(8) {
            let before = self.desk.replies;
            let last = (first + 8).min(chunks);
            for chunk in first..last {
                let bytes: Vec<u8> = (0..CHUNK / 8)
                    .flat_map(|word| {
                        (u64::from(word) ^ chunk << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()
                    })
                    .collect();
                let mut crcs = Vec::new();
                data::segment_crcs(0, &bytes, |crc| crcs.extend_from_slice(&crc.to_le_bytes()));
                let update = Update {
                    chain: 1.into(),
                    chain_version: 1.into(),
                    target: 1.into(),
                    inode: 1.into(),
                    index: (chunk as u32).into(),
                    kind: UpdateKind::Write as u8,
                    length: CHUNK.into(),
                    chunk_size: CHUNK.into(),
                    crcs: (crcs.len() as u32 / 4).into(),
                    ..Update::default()
                };
                let body = [Prefix::default().as_bytes(), update.as_bytes(), &crcs].concat();
                let payload = Some(Payload::from(bytes));
                self.tcp.send(self.conn, Kind::Request, op::UPDATE, chunk, 0, &body, payload)?;
            }
            while self.desk.replies < before + (last - first) {
                self.turn()?;
            }
        }
        let mebibytes = (chunks * u64::from(CHUNK)) >> 20;
        println!("wrote {mebibytes} MiB in {:.1?}, errors {}", started.elapsed(), self.desk.errors);
        Ok(())
    }

    /// Keeps `batches` batches of `batch` random reads in flight.
    fn read(
        &mut self,
        chunks: u64,
        batch: usize,
        batches: usize,
        duration: Duration,
        seed: u64,
    ) -> Result<(u64, Duration)> {
        let (started, before) = (Instant::now(), self.desk.replies);
        let mut state = seed.wrapping_mul(2) | 1;
        self.desk.missing = vec![0; batches];
        for number in 0..batches {
            self.post(number, batch, chunks, &mut state)?;
        }
        let mut in_flight = batches;
        while in_flight > 0 {
            self.turn()?;
            for number in std::mem::take(&mut self.desk.done) {
                if started.elapsed() < duration {
                    self.post(number, batch, chunks, &mut state)?;
                } else {
                    in_flight -= 1;
                }
            }
        }
        Ok((self.desk.replies - before, started.elapsed()))
    }

    fn post(&mut self, number: usize, batch: usize, chunks: u64, state: &mut u64) -> Result<()> {
        let mut body = Prefix::default().as_bytes().to_vec();
        for position in 0..batch {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            let entry = ReadEntry {
                request: ((number as u64) << 32 | position as u64).into(),
                chain: 1.into(),
                chain_version: 1.into(),
                target: 1.into(),
                inode: 1.into(),
                index: ((*state >> 20) as u32 % chunks as u32).into(),
                offset: ((*state >> 8) as u32 % (CHUNK / 4096) * 4096).into(),
                length: 4096.into(),
                ..ReadEntry::default()
            };
            body.extend_from_slice(entry.as_bytes());
        }
        self.desk.missing[number] = batch;
        self.tcp.send(self.conn, Kind::Request, op::READ, u64::MAX, 0, &body, None)
    }
}
