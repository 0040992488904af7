//! What this mount has heard of inodes lately: which have extended attributes and access control lists, and what lengths the kernel was
//! told.
//!
//! The kernel asks for lists of everything that it checks permissions of, and for `security.capability` of everything
//! that is written; nearly nothing has any. What was heard of them counts for a second at most.
//!
//! What somebody elsewhere wrote and closed, an open here must show (close-to-open), and the kernel asks for no length while it believes the
//! one that it was told: then it has to be told to ask.
//!
//! The table lives on the thread of the mount's one client shard.

use crate::consistency::BELIEVED;
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
    /// Somebody here has changed extended attributes of it. Answers that were on their way then don't know, nor what is remembered of a file that is
    /// open: it is asked for each time from then on.
    changed: bool,
    /// When somebody here last wrote to it, or closed it after that.
    wrote: Option<Instant>,
}

/// No length that the kernel could know.
const UNKNOWN: u64 = u64::MAX;

/// Answers that were on their way when something changed come within it: what they say of it is out of date.
const OUTDATED: Duration = Duration::from_secs(5);

thread_local! {
    static HEARD: RefCell<HashMap<InodeId, Heard>> = RefCell::default();
}

/// What a metadata server has just said of an inode, and the kernel is told. For how long that may be believed, `believed` at most: what was
/// written here shortly before, it may not have known.
///
/// Of two answers that were on their way at once the kernel may take either: if their lengths differ, nobody knows which one it believes.
pub fn heard(attr: &Attr, believed: Duration) -> Duration {
    HEARD.with_borrow_mut(|heard| {
        if heard.len() >= INODES_MAX {
            heard.clear();
        }
        let now = Instant::now();
        let before = heard.get(&attr.inode);
        let differs = before.is_some_and(|before| before.size != attr.size && recent(before.when));
        let (changed, wrote) = before.map_or((false, None), |before| (before.changed, before.wrote));
        let size = if differs { UNKNOWN } else { attr.size };
        heard.insert(attr.inode, Heard { marks: attr.marks, size, when: now, changed, wrote });
        if wrote.is_some_and(recent) { believed.min(BELIEVED) } else { believed }
    })
}

fn recent(at: Instant) -> bool {
    at.elapsed() < OUTDATED
}

/// The kernel has written up to `end`.
pub fn written(inode: InodeId, end: u64) {
    HEARD.with_borrow_mut(|heard| {
        if let Some(heard) = heard.get_mut(&inode) {
            heard.size = heard.size.max(end);
            heard.wrote = Some(Instant::now());
        }
    });
}

/// A handle of it was closed.
pub fn closed(inode: InodeId) {
    HEARD.with_borrow_mut(|heard| {
        if let Some(heard) = heard.get_mut(&inode).filter(|heard| heard.wrote.is_some()) {
            heard.wrote = Some(Instant::now());
        }
    });
}

/// Whether the kernel may believe another length than this: what isn't remembered, it may have been told.
pub fn believes_otherwise(attr: &Attr, believed: Duration) -> bool {
    let differs = |heard: &Heard| heard.size != attr.size && heard.when.elapsed() < believed;
    HEARD.with_borrow(|heard| heard.get(&attr.inode).is_none_or(differs))
}

/// Somebody here has changed its extended attributes. What was heard of them counts no more, nor what is heard.
pub fn changed(inode: InodeId) {
    HEARD.with_borrow_mut(|heard| {
        let now = Instant::now();
        let unknown = Heard { marks: Marks::default(), size: UNKNOWN, when: now, changed: true, wrote: None };
        heard.entry(inode).or_insert(unknown).changed = true;
    });
}

/// Whether an inode is known to have no such attribute (none at all: `None`). `remembered`: how long that is taken from memory.
pub fn has_none(inode: InodeId, name: Option<&[u8]>, remembered: Duration) -> bool {
    let marks = HEARD.with_borrow(|heard| {
        let fresh = |heard: &&Heard| !heard.changed && heard.when.elapsed() < remembered;
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
        heard(&attr(5), second);
        assert!(has_none(InodeId(5), Some(b"user.a"), second));
        for inode in [5, 6] {
            changed(InodeId(inode));
            heard(&attr(inode), second);
            assert!(!has_none(InodeId(inode), Some(b"user.a"), second));
        }
    }

    #[test]
    fn lengths_that_crossed_are_asked_for_again_and_what_was_just_written_is_not_believed_for_long() {
        let hour = Duration::from_secs(3600);
        let of = |size: u64| Attr { size, ..attr(7) };
        assert!(believes_otherwise(&of(10), hour), "nothing was heard of it");
        assert_eq!(heard(&of(10), hour), hour);
        assert!(!believes_otherwise(&of(10), hour) && believes_otherwise(&of(20), hour));
        heard(&of(20), hour);
        assert!(believes_otherwise(&of(20), hour), "the kernel may have taken 10 or 20");
        closed(InodeId(7));
        assert_eq!(heard(&of(20), hour), hour, "nobody has written to it here");
        written(InodeId(7), 30);
        assert_eq!(heard(&of(20), hour), BELIEVED);
        closed(InodeId(7));
        assert_eq!(heard(&of(30), Duration::ZERO), Duration::ZERO);
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
