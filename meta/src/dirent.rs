//! Entries of directories, and which names they may have.

use crate::encoding::{Reader, Writer};
use crate::inode::read_kind;
use corefs_wire::control::meta::Kind;
use corefs_wire::limits::NAME_MAX;
use corefs_wire::{Error, ErrorCode, InodeId, Result};

/// What a name leads to. The kind is kept beside the inode, so that listing a directory needs no other reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dirent {
    pub inode: InodeId,
    pub kind: Kind,
}

const VERSION: u8 = 1;

impl Dirent {
    pub fn encode(&self) -> Vec<u8> {
        Writer::new(VERSION).byte(self.kind.0).varint(self.inode.0).finish()
    }

    pub fn decode(value: &[u8]) -> Result<Self> {
        let (mut reader, _) = Reader::new("directory entry", value, VERSION)?;
        let dirent = Self { kind: read_kind(&mut reader)?, inode: InodeId(reader.varint()?) };
        reader.end()?;
        Ok(dirent)
    }

    pub fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }
}

/// Whether `name` can be an entry: 1 to [`NAME_MAX`] bytes, without `/` and NUL, not `.` or `..`, which no directory
/// stores.
pub fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        let (most, found) = (NAME_MAX as u64, name.len() as u64);
        return Err(Error::mismatch(ErrorCode::NameTooLong, most, found, "a name is too long"));
    }
    let forbidden = name.is_empty() || name == b"." || name == b"..";
    if forbidden || name.iter().any(|byte| matches!(byte, b'/' | 0)) {
        let shown = String::from_utf8_lossy(name).into_owned();
        return Err(Error::new(ErrorCode::InvalidName, format!("{shown:?} can't be a name")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_golden() {
        let dirent = Dirent { inode: InodeId(300), kind: Kind::Symlink };
        assert_eq!(dirent.encode(), [1, 2, 0xAC, 2]);
        assert_eq!(Dirent::decode(&dirent.encode()), Ok(dirent));
        for bad in [&[1, 9, 1][..], &[1, 2], &[2, 2, 1], &[1, 2, 1, 1], &[]] {
            assert!(Dirent::decode(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_are_checked() {
        for good in [&b"a"[..], b"...", b".hidden", &[0xFF; 255], b"with space", "größe".as_bytes()] {
            assert_eq!(check_name(good), Ok(()));
        }
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0"] {
            assert_eq!(check_name(bad).unwrap_err().code, ErrorCode::InvalidName, "{bad:?}");
        }
        assert_eq!(check_name(&[b'a'; 256]).unwrap_err().code, ErrorCode::NameTooLong);
    }
}
