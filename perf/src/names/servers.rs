//! What operations on names cost the servers: CPU time and memory of every process that has a part in them, by what it does.
//!
//! With the embedded store the metadata server mostly lives in the store's process, and one figure is of both. A FoundationDB is asked
//! nothing: its servers aren't ours.

use crate::cpu::CpuTime;
use corefs_client::Client;
use corefs_net::Address;
use corefs_wire::Result;
use corefs_wire::control::process::{GetProcessT, ProcessT};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// How long a server may take to say what it has used.
const ASK: Duration = Duration::from_secs(2);

/// What servers do, as reports call it.
pub const METADATA: &str = "metadata";
/// The embedded store, where no metadata server is in its process.
pub const STORE: &str = "store";
pub const STORAGE: &str = "storage";

/// What all processes of one kind have used so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Used {
    pub cpu: CpuTime,
    /// Resident, bytes.
    pub memory: u64,
}

/// [`Used`] by what the processes do.
pub type Usage = BTreeMap<&'static str, Used>;

/// Asks all of them. An error when one doesn't answer, because a part would pass for the whole.
pub async fn ask(client: &Client) -> Result<Usage> {
    let routing = client.routing();
    let status = client.status().await?;
    // Of `fdb:` and the like this is no address.
    let store = status.kv.parse::<Address>().ok().map(|address| (STORE, address));
    let mut servers = Vec::new();
    for address in &routing.metas {
        servers.push((METADATA, address.parse()?));
    }
    servers.extend(store);
    for node in routing.nodes.values() {
        servers.push((STORAGE, node.control.parse()?));
    }
    let mut told = Vec::new();
    for (kind, address) in servers {
        let process = client.node().ask(&address, &GetProcessT::default(), ASK).await?;
        told.push((kind, address, process));
    }
    Ok(sum(told))
}

/// Adds up what was told. Who answers at several addresses counts once, as what it was asked as first.
fn sum(told: Vec<(&'static str, Address, ProcessT)>) -> Usage {
    let mut usage = Usage::new();
    let mut seen: Vec<(Option<IpAddr>, u32)> = Vec::new();
    for (kind, address, process) in told {
        let machine = match &address {
            Address::Tcp(address) => Some(address.ip()),
            Address::Unix(_) => None,
        };
        // A socket's path doesn't tell of which machine it is: one process number is then taken for one process.
        let same = |(other, pid): &(Option<IpAddr>, u32)| {
            *pid == process.pid && (*other == machine || other.is_none() || machine.is_none())
        };
        if seen.iter().any(same) {
            continue;
        }
        seen.push((machine, process.pid));
        let used = usage.entry(kind).or_default();
        let cpu = CpuTime { user_us: process.user_us, system_us: process.system_us };
        used.cpu = used.cpu.plus(cpu);
        used.memory += process.rss_bytes;
    }
    usage
}

/// CPU time since `earlier`, by what the processes do; `None` where nobody can tell.
pub fn since(earlier: Option<&Usage>, now: Option<&Usage>) -> BTreeMap<&'static str, CpuTime> {
    let (Some(earlier), Some(now)) = (earlier, now) else { return BTreeMap::new() };
    let each = |(kind, used): (&&'static str, &Used)| {
        let before = earlier.get(kind).copied().unwrap_or_default();
        (*kind, used.cpu.since(before.cpu))
    };
    now.iter().map(each).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, user_us: u64) -> ProcessT {
        let mut process = ProcessT::default();
        (process.pid, process.user_us, process.system_us, process.rss_bytes) = (pid, user_us, 1, 1000);
        process
    }

    fn told(kind: &'static str, address: &str, process: ProcessT) -> (&'static str, Address, ProcessT) {
        (kind, address.parse().unwrap(), process)
    }

    #[test]
    fn a_process_with_several_addresses_counts_once() {
        let usage = sum(vec![
            told(METADATA, "127.0.0.1:1", process(7, 10)),
            told(METADATA, "127.0.0.1:2", process(7, 12)),
            told(STORE, "unix:/kv", process(7, 13)),
            told(STORAGE, "127.0.0.1:3", process(8, 5)),
            // Of another machine.
            told(STORAGE, "10.0.0.1:3", process(8, 6)),
        ]);
        let used = |user_us, system_us, memory| Used { cpu: CpuTime { user_us, system_us }, memory };
        assert_eq!(usage, [(METADATA, used(10, 1, 1000)), (STORAGE, used(11, 2, 2000))].into());
    }

    #[test]
    fn a_store_of_its_own_is_told_apart() {
        let usage =
            sum(vec![told(METADATA, "127.0.0.1:1", process(7, 10)), told(STORE, "unix:/kv", process(6, 4))]);
        let later =
            sum(vec![told(METADATA, "127.0.0.1:1", process(7, 30)), told(STORE, "unix:/kv", process(6, 9))]);
        let cpu = since(Some(&usage), Some(&later));
        let of = |user_us| CpuTime { user_us, system_us: 0 };
        assert_eq!(cpu, [(METADATA, of(20)), (STORE, of(5))].into());
        assert!(since(None, Some(&later)).is_empty());
    }
}
