//! A real endpoint on a real executor: requests over TCP, garbage, a restart.

use corefs_kv::Mem;
use corefs_mgmtd::{ManagerOptions, ManagerServer};
use corefs_net::{Address, Identity, Node, NodeConfig, Role};
use corefs_wire::control::mgmtd::*;
use corefs_wire::control::process::GetProcessT;
use corefs_wire::control::{Call, OPERATIONS};
use corefs_wire::{ErrorCode, Uuid};
use glommio::{LocalExecutorBuilder, Placement};
use std::future::Future;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

fn on_executor(test: impl Future<Output = ()> + 'static) {
    let executor = LocalExecutorBuilder::new(Placement::Unbound).make().unwrap();
    executor.run(test);
}

fn peer() -> Node {
    let identity = Identity { role: Role::Tool, id: 7, incarnation: 1, cluster: Uuid::NIL, secret: None };
    Node::start(NodeConfig { pool_bytes: 1 << 20, ..NodeConfig::new(identity) }).unwrap()
}

async fn start(engine: &Mem, listen: &str) -> ManagerServer<Mem> {
    let mut options = ManagerOptions::new(listen.parse().unwrap());
    options.kv = "memory, for tests".into();
    ManagerServer::start(options, engine.clone()).await.unwrap()
}

fn node_request() -> RegisterNodeT {
    let mut slice = SliceInfoT::default();
    (slice.store, slice.capacity) = (vec![5; 16], 1 << 30);
    let mut request = RegisterNodeT::default();
    request.incarnation = 1;
    (request.control, request.shards) = ("127.0.0.1:5".into(), vec!["127.0.0.1:6".into()]);
    request.slices = vec![slice];
    request
}

#[test]
fn requests_are_answered_and_a_clean_restart_keeps_everything() {
    on_executor(async {
        let (engine, peer) = (Mem::new(), peer());
        let server = start(&engine, "127.0.0.1:0").await;
        assert!(server.leads());
        let address: Address = server.address().clone();
        let mut poll = GetRoutingT::default();
        let early = peer.ask(&address, &poll, PATIENCE).await.unwrap_err();
        assert_eq!(early.code, ErrorCode::NotReady);
        let registered = peer.ask(&address, &node_request(), PATIENCE).await.unwrap();
        assert_eq!((registered.node, registered.cluster), (1, server.cluster().0.to_vec()));
        let first = peer.ask(&address, &poll, PATIENCE).await.unwrap().routing.unwrap();
        assert_eq!(first.chains.len(), 32);

        // A long poll without news ends by itself; one during a stop is told so.
        (poll.have, poll.wait_ms) = (u64::MAX, 50);
        assert!(peer.ask(&address, &poll, PATIENCE).await.unwrap().routing.is_none());
        let process = peer.ask(&address, &GetProcessT::default(), PATIENCE).await.unwrap();
        assert_eq!((process.role.as_str(), process.pid), ("mgmtd", std::process::id()));
        let count = |name: &str| process.counters.iter().find(|counter| counter.name == name).unwrap().value;
        assert_eq!(
            (count("mgmtd.register_node.ok"), count("mgmtd.get_routing.failed"), count("reigns")),
            (1, 1, 1)
        );

        server.stop().await.unwrap();
        let server = start(&engine, &address.to_string()).await;
        assert!(server.leads(), "after a clean stop nobody waits");
        poll = GetRoutingT::default();
        let second = peer.ask(&address, &poll, PATIENCE).await.unwrap().routing.unwrap();
        assert!(second.version > first.version);
        assert_eq!((second.chains, second.targets, second.nodes), (first.chains, first.targets, first.nodes));
        server.stop().await.unwrap();
        peer.shutdown().await;
    });
}

#[test]
fn garbage_and_strange_operations_get_typed_errors_and_nobody_else_notices() {
    on_executor(async {
        let (engine, peer) = (Mem::new(), peer());
        let server = start(&engine, "127.0.0.1:0").await;
        let address: Address = server.address().clone();
        let code = async |op: u16, body: &[u8]| {
            peer.call(&address, op, body, None, PATIENCE).await.map(drop).map_err(|error| error.code)
        };
        assert_eq!(code(0x0301, b"").await, Err(ErrorCode::UnknownOperation));
        assert_eq!(code(0xFFFF, b"").await, Err(ErrorCode::UnknownOperation));
        for (op, name) in OPERATIONS.iter().filter(|(op, _)| (0x0200..0x0300).contains(op)) {
            for garbage in [&b""[..], &[0xFF; 64], &[0; 64], &[1, 0, 0, 0, 9, 9, 9, 9]] {
                // Four zero bytes may even be a message without fields; nothing may be worse than refused.
                if let Err(found) = code(*op, garbage).await {
                    let expected = [ErrorCode::BadFrame, ErrorCode::InvalidArgument, ErrorCode::NodeConflict];
                    let unformed = found == ErrorCode::NotReady;
                    assert!(unformed || expected.contains(&found), "{name} {found:?}");
                }
            }
        }
        assert_eq!(code(GetRoutingT::OP, &[0xFF; 64]).await, Err(ErrorCode::BadFrame));
        assert!(peer.ask(&address, &GetStatusT::default(), PATIENCE).await.is_ok());
        server.stop().await.unwrap();
        peer.shutdown().await;
    });
}

#[test]
fn addresses_that_cannot_work_are_said() {
    on_executor(async {
        let code = async |options: ManagerOptions| {
            ManagerServer::start(options, Mem::new()).await.map(drop).map_err(|error| error.code)
        };
        let mut options = ManagerOptions::new("0.0.0.0:0".parse().unwrap());
        assert_eq!(code(options.clone()).await, Err(ErrorCode::BadConfig), "no secret");
        options.secret = Some(corefs_net::Secret::new([1; 32]));
        assert_eq!(code(options.clone()).await, Err(ErrorCode::BadConfig), "nothing to give to others");
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = taken.local_addr().unwrap().into();
        let outcome = ManagerServer::start(ManagerOptions::new(listen), Mem::new()).await;
        assert_eq!(outcome.map(drop).map_err(|error| error.code), Err(ErrorCode::AddressInUse));
    });
}

/// A killed primary leaves its lease behind: the next process waits it out, and says so until then.
#[test]
fn after_a_kill_the_next_manager_leads_when_the_lease_is_over() {
    on_executor(async {
        let (engine, peer) = (Mem::new(), peer());
        let killed = start(&engine, "127.0.0.1:0").await;
        // Its tasks and its endpoint stop without a word to the store.
        killed.kill().await;
        let server = start(&engine, "127.0.0.1:0").await;
        assert!(!server.leads());
        let address: Address = server.address().clone();
        let error = peer.ask(&address, &GetStatusT::default(), PATIENCE).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::NotPrimary);
        while !server.leads() {
            peer.sleep(Duration::from_millis(20)).await;
        }
        assert!(peer.ask(&address, &GetStatusT::default(), PATIENCE).await.is_ok());
        server.stop().await.unwrap();
        peer.shutdown().await;
    });
}
