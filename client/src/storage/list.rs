//! Which chunks of an inode a chain holds.

use super::{Place, Storage};
use crate::route::{At, Next, Tracker, Work};
use corefs_wire::data::{LIST_MAX, List, ListEntry, Prefix, list_entries, op};
use corefs_wire::{ChainId, Error, ErrorCode, Result};
use zerocopy::IntoBytes;

impl Storage {
    /// The chains that a place's chunks are spread over, each once. `UnknownChain`, after asking for newer routing.
    pub async fn chains(&self, place: &Place) -> Result<Vec<ChainId>> {
        let ground = &self.ground;
        let find = || {
            let routes = ground.routes.borrow();
            let stripe = routes.stripe(&place.layout)?;
            Ok(stripe.chains().iter().map(|chain| routes.chain(*chain).id).collect())
        };
        let mut tracker = Tracker::new(Work::Update, ground.now() + ground.patience);
        loop {
            let error: Error = match find() {
                Ok(chains) => return Ok(chains),
                Err(error) => error,
            };
            let next = tracker.after(ground.now(), error.code, 0, 0, &mut ground.rng.borrow_mut());
            let Next::Again { after, refresh, .. } = next else { return Err(error) };
            ground.pause(after, refresh).await;
            ground.check_open()?;
        }
    }

    /// One page of the chunks that a chain's tail holds, from chunk `from` on, in order; fewer than [`LIST_MAX`]: no more follow.
    pub async fn list(&self, place: &Place, chain: ChainId, from: u32) -> Result<Vec<ListEntry>> {
        let ground = &self.ground;
        let mut tracker = Tracker::new(Work::Read, ground.now() + ground.patience);
        let mut at = At::Tail;
        loop {
            ground.check_open()?;
            let (error, position, of) = match self.try_list(place, chain, from, at).await {
                Ok(entries) => return Ok(entries),
                Err(failure) => failure,
            };
            let next = tracker.after(ground.now(), error.code, position, of, &mut ground.rng.borrow_mut());
            let Next::Again { at: next, after, refresh } = next else {
                return Err(error.of(format_args!("listing {} on {chain}", place.inode)));
            };
            // Anybody but the tail might answer from before a change that the tail has committed.
            at = if next == At::Other { At::Other } else { At::Tail };
            ground.pause(after, refresh).await;
        }
    }

    async fn try_list(
        &self,
        place: &Place,
        chain: ChainId,
        from: u32,
        at: At,
    ) -> Result<Vec<ListEntry>, (Error, usize, usize)> {
        let (asked, version, of, position) = {
            let routes = self.ground.routes.borrow();
            let route = routes.chain_by_id(chain);
            let route = route.ok_or_else(|| (Error::from(ErrorCode::UnknownChain), 0, 0))?;
            let of = route.serving.len();
            let back = if at == At::Other && of > 1 { 2 } else { 1 };
            let Some(position) = of.checked_sub(back) else {
                let what = format!("no replica of {chain} serves");
                return Err((Error::new(ErrorCode::NotServing, what), 0, 0));
            };
            (route.serving[position], route.version, of, position)
        };
        let list = List {
            chain: chain.0.into(),
            chain_version: version.into(),
            target: asked.target.0.into(),
            inode: place.inode.0.into(),
            from_index: from.into(),
            limit: (LIST_MAX as u32).into(),
        };
        let mut body = Prefix::default().as_bytes().to_vec();
        body.extend_from_slice(list.as_bytes());
        let reply = self.ask(asked.owner, op::LIST, &body, None).await;
        let entries = reply.and_then(|reply| list_entries(&reply.body).map(<[ListEntry]>::to_vec));
        entries.map_err(|error| (error, position, of))
    }
}
