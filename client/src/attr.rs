//! What the namespace says about an inode, with ids typed and the layout checked.

use corefs_wire::control::meta::AttrT;
use corefs_wire::layout::Layout;
use corefs_wire::{InodeId, Result};

pub use corefs_wire::control::meta::Kind;

/// The attributes of an inode. Times are nanoseconds since the epoch, UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    pub inode: InodeId,
    pub kind: Kind,
    /// Permission bits, set-id and sticky bits; not the kind.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes. Of an open file this includes what this client has written and not synced yet.
    pub size: u64,
    pub nlink: u32,
    pub rdev: u32,
    pub atime: i64,
    pub mtime: i64,
    pub ctime: i64,
    pub btime: i64,
    /// Raised by each truncation; every update of a chunk names it.
    pub epoch: u32,
    /// How a file is cut and spread; other kinds have none.
    pub layout: Option<Layout>,
    pub parent: InodeId,
    pub marks: Marks,
}

/// What more is stored of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Marks {
    /// Extended attributes, the access control lists included.
    pub xattrs: bool,
    pub access_list: bool,
    pub default_list: bool,
    /// The bytes are kept with the inode and not in chunks.
    pub inline: bool,
}

impl Marks {
    /// The bits of a message.
    fn from_bits(bits: u8) -> Self {
        Self {
            xattrs: bits & 1 != 0,
            access_list: bits & 2 != 0,
            default_list: bits & 4 != 0,
            inline: bits & 8 != 0,
        }
    }
}

impl Attr {
    /// The attributes in a message. `BadFrame` for a file with an impossible layout.
    pub fn from_message(attr: &AttrT) -> Result<Self> {
        let layout = match attr.kind {
            Kind::File => Some(Layout::from_message(&attr.layout)?),
            _ => None,
        };
        Ok(Self {
            inode: InodeId(attr.inode),
            kind: attr.kind,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            size: attr.size,
            nlink: attr.nlink,
            rdev: attr.rdev,
            atime: attr.atime,
            mtime: attr.mtime,
            ctime: attr.ctime,
            btime: attr.btime,
            epoch: attr.epoch,
            layout,
            parent: InodeId(attr.parent),
            marks: Marks::from_bits(attr.marks),
        })
    }

    pub fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }

    pub fn is_file(&self) -> bool {
        self.kind == Kind::File
    }

    pub fn is_symlink(&self) -> bool {
        self.kind == Kind::Symlink
    }
}

/// Which attributes to change, and to what; absent ones stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Truncates or extends a file (bytes).
    pub size: Option<u64>,
    pub atime: Option<Time>,
    pub mtime: Option<Time>,
    /// Nanoseconds since the epoch.
    pub ctime: Option<i64>,
    /// What they were when this was decided, if that is a while ago: what somebody else has set since stays.
    pub known: Option<Known>,
}

/// What changes that wait go by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Known {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Nanoseconds since the epoch.
    pub atime: i64,
    pub mtime: i64,
}

impl Known {
    pub fn of(attr: &Attr) -> Self {
        Self { mode: attr.mode, uid: attr.uid, gid: attr.gid, atime: attr.atime, mtime: attr.mtime }
    }

    /// `changes` were made here, and gave `attr`.
    pub fn learn(&mut self, changes: &Changes, attr: &Attr) {
        let owner = changes.uid.is_some() || changes.gid.is_some();
        // A new owner takes set-id bits away.
        if changes.mode.is_some() || owner {
            self.mode = attr.mode;
        }
        if owner {
            (self.uid, self.gid) = (attr.uid, attr.gid);
        }
        if changes.atime.is_some() {
            self.atime = attr.atime;
        }
        if changes.mtime.is_some() || changes.size.is_some() {
            self.mtime = attr.mtime;
        }
    }
}

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Time {
    /// The metadata server's present.
    Now,
    /// Nanoseconds since the epoch.
    At(i64),
}

/// One entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub name: Vec<u8>,
    pub inode: InodeId,
    pub kind: Kind,
    /// Only when asked for (`plus`), and absent if the inode went away meanwhile.
    pub attr: Option<Attr>,
}

/// Space and files of the whole file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Space {
    /// Bytes.
    pub total: u64,
    pub free: u64,
    pub files: u64,
    pub block_size: u32,
    pub chunk_size: u32,
}

/// On whose behalf an operation is done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// Skip permission checks: root, or a mount whose kernel has made them.
    pub privileged: bool,
}

impl Credentials {
    /// Of this process: its effective user, groups, and privileges if that is root.
    pub fn of_process() -> Self {
        // SAFETY: these calls have no preconditions; the buffer of getgroups has the length that is passed.
        let (uid, gid, groups) = unsafe {
            let mut groups = vec![0; 65536];
            let found = libc::getgroups(groups.len() as i32, groups.as_mut_ptr());
            groups.truncate(usize::try_from(found).unwrap_or(0));
            (libc::geteuid(), libc::getegid(), groups)
        };
        Self { uid, gid, groups, privileged: uid == 0 }
    }

    pub const fn root() -> Self {
        Self { uid: 0, gid: 0, groups: Vec::new(), privileged: true }
    }
}

/// Whether a program of this mode would run as its owner or group: what a write by somebody else takes away.
pub fn has_set_ids(mode: u32) -> bool {
    mode & 0o4000 != 0 || mode & 0o2010 == 0o2010
}

/// Attributes of an empty file, for tests.
#[cfg(test)]
pub(crate) fn plain(inode: u64) -> Attr {
    Attr {
        inode: InodeId(inode),
        kind: Kind::File,
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
