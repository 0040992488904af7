//! A place at the end of a file.

use crate::inode::Stat;
use crate::length::{check_length, ended};
use crate::namespace::{Namespace, Values};
use crate::once::{Attempt, Outcome};
use crate::outside::Outside;
use crate::session::{Place, Session};
use corefs_kv::{Isolation, KvEngine, Transaction};
use corefs_wire::control::Call;
use corefs_wire::control::meta::{AppendReplyT, AppendT};
use corefs_wire::limits::INLINE_MAX;
use corefs_wire::{ClientId, Error, ErrorCode, InodeId, Result};

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// Gives a session a place of `count` bytes (at least 1) behind the file's length, behind `at_least`, and behind the places
    /// of all other clients' sessions. A client's own places don't count: it knows itself where its bytes are, and a place that it gave up
    /// (a full disk) leaves no gap.
    ///
    /// The file's length stays until the bytes are reported, so nobody reads a place before it is filled unless a later one was filled and
    /// reported first.
    ///
    /// No place is given when the file was truncated since `epoch`; nor when it keeps its bytes with its inode, and either they would be too many
    /// or somebody else's place isn't filled yet: then they have to be moved out first. Else a place that is refused as they move would be left
    /// as a gap, below what was appended behind it. `NoSuchSession`, `FileTooLarge`.
    pub async fn append(&self, request: &AppendT) -> Result<AppendReplyT> {
        if request.count == 0 {
            return Err(Error::new(ErrorCode::InvalidArgument, "an append of nothing needs no place"));
        }
        let (id, client) = (InodeId(request.inode), ClientId(request.caller.client));
        let keys = [self.keys.inode(id)];
        let no_session = || {
            let what = format!("{id} has no session {:x} of this client for writing", request.session);
            Error::new(ErrorCode::NoSuchSession, what)
        };
        let outcome =
            self.once(AppendT::OP, &request.caller, &keys, async |txn: &mut E::Txn, mut values: Values| {
                let inode = values.expect_inode()?;
                if inode.trim_to.is_some() {
                    return Ok(Attempt::Trimming(id));
                }
                if request.epoch != inode.epoch {
                    return Ok(Attempt::Unchanged(Outcome::of(Stat::new(id, inode))));
                }
                let first = inode.size.max(request.at_least);
                let mut offset = first;
                let mut own = None;
                let own_key = self.keys.session(id, request.session);
                let range = self.keys.sessions(id);
                for (key, value) in txn.range_all(&range, usize::MAX, Isolation::Serializable).await? {
                    let session = Session::decode(&value)?;
                    if session.client == client {
                        own = own.or((key == own_key && session.write).then_some(session));
                    } else if let Some(place) = session.place.filter(|place| place.epoch == inode.epoch) {
                        offset = offset.max(place.end);
                    }
                }
                let own = own.ok_or_else(no_session)?;
                let end = offset.saturating_add(request.count);
                check_length(inode.file_layout()?, end)?;
                if inode.inline && (end > INLINE_MAX as u64 || offset > first) {
                    return Ok(Attempt::Unchanged(Outcome::of(Stat::new(id, inode))));
                }
                let place = Some(Place { epoch: inode.epoch, end });
                txn.set(&own_key, &Session { place, ..own }.encode());
                let outcome = Outcome::of(Stat::new(id, inode));
                Ok(Attempt::Changed(Outcome { offset: Some(offset), ..outcome }))
            });
        let outcome = outcome.await.map_err(|error| ended(error, no_session))?;
        let mut reply = AppendReplyT::default();
        reply.attr = outcome.attr()?;
        (reply.given, reply.offset) = (outcome.offset.is_some(), outcome.offset.unwrap_or(0));
        Ok(reply)
    }
}
