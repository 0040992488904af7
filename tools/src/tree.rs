//! A real directory tree, copied and compared by SHA-256.

use corefs_perf::histogram::Latencies;
use corefs_perf::progress::{Progress, Unit, Watch};
use corefs_wire::{Error, ErrorCode, Result};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Trees that most machines have, the most interesting first.
const USUAL: [&str; 6] =
    ["/usr/share/doc", "/usr/include", "/usr/lib/python3", "/usr/share/perl", "/usr/share", "/etc"];

/// What was copied and how it compared.
pub struct Copied {
    pub files: u64,
    pub bytes: u64,
    /// Files, links and directories that read back otherwise than they were.
    pub mismatches: u64,
    /// Of the copying, not of the comparison.
    pub elapsed: Duration,
    /// Of each file, from its creation to its close.
    pub latencies: Latencies,
}

/// The tree that was named, or one that is there.
pub fn find(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = named {
        return match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => Ok(path.to_owned()),
            Ok(_) => {
                Err(Error::new(ErrorCode::BadConfig, format!("--tree {}: not a directory", path.display())))
            }
            Err(error) => Err(Error::from(error).of(format!("--tree {}", path.display()))),
        };
    }
    let found = USUAL.iter().map(PathBuf::from).find(|path| path.is_dir());
    found.ok_or_else(|| Error::new(ErrorCode::NotFound, "no directory tree to copy; name one with --tree"))
}

enum Kind {
    Directory,
    File([u8; 32]),
    Link(PathBuf),
}

struct Item {
    /// Below the tree's root.
    path: PathBuf,
    mode: u32,
    kind: Kind,
}

/// Copies `from` to `to` until `bounds` (bytes, entries) are reached, then reads everything back and compares it.
pub fn copy_and_verify(from: &Path, to: &Path, bounds: (u64, usize), watch: Watch) -> Result<Copied> {
    let list = walk(from, bounds)?;
    let total: u64 = list.iter().map(|(_, meta)| if meta.is_file() { meta.len() } else { 0 }).sum();
    let mut copied =
        Copied { files: 0, bytes: 0, mismatches: 0, elapsed: Duration::ZERO, latencies: Latencies::new() };
    let mut progress = Progress::new(watch, "copying in", total, Unit::Bytes);
    let begin = Instant::now();
    let mut items = Vec::with_capacity(list.len());
    for (path, meta) in list {
        if let Some(item) = copy(from, to, path, &meta, &mut copied)? {
            items.push(item);
        }
        progress.at(copied.bytes);
    }
    copied.elapsed = begin.elapsed();
    drop(progress);
    let mut progress = Progress::new(watch, "verifying", copied.bytes, Unit::Bytes);
    let mut verified = 0;
    for item in &items {
        copied.mismatches += u64::from(!equal(&to.join(&item.path), item, &mut verified));
        progress.at(verified);
    }
    Ok(copied)
}

/// Entries of a tree, parents before children.
fn walk(root: &Path, (bytes_max, entries_max): (u64, usize)) -> Result<Vec<(PathBuf, fs::Metadata)>> {
    let of = |error: std::io::Error| Error::from(error).of(root.display());
    let mut found = vec![(PathBuf::new(), fs::metadata(root).map_err(of)?)];
    let (mut bytes, mut next) = (0, 0);
    while next < found.len() {
        let (path, meta) = found[next].clone();
        next += 1;
        // What can't be read is left out: this is somebody's machine, not our tree.
        let Some(entries) = meta.is_dir().then(|| fs::read_dir(root.join(&path)).ok()).flatten() else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(meta) = fs::symlink_metadata(entry.path()) else { continue };
            bytes += if meta.is_file() { meta.len() } else { 0 };
            if bytes > bytes_max || found.len() >= entries_max {
                return Ok(found);
            }
            found.push((path.join(entry.file_name()), meta));
        }
    }
    Ok(found)
}

fn copy(
    from: &Path,
    to: &Path,
    path: PathBuf,
    meta: &fs::Metadata,
    copied: &mut Copied,
) -> Result<Option<Item>> {
    let (source, sink) = (from.join(&path), to.join(&path));
    let of = |error: std::io::Error| Error::from(error).of(sink.display());
    let mode = meta.mode() & 0o777;
    let kind = if meta.is_dir() {
        fs::DirBuilder::new().mode(mode | 0o700).create(&sink).map_err(of)?;
        Kind::Directory
    } else if meta.is_symlink() {
        let Ok(target) = fs::read_link(&source) else { return Ok(None) };
        symlink(&target, &sink).map_err(of)?;
        Kind::Link(target)
    } else if meta.is_file() {
        let Ok(mut source) = File::open(&source) else { return Ok(None) };
        let begin = Instant::now();
        let file = File::options().write(true).create_new(true).mode(mode).open(&sink).map_err(of)?;
        let (digest, bytes) = pour(&mut source, file).map_err(of)?;
        copied.latencies.record(begin.elapsed().as_nanos() as u64);
        copied.files += 1;
        copied.bytes += bytes;
        Kind::File(digest)
    } else {
        return Ok(None);
    };
    Ok(Some(Item { path, mode, kind }))
}

fn pour(source: &mut File, mut sink: File) -> std::io::Result<([u8; 32], u64)> {
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = source.read(&mut buffer)?;
        if count == 0 {
            return Ok((hash.finalize().into(), bytes));
        }
        hash.update(&buffer[..count]);
        sink.write_all(&buffer[..count])?;
        bytes += count as u64;
    }
}

/// Whether an entry reads back as it was copied. What can't be read isn't equal.
fn equal(path: &Path, item: &Item, verified: &mut u64) -> bool {
    let Ok(meta) = fs::symlink_metadata(path) else { return false };
    match &item.kind {
        Kind::Directory => meta.is_dir(),
        Kind::Link(target) => fs::read_link(path).is_ok_and(|found| found == *target),
        Kind::File(digest) => {
            *verified += meta.len();
            meta.is_file()
                && meta.mode() & 0o777 == item.mode & !umask()
                && digest_of(path).is_ok_and(|found| found == *digest)
        }
    }
}

fn digest_of(path: &Path) -> std::io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash)?;
    Ok(hash.finalize().into())
}

fn umask() -> u32 {
    // SAFETY: umask has no preconditions. It can only be read by setting it; no other thread creates files meanwhile.
    unsafe {
        let mask = libc::umask(0o022);
        libc::umask(mask);
        mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_equal_until_somebody_alters_it() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("below")).unwrap();
        fs::write(from.join("below/file"), vec![7; 3_000_000]).unwrap();
        fs::write(from.join("empty"), "").unwrap();
        symlink("nowhere", from.join("link")).unwrap();
        let copied = copy_and_verify(&from, &to, (u64::MAX, usize::MAX), Watch::Nothing).unwrap();
        assert_eq!((copied.files, copied.bytes, copied.mismatches), (2, 3_000_000, 0));

        let digest = digest_of(&to.join("below/file")).unwrap();
        let mode = fs::metadata(to.join("below/file")).unwrap().mode() & 0o777;
        let item = Item { path: "below/file".into(), mode, kind: Kind::File(digest) };
        assert!(equal(&to.join("below/file"), &item, &mut 0));
        fs::write(to.join("below/file"), vec![8; 3_000_000]).unwrap();
        assert!(!equal(&to.join("below/file"), &item, &mut 0));
        assert!(!equal(&to.join("gone"), &item, &mut 0));
    }
}
