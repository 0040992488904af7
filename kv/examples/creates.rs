//! How many file creations a second the embedded store commits durably, by how many run at once, beside what one
//! flush of the same disk costs in the same run.
//!
//! `cargo run --release -p corefs-kv --example creates -- [DIRECTORY] [SECONDS]`

use corefs_kv::embedded::Options;
use corefs_kv::retry::run;
use corefs_kv::{Embedded, Isolation, Transaction};
use std::cell::Cell;
use std::fs::OpenOptions;
use std::io::{Seek, Write};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What a creation costs the store: parent and name looked up, inode and name written, the parent's times and
/// count updated without a conflict.
async fn create(engine: &Embedded, number: u64) -> corefs_wire::Result<()> {
    run(engine, async |txn| {
        let name = [b"D\0\0\0\0\0\0\0\x01file-".as_slice(), &number.to_be_bytes()].concat();
        let found =
            txn.get_many(&[b"I\0\0\0\0\0\0\0\x01".as_slice(), &name], Isolation::Serializable).await?;
        assert!(found[1].is_none());
        let inode = [b"I".as_slice(), &(number + 2).to_be_bytes()].concat();
        txn.set(&inode, &[7; 150]);
        txn.set(&name, &[7; 20]);
        txn.max_u64(b"T\0\0\0\0\0\0\0\x01", number);
        txn.add_i64(b"N\0\0\0\0\0\0\0\x01", 1);
        Ok(())
    })
    .await
}

fn flush_p50(directory: &Path) -> Duration {
    let path = directory.join("flush-probe");
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).open(&path).expect("a probe file");
    let mut took: Vec<_> = (0..200)
        .map(|_| {
            let start = Instant::now();
            file.rewind()
                .and_then(|()| file.write_all(&[1; 4096]))
                .and_then(|()| file.sync_data())
                .expect("a flush");
            start.elapsed()
        })
        .collect();
    let _removed = std::fs::remove_file(path);
    took.sort();
    took[took.len() / 2]
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let base = arguments.next().unwrap_or_else(|| ".".into());
    let seconds: u64 = arguments.next().map_or(3, |text| text.parse().expect("a number of seconds"));
    let directory = tempfile::tempdir_in(&base).expect("a directory to write to");
    println!("flush (4 KiB write + fdatasync) p50: {:?}", flush_p50(directory.path()));
    println!(
        "{:>10} {:>12} {:>12} {:>14} {:>12}",
        "concurrent", "creates/s", "flushes/s", "creates/flush", "us/create"
    );
    for concurrent in [1, 16, 256, 1024] {
        let place = directory.path().join(concurrent.to_string());
        // Opened before pinning: the commit thread may run on any core.
        let engine = Embedded::open(&place, Options::default()).expect("an empty store");
        let executor = glommio::LocalExecutorBuilder::default().make().expect("an executor");
        executor.run(async move {
            let next = Rc::new(Cell::new(0));
            let end = Instant::now() + Duration::from_secs(seconds);
            let start = Instant::now();
            let worker = |_| {
                let (engine, next) = (engine.clone(), next.clone());
                glommio::spawn_local(async move {
                    while Instant::now() < end {
                        next.set(next.get() + 1);
                        create(&engine, next.get()).await.expect("creations don't conflict");
                    }
                })
            };
            let workers: Vec<_> = (0..concurrent).map(worker).collect();
            for worker in workers {
                worker.await;
            }
            let (statistics, took) = (engine.statistics(), start.elapsed().as_secs_f64());
            println!(
                "{concurrent:>10} {:>12.0} {:>12.0} {:>14.1} {:>12.1}",
                statistics.commits as f64 / took,
                statistics.groups as f64 / took,
                statistics.commits as f64 / statistics.groups as f64,
                took * 1e6 / statistics.commits as f64
            );
            engine.close().await;
        });
    }
}
