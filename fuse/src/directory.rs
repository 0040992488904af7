//! A directory being read: a page of its entries, in name order, and what the offsets mean that programs get.
//!
//! Offset 1 belongs to `.`, 2 to `..`, and `n + 3` to the n-th name that was handed out; to go on from an offset is to go
//! on after that name. So an offset stays right whatever is created and removed meanwhile (telldir(3), seekdir(3)): every
//! entry that stays is seen once. A name that comes again keeps its offset, one that is new gets the next. The price is
//! memory: the names handed out are kept while the directory is open.

use corefs_client::{Attr, Client, Credentials, Entry};
use corefs_wire::{Error, ErrorCode, InodeId, Result};
use fuser::{FileType, INodeNo};

/// Entries fetched from the metadata server at once.
const PAGE: u32 = 1000;
/// The offset of the first name.
const DOTS: u64 = 2;
/// Most names of one open directory (bytes of names, and their number).
const NAMES_BYTES_MAX: usize = 1 << 30;

/// The names handed out, one after the other.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Names {
    fn get(&self, at: usize) -> Option<&[u8]> {
        let end = *self.ends.get(at)? as usize;
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        self.bytes.get(start..end)
    }

    fn push(&mut self, name: &[u8]) -> Result<()> {
        if self.bytes.len() + name.len() > NAMES_BYTES_MAX {
            let (most, found) = (NAMES_BYTES_MAX as u64, self.bytes.len() as u64);
            let what = "too many names of one open directory";
            return Err(Error::mismatch(ErrorCode::Overloaded, most, found, what));
        }
        self.bytes.extend_from_slice(name);
        self.ends.push(self.bytes.len() as u32);
        Ok(())
    }

    /// Where a name is, if it is the expected one or the next that isn't before it: entries come in the order of their
    /// names, and so do most of these.
    fn find(&self, name: &[u8], expected: &mut usize) -> Option<usize> {
        while let Some(known) = self.get(*expected) {
            match known.cmp(name) {
                std::cmp::Ordering::Less => *expected += 1,
                std::cmp::Ordering::Equal => return Some(*expected),
                std::cmp::Ordering::Greater => break,
            }
        }
        None
    }

    fn len(&self) -> u64 {
        self.ends.len() as u64
    }
}

/// An entry on its way to the kernel.
pub struct Listed<'a> {
    pub inode: INodeNo,
    /// The offset from which to go on after this entry.
    pub next: u64,
    pub kind: FileType,
    pub name: &'a [u8],
    /// Those of an entry, if they were asked for and it is still there. `.` and `..` have none: the kernel doesn't look at them.
    pub attr: Option<Attr>,
}

pub struct Directory {
    inode: InodeId,
    who: Credentials,
    names: Names,
    /// Its own, for `..`; known with the first page.
    parent: InodeId,
    page: Vec<Entry>,
    /// Whether they were asked for with their attributes.
    plus: bool,
    /// The next entry of the page.
    at: usize,
    /// The offset after which that entry comes.
    offset: u64,
    /// Which of the names is probably that entry's, because it was the last time.
    expected: usize,
    /// Whether there are entries after the page.
    more: bool,
}

impl Directory {
    pub fn new(inode: InodeId, who: Credentials) -> Self {
        let names = Names::default();
        let (parent, page) = (InodeId(0), Vec::new());
        Self { inode, who, names, parent, page, plus: false, at: 0, offset: DOTS, expected: 0, more: true }
    }

    /// Gives the entries after `offset` to `add` until it says that the reply is full, or there are no more. From offset 0
    /// it begins afresh, as rewinddir(3) wants. `plus`: with their attributes.
    pub async fn list(
        &mut self,
        client: &Client,
        offset: u64,
        plus: bool,
        add: &mut dyn FnMut(Listed<'_>) -> bool,
    ) -> Result<()> {
        if offset == 0 {
            *self = Self::new(self.inode, std::mem::take(&mut self.who));
        }
        if plus && !self.plus {
            // The kernel changes its mind in the middle of a page.
            self.forget_page();
        }
        self.plus = plus;
        if offset < DOTS {
            if self.parent == InodeId(0) {
                self.turn(client).await?;
            }
            if self.list_dots(offset, add) {
                return Ok(());
            }
        }
        self.seek(offset.max(DOTS))?;
        loop {
            let Some(entry) = self.page.get(self.at) else {
                if !self.more {
                    return Ok(());
                }
                self.turn(client).await?;
                continue;
            };
            let place = self.names.find(&entry.name, &mut self.expected);
            let next = DOTS + 1 + place.unwrap_or(self.names.ends.len()) as u64;
            let (inode, kind) = (INodeNo(entry.inode.0), crate::attr::file_type(entry.kind));
            if add(Listed { inode, next, kind, name: &entry.name, attr: entry.attr }) {
                return Ok(());
            }
            if place.is_none() {
                self.names.push(&entry.name)?;
            }
            if next == DOTS + 1 + self.expected as u64 {
                self.expected += 1;
            }
            (self.at, self.offset) = (self.at + 1, next);
        }
    }

    /// Whether the reply is full.
    fn list_dots(&self, offset: u64, add: &mut dyn FnMut(Listed<'_>) -> bool) -> bool {
        for (position, name, inode) in [(0, b".".as_slice(), self.inode), (1, b"..", self.parent)] {
            let (inode, kind) = (INodeNo(inode.0), FileType::Directory);
            let listed = Listed { inode, next: position + 1, kind, name, attr: None };
            if position >= offset && add(listed) {
                return true;
            }
        }
        false
    }

    /// Goes to after the name of an offset. `InvalidArgument` for one that was never handed out.
    fn seek(&mut self, offset: u64) -> Result<()> {
        if offset == self.offset {
            return Ok(());
        }
        if offset - DOTS > self.names.len() {
            let (most, found) = (self.names.len() + DOTS, offset);
            let what = "an offset of a directory that it never had";
            return Err(Error::mismatch(ErrorCode::InvalidArgument, most, found, what));
        }
        self.forget_page();
        self.offset = offset;
        self.expected = (offset - DOTS) as usize;
        Ok(())
    }

    fn forget_page(&mut self) {
        self.page.clear();
        (self.at, self.more) = (0, true);
    }

    /// The next page.
    async fn turn(&mut self, client: &Client) -> Result<()> {
        let after = (self.offset - DOTS).checked_sub(1).and_then(|last| self.names.get(last as usize));
        let after = after.unwrap_or_default().to_vec();
        let page = client.read_dir(&self.who, self.inode, &after, PAGE, self.plus).await?;
        self.more = page.more && !page.entries.is_empty();
        (self.page, self.at, self.parent) = (page.entries, 0, page.parent);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_by_their_number() {
        let mut names = Names::default();
        for name in [b"a".as_slice(), b"", b"long"] {
            names.push(name).unwrap();
        }
        let found: Vec<_> = (0..4).map(|at| names.get(at)).collect();
        assert_eq!(found, [Some(&b"a"[..]), Some(b""), Some(b"long"), None]);
    }

    #[test]
    fn only_offsets_that_were_handed_out_are_taken() {
        let mut directory = Directory::new(InodeId(9), Credentials::root());
        directory.names.push(b"x").unwrap();
        directory.offset = 3;
        assert!(directory.seek(3).is_ok() && directory.seek(2).is_ok() && directory.seek(3).is_ok());
        assert_eq!(directory.seek(4).unwrap_err().code, ErrorCode::InvalidArgument);
    }

    #[test]
    fn names_that_come_again_keep_their_place() {
        let mut names = Names::default();
        for name in [b"b", b"d", b"f"] {
            names.push(name).unwrap();
        }
        let mut expected = 0;
        let mut find = |name: &[u8]| names.find(name, &mut expected);
        assert_eq!([find(b"b"), find(b"c"), find(b"f"), find(b"g")], [Some(0), None, Some(2), None]);
    }
}
