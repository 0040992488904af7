//! What a manager process knows, and the one way in which anything changes.
//!
//! All processes of a cluster ask the manager that leads. It keeps the cluster's [`State`] in memory, equal to what is
//! stored, and answers from there; that it may do so is the matter of [`election`](crate::election).
//!
//! A change ([`Primary::change`]) is planned on a draft, stored in one transaction, and only then becomes what
//! requests see. One change at a time. The transaction reads the *holder* row, so that a deposed primary can't write, and
//! the *counters* row, whose generation rises by one with each change: so a commit whose outcome is unknown may be
//! repeated (it sees that it happened), and one that arrives late, after others, fails. When the outcome stays
//! unknown, memory and store may differ: this manager steps down, and loads everything again when it is elected.

use crate::clock::Clock;
use crate::cluster::formation::Wanted;
use crate::cluster::lease::{Candidate, Holder, Reign};
use crate::cluster::liveness::{Liveness, Terms};
use crate::cluster::moves;
use crate::cluster::reconfigure::{Restart, reconfigure};
use crate::cluster::state::State;
use crate::cluster::{placement::Imbalance, routing};
use crate::rows::{self, Numbers};
use crate::watch::{Gate, Watch};
use corefs_kv::{Isolation, KvEngine, Transaction, retry};
use corefs_wire::control::mgmtd::RoutingT;
use corefs_wire::{ClientId, Error, ErrorCode, NodeId, Result, SliceIndex, Uuid};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What a manager is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Drawn at random at each start.
    pub process: Uuid,
    /// Where other processes reach this manager.
    pub address: String,
    /// Becomes the cluster's name if the store has none yet; drawn at random.
    pub fresh_cluster: Uuid,
    /// The cluster that this manager must belong to, if that is known; a store without one gets this name.
    pub expected_cluster: Option<Uuid>,
    pub wanted: Wanted,
    pub terms: Terms,
    /// How long a primary leads without renewing (milliseconds).
    pub lease_ms: u64,
    /// Says in status where metadata are kept, and in how many copies.
    pub kv: String,
}

/// How often what happened since the process started.
#[derive(Clone, Default)]
pub struct Counts {
    pub reigns: Cell<u64>,
    pub step_downs: Cell<u64>,
    /// Times that it stopped leading because it heard no node.
    pub gave_way: Cell<u64>,
    pub changes: Cell<u64>,
    pub nodes_died: Cell<u64>,
    pub chains_changed: Cell<u64>,
    pub clients_expired: Cell<u64>,
    pub moves_begun: Cell<u64>,
}

/// Adds one.
pub(crate) fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// What the leading manager has in memory.
pub struct Leading {
    pub(crate) reign: Reign,
    pub(crate) beat: u64,
    pub(crate) state: State,
    pub(crate) liveness: Liveness,
    numbers: Numbers,
    /// Changes of routing in this reign.
    changes: u64,
    routing: Option<Rc<RoutingT>>,
    /// Clients whose end is being stored: they can't renew any more, and aren't reported dead yet.
    pub(crate) ending: BTreeSet<ClientId>,
    /// When it is time to look what should move.
    pub(crate) moves_due_ms: u64,
    /// It gave way before, and nobody else wanted to lead: what it doesn't hear is dead.
    pub(crate) insists: bool,
}

impl Leading {
    pub(crate) fn new(reign: Reign, beat: u64, state: State, numbers: Numbers, liveness: Liveness) -> Self {
        let ending = BTreeSet::new();
        let (changes, moves_due_ms, insists) = (0, 0, false);
        Self { reign, beat, state, liveness, numbers, changes, routing: None, ending, moves_due_ms, insists }
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// Which change was the last that is in here: what is stored under the same number is the same.
    pub fn generation(&self) -> u64 {
        self.numbers.generation
    }

    pub fn version(&self) -> u64 {
        routing::version(self.reign.epoch, self.changes)
    }

    /// The routing at [`version`](Self::version).
    pub fn routing(&mut self) -> Rc<RoutingT> {
        let version = self.version();
        let (state, liveness) = (&self.state, &self.liveness);
        let build = || Rc::new(routing::build(state, liveness, version).to_message());
        Rc::clone(self.routing.get_or_insert_with(build))
    }

    /// The routing, if it is newer than what somebody has.
    pub fn routing_beyond(&mut self, have: u64) -> Option<Box<RoutingT>> {
        (self.version() > have).then(|| Box::new((*self.routing()).clone()))
    }

    /// Routing differs from what was given out: it gets another version.
    pub(crate) fn touch(&mut self) {
        self.changes += 1;
        self.routing = None;
    }
}

pub(crate) struct Seat {
    pub(crate) candidate: Candidate,
    pub(crate) leading: Option<Leading>,
    /// When this manager last stopped because it heard nobody: until when it let others try.
    pub(crate) gave_way: Option<u64>,
}

/// Names the cluster if nobody has, and compares what is stored with what is wanted: `WrongCluster`, `BadConfig` saying
/// what differs. Returns the cluster's name.
pub async fn bootstrap<E: KvEngine>(
    engine: &E,
    fresh: Uuid,
    expected: Option<Uuid>,
    wanted: Wanted,
) -> Result<Uuid> {
    retry::run_repeatable(engine, async |txn: &mut E::Txn| {
        let root = rows::root_key();
        let Some(value) = txn.get(&root, Isolation::Serializable).await? else {
            let name = expected.unwrap_or(fresh);
            txn.set(&root, &rows::write_root(name, wanted.resolve(None, false)?));
            return Ok(name);
        };
        let (cluster, stored) = rows::read_root(&value)?;
        if let Some(expected) = expected.filter(|expected| *expected != cluster) {
            let text = format!("the key-value store belongs to cluster {cluster}, not {expected}");
            return Err(Error::new(ErrorCode::WrongCluster, text));
        }
        let formed = !txn.range_all(&rows::tables(), 1, Isolation::Snapshot).await?.is_empty();
        wanted.resolve(Some(stored), formed)?;
        Ok(cluster)
    })
    .await
}

/// One manager process: a candidate, or the primary.
pub struct Primary<E, C> {
    pub(crate) engine: E,
    pub(crate) clock: C,
    pub(crate) settings: Settings,
    pub(crate) cluster: Uuid,
    pub(crate) seat: RefCell<Seat>,
    gate: Gate,
    /// Routing changed, or this manager leads no more.
    pub(crate) news: Watch,
    /// Somebody with a lease was heard of.
    pub(crate) heard: Watch,
    /// Long polls in progress.
    pub(crate) waiters: Cell<usize>,
    pub counts: Counts,
}

impl<E: KvEngine, C: Clock> Primary<E, C> {
    /// Opens the store, see [`bootstrap`]. Leads nothing yet: that is [`step`](Self::step)'s.
    pub async fn open(engine: E, clock: C, settings: Settings) -> Result<Self> {
        let Settings { fresh_cluster, expected_cluster, wanted, .. } = settings;
        let cluster = bootstrap(&engine, fresh_cluster, expected_cluster, wanted).await?;
        Ok(Self::new(engine, clock, settings, cluster))
    }

    /// A manager of `cluster`, as [`bootstrap`] named it.
    pub fn new(engine: E, clock: C, settings: Settings, cluster: Uuid) -> Self {
        let candidate = Candidate::new(settings.process, settings.lease_ms, settings.terms.margin_ms);
        Self {
            engine,
            clock,
            settings,
            cluster,
            seat: RefCell::new(Seat { candidate, leading: None, gave_way: None }),
            gate: Gate::default(),
            news: Watch::default(),
            heard: Watch::default(),
            waiters: Cell::new(0),
            counts: Counts::default(),
        }
    }

    pub fn cluster(&self) -> Uuid {
        self.cluster
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where requests should go instead of here.
    fn not_primary(&self, seat: &Seat) -> Error {
        let text = match seat.candidate.holder() {
            _ if seat.leading.is_some() => {
                "this manager's lease has run out; it will renew it or give way".into()
            }
            Some(holder) if holder.process != self.settings.process && !holder.released => {
                format!("the primary is {}", holder.address)
            }
            _ => "no manager leads yet".into(),
        };
        Error::new(ErrorCode::NotPrimary, text)
    }

    /// Looks at, or changes, what is in memory. `NotPrimary` unless this manager leads right now. When `f` changed
    /// routing, all who wait for that are woken.
    pub fn leading<T>(&self, f: impl FnOnce(&mut Leading, u64) -> T) -> Result<T> {
        let now_ms = self.clock.now_ms();
        let mut seat = self.seat.borrow_mut();
        match &mut seat.leading {
            Some(leading) if leading.reign.runs(now_ms) => {
                let before = leading.changes;
                let out = f(leading, now_ms);
                let changed = leading.changes != before;
                drop(seat);
                if changed {
                    self.news.happened();
                }
                Ok(out)
            }
            _ => Err(self.not_primary(&seat)),
        }
    }

    /// Plans a change, stores it, and makes it what everybody sees. `plan` works on a [`Draft`]; an error of its
    /// changes nothing. `finish` runs when the change is stored, before anybody sees it: liveness, for one, isn't
    /// stored. Errors: `NotPrimary`, those of `plan`, and of the store (after which this manager has stepped down).
    pub async fn change<T>(
        &self,
        plan: impl FnOnce(&mut Draft<'_>) -> Result<T>,
        finish: impl FnOnce(&mut Leading, u64, &T),
    ) -> Result<T> {
        let _turn = self.gate.enter().await;
        let planned = self.leading(|leading, now_ms| {
            let mut draft = Draft::new(leading, now_ms);
            let value = plan(&mut draft)?;
            let planned = draft.finish()?;
            Ok::<_, Error>((leading.reign.epoch, planned, value))
        });
        let (epoch, planned, value) = planned??;
        if planned.changes_rows() {
            if let Err(error) = self.store(epoch, &planned).await {
                self.step_down(epoch, &error);
                return Err(error);
            }
            count(&self.counts.changes);
        }
        let now_ms = self.clock.now_ms();
        let mut seat = self.seat.borrow_mut();
        // The lease may have run out meanwhile: memory must follow the store all the same.
        let Some(leading) = seat.leading.as_mut().filter(|leading| leading.reign.epoch == epoch) else {
            return Err(self.not_primary(&seat));
        };
        let before = leading.changes;
        planned.apply(leading);
        finish(leading, now_ms, &value);
        let changed = leading.changes != before;
        drop(seat);
        if changed {
            self.news.happened();
        }
        Ok(value)
    }

    async fn store(&self, epoch: u64, planned: &Planned) -> Result<()> {
        let keys = [rows::holder_key(), rows::counters_key()];
        retry::run_repeatable(&self.engine, async |txn: &mut E::Txn| {
            let found = txn.get_many(&keys, Isolation::Serializable).await?;
            let [holder, numbers] = found.as_slice() else { return Err(ErrorCode::Internal.into()) };
            self.check_holder(holder.as_deref(), epoch)?;
            let stored = numbers.as_deref().map(rows::read_numbers).transpose()?.unwrap_or_default();
            if stored.generation == planned.numbers.generation {
                // An earlier attempt happened: nobody but the holder raises the generation.
                return Ok(());
            }
            if stored.generation + 1 != planned.numbers.generation {
                let (expected, actual) = (planned.numbers.generation - 1, stored.generation);
                let text = "somebody else changed the cluster's rows";
                return Err(Error::mismatch(ErrorCode::Internal, expected, actual, text));
            }
            txn.set(&keys[1], &rows::write_numbers(&planned.numbers));
            for (key, value) in &planned.rows {
                match value {
                    Some(value) => txn.set(key, value),
                    None => txn.clear(key),
                }
            }
            Ok(())
        })
        .await
    }

    /// `NotPrimary` unless the stored holder is this process in the reign `epoch`.
    pub(crate) fn check_holder(&self, stored: Option<&[u8]>, epoch: u64) -> Result<Holder> {
        let holder = stored.map(rows::read_holder).transpose()?;
        match holder {
            Some(holder) if holder.process == self.settings.process && holder.epoch == epoch => Ok(holder),
            Some(other) => {
                let text = format!("the primary is {}", other.address);
                Err(Error::mismatch(ErrorCode::NotPrimary, epoch, other.epoch, text))
            }
            None => Err(Error::new(ErrorCode::NotPrimary, "the lease row is gone")),
        }
    }

    /// Leads no more in the reign `epoch`: what is in memory is forgotten, and those who wait are told. A later reign of this process goes on.
    pub(crate) fn step_down(&self, epoch: u64, why: &Error) {
        let in_it = |leading: &mut Leading| leading.reign.epoch == epoch;
        if self.seat.borrow_mut().leading.take_if(in_it).is_some() {
            tracing::warn!("steps down as primary: {why}");
            count(&self.counts.step_downs);
        }
        self.news.happened();
        self.heard.happened();
    }
}

/// A change being planned: reads what is, writes what shall be.
pub struct Draft<'a> {
    leading: &'a mut Leading,
    pub now_ms: u64,
    state: Option<State>,
    client: u64,
    ending: Vec<ClientId>,
    rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl<'a> Draft<'a> {
    fn new(leading: &'a mut Leading, now_ms: u64) -> Self {
        let client = leading.numbers.client;
        Self { leading, now_ms, state: None, client, ending: Vec::new(), rows: BTreeMap::new() }
    }

    pub fn state(&self) -> &State {
        self.state.as_ref().unwrap_or(&self.leading.state)
    }

    pub fn liveness(&self) -> &Liveness {
        &self.leading.liveness
    }

    pub fn state_mut(&mut self) -> &mut State {
        self.state.get_or_insert_with(|| self.leading.state.clone())
    }

    /// Makes the chains if enough nodes are there. `usable` knows better than the last heartbeats.
    pub fn form(&mut self, usable: impl Fn(NodeId, SliceIndex) -> Option<bool>) -> Result<Option<Imbalance>> {
        if self.state().formed() {
            return Ok(None);
        }
        let liveness = self.leading.liveness.clone();
        let alive = |node: NodeId, slice: SliceIndex| {
            let health = liveness.slices(node).get(usize::from(slice.0));
            liveness.node_alive(node) && health.is_some_and(|health| !health.dead)
        };
        self.state_mut().form(|node, slice| usable(node, slice).unwrap_or_else(|| alive(node, slice)))
    }

    /// Applies the state table to all chains; `restarted` registers as another process. How many changed.
    pub fn reconfigure(&mut self, restarted: Option<Restart<'_>>) -> usize {
        let liveness = &self.leading.liveness;
        let state = self.state.get_or_insert_with(|| self.leading.state.clone());
        reconfigure(state, liveness, restarted)
    }

    /// Begins what should move now, and ends the evening out of shares when it is done. How many steps that were.
    pub fn begin_moves(&mut self) -> usize {
        let liveness = self.leading.liveness.clone();
        let state = self.state_mut();
        let steps = moves::next(state, &liveness);
        steps.iter().for_each(|step| moves::apply(state, *step));
        if steps.is_empty() && moves::is_done(state, &liveness) {
            state.moving.balance = false;
        }
        steps.len()
    }

    /// Gives out a client's number.
    pub fn add_client(&mut self, name: &str) -> ClientId {
        let id = ClientId(self.client);
        self.client += 1;
        self.rows.insert(rows::client_key(id), Some(rows::write_client(CLIENT_INCARNATION, name)));
        id
    }

    /// Ends a client's lease for good.
    pub fn end_client(&mut self, id: ClientId) {
        self.ending.push(id);
        self.rows.insert(rows::client_key(id), None);
    }

    fn finish(mut self) -> Result<Planned> {
        let state = self.state.take().filter(|state| *state != self.leading.state);
        if let Some(state) = &state {
            state.check()?;
            let (before, after) = (rows::of_state(&self.leading.state), rows::of_state(state));
            let gone = before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.clone(), None));
            self.rows.extend(gone);
            let differs = |(key, value): &(&Vec<u8>, &Vec<u8>)| before.get(*key) != Some(*value);
            let changed = after.iter().filter(differs);
            self.rows.extend(changed.map(|(key, value)| (key.clone(), Some(value.clone()))));
        }
        let counters = state.as_ref().map_or(self.leading.numbers.counters, |state| state.counters);
        let generation = self.leading.numbers.generation + 1;
        let numbers = Numbers { generation, counters, client: self.client };
        self.leading.ending.extend(self.ending);
        Ok(Planned { rows: self.rows, numbers, state })
    }
}

/// Every client process gets a number of its own, so there is only ever one incarnation of it.
pub const CLIENT_INCARNATION: u32 = 1;

/// A change that was planned: what to store, and what memory becomes then.
struct Planned {
    rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    numbers: Numbers,
    state: Option<State>,
}

impl Planned {
    fn changes_rows(&self) -> bool {
        !self.rows.is_empty()
    }

    fn apply(self, leading: &mut Leading) {
        if self.changes_rows() {
            leading.numbers = self.numbers;
        }
        if let Some(state) = self.state {
            leading.state = state;
            leading.touch();
        }
    }
}
