//! What the control endpoint answers: who this process is, what it has used, what its shards have counted (`process.get`),
//! and how the scrub is (`storage.scrub`).

use super::cores::{self, Core};
use super::scrub;
use corefs_net::{Request, Responder, Service};
use corefs_wire::control::process::{CounterT, GetProcessT, ProcessT, ShardCountersT};
use corefs_wire::control::storage::ScrubT;
use corefs_wire::control::{Call, Message};
use corefs_wire::{Error, ErrorCode, Result};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

pub struct ProcessService {
    cores: Rc<Vec<Core>>,
    scrub_rate: u64,
    started: Instant,
}

impl ProcessService {
    /// `scrub_rate`: of the node in the background, for whoever asks.
    pub fn new(cores: Rc<Vec<Core>>, scrub_rate: u64) -> Self {
        Self { cores, scrub_rate, started: Instant::now() }
    }
}

impl Service for ProcessService {
    fn request(&self, request: Request, responder: Responder) {
        let (cores, started, rate) = (Rc::clone(&self.cores), self.started, self.scrub_rate);
        let answer = async move {
            let answer = match request.op {
                GetProcessT::OP => process(&cores, started).await.map(|process| process.encode()),
                ScrubT::OP => match ScrubT::decode(&request.body) {
                    Ok(asked) => scrub::answer(&cores, &asked, rate).await.map(|reply| reply.encode()),
                    Err(error) => Err(error),
                },
                other => {
                    let what = "a storage node's control endpoint tells about its process and its scrub";
                    Err(Error::mismatch(ErrorCode::UnknownOperation, 0, other.into(), what))
                }
            };
            match answer {
                Ok(body) => responder.ok(&body, None),
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
