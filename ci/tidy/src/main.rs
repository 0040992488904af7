//! Checks the rules of the house that the compiler doesn't: who may import whom, what may be shared, where `unsafe` and errno
//! may be, what is pure, how long a file may get, and whether the documents' links hold.
//!
//! The rules are in `docs/architecture.md`; each file of [`rules`] is one of them, with the exceptions it knows, by name and
//! with the reason. Run it from anywhere: `cargo run -p corefs-tidy`. It reads files only, and takes well under a second.

mod rules;
mod source;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;
use tree::Tree;

fn main() -> ExitCode {
    let root = std::env::args_os().nth(1).map_or_else(workspace, PathBuf::from);
    let tree = match Tree::read(&root) {
        Ok(tree) => tree,
        Err(error) => {
            eprintln!("tidy: {}: {error}", root.display());
            return ExitCode::FAILURE;
        }
    };
    let mut violations = 0;
    for (name, rule) in rules::ALL {
        let mut findings = rules::Findings::default();
        rule(&tree, &mut findings);
        findings.found.sort();
        for finding in &findings.found {
            println!("{finding}  [{name}]");
        }
        println!("tidy: {name}: {} checked, {} violations", findings.checked, findings.found.len());
        violations += findings.found.len();
    }
    let lines: usize = tree.files().map(|file| file.text().lines().count()).sum();
    println!(
        "tidy: {} rules, {} files, {lines} lines, {violations} violations",
        rules::ALL.len(),
        tree.files().count()
    );
    ExitCode::from(u8::from(violations > 0))
}

/// The workspace that this program was built in.
fn workspace() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}
