//! CPU time of the store's hot paths, without any disk: nanoseconds per operation.
//!
//! `cargo run -p corefs-engine --release --example store_speed`. The budget of a 4 KiB read on the server is 1 us,
//! of which the look-up may take 0.1 to 0.2.

use corefs_engine::store::format::initial_writes;
use corefs_engine::store::{Begin, Finish, Geometry, Input, Need, Recovery, Store, Update, UpdateKind};
use corefs_wire::{ChainId, ChunkId, ClientId, InodeId, NodeId, SliceIndex, TargetId, UpdateTag, Uuid};
use std::collections::BTreeMap;
use std::time::Instant;

const CHUNKS: u32 = 100_000;
const CHUNK_BYTES: u32 = 512 << 10;
const TARGETS: u64 = 8;

/// Opens a store whose metadata is in a map; data is never looked at.
fn open(geometry: &Geometry) -> Store {
    let mut disk: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    initial_writes(geometry).into_iter().for_each(|write| drop(disk.insert(write.offset, write.bytes)));
    let mut recovery = Recovery::new(geometry.slice_bytes, geometry.cluster, None);
    let mut need = recovery.step(Input::Start).expect("a fresh slice opens");
    loop {
        let step = match need {
            Need::Read { offset, len } => {
                let mut bytes = disk.get(&offset).cloned().unwrap_or_default();
                bytes.resize(len, 0);
                recovery.step(Input::Bytes(&bytes))
            }
            Need::Write { .. } => recovery.step(Input::Written),
            Need::Flush => recovery.step(Input::Flushed),
            Need::Done(store, _) => return *store,
        };
        need = step.expect("a fresh slice opens");
    }
}

struct Speed {
    store: Store,
    random: u64,
    /// Chunks to pick from.
    among: u64,
    /// Journal and checkpoint bytes written.
    metadata: u64,
    sequence: u64,
}

impl Speed {
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn any_chunk(&mut self) -> (TargetId, ChunkId) {
        let n = self.random() % self.among;
        place(n as u32)
    }

    fn update(&mut self, target: TargetId, chunk: ChunkId, kind: UpdateKind, crcs: &[u32]) {
        self.sequence += 1;
        let version = self.store.next_version(target, chunk).expect("the target is there");
        let channel = (self.sequence % 64) as u32;
        let tag = UpdateTag { client: ClientId(9), sequence: self.sequence, incarnation: 1, channel };
        let update = Update { target, chunk, kind, version, chain_version: 1, truncate_epoch: 0, tag };
        let Ok(Begin::Fresh(staging)) = self.store.begin_update(update) else { return };
        let plan = self.store.stage(staging, crcs, Finish::Commit).expect("there is room");
        let applied = self.store.apply(plan);
        assert!(!applied.writes.is_empty());
    }

    fn flush(&mut self) {
        if self.store.wants_checkpoint() {
            let budget = self.store.checkpoint_budget();
            self.store.checkpoint_step(budget);
        }
        if let Some(batch) = self.store.seal_batch() {
            self.metadata += batch.writes.iter().map(|write| write.bytes.len() as u64).sum::<u64>();
            self.store.batch_flushed(batch.id);
        }
    }
}

fn place(n: u32) -> (TargetId, ChunkId) {
    (TargetId(1 + u64::from(n) % TARGETS), ChunkId::new(InodeId(100 + u64::from(n / 800)), n % 800))
}

/// Nanoseconds that this thread was on a CPU (Documentation/scheduler/sched-stats.rst): wall time says little on a
/// machine that others use too.
fn cpu_ns() -> Option<u64> {
    std::fs::read_to_string("/proc/thread-self/schedstat").ok()?.split(' ').next()?.parse().ok()
}

fn time(what: &str, count: u64, mut work: impl FnMut()) {
    let (start, cpu) = (Instant::now(), cpu_ns());
    (0..count).for_each(|_| work());
    let wall = start.elapsed().as_nanos() as f64 / count as f64;
    let cpu = cpu.and_then(|cpu| Some((cpu_ns()? - cpu) as f64 / count as f64)).unwrap_or(wall);
    println!("{what:<46} {cpu:>9.0} ns/op of CPU ({wall:.0} ns of wall time)");
}

fn main() {
    let bytes = 3 * u64::from(CHUNKS) / 2 * u64::from(CHUNK_BYTES);
    let (cluster, id) = (Uuid([1; 16]), Uuid([2; 16]));
    let geometry =
        Geometry::for_slice(cluster, id, NodeId(1), SliceIndex(0), bytes).expect("a size for a slice");
    let mut speed = Speed {
        store: open(&geometry),
        random: 88_172_645_463_325_252,
        among: CHUNKS.into(),
        metadata: 0,
        sequence: 0,
    };
    for target in 1..=TARGETS {
        speed.store.create_target(TargetId(target), ChainId(target)).expect("a new target");
    }
    let crcs = vec![7; (CHUNK_BYTES / 4096) as usize];
    let mut n = 0;
    time("write 512 KiB chunks, 16 to a batch", CHUNKS.into(), || {
        let (target, chunk) = place(n);
        speed.update(target, chunk, UpdateKind::Write { offset: 0, len: CHUNK_BYTES }, &crcs);
        n += 1;
        if n % 16 == 0 {
            speed.flush();
        }
    });
    speed.flush();
    let read = |speed: &mut Speed, len: u32| {
        let (target, chunk) = speed.any_chunk();
        let offset = (speed.random() % u64::from(CHUNK_BYTES / len)) as u32 * len;
        let plan = speed.store.read(target, chunk, offset, len).expect("it was written");
        std::hint::black_box(&plan);
        speed.store.end_read(plan);
    };
    speed.among = 100;
    time("read 4 KiB, 100 chunks that stay in cache", 5_000_000, || read(&mut speed, 4096));
    speed.among = CHUNKS.into();
    time("read 4 KiB, contiguous chunks", 5_000_000, || read(&mut speed, 4096));
    time("read 512 KiB, contiguous chunks", 500_000, || read(&mut speed, CHUNK_BYTES));
    let (before, mut n) = (speed.metadata, 0u32);
    time("overwrite 4 KiB, 32 to a batch, all included", 2_000_000, || {
        let (target, chunk) = speed.any_chunk();
        let offset = (speed.random() % u64::from(CHUNK_BYTES / 4096)) as u32 * 4096;
        speed.update(target, chunk, UpdateKind::Write { offset, len: 4096 }, &crcs[..1]);
        n += 1;
        if n.is_multiple_of(32) {
            speed.flush();
        }
    });
    let metadata = (speed.metadata - before) as f64 / 2_000_000.0;
    println!("{:<46} {metadata:>9.0} bytes/op", "  journal and checkpoint bytes of that");
    speed.flush();
    time("read 4 KiB, fragmented chunks", 5_000_000, || read(&mut speed, 4096));
    time("read 512 KiB, fragmented chunks", 200_000, || read(&mut speed, CHUNK_BYTES));
    let findings = speed.store.audit();
    assert!(findings.is_empty(), "{findings:?}");
    println!("{:?}\n{:?}", speed.store.stats(), speed.store.space());
}
