//! Whole ways and whole trees: `mkdir -p`, `rm -r`.

use super::{Fs, Links, PAGE};
use crate::meta::NewInode;
use crate::{Attr, Entry, Kind, join};
use corefs_wire::{Error, ErrorCode, InodeId, Result};

/// Names removed at once.
const REMOVALS: usize = 16;

/// A directory being emptied: where its entry is, and itself.
struct Doomed {
    parent: InodeId,
    name: Vec<u8>,
    inode: InodeId,
}

impl Fs {
    /// With the directories on the way; fine if it is there already. `NotDirectory` when something else is.
    pub async fn mkdir_all(&self, path: &[u8], mode: u32) -> Result<Attr> {
        let slashes =
            path.iter().enumerate().filter(|(at, byte)| **byte == b'/' && *at > 0).map(|(at, _)| at);
        let ends: Vec<usize> = slashes.chain([path.len()]).collect();
        // Usually most of the way is there: go back to the longest part of it that is.
        let (mut made, mut exists) = (None, 0);
        for (at, end) in ends.iter().enumerate().rev() {
            match self.resolve(&path[..*end], Links::Follow).await {
                Ok(attr) => {
                    (made, exists) = (Some(attr), at + 1);
                    break;
                }
                Err(error) if error.code == ErrorCode::NotFound => (),
                Err(error) => return Err(error),
            }
        }
        for end in &ends[exists..] {
            made = Some(match self.make(&path[..*end], &NewInode::new(Kind::Directory, mode)).await {
                // Somebody else was faster.
                Err(error) if error.code == ErrorCode::Exists => self.stat(&path[..*end]).await?,
                // `a/./b`, `a//b`: nothing to make.
                Err(error) if error.code == ErrorCode::InvalidName => self.stat(&path[..*end]).await?,
                attr => attr?,
            });
        }
        let not_found = || Error::new(ErrorCode::NotFound, "an empty path");
        let made = made.ok_or_else(not_found)?;
        if made.is_directory() {
            return Ok(made);
        }
        Err(Error::new(ErrorCode::NotDirectory, "there is something else of that name"))
    }

    /// With everything below. For root that is one step, whatever there is: a tree is gone at once, and its space comes back by and by; files in it that are
    /// open are gone as if another client had removed them. For others
    /// it goes name by name and stops at the first error; what was removed stays removed.
    pub async fn remove_all(&self, path: &[u8]) -> Result<()> {
        let (parent, name) = self.resolve_parent(path).await?;
        let found = self.client.meta().lookup(&self.who, parent, &name).await?;
        if !found.is_directory() {
            return self.client.unlink(&self.who, parent, &name).await;
        }
        match self.client.meta().rmdir(&self.who, parent, &name, self.who.uid == 0).await {
            // Somebody else's rules, or a server that can't: name by name then.
            Err(error) if matches!(error.code, ErrorCode::NotEmpty | ErrorCode::NotPermitted) => (),
            outcome => return outcome,
        }
        let mut doomed = vec![Doomed { parent, name, inode: found.inode }];
        while let Some(top) = doomed.last() {
            let directory = top.inode;
            let meta = self.client.meta();
            let entries = meta.read_dir(&self.who, directory, b"", PAGE, false).await?.entries;
            if entries.is_empty() {
                meta.rmdir(&self.who, top.parent, &top.name, false).await?;
                doomed.pop();
                continue;
            }
            let (below, names): (Vec<Entry>, Vec<Entry>) =
                entries.into_iter().partition(|entry| entry.kind == Kind::Directory);
            self.unlink_all(directory, &names).await?;
            doomed.extend(below.into_iter().map(|entry| Doomed {
                parent: directory,
                name: entry.name,
                inode: entry.inode,
            }));
        }
        Ok(())
    }

    async fn unlink_all(&self, directory: InodeId, names: &[Entry]) -> Result<()> {
        for group in names.chunks(REMOVALS) {
            let removals = group.iter().map(|entry| self.client.unlink(&self.who, directory, &entry.name));
            for outcome in join::all(removals).await {
                match outcome {
                    // Somebody else was faster.
                    Err(error) if matches!(error.code, ErrorCode::NotFound | ErrorCode::NoSuchInode) => (),
                    outcome => outcome?,
                }
            }
        }
        Ok(())
    }
}
