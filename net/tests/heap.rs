//! Forbidden requests for memory end the process, and nothing else does.

use corefs_net::heap::{Counting, allocations, forbid};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

#[global_allocator]
static HEAP: Counting = Counting;

#[test]
fn who_asks_where_it_is_forbidden_dies() {
    if std::env::var_os("ASK").is_some() {
        let _forbidden = forbid(true);
        std::hint::black_box(Box::new(1));
        return;
    }
    let me = std::env::current_exe().unwrap();
    let mut again = Command::new(me);
    let output =
        again.args(["--exact", "who_asks_where_it_is_forbidden_dies"]).env("ASK", "1").output().unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGABRT));
    assert!(String::from_utf8_lossy(&output.stderr).contains("memory was asked for"));
}

#[test]
fn what_is_not_forbidden_is_counted_and_given() {
    let before = allocations();
    {
        let _allowed = forbid(false);
        std::hint::black_box(Box::new(1));
    }
    {
        let outer = forbid(true);
        drop(forbid(true));
        drop(outer);
    }
    std::hint::black_box(Box::new(1));
    assert!(allocations() >= before + 2);
}
