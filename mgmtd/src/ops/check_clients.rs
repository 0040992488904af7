//! Metadata servers ask whose leases still run, before they settle what a client left behind.

use super::invalid;
use crate::clock::Clock;
use crate::primary::Primary;
use corefs_kv::KvEngine;
use corefs_wire::control::mgmtd::{CheckClientsReplyT, CheckClientsT};
use corefs_wire::{ClientId, Result};

/// Clients asked about in one request.
const CHECK_MAX: usize = 65_536;

/// A client that is reported dead is dead for good: its end was stored before anybody hears of it, and it can't renew any
/// more. So the answer "alive" may be late, the answer "dead" never wrong. `InvalidArgument` for too many at once.
pub async fn check_clients<E: KvEngine, C: Clock>(
    primary: &Primary<E, C>,
    request: CheckClientsT,
) -> Result<CheckClientsReplyT> {
    if request.clients.len() > CHECK_MAX {
        return Err(invalid(format!(
            "{} clients; at most {CHECK_MAX} in one request",
            request.clients.len()
        )));
    }
    primary.leading(|leading, _| {
        let mut reply = CheckClientsReplyT::default();
        let alive = |client: &u64| leading.liveness.client_known(ClientId(*client));
        reply.alive = request.clients.iter().map(alive).collect();
        reply
    })
}
