//! Parts of metadata messages from and to the client's own types.

use crate::{Attr, Changes, Credentials, Entry, Known, Time};
use corefs_wire::control::Call;
use corefs_wire::control::meta::{
    AppendT, AttrResultT, CallerT, CloseT, CreateT, DirEntryT, EndSessionsT, GetAttrT, GetLockT, GetXattrT,
    KnownAttrT, LinkT, ListXattrT, LookupT, OpenT, ReadDirT, ReadLinkT, RemoveXattrT, RenameT, RmDirT,
    SetAttrFieldsT, SetAttrT, SetLockT, SetXattrT, StatFsT, SyncLengthT, UnlinkT,
};
use corefs_wire::{ClientId, Error, ErrorCode, InodeId, Result};

/// Bits of the mask in `SetAttrFields`, as in the schema.
mod mask {
    pub const MODE: u32 = 1;
    pub const UID: u32 = 2;
    pub const GID: u32 = 4;
    pub const SIZE: u32 = 8;
    pub const ATIME: u32 = 16;
    pub const MTIME: u32 = 32;
    pub const ATIME_NOW: u32 = 64;
    pub const MTIME_NOW: u32 = 128;
    pub const CTIME: u32 = 256;
}

/// A request to a metadata server, which is told when it may have another copy under way.
pub trait Repeat: Call + Clone {
    /// The request as it is sent from the second time on.
    fn repeated(&self) -> Self;
}

macro_rules! repeat {
    ($($request:ty),* $(,)?) => {
        $(impl Repeat for $request {
            fn repeated(&self) -> Self {
                let mut again = self.clone();
                again.caller.repeated = true;
                again
            }
        })*
    };
}

repeat! {
    LookupT, GetAttrT, CreateT, OpenT, CloseT, EndSessionsT, SyncLengthT, AppendT, ReadDirT, UnlinkT, RmDirT, RenameT, LinkT, ReadLinkT,
    SetAttrT, GetXattrT, ListXattrT, SetXattrT, RemoveXattrT, SetLockT, GetLockT,
}

impl Repeat for StatFsT {
    fn repeated(&self) -> Self {
        self.clone()
    }
}

pub fn set_caller(caller: &mut CallerT, from: (ClientId, u32), who: &Credentials) {
    caller.client = from.0.0;
    caller.incarnation = from.1;
    caller.uid = who.uid;
    caller.gid = who.gid;
    caller.groups.clone_from(&who.groups);
    caller.privileged = who.privileged;
}

pub fn fields(changes: &Changes) -> SetAttrFieldsT {
    let mut out = SetAttrFieldsT::default();
    let mut set = |bit, given: bool| out.mask |= if given { bit } else { 0 };
    set(mask::MODE, changes.mode.is_some());
    set(mask::UID, changes.uid.is_some());
    set(mask::GID, changes.gid.is_some());
    set(mask::SIZE, changes.size.is_some());
    set(mask::CTIME, changes.ctime.is_some());
    set(mask::ATIME, matches!(changes.atime, Some(Time::At(_))));
    set(mask::ATIME_NOW, changes.atime == Some(Time::Now));
    set(mask::MTIME, matches!(changes.mtime, Some(Time::At(_))));
    set(mask::MTIME_NOW, changes.mtime == Some(Time::Now));
    out.mode = changes.mode.unwrap_or_default();
    out.uid = changes.uid.unwrap_or_default();
    out.gid = changes.gid.unwrap_or_default();
    out.size = changes.size.unwrap_or_default();
    out.ctime = changes.ctime.unwrap_or_default();
    out.atime = at(changes.atime);
    out.mtime = at(changes.mtime);
    out.known = changes.known.map(|known| Box::new(known_attr(&known)));
    out
}

fn known_attr(known: &Known) -> KnownAttrT {
    let mut out = KnownAttrT::default();
    (out.mode, out.uid, out.gid) = (known.mode, known.uid, known.gid);
    (out.atime, out.mtime) = (known.atime, known.mtime);
    out
}

fn at(time: Option<Time>) -> i64 {
    match time {
        Some(Time::At(time)) => time,
        Some(Time::Now) | None => 0,
    }
}

/// One result of a batch stat.
pub fn result(result: &AttrResultT, inode: InodeId) -> Result<Attr> {
    match (&result.attr, result.status) {
        (Some(attr), 0) => Attr::from_message(attr),
        (_, status) => {
            let code = ErrorCode::from_number(status).unwrap_or(ErrorCode::Internal);
            Err(Error::new(code, inode.to_string()))
        }
    }
}

pub fn entry(entry: DirEntryT) -> Result<Entry> {
    let attr = entry.attr.as_deref().map(Attr::from_message).transpose()?;
    Ok(Entry { name: entry.name, inode: InodeId(entry.inode), kind: entry.kind, attr })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_given_is_set() {
        assert_eq!(fields(&Changes::default()).mask, 0);
        let changes = Changes {
            size: Some(0),
            atime: Some(Time::At(-5)),
            mtime: Some(Time::Now),
            uid: Some(7),
            ..Changes::default()
        };
        let fields = fields(&changes);
        assert_eq!(fields.mask, mask::SIZE | mask::ATIME | mask::MTIME_NOW | mask::UID);
        assert_eq!((fields.size, fields.atime, fields.mtime, fields.uid), (0, -5, 0, 7));
    }
}
