//! The load of `ci/chaos` and the judge of what it saw.
//!
//! | module | is |
//! |---|---|
//! | `value` | what a block holds: unique, and it tells itself |
//! | `record` | histories on disk |
//! | `load` | writers and readers over the native client |
//! | `register` | whether a history is that of one register a key |
//! | `service` | how long chains didn't serve after something happened |
//! | `canary` | histories altered on purpose, which must be found wrong |

mod canary;
mod load;
mod record;
mod register;
mod service;
mod value;

use clap::Parser;
use corefs_client::{Client, ClientOptions};
use corefs_net::Secret;
use corefs_wire::{Error, ErrorCode, Result};
use load::Settings;
use record::{History, Log};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Violations that are told; the others are counted.
const TOLD_MAX: usize = 20;

/// Writes and reads blocks of a cluster, notes what happens, and judges whether that can be.
#[derive(Parser)]
enum Args {
    /// Make the files, and give every block a value. Prints how many files.
    Prepare {
        #[command(flatten)]
        common: Common,
        /// At least so many files; more if a chain has none yet.
        #[arg(long, default_value_t = 64)]
        files: u32,
    },
    /// Write and read until the file --stop is there.
    Run {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value_t = 8)]
        readers: u32,
        /// Mean pause of a writer between its operations (ms).
        #[arg(long, default_value_t = 30)]
        write_pause: u64,
        /// Mean pause of a reader between its operations (ms).
        #[arg(long, default_value_t = 15)]
        read_pause: u64,
    },
    /// Read every block.
    Read {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value_t = 6)]
        rounds: u32,
    },
    /// Fill chains until there is no room, wait, and remove what filled them.
    Fill {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value_t = 1)]
        chains: u32,
        /// Bytes of one chain at most.
        #[arg(long, default_value_t = 1 << 30)]
        most: u64,
        #[arg(long, default_value_t = 5000)]
        hold_ms: u64,
    },
    /// Judge the histories of a directory. Exits with 1 if they can't be.
    Check {
        directory: PathBuf,
        #[arg(long, default_value_t = 4)]
        blocks: u32,
        /// JSON list of `{"at": ns, "chains": [...]}`: tell how long each chain didn't serve then.
        #[arg(long)]
        events: Option<PathBuf>,
        /// Alter the history first: stale, lost, nowhere, early. Exits with 0 if that is found out.
        #[arg(long)]
        canary: Option<String>,
    },
}

#[derive(clap::Args, Clone)]
struct Common {
    #[arg(long, required = true)]
    manager: Vec<String>,
    #[arg(long)]
    secret_file: Option<PathBuf>,
    /// Where the history goes.
    #[arg(long, default_value = "/dev/null")]
    history: PathBuf,
    /// Blocks of a file that are used.
    #[arg(long, default_value_t = 4)]
    blocks: u32,
    /// Unlike that of any other process that ever writes to these files.
    #[arg(long, default_value_t = 1)]
    process: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value = "/nonexistent")]
    stop: PathBuf,
    /// How long an operation is tried again (s).
    #[arg(long, default_value_t = 30)]
    deadline: u64,
}

impl Common {
    fn settings(&self) -> Result<Settings> {
        let log =
            Log::create(&self.history).map_err(|error| Error::from(error).of(self.history.display()))?;
        let Self { blocks, process, seed, stop, .. } = self.clone();
        Ok(Settings { log, blocks, process, seed, stop })
    }

    /// Runs `work` with a client on this thread.
    fn with_client<T: 'static, F>(self, work: impl FnOnce(Client) -> F + 'static) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let managers = self.manager.iter().map(|text| text.parse()).collect::<Result<Vec<_>>>()?;
        let secret = self.secret_file.as_deref().map(secret).transpose()?;
        let mut options = ClientOptions::new(managers, secret);
        options.name = format!("history {}", self.process);
        options.deadline = Duration::from_secs(self.deadline);
        corefs_net::executor::run_alone(async move {
            let client = Client::connect(options).await?;
            let outcome = work(client.clone()).await;
            let closed = client.close().await;
            let value = outcome?;
            closed?;
            Ok(value)
        })
    }
}

fn secret(path: &Path) -> Result<Secret> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::from(error).of(path.display()))?;
    Secret::parse(&text).ok_or_else(|| Error::new(ErrorCode::BadConfig, "not a secret"))
}

fn run(args: Args) -> Result<ExitCode> {
    match args {
        Args::Prepare { common, files } => {
            let settings = common.settings()?;
            let made = common.with_client(move |client| load::prepare(client, settings, files))?;
            println!("{made}");
        }
        Args::Run { common, readers, write_pause, read_pause } => {
            let settings = common.settings()?;
            let (write, read) = (Duration::from_millis(write_pause), Duration::from_millis(read_pause));
            common.with_client(move |client| load::run(client, settings, readers, write, read))?;
        }
        Args::Read { common, rounds } => {
            let settings = common.settings()?;
            common.with_client(move |client| load::read_all(client, settings, rounds))?;
        }
        Args::Fill { common, chains, most, hold_ms } => {
            let hold = Duration::from_millis(hold_ms);
            let written = common.with_client(move |client| load::fill(client, chains, most, hold))?;
            println!("{written}");
        }
        Args::Check { directory, blocks, events, canary } => {
            return check(&directory, blocks, events, canary);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn check(directory: &Path, blocks: u32, events: Option<PathBuf>, canary: Option<String>) -> Result<ExitCode> {
    let mut history = History::load(directory).map_err(Error::from)?;
    if let Some(kind) = canary {
        if canary::alter(&mut history, &kind).is_none() {
            let kinds = canary::KINDS.join(", ");
            let what = format!("this history can't be altered so: {kind} (there are {kinds})");
            return Err(Error::new(ErrorCode::BadConfig, what));
        }
        let found = register::check(&history);
        println!("canary {kind}: {}", found.first().map_or("NOT CAUGHT", |found| found));
        return Ok(ExitCode::from(u8::from(found.is_empty())));
    }
    let events: Vec<Value> = match events {
        None => Vec::new(),
        Some(path) => serde_json::from_str(&std::fs::read_to_string(path).map_err(Error::from)?)
            .map_err(|error| Error::new(ErrorCode::BadConfig, format!("the events: {error}")))?,
    };
    let problems = register::check(&history);
    let mut failures: BTreeMap<String, (u64, u64, String)> = BTreeMap::new();
    for failure in &history.failures {
        let (count, first, why) = failures.entry(failure.what.clone()).or_default();
        if *count == 0 {
            (*first, *why) = (failure.start, failure.why.clone());
        }
        *count += 1;
    }
    let failures: BTreeMap<String, Value> = failures
        .into_iter()
        .map(|(what, (count, start, why))| {
            (what, json!({"count": count, "first_start": start, "first_why": why}))
        })
        .collect();
    let all: Vec<Value> = history
        .failures
        .iter()
        .map(|one| json!({"what": one.what, "key": one.key, "start": one.start, "end": one.end, "why": one.why}))
        .collect();
    let unknown = history.writes.iter().filter(|write| write.end.is_none()).count();
    let slowest = |ends: &mut dyn Iterator<Item = u64>| ends.max().unwrap_or(0) as f64 / 1e6;
    let mut write_times = history.writes.iter().filter_map(|write| Some(write.end? - write.start));
    let mut read_times = history.reads.iter().map(|read| read.end - read.start);
    let told = json!({
        "writes": history.writes.len(), "unknown_writes": unknown, "reads": history.reads.len(),
        "syncs": history.syncs.len(), "slowest_sync_ms": slowest(&mut history.syncs.iter().map(|(end, start)| end - start)),
        "slowest_write_ms": slowest(&mut write_times), "slowest_read_ms": slowest(&mut read_times),
        "failures": failures, "failed": all.iter().take(200).collect::<Vec<_>>(), "problems": problems.len(),
        "first_problems": problems.iter().take(TOLD_MAX).collect::<Vec<_>>(),
        "events": service::after(&history, blocks, &events),
    });
    println!("{told}");
    Ok(ExitCode::from(u8::from(!problems.is_empty())))
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("corefs-history: {error}");
            ExitCode::from(2)
        }
    }
}
