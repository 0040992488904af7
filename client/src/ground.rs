//! What every part of a client stands on: the endpoint, the newest routing, time, chance and counters.

use crate::client::Counters;
use crate::route::{Cache, Rng};
use crate::wait::Waiters;
use corefs_net::{Address, Bell, Node, Pool};
use corefs_wire::control::{Call, Message};
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{Error, ErrorCode, Result};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The metadata servers of one generation of routing.
type Metas = (u64, Rc<[Address]>);

pub struct Ground {
    pub node: Node,
    pub pool: Pool,
    pub routes: RefCell<Cache>,
    pub rng: RefCell<Rng>,
    pub counters: RefCell<Counters>,
    /// How long an operation is retried.
    pub patience: Duration,
    pub managers: Vec<Address>,
    /// The manager that answered last.
    pub leader: Cell<usize>,
    /// Changes with each new routing, and when a fetch has ended.
    pub news: Waiters,
    pub fetching: Cell<bool>,
    /// Rung when an error says that routing is old and there is no manager to ask.
    pub wanted: Bell,
    pub closed: Cell<bool>,
    /// Called for an owner index before it may be given to another address.
    busy: RefCell<Option<Rc<BusyTest>>>,
    /// Called with each new routing.
    taken: RefCell<Option<Rc<Taken>>>,
    metas: RefCell<Metas>,
    started: Instant,
}

type BusyTest = dyn Fn(crate::route::OwnerIndex) -> bool;
type Taken = dyn Fn(&RoutingInfo);

impl Ground {
    pub fn new(node: Node, managers: Vec<Address>, patience: Duration, seed: u64) -> Self {
        Self {
            pool: node.pool(),
            node,
            routes: RefCell::default(),
            rng: RefCell::new(Rng::new(seed)),
            counters: RefCell::default(),
            patience,
            managers,
            leader: Cell::new(0),
            news: Waiters::default(),
            fetching: Cell::new(false),
            wanted: Bell::new(),
            closed: Cell::new(false),
            busy: RefCell::new(None),
            taken: RefCell::new(None),
            metas: RefCell::new((0, Rc::from([]))),
            started: Instant::now(),
        }
    }

    /// Time since the start: what the pure machines are told.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Fails once the client was closed.
    pub fn check_open(&self) -> Result<()> {
        if self.closed.get() {
            Err(Error::new(ErrorCode::ShuttingDown, "this client was closed"))
        } else {
            Ok(())
        }
    }

    pub fn set_busy_test(&self, busy: Rc<BusyTest>) {
        *self.busy.borrow_mut() = Some(busy);
    }

    pub fn on_routing(&self, taken: Rc<Taken>) {
        *self.taken.borrow_mut() = Some(taken);
    }

    pub fn routing(&self) -> Rc<RoutingInfo> {
        Rc::clone(self.routes.borrow().info())
    }

    pub fn generation(&self) -> u64 {
        self.routes.borrow().generation()
    }

    /// Takes newer routing and tells everybody.
    pub fn install(&self, routing: RoutingInfo) {
        let busy = self.busy.borrow().clone();
        let busy = |owner| busy.as_ref().is_some_and(|busy| busy(owner));
        if self.routes.borrow_mut().install(routing, busy) {
            let taken = self.taken.borrow().clone();
            if let Some(taken) = taken {
                taken(&self.routing());
            }
            self.news.wake_all();
        }
    }

    /// The metadata servers; addresses that make no sense are left out.
    pub fn metas(&self) -> Rc<[Address]> {
        let routes = self.routes.borrow();
        let mut metas = self.metas.borrow_mut();
        if metas.0 != routes.generation() {
            let parsed = routes.info().metas.iter().filter_map(|address| address.parse().ok());
            *metas = (routes.generation(), parsed.collect());
        }
        Rc::clone(&metas.1)
    }

    /// One attempt of a control call, encoded already.
    pub async fn call_encoded<C: Call>(
        &self,
        server: &Address,
        body: &[u8],
        within: Duration,
    ) -> Result<C::Reply> {
        let reply = self.node.call(server, C::OP, body, None, within).await;
        let reply = reply.map_err(|error| error.of(format_args!("{} at {server}", C::NAME)))?;
        C::Reply::decode(&reply.body)
    }
}
