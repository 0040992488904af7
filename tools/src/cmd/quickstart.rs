//! `corefs quickstart`: the main job, zero settings.

use crate::cluster::{self, Cluster, Wishes};
use crate::directory::Directory;
use crate::scratch::Scratch;
use crate::tree::{self, Copied};
use crate::{output, signals};
use corefs_client::Hedge;
use corefs_net::transport::Choice;
use corefs_perf::args::Bytes;
use corefs_perf::cpu::CpuTime;
use corefs_perf::disk::{self, Ground};
use corefs_perf::draw::Style;
use corefs_perf::driver::Live;
use corefs_perf::machine::Machine;
use corefs_perf::mounted::{self, Processes};
use corefs_perf::native::Native;
use corefs_perf::progress::Watch;
use corefs_perf::report::{CpuPerOp, Extras, LatencyUs, Report, Row};
use corefs_perf::workload::{Direction, Order, Until, Workload};
use corefs_wire::limits::BLOCK;
use corefs_wire::{Error, ErrorCode, Result};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Show and measure everything in a fresh directory: start a cluster, mount it, store a data set and a real directory tree,
/// verify them, and measure 4 KiB random reads of the raw disk, the native client and the mount. Stops and cleans up.
#[derive(clap::Args)]
pub struct Args {
    /// A new or empty directory on the disk to be measured, kept afterwards [default: one in the current directory, which is
    /// removed at the end].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Bytes of the data set: larger than any cache between here and the disk, to be honest.
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    size: Bytes,
    /// How long each measurement takes.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    seconds: f64,
    /// The directory tree that is copied in and verified [default: documentation or settings of this machine].
    #[arg(long, value_name = "DIR")]
    tree: Option<PathBuf>,
    /// Print the report as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Reads in flight, as the issue of every comparison: enough to fill a drive's queue.
const DEPTH: u32 = 128;
const SEED: u64 = 1;
const WARMUP: Duration = Duration::from_secs(1);
/// Most of a real tree that is copied by default: enough to mean something, little enough for a minute.
const TREE_BYTES: u64 = 256 << 20;
const TREE_FILES: usize = 4000;
const DATA: &str = "/quickstart.dat";

pub fn run(args: Args) -> Result<ExitCode> {
    let size = args.size.0;
    let sensible = size.is_multiple_of(1 << 20) && args.seconds > 0.0 && args.seconds <= 86_400.0;
    if !sensible {
        let what = "--size is a multiple of 1MiB, --seconds a positive number up to a day";
        return Err(Error::new(ErrorCode::BadConfig, what));
    }
    let live = Arc::new(Live::default());
    let scratch = Scratch::new(args.dir.as_deref(), "corefs-quickstart")?;
    let mut job = Job {
        args: &args,
        live: Arc::clone(&live),
        watch: if args.json { Watch::Nothing } else { Watch::terminal() },
        report: Report::new(Machine::look(Some(scratch.path()))),
        size,
    };
    job.configure();
    job.run(&scratch)?;
    let text = if args.json { job.report.to_json() } else { job.report.to_text(Style::of_stdout()) };
    output::line(text.trim_end())?;
    Ok(ExitCode::from(u8::from(job.report.failed())))
}

struct Job<'a> {
    args: &'a Args,
    live: Arc<Live>,
    watch: Watch,
    report: Report,
    size: u64,
}

impl Job<'_> {
    fn say(&self, line: &str) {
        if !self.args.json {
            eprintln!("corefs: {line}");
        }
    }

    /// A stop signal ends the job between its steps; what runs is cleaned up on the way out.
    fn go_on(&self) -> Result<()> {
        if signals::wait_for(Duration::ZERO) || self.live.stopped() {
            return Err(Error::new(ErrorCode::ShuttingDown, "interrupted; everything was stopped"));
        }
        Ok(())
    }

    fn configure(&mut self) {
        self.report.set("size", self.size);
        self.report.set("block", BLOCK as u64);
        self.report.set("depth", DEPTH);
        self.report.set("seconds", self.args.seconds);
        self.report.set("seed", SEED);
        self.report.set("verify", true);
        self.report.set("version", env!("CARGO_PKG_VERSION"));
    }

    fn reads(&self, verify: bool) -> Workload {
        Workload {
            direction: Direction::Read,
            order: Order::Random,
            block: BLOCK as u64,
            depth: DEPTH,
            batch: 1,
            working_set: self.size,
            cores: 1,
            until: Until::Elapsed { warmup: WARMUP, measured: Duration::from_secs_f64(self.args.seconds) },
            rate: None,
            verify,
            ..Workload::layout(self.size, SEED)
        }
    }

    fn run(&mut self, scratch: &Scratch) -> Result<()> {
        let tree_bytes = TREE_BYTES * 2;
        // The data set, a fifth more for what the slices keep for themselves, and the tree.
        let capacity = self.size + self.size / 5 + tree_bytes + (1 << 30);
        let free = cluster::free_space(scratch.path())?;
        if free < capacity + self.size {
            let what = format!("quickstart with --size {} needs {} bytes", self.size, capacity + self.size);
            return Err(Error::mismatch(ErrorCode::NoSpace, capacity + self.size, free, what));
        }
        let directory = Directory::open(&scratch.path().join("cluster"))?;
        let wishes = Wishes { capacity: Some(capacity), ..Wishes::default() };
        let quiet = self.args.json;
        let mut cluster = cluster::start(&directory, &wishes, &mut |line| {
            if !quiet {
                eprintln!("corefs: {line}");
            }
        })?;
        self.report.set("shards", cluster.shape.cores);
        self.report.set("replicas", cluster.shape.replicas);
        let outcome = self.measure(scratch, &directory, &mut cluster);
        let complaints = cluster.supervisor.stop();
        outcome?;
        if complaints.is_empty() { Ok(()) } else { Err(Error::new(ErrorCode::Os, complaints.join("; "))) }
    }

    fn measure(&mut self, scratch: &Scratch, directory: &Directory, cluster: &mut Cluster) -> Result<()> {
        let mut native = Native::connect(
            vec![cluster.manager.parse()?],
            None,
            1,
            Duration::ZERO,
            Choice::Auto,
            Hedge::Auto,
        )?;
        native.measure_servers(storage_pids(cluster));
        let outcome = self.steps(scratch, directory, cluster, &native);
        let stopped = native.stop();
        outcome.and(stopped)
    }

    fn steps(
        &mut self,
        scratch: &Scratch,
        directory: &Directory,
        cluster: &mut Cluster,
        native: &Native,
    ) -> Result<()> {
        self.go_on()?;
        self.say("writing the data set through the native client");
        let written =
            native.run(Path::new(DATA), &Workload::layout(self.size, SEED), &self.live, self.watch)?;
        let written = written.into_row("native_seqwrite");
        self.go_on()?;
        let mount = scratch.path().join("mnt");
        let mounted = self.mount(directory, cluster, &mount)?;
        let copied = if mounted { Some(self.copy(&mount, cluster)?) } else { None };
        self.go_on()?;
        self.say("4 KiB random reads: the raw disk");
        self.raw(scratch)?;
        self.go_on()?;
        self.say("4 KiB random reads: the native client");
        let tally = native.run(Path::new(DATA), &self.reads(true), &self.live, self.watch)?;
        self.report.add(tally.into_row("native_randread"));
        self.go_on()?;
        if mounted {
            self.say("4 KiB random reads: through the mount");
            let file = mount.join(DATA.trim_start_matches('/'));
            let processes = Processes { client: role_pids(cluster, "mount"), server: storage_pids(cluster) };
            let tally = mounted::run(&file, &self.reads(true), &processes, &self.live, self.watch)?;
            self.report.add(tally.into_row("mount_randread"));
        }
        self.report.add(written);
        if let Some(row) = copied {
            self.report.add(row);
        }
        Ok(())
    }

    fn raw(&mut self, scratch: &Scratch) -> Result<()> {
        let workload = self.reads(false);
        let ground = Ground::make(scratch.path(), self.size, SEED, &self.live, self.watch)?;
        let tally = disk::measure(ground.path(), &workload, None, &self.live, self.watch)?;
        self.report.add(disk::row(&workload, tally));
        Ok(())
    }

    fn mount(&mut self, directory: &Directory, cluster: &mut Cluster, path: &Path) -> Result<bool> {
        std::fs::create_dir(path).map_err(|error| Error::from(error).of(path.display()))?;
        match cluster::mount(directory, cluster, path) {
            Ok(()) => Ok(true),
            Err(error) if error.code == ErrorCode::ShuttingDown => Err(error),
            Err(error) => {
                // Said in either form of the report: a row that is missing must not look like one that passed.
                eprintln!("corefs: the mount is skipped, because {error}");
                self.report.set("mount_skipped", error.to_string());
                Ok(false)
            }
        }
    }

    fn copy(&mut self, mount: &Path, cluster: &Cluster) -> Result<Row> {
        let tree = tree::find(self.args.tree.as_deref())?;
        self.say(&format!("copying {} in through the mount and verifying it", tree.display()));
        self.report.set("tree", tree.display().to_string());
        let bounds = if self.args.tree.is_some() { (u64::MAX, usize::MAX) } else { (TREE_BYTES, TREE_FILES) };
        let processes = Processes { client: role_pids(cluster, "mount"), server: storage_pids(cluster) };
        let before = processes.meter();
        let copied = tree::copy_and_verify(&tree, &mount.join("tree"), bounds, self.watch)?;
        let after = processes.meter();
        Ok(copy_row(&copied, since(after.0, before.0), since(after.1, before.1)))
    }
}

fn since(after: Option<CpuTime>, before: Option<CpuTime>) -> Option<CpuTime> {
    Some(after?.since(before?))
}

/// A row whose operation is a file.
fn copy_row(copied: &Copied, client: Option<CpuTime>, server: Option<CpuTime>) -> Row {
    let seconds = copied.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
    let each =
        |time: Option<u64>| time.filter(|_| copied.files > 0).map(|time| time as f64 / copied.files as f64);
    Row {
        mode: "mount_copy".into(),
        iops: Some(copied.files as f64 / seconds),
        bytes_per_second: Some(copied.bytes as f64 / seconds),
        operations: Some(copied.files),
        errors: Some(0),
        verify_errors: Some(copied.mismatches),
        latency_us: LatencyUs::of(&copied.latencies),
        cpu_us_per_op: CpuPerOp {
            client_user: each(client.map(|time| time.user_us)),
            client_system: each(client.map(|time| time.system_us)),
            server_user: each(server.map(|time| time.user_us)),
            server_system: each(server.map(|time| time.system_us)),
        },
        extras: Extras {
            seconds: Some(seconds),
            files: Some(copied.files),
            bytes: Some(copied.bytes),
            mismatches: Some(copied.mismatches),
            ..Extras::default()
        },
        ..Row::default()
    }
}

fn role_pids(cluster: &Cluster, role: &str) -> Vec<u32> {
    let pids = cluster.supervisor.pids();
    pids.into_iter().filter(|(name, _)| name.starts_with(role)).map(|(_, pid)| pid).collect()
}

fn storage_pids(cluster: &Cluster) -> Vec<u32> {
    role_pids(cluster, "storage")
}
