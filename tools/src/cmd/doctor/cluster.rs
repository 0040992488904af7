//! By what this machine reaches each storage shard of a cluster: a connection to each, as a client makes it.

use super::{Args, rdma};
use crate::connect::Cluster;
use crate::output;
use corefs_client::Client;
use corefs_net::transport::Way;
use corefs_wire::Result;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;

/// What a connection may take: longer than a path by RDMA has to prove itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// A shard, and how it was reached.
struct Reached {
    node: u32,
    shard: usize,
    address: String,
    way: Result<Way>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let cluster = Cluster {
        manager: args.manager.clone(),
        secret_file: args.secret_file.clone(),
        transport: Some("auto".to_string()),
    };
    let reached = cluster.with_client("corefs doctor", |client| async move { reach_all(&client).await })?;
    if args.json {
        let shards: Vec<Value> = reached.iter().map(Reached::told).collect();
        output::json(&json!({"rdma": rdma::told(args.cores), "reached": shards}))?;
    } else {
        rdma::tell(args.cores)?;
        for shard in &reached {
            output::line(&shard.line())?;
        }
    }
    Ok(ExitCode::from(if reached.iter().all(|shard| shard.way.is_ok()) { 0 } else { 3 }))
}

async fn reach_all(client: &Client) -> Result<Vec<Reached>> {
    let mut reached = Vec::new();
    for (node, info) in &client.routing().nodes {
        for (shard, address) in info.shards.iter().enumerate() {
            let way = reach(client, address).await;
            reached.push(Reached { node: node.0, shard, address: address.clone(), way });
        }
    }
    Ok(reached)
}

async fn reach(client: &Client, address: &str) -> Result<Way> {
    let (node, address) = (client.node(), address.parse()?);
    let conn = node.within(PATIENCE, node.connection(&address)).await?;
    Ok(node.way(conn))
}

impl Reached {
    fn line(&self) -> String {
        let how = match &self.way {
            Ok(Way::Rdma(port)) => format!("RDMA by {port}"),
            Ok(Way::Tcp(why)) => format!("TCP, because {why}"),
            Err(error) => format!("not reached: {error}"),
        };
        format!("node {} shard {}, {}: {how}", self.node, self.shard, self.address)
    }

    fn told(&self) -> Value {
        let (transport, port, why) = match &self.way {
            Ok(Way::Rdma(port)) => (Some("rdma"), Some(port.clone()), None),
            Ok(Way::Tcp(why)) => (Some("tcp"), None, Some(why.clone())),
            Err(error) => (None, None, Some(error.to_string())),
        };
        json!({
            "node": self.node, "shard": self.shard, "address": self.address, "transport": transport, "port": port, "why": why,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::ErrorCode;

    #[test]
    fn each_shard_has_a_line_and_a_reason() {
        let of = |way| {
            let shard = Reached { node: 2, shard: 1, address: "10.0.0.2:7502".to_string(), way };
            (shard.line(), shard.told()["transport"].clone())
        };
        let (line, transport) = of(Ok(Way::Rdma("mlx5_0 port 1, 10.0.0.1".to_string())));
        assert_eq!(line, "node 2 shard 1, 10.0.0.2:7502: RDMA by mlx5_0 port 1, 10.0.0.1");
        assert_eq!(transport, "rdma");
        let (line, transport) = of(Ok(Way::Tcp("no RDMA port can be used here".to_string())));
        assert!(line.ends_with(": TCP, because no RDMA port can be used here") && transport == "tcp");
        let (line, transport) = of(Err(ErrorCode::Unreachable.into()));
        assert!(line.contains("not reached") && transport.is_null());
    }
}
