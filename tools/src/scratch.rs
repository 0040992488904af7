//! A directory for one run.

use corefs_wire::{Error, ErrorCode, Result};
use std::path::{Path, PathBuf};

/// Removed at the end when nobody named it.
pub struct Scratch {
    path: PathBuf,
    remove: bool,
}

impl Scratch {
    /// `named` is empty or not there yet, and is kept; without it, a directory in the current one, which is removed at the end.
    pub fn new(named: Option<&Path>, prefix: &str) -> Result<Self> {
        let Some(path) = named else { return Self::inside(Path::new("."), prefix) };
        if path.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
            let what = format!("--dir {}: not empty; a fresh directory is needed", path.display());
            return Err(Error::new(ErrorCode::DirectoryInUse, what));
        }
        Self::make(path, false)
    }

    /// A new directory in `parent`, named by `prefix` and our process's number; removed at the end.
    pub fn inside(parent: &Path, prefix: &str) -> Result<Self> {
        Self::make(&parent.join(format!("{prefix}-{}", std::process::id())), true)
    }

    fn make(path: &Path, remove: bool) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(|error| Error::from(error).of(path.display()))?;
        let path = path.canonicalize().map_err(|error| Error::from(error).of(path.display()))?;
        Ok(Self { path, remove })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.remove
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            eprintln!("corefs: {} could not be removed: {error}", self.path.display());
        }
    }
}
