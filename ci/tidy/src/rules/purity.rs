//! Pure modules decide, and nothing else: no I/O, clock, thread, randomness or async, so that the simulator runs the very
//! same code from a seed. A map whose order is random is randomness too.

use super::Findings;
use crate::source::{Source, Word};
use crate::tree::Tree;

/// The modules marked as pure in `docs/architecture.md`.
const PURE: [&str; 12] = [
    "wire/src",
    "net/src/handshake",
    "engine/src/store",
    "engine/src/chain",
    "engine/src/target",
    "engine/src/targets",
    "engine/src/event",
    "engine/src/repair",
    "engine/src/scrub",
    "client/src/route",
    "mgmtd/src/cluster",
    "perf/src/workload",
];

/// What a pure module names all the same: (module, word, why).
const EXCEPT: [(&str, &str, &str); 1] = [(
    "net/src/handshake",
    "getrandom",
    "how a secret comes to be, before any handshake; nonces are passed in",
)];

/// Words that are impure whatever surrounds them.
const WORDS: [(&str, &str); 14] = [
    ("Instant", "time is passed in"),
    ("SystemTime", "time is passed in"),
    ("async", "a pure machine waits for nothing"),
    ("await", "a pure machine waits for nothing"),
    ("rand", "randomness is passed in"),
    ("getrandom", "randomness is passed in"),
    ("HashMap", "its order is random: take a BTreeMap"),
    ("HashSet", "its order is random: take a BTreeSet"),
    ("RandomState", "its order is random"),
    ("glommio", "no runtime"),
    ("io_uring", "no I/O"),
    ("libc", "no system calls"),
    ("tracing", "no I/O: say it in the outputs"),
    ("println", "no I/O"),
];

/// Modules of std that are impure.
const STD: [&str; 7] = ["thread", "fs", "net", "io", "process", "env", "os"];

pub fn check(tree: &Tree, findings: &mut Findings) {
    for file in tree.rust().filter(|file| PURE.iter().any(|module| file.is_in(module))) {
        findings.checked += 1;
        // A hash that is always the same makes an order that is always the same.
        let fixed_hash = file.words().any(|word| word.word == "BuildHasherDefault");
        for word in file.product_words() {
            if let Some(why) = impure(word)
                && !EXCEPT.iter().any(|(module, name, _)| file.is_in(module) && *name == word.word)
                && !is_error_conversion(file, word)
                && !(fixed_hash && word.word.starts_with("Hash"))
            {
                findings.at(file, word.line, format!("`{}` in a pure module: {why}", word.word));
            }
        }
    }
}

fn impure(word: Word<'_>) -> Option<&'static str> {
    if let Some((_, why)) = WORDS.iter().find(|(name, _)| *name == word.word) {
        return Some(why);
    }
    // What a drop asks, so that one panic doesn't become two.
    if word.word == "thread" && word.after.starts_with("::panicking") {
        return None;
    }
    let of_std = word.before.ends_with("std::") || word.before.contains("use std::{");
    (of_std && STD.contains(&word.word)).then_some("no I/O, no threads")
}

/// `wire::Error` is made from `std::io::Error`, so that those who do I/O can use `?`: naming a type does none.
fn is_error_conversion(file: &Source, word: Word<'_>) -> bool {
    file.path() == "wire/src/error.rs" && word.word == "io" && word.after.starts_with("::Error")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::findings;

    #[test]
    fn clocks_threads_files_and_randomness_are_found() {
        for code in [
            "use std::time::Instant;",
            "use std::time::{Duration, SystemTime};",
            "std::thread::sleep(x);",
            "use std::fs::File;",
            "use std::{fs, mem};",
            "use std::net::TcpStream;",
            "let x = rand::random();",
            "let mut map = HashMap::new();",
            "async fn f() {}",
            "f().await;",
            "tracing::warn!();",
        ] {
            for path in ["engine/src/store/index.rs", "mgmtd/src/cluster/lease.rs", "client/src/route.rs"] {
                assert_eq!(findings(check, &[(path, code)]).len(), 1, "{code}");
            }
        }
    }

    #[test]
    fn other_modules_tests_and_pure_words_are_free() {
        assert!(findings(check, &[("engine/src/shard/turn.rs", "use std::time::Instant;")]).is_empty());
        assert!(findings(check, &[("engine/src/store/tests.rs", "use std::fs;")]).is_empty());
        let code = "use std::time::Duration; fn fs(net: u8) { thread(net) } // Instant\nuse std::collections::BTreeMap;";
        assert!(findings(check, &[("engine/src/store/index.rs", code)]).is_empty());
        let fixed = "type Map = HashMap<u8, u8, BuildHasherDefault<Fold>>;";
        assert!(findings(check, &[("engine/src/store/chunk_map.rs", fixed)]).is_empty());
        let drop = "assert!(self.ended || std::thread::panicking());";
        assert!(findings(check, &[("engine/src/store/read.rs", drop)]).is_empty());
        assert!(findings(check, &[("net/src/handshake.rs", "getrandom::fill(&mut bytes)")]).is_empty());
        assert_eq!(
            findings(check, &[("wire/src/error.rs", "impl From<std::io::Error> for Error {}")]).len(),
            0
        );
        assert_eq!(findings(check, &[("wire/src/error.rs", "use std::io::Read;")]).len(), 1);
    }
}
