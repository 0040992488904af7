//! `process.get`: who this process is, what it has used, what its shards have counted.

use super::cores::{self, Core};
use corefs_net::{Request, Responder, Service};
use corefs_wire::control::process::{CounterT, GetProcessT, ProcessT, ShardCountersT};
use corefs_wire::control::{Call, Message};
use corefs_wire::{Error, ErrorCode, Result};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

pub struct ProcessService {
    cores: Rc<Vec<Core>>,
    started: Instant,
}

impl ProcessService {
    pub fn new(cores: Rc<Vec<Core>>) -> Self {
        Self { cores, started: Instant::now() }
    }
}

impl Service for ProcessService {
    fn request(&self, request: Request, responder: Responder) {
        if request.op != GetProcessT::OP {
            let what = "a storage node's control endpoint only tells about its process";
            return responder.err(&Error::mismatch(ErrorCode::UnknownOperation, 0, request.op.into(), what));
        }
        let (cores, started) = (Rc::clone(&self.cores), self.started);
        let answer = async move {
            match process(&cores, started).await {
                Ok(process) => responder.ok(&process.encode(), None),
                Err(error) => responder.err(&error),
            }
        };
        glommio::spawn_local(answer).detach();
    }
}

async fn process(cores: &[Core], started: Instant) -> Result<ProcessT> {
    let mut process = ProcessT::default();
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for report in cores::reports(cores).await? {
        let mut shard = ShardCountersT::default();
        shard.shard = report.shard.0;
        for (name, value) in report.counters {
            *sums.entry(name.clone()).or_default() += value;
            shard.counters.push(counter(name, value));
        }
        process.shards.push(shard);
    }
    process.counters = sums.into_iter().map(|(name, value)| counter(name, value)).collect();
    process.role = "storage".into();
    process.pid = std::process::id();
    process.version = env!("CARGO_PKG_VERSION").into();
    process.uptime_ms = started.elapsed().as_millis() as u64;
    (process.user_us, process.system_us) = cpu_us();
    process.rss_bytes = resident_bytes();
    Ok(process)
}

fn counter(name: String, value: u64) -> CounterT {
    let mut counter = CounterT::default();
    (counter.name, counter.value) = (name, value);
    counter
}

/// User and system time of this process, microseconds (getrusage(2)).
fn cpu_us() -> (u64, u64) {
    // SAFETY: all zeros is a valid rusage, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let us = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    (us(usage.ru_utime), us(usage.ru_stime))
}

/// Resident memory (proc(5), statm: pages); 0 if it can't be read.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    // SAFETY: a plain query.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages.unwrap_or(0) * page.max(0) as u64
}
