//! What the kernel allows this process.

/// Lets this process open as many files as it may. The usual limit of 1024 is for programs that use select(2); a shard takes
/// thousands of connections.
pub fn open_many_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls only look at, or fill, one struct of ours.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            // A refusal leaves what was there.
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}
