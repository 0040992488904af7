//! `corefs kv`: the embedded key-value store as a process.

use crate::{config, role};
use corefs_kv::embedded::{Embedded, Options};
use corefs_kv::remote::Server;
use corefs_net::handshake::Role;
use corefs_net::process;
use corefs_wire::Result;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Serve the embedded key-value store to the managers and metadata servers of this machine.
///
/// It is one copy on one disk: losing the directory loses the namespace. A cluster of several machines that must survive
/// that wants FoundationDB: `--kv fdb:CLUSTER_FILE` of the managers and metadata servers, and no `corefs kv`.
#[derive(clap::Args, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Args {
    /// TOML file with settings, section [kv]; flags win.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Directory of the store; made when it isn't there.
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    dir: Option<PathBuf>,
    /// Address to serve on: unix:PATH or IP:PORT.
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<String>,
    /// File with the cluster's secret.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_file: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let args: Args = config::merge("kv", args.config.as_deref(), &args)?;
    let dir = config::required(args.dir, "kv", "dir")?;
    let listen = role::address("listen", &config::required(args.listen, "kv", "listen")?)?;
    let secret = role::secret(args.secret_file.as_deref())?;
    let start = async move {
        let store = Embedded::open(&dir, Options::default())?;
        let node = role::endpoint(Role::Kv, secret)?;
        let started = Instant::now();
        let server = Server::start(&node, store, move || process::report("kv", started.elapsed(), []));
        let address = node.listen(&listen)?.to_string();
        Ok(((server, node), address))
    };
    role::run("kv", start, |(server, node)| async move {
        server.stop(&node).await;
        Ok(())
    })
}
