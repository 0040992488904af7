//! Access control lists where they are stored: consulted, kept the same as the mode, handed on to what is created.

use crate::acl;
use crate::inode::{Inode, SETGID};
use crate::namespace::Namespace;
use crate::outside::Outside;
use crate::posix_acl::{ACCESS, Acl, DEFAULT};
use corefs_kv::{Isolation, KvEngine, Transaction};
use corefs_wire::control::meta::{CallerT, Kind};
use corefs_wire::{Error, ErrorCode, InodeId, Result};

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// As [`acl::may`], by the access list where there is one. The list changes only together with its inode, so a
    /// serializable read of that one covers it.
    pub(crate) async fn may(
        &self,
        txn: &mut E::Txn,
        caller: &CallerT,
        id: InodeId,
        inode: &Inode,
        wanted: u32,
    ) -> Result<()> {
        if acl::exempt(caller) || !inode.marks.access_list {
            return acl::may(caller, inode, wanted);
        }
        let list = self.list(txn, id, ACCESS).await?;
        let granted = list.grants(caller, inode.uid, inode.gid, wanted);
        if granted { Ok(()) } else { Err(ErrorCode::PermissionDenied.into()) }
    }

    /// A list that the inode's marks say is there.
    async fn list(&self, txn: &mut E::Txn, id: InodeId, name: &[u8]) -> Result<Acl> {
        let value = txn.get(&self.keys.xattr(id, name), Isolation::Snapshot).await?;
        let missing = || Error::new(ErrorCode::Corrupt, format!("{id} has lost an access control list"));
        Acl::parse(&value.ok_or_else(missing)?).map_err(|error| Error::new(ErrorCode::Corrupt, error.message))
    }

    /// The mode has changed: the access list follows.
    pub(crate) async fn list_follows(&self, txn: &mut E::Txn, id: InodeId, inode: &Inode) -> Result<()> {
        if inode.marks.access_list {
            let mut list = self.list(txn, id, ACCESS).await?;
            list.set_mode(inode.mode);
            txn.set(&self.keys.xattr(id, ACCESS), &list.encode());
        }
        Ok(())
    }

    /// Sets or, with `None`, removes one of the lists of `inode`, which was read serializably and is stored by the caller.
    pub(crate) fn set_list(
        &self,
        txn: &mut E::Txn,
        caller: &CallerT,
        id: InodeId,
        inode: &mut Inode,
        name: &[u8],
        list: Option<Acl>,
    ) -> Result<()> {
        acl::must_own(caller, inode)?;
        if inode.kind == Kind::Symlink {
            return Err(Error::new(ErrorCode::NotSupported, "a symlink has no access control list"));
        }
        let mut stored = list;
        if name == DEFAULT {
            if !inode.is_directory() && stored.is_some() {
                return Err(Error::new(ErrorCode::PermissionDenied, "only directories have a default list"));
            }
            inode.marks.default_list = stored.is_some();
        } else {
            if let Some(list) = &stored {
                inode.mode = inode.mode & !0o777 | list.mode();
                // As chmod(2): set-group-id is for members of the group to give.
                let member = caller.uid == 0 || acl::in_group(caller, inode.gid);
                inode.mode &= if member { u32::MAX } else { !SETGID };
            }
            stored = stored.filter(|list| !list.is_minimal());
            inode.marks.access_list = stored.is_some();
        }
        match stored {
            Some(list) => txn.set(&self.keys.xattr(id, name), &list.encode()),
            None => txn.clear(&self.keys.xattr(id, name)),
        }
        Ok(())
    }

    /// What a new inode gets from the directory that it is made in: the lists that follow from that one's default list, or
    /// else its mode without the bits of `umask`.
    pub(crate) async fn inherit(
        &self,
        txn: &mut E::Txn,
        (parent, directory): (InodeId, &Inode),
        umask: u32,
        id: InodeId,
        inode: &mut Inode,
    ) -> Result<()> {
        if inode.kind == Kind::Symlink {
            return Ok(());
        }
        if !directory.marks.default_list {
            inode.mode &= !(umask & 0o777);
            return Ok(());
        }
        let default = self.list(txn, parent, DEFAULT).await?;
        let access = default.inherited(inode.mode);
        inode.mode = inode.mode & !0o777 | access.mode();
        if !access.is_minimal() {
            txn.set(&self.keys.xattr(id, ACCESS), &access.encode());
            (inode.marks.access_list, inode.marks.xattrs) = (true, true);
        }
        if inode.is_directory() {
            txn.set(&self.keys.xattr(id, DEFAULT), &default.encode());
            (inode.marks.default_list, inode.marks.xattrs) = (true, true);
        }
        Ok(())
    }
}
