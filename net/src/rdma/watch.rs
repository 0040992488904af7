//! Devices that come and go while the process runs, as the kernel's directory of them tells (inotify(7)).
//!
//! Some devices say of themselves that they are being taken out, and are useless from then on. Others, as soft-RoCE, say nothing, go on working, and keep whoever takes them out waiting
//! until nobody has them open any more; but their node in the directory goes at once. Where there is no such directory nothing is watched: a device that is taken out is then missed when
//! it says so, or not at all.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Where the kernel has a node for each device.
pub const NODES: &str = "/dev/infiniband";
const NODES_C: &CStr = c"/dev/infiniband";
/// Nodes that come, go, and are opened to other users.
const EVENTS: u32 = libc::IN_CREATE | libc::IN_DELETE | libc::IN_ATTRIB | libc::IN_ONLYDIR;

/// Becomes readable when the directory changes.
pub struct Watch(OwnedFd);

impl Watch {
    /// `None` where there is nothing to be watched, or the user has as many watches as he may.
    pub fn new() -> Option<Self> {
        // SAFETY: a plain system call; the descriptor it returns is ours.
        let fd = unsafe {
            match libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) {
                -1 => return None,
                fd => OwnedFd::from_raw_fd(fd),
            }
        };
        let watch = Self(fd);
        watch.begin().then_some(watch)
    }

    /// Makes sure that the directory is watched that is there now.
    fn begin(&self) -> bool {
        // SAFETY: the name is a string that lives for ever; whoever watches a directory twice watches it once.
        unsafe { libc::inotify_add_watch(self.fd(), NODES_C.as_ptr(), EVENTS) != -1 }
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Takes what was told, whatever it was. Look after this, not before.
    pub fn heard(&self) {
        let mut told = [0u8; 4096];
        // SAFETY: writes to the array, whose size is told; the descriptor doesn't block.
        while unsafe { libc::read(self.fd(), told.as_mut_ptr().cast(), told.len()) } > 0 {}
        self.begin();
    }
}
