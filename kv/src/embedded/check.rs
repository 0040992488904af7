//! What `corefs fsck` asks of a store that nobody has open.

use super::format::{PAIRS, open, translate};
use super::lock::DirectoryLock;
use super::log::{self, LogFile};
use super::tree::{About, catch_up};
use super::{LOG_FILE, STORE_FILE};
use corefs_wire::limits::KV_KEY_MAX;
use corefs_wire::{Error, ErrorCode, Result};
use redb::{Builder, Database, ReadableDatabase, ReadableTable};
use std::path::Path;

/// Damaged pairs named one by one; more are only counted.
const NAMED_MAX: usize = 20;

/// What a check found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Report {
    /// Pairs read, and the bytes of their keys and values.
    pub pairs: u64,
    pub bytes: u64,
    /// The newest version.
    pub version: u64,
    /// One sentence each; none when the store is whole.
    pub damage: Vec<String>,
}

/// Verifies the store in `directory`: redb's checksum of every page and its accounts of free pages, then the checksum
/// of every pair, and the store's own rows. Recovers the file first when its process died, and takes in what its log has.
///
/// Errors: `DirectoryInUse`, `NotFound` when there is no store, `KvIo`. Damage is no error but in the report.
pub fn check(directory: &Path) -> Result<Report> {
    let path = directory.join(STORE_FILE);
    if !path.is_file() {
        return Err(Error::new(ErrorCode::NotFound, format!("there is no store in {}", directory.display())));
    }
    let _lock = DirectoryLock::take(directory)?;
    let mut report = Report::default();
    let outcome = Builder::new()
        .open(&path)
        .map_err(translate)
        .and_then(|database| walk(database, directory, &mut report));
    match outcome {
        Err(error) if matches!(error.code, ErrorCode::Corrupt | ErrorCode::BadFormat) => {
            report.damage.push(format!("{}: {}", path.display(), error.message));
            Ok(report)
        }
        Err(error) => Err(error.of(path.display())),
        Ok(()) => Ok(report),
    }
}

fn walk(mut database: Database, directory: &Path, report: &mut Report) -> Result<()> {
    if !database.check_integrity().map_err(translate)? {
        report.damage.push("pages or their accounts were inconsistent, and have been repaired".into());
    }
    let about = About::read(&database)?;
    if about.format.is_none() {
        report.damage.push("the store has no rows about itself".into());
    }
    report.version = about.version;
    match replay(&database, about, directory) {
        Ok(version) => report.version = version,
        Err(error) if error.code == ErrorCode::Corrupt => {
            report.damage.push(format!("{LOG_FILE}: {}", error.message));
        }
        Err(error) => return Err(error),
    }
    let read = database.begin_read().map_err(translate)?;
    let pairs = read.open_table(PAIRS).map_err(translate)?;
    let mut damaged = 0usize;
    for pair in pairs.iter().map_err(translate)? {
        let (key, stored) = pair.map_err(translate)?;
        report.pairs += 1;
        report.bytes += (key.value().len() + stored.value().len()) as u64;
        let sentence = match open(key.value(), stored.value()) {
            Ok(_) if key.value().len() <= KV_KEY_MAX => continue,
            Ok(_) => format!("a key of {} bytes", key.value().len()),
            Err(error) => error.message,
        };
        damaged += 1;
        if damaged <= NAMED_MAX {
            report.damage.push(sentence);
        }
    }
    if damaged > NAMED_MAX {
        report.damage.push(format!("and {} more damaged pairs", damaged - NAMED_MAX));
    }
    Ok(())
}

/// Takes in what the log has and the tree hasn't. The newest version.
fn replay(database: &Database, about: About, directory: &Path) -> Result<u64> {
    match LogFile::open(directory)? {
        Some(log) => catch_up(database, about, &about.waiting(&log)?),
        None if about.life == 0 => Ok(about.version),
        None => Err(log::missing()),
    }
}
