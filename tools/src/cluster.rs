//! A cluster on one machine: which processes it has and in which order they start. `up` keeps it running, `quickstart`
//! measures it.

use crate::directory::{Directory, Shape};
use crate::serving;
use crate::store::{self, Place};
use crate::supervise::{Spec, Supervisor};
use corefs_wire::limits::{CHUNK_DEFAULT, CHUNK_MAX, CHUNK_MIN, REPLICAS_MAX, SHARDS_A_CORE_MAX, SHARDS_MAX};
use corefs_wire::{Error, ErrorCode, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The manager's port when it is free; any other free one otherwise.
const MANAGER_PORT: u16 = 7400;
/// Smallest disk a node can work with: journals and checkpoints of its slices, and some data.
const CAPACITY_MIN: u64 = 1 << 30;
/// Preallocated by default at most, however large the disk is.
const CAPACITY_MAX_BY_DEFAULT: u64 = 64 << 30;

/// What a person asked for; what they left out is chosen here.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    pub nodes: Option<u32>,
    pub cores: Option<u32>,
    pub replicas: Option<u32>,
    pub targets: Option<u32>,
    pub chunk_size: Option<u64>,
    pub capacity: Option<u64>,
    pub port: Option<u16>,
    /// A FoundationDB for the metadata.
    pub kv: Option<Place>,
    /// Microseconds that shards poll before they sleep; of this start, not of the cluster.
    pub busy_poll: u64,
    /// By what shards' connections go; as above.
    pub transport: Option<String>,
    /// Bytes a second; may be another at each start.
    pub resync_rate: Option<u64>,
    pub scrub_rate: Option<u64>,
}

impl Wishes {
    /// The shape of a new cluster in `root`.
    fn choose(&self, root: &Path) -> Result<Shape> {
        let replicas = self.replicas.unwrap_or(1);
        let nodes = self.nodes.unwrap_or(replicas);
        let free = free_space(root)?;
        let by_default = (free / 2 / u64::from(nodes.max(1))).min(CAPACITY_MAX_BY_DEFAULT);
        let shape = Shape {
            nodes,
            cores: self.cores.unwrap_or((cpus() / nodes.max(1)).max(1)),
            replicas,
            targets: self.targets.unwrap_or_else(|| whole_chains(nodes, replicas)),
            chunk_size: u32::try_from(self.chunk_size.unwrap_or(CHUNK_DEFAULT.into())).unwrap_or(u32::MAX),
            capacity: self.capacity.unwrap_or(by_default) & !0xFFFFF,
            manager: format!("127.0.0.1:{}", free_port(self.port)?),
            kv: self.kv.clone().map(named).transpose()?.map(|place| place.text()),
            added: 0,
            removed: vec![],
        };
        check(&shape, free)?;
        Ok(shape)
    }

    /// Refuses wishes that an existing cluster doesn't have: silently serving something else would be a lie.
    fn agree(&self, shape: &Shape) -> Result<()> {
        let wishes = [
            // However it is counted.
            (
                "--nodes",
                self.nodes.filter(|nodes| *nodes as usize != shape.running().count()).map(u64::from),
                u64::from(shape.nodes),
            ),
            ("--cores", self.cores.map(u64::from), u64::from(shape.cores)),
            ("--replicas", self.replicas.map(u64::from), u64::from(shape.replicas)),
            ("--targets", self.targets.map(u64::from), u64::from(shape.targets)),
            ("--chunk-size", self.chunk_size, u64::from(shape.chunk_size)),
            ("--capacity", self.capacity.map(|bytes| bytes & !0xFFFFF), shape.capacity),
        ];
        for (flag, wish, is) in wishes {
            if let Some(wish) = wish.filter(|wish| *wish != is) {
                let what = format!(
                    "{flag} {wish}: this cluster was made with {is}; leave the flag out, or use a new --dir"
                );
                return Err(Error::mismatch(ErrorCode::BadConfig, is, wish, what));
            }
        }
        let Some(wish) = &self.kv else { return Ok(()) };
        let is = shape.kv.as_deref().map(store::of_up).transpose()?;
        // The name may be left out.
        let same = |is: &Place| {
            is.cluster_file == wish.cluster_file && (wish.name.is_none() || wish.name == is.name)
        };
        if !is.as_ref().is_some_and(same) {
            let is = shape.kv.as_deref().unwrap_or("its own directory");
            let what =
                format!("--kv {}: this cluster keeps metadata in {is}; leave the flag out", wish.text());
            return Err(Error::new(ErrorCode::BadConfig, what));
        }
        Ok(())
    }
}

/// Gives a new cluster a name in its FoundationDB, if a person gave none.
fn named(place: Place) -> Result<Place> {
    if place.name.is_some() {
        return Ok(place);
    }
    let mut number = [0; 8];
    getrandom::fill(&mut number).map_err(|error| Error::new(ErrorCode::Os, error.to_string()))?;
    Ok(Place { name: Some(format!("up-{:016x}", u64::from_le_bytes(number))), ..place })
}

/// Cores that this process may use.
fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u32)
}

/// Targets a node by default: at least 32, and as many as make whole chains.
fn whole_chains(nodes: u32, replicas: u32) -> u32 {
    let replicas = u64::from(replicas.max(1));
    let divides = |targets: &u32| (u64::from(nodes) * u64::from(*targets)).is_multiple_of(replicas);
    (32..32 + REPLICAS_MAX as u32 * 2).find(divides).unwrap_or(32)
}

fn check(shape: &Shape, free: u64) -> Result<()> {
    let bad = |what: String| Err(Error::new(ErrorCode::BadConfig, what));
    let Shape { nodes, cores, replicas, targets, chunk_size, capacity, .. } = shape;
    if *replicas == 0 || *replicas as usize > REPLICAS_MAX {
        return bad(format!("--replicas {replicas}: between 1 and {REPLICAS_MAX} copies are possible"));
    }
    if nodes < replicas {
        return bad(format!(
            "--nodes {nodes} can't hold --replicas {replicas}: each copy is on its own node"
        ));
    }
    if *nodes > 64 {
        return bad(format!("--nodes {nodes}: at most 64 on one machine"));
    }
    let most = (cpus() * SHARDS_A_CORE_MAX as u32).min(SHARDS_MAX as u32);
    if *cores == 0 || *cores > most {
        let what = format!(
            "--cores {cores}: a node can have 1 to {most} shards here; more than {} share cores and gain nothing",
            cpus()
        );
        return bad(what);
    }
    if *targets == 0 || *targets > 1024 {
        return bad(format!("--targets {targets}: between 1 and 1024 targets a node are possible"));
    }
    if !(u64::from(*nodes) * u64::from(*targets)).is_multiple_of(u64::from(*replicas)) {
        return bad(format!(
            "--nodes {nodes} x --targets {targets} doesn't divide into chains of {replicas}"
        ));
    }
    if !chunk_size.is_power_of_two() || !(CHUNK_MIN..=CHUNK_MAX).contains(chunk_size) {
        return bad(format!(
            "--chunk-size {chunk_size}: a power of two from {CHUNK_MIN} to {CHUNK_MAX} bytes"
        ));
    }
    if *capacity < CAPACITY_MIN {
        let what = format!(
            "--capacity {capacity}: a node needs at least {CAPACITY_MIN} bytes ({free} are free here)"
        );
        return Err(Error::new(ErrorCode::NoSpace, what));
    }
    let all = capacity.saturating_mul(u64::from(*nodes));
    if all > free {
        let what = format!(
            "{nodes} nodes of {capacity} bytes need {all} bytes, {free} are free; give a smaller --capacity"
        );
        return Err(Error::mismatch(ErrorCode::NoSpace, all, free, what));
    }
    Ok(())
}

/// A running cluster. Dropping it stops it.
pub struct Cluster {
    pub supervisor: Supervisor,
    pub manager: String,
    pub shape: Shape,
}

/// Opens `directory`'s cluster, or makes it, and starts all of its roles. `say` is told what is being done.
pub fn start(directory: &Directory, wishes: &Wishes, say: &mut dyn FnMut(String)) -> Result<Cluster> {
    let shape = match directory.shape()? {
        Some(shape) => {
            wishes.agree(&shape)?;
            shape.kv.as_deref().map_or(Ok(()), |kv| store::try_out(kv, false))?;
            shape
        }
        None => {
            let shape = wishes.choose(directory.root())?;
            shape.kv.as_deref().map_or(Ok(()), |kv| store::try_out(kv, true))?;
            directory.create(&shape)?;
            shape
        }
    };
    let mut supervisor = Supervisor::new()?;
    let mut launch = |name: &str, log: PathBuf, args: Vec<OsString>| {
        say(format!("starting {name}"));
        // All listeners are on loopback, where no secret is asked for (docs/adr/0006).
        let mut all = args;
        all.extend(log_filter());
        supervisor.start(Spec { name: name.to_owned(), args: all, log })
    };
    let embedded = || -> Vec<OsString> {
        let (dir, listen) = (directory.kv().into(), directory.kv_address().into());
        let mut args = vec!["kv".into(), "--dir".into(), dir, "--listen".into(), listen];
        // Its metadata server is in the same process: one hop less for every operation.
        args.extend([
            "--meta".into(),
            "127.0.0.1:0".into(),
            "--manager".into(),
            shape.manager.clone().into(),
        ]);
        args
    };
    let kv = match &shape.kv {
        Some(kv) => kv.clone(),
        None => launch("kv", directory.log("kv"), embedded())?,
    };
    let number = |value: u32| OsString::from(value.to_string());
    let manager = launch(
        "mgmtd",
        directory.log("mgmtd"),
        vec![
            "mgmtd".into(),
            "--kv".into(),
            kv.clone().into(),
            "--listen".into(),
            shape.manager.clone().into(),
            "--nodes".into(),
            number(shape.nodes),
            "--replicas".into(),
            number(shape.replicas),
            "--targets".into(),
            number(shape.targets),
            "--chunk-size".into(),
            number(shape.chunk_size),
        ],
    )?;
    for node in shape.running() {
        let (name, log, args) = storage(directory, wishes, &shape, &manager, node);
        launch(&name, log, args)?;
    }
    match &shape.kv {
        None => supervisor.hear("kv", "meta ").map(drop)?,
        Some(_) => {
            let meta =
                vec!["meta".into(), "--kv".into(), kv.into(), "--manager".into(), manager.clone().into()];
            launch("meta", directory.log("meta"), meta)?;
        }
    }
    match serving::wait(&shape.manager) {
        // What is missing may come later, and is no reason to keep the rest from anybody.
        Err(error) if error.code == ErrorCode::NotReady => say(error.message),
        outcome => outcome?,
    }
    Ok(Cluster { supervisor, manager, shape })
}

/// How a storage node is started.
fn storage(
    directory: &Directory,
    wishes: &Wishes,
    shape: &Shape,
    manager: &str,
    node: u32,
) -> (String, PathBuf, Vec<OsString>) {
    let flag = |name: &str, rate: Option<u64>| rate.map(|rate| [name.into(), rate.to_string().into()]);
    let rates = [flag("--resync-rate", wishes.resync_rate), flag("--scrub-rate", wishes.scrub_rate)];
    let mut args: Vec<OsString> = vec![
        "storage".into(),
        "--dir".into(),
        directory.node(node).into(),
        "--manager".into(),
        manager.into(),
        "--cores".into(),
        shape.cores.to_string().into(),
        "--first-core".into(),
        ((node - 1) * shape.cores % cpus()).to_string().into(),
        "--capacity".into(),
        shape.capacity.to_string().into(),
        "--busy-poll".into(),
        wishes.busy_poll.to_string().into(),
    ];
    args.extend(rates.into_iter().flatten().flatten());
    args.extend(wishes.transport.iter().flat_map(|transport| ["--transport".into(), transport.into()]));
    (format!("storage node-{node}"), directory.log(&format!("node-{node}")), args)
}

/// Starts nodes that `corefs node add --dir` has asked for since, and stops those that `corefs node remove --dir` named.
pub fn follow(
    directory: &Directory,
    wishes: &Wishes,
    cluster: &mut Cluster,
    say: &mut dyn FnMut(String),
) -> Result<()> {
    let Some(shape) = directory.shape()? else { return Ok(()) };
    let before: Vec<u32> = cluster.shape.running().collect();
    (cluster.shape.added, cluster.shape.removed) = (shape.added, shape.removed.clone());
    for node in before.iter().filter(|node| shape.removed.contains(node)) {
        let name = format!("storage node-{node}");
        say(format!("stopping {name}: it was removed"));
        cluster.supervisor.retire(&name);
    }
    for node in shape.running().filter(|node| !before.contains(node)) {
        let (name, log, mut args) = storage(directory, wishes, &shape, &cluster.manager, node);
        say(format!("starting {name}"));
        args.extend(log_filter());
        // Without waiting: the others are looked after meanwhile. One that can't even be forked isn't tried again until `corefs up` is.
        if let Err(error) = cluster.supervisor.launch(Spec { name, args, log }) {
            say(error.to_string());
        }
    }
    Ok(())
}

fn log_filter() -> Vec<OsString> {
    std::env::var("COREFS_LOG").map(|filter| vec!["--log".into(), filter.into()]).unwrap_or_default()
}

/// Adds a mount to a running cluster, as one more supervised process.
pub fn mount(directory: &Directory, cluster: &mut Cluster, path: &Path) -> Result<()> {
    let args = vec!["mount".into(), "--manager".into(), cluster.manager.clone().into(), path.into()];
    let spec = Spec { name: format!("mount {}", path.display()), args, log: directory.log("mount") };
    cluster.supervisor.start(spec).map(drop)
}

/// Bytes that this user may still write on the file system of `path`.
pub fn free_space(path: &Path) -> Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::new(ErrorCode::BadConfig, "a path can't contain a NUL byte"))?;
    // SAFETY: statvfs only writes to the zeroed struct, and `name` is NUL-terminated.
    let stat = unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        if libc::statvfs(name.as_ptr(), &mut stat) != 0 {
            return Err(Error::from(std::io::Error::last_os_error()).of(path.display()));
        }
        stat
    };
    Ok(stat.f_bavail * stat.f_frsize)
}

fn free_port(wish: Option<u16>) -> Result<u16> {
    let listen =
        |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).and_then(|socket| socket.local_addr());
    let address = match wish {
        Some(port) => listen(port).map_err(|error| Error::from(error).of(format!("--port {port}")))?,
        None => listen(MANAGER_PORT).or_else(|_| listen(0))?,
    };
    Ok(address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_replicas_get_three_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let wishes =
            Wishes { replicas: Some(3), capacity: Some(1 << 30), targets: Some(33), ..Wishes::default() };
        let shape = wishes.choose(dir.path()).unwrap();
        assert_eq!((shape.nodes, shape.replicas), (3, 3));
        assert!(shape.cores >= 1);
        wishes.agree(&shape).unwrap();
        let other = Wishes { replicas: Some(2), ..Wishes::default() };
        assert_eq!(other.agree(&shape).unwrap_err().code, ErrorCode::BadConfig);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let check = |wishes: Wishes, flag: &str, code: ErrorCode| {
            let error = wishes.choose(dir.path()).unwrap_err();
            assert!(error.message.contains(flag) && error.code == code, "{error}");
        };
        let bad = ErrorCode::BadConfig;
        check(Wishes { replicas: Some(0), ..Wishes::default() }, "--replicas", bad);
        check(Wishes { replicas: Some(3), nodes: Some(2), ..Wishes::default() }, "--nodes", bad);
        check(Wishes { chunk_size: Some(100_000), ..Wishes::default() }, "--chunk-size", bad);
        check(Wishes { cores: Some(0), ..Wishes::default() }, "--cores", bad);
        check(
            Wishes { replicas: Some(3), targets: Some(32), nodes: Some(4), ..Wishes::default() },
            "divide",
            bad,
        );
        check(Wishes { capacity: Some(1), ..Wishes::default() }, "--capacity", ErrorCode::NoSpace);
        check(Wishes { capacity: Some(1 << 60), ..Wishes::default() }, "--capacity", ErrorCode::NoSpace);
    }
}
