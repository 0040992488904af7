//! The managers: as many processes as there are, each with the real machine ([`Primary`]: election, changes, what others ask) over the
//! deterministic store, on a clock of its own.

use super::config::{Canary, SLICE_CAPACITY};
use super::kv::{Outcomes, Road};
use super::node::CLUSTER;
use super::wire::Registry;
use crate::prng::Prng;
use crate::tasks::{MILLI, Owner, Tasks, Timers};
use corefs_engine::event::Nanos;
use corefs_kv::Pair;
use corefs_kv::mem::{Faults, Mem};
use corefs_mgmtd::cluster::formation::Wanted;
use corefs_mgmtd::cluster::liveness::Terms;
use corefs_mgmtd::cluster::moves;
use corefs_mgmtd::cluster::state::State;
use corefs_mgmtd::cluster::transition::Public;
use corefs_mgmtd::{Clock, Primary, Settings, ops, rows};
use corefs_wire::control::mgmtd::{
    ChangeNodeT, GetRoutingT, NodeHeartbeatT, RegisterNodeT, RoutingT, SliceInfoT,
};
use corefs_wire::{Error, ErrorCode, NodeId, Result, Uuid};
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

/// As the real ones have them.
pub const TERMS: Terms =
    Terms { lease_ms: 1000, margin_ms: 200, client_lease_ms: 15_000, forget_meta_ms: 60_000 };
const LEASE_MS: u64 = 1000;
const UPKEEP_MS: u64 = 100;

/// A process's clock: it drifts, and goes on while the process stands still.
#[derive(Clone)]
pub struct OwnClock {
    timers: Timers,
    /// Parts of a million of the world's time that pass on it.
    pace_ppm: u64,
    offset: Nanos,
}

impl OwnClock {
    pub fn new(timers: Timers, drift_ppm: u64, prng: &mut Prng) -> Self {
        let pace_ppm = 1_000_000 - drift_ppm + prng.below(2 * drift_ppm);
        Self { timers, pace_ppm, offset: prng.below(1 << 40) }
    }
}

impl Clock for OwnClock {
    fn now_ms(&self) -> u64 {
        let passed = u128::from(self.timers.now()) * u128::from(self.pace_ppm) / 1_000_000;
        (passed as Nanos + self.offset) / MILLI
    }

    async fn sleep(&self, ms: u64) {
        let time = u128::from(ms) * u128::from(MILLI) * 1_000_000 / u128::from(self.pace_ppm);
        self.timers.sleep(time as Nanos + 1).await;
    }
}

/// A manager's answer to one of the nodes' processes, or to somebody who empties nodes.
#[derive(Debug)]
pub enum Reply {
    Registered {
        node: usize,
        epoch: u32,
        sent: Nanos,
        result: Result<Box<RoutingT>>,
    },
    Heartbeat {
        node: usize,
        epoch: u32,
        sent: Nanos,
        result: Result<Option<Box<RoutingT>>>,
    },
    /// To the poll of that number.
    News {
        node: usize,
        epoch: u32,
        poll: u64,
        result: Result<Option<Box<RoutingT>>>,
    },
    Moves {
        result: Result<()>,
    },
}

/// One manager's machine.
pub type Machine = Primary<Road, OwnClock>;

struct Process {
    road: Road,
    clock: OwnClock,
    /// How often it was started.
    starts: u64,
    stopped_until: Nanos,
}

/// All managers, and what they keep in their store.
pub struct Managers {
    processes: Vec<Process>,
    /// Those that are up.
    pub machines: Registry<Machine>,
    pub store: Mem,
    pub outcomes: Rc<Outcomes>,
    pub tasks: Tasks,
    pub timers: Timers,
    /// Answers that haven't been sent yet.
    outbox: Rc<RefCell<Vec<(usize, Reply)>>>,
    /// What is stored, and the store's version when that was looked at.
    pub state: State,
    generation: u64,
    stored: Vec<Pair>,
    seen: u64,
    /// Reigns of processes that are no more, and how often they gave way.
    ended: (u64, u64),
    canary: Option<Canary>,
}

/// The number that the managers give a node.
pub fn id(node: usize) -> NodeId {
    NodeId(node as u32 + 1)
}

/// The name of a node's only slice.
pub fn store(node: usize) -> Uuid {
    Uuid([node as u8 + 1; 16])
}

/// How a node's only slice is.
pub fn slices(node: usize, dead: bool) -> Vec<SliceInfoT> {
    let mut slice = SliceInfoT::default();
    (slice.store, slice.capacity, slice.dead) = (store(node).0.to_vec(), SLICE_CAPACITY, dead);
    vec![slice]
}

/// A process of a node says that it is there.
pub fn registration(node: usize, incarnation: u64, known: bool, dead: bool) -> RegisterNodeT {
    let mut request = RegisterNodeT::default();
    request.node = if known { id(node).0 } else { 0 };
    request.incarnation = incarnation;
    request.control = format!("127.0.{node}.{}:1", incarnation % 250);
    request.shards = vec![format!("127.0.{node}.{}:2", incarnation % 250)];
    request.slices = slices(node, dead);
    request
}

fn settings(manager: usize, starts: u64, wanted: Wanted) -> Settings {
    let mut process = [manager as u8 + 1; 16];
    process[8..].copy_from_slice(&starts.to_le_bytes());
    Settings {
        process: Uuid(process),
        address: format!("127.1.{manager}.1:1"),
        fresh_cluster: CLUSTER,
        expected_cluster: Some(CLUSTER),
        wanted,
        terms: TERMS,
        lease_ms: LEASE_MS,
        kv: String::new(),
    }
}

impl Managers {
    /// So many managers that don't run yet, of a cluster that is formed already.
    pub fn new(
        managers: usize,
        (nodes, replicas, targets): (usize, usize, u32),
        store_ms: u64,
        canary: Option<Canary>,
        prng: &mut Prng,
        (drift_ppm, now): (u64, Nanos),
    ) -> Self {
        let timers = Timers::default();
        timers.set_now(now);
        let store = Mem::with_pace(prng.next_u64(), Faults::default(), Rc::new(timers.clone()));
        let outcomes = Rc::<Outcomes>::default();
        outcomes.canary.set(canary);
        let mut process = |_| Process {
            road: Road::new(store.clone(), timers.clone(), prng.fork(), store_ms, Rc::clone(&outcomes)),
            clock: OwnClock::new(timers.clone(), drift_ppm, prng),
            starts: 0,
            stopped_until: 0,
        };
        let processes: Vec<Process> = (0..managers).map(&mut process).collect();
        let wanted = Wanted {
            nodes: Some(nodes as u32),
            replicas: Some(replicas as u32),
            targets_per_node: Some(targets),
            chunk_size: None,
        };
        let clock = processes[0].clock.clone();
        let formed = form(store.clone(), clock, wanted, nodes);
        futures_lite::future::block_on(formed).expect("nothing goes wrong yet");
        let mut out = Self {
            machines: Rc::new(RefCell::new(processes.iter().map(|_| None).collect())),
            processes,
            store,
            outcomes,
            tasks: Tasks::default(),
            timers,
            outbox: Rc::default(),
            state: State::new(Uuid::NIL, Default::default()),
            generation: 0,
            stored: Vec::new(),
            seen: 0,
            ended: (0, 0),
            canary,
        };
        out.look().expect("rows that were just written");
        out
    }

    pub fn count(&self) -> usize {
        self.processes.len()
    }

    pub fn is_up(&self, manager: usize) -> bool {
        self.machines.borrow()[manager].is_some()
    }

    pub fn stopped_until(&self, manager: usize) -> Nanos {
        self.processes[manager].stopped_until
    }

    /// A process comes up. It leads when the others let it.
    pub fn start(&mut self, manager: usize) {
        let process = &mut self.processes[manager];
        process.starts += 1;
        let mut settings = settings(manager, process.starts, Wanted::default());
        if self.canary == Some(Canary::ReignTooLong) {
            // It goes on for longer than its successor waits.
            settings.lease_ms *= [5, 1][manager.min(1)];
        }
        let machine = Rc::new(Primary::new(process.road.clone(), process.clock.clone(), settings, CLUSTER));
        self.machines.borrow_mut()[manager] = Some(Rc::clone(&machine));
        let (leading, clock) = (Rc::clone(&machine), process.clock.clone());
        self.tasks.spawn(manager, async move {
            loop {
                let pause_ms = leading.step().await;
                clock.sleep(pause_ms).await;
            }
        });
        let clock = process.clock.clone();
        self.tasks.spawn(manager, async move {
            loop {
                // Not leading is no failure, and others are tried again.
                let _outcome = machine.upkeep().await;
                clock.sleep(UPKEEP_MS).await;
            }
        });
    }

    /// Its process dies: of what it was about to store some may still arrive.
    pub fn kill(&mut self, manager: usize) {
        self.tasks.kill(manager);
        self.processes[manager].stopped_until = 0;
        if let Some(machine) = self.machines.borrow_mut()[manager].take() {
            let (reigns, gave_way) = reigns_of(&machine);
            self.ended = (self.ended.0 + reigns, self.ended.1 + gave_way);
        }
    }

    /// It stands still until then, while its clock goes on.
    pub fn stop(&mut self, manager: usize, until: Nanos) {
        self.processes[manager].stopped_until = until;
        self.tasks.stand_still(manager, true);
    }

    pub fn go_on(&mut self, manager: usize) {
        self.tasks.stand_still(manager, false);
    }

    /// Cuts the road between a manager and the store.
    pub fn cut_store(&mut self, manager: usize, until: Nanos) {
        self.processes[manager].road.cut(until);
    }

    /// How often managers came to lead, and gave way because they heard no node.
    pub fn reigns(&self) -> (u64, u64) {
        let machines = self.machines.borrow();
        machines
            .iter()
            .flatten()
            .map(|machine| reigns_of(machine))
            .fold(self.ended, |sum, more| (sum.0 + more.0, sum.1 + more.1))
    }

    /// The one that leads, unless it stands still.
    pub fn leader(&self) -> Option<usize> {
        let (now, machines) = (self.timers.now(), self.machines.borrow());
        let leads = |machine: &Option<Rc<Machine>>| machine.as_ref().is_some_and(|machine| machine.leads());
        (0..machines.len())
            .find(|manager| self.processes[*manager].stopped_until <= now && leads(&machines[*manager]))
    }

    /// The routing that whoever leads gives out, if it is newer than that.
    pub fn routing_beyond(&self, have: u64) -> Option<(usize, Box<RoutingT>)> {
        let leader = self.leader()?;
        let machine = self.machines.borrow()[leader].clone()?;
        machine.leading(|leading, _| leading.routing_beyond(have)).ok().flatten().map(|found| (leader, found))
    }

    /// Nothing moves, and nothing is to move.
    pub fn has_moved(&self) -> bool {
        let machine = self.leader().and_then(|leader| self.machines.borrow()[leader].clone());
        let done = machine
            .map(|machine| machine.leading(|leading, _| moves::is_done(leading.state(), leading.liveness())));
        matches!(done, Some(Ok(true)))
    }

    /// All members of all chains serve.
    pub fn is_whole(&self) -> bool {
        let mut members = self.state.chains.values().flat_map(|chain| &chain.members);
        members.all(|member| member.state == Public::Serving)
    }

    /// A node's process asks to be taken in.
    pub fn register(&mut self, manager: usize, node: usize, (epoch, sent): (u32, Nanos), dead: bool) {
        let request = registration(node, epoch.into(), true, dead);
        self.ask(manager, |machine| async move {
            let result = ops::register_node(&machine, request).await.map(|reply| reply.routing);
            Reply::Registered { node, epoch, sent, result }
        });
    }

    pub fn heartbeat(
        &mut self,
        manager: usize,
        node: usize,
        (epoch, sent): (u32, Nanos),
        request: NodeHeartbeatT,
    ) {
        self.ask(manager, |machine| async move {
            let result = ops::node_heartbeat(&machine, request).await.map(|reply| reply.routing);
            Reply::Heartbeat { node, epoch, sent, result }
        });
    }

    /// A node waits for routing that is newer than what it has.
    pub fn poll(&mut self, manager: usize, node: usize, (epoch, poll): (u32, u64), request: GetRoutingT) {
        self.ask(manager, |machine| async move {
            let result = ops::get_routing(&machine, request).await.map(|reply| reply.routing);
            Reply::News { node, epoch, poll, result }
        });
    }

    pub fn change_node(&mut self, manager: usize, request: ChangeNodeT) {
        self.ask(manager, |machine| async move {
            let result = ops::change_node(&machine, request).await.map(drop);
            Reply::Moves { result }
        });
    }

    /// Each request is a task of its own, as in a manager's server. One that isn't up never answers.
    fn ask<F: Future<Output = Reply> + 'static>(
        &mut self,
        manager: Owner,
        request: impl FnOnce(Rc<Machine>) -> F,
    ) {
        let Some(machine) = self.machines.borrow()[manager].clone() else { return };
        let (answer, outbox) = (request(machine), Rc::clone(&self.outbox));
        self.tasks.spawn(manager, async move {
            let reply = answer.await;
            outbox.borrow_mut().push((manager, reply));
        });
    }

    /// Runs what was woken. The answers that came of it.
    pub fn run(&mut self) -> Vec<(usize, Reply)> {
        self.tasks.run();
        self.outbox.take()
    }

    /// Looks what is stored now. Whether chains, nodes or anything else of the cluster has changed.
    pub fn look(&mut self) -> Result<bool> {
        let latest = self.store.latest();
        if std::mem::replace(&mut self.seen, latest) == latest {
            return Ok(false);
        }
        let mut stored = self.store.newest(&rows::all());
        let (holder, beat) = (rows::holder_key(), rows::beat_key());
        stored.retain(|(key, _)| *key != holder && *key != beat);
        if stored == self.stored {
            return Ok(false);
        }
        self.stored = stored;
        let Some((state, numbers, _)) = rows::from_pairs(&self.stored)? else {
            return Err(Error::new(ErrorCode::Corrupt, "the cluster's rows are gone"));
        };
        state.check()?;
        (self.state, self.generation) = (state, numbers.generation);
        Ok(true)
    }

    /// How many lead, of those that don't stand still.
    pub fn leaders(&self) -> usize {
        let (now, machines) = (self.timers.now(), self.machines.borrow());
        let goes_on = |manager: usize| self.processes[manager].stopped_until <= now;
        let leads = |(manager, machine): &(usize, &Rc<Machine>)| goes_on(*manager) && machine.leads();
        machines
            .iter()
            .enumerate()
            .filter_map(|(at, machine)| Some((at, machine.as_ref()?)))
            .filter(leads)
            .count()
    }

    /// Whoever leads has something else in memory than what is stored, though it knows of the last change.
    pub fn astray(&self) -> Option<usize> {
        let leader = self.leader()?;
        let machine = self.machines.borrow()[leader].clone()?;
        let same = machine
            .leading(|leading, _| leading.generation() != self.generation || *leading.state() == self.state);
        (same == Ok(false)).then_some(leader)
    }
}

fn reigns_of(machine: &Machine) -> (u64, u64) {
    (machine.counts.reigns.get(), machine.counts.gave_way.get())
}

/// Makes the chains: all nodes come, and die.
async fn form(store: Mem, clock: OwnClock, wanted: Wanted, nodes: usize) -> Result<()> {
    let machine = Primary::open(store, clock, settings(0, 0, wanted)).await?;
    machine.step().await;
    for node in 0..nodes {
        ops::register_node(&machine, registration(node, 0, false, false)).await?;
    }
    machine.release().await
}
