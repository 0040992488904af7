//! Who may import whom: "Who may import whom" in `docs/architecture.md`. What is absent is forbidden.

use super::Findings;
use crate::source::Source;
use crate::tree::Tree;
use toml::{Table, Value};

/// Crates of ours by directory, and what each may depend on.
const ALLOWED: [(&str, &[&str]); 14] = [
    ("wire", &[]),
    ("net", &["wire"]),
    ("kv", &["wire", "net"]),
    ("engine", &["wire", "net"]),
    ("client", &["wire", "net"]),
    ("mgmtd", &["wire", "net", "kv"]),
    ("meta", &["wire", "net", "kv", "client"]),
    ("fuse", &["wire", "client"]),
    ("perf", &["wire", "net", "client", "engine"]),
    ("tools", &["wire", "net", "kv", "engine", "mgmtd", "meta", "client", "fuse", "perf"]),
    ("sim", &["wire", "net", "kv", "engine", "mgmtd", "meta", "client"]),
    ("ci/tidy", &[]),
    ("ci/fuzz", &["wire", "net"]),
    ("ci/history", &["wire", "net", "client"]),
];

/// What tests may depend on besides, each with its reason.
const ALLOWED_TO_TESTS: [(&str, &str); 2] = [
    ("client", "engine"), // its tests run against real shards
    ("tools", "sim"),     // crash images of a whole node
];

/// A crate that only parts of another may name: (who, whom, the parts).
const ONLY_IN: [(&str, &str, &[&str]); 1] = [("kv", "net", &["kv/src/remote", "kv/src/fdb"])];

/// The part of a crate that another may name: (who, whom, what follows the crate's name).
const ONLY_NAMED: [(&str, &str, &str); 1] = [("perf", "engine", "disk")];

pub fn check(tree: &Tree, findings: &mut Findings) {
    for (name, allowed) in ALLOWED {
        let Some(manifest) = tree.get(&format!("{name}/Cargo.toml")) else { continue };
        let table: Table = match manifest.text().parse() {
            Ok(table) => table,
            Err(error) => {
                findings.at(manifest, 1, format!("not a manifest: {error}"));
                continue;
            }
        };
        for kind in ["dependencies", "build-dependencies", "dev-dependencies"] {
            for dependency in dependencies(&table, kind) {
                let Some(ours) = ours(&dependency) else { continue };
                findings.checked += 1;
                let tests = kind == "dev-dependencies" && ALLOWED_TO_TESTS.contains(&(name, ours));
                if !allowed.contains(&ours) && !tests {
                    findings.at(
                        manifest,
                        line_of(manifest, &dependency),
                        format!("{name} must not import {ours}"),
                    );
                }
            }
        }
    }
    unknown_crates(tree, findings);
    for file in tree.rust() {
        narrow(file, findings);
    }
}

/// All dependencies of a kind, also those for certain platforms.
fn dependencies(manifest: &Table, kind: &str) -> Vec<String> {
    let of = |table: &Table| -> Vec<String> {
        let list = table.get(kind).and_then(Value::as_table);
        list.into_iter().flatten().map(|(name, _)| name.clone()).collect()
    };
    let targets = manifest.get("target").and_then(Value::as_table);
    let targets = targets.into_iter().flatten().filter_map(|(_, target)| target.as_table());
    of(manifest).into_iter().chain(targets.flat_map(of)).collect()
}

/// The directory of a crate of ours.
fn ours(dependency: &str) -> Option<&str> {
    dependency.strip_prefix("corefs-")
}

/// A crate that no rule knows could import anything.
fn unknown_crates(tree: &Tree, findings: &mut Findings) {
    for file in tree.files() {
        if let Some(directory) = file.path().strip_suffix("/Cargo.toml")
            && !ALLOWED.iter().any(|(name, _)| *name == directory)
        {
            findings.at(
                file,
                1,
                format!("{directory} is in no rule: say in ci/tidy/src/rules/imports.rs what it may import"),
            );
        }
    }
}

/// Imports that are allowed to or of a part only. Tests may do more.
fn narrow(file: &Source, findings: &mut Findings) {
    let of = |name: &str| file.path().starts_with(&format!("{name}/src/"));
    for word in file.product_words() {
        let Some(whom) = word.word.strip_prefix("corefs_") else { continue };
        findings.checked += 1;
        for (who, limited, parts) in ONLY_IN {
            if of(who) && whom == limited && !parts.iter().any(|part| file.is_in(part)) {
                findings.at(file, word.line, format!("only {} may import {limited}", parts.join(" and ")));
            }
        }
        for (who, limited, part) in ONLY_NAMED {
            let named = word.after.strip_prefix("::").map(str::trim_start);
            let fits =
                named.is_some_and(|rest| rest.starts_with(part) && !rest[part.len()..].starts_with('_'));
            if of(who) && whom == limited && !fits {
                findings.at(file, word.line, format!("{who} may import {limited}::{part} only"));
            }
        }
    }
}

fn line_of(file: &Source, dependency: &str) -> usize {
    file.text().lines().position(|line| line.trim_start().starts_with(dependency)).map_or(1, |line| line + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::findings;

    #[test]
    fn forbidden_imports_are_found_in_every_kind_of_dependency() {
        for section in
            ["dependencies", "build-dependencies", "dev-dependencies", "target.'cfg(unix)'.dependencies"]
        {
            let manifest =
                format!("[{section}]\ncorefs-net.workspace = true\ncorefs-meta.workspace = true\n");
            let found = findings(check, &[("engine/Cargo.toml", &manifest)]);
            assert_eq!(found, ["engine/Cargo.toml:3: engine must not import meta"], "{section}");
        }
        assert_eq!(
            findings(check, &[("net/Cargo.toml", "[dependencies]\nlibc = \"1\"\ncorefs-wire = {}\n")]).len(),
            0
        );
    }

    #[test]
    fn tests_may_do_what_is_listed() {
        let text = |kind: &str| format!("[{kind}]\ncorefs-engine.workspace = true\n");
        assert_eq!(findings(check, &[("client/Cargo.toml", &text("dev-dependencies"))]).len(), 0);
        assert_eq!(findings(check, &[("client/Cargo.toml", &text("dependencies"))]).len(), 1);
    }

    #[test]
    fn parts_stay_parts() {
        let code = "use corefs_net::Node;";
        assert_eq!(
            findings(
                check,
                &[("kv/src/remote/client.rs", code), ("kv/src/remote.rs", code), ("kv/src/fdb.rs", code)]
            )
            .len(),
            0
        );
        assert_eq!(
            findings(check, &[("kv/src/store.rs", code)]),
            ["kv/src/store.rs:1: only kv/src/remote and kv/src/fdb may import net"]
        );
        assert_eq!(findings(check, &[("perf/src/disk.rs", "use corefs_engine::disk::bench;")]).len(), 0);
        for code in
            ["use corefs_engine::store;", "use corefs_engine::{disk, store};", "use corefs_engine::disk_x;"]
        {
            assert_eq!(findings(check, &[("perf/src/disk.rs", code)]).len(), 1, "{code}");
        }
    }

    #[test]
    fn a_new_crate_needs_a_rule() {
        assert_eq!(findings(check, &[("extra/Cargo.toml", "[dependencies]\n")]).len(), 1);
    }
}
