//! Where things are: devices and threads on NUMA nodes, as the kernel says in `/sys`, and addresses in networks.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// The kernel's tree of devices.
pub struct Sysfs(PathBuf);

impl Default for Sysfs {
    fn default() -> Self {
        Self("/sys".into())
    }
}

impl Sysfs {
    /// The NUMA node that an RDMA device is attached to. `None` where there is one node only, or none is told, as of soft-RoCE.
    pub fn numa_of_device(&self, name: &str) -> Option<u32> {
        let told = fs::read_to_string(self.0.join("class/infiniband").join(name).join("device/numa_node"));
        // -1 is the kernel's way to say that it doesn't know.
        told.ok()?.trim().parse().ok()
    }

    /// The NUMA node of all of these CPUs; `None` if they are of several.
    fn numa_of_cpus(&self, cpus: impl IntoIterator<Item = usize>) -> Option<u32> {
        let mut found = None;
        for cpu in cpus {
            let node = numa_of_cpu(&self.0, cpu)?;
            if *found.get_or_insert(node) != node {
                return None;
            }
        }
        found
    }

    /// The NUMA node of the calling thread, if it may run on that one only.
    pub fn numa_of_thread(&self) -> Option<u32> {
        // SAFETY: all zeros is an empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: writes to the set, whose size is told.
        if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) } != 0 {
            return None;
        }
        // SAFETY: the number is within the set.
        let cpus = (0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) });
        self.numa_of_cpus(cpus)
    }
}

fn numa_of_cpu(root: &Path, cpu: usize) -> Option<u32> {
    let entries = fs::read_dir(root.join(format!("devices/system/cpu/cpu{cpu}"))).ok()?.flatten();
    let mut names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.find_map(|name| name.strip_prefix("node")?.parse().ok())
}

/// What an interface is connected to: its address, and how many bits of that its neighbours have, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    pub address: IpAddr,
    pub prefix: u32,
}

impl Network {
    /// All of this machine (getifaddrs(3)).
    pub fn all() -> Vec<Self> {
        let mut list = std::ptr::null_mut();
        // SAFETY: writes the head of a list, which is freed below.
        if unsafe { libc::getifaddrs(&mut list) } != 0 {
            return Vec::new();
        }
        let mut found = Vec::new();
        let mut at = list;
        // SAFETY: each entry is valid until the list is freed; the next of the last is null.
        while let Some(entry) = unsafe { at.as_ref() } {
            // SAFETY: null, or an address of the family that it says.
            let (address, mask) = unsafe { (ip(entry.ifa_addr), ip(entry.ifa_netmask)) };
            found.extend(address.zip(mask).map(|(address, mask)| Self { address, prefix: ones(mask) }));
            at = entry.ifa_next;
        }
        // SAFETY: the list is as it was given, and nothing of it is kept.
        unsafe { libc::freeifaddrs(list) };
        found
    }

    /// Whether the interface has this address as a neighbour.
    pub fn contains(&self, other: IpAddr) -> bool {
        let (ours, theirs, bits) = match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(u32::from(a)), u128::from(u32::from(b)), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a), u128::from(b), 128),
            _ => return false,
        };
        let host = bits - self.prefix.min(bits);
        (ours ^ theirs).checked_shr(host).unwrap_or(0) == 0
    }
}

/// # Safety
/// Null, or a socket address that is as long as its family's.
unsafe fn ip(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: the caller's promise.
    match i32::from(unsafe { address.as_ref() }?.sa_family) {
        libc::AF_INET => {
            // SAFETY: of this family it is this type.
            let v4 = unsafe { &*address.cast::<libc::sockaddr_in>() };
            Some(IpAddr::from(v4.sin_addr.s_addr.to_ne_bytes()))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*address.cast::<libc::sockaddr_in6>() };
            Some(IpAddr::from(v6.sin6_addr.s6_addr))
        }
        _ => None,
    }
}

fn ones(mask: IpAddr) -> u32 {
    match mask {
        IpAddr::V4(v4) => u32::from(v4).leading_ones(),
        IpAddr::V6(v6) => u128::from(v6).leading_ones(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree as the kernel makes it, elsewhere.
    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Sysfs) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let sysfs = Sysfs(dir.path().to_path_buf());
        (dir, sysfs)
    }

    #[test]
    fn devices_and_cpus_are_on_the_nodes_that_the_kernel_says() {
        let cpu = |cpu, node| format!("devices/system/cpu/cpu{cpu}/node{node}/cpulist");
        let cpus = [cpu(0, 0), cpu(1, 0), cpu(2, 1)];
        let (_dir, sysfs) = tree(&[
            ("class/infiniband/mlx5_0/device/numa_node", "1\n"),
            ("class/infiniband/mlx5_1/device/numa_node", "-1\n"),
            ("class/infiniband/rxe0/parent", "eth0\n"),
            (&cpus[0], ""),
            (&cpus[1], ""),
            (&cpus[2], ""),
        ]);
        assert_eq!(
            ["mlx5_0", "mlx5_1", "rxe0", "none"].map(|name| sysfs.numa_of_device(name)),
            [Some(1), None, None, None]
        );
        assert_eq!((sysfs.numa_of_cpus([0, 1]), sysfs.numa_of_cpus([2])), (Some(0), Some(1)));
        assert_eq!(
            (sysfs.numa_of_cpus([1, 2]), sysfs.numa_of_cpus([3]), sysfs.numa_of_cpus([])),
            (None, None, None)
        );
    }

    #[test]
    fn networks_contain_their_neighbours() {
        let network = |address: &str, prefix| Network { address: address.parse().unwrap(), prefix };
        let contains = |network: Network, other: &str| network.contains(other.parse().unwrap());
        let ours = network("10.1.2.3", 16);
        assert!(contains(ours, "10.1.99.1") && !contains(ours, "10.2.2.3") && !contains(ours, "fe80::1"));
        assert!(
            contains(network("10.1.2.3", 0), "1.1.1.1") && !contains(network("10.1.2.3", 32), "10.1.2.2")
        );
        let sixth = network("2001:db8::1", 64);
        assert!(contains(sixth, "2001:db8::99") && !contains(sixth, "2001:db9::1"));
        assert!(contains(network("::1", 0), "2001:db8::1"));
        let all = Network::all();
        assert!(all.iter().all(|network| network.contains(network.address)), "{all:?}");
    }
}
