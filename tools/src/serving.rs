//! When a cluster that was just started serves: each chain has a replica that serves.
//!
//! A node is ready before that: the managers take its replicas in with its next heartbeats, and a node whose new disk took longer to
//! format than a lease lasts was declared dead meanwhile.

use crate::{role, signals};
use corefs_net::handshake::Role;
use corefs_net::{Address, Node, executor};
use corefs_wire::control::mgmtd::GetRoutingT;
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{Error, ErrorCode, Result};
use std::time::{Duration, Instant};

/// Chains that don't serve by then lack more than time.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
/// How long the manager has for an answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Waits until all chains serve, for 10 s at most: then the error says how many don't, or why the manager said nothing.
///
/// Errors: `NotReady`, which is no reason to stop; `ShuttingDown` after a stop signal.
pub fn wait(manager: &str) -> Result<()> {
    let manager = role::address("manager", manager)?;
    role::block_on("corefs up", async move {
        let node = role::endpoint(Role::Client, None)?;
        let outcome = all_serve(&node, &manager).await;
        node.shutdown().await;
        outcome
    })
}

async fn all_serve(node: &Node, manager: &Address) -> Result<()> {
    let from = Instant::now();
    loop {
        let Err(why) = lacking(node, manager).await else { return Ok(()) };
        if signals::wait_for(Duration::ZERO) {
            return Err(Error::new(ErrorCode::ShuttingDown, "interrupted before the cluster served"));
        }
        if from.elapsed() >= PATIENCE {
            let remedy = format!("`corefs status --manager {manager}` says what to do");
            return Err(Error::new(ErrorCode::NotReady, format!("{why}; {remedy}")));
        }
        executor::sleep(PAUSE).await;
    }
}

/// The error says what doesn't serve yet.
async fn lacking(node: &Node, manager: &Address) -> Result<(), String> {
    let asked = node.ask(manager, &GetRoutingT::default(), ANSWER).await;
    let routing = asked.map_err(|error| format!("the manager doesn't answer ({error})"))?.routing;
    let routing = routing.ok_or("the manager knows of no routing")?;
    let routing = RoutingInfo::from_message(&routing).map_err(|error| error.to_string())?;
    let of = routing.chains.len();
    match routing.chains.values().filter(|chain| chain.head().is_none()).count() {
        0 if of > 0 => Ok(()),
        0 => Err("there are no chains".to_owned()),
        chains => Err(format!("{chains} of {of} chains don't serve")),
    }
}
