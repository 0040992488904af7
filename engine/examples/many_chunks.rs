//! What millions of chunks cost a shard: memory, start-up, and CPU for each read, beside ten thousand chunks.
//!
//! ```text
//! cargo run --release -p corefs-engine --example many_chunks -- DIR [CHUNKS]
//! ```
//! The chunks have 4 KiB each, the smallest, in one target of one slice: nothing is shared between them, so this is the worst that
//! an index can meet. They are written by the real store into a sparse file; their data are the file's holes, zeros with the right
//! checksum. Then a real shard recovers the slice and answers random reads of it over TCP. It says something about CPU, memory
//! and start-up, and nothing about disks: holes read fast.

#[path = "support/mod.rs"]
#[allow(dead_code)] // The other example writes through its client.
mod support;

use corefs_engine::disk::BlockingDisk;
use corefs_engine::disk::file::DiskFile;
use corefs_engine::disk::open::{Extent, format_slice, recover_slice};
use corefs_engine::mesh::{ShardMessage, answer};
use corefs_engine::slice::CHECKPOINT_BUDGET;
use corefs_engine::store::{Begin, Finish, Geometry, Store, Update, UpdateKind};
use corefs_net::heap::{Counting, give_back};
use corefs_wire::checksum::ZERO_BLOCK_CRC;
use corefs_wire::{
    ChainId, ChunkId, ClientId, Error, ErrorCode, InodeId, NodeId, Result, SliceIndex, TargetId, UpdateTag,
};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use support::{CLUSTER, Client, STORE, cpu_of, routing, serve};

const CHUNK: u32 = 4096;
/// Chunks of each file.
const EACH_FILE: u64 = 64;
/// Chunks that are logged together.
const GROUP: u64 = 4096;
/// What the reads of many chunks are compared with.
const FEW: u64 = 10_000;

/// As in `corefs`.
#[global_allocator]
static HEAP: Counting = Counting;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let dir = std::path::PathBuf::from(arguments.first().map_or("/tmp/many_chunks", |dir| dir.as_str()));
    let many = arguments.get(1).and_then(|text| text.parse().ok()).unwrap_or(10_000_000);
    std::fs::create_dir_all(&dir)?;
    let path = dir.join("slice");
    let mut costs = Vec::new();
    for chunks in [FEW, many] {
        costs.push(measure(&path, chunks)?);
        std::fs::remove_file(&path)?;
    }
    println!("CPU for each read, many to few: {:.3}", costs[1] / costs[0]);
    Ok(())
}

/// CPU microseconds of the shard for each read.
fn measure(path: &Path, chunks: u64) -> Result<f64> {
    let before = resident();
    // The index takes 80 bytes of each chunk on disk, and a 64th of the slice is for it; room for a third more.
    let bytes = (chunks * 80 * 64 * 4 / 3).max(256 << 20).next_multiple_of(1 << 20);
    std::fs::File::create(path)?.set_len(bytes)?;
    let started = Instant::now();
    let mut disk = DiskFile::open(path)?;
    let geometry = Geometry::for_slice(CLUSTER, STORE, NodeId(1), SliceIndex(0), bytes)?;
    format_slice(&mut disk, 0, &geometry)?;
    let extent = Extent { base: 0, bytes };
    let (mut store, _) = recover_slice(&mut disk, extent, CLUSTER, STORE, &mut |_| ())?;
    fill(&mut store, &mut disk, chunks)?;
    println!(
        "{chunks} chunks: written in {:.1?}, {:.2} us each",
        started.elapsed(),
        started.elapsed().as_secs_f64() * 1e6 / chunks as f64
    );
    drop(store);
    give_back();
    let empty = resident().max(before);
    let started = Instant::now();
    let (store, report) = recover_slice(&mut disk, extent, CLUSTER, STORE, &mut |_| ())?;
    let took = started.elapsed();
    give_back();
    if report.chunks != chunks {
        return Err(Error::mismatch(ErrorCode::Corrupt, chunks, report.chunks, "chunks recovered"));
    }
    println!(
        "{chunks} chunks: recovered in {took:.2?}, {:.2} us each; {:.1} bytes of memory each",
        took.as_secs_f64() * 1e6 / chunks as f64,
        resident().saturating_sub(empty) as f64 / chunks as f64
    );
    drop((store, disk));
    give_back();
    read(path, bytes, chunks)
}

/// Commits `chunks` chunks of one block of zeros, as updates that never touch the data blocks.
fn fill(store: &mut Store, disk: &mut DiskFile, chunks: u64) -> Result<()> {
    let (target, chain) = (TargetId(1), ChainId(1));
    store.create_target(target, chain)?;
    flush(store, disk)?;
    for first in (0..chunks).step_by(GROUP as usize) {
        for number in first..(first + GROUP).min(chunks) {
            let update = Update {
                target,
                chunk: ChunkId::new(InodeId(1 + number / EACH_FILE), (number % EACH_FILE) as u32),
                kind: UpdateKind::Write { offset: 0, len: CHUNK },
                version: 1,
                chain_version: 1,
                truncate_epoch: 0,
                tag: UpdateTag { client: ClientId(1), incarnation: 1, channel: 0, sequence: number + 1 },
            };
            loop {
                let Begin::Fresh(staging) = store.begin_update(update)? else {
                    return Err(Error::new(ErrorCode::Internal, "the update was seen before"));
                };
                match store.stage(staging, &[ZERO_BLOCK_CRC], Finish::Commit) {
                    Ok(plan) => {
                        // Its data would be zeros: the hole that is there.
                        let _data = store.apply(plan);
                        break;
                    }
                    // The journal waits for the checkpoint.
                    Err(error) if error.code == ErrorCode::Overloaded => flush(store, disk)?,
                    Err(error) => return Err(error),
                }
            }
        }
        flush(store, disk)?;
    }
    // A last checkpoint, as a node makes when it stops.
    while store.checkpoint_step(CHECKPOINT_BUDGET) {
        flush(store, disk)?;
    }
    flush(store, disk)?;
    flush(store, disk)
}

fn flush(store: &mut Store, disk: &mut DiskFile) -> Result<()> {
    if store.wants_checkpoint() {
        store.checkpoint_step(store.checkpoint_budget().max(CHECKPOINT_BUDGET));
    }
    if let Some(batch) = store.seal_batch() {
        for write in &batch.writes {
            disk.write_at(write.offset, &write.bytes)?;
        }
        store.batch_flushed(batch.id);
    }
    Ok(())
}

/// Random reads by a real shard.
fn read(path: &Path, bytes: u64, chunks: u64) -> Result<f64> {
    let (started, wait) = mpsc::channel();
    let file = DiskFile::open(path)?;
    let shard = std::thread::spawn(move || serve(file, bytes, false, started));
    let (handle, address, thread) = wait.recv().expect("the shard starts")?;
    handle.send(ShardMessage::Routing(Box::new(routing(&address, CHUNK))))?;
    handle.send(ShardMessage::Lease { until: u64::MAX })?;
    if let Some(core) = core_affinity::get_core_ids().unwrap_or_default().get(1) {
        core_affinity::set_for_current(*core);
    }
    let mut client = Client::connect(&address.parse()?, CHUNK)?;
    client.each_file = EACH_FILE as u32;
    let mut costs = Vec::new();
    for round in 0..5 {
        client.read(chunks, 16, 8, Duration::from_millis(300), round)?;
        let before = cpu_of(&format!("self/task/{thread}"));
        let (reads, elapsed) = client.read(chunks, 16, 8, Duration::from_secs(2), round + 100)?;
        let cpu = (cpu_of(&format!("self/task/{thread}")) - before) / 1e3 / reads.max(1) as f64;
        println!(
            "{chunks} chunks: {:.0} reads a second, {cpu:.2} us of CPU each",
            reads as f64 / elapsed.as_secs_f64()
        );
        costs.push(cpu);
    }
    if client.desk.errors > 0 {
        return Err(Error::new(ErrorCode::Corrupt, format!("{} reads failed", client.desk.errors)));
    }
    let (tell, _report) = answer();
    handle.send(ShardMessage::Report(tell))?;
    handle.send(ShardMessage::Abort)?;
    shard.join().expect("the shard ends")?;
    costs.sort_by(f64::total_cmp);
    Ok(costs[costs.len() / 2])
}

/// Bytes of memory that this process has.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}
