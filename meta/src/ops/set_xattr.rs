//! An extended attribute is set: xattr(7). Namespaces `user`, `trusted`, `security`, and of `system` the two access
//! control lists.

use crate::acl::{READ, WRITE, exempt, must_own};
use crate::inode::{Inode, STICKY};
use crate::namespace::{Namespace, Values};
use crate::once::{Attempt, Outcome};
use crate::outside::Outside;
use crate::posix_acl::{ACCESS, Acl, DEFAULT};
use corefs_kv::{Isolation, KvEngine, Transaction};
use corefs_wire::control::Call;
use corefs_wire::control::meta::{CallerT, EmptyT, SetXattrT};
use corefs_wire::limits::{XATTR_LIST_MAX, XATTR_NAME_MAX, XATTR_VALUE_MAX};
use corefs_wire::{Error, ErrorCode, InodeId, Result};

/// Flags, as of setxattr(2).
pub const CREATE: u32 = 1;
pub const REPLACE: u32 = 2;

/// Bytes of all values of one inode. Linux bounds one value and the list of names; this bounds what they add up to.
const VALUES_MAX: usize = 1 << 20;

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// Sets or replaces. `Exists` (CREATE), `NoSuchAttribute` (REPLACE), `AttributesTooLarge`, `NotSupported` (an unknown
    /// namespace), `InvalidArgument` (no valid list), `NotPermitted`, `PermissionDenied`, `NoSuchInode`.
    pub async fn set_xattr(&self, request: &SetXattrT) -> Result<EmptyT> {
        check_attribute_name(&request.name)?;
        check_value(request)?;
        let id = InodeId(request.inode);
        let row = self.keys.xattr(id, &request.name);
        let keys = [self.keys.inode(id), row.clone()];
        let op = SetXattrT::OP;
        self.once(op, &request.caller, &keys, async |txn: &mut E::Txn, mut values: Values| {
            let (mut inode, found) = (values.expect_inode()?, values.raw());
            self.may_set_attribute(txn, &request.caller, id, &inode, &request.name).await?;
            match (request.flags, &found) {
                (CREATE, Some(_)) => return Err(ErrorCode::Exists.into()),
                (REPLACE, None) => return Err(ErrorCode::NoSuchAttribute.into()),
                _ => {}
            }
            self.check_room(txn, id, &inode, request).await?;
            if is_list(&request.name) {
                let list = Acl::parse(&request.value)?;
                self.set_list(txn, &request.caller, id, &mut inode, &request.name, Some(list))?;
                let rest = txn.range_all(&self.keys.xattrs(id), 1, Isolation::Serializable).await?;
                inode.marks.xattrs = !rest.is_empty();
            } else {
                txn.set(&row, &request.value);
                inode.marks.xattrs = true;
            }
            inode.ctime = self.outside.now();
            self.put(txn, id, &inode);
            Ok(Attempt::Changed(Outcome::default()))
        })
        .await?;
        Ok(EmptyT::default())
    }

    /// Whether the caller may change this attribute of the inode.
    pub(crate) async fn may_set_attribute(
        &self,
        txn: &mut E::Txn,
        caller: &CallerT,
        id: InodeId,
        inode: &Inode,
        name: &[u8],
    ) -> Result<()> {
        if is_list(name) {
            return must_own(caller, inode);
        }
        if exempt(caller) {
            return fits_kind(inode, name);
        }
        if !name.starts_with(b"user.") {
            return Err(ErrorCode::NotPermitted.into());
        }
        fits_kind(inode, name)?;
        if inode.is_directory() && inode.mode & STICKY != 0 {
            must_own(caller, inode)?;
        }
        self.may(txn, caller, id, inode, WRITE).await
    }

    /// The other attributes and this one stay within the bounds.
    async fn check_room(
        &self,
        txn: &mut E::Txn,
        id: InodeId,
        inode: &Inode,
        request: &SetXattrT,
    ) -> Result<()> {
        if !inode.marks.xattrs {
            return Ok(());
        }
        let row = self.keys.xattr(id, &request.name);
        let prefix = row.len() - request.name.len();
        let (mut names, mut values) = (request.name.len() + 1, request.value.len());
        for (key, value) in txn.range_all(&self.keys.xattrs(id), usize::MAX, Isolation::Serializable).await? {
            if key != row {
                names += key.len() - prefix + 1;
                values += value.len();
            }
        }
        if names <= XATTR_LIST_MAX && values <= VALUES_MAX {
            return Ok(());
        }
        let (most, found) = (VALUES_MAX as u64, values as u64);
        let what = "an inode's extended attributes are too large together";
        Err(Error::mismatch(ErrorCode::AttributesTooLarge, most, found, what))
    }
}

fn check_value(request: &SetXattrT) -> Result<()> {
    if request.flags & !(CREATE | REPLACE) != 0 || request.flags == CREATE | REPLACE {
        let what = "flags that setxattr doesn't know, or that exclude each other";
        return Err(Error::mismatch(ErrorCode::InvalidArgument, 0, request.flags.into(), what));
    }
    if request.value.len() > XATTR_VALUE_MAX {
        let (most, found) = (XATTR_VALUE_MAX as u64, request.value.len() as u64);
        let what = "an extended attribute is too large";
        return Err(Error::mismatch(ErrorCode::AttributesTooLarge, most, found, what));
    }
    Ok(())
}

/// Whether it is one of the access control lists.
pub(crate) fn is_list(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

/// The names that there can be: `NameTooLong`, `NotSupported` for an unknown namespace, `InvalidName`.
pub(crate) fn check_attribute_name(name: &[u8]) -> Result<()> {
    if name.len() > XATTR_NAME_MAX {
        let (most, found) = (XATTR_NAME_MAX as u64, name.len() as u64);
        return Err(Error::mismatch(ErrorCode::NameTooLong, most, found, "an attribute's name is too long"));
    }
    if name.contains(&0) {
        return Err(ErrorCode::InvalidName.into());
    }
    if is_list(name) {
        return Ok(());
    }
    for namespace in [b"user.".as_slice(), b"trusted.", b"security."] {
        match name.strip_prefix(namespace) {
            Some([]) => return Err(ErrorCode::InvalidName.into()),
            Some(_) => return Ok(()),
            None => {}
        }
    }
    let shown = String::from_utf8_lossy(name);
    Err(Error::new(ErrorCode::NotSupported, format!("no extended attributes like {shown:?}")))
}

/// Attributes of users are for files and directories only: of others, permissions mean something else.
fn fits_kind(inode: &Inode, name: &[u8]) -> Result<()> {
    let fits = !name.starts_with(b"user.") || inode.is_file() || inode.is_directory();
    if fits { Ok(()) } else { Err(ErrorCode::NotPermitted.into()) }
}

/// What a caller must be granted to read an attribute: `None` when nothing. `NoSuchAttribute` for what it may not know of.
pub(crate) fn may_read(caller: &CallerT, inode: &Inode, name: &[u8]) -> Result<Option<u32>> {
    if name.starts_with(b"user.") {
        fits_kind(inode, name).map_err(|_| Error::from(ErrorCode::NoSuchAttribute))?;
        return Ok(Some(READ));
    }
    if name.starts_with(b"trusted.") && !exempt(caller) {
        return Err(ErrorCode::NoSuchAttribute.into());
    }
    Ok(None)
}
