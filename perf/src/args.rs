//! The flags of `corefs perf`, and the runs that they ask for.

pub use crate::bytes::{BadSize, Bytes};
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

impl Verb {
    pub fn run_args(&self) -> &RunArgs {
        match self {
            Self::Disk(args) => &args.run,
            Self::Randread(args) | Self::Randwrite(args) | Self::Seqread(args) | Self::Seqwrite(args) => {
                &args.run
            }
        }
    }

    pub fn access(&self) -> Access {
        match self {
            Self::Disk(args) => args.access,
            Self::Randread(_) => Access::Randread,
            Self::Randwrite(_) => Access::Randwrite,
            Self::Seqread(_) => Access::Seqread,
            Self::Seqwrite(_) => Access::Seqwrite,
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
    /// Whether the report goes to standard output as JSON: nothing else may then.
    pub fn json_to_stdout(&self) -> bool {
        self.json.as_deref() == Some(Path::new(STDOUT))
    }

    /// The file that the JSON goes to.
    pub fn json_file(&self) -> Option<&Path> {
        self.json.as_deref().filter(|path| *path != Path::new(STDOUT))
    }

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
        let Some(path) = &self.secret_file else { return Ok(None) };
        let text = std::fs::read_to_string(path).map_err(|error| Error::from(error).of(path.display()))?;
        let wrong = || {
            Error::new(ErrorCode::BadConfig, format!("{}: a secret is 64 hexadecimal digits", path.display()))
        };
        Secret::parse(&text).map(Some).ok_or_else(wrong)
    }
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

    fn load(line: &str) -> Result<Workload> {
        let verb = parse(line).unwrap();
        let (Verb::Randread(args) | Verb::Randwrite(args) | Verb::Seqread(args) | Verb::Seqwrite(args)) =
            &verb
        else {
            panic!("{line} isn't a load");
        };
        args.workload(verb.access(), args.run.size.map_or(2 << 30, |size| size.0))
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
        assert_eq!(args.run.json_file(), Some(Path::new("out.json")));
        assert!(parse("disk --json").unwrap().run_args().json_to_stdout());
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
