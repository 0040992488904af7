//! Checkpoints: the index written to the older of two areas, page by page while updates go on.
//!
//! A page shows its keys as of the record number at its making; replay starts where the journal stood when the
//! walk began and, for each key, skips records older than the key's page. Pages ride in ordinary batches. When
//! the batch with the last page is flushed, so are all records that any page shows; only then is the root
//! written, and only when that is flushed are the journal before it, and the other area, given up.

use super::format::{BLOCK_U64, DiskWrite, Geometry, PAGE_HEADER, PageHead, Root};
use super::index::{Index, Key, Walk};
use super::journal::{BatchId, Journal};
use corefs_wire::limits::BLOCK;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Phase {
    Idle,
    /// Pages are being made.
    Walking(Root),
    /// All pages are made; the last ones ride in a batch, once they are sealed into one.
    Pages(Root, Option<BatchId>),
    /// All pages are flushed; the root rides in a batch, once it is sealed into one.
    Root(Root, Option<BatchId>),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Checkpoint {
    /// The newest complete one.
    current: Root,
    phase: Phase,
    queued: Vec<DiskWrite>,
    completed: u64,
}

impl Checkpoint {
    /// The checkpoint that recovery used; the next goes to the other area and is numbered above all seen.
    pub(super) fn new(used: Root, newest_id: u64) -> Self {
        let current = Root { id: newest_id.max(used.id), ..used };
        Self { current, phase: Phase::Idle, queued: Vec::new(), completed: 0 }
    }

    /// Low bits of the newest complete checkpoint's number, for journal heads.
    pub(super) fn mark(&self) -> u32 {
        self.current.id as u32
    }

    pub(super) fn completed(&self) -> u64 {
        self.completed
    }

    pub(super) fn walking(&self) -> bool {
        matches!(self.phase, Phase::Walking(_))
    }

    pub(super) fn idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// There is something to ride in the next batch.
    pub(super) fn has_writes(&self) -> bool {
        !self.queued.is_empty() || matches!(self.phase, Phase::Pages(_, None) | Phase::Root(_, None))
    }

    /// Makes pages of about `budget` bytes, at least one. True if there are more to make.
    pub(super) fn step(
        &mut self,
        geometry: &Geometry,
        index: &mut Index,
        journal: &Journal,
        budget: usize,
    ) -> bool {
        let mut root = match self.phase {
            Phase::Idle => self.begin(index, journal),
            Phase::Walking(root) => root,
            Phase::Pages(..) | Phase::Root(..) => return false,
        };
        let mut made = 0;
        let mut more = true;
        while more && made < budget.max(1) {
            more = self.page(geometry, index, journal, &mut root, &mut made);
        }
        self.phase = if more { Phase::Walking(root) } else { Phase::Pages(root, None) };
        if !more {
            index.walk = None;
        }
        more
    }

    fn begin(&self, index: &mut Index, journal: &Journal) -> Root {
        index.walk = Some(Walk { cursor: None, emitted: 0, ahead: index.bytes });
        Root {
            area: 1 - self.current.area,
            id: self.current.id + 1,
            replay_from: journal.next_sequence(),
            next_record: journal.next_record(),
            ..Root::default()
        }
    }

    /// Makes the next page; false if it is the last.
    fn page(
        &mut self,
        geometry: &Geometry,
        index: &mut Index,
        journal: &Journal,
        root: &mut Root,
        made: &mut usize,
    ) -> bool {
        let mut payload = Vec::new();
        let limit = geometry.page_bytes as usize - PAGE_HEADER;
        let cursor = index.walk.and_then(|walk| walk.cursor);
        let found = index.encode_page(cursor, limit, &mut payload);
        let more = found.is_some_and(|(last, ..)| index.has_after(last));
        let (last, entries, counted) = found.unwrap_or((Key::MAX, 0, 0));
        let head = PageHead {
            checkpoint: root.id,
            index: root.pages,
            blocks: (PAGE_HEADER + payload.len()).div_ceil(BLOCK) as u32,
            as_of: journal.next_record(),
            payload: payload.len() as u32,
            entries,
            upper: if more { last } else { Key::MAX },
        };
        let offset = geometry.area_offset(root.area) + BLOCK_U64 * u64::from(1 + root.pages_blocks);
        root.pages += 1;
        root.pages_blocks += head.blocks;
        root.entries += u64::from(entries);
        assert!(root.pages_blocks < geometry.checkpoint_blocks, "a checkpoint outgrew its area");
        let bytes = head.encode(geometry, &payload);
        *made += bytes.len();
        self.queued.push(DiskWrite { offset, bytes });
        if let Some(walk) = &mut index.walk {
            walk.cursor = Some(head.upper);
            walk.emitted += counted;
            walk.ahead -= counted;
        }
        more
    }

    /// Lets what is ready ride in the batch `id`.
    pub(super) fn seal(
        &mut self,
        id: BatchId,
        geometry: &Geometry,
        journal: &Journal,
        out: &mut Vec<DiskWrite>,
    ) {
        out.append(&mut self.queued);
        match &mut self.phase {
            Phase::Pages(_, batch @ None) => *batch = Some(id),
            Phase::Root(root, batch @ None) => {
                root.flushed = journal.flushed();
                *batch = Some(id);
                let offset = geometry.area_offset(root.area);
                out.push(DiskWrite { offset, bytes: root.encode(geometry) });
            }
            _ => {}
        }
    }

    /// The batch is flushed. The new replay start if that completes a checkpoint.
    pub(super) fn batch_flushed(&mut self, id: BatchId) -> Option<u64> {
        match self.phase {
            Phase::Pages(root, Some(batch)) if batch == id => {
                self.phase = Phase::Root(root, None);
                None
            }
            Phase::Root(root, Some(batch)) if batch == id => {
                self.phase = Phase::Idle;
                self.current = root;
                self.completed += 1;
                Some(root.replay_from)
            }
            _ => None,
        }
    }
}
