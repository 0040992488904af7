//! Writing the tree: durable redb transactions that take in what the log held until then.

use super::format::{
    ABOUT, FORMAT, FORMAT_OLDEST, FORMAT_ROW, LIFE_ROW, PAIRS, REOPEN_STEP, VERSION_ROW, seal, translate,
};
use super::log::Waiting;
use super::recent::{Change, Changes, Recent};
use corefs_wire::{Error, ErrorCode, Result};
use redb::{Database, ReadableDatabase, StorageBackend, Table, WriteTransaction};
use std::hash::{BuildHasher, RandomState};

/// What the tree says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct About {
    /// `None` in a new file.
    pub format: Option<u64>,
    pub version: u64,
    /// Whose records the log has. 0: none are needed.
    pub life: u64,
}

impl About {
    /// Of a file that may be new. `BadFormat` when another version of corefs wrote it.
    pub fn read(database: &Database) -> Result<Self> {
        let read = database.begin_read().map_err(translate)?;
        let about = match read.open_table(ABOUT) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Self::default()),
            about => about.map_err(translate)?,
        };
        let row = |name: &str| Ok::<_, Error>(about.get(name).map_err(translate)?.map(|row| row.value()));
        let format = row(FORMAT_ROW)?;
        if let Some(format) = format.filter(|format| !(FORMAT_OLDEST..=FORMAT).contains(format)) {
            let what = "the store was written by another version of corefs";
            return Err(Error::mismatch(ErrorCode::BadFormat, FORMAT, format, what));
        }
        Ok(Self { format, version: row(VERSION_ROW)?.unwrap_or(0), life: row(LIFE_ROW)?.unwrap_or(0) })
    }

    /// What `log` holds that the tree doesn't have yet.
    pub fn waiting(&self, log: &dyn StorageBackend) -> Result<Waiting> {
        Waiting::read(log, self.life, self.version)
    }
}

/// Checks or creates the tables, takes in what waits in the log, and begins a life: its first version and its number, durable before anybody
/// reads or writes. The log may be written from its beginning then.
pub fn begin_life(database: &Database, about: About, waiting: &Waiting) -> Result<(u64, u64)> {
    // A number that nobody can guess who may put bytes into the log.
    let life = RandomState::new().hash_one(about.version).max(1);
    let version = waiting.newest().unwrap_or(about.version) + REOPEN_STEP;
    write(database, version, life, |pairs| take_in(pairs, waiting))?;
    Ok((version, life))
}

/// Takes in what waits in the log, for whoever looks at a store that nobody has open. The newest version.
pub fn catch_up(database: &Database, about: About, waiting: &Waiting) -> Result<u64> {
    let Some(newest) = waiting.newest() else { return Ok(about.version) };
    write(database, newest, about.life, |pairs| take_in(pairs, waiting))?;
    Ok(newest)
}

/// Writes everything `recent` and then `changes` to the tree as `version`, durably. The log is needed no more then: not at all until the
/// next life when `life` is 0.
pub fn merge(
    database: &Database,
    version: u64,
    life: u64,
    recent: &Recent,
    changes: &Changes,
) -> Result<(), Failed> {
    let prepared = prepare(database, version, life, |pairs| {
        let mut changes = changes.iter().peekable();
        let mut writing = Writing { pairs, stored: Vec::new() };
        for (key, value) in recent.newest() {
            // In the order of their keys, each once: that touches each page once.
            while let Some((changed, change)) = changes.next_if(|(changed, _)| changed.as_slice() < key) {
                writing.change(changed, change)?;
            }
            match changes.next_if(|(changed, _)| changed.as_slice() == key) {
                Some((changed, change)) => writing.change(changed, change)?,
                None => writing.put(key, value)?,
            }
        }
        changes.try_for_each(|(changed, change)| writing.change(changed, change))
    });
    let transaction = prepared.map_err(Failed::Before)?;
    transaction.commit().map_err(|error| Failed::Unknown(translate(error)))
}

/// How a merge failed.
pub enum Failed {
    /// Nothing of it happened.
    Before(Error),
    /// It happened or not.
    Unknown(Error),
}

impl Failed {
    /// As seen by what was to come after it, of which nothing happened.
    pub fn before(self) -> Self {
        let (Self::Before(error) | Self::Unknown(error)) = self;
        Self::Before(error)
    }
}

type Pairs<'a> = Table<'a, &'static [u8], &'static [u8]>;

fn write(
    database: &Database,
    version: u64,
    life: u64,
    work: impl FnOnce(&mut Pairs<'_>) -> Result<()>,
) -> Result<()> {
    prepare(database, version, life, work)?.commit().map_err(translate)
}

/// A transaction that is ready to commit.
fn prepare(
    database: &Database,
    version: u64,
    life: u64,
    work: impl FnOnce(&mut Pairs<'_>) -> Result<()>,
) -> Result<WriteTransaction> {
    let transaction = database.begin_write().map_err(translate)?;
    {
        work(&mut transaction.open_table(PAIRS).map_err(translate)?)?;
        let mut about = transaction.open_table(ABOUT).map_err(translate)?;
        for (row, value) in [(FORMAT_ROW, FORMAT), (VERSION_ROW, version), (LIFE_ROW, life)] {
            about.insert(row, value).map_err(translate)?;
        }
    }
    Ok(transaction)
}

fn take_in(pairs: &mut Pairs<'_>, waiting: &Waiting) -> Result<()> {
    let mut writing = Writing { pairs, stored: Vec::new() };
    for row in waiting.rows() {
        let (key, value) = row?;
        writing.put(key, value)?;
    }
    Ok(())
}

struct Writing<'a, 'b> {
    pairs: &'a mut Pairs<'b>,
    /// The stored form of a value, kept for its room.
    stored: Vec<u8>,
}

impl Writing<'_, '_> {
    fn put(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        match value {
            Some(value) => {
                seal(key, value, &mut self.stored);
                self.pairs.insert(key, self.stored.as_slice()).map(drop).map_err(translate)
            }
            None => self.pairs.remove(key).map(drop).map_err(translate),
        }
    }

    fn change(&mut self, key: &[u8], change: &Change) -> Result<()> {
        match change {
            Change::Set(value) => self.put(key, Some(value)),
            Change::Remove => self.put(key, None),
            Change::Forget => Ok(()),
        }
    }
}
