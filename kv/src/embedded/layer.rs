//! The tree as it was last written, and above it what was committed since: what snapshots read.
//!
//! Recent rows are of two ages while the tree is written: those on their way into it, which change no more, and above them those of
//! the commits meanwhile. A layer begins when rows set out, and another one when they have arrived; the rows above are the same in both. Who
//! reads at a version of an older layer goes on with that one.

use super::format::{PAIRS, open, translate};
use super::recent::{Change, Changes, Recent};
use super::snapshots::too_old;
use crate::contract::{Direction, KeyRange, Pair, RangePage, RangeRead};
use crate::store::{Found, ReadBatch, fill_page};
use corefs_wire::Result;
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable};
use std::cmp::Ordering;
use std::iter::Peekable;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// Rows that are taken in while readers wait: some 20 us, and longer now and then, when the table of their hashes grows.
const ROWS_AT_ONCE: usize = 32;

/// The pairs that are in the file.
pub type Tree = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// Recent rows that threads share. Changed by the commit thread alone. No code that may panic runs under the lock with a row half changed.
#[derive(Default)]
pub struct Rows(RwLock<Recent>);

impl Rows {
    pub fn read(&self) -> RwLockReadGuard<'_, Recent> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct Layer {
    tree: Arc<Tree>,
    /// On their way into the tree.
    leaving: Option<Arc<Rows>>,
    recent: Arc<Rows>,
}

/// What a layer reads from while nobody changes it.
struct Reading<'a> {
    tree: &'a Tree,
    leaving: Option<RwLockReadGuard<'a, Recent>>,
    recent: RwLockReadGuard<'a, Recent>,
}

type Guard<'a> = redb::AccessGuard<'a, &'static [u8]>;
type StoredPair<'a> = Result<(Guard<'a>, Guard<'a>), redb::StorageError>;
/// A key, and what it was set to; `None`: removed.
type RecentRow<'a> = (&'a [u8], Option<&'a [u8]>);

/// The tree as it is in the file now.
pub fn tree(database: &Database) -> Result<Tree> {
    database.begin_read().map_err(translate)?.open_table(PAIRS).map_err(translate)
}

impl Layer {
    /// A tree with nothing above it.
    pub fn new(tree: Tree) -> Self {
        Self { tree: Arc::new(tree), leaving: None, recent: Arc::default() }
    }

    /// The recent rows set out for the tree; there must be none on their way. New ones come above them.
    pub fn set_out(&self) -> Self {
        debug_assert!(self.leaving.is_none(), "rows set out one after the other");
        Self { tree: self.tree.clone(), leaving: Some(self.recent.clone()), recent: Arc::default() }
    }

    /// The rows that had set out are in `tree`.
    pub fn arrived(&self, tree: Tree) -> Self {
        Self { tree: Arc::new(tree), leaving: None, recent: self.recent.clone() }
    }

    pub fn recent(&self) -> &Arc<Rows> {
        &self.recent
    }

    /// Takes in what a group did at `version`. Nobody will read at a version before `oldest`.
    pub fn take_in(&self, changes: Changes, version: u64, oldest: u64) {
        let mut changes = changes.into_iter().peekable();
        while changes.peek().is_some() {
            // Nobody reads at this version yet, so it needn't be all at once.
            let mut recent = self.recent.0.write().unwrap_or_else(PoisonError::into_inner);
            for (key, change) in changes.by_ref().take(ROWS_AT_ONCE) {
                recent.put(key, change, version, oldest);
            }
        }
    }

    fn reading(&self) -> Reading<'_> {
        let leaving = self.leaving.as_ref().map(|rows| rows.read());
        Reading { tree: &self.tree, leaving, recent: self.recent.read() }
    }

    pub fn read(&self, version: u64, batch: &ReadBatch<'_>) -> Result<Found> {
        let reading = self.reading();
        // Whoever stood still between being let in and here.
        if version < reading.recent.oldest() {
            return Err(too_old(version));
        }
        Ok(Found {
            values: batch.keys.iter().map(|key| reading.get(key, version)).collect::<Result<_>>()?,
            pages: batch.ranges.iter().map(|read| reading.page(version, read)).collect::<Result<_>>()?,
        })
    }

    /// The newest value of `key`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.reading().get(key, u64::MAX)
    }

    /// Removes every key of a range that isn't empty. The values aren't looked at: damaged ones go, too.
    pub fn clear(&self, range: &KeyRange, changes: &mut Changes) -> Result<()> {
        let reading = self.reading();
        let (tree, leaving) = (reading.tree(range)?, reading.leaving(range, u64::MAX));
        for row in merged(tree, leaving, reading.recent.range(range, u64::MAX), Direction::Forward) {
            let (key, change) = match row? {
                Row::Below(below) => (below.key().to_vec(), Change::Remove),
                Row::Recent { value: None, .. } => continue,
                Row::Recent { key, below: true, .. } => (key.to_vec(), Change::Remove),
                Row::Recent { key, below: false, .. } => (key.to_vec(), Change::Forget),
            };
            changes.insert(key, change);
        }
        Ok(())
    }
}

impl Reading<'_> {
    fn get(&self, key: &[u8], version: u64) -> Result<Option<Vec<u8>>> {
        let leaving = || self.leaving.as_ref()?.get(key, version);
        if let Some(value) = self.recent.get(key, version).or_else(leaving) {
            return Ok(value.map(<[u8]>::to_vec));
        }
        let stored = self.tree.get(key).map_err(translate)?;
        stored.map(|stored| open(key, stored.value()).map(<[u8]>::to_vec)).transpose()
    }

    fn tree(&self, range: &KeyRange) -> Result<redb::Range<'_, &'static [u8], &'static [u8]>> {
        let (begin, end) = (range.begin.as_slice(), range.end.as_slice());
        ReadableTable::range::<&[u8]>(self.tree, begin..end).map_err(translate)
    }

    /// Rows on their way into the tree, as the tree is going to have them.
    fn leaving(&self, range: &KeyRange, version: u64) -> impl DoubleEndedIterator<Item = RecentRow<'_>> {
        self.leaving.iter().flat_map(move |leaving| leaving.range(range, version))
    }

    fn page(&self, version: u64, read: &RangeRead) -> Result<RangePage> {
        if read.range.is_empty() {
            return Ok(RangePage::default());
        }
        let (tree, leaving) = (self.tree(&read.range)?, self.leaving(&read.range, version));
        let recent = self.recent.range(&read.range, version);
        match read.direction {
            Direction::Forward => fill_page(live(merged(tree, leaving, recent, read.direction)), read.limit),
            Direction::Reverse => {
                let rows = merged(tree.rev(), leaving.rev(), recent.rev(), read.direction);
                fill_page(live(rows), read.limit)
            }
        }
    }
}

/// The pairs that there are.
fn live<'a>(rows: impl Iterator<Item = Result<Row<'a>>>) -> impl Iterator<Item = Result<Pair>> {
    rows.filter_map(|row| match row {
        Err(error) => Some(Err(error)),
        Ok(Row::Recent { key, value, .. }) => value.map(|value| Ok((key.to_vec(), value.to_vec()))),
        Ok(Row::Below(below)) => Some(below.pair()),
    })
}

/// A pair that the tree has, or will have once the rows that set out have arrived.
enum Below<'a> {
    Tree(Guard<'a>, Guard<'a>),
    Leaving(&'a [u8], &'a [u8]),
}

impl Below<'_> {
    fn key(&self) -> &[u8] {
        match self {
            Self::Tree(key, _) => key.value(),
            Self::Leaving(key, _) => key,
        }
    }

    fn pair(&self) -> Result<Pair> {
        let value = match self {
            Self::Tree(key, stored) => open(key.value(), stored.value())?,
            Self::Leaving(_, value) => value,
        };
        Ok((self.key().to_vec(), value.to_vec()))
    }
}

enum Row<'a> {
    /// Nothing recent is known of it.
    Below(Below<'a>),
    /// It was written since; whether it is below, too.
    Recent { key: &'a [u8], value: Option<&'a [u8]>, below: bool },
}

/// All rows in the order of their keys; what is further up stands for what is below. All three are in this direction.
fn merged<'a>(
    tree: impl Iterator<Item = StoredPair<'a>>,
    leaving: impl Iterator<Item = RecentRow<'a>>,
    recent: impl Iterator<Item = RecentRow<'a>>,
    direction: Direction,
) -> impl Iterator<Item = Result<Row<'a>>> {
    let tree = tree.map(|pair| pair.map(|(key, stored)| Below::Tree(key, stored)).map_err(translate));
    let below = Merged::of(tree, leaving, direction).filter_map(|row| match row {
        Err(error) => Some(Err(error)),
        Ok(Row::Below(below)) => Some(Ok(below)),
        Ok(Row::Recent { key, value, .. }) => value.map(|value| Ok(Below::Leaving(key, value))),
    });
    Merged::of(below, recent, direction)
}

/// Two sources as one.
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
    B: Iterator<Item = Result<Below<'a>>>,
    R: Iterator<Item = RecentRow<'a>>,
{
    type Item = Result<Row<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let first = match (self.below.peek(), self.recent.peek()) {
            // An error of the tree comes out at once.
            (Some(Err(_)), _) | (_, None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(Ok(below)), Some((recent, _))) => match self.direction {
                Direction::Forward => below.key().cmp(recent),
                Direction::Reverse => (*recent).cmp(below.key()),
            },
        };
        if first == Ordering::Less {
            return self.below.next().map(|below| below.map(Row::Below));
        }
        let below = first == Ordering::Equal;
        if below {
            self.below.next();
        }
        self.recent.next().map(|(key, value)| Ok(Row::Recent { key, value, below }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::{About, begin_life, merge};
    use super::*;
    use redb::backends::InMemoryBackend;

    fn changes(of: &[(&str, Option<u8>)]) -> Changes {
        let change = |value: &Option<u8>| value.map_or(Change::Remove, |value| Change::Set(vec![value]));
        of.iter().map(|(key, value)| (key.as_bytes().to_vec(), change(value))).collect()
    }

    /// What a reader at `version` finds, in both directions and key by key: a letter and a digit a pair.
    fn read(layer: &Layer, version: u64) -> String {
        let range = |direction| RangeRead { range: KeyRange::all(), limit: usize::MAX, direction };
        let ranges = vec![range(Direction::Forward), range(Direction::Reverse)];
        let keys: Vec<&[u8]> = vec![b"a", b"b", b"c", b"d"];
        let Found { values, mut pages } =
            layer.read(version, &ReadBatch { keys: keys.clone(), ranges }).unwrap();
        pages[1].pairs.reverse();
        let single = keys.iter().zip(values).filter_map(|(key, value)| Some((key.to_vec(), value?)));
        assert_eq!(pages[0].pairs, single.collect::<Vec<_>>());
        assert_eq!(pages[0].pairs, pages[1].pairs);
        let pair = |(key, value): &Pair| format!("{}{}", key[0] as char, value[0]);
        pages[0].pairs.iter().map(pair).collect()
    }

    #[test]
    fn each_version_is_read_from_the_layer_of_its_time_and_from_later_ones() {
        let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        let about = About::read(&database).unwrap();
        let waiting = about.waiting(&InMemoryBackend::new()).unwrap();
        let (begun, life) = begin_life(&database, about, &waiting).unwrap();
        let at = |version: u64| begun + version;
        let go_into_the_tree = |version: u64, rows: &Rows, changes: &Changes| {
            assert!(merge(&database, at(version), life, &rows.read(), changes).is_ok());
            tree(&database).unwrap()
        };
        let stored = changes(&[("a", Some(1)), ("b", Some(1)), ("c", Some(1))]);
        let first = Layer::new(go_into_the_tree(1, &Rows::default(), &stored));
        first.take_in(changes(&[("b", None), ("d", Some(2))]), at(2), at(1));

        let second = first.set_out();
        second.take_in(changes(&[("b", Some(3))]), at(3), at(1));
        let mut cleared = Changes::new();
        second.clear(&KeyRange::all(), &mut cleared).unwrap();
        let mut expected = changes(&[("a", None), ("c", None), ("d", None)]);
        expected.insert(b"b".to_vec(), Change::Forget);
        assert_eq!(cleared, expected, "b won't be in the tree: it was removed by what set out");
        second.take_in(cleared, at(4), at(1));

        let look = |layers: &[(&Layer, u64, &str)]| {
            for (number, (layer, version, expected)) in layers.iter().enumerate() {
                assert_eq!(read(layer, at(*version)), *expected, "{number}");
            }
        };
        let early = [(&first, 1, "a1b1c1"), (&first, 2, "a1c1d2"), (&second, 2, "a1c1d2")];
        let late = [(&second, 3, "a1b3c1d2"), (&second, 4, "")];
        look(&early);
        look(&late);
        let third = second.arrived(go_into_the_tree(2, first.recent(), &Changes::new()));
        look(&early);
        look(&late);
        look(&[(&third, 2, "a1c1d2"), (&third, 3, "a1b3c1d2"), (&third, 4, "")]);
        // Those that set out next are the ones above.
        let fourth = third.set_out();
        fourth.take_in(changes(&[("b", Some(5))]), at(5), at(4));
        look(&[(&fourth, 4, ""), (&fourth, 5, "b5")]);
        let fifth = fourth.arrived(go_into_the_tree(4, third.recent(), &Changes::new()));
        look(&[
            (&fourth, 4, ""),
            (&fourth, 5, "b5"),
            (&fifth, 4, ""),
            (&fifth, 5, "b5"),
            (&third, 3, "a1b3c1d2"),
        ]);
        assert_eq!(read(&Layer::new(tree(&database).unwrap()), at(4)), "");
    }
}
