//! The tree as it was last written, and above it what was committed since: what snapshots read.
//!
//! When the recent rows are written to the tree a new layer begins. Who reads at a version of the old one goes on with it.

use super::format::{ABOUT, PAIRS, VERSION_ROW, open, translate};
use super::recent::{Change, Changes, Recent};
use super::snapshots::too_old;
use crate::contract::{Direction, KeyRange, Pair, RangePage, RangeRead};
use crate::store::{Found, ReadBatch, fill_page};
use corefs_wire::{Error, ErrorCode, Result};
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable};
use std::cmp::Ordering;
use std::iter::Peekable;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Rows that are taken in while readers wait: some 20 us.
const ROWS_AT_ONCE: usize = 32;

pub struct Layer {
    tree: ReadOnlyTable<&'static [u8], &'static [u8]>,
    /// Changed by the commit thread alone. No code that may panic runs under the lock with a row half changed.
    recent: RwLock<Recent>,
}

type Guard<'a> = redb::AccessGuard<'a, &'static [u8]>;
type StoredPair<'a> = Result<(Guard<'a>, Guard<'a>), redb::StorageError>;

impl Layer {
    /// The tree as it is now with nothing above it, and its version.
    pub fn open(database: &Database) -> Result<(Self, u64)> {
        let read = database.begin_read().map_err(translate)?;
        let about = read.open_table(ABOUT).map_err(translate)?;
        let version = about.get(VERSION_ROW).map_err(translate)?.map(|row| row.value());
        let version =
            version.ok_or_else(|| Error::new(ErrorCode::Corrupt, "the store has lost its version"))?;
        let tree = read.open_table(PAIRS).map_err(translate)?;
        Ok((Self { tree, recent: RwLock::default() }, version))
    }

    pub fn recent(&self) -> RwLockReadGuard<'_, Recent> {
        self.recent.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what a group did at `version`. Nobody will read at a version before `oldest`.
    pub fn take_in(&self, changes: Changes, version: u64, oldest: u64) {
        let mut changes = changes.into_iter().peekable();
        while changes.peek().is_some() {
            // Nobody reads at this version yet, so it needn't be all at once.
            let mut recent = self.recent.write().unwrap_or_else(PoisonError::into_inner);
            for (key, change) in changes.by_ref().take(ROWS_AT_ONCE) {
                recent.put(key, change, version, oldest);
            }
        }
    }

    pub fn read(&self, version: u64, batch: &ReadBatch<'_>) -> Result<Found> {
        let recent = self.recent();
        // Whoever stood still between being let in and here.
        if version < recent.oldest() {
            return Err(too_old(version));
        }
        let get = |key: &&[u8]| match recent.get(key, version) {
            Some(value) => Ok(value.map(<[u8]>::to_vec)),
            None => self.get_below(key),
        };
        Ok(Found {
            values: batch.keys.iter().map(get).collect::<Result<_>>()?,
            pages: batch
                .ranges
                .iter()
                .map(|read| self.page(&recent, version, read))
                .collect::<Result<_>>()?,
        })
    }

    /// The newest value of `key`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.recent().get(key, u64::MAX) {
            Some(value) => Ok(value.map(<[u8]>::to_vec)),
            None => self.get_below(key),
        }
    }

    fn get_below(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let stored = self.tree.get(key).map_err(translate)?;
        stored.map(|stored| open(key, stored.value()).map(<[u8]>::to_vec)).transpose()
    }

    /// Removes every key of a range that isn't empty. The values aren't looked at: damaged ones go, too.
    pub fn clear(&self, range: &KeyRange, changes: &mut Changes) -> Result<()> {
        let recent = self.recent();
        let below = self.pairs_below(range)?;
        for row in Merged::of(below, recent.range(range, u64::MAX), Direction::Forward) {
            let (key, change) = match row? {
                Row::Below(key, _) => (key.value().to_vec(), Change::Remove),
                Row::Recent { value: None, .. } => continue,
                Row::Recent { key, below: true, .. } => (key.to_vec(), Change::Remove),
                Row::Recent { key, below: false, .. } => (key.to_vec(), Change::Forget),
            };
            changes.insert(key, change);
        }
        Ok(())
    }

    fn pairs_below(&self, range: &KeyRange) -> Result<redb::Range<'_, &'static [u8], &'static [u8]>> {
        let (begin, end) = (range.begin.as_slice(), range.end.as_slice());
        ReadableTable::range::<&[u8]>(&self.tree, begin..end).map_err(translate)
    }

    fn page(&self, recent: &Recent, version: u64, read: &RangeRead) -> Result<RangePage> {
        if read.range.is_empty() {
            return Ok(RangePage::default());
        }
        let (below, recent) = (self.pairs_below(&read.range)?, recent.range(&read.range, version));
        match read.direction {
            Direction::Forward => fill_page(live(Merged::of(below, recent, read.direction)), read.limit),
            Direction::Reverse => {
                fill_page(live(Merged::of(below.rev(), recent.rev(), read.direction)), read.limit)
            }
        }
    }
}

/// The pairs that there are.
fn live<'a>(rows: impl Iterator<Item = Result<Row<'a>>>) -> impl Iterator<Item = Result<Pair>> {
    rows.filter_map(|row| match row {
        Err(error) => Some(Err(error)),
        Ok(Row::Recent { key, value, .. }) => value.map(|value| Ok((key.to_vec(), value.to_vec()))),
        Ok(Row::Below(key, stored)) => {
            let value = open(key.value(), stored.value()).map(<[u8]>::to_vec);
            Some(value.map(|value| (key.value().to_vec(), value)))
        }
    })
}

enum Row<'a> {
    /// Only the tree has it.
    Below(Guard<'a>, Guard<'a>),
    /// It was written since; whether the tree has it, too.
    Recent { key: &'a [u8], value: Option<&'a [u8]>, below: bool },
}

/// Rows of the tree and recent ones in the order of their keys; a recent one stands for that of the tree.
struct Merged<B: Iterator, R: Iterator> {
    below: Peekable<B>,
    recent: Peekable<R>,
    direction: Direction,
}

impl<B: Iterator, R: Iterator> Merged<B, R> {
    fn of(below: B, recent: R, direction: Direction) -> Self {
        Self { below: below.peekable(), recent: recent.peekable(), direction }
    }
}

impl<'a, B, R> Iterator for Merged<B, R>
where
    B: Iterator<Item = StoredPair<'a>>,
    R: Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
{
    type Item = Result<Row<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let first = match (self.below.peek(), self.recent.peek()) {
            // An error of the tree comes out at once.
            (Some(Err(_)), _) | (_, None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(Ok((key, _))), Some((recent, _))) => match self.direction {
                Direction::Forward => key.value().cmp(recent),
                Direction::Reverse => (*recent).cmp(key.value()),
            },
        };
        if first == Ordering::Less {
            let row = self.below.next()?;
            return Some(row.map(|(key, stored)| Row::Below(key, stored)).map_err(translate));
        }
        let below = first == Ordering::Equal;
        if below {
            self.below.next();
        }
        self.recent.next().map(|(key, value)| Ok(Row::Recent { key, value, below }))
    }
}
