//! Words to the kernel that nobody asked for, as the FUSE crate doesn't have them: it forgets names only together with all that is below them, mounts and working
//! directories included, and doesn't say when the kernel knew nothing of an inode. Layouts: `linux/fuse.h`.

use corefs_wire::InodeId;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd};

/// `fuse_out_header`: length, code, 0.
const HEADER: usize = 16;
/// `FUSE_NOTIFY_INVAL_INODE`: inode, offset, length.
const INVAL_INODE: i32 = 2;
/// `FUSE_NOTIFY_INVAL_ENTRY`: parent, length of the name, flags; the name and a NUL.
const INVAL_ENTRY: i32 = 3;
/// The name is asked for again when it is used, and kept if it still leads where it did. Since Linux 6.2 (`FUSE_HAS_EXPIRE_ONLY`); before,
/// the flag is not looked at.
const EXPIRE_ONLY: u32 = 1;

/// The connection of one mount.
pub struct Kernel(File);

impl Kernel {
    pub fn new(connection: BorrowedFd<'_>) -> io::Result<Self> {
        connection.try_clone_to_owned().map(|own: OwnedFd| Self(own.into()))
    }

    pub fn another(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Has the attributes asked for when they are next used. `NotFound` for an inode that the kernel doesn't know.
    pub fn doubt_attributes(&self, inode: InodeId) -> io::Result<()> {
        let mut body = inode.0.to_ne_bytes().to_vec();
        // An offset below 0: not the bytes.
        body.extend((-1i64).to_ne_bytes());
        body.extend(0i64.to_ne_bytes());
        self.say(INVAL_INODE, &body)
    }

    /// Has a name asked for when it is next used. Waits for whoever uses the directory. `NotFound` for one that the kernel doesn't know.
    pub fn doubt_name(&self, parent: InodeId, name: &[u8]) -> io::Result<()> {
        let mut body = parent.0.to_ne_bytes().to_vec();
        body.extend((name.len() as u32).to_ne_bytes());
        body.extend(EXPIRE_ONLY.to_ne_bytes());
        body.extend_from_slice(name);
        body.push(0);
        self.say(INVAL_ENTRY, &body)
    }

    fn say(&self, code: i32, body: &[u8]) -> io::Result<()> {
        let message = message(code, body);
        // One write is one message.
        (&self.0).write(&message).map(drop)
    }
}

fn message(code: i32, body: &[u8]) -> Vec<u8> {
    let length = HEADER + body.len();
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(code.to_ne_bytes());
    message.extend(0u64.to_ne_bytes());
    message.extend_from_slice(body);
    message
}
