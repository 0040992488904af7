//! One node more, or less, in a cluster that `corefs up` runs on this machine.

use crate::cmd::status;
use crate::connect::Cluster;
use crate::directory;
use corefs_engine::server::home;
use corefs_wire::control::mgmtd::{NewSliceT, SliceInfoT, Standing};
use corefs_wire::{Error, ErrorCode, Result};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the new node may take: preallocating its disk takes its time.
const PATIENCE: Duration = Duration::from_secs(180);

/// Has the `corefs up` of a directory start another node, and waits until it has registered. Its number.
pub fn one_more(dir: &Path, cluster: &Cluster) -> Result<u32> {
    let before = status::fetch(cluster)?;
    let known: Vec<u32> = before.nodes.iter().map(|node| node.node).collect();
    let added = directory::add_node(dir, &before.primary)?;
    eprintln!("corefs: `corefs up` starts {}", dir.join(format!("node-{added}")).display());
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let status = status::fetch(cluster)?;
        let spare = |slices: &[SliceInfoT]| slices.iter().all(|slice| slice.standing == Standing::Spare);
        let mut new = status.nodes.iter().filter(|node| !known.contains(&node.node) && spare(&node.slices));
        if let Some(node) = new.next() {
            return Ok(node.node);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let what = format!(
        "the new node hasn't registered within {} s; see {}",
        PATIENCE.as_secs(),
        dir.join("log").join(format!("node-{added}.log")).display()
    );
    Err(Error::new(ErrorCode::TimedOut, what))
}

/// The slices that the next node of a directory would have: as many and as large as those of one that runs there, which is of the same
/// shape. Nothing is changed. Errors: those of [`one_more`] that can be foreseen.
pub fn would_be(dir: &Path, cluster: &Cluster) -> Result<Vec<NewSliceT>> {
    let status = status::fetch(cluster)?;
    let shape = directory::room_for_node(dir, &status.primary)?;
    let number = |node: u32| home::node_of(&dir.join(format!("node-{node}")));
    let here: Vec<u32> = shape.running().filter_map(number).map(|node| node.0).collect();
    let Some(like) = status.nodes.iter().find(|node| here.contains(&node.node)) else {
        let what = format!("{}: no node that the manager knows is here", dir.display());
        return Err(Error::new(ErrorCode::BadConfig, what));
    };
    let first = like.slices.first().map_or(0, |slice| slice.disk);
    let slice = |slice: &SliceInfoT| {
        let mut out = NewSliceT::default();
        out.capacity = slice.capacity;
        out
    };
    Ok(like.slices.iter().filter(|slice| slice.disk == first).map(slice).collect())
}

/// Has the `corefs up` of a directory stop a node that is empty, and waits until the manager takes it for dead. Where its directory is.
pub fn one_less(dir: &Path, node: u32, cluster: &Cluster) -> Result<PathBuf> {
    let status = status::fetch(cluster)?;
    let left = status.routing.targets.iter().filter(|target| target.node == node).count();
    if left > 0 {
        let what = format!("node-{node} still has {left} targets: empty it first (corefs node drain {node})");
        return Err(Error::new(ErrorCode::NotEmpty, what));
    }
    let path = directory::remove_node(dir, &status.primary, node)?;
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let status = status::fetch(cluster)?;
        if !status.nodes.iter().any(|found| found.node == node && found.alive) {
            return Ok(path);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let what =
        format!("node-{node} still lives after {} s; see the output of `corefs up`", PATIENCE.as_secs());
    Err(Error::new(ErrorCode::TimedOut, what))
}
