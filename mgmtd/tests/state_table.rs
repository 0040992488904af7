//! The state table in the documentation, and the snapshot of every state against every event, are those of the code.
//! `COREFS_RENDER=1 cargo test -p corefs-mgmtd --test state_table` writes both again.

use corefs_mgmtd::cluster::transition::{Local, Public, Situation, render, row};
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
    let mut out =
        String::from("# public local serving-elsewhere syncing-elsewhere first last-set stay -> next\n");
    let bit = |bit: bool| u8::from(bit);
    for public in Public::ALL {
        for local in Local::ALL {
            for at in Situation::all() {
                let next = row(public, local, at).next;
                let flags = [bit(at.serving), bit(at.syncing), bit(at.first), bit(at.last_set)];
                writeln!(
                    out,
                    "{public:?} {local:?} {} {} {} {} {:?} -> {}",
                    flags[0],
                    flags[1],
                    flags[2],
                    flags[3],
                    at.stay,
                    next.map_or_else(|| "gone".into(), |next| format!("{next:?}"))
                )
                .unwrap();
            }
        }
    }
    compare("tests/snapshots/transitions.txt", &out);
}
