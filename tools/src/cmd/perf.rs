//! `corefs perf`: measurements that people can check.

use crate::{output, signals};
use corefs_perf::args::Verb;
use corefs_perf::command;
use corefs_perf::driver::Live;
use corefs_wire::Result;
use std::process::ExitCode;
use std::sync::Arc;

/// Measure: the raw disk, the native client, or a mounted file, with the same loads and the same report.
///
/// `corefs perf disk --path DIR` is the ceiling; `corefs perf randread --manager ADDR` is the native client over the
/// network path; `corefs perf randread --path MOUNT/FILE` without a manager is any mounted file system. `corefs perf meta`
/// is about names.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let live = Arc::new(Live::default());
    let theirs = Arc::clone(&live);
    signals::on_stop(move || theirs.stop());
    let report = command::run(&args.verb, &live)?;
    output::line(&command::present(&report, args.verb.json())?)?;
    Ok(ExitCode::from(u8::from(report.failed())))
}
