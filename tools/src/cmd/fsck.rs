//! `corefs fsck`.
use corefs_wire::Result;
use std::path::PathBuf;
use std::process::ExitCode;

/// Check a stopped cluster.
#[derive(clap::Args)]
pub struct Args {
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let _ = args.dir;
    todo!()
}
