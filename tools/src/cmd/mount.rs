//! `corefs mount` and `corefs umount`.

use crate::{config, output, role, signals};
use corefs_client::{ClientOptions, ClientPool, PoolOptions};
use corefs_fuse::{BELIEVED, Consistency, MountOptions, mount, unmount};
use corefs_wire::{Error, ErrorCode, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Mount the file system at an existing directory, in the foreground until interrupted or unmounted.
///
/// Needs /dev/fuse, and root or fusermount3. Prints `ready PATH` when it can be used. What one mount writes, another sees
/// when it opens the file after the first has closed or synced it.
#[derive(clap::Args, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Args {
    /// TOML file with settings, section [mount]; flags win.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Address of a manager; repeat for several, or put commas between them.
    #[arg(long, value_name = "ADDR", value_delimiter = ',', env = "COREFS_MANAGER")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    manager: Vec<String>,
    /// Threads that take requests from the kernel [default: 2].
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<usize>,
    /// File with the cluster's secret.
    #[arg(long, value_name = "FILE", env = "COREFS_SECRET_FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_file: Option<PathBuf>,
    /// By what connections go: auto (RDMA where both ends have it and it works, TCP otherwise), tcp, or rdma (an error
    /// where there is none, here or at a storage node, or it doesn't work) [default: auto].
    /// `corefs doctor` shows what there is.
    #[arg(long, value_name = "WAY", env = "COREFS_TRANSPORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    transport: Option<String>,
    /// When a second replica is asked for a read, too, and the first answer taken: off, auto (after the time that 99% of recent reads
    /// took), or after a time such as 5ms [default: auto].
    #[arg(long, value_name = "WHEN", env = "COREFS_HEDGE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    hedge: Option<String>,
    /// Let locks (flock, fcntl) count among the programs of this mount only: each costs nothing instead of a commit, and
    /// other mounts don't see them.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    local_locks: bool,
    /// When changes made elsewhere are seen here: `close-to-open`, what was closed before a file is opened, names within a second; or
    /// `strict`, everything at once, for programs on several machines that watch each other's files without locks. Strict costs a question
    /// before each read and a commit with each write [default: close-to-open].
    #[arg(long, value_name = "HOW")]
    #[serde(skip_serializing_if = "Option::is_none")]
    consistency: Option<How>,
    /// How long the kernel believes names and attributes without asking again, whatever others do, such as 10m or 12h, a day at most: what
    /// other mounts change is seen only then. For data that nobody changes meanwhile; a name that isn't there is looked for again after a
    /// second in any case, and opening a file shows its newest bytes [default: 1s; and this mount remembers what it heard until it hears
    /// that it has changed].
    #[arg(long, value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    believe: Option<String>,
    /// Refuse all changes.
    #[arg(long)]
    #[serde(skip)]
    read_only: bool,
    /// Where to mount.
    #[serde(skip)]
    path: PathBuf,
}

/// [`Consistency`] by the names that flags and settings have for it.
#[derive(Clone, Copy, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum How {
    CloseToOpen,
    Strict,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let (path, read_only) = (args.path.clone(), args.read_only);
    let args: Args = config::merge("mount", args.config.as_deref(), &args)?;
    let mut options =
        ClientOptions::new(role::managers(&args.manager)?, role::secret(args.secret_file.as_deref())?);
    if let Some(transport) = &args.transport {
        options.transport = transport.parse()?;
    }
    if let Some(hedge) = &args.hedge {
        options.hedge = hedge.parse()?;
    }
    let consistency = consistency(args.consistency, args.believe.as_deref())?;
    options.name = format!("mount {}", path.display());
    let pool = ClientPool::start(options, PoolOptions::default())?;
    let mounting = MountOptions {
        threads: args.threads.unwrap_or(MountOptions::default().threads),
        read_only,
        local_locks: args.local_locks,
        consistency,
    };
    let mounted = match mount(pool.clone(), &path, &mounting) {
        Ok(mounted) => mounted,
        Err(error) => {
            pool.stop()?;
            return Err(error);
        }
    };
    output::line(&format!("ready {}", path.display()))?;
    while !signals::wait_for(Duration::from_millis(200)) {
        if mounted.ended() {
            break;
        }
    }
    mounted.unmount()?;
    pool.stop()?;
    Ok(ExitCode::SUCCESS)
}

/// The longest that names and attributes are believed.
const BELIEVED_MAX: Duration = Duration::from_secs(24 * 60 * 60);

fn consistency(how: Option<How>, believe: Option<&str>) -> Result<Consistency> {
    let wrong = |what: String| Error::new(ErrorCode::BadConfig, what);
    let believed = match believe {
        None => BELIEVED,
        Some(text) => humantime::parse_duration(text).map_err(|error| {
            wrong(format!("--believe {text}: {error}; say a time, such as 30s, 10m or 12h"))
        })?,
    };
    match how {
        Some(How::Strict) if believe.is_some() => Err(wrong(
            "--believe: a strict mount believes nothing; leave it out, in the settings as well, or --consistency strict".into(),
        )),
        Some(How::Strict) => Ok(Consistency::Strict),
        _ if believed > BELIEVED_MAX => Err(wrong("--believe: at most a day, 24h".into())),
        Some(How::CloseToOpen) | None => Ok(Consistency::CloseToOpen { believed }),
    }
}

/// Unmount a corefs mount, also one whose process is gone.
#[derive(clap::Args)]
pub struct UmountArgs {
    /// Where it is mounted.
    path: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn umount(args: UmountArgs) -> Result<ExitCode> {
    unmount(&args.path)?;
    if args.json {
        output::json(&serde_json::json!({"unmounted": args.path}))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_believed_is_said_as_a_time_and_only_where_anything_is() {
        let believed =
            |how, text| consistency(how, text).map(Consistency::believed).map_err(|error| error.code);
        assert_eq!(believed(None, None), Ok(Duration::from_secs(1)));
        assert_eq!(believed(Some(How::CloseToOpen), Some("10m")), Ok(Duration::from_secs(600)));
        assert_eq!(believed(None, Some("24h")), Ok(BELIEVED_MAX));
        assert_eq!(believed(None, Some("0s")), Ok(Duration::ZERO));
        assert_eq!(believed(Some(How::Strict), None), Ok(Duration::ZERO));
        for (how, text) in [(None, "10"), (None, ""), (None, "-1s"), (None, "25h"), (Some(How::Strict), "1s")]
        {
            assert_eq!(believed(how, Some(text)), Err(ErrorCode::BadConfig), "{text}");
        }
        assert_eq!(consistency(None, Some("1h")).unwrap().remembered(), BELIEVED);
    }
}
