//! Few dependencies: each is named once, in the root manifest, with the reason why it is there; and each is used.

use super::Findings;
use crate::source::Source;
use crate::tree::Tree;
use toml::{Table, Value};

/// Shorter ones give no reason.
const REASON_MIN: usize = 8;

pub fn check(tree: &Tree, findings: &mut Findings) {
    let Some(root) = tree.get("Cargo.toml") else { return };
    let manifests: Vec<&Source> = tree.files().filter(|file| file.path().ends_with("/Cargo.toml")).collect();
    let mut inside = false;
    let mut above = "";
    for (number, line) in root.text().lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            inside = line == "[workspace.dependencies]";
        } else if inside && let Some((name, value)) = line.split_once('=').filter(|_| !line.starts_with('#'))
        {
            let name = name.trim();
            findings.checked += 1;
            let ours = value.contains("path =");
            if !ours && !has_reason(value) && !has_reason(above) {
                findings.at(root, number + 1, format!("{name} has no comment that says why it is here"));
            }
            if !ours && !manifests.iter().any(|manifest| uses(manifest, name)) {
                findings.at(root, number + 1, format!("{name} is used by no crate"));
            }
        }
        above = line;
    }
    for manifest in manifests {
        own_versions(manifest, findings);
    }
    foreign_sources(tree, findings);
}

fn has_reason(text: &str) -> bool {
    text.rsplit_once('#').is_some_and(|(_, reason)| reason.trim().len() >= REASON_MIN)
}

fn tables(manifest: &Source) -> Vec<Table> {
    let Ok(all) = manifest.text().parse::<Table>() else { return Vec::new() };
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    let pick = |table: &Table| {
        kinds.iter().filter_map(|kind| table.get(*kind)?.as_table().cloned()).collect::<Vec<_>>()
    };
    let targets = all.get("target").and_then(Value::as_table).into_iter().flatten();
    let of_targets = targets.filter_map(|(_, target)| target.as_table()).flat_map(pick);
    pick(&all).into_iter().chain(of_targets).collect()
}

fn uses(manifest: &Source, name: &str) -> bool {
    tables(manifest).iter().any(|table| table.contains_key(name))
}

/// Every version is in the root manifest, so that there is one place to look.
fn own_versions(manifest: &Source, findings: &mut Findings) {
    for (name, value) in tables(manifest).iter().flatten() {
        // A crate of ours without its default features can't be taken from the workspace.
        let ours = name.starts_with("corefs-") && value.get("path").is_some();
        if !ours && value.get("workspace") != Some(&true.into()) {
            let line =
                manifest.text().lines().position(|line| line.starts_with(name.as_str())).unwrap_or(0) + 1;
            findings.at(
                manifest,
                line,
                format!("{name} must be taken from the workspace: `{name}.workspace = true`"),
            );
        }
    }
}

/// Everything comes from the public registry.
fn foreign_sources(tree: &Tree, findings: &mut Findings) {
    let Some(lock) = tree.get("Cargo.lock") else { return };
    for (number, line) in lock.text().lines().enumerate() {
        if line.starts_with("source = ")
            && !line.contains("registry+https://github.com/rust-lang/crates.io-index")
        {
            findings.at(lock, number + 1, format!("{line}: not from the public registry"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::findings;

    const USER: (&str, &str) =
        ("a/Cargo.toml", "[dependencies]\nlibc.workspace = true\nslab = { workspace = true }\n");

    fn root(lines: &str) -> Vec<String> {
        findings(
            check,
            &[("Cargo.toml", &format!("[workspace.dependencies]\n{lines}\n[profile.dev]\nx = 1\n")), USER],
        )
    }

    #[test]
    fn dependencies_without_a_reason_or_a_user_are_found() {
        assert!(
            root("libc = \"1\"   # system calls\nslab = { version = \"1\", features = [] } # dense tables")
                .is_empty()
        );
        assert!(root("# system calls of the ring\nlibc = \"1\"").is_empty());
        assert_eq!(root("libc = \"1\""), ["Cargo.toml:2: libc has no comment that says why it is here"]);
        assert_eq!(root("libc = \"1\" # x").len(), 1);
        assert_eq!(root("rand = \"1\" # numbers at random"), ["Cargo.toml:2: rand is used by no crate"]);
        assert!(root("corefs-x = { path = \"x\" }").is_empty());
    }

    #[test]
    fn versions_and_sources_of_ones_own_are_found() {
        let own =
            findings(check, &[("Cargo.toml", ""), ("a/Cargo.toml", "[dev-dependencies]\nlibc = \"0.2\"\n")]);
        assert_eq!(own.len(), 1);
        assert!(own[0].starts_with("a/Cargo.toml:2: libc must"), "{own:?}");
        let ours = "[dependencies]\ncorefs-kv = { path = \"../kv\", default-features = false }\n";
        assert!(findings(check, &[("Cargo.toml", ""), ("a/Cargo.toml", ours)]).is_empty());
        let lock = "source = \"registry+https://github.com/rust-lang/crates.io-index\"\nsource = \"git+https://example.org/x\"\n";
        assert_eq!(findings(check, &[("Cargo.toml", ""), ("Cargo.lock", lock)]).len(), 1);
    }
}
