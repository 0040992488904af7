//! `corefs config`: the settings that a role's --config file may have.

use crate::output;
use corefs_wire::Result;
use std::process::ExitCode;

/// Show the settings of the roles' TOML files.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Print a commented file with every setting and its default. Give it to `corefs storage --config FILE` and the
    /// other roles after editing; flags win over it.
    Print {
        /// Print the settings as JSON: section, name, default, meaning.
        #[arg(long)]
        json: bool,
    },
}

pub fn run(args: Args) -> Result<ExitCode> {
    let Verb::Print { json } = args.verb;
    if json {
        output::json(&settings())?
    } else {
        output::line(TEMPLATE.trim_end())?
    }
    Ok(ExitCode::SUCCESS)
}

/// Every setting of every role. A line `# name = value` is a setting with its default.
pub const TEMPLATE: &str = r#"# corefs: settings of the roles, a section each. Every one can be left out; flags of the same name win.

[kv]            # the embedded key-value store of one machine: metadata is one copy
# dir = "kv"                              # where the store is
# listen = "unix:/run/corefs/kv.sock"      # address: unix:PATH or IP:PORT
# meta = ["127.0.0.1:0"]                  # metadata servers in this process: one a thread, each with its address
# manager = ["127.0.0.1:7400"]            # for those
# secret_file = "secret"                  # the cluster's secret; required unless every address is local

[mgmtd]         # the manager: membership, chains, routing
# kv = "unix:/run/corefs/kv.sock"          # where `corefs kv` listens, or "fdb:CLUSTER_FILE#NAME"
# kv_core = 0                             # FoundationDB's network thread; by default on the last core
# listen = "127.0.0.1:7400"               # address that nodes and clients are given
# nodes = 1                               # storage nodes to wait for before the first chains are made
# replicas = 1                            # copies of each chunk
# targets = 32                            # replica stores on each node
# chunk_size = "512KiB"                   # a power of two from 64KiB to 64MiB
# secret_file = "secret"

[meta]          # a metadata server: the namespace
# kv = "unix:/run/corefs/kv.sock"
# kv_core = 0
# manager = ["127.0.0.1:7400"]            # every manager's address
# listen = "127.0.0.1:0"                  # port 0: any free one
# secret_file = "secret"

[storage]       # a storage node: one pinned executor per core
# dir = "node-1"                          # its identity and its disk
# manager = ["127.0.0.1:7400"]
# cores = 1                               # shards; each pins itself to a core
# first_core = 0                          # the first shard's core; the others follow. Not set: near the block devices
# capacity = "64GiB"                      # preallocated at the first start
# listen = "127.0.0.1"                    # IP address; each shard takes a port of its own
# domain = ""                             # failure domain, such as a rack
# disk_way = "auto"                       # auto, passthrough, polled or plain: the way to the disks (corefs doctor)
# discard = false                         # tell block devices at the start which space is free
# transport = "auto"                      # auto, tcp or rdma: by what connections go (corefs doctor)
# busy_poll = 0                           # microseconds a shard polls before it sleeps
# resync_rate = "50MiB"                   # bytes a second at which it fills replicas that came back
# scrub_rate = "32MiB"                    # bytes a second at which it verifies what it stores, at most; 0: not at all
# secret_file = "secret"

[mount]         # a FUSE mount
# manager = ["127.0.0.1:7400"]
# transport = "auto"                      # as above
# hedge = "auto"                          # off, auto or a time: when a second replica is asked for a read, too
# threads = 2                             # threads that read requests from the kernel
# consistency = "close-to-open"           # or strict: what one mount does, others show at once
# believe = "1s"                          # for how long the kernel doesn't ask for names and attributes again
# local_locks = false                     # true: locks count among the programs of this mount only
# secret_file = "secret"
"#;

#[derive(serde::Serialize, Debug)]
struct Setting {
    section: &'static str,
    name: &'static str,
    default: &'static str,
    meaning: &'static str,
}

fn settings() -> Vec<Setting> {
    let mut section = "";
    let mut settings = Vec::new();
    for line in TEMPLATE.lines() {
        if let Some(rest) = line.strip_prefix('[') {
            section = rest.split(']').next().unwrap_or_default();
        } else if let Some((name, rest)) = line.strip_prefix("# ").and_then(|line| line.split_once(" = ")) {
            let (default, meaning) = rest.split_once('#').unwrap_or((rest, ""));
            settings.push(Setting { section, name, default: default.trim(), meaning: meaning.trim() });
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cmd, config};
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    /// Every documented setting is read by its role, and every setting of the role is documented.
    fn check<T: Serialize + DeserializeOwned + Default>(section: &str) {
        let body: Vec<String> = settings()
            .iter()
            .filter(|setting| setting.section == section)
            .map(|setting| format!("{} = {}", setting.name, setting.default))
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("corefs.toml");
        std::fs::write(&path, format!("[{section}]\n{}\n", body.join("\n"))).unwrap();
        let _all: T = config::merge(section, Some(&path), &T::default()).unwrap();
        // Serde names all that there are; what stands at its default may be left out of what it writes.
        let refusal = toml::from_str::<T>("no_such_setting = 1").err().unwrap().to_string();
        let known: Vec<&str> =
            refusal.split("expected").nth(1).unwrap().split('`').skip(1).step_by(2).collect();
        let said: Vec<&str> =
            settings().iter().filter(|at| at.section == section).map(|at| at.name).collect();
        for name in &known {
            assert!(said.contains(name), "{section}: {name} is not documented");
        }
        assert_eq!(known.len(), said.len(), "{section}: settings that are not read: {known:?}, {said:?}");
    }

    #[test]
    fn the_printed_file_is_what_the_roles_read() {
        check::<cmd::kv::Args>("kv");
        check::<cmd::mgmtd::Args>("mgmtd");
        check::<cmd::meta::Args>("meta");
        check::<cmd::storage::Args>("storage");
        check::<cmd::mount::Args>("mount");
    }
}
