//! The store of another process: the same suite over real sockets, and what only a network can do.
#![cfg(feature = "remote")]

use corefs_kv::clock::{Clock, Hand};
use corefs_kv::conformance::{Bench, Load, check_all, check_serializable};
use corefs_kv::embedded::Options;
use corefs_kv::prng::Prng;
use corefs_kv::remote::server::VERSIONS_PER_CLIENT_MAX;
use corefs_kv::remote::{Client, Server};
use corefs_kv::retry::{Look, run_once, run_repeatable};
use corefs_kv::{Embedded, Isolation, KvEngine, Transaction};
use corefs_net::{Address, Identity, Node, NodeConfig, RingConfig, Role};
use corefs_wire::control::kv::{CommitRequestT, KeyT, MutationKind, MutationT, RangeReadT, ReadRequestT};
use corefs_wire::control::process::{GetProcessT, ProcessT};
use corefs_wire::control::{Call, Message};
use corefs_wire::{ErrorCode, Uuid};
use glommio::{LocalExecutorBuilder, Placement};
use std::cell::RefCell;
use std::future::Future;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

fn node(role: Role) -> Node {
    let identity = Identity { role, id: 1, incarnation: 1, cluster: Uuid([1; 16]), secret: None };
    let ring = RingConfig { entries: 64, completions: 256, ..RingConfig::default() };
    Node::start(NodeConfig { ring, pool_bytes: 4 << 20, ..NodeConfig::new(identity) }).unwrap()
}

/// Runs a test on an executor.
fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F + Send + 'static) {
    let executor = LocalExecutorBuilder::new(Placement::Unbound).spawn(|| async move { test().await });
    executor.unwrap().join().unwrap();
}

/// A served store, on a clock that stands still.
struct Served {
    node: Node,
    server: Server,
    store: Embedded,
    address: Address,
    hand: Hand,
}

impl Served {
    fn start(directory: &Path, address: &Address) -> Self {
        let (clock, hand) = Clock::standing();
        let store = Embedded::open(directory, Options { clock, ..Options::default() }).unwrap();
        let node = node(Role::Kv);
        let address = node.listen(address).unwrap();
        let process = || {
            let mut process = ProcessT::default();
            process.role = "kv".into();
            process.pid = 7;
            process
        };
        let server = Server::start(&node, store.clone(), process);
        Self { node, server, store, address, hand }
    }

    fn fresh(directory: &Path) -> Self {
        Self::start(directory, &"127.0.0.1:0".parse().unwrap())
    }

    fn client(&self) -> Client {
        Client::new(node(Role::Meta), self.address.clone(), 1)
    }

    async fn stop(self) {
        self.server.stop(&self.node).await;
    }
}

#[derive(Default)]
struct RemoteBench(RefCell<Vec<(TempDir, Served)>>);

impl Bench for RemoteBench {
    type Engine = Client;
    const NAME: &str = "embedded, of another process";

    async fn fresh(&self) -> Client {
        // One store at a time: the one before is stopped when the next is asked for.
        let before = self.0.borrow_mut().pop();
        if let Some((_directory, served)) = before {
            served.stop().await;
        }
        let directory = tempfile::tempdir().unwrap();
        let served = Served::fresh(directory.path());
        let client = served.client();
        self.0.borrow_mut().push((directory, served));
        client
    }

    /// The client is on the real clock.
    async fn pass(&self, _: &Client, duration: Duration) -> bool {
        self.0.borrow().last().unwrap().1.hand.advance(duration);
        glommio::timer::sleep(duration).await;
        true
    }
}

#[test]
fn conformance() {
    run(|| async { check_all(&RemoteBench::default()).await });
}

#[test]
fn several_clients_are_serializable_together() {
    run(|| async {
        let bench = RemoteBench::default();
        let first = bench.fresh().await;
        check_serializable(&first, 77, Load { workers: 24, transactions: 20, keys: 40 }).await;
        let counter = async |client: Client| {
            for _ in 0..20 {
                let body = async |txn: &mut <Client as KvEngine>::Txn| {
                    let old = txn.get(b"n", Isolation::Serializable).await?.map_or(0, |old| old[0]);
                    txn.set(b"n", &[old + 1]);
                    Ok(())
                };
                run_repeatable(&client, body).await.unwrap();
            }
        };
        let clients = (0..4).map(|_| bench.0.borrow()[0].1.client()).collect::<Vec<_>>();
        corefs_kv::conformance::join_all(clients.into_iter().map(counter)).await;
        assert_eq!(first.begin().get(b"n", Isolation::Snapshot).await, Ok(Some(vec![80])));
    });
}

#[test]
fn nobody_there_is_unavailable_and_a_restart_is_ridden_out() {
    run(|| async {
        let directory = tempfile::tempdir().unwrap();
        let served = Served::fresh(directory.path());
        let (client, address) = (served.client(), served.address.clone());
        set(&client, b"k", b"1").await;
        let mut reader = client.begin();
        reader.get(b"k", Isolation::Serializable).await.unwrap();
        reader.set(b"k", b"stale");
        served.stop().await;
        let error = client.begin().get(b"k", Isolation::Snapshot).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::KvUnavailable, "{error}");
        let mut blind = client.begin();
        blind.set(b"k", b"2");
        let error = blind.commit().await.unwrap_err();
        assert_eq!(error.code, ErrorCode::KvUnavailable, "it was never sent: {error}");
        // It comes back at the same address while a transaction is being retried.
        let path = directory.path().to_owned();
        let restarted = glommio::spawn_local(async move {
            glommio::timer::sleep(Duration::from_millis(100)).await;
            Served::start(&path, &address)
        });
        let row = async |txn: &mut <Client as KvEngine>::Txn| {
            let old = txn.get(b"k", Isolation::Serializable).await?;
            txn.set(b"k", b"3");
            Ok((old, b"done".to_vec()))
        };
        let once = run_once(&client, b"row", Look::AfterUnknownCommit, |_| Ok(None), row);
        assert_eq!(once.await, Ok(Some(b"1".to_vec())));
        let served = restarted.await;
        // What was read before the restart is too old to commit, whatever the versions are.
        let error = reader.get(b"other", Isolation::Snapshot).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::KvTooOld, "{error}");
        assert_eq!(reader.commit().await.unwrap_err().code, ErrorCode::KvTooOld);
        served.stop().await;
    });
}

#[test]
fn a_lost_connection_leaves_a_commit_unknown_and_once_is_once() {
    run(|| async {
        let directory = tempfile::tempdir().unwrap();
        let served = Served::fresh(directory.path());
        // One that answers nothing: requests arrive, and then the connection is closed.
        let deaf = node(Role::Kv);
        let address = deaf.listen(&"127.0.0.1:0".parse().unwrap()).unwrap();
        struct Deaf(Node);
        impl corefs_net::Service for Deaf {
            fn request(&self, request: corefs_net::Request, _responder: corefs_net::Responder) {
                self.0.close(request.conn);
                std::mem::forget(_responder);
            }
        }
        deaf.serve(std::rc::Rc::new(Deaf(deaf.clone())));
        let client = Client::new(node(Role::Meta), address, 1);
        let mut txn = client.begin();
        txn.set(b"k", b"1");
        let error = txn.commit().await.unwrap_err();
        assert_eq!(error.code, ErrorCode::KvUnknownCommit, "{error}");
        let error = client.begin().get(b"k", Isolation::Snapshot).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::KvUnavailable, "{error}");
        // The real one: connections are cut again and again while counters are raised exactly once each.
        let client = served.client();
        let cutting = glommio::spawn_local({
            let node = client.node().clone();
            let address = served.address.clone();
            async move {
                for _ in 0..40 {
                    glommio::timer::sleep(Duration::from_millis(5)).await;
                    if let Ok(conn) = node.connection(&address).await {
                        node.close(conn);
                    }
                }
            }
        });
        let worker = async |number: u8| {
            for round in 0..10u8 {
                let body = async |txn: &mut <Client as KvEngine>::Txn| {
                    txn.add_i64(b"n", 1);
                    Ok(((), vec![]))
                };
                run_once(&client, &[b'r', number, round], Look::EveryAttempt, |_| Ok(()), body)
                    .await
                    .unwrap();
            }
        };
        corefs_kv::conformance::join_all((0..8).map(worker)).await;
        cutting.await;
        let counted = served.store.begin().get(b"n", Isolation::Snapshot).await;
        assert_eq!(counted, Ok(Some(80i64.to_le_bytes().to_vec())));
        served.stop().await;
    });
}

async fn set(client: &Client, key: &[u8], value: &[u8]) {
    let body = async |txn: &mut <Client as KvEngine>::Txn| {
        txn.set(key, value);
        Ok(())
    };
    run_repeatable(client, body).await.unwrap();
}

#[test]
fn what_a_client_holds_is_bounded_released_and_ends_with_it() {
    run(|| async {
        let directory = tempfile::tempdir().unwrap();
        let served = Served::fresh(directory.path());
        let client = served.client();
        let mut readers = Vec::new();
        let error = loop {
            let mut reader = client.begin();
            match reader.read_version().await {
                Ok(_) => readers.push(reader),
                Err(error) => break error,
            }
            set(&client, b"k", b"1").await;
        };
        assert_eq!((error.code, readers.len()), (ErrorCode::KvUnavailable, VERSIONS_PER_CLIENT_MAX));
        // The others are not concerned.
        let other = served.client();
        assert_eq!(other.begin().get(b"k", Isolation::Snapshot).await, Ok(Some(b"1".to_vec())));
        drop(readers);
        // Released with whatever is asked next.
        assert_eq!(client.begin().get(b"k", Isolation::Snapshot).await, Ok(Some(b"1".to_vec())));
        assert!(served.store.statistics().snapshots <= 2, "{:?}", served.store.statistics());
        let asked = client
            .node()
            .ask(&served.address, &GetProcessT::default(), Duration::from_secs(5))
            .await
            .unwrap();
        let counter = |name: &str| asked.counters.iter().find(|counter| counter.name == name).unwrap().value;
        assert_eq!((asked.role.as_str(), asked.pid, counter("kv.sessions")), ("kv", 7, 2));
        assert_eq!(counter("kv.commits"), VERSIONS_PER_CLIENT_MAX as u64);
        // A client that goes away without a word.
        let mut reader = other.begin();
        reader.read_version().await.unwrap();
        other.node().shutdown().await;
        let mut waits = 0;
        while served.server.sessions() > 1 {
            waits += 1;
            assert!(waits < 1000, "the session of a closed connection stays");
            glommio::timer::sleep(Duration::from_millis(20)).await;
        }
        served.stop().await;
    });
}

/// Messages that no client of ours sends: each is answered or refused, and others don't notice.
#[test]
fn nonsense_is_refused_and_harms_nobody() {
    run(|| async {
        let directory = tempfile::tempdir().unwrap();
        let served = Served::fresh(directory.path());
        let (client, enemy) = (served.client(), served.client());
        set(&client, b"k", b"1").await;
        let call = async |op: u16, body: &[u8]| {
            let reply = enemy.node().call(&served.address, op, body, None, Duration::from_secs(5)).await;
            reply.map(|reply| reply.body.to_vec())
        };
        // What is left of a large transaction is not taken for the whole.
        let mut tail = CommitRequestT::default();
        (tail.assembly, tail.part) = (7, 1);
        let error = call(CommitRequestT::OP, &tail.encode()).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::KvUnavailable, "{error}");
        // A version that the client was never given.
        let mut read = ReadRequestT::default();
        read.version = 1;
        read.keys = vec![KeyT::default()];
        let error = call(ReadRequestT::OP, &read.encode()).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::KvTooOld, "{error}");
        // Beginnings without an end.
        for assembly in 0..50 {
            let mut head = CommitRequestT::default();
            (head.assembly, head.unfinished) = (assembly, true);
            head.mutations = vec![stamped(1_000_000), stamped(1)];
            call(CommitRequestT::OP, &head.encode()).await.unwrap();
        }
        let mut tail = CommitRequestT::default();
        (tail.assembly, tail.part) = (49, 1);
        let error = call(CommitRequestT::OP, &tail.encode()).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument, "the stamp doesn't fit: {error}");
        let mut random = Prng::new(3);
        let mut commit = CommitRequestT::default();
        commit.mutations = vec![stamped(1)];
        read.version = 0;
        let mut range = RangeReadT::default();
        (range.end, range.limit) = (vec![0xFF], 10);
        read.ranges = vec![range];
        let whole = [(CommitRequestT::OP, commit.encode()), (ReadRequestT::OP, read.encode())];
        let mut answered = 0;
        for _ in 0..2000 {
            let (op, mut body) = whole[random.below(2) as usize].clone();
            for _ in 0..1 + random.below(3) {
                let at = random.below(body.len() as u64) as usize;
                body[at] = random.draw() as u8;
            }
            body.truncate(body.len() - random.below(3) as usize);
            answered += usize::from(call(op, &body).await.is_ok());
        }
        println!("{answered} of 2000 damaged messages still meant something");
        let found = client.begin().get(b"k", Isolation::Serializable).await;
        assert!(found.is_ok(), "{found:?}");
        served.stop().await;
    });
}

/// Sets a key of twelve bytes with a stamp at `stamp_at`.
fn stamped(stamp_at: u32) -> MutationT {
    let mut mutation = MutationT::default();
    mutation.kind = MutationKind::VersionstampedKey;
    (mutation.key, mutation.stamp_at) = (b"twelve bytes".to_vec(), stamp_at);
    mutation
}
