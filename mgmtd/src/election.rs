//! How a manager comes to lead, goes on leading, and stops: the transactions around [`lease`](crate::cluster::lease).

use crate::clock::Clock;
use crate::cluster::domains;
use crate::cluster::lease::{Holder, Reign, Stored, Verdict};
use crate::cluster::liveness::{Liveness, Silence};
use crate::cluster::moves;
use crate::cluster::placement::Imbalance;
use crate::cluster::reconfigure::is_due;
use crate::cluster::state::State;
use crate::primary::{Leading, Primary, count};
use crate::rows::{self, Numbers};
use corefs_kv::retry::{self, Budget};
use corefs_kv::{Isolation, KvEngine, Transaction};
use corefs_wire::{ClientId, Error, ErrorCode, Result};
use std::time::Duration;

/// How often it is looked what should move (milliseconds).
const MOVES_EVERY_MS: u64 = 250;
/// How long others have for taking over from a manager that hears nobody, in leases: candidates look four times in one.
const GIVES_WAY_FOR: (u64, u64) = (3, 4);
/// For how long afterwards it believes what it doesn't hear, in leases: the others have had their chance.
const INSISTS_FOR: u64 = 20;
/// The pause after a store that failed (milliseconds).
const PAUSE_MS: u64 = 50;

impl<E: KvEngine, C: Clock> Primary<E, C> {
    /// One step of the election: a candidate looks whether it may take over, a primary renews. Returns after how many
    /// milliseconds the next step is due.
    pub async fn step(&self) -> u64 {
        let leads = self.seat.borrow().leading.is_some();
        let outcome = if leads { self.renew().await } else { self.campaign().await };
        outcome.unwrap_or_else(|error| {
            tracing::warn!("election: {error}");
            PAUSE_MS
        })
    }

    /// Whether this manager leads right now.
    pub fn leads(&self) -> bool {
        self.leading(|_, _| ()).is_ok()
    }

    async fn campaign(&self) -> Result<u64> {
        let until = self.seat.borrow().gave_way.unwrap_or(0);
        if let Some(left) = until.checked_sub(self.clock.now_ms()).filter(|left| *left > 0) {
            return Ok(left);
        }
        let keys = [rows::holder_key(), rows::beat_key()];
        let found = self.engine.begin().get_many(&keys, Isolation::Snapshot).await?;
        let stored = read_lease(&found)?;
        let verdict = self.seat.borrow_mut().candidate.observe(stored.clone(), self.clock.now_ms());
        match verdict {
            Verdict::Wait { ms } => Ok(ms),
            Verdict::Take { epoch } => {
                self.take(epoch, stored).await?;
                Ok(self.settings.lease_ms / 4)
            }
        }
    }

    /// Becomes the primary if the lease is still as it was `seen`, and loads everything.
    async fn take(&self, epoch: u64, seen: Stored) -> Result<()> {
        let sent_ms = self.clock.now_ms();
        let beat = seen.as_ref().map_or(0, |(_, beat)| *beat) + 1;
        let (process, address) = (self.settings.process, self.settings.address.clone());
        let holder = Holder { epoch, process, address, released: false };
        // The counters change with every change of everything else: one that the old primary still gets through before this take-over must be
        // among what is loaded, though it touches neither holder nor beat.
        let keys = [rows::holder_key(), rows::beat_key(), rows::counters_key()];
        let loaded = retry::run_repeatable(&self.engine, async |txn: &mut E::Txn| {
            let found = read_lease(&txn.get_many(&keys, Isolation::Serializable).await?[..2])?;
            let mine = found.as_ref().is_some_and(|(found, _)| *found == holder);
            // If it is ours already, an earlier attempt happened although the store couldn't say so.
            if !mine && found != seen {
                return Err(Error::new(ErrorCode::NotPrimary, "another manager was faster"));
            }
            txn.set(&keys[0], &rows::write_holder(&holder));
            txn.set(&keys[1], &rows::write_beat(beat));
            let Some((mut state, numbers, clients)) = rows::load(txn).await? else {
                return Err(Error::new(
                    ErrorCode::Corrupt,
                    "the key-value store has lost the cluster's root row",
                ));
            };
            let formation = self.settings.wanted.resolve(Some(state.formation), state.formed())?;
            if formation != state.formation {
                state.formation = formation;
                txn.set(&rows::root_key(), &rows::write_root(state.cluster, formation));
            }
            Ok((state, numbers, clients))
        })
        .await?;
        self.reign(Reign::new(epoch, self.settings.lease_ms, sent_ms), beat, loaded);
        Ok(())
    }

    fn reign(&self, reign: Reign, beat: u64, (state, numbers, clients): (State, Numbers, Vec<ClientId>)) {
        let now_ms = self.clock.now_ms();
        let mut liveness = Liveness::new(self.settings.terms);
        state.nodes.keys().for_each(|node| liveness.assume_node(*node, now_ms));
        state.metas.keys().for_each(|address| liveness.assume_meta(address, now_ms));
        clients.iter().for_each(|client| liveness.hear_client(*client, now_ms));
        tracing::info!(
            "leads cluster {} (reign {}): {} nodes, {} chains",
            state.cluster,
            reign.epoch,
            state.nodes.len(),
            state.chains.len()
        );
        count(&self.counts.reigns);
        let mut leading = Leading::new(reign, beat, state, numbers, liveness);
        let mut seat = self.seat.borrow_mut();
        let lately = |until: u64| now_ms < until + INSISTS_FOR * self.settings.lease_ms;
        leading.insists = seat.gave_way.is_some_and(lately);
        seat.leading = Some(leading);
        drop(seat);
        self.news.happened();
    }

    async fn renew(&self) -> Result<u64> {
        let sent_ms = self.clock.now_ms();
        let next = self.seat.borrow_mut().leading.as_mut().map(|leading| {
            // A number of its own for each attempt, also for those whose outcome is unknown: a candidate that sees the
            // same beat twice goes on waiting us out.
            leading.beat += 1;
            (leading.reign.epoch, leading.beat)
        });
        let Some((epoch, beat)) = next else { return Ok(0) };
        // One attempt: a lease counts from before it was sent, so a late success is worth little.
        let once = Budget { attempts: 1, time: Duration::ZERO };
        let outcome = retry::run_within(&self.engine, once, async |txn: &mut E::Txn| {
            let holder = txn.get(&rows::holder_key(), Isolation::Serializable).await?;
            self.check_holder(holder.as_deref(), epoch)?;
            txn.set(&rows::beat_key(), &rows::write_beat(beat));
            Ok(())
        })
        .await;
        match outcome {
            Ok(_) => {
                let now_ms = self.clock.now_ms();
                if let Some(leading) = &mut self.seat.borrow_mut().leading {
                    if !leading.reign.runs(now_ms) {
                        // Nobody was answered for a while, and so nobody could be heard.
                        tracing::warn!(
                            "leads again after a while without a lease: everybody has a full lease to speak"
                        );
                        leading.liveness.begin_anew(now_ms);
                    }
                    leading.reign.renewed(sent_ms);
                }
                Ok(self.settings.lease_ms / 4)
            }
            Err(error) if error.code == ErrorCode::NotPrimary => {
                self.step_down(epoch, &error);
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// A clean stop: the next manager needs no wait. Leads no more, whatever the store says.
    pub async fn release(&self) -> Result<()> {
        self.release_because(Error::new(ErrorCode::ShuttingDown, "this manager stops")).await
    }

    /// No node is heard of: before all are declared dead, another manager has its chance, which may reach them. If none takes it, this one
    /// leads again and believes what it hears.
    async fn give_way(&self) -> Result<()> {
        let until = self.clock.now_ms() + self.settings.lease_ms * GIVES_WAY_FOR.0 / GIVES_WAY_FOR.1;
        {
            let mut seat = self.seat.borrow_mut();
            seat.gave_way = Some(until);
        }
        count(&self.counts.gave_way);
        self.release_because(Error::new(ErrorCode::TimedOut, "it hears no node, and lets others try")).await
    }

    async fn release_because(&self, why: Error) -> Result<()> {
        let epoch = self.seat.borrow().leading.as_ref().map(|leading| leading.reign.epoch);
        let Some(epoch) = epoch else { return Ok(()) };
        self.step_down(epoch, &why);
        retry::run_repeatable(&self.engine, async |txn: &mut E::Txn| {
            let found = txn.get(&rows::holder_key(), Isolation::Serializable).await?;
            let holder = self.check_holder(found.as_deref(), epoch)?;
            txn.set(&rows::holder_key(), &rows::write_holder(&Holder { released: true, ..holder }));
            Ok(())
        })
        .await
    }

    /// What has to be done now and then while leading: declares the silent dead, changes chains accordingly, ends clients
    /// whose lease ran out, forgets metadata servers, forms the cluster if that has become possible, has targets move.
    pub async fn upkeep(&self) -> Result<()> {
        let silence = self.leading(|leading, now_ms| {
            let insists = leading.insists && !leading.liveness.heard_any();
            if insists { Silence::No } else { leading.liveness.silence(now_ms) }
        })?;
        match silence {
            Silence::No => {}
            Silence::Perhaps => return Ok(()),
            Silence::Whole => return self.give_way().await,
        }
        let (died, anybody, unformed, due, moves) = self.leading(|leading, now_ms| {
            let before = alive_nodes(leading);
            if leading.liveness.expire(now_ms) {
                leading.touch();
            }
            let anybody = !leading.liveness.expired_clients(now_ms).is_empty()
                || !leading.liveness.forgettable_metas(now_ms).is_empty();
            let due = leading.liveness.is_unsettled() && is_due(&leading.state, &leading.liveness);
            if !due {
                leading.liveness.settled();
            }
            let moves = now_ms >= leading.moves_due_ms && {
                leading.moves_due_ms = now_ms + MOVES_EVERY_MS;
                let (state, liveness) = (&leading.state, &leading.liveness);
                !moves::next(state, liveness).is_empty()
                    || (state.moving.balance && moves::is_done(state, liveness))
            };
            (before - alive_nodes(leading), anybody, !leading.state.formed(), due, moves)
        })?;
        self.counts.nodes_died.set(self.counts.nodes_died.get() + died as u64);
        if !anybody && !unformed && !due && !moves {
            return Ok(());
        }
        let plan = |draft: &mut crate::primary::Draft<'_>| {
            // Whose time is over is asked now: whoever has renewed since, while this waited for its turn, has a lease.
            let clients = draft.liveness().expired_clients(draft.now_ms);
            clients.iter().for_each(|client| draft.end_client(*client));
            let metas = draft.liveness().forgettable_metas(draft.now_ms);
            for address in &metas {
                draft.state_mut().metas.remove(address);
            }
            // First what has happened, and only then what is wished for: a chain whose head is handed on must not change once more in the same step, by which
            // its last one would have missed a version.
            let mut changed = if due { draft.reconfigure(None) } else { 0 };
            // The chains aren't settled by this: what was heard of meanwhile may ask for more.
            let before = if moves { domains::repeats(draft.state()) } else { 0 };
            let begun = if moves { draft.begin_moves() } else { 0 };
            let together = if moves { domains::repeats(draft.state()).saturating_sub(before) } else { 0 };
            if begun > 0 {
                changed += draft.reconfigure(None);
            }
            Ok(Upkeep { formed: draft.form(|_, _| None)?, changed, begun, together, clients, metas })
        };
        let finish = |leading: &mut Leading, _: u64, done: &Upkeep| {
            for client in &done.clients {
                leading.liveness.forget_client(*client);
                leading.ending.remove(client);
            }
            done.metas.iter().for_each(|address| leading.liveness.forget_meta(address));
        };
        let Upkeep { formed, changed, begun, together, clients, .. } = self.change(plan, finish).await?;
        if changed > 0 {
            self.counts.chains_changed.set(self.counts.chains_changed.get() + changed as u64);
            tracing::info!("{changed} chains changed");
        }
        if together > 0 {
            tracing::warn!(
                "{together} chains get two replicas in one failure domain: there are fewer domains than replicas"
            );
        }
        self.counts.moves_begun.set(self.counts.moves_begun.get() + begun as u64);
        self.counts.clients_expired.set(self.counts.clients_expired.get() + clients.len() as u64);
        if let Some(imbalance) = formed {
            tracing::info!("formed the cluster: {imbalance}");
        }
        Ok(())
    }
}

/// What one round of upkeep did.
struct Upkeep {
    formed: Option<Imbalance>,
    /// Chains that changed, and steps of moves that began.
    changed: usize,
    begun: usize,
    /// Chains that get a second member in one failure domain by that.
    together: usize,
    /// Whose lease is over for good, and who is forgotten.
    clients: Vec<ClientId>,
    metas: Vec<String>,
}

fn alive_nodes(leading: &Leading) -> usize {
    leading.state.nodes.keys().filter(|node| leading.liveness.node_alive(**node)).count()
}

fn read_lease(rows: &[Option<Vec<u8>>]) -> Result<Stored> {
    let [holder, beat] = rows else { return Err(ErrorCode::Internal.into()) };
    let Some(holder) = holder else { return Ok(None) };
    let beat = beat.as_deref().map(rows::read_beat).transpose()?.unwrap_or(0);
    Ok(Some((rows::read_holder(holder)?, beat)))
}
