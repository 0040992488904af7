//! Keeps the processes of a cluster on one machine running: one process for each node and role, so that what is
//! measured and what is killed is what runs in a cluster.
//!
//! A role tells that it serves by a line `ready ADDRESS` on its standard output. One that dies is reported and
//! started again, with a growing pause. When the supervisor itself dies, the kernel ends its children
//! (PR_SET_PDEATHSIG), so no orphan keeps a directory locked.

use crate::signals;
use corefs_wire::{Error, ErrorCode, Result};
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long a role may take until it says that it's ready: recovery of large slices takes its time.
const READY_SECONDS: u64 = 120;
/// How long a role may take to stop after SIGTERM before it's killed.
const STOP_SECONDS: u64 = 20;
/// The longest pause before a role that keeps dying is started again.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How to start one role.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What it is called in messages: `storage node-1`.
    pub name: String,
    pub args: Vec<OsString>,
    /// Where its log goes (appended).
    pub log: PathBuf,
}

struct Role {
    spec: Spec,
    child: Child,
    /// What it says on standard output, until it dies.
    lines: Option<mpsc::Receiver<String>>,
    started: Instant,
    pause: Duration,
    /// Set while it is dead: when to start it again.
    restart_at: Option<Instant>,
}

/// The running roles, in the order in which they were started.
pub struct Supervisor {
    program: PathBuf,
    roles: Vec<Role>,
}

impl Supervisor {
    /// A supervisor that starts roles of this very binary.
    pub fn new() -> Result<Self> {
        let program =
            std::env::current_exe().map_err(|error| Error::from(error).of("finding my own binary"))?;
        Ok(Self { program, roles: Vec::new() })
    }

    /// Starts a role and waits until it's ready. Returns the address it named.
    pub fn start(&mut self, spec: Spec) -> Result<String> {
        let (mut child, lines) = spawn(&self.program, &spec)?;
        match wait_line(&mut child, &lines, "ready ", Duration::from_secs(READY_SECONDS)) {
            Ok(address) => {
                let started = Instant::now();
                self.roles.push(Role {
                    spec,
                    child,
                    lines: Some(lines),
                    started,
                    pause: Duration::from_millis(100),
                    restart_at: None,
                });
                Ok(address)
            }
            Err(why) => {
                // Whatever it was, it isn't serving: leave nothing behind.
                end(&mut child, Duration::from_secs(STOP_SECONDS));
                Err(did_not_start(&spec, &why))
            }
        }
    }

    /// Waits until a role that is ready says one thing more: a line that begins with `prefix`. Returns the rest of it.
    pub fn hear(&mut self, name: &str, prefix: &str) -> Result<String> {
        let role = self.roles.iter_mut().find(|role| role.spec.name == name);
        let Some((role, lines)) = role.and_then(|role| role.lines.take().map(|lines| (role, lines))) else {
            return Err(Error::new(ErrorCode::Internal, format!("{name} doesn't run")));
        };
        let heard = wait_line(&mut role.child, &lines, prefix, Duration::from_secs(READY_SECONDS));
        role.lines = Some(lines);
        heard.map_err(|why| did_not_start(&role.spec, &why))
    }

    /// Names and process ids of the roles that run, in order.
    pub fn pids(&self) -> Vec<(String, u32)> {
        let running = self.roles.iter().filter(|role| role.restart_at.is_none());
        running.map(|role| (role.spec.name.clone(), role.child.id())).collect()
    }

    /// One look at all roles: reports those that died, starts again those whose pause is over.
    pub fn look(&mut self, report: &mut dyn FnMut(String)) {
        for role in &mut self.roles {
            if let Some(at) = role.restart_at {
                if Instant::now() >= at {
                    restart(&self.program, role, report);
                }
            } else if let Ok(Some(status)) = role.child.try_wait() {
                if role.started.elapsed() > Duration::from_secs(60) {
                    role.pause = Duration::from_millis(100);
                }
                report(format!("{} {}; starting it again in {:?}", role.spec.name, died(status), role.pause));
                role.restart_at = Some(Instant::now() + role.pause);
                role.pause = (role.pause * 2).min(PAUSE_MAX);
            }
        }
    }

    /// Stops a role for good. What did not go cleanly, if anything.
    pub fn retire(&mut self, name: &str) -> Option<String> {
        let at = self.roles.iter().position(|role| role.spec.name == name)?;
        let mut role = self.roles.remove(at);
        if role.restart_at.is_some() {
            return None;
        }
        match end(&mut role.child, Duration::from_secs(STOP_SECONDS)) {
            Some(status) if status.success() => None,
            Some(status) => Some(format!("{name} {}", died(status))),
            None => Some(format!("{name} could not be waited for")),
        }
    }

    /// Stops all roles, the last started first, each before the next. Returns what did not go cleanly.
    pub fn stop(mut self) -> Vec<String> {
        self.stop_all()
    }

    fn stop_all(&mut self) -> Vec<String> {
        let mut complaints = Vec::new();
        for mut role in self.roles.drain(..).rev() {
            if role.restart_at.is_some() {
                continue;
            }
            match end(&mut role.child, Duration::from_secs(STOP_SECONDS)) {
                Some(status) if status.success() => {}
                Some(status) => complaints.push(format!("{} {}", role.spec.name, died(status))),
                None => complaints.push(format!("{} could not be waited for", role.spec.name)),
            }
        }
        complaints
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        for complaint in self.stop_all() {
            tracing::warn!("{complaint}");
        }
    }
}

fn restart(program: &Path, role: &mut Role, report: &mut dyn FnMut(String)) {
    match spawn(program, &role.spec) {
        Ok((child, lines)) => {
            // Readiness isn't waited for: the others retry until it serves.
            role.lines = Some(lines);
            report(format!("{} started again as process {}", role.spec.name, child.id()));
            role.child = child;
            role.started = Instant::now();
            role.restart_at = None;
        }
        Err(error) => {
            report(format!("{} can't be started: {error}", role.spec.name));
            role.restart_at = Some(Instant::now() + role.pause);
        }
    }
}

fn spawn(program: &Path, spec: &Spec) -> Result<(Child, mpsc::Receiver<String>)> {
    let log = std::fs::File::options().create(true).append(true).open(&spec.log);
    let log = log.map_err(|error| Error::from(error).of(spec.log.display()))?;
    let parent = std::process::id();
    let mut command = Command::new(program);
    command.args(&spec.args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    // A process group of its own: an interrupt typed at the terminal reaches the supervisor alone, which then stops
    // the roles in order.
    command.process_group(0);
    // SAFETY: between fork and exec only async-signal-safe calls are made: prctl, getppid, pthread_sigmask.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            // The parent may have died before the line above.
            if libc::getppid() as u32 != parent {
                return Err(std::io::Error::other("the supervisor is gone"));
            }
            signals::unblock();
            Ok(())
        });
    }
    let mut child =
        command.spawn().map_err(|error| Error::from(error).of(format!("starting {}", spec.name)))?;
    let (send, lines) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(std::result::Result::ok) {
                if send.send(line).is_err() {
                    // Nobody listens any more; go on reading so that the child never blocks on a full pipe.
                    continue;
                }
            }
        });
    }
    Ok((child, lines))
}

fn did_not_start(spec: &Spec, why: &str) -> Error {
    let said = last_lines(&spec.log, 5);
    let what = format!("{} did not start: {why}\n{said}(its whole log: {})", spec.name, spec.log.display());
    Error::new(ErrorCode::Os, what)
}

/// What follows `prefix` in the next line that begins with it.
fn wait_line(
    child: &mut Child,
    lines: &mpsc::Receiver<String>,
    prefix: &str,
    limit: Duration,
) -> Result<String, String> {
    let deadline = Instant::now() + limit;
    loop {
        match lines.recv_timeout(Duration::from_millis(50)) {
            Ok(line) => {
                if let Some(address) = line.strip_prefix(prefix) {
                    return Ok(address.trim().to_owned());
                }
            }
            Err(_) => {
                if let Ok(Some(status)) = child.try_wait() {
                    return Err(format!("it {}", died(status)));
                }
            }
        }
        if Instant::now() > deadline {
            return Err(format!("not ready after {} s", limit.as_secs()));
        }
        if signals::wait_for(Duration::ZERO) {
            return Err("interrupted".into());
        }
    }
}

/// SIGTERM, then SIGKILL when that takes longer than `limit`.
fn end(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    if let Ok(Some(status)) = child.try_wait() {
        return Some(status);
    }
    // SAFETY: the child hasn't been waited for, so its pid is still its own.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().ok()?;
    child.wait().ok()
}

fn died(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

/// The end of a log, indented, for an error message.
fn last_lines(path: &Path, count: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|line| format!("    {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &Path) -> (Supervisor, Spec) {
        let spec =
            Spec { name: "test role".into(), args: vec!["-c".into(), script.into()], log: log.to_owned() };
        (Supervisor { program: "/bin/sh".into(), roles: Vec::new() }, spec)
    }

    #[test]
    fn a_role_that_dies_is_reported_and_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut supervisor, spec) = shell("echo ready here; exec sleep 60", &dir.path().join("log"));
        assert_eq!(supervisor.start(spec).unwrap(), "here");
        let first = supervisor.pids()[0].1;
        // SAFETY: the process is our own child, which nobody has waited for.
        unsafe { libc::kill(first as libc::pid_t, libc::SIGKILL) };
        let mut said = Vec::new();
        while said.len() < 2 {
            supervisor.look(&mut |line| said.push(line));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(said[0].contains("signal 9"), "{said:?}");
        assert_ne!(supervisor.pids()[0].1, first);
        // sleep dies of the SIGTERM, which is told.
        assert_eq!(supervisor.stop().len(), 1);
    }

    #[test]
    fn a_role_that_fails_at_once_tells_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let (mut supervisor, spec) = shell("echo the reason >&2; exit 3", &dir.path().join("log"));
        let error = supervisor.start(spec).unwrap_err();
        assert!(error.message.contains("exit code 3") && error.message.contains("the reason"), "{error}");
    }
}
