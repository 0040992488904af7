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
    let mut shards = Vec::new();
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for report in cores::reports(cores).await? {
        let mut shard = ShardCountersT::default();
        shard.shard = report.shard.0;
        for (name, value) in report.counters {
            *sums.entry(name.clone()).or_default() += value;
            let mut counter = CounterT::default();
            (counter.name, counter.value) = (name, value);
            shard.counters.push(counter);
        }
        shards.push(shard);
    }
    let mut process = corefs_net::process::report("storage", started.elapsed(), sums);
    process.shards = shards;
    Ok(process)
}
