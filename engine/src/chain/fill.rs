//! Giving a successor the committed version of one chunk: ask what it holds, then replace that, part by part.
//!
//! While it lasts the chunk's queue stands still, so the committed version stays what it is. With its answer the successor gives a permit
//! to replace what it holds, once, which the parts name: a copy of the first one that comes late is refused.
//!
//! If there is something to replace, all parts are read before the first is sent. A block that is damaged here is found then, while the
//! successor's older version, which may hold the very same block, is still there to repair it from.

use crate::event::OpId;
use crate::store::{Entry, PendingInfo, UpdateKind};
use corefs_wire::{ChunkId, TargetId, UpdateTag};

/// How far it has come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    /// The successor is asked what it holds.
    Asking,
    /// The part is read from the disk.
    Loading,
    /// The part is on its way.
    Sending(OpId),
}

/// One chunk being filled.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Filler {
    pub chunk: ChunkId,
    pub to: TargetId,
    pub chain_version: u64,
    /// The replica's number of the present step.
    pub attempt: u64,
    pub stage: Stage,
    /// What is sent, and the successor's permit for it.
    sends: Option<(Entry, u64)>,
    /// The parts are only looked at yet.
    looking: bool,
    /// Bytes of the present part, and where it begins.
    at: u32,
    len: u32,
}

impl Filler {
    pub fn new(chunk: ChunkId, attempt: u64, to: TargetId, chain_version: u64) -> Self {
        let (stage, sends, looking, at, len) = (Stage::Asking, None, false, 0, 0);
        Self { chunk, to, chain_version, attempt, stage, sends, looking, at, len }
    }

    /// The successor holds this, and gives that permit; we hold that, and give no version up to `floor` to what isn't here; `next` is the version of the
    /// update that waits for the fill. Whether anything is to be sent.
    ///
    /// A removal has our version, or that of a tombstone which we may have forgotten, and none above: the update that comes next follows
    /// it. The floor is of the whole target and may have risen since that update got its version, which is then the lower bound.
    pub fn compare(
        &mut self,
        ours: Option<Entry>,
        theirs: Option<Entry>,
        permit: u64,
        floor: u64,
        next: Option<u64>,
    ) -> bool {
        let most = next.map_or(floor, |next| floor.min(next.saturating_sub(1))).max(1);
        self.sends = match (ours, theirs) {
            (None, None) => None,
            (None, Some(theirs)) if theirs.version == 0 => None,
            // A tombstone that we have forgotten does no harm there, if the next update can follow it.
            (None, Some(theirs)) if theirs.removed && (next.is_none() || theirs.version <= most) => None,
            (None, Some(theirs)) => {
                let version = theirs.version.saturating_add(1).min(most);
                Some(Entry { version, removed: true, length: 0, mapped: 0, ..theirs })
            }
            (Some(ours), Some(theirs)) if ours.digest == theirs.digest => None,
            (Some(ours), _) => Some(ours),
        }
        .map(|entry| (entry, permit));
        (self.at, self.len) = (0, 0);
        self.looking = theirs.is_some_and(|theirs| theirs.length > 0);
        self.sends.is_some()
    }

    /// The next part of at most `most` bytes that is to be looked at before anything is sent: as the patch that it would be. If
    /// there is only one part there is nothing to look at: it is read before it is sent.
    pub fn next_look(&mut self, most: u32) -> Option<PendingInfo> {
        let (entry, _) = self.sends?;
        self.at += self.len;
        self.len = (entry.mapped - self.at).min(most);
        if self.looking && entry.mapped > most && self.len > 0 {
            self.stage = Stage::Loading;
            return Some(self.part(&entry, UpdateKind::Patch { offset: self.at, len: self.len }));
        }
        (self.looking, self.stage, self.at, self.len) = (false, Stage::Asking, 0, 0);
        None
    }

    /// Whether the part that is being read is only looked at.
    pub fn looks(&self) -> bool {
        self.looking
    }

    /// The next part of at most `most` bytes: the update that it is, and which bytes of the chunk it carries. `None`: everything
    /// was sent.
    pub fn next_part(&mut self, most: u32) -> Option<(PendingInfo, u32, u32)> {
        let (entry, _) = self.sends?;
        let first = self.stage == Stage::Asking;
        self.at += self.len;
        self.len = (entry.mapped - self.at).min(most);
        if !first && self.len == 0 {
            return None;
        }
        let kind = match first {
            _ if entry.removed => UpdateKind::Remove,
            true => UpdateKind::FullReplace { len: self.len, total: entry.length },
            false => UpdateKind::Patch { offset: self.at, len: self.len },
        };
        self.stage = Stage::Loading;
        Some((self.part(&entry, kind), self.at, self.len))
    }

    fn part(&self, entry: &Entry, kind: UpdateKind) -> PendingInfo {
        PendingInfo {
            chunk: self.chunk,
            kind,
            version: entry.version,
            chain_version: self.chain_version,
            truncate_epoch: entry.epoch,
            tag: UpdateTag::default(),
            length: entry.length,
            flushed: true,
        }
    }

    /// The version that its parts have.
    pub fn version(&self) -> u64 {
        self.sends.map_or(0, |(entry, _)| entry.version)
    }

    /// The successor's permit for them.
    pub fn permit(&self) -> u64 {
        self.sends.map_or(0, |(_, permit)| permit)
    }

    /// Whether anything was sent.
    pub fn sent(&self) -> bool {
        self.sends.is_some()
    }

    pub fn op(&self) -> Option<OpId> {
        match self.stage {
            Stage::Sending(op) => Some(op),
            Stage::Asking | Stage::Loading => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::InodeId;

    const BLOCK: u32 = 4096;

    fn entry(version: u64, length: u32, mapped: u32) -> Entry {
        let chunk = ChunkId::new(InodeId(1), 0);
        Entry { chunk, version, epoch: 3, length, mapped, removed: false, digest: version * 100 + 1 }
    }

    fn filler() -> Filler {
        Filler::new(ChunkId::new(InodeId(1), 0), 1, TargetId(2), 5)
    }

    #[test]
    fn only_what_differs_is_sent() {
        let tombstone = Entry { removed: true, length: 0, mapped: 0, ..entry(9, 0, 0) };
        let sends_before = |ours, theirs, next| {
            let mut filler = filler();
            filler.compare(ours, theirs, 301, 7, next).then(|| filler.next_part(1 << 20).unwrap().0)
        };
        let sends = |ours, theirs| sends_before(ours, theirs, None);
        let plain = entry(4, 100, 100);
        assert_eq!(sends(None, None), None);
        assert_eq!(sends(None, Some(tombstone)), None);
        assert_eq!(sends(Some(plain), Some(plain)), None);
        let removal = sends(None, Some(plain)).unwrap();
        assert_eq!((removal.kind, removal.version), (UpdateKind::Remove, 5));
        assert_eq!(sends(None, Some(entry(20, 100, 100))).unwrap().version, 7, "8 may be the next update's");
        for (theirs, next, expected) in [(20, 6, 5), (20, 30, 7), (4, 5, 4), (3, 6, 4)] {
            let removal = sends_before(None, Some(entry(theirs, 100, 100)), Some(next)).unwrap();
            assert_eq!((removal.kind, removal.version), (UpdateKind::Remove, expected), "{theirs} {next}");
        }
        assert_eq!(sends_before(None, Some(Entry { version: 5, ..tombstone }), Some(6)), None, "6 follows 5");
        let lower = sends_before(None, Some(Entry { version: 6, ..tombstone }), Some(6)).unwrap();
        assert_eq!((lower.kind, lower.version), (UpdateKind::Remove, 5), "6 doesn't follow 6");
        for theirs in [plain, entry(20, 100, 100)] {
            let removal = sends(Some(tombstone), Some(theirs)).unwrap();
            assert_eq!((removal.kind, removal.version, removal.truncate_epoch), (UpdateKind::Remove, 9, 3));
        }
        let replace = sends(Some(plain), None).unwrap();
        assert_eq!(replace.kind, UpdateKind::FullReplace { len: 100, total: 100 });
        let replace = sends(Some(plain), Some(entry(7, 100, 100))).unwrap();
        assert_eq!(replace.version, 4, "whatever was there");
    }

    #[test]
    fn what_would_replace_something_is_looked_at_first() {
        let looks = |theirs, mapped| {
            let mut filler = filler();
            assert!(filler.compare(Some(entry(4, 10 * BLOCK, mapped)), theirs, 1, 0, None));
            let looks = std::iter::from_fn(|| filler.next_look(2 * BLOCK));
            let looks: Vec<_> = looks.map(|part| part.kind).collect();
            assert!(!filler.looks() && filler.next_part(2 * BLOCK).is_some_and(|part| part.1 == 0));
            looks
        };
        let (two, three) = (2 * BLOCK, 3 * BLOCK);
        let patch = |offset, len| UpdateKind::Patch { offset, len };
        assert_eq!(looks(Some(entry(3, 1, 1)), three), [patch(0, two), patch(two, BLOCK)]);
        assert_eq!(looks(Some(entry(3, 1, 1)), two), [], "one part");
        assert_eq!(looks(Some(entry(3, 0, 0)), three), [], "nothing is there");
        assert_eq!(looks(None, three), []);
    }

    #[test]
    fn a_chunk_goes_in_parts_and_a_hole_at_its_end_costs_nothing() {
        let mut filler = filler();
        assert!(filler.compare(Some(entry(4, 100 * BLOCK, 5 * BLOCK)), Some(entry(3, 1, 1)), 301, 0, None));
        let mut parts = Vec::new();
        while let Some((pending, offset, len)) = filler.next_part(2 * BLOCK) {
            assert_eq!((filler.permit(), pending.version, pending.length), (301, 4, 100 * BLOCK));
            parts.push((pending.kind, offset, len));
        }
        let (two, four) = (2 * BLOCK, 4 * BLOCK);
        assert_eq!(
            parts,
            [
                (UpdateKind::FullReplace { len: two, total: 100 * BLOCK }, 0, two),
                (UpdateKind::Patch { offset: two, len: two }, two, two),
                (UpdateKind::Patch { offset: four, len: BLOCK }, four, BLOCK),
            ]
        );
        let mut empty = self::filler();
        assert!(empty.compare(Some(entry(4, 0, 0)), None, 1, 0, None));
        let kind = empty.next_part(BLOCK).map(|part| part.0.kind);
        assert_eq!(kind, Some(UpdateKind::FullReplace { len: 0, total: 0 }));
        assert_eq!(empty.next_part(BLOCK), None);
    }
}
