//! Advisory locks are taken and given back.

use crate::lock::{Lock, Locks, Owner};
use crate::namespace::{Namespace, Values};
use crate::once::{Attempt, Outcome};
use crate::outside::Outside;
use corefs_kv::{KvEngine, Transaction};
use corefs_wire::control::Call;
use corefs_wire::control::meta::{CallerT, EmptyT, LockKind, LockT, SetLockT};
use corefs_wire::{ClientId, Error, ErrorCode, InodeId, Result};

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// Takes a lock, changes it, or gives it back. `Locked` when somebody else's is in the way: nobody waits here. Whether
    /// the caller may lock is for whoever opened the file to know. `NoSuchInode`, `TooManyLocks`, `InvalidArgument`.
    pub async fn set_lock(&self, request: &SetLockT) -> Result<EmptyT> {
        let wanted = wanted(&request.caller, request.owner, &request.lock)?;
        let id = InodeId(request.inode);
        let row = self.keys.locks(id);
        let keys = [self.keys.inode(id), row.clone()];
        let op = SetLockT::OP;
        self.once(op, &request.caller, &keys, async |txn: &mut E::Txn, mut values: Values| {
            let (inode, found) = (values.raw(), values.raw());
            let mut locks = found.as_deref().map(Locks::decode).transpose()?.unwrap_or_default();
            let before = locks.clone();
            if request.lock.kind == LockKind::Unlock {
                locks.release(&wanted);
            } else {
                if inode.is_none() {
                    return Err(ErrorCode::NoSuchInode.into());
                }
                if let Some(lock) = locks.in_the_way(&wanted) {
                    let what = format!("{} of {id} holds {}..={}", lock.owner.client, lock.start, lock.end);
                    return Err(Error::new(ErrorCode::Locked, what));
                }
                locks.grant(wanted)?;
            }
            if locks == before {
                return Ok(Attempt::Unchanged(Outcome::default()));
            }
            if locks.is_empty() {
                txn.clear(&row);
            } else {
                txn.set(&row, &locks.encode());
                txn.set(&self.keys.client(wanted.owner.client), &[]);
            }
            Ok(Attempt::Changed(Outcome::default()))
        })
        .await?;
        Ok(EmptyT::default())
    }
}

/// The lock that a request is about. `InvalidArgument` for an unknown kind or a range that ends before it begins.
pub(crate) fn wanted(caller: &CallerT, number: u64, lock: &LockT) -> Result<Lock> {
    if lock.kind.variant_name().is_none() || lock.start > lock.end {
        return Err(Error::mismatch(ErrorCode::InvalidArgument, lock.start, lock.end, "not a lock"));
    }
    Ok(Lock {
        owner: Owner { client: ClientId(caller.client), number },
        start: lock.start,
        end: lock.end,
        exclusive: lock.kind == LockKind::Exclusive,
        pid: lock.pid,
    })
}
