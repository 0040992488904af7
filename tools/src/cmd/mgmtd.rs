//! `corefs mgmtd`: a cluster manager.

use crate::store::Store;
use crate::{config, role};
use corefs_kv::KvEngine;
use corefs_mgmtd::cluster::formation::Wanted;
use corefs_mgmtd::server::{ManagerOptions, ManagerServer};
use corefs_net::handshake::Role;
use corefs_perf::args::Bytes;
use corefs_wire::Result;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::process::ExitCode;

/// Run a manager: it knows the nodes, forms chains, and hands out routing and leases.
///
/// The first start on a key-value store fixes --nodes, --replicas, --targets and --chunk-size; chains are made when that
/// many storage nodes have registered. Later starts must agree or leave them out.
#[derive(clap::Args, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Args {
    /// TOML file with settings, section [mgmtd]; flags win.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// The key-value store: the address of a `corefs kv`, or fdb:CLUSTER_FILE#NAME for a part of a FoundationDB.
    #[arg(long, value_name = "STORE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    kv: Option<String>,
    /// Core for FoundationDB's network thread, off those of storage shards [default: the last one].
    #[arg(long, value_name = "CORE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_core: Option<usize>,
    /// Address to serve on [default: 127.0.0.1:7400].
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<String>,
    /// Storage nodes to wait for before the first chains are made [default: 1].
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<u32>,
    /// Copies of each chunk [default: 1].
    #[arg(long, value_name = "R")]
    #[serde(skip_serializing_if = "Option::is_none")]
    replicas: Option<u32>,
    /// Targets on each node [default: 32].
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    targets: Option<u32>,
    /// Chunk size of new files [default: 512KiB].
    #[arg(long, value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_size: Option<Bytes>,
    /// File with the cluster's secret.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_file: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let args: Args = config::merge("mgmtd", args.config.as_deref(), &args)?;
    let kv = config::required(args.kv, "mgmtd", "kv")?;
    let store = Store::parse(&kv)?;
    let listen = role::address("listen", args.listen.as_deref().unwrap_or("127.0.0.1:7400"))?;
    let secret = role::secret(args.secret_file.as_deref())?;
    let mut options = ManagerOptions::new(listen);
    options.secret = secret.clone();
    options.kv = kv;
    options.wanted = Wanted {
        nodes: args.nodes,
        replicas: args.replicas,
        targets_per_node: args.targets,
        chunk_size: args.chunk_size.map(|bytes| u32::try_from(bytes.0).unwrap_or(u32::MAX)),
    };
    match store {
        Store::Served(address) => {
            serve(options, async move { role::connect_kv(address, Role::Manager, secret) })
        }
        #[cfg(feature = "fdb")]
        Store::Fdb(place) => serve(options, async move { place.open(args.kv_core).await }),
    }
}

fn serve<E: KvEngine>(
    options: ManagerOptions,
    store: impl Future<Output = Result<E>> + 'static,
) -> Result<ExitCode> {
    let start = async move {
        let server = ManagerServer::start(options, store.await?).await?;
        let address = server.address().to_string();
        Ok((server, address))
    };
    role::run("mgmtd", start, |server| async move { server.stop().await })
}
