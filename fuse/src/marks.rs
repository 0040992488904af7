//! Which inodes have extended attributes and access control lists, as far as this mount has heard lately.
//!
//! The kernel asks for lists of everything that it checks permissions of, and for `security.capability` of everything
//! that is written; nearly nothing has any. What was heard counts for as long as the kernel believes attributes.
//! The table lives on the thread of the mount's one client shard.

use corefs_client::{Attr, Marks};
use corefs_wire::InodeId;
use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Inodes remembered: beyond it all are forgotten and learnt again.
const INODES_MAX: usize = 64 << 10;

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";

thread_local! {
    static HEARD: RefCell<HashMap<InodeId, (Marks, Instant)>> = RefCell::default();
}

/// What a metadata server has just said of an inode.
pub fn heard(attr: &Attr) {
    HEARD.with_borrow_mut(|heard| {
        if heard.len() >= INODES_MAX {
            heard.clear();
        }
        heard.insert(attr.inode, (attr.marks, Instant::now()));
    });
}

/// Somebody here is about to change or has changed them.
pub fn forget(inode: InodeId) {
    HEARD.with_borrow_mut(|heard| heard.remove(&inode));
}

/// Whether an inode is known to have no such attribute (none at all: `None`).
pub fn has_none(inode: InodeId, name: Option<&[u8]>, believed: Duration) -> bool {
    let marks = HEARD.with_borrow(|heard| {
        heard.get(&inode).filter(|(_, when)| when.elapsed() < believed).map(|(marks, _)| *marks)
    });
    let Some(marks) = marks else { return false };
    match name {
        Some(ACCESS) => !marks.access_list,
        Some(DEFAULT) => !marks.default_list,
        _ => !marks.xattrs,
    }
}

/// Whether it is one of the access control lists, whose change changes attributes too.
pub fn is_list(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}
