//! The garbage queue: inodes that lost their last name, until their chunks are gone.
//!
//! | step | the row says | the inode | |
//! |---|---|---|---|
//! | the last name goes | `Waiting` | there, without names | by unlink or rename, in their transaction |
//! | no session holds it | `Doomed`, with its layout and length | gone | one transaction for many inodes |
//! | its chunks are removed | gone | gone | one transaction for many inodes |
//!
//! An inode that nobody ever opened for writing has no chunks, and goes straight from `Waiting` to the end: asking every chain of its
//! stripe costs far more than all the rest.
//!
//! Dooming reads the sessions serializably and an open reads the inode serializably: an inode is either opened or
//! doomed. Everything may be done twice and by several servers, so a crash needs no repair.

mod grace;

use crate::at_once::all_of;
use crate::encoding::{Reader, Writer};
use crate::inode::{Inode, read_layout};
use crate::key::{Key, table};
use crate::namespace::{Namespace, Values};
use crate::outside::Outside;
use corefs_kv::{Direction, Isolation, KeyRange, KvEngine, RangePage, RangeRead, Transaction, retry};
use corefs_wire::layout::Layout;
use corefs_wire::{Error, InodeId, Result};
use grace::Grace;
use std::time::Duration;

/// A row of the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Garbage {
    /// Nobody names the inode any more, but somebody may have it open.
    Waiting,
    /// The inode is gone; its chunks are still to be removed.
    Doomed { layout: Layout, length: u64 },
}

const VERSION: u8 = 1;
const WAITING: u8 = 0;
const DOOMED: u8 = 1;

impl Garbage {
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(VERSION);
        match self {
            Self::Waiting => writer.byte(WAITING),
            Self::Doomed { layout, length } => {
                writer.byte(DOOMED).byte(layout.chunk_size.trailing_zeros() as u8);
                writer.varint(layout.stripe.into()).varint(layout.table_id.into());
                writer.varint(layout.table_version.into()).fixed(layout.seed).varint(*length)
            }
        };
        writer.finish()
    }

    pub fn decode(value: &[u8]) -> Result<Self> {
        let (mut reader, _) = Reader::new("garbage row", value, VERSION)?;
        let row = match reader.byte()? {
            WAITING => Self::Waiting,
            DOOMED => Self::Doomed { layout: read_layout(&mut reader)?, length: reader.varint()? },
            _ => return Err(reader.corrupt()),
        };
        reader.end()?;
        Ok(row)
    }
}

/// Bounds of one round of collection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GcLimits {
    /// Rows of the queue looked at.
    pub rows: usize,
    /// Inodes whose chunks are removed at once.
    pub concurrency: usize,
    /// How long an inode stays at least after it was seen in the queue: whoever opened it as its name was taken, and has not yet heard that
    /// the name is gone, can still ask to hold it.
    pub grace: Duration,
    /// How long chunks of one inode are removed. A large file takes several rounds, so that it doesn't keep small ones waiting.
    pub slice: Duration,
}

impl Default for GcLimits {
    /// Enough to keep up with a server's unlinks, few enough that removals don't crowd out reads and writes.
    fn default() -> Self {
        Self { rows: 256, concurrency: 16, grace: Duration::ZERO, slice: Duration::from_secs(1) }
    }
}

/// What a round did.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Collected {
    /// Rows looked at.
    pub seen: usize,
    /// Inodes that somebody still has open, or may be about to hold.
    pub held: usize,
    /// Inodes removed with all their chunks.
    pub removed: usize,
    /// Inodes of which chunks are left: a later round goes on.
    pub unfinished: usize,
    /// Removals that failed, and why the last one did. They are tried again in a later round.
    pub failed: usize,
    pub error: Option<String>,
    /// Whether the queue goes on behind what was looked at.
    pub more: bool,
}

impl Collected {
    fn fail(&mut self, error: &Error) {
        self.failed += 1;
        self.error = Some(error.to_string());
    }
}

/// Where the next round goes on, so that inodes that are held or fail don't keep others waiting; and since when inodes have been seen.
#[derive(Clone, Default, Debug)]
pub struct GcCursor {
    after: Option<Vec<u8>>,
    grace: Grace,
}

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// One round over the queue from where `cursor` says; at its end the next one starts over.
    pub async fn collect_garbage(&self, cursor: &mut GcCursor, limits: GcLimits) -> Result<Collected> {
        let whole = self.keys.table(table::GARBAGE);
        let rest = match &cursor.after {
            Some(key) => whole.after(key, Direction::Forward),
            None => whole,
        };
        let page = self.garbage_page(&rest, limits.rows.max(1)).await?;
        let mut collected = Collected { seen: page.pairs.len(), more: page.more, ..Collected::default() };
        let now = self.outside.now();
        let (mut waiting, mut doomed) = (Vec::new(), Vec::new());
        for (key, value) in &page.pairs {
            match (self.keys.parse(key), Garbage::decode(value)) {
                (Ok(Key::Garbage(id)), Ok(Garbage::Waiting)) => {
                    if cursor.grace.is_over(id, now, limits.grace) {
                        waiting.push(id);
                    } else {
                        collected.held += 1;
                    }
                }
                (Ok(Key::Garbage(id)), Ok(Garbage::Doomed { layout, .. })) => doomed.push((id, layout)),
                // One damaged row, which the check names, doesn't keep the others waiting.
                (Err(error), _) | (_, Err(error)) => collected.fail(&error),
                (Ok(_), Ok(_)) => {}
            }
        }
        for batch in waiting.chunks(DOOM_BATCH) {
            let fate = self.doom(batch).await?;
            doomed.extend(fate.doomed);
            collected.held += fate.held;
            collected.removed += fate.removed;
        }
        self.remove(doomed, limits, &mut collected).await?;
        if !page.more {
            cursor.grace.passed();
        }
        cursor.after = page.pairs.last().filter(|_| page.more).map(|(key, _)| key.clone());
        Ok(collected)
    }

    async fn garbage_page(&self, range: &KeyRange, limit: usize) -> Result<RangePage> {
        self.reading(async |txn: &mut E::Txn| {
            txn.range(range, limit, Direction::Forward, Isolation::Snapshot).await
        })
        .await
    }

    /// Takes away the inodes that no session holds.
    async fn doom(&self, waiting: &[InodeId]) -> Result<Fate> {
        retry::run_repeatable(&self.kv, async |txn: &mut E::Txn| {
            let mut keys = Vec::with_capacity(2 * waiting.len());
            for id in waiting {
                keys.extend([self.keys.inode(*id), self.keys.garbage(*id)]);
            }
            let mut values = Values::new(txn.get_many(&keys, Isolation::Serializable).await?);
            // All at once: one after the other they would take longer than a transaction may on a store that is far away or busy.
            let first = |id: &InodeId| RangeRead {
                range: self.keys.sessions(*id),
                limit: 1,
                direction: Direction::Forward,
            };
            let sessions: Vec<RangeRead> = waiting.iter().map(first).collect();
            let sessions = txn.range_many(&sessions, Isolation::Serializable).await?;
            let mut fate = Fate::default();
            for (id, sessions) in waiting.iter().zip(sessions) {
                let (inode, row) = (values.inode()?, values.raw());
                let row = row.as_deref().map(Garbage::decode).transpose()?;
                match (inode, row) {
                    (Some(inode), Some(Garbage::Waiting)) => {
                        // A removal could come before the chunk that bytes are on their way to: it waits until they have moved out.
                        if !sessions.pairs.is_empty() || inode.moves_out() {
                            fate.held += 1;
                        } else if inode.has_no_chunks() {
                            self.take_away(txn, *id, &inode);
                            txn.clear(&self.keys.garbage(*id));
                            fate.removed += 1;
                        } else {
                            fate.doomed.push(self.doom_one(txn, *id, &inode)?);
                        }
                    }
                    // This very transaction, its commit's outcome unknown, or another server.
                    (None, Some(Garbage::Doomed { layout, .. })) => {
                        fate.doomed.push((*id, layout));
                    }
                    (None, Some(Garbage::Waiting)) => txn.clear(&self.keys.garbage(*id)),
                    (_, None | Some(Garbage::Doomed { .. })) => {}
                }
            }
            Ok(fate)
        })
        .await
    }

    fn doom_one(&self, txn: &mut E::Txn, id: InodeId, inode: &Inode) -> Result<(InodeId, Layout)> {
        let layout = *inode.file_layout()?;
        let length = inode.size;
        self.take_away(txn, id, inode);
        txn.set(&self.keys.garbage(id), &Garbage::Doomed { layout, length }.encode());
        Ok((id, layout))
    }

    fn take_away(&self, txn: &mut E::Txn, id: InodeId, inode: &Inode) {
        self.clear_inode(txn, id, inode);
        txn.clear(&self.keys.trimming(id));
    }

    /// Removes the chunks of doomed inodes, some at once, then their rows.
    async fn remove(
        &self,
        doomed: Vec<(InodeId, Layout)>,
        limits: GcLimits,
        collected: &mut Collected,
    ) -> Result<()> {
        for batch in doomed.chunks(DOOM_BATCH) {
            let removals = batch.iter().map(|(id, layout)| async move {
                let outcome = self.outside.remove_chunks(*id, layout, limits.slice).await;
                outcome.map(|all| all.then_some(*id)).map_err(|error| error.of(id))
            });
            let mut removed = Vec::new();
            for outcome in all_of(removals, limits.concurrency.max(1)).await {
                match outcome {
                    Ok(Some(id)) => removed.push(id),
                    Ok(None) => collected.unfinished += 1,
                    Err(error) => collected.fail(&error),
                }
            }
            collected.removed += removed.len();
            retry::run_repeatable(&self.kv, async |txn: &mut E::Txn| {
                removed.iter().for_each(|id| txn.clear(&self.keys.garbage(*id)));
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}

/// What became of inodes without names.
#[derive(Default)]
struct Fate {
    /// Their chunks are to be removed.
    doomed: Vec<(InodeId, Layout)>,
    /// Somebody has them open.
    held: usize,
    /// Gone altogether.
    removed: usize,
}

/// Inodes in one transaction of the queue's: bounds its size and how much a conflict costs.
const DOOM_BATCH: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_golden() {
        let layout = Layout { chunk_size: 65536, stripe: 4, table_id: 1, table_version: 2, seed: 5 };
        let doomed = Garbage::Doomed { layout, length: 300 };
        assert_eq!(doomed.encode(), [1, 1, 16, 4, 1, 2, 5, 0, 0, 0, 0, 0, 0, 0, 0xAC, 2]);
        assert_eq!(Garbage::Waiting.encode(), [1, 0]);
        for row in [doomed, Garbage::Waiting] {
            assert_eq!(Garbage::decode(&row.encode()), Ok(row));
        }
        assert!(Garbage::decode(&[1, 2]).is_err());
    }
}
