//! One replica of a chain: admission, the queue of each chunk, forward, acknowledge, commit.

use super::lane::{Active, Lane, Waiting};
use super::{
    Begun, FORWARD_DEADLINE, Input, Moment, PAUSE_FIRST, Phase, Role, Step, is_definite, is_on_the_way,
    refuse,
};
use crate::event::{Ack, Nanos, Offer, OpId};
use crate::store::{Finish, PendingInfo};
use corefs_wire::{ChainId, ChunkId, ClientId, Error, ErrorCode, Result, TargetId, UpdateTag};
use std::collections::BTreeMap;

/// How long the successor has for its answer before it is asked again (nanoseconds).
pub const ANSWER_TIMEOUT: u64 = 3_000_000_000;

/// How long a replica that couldn't take what it must be filled with says so (nanoseconds).
pub const FAILED_FOR: Nanos = 10_000_000_000;

/// How long every connection to the successor must have failed before the manager is told (nanoseconds).
pub const UNREACHED_AFTER: Nanos = 1_000_000_000;

/// Refusals remembered under one chain version.
pub const REFUSALS_MAX: usize = 4096;

/// How long a refusal is remembered at least (nanoseconds): twice as long as clients ask again.
pub const REFUSED_FOR: Nanos = 60_000_000_000;

/// The chain's machine of one target. See the module's documentation.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Replica {
    /// `None` until routing has named it.
    role: Option<Role>,
    lanes: BTreeMap<ChunkId, Lane>,
    /// Lanes that are stuck: reads look for them only when there are any.
    stuck: usize,
    /// The number of the last pause or forward, of whatever chunk: an answer that comes late fits no other.
    attempts: u64,
    /// Updates that were refused for good under the present chain version. A copy that comes later (it waited on another
    /// connection) must hear the same: whoever sent it has undone it everywhere by then. With the time of each.
    refused: BTreeMap<(ChunkId, UpdateTag), (ErrorCode, Nanos)>,
    /// Of a head: the newest update of each channel for which it or a replica behind it had no room, under the present chain version. A copy that
    /// comes later may find some, when its requester has long written something else there by another channel. With the time of each.
    turned_away: BTreeMap<(ClientId, u32, u32), (u64, Nanos)>,
    /// When an update was refused that a replica being filled must take: it can't be filled for a while.
    failed: Option<Nanos>,
    /// Since when forwards to the present successor have failed on the way, and none was answered.
    unreached: Option<Nanos>,
    /// It served, and has known every chain version since; each of them needed it for every commit, or committed nothing; and nothing
    /// that it had then was replaced or given up. So it holds everything that was ever acknowledged or shown, without having been filled.
    spared: bool,
    /// Nothing can be asked of it any more, and why.
    dead: Option<ErrorCode>,
}

impl Replica {
    pub fn role(&self) -> Option<&Role> {
        self.role.as_ref()
    }

    /// Chunks with an update under way.
    pub fn busy(&self) -> usize {
        self.lanes.len()
    }

    /// Chunks whose update isn't durable here or not ended yet, whatever the successors do.
    pub fn unsettled(&self) -> usize {
        let waits_for_others = |phase| {
            matches!(
                phase,
                Phase::Forwarding
                    | Phase::Paused
                    | Phase::Recovered
                    | Phase::Loading
                    | Phase::Filling
                    | Phase::Kept
                    | Phase::Stuck
            )
        };
        self.lanes.values().filter(|lane| !waits_for_others(lane.active.phase)).count()
    }

    /// Chunks out of service: replicas hold different bytes.
    pub fn differing(&self) -> usize {
        self.stuck
    }

    /// How far the active update of a chunk has come.
    pub fn phase(&self, chunk: ChunkId) -> Option<Phase> {
        self.lanes.get(&chunk).map(|lane| lane.active.phase)
    }

    /// Who holds the payload of a chunk's active update.
    pub fn op(&self, chunk: ChunkId) -> Option<OpId> {
        self.lanes.get(&chunk)?.active.op
    }

    /// Whether a read may look at the committed version; `Pending` is decided afterwards ([`Self::shows_pending`]).
    #[inline]
    pub fn admit_read(&self, moment: Moment, chunk: ChunkId, chain: ChainId, version: u64) -> Result<()> {
        let role = self.admit(moment)?;
        role.admit_read(chain, version)?;
        if self.stuck > 0 && self.phase(chunk) == Some(Phase::Stuck) {
            return refuse(ErrorCode::ReplicasDiffer);
        }
        Ok(())
    }

    /// Whether the committed version may be shown while an update is pending: only at the end of the chain, and only if the
    /// update is committed by its own flush. Elsewhere, and by a tail of an earlier chain version, a later version may have
    /// been shown already.
    #[inline]
    pub fn shows_pending(&self, direct: bool) -> bool {
        direct && self.role.as_ref().is_some_and(|role| role.tail && role.successor.is_none())
    }

    /// Whether nothing of an earlier chain version is under way any more: what is committed here is known then.
    pub fn is_settled(&self) -> bool {
        let version = self.role.as_ref().map_or(0, |role| role.version);
        let over =
            |lane: &Lane| lane.active.offer.chain_version >= version || lane.active.phase == Phase::Kept;
        self.lanes.values().all(over)
    }

    /// Whether an update of a chunk is kept that won't be committed here.
    pub fn keeps(&self, chunk: ChunkId) -> bool {
        self.phase(chunk) == Some(Phase::Kept)
    }

    /// Whether anything is kept.
    pub fn keeps_any(&self) -> bool {
        self.lanes.values().any(|lane| lane.active.phase == Phase::Kept)
    }

    /// Whether the successor still lacks something that it is to be given.
    pub fn owes_fills(&self) -> bool {
        self.lanes.values().any(|lane| lane.fill || lane.active.phase == Phase::Filling)
    }

    /// It holds everything, and nobody serves: it may, without having been filled. What a filler that is gone had on its way to it is
    /// refused under this chain version, so that stays true.
    pub fn is_spared(&self) -> bool {
        self.spared && self.role.as_ref().is_some_and(|role| !role.served && !role.syncing())
    }

    /// It is no member of its chain any more.
    pub fn is_gone(&self) -> bool {
        self.dead == Some(ErrorCode::WrongShard)
    }

    /// The version of the update that goes on when the successor has been given what it builds on.
    pub fn waits_for_fill(&self, chunk: ChunkId) -> Option<u64> {
        let active = &self.lanes.get(&chunk)?.active;
        (active.phase == Phase::Filling && !active.filler).then_some(active.ack.version)
    }

    /// It can't be filled for the time being.
    pub fn failed(&self, now: Nanos) -> bool {
        self.failed.is_some_and(|at| now < at + FAILED_FOR)
    }

    /// The successor, if it hasn't been reached for a while and something waits for it.
    pub fn unreached(&self, now: Nanos) -> Option<TargetId> {
        let since = self.unreached?;
        let role = self.role.as_ref()?;
        let waits =
            |lane: &Lane| matches!(lane.active.phase, Phase::Forwarding | Phase::Paused | Phase::Filling);
        let counts = role.filling || self.lanes.values().any(waits);
        role.successor.filter(|_| counts && now >= since + UNREACHED_AFTER)
    }

    /// The successor answered something, or that failed.
    pub fn heard_of_successor<T>(&mut self, now: Nanos, result: &Result<T>) {
        self.unreached = match result {
            Err(error) if is_on_the_way(error.code) => self.unreached.or(Some(now)),
            _ => None,
        };
    }

    /// A number that was never given before, for an attempt at anything.
    pub fn number(&mut self) -> u64 {
        self.attempts += 1;
        self.attempts
    }

    /// The next step of filling a chunk is an attempt of its own.
    pub fn renew_fill(&mut self, chunk: ChunkId) -> Option<u64> {
        let attempt = self.number();
        let active = self.active(chunk, Phase::Filling)?;
        active.attempt = attempt;
        Some(attempt)
    }

    /// Whether the active update of a chunk was admitted under the present chain version.
    pub fn is_current(&self, chunk: ChunkId) -> bool {
        let version = self.role.as_ref().map_or(0, |role| role.version);
        self.lanes.get(&chunk).is_some_and(|lane| lane.active.offer.chain_version == version)
    }

    /// The pending update of a chunk is on the disk, and stays there: its blocks may be read.
    pub fn is_pending_written(&self, chunk: ChunkId) -> bool {
        let written =
            |phase| !matches!(phase, Phase::Preparing | Phase::Held | Phase::Writing | Phase::Dropping);
        self.lanes.get(&chunk).is_some_and(|lane| written(lane.active.phase))
    }

    /// Whether the active update of a chunk is a part of a fill.
    pub fn is_fill(&self, chunk: ChunkId) -> bool {
        self.lanes.get(&chunk).is_some_and(|lane| lane.active.offer.fill.is_some())
    }

    /// How an update that is staged now ends here.
    pub fn finish(&self) -> Finish {
        match self.role.as_ref().and_then(|role| role.successor) {
            Some(_) => Finish::Pending,
            None => Finish::Commit,
        }
    }

    pub(crate) fn admit(&self, moment: Moment) -> Result<&Role> {
        if let Some(why) = self.dead {
            return refuse(why);
        }
        if !moment.leased {
            return refuse(ErrorCode::LeaseExpired);
        }
        self.role.as_ref().ok_or_else(|| Error::new(ErrorCode::NotServing, "routing hasn't named the target"))
    }

    /// The one entrance: appends what is to be done to `steps`.
    pub fn handle(&mut self, moment: Moment, input: Input, steps: &mut Vec<Step>) {
        match input {
            Input::Role(role) => self.enter_role(moment, role, steps),
            Input::Offer { op, offer } => self.offered(moment, op, offer, steps),
            Input::Begun { chunk, result } => self.begun(moment, chunk, result, steps),
            Input::Applied { chunk, result } => self.applied(moment, chunk, result, steps),
            Input::Durable { chunk, version, length, committed } => {
                self.durable(moment, chunk, Ack { version, length, merged_crc: 0 }, committed, steps)
            }
            Input::Answered { chunk, attempt, result } => {
                self.answered(moment, chunk, attempt, result, steps)
            }
            Input::Committed { chunk, result } => self.committed(moment, chunk, result, steps),
            Input::DropBegun { chunk, result } => self.drop_begun(moment, chunk, result, steps),
            Input::Dropped { chunk } => self.dropped(moment, chunk, steps),
            Input::Due { chunk, attempt } => self.due(moment, chunk, attempt, steps),
            Input::Recovered { pending } => self.recovered(&pending),
            Input::Loaded { chunk, op, result } => self.loaded(moment, chunk, op, result, steps),
            Input::LetGo => self.let_go(steps),
            Input::Fill { chunk } => self.want_fill(moment, chunk, steps),
            Input::Filled { chunk, attempt, result } => self.filled(moment, chunk, attempt, result, steps),
            Input::Died => self.died(ErrorCode::SliceDead, steps),
            Input::Left => self.died(ErrorCode::WrongShard, steps),
        }
    }

    fn enter_role(&mut self, moment: Moment, role: Role, steps: &mut Vec<Step>) {
        if self.dead.is_some() || self.role.as_ref().is_some_and(|ours| ours.version >= role.version) {
            return;
        }
        let before = self.role.replace(role.clone());
        let next = before.as_ref().is_some_and(|before| before.version + 1 == role.version);
        // What is under way when filling begins is given up, and may be what others have committed.
        let needed = if role.syncing() { self.lanes.is_empty() } else { !role.served };
        self.spared = role.serving() || self.spared && next && needed;
        if before.and_then(|before| before.successor) != role.successor {
            self.unreached = None;
        }
        // Whatever was sent under an earlier version is refused as such.
        self.refused.clear();
        self.turned_away.clear();
        let chunks: Vec<ChunkId> = self.lanes.keys().copied().collect();
        for chunk in chunks {
            let Some(lane) = self.lanes.get_mut(&chunk) else { continue };
            lane.sift(steps, |waiting| role.admit_update(&waiting.offer).err());
            // What is under way may be committed here alone, without a word to a successor that is new.
            lane.fill = role.filling && !lane.active.filler;
            if lane.active.filler {
                self.end(moment, chunk, Ok(Ack::default()), steps);
                continue;
            }
            match lane.active.phase {
                Phase::Filling => lane.active.phase = Phase::Paused,
                Phase::Kept => lane.active.phase = Phase::Recovered,
                Phase::Stuck if role.syncing() => {
                    // Whatever was wrong with it: it gets another replica's.
                    self.stuck -= 1;
                    lane.active.phase = Phase::Paused;
                }
                _ => {}
            }
            self.drive(moment, chunk, steps);
        }
    }

    fn offered(&mut self, moment: Moment, op: OpId, offer: Offer, steps: &mut Vec<Step>) {
        let admitted = self.admit(moment).and_then(|role| role.admit_update(&offer));
        let waiting = Waiting { op, offer, since: moment.now };
        if let Err(error) = admitted.and_then(|()| self.remembered(&offer)) {
            return waiting.refuse(error, steps);
        }
        self.spared &= offer.fill.is_none();
        match self.lanes.get_mut(&offer.chunk) {
            Some(lane) => {
                lane.wait(waiting, steps);
                if lane.active.phase == Phase::Kept {
                    lane.active.give_up(ErrorCode::ChainBroken.into(), steps);
                }
            }
            None => {
                self.lanes.insert(offer.chunk, Lane::new(Active::new(op, offer, moment.now)));
                steps.push(Step::Begin { op, offer });
            }
        }
    }

    /// The refusal that this very update got before.
    fn remembered(&self, offer: &Offer) -> Result<()> {
        let newest = self.turned_away.get(&channel(&offer.tag)).filter(|_| offer.forwarded.is_none());
        if newest.is_some_and(|(sequence, _)| offer.tag.sequence <= *sequence) {
            return Err(Error::new(ErrorCode::NoSpace, "as before: there was no room"));
        }
        match self.refused.get(&(offer.chunk, offer.tag)) {
            Some((code, _)) => Err(Error::new(*code, "as before: it was refused under this chain version")),
            None => Ok(()),
        }
    }

    /// What a requester hears. A predecessor undoes what is refused for good, so the refusal is remembered; if there is no
    /// room for that, it isn't for good.
    fn refusal(&mut self, moment: Moment, offer: &Offer, error: Error) -> Error {
        if offer.forwarded.is_none() {
            if error.code == ErrorCode::NoSpace && offer.tag.client.0 != 0 {
                self.turn_away(moment, &offer.tag);
            }
            return error;
        }
        if !is_definite(error.code) {
            return error;
        }
        if self.role.as_ref().is_some_and(Role::syncing) {
            self.failed = Some(moment.now);
            return error;
        }
        if self.refused.len() >= REFUSALS_MAX {
            self.refused.retain(|_, (_, at)| moment.now < *at + REFUSED_FOR);
        }
        if self.refused.len() >= REFUSALS_MAX {
            return Error::new(ErrorCode::Overloaded, error.message);
        }
        self.refused.insert((offer.chunk, offer.tag), (error.code, moment.now));
        error
    }

    /// Where more channels are turned away than are remembered, those are forgotten first for which nobody asks again; the rest are told the same, and
    /// not remembered.
    fn turn_away(&mut self, moment: Moment, tag: &UpdateTag) {
        let key = channel(tag);
        if self.turned_away.len() >= REFUSALS_MAX && !self.turned_away.contains_key(&key) {
            self.turned_away.retain(|_, (_, at)| moment.now < *at + REFUSED_FOR);
        }
        if self.turned_away.len() < REFUSALS_MAX || self.turned_away.contains_key(&key) {
            let newest = self.turned_away.entry(key).or_default();
            *newest = (newest.0.max(tag.sequence), moment.now);
        }
    }

    fn begun(&mut self, moment: Moment, chunk: ChunkId, result: Result<Begun>, steps: &mut Vec<Step>) {
        let Some(active) = self.active(chunk, Phase::Preparing) else { return };
        match result {
            Ok(Begun::Fresh { version }) => active.ack.version = version,
            Ok(Begun::Done(ack)) => self.end(moment, chunk, Ok(ack), steps),
            Err(error) => self.end(moment, chunk, Err(error), steps),
        }
    }

    fn applied(&mut self, moment: Moment, chunk: ChunkId, result: Result<u32>, steps: &mut Vec<Step>) {
        let Some(active) = self.active(chunk, Phase::Preparing) else { return };
        match result {
            Ok(merged_crc) => {
                active.ack.merged_crc = merged_crc;
                active.phase = Phase::Writing;
            }
            // The store catches up with its checkpoint or with reclaiming: the requester waits here.
            Err(error)
                if error.code == ErrorCode::Overloaded && moment.now < active.began + FORWARD_DEADLINE =>
            {
                self.rest(chunk, Phase::Held, moment, steps);
            }
            Err(error) => self.end(moment, chunk, Err(error), steps),
        }
    }

    fn durable(&mut self, moment: Moment, chunk: ChunkId, ack: Ack, committed: bool, steps: &mut Vec<Step>) {
        let Some(active) = self.active(chunk, Phase::Writing) else { return };
        assert_eq!(active.ack.version, ack.version, "the flush made another version of {chunk} durable");
        active.ack.length = ack.length;
        if committed {
            self.settle(moment, chunk, steps);
        } else {
            active.phase = Phase::Paused;
            self.drive(moment, chunk, steps);
        }
    }

    /// Takes a durable, uncommitted update to whoever is next, under the present role.
    fn drive(&mut self, moment: Moment, chunk: ChunkId, steps: &mut Vec<Step>) {
        let (Some(role), Some(lane)) = (&self.role, self.lanes.get_mut(&chunk)) else { return };
        let active = &mut lane.active;
        if !matches!(active.phase, Phase::Forwarding | Phase::Paused | Phase::Recovered) {
            return;
        }
        if role.syncing() && active.offer.chain_version < role.version {
            // Whoever fills this target sends what is worth having.
            return active.keep(steps);
        }
        let receives = role.serving() || role.syncing();
        match (role.successor, active.op) {
            _ if !receives && active.phase == Phase::Recovered => {}
            _ if !receives || !moment.leased => {
                let recovered = active.phase == Phase::Recovered;
                self.rest(chunk, if recovered { Phase::Recovered } else { Phase::Paused }, moment, steps);
            }
            (None, _) => active.commit(role.version, steps),
            (Some(_), None) => {
                active.phase = Phase::Loading;
                steps.push(Step::Load { chunk });
            }
            (Some(to), Some(op)) => {
                active.phase = Phase::Forwarding;
                self.attempts += 1;
                active.attempt = self.attempts;
                let (attempt, version, chain_version) = (active.attempt, active.ack.version, role.version);
                steps.push(Step::Forward { op, chunk, attempt, to, version, chain_version });
                steps.push(Step::Wake { chunk, attempt, at: moment.now + ANSWER_TIMEOUT });
            }
        }
    }

    fn answered(
        &mut self,
        moment: Moment,
        chunk: ChunkId,
        attempt: u64,
        result: Result<Ack>,
        steps: &mut Vec<Step>,
    ) {
        let Some((version, filling)) = self.role.as_ref().map(|role| (role.version, role.filling)) else {
            return;
        };
        let present = |lane: &Lane| lane.active.phase == Phase::Forwarding && lane.active.attempt == attempt;
        if !self.lanes.get(&chunk).is_some_and(present) {
            return;
        }
        self.heard_of_successor(moment.now, &result);
        let Some(lane) = self.lanes.get_mut(&chunk) else { return };
        let active = &mut lane.active;
        match result {
            Ok(ack) if active.agrees(&ack) => active.commit(version, steps),
            Ok(_) if filling => {
                // It has the update, on top of something else than we have.
                lane.fill = true;
                active.commit(version, steps);
            }
            Err(error) if filling && error.code == ErrorCode::NeedsWhole => self.fill(moment, chunk, steps),
            Err(error) if filling && is_definite(error.code) => self.pause(moment, chunk, error, steps),
            Ok(_) => self.stick(chunk, ErrorCode::ReplicasDiffer.into(), steps),
            Err(error) if error.code == ErrorCode::ReplicasDiffer => self.stick(chunk, error, steps),
            Err(error) if is_definite(error.code) => active.give_up(error, steps),
            Err(error) => self.pause(moment, chunk, error, steps),
        }
    }

    /// The successor lacks what the active update builds on.
    fn fill(&mut self, moment: Moment, chunk: ChunkId, steps: &mut Vec<Step>) {
        let (Some(role), Some(lane)) = (&self.role, self.lanes.get_mut(&chunk)) else { return };
        let active = &mut lane.active;
        active.phase = Phase::Filling;
        match role.successor.filter(|_| role.filling) {
            Some(to) if moment.leased => {
                self.attempts += 1;
                active.attempt = self.attempts;
                let (attempt, chain_version) = (active.attempt, role.version);
                steps.push(Step::Fill { chunk, attempt, to, chain_version });
            }
            _ => self.rest(chunk, Phase::Filling, moment, steps),
        }
    }

    fn let_go(&mut self, steps: &mut Vec<Step>) {
        let kept = self.lanes.values_mut().filter(|lane| lane.active.phase == Phase::Kept);
        kept.for_each(|lane| lane.active.give_up(ErrorCode::ChainBroken.into(), steps));
    }

    fn want_fill(&mut self, moment: Moment, chunk: ChunkId, steps: &mut Vec<Step>) {
        if self.dead.is_some() || !self.role.as_ref().is_some_and(|role| role.filling) {
            return;
        }
        match self.lanes.get_mut(&chunk) {
            Some(lane) if lane.active.filler => {}
            Some(lane) => lane.fill = true,
            None => {
                self.lanes.insert(chunk, Lane::new(Active::filler(chunk, moment.now)));
                self.fill(moment, chunk, steps);
            }
        }
    }

    fn filled(
        &mut self,
        moment: Moment,
        chunk: ChunkId,
        attempt: u64,
        result: Result<()>,
        steps: &mut Vec<Step>,
    ) {
        let present = |lane: &Lane| lane.active.phase == Phase::Filling && lane.active.attempt == attempt;
        if !self.lanes.get(&chunk).is_some_and(present) {
            return;
        }
        self.heard_of_successor(moment.now, &result);
        let Some(active) = self.active(chunk, Phase::Filling) else { return };
        match result {
            Ok(()) if active.filler => {
                steps.push(Step::FillEnded { chunk });
                self.end(moment, chunk, Ok(Ack::default()), steps);
            }
            Ok(()) => {
                active.phase = Phase::Paused;
                self.drive(moment, chunk, steps);
            }
            Err(error) => self.pause_in(Phase::Filling, moment, chunk, error, steps),
        }
    }

    /// The successor can't be had just now. Requesters who have waited long enough are told; the update goes on.
    fn pause(&mut self, moment: Moment, chunk: ChunkId, error: Error, steps: &mut Vec<Step>) {
        self.pause_in(Phase::Paused, moment, chunk, error, steps);
    }

    fn pause_in(
        &mut self,
        phase: Phase,
        moment: Moment,
        chunk: ChunkId,
        error: Error,
        steps: &mut Vec<Step>,
    ) {
        let Some(lane) = self.lanes.get_mut(&chunk) else { return };
        let late = |since| moment.now >= since + FORWARD_DEADLINE;
        let broken = Error::new(ErrorCode::ChainBroken, format!("the successor doesn't answer: {error}"));
        if late(lane.active.began) {
            lane.active.reply(Err(broken.clone()), steps);
        }
        lane.sift(steps, |waiting| late(waiting.since).then(|| broken.clone()));
        self.rest(chunk, phase, moment, steps);
    }

    /// Waits a while before it goes on from `phase`.
    fn rest(&mut self, chunk: ChunkId, phase: Phase, moment: Moment, steps: &mut Vec<Step>) {
        self.attempts += 1;
        if let Some(lane) = self.lanes.get_mut(&chunk) {
            lane.active.rest(phase, moment.now, self.attempts, steps);
        }
    }

    /// What it has was made by others, not only by updates.
    pub fn took_over(&mut self) {
        self.spared = false;
    }

    /// Takes the chunk out of service.
    fn stick(&mut self, chunk: ChunkId, error: Error, steps: &mut Vec<Step>) {
        let Some(lane) = self.lanes.get_mut(&chunk) else { return };
        lane.active.phase = Phase::Stuck;
        self.stuck += 1;
        lane.active.reply(Err(error.clone()), steps);
        steps.extend(lane.active.op.take().map(|op| Step::End { op }));
        lane.sift(steps, |_| Some(error.clone()));
        steps.push(Step::Differs { chunk });
    }

    fn committed(&mut self, moment: Moment, chunk: ChunkId, result: Result<()>, steps: &mut Vec<Step>) {
        if self.phase(chunk) != Some(Phase::Acked) {
            return;
        }
        match result {
            Ok(()) => self.settle(moment, chunk, steps),
            Err(_) => self.rest(chunk, Phase::Acked, moment, steps),
        }
    }

    fn drop_begun(&mut self, moment: Moment, chunk: ChunkId, result: Result<()>, steps: &mut Vec<Step>) {
        let Some(active) = self.active(chunk, Phase::Refused) else { return };
        match result {
            Ok(()) => active.phase = Phase::Dropping,
            Err(_) => self.rest(chunk, Phase::Refused, moment, steps),
        }
    }

    /// Committed here: the requester may know, if the lease still runs.
    fn settle(&mut self, moment: Moment, chunk: ChunkId, steps: &mut Vec<Step>) {
        let Some(lane) = self.lanes.get(&chunk) else { return };
        let ack = lane.active.ack;
        let result = if moment.leased { Ok(ack) } else { refuse(ErrorCode::LeaseExpired) };
        self.end(moment, chunk, result, steps);
    }

    fn dropped(&mut self, moment: Moment, chunk: ChunkId, steps: &mut Vec<Step>) {
        let Some(active) = self.active(chunk, Phase::Dropping) else { return };
        let refusal = active.refusal.take().unwrap_or_else(|| ErrorCode::ChainBroken.into());
        self.end(moment, chunk, Err(refusal), steps);
    }

    fn due(&mut self, moment: Moment, chunk: ChunkId, attempt: u64, steps: &mut Vec<Step>) {
        let Some(lane) = self.lanes.get_mut(&chunk) else { return };
        if lane.active.attempt != attempt {
            return;
        }
        match lane.active.phase {
            Phase::Paused | Phase::Recovered => self.drive(moment, chunk, steps),
            Phase::Forwarding => self.pause(moment, chunk, ErrorCode::TimedOut.into(), steps),
            Phase::Held => self.begin_again(moment, chunk, steps),
            Phase::Filling => self.fill(moment, chunk, steps),
            Phase::Acked => {
                let version = self.role.as_ref().map_or(0, |role| role.version);
                lane.active.commit(version, steps);
            }
            Phase::Refused => {
                let refusal = lane.active.refusal.take();
                lane.active.give_up(refusal.unwrap_or_else(|| ErrorCode::ChainBroken.into()), steps);
            }
            Phase::Preparing
            | Phase::Writing
            | Phase::Dropping
            | Phase::Loading
            | Phase::Kept
            | Phase::Stuck => {}
        }
    }

    fn begin_again(&mut self, moment: Moment, chunk: ChunkId, steps: &mut Vec<Step>) {
        let Some(offer) = self.active(chunk, Phase::Held).map(|active| active.offer) else { return };
        // The lease may have run out since, and another one be the head.
        if let Err(error) = self.admit(moment).and_then(|role| role.admit_update(&offer)) {
            return self.end(moment, chunk, Err(error), steps);
        }
        if let Some(active) = self.active(chunk, Phase::Held) {
            active.phase = Phase::Preparing;
            steps.extend(active.op.map(|op| Step::Begin { op, offer }));
        }
    }

    fn recovered(&mut self, pending: &PendingInfo) {
        let before = self.lanes.insert(pending.chunk, Lane::new(Active::recovered(pending)));
        assert!(before.is_none(), "pending updates are told before anything else, one a chunk");
    }

    fn loaded(
        &mut self,
        moment: Moment,
        chunk: ChunkId,
        op: OpId,
        result: Result<u32>,
        steps: &mut Vec<Step>,
    ) {
        let Some(active) = self.active(chunk, Phase::Loading) else { return steps.push(Step::End { op }) };
        active.op = Some(op);
        match result {
            Ok(merged_crc) => {
                active.ack.merged_crc = merged_crc;
                active.phase = Phase::Paused;
                self.drive(moment, chunk, steps);
            }
            Err(error) if error.code == ErrorCode::Overloaded => {
                steps.extend(active.op.take().map(|op| Step::End { op }));
                self.rest(chunk, Phase::Recovered, moment, steps);
            }
            Err(error) => self.stick(chunk, error, steps),
        }
    }

    fn died(&mut self, why: ErrorCode, steps: &mut Vec<Step>) {
        self.dead = Some(why);
        let dead = || Error::from(why);
        for (_, mut lane) in std::mem::take(&mut self.lanes) {
            lane.sift(steps, |_| Some(dead()));
            lane.active.end(Err(dead()), steps);
        }
        self.stuck = 0;
    }

    /// For a model checker: renames what only tells one thing from another, so that states that differ in nothing else are equal.
    /// Chain versions become what `version` makes of them, attempts under way are numbered anew from 1, pauses begin anew. Returns
    /// what became of each attempt; one that isn't in it can't be answered any more.
    pub fn rename(&mut self, version: &mut dyn FnMut(u64) -> u64) -> BTreeMap<u64, u64> {
        let mut attempts = BTreeMap::new();
        for lane in self.lanes.values_mut() {
            attempts.insert(lane.active.attempt, 0);
            lane.active.pause = PAUSE_FIRST;
            let offers = lane.waiting.iter_mut().map(|waiting| &mut waiting.offer);
            let active = Some(&mut lane.active).filter(|active| !active.filler);
            for offer in offers.chain(active.map(|active| &mut active.offer)) {
                offer.chain_version = version(offer.chain_version);
            }
        }
        self.unreached = None;
        self.refused.values_mut().for_each(|(_, at)| *at = 0);
        self.turned_away.values_mut().for_each(|(_, at)| *at = 0);
        if let Some(role) = &mut self.role {
            role.version = version(role.version);
        }
        // None has been made yet.
        attempts.remove(&0);
        (1..).zip(attempts.values_mut()).for_each(|(number, attempt)| *attempt = number);
        for lane in self.lanes.values_mut() {
            lane.active.attempt = attempts.get(&lane.active.attempt).copied().unwrap_or(0);
        }
        self.attempts = attempts.len() as u64;
        attempts
    }

    fn active(&mut self, chunk: ChunkId, phase: Phase) -> Option<&mut Active> {
        let active = &mut self.lanes.get_mut(&chunk)?.active;
        (active.phase == phase).then_some(active)
    }

    /// The active update is over; the next one begins.
    fn end(&mut self, moment: Moment, chunk: ChunkId, result: Result<Ack>, steps: &mut Vec<Step>) {
        let Some(mut lane) = self.lanes.remove(&chunk) else { return };
        let result = match result {
            // Nobody is owed anything for an update that was found pending: whoever sent it asks again.
            Err(error) if lane.active.op.is_some() => Err(self.refusal(moment, &lane.active.offer, error)),
            other => other,
        };
        lane.active.end(result, steps);
        if std::mem::take(&mut lane.fill) && self.role.as_ref().is_some_and(|role| role.filling) {
            lane.active = Active::filler(chunk, moment.now);
            self.lanes.insert(chunk, lane);
            return self.fill(moment, chunk, steps);
        }
        while let Some(waiting) = lane.waiting.pop_front() {
            let offer = waiting.offer;
            let admitted = self.admit(moment).and_then(|role| role.admit_update(&offer));
            match admitted.and_then(|()| self.remembered(&offer)) {
                Ok(()) => {
                    lane.active = Active::new(waiting.op, offer, moment.now);
                    steps.push(Step::Begin { op: waiting.op, offer });
                    self.lanes.insert(chunk, lane);
                    return;
                }
                Err(error) => waiting.refuse(error, steps),
            }
        }
    }
}

fn channel(tag: &UpdateTag) -> (ClientId, u32, u32) {
    (tag.client, tag.incarnation, tag.channel)
}
