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

/// Has the `corefs up` of a directory start another node, and waits until it has registered. Its number. A node that was started before and
/// isn't in use yet is that node: what was cut off is gone on with by the same command.
pub fn one_more(dir: &Path, cluster: &Cluster) -> Result<u32> {
    let added = match coming(dir, cluster)? {
        Some(number) => {
            eprintln!("corefs: {} isn't in use yet: going on with it", node_dir(dir, number).display());
            number
        }
        None => {
            let number = directory::add_node(dir, &status::fetch(cluster)?.primary)?;
            eprintln!("corefs: `corefs up` starts {}", node_dir(dir, number).display());
            number
        }
    };
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let status = status::fetch(cluster)?;
        let number = home::node_of(&node_dir(dir, added)).map(|node| node.0);
        if let Some(node) = number.filter(|number| status.nodes.iter().any(|node| node.node == *number)) {
            return Ok(node);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let what = format!(
        "the new node hasn't registered within {} s; see {}, and go on by the same command",
        PATIENCE.as_secs(),
        dir.join("log").join(format!("node-{added}.log")).display()
    );
    Err(Error::new(ErrorCode::TimedOut, what))
}

/// A node of a directory that was added and isn't in use yet, by the number of its directory: it has nothing but spare slices, or the manager
/// hasn't heard of it.
pub fn coming(dir: &Path, cluster: &Cluster) -> Result<Option<u32>> {
    let status = status::fetch(cluster)?;
    let shape = directory::running_shape(dir, &status.primary)?;
    let spare = |number: &u32| {
        let Some(node) = home::node_of(&node_dir(dir, *number)) else { return true };
        let known = status.nodes.iter().find(|known| known.node == node.0);
        known.is_none_or(|known| known.slices.iter().all(|slice| slice.standing == Standing::Spare))
    };
    // Those of the beginning are in use once there are chains.
    Ok(shape.running().filter(|number| *number > shape.nodes).find(spare))
}

fn node_dir(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("node-{number}"))
}

/// The slices that the next node of a directory would have: as many and as large as those of one that runs there, which is of the same
/// shape. Nothing is changed. Errors: those of [`one_more`] that can be foreseen.
pub fn would_be(dir: &Path, cluster: &Cluster) -> Result<Vec<NewSliceT>> {
    let status = status::fetch(cluster)?;
    let shape = directory::room_for_node(dir, &status.primary)?;
    let number = |node: u32| home::node_of(&node_dir(dir, node));
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

/// Has the `corefs up` of a directory stop a node that is empty, and waits until the manager takes it for dead. Where its directory is. One
/// that was stopped so before, and that the manager still knows, is waited for.
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
    let what = format!(
        "node-{node} still lives after {} s; see the output of `corefs up`, and go on by the same command",
        PATIENCE.as_secs()
    );
    Err(Error::new(ErrorCode::TimedOut, what))
}
