//! What dead clients leave behind: their locks are dropped, their sessions settled, their remembered replies forgotten.
//!
//! A client is dead when its lease has ended; ids of clients are never used again. The length of a file that a dead
//! client had open for writing becomes what the chains hold, if that is more: no acknowledged byte is lost. A client that was cut off
//! while it appended may still be sending: its place stays, and reads as zeros if nothing comes.
//!
//! A client that was cut off may also send requests again to which it missed the answers. Once its replies are forgotten nobody could
//! tell them from new ones, so a [mark](Mark::Ended) takes their place, for longer than any request is under way.

use crate::at_once::all_of;
use crate::inode::Inode;
use crate::key::{Key, table};
use crate::lock::Locks;
use crate::mark::Mark;
use crate::namespace::{Namespace, Values};
use crate::outside::Outside;
use crate::session::Session;
use corefs_kv::{Direction, Isolation, KeyRange, KvEngine, RangePage, RangeRead, Transaction, retry};
use corefs_wire::{ClientId, Error, InodeId, Result};
use std::collections::BTreeSet;

/// Pairs of a page of what is scanned.
const PAGE: usize = 1024;
/// Clients asked about in one call.
const CLIENTS_AT_ONCE: usize = 1024;
/// Sessions settled at once: each asks every chain of its file.
const SETTLED_AT_ONCE: usize = 16;

/// How long (ns) it is remembered that a client's lease ended: a request is tried for seconds, and may wait in a network for minutes.
const ENDED_KEPT: i64 = 3600 * 1_000_000_000;

/// What a sweep did.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Swept {
    pub dead_clients: usize,
    pub sessions_settled: usize,
    /// Files on which dead clients held locks.
    pub files_unlocked: usize,
    /// Sessions that couldn't be settled now, rows that can't be read, and what the last such failure was. A later sweep tries again.
    pub failed: usize,
    pub error: Option<String>,
}

impl Swept {
    fn fail(&mut self, error: &Error) {
        self.failed += 1;
        self.error = Some(error.to_string());
    }
}

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// One sweep over all clients that left anything.
    pub async fn settle_dead_clients(&self) -> Result<Swept> {
        let mut swept = Swept::default();
        self.forget_marks().await?;
        let dead = self.dead_clients().await?;
        if dead.is_empty() {
            return Ok(swept);
        }
        swept.dead_clients = dead.len();
        // First what needs nobody but the store: others wait for the locks.
        self.release_locks(&dead, &mut swept).await?;
        let sessions = self.sessions_of(&dead, &mut swept).await?;
        let settling = sessions.into_iter().map(|(inode, number)| async move {
            self.settle(inode, number).await.map_err(|error| error.of(inode))
        });
        for outcome in all_of(settling, SETTLED_AT_ONCE).await {
            match outcome {
                Ok(()) => swept.sessions_settled += 1,
                Err(error) => swept.fail(&error),
            }
        }
        self.forget_clients(&dead).await?;
        Ok(swept)
    }

    async fn page(&self, range: &KeyRange, limit: usize, direction: Direction) -> Result<RangePage> {
        self.reading(async |txn: &mut E::Txn| txn.range(range, limit, direction, Isolation::Snapshot).await)
            .await
    }

    /// Clients that left anything and whose lease has ended. Rows of older incarnations of live ones are dropped.
    async fn dead_clients(&self) -> Result<BTreeSet<ClientId>> {
        let mut clients = BTreeSet::new();
        let look = |key: &[u8], _: &[u8]| {
            if let Ok(Key::Client(client)) = self.keys.parse(key) {
                clients.insert(client);
            }
            Ok(())
        };
        self.each_pair(table::CLIENT, look).await?;
        clients.extend(self.clients_with_replies().await?);
        let clients: Vec<ClientId> = clients.into_iter().collect();
        let mut dead = BTreeSet::new();
        for batch in clients.chunks(CLIENTS_AT_ONCE) {
            let alive = self.outside.alive(batch).await?;
            dead.extend(batch.iter().zip(alive).filter(|(_, alive)| !alive).map(|(client, _)| *client));
        }
        Ok(dead)
    }

    /// Hops from client to client through the remembered replies, without reading all of them.
    async fn clients_with_replies(&self) -> Result<Vec<ClientId>> {
        let mut clients = Vec::new();
        let mut rest = self.keys.table(table::REPLY);
        while let Some((key, _)) = self.page(&rest, 1, Direction::Forward).await?.pairs.first() {
            let Key::Reply(client, oldest, _) = self.keys.parse(key)? else { break };
            clients.push(client);
            let all = self.keys.replies(client, None);
            self.forget_older_incarnations(client, oldest, &all).await?;
            rest.begin = all.end;
        }
        Ok(clients)
    }

    /// A new incarnation of a client means that the old one died: nobody sends its requests again.
    async fn forget_older_incarnations(
        &self,
        client: ClientId,
        oldest: u32,
        replies: &KeyRange,
    ) -> Result<()> {
        let newest = match self.page(replies, 1, Direction::Reverse).await?.pairs.first() {
            Some((key, _)) => self.keys.parse(key)?,
            None => return Ok(()),
        };
        let Key::Reply(_, newest, _) = newest else { return Ok(()) };
        if newest == oldest {
            return Ok(());
        }
        retry::run_repeatable(&self.kv, async |txn: &mut E::Txn| {
            txn.clear_range(&self.keys.replies(client, Some(newest)));
            txn.clear_range(&self.keys.low_waters(client, Some(newest)));
            Ok(())
        })
        .await
    }

    /// All sessions of these clients. One damaged row, which the check names, doesn't keep the others waiting.
    async fn sessions_of(
        &self,
        clients: &BTreeSet<ClientId>,
        swept: &mut Swept,
    ) -> Result<Vec<(InodeId, u64)>> {
        let mut sessions = Vec::new();
        let look = |key: &[u8], value: &[u8]| {
            match (self.keys.parse(key), Session::decode(value)) {
                (Ok(Key::Session(inode, number)), Ok(session)) if clients.contains(&session.client) => {
                    sessions.push((inode, number));
                }
                (Err(error), _) | (_, Err(error)) => swept.fail(&error.of(format_args!("key {key:02x?}"))),
                (Ok(_), Ok(_)) => {}
            }
            Ok(())
        };
        self.each_pair(table::SESSION, look).await?;
        Ok(sessions)
    }

    /// Drops the locks of these clients.
    async fn release_locks(&self, clients: &BTreeSet<ClientId>, swept: &mut Swept) -> Result<()> {
        let mut rest = self.keys.table(table::LOCKS);
        loop {
            let page = self.page(&rest, PAGE, Direction::Forward).await?;
            for (key, value) in &page.pairs {
                match Locks::decode(value) {
                    Ok(locks) if locks.clients().any(|client| clients.contains(&client)) => {
                        self.release_locks_of(key, clients).await?;
                        swept.files_unlocked += 1;
                    }
                    Ok(_) => {}
                    Err(error) => swept.fail(&error.of(format_args!("key {key:02x?}"))),
                }
            }
            match page.pairs.last() {
                Some((last, _)) if page.more => rest = rest.after(last, Direction::Forward),
                _ => return Ok(()),
            }
        }
    }

    async fn release_locks_of(&self, row: &[u8], clients: &BTreeSet<ClientId>) -> Result<()> {
        retry::run_repeatable(&self.kv, async |txn: &mut E::Txn| {
            let value = txn.get(row, Isolation::Serializable).await?;
            let mut locks = value.as_deref().map(Locks::decode).transpose()?.unwrap_or_default();
            if locks.drop_clients(|client| clients.contains(&client)) {
                match locks.is_empty() {
                    true => txn.clear(row),
                    false => txn.set(row, &locks.encode()),
                }
            }
            Ok(())
        })
        .await
    }

    /// Ends a session whose client can't: its file becomes as long as what the chains hold.
    async fn settle(&self, id: InodeId, number: u64) -> Result<()> {
        loop {
            self.finish_trim(id).await?;
            let held = match self.writes_named(id, number).await? {
                true => self.ask_length(id).await?,
                false => None,
            };
            let keys = [self.keys.inode(id), self.keys.session(id, number)];
            let settled = retry::run_repeatable(&self.kv, async |txn: &mut E::Txn| {
                let mut values = Values::new(txn.get_many(&keys, Isolation::Serializable).await?);
                let (inode, session) = (values.inode()?, values.session()?);
                let Some(session) = session else { return Ok(true) };
                txn.clear(&self.keys.session(id, number));
                let Some(mut inode) = inode.filter(|inode| session.write && named(inode)) else {
                    return Ok(true);
                };
                match held {
                    Some((epoch, length)) if epoch == inode.epoch && inode.trim_to.is_none() => {
                        // What it was about to append may still arrive: nobody else gets that place.
                        let place =
                            session.place.filter(|place| place.epoch == epoch).map_or(0, |place| place.end);
                        let length = length.max(place);
                        if length > inode.size {
                            let now = self.outside.now();
                            (inode.size, inode.mtime, inode.ctime) = (length, now, now);
                            self.put(txn, id, &inode);
                        }
                        Ok(true)
                    }
                    // Truncated meanwhile: what was asked doesn't count. Nothing may be written.
                    _ => {
                        txn.set(&self.keys.session(id, number), &session.encode());
                        Ok(false)
                    }
                }
            })
            .await?;
            if settled {
                return Ok(());
            }
        }
    }

    /// Whether the session writes to a file that still has a name; of others the length doesn't matter any more.
    async fn writes_named(&self, id: InodeId, number: u64) -> Result<bool> {
        let keys = [self.keys.inode(id), self.keys.session(id, number)];
        self.reading(async |txn: &mut E::Txn| {
            let mut values = Values::new(txn.get_many(&keys, Isolation::Snapshot).await?);
            let (inode, session) = (values.inode()?, values.session()?);
            Ok(inode.is_some_and(|inode| named(&inode)) && session.is_some_and(|session| session.write))
        })
        .await
    }

    /// Drops everything in the name of dead clients that have no sessions and no locks left.
    ///
    /// There may be more sessions than one transaction has the time to read. So the clients' rows get a mark of this sweep,
    /// sessions and locks are gone through page by page, and only rows that bear the mark afterwards go: whatever was begun meanwhile
    /// rewrote its client's row.
    async fn forget_clients(&self, dead: &BTreeSet<ClientId>) -> Result<()> {
        let mark = self.outside.random().to_le_bytes();
        let clients: Vec<ClientId> = dead.iter().copied().collect();
        let rows = |batch: &[ClientId]| batch.iter().map(|client| self.keys.client(*client)).collect();
        for batch in clients.chunks(CLIENTS_AT_ONCE) {
            let rows: Vec<Vec<u8>> = rows(batch);
            retry::run_repeatable(&self.kv, async |txn: &mut E::Txn| {
                // Read, so that an attempt that lands late can't mark a row again.
                txn.get_many(&rows, Isolation::Serializable).await?;
                rows.iter().for_each(|row| txn.set(row, &mark));
                Ok(())
            })
            .await?;
        }
        let mut gone = dead.clone();
        // Rows that can't be read are nobody's that could be settled.
        let open = |_: &[u8], value: &[u8]| {
            Session::decode(value).iter().for_each(|session| _ = gone.remove(&session.client));
            Ok(())
        };
        self.each_pair(table::SESSION, open).await?;
        let locked = |_: &[u8], value: &[u8]| {
            let locks = Locks::decode(value);
            locks.iter().flat_map(Locks::clients).for_each(|client| _ = gone.remove(&client));
            Ok(())
        };
        self.each_pair(table::LOCKS, locked).await?;
        let gone: Vec<ClientId> = gone.into_iter().collect();
        for batch in gone.chunks(CLIENTS_AT_ONCE) {
            let rows: Vec<Vec<u8>> = rows(batch);
            retry::run_repeatable(&self.kv, async |txn: &mut E::Txn| {
                let values = txn.get_many(&rows, Isolation::Serializable).await?;
                let marked =
                    batch.iter().zip(values).filter(|(_, value)| value.as_deref() == Some(&mark[..]));
                let marked: Vec<ClientId> = marked.map(|(client, _)| *client).collect();
                self.forget_marked(txn, &marked).await
            })
            .await?;
        }
        Ok(())
    }

    /// Puts marks that they ended in the place of all that is remembered of clients.
    async fn forget_marked(&self, txn: &mut E::Txn, marked: &[ClientId]) -> Result<()> {
        let ended = Mark::Ended(self.outside.now()).encode();
        let one = |range, direction| RangeRead { range, limit: 1, direction };
        let mut reads = Vec::with_capacity(3 * marked.len());
        for client in marked {
            let replies = self.keys.replies(*client, None);
            reads.push(one(replies.clone(), Direction::Forward));
            reads.push(one(replies, Direction::Reverse));
            reads.push(one(self.keys.low_waters(*client, None), Direction::Reverse));
        }
        let found = txn.range_many(&reads, Isolation::Snapshot).await?;
        for client in marked {
            txn.clear(&self.keys.client(*client));
            txn.clear_range(&self.keys.replies(*client, None));
            txn.clear_range(&self.keys.low_waters(*client, None));
        }
        for (key, _) in found.iter().flat_map(|page| &page.pairs) {
            if let Ok(Key::Reply(client, incarnation, _) | Key::LowWater(client, incarnation)) =
                self.keys.parse(key)
            {
                txn.set(&self.keys.low_water(client, incarnation), &ended);
            }
        }
        Ok(())
    }

    /// Drops the marks of clients that ended so long ago that nothing of theirs is under way any more.
    async fn forget_marks(&self) -> Result<()> {
        let now = self.outside.now();
        let mut old = Vec::new();
        let look = |key: &[u8], value: &[u8]| {
            if let Ok(Mark::Ended(at)) = Mark::decode(value)
                && now.saturating_sub(at) > ENDED_KEPT
            {
                old.push(key.to_vec());
            }
            Ok(())
        };
        self.each_pair(table::LOW_WATER, look).await?;
        for batch in old.chunks(PAGE) {
            retry::run_repeatable(&self.kv, async |txn: &mut E::Txn| {
                batch.iter().for_each(|key| txn.clear(key));
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Every pair of a table, a page at a time: each page is of a snapshot of its own.
    async fn each_pair(&self, letter: u8, mut look: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        let mut rest = self.keys.table(letter);
        loop {
            let page = self.page(&rest, PAGE, Direction::Forward).await?;
            page.pairs.iter().try_for_each(|(key, value)| look(key, value))?;
            match page.pairs.last() {
                Some((last, _)) if page.more => rest = rest.after(last, Direction::Forward),
                _ => return Ok(()),
            }
        }
    }
}

fn named(inode: &Inode) -> bool {
    inode.nlink > 0
}
