//! From paths to inodes, as path_resolution(7) has it.

use super::Fs;
use crate::Attr;
use crate::meta::check_name;
use corefs_wire::limits::PATH_MAX;
use corefs_wire::{Error, ErrorCode, InodeId, ROOT_INODE, Result};

/// Symlinks followed on one way, as Linux's.
pub const SYMLINKS_MAX: usize = 40;

/// Times that a path is walked while what it names is removed and made anew, again and again.
const WALKS_MAX: usize = 8;

/// What follows when the last component is a symlink.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Links {
    Follow,
    Keep,
}

/// The components still to walk, the next one last, and how many symlinks there were so far. Pure.
#[derive(Debug, PartialEq, Eq)]
struct Way {
    rest: Vec<Vec<u8>>,
    links: usize,
    /// A slash at the end: what it names must be a directory, and a symlink there is followed.
    directory: bool,
}

impl Way {
    fn new(path: &[u8]) -> Result<Self> {
        let mut way = Self { rest: Vec::new(), links: 0, directory: false };
        way.push(path)?;
        Ok(way)
    }

    /// Puts a path before the rest; whether it starts at the root.
    fn push(&mut self, path: &[u8]) -> Result<bool> {
        if path.is_empty() {
            return Err(Error::new(ErrorCode::NotFound, "an empty path"));
        }
        if path.len() > PATH_MAX {
            let (most, found) = (PATH_MAX as u64, path.len() as u64);
            return Err(Error::mismatch(
                ErrorCode::NameTooLong,
                most,
                found,
                "a path has at most 4095 bytes",
            ));
        }
        if path.contains(&0) {
            return Err(Error::new(ErrorCode::InvalidName, "a path with a zero byte"));
        }
        let components = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
        let mut fresh =
            components.map(|name| check_name(name).map(|()| name.to_vec())).collect::<Result<Vec<_>>>()?;
        fresh.reverse();
        if self.rest.is_empty() {
            self.directory |= matches!(path, [.., b'/'] | [.., b'/', b'.'] | b".");
        }
        self.rest.append(&mut fresh);
        Ok(path[0] == b'/')
    }

    fn follow(&mut self, target: &[u8]) -> Result<bool> {
        self.links += 1;
        if self.links > SYMLINKS_MAX {
            return Err(Error::new(ErrorCode::TooManySymlinks, "more than 40 symlinks on one way"));
        }
        self.push(target)
    }
}

impl Fs {
    /// What a path names. `NotFound`, `NotDirectory`, `NameTooLong` (a component over NAME_MAX or a path over
    /// PATH_MAX), `TooManySymlinks` (over 40).
    pub async fn resolve(&self, path: &[u8], links: Links) -> Result<Attr> {
        self.with(path, links, async |attr| Ok(attr)).await
    }

    /// Does `work` with what a path names; anew when that, or a directory on the way, was removed meanwhile: the name may lead to its
    /// successor by now.
    pub(super) async fn with<T>(
        &self,
        path: &[u8],
        links: Links,
        work: impl AsyncFn(Attr) -> Result<T>,
    ) -> Result<T> {
        for _ in 1..WALKS_MAX {
            let outcome = match self.walk(path, links).await {
                Ok(attr) => work(attr).await,
                Err(error) => Err(error),
            };
            if !matches!(&outcome, Err(error) if error.code == ErrorCode::NoSuchInode) {
                return outcome;
            }
        }
        work(self.walk(path, links).await?).await
    }

    async fn walk(&self, path: &[u8], links: Links) -> Result<Attr> {
        let mut way = Way::new(path)?;
        // The directories from the root to where we are: `..` goes back by one.
        let root = self.client.get_attr(&self.who, ROOT_INODE).await?;
        let mut passed = vec![root];
        while let Some(name) = way.rest.pop() {
            let here = *passed.last().unwrap_or(&root);
            if name == b".." {
                passed.truncate((passed.len() - 1).max(1));
                continue;
            }
            let found = self.client.lookup(&self.who, here.inode, &name).await?;
            let follow = !way.rest.is_empty() || links == Links::Follow || way.directory;
            if found.is_symlink() && follow {
                let target = self.client.meta().read_link(&self.who, found.inode).await?;
                if way.follow(&target)? {
                    passed.truncate(1);
                }
                continue;
            }
            if !found.is_directory() && (!way.rest.is_empty() || way.directory) {
                let what = format!("`{}` is not a directory", String::from_utf8_lossy(&name));
                return Err(Error::new(ErrorCode::NotDirectory, what));
            }
            passed.push(found);
        }
        Ok(*passed.last().unwrap_or(&root))
    }

    /// The directory that holds a path's last component, and that component. `InvalidName` for the root, `.` and `..`.
    pub async fn resolve_parent(&self, path: &[u8]) -> Result<(InodeId, Vec<u8>)> {
        Way::new(path)?;
        let (parent, name) = split(path)?;
        if parent.is_empty() {
            return Ok((ROOT_INODE, name.to_vec()));
        }
        let parent = self.resolve(parent, Links::Follow).await?;
        if !parent.is_directory() {
            return Err(Error::new(ErrorCode::NotDirectory, "the path goes through what is not a directory"));
        }
        Ok((parent.inode, name.to_vec()))
    }
}

/// A path's last component and what is before it.
fn split(path: &[u8]) -> Result<(&[u8], &[u8])> {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let path = &path[..end];
    let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    match &path[start..] {
        b"" | b"." | b".." => {
            Err(Error::new(ErrorCode::InvalidName, "the path's last component doesn't name an entry"))
        }
        name => Ok((&path[..start], name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::limits::NAME_MAX;

    fn names(path: &str) -> Vec<String> {
        let mut rest = Way::new(path.as_bytes()).unwrap().rest;
        rest.reverse();
        rest.into_iter().map(|name| String::from_utf8(name).unwrap()).collect()
    }

    #[test]
    fn components_are_found() {
        assert_eq!(names("/a//b/./c/"), ["a", "b", "c"]);
        assert_eq!(names("a/../b"), ["a", "..", "b"]);
        assert!(names("/").is_empty() && names(".").is_empty());
        let directory = |path: &str| Way::new(path.as_bytes()).unwrap().directory;
        assert!(
            directory("/a/") && directory("/a/.") && directory("/") && !directory("/a") && !directory("/a.")
        );
    }

    #[test]
    fn lengths_are_bounded() {
        let code = |path: &[u8]| Way::new(path).map(drop).map_err(|error| error.code);
        let name = vec![b'x'; NAME_MAX];
        assert_eq!(code(&name), Ok(()));
        assert_eq!(code(&[&name[..], b"x"].concat()), Err(ErrorCode::NameTooLong));
        let path = b"/x".repeat(PATH_MAX / 2);
        assert_eq!(code(&path), Ok(()));
        assert_eq!(code(&[&path[..], b"/x"].concat()), Err(ErrorCode::NameTooLong));
        assert_eq!(code(b""), Err(ErrorCode::NotFound));
        assert_eq!(code(b"/a\0b"), Err(ErrorCode::InvalidName));
    }

    #[test]
    fn symlinks_are_bounded_and_come_before_the_rest() {
        let mut way = Way::new(b"/a/b").unwrap();
        way.rest.pop();
        assert_eq!(way.follow(b"/x/y"), Ok(true));
        assert_eq!(way.rest, [b"b".to_vec(), b"y".to_vec(), b"x".to_vec()]);
        assert!((1..SYMLINKS_MAX).all(|_| way.follow(b"z") == Ok(false)));
        assert_eq!(way.follow(b"z").unwrap_err().code, ErrorCode::TooManySymlinks);
    }

    #[test]
    fn the_last_component_is_split_off() {
        let parts = |path: &'static str| split(path.as_bytes()).ok();
        let some = |parent: &'static str, name: &'static str| Some((parent.as_bytes(), name.as_bytes()));
        assert_eq!(parts("/a"), some("/", "a"));
        assert_eq!(parts("a"), some("", "a"));
        assert_eq!(parts("/a/b//"), some("/a/", "b"));
        assert!(parts("/").is_none() && parts("/a/..").is_none() && parts(".").is_none());
    }
}
