//! Typed control messages: which request has which operation code and which reply.
//!
//! The structs are FlatBuffers' owned form, generated from `schemas/` by `ci/generate` (their names end in `T`).
//! Decoding always runs FlatBuffers' verifier first, with bounds on depth and number of tables, so bytes from
//! anywhere give an owned message or a [`BadFrame`](ErrorCode::BadFrame), never anything else.

use crate::error::{Error, ErrorCode, Result};
use flatbuffers::{FlatBufferBuilder, VerifierOptions};
use std::cell::Cell;

pub use crate::generated::kv::corefs::kv;
pub use crate::generated::meta::corefs::meta;
pub use crate::generated::mgmtd::corefs::mgmtd;
pub use crate::generated::process::corefs::process;
pub use crate::generated::storage::corefs::storage;

/// A message that can be the body of a frame.
pub trait Message: Sized {
    fn encode(&self) -> Vec<u8>;
    fn decode(bytes: &[u8]) -> Result<Self>;
}

/// A request that has one kind of reply.
pub trait Call: Message {
    /// The frame's operation code. 0x01xx key-value store, 0x02xx managers, 0x03xx metadata, 0x04xx any process,
    /// 0x05xx storage nodes;
    /// below 0x0100 is the data path ([`crate::data::op`]).
    const OP: u16;
    /// The operation's name in logs, counters and errors.
    const NAME: &'static str;
    type Reply: Message;
}

/// A hostile message costs bounded work: no more tables than a routing table of the largest cluster has.
fn verifier() -> VerifierOptions {
    VerifierOptions {
        max_depth: 16,
        max_tables: 1 << 20,
        max_apparent_size: 64 << 20,
        ignore_missing_null_terminator: false,
    }
}

thread_local! {
    /// The builder of the last message: a new one would start with no bytes and grow by copying with every message.
    static BUILDER: Cell<Option<FlatBufferBuilder<'static>>> = const { Cell::new(None) };
}

/// A builder that has made a larger message isn't kept: few are, and their memory would stay for ever.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// The message that `pack` finishes.
fn with_builder(pack: impl FnOnce(&mut FlatBufferBuilder<'static>)) -> Vec<u8> {
    let mut builder = BUILDER.take().unwrap_or_default();
    pack(&mut builder);
    let message = builder.finished_data().to_vec();
    if message.len() <= KEPT_BYTES_MAX {
        builder.reset();
        BUILDER.set(Some(builder));
    }
    message
}

macro_rules! messages {
    ($($module:ident :: { $($table:ident / $owned:ident),* $(,)? })*) => {
        $($(
            impl Message for $module::$owned {
                fn encode(&self) -> Vec<u8> {
                    with_builder(|builder| {
                        let root = self.pack(builder);
                        builder.finish_minimal(root);
                    })
                }
                fn decode(bytes: &[u8]) -> Result<Self> {
                    match flatbuffers::root_with_opts::<$module::$table>(&verifier(), bytes) {
                        Ok(table) => Ok(table.unpack()),
                        Err(error) => {
                            let what = concat!(stringify!($module), "::", stringify!($table));
                            Err(Error::new(ErrorCode::BadFrame, format!("not a valid {what}: {error}")))
                        }
                    }
                }
            }
        )*)*
    };
}

messages! {
    kv::{ReadVersionRequest/ReadVersionRequestT, ReadVersionReply/ReadVersionReplyT, ReadRequest/ReadRequestT,
         ReadReply/ReadReplyT, CommitRequest/CommitRequestT, CommitReply/CommitReplyT}
    mgmtd::{RegisterNode/RegisterNodeT, NodeRegistered/NodeRegisteredT, NodeHeartbeat/NodeHeartbeatT,
         NodeHeartbeatReply/NodeHeartbeatReplyT, RegisterMeta/RegisterMetaT, MetaRegistered/MetaRegisteredT,
         GetRouting/GetRoutingT, RoutingReply/RoutingReplyT, RenewClient/RenewClientT, ClientLease/ClientLeaseT,
         EndClient/EndClientT, EndClientReply/EndClientReplyT, CheckClients/CheckClientsT,
         CheckClientsReply/CheckClientsReplyT, GetStatus/GetStatusT, Status/StatusT, Routing/RoutingT,
         ChangeNode/ChangeNodeT, ChangeMoving/ChangeMovingT, Moves/MovesT}
    meta::{Lookup/LookupT, AttrReply/AttrReplyT, GetAttr/GetAttrT, GetAttrReply/GetAttrReplyT, Create/CreateT,
         CreateReply/CreateReplyT, Open/OpenT, OpenReply/OpenReplyT, Close/CloseT, EndSessions/EndSessionsT, SyncLength/SyncLengthT, Append/AppendT, AppendReply/AppendReplyT,
         ReadDir/ReadDirT, ReadDirReply/ReadDirReplyT, Unlink/UnlinkT, Unlinked/UnlinkedT, RmDir/RmDirT, Rename/RenameT, Link/LinkT,
         ReadLink/ReadLinkT, ReadLinkReply/ReadLinkReplyT, SetAttr/SetAttrT, StatFs/StatFsT,
         StatFsReply/StatFsReplyT, Empty/EmptyT, GetXattr/GetXattrT, GetXattrReply/GetXattrReplyT,
         ListXattr/ListXattrT, ListXattrReply/ListXattrReplyT, SetXattr/SetXattrT, RemoveXattr/RemoveXattrT,
         SetLock/SetLockT, GetLock/GetLockT, GetLockReply/GetLockReplyT, Watch/WatchT, WatchReply/WatchReplyT}
    process::{GetProcess/GetProcessT, Process/ProcessT}
    storage::{Scrub/ScrubT, ScrubReply/ScrubReplyT}
}

macro_rules! calls {
    ($($op:literal $name:literal $request:ty => $reply:ty;)*) => {
        $(impl Call for $request {
            const OP: u16 = $op;
            const NAME: &'static str = $name;
            type Reply = $reply;
        })*
        /// Every control operation: code and name, for counters, logs and the protocol's documentation.
        pub const OPERATIONS: &[(u16, &str)] = &[$(($op, $name)),*];
    };
}

calls! {
    0x0101 "kv.read_version" kv::ReadVersionRequestT => kv::ReadVersionReplyT;
    0x0102 "kv.read" kv::ReadRequestT => kv::ReadReplyT;
    0x0103 "kv.commit" kv::CommitRequestT => kv::CommitReplyT;

    0x0201 "mgmtd.register_node" mgmtd::RegisterNodeT => mgmtd::NodeRegisteredT;
    0x0202 "mgmtd.node_heartbeat" mgmtd::NodeHeartbeatT => mgmtd::NodeHeartbeatReplyT;
    0x0203 "mgmtd.register_meta" mgmtd::RegisterMetaT => mgmtd::MetaRegisteredT;
    0x0204 "mgmtd.get_routing" mgmtd::GetRoutingT => mgmtd::RoutingReplyT;
    0x0205 "mgmtd.renew_client" mgmtd::RenewClientT => mgmtd::ClientLeaseT;
    0x0206 "mgmtd.end_client" mgmtd::EndClientT => mgmtd::EndClientReplyT;
    0x0207 "mgmtd.check_clients" mgmtd::CheckClientsT => mgmtd::CheckClientsReplyT;
    0x0208 "mgmtd.get_status" mgmtd::GetStatusT => mgmtd::StatusT;
    0x0209 "mgmtd.change_node" mgmtd::ChangeNodeT => mgmtd::MovesT;
    0x020A "mgmtd.change_moving" mgmtd::ChangeMovingT => mgmtd::MovesT;

    0x0301 "meta.lookup" meta::LookupT => meta::AttrReplyT;
    0x0302 "meta.get_attr" meta::GetAttrT => meta::GetAttrReplyT;
    0x0303 "meta.create" meta::CreateT => meta::CreateReplyT;
    0x0304 "meta.open" meta::OpenT => meta::OpenReplyT;
    0x0305 "meta.close" meta::CloseT => meta::AttrReplyT;
    0x0306 "meta.sync_length" meta::SyncLengthT => meta::AttrReplyT;
    0x0307 "meta.read_dir" meta::ReadDirT => meta::ReadDirReplyT;
    0x0308 "meta.unlink" meta::UnlinkT => meta::UnlinkedT;
    0x0309 "meta.rmdir" meta::RmDirT => meta::EmptyT;
    0x030A "meta.rename" meta::RenameT => meta::UnlinkedT;
    0x030B "meta.link" meta::LinkT => meta::AttrReplyT;
    0x030C "meta.read_link" meta::ReadLinkT => meta::ReadLinkReplyT;
    0x030D "meta.set_attr" meta::SetAttrT => meta::AttrReplyT;
    0x030E "meta.statfs" meta::StatFsT => meta::StatFsReplyT;
    0x030F "meta.get_xattr" meta::GetXattrT => meta::GetXattrReplyT;
    0x0310 "meta.list_xattr" meta::ListXattrT => meta::ListXattrReplyT;
    0x0311 "meta.set_xattr" meta::SetXattrT => meta::EmptyT;
    0x0312 "meta.remove_xattr" meta::RemoveXattrT => meta::EmptyT;
    0x0313 "meta.get_lock" meta::GetLockT => meta::GetLockReplyT;
    0x0314 "meta.set_lock" meta::SetLockT => meta::EmptyT;
    0x0315 "meta.append" meta::AppendT => meta::AppendReplyT;
    0x0316 "meta.end_sessions" meta::EndSessionsT => meta::EmptyT;
    0x0317 "meta.watch" meta::WatchT => meta::WatchReplyT;

    0x0401 "process.get" process::GetProcessT => process::ProcessT;

    0x0501 "storage.scrub" storage::ScrubT => storage::ScrubReplyT;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_the_round_trip_and_garbage_does_not() {
        let lookup = meta::LookupT { parent: 1, name: b"file".to_vec(), ..Default::default() };
        let bytes = lookup.encode();
        assert_eq!(meta::LookupT::decode(&bytes), Ok(lookup));
        for end in 0..bytes.len() {
            // A shorter message may only be refused or still be whole: it never panics.
            let _outcome = meta::LookupT::decode(&bytes[..end]);
        }
        assert_eq!(meta::LookupT::decode(&[0xFF; 64]).unwrap_err().code, ErrorCode::BadFrame);
        assert_eq!(meta::LookupT::decode(b"").unwrap_err().code, ErrorCode::BadFrame);
    }

    /// The builder is used again, also after a message so large that it isn't kept.
    #[test]
    fn messages_do_not_show_in_each_other() {
        let named = |length: usize| meta::LookupT { parent: 1, name: vec![7; length], ..Default::default() };
        let first = named(3).encode();
        for length in [200, 0, KEPT_BYTES_MAX, 2 * KEPT_BYTES_MAX, 3] {
            assert_eq!(meta::LookupT::decode(&named(length).encode()), Ok(named(length)));
        }
        assert_eq!(named(3).encode(), first);
    }

    #[test]
    fn operation_codes_are_unique() {
        let mut codes: Vec<u16> = OPERATIONS.iter().map(|(code, _)| *code).collect();
        codes.dedup();
        assert_eq!(codes.len(), OPERATIONS.len());
        assert!(codes.is_sorted() && codes[0] >= 0x0100);
    }
}
