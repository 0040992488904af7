//! The flags of `corefs perf`, and the runs that they ask for.

pub use crate::bytes::{BadSize, Bytes};
use crate::names::Plan;
use crate::names::posix::LANES_MAX;
use crate::workload::{Direction, Order, Until, Workload};
use clap::{Args, Subcommand, ValueEnum};
use corefs_net::buffer::BLOCK_MAX;
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
}

/// Flags that every verb has.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Bytes that are touched: the working set [default: 2GiB, or the size of what is there].
    #[arg(long, value_name = "SIZE")]
    pub size: Option<Bytes>,
    /// Bytes of an operation, a multiple of 4KiB up to 2MiB [default: 4KiB for random, 1MiB for sequential].
    #[arg(long, value_name = "SIZE")]
    pub block: Option<Bytes>,
    /// Operations in flight, all cores together [default: 128 for random, 8 for sequential].
    #[arg(long, value_name = "N")]
    pub depth: Option<u32>,
    /// Cores that drive the load, each with its own executor, connections and histogram.
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
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = STDOUT)]
    pub json: Option<PathBuf>,
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
    #[arg(long)]
    pub against_fio: bool,
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
    #[command(flatten)]
    pub load: LoadArgs,
}

/// What can be compared. The disk and fio read at random in a file that is made where --ceiling says (default: here).
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contestant {
    /// The raw disk, by this machine's own io_uring loop.
    Disk,
    /// The same file by fio.
    Fio,
    /// Through the native client, as the rest.
    Randread,
    Randwrite,
    Seqread,
    Seqwrite,
}

impl Contestant {
    /// What it does in corefs; `None` for what is below it.
    pub fn access(self) -> Option<Access> {
        match self {
            Self::Disk | Self::Fio => None,
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
    /// Write the report as JSON to FILE, or to standard output instead of the table when there is no FILE.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = STDOUT)]
    pub json: Option<PathBuf>,
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
        Ok(Plan { files, directories, deep, lanes })
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
    /// Measure --path as a file in a mounted file system, even if a manager is known.
    #[arg(long)]
    pub mounted: bool,
    /// The file, absolute in corefs; written first when it isn't there.
    #[arg(long, value_name = "PATH", default_value = "/corefs-perf.dat")]
    pub path: PathBuf,
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
            Self::Disk(args) => &args.run.json,
            Self::Randread(args) | Self::Randwrite(args) | Self::Seqread(args) | Self::Seqwrite(args) => {
                &args.run.json
            }
            Self::Compare(args) => &args.load.run.json,
            Self::Meta(args) => &args.json,
        };
        match path.as_deref() {
            None => Json::Nowhere,
            Some(path) if path == Path::new(STDOUT) => Json::Stdout,
            Some(path) => Json::File(path),
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
        let random = access.order() == Order::Random;
        let block = self.block.map_or(if random { BLOCK as u64 } else { 1 << 20 }, |bytes| bytes.0);
        let depth = self.depth.unwrap_or(if random { 128 } else { 8 });
        if !block.is_multiple_of(BLOCK as u64) || block > BLOCK_MAX as u64 {
            return bad(format!("--block {block}: a multiple of {BLOCK} bytes, at most {BLOCK_MAX}"));
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
            round: 0,
        })
    }
}

impl LoadArgs {
    /// The run that these flags ask for; `BadConfig` for what makes no sense.
    pub fn workload(&self, access: Access, working_set: u64) -> Result<Workload> {
        let mut run = self.run.workload(access, working_set)?;
        let share = run.depth / run.cores;
        let batch = self.batch;
        run.batch = batch;
        if batch == 0 || batch as usize > READ_BATCH_MAX {
            return bad(format!("--batch {batch}: between 1 and {READ_BATCH_MAX} reads go together"));
        }
        if batch > 1 && run.direction == Direction::Write {
            return bad(format!("--batch {batch}: only reads go in batches; use --depth for writes"));
        }
        if batch > share {
            return bad(format!(
                "--batch {batch}: more than a core's share of --depth {} ({share})",
                run.depth
            ));
        }
        if let Some(rate) = self.rate
            && !(0.1..=1e9).contains(&rate)
        {
            return bad(format!("--rate {rate}: between 0.1 and a billion operations a second"));
        }
        run.rate = self.rate;
        run.verify = self.verify;
        let crowded =
            |core| (run.span(core).end - run.span(core).start) / run.block < 4 * u64::from(run.lanes());
        if run.verify && run.direction == Direction::Write && (0..run.cores).any(crowded) {
            return bad("--verify needs --size of at least 4 blocks for each write in flight".into());
        }
        Ok(run)
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
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        verb: Verb,
    }

    fn parse(line: &str) -> std::result::Result<Verb, String> {
        let words = std::iter::once("perf").chain(line.split(' '));
        Cli::try_parse_from(words).map(|cli| cli.verb).map_err(|error| error.to_string())
    }

    fn access(verb: &Verb) -> Access {
        match verb {
            Verb::Randread(_) => Access::Randread,
            Verb::Randwrite(_) => Access::Randwrite,
            Verb::Seqread(_) => Access::Seqread,
            _ => Access::Seqwrite,
        }
    }

    fn load(line: &str) -> Result<Workload> {
        let verb = parse(line).unwrap();
        let (Verb::Randread(args) | Verb::Randwrite(args) | Verb::Seqread(args) | Verb::Seqwrite(args)) =
            &verb
        else {
            panic!("{line} isn't a load");
        };
        args.workload(access(&verb), args.run.size.map_or(2 << 30, |size| size.0))
    }

    #[test]
    fn the_defaults_are_the_main_measurement() {
        let run = load("randread --manager 127.0.0.1:7400").unwrap();
        assert_eq!((run.block, run.depth, run.batch, run.lanes()), (4096, 128, 1, 128));
        let run = load("seqwrite").unwrap();
        assert_eq!((run.block, run.depth, run.batch), (1 << 20, 8, 1));
        assert_eq!(load("randread --depth 4 --batch 4").unwrap().lanes(), 1);
        assert_eq!(load("randread --size 10000").unwrap().working_set, 8192);
    }

    #[test]
    fn every_flag_of_the_command_is_there() {
        let line = "randread --manager 10.0.0.1:1,10.0.0.2:1 --path /x --size 8GiB --block 8KiB --depth 64 --batch 8 \
                    --cores 2 --seconds 0.5 --runtime-warmup 0 --rate 1000 --verify --seed 9 --json out.json";
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        let run = load(&line).unwrap();
        assert_eq!((run.working_set, run.block, run.depth, run.batch, run.cores), (8 << 30, 8192, 64, 8, 2));
        assert!(run.verify && run.rate == Some(1000.0) && run.seed == 9);
        let Verb::Randread(args) = parse(&line).unwrap() else { panic!() };
        assert_eq!(args.managers().unwrap().len(), 2);
        assert!(args.verify);
        assert_eq!(parse(&line).unwrap().json(), Json::File(Path::new("out.json")));
        assert_eq!(parse("disk --json").unwrap().json(), Json::Stdout);
        assert_eq!(parse("meta --local .").unwrap().json(), Json::Nowhere);
    }

    #[test]
    fn nonsense_is_refused_with_its_flag() {
        for (line, flag) in [
            ("randread --block 5000", "--block"),
            ("randread --block 4MiB", "--block"),
            ("randread --depth 0", "--depth"),
            ("randread --depth 5000", "--depth"),
            ("randread --depth 2 --cores 4", "--depth"),
            ("randread --cores 0", "--cores"),
            ("randread --size 100", "--size"),
            ("randread --batch 0", "--batch"),
            ("randread --batch 257", "--batch"),
            ("randread --batch 64 --depth 32", "--batch"),
            ("randwrite --batch 2", "--batch"),
            ("randread --seconds 0", "--seconds"),
            ("randread --seconds NaN", "--seconds"),
            ("randread --seconds 1e300", "--seconds"),
            ("randread --runtime-warmup=-1", "--runtime-warmup"),
            ("randread --rate 0", "--rate"),
            ("randread --rate inf", "--rate"),
            ("randwrite --verify --size 1MiB", "--verify"),
        ] {
            let error = load(line).expect_err(line);
            assert!(error.code == ErrorCode::BadConfig && error.message.contains(flag), "{line}: {error}");
        }
        for (line, what) in [
            ("randread --size 0", "makes no sense"),
            ("randread --size=-1", "negative"),
            ("randread --size 99999999PiB", "16EiB"),
            ("randread --size 4furlongs", "no unit"),
            ("randread --sise 4KiB", "unexpected argument"),
            ("disk --access backwards", "possible values"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(what), "{line}: {error}");
        }
    }

    #[test]
    fn trees_are_planned_or_refused() {
        let plan = |line: &str| match parse(line).unwrap() {
            Verb::Meta(args) => args.plan(),
            _ => panic!("{line}"),
        };
        let line = "meta --local /x --files 100 --directories 5 --deep 3 --threads 8";
        assert_eq!(plan(line), Ok(Plan { files: 100, directories: 5, deep: 3, lanes: 8 }));
        for (line, flag) in [
            ("meta --local /x --files 0", "--files"),
            ("meta --local /x --files 10 --directories 11", "--directories"),
            ("meta --local /x --directories 0", "--directories"),
            ("meta --local /x --deep 101", "--deep"),
            ("meta --local /x --threads 0", "--threads"),
            ("meta --local /x --threads 513", "--threads"),
            ("meta --manager a:1 --cores 0", "--cores"),
            ("meta", "--local"),
        ] {
            let error = plan(line).expect_err(line);
            assert!(error.code == ErrorCode::BadConfig && error.message.contains(flag), "{line}: {error}");
        }
    }

    #[test]
    fn secrets_are_read_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let Verb::Randread(mut args) = parse("randread").unwrap() else { panic!() };
        assert_eq!(args.secret(), Ok(None));
        args.secret_file = Some(path.clone());
        assert!(args.secret().is_err());
        std::fs::write(&path, "ab".repeat(32) + "\n").unwrap();
        assert!(args.secret().unwrap().is_some());
        std::fs::write(&path, "short").unwrap();
        assert_eq!(args.secret().unwrap_err().code, ErrorCode::BadConfig);
    }
}
