//! What RDMA this machine has: devices, ports, addresses, what would be used, and how to get what is missing.

use corefs_wire::Result;
use serde_json::Value;

/// What a binary says that can't go by RDMA.
#[cfg(not(feature = "rdma"))]
const WITHOUT: &str =
    "this corefs is built without it, and goes by TCP; build it with: cargo build --release --features rdma";

#[cfg(not(feature = "rdma"))]
pub fn told() -> Value {
    serde_json::json!({"built": false, "devices": [], "obstacles": [WITHOUT]})
}

#[cfg(not(feature = "rdma"))]
pub fn tell() -> Result<()> {
    crate::output::line(&format!("RDMA: {WITHOUT}"))
}

#[cfg(feature = "rdma")]
pub use built::{tell, told};

#[cfg(feature = "rdma")]
mod built {
    use super::{Result, Value};
    use crate::output;
    use corefs_net::buffer::POOL_DEFAULT;
    use corefs_net::handshake::Identity;
    use corefs_net::rdma::RdmaConfig;
    use corefs_net::rdma::device::{Gid, Port};
    use corefs_net::rdma::place::Sysfs;
    use corefs_net::rdma::survey::{Road, Survey};
    use corefs_net::{Role, TcpConfig};
    use corefs_wire::Uuid;
    use serde_json::json;

    /// What a shard would have pinned: the buffers of its disk and sockets, and those of messages (bytes).
    fn pinned() -> u64 {
        let cluster = Uuid::NIL;
        let nobody = Identity { role: Role::Tool, id: 0, incarnation: 0, cluster, secret: None };
        (RdmaConfig::new(TcpConfig::new(nobody)).arena_bytes + POOL_DEFAULT) as u64
    }

    fn memlock_advice(survey: &Survey) -> Option<String> {
        let limit = survey.memlock.filter(|limit| *limit < pinned())?;
        Some(format!(
            "memlock: {} may be pinned, and each shard would pin {}: ulimit -l unlimited, or LimitMEMLOCK=infinity in a unit of systemd",
            output::size(limit),
            output::size(pinned())
        ))
    }

    fn advice(survey: &Survey) -> Vec<String> {
        survey.obstacles().into_iter().chain(memlock_advice(survey)).collect()
    }

    /// Whether frames would go by this address if a peer were reached through this port's network.
    fn is_used(roads: &[Road], device: &str, port: &Port, gid: &Gid) -> bool {
        let here = |road: &&Road| road.context.name() == device && road.port.number == port.number;
        roads.iter().find(here).is_some_and(|road| road.gid == *gid)
    }

    pub fn told() -> Value {
        let survey = Survey::take(&[]);
        let roads = survey.roads();
        let devices: Vec<Value> = survey
            .devices
            .iter()
            .map(|device| {
                let ports = device.found.as_ref().map(|(_, ports)| ports.as_slice()).unwrap_or_default();
                let gid = |port: &Port, gid: &Gid| {
                    let used = is_used(&roads, &device.name, port, gid);
                    json!({"index": gid.index, "address": gid.to_string(), "used": used})
                };
                let port = |port: &Port| {
                    json!({
                        "port": port.number,
                        "link": port.state.to_string(),
                        "mtu": port.mtu.bytes(),
                        "mtu_max": port.mtu_max.bytes(),
                        "lid": port.lid,
                        "gids": port.gids.iter().map(|found| gid(port, found)).collect::<Vec<_>>(),
                    })
                };
                let numa = Sysfs::default().numa_of_device(&device.name);
                json!({"device": device.name, "numa": numa, "ports": ports.iter().map(port).collect::<Vec<_>>()})
            })
            .collect();
        json!({
            "built": true,
            "devices": devices,
            "memlock": survey.memlock,
            "pinned_by_a_shard": pinned(),
            "obstacles": advice(&survey),
        })
    }

    pub fn tell() -> Result<()> {
        let survey = Survey::take(&[]);
        let roads = survey.roads();
        match roads.first() {
            Some(road) => {
                let (device, port, gid) = (road.context.name(), road.port.number, &road.gid);
                let what = "to storage nodes that have it, too, or the port that leads to one, of several that near the shard's core; TCP to all others";
                output::line(&format!("RDMA: {device} port {port}, {gid}, {what}"))?;
            }
            None => output::line("RDMA: none can be used, so everything goes by TCP")?,
        }
        for device in &survey.devices {
            let Ok((_, ports)) = &device.found else { continue };
            for port in ports {
                let (name, number, mtu, most) =
                    (&device.name, port.number, port.mtu.bytes(), port.mtu_max.bytes());
                let node = Sysfs::default().numa_of_device(name);
                let node = node.map_or("NUMA node not told".to_string(), |node| format!("NUMA node {node}"));
                output::line(&format!(
                    "  {name} port {number}: link {}, MTU {mtu} of {most}, {node}",
                    port.state
                ))?;
                for gid in &port.gids {
                    let used = if is_used(&roads, name, port, gid) { ": used" } else { "" };
                    output::line(&format!("    {gid}{used}"))?;
                }
            }
        }
        for what in advice(&survey) {
            output::line(&format!("  - {what}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_binary_says_what_it_goes_by() {
        let told = super::told();
        assert_eq!(told["built"], cfg!(feature = "rdma"));
        let obstacles = told["obstacles"].as_array().unwrap();
        assert!(!obstacles.is_empty() || !told["devices"].as_array().unwrap().is_empty(), "{told}");
    }
}
