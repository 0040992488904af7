//! POSIX access control lists, as of POSIX.1e draft 17 and acl(5).
//!
//! A list is stored and sent in the form that Linux gives extended attributes of these names (`linux/posix_acl_xattr.h`):
//! a 32-bit version, then (tag, permissions, id) for each entry, little-endian. A list that says no more than the nine
//! permission bits is not stored: the bits say it.
//!
//! While an inode has an access list, the group bits of its mode are the list's mask, and the three classes of the mode
//! and the list are kept the same: setting either changes the other.

use corefs_wire::control::meta::CallerT;
use corefs_wire::{Error, ErrorCode, Result};

/// The names under which the lists are extended attributes.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const HEAD: usize = 4;
const ENTRY: usize = 8;
const NO_ID: u32 = u32::MAX;

/// Whom an entry is about, in the order that a list has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Tag {
    Owner,
    User(u32),
    Group,
    NamedGroup(u32),
    Mask,
    Other,
}

impl Tag {
    fn number(self) -> u16 {
        match self {
            Self::Owner => 0x01,
            Self::User(_) => 0x02,
            Self::Group => 0x04,
            Self::NamedGroup(_) => 0x08,
            Self::Mask => 0x10,
            Self::Other => 0x20,
        }
    }

    fn id(self) -> u32 {
        match self {
            Self::User(id) | Self::NamedGroup(id) => id,
            _ => NO_ID,
        }
    }
}

/// A valid list.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Acl(Vec<(Tag, u16)>);

impl Acl {
    /// `InvalidArgument` for what is no valid list: an unknown version or tag, entries out of order or missing, names
    /// without a mask.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let bad =
            |what: &str| Error::new(ErrorCode::InvalidArgument, format!("an access control list {what}"));
        let (head, rest) = bytes.split_at_checked(HEAD).ok_or_else(|| bad("without its version"))?;
        if head != VERSION.to_le_bytes() || !rest.len().is_multiple_of(ENTRY) {
            return Err(bad("of an unknown form"));
        }
        let mut entries: Vec<(Tag, u16)> = Vec::with_capacity(rest.len() / ENTRY);
        for entry in rest.chunks_exact(ENTRY) {
            let (tag, id) = (u16::from_le_bytes([entry[0], entry[1]]), &entry[4..]);
            let permissions = u16::from_le_bytes([entry[2], entry[3]]);
            let id = u32::from_le_bytes([id[0], id[1], id[2], id[3]]);
            let tag = match tag {
                0x01 => Tag::Owner,
                0x02 => Tag::User(id),
                0x04 => Tag::Group,
                0x08 => Tag::NamedGroup(id),
                0x10 => Tag::Mask,
                0x20 => Tag::Other,
                _ => return Err(bad("with an unknown tag")),
            };
            if permissions > 7 {
                return Err(bad("with unknown permissions"));
            }
            entries.push((tag, permissions));
        }
        // acl_check(3): one entry of each class in this order, and none twice. Names may come in any order.
        entries.sort_by_key(|(tag, _)| *tag);
        let list = Self(entries);
        let classes = [Tag::Owner, Tag::Group, Tag::Other];
        if !classes.into_iter().all(|tag| list.get(tag).is_some()) {
            return Err(bad("that leaves out the owner, the group or the others"));
        }
        if list.0.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(bad("with two entries for one"));
        }
        let names = list.0.iter().any(|(tag, _)| matches!(tag, Tag::User(_) | Tag::NamedGroup(_)));
        if names && list.get(Tag::Mask).is_none() {
            return Err(bad("with names and no mask"));
        }
        Ok(list)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + ENTRY * self.0.len());
        out.extend_from_slice(&VERSION.to_le_bytes());
        for (tag, permissions) in &self.0 {
            out.extend_from_slice(&tag.number().to_le_bytes());
            out.extend_from_slice(&permissions.to_le_bytes());
            out.extend_from_slice(&tag.id().to_le_bytes());
        }
        out
    }

    fn get(&self, wanted: Tag) -> Option<u16> {
        self.0.iter().find(|(tag, _)| *tag == wanted).map(|(_, permissions)| *permissions)
    }

    fn set(&mut self, wanted: Tag, to: u16) {
        if let Some((_, permissions)) = self.0.iter_mut().find(|(tag, _)| *tag == wanted) {
            *permissions = to;
        }
    }

    /// The entry that the mode's group bits stand for.
    fn group_class(&self) -> Tag {
        if self.get(Tag::Mask).is_some() { Tag::Mask } else { Tag::Group }
    }

    /// Whether nine bits say the same.
    pub fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    /// The nine permission bits of an inode with this list.
    pub fn mode(&self) -> u32 {
        let [owner, group, other] =
            [Tag::Owner, self.group_class(), Tag::Other].map(|tag| u32::from(self.get(tag).unwrap_or(0)));
        owner << 6 | group << 3 | other
    }

    /// chmod(2): the three classes become `mode`'s.
    pub fn set_mode(&mut self, mode: u32) {
        for (tag, shift) in [(Tag::Owner, 6), (self.group_class(), 3), (Tag::Other, 0)] {
            self.set(tag, (mode >> shift & 7) as u16);
        }
    }

    /// The access list of something made with `mode` in a directory with this default list: each class is what both
    /// allow (acl(5), object creation).
    #[must_use]
    pub fn inherited(&self, mode: u32) -> Self {
        let mut list = self.clone();
        list.set_mode(self.mode() & mode);
        list
    }

    /// Whether `caller`, who is not exempt from checks, gets all of `wanted` from something of owner `uid` and group
    /// `gid` (acl(5), access check algorithm).
    pub fn grants(&self, caller: &CallerT, uid: u32, gid: u32, wanted: u32) -> bool {
        let covers = |permissions: u16| u32::from(permissions) & wanted == wanted;
        if caller.uid == uid {
            return self.get(Tag::Owner).is_some_and(covers);
        }
        let mask = self.get(Tag::Mask).unwrap_or(7);
        if let Some(permissions) = self.get(Tag::User(caller.uid)) {
            return covers(permissions & mask);
        }
        let mut in_one = false;
        for (tag, permissions) in &self.0 {
            let group = match tag {
                Tag::Group => gid,
                Tag::NamedGroup(group) => *group,
                _ => continue,
            };
            if crate::acl::in_group(caller, group) {
                in_one = true;
                if covers(permissions & mask) {
                    return true;
                }
            }
        }
        !in_one && self.get(Tag::Other).is_some_and(covers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `setfacl -m` makes them: `u::rw-,u:7:rwx,g::r--,g:8:-wx,m::rwx,o::---`.
    fn list() -> Acl {
        Acl(vec![
            (Tag::Owner, 6),
            (Tag::User(7), 7),
            (Tag::Group, 4),
            (Tag::NamedGroup(8), 3),
            (Tag::Mask, 7),
            (Tag::Other, 0),
        ])
    }

    fn caller(uid: u32, groups: &[u32]) -> CallerT {
        let mut caller = CallerT::default();
        (caller.uid, caller.gid, caller.groups) = (uid, 999, groups.to_vec());
        caller
    }

    #[test]
    fn bytes_are_the_kernel_s() {
        let bytes = list().encode();
        assert_eq!(bytes[..12], [2, 0, 0, 0, 1, 0, 6, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
        assert_eq!(bytes[12..20], [2, 0, 7, 0, 7, 0, 0, 0]);
        assert_eq!(Acl::parse(&bytes), Ok(list()));
        for end in 0..bytes.len() {
            assert!(Acl::parse(&bytes[..end]).is_err(), "cut at {end}");
        }
        for (at, value) in [(0, 3), (4, 0x40), (6, 8), (12, 4)] {
            let mut bad = bytes.clone();
            bad[at] = value;
            assert_eq!(Acl::parse(&bad).unwrap_err().code, ErrorCode::InvalidArgument, "byte {at}");
        }
        let mut twice = bytes.clone();
        twice.extend_from_slice(&bytes[12..20]);
        assert!(Acl::parse(&twice).is_err());
        let no_mask: Vec<_> = list().0.into_iter().filter(|(tag, _)| *tag != Tag::Mask).collect();
        assert!(Acl::parse(&Acl(no_mask).encode()).is_err());
    }

    #[test]
    fn the_mode_and_the_list_say_the_same() {
        let mut list = list();
        assert_eq!((list.mode(), list.is_minimal()), (0o670, false));
        list.set_mode(0o751);
        assert_eq!((list.mode(), list.get(Tag::Mask), list.get(Tag::Group)), (0o751, Some(5), Some(4)));
        let mut minimal = Acl(vec![(Tag::Owner, 6), (Tag::Group, 4), (Tag::Other, 4)]);
        assert!(minimal.is_minimal());
        minimal.set_mode(0o750);
        assert_eq!((minimal.mode(), minimal.get(Tag::Group)), (0o750, Some(5)));
        assert_eq!(list.inherited(0o640).mode(), 0o640);
        assert_eq!(super::tests::list().inherited(0o777).mode(), 0o670);
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let list = list();
        let check = |caller: CallerT, wanted| list.grants(&caller, 1, 2, wanted);
        assert!(check(caller(1, &[]), 6) && !check(caller(1, &[8]), 1), "the owner by its own entry only");
        assert!(check(caller(7, &[]), 7), "a named user");
        assert!(check(caller(9, &[2]), 4) && !check(caller(9, &[2]), 2), "the group");
        assert!(check(caller(9, &[8]), 3) && !check(caller(9, &[8]), 4), "a named group");
        assert!(!check(caller(9, &[2, 8]), 7), "rights of two groups don't add up");
        assert!(!check(caller(9, &[]), 4), "others");
        let mut masked = list.clone();
        masked.set_mode(0o647);
        assert!(!masked.grants(&caller(7, &[]), 1, 2, 2), "the mask binds names");
        assert!(
            !masked.grants(&caller(9, &[8]), 1, 2, 1),
            "whose groups grant nothing gets nothing from others"
        );
        assert!(masked.grants(&caller(9, &[]), 1, 2, 7));
    }
}
