//! How large the cluster is to be. Decided at the first start, stored, and the same ever after.

use corefs_wire::limits::{CHUNK_DEFAULT, CHUNK_MAX, CHUNK_MIN, REPLICAS_MAX};
use corefs_wire::{Error, ErrorCode, Result};

/// Storage nodes a cluster may be formed of.
pub const NODES_MAX: u32 = 1024;
/// Metadata servers of one cluster.
pub const METAS_MAX: usize = 256;
/// Longest address of a shard or a server (bytes).
pub const ADDRESS_MAX: usize = 128;
/// Targets of one node at formation.
pub const TARGETS_PER_NODE_MAX: u32 = 4096;
/// Targets of the whole cluster at formation: with the shards of [`NODES_MAX`] usual nodes the routing table fits a frame.
pub const TARGETS_MAX: u32 = 32_768;

/// The cluster's shape: chains are made when `nodes` storage nodes have registered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Formation {
    pub nodes: u32,
    pub replicas: u32,
    /// Targets that each node contributes; a disk should carry 32 or more, so that load and growth spread evenly.
    pub targets_per_node: u32,
    /// Chunk size of new files (bytes).
    pub chunk_size: u32,
}

impl Default for Formation {
    fn default() -> Self {
        Self { nodes: 1, replicas: 1, targets_per_node: 32, chunk_size: CHUNK_DEFAULT }
    }
}

impl Formation {
    /// Chains that a cluster of this shape has. When replicas don't divide the targets, the rest isn't made.
    pub fn chains(&self) -> u32 {
        self.nodes.saturating_mul(self.targets_per_node) / self.replicas.max(1)
    }

    /// Refuses (`BadConfig`) what no cluster could be, whatever comes later.
    pub fn check(&self) -> Result<()> {
        let within = |what: &str, value: u32, max: u32| {
            if (1..=max).contains(&value) {
                return Ok(());
            }
            let text = format!("{what} must be from 1 to {max}, not {value}");
            Err(Error::mismatch(ErrorCode::BadConfig, u64::from(max), u64::from(value), text))
        };
        within("nodes", self.nodes, NODES_MAX)?;
        within("replicas", self.replicas, REPLICAS_MAX as u32)?;
        within("targets per node", self.targets_per_node, TARGETS_PER_NODE_MAX)?;
        within("targets of all nodes", self.nodes.saturating_mul(self.targets_per_node), TARGETS_MAX)?;
        if !self.chunk_size.is_power_of_two() || !(CHUNK_MIN..=CHUNK_MAX).contains(&self.chunk_size) {
            let text = format!(
                "chunk size must be a power of two from {CHUNK_MIN} to {CHUNK_MAX} bytes, not {}",
                self.chunk_size
            );
            return Err(Error::new(ErrorCode::BadConfig, text));
        }
        Ok(())
    }

    /// Whether there can be enough nodes for the replicas (`TooFewNodes`): two replicas of a chain never share one.
    pub fn feasible(&self) -> Result<()> {
        if self.replicas <= self.nodes {
            return Ok(());
        }
        let text = format!(
            "{} replicas need as many storage nodes, and {} are expected; start the manager with --replicas {} or \
             --nodes {}",
            self.replicas, self.nodes, self.nodes, self.replicas
        );
        let (expected, actual) = (u64::from(self.replicas), u64::from(self.nodes));
        Err(Error::mismatch(ErrorCode::TooFewNodes, expected, actual, text))
    }
}

/// What a manager's options ask for; `None` takes what is stored, or the default at the first start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Wanted {
    pub nodes: Option<u32>,
    pub replicas: Option<u32>,
    pub targets_per_node: Option<u32>,
    pub chunk_size: Option<u32>,
}

impl Wanted {
    /// The shape in force. `stored` is what an earlier start decided. While no chain exists (`formed` false) nothing
    /// depends on it and new wishes replace it; afterwards they must agree (`BadConfig` saying what differs).
    pub fn resolve(&self, stored: Option<Formation>, formed: bool) -> Result<Formation> {
        let base = stored.unwrap_or_default();
        let out = Formation {
            nodes: self.nodes.unwrap_or(base.nodes),
            replicas: self.replicas.unwrap_or(base.replicas),
            targets_per_node: self.targets_per_node.unwrap_or(base.targets_per_node),
            chunk_size: self.chunk_size.unwrap_or(base.chunk_size),
        };
        out.check()?;
        if formed && out != base {
            let pairs = [
                ("nodes", base.nodes, out.nodes),
                ("replicas", base.replicas, out.replicas),
                ("targets per node", base.targets_per_node, out.targets_per_node),
                ("chunk size", base.chunk_size, out.chunk_size),
            ];
            let differ: Vec<String> = pairs
                .iter()
                .filter(|(_, stored, wanted)| stored != wanted)
                .map(|(what, stored, wanted)| format!("{what} is {stored}, not {wanted}"))
                .collect();
            let text = format!("this cluster was formed differently: {}", differ.join("; "));
            return Err(Error::new(ErrorCode::BadConfig, text));
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code<T>(result: Result<T>) -> Option<ErrorCode> {
        result.err().map(|error| error.code)
    }

    #[test]
    fn nonsense_is_refused() {
        let bad = Some(ErrorCode::BadConfig);
        let base = Formation::default();
        assert_eq!(code(base.check()), None);
        assert_eq!(code(Formation { nodes: 0, ..base }.check()), bad);
        assert_eq!(code(Formation { replicas: 0, ..base }.check()), bad);
        assert_eq!(code(Formation { replicas: 9, ..base }.check()), bad);
        assert_eq!(code(Formation { targets_per_node: 0, ..base }.check()), bad);
        assert_eq!(code(Formation { nodes: 1024, targets_per_node: 4096, ..base }.check()), bad);
        assert_eq!(code(Formation { nodes: u32::MAX, targets_per_node: u32::MAX, ..base }.check()), bad);
        for chunk_size in [0, 1, 4096, 100_000, u32::MAX, 1 << 31] {
            assert_eq!(code(Formation { chunk_size, ..base }.check()), bad, "{chunk_size}");
        }
        assert_eq!(code(Formation { replicas: 2, ..base }.feasible()), Some(ErrorCode::TooFewNodes));
    }

    #[test]
    fn a_later_start_must_agree_once_chains_exist() {
        let stored = Formation { nodes: 3, replicas: 3, ..Formation::default() };
        let silent = Wanted::default();
        assert_eq!(silent.resolve(Some(stored), true), Ok(stored));
        let other = Wanted { replicas: Some(2), nodes: Some(3), ..silent };
        let error = other.resolve(Some(stored), true).unwrap_err();
        assert_eq!(error.code, ErrorCode::BadConfig);
        assert!(
            error.message.contains("replicas is 3, not 2") && !error.message.contains("nodes"),
            "{error}"
        );
        assert_eq!(other.resolve(Some(stored), false).map(|formation| formation.replicas), Ok(2));
        assert_eq!(silent.resolve(None, false), Ok(Formation::default()));
    }
}
