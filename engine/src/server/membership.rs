//! Staying in the cluster: registering, heartbeats, and passing leases and routing on to the shards.
//!
//! A lease counts from the moment the renewal was *sent*, on CLOCK_BOOTTIME. Without one the shards refuse
//! everything by themselves, whatever becomes of this endpoint.

use super::cores::{self, Core};
use super::home::HomeSlice;
use crate::event::Nanos;
use crate::mesh::ShardMessage;
use crate::shard::boottime;
use corefs_net::{Address, Node, executor};
use corefs_wire::control::Call;
use corefs_wire::control::mgmtd::{
    GetRoutingT, NodeHeartbeatT, NodeRegisteredT, RegisterNodeT, RoutingT, SliceInfoT,
};
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{Class, Error, ErrorCode, NodeId, Result, Uuid};
use futures_lite::future;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

/// How long a manager has for its answer.
const ANSWER: Duration = Duration::from_secs(2);
/// How long a manager may wait for news of routing before it says that there are none.
const NEWS: Duration = Duration::from_secs(30);
/// How long a manager that is asked to take the node in may be silent before the next one is asked too. A part of a lease: one whose machine
/// is gone must not use that up.
const SILENCE: Duration = Duration::from_millis(200);
/// Pause between rounds over all managers.
const PAUSE: Duration = Duration::from_millis(100);
/// Rounds between two lines in the log while no manager answers.
const ROUNDS_PER_LINE: u32 = 50;

/// The node as managers know it.
#[derive(Clone)]
pub struct Member {
    pub node: Option<NodeId>,
    pub incarnation: u64,
    pub domain: String,
    pub control: String,
    pub shards: Vec<String>,
    pub slices: Vec<SliceInfoT>,
    /// Bytes a second at which it fills others at most.
    pub resync_rate: u64,
}

/// A manager's answer, and when the lease in it began.
pub struct Registered {
    pub reply: NodeRegisteredT,
    pub sent: Nanos,
    /// Position of the manager.
    pub by: usize,
}

/// The slices of a node that its shards haven't opened yet. Those whose disk isn't `there` are dead.
pub fn planned_slices(slices: &[HomeSlice], cores: usize, there: impl Fn(usize) -> bool) -> Vec<SliceInfoT> {
    let info = |slice: &HomeSlice| {
        let mut info = SliceInfoT::default();
        (info.index, info.shard) = (slice.index.0, slice.index.0 % cores as u16);
        info.store = slice.store.0.to_vec();
        (info.capacity, info.dead) = (slice.extent.bytes, !there(slice.disk));
        info.disk = slice.disk as u16;
        info
    };
    slices.iter().map(info).collect()
}

/// The cluster that a manager says it is of.
pub fn cluster(registered: &NodeRegisteredT) -> Result<Uuid> {
    let bytes = <[u8; 16]>::try_from(registered.cluster.as_slice());
    bytes.map(Uuid).map_err(|_| Error::new(ErrorCode::BadFrame, "the manager's cluster is no uuid"))
}

/// Registers with whichever manager leads. Waits for one as long as it takes; only what waiting can't heal is an error: what the one that
/// leads says, and what all say that say anything. Begins with the manager at `begin`; a round asks each of them once.
pub async fn register(
    control: &Node,
    managers: &[Address],
    begin: usize,
    member: &Member,
) -> Result<Registered> {
    let mut request = RegisterNodeT::default();
    request.node = member.node.map_or(0, |node| node.0);
    request.incarnation = member.incarnation;
    request.domain.clone_from(&member.domain);
    request.control.clone_from(&member.control);
    request.shards.clone_from(&member.shards);
    request.slices.clone_from(&member.slices);
    for round in 0u32.. {
        let mut refusals = Vec::new();
        let mut asking = Asking::new(control, managers, begin, &request, (SILENCE, ANSWER));
        while let Some((by, sent, answer)) = asking.next().await {
            match answer {
                Ok(reply) => return Ok(Registered { reply, sent, by }),
                Err(error) => refusals.push(error),
            }
        }
        let last_of_a_line = round % ROUNDS_PER_LINE == ROUNDS_PER_LINE - 1;
        if let Some(at) = hopeless(&refusals, last_of_a_line) {
            return Err(refusals.swap_remove(at));
        }
        if last_of_a_line && let Some(error) = refusals.last() {
            tracing::warn!(%error, "no manager takes this node in; still trying");
        }
        control.sleep(PAUSE).await;
    }
    unreachable!("the rounds have no end")
}

/// The position of the refusal of a round, one of each manager, that waiting can't heal. One that we can't even talk to (it is of another
/// version while a cluster is upgraded, or its address is wrong) may be one of several: another one may lead. If the others are silent, they
/// have until `patience_ends` to say something.
fn hopeless(refusals: &[Error], patience_ends: bool) -> Option<usize> {
    let of_a_stranger = |error: &Error| {
        use ErrorCode::{AuthenticationFailed, BadFrame, UnknownOperation, VersionMismatch, WrongCluster};
        [AuthenticationFailed, BadFrame, UnknownOperation, VersionMismatch, WrongCluster]
            .contains(&error.code)
    };
    let silent = |error: &Error| matches!(error.code, ErrorCode::Unreachable | ErrorCode::TimedOut);
    let fatal = |error: &Error| error.class() == Class::Fatal;
    if let Some(at) = refusals.iter().position(|error| fatal(error) && !of_a_stranger(error)) {
        return Some(at);
    }
    let only_strangers = refusals.iter().all(|error| fatal(error) || (patience_ends && silent(error)));
    refusals.iter().position(fatal).filter(|_| only_strangers)
}

/// One question to managers, of whom one knows the answer: each is asked when the one before has refused, or has said nothing for a while.
struct Asking<'a, C: Call> {
    control: &'a Node,
    managers: &'a [Address],
    begin: usize,
    call: &'a C,
    silence: Duration,
    within: Duration,
    asked: usize,
    open: Vec<Pin<Box<dyn Future<Output = Answer<C>> + 'a>>>,
}

/// Of which manager, when it was asked, and what it says.
type Answer<C> = (usize, Nanos, Result<<C as Call>::Reply>);

impl<'a, C: Call> Asking<'a, C> {
    /// `silence`: how long one may have for itself; `within`: how long it has at most.
    fn new(
        control: &'a Node,
        managers: &'a [Address],
        begin: usize,
        call: &'a C,
        (silence, within): (Duration, Duration),
    ) -> Self {
        Self { control, managers, begin, call, silence, within, asked: 0, open: Vec::new() }
    }

    /// The next answer, in the order in which they come. `None` when all have answered, or had their time.
    async fn next(&mut self) -> Option<Answer<C>> {
        loop {
            if self.asked < self.managers.len() {
                let position = (self.begin + self.asked) % self.managers.len();
                self.asked += 1;
                self.open.push(Box::pin(self.ask(position)));
            }
            if self.open.is_empty() {
                return None;
            }
            let (control, silence, more) = (self.control, self.silence, self.asked < self.managers.len());
            let silent = async {
                match more {
                    true => control.sleep(silence).await,
                    false => std::future::pending().await,
                }
                None
            };
            let answer = future::or(async { Some(first(&mut self.open).await) }, silent).await;
            if answer.is_some() {
                return answer;
            }
        }
    }

    fn ask(&self, position: usize) -> impl Future<Output = Answer<C>> + use<'a, C> {
        let (control, call, within) = (self.control, self.call, self.within);
        let manager = &self.managers[position];
        async move {
            let sent = boottime();
            let answer = control.ask(manager, call, within).await;
            (position, sent, answer.map_err(|error| error.of(manager)))
        }
    }
}

/// The outcome of the first of some futures to end, which is taken out.
pub(super) async fn first<F: Future + Unpin>(open: &mut Vec<F>) -> F::Output {
    poll_fn(|context| {
        for at in 0..open.len() {
            if let Poll::Ready(outcome) = Pin::new(&mut open[at]).poll(context) {
                open.swap_remove(at);
                return Poll::Ready(outcome);
            }
        }
        Poll::Pending
    })
    .await
}

/// Keeps a registered node in the cluster.
pub struct Membership {
    control: Node,
    managers: Vec<Address>,
    member: RefCell<Member>,
    cores: Rc<Vec<Core>>,
    /// Slices whose disk isn't there: no shard reports them.
    absent: RefCell<Vec<SliceInfoT>>,
    /// Which disk each slice is on: shards number only the disks that they have.
    disks: RefCell<Vec<u16>>,
    /// Slices that the managers know of.
    known: Cell<usize>,
    /// A disk is being added: some shards have its slices and others don't, so nothing is said of them.
    growing: Cell<bool>,
    /// Position of the manager that answered last.
    primary: Cell<usize>,
    routing_version: Cell<u64>,
    lease: Cell<Duration>,
    stopped: Cell<bool>,
}

impl Membership {
    pub fn new(control: Node, managers: Vec<Address>, member: Member, cores: Rc<Vec<Core>>) -> Self {
        let absent = RefCell::new(member.slices.iter().filter(|slice| slice.dead).cloned().collect());
        let known = Cell::new(member.slices.len());
        let disks = RefCell::new(member.slices.iter().map(|slice| slice.disk).collect());
        Self {
            control,
            managers,
            member: RefCell::new(member),
            cores,
            absent,
            disks,
            known,
            growing: Cell::new(false),
            primary: Cell::new(0),
            routing_version: Cell::new(0),
            lease: Cell::new(Duration::from_secs(1)),
            stopped: Cell::new(false),
        }
    }

    /// A manager took us in.
    pub fn registered(&self, registered: Registered) -> Result<()> {
        let Registered { reply, sent, by } = registered;
        self.primary.set(by);
        self.member.borrow_mut().node = Some(NodeId(reply.node));
        self.route(&reply.routing)?;
        self.leased(sent, reply.lease_ms);
        Ok(())
    }

    /// The node's number.
    pub fn node(&self) -> NodeId {
        self.member.borrow().node.unwrap_or_default()
    }

    /// Slices of a disk are about to be given to the shards: nothing is said of them until that has [ended](Self::grown).
    pub fn grows(&self, slices: &[HomeSlice]) {
        self.growing.set(true);
        self.disks.borrow_mut().extend(slices.iter().map(|slice| slice.disk as u16));
    }

    pub fn grown(&self) {
        self.growing.set(false);
    }

    /// No shard has these slices.
    pub fn lack(&self, slices: &[HomeSlice], cores: usize) {
        self.absent.borrow_mut().extend(planned_slices(slices, cores, |_| false));
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    /// No more heartbeats.
    pub fn stop(&self) {
        self.stopped.set(true);
    }

    /// Beats until it is stopped.
    pub async fn run(&self) {
        let (mut renewed, mut failures) = (true, 0);
        while !self.stopped.get() {
            // The lease is running out, and another manager may lead any moment.
            let pause = self.lease.get() / 3;
            executor::sleep(if renewed { pause } else { pause.min(PAUSE) }).await;
            if self.stopped.get() {
                return;
            }
            let outcome = self.beat().await;
            renewed = outcome.is_ok();
            failures = if renewed { 0 } else { failures + 1 };
            if let Err(error) = outcome
                && failures % ROUNDS_PER_LINE == 1
            {
                tracing::warn!(%error, "no manager has renewed the lease; trying again");
            }
        }
    }

    /// Hears of new routing as soon as there is some, as clients do: they would ask for a version that this node learns of only with
    /// its next heartbeat. It says nothing of the lease.
    pub async fn follow(&self) {
        while !self.stopped.get() {
            let mut request = GetRoutingT::default();
            (request.have, request.wait_ms) = (self.routing_version.get(), NEWS.as_millis() as u32);
            let manager = &self.managers[self.primary.get()];
            let heard = match self.control.ask_patiently(manager, &request, ANSWER, NEWS + ANSWER).await {
                Ok(reply) => reply.routing.map_or(Ok(()), |routing| self.route(&routing)),
                Err(error) => Err(error),
            };
            if heard.is_err() {
                // Whoever leads now is found by the heartbeats.
                executor::sleep(PAUSE).await;
            }
        }
    }

    /// One heartbeat: registers anew if whoever leads doesn't know this incarnation.
    async fn beat(&self) -> Result<()> {
        let reports = cores::reports(&self.cores).await?;
        let mut request = NodeHeartbeatT::default();
        {
            let member = self.member.borrow();
            request.node = member.node.map_or(0, |node| node.0);
            request.incarnation = member.incarnation;
            request.resync_rate = member.resync_rate;
        }
        request.routing_version = self.routing_version.get();
        for report in reports {
            request.slices.extend(report.slices);
            request.targets.extend(report.targets);
        }
        request.slices.extend(self.absent.borrow().iter().cloned());
        request.slices.sort_by_key(|slice| slice.index);
        for slice in &mut request.slices {
            slice.disk = self.disks.borrow().get(usize::from(slice.index)).copied().unwrap_or(0);
        }
        if self.growing.get() {
            request.slices.truncate(self.known.get());
        }
        self.member.borrow_mut().slices.clone_from(&request.slices);
        if request.slices.len() != self.known.get() {
            // A disk was added since.
            return self.introduce().await;
        }
        match self.renew(&request).await {
            // The manager doesn't know this incarnation.
            Err(error) if error.code == ErrorCode::NodeConflict => self.introduce().await,
            outcome => outcome,
        }
    }

    /// Asks the manager that answered last, and the next one when it refuses or says nothing for a while: one that stands still must
    /// not use up the lease.
    async fn renew(&self, request: &NodeHeartbeatT) -> Result<()> {
        let (of, lease) = (self.managers.len(), self.lease.get());
        let within = if of > 1 { lease / 2 } else { ANSWER.min(lease) };
        let mut refusal = Error::from(ErrorCode::Unreachable);
        let (begin, times) = (self.primary.get(), (lease / 5, within));
        let mut asking = Asking::new(&self.control, &self.managers, begin, request, times);
        while let Some((position, sent, answer)) = asking.next().await {
            match answer {
                Ok(reply) => {
                    self.primary.set(position);
                    if let Some(routing) = &reply.routing {
                        self.route(routing)?;
                    }
                    self.leased(sent, reply.lease_ms);
                    return Ok(());
                }
                // Only whoever leads says that; what the others say is of no interest then.
                Err(_) if refusal.code == ErrorCode::NodeConflict => {}
                Err(error) => refusal = error,
            }
        }
        // Whoever was asked first isn't the first any more: it may be the one that stands still.
        self.primary.set((self.primary.get() + 1) % of.max(1));
        Err(refusal)
    }

    /// Says again who we are.
    async fn introduce(&self) -> Result<()> {
        let member = self.member.borrow().clone();
        let begin = self.primary.get();
        let registered = register(&self.control, &self.managers, begin, &member).await?;
        self.known.set(member.slices.len());
        self.registered(registered)
    }

    fn route(&self, message: &RoutingT) -> Result<()> {
        let routing = RoutingInfo::from_message(message)?;
        if routing.version <= self.routing_version.get() && self.routing_version.get() > 0 {
            return Ok(());
        }
        for core in self.cores.iter() {
            core.handle.send(ShardMessage::Routing(Box::new(routing.clone())))?;
        }
        self.routing_version.set(routing.version);
        Ok(())
    }

    fn leased(&self, sent: Nanos, lease_ms: u32) {
        let lease = Duration::from_millis(lease_ms.into());
        self.lease.set(lease.max(Duration::from_millis(30)));
        let until = sent + lease.as_nanos() as Nanos;
        for core in self.cores.iter() {
            if let Err(error) = core.handle.send(ShardMessage::Lease { until }) {
                tracing::error!(shard = %core.shard, %error, "the shard doesn't hear of its lease");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_net::{Identity, NodeConfig, Request, Responder, Role, Service};
    use corefs_wire::control::Message;
    use glommio::Placement;
    use std::net::TcpListener;
    use std::time::Instant;

    #[test]
    fn one_manager_that_cannot_be_talked_to_keeps_no_node_out() {
        use ErrorCode::{InvalidArgument, NotPrimary, Unreachable, VersionMismatch};
        let check = |codes: &[ErrorCode], patience_ends, expected| {
            let refusals: Vec<Error> = codes.iter().map(|code| Error::from(*code)).collect();
            assert_eq!(hopeless(&refusals, patience_ends), expected, "{codes:?}");
        };
        check(&[VersionMismatch], false, Some(0));
        check(&[VersionMismatch, VersionMismatch], false, Some(0));
        // Another one may lead, or will.
        check(&[VersionMismatch, NotPrimary], true, None);
        check(&[Unreachable, VersionMismatch], false, None);
        check(&[Unreachable, VersionMismatch], true, Some(1));
        // Only whoever leads says that.
        check(&[NotPrimary, InvalidArgument, Unreachable], false, Some(1));
        check(&[Unreachable, NotPrimary], true, None);
        check(&[], true, None);
    }

    /// A manager that leads.
    struct Leader;

    impl Service for Leader {
        fn request(&self, _: Request, responder: Responder) {
            let mut reply = NodeRegisteredT::default();
            (reply.node, reply.lease_ms) = (4, 1000);
            responder.ok(&reply.encode(), None);
        }
    }

    /// One that doesn't.
    struct Follower(ErrorCode);

    impl Service for Follower {
        fn request(&self, _: Request, responder: Responder) {
            responder.err(&self.0.into());
        }
    }

    fn endpoint(role: Role) -> Node {
        let identity = Identity { role, id: 1, incarnation: 1, cluster: Uuid::NIL, secret: None };
        Node::start(NodeConfig { pool_bytes: 1 << 20, ..NodeConfig::new(identity) }).unwrap()
    }

    fn manager(service: impl Service + 'static) -> (Node, Address) {
        let node = endpoint(Role::Manager);
        node.serve(Rc::new(service));
        let address = node.listen(&"127.0.0.1:0".parse().unwrap()).unwrap();
        (node, address)
    }

    #[test]
    fn managers_that_are_gone_do_not_use_up_the_lease_of_who_registers_again() {
        let executor = executor::builder(Placement::Unbound).make().unwrap();
        executor.run(async {
            // The kernel takes connections for them, and nobody ever says a word.
            let gone = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
            let mut managers: Vec<Address> =
                gone.iter().map(|gone| Address::from(gone.local_addr().unwrap())).collect();
            let (follower, address) = manager(Follower(ErrorCode::NotPrimary));
            managers.push(address);
            let (leader, address) = manager(Leader);
            managers.push(address);
            let control = endpoint(Role::Storage);
            let member = Member {
                node: Some(NodeId(4)),
                incarnation: 1,
                domain: String::new(),
                control: String::new(),
                shards: Vec::new(),
                slices: Vec::new(),
                resync_rate: 1,
            };
            let began = Instant::now();
            let registered = register(&control, &managers, 0, &member).await.unwrap();
            let took = began.elapsed();
            assert_eq!((registered.reply.node, registered.by), (4, 3));
            // Two silences, where two answers were waited for before.
            assert!(took < ANSWER, "{took:?}, and a lease is one second");
            // Whoever answered last is asked first.
            assert_eq!(register(&control, &managers, 3, &member).await.unwrap().by, 3);
            // What waiting can't heal is still an error, whoever else is silent.
            let (stranger, address) = manager(Follower(ErrorCode::NodeConflict));
            managers[3] = address;
            let refused = register(&control, &managers, 0, &member).await.err().unwrap();
            assert_eq!(refused.code, ErrorCode::NodeConflict);
            for node in [control, follower, leader, stranger] {
                node.shutdown().await;
            }
        });
    }
}
