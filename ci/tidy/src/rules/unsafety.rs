//! `unsafe` lives in few named places, and each use says why it is sound.

use super::Findings;
use crate::source::Source;
use crate::tree::Tree;

/// Where `unsafe` may be, and for what.
const PLACES: [(&str, &str); 25] = [
    ("wire/src/checksum", "instructions that the processor was asked for"),
    ("net/src/ring", "entries name memory that the kernel writes"),
    ("net/src/buffer", "the arena hands out its mapped memory"),
    ("net/src/tcp", "entries name memory; socket calls"),
    ("net/src/rdma", "verbs: memory that a device reads and writes; functions of a C library, found by name"),
    ("net/src/place", "getifaddrs(3), sched_getaffinity(2)"),
    ("net/src/heap", "an allocator is unsafe to implement"),
    ("net/src/process", "clock_gettime(2), getrusage(2), sysconf(3)"),
    ("kv/src/fdb/shim", "functions of a C library, found by name"),
    ("kv/src/fdb/network", "FoundationDB's thread, and the end of it by atexit(3)"),
    ("engine/src/disk", "entries name buffers"),
    ("engine/src/shard", "entries name buffers"),
    ("engine/src/store/prefetch", "a hint to the processor, of any address"),
    ("client/src/attr", "getgroups(2)"),
    ("client/src/join", "pinning a list of futures"),
    ("fuse/src/mount", "mount(2), umount2(2)"),
    ("tools/src/limits", "setrlimit(2)"),
    ("tools/src/signals", "signal masks and sigwait(3)"),
    ("tools/src/supervise", "kill(2), and calls between fork and exec"),
    ("tools/src/cluster", "statvfs(2)"),
    ("tools/src/tree", "times and owners of files"),
    ("perf/src/bare", "entries name buffers"),
    ("perf/src/cpu", "getrusage(2), sysconf(3)"),
    ("perf/src/extents", "ioctl(2)"),
    ("ci/history/src/record", "clock_gettime(2)"),
];

/// How far above a use its argument may begin.
const LINES_ABOVE: usize = 10;

pub fn check(tree: &Tree, findings: &mut Findings) {
    let mut used = Vec::new();
    for file in tree.rust() {
        for word in file.words().filter(|word| word.word == "unsafe") {
            findings.checked += 1;
            // A type of functions uses nothing.
            if word.after.starts_with("extern ") && word.before.ends_with('=') {
                continue;
            }
            match PLACES.iter().find(|(module, _)| file.is_in(module)) {
                Some((module, _)) => used.push(*module),
                // Tests and examples may make plain system calls, with an argument.
                None if file.is_test(word.line) => {}
                None => {
                    let what = "`unsafe` outside its named places (ci/tidy/src/rules/unsafety.rs)";
                    findings.at(file, word.line, what);
                }
            }
            if !is_argued(file, word.line) {
                findings.at(file, word.line, "`unsafe` without a `SAFETY:` comment (a function: `# Safety`)");
            }
        }
    }
    findings.stale("unsafety", &used, &PLACES, tree);
}

/// Whether the lines above, or the line itself, argue. Blank code between a use and its argument belongs to the same statement.
fn is_argued(file: &Source, line: usize) -> bool {
    let from = line.saturating_sub(LINES_ABOVE + 1);
    let mut lines = file.text().lines().skip(from).take(line - from);
    lines.any(|line| line.contains("SAFETY:") || line.contains("# Safety"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::findings;

    const ARGUED: &str = "// SAFETY: because.\nunsafe { f() }";

    #[test]
    fn other_places_and_missing_arguments_are_found() {
        assert_eq!(findings(check, &[("meta/src/key.rs", ARGUED)]).len(), 1);
        let found = findings(check, &[("fuse/src/mount.rs", "unsafe { f() }")]);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("SAFETY"), "{found:?}");
        let far = format!("// SAFETY: of something else.\n{}unsafe {{ f() }}", "x();\n".repeat(20));
        assert_eq!(findings(check, &[("fuse/src/mount.rs", &far)]).len(), 1);
    }

    #[test]
    fn argued_uses_in_named_places_and_tests_are_fine() {
        let files = [("fuse/src/mount.rs", ARGUED), ("fuse/tests/x.rs", ARGUED)];
        assert!(findings(check, &files).is_empty());
        let documented = "/// # Safety\n/// `to` is owned.\npub unsafe fn read(to: *mut u8) {}";
        assert!(findings(check, &[("fuse/src/mount.rs", documented)]).is_empty());
        let named = "// unsafe\n#![forbid(unsafe_code)]\ntype Call = unsafe extern \"C\" fn(u8);";
        assert!(findings(check, &[("meta/src/key.rs", named)]).is_empty());
    }

    #[test]
    fn a_place_that_needs_none_is_stale() {
        let found = findings(check, &[("client/src/attr.rs", ARGUED), ("client/src/lib.rs", "")]);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("client/src/join"), "{found:?}");
    }
}
