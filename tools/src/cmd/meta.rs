//! `corefs meta`: a metadata server.

use crate::{config, role};
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
    /// Address of the key-value store.
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    kv: Option<String>,
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
    let kv = role::address("kv", &config::required(args.kv, "meta", "kv")?)?;
    let secret = role::secret(args.secret_file.as_deref())?;
    let listen = role::address("listen", args.listen.as_deref().unwrap_or("127.0.0.1:0"))?;
    let options = MetaOptions { listen, managers: role::managers(&args.manager)?, secret: secret.clone() };
    let start = async move {
        let store = role::connect_kv(kv, Role::Meta, secret)?;
        let server = MetaServer::start(options, store).await?;
        let address = server.address().to_string();
        Ok((server, address))
    };
    role::run("meta", start, |server| async move { server.stop().await })
}
