//! What must hold, whatever happens:
//!
//! - replicas that serve never commit two updates under one version of a chunk, nor one update under two (exactly once);
//! - an acknowledged update is in the history of its chunk for ever, at the version it was acknowledged with; a refused one
//!   isn't;
//! - once a version of a chunk was read or acknowledged, no read that begins later returns less, and what a read returns
//!   is what the history says of its version (per-chunk linearizability: versions are the order of the register's writes);
//! - the same without a look at versions: some order of all operations explains what clients saw ([`register`]);
//! - one head of a chain takes updates at a time;
//! - in the end all replicas hold the same, and it is what the history says.

use super::node::Accepted;
use super::register::{self, Effect, Operation};
use corefs_engine::chain::is_definite;
use corefs_engine::event::Ack;
use corefs_engine::store::UpdateKind;
use corefs_wire::checksum::crc32c;
use corefs_wire::{ChainId, ChunkId, ErrorCode};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Names one client's one update, through all its retries.
pub type WriteId = u64;

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What was done and seen.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counts { $($(#[$doc])* pub $name: u64,)* }
        impl Counts {
            /// Every count's name and value.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

counts! {
    /// Virtual milliseconds.
    milliseconds,
    /// Updates acknowledged and refused, reads answered.
    acknowledged,
    refused,
    reads,
    retries,
    /// Faults, those of several at once each.
    faults,
    several_at_once,
    power_cuts,
    /// All nodes at once.
    blackouts,
    pauses,
    clock_leaps,
    partitions,
    one_way_partitions,
    isolations,
    manager_deaths,
    manager_pauses,
    store_cuts,
    store_troubles,
    write_errors,
    flush_errors,
    /// Starts without a disk.
    disks_absent,
    slow_disks,
    /// Blocks damaged.
    moves_asked,
    replicas_moved,
    scrubs,
    fetches,
    rotten,
    misdirected,
    lost_messages,
    late_messages,
    repeated_messages,
    server_deaths,
    server_pauses,
    namer_deaths,
    namer_pauses,
    namer_cuts,
    /// Operations on names that were answered, requests for them that were sent again, clients that lost their lease, dead clients
    /// settled, and what metadata servers had done to chunks.
    names_done,
    names_again,
    leases_lost,
    clients_settled,
    names_chunks,
    /// Rare paths. Reigns of managers; commits of their store that conflicted, and that nobody knew the end of.
    reigns,
    gave_way,
    store_conflicts,
    store_unknown,
    /// Routing that came without a lease.
    news,
    /// Leases not given because chains had to be told first; nodes that had to say again who they are.
    leases_withheld,
    registered_again,
    /// Heartbeats that complained of a successor that isn't reached.
    complaints,
    /// Clients that met a shard without a lease.
    fenced,
    /// Reads that met a pending update, or damage; that gave up; updates that nobody took because of damage.
    reads_pending,
    reads_damaged,
    reads_failed,
    given_up,
    /// Updates found pending at a start.
    recovered_pendings,
    /// Chain versions, replicas that came to serve after they had been filled, chains that had nobody left to serve.
    chain_changes,
    replicas_filled,
    total_losses,
    /// Parts of chunks sent to fill a replica.
    fills,
    rows_handed_over,
    /// What a successor refused, and why.
    refused_stale,
    refused_needs_whole,
    refused_base_differs,
    refused_broken,
    refused_for_good,
    refused_otherwise,
    /// In the end: chunks compared, operations that the register check put in order, and where it had to turn back.
    chunks_compared,
    operations_ordered,
    orders_tried_again,
}

impl Counts {
    /// Operations that clients got an answer to: updates acknowledged, and reads.
    pub fn operations(&self) -> u64 {
        self.acknowledged + self.reads
    }

    /// A successor answered a forward.
    pub fn refusal(&mut self, code: Option<ErrorCode>) {
        let Some(code) = code else { return };
        let count = match code {
            ErrorCode::StaleRouting | ErrorCode::LeaseExpired | ErrorCode::NotServing => {
                &mut self.refused_stale
            }
            ErrorCode::NeedsWhole => &mut self.refused_needs_whole,
            ErrorCode::BaseDiffers => &mut self.refused_base_differs,
            ErrorCode::ChainBroken | ErrorCode::Pending => &mut self.refused_broken,
            code if is_definite(code) => &mut self.refused_for_good,
            _ => &mut self.refused_otherwise,
        };
        *count += 1;
    }
}

#[derive(Clone, Debug)]
struct Change {
    chunk: ChunkId,
    kind: UpdateKind,
    payload: Rc<[u8]>,
    refused: bool,
    /// The version that it was committed as.
    version: Option<u64>,
    /// The least version that it may have: what had been shown before it began is older.
    floor: u64,
    began: u64,
    /// When it was acknowledged, as what.
    ended: Option<(u64, u64)>,
}

/// One chunk as one replica holds it in the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    pub version: u64,
    /// `None`: removed, or never there.
    pub bytes: Option<Vec<u8>>,
}

/// The committed updates of a chunk in order, the first being version 1.
#[derive(Debug, Default)]
struct History {
    ids: Vec<WriteId>,
    /// CRC of the bytes after each; `None`: removed.
    crcs: Vec<Option<u32>>,
    bytes: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
pub struct Truth {
    changes: BTreeMap<WriteId, Change>,
    histories: BTreeMap<ChunkId, History>,
    /// What a read that begins now must at least return.
    floor: BTreeMap<ChunkId, u64>,
    /// Of each chunk the reads that were answered, for the black box.
    answers: BTreeMap<ChunkId, Vec<Answer>>,
    /// Who last took an update as the head of a chain.
    heads: BTreeMap<ChainId, Accepted>,
    /// Counts beginnings and ends of operations.
    moments: u64,
    /// Whether versions are believed, not only what clients can see.
    knows_versions: bool,
    pub counts: Counts,
}

/// A read's answer.
#[derive(Clone, Copy, Debug)]
struct Answer {
    began: u64,
    ended: u64,
    version: u64,
    crc: Option<u32>,
}

impl Truth {
    pub fn new(knows_versions: bool) -> Self {
        Self { knows_versions, ..Self::default() }
    }

    /// An operation begins, or ends.
    pub fn begins(&mut self) -> u64 {
        self.moments += 1;
        self.moments
    }

    /// A client begins an update.
    pub fn wished(&mut self, id: WriteId, chunk: ChunkId, kind: UpdateKind, payload: Rc<[u8]>) {
        let (floor, began) = (self.floor(chunk), self.begins());
        let change =
            Change { chunk, kind, payload, refused: false, version: None, floor, began, ended: None };
        self.changes.insert(id, change);
    }

    /// A head takes an update from a client: the only one under that chain version, and none of an earlier one does after it.
    pub fn accepted(&mut self, now: Accepted, counts: bool) -> Result<(), String> {
        let last = *self.heads.entry(now.chain).or_insert(now);
        let stale = match now.chain_version.cmp(&last.chain_version) {
            std::cmp::Ordering::Less => !counts,
            std::cmp::Ordering::Equal => true,
            std::cmp::Ordering::Greater => false,
        };
        if self.knows_versions && last.head != now.head && stale {
            return Err(format!("two heads take updates: {now:?} after {last:?}"));
        }
        if now.chain_version >= last.chain_version {
            self.heads.insert(now.chain, now);
        }
        Ok(())
    }

    /// A replica that serves has committed an update under this version.
    pub fn committed(&mut self, chunk: ChunkId, version: u64, id: WriteId) -> Result<(), String> {
        if !self.knows_versions {
            return Ok(());
        }
        let history = self.histories.entry(chunk).or_default();
        let known = history.ids.get(version as usize - 1);
        match known {
            Some(known) if *known == id => return Ok(()),
            Some(known) => {
                return Err(format!("version {version} of {chunk} is update {known} here and {id} there"));
            }
            None if history.ids.len() as u64 + 1 == version => {}
            None => {
                let last = history.ids.len();
                return Err(format!("{chunk}: version {version} is committed, but the last was {last}"));
            }
        }
        let change = self.changes.get_mut(&id).ok_or("an update of nobody")?;
        if version <= change.floor {
            let floor = change.floor;
            return Err(format!(
                "update {id} of {chunk} is version {version} and began after {floor} was shown"
            ));
        }
        if change.refused {
            return Err(format!("update {id} of {chunk} was refused and is version {version}"));
        }
        if let Some(before) = change.version.replace(version) {
            return Err(format!(
                "update {id} of {chunk} is version {before} and {version}: it was done twice"
            ));
        }
        history.bytes = apply(history.bytes.take(), change);
        history.ids.push(id);
        history.crcs.push(history.bytes.as_deref().map(crc32c));
        Ok(())
    }

    pub fn acknowledged(&mut self, chunk: ChunkId, id: WriteId, ack: &Ack) -> Result<(), String> {
        self.counts.acknowledged += 1;
        let now = self.begins();
        if let Some(change) = self.changes.get_mut(&id) {
            change.ended = Some((now, ack.version));
        }
        if !self.knows_versions {
            return Ok(());
        }
        self.saw(chunk, ack.version);
        match self.changes.get(&id).and_then(|change| change.version) {
            Some(version) if version == ack.version => Ok(()),
            other => Err(format!(
                "update {id} of {chunk} was acknowledged as version {}, and is committed as {other:?}",
                ack.version
            )),
        }
    }

    pub fn refused(&mut self, id: WriteId) -> Result<(), String> {
        self.counts.refused += 1;
        match self.changes.get_mut(&id) {
            Some(Change { version: Some(version), .. }) => {
                Err(format!("update {id} was refused, and is committed as version {version}"))
            }
            Some(change) => {
                change.refused = true;
                Ok(())
            }
            None => Err("a refusal of nothing".into()),
        }
    }

    /// Nobody knows whether an update will happen.
    pub fn given_up(&mut self, _id: WriteId) {
        self.counts.given_up += 1;
    }

    /// What a read that begins now must at least return.
    pub fn floor(&self, chunk: ChunkId) -> u64 {
        self.floor.get(&chunk).copied().unwrap_or(0)
    }

    /// A read that began when `floor` was the least it may return.
    pub fn read(
        &mut self,
        chunk: ChunkId,
        began: u64,
        floor: u64,
        version: u64,
        bytes: &[u8],
    ) -> Result<(), String> {
        self.answered(chunk, began, version, Some(crc32c(bytes)));
        if !self.knows_versions {
            return Ok(());
        }
        self.saw(chunk, version);
        if version < floor {
            return Err(format!("a read of {chunk} returned version {version} after {floor} had been shown"));
        }
        let expected = self.histories.get(&chunk).and_then(|history| history.crcs.get(version as usize - 1));
        if expected == Some(&Some(crc32c(bytes))) {
            return Ok(());
        }
        let known = self.histories.get(&chunk).map_or(0, |history| history.ids.len());
        let what = match expected {
            None => format!("which nobody committed: {known} is the last"),
            Some(None) => "which is a removal".into(),
            Some(Some(_)) => "and other bytes than it has".into(),
        };
        Err(format!("a read of {chunk} returned version {version}, {what}"))
    }

    /// A read that found no chunk.
    pub fn read_nothing(&mut self, chunk: ChunkId, began: u64, floor: u64) -> Result<(), String> {
        self.answered(chunk, began, floor, None);
        let removed = |history: &History| {
            history.crcs.iter().skip((floor as usize).saturating_sub(1)).any(Option::is_none)
        };
        if floor == 0 || !self.knows_versions || self.histories.get(&chunk).is_some_and(removed) {
            return Ok(());
        }
        Err(format!("a read found no {chunk} after version {floor} had been shown"))
    }

    fn answered(&mut self, chunk: ChunkId, began: u64, version: u64, crc: Option<u32>) {
        self.counts.reads += 1;
        let ended = self.begins();
        self.answers.entry(chunk).or_default().push(Answer { began, ended, version, crc });
    }

    /// Whether some order of all operations on a chunk explains everything that clients saw of it.
    pub fn check_register(&mut self, chunk: ChunkId) -> Result<(), String> {
        let updates = self.changes.values().filter(|change| change.chunk == chunk && !change.refused);
        let update = |change: &Change| {
            let (this, ended) = (change.clone(), change.ended);
            Operation {
                began: change.began,
                ended: ended.map(|(at, _)| at),
                effect: Effect::Update(Rc::new(move |contents| apply(contents, &this))),
                hint: ended.map_or(u64::MAX, |(_, version)| version),
            }
        };
        let mut operations: Vec<Operation> = updates.map(update).collect();
        let answers = self.answers.get(&chunk).into_iter().flatten();
        operations.extend(answers.map(|answer| Operation {
            began: answer.began,
            ended: Some(answer.ended),
            effect: Effect::Read(answer.crc),
            hint: answer.version,
        }));
        self.counts.operations_ordered += operations.len() as u64;
        let turns = register::check(&mut operations).map_err(|what| format!("{chunk}: {what}"))?;
        self.counts.orders_tried_again += turns;
        Ok(())
    }

    fn saw(&mut self, chunk: ChunkId, version: u64) {
        let floor = self.floor.entry(chunk).or_default();
        *floor = version.max(*floor);
    }

    /// Holds the end against the history. `replicas`: what each replica holds of the chunk.
    pub fn check_end(&mut self, chunk: ChunkId, replicas: &[Held]) -> Result<(), String> {
        self.counts.chunks_compared += 1;
        let empty = History::default();
        let history = self.histories.get(&chunk).unwrap_or(&empty);
        if let Some(differs) = replicas.windows(2).position(|pair| pair[0] != pair[1]) {
            return Err(format!("{chunk}: replicas {differs} and {} differ in the end", differs + 1));
        }
        if !self.knows_versions {
            return Ok(());
        }
        for (index, held) in replicas.iter().enumerate() {
            let last = history.ids.len() as u64;
            if held.version != last || held.bytes != history.bytes {
                let same = if held.bytes == history.bytes { "the same bytes" } else { "other bytes" };
                return Err(format!(
                    "{chunk}: replica {index} ended with version {}, the history with {last}, {same}",
                    held.version
                ));
            }
        }
        Ok(())
    }
}

fn apply(bytes: Option<Vec<u8>>, change: &Change) -> Option<Vec<u8>> {
    let mut bytes = bytes.unwrap_or_default();
    match change.kind {
        UpdateKind::Write { offset, len } => {
            let (start, end) = (offset as usize, (offset + len) as usize);
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[start..end].copy_from_slice(&change.payload);
            Some(bytes)
        }
        UpdateKind::Truncate { len } => {
            bytes.resize(len as usize, 0);
            Some(bytes)
        }
        UpdateKind::Remove => None,
        UpdateKind::FullReplace { .. } | UpdateKind::Patch { .. } => unreachable!("clients don't fill"),
    }
}

#[cfg(test)]
mod tests {
    //! Every check of the truth rejects a history that was forged against it, in its own words.

    use super::*;
    use corefs_wire::TargetId;

    const CHUNK: ChunkId = ChunkId::new(corefs_wire::InodeId(1), 0);

    /// An update that makes the chunk so long.
    fn wish(truth: &mut Truth, id: WriteId, len: u32) {
        truth.wished(id, CHUNK, UpdateKind::Truncate { len }, Rc::default());
    }

    fn ack(version: u64) -> Ack {
        Ack { version, length: 0, merged_crc: 0 }
    }

    fn held(version: u64, len: usize) -> Held {
        Held { version, bytes: Some(vec![0; len]) }
    }

    /// Update 1 is version 1, of one byte, and update 2 is version 2, of two. Both were acknowledged, and nobody has read.
    fn sound() -> Truth {
        let mut truth = Truth::new(true);
        for id in 1..=2 {
            wish(&mut truth, id, id as u32);
            truth.committed(CHUNK, id, id).unwrap();
            truth.acknowledged(CHUNK, id, &ack(id)).unwrap();
        }
        truth
    }

    /// The last step of a forged history is rejected in these words.
    fn rejected(words: &str, forge: impl FnOnce(&mut Truth) -> Result<(), String>) {
        let said = forge(&mut sound()).expect_err(words);
        assert!(said.contains(words), "{said:?} instead of {words:?}");
    }

    #[test]
    fn a_sound_history_passes() {
        let mut truth = sound();
        wish(&mut truth, 3, 3);
        truth.refused(3).unwrap();
        let began = truth.begins();
        truth.read(CHUNK, began, 2, 2, &[0; 2]).unwrap();
        truth.check_end(CHUNK, &[held(2, 2), held(2, 2)]).unwrap();
        truth.check_register(CHUNK).unwrap();
    }

    #[test]
    fn two_heads_are_rejected() {
        let took = |chain_version, head| Accepted { chain: ChainId(1), chain_version, head: TargetId(head) };
        rejected("two heads take updates", |truth| {
            truth.accepted(took(5, 1), true)?;
            truth.accepted(took(5, 2), true)
        });
        rejected("two heads take updates", |truth| {
            truth.accepted(took(5, 1), true)?;
            truth.accepted(took(4, 2), false)
        });
        // One that was handed on, and may not know.
        sound().accepted(took(5, 1), true).unwrap();
    }

    #[test]
    fn commits_that_cannot_be_are_rejected() {
        rejected("is update 2 here and 1 there", |truth| truth.committed(CHUNK, 2, 1));
        rejected("version 4 is committed, but the last was 2", |truth| {
            wish(truth, 3, 3);
            truth.committed(CHUNK, 4, 3)
        });
        rejected("an update of nobody", |truth| truth.committed(CHUNK, 3, 3));
        rejected("it was done twice", |truth| truth.committed(CHUNK, 3, 1));
    }

    /// Whoever shows what nobody committed is caught at once, so no life comes to this one: what it says follows from the others.
    #[test]
    fn an_update_older_than_what_was_shown_before_it_is_rejected() {
        rejected("began after 3 was shown", |truth| {
            let began = truth.begins();
            truth.read(CHUNK, began, 2, 3, &[0; 3]).unwrap_err();
            wish(truth, 3, 3);
            truth.committed(CHUNK, 3, 3)
        });
    }

    #[test]
    fn refusals_that_were_none_are_rejected() {
        rejected("was refused, and is committed as version 2", |truth| truth.refused(2));
        rejected("update 3 of inode-1/0 was refused and is version 3", |truth| {
            wish(truth, 3, 3);
            truth.refused(3)?;
            truth.committed(CHUNK, 3, 3)
        });
        rejected("a refusal of nothing", |truth| truth.refused(3));
    }

    #[test]
    fn acknowledgments_that_are_not_true_are_rejected() {
        rejected("acknowledged as version 3, and is committed as None", |truth| {
            wish(truth, 3, 3);
            truth.acknowledged(CHUNK, 3, &ack(3))
        });
        rejected("acknowledged as version 1, and is committed as Some(2)", |truth| {
            truth.acknowledged(CHUNK, 2, &ack(1))
        });
    }

    #[test]
    fn reads_that_cannot_be_are_rejected() {
        let read = |truth: &mut Truth, version, bytes: &[u8]| {
            let began = truth.begins();
            truth.read(CHUNK, began, 2, version, bytes)
        };
        rejected("returned version 1 after 2 had been shown", |truth| read(truth, 1, &[0]));
        rejected("which nobody committed: 2 is the last", |truth| read(truth, 3, &[0; 3]));
        rejected("and other bytes than it has", |truth| read(truth, 2, &[0, 1]));
        rejected("which is a removal", |truth| {
            truth.wished(3, CHUNK, UpdateKind::Remove, Rc::default());
            truth.committed(CHUNK, 3, 3)?;
            read(truth, 3, &[])
        });
        rejected("a read found no inode-1/0 after version 2 had been shown", |truth| {
            let began = truth.begins();
            truth.read_nothing(CHUNK, began, 2)
        });
    }

    #[test]
    fn ends_that_the_history_does_not_have_are_rejected() {
        let end = |replicas: [Held; 2]| move |truth: &mut Truth| truth.check_end(CHUNK, &replicas);
        rejected("replicas 0 and 1 differ in the end", end([held(2, 2), held(1, 1)]));
        rejected("ended with version 1, the history with 2, other bytes", end([held(1, 1), held(1, 1)]));
        rejected("ended with version 1, the history with 2, the same bytes", end([held(1, 2), held(1, 2)]));
        rejected("ended with version 2, the history with 2, other bytes", end([held(2, 1), held(2, 1)]));
    }

    /// Without a look at versions, by the register alone.
    #[test]
    fn what_clients_saw_is_rejected_without_versions() {
        let mut truth = Truth::new(false);
        for id in 1..=2 {
            wish(&mut truth, id, id as u32);
            truth.acknowledged(CHUNK, id, &ack(id)).unwrap();
        }
        let began = truth.begins();
        truth.read(CHUNK, began, 0, 1, &[0]).unwrap();
        assert!(
            truth.check_register(CHUNK).unwrap_err().contains("no order of the operations explains them")
        );
    }
}
