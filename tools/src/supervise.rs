//! Keeps the processes of a cluster on one machine running: one process for each node and role, so that what is
//! measured and what is killed is what runs in a cluster.
//!
//! A role tells that it serves by a line `ready ADDRESS` on its standard output. One that dies is reported and
//! started again, with a growing pause. When the supervisor itself dies, the kernel ends its children
//! (PR_SET_PDEATHSIG), so no orphan keeps a directory locked.
//!
//! Once the cluster serves, nothing here waits: a role that comes or goes is seen to by [`Supervisor::look`], so that the
//! others are kept running and a stop signal is heard meanwhile.

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
    /// It was never ready yet, and nobody waits for that.
    coming: bool,
    started: Instant,
    pause: Duration,
    /// Set while it is dead: when to start it again.
    restart_at: Option<Instant>,
}

impl Role {
    fn new(spec: Spec, child: Child, lines: mpsc::Receiver<String>, coming: bool) -> Self {
        let pause = Duration::from_millis(100);
        Self { spec, child, lines: Some(lines), coming, started: Instant::now(), pause, restart_at: None }
    }

    /// Whether it has become ready since this was asked last.
    fn has_come(&mut self) -> bool {
        let ready = |lines: &mpsc::Receiver<String>| lines.try_iter().any(|line| line.starts_with("ready "));
        let come = self.coming && self.lines.as_ref().is_some_and(ready);
        self.coming &= !come;
        come
    }
}

/// A role that was told to stop for good, and is killed if it still runs then.
struct Leaving {
    role: Role,
    until: Instant,
}

/// What runs the roles.
struct Program {
    path: PathBuf,
    /// What a child does about stop signals before it begins; async-signal-safe.
    signals: fn(),
}

/// The running roles, in the order in which they were started.
pub struct Supervisor {
    program: Program,
    roles: Vec<Role>,
    leaving: Vec<Leaving>,
}

impl Supervisor {
    /// A supervisor that starts roles of this very binary.
    pub fn new() -> Result<Self> {
        let path = std::env::current_exe().map_err(|error| Error::from(error).of("finding my own binary"))?;
        // A role takes them itself once it can; one that comes before waits until then.
        let program = Program { path, signals: signals::block };
        Ok(Self { program, roles: Vec::new(), leaving: Vec::new() })
    }

    /// Starts a role and waits until it's ready. Returns the address it named.
    pub fn start(&mut self, spec: Spec) -> Result<String> {
        let (mut child, lines) = spawn(&self.program, &spec)?;
        match wait_line(&mut child, &lines, "ready ", Duration::from_secs(READY_SECONDS)) {
            Ok(address) => {
                self.roles.push(Role::new(spec, child, lines, false));
                Ok(address)
            }
            Err(why) => {
                // Whatever it was, it isn't serving: leave nothing behind.
                end(&mut child, Duration::from_secs(STOP_SECONDS));
                Err(did_not_start(&spec, &why))
            }
        }
    }

    /// Starts a role without waiting for it: [`look`](Self::look) says when it is ready, and starts it again if it dies before.
    pub fn launch(&mut self, spec: Spec) -> Result<()> {
        let (child, lines) = spawn(&self.program, &spec)?;
        self.roles.push(Role::new(spec, child, lines, true));
        Ok(())
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

    /// One look at all roles: reports those that died or became ready, starts again those whose pause is over.
    pub fn look(&mut self, report: &mut dyn FnMut(String)) {
        for role in &mut self.roles {
            if let Some(at) = role.restart_at {
                if Instant::now() >= at {
                    restart(&self.program, role, report);
                }
                continue;
            }
            if role.has_come() {
                report(format!("{} is ready", role.spec.name));
            }
            if let Ok(Some(status)) = role.child.try_wait() {
                if role.started.elapsed() > Duration::from_secs(60) {
                    role.pause = Duration::from_millis(100);
                }
                if role.coming {
                    report(did_not_start(&role.spec, &Failure::Told(format!("it {}", died(status)))).message);
                }
                report(format!("{} {}; starting it again in {:?}", role.spec.name, died(status), role.pause));
                role.restart_at = Some(Instant::now() + role.pause);
                role.pause = (role.pause * 2).min(PAUSE_MAX);
            }
        }
        self.leaving.retain_mut(|leaving| {
            if Instant::now() >= leaving.until {
                let _dead_already = leaving.role.child.kill();
            }
            let Ok(Some(status)) = leaving.role.child.try_wait() else { return true };
            complain(&leaving.role, Some(status)).into_iter().for_each(&mut *report);
            false
        });
    }

    /// Stops a role for good, without waiting for it: [`look`](Self::look) says what did not go cleanly, if anything.
    pub fn retire(&mut self, name: &str) {
        let Some(at) = self.roles.iter().position(|role| role.spec.name == name) else { return };
        let mut role = self.roles.remove(at);
        if role.restart_at.is_none() {
            ask_to_end(&mut role.child);
            self.leaving.push(Leaving { role, until: Instant::now() + Duration::from_secs(STOP_SECONDS) });
        }
    }

    /// Stops all roles, the last started first, each before the next. Returns what did not go cleanly.
    pub fn stop(mut self) -> Vec<String> {
        self.stop_all()
    }

    fn stop_all(&mut self) -> Vec<String> {
        let mut complaints = Vec::new();
        for mut role in self.roles.drain(..).rev() {
            if role.restart_at.is_none() {
                let ended = end(&mut role.child, Duration::from_secs(STOP_SECONDS));
                complaints.extend(complain(&role, ended));
            }
        }
        for Leaving { mut role, until } in self.leaving.drain(..) {
            let ended = end(&mut role.child, until.saturating_duration_since(Instant::now()));
            complaints.extend(complain(&role, ended));
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

/// What did not go cleanly when a role was stopped.
fn complain(role: &Role, ended: Option<ExitStatus>) -> Option<String> {
    match ended {
        Some(status) if status.success() => None,
        Some(status) => Some(format!("{} {}", role.spec.name, died(status))),
        None => Some(format!("{} could not be waited for", role.spec.name)),
    }
}

fn restart(program: &Program, role: &mut Role, report: &mut dyn FnMut(String)) {
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

fn spawn(program: &Program, spec: &Spec) -> Result<(Child, mpsc::Receiver<String>)> {
    let log = std::fs::File::options().create(true).append(true).open(&spec.log);
    let log = log.map_err(|error| Error::from(error).of(spec.log.display()))?;
    let parent = std::process::id();
    let (mut command, about_signals) = (Command::new(&program.path), program.signals);
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
            about_signals();
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

/// Why a role isn't ready.
enum Failure {
    /// A stop signal came meanwhile: it was taken, and whoever waited has to stop.
    Interrupted,
    Told(String),
}

fn did_not_start(spec: &Spec, why: &Failure) -> Error {
    let Failure::Told(why) = why else {
        return Error::new(ErrorCode::ShuttingDown, format!("interrupted while {} was starting", spec.name));
    };
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
) -> Result<String, Failure> {
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
                    return Err(Failure::Told(format!("it {}", died(status))));
                }
            }
        }
        if Instant::now() > deadline {
            return Err(Failure::Told(format!("not ready after {} s", limit.as_secs())));
        }
        if signals::wait_for(Duration::ZERO) {
            return Err(Failure::Interrupted);
        }
    }
}

/// SIGTERM, then SIGKILL when that takes longer than `limit`.
fn end(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    if let Ok(Some(status)) = child.try_wait() {
        return Some(status);
    }
    ask_to_end(child);
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

/// SIGTERM, unless it has ended.
fn ask_to_end(child: &mut Child) {
    if let Ok(None) = child.try_wait() {
        // SAFETY: the child hasn't been waited for, so its pid is still its own.
        unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
    }
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
        let program = Program { path: "/bin/sh".into(), signals: signals::unblock };
        (Supervisor { program, roles: Vec::new(), leaving: Vec::new() }, spec)
    }

    #[test]
    fn a_stop_that_comes_before_a_role_can_take_it_does_not_kill_it() {
        let dir = tempfile::tempdir().unwrap();
        let script = "kill -TERM $$; echo ready here";
        let (mut kills, spec) = shell(script, &dir.path().join("log"));
        assert!(kills.start(spec.clone()).unwrap_err().message.contains("signal 15"));
        let (mut waits, _) = shell(script, &dir.path().join("log"));
        waits.program.signals = signals::block;
        assert_eq!(waits.start(spec).unwrap(), "here");
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

    /// Looks until `count` lines were said.
    fn said(supervisor: &mut Supervisor, count: usize) -> Vec<String> {
        let mut said = Vec::new();
        while said.len() < count {
            supervisor.look(&mut |line| said.push(line));
            std::thread::sleep(Duration::from_millis(5));
        }
        said
    }

    #[test]
    fn nothing_waits_for_a_role_that_is_launched_or_retired() {
        let dir = tempfile::tempdir().unwrap();
        let go = dir.path().join("go");
        // The first one takes until `go` is there, and stops only when it is gone again.
        let script = format!(
            "trap 'while [ -e {0} ]; do sleep 0.01; done; exit 0' TERM; until [ -e {0} ]; do sleep 0.01; done; \
             echo ready there; while :; do sleep 0.01; done",
            go.display()
        );
        let (mut supervisor, spec) = shell(&script, &dir.path().join("log"));
        supervisor.launch(Spec { name: "slow".into(), ..spec.clone() }).unwrap();
        let dies = Spec { name: "dying".into(), args: vec!["-c".into(), "exit 3".into()], ..spec };
        supervisor.launch(dies).unwrap();
        // That the other one died is seen while the slow one isn't ready.
        let lines = said(&mut supervisor, 2);
        assert!(lines[0].contains("dying did not start: it ended with exit code 3"), "{lines:?}");
        supervisor.retire("dying");
        std::fs::write(&go, "").unwrap();
        while !said(&mut supervisor, 1).contains(&"slow is ready".to_owned()) {}
        supervisor.retire("slow");
        assert_eq!(supervisor.pids(), []);
        supervisor.look(&mut |line| panic!("{line}"));
        assert_eq!(supervisor.leaving.len(), 1, "it was waited for");
        std::fs::remove_file(&go).unwrap();
        while !supervisor.leaving.is_empty() {
            supervisor.look(&mut |line| panic!("{line}"));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(supervisor.stop(), [""; 0]);
    }
}
