//! The manager as a process: an endpoint that decodes requests, and two tasks that keep the lead and the house.
//!
//! Everything runs on the current glommio executor. Each request is a task of its own: long polls wait without holding
//! anybody up, changes queue at [`Primary`]'s gate.

use crate::clock::Clock;
use crate::cluster::formation::Wanted;
use crate::cluster::liveness::Terms;
use crate::ops;
use crate::primary::{Primary, Settings, bootstrap};
use corefs_kv::KvEngine;
use corefs_net::{Address, Identity, Node, NodeConfig, Request, Responder, Role, Secret, Service, process};
use corefs_wire::control::process::GetProcessT;
use corefs_wire::control::{Call, Message, OPERATIONS, mgmtd};
use corefs_wire::{Error, ErrorCode, Result, Uuid};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Protocols, section 5: a storage node is declared dead, and a manager replaced, within this together.
const TAKEOVER_MS_MAX: u64 = 2500;
/// How long a primary leads without renewing (milliseconds).
pub const MANAGER_LEASE_MS: u64 = 1000;
/// The leases that others get.
pub const TERMS: Terms =
    Terms { lease_ms: 1000, margin_ms: 200, client_lease_ms: 15_000, forget_meta_ms: 60_000 };
const _: () = assert!(MANAGER_LEASE_MS + TERMS.lease_ms + TERMS.margin_ms <= TAKEOVER_MS_MAX);

/// How often the primary looks who has fallen silent (milliseconds).
const UPKEEP_MS: u64 = 100;
/// Data that managers' requests carry: none, so the arena is as small as it can be.
const POOL_BYTES: usize = 1 << 20;

/// How a manager is started.
#[derive(Clone, Debug)]
pub struct ManagerOptions {
    pub listen: Address,
    /// Where others reach it, if that isn't where it listens (behind a wildcard).
    pub advertise: Option<Address>,
    pub secret: Option<Secret>,
    /// The cluster that the store must belong to, if that is known.
    pub cluster: Option<Uuid>,
    /// The shape of the cluster; fixed when chains are made.
    pub wanted: Wanted,
    pub terms: Terms,
    pub lease_ms: u64,
    /// Says in status where metadata are kept, and in how many copies.
    pub kv: String,
}

impl ManagerOptions {
    /// The usual leases, and whatever shape is stored (or the default).
    pub fn new(listen: Address) -> Self {
        Self {
            listen,
            advertise: None,
            secret: None,
            cluster: None,
            wanted: Wanted::default(),
            terms: TERMS,
            lease_ms: MANAGER_LEASE_MS,
            kv: String::new(),
        }
    }
}

/// A running manager.
pub struct ManagerServer<E> {
    node: Node,
    address: Address,
    primary: Rc<Primary<E, BootClock>>,
    stopping: Rc<Cell<bool>>,
}

impl<E: KvEngine> ManagerServer<E> {
    /// Brings a manager up on the current executor. When it returns, the manager answers: as the primary if nobody led
    /// before (a first start, or after a clean stop), else `NotPrimary` until the old lease has run out.
    ///
    /// Errors: `BadConfig` when the cluster was formed with other numbers, for a wildcard without `advertise`, or
    /// beyond loopback without a secret; `WrongCluster`, `AddressInUse`, and those
    /// of the store.
    pub async fn start(options: ManagerOptions, engine: E) -> Result<Self> {
        let cluster = bootstrap(&engine, random_uuid()?, options.cluster, options.wanted).await?;
        let identity = Identity {
            role: Role::Manager,
            id: 0,
            incarnation: process::boot_ms(),
            cluster,
            secret: options.secret.clone(),
        };
        let node = Node::start(NodeConfig { pool_bytes: POOL_BYTES, ..NodeConfig::new(identity) })?;
        match Self::settle(&node, options, engine, cluster).await {
            Ok(server) => Ok(server),
            Err(error) => {
                shut_down(&node).await;
                Err(error)
            }
        }
    }

    /// Listens, takes part in the election, and starts to answer.
    async fn settle(node: &Node, options: ManagerOptions, engine: E, cluster: Uuid) -> Result<Self> {
        let address = node.listen(&options.listen)?;
        if let (None, Address::Tcp(socket)) = (&options.advertise, &address)
            && socket.ip().is_unspecified()
        {
            let text =
                format!("listening on {address}, the manager must be told an address to give to others");
            return Err(Error::new(ErrorCode::BadConfig, text));
        }
        let settings = Settings {
            process: random_uuid()?,
            address: options.advertise.as_ref().unwrap_or(&address).to_string(),
            fresh_cluster: cluster,
            expected_cluster: Some(cluster),
            wanted: options.wanted,
            terms: options.terms,
            lease_ms: options.lease_ms,
            kv: options.kv,
        };
        // Nothing is awaited between listening and serving: the first request finds somebody.
        let clock = BootClock;
        let primary = Rc::new(Primary::new(engine, clock.clone(), settings, cluster));
        let answers =
            Answers { primary: Rc::clone(&primary), started: Instant::now(), requests: RefCell::default() };
        node.serve(Rc::new(Dispatch(Rc::new(answers))));
        let pause_ms = primary.step().await;
        let server = Self { node: node.clone(), address, primary, stopping: Rc::default() };
        server.keep_leading(clock.clone(), pause_ms);
        server.keep_house(clock);
        Ok(server)
    }

    fn keep_leading(&self, clock: BootClock, mut pause_ms: u64) {
        let (primary, stopping) = (Rc::clone(&self.primary), Rc::clone(&self.stopping));
        glommio::spawn_local(async move {
            while !stopping.get() {
                clock.sleep(pause_ms).await;
                if !stopping.get() {
                    pause_ms = primary.step().await;
                }
            }
        })
        .detach();
    }

    fn keep_house(&self, clock: BootClock) {
        let (primary, stopping) = (Rc::clone(&self.primary), Rc::clone(&self.stopping));
        glommio::spawn_local(async move {
            while !stopping.get() {
                match primary.upkeep().await {
                    Err(error) if error.code != ErrorCode::NotPrimary => tracing::warn!("upkeep: {error}"),
                    _ => {}
                }
                clock.sleep(UPKEEP_MS).await;
            }
        })
        .detach();
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    pub fn cluster(&self) -> Uuid {
        self.primary.cluster()
    }

    /// Whether it leads right now.
    pub fn leads(&self) -> bool {
        self.primary.leads()
    }

    /// Ends as if killed: the lead isn't handed over. For tests of what comes after.
    pub async fn kill(self) {
        self.stopping.set(true);
        shut_down(&self.node).await;
    }

    /// Hands the lead over, answers what is in progress, and ends.
    pub async fn stop(self) -> Result<()> {
        self.stopping.set(true);
        let released = self.primary.release().await;
        shut_down(&self.node).await;
        released
    }
}

/// Ends the endpoint, and lets go of what answered: it holds the endpoint and the store.
async fn shut_down(node: &Node) {
    node.shutdown().await;
    node.serve(Rc::new(Gone));
}

/// Answers for a server that has stopped.
struct Gone;

impl Service for Gone {
    fn request(&self, _request: Request, responder: Responder) {
        responder.err(&Error::new(ErrorCode::ShuttingDown, "this manager has stopped"));
    }
}

fn random_uuid() -> Result<Uuid> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Error::new(ErrorCode::Os, format!("getrandom: {error}")))?;
    Ok(Uuid(bytes))
}

/// CLOCK_BOOTTIME, and pauses by the executor's timers: the endpoint's tick as long as anybody waits. (Pauses may be short or long after a
/// suspend; leases are judged by the clock alone.)
#[derive(Clone)]
struct BootClock;

impl Clock for BootClock {
    fn now_ms(&self) -> u64 {
        process::boot_ms()
    }

    async fn sleep(&self, ms: u64) {
        corefs_net::executor::sleep(Duration::from_millis(ms)).await;
    }
}

/// Answers requests.
struct Answers<E> {
    primary: Rc<Primary<E, BootClock>>,
    started: Instant,
    /// By operation: how many succeeded, and how many didn't.
    requests: RefCell<BTreeMap<&'static str, (u64, u64)>>,
}

/// Starts a task for each request.
struct Dispatch<E>(Rc<Answers<E>>);

impl<E: KvEngine> Service for Dispatch<E> {
    fn request(&self, request: Request, responder: Responder) {
        let answers = Rc::clone(&self.0);
        glommio::spawn_local(async move {
            let outcome = answers.answer(request.op, &request.body).await;
            answers.count(request.op, outcome.is_ok());
            responder.done(outcome);
        })
        .detach();
    }
}

impl<E: KvEngine> Answers<E> {
    async fn answer(&self, op: u16, body: &[u8]) -> Result<Vec<u8>> {
        let primary = &*self.primary;
        match op {
            mgmtd::RegisterNodeT::OP => {
                carry(body, async |request| ops::register_node(primary, request).await).await
            }
            mgmtd::NodeHeartbeatT::OP => {
                carry(body, async |request| ops::node_heartbeat(primary, request).await).await
            }
            mgmtd::RegisterMetaT::OP => {
                carry(body, async |request| ops::register_meta(primary, request).await).await
            }
            mgmtd::GetRoutingT::OP => {
                carry(body, async |request| ops::get_routing(primary, request).await).await
            }
            mgmtd::RenewClientT::OP => {
                carry(body, async |request| ops::renew_client(primary, request).await).await
            }
            mgmtd::EndClientT::OP => {
                carry(body, async |request| ops::end_client(primary, request).await).await
            }
            mgmtd::CheckClientsT::OP => {
                carry(body, async |request| ops::check_clients(primary, request).await).await
            }
            mgmtd::GetStatusT::OP => {
                carry(body, async |request| ops::get_status(primary, request).await).await
            }
            mgmtd::ChangeNodeT::OP => {
                carry(body, async |request| ops::change_node(primary, request).await).await
            }
            mgmtd::ChangeMovingT::OP => {
                carry(body, async |request| ops::change_moving(primary, request).await).await
            }
            GetProcessT::OP => carry(body, async |_: GetProcessT| Ok(self.report())).await,
            other => {
                let text = format!("a manager has no operation {other:#06x}");
                Err(Error::new(ErrorCode::UnknownOperation, text))
            }
        }
    }

    fn count(&self, op: u16, succeeded: bool) {
        let name = OPERATIONS.iter().find(|(code, _)| *code == op).map_or("unknown", |(_, name)| name);
        let mut requests = self.requests.borrow_mut();
        let (good, bad) = requests.entry(name).or_default();
        *(if succeeded { good } else { bad }) += 1;
    }

    fn report(&self) -> corefs_wire::control::process::ProcessT {
        let counts = &self.primary.counts;
        let own = [
            ("reigns", &counts.reigns),
            ("step_downs", &counts.step_downs),
            ("gave_way", &counts.gave_way),
            ("changes_stored", &counts.changes),
            ("nodes_died", &counts.nodes_died),
            ("chains_changed", &counts.chains_changed),
            ("clients_expired", &counts.clients_expired),
            ("moves_begun", &counts.moves_begun),
        ];
        let mut counters: Vec<(String, u64)> =
            own.iter().map(|(name, value)| ((*name).to_owned(), value.get())).collect();
        for (name, (good, bad)) in &*self.requests.borrow() {
            counters.push((format!("{name}.ok"), *good));
            counters.push((format!("{name}.failed"), *bad));
        }
        process::report("mgmtd", self.started.elapsed(), counters)
    }
}

/// Decodes a request, has it answered, encodes the reply.
async fn carry<C: Call>(body: &[u8], answer: impl AsyncFnOnce(C) -> Result<C::Reply>) -> Result<Vec<u8>> {
    let request = C::decode(body).map_err(|error| error.of(C::NAME))?;
    Ok(answer(request).await?.encode())
}
