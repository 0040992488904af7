//! The state table in the documentation, and the snapshot of every state against every event, are those of the code.
//! `COREFS_RENDER=1 cargo test -p corefs-mgmtd --test state_table` writes both again.

use corefs_mgmtd::cluster::transition::{Local, Public, Situation, render, row};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

fn compare(path: &str, expected: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("COREFS_RENDER").is_some() {
        std::fs::write(&path, expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "{} is stale; render it again with COREFS_RENDER=1", path.display());
}

#[test]
fn the_documentation_is_fresh() {
    compare("../docs/state-table.md", &render());
}

/// What becomes of every state under every event in every situation: a change of the table shows here as what it means.
#[test]
fn every_state_against_every_event() {
    let mut out = String::from(
        "# public local serving-elsewhere syncing-elsewhere cut-elsewhere first last-set stay -> next\n",
    );
    let mut labels = BTreeSet::new();
    for public in Public::ALL {
        for local in Local::ALL {
            for at in Situation::all() {
                // Every field by name: a new one makes itself known here.
                let Situation { serving, syncing, cut, first, last_set, stay } = at;
                let flags =
                    [serving, syncing, cut, first, last_set].map(|flag| u8::from(flag).to_string()).join(" ");
                let label = format!("{public:?} {local:?} {flags} {stay:?}");
                let next = row(public, local, at).next;
                let next = next.map_or_else(|| "gone".into(), |next| format!("{next:?}"));
                writeln!(out, "{label} -> {next}").unwrap();
                assert!(labels.insert(label.clone()), "two lines say what becomes of {label}");
            }
        }
    }
    compare("tests/snapshots/transitions.txt", &out);
}
