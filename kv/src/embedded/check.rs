//! What `corefs fsck` asks of a store that nobody has open.

use super::STORE_FILE;
use super::format::{ABOUT, FORMAT, FORMAT_ROW, PAIRS, VERSION_ROW, open, translate};
use super::lock::DirectoryLock;
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
/// of every pair, and the store's own rows. Recovers the file first when its process died.
///
/// Errors: `DirectoryInUse`, `NotFound` when there is no store, `KvIo`. Damage is no error but in the report.
pub fn check(directory: &Path) -> Result<Report> {
    let path = directory.join(STORE_FILE);
    if !path.is_file() {
        return Err(Error::new(ErrorCode::NotFound, format!("there is no store in {}", directory.display())));
    }
    let _lock = DirectoryLock::take(directory)?;
    let mut report = Report::default();
    let outcome =
        Builder::new().open(&path).map_err(translate).and_then(|database| walk(database, &mut report));
    match outcome {
        Err(error) if matches!(error.code, ErrorCode::Corrupt | ErrorCode::BadFormat) => {
            report.damage.push(format!("{}: {}", path.display(), error.message));
            Ok(report)
        }
        Err(error) => Err(error.of(path.display())),
        Ok(()) => Ok(report),
    }
}

fn walk(mut database: Database, report: &mut Report) -> Result<()> {
    if !database.check_integrity().map_err(translate)? {
        report.damage.push("pages or their accounts were inconsistent, and have been repaired".into());
    }
    let read = database.begin_read().map_err(translate)?;
    let about = read.open_table(ABOUT).map_err(translate)?;
    let row = |name: &str| Ok::<_, Error>(about.get(name).map_err(translate)?.map(|row| row.value()));
    match (row(FORMAT_ROW)?, row(VERSION_ROW)?) {
        (Some(FORMAT), Some(version)) => report.version = version,
        (format, version) => {
            report.damage.push(format!("the rows about the store say {format:?}, {version:?}"))
        }
    }
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
