//! The flags of `corefs perf`, and the runs that they ask for.

use crate::bare::ServeArgs;
pub use crate::bytes::{BadSize, Bytes, Rate};
use crate::disk::SIZE_DEFAULT;
use crate::files::FILES_MAX;
use crate::names::posix::LANES_MAX;
use crate::names::{Phase, Plan};
use crate::workload::{Direction, Order, Over, Skew, Until, Workload};
use clap::{Args, Subcommand, ValueEnum};
use corefs_client::Hedge;
use corefs_net::buffer::BLOCK_MAX;
use corefs_net::transport::Choice;
use corefs_net::{Address, Secret};
use corefs_wire::limits::{BLOCK, READ_BATCH_MAX, SHARDS_MAX};
use corefs_wire::{Error, ErrorCode, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most operations in flight that a run may ask for.
pub const DEPTH_MAX: u32 = 4096;
/// Longest run (seconds): a day.
const SECONDS_MAX: f64 = 86_400.0;
/// What the report's name `-` stands for.
const STDOUT: &str = "-";
/// Least and most bytes of an operation in corefs.
const BLOCK_LEAST: u64 = 512;
const BLOCK_MOST: u64 = 16 << 20;
/// Steepest Zipf distribution: beyond it nearly all operations are of one block.
const THETA_MAX: f64 = 5.0;

/// What to measure.
#[derive(Subcommand, Clone, Debug)]
pub enum Verb {
    /// The raw ceiling: this machine's own io_uring loop with O_DIRECT on a local file or device, with nothing of corefs
    /// in between.
    Disk(DiskArgs),
    /// Random reads of a file in corefs.
    Randread(LoadArgs),
    /// Random writes.
    Randwrite(LoadArgs),
    /// Sequential reads.
    Seqread(LoadArgs),
    /// Sequential writes.
    Seqwrite(LoadArgs),
    /// Several of these in turns, again and again: medians, ratios within each round, and their spread.
    Compare(CompareArgs),
    /// Operations on names: many small files made, looked at, opened, listed, renamed and removed.
    Meta(MetaArgs),
    /// The transport alone: corefs's frames to a server that answers from memory, and no file system.
    Wire(BareArgs),
    /// Transport and disk: the same with a random block of a plain file in each answer. The bound to compare with.
    Bare(BareArgs),
    /// The server of `wire` and `bare`, which start it themselves.
    #[command(hide = true)]
    ServeBare(ServeArgs),
    /// Random reads and writes mixed, with a row of the report for each.
    Mixed(MixedArgs),
    /// What has changed between two reports, row by row. Measures nothing.
    Diff(DiffArgs),
    /// An earlier report again: as a table, or as HTML or CSV. Measures nothing.
    Report(ReportArgs),
}

/// Where a report goes beside the terminal.
#[derive(Args, Clone, Debug, Default)]
pub struct OutputArgs {
    /// Write an HTML page with figures drawn over time, percentiles and spread, and all settings, to FILE. It needs nothing
    /// from elsewhere.
    #[arg(long, value_name = "FILE", help_heading = "Reports")]
    pub html: Option<PathBuf>,
    /// Write a line for each row, and for each round of it, to FILE.
    #[arg(long, value_name = "FILE", help_heading = "Reports")]
    pub csv: Option<PathBuf>,
    /// Write the latencies of each second to FILE, as HdrHistogram's log (nanoseconds, the row's name as tag), which
    /// HistogramLogAnalyzer and others read.
    #[arg(long, value_name = "FILE", help_heading = "Reports")]
    pub hdr_log: Option<PathBuf>,
}

/// Flags of `perf mixed`.
#[derive(Args, Clone, Debug)]
pub struct MixedArgs {
    /// How many of a hundred operations are reads.
    #[arg(long, value_name = "PERCENT", default_value_t = 70, value_parser = clap::value_parser!(u8).range(1..=99))]
    pub reads: u8,
    #[command(flatten)]
    pub load: LoadArgs,
}

/// Flags of `perf diff`.
#[derive(Args, Clone, Debug)]
pub struct DiffArgs {
    /// The report, as --json wrote it.
    #[arg(value_name = "REPORT")]
    pub report: PathBuf,
    /// The earlier one that it is compared with.
    #[arg(value_name = "BASELINE")]
    pub baseline: PathBuf,
    /// Print the comparison as JSON.
    #[arg(long)]
    pub json: bool,
    /// Exit with 1 if a figure is worse by more than PERCENT (and outside of the spread, where both reports have rounds), or a
    /// row of BASELINE is missing. Without it, the exit code says nothing about the figures.
    #[arg(long, value_name = "PERCENT")]
    pub fail_over: Option<f64>,
}

/// Flags of `perf report`.
#[derive(Args, Clone, Debug)]
pub struct ReportArgs {
    /// The report, as --json wrote it.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub outputs: OutputArgs,
}

/// Flags that every verb has.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Bytes that are touched: the working set [default: 2GiB, or the size of what is there].
    #[arg(long, value_name = "SIZE")]
    pub size: Option<Bytes>,
    /// Bytes of an operation: in corefs 512 to 16MiB; on a raw disk and through a mount, both with O_DIRECT, a multiple of 4KiB up
    /// to 2MiB [default: 4KiB for random, 1MiB for sequential].
    #[arg(long, value_name = "SIZE")]
    pub block: Option<Bytes>,
    /// Operations in flight, all cores together [default: 128 for random, 8 for sequential].
    #[arg(long, value_name = "N")]
    pub depth: Option<u32>,
    /// Threads that drive the load, each with its own executor, connections and histogram. The kernel places them, unless they poll
    /// (--busy-poll): then each has a core, from the last one downwards.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cores: u32,
    /// How long to measure.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub seconds: f64,
    /// How long to run before that, uncounted.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub runtime_warmup: f64,
    /// Where the offsets, and what is written, come from.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Write the report as JSON to FILE, or to standard output instead of the table when there is no FILE.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = STDOUT, help_heading = "Reports")]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    pub outputs: OutputArgs,
}

/// Flags of `perf disk`.
#[derive(Args, Clone, Debug)]
pub struct DiskArgs {
    /// A file that is fully written, a block device, or a directory, in which a file is made for the run.
    #[arg(long, value_name = "PATH", default_value = ".")]
    pub path: PathBuf,
    /// What to do with it.
    #[arg(long, value_enum, default_value_t = Access::Randread)]
    pub access: Access,
    #[command(flatten)]
    pub run: RunArgs,
    /// Also run fio on the same file in turns with us; without 5% agreement the report says that ratios are invalid.
    #[arg(long, conflicts_with = "copies")]
    pub against_fio: bool,
    /// Make each write durable (O_DSYNC), and N of them in N parts of the file: what N replicas on this disk would ask of it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub copies: Option<u32>,
}

/// Flags of `perf wire` and `perf bare`.
#[derive(Args, Clone, Debug)]
pub struct BareArgs {
    /// For `bare`: a file that is fully written, a block device, or a directory, in which a file is made for the run.
    #[arg(long, value_name = "PATH", default_value = ".")]
    pub path: PathBuf,
    /// Threads of the server, one a core.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub servers: u32,
    /// Reads handed over together; they count as so many in flight.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub batch: u32,
    /// Microseconds that both sides poll before they sleep.
    #[arg(long, value_name = "US", default_value_t = 0)]
    pub busy_poll: u64,
    #[command(flatten)]
    pub run: RunArgs,
}

/// Flags of `perf compare`.
#[derive(Args, Clone, Debug)]
pub struct CompareArgs {
    /// What to measure, in this order in each round; `disk` is what ratios are to.
    #[arg(value_enum, required = true, value_name = "WHAT")]
    pub contestants: Vec<Contestant>,
    /// Rounds.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub repeat: u32,
    /// Threads of the server of `wire` and `bare`, one a core [default: one for each shard that a storage node has here].
    #[arg(long, value_name = "N")]
    pub servers: Option<u32>,
    /// Writes that `durable` makes for each one of corefs: as many as the cluster has replicas, if all are on that disk.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub copies: u32,
    #[command(flatten)]
    pub load: LoadArgs,
}

/// What can be compared. The disk, fio and bare read at random in a file that is made where --ceiling says (default: here).
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contestant {
    /// The raw disk, by this machine's own io_uring loop.
    Disk,
    /// The same file by fio.
    Fio,
    /// The raw disk again, with durable writes (O_DSYNC): --copies of them for each.
    Durable,
    /// Random reads over corefs's transport of nothing but memory.
    Wire,
    /// The same of the raw disk's file: the bound without a file system.
    Bare,
    /// Through the native client, as the rest.
    Randread,
    Randwrite,
    Seqread,
    Seqwrite,
}

impl CompareArgs {
    /// Whether something of corefs is compared and no cluster is named.
    pub fn wants_cluster(&self) -> bool {
        self.load.manager.is_empty()
            && self.contestants.iter().any(|contestant| contestant.access().is_some())
    }

    /// Bytes that are touched.
    pub fn size(&self) -> u64 {
        self.load.run.size.map_or(SIZE_DEFAULT, |size| size.0)
    }
}

impl Contestant {
    /// What it does in corefs; `None` for what is below it.
    pub fn access(self) -> Option<Access> {
        match self {
            Self::Disk | Self::Fio | Self::Durable | Self::Wire | Self::Bare => None,
            Self::Randread => Some(Access::Randread),
            Self::Randwrite => Some(Access::Randwrite),
            Self::Seqread => Some(Access::Seqread),
            Self::Seqwrite => Some(Access::Seqwrite),
        }
    }

    /// How its row is called.
    pub fn mode(self) -> &'static str {
        match self {
            Self::Disk => crate::report::DISK,
            Self::Fio => crate::report::FIO,
            Self::Durable => crate::disk::DURABLE,
            Self::Wire => crate::bare::WIRE,
            Self::Bare => crate::bare::BARE,
            Self::Randread => "native_randread",
            Self::Randwrite => "native_randwrite",
            Self::Seqread => "native_seqread",
            Self::Seqwrite => "native_seqwrite",
        }
    }
}

/// Flags of `perf meta`. Each place that is named is measured with the same tree in the same run.
#[derive(Args, Clone, Debug)]
pub struct MetaArgs {
    /// Managers of the cluster: the native client is measured.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub manager: Vec<String>,
    /// File with the cluster's secret, when it has one.
    #[arg(long, value_name = "FILE", env = "COREFS_SECRET_FILE")]
    pub secret_file: Option<PathBuf>,
    /// A directory, absolute in corefs, in which the native client makes its tree.
    #[arg(long, value_name = "PATH", default_value = "/")]
    pub path: PathBuf,
    /// A directory of a mounted file system.
    #[arg(long, value_name = "DIR")]
    pub mounted: Option<PathBuf>,
    /// A directory of a local file system, for comparison; flushes are timed there too.
    #[arg(long, value_name = "DIR")]
    pub local: Option<PathBuf>,
    /// Files, all directories together.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub files: u64,
    /// Directories that they are in.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub directories: u64,
    /// Levels of directories above each of those.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub deep: u32,
    /// Operations in flight, each with a thread of its own in mounted and local directories.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threads: u32,
    /// Cores of the native client.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cores: u32,
    /// Do only these, each of which needs those that make what it works on [default: all].
    #[arg(long, value_enum, value_name = "PHASE", value_delimiter = ',')]
    pub phases: Vec<Phase>,
    /// Write so much to each file as it is made, and read it in a phase of its own.
    #[arg(long, value_name = "SIZE")]
    pub bytes: Option<Bytes>,
    /// Look at files and open them in an order that has nothing to do with that in which they were made.
    #[arg(long)]
    pub shuffle: bool,
    /// Leave the trees where they are, or what the last phase left of them.
    #[arg(long)]
    pub keep: bool,
    /// Write the report as JSON to FILE, or to standard output instead of the table when there is no FILE.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = STDOUT, help_heading = "Reports")]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    pub outputs: OutputArgs,
}

impl MetaArgs {
    /// The tree that these flags ask for; `BadConfig` for what makes no sense.
    pub fn plan(&self) -> Result<Plan> {
        let (files, directories, deep, lanes) = (self.files, self.directories, self.deep, self.threads);
        if files == 0 || files >= 100_000_000 {
            return bad(format!("--files {files}: between 1 and 99999999"));
        }
        if directories == 0 || directories > files || directories > 1_000_000 {
            return bad(format!("--directories {directories}: between 1 and --files, and at most a million"));
        }
        if deep > 100 {
            return bad(format!("--deep {deep}: at most 100 levels"));
        }
        if lanes == 0 || lanes > LANES_MAX {
            return bad(format!("--threads {lanes}: between 1 and {LANES_MAX}"));
        }
        if self.cores == 0 || self.cores as usize > SHARDS_MAX {
            return bad(format!("--cores {}: between 1 and {SHARDS_MAX}", self.cores));
        }
        if self.manager.is_empty() && self.mounted.is_none() && self.local.is_none() {
            return bad("nothing to measure: give --manager ADDRESS, --mounted DIR or --local DIR".into());
        }
        self.check_phases()?;
        let bytes = self.bytes.map_or(0, |bytes| bytes.0);
        if bytes > 64 << 20 {
            return bad(format!("--bytes {bytes}: at most 64MiB"));
        }
        Ok(Plan { files, directories, deep, lanes, shuffle: self.shuffle, bytes })
    }

    /// What is done, in the order of a run.
    pub fn phases(&self) -> Vec<Phase> {
        let all = self.phases.is_empty();
        let wanted = |phase: &Phase| match phase {
            Phase::Read if all => self.bytes.is_some_and(|bytes| bytes.0 > 0),
            _ => all || self.phases.contains(phase),
        };
        Phase::ALL.into_iter().filter(wanted).collect()
    }

    /// What a phase works on must have been made: by its name, or its new one.
    fn check_phases(&self) -> Result<()> {
        let phases = self.phases();
        let needs = |phase| match phase {
            Phase::Mkdir => None,
            Phase::Create | Phase::Rmdir => Some(Phase::Mkdir),
            Phase::Unlink => Some(Phase::Rename),
            Phase::Stat | Phase::Open | Phase::Read | Phase::Readdir | Phase::Rename => Some(Phase::Create),
        };
        for phase in &phases {
            if let Some(needed) = needs(*phase).filter(|needed| !phases.contains(needed)) {
                return bad(format!("--phases: {} needs {}", phase.name(), needed.name()));
            }
        }
        if phases.contains(&Phase::Read) && self.bytes.is_none_or(|bytes| bytes.0 == 0) {
            return bad("--phases: read needs --bytes".into());
        }
        if phases.contains(&Phase::Rmdir)
            && phases.contains(&Phase::Create)
            && !phases.contains(&Phase::Unlink)
        {
            return bad("--phases: rmdir needs unlink".into());
        }
        Ok(())
    }

    pub fn managers(&self) -> Result<Vec<Address>> {
        self.manager.iter().map(|text| text.trim().parse()).collect()
    }

    pub fn secret(&self) -> Result<Option<Secret>> {
        self.secret_file.as_deref().map(read_secret).transpose()
    }
}

/// Order and direction of accesses.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Randread,
    Randwrite,
    Seqread,
    Seqwrite,
}

/// Flags of the verbs that measure corefs.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// Managers of the cluster: the native client is measured. Without it, --path is a file in a mounted file system.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', env = "COREFS_MANAGER")]
    pub manager: Vec<String>,
    /// File with the cluster's secret, when it has one.
    #[arg(long, value_name = "FILE", env = "COREFS_SECRET_FILE")]
    pub secret_file: Option<PathBuf>,
    /// By what connections of the native client go: auto (RDMA where both ends have it and it works, TCP otherwise), tcp, or rdma (an error
    /// where there is none, here or at a storage node, or it doesn't work) [default: auto].
    /// `corefs doctor` shows what there is.
    #[arg(long, value_name = "WAY", env = "COREFS_TRANSPORT")]
    pub transport: Option<String>,
    /// When the native client asks a second replica for a read, too, and takes the first answer: off, auto (after the time that 99% of
    /// recent reads took), or after a time such as 5ms.
    #[arg(long, value_name = "WHEN", default_value_t = Hedge::Auto, env = "COREFS_HEDGE")]
    pub hedge: Hedge,
    /// Measure --path as a file in a mounted file system, even if a manager is known.
    #[arg(long)]
    pub mounted: bool,
    /// Connections to each shard that are open beside the load and ask for nothing; the report says what they take.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub connections: u32,
    /// The file, absolute in corefs; written first when it isn't there.
    #[arg(long, value_name = "PATH", default_value = "/corefs-perf.dat")]
    pub path: PathBuf,
    /// Spread --size over N files PATH.0, PATH.1 and so on, in equal shares.
    #[arg(long = "files", value_name = "N", default_value_t = 1)]
    pub spread: u32,
    /// Visit some blocks more often than others, by Zipf's law with this exponent: 0.99 as in YCSB; of a million blocks
    /// the hottest gets 6.5% of all operations then. Where they are is random, and the same on all cores.
    #[arg(long, value_name = "THETA")]
    pub zipf: Option<f64>,
    /// What is visited more often than others.
    #[arg(long, value_enum, requires = "zipf", default_value_t = ZipfOver::Blocks)]
    pub zipf_over: ZipfOver,
    /// Begin at any byte rather than at multiples of --block. Writes keep apart from each other.
    #[arg(long)]
    pub unaligned: bool,
    #[command(flatten)]
    pub run: RunArgs,
    /// Reads handed over in one call, which count as so many in flight. A call returns when the slowest of them has come, so
    /// fewer are in flight on average; reads of separate calls that wait together travel together anyway.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub batch: u32,
    /// Microseconds that each client core polls for replies before it sleeps.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    pub busy_poll: u64,
    /// Open loop: so many operations become due each second whether or not earlier ones are done, and latency counts
    /// from when they were due.
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<f64>,
    /// Compare every byte with what was written; after writes, read everything back.
    #[arg(long)]
    pub verify: bool,
    /// First measure the raw disk here (as `perf disk --path`), and report the ratio to it.
    #[arg(long, value_name = "PATH")]
    pub ceiling: Option<PathBuf>,
}

/// What --zipf ranks.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum ZipfOver {
    /// Blocks of all files.
    Blocks,
    /// Files; all blocks of one are alike.
    Files,
}

/// Where a report goes as JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Json<'a> {
    Nowhere,
    /// Nothing else may go there then.
    Stdout,
    File(&'a Path),
}

impl Verb {
    /// Where the report goes as JSON.
    pub fn json(&self) -> Json<'_> {
        let path = match self {
            Self::Meta(args) => &args.json,
            Self::ServeBare(_) | Self::Report(_) => &None,
            Self::Diff(args) => return if args.json { Json::Stdout } else { Json::Nowhere },
            _ => self.run().map_or(&None, |run| &run.json),
        };
        match path.as_deref() {
            None => Json::Nowhere,
            Some(path) if path == Path::new(STDOUT) => Json::Stdout,
            Some(path) => Json::File(path),
        }
    }

    /// Where else it goes.
    pub fn outputs(&self) -> Option<&OutputArgs> {
        match self {
            Self::Meta(args) => Some(&args.outputs),
            Self::Report(args) => Some(&args.outputs),
            _ => self.run().map(|run| &run.outputs),
        }
    }

    fn run(&self) -> Option<&RunArgs> {
        match self {
            Self::Disk(args) => Some(&args.run),
            Self::Randread(args) | Self::Randwrite(args) | Self::Seqread(args) | Self::Seqwrite(args) => {
                Some(&args.run)
            }
            Self::Compare(args) => Some(&args.load.run),
            Self::Mixed(args) => Some(&args.load.run),
            Self::Wire(args) | Self::Bare(args) => Some(&args.run),
            Self::Meta(_) | Self::Diff(_) | Self::Report(_) | Self::ServeBare(_) => None,
        }
    }
}

impl Access {
    pub fn direction(self) -> Direction {
        match self {
            Self::Randread | Self::Seqread => Direction::Read,
            Self::Randwrite | Self::Seqwrite => Direction::Write,
        }
    }

    pub fn order(self) -> Order {
        match self {
            Self::Randread | Self::Randwrite => Order::Random,
            Self::Seqread | Self::Seqwrite => Order::Sequential,
        }
    }
}

impl RunArgs {
    /// The closed-loop run that these flags ask for on at least `working_set` bytes; `BadConfig` for what makes no sense.
    pub fn workload(&self, access: Access, working_set: u64) -> Result<Workload> {
        self.of_blocks(access, working_set, Blocks::Direct)
    }

    fn of_blocks(&self, access: Access, working_set: u64, blocks: Blocks) -> Result<Workload> {
        let random = access.order() == Order::Random;
        let block = self.block.map_or(if random { BLOCK as u64 } else { 1 << 20 }, |bytes| bytes.0);
        let depth = self.depth.unwrap_or(if random { 128 } else { 8 });
        match blocks {
            Blocks::Direct if !block.is_multiple_of(BLOCK as u64) || block > BLOCK_MAX as u64 => {
                return bad(format!(
                    "--block {block}: with O_DIRECT, as raw disks and mounted files are accessed, a multiple of {BLOCK} \
                     bytes, at most {BLOCK_MAX}; give --manager ADDRESS for the native client, which takes any size"
                ));
            }
            Blocks::Any if !(BLOCK_LEAST..=BLOCK_MOST).contains(&block) => {
                return bad(format!("--block {block}: between {BLOCK_LEAST} and {BLOCK_MOST} bytes"));
            }
            _ => {}
        }
        if depth == 0 || depth > DEPTH_MAX {
            return bad(format!("--depth {depth}: between 1 and {DEPTH_MAX} operations can be in flight"));
        }
        if self.cores == 0 || self.cores as usize > SHARDS_MAX {
            return bad(format!("--cores {}: between 1 and {SHARDS_MAX}", self.cores));
        }
        if depth < self.cores {
            return bad(format!(
                "--depth {depth}: less than one operation for each of the {} cores",
                self.cores
            ));
        }
        if working_set / block < u64::from(self.cores) {
            let what =
                format!("--size {}: less than one block of {} a core", Bytes(working_set), Bytes(block));
            return bad(what);
        }
        let measured = seconds("--seconds", self.seconds)?;
        if measured.is_zero() {
            return bad("--seconds 0: nothing would be measured".into());
        }
        let warmup = seconds("--runtime-warmup", self.runtime_warmup)?;
        Ok(Workload {
            direction: access.direction(),
            order: access.order(),
            block,
            depth,
            batch: 1,
            working_set: working_set / block * block,
            cores: self.cores,
            until: Until::Elapsed { warmup, measured },
            rate: None,
            verify: false,
            seed: self.seed,
            ..Workload::layout(0, self.seed)
        })
    }
}

impl BareArgs {
    /// The run that these flags ask for; `BadConfig` for what makes no sense.
    pub fn workload(&self, working_set: u64) -> Result<Workload> {
        let mut run = self.run.workload(Access::Randread, working_set)?;
        if self.servers == 0 || self.servers as usize > SHARDS_MAX {
            return bad(format!("--servers {}: between 1 and {SHARDS_MAX}", self.servers));
        }
        run.batch = self.batch;
        check_batch(&run)?;
        Ok(run)
    }
}

/// Whether reads can go together so.
fn check_batch(run: &Workload) -> Result<()> {
    let (batch, share) = (run.batch, run.depth / run.cores);
    if batch == 0 || batch as usize > READ_BATCH_MAX {
        return bad(format!("--batch {batch}: between 1 and {READ_BATCH_MAX} reads go together"));
    }
    if batch > 1 && run.direction == Direction::Write {
        return bad(format!("--batch {batch}: only reads go in batches; use --depth for writes"));
    }
    if batch > share {
        return bad(format!("--batch {batch}: more than a core's share of --depth {} ({share})", run.depth));
    }
    Ok(())
}

/// Which sizes an operation may have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Blocks {
    /// What O_DIRECT and a buffer take.
    Direct,
    /// The native client's: it cuts what is large, and widens what is not whole.
    Any,
}

impl LoadArgs {
    /// The run that these flags ask for; `BadConfig` for what makes no sense.
    pub fn workload(&self, access: Access, working_set: u64) -> Result<Workload> {
        let blocks = if self.is_native() { Blocks::Any } else { Blocks::Direct };
        let mut run = self.run.of_blocks(access, working_set, blocks)?;
        self.place(&mut run, working_set)?;
        run.batch = self.batch;
        check_batch(&run)?;
        if let Some(rate) = self.rate
            && !(0.1..=1e9).contains(&rate)
        {
            return bad(format!("--rate {rate}: between 0.1 and a billion operations a second"));
        }
        run.rate = self.rate;
        run.verify = self.verify;
        let crowded = |core| run.slots(core).end - run.slots(core).start < 4 * u64::from(run.lanes());
        if run.verify && run.direction == Direction::Write && (0..run.cores).any(crowded) {
            return bad("--verify needs --size of at least 4 blocks for each write in flight".into());
        }
        Ok(run)
    }

    /// Which files the run is of, and which of their blocks it visits how often.
    fn place(&self, run: &mut Workload, working_set: u64) -> Result<()> {
        let files = self.spread;
        if files == 0 || files > FILES_MAX {
            return bad(format!("--files {files}: between 1 and {FILES_MAX}"));
        }
        if self.unaligned && !self.is_native() {
            return bad(
                "--unaligned: O_DIRECT wants whole blocks; give --manager ADDRESS for the native client"
                    .into(),
            );
        }
        // Of each file the last block may have to make room for an odd beginning.
        let least = if self.unaligned { 2 * run.block } else { run.block };
        let share = working_set / u64::from(files) / run.block * run.block;
        if share < least {
            let what =
                format!("--size {}: less than {least} bytes for each of {files} files", Bytes(working_set));
            return bad(what);
        }
        (run.files, run.unaligned, run.working_set) = (files, self.unaligned, share * u64::from(files));
        let Some(theta) = self.zipf else { return Ok(()) };
        if !(0.01..=THETA_MAX).contains(&theta) {
            return bad(format!("--zipf {theta}: an exponent between 0.01 and {THETA_MAX}"));
        }
        if run.order == Order::Sequential {
            return bad("--zipf: a sequential run visits all blocks alike".into());
        }
        if self.zipf_over == ZipfOver::Files && files < run.cores.max(2) {
            return bad(format!("--zipf-over files: give --files, at least {}", run.cores.max(2)));
        }
        let over = match self.zipf_over {
            ZipfOver::Blocks => Over::Blocks,
            ZipfOver::Files => Over::Files,
        };
        run.skew = Some(Skew { theta, over });
        Ok(())
    }

    fn is_native(&self) -> bool {
        !self.mounted && !self.manager.is_empty()
    }

    /// The managers of the native client; none when a mounted file is measured.
    pub fn managers(&self) -> Result<Vec<Address>> {
        if self.mounted {
            return Ok(Vec::new());
        }
        self.manager.iter().map(|text| text.trim().parse()).collect()
    }

    pub fn secret(&self) -> Result<Option<Secret>> {
        self.secret_file.as_deref().map(read_secret).transpose()
    }

    pub fn transport(&self) -> Result<Choice> {
        self.transport.as_deref().map_or(Ok(Choice::Auto), str::parse)
    }
}

impl MixedArgs {
    /// The run that these flags ask for; `BadConfig` for what makes no sense.
    pub fn workload(&self, working_set: u64) -> Result<Workload> {
        // Whatever holds for writes holds for both together.
        let run = self.load.workload(Access::Randwrite, working_set)?;
        Ok(Workload { direction: Direction::Mixed { reads: self.reads }, ..run })
    }
}

fn read_secret(path: &Path) -> Result<Secret> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::from(error).of(path.display()))?;
    let wrong =
        || Error::new(ErrorCode::BadConfig, format!("{}: a secret is 64 hexadecimal digits", path.display()));
    Secret::parse(&text).ok_or_else(wrong)
}

fn seconds(flag: &str, value: f64) -> Result<Duration> {
    if value.is_finite() && (0.0..=SECONDS_MAX).contains(&value) {
        return Ok(Duration::from_secs_f64(value));
    }
    bad(format!("{flag} {value}: between 0 and {SECONDS_MAX} seconds"))
}

fn bad<T>(what: String) -> Result<T> {
    Err(Error::new(ErrorCode::BadConfig, what))
}

#[cfg(test)]
mod tests;
