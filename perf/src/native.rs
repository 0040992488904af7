//! A workload through the native client: one executor and one client a core, each with its own connections.

use crate::cpu::{CpuTime, Whose};
use crate::driver::{CoreRun, Live, Target, conduct, fresh_generation};
use crate::mounted::Processes;
use crate::progress::Watch;
use crate::report::Tally;
use crate::workload::{Direction, Until, Workload};
use corefs_client::file::read_batch;
use corefs_client::{
    Client, ClientOptions, ClientPool, CreateOptions, Credentials, File, OpenOptions, PoolOptions,
};
use corefs_net::{Address, Secret};
use corefs_wire::control::{Call, Message, process};
use corefs_wire::{Error, ErrorCode, Result};
use futures_lite::future::yield_now;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// How long a server may take to say what it has used.
const ASK: Duration = Duration::from_secs(2);
/// Sleeping less than this isn't worth it: other lanes have work.
const SLEEP_MIN: Duration = Duration::from_micros(200);
/// Until all cores have opened the file: those that are late find the warm-up.
const HEAD_START: Duration = Duration::from_millis(100);

/// The clients that drive runs, and where they connect to. Stop it with [`stop`](Self::stop).
pub struct Native {
    pool: ClientPool,
    /// Servers' process ids; empty: the storage nodes are asked.
    servers: Vec<u32>,
}

impl Native {
    /// Connects a client on each of `cores` cores, which polls for `busy_poll` before it sleeps.
    pub fn connect(
        managers: Vec<Address>,
        secret: Option<Secret>,
        cores: u32,
        busy_poll: Duration,
    ) -> Result<Self> {
        let mut options = ClientOptions { busy_poll, ..ClientOptions::new(managers, secret) };
        options.name = "perf".into();
        let available = core_affinity::get_core_ids().unwrap_or_default();
        // The last cores first: servers pin themselves to the first ones.
        let pinned = available.iter().rev().cycle().take(cores as usize).map(|core| core.id).collect();
        let pool = ClientPool::start(options, PoolOptions { cores: pinned, ..PoolOptions::default() })?;
        Ok(Self { pool, servers: Vec::new() })
    }

    /// Takes the servers' CPU time from these processes of this machine instead of asking the storage nodes.
    pub fn measure_servers(&mut self, pids: Vec<u32>) {
        self.servers = pids;
    }

    /// Runs `workload` on the file at `path`: absolute, in corefs. Files to be written are created.
    pub fn run(&self, path: &Path, workload: &Workload, live: &Arc<Live>, watch: Watch) -> Result<Tally> {
        if workload.cores as usize > self.pool.shards() {
            let what = format!("{} cores of {} clients", workload.cores, self.pool.shards());
            return Err(Error::new(ErrorCode::Internal, what));
        }
        let shared = Arc::new(Shared {
            path: path_bytes(path),
            workload: Arc::new(workload.clone()),
            live: Arc::clone(live),
            generation: fresh_generation(),
        });
        if workload.direction == Direction::Write {
            let shared = Arc::clone(&shared);
            self.pool.block_on(0, move |client| async move { shared.create(&client).await })?;
        }
        let begin = Instant::now() + HEAD_START;
        let (send, receive) = mpsc::channel();
        for core in 0..workload.cores {
            let (shared, send) = (Arc::clone(&shared), send.clone());
            self.pool.run(core as usize, move |client| async move {
                let outcome = shared.drive(client, core, begin).await;
                // The conductor may have given up already.
                let _gone = send.send(outcome);
            })?;
        }
        drop(send);
        let tally = conduct(workload, begin, live, &mut || self.meter(), watch, workload.name(), &receive);
        if tally.is_err() {
            live.stop();
        }
        tally
    }

    /// Makes a file of `bytes` that is fully written with the pattern of `seed`, unless it is there already and long
    /// enough.
    pub fn prepare(&self, path: &Path, bytes: u64, seed: u64, live: &Arc<Live>, watch: Watch) -> Result<()> {
        match self.length(path)? {
            Some(length) if length >= bytes => return Ok(()),
            Some(length) => {
                let what = format!(
                    "{} has {length} bytes and {bytes} are needed; remove it, or name another",
                    path.display()
                );
                return Err(Error::new(ErrorCode::BadConfig, what));
            }
            None => {}
        }
        let tally = self.run(path, &Workload::layout(bytes, seed), live, watch)?;
        if tally.errors > 0 || live.stopped() {
            let why = tally.first_error.unwrap_or_else(|| "interrupted".into());
            return Err(Error::new(ErrorCode::Os, format!("writing {}: {why}", path.display())));
        }
        Ok(())
    }

    /// Bytes of a file, `None` if there isn't one.
    pub fn length(&self, path: &Path) -> Result<Option<u64>> {
        let path = path_bytes(path);
        let stat =
            move |client: Client| async move { client.fs(Credentials::of_process()).stat(&path).await };
        match self.pool.block_on(0, stat) {
            Ok(attr) => Ok(Some(attr.size)),
            Err(error) if error.code == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(error),
        }
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

    pub(crate) fn meter(&self) -> (Option<CpuTime>, Option<CpuTime>) {
        if !self.servers.is_empty() {
            return Processes { client: Vec::new(), server: self.servers.clone() }.meter();
        }
        let asked = self.pool.block_on(0, |client| async move { ask_nodes(&client).await });
        (Some(CpuTime::own(Whose::Process)), asked.ok())
    }
}

/// CPU time that all storage nodes have used so far.
async fn ask_nodes(client: &Client) -> Result<CpuTime> {
    let routing = client.routing();
    let mut sum = CpuTime::default();
    for node in routing.nodes.values() {
        let body = process::GetProcessT::default().encode();
        let address: Address = node.control.parse()?;
        let reply = client.node().call(&address, process::GetProcessT::OP, &body, None, ASK).await?;
        let reply = process::ProcessT::decode(&reply.body)?;
        sum = sum.plus(CpuTime { user_us: reply.user_us, system_us: reply.system_us });
    }
    Ok(sum)
}

fn path_bytes(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes().to_vec()
}

struct Shared {
    path: Vec<u8>,
    workload: Arc<Workload>,
    live: Arc<Live>,
    generation: u64,
}

impl Shared {
    async fn create(&self, client: &Client) -> Result<()> {
        // A run that writes each block once makes the file anew; others write into what is there.
        let truncate = self.workload.until == Until::Once;
        let options = CreateOptions { truncate, direct: true, ..CreateOptions::default() };
        client.fs(Credentials::of_process()).create(&self.path, options).await?.close().await
    }

    async fn drive(&self, client: Client, core: u32, begin: Instant) -> Result<Tally> {
        let write = self.workload.direction == Direction::Write;
        let options = OpenOptions { write, truncate: false, direct: true };
        let file = client.fs(Credentials::of_process()).open(&self.path, options).await?;
        let before = client.counters().checksum_mismatches;
        let target = Rc::new(NativeFile { file });
        let run = Rc::new(CoreRun::new(&self.workload, core, begin, self.generation, &self.live));
        let lanes: Vec<_> = (0..self.workload.lanes())
            .map(|_| {
                let (run, target) = (Rc::clone(&run), Rc::clone(&target));
                corefs_net::executor::spawn(async move { run.lane(&*target).await })
            })
            .collect();
        for lane in lanes {
            lane.await;
        }
        let mut tally = run.finish(&*target).await;
        // The client checks the CRC of everything that it reads, whatever else is verified.
        let mismatches = client.counters().checksum_mismatches - before;
        *tally.verify_errors.get_or_insert(0) += mismatches;
        if let Some(target) = Rc::into_inner(target) {
            target.file.close().await?;
        }
        Ok(tally)
    }
}

struct NativeFile {
    file: File,
}

impl Target for NativeFile {
    async fn read(&self, offsets: &[u64], length: usize, each: &mut dyn FnMut(usize, Result<&[u8]>)) {
        if let [offset] = offsets {
            match self.file.read_at(*offset, length).await {
                Ok(data) => each(0, Ok(&data)),
                Err(error) => each(0, Err(error)),
            }
            return;
        }
        let reads: Vec<(&File, u64, usize)> =
            offsets.iter().map(|offset| (&self.file, *offset, length)).collect();
        for (number, outcome) in read_batch(&reads).await.into_iter().enumerate() {
            match outcome {
                Ok(data) => each(number, Ok(&data)),
                Err(error) => each(number, Err(error)),
            }
        }
    }

    async fn write(&self, offset: u64, length: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        let pool = self.file.client().pool();
        let mut buffer = loop {
            match pool.get(length) {
                Some(buffer) => break buffer,
                // Other lanes' replies give memory back.
                None => self.pause(SLEEP_MIN).await,
            }
        };
        fill(buffer.get_mut().ok_or(ErrorCode::Internal)?);
        self.file.write_buffer(offset, buffer).await
    }

    async fn sync(&self) -> Result<()> {
        self.file.sync().await
    }

    async fn pause(&self, duration: Duration) {
        if duration < SLEEP_MIN { yield_now().await } else { corefs_net::executor::sleep(duration).await }
    }
}
