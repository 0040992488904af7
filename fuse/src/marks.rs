//! What this mount has heard of inodes lately: which have extended attributes and access control lists, and what lengths the kernel was
//! told.
//!
//! The kernel asks for lists of everything that it checks permissions of, and for `security.capability` of everything
//! that is written; nearly nothing has any. What was heard counts for as long as the kernel believes attributes.
//!
//! What somebody elsewhere wrote and closed, an open here must show (close-to-open), and the kernel asks for no length while it believes the
//! one that it was told: then it has to be told to ask.
//!
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

struct Heard {
    marks: Marks,
    /// Bytes, as the kernel knows it.
    size: u64,
    when: Instant,
    /// When somebody here last changed attributes of it.
    changed: Option<Instant>,
}

/// Answers that were on their way when attributes changed come within it: what they say of them is out of date.
const OUTDATED: Duration = Duration::from_secs(5);

thread_local! {
    static HEARD: RefCell<HashMap<InodeId, Heard>> = RefCell::default();
}

/// What a metadata server has just said of an inode, and the kernel is told.
pub fn heard(attr: &Attr) {
    HEARD.with_borrow_mut(|heard| {
        if heard.len() >= INODES_MAX {
            heard.clear();
        }
        let changed = heard.get(&attr.inode).and_then(|before| before.changed);
        let new = Heard { marks: attr.marks, size: attr.size, when: Instant::now(), changed };
        heard.insert(attr.inode, new);
    });
}

/// The kernel has written up to `end`.
pub fn written(inode: InodeId, end: u64) {
    HEARD.with_borrow_mut(|heard| {
        if let Some(heard) = heard.get_mut(&inode) {
            heard.size = heard.size.max(end);
        }
    });
}

/// Whether the kernel may believe another length than this: what isn't remembered, it may have been told.
pub fn believes_otherwise(attr: &Attr, believed: Duration) -> bool {
    let differs = |heard: &Heard| heard.size != attr.size && heard.when.elapsed() < believed;
    HEARD.with_borrow(|heard| heard.get(&attr.inode).is_none_or(differs))
}

/// Somebody here has changed its extended attributes. What was heard of them counts no more, nor what is heard for a while.
pub fn changed(inode: InodeId) {
    HEARD.with_borrow_mut(|heard| {
        let now = Instant::now();
        // No length that the kernel could know.
        let unknown = Heard { marks: Marks::default(), size: u64::MAX, when: now, changed: None };
        heard.entry(inode).or_insert(unknown).changed = Some(now);
    });
}

/// Whether an inode is known to have no such attribute (none at all: `None`).
pub fn has_none(inode: InodeId, name: Option<&[u8]>, believed: Duration) -> bool {
    let marks = HEARD.with_borrow(|heard| {
        let fresh = |heard: &&Heard| {
            heard.when.elapsed() < believed && heard.changed.is_none_or(|at| at.elapsed() >= OUTDATED)
        };
        heard.get(&inode).filter(fresh).map(|heard| heard.marks)
    });
    let Some(marks) = marks else { return false };
    match name {
        Some(ACCESS) => !marks.access_list,
        Some(DEFAULT) => !marks.default_list,
        _ => !marks.xattrs,
    }
}

/// The nine permission bits that an access control list says and nothing more: owner, group and others, as of acl(5) in
/// the form of `linux/posix_acl_xattr.h`. `None` for anything else.
pub fn bits_of_list(name: &[u8], value: &[u8]) -> Option<u32> {
    let (version, entries) = value.split_first_chunk::<4>()?;
    let tags = [0x01, 0x04, 0x20];
    if name != ACCESS || u32::from_le_bytes(*version) != 2 || entries.len() != 8 * tags.len() {
        return None;
    }
    let mut bits = 0;
    for (entry, wanted) in entries.chunks_exact(8).zip(tags) {
        let (tag, permissions) = (u16::from_le_bytes([entry[0], entry[1]]), entry[2]);
        if tag != wanted || permissions > 7 || entry[3] != 0 {
            return None;
        }
        bits = bits << 3 | u32::from(permissions);
    }
    Some(bits)
}

/// Whether it is one of the access control lists, whose change changes attributes too.
pub fn is_list(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(inode: u64) -> Attr {
        Attr {
            inode: InodeId(inode),
            kind: corefs_client::Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            nlink: 1,
            rdev: 0,
            atime: 0,
            mtime: 0,
            ctime: 0,
            btime: 0,
            epoch: 1,
            layout: None,
            parent: InodeId(1),
            marks: Marks::default(),
        }
    }

    #[test]
    fn an_answer_from_before_a_change_hides_no_attribute() {
        let second = Duration::from_secs(1);
        heard(&attr(5));
        assert!(has_none(InodeId(5), Some(b"user.a"), second));
        for inode in [5, 6] {
            changed(InodeId(inode));
            heard(&attr(inode));
            assert!(!has_none(InodeId(inode), Some(b"user.a"), second));
        }
    }

    #[test]
    fn a_list_that_is_only_a_mode_is_told_from_others() {
        let list = |entries: &[[u8; 8]]| [&[2, 0, 0, 0][..], &entries.concat()].concat();
        let entry = |tag: u8, permissions: u8| [tag, 0, permissions, 0, 0xFF, 0xFF, 0xFF, 0xFF];
        let minimal = list(&[entry(1, 6), entry(4, 5), entry(32, 1)]);
        assert_eq!(bits_of_list(ACCESS, &minimal), Some(0o651));
        assert_eq!(bits_of_list(DEFAULT, &minimal), None);
        let more = list(&[entry(1, 6), entry(4, 5), entry(16, 5), entry(32, 1)]);
        assert_eq!(bits_of_list(ACCESS, &more), None);
        assert_eq!(bits_of_list(ACCESS, &list(&[entry(1, 6), entry(2, 5), entry(32, 1)])), None);
        assert_eq!(bits_of_list(ACCESS, &minimal[..20]), None);
    }
}
