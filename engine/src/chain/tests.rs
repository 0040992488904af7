//! Every phase against every input, as a table that is compared with the one in `tests/golden`; and the stories that the
//! table can't tell.

use super::replica::{REFUSALS_MAX, REFUSED_FOR};
use super::*;
use crate::event::{Ack, Offer, OpId};
use crate::store::{Finish, PendingInfo, UpdateKind};
use corefs_wire::control::mgmtd::TargetState;
use corefs_wire::routing::{Chain, Member};
use corefs_wire::{ChainId, ClientId, InodeId, TargetId, UpdateTag};
use std::fmt::Write;

const CHAIN: ChainId = ChainId(1);
const NOW: Moment = Moment { now: 1_000_000_000, leased: true };
const FENCED: Moment = Moment { leased: false, ..NOW };
const FILLING: [TargetState; 2] = [TargetState::Serving, TargetState::Syncing];

fn chunk() -> ChunkId {
    ChunkId::new(InodeId(1), 0)
}

/// The role of target `position` (from 1) of a chain of serving targets.
fn role_in(version: u64, position: u64, states: &[TargetState]) -> Role {
    let member =
        |(index, state): (usize, &TargetState)| Member { target: TargetId(index as u64 + 1), state: *state };
    let members = states.iter().enumerate().map(member).collect();
    Role::of(TargetId(position), &Chain { id: CHAIN, version, members }).unwrap()
}

fn role(version: u64, position: u64, replicas: usize) -> Role {
    role_in(version, position, &vec![TargetState::Serving; replicas])
}

fn offer(sequence: u64, chain_version: u64, forwarded: Option<u64>) -> Offer {
    let tag = UpdateTag { client: ClientId(7), sequence, incarnation: 1, channel: 0 };
    let kind = UpdateKind::Write { offset: 0, len: 4096 };
    let (base, fill) = (forwarded.map_or(0, |version| version - 1), None);
    Offer { chunk: chunk(), kind, tag, truncate_epoch: 0, chain: CHAIN, chain_version, forwarded, base, fill }
}

fn pending() -> PendingInfo {
    PendingInfo {
        chunk: chunk(),
        kind: UpdateKind::Write { offset: 0, len: 4096 },
        version: 5,
        chain_version: 1,
        truncate_epoch: 0,
        tag: offer(1, 1, None).tag,
        length: 4096,
        flushed: true,
    }
}

const ACK: Ack = Ack { version: 5, length: 4096, merged_crc: 99 };

/// A replica and what it last wanted.
#[derive(Clone)]
struct Stage {
    replica: Replica,
    steps: Vec<Step>,
}

impl Stage {
    fn new(role: Role) -> Self {
        let mut stage = Self { replica: Replica::default(), steps: Vec::new() };
        stage.tell(Input::Role(role));
        stage
    }

    fn tell_at(&mut self, moment: Moment, input: Input) -> &mut Self {
        self.steps.clear();
        self.replica.handle(moment, input, &mut self.steps);
        self
    }

    fn tell(&mut self, input: Input) -> &mut Self {
        self.tell_at(NOW, input)
    }

    fn offer(&mut self, op: u64, offer: Offer) -> &mut Self {
        self.tell(Input::Offer { op: OpId(op), offer })
    }

    fn begun(&mut self) -> &mut Self {
        self.tell(Input::Begun { chunk: chunk(), result: Ok(Begun::Fresh { version: 5 }) })
    }

    fn applied(&mut self) -> &mut Self {
        self.tell(Input::Applied { chunk: chunk(), result: Ok(99) })
    }

    fn durable(&mut self, committed: bool) -> &mut Self {
        self.tell(Input::Durable { chunk: chunk(), version: 5, length: 4096, committed })
    }

    fn answered(&mut self, attempt: u64, result: Result<Ack>) -> &mut Self {
        self.tell(Input::Answered { chunk: chunk(), attempt, result })
    }

    fn phase(&self) -> Option<Phase> {
        self.replica.phase(chunk())
    }

    /// The attempt of the forward that was last wanted.
    fn attempt(&self) -> u64 {
        let attempt = self.steps.iter().find_map(|step| match step {
            Step::Forward { attempt, .. } => Some(*attempt),
            _ => None,
        });
        attempt.expect("a forward is wanted")
    }
}

/// A head with a successor, in each phase.
fn in_phase(phase: Option<Phase>) -> Stage {
    let mut stage = Stage::new(role(1, 1, 3));
    let Some(phase) = phase else { return stage };
    if phase == Phase::Filling {
        stage = Stage::new(role_in(1, 1, &FILLING));
    }
    if matches!(phase, Phase::Recovered | Phase::Loading) {
        stage = Stage { replica: Replica::default(), steps: Vec::new() };
        stage.tell(Input::Recovered { pending: pending() });
        if phase == Phase::Loading {
            stage.tell(Input::Role(role(1, 1, 3)));
        }
        return stage;
    }
    stage.offer(1, offer(1, 1, None)).begun();
    match phase {
        Phase::Preparing => {}
        Phase::Held => {
            stage.tell(Input::Applied { chunk: chunk(), result: Err(ErrorCode::Overloaded.into()) });
        }
        Phase::Writing => drop(stage.applied()),
        Phase::Forwarding => drop(stage.applied().durable(false)),
        Phase::Paused => drop(stage.applied().durable(false).answered(1, Err(ErrorCode::TimedOut.into()))),
        Phase::Filling => {
            stage.applied().durable(false).answered(1, Err(ErrorCode::NeedsWhole.into()));
        }
        Phase::Acked => drop(stage.applied().durable(false).answered(1, Ok(ACK))),
        Phase::Refused => drop(stage.applied().durable(false).answered(1, Err(ErrorCode::NoSpace.into()))),
        Phase::Dropping => {
            stage.applied().durable(false).answered(1, Err(ErrorCode::NoSpace.into()));
            stage.tell(Input::DropBegun { chunk: chunk(), result: Ok(()) });
        }
        Phase::Stuck => drop(stage.applied().durable(false).answered(1, Ok(Ack { merged_crc: 1, ..ACK }))),
        Phase::Kept => {
            stage.applied().durable(false);
            stage.tell(Input::Role(role_in(2, 2, &[TargetState::Serving, TargetState::Syncing])));
        }
        Phase::Recovered | Phase::Loading => unreachable!("made above"),
    }
    assert_eq!(stage.phase(), Some(phase));
    stage
}

fn phases() -> Vec<Option<Phase>> {
    let all = [
        Phase::Preparing,
        Phase::Held,
        Phase::Writing,
        Phase::Forwarding,
        Phase::Paused,
        Phase::Filling,
        Phase::Acked,
        Phase::Refused,
        Phase::Dropping,
        Phase::Recovered,
        Phase::Loading,
        Phase::Kept,
        Phase::Stuck,
    ];
    std::iter::once(None).chain(all.map(Some)).collect()
}

fn inputs() -> Vec<(&'static str, Input)> {
    let chunk = chunk();
    fn failed<T>(code: ErrorCode) -> Result<T> {
        Err(Error::from(code))
    }
    vec![
        ("offer", Input::Offer { op: OpId(2), offer: offer(2, 1, None) }),
        ("offer of an old chain version", Input::Offer { op: OpId(2), offer: offer(2, 0, None) }),
        ("offer from a predecessor", Input::Offer { op: OpId(2), offer: offer(2, 1, Some(6)) }),
        ("begun fresh", Input::Begun { chunk, result: Ok(Begun::Fresh { version: 5 }) }),
        ("begun done", Input::Begun { chunk, result: Ok(Begun::Done(ACK)) }),
        ("begun refused", Input::Begun { chunk, result: Err(ErrorCode::StaleLayout.into()) }),
        ("let go", Input::LetGo),
        ("fill", Input::Fill { chunk }),
        ("filled", Input::Filled { chunk, attempt: 2, result: Ok(()) }),
        ("not filled", Input::Filled { chunk, attempt: 2, result: failed(ErrorCode::TimedOut) }),
        ("applied", Input::Applied { chunk, result: Ok(99) }),
        ("applied overloaded", Input::Applied { chunk, result: Err(ErrorCode::Overloaded.into()) }),
        ("applied no space", Input::Applied { chunk, result: Err(ErrorCode::NoSpace.into()) }),
        ("durable", Input::Durable { chunk, version: 5, length: 4096, committed: false }),
        ("durable committed", Input::Durable { chunk, version: 5, length: 4096, committed: true }),
        ("answered", Input::Answered { chunk, attempt: 1, result: Ok(ACK) }),
        ("answered late", Input::Answered { chunk, attempt: 0, result: Ok(ACK) }),
        ("answered otherwise", Input::Answered { chunk, attempt: 1, result: Ok(Ack { length: 1, ..ACK }) }),
        ("answered no space", Input::Answered { chunk, attempt: 1, result: failed(ErrorCode::NoSpace) }),
        ("answered lost", Input::Answered { chunk, attempt: 1, result: failed(ErrorCode::ConnectionLost) }),
        ("committed", Input::Committed { chunk, result: Ok(()) }),
        ("committed overloaded", Input::Committed { chunk, result: Err(ErrorCode::Overloaded.into()) }),
        ("drop begun", Input::DropBegun { chunk, result: Ok(()) }),
        ("drop overloaded", Input::DropBegun { chunk, result: Err(ErrorCode::Overloaded.into()) }),
        ("dropped", Input::Dropped { chunk }),
        ("due 1", Input::Due { chunk, attempt: 1 }),
        ("due 2", Input::Due { chunk, attempt: 2 }),
        ("loaded", Input::Loaded { chunk, op: OpId(3), result: Ok(99) }),
        ("loaded corrupt", Input::Loaded { chunk, op: OpId(3), result: failed(ErrorCode::Corrupt) }),
        ("loaded overloaded", Input::Loaded { chunk, op: OpId(3), result: failed(ErrorCode::Overloaded) }),
        ("role 2 head", Input::Role(role(2, 1, 3))),
        ("role 2 alone", Input::Role(role(2, 1, 1))),
        (
            "role 2 waiting",
            Input::Role(role_in(2, 2, &[TargetState::Serving, TargetState::Waiting, TargetState::Serving])),
        ),
        ("role 2 syncing", Input::Role(role_in(2, 2, &[TargetState::Serving, TargetState::Syncing]))),
        ("died", Input::Died),
    ]
}

fn show(step: &Step) -> String {
    let result = |result: &Result<Ack>| match result {
        Ok(ack) => format!("version {}", ack.version),
        Err(error) => error.code.name().to_string(),
    };
    match step {
        Step::Begin { op, .. } => format!("begin op {}", op.0),
        Step::Forward { attempt, to, version, chain_version, .. } => {
            format!("forward version {version} to {to} (chain version {chain_version}, attempt {attempt})")
        }
        Step::Commit { version, chain_version, .. } => {
            format!("commit version {version} (chain version {chain_version})")
        }
        Step::Drop { version, .. } => format!("drop version {version}"),
        Step::Load { .. } => "load".into(),
        Step::Fill { attempt, to, chain_version, .. } => {
            format!("fill {to} (chain version {chain_version}, attempt {attempt})")
        }
        Step::FillEnded { .. } => "fill ended".into(),
        Step::Wake { attempt, at, .. } => format!("wake in {} ms ({attempt})", (at - NOW.now) / 1_000_000),
        Step::Reply { op, result: answer } => format!("reply to op {}: {}", op.0, result(answer)),
        Step::End { op } => format!("end op {}", op.0),
        Step::Differs { .. } => "report".into(),
    }
}

/// The golden file is rewritten by `UPDATE_GOLDEN=1 cargo test -p corefs-engine --lib chain`.
#[test]
fn every_phase_against_every_input() {
    let mut table = String::from(
        "# phase | input -> phase: steps; pairs that change nothing and do nothing are left out\n",
    );
    for phase in phases() {
        let name = phase.map_or("Idle".to_string(), |phase| format!("{phase:?}"));
        writeln!(table).unwrap();
        for (what, input) in inputs() {
            let before = in_phase(phase);
            let mut after = before.clone();
            after.tell(input);
            if after.steps.is_empty() && after.replica == before.replica {
                continue;
            }
            let end = after.phase().map_or("Idle".to_string(), |phase| format!("{phase:?}"));
            let steps: Vec<String> = after.steps.iter().map(show).collect();
            let steps = if steps.is_empty() { "-".into() } else { steps.join(", ") };
            writeln!(table, "{name} | {what} -> {end}: {steps}").unwrap();
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/chain_phases.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &table).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap_or_default();
    for (line, (found, expected)) in table.lines().zip(golden.lines()).enumerate() {
        assert_eq!(found, expected, "line {} of {path}", line + 1);
    }
    assert_eq!(table.lines().count(), golden.lines().count(), "{path} has another number of lines");
}

#[test]
fn alone_it_commits_by_its_own_flush() {
    let mut stage = Stage::new(role(1, 1, 1));
    assert_eq!(stage.replica.finish(), Finish::Commit);
    stage.offer(1, offer(1, 1, None)).begun().applied().durable(true);
    assert_eq!(stage.steps, [Step::Reply { op: OpId(1), result: Ok(ACK) }, Step::End { op: OpId(1) }]);
    assert_eq!(stage.replica.busy(), 0);
}

#[test]
fn a_queue_keeps_its_order_and_its_bound() {
    let mut stage = Stage::new(role(1, 1, 1));
    for op in 0..=WAITING_MAX as u64 {
        stage.offer(op, offer(op + 1, 1, None));
    }
    stage.offer(999, offer(999, 1, None));
    assert!(
        matches!(&stage.steps[0], Step::Reply { result: Err(error), .. } if error.code == ErrorCode::Overloaded)
    );
    for op in 0..=WAITING_MAX as u64 {
        stage.begun().applied().durable(true);
        assert!(matches!(stage.steps[0], Step::Reply { op: found, .. } if found == OpId(op)));
    }
    assert_eq!(stage.replica.busy(), 0);
}

#[test]
fn silence_pauses_longer_and_longer_and_the_requester_hears_once() {
    let mut stage = in_phase(Some(Phase::Forwarding));
    let (mut now, mut pauses, mut replies, mut attempt) = (NOW.now, Vec::new(), 0, 1);
    while pauses.len() < 200 {
        let moment = Moment { now, ..NOW };
        let lost = Err(ErrorCode::ConnectionLost.into());
        stage.tell_at(moment, Input::Answered { chunk: chunk(), attempt, result: lost });
        replies += stage.steps.iter().filter(|step| matches!(step, Step::Reply { .. })).count();
        let Some(Step::Wake { at, attempt: due, .. }) = stage.steps.last().cloned() else {
            panic!("no wake")
        };
        pauses.push(at - now);
        now = at;
        stage.tell_at(Moment { now, ..NOW }, Input::Due { chunk: chunk(), attempt: due });
        attempt = stage.attempt();
    }
    assert!(pauses.is_sorted() && pauses[0] == PAUSE_FIRST && pauses[199] == PAUSE_LAST);
    assert_eq!(replies, 1, "the requester gives up; the update doesn't");
    stage.answered(attempt, Ok(ACK)).tell(Input::Committed { chunk: chunk(), result: Ok(()) });
    assert_eq!(stage.steps, [Step::End { op: OpId(1) }]);
}

#[test]
fn a_successor_that_never_answers_is_asked_again() {
    let mut stage = in_phase(Some(Phase::Forwarding));
    stage.tell(Input::Due { chunk: chunk(), attempt: 1 });
    assert_eq!(stage.phase(), Some(Phase::Paused));
    stage.tell(Input::Due { chunk: chunk(), attempt: 2 });
    assert_eq!(stage.attempt(), 3);
    stage.answered(1, Ok(ACK));
    assert_eq!(stage.phase(), Some(Phase::Forwarding), "the answer to the first attempt is late");
}

#[test]
fn without_a_lease_nothing_leaves() {
    let mut stage = in_phase(Some(Phase::Writing));
    stage.tell_at(FENCED, Input::Durable { chunk: chunk(), version: 5, length: 4096, committed: false });
    assert!(matches!(stage.steps[..], [Step::Wake { .. }]), "not forwarded");
    let mut stage = in_phase(Some(Phase::Acked));
    stage.tell_at(FENCED, Input::Committed { chunk: chunk(), result: Ok(()) });
    assert!(
        matches!(&stage.steps[0], Step::Reply { result: Err(error), .. } if error.code == ErrorCode::LeaseExpired)
    );
    let stage = Stage::new(role(1, 1, 1));
    let admitted = |moment| stage.replica.admit_read(moment, chunk(), CHAIN, 1).map_err(|error| error.code);
    assert_eq!((admitted(NOW), admitted(FENCED)), (Ok(()), Err(ErrorCode::LeaseExpired)));
}

#[test]
fn a_new_chain_version_sends_pending_updates_on_again() {
    let mut stage = in_phase(Some(Phase::Forwarding));
    stage.offer(2, offer(2, 1, None));
    // The successor is gone: the next one is asked, under the new version; whoever waited knows an old one.
    stage.tell(Input::Role(role_in(2, 1, &[TargetState::Serving, TargetState::Serving])));
    assert_eq!(stage.attempt(), 2);
    assert!(stage.steps.iter().any(
        |step| matches!(step, Step::Reply { op: OpId(2), result: Err(error) } if error.code == ErrorCode::StaleRouting)
    ));
    stage.answered(1, Ok(ACK));
    assert_eq!(stage.phase(), Some(Phase::Forwarding), "an answer of the old version changes nothing");
    // Everybody behind is gone: what is durable here is all there is.
    stage.tell(Input::Role(role(3, 1, 1)));
    assert!(matches!(stage.steps[..], [Step::Commit { version: 5, chain_version: 3, .. }]));
    // An older role is no news.
    let before = stage.replica.clone();
    stage.tell(Input::Role(role(2, 1, 3)));
    assert_eq!(stage.replica, before);
}

#[test]
fn replicas_that_differ_take_the_chunk_out_of_service() {
    let mut stage = in_phase(Some(Phase::Stuck));
    let read =
        |stage: &Stage, chunk| stage.replica.admit_read(NOW, chunk, CHAIN, 1).map_err(|error| error.code);
    assert_eq!(read(&stage, chunk()), Err(ErrorCode::ReplicasDiffer));
    assert_eq!(read(&stage, ChunkId::new(InodeId(1), 1)), Ok(()));
    stage.offer(2, offer(2, 1, None));
    assert!(
        matches!(&stage.steps[0], Step::Reply { result: Err(error), .. } if error.code == ErrorCode::ReplicasDiffer)
    );
    // A CRC that isn't known any more proves nothing.
    let mut stage = in_phase(Some(Phase::Forwarding));
    stage.answered(1, Ok(Ack { merged_crc: 0, ..ACK }));
    assert!(matches!(stage.steps[..], [Step::Commit { .. }]));
}

#[test]
fn a_refusal_is_remembered_while_the_chain_version_lasts() {
    let mut stage = Stage::new(role(1, 3, 3));
    let forwarded = offer(1, 1, Some(5));
    let refusal = |stage: &Stage| match &stage.steps[..] {
        [Step::Reply { result: Err(error), .. }, Step::End { .. }] => Some(error.code),
        _ => None,
    };
    // Two copies of one update; the first is refused, the other hears the same without being tried.
    stage.offer(1, forwarded).offer(2, forwarded).begun();
    stage.tell(Input::Applied { chunk: chunk(), result: Err(ErrorCode::NoSpace.into()) });
    let replies: Vec<_> = stage.steps.iter().filter(|step| matches!(step, Step::Reply { .. })).collect();
    assert_eq!((replies.len(), stage.replica.busy()), (2, 0));
    stage.offer(3, forwarded);
    assert_eq!(refusal(&stage), Some(ErrorCode::NoSpace), "and so does one that comes later");
    stage.tell(Input::Role(role(2, 3, 3))).offer(4, forwarded);
    assert_eq!(refusal(&stage), Some(ErrorCode::StaleRouting));
    stage.offer(5, Offer { chain_version: 2, ..forwarded });
    assert!(matches!(stage.steps[..], [Step::Begin { .. }]), "sent anew under the new version");
}

/// A client that was told that there is no room has gone on: what it wrote since, by whatever channel, is not written over.
#[test]
fn a_late_copy_finds_no_room_either() {
    let refusal = |stage: &Stage| match &stage.steps[..] {
        [Step::Reply { result: Err(error), .. }, Step::End { .. }] => Some(error.code),
        _ => None,
    };
    let begins = |stage: &Stage| matches!(stage.steps[..], [Step::Begin { .. }]);
    let mut stage = Stage::new(role(1, 1, 1));
    let turned_away = offer(2, 1, None);
    stage.offer(1, turned_away).offer(2, turned_away).begun();
    stage.tell(Input::Applied { chunk: chunk(), result: Err(ErrorCode::NoSpace.into()) });
    let replies = stage.steps.iter().filter(|step| matches!(step, Step::Reply { .. })).count();
    assert_eq!((replies, stage.replica.busy()), (2, 0));
    stage.offer(3, turned_away);
    assert_eq!(refusal(&stage), Some(ErrorCode::NoSpace));
    stage.offer(4, offer(1, 1, None));
    assert_eq!(refusal(&stage), Some(ErrorCode::NoSpace), "nor does an earlier one of that channel");
    let mut other = turned_away;
    other.tag.channel += 1;
    stage.offer(5, other);
    assert!(begins(&stage), "other channels may find some");
    let mut stage = Stage::new(role(1, 1, 1));
    stage.offer(1, turned_away).begun();
    stage.tell(Input::Applied { chunk: chunk(), result: Err(ErrorCode::NoSpace.into()) });
    stage.offer(2, offer(3, 1, None));
    assert!(begins(&stage), "and so may the next of the channel");
}

#[test]
fn a_late_answer_fits_no_other_update() {
    let mut stage = in_phase(Some(Phase::Forwarding));
    let first = 1;
    stage.answered(first, Ok(ACK)).tell(Input::Committed { chunk: chunk(), result: Ok(()) });
    stage.offer(2, offer(2, 1, None));
    stage.tell(Input::Begun { chunk: chunk(), result: Ok(Begun::Fresh { version: 6 }) }).applied();
    stage.tell(Input::Durable { chunk: chunk(), version: 6, length: 4096, committed: false });
    assert_ne!(stage.attempt(), first);
    stage.answered(first, Err(ErrorCode::Duplicate.into()));
    assert_eq!(stage.phase(), Some(Phase::Forwarding));
}

#[test]
fn a_successor_that_lacks_the_base_is_given_it_first() {
    let mut stage = in_phase(Some(Phase::Filling));
    let [Step::Fill { attempt, to: TargetId(2), .. }] = stage.steps[..] else { panic!("{:?}", stage.steps) };
    stage.tell(Input::Filled { chunk: chunk(), attempt: attempt - 1, result: Ok(()) });
    assert_eq!(stage.phase(), Some(Phase::Filling), "an earlier attempt");
    stage.tell(Input::Filled { chunk: chunk(), attempt, result: Ok(()) });
    assert!(
        matches!(stage.steps[0], Step::Forward { version: 5, .. }),
        "then it gets the update as any other"
    );
    // It took the update on top of something else: commit, and fill afterwards, before whoever waits.
    let attempt = stage.attempt();
    stage.offer(2, offer(2, 1, None)).answered(attempt, Ok(Ack { merged_crc: 1, ..ACK }));
    assert!(matches!(stage.steps[..], [Step::Commit { .. }]) && stage.replica.owes_fills());
    stage.tell(Input::Committed { chunk: chunk(), result: Ok(()) });
    let fill = stage.steps.iter().find_map(|step| match step {
        Step::Fill { attempt, .. } => Some(*attempt),
        _ => None,
    });
    stage.tell(Input::Filled { chunk: chunk(), attempt: fill.unwrap(), result: Ok(()) });
    assert!(matches!(stage.steps[..], [Step::FillEnded { .. }, Step::Begin { op: OpId(2), .. }]));
    assert!(!stage.replica.owes_fills());
}

#[test]
fn a_replica_that_is_being_filled_drops_what_was_pending_and_never_has_an_update_dropped() {
    // It was in the middle, and had an update that it sent on.
    let mut stage = Stage::new(role(1, 2, 3));
    stage.offer(1, offer(1, 1, Some(5))).begun().applied().durable(false);
    let filled = role_in(3, 2, &FILLING);
    stage.tell(Input::Role(filled.clone()));
    assert!(
        matches!(&stage.steps[..], [Step::Reply { result: Err(error), .. }, Step::End { .. }] if error.code == ErrorCode::ChainBroken)
    );
    assert!(stage.replica.keeps(chunk()) && stage.replica.is_settled(), "it may be the last good copy");
    // It goes when the chunk is given, or at the end.
    let mut other = stage.clone();
    other.offer(2, offer(2, 3, Some(9)));
    assert!(matches!(other.steps[..], [Step::Drop { version: 5, .. }]));
    stage.tell(Input::LetGo);
    assert!(matches!(stage.steps[..], [Step::Drop { version: 5, .. }]) && !stage.replica.is_settled());
    stage.tell(Input::DropBegun { chunk: chunk(), result: Ok(()) }).tell(Input::Dropped { chunk: chunk() });
    assert!(stage.replica.is_settled() && stage.replica.busy() == 0);
    // A refusal says that it can't be filled; its predecessor goes on asking.
    let mut stage = Stage::new(filled);
    stage.offer(1, offer(1, 3, Some(5))).begun();
    stage.tell(Input::Applied { chunk: chunk(), result: Err(ErrorCode::NoSpace.into()) });
    assert!(stage.replica.failed(NOW.now) && !stage.replica.failed(NOW.now + FAILED_FOR));
    let mut stage = Stage::new(role_in(1, 1, &FILLING));
    stage.offer(1, offer(1, 1, None)).begun().applied().durable(false);
    stage.answered(1, Err(ErrorCode::NoSpace.into()));
    assert_eq!(stage.phase(), Some(Phase::Paused));
}

#[test]
fn what_was_under_way_when_filling_began_is_given_afterwards() {
    // The last of the chain commits by its own flush; then somebody to be filled comes after it.
    let mut stage = Stage::new(role(1, 1, 1));
    stage.offer(1, offer(1, 1, None)).begun().applied();
    stage.tell(Input::Role(role_in(2, 1, &FILLING)));
    assert!(stage.replica.owes_fills());
    stage.durable(true);
    assert!(stage.steps.iter().any(|step| matches!(step, Step::Fill { chain_version: 2, .. })));
    // Without a successor there is nobody to be given anything.
    stage.tell(Input::Role(role(3, 1, 1)));
    assert_eq!((stage.replica.busy(), stage.replica.owes_fills()), (0, false));
}

#[test]
fn what_a_tail_of_an_earlier_version_may_have_shown_is_not_taken_back() {
    let alone = Stage::new(role(1, 1, 1));
    assert!(alone.replica.shows_pending(true), "nobody else has it");
    assert!(!alone.replica.shows_pending(false), "a tail that is gone may have shown it");
    let filling = Stage::new(role_in(1, 1, &FILLING));
    assert!(!filling.replica.shows_pending(true), "its successor may serve by now");
}

#[test]
fn roles_follow_the_chain() {
    use TargetState as State;
    let states = [State::Serving, State::Serving, State::Syncing, State::Offline];
    let head = role_in(1, 1, &states);
    assert_eq!((head.head, head.tail, head.successor, head.behind), (true, false, Some(TargetId(2)), 2));
    let tail = role_in(1, 2, &states);
    assert_eq!((tail.head, tail.tail, tail.successor, tail.behind), (false, true, Some(TargetId(3)), 1));
    let filling = role_in(1, 3, &states);
    assert_eq!((filling.serving(), filling.successor, filling.behind), (false, None, 0));
    let code = |result: Result<()>| result.map_err(|error| error.code);
    assert_eq!(code(filling.admit_read(CHAIN, 1)), Err(ErrorCode::NotServing));
    assert_eq!((head.filling, tail.filling, filling.filling), (false, true, false));
    let (forwarded, own) = (offer(1, 1, Some(5)), offer(1, 1, None));
    assert_eq!(code(filling.admit_update(&forwarded)), Ok(()));
    assert_eq!(code(head.admit_update(&forwarded)), Err(ErrorCode::NotServing));
    assert_eq!(code(tail.admit_update(&own)), Err(ErrorCode::NotServing));
    let fill = Offer { fill: Some(0), ..forwarded };
    assert_eq!(code(filling.admit_update(&fill)), Ok(()));
    assert_eq!(code(tail.admit_update(&fill)), Err(ErrorCode::NotServing));
    assert_eq!(code(filling.admit_update(&Offer { fill: Some(0), ..own })), Err(ErrorCode::NotServing));
    assert_eq!(code(head.admit_read(CHAIN, 2)), Err(ErrorCode::StaleRouting));
    assert_eq!(code(head.admit_read(ChainId(9), 1)), Err(ErrorCode::UnknownChain));
    assert!(!role_in(1, 1, &[State::LastServing, State::Offline]).head);
}

#[test]
fn a_fill_knows_which_version_waits_for_it() {
    let waits = |stage: &Stage| stage.replica.waits_for_fill(chunk());
    for phase in phases() {
        let expected = (phase == Some(Phase::Filling)).then_some(ACK.version);
        assert_eq!(waits(&in_phase(phase)), expected, "{phase:?}");
    }
    let mut alone = Stage::new(role_in(1, 1, &FILLING));
    alone.tell(Input::Fill { chunk: chunk() });
    assert_eq!((alone.phase(), waits(&alone)), (Some(Phase::Filling), None));
}

/// A head that is to be the last is filled like one that was away. It has everything already, as long as nothing of that was replaced.
#[test]
fn who_served_and_was_given_nothing_is_spared_when_nobody_serves() {
    const FILLED: [TargetState; 3] = [TargetState::Serving, TargetState::Serving, TargetState::Syncing];
    const LEFT_OUT: [TargetState; 3] = [TargetState::Serving, TargetState::Serving, TargetState::Waiting];
    const UNSERVED: [TargetState; 3] = [TargetState::LastServing, TargetState::Offline, TargetState::Waiting];
    let served = Stage::new(role(1, 3, 3));
    let then = |stage: &Stage, version, states: &[TargetState]| {
        let mut stage = stage.clone();
        stage.tell(Input::Role(role_in(version, 3, states)));
        stage
    };
    let syncing = then(&served, 2, &FILLED);
    assert!(!syncing.replica.is_spared(), "others serve");
    assert!(then(&syncing, 3, &UNSERVED).replica.is_spared());
    let again = then(&then(&syncing, 3, &UNSERVED), 4, &FILLED);
    assert!(then(&again, 5, &UNSERVED).replica.is_spared(), "nothing was committed without it meanwhile");
    // Others may have committed something under a version that it hasn't heard of, or while it was left out.
    assert!(!then(&syncing, 4, &UNSERVED).replica.is_spared());
    let out = then(&syncing, 3, &LEFT_OUT);
    assert!(!then(&out, 4, &UNSERVED).replica.is_spared());
    // It has begun to be filled.
    let mut replaced = syncing.clone();
    replaced.offer(1, Offer { fill: Some(1), ..offer(1, 2, Some(5)) });
    assert!(!then(&replaced, 3, &UNSERVED).replica.is_spared());
    let mut told = syncing.clone();
    told.replica.took_over();
    assert!(!then(&told, 3, &UNSERVED).replica.is_spared());
    // Updates that come down the chain take nothing away.
    let mut updated = syncing;
    updated.offer(1, offer(1, 2, Some(5))).begun().applied();
    assert!(then(&updated, 3, &UNSERVED).replica.is_spared());
    // What was under way when it ceased to serve is given up, and others may have shown it.
    let mut busy = served;
    busy.offer(1, offer(1, 1, Some(5))).begun().applied();
    assert!(!then(&then(&busy, 2, &FILLED), 3, &UNSERVED).replica.is_spared());
    assert!(!Stage::new(role_in(1, 3, &UNSERVED)).replica.is_spared(), "it never served");
}

/// A full disk refuses for hours. What it refused long ago comes no more; that it refuses for good must be said as long as it does.
#[test]
fn old_refusals_make_room_for_new_ones() {
    let mut stage = Stage::new(role(1, 3, 3));
    let mut refuse = |now, sequence| {
        let moment = Moment { now, ..NOW };
        let offer = offer(sequence, 1, Some(5));
        let result = Err(ErrorCode::NoSpace.into());
        stage.steps.clear();
        stage.replica.handle(moment, Input::Offer { op: OpId(1), offer }, &mut stage.steps);
        stage.replica.handle(moment, Input::Begun { chunk: chunk(), result }, &mut stage.steps);
        stage.steps.iter().find_map(|step| match step {
            Step::Reply { result: Err(error), .. } => Some(error.code),
            _ => None,
        })
    };
    for sequence in 0..REFUSALS_MAX as u64 {
        assert_eq!(refuse(NOW.now, sequence), Some(ErrorCode::NoSpace));
    }
    assert_eq!(refuse(NOW.now + REFUSED_FOR - 1, 1 << 20), Some(ErrorCode::Overloaded));
    assert_eq!(refuse(NOW.now + REFUSED_FOR, 1 << 20), Some(ErrorCode::NoSpace));
}
