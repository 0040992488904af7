//! How many operations a second one metadata server's code does over the embedded store (durable) and over a store in
//! memory (its own CPU cost alone), by how many run at once.
//!
//! `cargo run --release -p corefs-meta --example operations -- [DIRECTORY] [SECONDS]`

use corefs_kv::embedded::Options;
use corefs_kv::{Embedded, KvEngine, Mem};
use corefs_meta::{ChunkService, ClientLeases, Clock, Namespace, Random, Space};
use corefs_wire::control::meta::{CallerT, CreateT, GetAttrT, LookupT, UnlinkT};
use corefs_wire::layout::Layout;
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{ChainId, ClientId, InodeId, Result};
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A world without storage: creations and lookups need none.
struct Alone {
    random: Cell<u64>,
    routing: Rc<RoutingInfo>,
}

impl Clock for Alone {
    fn now(&self) -> i64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
    }
}

impl Random for Alone {
    fn random(&self) -> u64 {
        self.random.set(self.random.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        self.random.get()
    }
}

impl ChunkService for Alone {
    async fn truncate_chunks(&self, _: InodeId, _: &Layout, _: u64, _: u32) -> Result<()> {
        Ok(())
    }
    async fn write_first_chunk(&self, _: InodeId, _: &Layout, _: &[u8], _: u32) -> Result<()> {
        Ok(())
    }
    async fn remove_chunks(&self, _: InodeId, _: &Layout, _: Duration) -> Result<bool> {
        Ok(true)
    }
    async fn inode_length(&self, _: InodeId, _: &Layout) -> Result<u64> {
        Ok(0)
    }
    fn routing(&self) -> Rc<RoutingInfo> {
        self.routing.clone()
    }
    async fn space(&self) -> Result<Space> {
        Ok(Space::default())
    }
}

impl ClientLeases for Alone {
    async fn alive(&self, clients: &[ClientId]) -> Result<Vec<bool>> {
        Ok(vec![true; clients.len()])
    }
}

struct Bench<E> {
    names: Namespace<E, Alone>,
    next: Cell<u64>,
    sequence: Cell<u64>,
}

impl<E: KvEngine> Bench<E> {
    async fn new(engine: E) -> Rc<Self> {
        let tables = [((1, 1), (1..=32).map(ChainId).collect())].into();
        let routing = Rc::new(RoutingInfo { chunk_size: 512 << 10, tables, ..RoutingInfo::default() });
        let names = Namespace::new(engine, 1, Alone { random: Cell::new(1), routing });
        names.format().await.expect("formatting");
        Rc::new(Self { names, next: Cell::new(0), sequence: Cell::new(0) })
    }

    /// As clients do: numbered, and the old numbers done with.
    fn caller(&self) -> Box<CallerT> {
        let number = self.sequence.get() + 1;
        self.sequence.set(number);
        let mut caller = CallerT::default();
        (caller.client, caller.incarnation, caller.privileged) = (1, 1, true);
        (caller.sequence, caller.low_water) = (number, number.saturating_sub(4096).max(1));
        Box::new(caller)
    }

    async fn create(&self, number: u64) {
        let mut request = CreateT::default();
        (request.caller, request.parent) = (self.caller(), 1);
        (request.name, request.mode, request.exclusive) =
            (format!("file-{number}").into_bytes(), 0o644, true);
        self.names.create(&request).await.expect("creating");
    }

    async fn lookup(&self, number: u64) {
        let mut request = LookupT::default();
        (request.parent, request.name) = (1, format!("file-{number}").into_bytes());
        self.names.lookup(&request).await.expect("looking up");
    }

    async fn stat(&self) {
        let mut request = GetAttrT::default();
        request.inodes = vec![1];
        self.names.get_attr(&request).await.expect("getting attributes");
    }

    async fn unlink(&self, number: u64) {
        let mut request = UnlinkT::default();
        (request.caller, request.parent) = (self.caller(), 1);
        request.name = format!("file-{number}").into_bytes();
        self.names.unlink(&request).await.expect("unlinking");
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Create,
    Lookup,
    StatRoot,
    Unlink,
}

/// Operations a second with so many at once. Names are `from` and on.
async fn measure<E: KvEngine>(
    bench: &Rc<Bench<E>>,
    kind: Kind,
    concurrent: usize,
    time: Duration,
    most: u64,
) -> (u64, f64) {
    let (done, from, start) = (Rc::new(Cell::new(0u64)), bench.next.get(), Instant::now());
    let worker = |_| {
        let (bench, done) = (bench.clone(), done.clone());
        glommio::spawn_local(async move {
            while start.elapsed() < time && done.get() < most {
                let number = done.get();
                done.set(number + 1);
                match kind {
                    Kind::Create => bench.create(from + number).await,
                    Kind::Lookup => bench.lookup(from + number).await,
                    Kind::StatRoot => bench.stat().await,
                    Kind::Unlink => bench.unlink(from + number).await,
                }
            }
        })
    };
    let workers: Vec<_> = (0..concurrent).map(worker).collect();
    for worker in workers {
        worker.await;
    }
    (done.get(), start.elapsed().as_secs_f64())
}

async fn round<E: KvEngine>(store: &str, bench: &Rc<Bench<E>>, concurrent: usize, time: Duration) {
    let mut made = u64::MAX;
    for (name, kind) in [
        ("create", Kind::Create),
        ("lookup", Kind::Lookup),
        ("stat /", Kind::StatRoot),
        ("unlink", Kind::Unlink),
    ] {
        let most = if matches!(kind, Kind::Lookup | Kind::Unlink) { made } else { u64::MAX };
        let (done, took) = measure(bench, kind, concurrent, time, most).await;
        if matches!(kind, Kind::Create) {
            made = done;
        }
        println!(
            "{store:>9} {name:>8} {concurrent:>6} {:>10.0}/s {:>8.1} us",
            done as f64 / took,
            took * 1e6 / done as f64
        );
    }
    bench.next.set(bench.next.get() + made);
}

fn main() {
    let mut args = std::env::args().skip(1);
    let parent = args.next().unwrap_or_else(|| ".".into());
    let seconds: f64 = args.next().and_then(|text| text.parse().ok()).unwrap_or(2.0);
    let time = Duration::from_secs_f64(seconds);
    let directory = std::path::Path::new(&parent).join("meta-operations");
    std::fs::create_dir_all(&directory).expect("a directory");
    let probe = directory.clone();
    let run = glommio::LocalExecutorBuilder::default().spawn(move || async move {
        println!("    store operation at once   a second   each");
        let bench = Bench::new(Mem::new()).await;
        round("memory", &bench, 1, time).await;
        let store = Embedded::open(&probe.join("store"), Options::default()).expect("opening");
        let bench = Bench::new(store.clone()).await;
        for concurrent in [1, 16, 256] {
            round("embedded", &bench, concurrent, time).await;
        }
        let checked = bench.names.check().await.expect("checking");
        println!("{} inodes checked, {} findings", checked.inodes, checked.findings.len());
        drop(bench);
        store.close().await;
    });
    run.expect("an executor").join().expect("the measurement");
    let _removed = std::fs::remove_dir_all(directory);
}
