//! Which cores a node's shards run on.
//!
//! Shards follow each other over the cores that the process may use, as they are numbered. On a machine of several NUMA nodes, the cores near the node's
//! block devices come first: memory that a drive fills, and the interrupts and queues of a core, are then on the drive's side. A shard serves slices of
//! every disk, so a node whose disks are near different NUMA nodes takes cores of these in turn; a node of its own for each does better.
//!
//! The network comes second: of several cores that are as near to the disks, those near the NIC that has the node's address are taken first. A read's bytes cross from
//! the drive to memory and from memory to the NIC, once each, but a drive's queues and interrupts are a core's own, and a NIC's are shared out by the kernel.
//!
//! Files say nothing of where they are, so a node with files only takes the cores near its NIC, and where that says nothing, too, as on loopback, cores as they are numbered;
//! so does one that is told where to begin.

use crate::disk::sysfs::{self, Device};
use corefs_net::place::{self, Sysfs};
use std::net::IpAddr;
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
    pub nic: Option<Nic>,
}

/// The interface by which a node is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nic {
    pub name: String,
    pub numa: Option<u32>,
}

impl Nic {
    /// The one that has this address.
    pub fn of(address: IpAddr) -> Option<Self> {
        let name = place::interface_of(address)?;
        Some(Self { numa: Sysfs::default().numa_of_interface(&name), name })
    }
}

impl CorePlan {
    /// For a node with these disks, that is reached by this NIC. `first`: the first shard's position among the cores as they are numbered.
    pub fn of(disks: &[PathBuf], nic: Option<Nic>, first: Option<usize>) -> Self {
        let cpus = core_affinity::get_core_ids().unwrap_or_default();
        let places: Vec<Place> =
            cpus.iter().map(|core| Place { cpu: core.id, numa: sysfs::numa_of_cpu(core.id) }).collect();
        Self::choose(places, disks.iter().filter_map(|disk| numa_of(disk)), nic, first)
    }

    fn choose(
        mut places: Vec<Place>,
        disks: impl Iterator<Item = u32>,
        nic: Option<Nic>,
        first: Option<usize>,
    ) -> Self {
        let of_nic = nic.as_ref().and_then(|nic| nic.numa);
        let mut near: Vec<u32> = disks.collect();
        near.sort_unstable();
        near.dedup();
        if let Some(first) = first {
            let count = places.len().max(1);
            places.rotate_left(first % count);
        } else {
            places = nearest(&places, &near, of_nic);
        }
        Self { places, near, nic }
    }

    /// Where a shard goes; `None` if the process's cores aren't known.
    pub fn place(&self, shard: usize) -> Option<Place> {
        self.places.get(shard % self.places.len().max(1)).copied()
    }
}

/// Cores near `disks` in turn, then all others; of each, those near the NIC first.
fn nearest(places: &[Place], disks: &[u32], nic: Option<u32>) -> Vec<Place> {
    let mut disks = disks.to_vec();
    disks.sort_by_key(|numa| Some(*numa) != nic);
    let mut groups: Vec<_> =
        disks.iter().map(|numa| places.iter().filter(move |place| place.numa == Some(*numa))).collect();
    let mut order = Vec::new();
    loop {
        let before = order.len();
        order.extend(groups.iter_mut().filter_map(Iterator::next).copied());
        if order.len() == before {
            break;
        }
    }
    let mut far: Vec<Place> = places.iter().filter(|place| !order.contains(place)).copied().collect();
    far.sort_by_key(|place| nic.is_none() || place.numa != nic);
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
        with_nic(places, disks, None, first)
    }

    fn with_nic(places: Vec<Place>, disks: &[u32], nic: Option<u32>, first: Option<usize>) -> Vec<usize> {
        let nic = nic.map(|numa| Nic { name: "eth0".to_string(), numa: Some(numa) });
        let plan = CorePlan::choose(places, disks.iter().copied(), nic, first);
        plan.places.iter().map(|place| place.cpu).collect()
    }

    #[test]
    fn of_cores_as_near_to_the_disks_those_near_the_nic_come_first() {
        // The disks decide: the NIC orders what is far from them.
        assert_eq!(with_nic(machine(6, 2), &[1], Some(2), None), [2, 3, 4, 5, 0, 1]);
        // And of several nodes with disks its own is where turns begin.
        assert_eq!(with_nic(machine(6, 2), &[0, 1], Some(1), None), [2, 0, 3, 1, 4, 5]);
        // Where disks say nothing it decides.
        assert_eq!(with_nic(machine(6, 2), &[], Some(1), None), [2, 3, 0, 1, 4, 5]);
        assert_eq!(with_nic(machine(6, 2), &[7], Some(2), None), [4, 5, 0, 1, 2, 3]);
        // Nobody is near it, or the cores were asked for.
        assert_eq!(with_nic(machine(4, 2), &[], Some(5), None), [0, 1, 2, 3]);
        assert_eq!(with_nic(machine(4, 2), &[1], Some(1), Some(1)), [1, 2, 3, 0]);
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
        let none = CorePlan::choose(Vec::new(), [1].into_iter(), None, Some(3));
        assert_eq!(none.place(2), None);
        let plan = CorePlan::choose(machine(2, 2), [].into_iter(), None, None);
        assert_eq!(plan.place(3).unwrap().cpu, 1);
    }
}
