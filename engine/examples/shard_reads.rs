//! What a shard adds to the bare ring: random 4 KiB reads of one shard over TCP, beside the bare bound on the same file.
//!
//! ```text
//! cargo run --release -p corefs-engine --example shard_reads -- DIR [MEBIBYTES] [SECONDS] [BATCH] [BATCHES] [ROUNDS]
//! ```
//! The shard is pinned to the first core, the client to the second. CPU is the shard's thread alone, as the scheduler counts
//! it (`/proc/self/task/TID/schedstat`).

#[path = "support/mod.rs"]
mod support;

use corefs_engine::disk::bench::{self, Direction, Order};
use corefs_engine::disk::file::DiskFile;
use corefs_engine::mesh::{ShardMessage, answer};
use corefs_wire::Result;
use std::sync::mpsc;
use std::time::Duration;
use support::{Client, cpu_of, routing, serve};

const CHUNK: u32 = 512 << 10;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |at: usize, default: u64| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let dir = std::path::PathBuf::from(arguments.first().map_or("/tmp/shard_reads", |dir| dir.as_str()));
    let (mebibytes, seconds) = (number(1, 1024), Duration::from_secs(number(2, 5)));
    let (batch, batches, rounds) = (number(3, 16) as usize, number(4, 8) as usize, number(5, 3));
    std::fs::create_dir_all(&dir)?;
    let disk = dir.join("disk");
    let _ = std::fs::remove_file(&disk);
    let bytes = (mebibytes << 20) * 5 / 4 + (64 << 20);
    let (started, wait) = mpsc::channel();
    let file = DiskFile::create(&disk, bytes)?;
    let shard = std::thread::spawn(move || serve(file, bytes, true, started));
    let (handle, address, thread) = wait.recv().expect("the shard starts")?;
    handle.send(ShardMessage::Routing(Box::new(routing(&address, CHUNK))))?;
    handle.send(ShardMessage::Lease { until: u64::MAX })?;
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    if let Some(core) = cores.get(1) {
        core_affinity::set_for_current(*core);
    }
    let chunks = (mebibytes << 20) / u64::from(CHUNK);
    let mut client = Client::connect(&address.parse()?, CHUNK)?;
    client.fill(chunks)?;
    for round in 0..rounds {
        let options = bench::Options {
            path: disk.clone(),
            block: 4096,
            depth: batch * batches,
            duration: seconds,
            warmup: Duration::from_millis(500),
            direction: Direction::Read,
            order: Order::Random,
            working_set: mebibytes << 20,
            core: 0,
            cores: 1,
            seed: round,
            durable: false,
            copies: 1,
        };
        let bare = std::thread::spawn(move || {
            core_affinity::set_for_current(core_affinity::CoreId { id: 0 });
            let before = cpu_of("thread-self");
            let report = bench::run(&options, &mut |_| (), &mut || false);
            report.map(|report| (report, cpu_of("thread-self") - before))
        });
        let (bare, bare_cpu) = bare.join().expect("the bound runs")?;
        let bare_iops = bare.operations as f64 / bare.elapsed.as_secs_f64();
        client.read(chunks, batch, batches, Duration::from_millis(500), round)?;
        let before = cpu_of(&format!("self/task/{thread}"));
        let (reads, elapsed) = client.read(chunks, batch, batches, seconds, round)?;
        let cpu = cpu_of(&format!("self/task/{thread}")) - before;
        let iops = reads as f64 / elapsed.as_secs_f64();
        println!(
            "bare {bare_iops:.0} IOPS {:.2} us/op (with warm-up)   shard {iops:.0} IOPS {:.2} us/op   ratio {:.3}   errors {}",
            bare_cpu / 1e3 / bare.operations.max(1) as f64,
            cpu / 1e3 / reads.max(1) as f64,
            iops / bare_iops,
            bare.errors + client.desk.errors
        );
    }
    let (tell, _report) = answer();
    handle.send(ShardMessage::Report(tell))?;
    handle.send(ShardMessage::Abort)?;
    shard.join().expect("the shard ends")
}
