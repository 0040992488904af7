//! `corefs up`: a cluster on this machine, kept running in the foreground.

use crate::cluster::{self, Wishes};
use crate::directory::Directory;
use crate::{output, signals, store};
use corefs_perf::args::{Bytes, Rate};
use corefs_wire::Result;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Start a cluster on this machine and keep it running until interrupted.
///
/// The first start makes the cluster in --dir; every later start on the same directory brings back everything in it.
/// Prints one line `ready manager=ADDRESS` when it serves. Each node and role is a process of its own; one that dies
/// is started again and reported. Ctrl-C (or SIGTERM) stops everything cleanly.
///
/// Metadata is in an embedded store: one copy, on this machine's disk; or in FoundationDB, with --kv. Data has as many copies as
/// --replicas says.
#[derive(clap::Args)]
pub struct Args {
    /// Directory of the cluster; made when it isn't there.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Shards (pinned cores) of each storage node [default: the machine's cores over the nodes, at least 1].
    #[arg(long, value_name = "N")]
    cores: Option<u32>,
    /// Targets (replica stores) on each node [default: 32].
    #[arg(long, value_name = "N")]
    targets: Option<u32>,
    /// Storage nodes [default: as many as replicas].
    #[arg(long, value_name = "N")]
    nodes: Option<u32>,
    /// Copies of each chunk, each on its own node [default: 1].
    #[arg(long, value_name = "R")]
    replicas: Option<u32>,
    /// Bytes of a chunk: a power of two from 64KiB to 64MiB [default: 512KiB].
    #[arg(long, value_name = "SIZE")]
    chunk_size: Option<Bytes>,
    /// Disk space each node preallocates [default: half of what is free over the nodes, at most 64GiB].
    #[arg(long, value_name = "SIZE")]
    capacity: Option<Bytes>,
    /// The manager's port [default: 7400, or any free one when that's taken; kept for later starts].
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Keep metadata in the FoundationDB of this cluster file, under a name of the cluster's own if none is given: fdb:CLUSTER_FILE
    /// or fdb:CLUSTER_FILE#NAME. For the life of the cluster [default: in --dir].
    #[arg(long, value_name = "STORE")]
    kv: Option<String>,
    /// Microseconds that the storage nodes' shards poll for work before they sleep. On cores that nobody else needs, 50 spare a
    /// lone request most of a wake-up; on shared ones polling takes the others' time.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    busy_poll: u64,
    /// By what connections of storage nodes go: auto (RDMA where both ends have it and it works, TCP otherwise), tcp, or rdma (an error
    /// where there is none, here or at a storage node, or it doesn't work) [default: auto].
    #[arg(long, value_name = "WAY", env = "COREFS_TRANSPORT")]
    transport: Option<String>,
    /// Bytes a second at which each node fills replicas that came back [default: 50MiB].
    #[arg(long, value_name = "SIZE")]
    resync_rate: Option<Bytes>,
    /// Bytes a second at which each node verifies what it stores in the background, at most; 0: not at all [default: 32MiB].
    #[arg(long, value_name = "SIZE")]
    scrub_rate: Option<Rate>,
    /// Also mount the file system here (an existing directory).
    #[arg(long, value_name = "PATH")]
    mount: Option<PathBuf>,
    /// Print the ready line as JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let directory = Directory::open(&args.dir)?;
    let wishes = Wishes {
        nodes: args.nodes,
        cores: args.cores,
        replicas: args.replicas,
        targets: args.targets,
        chunk_size: args.chunk_size.map(|bytes| bytes.0),
        capacity: args.capacity.map(|bytes| bytes.0),
        port: args.port,
        kv: args.kv.as_deref().map(store::of_up).transpose()?,
        busy_poll: args.busy_poll,
        transport: args.transport.clone(),
        resync_rate: args.resync_rate.map(|bytes| bytes.0),
        scrub_rate: args.scrub_rate.map(|bytes| bytes.0),
    };
    let mut cluster = cluster::start(&directory, &wishes, &mut |line| eprintln!("corefs: {line}"))?;
    if let Some(path) = &args.mount {
        cluster::mount(&directory, &mut cluster, path)?;
    }
    announce(&args, &directory, &cluster)?;
    while !signals::wait_for(Duration::from_millis(100)) {
        cluster.supervisor.look(&mut |line| eprintln!("corefs: {line}"));
        let mut say = |line| eprintln!("corefs: {line}");
        if let Err(error) = cluster::follow(&directory, &wishes, &mut cluster, &mut say) {
            eprintln!("corefs: {error}");
        }
    }
    eprintln!("corefs: stopping");
    let complaints = cluster.supervisor.stop();
    for complaint in &complaints {
        eprintln!("corefs: while stopping, {complaint}");
    }
    Ok(ExitCode::from(u8::from(!complaints.is_empty())))
}

fn announce(args: &Args, directory: &Directory, cluster: &cluster::Cluster) -> Result<()> {
    if args.json {
        return output::json(&serde_json::json!({
            "ready": true,
            "manager": cluster.manager,
            "mount": args.mount,
            "secret_file": directory.secret_file(),
            "processes": cluster.supervisor.pids().into_iter()
                .map(|(name, pid)| serde_json::json!({"name": name, "pid": pid})).collect::<Vec<_>>(),
        }));
    }
    let mount = args.mount.as_ref().map(|path| format!(" mount={}", path.display())).unwrap_or_default();
    output::line(&format!("ready manager={}{mount}", cluster.manager))
}
