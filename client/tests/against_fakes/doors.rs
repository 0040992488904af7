//! The doors from other threads, paths, and copies in and out.

use crate::fake::{Cluster, run};
use corefs_client::fs::Links;
use corefs_client::{ClientPool, CreateOptions, Credentials, PoolOptions};
use corefs_net::Address;
use corefs_wire::{ErrorCode, InodeId};
use std::sync::mpsc;
use std::time::Duration;

const ROOT: Credentials = Credentials::root();

/// A cluster on a thread of its own: the manager's address, and what ends it when dropped.
struct Elsewhere {
    manager: Address,
    end: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Elsewhere {
    fn start() -> Self {
        let (give, take) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            run(move || async move {
                let cluster = Cluster::start(1);
                give.send(cluster.manager_address.clone()).unwrap();
                while ended.try_recv() == Err(mpsc::TryRecvError::Empty) {
                    corefs_net::executor::sleep(Duration::from_millis(5)).await;
                }
                cluster.stop().await;
            });
        });
        Self { manager: take.recv().unwrap(), end: Some(end), thread: Some(thread) }
    }

    fn pool(&self, cores: Vec<usize>, mailbox: usize) -> ClientPool {
        let cores = cores.into_iter().map(Some).collect();
        let mut options = corefs_client::ClientOptions::new(vec![self.manager.clone()], None);
        options.pool_bytes = 16 << 20;
        options.busy_poll = Duration::ZERO;
        ClientPool::start(options, PoolOptions { cores, mailbox }).unwrap()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            thread.join().unwrap();
        }
    }
}

#[test]
fn other_threads_come_in_and_wait_for_answers() {
    let cluster = Elsewhere::start();
    let pool = cluster.pool(vec![0, 0], 64);
    assert_eq!(pool.shards(), 2);
    let threads: Vec<_> = (0..4usize)
        .map(|number| {
            let pool = pool.clone();
            std::thread::spawn(move || {
                for round in 0..20usize {
                    let name = format!("/f{number}-{round}").into_bytes();
                    let shard = pool.shard_of(InodeId(number as u64));
                    let length = pool.block_on(shard, move |client| async move {
                        let file = client.fs(ROOT).create(&name, CreateOptions::default()).await?;
                        file.write_at(0, &vec![number as u8; round * 1000]).await?;
                        file.sync().await?;
                        let data = file.read_at(0, usize::MAX).await?;
                        assert!(data.iter().all(|byte| *byte == number as u8));
                        let length = data.len();
                        drop(data);
                        file.close().await.map(|()| length)
                    });
                    assert_eq!(length, Ok(round * 1000));
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let error = pool.block_on(0, |client| async move { client.fs(ROOT).stat(b"/missing").await });
    assert_eq!(error.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(pool.run(9, |_| async {}).unwrap_err().code, ErrorCode::InvalidArgument);
    pool.clone().stop().unwrap();
    assert_eq!(pool.run(0, |_| async {}).unwrap_err().code, ErrorCode::ShuttingDown);
}

#[test]
fn a_shard_takes_only_so_much() {
    let cluster = Elsewhere::start();
    let pool = cluster.pool(Vec::new(), 4);
    let (give, take) = mpsc::channel::<()>();
    for _ in 0..4 {
        let give = give.clone();
        pool.try_run(0, move |_| async move {
            let _kept = give;
            std::future::pending::<()>().await;
        })
        .unwrap();
    }
    assert_eq!(pool.try_run(0, |_| async {}).unwrap_err().code, ErrorCode::Overloaded);
    pool.stop().unwrap();
    drop(give);
    // What was inside is dropped with the shard, so that nobody waits for it for ever.
    assert_eq!(take.recv(), Err(mpsc::RecvError));
}

#[test]
fn what_is_detached_takes_no_room() {
    let cluster = Elsewhere::start();
    let pool = cluster.pool(Vec::new(), 4);
    let (give, take) = mpsc::channel::<()>();
    for _ in 0..20 {
        let give = give.clone();
        let wait = move |client: corefs_client::Client| async move {
            client.detach(async move {
                let _kept = give;
                std::future::pending::<()>().await;
            });
        };
        pool.run(0, wait).unwrap();
    }
    let found = pool.block_on(0, |client| async move { client.fs(ROOT).stat(b"/").await });
    assert_eq!(found.map(|attr| attr.inode.0), Ok(1));
    pool.stop().unwrap();
    drop(give);
    assert_eq!(take.recv(), Err(mpsc::RecvError), "it ends with the shard");
}

#[test]
fn nobody_answers() {
    let mut options = corefs_client::ClientOptions::new(vec!["127.0.0.1:1".parse().unwrap()], None);
    options.deadline = Duration::from_millis(100);
    let error = ClientPool::start(options, PoolOptions::default()).map(drop).unwrap_err();
    assert_eq!(error.code, ErrorCode::Unreachable);
}

#[test]
fn paths_and_copies() {
    run(|| async {
        let cluster = Cluster::start(1);
        let client = cluster.client().await;
        let fs = client.fs(ROOT);
        fs.mkdir_all(b"/a/b//c/", 0o755).await.unwrap();
        fs.symlink(b"/a/b", b"/a/link").await.unwrap();
        fs.symlink(b"loop", b"/loop").await.unwrap();
        fs.symlink(b"../a/./b/c", b"/a/up").await.unwrap();
        let bytes: Vec<u8> = (0..3_000_000usize).map(|at| (at / 11) as u8).collect();
        let mut told = 0;
        let (mut source, mut progress) = (&bytes[..], |so_far| told = so_far);
        let put = fs.put(b"/a/link/c/file", CreateOptions::default(), &mut source, &mut progress).await;
        assert_eq!(put, Ok(bytes.len() as u64));
        assert_eq!(told, bytes.len() as u64);
        let mut out = Vec::new();
        assert_eq!(fs.get(b"/a/up/file", &mut out, &mut |_| ()).await, Ok(bytes.len() as u64));
        assert!(out == bytes);
        // A shorter one over it.
        fs.put(b"/a/b/c/file", CreateOptions::default(), &mut &b"short"[..], &mut |_| ()).await.unwrap();
        assert_eq!(fs.stat(b"/a/b/c/file").await.unwrap().size, 5);

        let code = async |path: &[u8]| fs.stat(path).await.map(|attr| attr.kind).map_err(|error| error.code);
        assert_eq!(code(b"/loop").await, Err(ErrorCode::TooManySymlinks));
        assert!(fs.resolve(b"/loop", Links::Keep).await.unwrap().is_symlink());
        assert_eq!(fs.read_link(b"/a/up").await.unwrap(), b"../a/./b/c");
        assert_eq!(code(b"/a/b/c/file/").await, Err(ErrorCode::NotDirectory));
        assert_eq!(code(b"/a/b/c/file/x").await, Err(ErrorCode::NotDirectory));
        assert_eq!(code(&[b'x'; 256]).await, Err(ErrorCode::NameTooLong));
        assert_eq!(code(&b"/x".repeat(2048)).await, Err(ErrorCode::NameTooLong));
        assert_eq!(fs.mkdir_all(b"/a/b/c/file", 0o755).await.unwrap_err().code, ErrorCode::NotDirectory);
        assert_eq!(fs.mkdir(b"/..", 0o755).await.unwrap_err().code, ErrorCode::InvalidName);
        assert_eq!(code(b"/../../a/b/../b/c/.").await.map(|_| ()), Ok(()));
        client.close().await.unwrap();
        cluster.stop().await;
    });
}
