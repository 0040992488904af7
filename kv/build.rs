//! The feature `fdb` asks the linker for `-lfdb_c` (the crate `foundationdb-sys` does). So that the same binary links and
//! runs where that library isn't installed, an empty archive of that name is put on the link path; what it lacks is defined in
//! `src/fdb/shim.rs`, which opens the real library when it is needed.

use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_FDB").is_none() {
        return;
    }
    let out = std::env::var_os("OUT_DIR").expect("cargo gives build scripts a directory");
    let archive = Path::new(&out).join("libfdb_c.a");
    // An archive without members is its magic string alone: ar(5).
    std::fs::write(&archive, b"!<arch>\n").expect("the build directory can be written");
    println!("cargo::rustc-link-search=native={}", Path::new(&out).display());
}
