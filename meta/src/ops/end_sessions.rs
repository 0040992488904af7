//! Many sessions end at once that have nothing to tell.

use crate::namespace::Namespace;
use crate::outside::Outside;
use crate::session::Session;
use corefs_kv::{Isolation, KvEngine, Transaction, retry};
use corefs_wire::control::meta::{EmptyT, EndSessionsT};
use corefs_wire::limits::SESSIONS_MAX;
use corefs_wire::{Error, ErrorCode, InodeId, Result};

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// Ends those of these sessions that there are and that are the caller's, in one transaction. Session numbers don't come again, so this can
    /// be repeated at will, and needs no memory of the request. `InvalidArgument` for too many at once.
    pub async fn end_sessions(&self, request: &EndSessionsT) -> Result<EmptyT> {
        let count = request.sessions.len();
        if count > SESSIONS_MAX {
            let what = "sessions to end at once";
            return Err(Error::mismatch(ErrorCode::InvalidArgument, SESSIONS_MAX as u64, count as u64, what));
        }
        let key = |name: &corefs_wire::control::meta::SessionNameT| {
            self.keys.session(InodeId(name.inode), name.session)
        };
        let keys: Vec<Vec<u8>> = request.sessions.iter().map(key).collect();
        retry::run_repeatable(&self.kv, async |txn: &mut E::Txn| {
            let found = txn.get_many(&keys, Isolation::Snapshot).await?;
            for (key, value) in keys.iter().zip(found) {
                // What can't be read is damage, for fsck to tell: nothing else waits for it.
                let session = value.as_deref().and_then(|value| Session::decode(value).ok());
                if session.is_some_and(|session| session.client.0 == request.caller.client) {
                    txn.clear(key);
                }
            }
            Ok(EmptyT::default())
        })
        .await
    }
}
