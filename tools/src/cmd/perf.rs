//! `corefs perf`: measurements that people can check.

use crate::cluster::{self, Cluster, Wishes};
use crate::directory::Directory;
use crate::scratch::Scratch;
use crate::{output, signals};
use corefs_perf::args::{CompareArgs, Verb};
use corefs_perf::bare;
use corefs_perf::command;
use corefs_perf::driver::Live;
use corefs_wire::{Error, ErrorCode, Result};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// Measure: the raw disk, the native client, or a mounted file, with the same loads and the same report.
///
/// `corefs perf disk --path DIR` is the ceiling; `corefs perf randread --manager ADDR` is the native client over the
/// network path; `corefs perf randread --path MOUNT/FILE` without a manager is any mounted file system. `corefs perf meta`
/// is about names. Every report can be kept (--json), looked at in a browser (--html), and compared with another one
/// (`corefs perf diff`).
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
A first look, with COREFS_MANAGER set to what `corefs up` printed in its ready line:

  corefs perf disk --path DIR                     how fast is the disk itself?
  corefs perf randread --verify --ceiling DIR     how much of that comes through?
  corefs perf randread --depth 1                  how long does a single read take?
  corefs perf randread --rate 5000                and at a load that is given?
  corefs perf mixed --reads 70 --zipf 0.99        something like a database?
  corefs perf randread --files 1000 --block 64KiB something like a training set?

Before a figure is believed, with rounds in turns, and after a change:

  corefs perf compare disk fio bare randread --json before.json --html before.html
  corefs perf diff after.json before.json --fail-over 5

A bar shows how it goes while it runs: operations in the last second, latencies so far, errors. Ctrl-C ends a run early, and
what was measured until then is reported. The exit code is 1 when an operation failed or bytes were wrong, 2 for
flags that make no sense.";

pub fn run(mut args: Args) -> Result<ExitCode> {
    if let Verb::ServeBare(args) = &args.verb {
        return bare::serve(args).map(|()| ExitCode::SUCCESS);
    }
    let live = Arc::new(Live::default());
    let theirs = Arc::clone(&live);
    signals::on_stop(move || theirs.stop());
    let own = match &mut args.verb {
        Verb::Compare(compare) if compare.wants_cluster() => Some(Own::start(compare)?),
        _ => None,
    };
    let said = command::run(&args.verb, &live);
    let stopped = own.map_or(Ok(()), Own::stop);
    let said = said?;
    stopped?;
    output::line(&said.text)?;
    Ok(ExitCode::from(u8::from(said.failed)))
}

/// A cluster for one comparison, when none was named: on the disk that is measured too, gone afterwards.
struct Own {
    // First: it ends before its directory goes.
    cluster: Cluster,
    _scratch: Scratch,
}

impl Own {
    fn start(args: &mut CompareArgs) -> Result<Self> {
        let place = args.load.ceiling.clone().unwrap_or_else(|| ".".into());
        let place = if place.is_dir() { place.as_path() } else { Path::new(".") };
        // The file, a fifth more for what slices keep for themselves, and a journal's room.
        let capacity = args.size() + args.size() / 5 + (1 << 30);
        let (free, needed) = (cluster::free_space(place)?, capacity + args.size());
        if free < needed {
            let what =
                format!("comparing with --size {} needs {needed} bytes in {}", args.size(), place.display());
            return Err(Error::mismatch(ErrorCode::NoSpace, needed, free, what));
        }
        let scratch = Scratch::inside(place, "corefs-compare")?;
        let directory = Directory::open(&scratch.path().join("cluster"))?;
        let wishes = Wishes { capacity: Some(capacity), busy_poll: args.load.busy_poll, ..Wishes::default() };
        let cluster = cluster::start(&directory, &wishes, &mut |_| ())?;
        args.load.manager = vec![cluster.manager.clone()];
        Ok(Self { cluster, _scratch: scratch })
    }

    fn stop(self) -> Result<()> {
        let complaints = self.cluster.supervisor.stop();
        if complaints.is_empty() { Ok(()) } else { Err(Error::new(ErrorCode::Os, complaints.join("; "))) }
    }
}
