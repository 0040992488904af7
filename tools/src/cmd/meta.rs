//! `corefs meta`: a metadata server.

use crate::store::Store;
use crate::{config, role};
use corefs_kv::KvEngine;
use corefs_meta::server::{MetaOptions, MetaServer};
use corefs_net::handshake::Role;
use corefs_wire::Result;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::process::ExitCode;

/// Run a metadata server. It keeps nothing itself: everything is in the key-value store, so any number may run.
#[derive(clap::Args, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Args {
    /// TOML file with settings, section [meta]; flags win.
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
    /// Address of a manager; repeat for several.
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    manager: Vec<String>,
    /// Address to serve on [default: 127.0.0.1:0, any free port].
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<String>,
    /// File with the cluster's secret.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_file: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let args: Args = config::merge("meta", args.config.as_deref(), &args)?;
    let store = Store::parse(&config::required(args.kv, "meta", "kv")?)?;
    let secret = role::secret(args.secret_file.as_deref())?;
    let listen = role::address("listen", args.listen.as_deref().unwrap_or("127.0.0.1:0"))?;
    let options = MetaOptions { listen, managers: role::managers(&args.manager)?, secret: secret.clone() };
    match store {
        Store::Served(address) => {
            serve(options, async move { role::connect_kv(address, Role::Meta, secret) })
        }
        #[cfg(feature = "fdb")]
        Store::Fdb(place) => serve(options, async move { place.open(args.kv_core).await }),
    }
}

fn serve<E: KvEngine>(
    options: MetaOptions,
    store: impl Future<Output = Result<E>> + 'static,
) -> Result<ExitCode> {
    let start = async move {
        let server = MetaServer::start(options, store.await?).await?;
        let address = server.address().to_string();
        Ok((server, address))
    };
    role::run("meta", start, |server| async move { server.stop().await })
}
