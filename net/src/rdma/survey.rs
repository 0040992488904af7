//! What RDMA this machine has, what would be used of it, and why not the rest.
//!
//! It needs no settings: a port is used if its link is up, it has an address that peers can reach, and its device can open memory for one request to
//! one peer. Of several, the one that has the address of the TCP connection to the peer is taken: that network is known to lead there.

use super::device::{Context, Gid, Link, Port, PortState};
use super::library::Library;
use corefs_wire::{Error, ErrorCode, Result};
use std::net::IpAddr;
use std::rc::Rc;

/// A port that frames can go by, and its best address.
#[derive(Clone)]
pub struct Road {
    pub context: Rc<Context>,
    pub port: Port,
    pub gid: Gid,
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
    /// Bytes that this process may pin, `None` for no limit.
    pub memlock: Option<u64>,
}

impl Survey {
    /// Looks at every device of this machine, or only at those with these names.
    pub fn take(only: &[String]) -> Self {
        let memlock = memlock();
        let opened = Library::open().and_then(|library| Context::open_all(&library));
        let contexts = match opened {
            Ok(contexts) => contexts,
            Err(error) => return Self { devices: Vec::new(), obstacle: Some(error), memlock },
        };
        let wanted = |name: &String| only.is_empty() || only.contains(name);
        let devices: Vec<Device> = contexts
            .into_iter()
            .filter(|(name, _)| wanted(name))
            .map(|(name, context)| {
                let found = context.and_then(|context| {
                    let ports = context.ports()?;
                    Ok((context, ports))
                });
                Device { name, found }
            })
            .collect();
        let none = || Error::new(ErrorCode::NotFound, "this machine has no RDMA device");
        Self { obstacle: devices.is_empty().then(none), devices, memlock }
    }

    /// The ports that can be used, in the order in which they are to be.
    pub fn roads(&self) -> Vec<Road> {
        let mut roads = Vec::new();
        for (context, ports) in self.devices.iter().filter_map(|device| device.found.as_ref().ok()) {
            if device_obstacle(context).is_some() {
                continue;
            }
            for port in ports.iter().filter(|port| port_obstacle(port).is_none()) {
                let road = |gid: &Gid| Road { context: Rc::clone(context), port: port.clone(), gid: *gid };
                roads.extend(port.gids.iter().map(road));
            }
        }
        roads.sort_by_key(|road| rank(&road.gid));
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

/// The place of the road that a peer is to be reached by, to which a TCP connection goes out from `local`.
pub fn choose(roads: &[Road], local: Option<IpAddr>) -> Option<usize> {
    let local = local.map(|ip| ip.to_canonical());
    let same = |road: &Road| local.is_some() && road.gid.ip() == local;
    roads.iter().position(same).or((!roads.is_empty()).then_some(0))
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
