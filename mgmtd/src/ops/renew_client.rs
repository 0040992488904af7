//! A client gets a number, and keeps it while it renews.

use super::check_name;
use crate::clock::Clock;
use crate::primary::{CLIENT_INCARNATION, Primary};
use corefs_kv::KvEngine;
use corefs_wire::control::mgmtd::{ClientLeaseT, RenewClientT};
use corefs_wire::{ClientId, Error, ErrorCode, Result};

/// Clients with a lease at the same time.
pub const CLIENTS_MAX: usize = 65_536;

/// Client 0 gets a number that nobody ever had; that is stored. Renewing isn't, but a manager that takes over gives
/// every stored client a full lease. Errors: `LeaseExpired` for a client that ended or was ended: what it did may
/// have been settled, so it must ask for a new number (client 0); `Overloaded` beyond [`CLIENTS_MAX`].
pub async fn renew_client<E: KvEngine, C: Clock>(
    primary: &Primary<E, C>,
    request: RenewClientT,
) -> Result<ClientLeaseT> {
    check_name("name", &request.name)?;
    let client = match request.client {
        0 => add(primary, &request.name).await?,
        number => renew(primary, ClientId(number))?,
    };
    let mut reply = ClientLeaseT::default();
    reply.client = client.0;
    reply.incarnation = CLIENT_INCARNATION;
    reply.lease_ms = primary.settings().terms.client_lease_ms as u32;
    reply.cluster = primary.cluster().0.to_vec();
    Ok(reply)
}

async fn add<E: KvEngine, C: Clock>(primary: &Primary<E, C>, name: &str) -> Result<ClientId> {
    primary
        .change(
            |draft| {
                if draft.liveness().clients() >= CLIENTS_MAX {
                    return Err(Error::new(
                        ErrorCode::Overloaded,
                        format!("{CLIENTS_MAX} clients have leases"),
                    ));
                }
                Ok(draft.add_client(name))
            },
            |leading, now_ms, client| leading.liveness.hear_client(*client, now_ms),
        )
        .await
}

fn renew<E: KvEngine, C: Clock>(primary: &Primary<E, C>, client: ClientId) -> Result<ClientId> {
    primary.leading(|leading, now_ms| {
        if !leading.liveness.client_known(client) || leading.ending.contains(&client) {
            let text = format!("{client} has no lease; ask for a new number");
            return Err(Error::new(ErrorCode::LeaseExpired, text));
        }
        leading.liveness.hear_client(client, now_ms);
        Ok(client)
    })?
}
