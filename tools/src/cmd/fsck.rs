//! `corefs fsck`: what a stopped cluster holds, verified to the last block and the last name.

mod orphans;

use crate::directory::{Directory, Shape};
use crate::store::Store;
use crate::{output, role};
use corefs_engine::disk::BlockingDisk;
use corefs_engine::disk::file::DiskFile;
use corefs_engine::server::home::{Home, Plan};
use corefs_engine::store::READ_MAX;
use corefs_engine::store::check::{Check, CheckNeed, CheckReport};
use corefs_kv::embedded::{self, Embedded};
use corefs_meta::check::{self, Checked};
use corefs_meta::key::Keys;
use corefs_meta::server::FILE_SYSTEM;
use corefs_perf::progress::{Progress, Unit, Watch};
use corefs_wire::{Error, ErrorCode, InodeId, Result};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Check a stopped cluster (a directory of `corefs up`) or a stopped node (a directory of `corefs storage`): every superblock,
/// journal, checkpoint, index and block of every slice, and the whole namespace.
///
/// Exits with 0 when all is well and with 1 when anything is damaged, naming it. Chunks of files that aren't there (orphans) are named
/// too; they only take room. Changes nothing but by `--remove-orphans`.
#[derive(clap::Args)]
pub struct Args {
    /// Directory of the cluster or the node.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Have the metadata servers remove the chunks of files that aren't there, once the cluster is up again.
    #[arg(long)]
    remove_orphans: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What was checked, in the order of the checking.
#[derive(Default)]
struct Outcome {
    parts: Vec<Value>,
    /// A sentence for each part, for people.
    said: Vec<String>,
    findings: Vec<String>,
    /// Inodes that may have chunks, as far as the namespace was checked.
    files: Option<BTreeSet<InodeId>>,
    /// How many chunks of each inode the slices hold, all replicas counted.
    chunks: BTreeMap<InodeId, u64>,
    /// How many of the orphans are to be removed.
    queued: Option<usize>,
}

impl Outcome {
    /// Chunks of no inode take room that nobody gets back, and damage nothing.
    fn orphans(&self) -> Vec<(InodeId, u64)> {
        let Some(files) = &self.files else { return Vec::new() };
        self.chunks
            .iter()
            .filter(|(inode, _)| !files.contains(inode))
            .map(|(inode, chunks)| (*inode, *chunks))
            .collect()
    }

    fn part(&mut self, name: &str, counts: Value, findings: Vec<String>) {
        let state =
            if findings.is_empty() { "clean".to_owned() } else { format!("{} findings", findings.len()) };
        let numbers: Vec<String> = counts
            .as_object()
            .map(|counts| counts.iter().map(|(what, count)| format!("{count} {what}")).collect())
            .unwrap_or_default();
        self.said.push(format!("{name}: {state} ({})", numbers.join(", ")));
        self.parts.push(json!({"part": name, "counts": counts, "findings": findings}));
        self.findings.extend(findings.into_iter().map(|finding| format!("{name}: {finding}")));
    }
}

pub fn run(args: Args) -> Result<ExitCode> {
    let watch = if args.json { Watch::Nothing } else { Watch::terminal() };
    let mut outcome = Outcome::default();
    if args.dir.join("node.toml").exists() {
        if args.remove_orphans {
            let what = "--remove-orphans: a node alone doesn't know which files there are; name the cluster's directory";
            return Err(Error::new(ErrorCode::BadConfig, what));
        }
        check_node("node", &args.dir, &mut outcome, watch)?;
    } else if args.dir.join("cluster.toml").exists() {
        let directory = Directory::open(&args.dir)?;
        let shape = directory.shape()?;
        match shape.as_ref().and_then(|shape| shape.kv.as_deref()) {
            None => check_embedded(&directory.kv(), &mut outcome)?,
            Some(kv) => check_in(kv, &mut outcome)?,
        }
        for node in shape.iter().flat_map(Shape::running) {
            let name = format!("node-{node}");
            // The others are checked all the same.
            if let Err(error) = check_node(&name, &directory.node(node), &mut outcome, watch) {
                outcome.part(&name, json!({}), vec![format!("not checked: {error}")]);
            }
        }
        if args.remove_orphans {
            let orphans = outcome.orphans().into_iter().map(|(inode, _)| inode).collect();
            let kv = shape.as_ref().and_then(|shape| shape.kv.as_deref());
            outcome.queued = Some(remove_orphans(kv, &directory.kv(), orphans)?);
        }
    } else {
        let what = format!(
            "{}: neither a cluster (cluster.toml) nor a node (node.toml) is here",
            args.dir.display()
        );
        return Err(Error::new(ErrorCode::BadConfig, what));
    }
    if args.json {
        let orphans = outcome.orphans();
        let orphans: Vec<_> =
            orphans.iter().map(|(inode, chunks)| json!({"inode": inode.0, "chunks": chunks})).collect();
        output::json(&json!({
            "clean": outcome.findings.is_empty(), "parts": outcome.parts, "orphans": orphans,
            "orphans_queued": outcome.queued,
        }))?;
    } else {
        outcome.said.iter().try_for_each(|line| output::line(line))?;
        outcome.findings.iter().try_for_each(|finding| output::line(&format!("DAMAGE {finding}")))?;
        for (inode, chunks) in outcome.orphans() {
            output::line(&format!("ORPHAN {inode}: no file has it, and {chunks} chunks take room"))?;
        }
        if let Some(queued) = outcome.queued {
            output::line(&format!("{queued} of the orphans will be removed when the cluster is up"))?;
        }
    }
    Ok(ExitCode::from(u8::from(!outcome.findings.is_empty())))
}

/// The key-value store, and the namespace in it.
fn check_embedded(path: &Path, outcome: &mut Outcome) -> Result<()> {
    let report = embedded::check::check(path)?;
    let whole = report.damage.is_empty();
    outcome.part("key-value store", json!({"pairs": report.pairs, "bytes": report.bytes}), report.damage);
    if !whole {
        outcome.findings.push("namespace: not checked, because its store is damaged".into());
        return Ok(());
    }
    let path = path.to_owned();
    let checked: Checked = role::block_on("fsck", async move {
        let store = Embedded::open(&path, embedded::Options { verify: false, ..Default::default() })?;
        let checked = check::check(&store, &Keys::new(FILE_SYSTEM)).await;
        store.close().await;
        checked
    })?;
    report_namespace(&checked, outcome);
    Ok(())
}

/// Queues orphans in the store `kv`, or the embedded one in `path`; returns how many it may.
fn remove_orphans(kv: Option<&str>, path: &Path, orphans: Vec<InodeId>) -> Result<usize> {
    if orphans.is_empty() {
        return Ok(0);
    }
    match kv.map(Store::parse).transpose()? {
        None => {
            let path = path.to_owned();
            role::block_on("fsck", async move {
                let store = Embedded::open(&path, embedded::Options { verify: false, ..Default::default() })?;
                let outcome = orphans::queue(&store, &orphans).await;
                store.close().await;
                outcome
            })
        }
        Some(Store::Served(_)) => Err(Error::new(ErrorCode::BadConfig, "the store is another process's")),
        #[cfg(feature = "fdb")]
        Some(Store::Fdb(place)) => {
            role::block_on("fsck", async move { orphans::queue(&place.open(None).await?, &orphans).await })
        }
    }
}

/// The namespace in a store that sees to itself.
#[cfg_attr(not(feature = "fdb"), expect(unused_variables, reason = "without FoundationDB it ends before"))]
fn check_in(kv: &str, outcome: &mut Outcome) -> Result<()> {
    match Store::parse(kv)? {
        Store::Served(_) => {
            Err(Error::new(ErrorCode::BadConfig, format!("cluster.toml: {kv} is no fdb:...")))
        }
        #[cfg(feature = "fdb")]
        Store::Fdb(place) => {
            let checked: Checked = role::block_on("fsck", async move {
                check::check(&place.open(None).await?, &Keys::new(FILE_SYSTEM)).await
            })?;
            report_namespace(&checked, outcome);
            Ok(())
        }
    }
}

fn report_namespace(checked: &Checked, outcome: &mut Outcome) {
    // An inode that can't be read would make orphans of its chunks.
    outcome.files = checked.is_clean().then(|| checked.files.clone());
    let mut findings: Vec<String> = checked.findings.iter().map(ToString::to_string).collect();
    if checked.untold > 0 {
        findings.push(format!("and {} more", checked.untold));
    }
    let counts = json!({
        "inodes": checked.inodes, "directories": checked.directories, "entries": checked.entries,
        "sessions": checked.sessions, "waiting for removal": checked.garbage, "bytes": checked.bytes,
    });
    outcome.part("namespace", counts, findings);
}

/// Every slice of a node.
fn check_node(name: &str, path: &Path, outcome: &mut Outcome, watch: Watch) -> Result<()> {
    if !path.join("node.toml").exists() {
        let what = format!("{}: the node's directory is missing or empty", path.display());
        outcome.part(name, json!({}), vec![what]);
        return Ok(());
    }
    let home = Home::open(path, &Plan { disks: &[], capacity: 0, cores: 1 })?;
    if !home.is_formatted() {
        outcome.part(name, json!({}), vec![]);
        return Ok(());
    }
    let (mut disks, mut findings): (Vec<Option<DiskFile>>, Vec<String>) = (Vec::new(), Vec::new());
    for (at, disk) in home.formatted_disks().into_iter().enumerate() {
        let opened = disk.transpose().unwrap_or_else(|error| {
            findings.push(format!("disk {at} can't be opened: {error}"));
            None
        });
        disks.push(opened);
    }
    // A disk that was added and not formatted yet holds nothing.
    let slices: Vec<_> = home.slices().into_iter().filter(|slice| !home.is_fresh(slice.disk)).collect();
    let (mut chunks, mut blocks) = (0, 0);
    let total: u64 = slices.iter().map(|slice| slice.extent.bytes).sum();
    let mut progress = Progress::new(watch, format!("checking {name}"), total, Unit::Bytes);
    let mut before = 0;
    for slice in &slices {
        let Some(disk) = &mut disks[slice.disk] else { continue };
        let report =
            check_slice(disk, slice.extent.base, slice.extent.bytes, &mut |read| progress.at(before + read));
        before += slice.extent.bytes;
        chunks += report.chunks;
        blocks += report.blocks;
        for (inode, held) in &report.inodes {
            *outcome.chunks.entry(*inode).or_default() += held;
        }
        let place = format!("{} of {}", slice.index, disk.path().display());
        findings.extend(report.findings.iter().map(|finding| format!("{place}: {finding}")));
    }
    drop(progress);
    outcome.part(name, json!({"slices": slices.len(), "chunks": chunks, "blocks": blocks}), findings);
    Ok(())
}

fn check_slice(
    disk: &mut dyn BlockingDisk,
    base: u64,
    bytes: u64,
    progress: &mut dyn FnMut(u64),
) -> CheckReport {
    let mut memory = vec![0; READ_MAX];
    let mut check = Check::new(bytes);
    let mut need = check.step(None);
    let mut read = 0;
    loop {
        match need {
            CheckNeed::Read { offset, len } => {
                let piece = &mut memory[..len];
                // What can't be read is damage like any other: the check goes on and names it.
                let got = disk.read_at(base + offset, piece).is_ok();
                read += len as u64;
                progress(read);
                need = check.step(Some(if got { piece } else { &[] }));
            }
            CheckNeed::Done(report) => return report,
        }
    }
}
