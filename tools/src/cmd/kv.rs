//! `corefs kv`: the embedded key-value store as a process.

use crate::{config, output, role, signals};
use corefs_kv::embedded::{Embedded, Options, oneshot};
use corefs_kv::remote::Server;
use corefs_meta::{MetaOptions, MetaThread};
use corefs_net::handshake::{Role, Secret};
use corefs_net::{Address, process};
use corefs_wire::Result;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Serve the embedded key-value store to the managers and metadata servers of this machine.
///
/// With --meta it has a metadata server in it, whose reads and commits are function calls and no messages: that is how `corefs up`
/// starts it.
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
    /// Also run a metadata server in this process, on a thread of its own, and serve on this address; repeat for several. Prints
    /// `meta ADDR` when it serves. Needs --manager.
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    meta: Vec<String>,
    /// Address of a manager, for metadata servers; repeat for several. They wait for it.
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    manager: Vec<String>,
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
    let metas = metas(&args.meta, &args.manager, secret.as_ref())?;
    let start = async move {
        let store = Embedded::open(&dir, Options::default())?;
        let metas: Result<Vec<MetaThread>> =
            metas.into_iter().map(|options| start_meta(options, &store)).collect();
        let metas = metas?;
        let node = role::endpoint(Role::Kv, secret)?;
        let started = Instant::now();
        let server = Server::start(&node, store, move || process::report("kv", started.elapsed(), []));
        let address = node.listen(&listen)?.to_string();
        Ok(((server, node, metas), address))
    };
    role::run("kv", start, |(server, node, metas)| async move {
        // They use the store until they have ended; managers that one of them waits for use it as well, and are answered meanwhile.
        let (tell, told) = oneshot::channel();
        std::thread::spawn(move || {
            tell.send(metas.into_iter().map(MetaThread::stop).fold(Ok(()), Result::and))
        });
        let ended = told.await.unwrap_or(Ok(()));
        server.stop(&node).await;
        ended
    })
}

/// How each metadata server of this process is started.
fn metas(listen: &[String], managers: &[String], secret: Option<&Secret>) -> Result<Vec<MetaOptions>> {
    if listen.is_empty() {
        return Ok(Vec::new());
    }
    let managers = role::managers(managers)?;
    let options = |text: &String| {
        let (managers, secret) = (managers.clone(), secret.cloned());
        Ok(MetaOptions { listen: role::address("meta", text)?, managers, secret })
    };
    listen.iter().map(options).collect()
}

fn start_meta(options: MetaOptions, store: &Embedded) -> Result<MetaThread> {
    let ready = |address: &Address| {
        if let Err(error) = output::line(&format!("meta {address}")) {
            tracing::warn!(%error, "saying that the metadata server is ready");
        }
    };
    // A store without the metadata server that it was started with is of no use: whoever started it shall see it end.
    MetaThread::start(options, store.clone(), ready, signals::stop)
}
