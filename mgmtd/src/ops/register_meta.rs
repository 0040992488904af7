//! A metadata server comes up, or is still there: registering is also its heartbeat.

use super::check_address;
use crate::clock::Clock;
use crate::cluster::formation::METAS_MAX;
use crate::cluster::state::Meta;
use crate::primary::Primary;
use corefs_kv::KvEngine;
use corefs_wire::control::mgmtd::{MetaRegisteredT, RegisterMetaT};
use corefs_wire::{Error, ErrorCode, Result};

/// Stores something only when the address is new or has another process. Errors: `InvalidArgument` for an address that
/// nobody can reach, `Overloaded` beyond [`METAS_MAX`].
pub async fn register_meta<E: KvEngine, C: Clock>(
    primary: &Primary<E, C>,
    request: RegisterMetaT,
) -> Result<MetaRegisteredT> {
    check_address("address", &request.address)?;
    let meta = Meta { incarnation: request.incarnation };
    let known = primary.leading(|leading, now_ms| {
        let known = leading.state.metas.get(&request.address) == Some(&meta);
        if known && leading.liveness.hear_meta(&request.address, now_ms) {
            leading.touch();
        }
        known
    })?;
    if !known {
        let plan = |draft: &mut crate::primary::Draft<'_>| {
            let metas = &mut draft.state_mut().metas;
            metas.insert(request.address.clone(), meta);
            if metas.len() > METAS_MAX {
                return Err(Error::new(
                    ErrorCode::Overloaded,
                    format!("more than {METAS_MAX} metadata servers"),
                ));
            }
            Ok(())
        };
        let finish = |leading: &mut crate::primary::Leading, now_ms: u64, _: &()| {
            if leading.liveness.hear_meta(&request.address, now_ms) {
                leading.touch();
            }
        };
        primary.change(plan, finish).await?;
    }
    let mut reply = MetaRegisteredT::default();
    reply.cluster = primary.cluster().0.to_vec();
    primary.leading(|leading, _| {
        reply.lease_ms = leading.liveness.terms().lease_ms as u32;
        reply.routing = leading.routing_beyond(request.routing_version);
    })?;
    Ok(reply)
}
