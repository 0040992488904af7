//! Errors are corefs' own numbers. Errno exists where the kernel is talked to: in the mount's one table, and in the
//! named places that ask the kernel for something.

use super::Findings;
use crate::tree::Tree;

/// Where errno may be named.
const PLACES: [(&str, &str); 8] = [
    ("fuse/src/errno", "the one table from errors to errno"),
    ("fuse/src/mount", "what mount(2) said"),
    ("net/src/ring", "what io_uring_enter(2) and completions said"),
    ("net/src/tcp", "what sockets said"),
    ("net/src/rdma", "what the RDMA library said"),
    ("engine/src/disk", "what the disk said"),
    ("perf/src/extents", "file systems that keep no map"),
    ("tools/src/tree", "what copying files said"),
];

pub fn check(tree: &Tree, findings: &mut Findings) {
    for file in tree.rust() {
        findings.checked += 1;
        if PLACES.iter().any(|(module, _)| file.is_in(module)) {
            continue;
        }
        for word in file.product_words() {
            let of_libc = word.before.ends_with("libc::") || word.before.ends_with("Errno::");
            if of_libc && is_errno(word.word) {
                findings.at(
                    file,
                    word.line,
                    format!("{} outside fuse/src/errno.rs and the places that ask the kernel", word.word),
                );
            }
        }
    }
}

/// `ENOENT`, but not `EPOLLIN` nor `EFD_CLOEXEC`.
fn is_errno(word: &str) -> bool {
    let letters = word.strip_prefix('E').is_some_and(|rest| {
        rest.len() >= 2 && rest.chars().all(|letter| letter.is_ascii_uppercase() || letter.is_ascii_digit())
    });
    letters && !word.starts_with("EPOLL")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::findings;

    #[test]
    fn errno_is_found_outside_its_places() {
        for code in ["return libc::ENOENT;", "reply.error(Errno::EIO)", "libc :: E2BIG"] {
            let code = code.replace(" :: ", "::");
            assert_eq!(findings(check, &[("fuse/src/fs.rs", &code)]).len(), 1, "{code}");
            assert!(
                findings(check, &[("fuse/src/errno.rs", &code), ("net/src/tcp/socket.rs", &code)]).is_empty()
            );
        }
    }

    #[test]
    fn other_constants_are_no_errno() {
        for code in [
            "libc::EFD_CLOEXEC",
            "libc::EPOLLIN",
            "libc::EXIT_FAILURE",
            "Other::ENOENT",
            "// libc::EIO",
            "libc::E",
        ] {
            assert!(findings(check, &[("fuse/src/fs.rs", code)]).is_empty(), "{code}");
        }
    }
}
