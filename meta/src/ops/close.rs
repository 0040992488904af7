//! Sessions end.

use crate::inode::Inode;
use crate::length::Report;
use crate::namespace::Namespace;
use crate::ops::set_attr::{apply, bits};
use crate::outside::Outside;
use corefs_kv::{KvEngine, Transaction};
use corefs_wire::control::Call;
use corefs_wire::control::meta::{AttrReplyT, CloseT};
use corefs_wire::{Error, ErrorCode, InodeId, Result};

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// Takes in what the session wrote (see [`length`](crate::length)), sets attributes other than the size, and ends the
    /// session, all in one transaction. `NoSuchSession` when it has ended, as after its client's lease.
    pub async fn close(&self, request: &CloseT) -> Result<AttrReplyT> {
        if request.set.as_ref().is_some_and(|set| set.mask & bits::SIZE != 0) {
            return Err(Error::new(ErrorCode::InvalidArgument, "a close can't set the size"));
        }
        let report = Report {
            op: CloseT::OP,
            caller: &request.caller,
            inode: InodeId(request.inode),
            session: request.session,
            length: request.length,
            epoch: request.epoch,
            mtime: request.mtime,
            inline: request.inline.as_deref(),
            move_out: false,
        };
        let outcome = self.report(&report, async |txn: &mut E::Txn, inode: &mut Inode, now| {
            if let Some(set) = &request.set {
                // Whoever has the file open may set its times to the present.
                let mode = inode.mode;
                apply(&request.caller, inode, set, now, true)?;
                if inode.mode != mode {
                    self.list_follows(txn, report.inode, inode).await?;
                }
            }
            txn.clear(&self.keys.session(report.inode, request.session));
            Ok(true)
        });
        outcome.await?.attr_reply()
    }
}
