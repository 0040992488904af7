//! The `corefs` binary: every role, the tools for people, and the main job.
//!
//! `cmd/` has one file for each subcommand; [`supervise`] keeps the processes of a cluster on one machine running;
//! [`directory`] is the layout of such a cluster's directory; [`config`] merges flags with a TOML file.

mod cluster;
mod cmd;
mod config;
mod connect;
mod directory;
mod grow;
mod limits;
mod output;
mod role;
mod scratch;
mod serving;
mod signals;
mod store;
mod supervise;
mod tree;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Counts, so that the data path can show that it asks for no memory.
#[global_allocator]
static HEAP: corefs_net::heap::Counting = corefs_net::heap::Counting;

/// A distributed file system for AI training and inference: thread per core, replicated chunks, POSIX through a
/// mount, 4 KiB random reads at the disk's limit through the native client.
///
/// Start here: `corefs quickstart` shows and measures all of it in a fresh directory; `corefs up --dir DIR` keeps a
/// cluster running on this machine.
#[derive(Parser)]
#[command(version, propagate_version = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What to log to standard error: error, warn, info, debug, trace, or per module as in `corefs_engine=debug`.
    #[arg(long, global = true, default_value = "warn", env = "COREFS_LOG", value_name = "FILTER")]
    log: String,
}

#[derive(Subcommand)]
enum Command {
    Quickstart(cmd::quickstart::Args),
    Up(cmd::up::Args),
    Status(cmd::status::Args),
    Node(cmd::node::Args),
    Disk(cmd::disk::Args),
    Doctor(cmd::doctor::Args),
    Chain(cmd::chain::Args),
    Target(cmd::chain::TargetArgs),
    Moves(cmd::moves::Args),
    Mount(cmd::mount::Args),
    Umount(cmd::mount::UmountArgs),
    Fs(cmd::fs::Args),
    Perf(cmd::perf::Args),
    Scrub(cmd::scrub::Args),
    Fsck(cmd::fsck::Args),
    Config(cmd::config::Args),
    Kv(cmd::kv::Args),
    Mgmtd(cmd::mgmtd::Args),
    Meta(cmd::meta::Args),
    Storage(cmd::storage::Args),
}

impl Command {
    /// Whether it may end anywhere. The others watch for stop signals themselves.
    fn only_asks(&self) -> bool {
        use Command::{Chain, Config, Disk, Doctor, Fs, Fsck, Moves, Node, Status, Target, Umount};
        matches!(
            self,
            Chain(_)
                | Config(_)
                | Disk(_)
                | Doctor(_)
                | Fs(_)
                | Fsck(_)
                | Moves(_)
                | Node(_)
                | Status(_)
                | Target(_)
                | Umount(_)
        )
    }
}

fn main() -> ExitCode {
    // Before any thread exists, so that every thread inherits it: stop signals are taken by one thread alone.
    signals::block();
    limits::open_many_files();
    #[cfg(feature = "rdma")]
    corefs_net::rdma::outlive_devices();
    let cli = Cli::parse();
    if let Err(error) = output::start_log(&cli.log) {
        return output::fail(&error);
    }
    // Who only asks, or waits for an answer, has nothing to stop cleanly, and nobody there takes them.
    if cli.command.only_asks() {
        signals::unblock();
    }
    let outcome = match cli.command {
        Command::Quickstart(args) => cmd::quickstart::run(args),
        Command::Up(args) => cmd::up::run(args),
        Command::Status(args) => cmd::status::run(args),
        Command::Node(args) => cmd::node::run(args),
        Command::Disk(args) => cmd::disk::run(args),
        Command::Doctor(args) => cmd::doctor::run(args),
        Command::Chain(args) => cmd::chain::run(args),
        Command::Target(args) => cmd::chain::run_target(args),
        Command::Moves(args) => cmd::moves::run(args),
        Command::Mount(args) => cmd::mount::run(args),
        Command::Umount(args) => cmd::mount::umount(args),
        Command::Fs(args) => cmd::fs::run(args),
        Command::Perf(args) => cmd::perf::run(args),
        Command::Scrub(args) => cmd::scrub::run(args),
        Command::Fsck(args) => cmd::fsck::run(args),
        Command::Config(args) => cmd::config::run(args),
        Command::Kv(args) => cmd::kv::run(args),
        Command::Mgmtd(args) => cmd::mgmtd::run(args),
        Command::Meta(args) => cmd::meta::run(args),
        Command::Storage(args) => cmd::storage::run(args),
    };
    #[cfg(feature = "fdb")]
    corefs_kv::fdb::network::stop();
    match outcome {
        Ok(code) => code,
        Err(error) => output::fail(&error),
    }
}
