//! What the examples share: a cluster of one shard, and a client that costs little.

use corefs_engine::disk::file::DiskFile;
use corefs_engine::disk::open::Extent;
use corefs_engine::disk::way::Choice;
use corefs_engine::mesh::ShardHandle;
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

pub const CLUSTER: Uuid = Uuid([1; 16]);
pub const STORE: Uuid = Uuid([2; 16]);

/// A handle of the shard, its address, and its thread's number.
pub type Started = Result<(ShardHandle, String, i32)>;

/// Runs a shard with one slice of `bytes` on the first core, until it is told to stop.
pub fn serve(file: DiskFile, bytes: u64, format: bool, started: mpsc::Sender<Started>) -> Result<()> {
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
                store: STORE,
                format,
            }],
            way: Choice::Auto,
            discard: false,
            busy_poll: Duration::from_micros(50),
            transport: corefs_net::transport::Choice::Tcp,
            resync_rate: corefs_engine::chain::RATE_DEFAULT,
            scrub_rate: 0,
            pool_bytes: 128 << 20,
            record: None,
            strict: false,
        };
        let shard = Shard::start(config)?;
        if let Some((_, error)) = shard.unopened().first() {
            return Err(error.clone());
        }
        // SAFETY: a plain query.
        let thread = unsafe { libc::gettid() };
        let told = started.send(Ok((shard.handle(), shard.address().to_string(), thread)));
        told.expect("somebody waits");
        shard.run()
    })
}

/// A cluster of one node, one shard, one target.
pub fn routing(address: &str, chunk_size: u32) -> RoutingInfo {
    let (node, target, chain) = (NodeId(1), TargetId(1), ChainId(1));
    let mut routing =
        RoutingInfo { version: 1, cluster: CLUSTER, chunk_size, replicas: 1, ..Default::default() };
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
pub fn cpu_of(task: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{task}/schedstat")).unwrap_or_default();
    text.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0.0)
}

/// Counts replies.
pub struct Desk {
    pool: Pool,
    opened: bool,
    replies: u64,
    pub errors: u64,
    /// Reads missing of each batch in flight.
    missing: Vec<usize>,
    done: Vec<usize>,
}

/// One connection to a shard, by a ring of its own.
pub struct Client {
    ring: Ring,
    tcp: Tcp,
    conn: ConnId,
    pub desk: Desk,
    chunk: u32,
    /// Chunks of each file.
    pub each_file: u32,
}

impl FrameSink for Desk {
    fn place(&mut self, _: ConnId, header: &Header, _: &[u8], _: Option<Buffer>) -> Placement {
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
    /// `chunk` is the size of every chunk (bytes).
    pub fn connect(address: &Address, chunk: u32) -> Result<Self> {
        let identity = Identity { role: Role::Client, id: 1, incarnation: 1, cluster: CLUSTER, secret: None };
        let mut ring = Ring::new(&RingConfig::default())?;
        let pool = Pool::new(64 << 20)?;
        ring.register_pool(&pool);
        let mut tcp = Tcp::new(TcpConfig::new(identity));
        let conn = tcp.connect(address)?;
        let desk = Desk { pool, opened: false, replies: 0, errors: 0, missing: Vec::new(), done: Vec::new() };
        let mut client = Self { ring, tcp, conn, desk, chunk, each_file: u32::MAX };
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
    pub fn fill(&mut self, chunks: u64) -> Result<()> {
        let started = Instant::now();
        for first in (0..chunks).step_by(8) {
            let before = self.desk.replies;
            let last = (first + 8).min(chunks);
            for chunk in first..last {
                let bytes: Vec<u8> = (0..self.chunk / 8)
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
                    length: self.chunk.into(),
                    chunk_size: self.chunk.into(),
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
        let mebibytes = (chunks * u64::from(self.chunk)) >> 20;
        println!("wrote {mebibytes} MiB in {:.1?}, errors {}", started.elapsed(), self.desk.errors);
        Ok(())
    }

    /// Keeps `batches` batches of `batch` random reads in flight.
    pub fn read(
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
            let number_of_chunk = (*state >> 20) as u32 % chunks as u32;
            let entry = ReadEntry {
                request: ((number as u64) << 32 | position as u64).into(),
                chain: 1.into(),
                chain_version: 1.into(),
                target: 1.into(),
                inode: u64::from(1 + number_of_chunk / self.each_file).into(),
                index: (number_of_chunk % self.each_file).into(),
                offset: ((*state >> 8) as u32 % (self.chunk / 4096) * 4096).into(),
                length: 4096.into(),
                ..ReadEntry::default()
            };
            body.extend_from_slice(entry.as_bytes());
        }
        self.desk.missing[number] = batch;
        self.tcp.send(self.conn, Kind::Request, op::READ, u64::MAX, 0, &body, None)
    }
}
