//! A file or block device as a disk: opened with O_DIRECT, locked, preallocated.

use super::{BlockingDisk, Pages};
use crate::mesh::Fate;
use corefs_wire::limits::BLOCK;
use corefs_wire::{Error, ErrorCode, Result};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// `BLKDISCARD` of `linux/fs.h`.
const BLKDISCARD: libc::c_ulong = 0x1277;

/// How much is settled by one write (bytes).
const SETTLE_BYTES: usize = 1 << 20;

/// An open disk. The lock is held as long as it lives.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    /// A handle of its own for the lock: a ring's table may keep `file` open for a while after everybody has let go.
    lock: File,
    path: PathBuf,
    bytes: u64,
    fate: Fate,
}

impl DiskFile {
    /// Opens and locks an existing file or device. `DirectoryInUse` if another process has it, `Os` if it isn't there or
    /// its file system knows no O_DIRECT.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open(path, false)?;
        let lock = lock(path)?;
        let bytes = size(&file, path)?;
        Ok(Self { file, lock, path: path.to_path_buf(), bytes, fate: Fate::default() })
    }

    /// Opens a disk that may have another user, only to read it. Errors as of [`Self::open`].
    pub fn look(path: &Path) -> Result<Self> {
        let failed = |error| Error::from(error).of(format_args!("opening {}", path.display()));
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).map_err(failed)?;
        let (lock, bytes) = (file.try_clone().map_err(failed)?, size(&file, path)?);
        Ok(Self { file, lock, path: path.to_path_buf(), bytes, fate: Fate::default() })
    }

    /// Makes a file of `bytes`, all of them allocated; takes a block device as it is if it is large enough. `NoSpace`
    /// when the file system has no room, `BadConfig` for a device that is too small.
    pub fn create(path: &Path, bytes: u64) -> Result<Self> {
        let device = path.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device());
        let file = open(path, !device)?;
        let lock = lock(path)?;
        if device {
            let found = size(&file, path)?;
            if found < bytes {
                let what = format!("{} is smaller than the {bytes} bytes asked for", path.display());
                return Err(Error::mismatch(ErrorCode::BadConfig, bytes, found, what));
            }
        } else {
            preallocate(&file, path, bytes)?;
        }
        Ok(Self { file, lock, path: path.to_path_buf(), bytes, fate: Fate::default() })
    }

    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a flush has failed in any shard that shares the disk.
    pub fn fate(&self) -> &Fate {
        &self.fate
    }

    /// Another handle of the same open file: it shares the lock, and the disk's fate.
    pub fn share(&self) -> Result<Self> {
        let file = self.file.try_clone().map_err(|error| self.error(error))?;
        let lock = self.lock.try_clone().map_err(|error| self.error(error))?;
        Ok(Self { file, lock, path: self.path.clone(), bytes: self.bytes, fate: self.fate.clone() })
    }

    /// Tells a block device that these bytes hold nothing any more: reading them gives anything from then on. `DiskError` with the device's
    /// reason if it doesn't take that, and of files, which keep their space.
    pub fn discard(&self, offset: u64, bytes: u64) -> Result<()> {
        let range = [offset, bytes];
        // SAFETY: the request reads two numbers of 64 bits.
        match unsafe { libc::ioctl(self.fd(), BLKDISCARD, &raw const range) } {
            0 => Ok(()),
            _ => Err(self.error(std::io::Error::last_os_error())),
        }
    }

    fn error(&self, error: std::io::Error) -> Error {
        Error::new(ErrorCode::DiskError, format!("{}: {error}", self.path.display()))
    }
}

impl BlockingDisk for DiskFile {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&mut self, offset: u64, to: &mut [u8]) -> Result<()> {
        let mut pages = Pages::new(to.len());
        self.file.read_exact_at(pages.bytes_mut(), offset).map_err(|error| self.error(error))?;
        to.copy_from_slice(&pages.bytes()[..to.len()]);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, from: &[u8]) -> Result<()> {
        assert!(from.len().is_multiple_of(BLOCK), "whole blocks are written");
        self.file.write_all_at(Pages::of(from).bytes(), offset).map_err(|error| self.error(error))
    }

    fn flush(&mut self) -> Result<()> {
        self.file.sync_data().map_err(|error| self.error(error))
    }

    /// Space of a file that was allocated and never written is marked so by ext4 and XFS: the first write of a block changes the mark, and the
    /// next flush commits their journal with it, which takes several times as long as the flush alone. So all of it is written once.
    fn settle(&mut self, offset: u64, bytes: u64) -> Result<()> {
        let metadata = self.file.metadata().map_err(|error| self.error(error))?;
        if !metadata.is_file() {
            return Ok(());
        }
        let zeros = Pages::new(SETTLE_BYTES);
        let end = offset + bytes;
        for at in (offset..end).step_by(SETTLE_BYTES) {
            let len = (end - at).min(SETTLE_BYTES as u64) as usize;
            self.file.write_all_at(&zeros.bytes()[..len], at).map_err(|error| self.error(error))?;
        }
        Ok(())
    }
}

fn open(path: &Path, create: bool) -> Result<File> {
    let opened =
        OpenOptions::new().read(true).write(true).create(create).custom_flags(libc::O_DIRECT).open(path);
    opened.map_err(|error| {
        let remedy = match error.raw_os_error() {
            Some(libc::EINVAL) => "; its file system has no O_DIRECT: name a directory on another one",
            _ => "",
        };
        Error::from(error).of(format_args!("opening {}{remedy}", path.display()))
    })
}

/// Locks the file against other processes, as long as the handle or a clone of it lives. `DirectoryInUse` if one has it.
pub fn lock(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(|error| Error::from(error).of(path.display()))?;
    // SAFETY: a plain system call on a descriptor of ours.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(file);
    }
    let what = format!("{} is in use by another process; stop it first", path.display());
    Err(Error::new(ErrorCode::DirectoryInUse, what))
}

fn size(mut file: &File, path: &Path) -> Result<u64> {
    let bytes = file.seek(SeekFrom::End(0));
    bytes.map_err(|error| Error::from(error).of(path.display()))
}

fn preallocate(file: &File, path: &Path, bytes: u64) -> Result<()> {
    let length = i64::try_from(bytes).map_err(|_| Error::new(ErrorCode::BadConfig, "a disk of that size"))?;
    // SAFETY: a plain system call on a descriptor of ours.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) };
    let outcome = if result == 0 { file.sync_all() } else { Err(std::io::Error::last_os_error()) };
    outcome.map_err(|error| {
        let what = format!("making {} of {bytes} bytes", path.display());
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EFBIG | libc::EDQUOT) => {
                let remedy = "the file system has no room for it: ask for less or free some space";
                Error::new(ErrorCode::NoSpace, format!("{what}: {remedy}"))
            }
            _ => Error::from(error).of(what),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_one_user_and_keeps_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        assert_eq!(DiskFile::open(&path).unwrap_err().code, ErrorCode::Os);
        let mut disk = DiskFile::create(&path, 1 << 20).unwrap();
        assert_eq!(disk.bytes(), 1 << 20);
        assert_eq!(DiskFile::open(&path).unwrap_err().code, ErrorCode::DirectoryInUse);
        disk.write_at(8192, &[7; 8192]).unwrap();
        disk.flush().unwrap();
        let share = disk.share().unwrap();
        drop(disk);
        assert!(DiskFile::open(&path).is_err(), "the share holds the lock");
        drop(share);
        let mut disk = DiskFile::open(&path).unwrap();
        let mut found = [0; 8192];
        disk.read_at(8192, &mut found).unwrap();
        assert_eq!((disk.bytes(), found), (1 << 20, [7; 8192]));
        assert_eq!(disk.read_at(1 << 20, &mut found).unwrap_err().code, ErrorCode::DiskError);
    }

    #[test]
    fn what_is_settled_is_zeros_and_nothing_else_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = DiskFile::create(&dir.path().join("disk"), 4 << 20).unwrap();
        disk.write_at(0, &vec![7; 4 << 20]).unwrap();
        let settled = 8192..(1 << 20) + 12288;
        disk.settle(settled.start, settled.end - settled.start).unwrap();
        let mut found = vec![1; 4 << 20];
        disk.read_at(0, &mut found).unwrap();
        let range = settled.start as usize..settled.end as usize;
        assert!(found[range.clone()].iter().all(|byte| *byte == 0));
        assert!(found[..range.start].iter().chain(&found[range.end..]).all(|byte| *byte == 7));
    }

    #[test]
    fn too_large_is_no_space() {
        let dir = tempfile::tempdir().unwrap();
        let error = DiskFile::create(&dir.path().join("disk"), 1 << 60).unwrap_err();
        assert_eq!(error.code, ErrorCode::NoSpace, "{error}");
    }
}
