//! The files of the repository, read once.

use crate::source::Source;
use std::collections::BTreeMap;
use std::fs;
use std::io::Result;
use std::path::Path;

/// Kinds of files that any rule looks at, by the end of their name.
const KINDS: [&str; 8] = [".rs", ".toml", ".md", ".sh", ".py", ".fbs", ".lock", ".yml"];

/// All text files of the repository by path from its root, with `/`.
#[derive(Default)]
pub struct Tree {
    files: BTreeMap<String, Source>,
    /// Everything there is, for links: also what isn't read.
    names: std::collections::BTreeSet<String>,
}

impl Tree {
    /// Reads everything below `root`, but for what a build leaves there and what is hidden.
    pub fn read(root: &Path) -> Result<Self> {
        let mut tree = Self::default();
        tree.walk(root, "")?;
        Ok(tree)
    }

    fn walk(&mut self, directory: &Path, prefix: &str) -> Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = format!("{prefix}{name}");
            let hidden = name.starts_with('.') && name != ".ci";
            if hidden || path == "target" || name == "__pycache__" {
                continue;
            }
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.names.insert(path.clone());
                self.walk(&entry.path(), &format!("{path}/"))?;
            } else if kind.is_file() {
                self.names.insert(path.clone());
                let read = KINDS.iter().any(|end| name.ends_with(end)) || is_script(&path);
                if read && let Ok(text) = fs::read_to_string(entry.path()) {
                    self.add(path, text);
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, path: String, text: String) {
        self.names.insert(path.clone());
        self.files.insert(path.clone(), Source::new(path, text));
    }

    pub fn files(&self) -> impl Iterator<Item = &Source> {
        self.files.values()
    }

    /// Rust files that people write.
    pub fn rust(&self) -> impl Iterator<Item = &Source> {
        self.files().filter(|file| file.path().ends_with(".rs") && !file.generated())
    }

    pub fn get(&self, path: &str) -> Option<&Source> {
        self.files.get(path)
    }

    /// Whether a file or directory of that path is there.
    pub fn exists(&self, path: &str) -> bool {
        path.is_empty() || self.names.contains(path)
    }

    /// A tree out of thin air.
    #[cfg(test)]
    pub fn of(files: &[(&str, &str)]) -> Self {
        let mut tree = Self::default();
        for (path, text) in files {
            let mut parent = *path;
            while let Some((directory, _)) = parent.rsplit_once('/') {
                tree.names.insert(directory.to_owned());
                parent = directory;
            }
            tree.add((*path).to_owned(), (*text).to_owned());
        }
        tree
    }
}

/// Programs without an end to their name.
fn is_script(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    (path.starts_with("ci/") || path.starts_with(".ci/")) && !name.contains('.')
}
