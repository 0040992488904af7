//! `corefs disk`: the disks of a storage node, and how they come, are emptied and are replaced while it serves.

use super::moves::{self, Wait};
use super::node::{self, Change, Common};
use super::status;
use crate::output;
use corefs_engine::disk::file::DiskFile;
use corefs_engine::server::home::{self, DiskInfo, Home, Plan, Request};
use corefs_perf::args::Bytes;
use corefs_wire::control::mgmtd::{NewSliceT, NodeChange, SliceInfoT, StatusT};
use corefs_wire::{Error, ErrorCode, Result};
use serde_json::json;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Bytes at the beginning of a device: partition tables, superblocks of file systems and our own are there.
const LOOKED_AT: usize = 128 << 10;
/// How long a node may take to have a disk in use.
const PATIENCE: Duration = Duration::from_secs(120);

/// Show a storage node's disks, add one, empty one, replace one.
///
/// To be typed on the node's machine, with the node's directory (`DIR/node-1` of a cluster of `corefs up`). The node goes on serving:
/// a new disk gets its share of the targets, an old one is emptied, both while clients read and write.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// List the node's disks and what is on them.
    Ls {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        common: Common,
    },
    /// Add a disk, and take it into use.
    Add {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        new: New,
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        common: Common,
    },
    /// Empty a disk: its targets go to other disks, of this or of other nodes.
    Drain {
        /// The disk's number, as `ls` shows it.
        disk: usize,
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        common: Common,
    },
    /// Add a disk in the place of one that is dead, or that is to be taken out.
    ///
    /// Copies come from the other replicas if the old disk is dead. Take it out when `ls` shows no targets on it.
    Replace {
        /// The number of the old disk, as `ls` shows it.
        old: usize,
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        new: New,
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(clap::Args)]
struct Place {
    /// Directory of the storage node.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

#[derive(clap::Args)]
struct New {
    /// The new disk: a block device, or a file to be made [default: a new file in the node's directory].
    #[arg(long, value_name = "PATH")]
    disk: Option<PathBuf>,
    /// Bytes of it [default: as many as the node's first disk].
    #[arg(long, value_name = "SIZE")]
    capacity: Option<Bytes>,
    /// Take a block device although something is on it, which is lost then.
    #[arg(long)]
    overwrite: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Command::Ls { place, common } => list(&place.dir, &common),
        Command::Add { place, new, change, common } => add(&place.dir, &new, None, &change, &common),
        Command::Replace { old, place, new, change, common } => {
            let slices = slices_of(&place.dir, old)?;
            add(&place.dir, &new, Some((old, slices)), &change, &common)
        }
        Command::Drain { disk, place, change, common } => {
            let slices = slices_of(&place.dir, disk)?;
            node::apply(number(&place.dir)?, slices, NodeChange::Empty, &change, &common)
        }
    }
}

fn number(dir: &Path) -> Result<u32> {
    let missing = || {
        let what = format!("{}: no storage node that has joined a cluster is here", dir.display());
        Error::new(ErrorCode::BadConfig, what)
    };
    home::node_of(dir).map(|node| node.0).ok_or_else(missing)
}

fn slices_of(dir: &Path, disk: usize) -> Result<Vec<u16>> {
    let disks = home::disks_of(dir)?;
    let Some(found) = disks.get(disk) else {
        let what =
            format!("{}: there is no disk {disk}, only {}; see `corefs disk ls`", dir.display(), disks.len());
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    };
    Ok(found.slices.clone().collect())
}

/// What the manager says of a disk's slices.
fn known<'a>(status: &'a StatusT, node: u32, disk: &DiskInfo) -> Vec<&'a SliceInfoT> {
    let found = status.nodes.iter().find(|found| found.node == node);
    let slices = found.map_or(&[][..], |node| &node.slices);
    slices.iter().filter(|slice| disk.slices.contains(&slice.index)).collect()
}

fn targets(status: &StatusT, node: u32, disk: &DiskInfo) -> usize {
    let on = status.routing.targets.iter();
    on.filter(|target| target.node == node && disk.slices.contains(&target.slice)).count()
}

/// What all slices of a disk are, or `mixed`.
fn state(slices: &[&SliceInfoT]) -> &'static str {
    let mut names = slices.iter().map(|slice| node::standing(slice));
    let Some(first) = names.next() else { return "unknown to the manager" };
    if names.all(|name| name == first) { first } else { "mixed" }
}

fn list(dir: &Path, common: &Common) -> Result<ExitCode> {
    let (disks, node) = (home::disks_of(dir)?, number(dir)?);
    let status = status::fetch(&common.cluster)?;
    if common.json {
        let one = |(at, disk): (usize, &DiskInfo)| {
            let slices = known(&status, node, disk);
            json!({
                "disk": at, "path": disk.path, "bytes": disk.bytes, "first_slice": disk.slices.start,
                "slices": disk.slices.len(), "state": state(&slices), "targets": targets(&status, node, disk),
                "used": slices.iter().map(|slice| slice.used).sum::<u64>(),
            })
        };
        output::json(&json!({"node": node, "disks": disks.iter().enumerate().map(one).collect::<Vec<_>>()}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![["DISK", "STATE", "SLICES", "TARGETS", "USED", "OF", "PATH"].map(String::from)];
    for (at, disk) in disks.iter().enumerate() {
        let slices = known(&status, node, disk);
        rows.push([
            at.to_string(),
            state(&slices).into(),
            format!("{} to {}", disk.slices.start, disk.slices.end.saturating_sub(1)),
            targets(&status, node, disk).to_string(),
            output::size(slices.iter().map(|slice| slice.used).sum()),
            output::size(disk.bytes),
            disk.path.display().to_string(),
        ]);
    }
    output::table(&rows)?;
    Ok(ExitCode::SUCCESS)
}

/// Adds a disk, in the place of an old one if there is one.
fn add(
    dir: &Path,
    new: &New,
    old: Option<(usize, Vec<u16>)>,
    asked: &Change,
    common: &Common,
) -> Result<ExitCode> {
    let (node, disks) = (number(dir)?, home::disks_of(dir)?);
    let size = new.capacity.map_or(disks[0].bytes, |bytes| bytes.0);
    let path = match &new.disk {
        Some(path) => std::path::absolute(path).map_err(Error::from)?,
        None => PathBuf::from(format!("disk-{}", disks.len())),
    };
    if disks.iter().any(|disk| disk.path == dir.join(&path)) {
        return Err(Error::new(ErrorCode::Exists, format!("{} is a disk of this node", path.display())));
    }
    let device = refuse_used(&dir.join(&path), new.overwrite)?;
    let assumed = would_be(&disks, size);
    if asked.dry_run {
        let (slices, what) = match old {
            Some((_, slices)) => (slices, NodeChange::Empty),
            None => (vec![], NodeChange::Use),
        };
        return node::suppose(node, slices, what, assumed, common);
    }
    if !is_served(dir)? {
        let plan = Plan { disks: &[], capacity: 0, cores: 1 };
        Home::open(dir, &plan)?.add_disk(&path, size)?;
        let mut next = vec![format!("corefs node add {node}")];
        if let Some((disk, _)) = old {
            next.push(format!("corefs disk drain {disk} --dir {}", dir.display()));
        }
        if common.json {
            let path = dir.join(&path);
            output::json(&json!({"node": node, "added": path, "served": false, "when_it_serves": next}))?;
        } else {
            let (path, next) = (path.display(), next.join("; "));
            output::line(&format!(
                "{path} is added; nobody serves {} now: start the node, then: {next}",
                dir.display()
            ))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some((_, slices)) = &old {
        // What can't be emptied is better known before anything is added.
        node::foresee(node, slices.clone(), NodeChange::Empty, assumed, &common.cluster)?;
    }
    // Made here, so that the node doesn't wait for it.
    drop(DiskFile::create(&dir.join(&path), size)?);
    home::request(dir, &Request { path: path.clone(), size })?;
    let first = disks.last().map_or(0, |disk| disk.slices.end);
    let known = wait_until_known(dir, node, first, common);
    if known.is_err() && !device && !home::disks_of(dir)?.iter().any(|disk| disk.path == dir.join(&path)) {
        let _never_used = std::fs::remove_file(dir.join(&path));
    }
    let empty = old.as_ref().map(|(disk, _)| format!("corefs disk drain {disk} --dir {}", dir.display()));
    let left = |error: Error| {
        if !home::disks_of(dir).is_ok_and(|now| now.len() > disks.len()) {
            return error;
        }
        let command = format!("corefs node add {node}");
        node::then(error, &empty.iter().fold(command, |command, empty| format!("{command}; {empty}")))
    };
    let fresh: Vec<u16> = known.map_err(&left)?;
    match (old, &empty) {
        (Some((_, old)), Some(empty)) => {
            let plan = node::replace(node, fresh, old, empty.clone(), &common.cluster)?;
            let wait = if asked.wait { Wait::Yes } else { Wait::No };
            moves::tell(&plan, &wait, &common.cluster, common.json)
        }
        _ => node::apply_or(node, fresh, NodeChange::Use, asked, common, left),
    }
}

/// The slices that a disk of so many bytes would have: as many as the node's first one.
fn would_be(disks: &[DiskInfo], size: u64) -> Vec<NewSliceT> {
    let count = disks.first().map_or(1, |disk| disk.slices.len()).max(1);
    let mut slice = NewSliceT::default();
    (slice.capacity, slice.disk) = (size / count as u64, disks.len() as u16);
    vec![slice; count]
}

/// What is there already isn't overwritten: no file, no device that a file system or another process has, and none that holds something
/// unless that is wanted. Whether it is a device.
fn refuse_used(path: &Path, overwrite: bool) -> Result<bool> {
    let Ok(metadata) = path.metadata() else { return Ok(false) };
    let of = |error: std::io::Error| Error::from(error).of(path.display());
    if !metadata.file_type().is_block_device() {
        let what = "is there already; name a block device, or a file that isn't there yet";
        return Err(Error::new(ErrorCode::Exists, format!("{} {what}", path.display())));
    }
    // A device that is mounted, or part of something, can't be opened this way (open(2), O_EXCL without O_CREAT).
    let opened = File::options().read(true).custom_flags(libc::O_EXCL).open(path);
    let mut device = opened.map_err(|error| match error.kind() {
        ErrorKind::ResourceBusy => {
            let what = "is mounted, or part of something that is in use; take it out of that first";
            Error::new(ErrorCode::Exists, format!("{} {what}", path.display()))
        }
        _ => of(error),
    })?;
    let mut beginning = vec![0; LOOKED_AT];
    device.read_exact(&mut beginning).map_err(of)?;
    if !overwrite && beginning.iter().any(|byte| *byte != 0) {
        let what = "isn't empty: if nobody needs what is on it, give --overwrite";
        return Err(Error::new(ErrorCode::Exists, format!("{} {what}", path.display())));
    }
    Ok(true)
}

/// Whether a process serves the node.
fn is_served(dir: &Path) -> Result<bool> {
    match corefs_engine::disk::file::lock(&dir.join("lock")) {
        Ok(_) => Ok(false),
        Err(error) if error.code == ErrorCode::DirectoryInUse => Ok(true),
        Err(error) => Err(error),
    }
}

/// Waits until the manager knows the new slices, those from `first` on.
fn wait_until_known(dir: &Path, node: u32, first: u16, common: &Common) -> Result<Vec<u16>> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if let Some(answer) = home::answer(dir) {
            answer?;
            let status = status::fetch(&common.cluster)?;
            let found = status.nodes.iter().find(|found| found.node == node);
            let slices = found.map_or(&[][..], |node| &node.slices);
            let fresh: Vec<u16> =
                slices.iter().map(|slice| slice.index).filter(|slice| *slice >= first).collect();
            if !fresh.is_empty() {
                return Ok(fresh);
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    home::withdraw(dir);
    let what = format!("node-{node} hasn't taken the disk within {} s; see its log", PATIENCE.as_secs());
    Err(Error::new(ErrorCode::TimedOut, what))
}
