//! One process a directory.

use corefs_wire::{Error, ErrorCode, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

/// The file in the directory that is locked (flock(2)) for as long as the store is open; it names the process.
pub const LOCK_FILE: &str = "lock";

/// Held until dropped; the kernel lets go of it when the process dies.
#[derive(Debug)]
pub struct DirectoryLock(#[expect(dead_code, reason = "the lock lives as long as the open file")] File);

impl DirectoryLock {
    /// Locks `directory`, or `DirectoryInUse` naming it, the process that has it, and what to do.
    pub fn take(directory: &Path) -> Result<Self> {
        let path = directory.join(LOCK_FILE);
        let named = |error: std::io::Error| Error::from(error).of(path.display());
        let mut file = OpenOptions::new();
        let mut file = file.read(true).write(true).create(true).truncate(false).open(&path).map_err(named)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(directory, &mut file)),
            Err(TryLockError::Error(error)) => return Err(named(error)),
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(named)?;
        writeln!(file, "{}", std::process::id()).map_err(named)?;
        Ok(Self(file))
    }
}

fn in_use(directory: &Path, file: &mut File) -> Error {
    let mut holder = String::new();
    // Only for the message: whoever holds the lock may not have written its number yet.
    let _read = file.take(20).read_to_string(&mut holder);
    let holder =
        holder.trim().parse::<u32>().map_or("another process".to_owned(), |pid| format!("process {pid}"));
    let message = format!(
        "{holder} has the store in {} open; stop it, or give this one another directory",
        directory.display()
    );
    Error::new(ErrorCode::DirectoryInUse, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let first = DirectoryLock::take(directory.path()).unwrap();
        let error = DirectoryLock::take(directory.path()).unwrap_err();
        assert_eq!(error.code, ErrorCode::DirectoryInUse);
        assert!(error.message.contains(&directory.path().display().to_string()));
        assert!(error.message.contains(&std::process::id().to_string()));
        drop(first);
        assert!(DirectoryLock::take(directory.path()).is_ok());
    }
}
