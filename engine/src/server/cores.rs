//! The shards' threads: one pinned executor each.

use super::Options;
use super::home::{Home, HomeSlice};
use super::membership::first;
use super::plan::{CorePlan, Nic};
use crate::disk::file::DiskFile;
use crate::mesh::{Answer, Awaited, ShardHandle, ShardMessage, ShardReport, answer};
use crate::shard::{Shard, ShardConfig, SliceSpec};
use corefs_net::{Address, Identity, executor};
use corefs_wire::{Error, ErrorCode, Result, ShardIndex, SliceIndex};
use glommio::{ExecutorJoinHandle, Placement};
use std::cell::RefCell;
use std::future::Future;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;

/// A shard on its thread, as the control endpoint sees it.
pub struct Core {
    pub shard: ShardIndex,
    pub address: Address,
    pub handle: ShardHandle,
    thread: RefCell<Option<ExecutorJoinHandle<()>>>,
    /// How its loop ends, until [`failure`] waits for that.
    end: RefCell<Option<Awaited<Result<()>>>>,
}

impl Core {
    /// Waits for the thread to end.
    pub fn join(&self) {
        if let Some(thread) = self.thread.borrow_mut().take()
            && let Err(error) = thread.join()
        {
            tracing::error!(shard = %self.shard, %error, "the shard's thread failed");
        }
    }
}

/// Cores that this process may use.
pub fn present() -> usize {
    core_affinity::get_core_ids().map_or(1, |cores| cores.len())
}

/// Holds a free port for each shard until it listens there itself: the manager has to know the addresses first.
pub fn reserve(ip: IpAddr, shards: usize) -> Result<Vec<(TcpListener, Address)>> {
    let hold = |_| {
        let listener = TcpListener::bind(SocketAddr::new(ip, 0));
        let listener = listener.map_err(|error| Error::from(error).of(format_args!("listening on {ip}")))?;
        let address = Address::from(listener.local_addr()?);
        Ok((listener, address))
    };
    (0..shards).map(hold).collect()
}

/// Starts all shards and waits until each has recovered its slices. The first error stops the others again.
///
/// Slices that can't be opened are named, and logged: what a disk has lost is for its chains to replace, and no reason to keep
/// the others from serving. Only if not a single one can be opened is that an error.
pub async fn start(
    options: &Options,
    home: &Home,
    identity: &Identity,
    disks: Vec<Option<DiskFile>>,
    reserved: Vec<(TcpListener, Address)>,
) -> Result<(Vec<Core>, Vec<SliceIndex>)> {
    let node = home.node().ok_or(ErrorCode::Internal)?;
    let paths: Vec<PathBuf> = disks.iter().flatten().map(|disk| disk.path().to_path_buf()).collect();
    let plan = CorePlan::of(&paths, Nic::of(options.listen), options.first_core);
    let mut starting = Vec::new();
    for (index, (listener, listen)) in reserved.into_iter().enumerate() {
        let ours = |slice: &HomeSlice| usize::from(slice.index.0) % options.cores == index;
        let present = |disk: usize| disks[..disk].iter().flatten().count();
        let slices = home.slices().into_iter().filter(|slice| ours(slice) && disks[slice.disk].is_some());
        let specs = slices.map(|slice| SliceSpec {
            index: slice.index,
            disk: present(slice.disk),
            extent: slice.extent,
            store: slice.store,
            format: home.is_fresh(slice.disk),
        });
        let shared: Result<Vec<DiskFile>> = disks.iter().flatten().map(DiskFile::share).collect();
        let config = ShardConfig {
            node,
            shard: ShardIndex(index as u16),
            identity: identity.clone(),
            listen,
            disks: shared?,
            slices: specs.collect(),
            way: options.way,
            discard: options.discard,
            busy_poll: options.busy_poll,
            transport: options.transport,
            resync_rate: (options.resync_rate / options.cores as u64).max(1),
            scrub_rate: match options.scrub_rate {
                0 => 0,
                rate => (rate / options.cores as u64).max(1),
            },
            pool_bytes: options.pool_bytes,
            record: options.record.as_ref().map(|path| numbered(path, index)),
            strict: std::env::var_os("COREFS_STRICT").is_some(),
        };
        let core = plan.place(index).map(|place| place.cpu);
        drop(listener);
        starting.push(launch(config, core)?);
    }
    let (mut cores, mut unopened) = (Vec::new(), Vec::new());
    let (mut asked, mut failure) = (0, None);
    for Launched { shard, thread, started, end } in starting {
        match started.await.and_then(|started| started) {
            Ok((handle, address, slices, failed)) => {
                asked += slices;
                unopened.extend(failed);
                let (thread, end) = (RefCell::new(Some(thread)), RefCell::new(Some(end)));
                cores.push(Core { shard, address, handle, thread, end });
            }
            Err(error) => {
                let _ended = thread.join();
                failure.get_or_insert(error);
            }
        }
    }
    for (slice, error) in &unopened {
        tracing::error!(%slice, %error, "can't be opened, and isn't served");
    }
    if asked == unopened.len()
        && let Some((_, error)) = unopened.first()
    {
        failure.get_or_insert(error.clone());
    }
    match failure {
        None => Ok((cores, unopened.into_iter().map(|(slice, _)| slice).collect())),
        Some(error) => {
            stop(&cores).await;
            Err(error)
        }
    }
}

fn numbered(path: &std::path::Path, index: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{index}"));
    name.into()
}

/// How to reach it, how many slices it was to open, and those that it couldn't.
type Started = Result<(ShardHandle, Address, usize, Vec<(SliceIndex, Error)>)>;

struct Launched {
    shard: ShardIndex,
    thread: ExecutorJoinHandle<()>,
    started: Awaited<Started>,
    end: Awaited<Result<()>>,
}

fn launch(config: ShardConfig, core: Option<usize>) -> Result<Launched> {
    let shard = config.shard;
    let ((tell, started), (tell_end, end)) = (answer(), answer());
    let placement = core.map_or(Placement::Unbound, Placement::Fixed);
    let builder = executor::builder(placement).name(&format!("shard-{}", shard.0));
    let thread = builder.spawn(move || serve(config, tell, tell_end));
    let thread = thread.map_err(|error| Error::new(ErrorCode::Os, format!("starting {shard}: {error}")))?;
    Ok(Launched { shard, thread, started, end })
}

/// The life of a shard's thread.
async fn serve(config: ShardConfig, tell: Answer<Started>, tell_end: Answer<Result<()>>) {
    let slices = config.slices.len();
    let shard = match Shard::start(config) {
        Ok(shard) => shard,
        Err(error) => return tell.send(Err(error)),
    };
    tell.send(Ok((shard.handle(), shard.address().clone(), slices, shard.unopened().to_vec())));
    // Whoever waits for it has heard.
    let _ended = shard.run_telling(|end| tell_end.send(end.clone()));
}

/// Which shard's loop has failed first, and why. `None` when all have ended as they were told.
pub fn failure(cores: &[Core]) -> impl Future<Output = Option<(ShardIndex, Error)>> + use<> {
    let end = |core: &Core| {
        let (shard, end) = (core.shard, core.end.take()?);
        Some(Box::pin(async move { (shard, end.await.and_then(|end| end)) }))
    };
    let mut open: Vec<_> = cores.iter().filter_map(end).collect();
    async move {
        while !open.is_empty() {
            if let (shard, Err(error)) = first(&mut open).await {
                return Some((shard, error));
            }
        }
        None
    }
}

/// What every shard reports.
pub async fn reports(cores: &[Core]) -> Result<Vec<ShardReport>> {
    let mut awaited = Vec::new();
    for core in cores {
        let (tell, wait) = answer();
        core.handle.send(ShardMessage::Report(tell))?;
        awaited.push(wait);
    }
    let mut reports = Vec::new();
    for wait in awaited {
        reports.push(wait.await?);
    }
    Ok(reports)
}

/// Has these shards finish and write everything down.
pub async fn drain(cores: impl IntoIterator<Item = &Core>) {
    let mut awaited = Vec::new();
    for core in cores {
        let (tell, wait) = answer();
        if core.handle.send(ShardMessage::Drain(tell)).is_ok() {
            awaited.push(wait);
        }
    }
    for wait in awaited {
        // A shard that ended without an answer has ended all the same.
        let _drained = wait.await;
    }
}

/// Drains all shards and joins their threads.
pub async fn stop(cores: &[Core]) {
    drain(cores).await;
    cores.iter().for_each(Core::join);
}
