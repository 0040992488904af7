//! FoundationDB's network thread: it does all talking to the servers, and wakes the executors that wait for answers.
//!
//! It can be started once in the life of a process, and must have ended before the process exits: exit(3) destroys the library's
//! own objects, and the thread that then meets one crashes. So it is started by the first [`start`], and `main` ends it with
//! [`stop`]. For programs that exit without that (tests) there is a handler of atexit(3). Handlers run in the opposite order of
//! their registration, and so do those destructors; many objects are made only when they are first needed. So whoever has finished
//! with the store registers the handler once more ([`end_first`]), after most of them.

use super::shim;
use corefs_net::executor;
use corefs_wire::{Error, ErrorCode, Result};
use foundationdb::api::{FdbApiBuilder, NetworkStop};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// How far this process is.
enum Stage {
    /// Nothing was tried, or the library can't be opened.
    Before,
    Running(NetworkStop, JoinHandle<()>),
    /// It can't be started any more.
    Ended(Error),
}

static STAGE: Mutex<Stage> = Mutex::new(Stage::Before);

/// Starts the network thread on `core`, if it doesn't run yet.
///
/// Errors: `BadConfig` when the library is missing or of the wrong version, `Os`.
pub fn start(core: usize) -> Result<()> {
    let mut stage = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
    match &*stage {
        Stage::Running(..) => return Ok(()),
        Stage::Ended(error) => return Err(error.clone()),
        Stage::Before => shim::load()?,
    }
    // What fails from here on is never tried again: FoundationDB allows each step only once.
    match launch(core) {
        Ok((stop, thread)) => {
            *stage = Stage::Running(stop, thread);
            Ok(())
        }
        Err(error) => {
            *stage = Stage::Ended(error.clone());
            Err(error)
        }
    }
}

fn launch(core: usize) -> Result<(NetworkStop, JoinHandle<()>)> {
    let failed = |what: &str, error: foundationdb::FdbError| {
        let version = shim::client_version();
        let what = format!("FoundationDB's client library {version} doesn't {what}: {error}");
        Error::new(ErrorCode::BadConfig, what)
    };
    let api = FdbApiBuilder::default().build().map_err(|error| failed("serve its API", error))?;
    let (runner, started) = api.build().map_err(|error| failed("set up its network", error))?;
    let body = move || {
        executor::pin(core);
        // SAFETY: `stop` below ends it before the process exits.
        if let Err(error) = unsafe { runner.run() } {
            tracing::error!("FoundationDB's network thread ended: {error}");
        }
    };
    let thread = thread::Builder::new().name("fdb-network".into()).spawn(body)?;
    let stop = started.wait();
    end_first();
    Ok((stop, thread))
}

/// Has the thread ended at exit before anything is destroyed that exists by now.
pub fn end_first() {
    // SAFETY: `at_exit` is a function of this program, which is never unloaded.
    if unsafe { libc::atexit(at_exit) } != 0 {
        tracing::error!(
            "FoundationDB's network thread can't be ended at exit: the process may crash as it ends"
        );
    }
}

extern "C" fn at_exit() {
    stop();
}

/// Ends the thread, if it runs: for good, nothing of FoundationDB works in this process any more.
pub fn stop() {
    let ended = Stage::Ended(Error::new(ErrorCode::ShuttingDown, "this process is exiting"));
    let before = std::mem::replace(&mut *STAGE.lock().unwrap_or_else(PoisonError::into_inner), ended);
    if let Stage::Running(stop, thread) = before {
        match stop.stop() {
            // It ends when it has finished what it is at.
            Ok(()) => drop(thread.join()),
            Err(error) => eprintln!("corefs: FoundationDB's network thread can't be stopped: {error}"),
        }
    }
}
