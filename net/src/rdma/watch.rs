//! Devices that come and go while the process runs, as the kernel's directory of them tells (inotify(7)).
//!
//! Some devices say of themselves that they are being taken out, and are useless from then on. Others, as soft-RoCE, say nothing, go on working, and keep whoever takes them out waiting
//! until nobody has them open any more; but their node in the directory goes at once. Where there is no such directory yet, that is watched in which it is made. If nothing can be watched, a
//! device that is taken out is missed when it says so, or not at all.

use std::cell::Cell;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

/// Where the kernel has a node for each device.
pub const NODES: &str = "/dev/infiniband";
const NODES_C: &CStr = c"/dev/infiniband";
/// Where that directory is made when the first device comes.
const ABOVE: &CStr = c"/dev";
/// Nodes that come, go, and are opened to other users.
const EVENTS: u32 = libc::IN_CREATE | libc::IN_DELETE | libc::IN_ATTRIB | libc::IN_ONLYDIR;

/// Whether there is a directory of devices.
pub fn is_there() -> bool {
    Path::new(NODES).exists()
}

/// Becomes readable when the directory changes, or comes.
pub struct Watch {
    fd: OwnedFd,
    /// The watch of what is above the directory, while that isn't there.
    above: Cell<Option<i32>>,
}

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
        let watch = Self { fd, above: Cell::new(None) };
        watch.begin().then_some(watch)
    }

    /// Makes sure that the directory is watched that is there now.
    fn begin(&self) -> bool {
        if self.add(NODES_C, EVENTS).is_some() {
            if let Some(above) = self.above.take() {
                // SAFETY: a plain system call, on a watch of ours.
                let _ = unsafe { libc::inotify_rm_watch(self.fd(), above) };
            }
            return true;
        }
        self.above.set(self.add(ABOVE, libc::IN_CREATE | libc::IN_ONLYDIR));
        // It may have come in between.
        self.above.get().is_some() && (!is_there() || self.add(NODES_C, EVENTS).is_some())
    }

    fn add(&self, directory: &CStr, events: u32) -> Option<i32> {
        // SAFETY: the name is a string that lives through the call; whoever watches a directory twice watches it once.
        match unsafe { libc::inotify_add_watch(self.fd(), directory.as_ptr(), events) } {
            -1 => None,
            watch => Some(watch),
        }
    }

    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Takes what was told, whatever it was. Look after this, not before.
    pub fn heard(&self) {
        let mut told = [0u8; 4096];
        // SAFETY: writes to the array, whose size is told; the descriptor doesn't block.
        while unsafe { libc::read(self.fd(), told.as_mut_ptr().cast(), told.len()) } > 0 {}
        self.begin();
    }
}
