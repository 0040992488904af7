//! `corefs storage`: a storage node.

use crate::{config, role};
use corefs_engine::server::{Options, StorageServer};
use corefs_perf::args::{Bytes, Rate};
use corefs_wire::{Error, ErrorCode, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Run a storage node: one executor pinned to each of its cores, each with its own ring, sockets and slices of the disk.
///
/// The first start preallocates and formats the disk in --dir; later starts recover it. A directory belongs to one node of
/// one cluster and is refused to any other.
#[derive(clap::Args, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Args {
    /// TOML file with settings, section [storage]; flags win.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Directory of the node: its identity and its disk.
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    dir: Option<PathBuf>,
    /// Address of a manager; repeat for several.
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    manager: Vec<String>,
    /// Shards: pinned executors [default: 1].
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    cores: Option<u32>,
    /// Which of this process's cores the first shard takes; the others follow [default: one near the block devices, or 0; `corefs doctor`
    /// shows the plan].
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    first_core: Option<usize>,
    /// Disk space preallocated at the first start [default: 64GiB].
    #[arg(long, value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    capacity: Option<Bytes>,
    /// IP address to serve on; each shard takes a free port [default: 127.0.0.1].
    #[arg(long, value_name = "IP")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<String>,
    /// Failure domain, such as a rack [default: none].
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
    /// By which way shards reach their disks: auto, passthrough (NVMe), polled (a block device whose completions are polled for) or
    /// plain [default: auto, the first of these that works; `corefs doctor` shows which].
    #[arg(long, value_name = "WAY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_way: Option<String>,
    /// Tell block devices at the start which space is free (discard; deallocate in the terms of NVMe), so that they needn't keep it. On a large
    /// drive that takes a while [default: no].
    #[arg(long, value_name = "YES", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    discard: Option<bool>,
    /// By what connections go: auto (RDMA where both ends have it and it works, TCP otherwise), tcp, or rdma (an error
    /// where there is none, here or at a storage node, or it doesn't work) [default: auto].
    /// `corefs doctor` shows what there is.
    #[arg(long, value_name = "WAY", env = "COREFS_TRANSPORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    transport: Option<String>,
    /// Microseconds a shard polls for work before it sleeps [default: 0]. On cores that nobody else needs, 50 spare a lone
    /// request most of a wake-up.
    #[arg(long, value_name = "MICROSECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    busy_poll: Option<u64>,
    /// Bytes a second at which this node fills replicas that came back [default: 50MiB].
    #[arg(long, value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    resync_rate: Option<Bytes>,
    /// Bytes a second at which this node verifies what it stores in the background, at most; it takes about a week for all of
    /// it where that is slower. 0: not at all [default: 32MiB].
    #[arg(long, value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    scrub_rate: Option<Rate>,
    /// File with the cluster's secret.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_file: Option<PathBuf>,
    /// Record every disk write, flush and acknowledgment here, for power-cut tests.
    #[arg(long, value_name = "FILE", hide = true)]
    #[serde(skip)]
    record: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let record = args.record.clone();
    let args: Args = config::merge("storage", args.config.as_deref(), &args)?;
    let mut options =
        Options::new(config::required(args.dir, "storage", "dir")?, role::managers(&args.manager)?);
    options.record = record;
    options.secret = role::secret(args.secret_file.as_deref())?;
    if let Some(cores) = args.cores {
        options.cores = cores as usize;
    }
    options.first_core = args.first_core;
    options.discard = args.discard.unwrap_or(false);
    if let Some(capacity) = args.capacity {
        options.capacity = capacity.0;
    }
    if let Some(listen) = &args.listen {
        let bad = |error| {
            Error::new(ErrorCode::BadConfig, format!("--listen {listen}: {error}; give an IP address"))
        };
        options.listen = listen.parse().map_err(bad)?;
    }
    if let Some(domain) = args.domain {
        options.domain = domain;
    }
    if let Some(way) = &args.disk_way {
        options.way = way.parse()?;
    }
    if let Some(transport) = &args.transport {
        options.transport = transport.parse()?;
    }
    if let Some(busy_poll) = args.busy_poll {
        options.busy_poll = Duration::from_micros(busy_poll);
    }
    if let Some(rate) = args.resync_rate {
        options.resync_rate = rate.0;
    }
    if let Some(rate) = args.scrub_rate {
        options.scrub_rate = rate.0;
    }
    let start = async move {
        let server = StorageServer::start(options).await?;
        let address = server.address().to_string();
        Ok((server, address))
    };
    role::run("storage", start, |server| async move { server.stop().await })
}
