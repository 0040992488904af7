//! Files by number: registered ones spare the kernel a look-up for each operation.

use io_uring::{Submitter, types};
use std::os::fd::RawFd;

/// A file as entries name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum File {
    Plain(RawFd),
    /// A slot of the ring's table.
    Registered(u32),
}

/// The ring's table of registered files; empty if the kernel refused it.
pub struct FileTable {
    free: Vec<u32>,
}

impl FileTable {
    pub fn register(ring: &Submitter<'_>, slots: u32) -> Self {
        if slots == 0 {
            return Self { free: Vec::new() };
        }
        match ring.register_files_sparse(slots) {
            Ok(()) => Self { free: (0..slots).rev().collect() },
            Err(error) => {
                tracing::info!(%error, "files are not registered with the ring: each access looks its file up");
                Self { free: Vec::new() }
            }
        }
    }

    /// Names `fd` by a slot while there is one, else plainly.
    pub fn add(&mut self, ring: &Submitter<'_>, fd: RawFd) -> File {
        let Some(slot) = self.free.pop() else { return File::Plain(fd) };
        if Self::set(ring, slot, fd) {
            return File::Registered(slot);
        }
        self.free.push(slot);
        File::Plain(fd)
    }

    fn set(ring: &Submitter<'_>, slot: u32, fd: RawFd) -> bool {
        ring.register_files_update(slot, &[fd]).is_ok()
    }
}

impl super::Ring {
    /// Names `fd` for entries: by a slot of the table while there is one, else plainly. The caller keeps `fd` open.
    pub fn add_file(&mut self, fd: RawFd) -> File {
        self.files.add(&self.ring.submitter(), fd)
    }

    /// Gives the slot back. Entries in flight keep the file.
    pub fn remove_file(&mut self, file: File) {
        if let File::Registered(slot) = file
            && FileTable::set(&self.ring.submitter(), slot, -1)
        {
            self.files.free.push(slot);
        }
    }
}

/// Calls `$build` with the file as the `io-uring` crate wants it.
macro_rules! with_file {
    ($file:expr, |$fd:ident| $build:expr) => {
        match $file {
            $crate::ring::File::Plain(fd) => {
                let $fd = types::Fd(fd);
                $build
            }
            $crate::ring::File::Registered(slot) => {
                let $fd = types::Fixed(slot);
                $build
            }
        }
    };
}
pub(super) use with_file;

// `with_file!` names `types` where it is used; this keeps the import honest here too.
const _: fn(u32) -> types::Fixed = types::Fixed;
