//! What RDMA this machine has: devices, ports, addresses, what would be used, and how to get what is missing.

use corefs_wire::Result;
use serde_json::Value;

/// What a binary says that can't go by RDMA.
#[cfg(not(feature = "rdma"))]
const WITHOUT: &str =
    "this corefs is built without it, and goes by TCP; build it with: cargo build --release --features rdma";

#[cfg(not(feature = "rdma"))]
pub fn told(_shards: usize) -> Value {
    serde_json::json!({"built": false, "devices": [], "obstacles": [WITHOUT]})
}

#[cfg(not(feature = "rdma"))]
pub fn tell(_shards: usize) -> Result<()> {
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
    use corefs_net::place::Sysfs;
    use corefs_net::rdma::RdmaConfig;
    use corefs_net::rdma::device::{Gid, Port};
    use corefs_net::rdma::survey::{Road, Survey};
    use corefs_net::{Role, TcpConfig};
    use corefs_wire::Uuid;
    use serde_json::json;
    use std::collections::BTreeSet;

    /// What a shard pins for each device: the buffers of its disk and sockets, and those of messages (bytes). The kernel counts what a process has pinned once for
    /// each registration, also where it is the same memory.
    fn pinned_by_a_shard() -> u64 {
        let cluster = Uuid::NIL;
        let nobody = Identity { role: Role::Tool, id: 0, incarnation: 0, cluster, secret: None };
        (RdmaConfig::new(TcpConfig::new(nobody)).arena_bytes + POOL_DEFAULT) as u64
    }

    /// What the process of so many shards would pin on these roads.
    fn pinned(roads: &[Road], shards: usize) -> u64 {
        let devices: BTreeSet<&str> = roads.iter().map(|road| road.context.name()).collect();
        devices.len() as u64 * shards as u64 * pinned_by_a_shard()
    }

    /// What may be pinned and what would be, and whether that is too much.
    fn memlock(limit: Option<u64>, wanted: u64, shards: usize) -> (String, bool) {
        let may = limit.map_or("any amount may be pinned".to_string(), |limit| {
            format!("{} may be pinned", output::size(limit))
        });
        let each = output::size(pinned_by_a_shard());
        let line = match wanted {
            0 => format!("memlock: {may}; each shard would pin {each} for each RDMA device"),
            _ => format!(
                "memlock: {may}; a node of {shards} shards would pin {}, each of them {each} for each RDMA device",
                output::size(wanted)
            ),
        };
        (line, limit.is_some_and(|limit| limit < wanted))
    }

    fn advice(survey: &Survey, roads: &[Road], shards: usize) -> Vec<String> {
        let (_, short) = memlock(survey.pinnable(), pinned(roads, shards), shards);
        let raise = || {
            "more would be pinned than may be, so that some shards go by TCP: ulimit -l unlimited, or LimitMEMLOCK=infinity in a unit of systemd"
                .to_string()
        };
        survey.obstacles().into_iter().chain(short.then(raise)).collect()
    }

    /// Whether frames would go by this address if a peer were reached through this port's network.
    fn is_used(roads: &[Road], device: &str, port: &Port, gid: &Gid) -> bool {
        let here = |road: &&Road| road.context.name() == device && road.port.number == port.number;
        roads.iter().find(here).is_some_and(|road| road.gid == *gid)
    }

    pub fn told(shards: usize) -> Value {
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
            "pins_freely": survey.pins_freely,
            "pinned_by_a_shard": pinned_by_a_shard(),
            "pinned": pinned(&roads, shards),
            "obstacles": advice(&survey, &roads, shards),
        })
    }

    pub fn tell(shards: usize) -> Result<()> {
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
        output::line(&format!("  {}", memlock(survey.pinnable(), pinned(&roads, shards), shards).0))?;
        for what in advice(&survey, &roads, shards) {
            output::line(&format!("  - {what}"))?;
        }
        Ok(())
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn what_all_shards_pin_is_compared_with_what_may_be() {
            let each = pinned_by_a_shard();
            let short =
                |limit, shards: usize, devices: u64| memlock(limit, shards as u64 * devices * each, shards).1;
            assert!(!short(Some(each), 1, 1) && short(Some(each), 2, 1) && short(Some(each), 1, 2));
            assert!(!short(None, 64, 4), "without a limit, or with the right to ignore it");
            let (line, _) = memlock(Some(8 << 20), 2 * each, 2);
            assert!(
                line.starts_with("memlock: 8.0 MiB may be pinned; a node of 2 shards would pin 256.0 MiB"),
                "{line}"
            );
            assert!(memlock(None, 0, 1).0.contains("any amount"));
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_binary_says_what_it_goes_by() {
        let told = super::told(1);
        assert_eq!(told["built"], cfg!(feature = "rdma"));
        let obstacles = told["obstacles"].as_array().unwrap();
        assert!(!obstacles.is_empty() || !told["devices"].as_array().unwrap().is_empty(), "{told}");
    }
}
