//! The bounds to compare with: the same frames over the same sockets, and no file system.
//!
//! - `wire`: the server answers each read at once, from memory. What is left is the transport.
//! - `bare`: the server reads a random block of a plain file (O_DIRECT, registered file and buffers) and answers with it. What
//!   corefs adds to this, in chains, index, checksums and the client's machinery, is corefs's own cost.
//!
//! Both are hand-made: one loop over one ring on each side, no task, no allocation and no checksum for a read. The server is
//! a process of its own, pinned like a storage node, so that its CPU time can be told from the client's.

mod client;
mod serve;

pub use serve::{ServeArgs, serve};

use crate::cpu::{CpuTime, Whose};
use crate::driver::{Live, conduct};
use crate::progress::Watch;
use crate::report::Tally;
use crate::workload::{Direction, Workload};
use corefs_net::{Address, Identity, Role};
use corefs_wire::{Error, ErrorCode, Result, Uuid};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// The modes' rows.
pub const WIRE: &str = "wire";
pub const BARE: &str = "bare";
/// The line that says where a server listens.
const READY: &str = "ready ";
/// Until all cores have connected: those that are late find the warm-up.
const HEAD_START: Duration = Duration::from_millis(100);

/// Who both sides are: peers on this machine, of no cluster.
fn identity(role: Role) -> Identity {
    Identity { role, id: 0, incarnation: 0, cluster: Uuid::NIL, secret: None }
}

/// A running server of either kind. Dropping it ends the process.
pub struct Server {
    child: Child,
    addresses: Vec<Address>,
}

impl Server {
    /// Starts this program as a server, with a thread on each of the first `threads` cores: of reads of the file at `path`, or of
    /// memory when there is none.
    pub fn start(path: Option<&Path>, threads: usize, busy_poll: Duration) -> Result<Self> {
        let of = |error: std::io::Error| Error::from(error).of("starting the bare server");
        let mut command = Command::new(std::env::current_exe().map_err(of)?);
        command.args(["perf", "serve-bare", "--threads", &threads.to_string()]);
        command.args(["--busy-poll", &busy_poll.as_micros().to_string()]);
        if let Some(path) = path {
            command.arg("--path").arg(path);
        }
        // It ends when its standard input does, so it can't outlive this process.
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(of)?;
        let mut line = String::new();
        let read = child.stdout.take().map(|out| BufReader::new(out).read_line(&mut line));
        let mut server = Self { child, addresses: Vec::new() };
        match (read, line.trim_end().strip_prefix(READY)) {
            (Some(Ok(_)), Some(list)) => {
                server.addresses = list.split(' ').map(str::parse).collect::<Result<_>>()?;
                Ok(server)
            }
            _ => Err(Error::new(ErrorCode::Os, "the bare server did not start; it said why above")),
        }
    }

    fn used(&self) -> Option<CpuTime> {
        CpuTime::of_process(self.child.id())
    }

    /// Runs `workload`, random reads in a closed loop.
    pub fn run(&self, workload: &Workload, busy_poll: Duration, live: &Live, watch: Watch) -> Result<Tally> {
        let meter = &mut || (Some(CpuTime::own(Whose::Process)), self.used());
        measure(&self.addresses, workload, busy_poll, live, watch, meter)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It has ended, or does so now: nothing else holds its input.
        let _ended = self.child.wait();
    }
}

fn measure(
    addresses: &[Address],
    workload: &Workload,
    busy_poll: Duration,
    live: &Live,
    watch: Watch,
    meter: &mut crate::driver::Meter<'_>,
) -> Result<Tally> {
    if workload.rate.is_some() || workload.direction != Direction::Read {
        let what = "wire and bare are random reads in a closed loop, without --rate";
        return Err(Error::new(ErrorCode::BadConfig, what));
    }
    let begin = Instant::now() + HEAD_START;
    let places = core_affinity::get_core_ids().unwrap_or_default();
    let workload = Arc::new(workload.clone());
    let (send, receive) = mpsc::channel();
    std::thread::scope(|scope| {
        for core in 0..workload.cores {
            let (send, workload) = (send.clone(), Arc::clone(&workload));
            // The last cores first, and only who polls, as the native client.
            let place = places.iter().rev().cycle().nth(core as usize).copied();
            let place = place.filter(|_| !busy_poll.is_zero());
            scope.spawn(move || {
                place.map(core_affinity::set_for_current);
                let outcome = client::drive(addresses, &workload, core, begin, busy_poll, live);
                // The conductor may have given up already.
                let _gone = send.send(outcome);
            });
        }
        drop(send);
        let tally = conduct(&workload, begin, live, meter, watch, "bare", &receive);
        if tally.is_err() {
            live.stop();
        }
        tally
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{Order, Until};
    use corefs_engine::disk::bench;

    fn reads(bytes: u64, batch: u32, cores: u32) -> Workload {
        Workload {
            order: Order::Random,
            direction: Direction::Read,
            block: 8192,
            depth: 32,
            batch,
            cores,
            until: Until::Elapsed { warmup: Duration::ZERO, measured: Duration::from_millis(150) },
            ..Workload::layout(bytes, 1)
        }
    }

    fn run(path: Option<&Path>, workload: &Workload) -> Result<Tally> {
        let serving = serve::start(path, 2, Duration::ZERO)?;
        let meter = &mut || (None, None);
        let live = Live::default();
        let tally = measure(serving.addresses(), workload, Duration::ZERO, &live, Watch::Nothing, meter);
        serving.stop();
        tally
    }

    #[test]
    fn both_kinds_answer_every_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        bench::fill(&path, 4 << 20, 1, &mut |_| ()).unwrap();
        for (path, batch, cores) in [(None, 1, 1), (Some(&*path), 1, 2), (Some(&*path), 16, 1)] {
            let tally = run(path, &reads(4 << 20, batch, cores)).unwrap();
            assert!(tally.operations > 32, "{path:?}: {tally:?}");
            assert_eq!((tally.errors, tally.bytes), (0, tally.operations * 8192));
            assert_eq!(tally.latencies.count(), tally.operations);
        }
    }

    #[test]
    fn reads_outside_the_file_are_errors_and_nonsense_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        bench::fill(&path, 1 << 20, 1, &mut |_| ()).unwrap();
        let tally = run(Some(&path), &reads(64 << 20, 1, 1)).unwrap();
        assert!(tally.errors > 0 && tally.first_error.is_some(), "{tally:?}");
        let timed = Workload { rate: Some(5.0), ..reads(1 << 20, 1, 1) };
        assert_eq!(run(None, &timed).unwrap_err().code, ErrorCode::BadConfig);
        assert!(run(Some(&dir.path().join("nothing")), &reads(1 << 20, 1, 1)).is_err());
    }
}
