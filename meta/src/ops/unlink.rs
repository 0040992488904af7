//! A name of anything but a directory goes.

use crate::acl::{CHANGE, may_take};
use crate::dirent::check_name;
use crate::gc::Garbage;
use crate::inode::Inode;
use crate::namespace::{Namespace, Values};
use crate::once::{Attempt, Outcome};
use crate::outside::Outside;
use crate::session::Session;
use corefs_kv::{Isolation, KvEngine, Transaction};
use corefs_wire::control::Call;
use corefs_wire::control::meta::{CallerT, UnlinkT, UnlinkedT};
use corefs_wire::limits::HOLDS_MAX;
use corefs_wire::{ClientId, Error, ErrorCode, InodeId, Result};

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// Removes the entry, and says what it led to. A file that loses its last name is removed in the background, once nobody has it open.
    /// `NotFound`, `NoSuchInode` (the directory), `IsDirectory`, `PermissionDenied`, `NotPermitted` (sticky directories).
    pub async fn unlink(&self, request: &UnlinkT) -> Result<UnlinkedT> {
        check_name(&request.name)?;
        check_hold(&request.hold)?;
        let parent = InodeId(request.parent);
        let entry = self.keys.dirent(parent, &request.name);
        let keys = [self.keys.inode(parent), entry.clone()];
        let outcome =
            self.once(UnlinkT::OP, &request.caller, &keys, async |txn: &mut E::Txn, mut values: Values| {
                let directory = values.directory()?;
                self.may(txn, &request.caller, parent, &directory, CHANGE).await?;
                let dirent = values.dirent()?.ok_or(ErrorCode::NotFound)?;
                if dirent.is_directory() {
                    return Err(ErrorCode::IsDirectory.into());
                }
                let inode = self.inode(txn, dirent.inode, Isolation::Serializable).await?;
                may_take(&request.caller, &directory, &inode)?;
                let now = self.outside.now();
                let held = self.hold_unlinked(txn, &request.caller, &request.hold, dirent.inode, &inode, now);
                self.drop_name(txn, dirent.inode, inode, now);
                txn.clear(&entry);
                self.touch_directory(txn, parent, now, -1, 0);
                Ok(Attempt::Changed(held))
            });
        Ok(unlinked(&outcome.await?))
    }

    /// What is answered when a name of an inode goes. Begins a session for whoever takes the last name of a file that he has open: of
    /// `hold` it must be one.
    pub(crate) fn hold_unlinked(
        &self,
        txn: &mut E::Txn,
        caller: &CallerT,
        hold: &Option<Vec<u64>>,
        id: InodeId,
        inode: &Inode,
        now: i64,
    ) -> Outcome {
        let held = hold.as_ref().is_some_and(|hold| hold.contains(&id.0));
        if !held || !inode.is_file() || inode.nlink > 1 {
            return Outcome { gone: id.0, ..Outcome::default() };
        }
        let session = Session {
            client: ClientId(caller.client),
            incarnation: caller.incarnation,
            write: false,
            epoch: inode.epoch,
            began: now,
            place: None,
        };
        let number = self.new_session_number();
        self.begin_session(txn, id, number, &session);
        Outcome { session: number, gone: id.0, ..Outcome::default() }
    }

    /// Takes one name from an inode that isn't a directory: what is left of it is stored.
    pub(crate) fn drop_name(&self, txn: &mut E::Txn, id: InodeId, mut inode: Inode, now: i64) {
        inode.nlink = inode.nlink.saturating_sub(1);
        inode.ctime = now;
        match (inode.nlink, inode.is_file()) {
            (0, true) => {
                txn.set(&self.keys.garbage(id), &Garbage::Waiting.encode());
                self.put(txn, id, &inode);
            }
            // Nothing else has chunks, or sessions that could hold it.
            (0, false) => {
                self.clear_inode(txn, id, &inode);
            }
            _ => self.put(txn, id, &inode),
        }
    }
}

/// `InvalidArgument` for more than [`HOLDS_MAX`].
pub(crate) fn check_hold(hold: &Option<Vec<u64>>) -> Result<()> {
    let found = hold.as_ref().map_or(0, Vec::len);
    if found <= HOLDS_MAX {
        return Ok(());
    }
    let (most, found) = (HOLDS_MAX as u64, found as u64);
    Err(Error::mismatch(ErrorCode::InvalidArgument, most, found, "too many open files at once"))
}

pub(crate) fn unlinked(outcome: &Outcome) -> UnlinkedT {
    let mut reply = UnlinkedT::default();
    reply.session = outcome.session;
    // Rows of older versions say it so.
    reply.inode = outcome.stat.as_ref().map_or(outcome.gone, |stat| stat.id.0);
    reply
}
