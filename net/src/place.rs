//! Where things are: devices, interfaces and threads on NUMA nodes, as the kernel says in `/sys`, and addresses in networks.

use std::ffi::CStr;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Interfaces upon interfaces that are followed: a VLAN on a bridge on a bond on an adapter, and one to spare.
const LOWER_MAX: u32 = 5;

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

    /// The NUMA node that an interface's adapter is attached to. Of an interface that is made of others (a bond, a bridge, a VLAN) theirs, if all are on the same one;
    /// `None` for what has no adapter, such as loopback, and where there is one node only.
    pub fn numa_of_interface(&self, name: &str) -> Option<u32> {
        self.numa_below(name, LOWER_MAX)
    }

    fn numa_below(&self, name: &str, depth: u32) -> Option<u32> {
        let interface = self.0.join("class/net").join(name);
        if let Ok(told) = fs::read_to_string(interface.join("device/numa_node")) {
            return told.trim().parse().ok();
        }
        let depth = depth.checked_sub(1)?;
        let names = fs::read_dir(interface).ok()?.flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let lower: Vec<String> =
            names.filter_map(|name| name.strip_prefix("lower_").map(str::to_string)).collect();
        let first = self.numa_below(lower.first()?, depth)?;
        lower.iter().all(|name| self.numa_below(name, depth) == Some(first)).then_some(first)
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
    /// All of this machine.
    pub fn all() -> Vec<Self> {
        addresses().into_iter().map(|(_, network)| network).collect()
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

/// The name of the interface that has this address.
pub fn interface_of(address: IpAddr) -> Option<String> {
    let mut found = addresses().into_iter();
    found.find(|(_, network)| network.address == address.to_canonical()).map(|(name, _)| name)
}

/// The addresses of all interfaces, with the interfaces' names (getifaddrs(3)).
fn addresses() -> Vec<(String, Network)> {
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
        // SAFETY: a string that is valid as long as the list.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) }.to_string_lossy().into_owned();
        let network = address.zip(mask).map(|(address, mask)| Network { address, prefix: ones(mask) });
        found.extend(network.map(|network| (name, network)));
        at = entry.ifa_next;
    }
    // SAFETY: the list is as it was given, and nothing of it is kept.
    unsafe { libc::freeifaddrs(list) };
    found
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
    fn an_interface_is_where_its_adapter_is_or_all_of_those_that_it_is_made_of() {
        let (_dir, sysfs) = tree(&[
            ("class/net/eth0/device/numa_node", "1\n"),
            ("class/net/eth1/device/numa_node", "1\n"),
            ("class/net/eth2/device/numa_node", "0\n"),
            ("class/net/eth3/device/numa_node", "-1\n"),
            ("class/net/lo/mtu", "65536\n"),
            ("class/net/bond0/lower_eth0/mtu", ""),
            ("class/net/bond0/lower_eth1/mtu", ""),
            ("class/net/bond1/lower_eth1/mtu", ""),
            ("class/net/bond1/lower_eth2/mtu", ""),
            ("class/net/bond0.7/lower_bond0/mtu", ""),
            ("class/net/ring/lower_ring/mtu", ""),
        ]);
        let numa = |name| sysfs.numa_of_interface(name);
        assert_eq!((numa("eth0"), numa("eth2"), numa("eth3")), (Some(1), Some(0), None));
        assert_eq!((numa("bond0"), numa("bond0.7"), numa("bond1")), (Some(1), Some(1), None));
        assert_eq!((numa("lo"), numa("none"), numa("ring")), (None, None, None));
    }

    #[test]
    fn an_address_leads_to_its_interface() {
        assert_eq!(interface_of("127.0.0.1".parse().unwrap()).as_deref(), Some("lo"));
        assert_eq!(interface_of("::ffff:127.0.0.1".parse().unwrap()).as_deref(), Some("lo"));
        assert_eq!(interface_of("192.0.2.77".parse().unwrap()), None, "of documents, and nobody's");
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
