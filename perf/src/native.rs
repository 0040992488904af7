//! A workload through the native client: one executor and one client a core, each with its own connections.

use crate::cpu::{CpuTime, Whose};
use crate::driver::{CoreRun, Live, Target, conduct, fresh_generation};
use crate::files;
use crate::mounted::Processes;
use crate::progress::Watch;
use crate::report::Tally;
use crate::workload::{Until, Workload};
use corefs_client::file::read_batch;
use corefs_client::{
    Client, ClientOptions, ClientPool, CreateOptions, Credentials, File, Hedge, OpenOptions, PoolOptions,
};
use corefs_net::buffer::BLOCK_MAX;
use corefs_net::heap::allocations;
use corefs_net::transport::Choice;
use corefs_net::{Address, Secret, executor};
use corefs_wire::control::{Call, Message, process};
use corefs_wire::{Error, ErrorCode, Result};
use futures_lite::future::yield_now;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

/// How long a server may take to say what it has used.
const ASK: Duration = Duration::from_secs(2);
/// Sleeping less than this isn't worth it: other lanes have work.
const SLEEP_MIN: Duration = Duration::from_micros(200);
/// Between the last core's having opened its files and the beginning: all have heard of it by then.
const HEAD_START: Duration = Duration::from_millis(20);
/// How often a core asks whether the others are ready.
const READY: Duration = Duration::from_millis(1);
/// Files made, opened or looked at together.
const TOGETHER: usize = 32;

/// The clients that drive runs, and where they connect to. Stop it with [`stop`](Self::stop).
pub struct Native {
    pool: ClientPool,
    /// Servers' process ids; empty: the storage nodes are asked.
    servers: Vec<u32>,
}

impl Native {
    /// Connects a client for each of `cores` cores, which polls for `busy_poll` before it sleeps; those that poll are pinned.
    pub fn connect(
        managers: Vec<Address>,
        secret: Option<Secret>,
        cores: u32,
        busy_poll: Duration,
        transport: Choice,
        hedge: Hedge,
    ) -> Result<Self> {
        let mut options =
            ClientOptions { busy_poll, transport, hedge, ..ClientOptions::new(managers, secret) };
        options.name = "perf".into();
        let available = core_affinity::get_core_ids().unwrap_or_default();
        // The last cores first: servers pin themselves to the first ones. One that sleeps is placed by the kernel, which knows
        // better which core has time.
        let place = |core| {
            let core = available.iter().rev().cycle().nth(core)?;
            (!busy_poll.is_zero()).then_some(core.id)
        };
        let cores = (0..cores as usize).map(place).collect();
        let pool = ClientPool::start(options, PoolOptions { cores, ..PoolOptions::default() })?;
        Ok(Self { pool, servers: Vec::new() })
    }

    /// Takes the servers' CPU time from these processes of this machine instead of asking the storage nodes.
    pub fn measure_servers(&mut self, pids: Vec<u32>) {
        self.servers = pids;
    }

    /// Runs `workload` on the file at `path`, or its files: absolute, in corefs. Files to be written are created.
    pub fn run(&self, path: &Path, workload: &Workload, live: &Arc<Live>, watch: Watch) -> Result<Tally> {
        if workload.cores as usize > self.pool.shards() {
            let what = format!("{} cores of {} clients", workload.cores, self.pool.shards());
            return Err(Error::new(ErrorCode::Internal, what));
        }
        let shared = Arc::new(Shared {
            paths: files::paths(path, workload.files).iter().map(|path| path_bytes(path)).collect(),
            workload: Arc::new(workload.clone()),
            live: Arc::clone(live),
            generation: fresh_generation(),
            begin: OnceLock::new(),
        });
        if workload.direction.writes() {
            let shared = Arc::clone(&shared);
            self.pool.block_on(0, move |client| async move { shared.create(&client).await })?;
        }
        let (send, receive) = mpsc::channel();
        let (ready, opened) = mpsc::channel();
        for core in 0..workload.cores {
            let (shared, send, ready) = (Arc::clone(&shared), send.clone(), ready.clone());
            self.pool.run(core as usize, move |client| async move {
                let outcome = shared.open(&client).await;
                let failure = outcome.as_ref().err().cloned();
                // Whoever waits may have given up already: twice.
                let _gone = ready.send(failure.map_or(Ok(()), Err));
                if let Ok(target) = outcome
                    && let Some(begin) = shared.wait().await
                {
                    let _gone = send.send(shared.drive(client, target, core, begin).await);
                }
            })?;
        }
        drop((send, ready));
        let all = (0..workload.cores).try_for_each(|_| opened.recv().map_err(|_| ErrorCode::Internal)?);
        let begin = Instant::now() + HEAD_START;
        // Nobody else sets it.
        let _set = shared.begin.set(all.is_ok().then_some(begin));
        all?;
        let before = self.counters();
        let tally = conduct(workload, begin, live, &mut || self.meter(), watch, workload.name(), &receive);
        if tally.is_err() {
            live.stop();
        }
        let mut tally = tally?;
        if let (Ok(before), Ok(after)) = (before, self.counters()) {
            // A node that was restarted meanwhile counts from its start.
            let since = |(name, now): (String, u64)| {
                let count = now.saturating_sub(before.get(&name).copied().unwrap_or_default());
                (name, count)
            };
            tally.counted = after.into_iter().map(since).collect();
        }
        Ok(tally)
    }

    /// Makes a file of `bytes` that is fully written with the pattern of `seed`, unless it is there already and long
    /// enough.
    pub fn prepare(&self, path: &Path, bytes: u64, seed: u64, live: &Arc<Live>, watch: Watch) -> Result<()> {
        self.prepare_for(path, &Workload::layout(bytes, seed), live, watch)
    }

    /// Makes whatever files `workload` touches, likewise.
    pub fn prepare_for(
        &self,
        path: &Path,
        workload: &Workload,
        live: &Arc<Live>,
        watch: Watch,
    ) -> Result<()> {
        let lengths = self.lengths(files::paths(path, workload.files))?;
        if !files::must_be_written(&lengths, workload)? {
            return Ok(());
        }
        let tally = self.run(path, &workload.ground(), live, watch)?;
        if tally.errors > 0 || live.stopped() {
            let why = tally.first_error.unwrap_or_else(|| "interrupted".into());
            return Err(Error::new(ErrorCode::Os, format!("writing {}: {why}", path.display())));
        }
        Ok(())
    }

    /// Bytes of a file, `None` if there isn't one.
    pub fn length(&self, path: &Path) -> Result<Option<u64>> {
        Ok(self.lengths(vec![path.to_owned()])?.pop().and_then(|(_, length)| length))
    }

    fn lengths(&self, paths: Vec<PathBuf>) -> Result<Vec<(PathBuf, Option<u64>)>> {
        let look = move |client: Client| async move {
            each(paths, |path| {
                let client = client.clone();
                async move {
                    match client.fs(Credentials::of_process()).stat(&path_bytes(&path)).await {
                        Ok(attr) => Ok((path, Some(attr.size))),
                        Err(error) if error.code == ErrorCode::NotFound => Ok((path, None)),
                        Err(error) => Err(error),
                    }
                }
            })
            .await
        };
        self.pool.block_on(0, look)
    }

    /// Removes a file.
    pub fn remove(&self, path: &Path) -> Result<()> {
        let path = path_bytes(path);
        let remove =
            move |client: Client| async move { client.fs(Credentials::of_process()).remove(&path).await };
        self.pool.block_on(0, remove)
    }

    /// Ends the clients and their leases.
    pub fn stop(self) -> Result<()> {
        self.pool.stop()
    }

    pub(crate) fn pool(&self) -> &ClientPool {
        &self.pool
    }

    /// The addresses of all shards.
    pub fn shards(&self) -> Result<Vec<Address>> {
        let shards = |client: Client| async move {
            let routing = client.routing();
            let shards = routing.nodes.values().flat_map(|node| &node.shards);
            shards.map(|shard| shard.parse()).collect()
        };
        self.pool.block_on(0, shards)
    }

    /// Memory of all storage nodes (bytes).
    pub fn servers_memory(&self) -> Result<u64> {
        let told = self.pool.block_on(0, |client| async move { ask_nodes(&client).await })?;
        Ok(told.iter().map(|process| process.rss_bytes).sum())
    }

    /// What all storage nodes have counted so far.
    fn counters(&self) -> Result<BTreeMap<String, u64>> {
        let told = self.pool.block_on(0, |client| async move { ask_nodes(&client).await })?;
        let mut sum = BTreeMap::new();
        for counter in told.into_iter().flat_map(|process| process.counters) {
            *sum.entry(counter.name).or_default() += counter.value;
        }
        Ok(sum)
    }

    pub(crate) fn meter(&self) -> (Option<CpuTime>, Option<CpuTime>) {
        if !self.servers.is_empty() {
            return Processes { client: Vec::new(), server: self.servers.clone() }.meter();
        }
        let asked = self.pool.block_on(0, |client| async move { ask_nodes(&client).await });
        let sum = |told: Vec<process::ProcessT>| {
            let each = told.iter().map(|it| CpuTime { user_us: it.user_us, system_us: it.system_us });
            each.fold(CpuTime::default(), CpuTime::plus)
        };
        (Some(CpuTime::own(Whose::Process)), asked.ok().map(sum))
    }
}

/// What all storage nodes have used and counted so far.
async fn ask_nodes(client: &Client) -> Result<Vec<process::ProcessT>> {
    let routing = client.routing();
    let mut told = Vec::new();
    for node in routing.nodes.values() {
        let body = process::GetProcessT::default().encode();
        let address: Address = node.control.parse()?;
        let reply = client.node().call(&address, process::GetProcessT::OP, &body, None, ASK).await?;
        told.push(process::ProcessT::decode(&reply.body)?);
    }
    Ok(told)
}

/// What a client's own core has counted, under the names that servers have for the same, where they have it.
fn counted_by(client: &Client) -> Vec<(&'static str, u64)> {
    let (node, ring) = (client.node(), client.node().ring_counters());
    let rings = [("ring_enters", ring.enters), ("ring_submissions", ring.submissions)];
    let done = client.counters();
    let hedges = [("hedged_reads", done.hedged_reads), ("hedges_won", done.hedges_won)];
    rings.into_iter().chain(hedges).chain(node.costs().list()).collect()
}

fn path_bytes(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes().to_vec()
}

/// Does `work` for each of these, some at a time, and gives what came of it in order; the first error ends it.
async fn each<I, T: 'static, F>(items: Vec<I>, work: impl Fn(I) -> F) -> Result<Vec<T>>
where
    F: Future<Output = Result<T>> + 'static,
{
    let mut done = Vec::with_capacity(items.len());
    let mut items = items.into_iter();
    loop {
        let tasks: Vec<_> = items.by_ref().take(TOGETHER).map(|item| executor::spawn(work(item))).collect();
        if tasks.is_empty() {
            return Ok(done);
        }
        for task in tasks {
            done.push(task.await?);
        }
    }
}

struct Shared {
    paths: Vec<Vec<u8>>,
    workload: Arc<Workload>,
    live: Arc<Live>,
    generation: u64,
    /// When all begin, once all are ready; `None`: they never will be.
    begin: OnceLock<Option<Instant>>,
}

impl Shared {
    async fn create(&self, client: &Client) -> Result<()> {
        // A run that writes each block once makes the file anew; others write into what is there.
        let truncate = self.workload.until == Until::Once;
        let options = CreateOptions { truncate, direct: true, ..CreateOptions::default() };
        let create = |path: Vec<u8>| {
            let client = client.clone();
            async move { client.fs(Credentials::of_process()).create(&path, options).await?.close().await }
        };
        each(self.paths.clone(), create).await.map(drop)
    }

    async fn open(&self, client: &Client) -> Result<NativeFiles> {
        let write = self.workload.direction.writes();
        let options = OpenOptions { write, truncate: false, direct: true, ahead: false };
        let open = |path: Vec<u8>| {
            let client = client.clone();
            async move { client.fs(Credentials::of_process()).open(&path, options).await }
        };
        let files = each(self.paths.clone(), open).await?;
        let written = files.iter().map(|_| Cell::new(false)).collect();
        Ok(NativeFiles { files, written, workload: Arc::clone(&self.workload), spare: RefCell::default() })
    }

    async fn wait(&self) -> Option<Instant> {
        loop {
            match self.begin.get() {
                Some(begin) => return *begin,
                None => executor::sleep(READY).await,
            }
        }
    }

    async fn drive(&self, client: Client, target: NativeFiles, core: u32, begin: Instant) -> Result<Tally> {
        let before = client.counters();
        let (memory, counted) = (allocations(), counted_by(&client));
        let target = Rc::new(target);
        let run = Rc::new(CoreRun::new(&self.workload, core, begin, self.generation, &self.live));
        let lanes: Vec<_> = (0..self.workload.lanes())
            .map(|_| {
                let (run, target) = (Rc::clone(&run), Rc::clone(&target));
                executor::spawn(async move { run.lane(&*target).await })
            })
            .collect();
        for lane in lanes {
            lane.await;
        }
        let memory = allocations() - memory;
        let mut tally = run.finish(&*target).await;
        let since = counted_by(&client)
            .into_iter()
            .zip(counted)
            .map(|((name, now), (_, then))| (name.to_owned(), now - then));
        tally.client_counted = since.collect();
        let done = client.counters();
        tally.allocations = (memory, done.reads - before.reads + done.updates - before.updates);
        // The client checks the CRC of everything that it reads, whatever else is verified.
        let mismatches = client.counters().checksum_mismatches - before.checksum_mismatches;
        *tally.verify_errors.get_or_insert(0) += mismatches;
        if let Some(writes) = &mut tally.writes {
            writes.verify_errors.get_or_insert(0);
        }
        if let Some(target) = Rc::into_inner(target) {
            for file in target.files {
                file.close().await?;
            }
        }
        Ok(tally)
    }
}

struct NativeFiles {
    files: Vec<File>,
    /// Which of them must be made durable.
    written: Vec<Cell<bool>>,
    workload: Arc<Workload>,
    /// Memory of writes that are larger than any buffer of the pool.
    spare: RefCell<Vec<Vec<u8>>>,
}

impl NativeFiles {
    fn place(&self, offset: u64) -> (usize, u64) {
        let (file, place) = self.workload.place(offset);
        (file as usize, place)
    }

    /// A write that the client cuts into pieces, from memory of ours.
    async fn write_large(&self, offset: u64, length: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        let (file, place) = self.place(offset);
        let spare = self.spare.borrow_mut().pop();
        let mut bytes = spare.unwrap_or_default();
        bytes.resize(length, 0);
        fill(&mut bytes);
        let outcome = self.files[file].write_at(place, &bytes).await;
        self.spare.borrow_mut().push(bytes);
        outcome
    }
}

impl Target for NativeFiles {
    async fn read(&self, offsets: &[u64], length: usize, each: &mut dyn FnMut(usize, Result<&[u8]>)) {
        if let [offset] = offsets {
            let (file, place) = self.place(*offset);
            match self.files[file].read_at(place, length).await {
                Ok(data) => each(0, Ok(&data)),
                Err(error) => each(0, Err(error)),
            }
            return;
        }
        let read = |offset: &u64| {
            let (file, place) = self.place(*offset);
            (&self.files[file], place, length)
        };
        let reads: Vec<(&File, u64, usize)> = offsets.iter().map(read).collect();
        for (number, outcome) in read_batch(&reads).await.into_iter().enumerate() {
            match outcome {
                Ok(data) => each(number, Ok(&data)),
                Err(error) => each(number, Err(error)),
            }
        }
    }

    async fn write(&self, offset: u64, length: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        let (file, place) = self.place(offset);
        self.written[file].set(true);
        if length > BLOCK_MAX {
            return self.write_large(offset, length, fill).await;
        }
        let file = &self.files[file];
        let mut buffer = file.client().buffer(length).await?;
        fill(buffer.get_mut().ok_or(ErrorCode::Internal)?);
        file.write_buffer(place, buffer).await
    }

    async fn sync(&self) -> Result<()> {
        for (file, written) in self.files.iter().zip(&self.written) {
            if written.get() {
                file.sync().await?;
            }
        }
        Ok(())
    }

    async fn pause(&self, duration: Duration) {
        if duration < SLEEP_MIN { yield_now().await } else { executor::sleep(duration).await }
    }
}
