//! Which parts of a file were never written, by the FIEMAP ioctl (Documentation/filesystems/fiemap.rst of Linux).

use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: libc::Ioctl = 0xC020_660B_u32 as libc::Ioctl;
/// Write what is cached first, so that the map is of the disk.
const FIEMAP_FLAG_SYNC: u32 = 1;
const FIEMAP_EXTENT_LAST: u32 = 1;
/// Allocated, but reads as zeros without touching the disk.
const FIEMAP_EXTENT_UNWRITTEN: u32 = 0x800;
/// Extents asked for at a time.
const EXTENTS: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}
const _: () = assert!(size_of::<Extent>() == 56);

#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}
const _: () = assert!(size_of::<Map>() == 32 + EXTENTS * 56);

/// The first of the first `bytes` that was never written, `None` if all were. On a file system that keeps no map only the
/// space in use is compared.
pub fn first_unwritten(file: &File, bytes: u64) -> Result<Option<u64>> {
    let mut covered = 0;
    while covered < bytes {
        let extents = match map(file, covered, bytes - covered) {
            Ok(extents) => extents,
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return by_space(file, bytes),
            Err(error) => return Err(error),
        };
        let last = extents.last().is_none_or(|extent| extent.flags & FIEMAP_EXTENT_LAST != 0);
        for extent in &extents {
            if extent.logical > covered || extent.flags & FIEMAP_EXTENT_UNWRITTEN != 0 {
                return Ok(Some(covered).filter(|at| *at < bytes));
            }
            covered = covered.max(extent.logical + extent.length);
        }
        if last {
            break;
        }
    }
    Ok(Some(covered).filter(|at| *at < bytes))
}

fn by_space(file: &File, bytes: u64) -> Result<Option<u64>> {
    // st_blocks is in units of 512 bytes whatever the file system's block is.
    let space = file.metadata()?.blocks() * 512;
    Ok(Some(space).filter(|space| *space < bytes))
}

fn map(file: &File, start: u64, length: u64) -> Result<Vec<Extent>> {
    let mut map = Box::new(Map {
        start,
        length,
        flags: FIEMAP_FLAG_SYNC,
        mapped: 0,
        count: EXTENTS as u32,
        reserved: 0,
        extents: [Extent::default(); EXTENTS],
    });
    // SAFETY: the kernel reads the head and writes at most `count` extents behind it, which are there.
    match unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut *map) } {
        -1 => Err(Error::last_os_error()),
        _ => Ok(map.extents[..(map.mapped as usize).min(EXTENTS)].to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_and_preallocated_space_are_found() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![1; 1 << 20], 0).unwrap();
        assert_eq!(first_unwritten(&file, 1 << 20).unwrap(), None);
        assert_eq!(first_unwritten(&file, 2 << 20).unwrap(), Some(1 << 20));
        file.write_all_at(&vec![1; 4096], 3 << 20).unwrap();
        assert_eq!(first_unwritten(&file, 3 << 20).unwrap(), Some(1 << 20));
        // SAFETY: a plain call on our own file.
        let allocated = unsafe { libc::fallocate(file.as_raw_fd(), 0, 1 << 20, 2 << 20) };
        // Some file systems can't preallocate, and some keep no map: then there is nothing to tell apart.
        if allocated == 0 && map(&file, 0, 4096).is_ok() {
            assert_eq!(first_unwritten(&file, 3 << 20).unwrap(), Some(1 << 20));
            file.write_all_at(&vec![1; 2 << 20], 1 << 20).unwrap();
            assert_eq!(first_unwritten(&file, (3 << 20) + 4096).unwrap(), None);
        }
    }

    #[test]
    fn many_extents_take_several_looks() {
        let file = tempfile::tempfile().unwrap();
        // Written backwards and synced, a file has many extents.
        for block in (0..600u64).rev() {
            file.write_all_at(&[1; 4096], block * 8192).unwrap();
        }
        file.sync_all().unwrap();
        for block in 0..599u64 {
            file.write_all_at(&[1; 4096], block * 8192 + 4096).unwrap();
        }
        assert_eq!(first_unwritten(&file, 1199 * 4096).unwrap(), None);
        assert_eq!(first_unwritten(&file, 1200 * 4096).unwrap(), Some(1199 * 4096));
    }
}
