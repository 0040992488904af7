//! `corefs doctor`: what this machine has for a storage node, what will be used, and what would make it better.

use crate::output;
use corefs_engine::disk::way::{Choice, Survey, Way};
use corefs_engine::server::home;
use corefs_wire::{Error, ErrorCode, Result};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Show by which way a storage node would reach its disks, why, and what would make the way shorter.
///
/// Looks only, and changes nothing: also at the disks of a node that runs. What a node really took stands in its log (`--log info`) and in
/// its counters (`corefs status --counters`).
#[derive(clap::Args)]
pub struct Args {
    /// Block device or file; repeat for several [default: every NVMe drive of this machine].
    #[arg(long, value_name = "PATH")]
    disk: Vec<PathBuf>,
    /// Directory of a storage node: its disks.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let mut paths = args.disk.clone();
    if let Some(dir) = &args.dir {
        paths.extend(home::disks_of(dir)?.into_iter().map(|disk| disk.path));
    }
    if paths.is_empty() && args.dir.is_none() {
        paths = drives();
    }
    if let Some(missing) = paths.iter().find(|path| !path.exists()) {
        let what = format!("{} isn't there; name a block device or a file", missing.display());
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    }
    let found: Vec<(PathBuf, Survey)> =
        paths.into_iter().map(|path| (path.clone(), Survey::of(&path))).collect();
    if args.json {
        let one = |(path, survey): &(PathBuf, Survey)| {
            let drive = survey.passthrough.as_ref().ok();
            json!({
                "path": path,
                "way": way(survey).to_string(),
                "obstacles": survey.obstacles(Choice::Auto),
                "generic_device": drive.map(|drive| drive.path()),
                "block": drive.map(|drive| drive.block()),
                "transfer_max": drive.map(|drive| drive.piece(u32::MAX)),
                "volatile_cache": drive.map(|drive| drive.has_volatile_cache()),
            })
        };
        output::json(&json!({"disks": found.iter().map(one).collect::<Vec<_>>()}))?;
        return Ok(ExitCode::SUCCESS);
    }
    if found.is_empty() {
        output::line("no NVMe drive is here; --disk PATH looks at a file or at another block device")?;
    }
    for (path, survey) in &found {
        tell(path, survey)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What a node would try first.
fn way(survey: &Survey) -> Way {
    survey.ways(Choice::Auto).first().copied().unwrap_or(Way::Plain)
}

fn tell(path: &Path, survey: &Survey) -> Result<()> {
    output::line(&format!("{}: {}", path.display(), way(survey)))?;
    if let Ok(drive) = &survey.passthrough {
        let cache = match drive.has_volatile_cache() {
            true => "a volatile cache: lone updates are written through it, others flushed",
            false => "no volatile cache: a completed write is durable",
        };
        let transfer = output::size(drive.piece(u32::MAX).into());
        let what = format!(
            "{}, blocks of {} bytes, up to {transfer} a command, {cache}",
            drive.path().display(),
            drive.block()
        );
        output::line(&format!("  {what}"))?;
    }
    for obstacle in survey.obstacles(Choice::Auto) {
        output::line(&format!("  no {obstacle}"))?;
    }
    Ok(())
}

/// The NVMe namespaces of this machine.
fn drives() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut paths: Vec<PathBuf> =
        names.filter(|name| name.starts_with("nvme")).map(|name| Path::new("/dev").join(name)).collect();
    paths.retain(|path| path.exists());
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_told_to_go_the_plain_way() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(way(&Survey::of(file.path())), Way::Plain);
        let missing = Args { disk: vec!["/nonexistent".into()], dir: None, json: false };
        assert_eq!(run(missing).unwrap_err().code, ErrorCode::InvalidArgument);
    }
}
