//! How many file creations a second the embedded store commits durably, in the process and through `corefs kv`, by how
//! many run at once, beside what one flush of the same disk costs in the same run.
//!
//! `cargo run --release -p corefs-kv --example creates -- [DIRECTORY] [SECONDS]`

use corefs_kv::embedded::Options;
use corefs_kv::retry::run;
use corefs_kv::{Embedded, Isolation, KvEngine, Transaction};
use glommio::LocalExecutorBuilder;
use std::cell::Cell;
use std::fs::OpenOptions;
use std::io::{Seek, Write};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What a creation costs the store: parent and name looked up, inode and name written, the parent's times and
/// count updated without a conflict.
async fn create<E: KvEngine>(engine: &E, number: u64) -> corefs_wire::Result<()> {
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

/// Runs `concurrent` creators for a while; creations a second, and how long each took of the whole time.
async fn measure<E: KvEngine>(engine: &E, concurrent: usize, time: Duration) -> (u64, f64) {
    let next = Rc::new(Cell::new(0));
    let start = Instant::now();
    let worker = |_| {
        let (engine, next) = (engine.clone(), next.clone());
        glommio::spawn_local(async move {
            while start.elapsed() < time {
                next.set(next.get() + 1);
                create(&engine, next.get()).await.expect("creations don't conflict");
            }
        })
    };
    let workers: Vec<_> = (0..concurrent).map(worker).collect();
    for worker in workers {
        worker.await;
    }
    (next.get(), start.elapsed().as_secs_f64())
}

fn print(mode: &str, concurrent: usize, (creates, took): (u64, f64), groups: u64) {
    println!(
        "{mode:>10} {concurrent:>10} {:>12.0} {:>12.0} {:>14.1} {:>12.1}",
        creates as f64 / took,
        groups as f64 / took,
        creates as f64 / groups as f64,
        took * 1e6 / creates as f64
    );
}

fn embedded(place: &Path, concurrent: usize, time: Duration) {
    // Opened before pinning: the commit thread may run on any core.
    let engine = Embedded::open(place, Options::default()).expect("an empty store");
    let executor = LocalExecutorBuilder::default().make().expect("an executor");
    executor.run(async move {
        let measured = measure(&engine, concurrent, time).await;
        print("embedded", concurrent, measured, engine.statistics().groups);
        engine.close().await;
    });
}

/// A server on one thread, the creators on another: what a metadata server sees of `corefs kv`.
#[cfg(feature = "remote")]
fn remote(place: &Path, concurrent: usize, time: Duration) {
    use corefs_kv::remote::{Client, Server};
    use corefs_net::{Address, Identity, Node, NodeConfig, Role};
    let node = |role| {
        let cluster = corefs_wire::Uuid([1; 16]);
        let identity = Identity { role, id: 1, incarnation: 1, cluster, secret: None };
        Node::start(NodeConfig::new(identity)).expect("a node")
    };
    let address = Address::Unix(place.with_extension("socket"));
    let (place, theirs) = (place.to_owned(), address.clone());
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        let store = Embedded::open(&place, Options::default()).expect("an empty store");
        LocalExecutorBuilder::default().make().expect("an executor").run(async move {
            let node = node(Role::Kv);
            node.listen(&theirs).expect("an address");
            let server = Server::start(&node, store.clone(), Default::default);
            ready.send(()).expect("the creators wait for it");
            while stopped.try_recv().is_err() {
                node.sleep(Duration::from_millis(20)).await;
            }
            let groups = store.statistics().groups;
            server.stop(&node).await;
            groups
        })
    });
    is_ready.recv().expect("the server starts");
    let measured = LocalExecutorBuilder::default().make().expect("an executor").run(async move {
        let node = node(Role::Meta);
        let measured = measure(&Client::new(node.clone(), address, 1), concurrent, time).await;
        node.shutdown().await;
        measured
    });
    stop.send(()).expect("the server waits for it");
    print("remote", concurrent, measured, server.join().expect("the server stops"));
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let base = arguments.next().unwrap_or_else(|| ".".into());
    let seconds: u64 = arguments.next().map_or(3, |text| text.parse().expect("a number of seconds"));
    let time = Duration::from_secs(seconds);
    let directory = tempfile::tempdir_in(&base).expect("a directory to write to");
    println!("flush (4 KiB write + fdatasync) p50: {:?}", flush_p50(directory.path()));
    let titles = ["store", "concurrent", "creates/s", "flushes/s", "creates/flush", "us/create"];
    println!(
        "{:>10} {:>10} {:>12} {:>12} {:>14} {:>12}",
        titles[0], titles[1], titles[2], titles[3], titles[4], titles[5]
    );
    for concurrent in [1, 16, 256, 1024] {
        embedded(&directory.path().join(format!("embedded-{concurrent}")), concurrent, time);
        #[cfg(feature = "remote")]
        remote(&directory.path().join(format!("remote-{concurrent}")), concurrent, time);
    }
}
