//! Anybody asks for routing, at once or when there is something newer than it has.

use crate::clock::Clock;
use crate::primary::Primary;
use corefs_kv::KvEngine;
use corefs_wire::control::mgmtd::{GetRoutingT, RoutingReplyT};
use corefs_wire::{Error, ErrorCode, Result};
use futures_lite::future;

/// Requests that may wait at the same time.
pub const WAITERS_MAX: usize = 4096;
/// Longest wait (milliseconds); longer ones are cut to it.
pub const WAIT_MS_MAX: u32 = 60_000;

/// Errors: `NotReady` when the cluster isn't formed by the end of the wait, `TooFewNodes` when it never will be;
/// `Overloaded` when too many wait already.
pub async fn get_routing<E: KvEngine, C: Clock>(
    primary: &Primary<E, C>,
    request: GetRoutingT,
) -> Result<RoutingReplyT> {
    let ends_ms = primary.clock.now_ms() + u64::from(request.wait_ms.min(WAIT_MS_MAX));
    let mut place: Option<Place<'_, E, C>> = None;
    loop {
        let news = primary.news.next();
        let found = primary.leading(|leading, _| {
            leading.state.formation.feasible()?;
            if leading.state.formed() {
                return Ok(Ok(leading.routing_beyond(request.have)));
            }
            let (expected, found) = (leading.state.formation.nodes, leading.state.nodes.len());
            let text = format!("not formed yet: {found} of {expected} storage nodes have registered");
            let not_ready = Error::mismatch(ErrorCode::NotReady, u64::from(expected), found as u64, text);
            Ok::<_, Error>(Err(not_ready))
        })??;
        let now_ms = primary.clock.now_ms();
        match found {
            Ok(None) | Err(_) if now_ms < ends_ms => {}
            Ok(routing) => {
                let mut reply = RoutingReplyT::default();
                reply.routing = routing;
                return Ok(reply);
            }
            Err(error) => return Err(error),
        }
        if place.is_none() {
            place = Some(Place::take(primary)?);
        }
        future::or(news, primary.clock.sleep(ends_ms - now_ms)).await;
    }
}

/// One of the places of those who wait.
struct Place<'a, E, C>(&'a Primary<E, C>);

impl<'a, E, C> Place<'a, E, C> {
    fn take(primary: &'a Primary<E, C>) -> Result<Self> {
        let taken = primary.waiters.get();
        if taken >= WAITERS_MAX {
            return Err(Error::new(ErrorCode::Overloaded, format!("{taken} others wait for routing")));
        }
        primary.waiters.set(taken + 1);
        Ok(Self(primary))
    }
}

impl<E, C> Drop for Place<'_, E, C> {
    fn drop(&mut self) {
        self.0.waiters.set(self.0.waiters.get() - 1);
    }
}
