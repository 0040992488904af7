//! What is stored of an inode, and what a caller is told of it.

use crate::encoding::{Reader, Writer};
use corefs_wire::control::meta::{AttrT, Kind, LayoutT};
use corefs_wire::layout::Layout;
use corefs_wire::{Error, ErrorCode, InodeId, Result};

/// Bits of a mode that are stored: permissions, set-id bits, sticky. The kind is apart.
pub const MODE_BITS: u32 = 0o7777;
pub const SETUID: u32 = 0o4000;
pub const SETGID: u32 = 0o2000;
pub const STICKY: u32 = 0o1000;

/// A stored inode. Times are nanoseconds since the epoch, UTC.
///
/// Of a directory, entry times and counts are apart (see [`DirectoryState`]): this record changes only when the
/// directory itself does, so reading it serializably is how an operation says "the parent must still be there".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inode {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Names of it; 0 once the last is gone. Directories have one name, whatever their [`Stat`] says.
    pub nlink: u32,
    /// Of devices.
    pub rdev: u32,
    /// Bytes of a file.
    pub size: u64,
    /// Odd, from 1: rises by two with each truncation. Writes name it, and chunks refuse older ones. The even numbers
    /// between are those under which chunks are cut.
    pub epoch: u32,
    /// A truncation in progress: chunks are being cut to this many bytes under `epoch + 1`. Until it is done
    /// everybody sees the old size and epoch, so that nobody writes into what is about to be cut.
    pub trim_to: Option<u64>,
    pub atime: i64,
    pub mtime: i64,
    pub ctime: i64,
    pub btime: i64,
    /// Of a directory, where it hangs; the root's is itself. Of other kinds 0: they can hang in several places.
    pub parent: InodeId,
    /// Of files.
    pub layout: Option<Layout>,
    /// Of symlinks.
    pub target: Vec<u8>,
    pub marks: Marks,
    /// Of files: nobody has had it open for writing, so it has no chunks anywhere.
    pub unopened: bool,
    /// Of files: the bytes are kept with the inode, see [`inline`](crate::inline).
    pub inline: bool,
}

/// What else is stored of an inode, so that whoever reads it knows without looking.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Marks {
    /// Extended attributes, the lists included.
    pub xattrs: bool,
    /// An access list: mode bits alone don't decide.
    pub access_list: bool,
    /// A default list, for what is made in this directory.
    pub default_list: bool,
}

impl Marks {
    /// As in an `Attr`.
    pub fn to_bits(self) -> u8 {
        u8::from(self.xattrs) | u8::from(self.access_list) << 1 | u8::from(self.default_list) << 2
    }

    fn from_bits(bits: u8) -> Self {
        Self { xattrs: bits & 1 != 0, access_list: bits & 2 != 0, default_list: bits & 4 != 0 }
    }
}

/// The newest version: 2 is of files whose bytes are kept with them, since a build that doesn't know that would find none.
const VERSION: u8 = 2;
const HAS_LAYOUT: u8 = 1;
const HAS_TRIM: u8 = 2;
const HAS_TARGET: u8 = 4;
/// The marks are three bits from here on.
const MARKS_SHIFT: u32 = 3;
/// Builds that don't know it write the inode without it, which is right as well.
const UNOPENED: u8 = 64;
const INLINE: u8 = 128;
/// Of the marks in a message.
const INLINE_MARK: u8 = 8;

impl Inode {
    /// A new inode of `kind` that belongs to nobody yet, all of its times `now`.
    pub fn new(kind: Kind, now: i64) -> Self {
        Self {
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            nlink: 1,
            rdev: 0,
            size: 0,
            epoch: 1,
            trim_to: None,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            parent: InodeId(0),
            layout: None,
            target: Vec::new(),
            marks: Marks::default(),
            unopened: false,
            inline: false,
        }
    }

    /// Whether no chunk of it is anywhere.
    pub fn has_no_chunks(&self) -> bool {
        self.unopened || self.inline && self.trim_to.is_none()
    }

    /// Whether its bytes are being written to a chunk.
    pub fn moves_out(&self) -> bool {
        self.inline && self.trim_to.is_some()
    }

    pub fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }

    pub fn is_file(&self) -> bool {
        self.kind == Kind::File
    }

    /// The layout of a file; an inode of another kind is refused as `IsDirectory` or `InvalidArgument`.
    pub fn file_layout(&self) -> Result<&Layout> {
        match (&self.layout, self.kind) {
            (Some(layout), Kind::File) => Ok(layout),
            (None, Kind::File) => Err(Error::new(ErrorCode::Corrupt, "a file without a layout")),
            (_, Kind::Directory) => Err(ErrorCode::IsDirectory.into()),
            _ => Err(Error::new(ErrorCode::InvalidArgument, "only files have bytes")),
        }
    }

    /// Writes this kind's fields only; times but the first are differences from the birth time, which are small.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(if self.inline { VERSION } else { 1 });
        self.write(&mut writer);
        writer.finish()
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        let mut flags = 0;
        flags |= if self.layout.is_some() { HAS_LAYOUT } else { 0 };
        flags |= if self.trim_to.is_some() { HAS_TRIM } else { 0 };
        flags |= if self.target.is_empty() { 0 } else { HAS_TARGET };
        flags |= self.marks.to_bits() << MARKS_SHIFT;
        flags |= if self.unopened { UNOPENED } else { 0 };
        flags |= if self.inline { INLINE } else { 0 };
        writer.byte(self.kind.0).byte(flags).varint(self.mode.into());
        writer.varint(self.uid.into()).varint(self.gid.into());
        writer.varint(self.nlink.into()).varint(self.rdev.into());
        writer.varint(self.size).varint(self.epoch.into()).varint(self.parent.0);
        writer.fixed(self.btime as u64);
        for time in [self.atime, self.mtime, self.ctime] {
            writer.signed(time.wrapping_sub(self.btime));
        }
        if let Some(layout) = &self.layout {
            writer.byte(layout.chunk_size.trailing_zeros() as u8).varint(layout.stripe.into());
            writer.varint(layout.table_id.into()).varint(layout.table_version.into()).fixed(layout.seed);
        }
        if let Some(length) = self.trim_to {
            writer.varint(length);
        }
        if !self.target.is_empty() {
            writer.bytes(&self.target);
        }
    }

    pub fn decode(value: &[u8]) -> Result<Self> {
        let (mut reader, _) = Reader::new("inode", value, VERSION)?;
        let inode = Self::read(&mut reader)?;
        reader.end()?;
        Ok(inode)
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let (kind, flags) = (read_kind(reader)?, reader.byte()?);
        let mut inode = Self::new(kind, 0);
        inode.marks = Marks::from_bits(flags >> MARKS_SHIFT);
        inode.unopened = flags & UNOPENED != 0;
        inode.inline = flags & INLINE != 0;
        inode.mode = reader.varint32()?;
        inode.uid = reader.varint32()?;
        inode.gid = reader.varint32()?;
        inode.nlink = reader.varint32()?;
        inode.rdev = reader.varint32()?;
        inode.size = reader.varint()?;
        inode.epoch = reader.varint32()?;
        inode.parent = InodeId(reader.varint()?);
        inode.btime = reader.fixed()? as i64;
        inode.atime = inode.btime.wrapping_add(reader.signed()?);
        inode.mtime = inode.btime.wrapping_add(reader.signed()?);
        inode.ctime = inode.btime.wrapping_add(reader.signed()?);
        if flags & HAS_LAYOUT != 0 {
            inode.layout = Some(read_layout(reader)?);
        }
        if flags & HAS_TRIM != 0 {
            inode.trim_to = Some(reader.varint()?);
        }
        if flags & HAS_TARGET != 0 {
            inode.target = reader.bytes()?.to_vec();
        }
        Ok(inode)
    }
}

pub(crate) fn read_kind(reader: &mut Reader<'_>) -> Result<Kind> {
    let kind = Kind(reader.byte()?);
    kind.variant_name().map(|_| kind).ok_or_else(|| reader.corrupt())
}

pub(crate) fn read_layout(reader: &mut Reader<'_>) -> Result<Layout> {
    let chunk_size = 1u32.checked_shl(reader.byte()?.into()).unwrap_or(0);
    let mut message = LayoutT::default();
    message.chunk_size = chunk_size;
    message.stripe = reader.varint32()?;
    message.table_id = reader.varint32()?;
    message.table_version = reader.varint32()?;
    message.seed = reader.fixed()?;
    Layout::from_message(&message).map_err(|_| reader.corrupt())
}

/// What changes with a directory's entries, kept under atomic keys.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DirectoryState {
    /// When an entry was last added, removed or replaced (ns); 0: never since the directory's own times were set.
    pub touched: i64,
    pub entries: u64,
    /// Of those, the directories.
    pub subdirectories: u64,
}

impl DirectoryState {
    /// From the values of the touched and the counts key.
    pub fn decode(touched: Option<&[u8]>, counts: Option<&[u8]>) -> Result<Self> {
        let bad = |_| Error::new(ErrorCode::Corrupt, "a directory's times or counts can't be read");
        let touched = touched.map_or(Ok(0), |value| value.try_into().map(u64::from_le_bytes).map_err(bad))?;
        let counts = counts.map_or(Ok(0), |value| value.try_into().map(u128::from_le_bytes).map_err(bad))?;
        Ok(Self { touched: touched as i64, entries: counts as u64, subdirectories: (counts >> 64) as u64 })
    }

    /// The operand that changes the counts by so much. Both are one 128-bit number, so one atomic addition changes
    /// both; the low half never falls below zero, so it never borrows from the high one.
    pub fn delta(entries: i64, subdirectories: i64) -> [u8; 16] {
        (i128::from(entries) + (i128::from(subdirectories) << 64)).to_le_bytes()
    }
}

/// An inode as callers see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stat {
    pub id: InodeId,
    pub inode: Inode,
    /// Of directories.
    pub directory: DirectoryState,
}

impl Stat {
    /// Of anything but a directory that has entries.
    pub fn new(id: InodeId, inode: Inode) -> Self {
        Self { id, inode, directory: DirectoryState::default() }
    }

    /// A directory's size is its number of entries, its links are its own two and its subdirectories' `..`.
    pub fn to_message(&self) -> AttrT {
        let inode = &self.inode;
        let (size, nlink) = match inode.kind {
            Kind::Directory => {
                let links = u32::try_from(self.directory.subdirectories.saturating_add(2));
                (self.directory.entries, links.unwrap_or(u32::MAX))
            }
            Kind::Symlink => (inode.target.len() as u64, inode.nlink),
            _ => (inode.size, inode.nlink),
        };
        // Setting a directory's time forgets when it was touched: what touched it since is later, even if that time lies in the
        // future. Times before 1970 are negative, and never touched is before all of them.
        let (mtime, touched) = match self.directory.touched {
            0 => (inode.mtime, i64::MIN),
            touched => (touched, touched),
        };
        let mut attr = AttrT::default();
        attr.inode = self.id.0;
        attr.kind = inode.kind;
        attr.mode = inode.mode;
        attr.uid = inode.uid;
        attr.gid = inode.gid;
        attr.size = size;
        attr.nlink = nlink;
        attr.rdev = inode.rdev;
        attr.atime = inode.atime;
        attr.mtime = mtime;
        attr.ctime = inode.ctime.max(touched);
        attr.btime = inode.btime;
        attr.epoch = inode.epoch;
        attr.layout = Box::new(inode.layout.map(Layout::to_message).unwrap_or_default());
        attr.parent = inode.parent.0;
        attr.marks = inode.marks.to_bits() | if inode.inline { INLINE_MARK } else { 0 };
        attr
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Inode {
        Inode {
            mode: 0o644,
            uid: 1000,
            gid: 1000,
            size: 5 << 30,
            mtime: 1_700_000_000_000_000_500,
            ctime: 1_600_000_000_000_000_000,
            layout: Some(Layout {
                chunk_size: 512 << 10,
                stripe: 16,
                table_id: 1,
                table_version: 3,
                seed: 0x0123_4567_89AB_CDEF,
            }),
            trim_to: Some(77),
            ..Inode::new(Kind::File, 1_700_000_000_000_000_000)
        }
    }

    #[test]
    fn survives_storage_and_damage_is_seen() {
        let symlink = Inode { target: b"../x".to_vec(), ..Inode::new(Kind::Symlink, -5) };
        let directory =
            Inode { parent: InodeId(7), atime: i64::MIN, ..Inode::new(Kind::Directory, i64::MAX) };
        let marks = Marks { xattrs: true, access_list: false, default_list: true };
        let marked = Inode { marks, ..directory.clone() };
        assert_eq!(marked.encode()[2], 0b101 << 3);
        let unopened = Inode { unopened: true, ..file() };
        assert_eq!(unopened.encode()[2], file().encode()[2] | 0b100_0000);
        let inline = Inode { inline: true, ..file() };
        assert_eq!((inline.encode()[0], inline.encode()[2]), (2, file().encode()[2] | 0b1000_0000));
        for inode in [file(), symlink, directory, marked, unopened, inline] {
            let value = inode.encode();
            assert_eq!(Inode::decode(&value), Ok(inode));
            for end in 0..value.len() {
                assert_eq!(Inode::decode(&value[..end]).unwrap_err().code, ErrorCode::Corrupt);
            }
        }
        let mut unknown_kind = file().encode();
        unknown_kind[1] = 7;
        assert!(Inode::decode(&unknown_kind).is_err());
    }

    /// Stored inodes depend on these bytes: they change only with a new [`VERSION`].
    #[test]
    fn bytes_are_golden_and_few() {
        let hex = |value: &[u8]| value.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            hex(&file().encode()),
            "010003a403e807e80701008080808014010000002a36fe9c971700e807ffffcfd88bdea2e3021310010\
             3efcdab89674523014d"
        );
        let fresh = Inode { trim_to: None, size: 0, mtime: file().btime, ctime: file().btime, ..file() };
        assert!(fresh.encode().len() < 40, "{}", fresh.encode().len());
    }

    #[test]
    fn counts_change_together() {
        let mut counts = 0i128;
        for (entries, subdirectories) in [(1, 1), (1, 0), (-1, -1), (1, 1), (-1, 0)] {
            let delta = i128::from_le_bytes(DirectoryState::delta(entries, subdirectories));
            counts = counts.wrapping_add(delta);
        }
        let state = DirectoryState::decode(Some(&9u64.to_le_bytes()), Some(&counts.to_le_bytes())).unwrap();
        assert_eq!(state, DirectoryState { touched: 9, entries: 1, subdirectories: 1 });
        assert!(DirectoryState::decode(Some(&[0; 3]), None).is_err());
    }

    #[test]
    fn a_directory_shows_its_entries() {
        let inode = Inode { mtime: 5, ctime: 50, ..Inode::new(Kind::Directory, 1) };
        let directory = DirectoryState { touched: 20, entries: 3, subdirectories: 2 };
        let attr = Stat { id: InodeId(9), inode, directory }.to_message();
        assert_eq!((attr.size, attr.nlink, attr.mtime, attr.ctime), (3, 4, 20, 50));
    }
}
