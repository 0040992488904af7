//! fsync's part of the namespace.

use crate::length::Report;
use crate::namespace::Namespace;
use crate::outside::Outside;
use corefs_kv::KvEngine;
use corefs_wire::control::Call;
use corefs_wire::control::meta::{AttrReplyT, SyncLengthT};
use corefs_wire::{InodeId, Result};

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// Takes in what a session wrote so far (see [`length`](crate::length)); the session stays. `NoSuchSession`.
    pub async fn sync_length(&self, request: &SyncLengthT) -> Result<AttrReplyT> {
        let report = Report {
            op: SyncLengthT::OP,
            caller: &request.caller,
            inode: InodeId(request.inode),
            session: request.session,
            length: request.length,
            epoch: request.epoch,
            mtime: request.mtime,
            inline: request.inline.as_deref(),
            move_out: request.move_out,
        };
        self.report(&report, async |_, _, _| Ok(false)).await?.attr_reply()
    }
}
