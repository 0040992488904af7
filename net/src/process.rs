//! What the kernel says about this process and its time: three system calls.

use corefs_wire::control::process::{CounterT, ProcessT};
use std::time::Duration;

/// CLOCK_BOOTTIME in milliseconds: goes on while the machine sleeps, so that a lease doesn't outlive a suspend.
pub fn boot_ms() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec of ours; the clock exists since Linux 2.6.39.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    assert!(failed == 0, "CLOCK_BOOTTIME can be read");
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

/// Answers `process.get`: who this is, what it has used and counted.
pub fn report(role: &str, uptime: Duration, counters: impl IntoIterator<Item = (String, u64)>) -> ProcessT {
    let mut out = ProcessT::default();
    out.role = role.to_owned();
    out.pid = std::process::id();
    out.version = env!("CARGO_PKG_VERSION").to_owned();
    (out.user_us, out.system_us) = cpu_us();
    out.rss_bytes = rss_bytes();
    out.uptime_ms = uptime.as_millis() as u64;
    for (name, value) in counters {
        let mut counter = CounterT::default();
        (counter.name, counter.value) = (name, value);
        out.counters.push(counter);
    }
    out
}

/// User and system time of all threads (microseconds), as getrusage(2) gives them.
fn cpu_us() -> (u64, u64) {
    // SAFETY: rusage is plain numbers, for which zeros are values; the call writes that one struct.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let us = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    (us(usage.ru_utime), us(usage.ru_stime))
}

/// Resident memory; 0 where /proc isn't mounted.
fn rss_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()));
    // SAFETY: asks for a constant.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages.unwrap_or(0) * u64::try_from(page).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_itself() {
        let before = boot_ms();
        let report = report("mgmtd", Duration::from_millis(5), [("things".to_owned(), 3)]);
        assert_eq!(report.pid, std::process::id());
        assert!(report.rss_bytes > 100_000 && report.user_us + report.system_us > 0);
        assert_eq!((report.counters[0].value, report.uptime_ms), (3, 5));
        assert!(boot_ms() >= before && before > 0);
    }
}
