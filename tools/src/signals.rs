//! SIGINT and SIGTERM mean "stop cleanly". They are blocked everywhere and taken by one thread with sigwait(3), so no
//! code runs in a signal handler and no system call of a shard is interrupted.

use std::os::raw::c_int;

fn stop_set() -> libc::sigset_t {
    // SAFETY: an all-zero sigset_t is a valid value to initialise, and the three calls only write to it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGINT);
        libc::sigaddset(&mut set, libc::SIGTERM);
        set
    }
}

/// Blocks the stop signals in this thread and in all that it starts. Call first in `main`. As its counterpart it only makes async-signal-safe
/// calls: children call them between fork and exec.
pub fn block() {
    let set = stop_set();
    // SAFETY: `set` is initialised; the old mask isn't asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
}

/// Undoes [`block`] in this thread and those that it starts.
pub fn unblock() {
    let set = stop_set();
    // SAFETY: as in `block`.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut()) };
}

/// Waits in this thread for the next stop signal.
pub fn wait() -> c_int {
    let set = stop_set();
    let mut signal = 0;
    // SAFETY: both pointers are to live locals. sigwait fails only for an invalid set.
    unsafe { libc::sigwait(&set, &mut signal) };
    signal
}

/// Waits up to `timeout` for a stop signal; `true` when one came.
pub fn wait_for(timeout: std::time::Duration) -> bool {
    let set = stop_set();
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
    };
    // SAFETY: set and timeout are live locals; no siginfo is asked for.
    unsafe { libc::sigtimedwait(&set, std::ptr::null_mut(), &timeout) > 0 }
}

/// Ends this process as if a stop signal had come.
pub fn stop() {
    // SAFETY: kill has no preconditions; the signal goes to ourselves.
    unsafe { libc::kill(libc::getpid(), libc::SIGTERM) };
}

/// Runs `stop` on a thread of its own when the first stop signal comes. The second one ends the process at once, for
/// the person whose clean stop hangs.
pub fn on_stop(stop: impl FnOnce() + Send + 'static) {
    let watch = move || {
        wait();
        stop();
        wait();
        eprintln!("corefs: stopped by a second signal without waiting");
        std::process::exit(130);
    };
    if let Err(error) = std::thread::Builder::new().name("signals".into()).spawn(watch) {
        tracing::error!("no thread for signals: {error}; stop this process with SIGKILL");
    }
}
