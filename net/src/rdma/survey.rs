//! What RDMA this machine has, what would be used of it, and why not the rest.
//!
//! It needs no settings: a port is used if its link is up, it has an address that peers can reach, and its device can open memory for one request to
//! one peer. Of several, the one that has the address of the TCP connection to the peer is taken: that network is known to lead there.

use super::device::{Context, Gid, Link, Port, PortState};
use super::library::Library;
use crate::place::{Network, Sysfs};
use corefs_wire::{Error, ErrorCode, Result};
use std::net::IpAddr;
use std::rc::Rc;

/// A port that frames can go by, and its best address.
#[derive(Clone)]
pub struct Road {
    pub context: Rc<Context>,
    pub port: Port,
    pub gid: Gid,
    /// The NUMA node that its device is attached to, if that is told.
    pub numa: Option<u32>,
}

impl Road {
    /// Smaller is better.
    pub fn rank(&self) -> (Link, bool, u8) {
        rank(&self.gid)
    }
}

/// The roads by ports that can be used, unsorted.
pub fn roads_of(context: &Rc<Context>, ports: &[Port]) -> impl Iterator<Item = Road> {
    let numa = Sysfs::default().numa_of_device(context.name());
    let usable = ports.iter().filter(|port| port_obstacle(port).is_none());
    usable.flat_map(move |port| {
        let road = move |gid: &Gid| Road { context: Rc::clone(context), port: port.clone(), gid: *gid, numa };
        port.gids.iter().map(road)
    })
}

/// A device, as far as it could be asked.
pub struct Device {
    pub name: String,
    pub found: Result<(Rc<Context>, Vec<Port>)>,
}

/// Everything that was found.
pub struct Survey {
    pub devices: Vec<Device>,
    /// What was in the way of finding anything.
    pub obstacle: Option<Error>,
    /// Bytes that this process may pin, `None` for no limit; and whether it needn't mind.
    pub memlock: Option<u64>,
    pub pins_freely: bool,
}

impl Survey {
    /// Looks at every device of this machine, or only at those with these names.
    pub fn take(only: &[String]) -> Self {
        Self::but(&[], only)
    }

    /// The same, leaving out those that are `known`.
    pub fn but(known: &[String], only: &[String]) -> Self {
        let (memlock, pins_freely) = (memlock(), pins_freely());
        let wanted = |name: &str| {
            let is = |other: &String| other == name;
            !known.iter().any(is) && (only.is_empty() || only.iter().any(is))
        };
        let opened = Library::open().and_then(|library| Context::open_all(&library, wanted));
        let contexts = match opened {
            Ok(contexts) => contexts,
            Err(error) => {
                return Self { devices: Vec::new(), obstacle: Some(error), memlock, pins_freely };
            }
        };
        let devices: Vec<Device> = contexts
            .into_iter()
            .map(|(name, context)| {
                let found = context.and_then(|context| {
                    let ports = context.ports()?;
                    Ok((context, ports))
                });
                Device { name, found }
            })
            .collect();
        let none = || Error::new(ErrorCode::NotFound, "this machine has no RDMA device");
        Self { obstacle: devices.is_empty().then(none), devices, memlock, pins_freely }
    }

    /// Bytes that this process can pin, `None` for as many as there are.
    pub fn pinnable(&self) -> Option<u64> {
        self.memlock.filter(|_| !self.pins_freely)
    }

    /// The ports that can be used, in the order in which they are to be.
    pub fn roads(&self) -> Vec<Road> {
        let mut roads = Vec::new();
        for (context, ports) in self.devices.iter().filter_map(|device| device.found.as_ref().ok()) {
            if device_obstacle(context).is_some() {
                continue;
            }
            roads.extend(roads_of(context, ports));
        }
        roads.sort_by_key(Road::rank);
        roads
    }

    /// What is in the way, and what to do about it.
    pub fn obstacles(&self) -> Vec<String> {
        let mut obstacles: Vec<String> = self.obstacle.iter().map(|error| error.message.clone()).collect();
        if self.obstacle.as_ref().is_some_and(|error| error.code == ErrorCode::NotFound) {
            obstacles.push(
                "a card with RoCE or InfiniBand needs its driver; without one, soft-RoCE is there for trying it out: modprobe rdma_rxe; rdma link add rxe0 \
                 type rxe netdev INTERFACE"
                    .to_string(),
            );
        }
        for Device { name, found } in &self.devices {
            match found {
                Err(error) => obstacles
                    .push(format!("{name}: {}: may this user open /dev/infiniband/uverbs*?", error.message)),
                Ok((context, ports)) => {
                    obstacles.extend(device_obstacle(context).map(|what| format!("{name}: {what}")));
                    obstacles.extend(
                        ports
                            .iter()
                            .filter_map(|p| Some(format!("{name} port {}: {}", p.number, port_obstacle(p)?))),
                    );
                }
            }
        }
        obstacles
    }
}

/// Why a device can't be used.
fn device_obstacle(context: &Context) -> Option<String> {
    (!context.limits.owned_windows || context.limits.windows == 0).then(|| {
        "it has no memory windows of type 2B, so that what is opened to one peer would be open to all: TCP is used".to_string()
    })
}

/// Why a port can't be used.
fn port_obstacle(port: &Port) -> Option<String> {
    match port.state {
        PortState::Active if port.gids.is_empty() => {
            Some("no address: on Ethernet, give the interface an IP address".to_string())
        }
        PortState::Active => None,
        PortState::Down => {
            Some("the link is down: look at the cable, and at `ip link` on Ethernet".to_string())
        }
        state => Some(format!("the link is {state}")),
    }
}

/// Smaller is better.
fn rank(gid: &Gid) -> (Link, bool, u8) {
    (gid.link, !gid.is_routed(), gid.index)
}

/// What decides between roads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sign {
    /// Of RoCE version 2.
    pub ip: Option<IpAddr>,
    /// Link, and whether it is routed: the same for ports that are as good as each other.
    pub class: (Link, bool),
    pub numa: Option<u32>,
}

impl From<&Road> for Sign {
    fn from(road: &Road) -> Self {
        let (link, local, _) = road.rank();
        Self { ip: road.gid.ip(), class: (link, local), numa: road.numa }
    }
}

/// The place of the road that a peer is to be reached by, to which a TCP connection goes out from `local`. Where several lead there, one whose device is
/// on the NUMA node `near` is preferred: those in the network of that address, or, if no road has it, those that are as good as the best.
pub fn choose(
    roads: impl Iterator<Item = Sign> + Clone,
    local: Option<IpAddr>,
    near: Option<u32>,
    networks: &[Network],
) -> Option<usize> {
    let local = local.map(|ip| ip.to_canonical());
    let best = roads.clone().next()?;
    let same = roads.clone().position(|road| local.is_some() && road.ip == local);
    let network = networks.iter().find(|network| Some(network.address) == local);
    let leads_there = |road: &Sign| match (same, road.ip) {
        (None, _) => road.class == best.class,
        (Some(_), Some(ip)) => network.is_some_and(|network| network.contains(ip)),
        (Some(_), None) => false,
    };
    let nearest = |road: Sign| near.is_some() && road.numa == near && leads_there(&road);
    // That of the address itself, if it is near, too.
    let first = same.unwrap_or(0);
    if roads.clone().nth(first).is_some_and(nearest) {
        return Some(first);
    }
    roads.clone().position(nearest).or(Some(first))
}

/// The right to pin more than the limit: CAP_IPC_LOCK (capabilities(7)), which root has.
fn pins_freely() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| has_ipc_lock(&status))
}

/// Whether a process has it, from what the kernel says of that (proc_pid_status(5)).
fn has_ipc_lock(status: &str) -> bool {
    const IPC_LOCK: u64 = 1 << 14;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_some_and(|rights| rights & IPC_LOCK != 0)
}

/// What may be pinned: getrlimit(2).
fn memlock() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes to `limit`.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdma::device::Mtu;

    #[test]
    fn who_may_lock_memory_needs_no_limit() {
        assert!(
            has_ipc_lock("Name:\tx\nCapEff:\t000001ffffffffff\n")
                && has_ipc_lock("CapEff:\t0000000000004000")
        );
        assert!(!has_ipc_lock("CapEff:\t0000000000000000\n") && !has_ipc_lock("CapEff:\tffffffffffffbfff\n"));
        assert!(!has_ipc_lock("") && !has_ipc_lock("CapEff:\tno number"));
    }

    #[test]
    fn routed_addresses_come_first() {
        let gid = |index, text: &str, link| {
            let ip: std::net::Ipv6Addr = text.parse().unwrap();
            Gid { index, bytes: ip.octets(), link }
        };
        let mut gids = [
            gid(0, "fe80::1", Link::RoceV1),
            gid(1, "fe80::1", Link::RoceV2),
            gid(2, "::ffff:10.0.0.1", Link::RoceV1),
            gid(3, "::ffff:10.0.0.1", Link::RoceV2),
            gid(4, "fe80::2", Link::InfiniBand),
        ];
        gids.sort_by_key(rank);
        assert_eq!(gids.map(|gid| gid.index), [3, 1, 4, 0, 2]);
    }

    #[test]
    fn of_several_ports_that_lead_there_the_near_one_is_taken() {
        let sign = |ip: Option<&str>, link, numa| Sign {
            ip: ip.map(|ip| ip.parse().unwrap()),
            class: (link, false),
            numa,
        };
        let roads = [
            sign(Some("10.0.0.1"), Link::RoceV2, Some(0)),
            sign(Some("10.0.0.2"), Link::RoceV2, Some(1)),
            sign(Some("10.9.0.2"), Link::RoceV2, Some(1)),
            sign(Some("10.9.0.3"), Link::RoceV2, Some(0)),
            sign(None, Link::InfiniBand, Some(2)),
        ];
        let networks = [
            Network { address: "10.0.0.1".parse().unwrap(), prefix: 24 },
            Network { address: "10.9.0.2".parse().unwrap(), prefix: 24 },
        ];
        let choose = |local: Option<&str>, near| {
            super::choose(roads.iter().copied(), local.map(|ip| ip.parse().unwrap()), near, &networks)
        };
        // The address of the TCP connection decides where nothing else does.
        assert_eq!((choose(Some("10.0.0.1"), None), choose(Some("10.9.0.2"), None)), (Some(0), Some(2)));
        assert_eq!(choose(Some("::ffff:10.9.0.2"), Some(1)), Some(2));
        // In its network the near one is taken, and none of another network.
        assert_eq!(
            (choose(Some("10.0.0.1"), Some(1)), choose(Some("10.0.0.1"), Some(0))),
            (Some(1), Some(0))
        );
        assert_eq!(
            (choose(Some("10.9.0.2"), Some(0)), choose(Some("10.9.0.2"), Some(2))),
            (Some(3), Some(2))
        );
        // Where no road has the address: the best kind, the near one of it.
        assert_eq!(
            (choose(Some("127.0.0.1"), Some(1)), choose(None, Some(2)), choose(None, None)),
            (Some(1), Some(0), Some(0))
        );
        assert_eq!(super::choose(std::iter::empty(), None, None, &networks), None);
    }

    #[test]
    fn a_port_says_why_it_is_not_used() {
        let mtu = Mtu::from_number(3).unwrap();
        let port = Port { number: 1, state: PortState::Active, mtu, mtu_max: mtu, lid: 0, gids: Vec::new() };
        assert!(port_obstacle(&port).unwrap().contains("IP address"));
        assert!(port_obstacle(&Port { state: PortState::Down, ..port }).unwrap().contains("down"));
    }

    #[test]
    fn what_is_found_here_is_told() {
        // Whatever this machine has, nothing of it is left unexplained.
        let survey = Survey::take(&[]);
        assert!(!survey.roads().is_empty() || !survey.obstacles().is_empty());
        let none = Survey::take(&["nosuch0".to_string()]);
        assert!(none.roads().is_empty() && !none.obstacles().is_empty());
    }
}
