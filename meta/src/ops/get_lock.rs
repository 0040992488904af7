//! Who is in the way of a lock.

use crate::lock::Locks;
use crate::namespace::Namespace;
use crate::ops::set_lock::wanted;
use crate::outside::Outside;
use corefs_kv::{Isolation, KvEngine, Transaction};
use corefs_wire::control::meta::{GetLockReplyT, GetLockT, LockKind, LockT};
use corefs_wire::{InodeId, Result};

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// The first lock that would keep this one from being granted, if any.
    pub async fn get_lock(&self, request: &GetLockT) -> Result<GetLockReplyT> {
        let wanted = wanted(&request.caller, request.owner, &request.lock)?;
        let row = self.keys.locks(InodeId(request.inode));
        let value = self.reading(async |txn: &mut E::Txn| txn.get(&row, Isolation::Snapshot).await).await?;
        let locks = value.as_deref().map(Locks::decode).transpose()?.unwrap_or_default();
        let mut reply = GetLockReplyT::default();
        reply.lock = locks.in_the_way(&wanted).map(|lock| {
            let mut found = Box::<LockT>::default();
            (found.start, found.end, found.pid) = (lock.start, lock.end, lock.pid);
            found.kind = if lock.exclusive { LockKind::Exclusive } else { LockKind::Shared };
            found
        });
        Ok(reply)
    }
}
