//! Nothing is shared between cores in the engine and on the hot paths: no lock, atomic, channel or `Arc`, except in the mesh.

use super::Findings;
use crate::tree::Tree;

/// Where nothing may be shared.
const SHARED_NOTHING: [&str; 9] = [
    "engine/src",
    "net/src/ring",
    "net/src/buffer",
    "net/src/tcp",
    "net/src/rdma",
    "net/src/bell",
    "client/src/route",
    "client/src/storage",
    "client/src/file",
];

/// And where it may be all the same.
const EXCEPT: [(&str, &str); 3] = [
    ("engine/src/mesh", "the one way between shards: bounded, and for control only"),
    ("net/src/ring/park", "the fence that makes parking lose no wake-up"),
    ("net/src/ring/alarm", "how another thread wakes a parked executor: part of parking"),
];

/// What shares, wherever it comes from.
const NAMES: [&str; 15] = [
    "Mutex",
    "RwLock",
    "Condvar",
    "Barrier",
    "Arc",
    "OnceLock",
    "LazyLock",
    "mpsc",
    "atomic",
    "fence",
    "ArrayQueue",
    "SegQueue",
    "crossbeam_queue",
    "parking_lot",
    "Semaphore",
];

pub fn check(tree: &Tree, findings: &mut Findings) {
    for file in tree.rust() {
        let bound = SHARED_NOTHING.iter().any(|module| file.is_in(module));
        if !bound || EXCEPT.iter().any(|(module, _)| file.is_in(module)) {
            continue;
        }
        findings.checked += 1;
        for word in file.product_words() {
            let shares = NAMES.contains(&word.word)
                || word.word.starts_with("Atomic")
                || (word.word == "channels" && word.before.ends_with("glommio::"))
                || (word.word == "static" && word.after.starts_with("mut "));
            if shares {
                findings.at(
                    file,
                    word.line,
                    format!("`{}` shares between threads, which only engine/src/mesh.rs may", word.word),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::findings;

    #[test]
    fn every_way_to_share_is_found() {
        for code in [
            "use std::sync::Arc;",
            "x: std::sync::Mutex<u8>,",
            "use std::sync::{RwLock};",
            "use std::sync::atomic::AtomicU64;",
            "let (a, b) = std::sync::mpsc::channel();",
            "static mut X: u8 = 0;",
            "use crossbeam_queue::ArrayQueue;",
            "use glommio::channels::local_channel;",
            "static X: OnceLock<u8> = OnceLock::new();",
        ] {
            assert!(!findings(check, &[("engine/src/shard/turn.rs", code)]).is_empty(), "{code}");
            assert!(!findings(check, &[("net/src/ring.rs", code)]).is_empty(), "{code}");
            assert!(!findings(check, &[("client/src/storage/batch.rs", code)]).is_empty(), "{code}");
        }
    }

    #[test]
    fn the_mesh_the_cold_paths_tests_and_words_in_comments_are_free() {
        let code = "use std::sync::Arc;";
        for path in [
            "engine/src/mesh.rs",
            "net/src/mailbox.rs",
            "client/src/pool.rs",
            "engine/tests/a.rs",
            "tools/src/x.rs",
        ] {
            assert!(findings(check, &[(path, code)]).is_empty(), "{path}");
        }
        for code in [
            "// no Mutex here",
            "let x = \"Arc\";",
            "#[cfg(test)]\nmod tests { use std::sync::Arc; }",
            "Architecture",
        ] {
            assert!(findings(check, &[("engine/src/target.rs", code)]).is_empty(), "{code}");
        }
    }
}
