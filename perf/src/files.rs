//! The files of a run: how they are called, and whether they must be written first.

use crate::workload::Workload;
use corefs_wire::{Error, ErrorCode, Result};
use std::path::{Path, PathBuf};

/// Most files of a run: each core holds all of them open.
pub const FILES_MAX: u32 = 65_536;

/// `path` itself, or `path.0`, `path.1` and so on when there are several.
pub fn paths(path: &Path, files: u32) -> Vec<PathBuf> {
    if files == 1 {
        return vec![path.to_owned()];
    }
    let numbered = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    (0..files).map(numbered).collect()
}

/// Whether the files must be written before they are read, by the lengths of those that are there. What is there is never
/// written over: `BadConfig` if it is too short, or only a part.
pub fn must_be_written(lengths: &[(PathBuf, Option<u64>)], workload: &Workload) -> Result<bool> {
    let bytes = workload.share();
    let there = |(path, length): &'_ (PathBuf, Option<u64>)| length.map(|length| (path.clone(), length));
    let bad = |what| Err(Error::new(ErrorCode::BadConfig, what));
    let Some((present, _)) = lengths.iter().find_map(there) else { return Ok(true) };
    if let Some((short, length)) = lengths.iter().filter_map(there).find(|(_, length)| *length < bytes) {
        return bad(format!(
            "{} has {length} bytes and {bytes} are needed; remove it, or name another",
            short.display()
        ));
    }
    match lengths.iter().find(|(_, length)| length.is_none()) {
        Some((absent, _)) => bad(format!(
            "{} is there and {} isn't: remove the files of the other run, or give another --path",
            present.display(),
            absent.display()
        )),
        None => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_numbers_only_if_there_are_several() {
        let names = |files| paths(Path::new("/a/b.dat"), files);
        assert_eq!(names(1), [Path::new("/a/b.dat")]);
        assert_eq!(names(3), ["/a/b.dat.0", "/a/b.dat.1", "/a/b.dat.2"].map(Path::new));
    }

    #[test]
    fn all_are_written_or_none() {
        let workload = Workload { files: 2, ..Workload::layout(2 << 20, 1) };
        let verdict = |lengths: [Option<u64>; 2]| {
            let lengths: Vec<_> = paths(Path::new("/x"), 2).into_iter().zip(lengths).collect();
            must_be_written(&lengths, &workload).map_err(|error| error.message)
        };
        assert_eq!(verdict([None, None]), Ok(true));
        assert_eq!(verdict([Some(1 << 20), Some(5 << 20)]), Ok(false));
        assert!(verdict([Some(1 << 20), Some(5)]).unwrap_err().contains("/x.1 has 5 bytes"));
        assert!(verdict([None, Some(1 << 20)]).unwrap_err().contains("/x.0 isn't"));
    }
}
