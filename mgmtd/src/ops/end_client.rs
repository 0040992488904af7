//! A client says that it stops, so that nobody waits for its lease to run out.

use crate::clock::Clock;
use crate::primary::Primary;
use corefs_kv::KvEngine;
use corefs_wire::control::mgmtd::{EndClientReplyT, EndClientT};
use corefs_wire::{ClientId, Result};

/// Ending a client that has no lease does nothing.
pub async fn end_client<E: KvEngine, C: Clock>(
    primary: &Primary<E, C>,
    request: EndClientT,
) -> Result<EndClientReplyT> {
    let client = ClientId(request.client);
    let known = primary.leading(|leading, _| leading.liveness.client_known(client))?;
    if known {
        primary
            .change(
                |draft| {
                    draft.end_client(client);
                    Ok(())
                },
                |leading, _, ()| {
                    leading.liveness.forget_client(client);
                    leading.ending.remove(&client);
                },
            )
            .await?;
    }
    Ok(EndClientReplyT::default())
}
