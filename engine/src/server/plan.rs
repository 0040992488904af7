//! Which cores a node's shards run on.
//!
//! Shards follow each other over the cores that the process may use, as they are numbered. On a machine of several NUMA nodes, the cores near the node's
//! block devices come first: memory that a drive fills, and the interrupts and queues of a core, are then on the drive's side. A shard serves slices of
//! every disk, so a node whose disks are near different NUMA nodes takes cores of these in turn; a node of its own for each does better.
//!
//! Files say nothing of where they are, so a node with files only takes cores as they are numbered; so does one that is told where to begin.

use crate::disk::sysfs::{self, Device};
use std::path::{Path, PathBuf};

/// A core, and where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The CPU, as the kernel numbers it.
    pub cpu: usize,
    /// Its NUMA node, where the kernel tells.
    pub numa: Option<u32>,
}

/// Where the shards go: the first to the first place, and around the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CorePlan {
    /// Every core that this process may use, in the order in which shards take them.
    pub places: Vec<Place>,
    /// NUMA nodes of the disks, as far as the kernel tells; each once.
    pub near: Vec<u32>,
}

impl CorePlan {
    /// For a node with these disks. `first`: the first shard's position among the cores as they are numbered.
    pub fn of(disks: &[PathBuf], first: Option<usize>) -> Self {
        let cpus = core_affinity::get_core_ids().unwrap_or_default();
        let places: Vec<Place> =
            cpus.iter().map(|core| Place { cpu: core.id, numa: sysfs::numa_of_cpu(core.id) }).collect();
        Self::choose(places, disks.iter().filter_map(|disk| numa_of(disk)), first)
    }

    fn choose(mut places: Vec<Place>, disks: impl Iterator<Item = u32>, first: Option<usize>) -> Self {
        let mut near: Vec<u32> = disks.collect();
        near.sort_unstable();
        near.dedup();
        if let Some(first) = first {
            let count = places.len().max(1);
            places.rotate_left(first % count);
        } else if near.iter().any(|numa| places.iter().any(|place| place.numa == Some(*numa))) {
            places = nearest(&places, &near);
        }
        Self { places, near }
    }

    /// Where a shard goes; `None` if the process's cores aren't known.
    pub fn place(&self, shard: usize) -> Option<Place> {
        self.places.get(shard % self.places.len().max(1)).copied()
    }
}

/// Cores near `near` in turn, then all others.
fn nearest(places: &[Place], near: &[u32]) -> Vec<Place> {
    let mut groups: Vec<_> =
        near.iter().map(|numa| places.iter().filter(move |place| place.numa == Some(*numa))).collect();
    let mut order = Vec::new();
    loop {
        let before = order.len();
        order.extend(groups.iter_mut().filter_map(Iterator::next).copied());
        if order.len() == before {
            break;
        }
    }
    let far: Vec<Place> = places.iter().filter(|place| !order.contains(place)).copied().collect();
    order.extend(far);
    order
}

fn numa_of(disk: &Path) -> Option<u32> {
    Device::of(disk)?.numa()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(cores: usize, a_node: usize) -> Vec<Place> {
        (0..cores).map(|cpu| Place { cpu, numa: Some((cpu / a_node) as u32) }).collect()
    }

    fn cpus(places: Vec<Place>, disks: &[u32], first: Option<usize>) -> Vec<usize> {
        CorePlan::choose(places, disks.iter().copied(), first).places.iter().map(|place| place.cpu).collect()
    }

    #[test]
    fn shards_go_near_their_disks() {
        assert_eq!(cpus(machine(6, 2), &[1], None), [2, 3, 0, 1, 4, 5]);
        assert_eq!(cpus(machine(6, 2), &[2, 1, 2], None), [2, 4, 3, 5, 0, 1]);
    }

    #[test]
    fn they_follow_the_numbers_where_nothing_is_known_or_they_are_told_to() {
        assert_eq!(cpus(machine(4, 4), &[0], None), [0, 1, 2, 3]);
        assert_eq!(cpus(machine(4, 2), &[], None), [0, 1, 2, 3]);
        assert_eq!(cpus(machine(4, 2), &[7], None), [0, 1, 2, 3], "the disk's node has no core of ours");
        assert_eq!(cpus(machine(4, 2), &[1], Some(1)), [1, 2, 3, 0]);
        assert_eq!(cpus(machine(4, 2), &[1], Some(5)), [1, 2, 3, 0]);
        let unknown = vec![Place { cpu: 0, numa: None }, Place { cpu: 1, numa: None }];
        assert_eq!(cpus(unknown, &[0], None), [0, 1]);
        let none = CorePlan::choose(Vec::new(), [1].into_iter(), Some(3));
        assert_eq!(none.place(2), None);
        let plan = CorePlan::choose(machine(2, 2), [].into_iter(), None);
        assert_eq!(plan.place(3).unwrap().cpu, 1);
    }
}
