//! The files that a report goes to, and comes from.

use crate::args::{Json, OutputArgs};
use crate::report::Report;
use crate::{csv, hdr_log, html};
use corefs_wire::{Error, ErrorCode, Result};
use std::fs;
use std::path::Path;

/// Whether files can be made where the flags say: after an hour's run is too late to learn it.
pub fn check(outputs: Option<&OutputArgs>, json: Json<'_>) -> Result<()> {
    let all = outputs.into_iter().flat_map(|outputs| [&outputs.html, &outputs.csv, &outputs.hdr_log]);
    let json = match json {
        Json::File(path) => Some(path),
        Json::Nowhere | Json::Stdout => None,
    };
    for path in all.flatten().map(|path| path.as_path()).chain(json) {
        if path.is_dir() {
            let what = format!("{} is a directory; name a file for the report", path.display());
            return Err(Error::new(ErrorCode::BadConfig, what));
        }
        let parent = path.parent().filter(|parent| *parent != Path::new(""));
        if parent.is_some_and(|parent| !parent.is_dir()) {
            let what = format!("{}: there is no such directory for the report", path.display());
            return Err(Error::new(ErrorCode::BadConfig, what));
        }
    }
    Ok(())
}

/// Writes each of the files that the flags name.
pub fn write(report: &Report, outputs: Option<&OutputArgs>, json: Json<'_>) -> Result<()> {
    if let Json::File(path) = json {
        put(path, (report.to_json() + "\n").as_bytes())?;
    }
    let Some(outputs) = outputs else { return Ok(()) };
    if let Some(path) = &outputs.html {
        put(path, html::page(report).as_bytes())?;
    }
    if let Some(path) = &outputs.csv {
        put(path, csv::lines(report).as_bytes())?;
    }
    if let Some(path) = &outputs.hdr_log {
        put(path, &hdr_log::log(report)?)?;
    }
    Ok(())
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|error| Error::from(error).of(path.display()))
}

/// A report that was written as JSON.
pub fn read(path: &Path) -> Result<Report> {
    let text = fs::read_to_string(path).map_err(|error| Error::from(error).of(path.display()))?;
    let wrong = |error: serde_json::Error| {
        let what = format!("{}: no report as `corefs perf --json FILE` writes it: {error}", path.display());
        Error::new(ErrorCode::BadConfig, what)
    };
    serde_json::from_str(&text).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use std::path::PathBuf;

    #[test]
    fn places_that_take_no_file_are_refused_before_anything_is_measured() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = |path: PathBuf| OutputArgs { csv: Some(path), ..OutputArgs::default() };
        let verdict = |path: PathBuf| check(Some(&outputs(path)), Json::Nowhere).map_err(|e| e.message);
        assert_eq!(verdict(dir.path().join("new.csv")), Ok(()));
        assert_eq!(verdict("new.csv".into()), Ok(()));
        assert!(verdict(dir.path().to_owned()).unwrap_err().contains("is a directory"));
        assert!(verdict(dir.path().join("no/new.csv")).unwrap_err().contains("no such directory"));
        assert!(check(None, Json::File(Path::new("/no/such/place"))).is_err());
    }

    #[test]
    fn all_files_are_written_and_the_json_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let outputs = OutputArgs { html: Some(at("html")), csv: Some(at("csv")), hdr_log: Some(at("log")) };
        let report = Report::new(Machine::default());
        write(&report, Some(&outputs), Json::File(&at("json"))).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
        assert_eq!(read(&at("json")).unwrap().to_json(), report.to_json());
        assert!(read(&at("csv")).unwrap_err().message.contains("--json"));
        assert_eq!(read(&at("none")).unwrap_err().code, ErrorCode::Os);
    }
}
