//! Flags merged with a TOML file: one file, a section for each role, the flag wins.
//!
//! A role's arguments are one struct, read by clap from the command line and by serde from its section. Fields are
//! options, so that "not given" can be told from any value, and an unknown key is an error that names it.

use corefs_wire::{Error, ErrorCode, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;

/// The settings of one role: what `flags` say, else section `section` of `file`, else nothing.
pub fn merge<T: Serialize + DeserializeOwned>(section: &str, file: Option<&Path>, flags: &T) -> Result<T> {
    let mut settings = match file {
        Some(path) => read_section(section, path)?,
        None => toml::Table::new(),
    };
    let flags = toml::Table::try_from(flags)
        .map_err(|error| Error::new(ErrorCode::Internal, format!("flags as TOML: {error}")))?;
    settings.extend(flags);
    toml::Value::Table(settings).try_into().map_err(|error| bad(section, file, &error))
}

fn read_section(section: &str, path: &Path) -> Result<toml::Table> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::from(error).of(path.display()))?;
    let mut whole: toml::Table = toml::from_str(&text).map_err(|error| bad(section, Some(path), &error))?;
    if let Some(unknown) = whole.keys().find(|key| !SECTIONS.contains(&key.as_str())) {
        let what = format!("there is no section [{unknown}]; the sections are {}", SECTIONS.join(", "));
        return Err(Error::new(ErrorCode::BadConfig, format!("{}: {what}", path.display())));
    }
    match whole.remove(section) {
        None => Ok(toml::Table::new()),
        Some(toml::Value::Table(table)) => Ok(table),
        Some(_) => {
            Err(Error::new(ErrorCode::BadConfig, format!("{}: {section} isn't a section", path.display())))
        }
    }
}

/// The sections of a configuration file, by the subcommand that reads them.
pub const SECTIONS: [&str; 5] = ["kv", "mgmtd", "meta", "storage", "mount"];

fn bad(section: &str, file: Option<&Path>, error: &toml::de::Error) -> Error {
    let place = file.map_or("the flags".into(), |path| path.display().to_string());
    let what = format!("{place}, section [{section}]: {error}see `corefs config print` for every setting");
    Error::new(ErrorCode::BadConfig, what)
}

/// A setting that has no default and was given neither as flag nor in the file.
pub fn required<T>(value: Option<T>, section: &str, flag: &str) -> Result<T> {
    value.ok_or_else(|| {
        let what = format!(
            "give --{} or set {flag} in section [{section}] of --config FILE",
            flag.replace('_', "-")
        );
        Error::new(ErrorCode::BadConfig, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Serialize, Deserialize, PartialEq, Debug, Default)]
    #[serde(deny_unknown_fields, default)]
    struct Flags {
        #[serde(skip_serializing_if = "Option::is_none")]
        cores: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        listen: Option<String>,
    }

    #[test]
    fn flags_win_over_the_file_and_unknown_keys_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("corefs.toml");
        std::fs::write(&path, "[storage]\ncores = 4\nlisten = \"here\"\n[meta]\nx = 1\n").unwrap();
        let flags = Flags { cores: Some(2), listen: None };
        let merged: Flags = merge("storage", Some(&path), &flags).unwrap();
        assert_eq!(merged, Flags { cores: Some(2), listen: Some("here".into()) });

        let error = merge("meta", Some(&path), &Flags::default()).unwrap_err();
        assert!(error.code == ErrorCode::BadConfig && error.message.contains("unknown field `x`"), "{error}");
        std::fs::write(&path, "[storrage]\n").unwrap();
        let error = merge("storage", Some(&path), &Flags::default()).unwrap_err();
        assert!(error.message.contains("[storrage]"), "{error}");
    }
}
