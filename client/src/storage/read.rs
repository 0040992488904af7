//! Reads of whole blocks of one chunk.

use super::hedge::Attempt;
use super::{ATTEMPT, FIRST_ATTEMPT, OWNER_READS_MAX, Place, Storage};
use crate::route::select::{Positions, choose};
use crate::route::{At, Next, OwnerIndex, Tracker, Work};
use corefs_net::tcp::LENT_MAX;
use corefs_net::{Buffer, ConnId, Reply};
use corefs_wire::checksum::crcs_before;
use corefs_wire::data::{ReadEntry, read_reply};
use corefs_wire::limits::BLOCK;
use corefs_wire::{Error, ErrorCode, Result};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

/// An attempt that failed, and which replica of how many it asked.
pub struct Failure {
    pub error: Error,
    pub position: usize,
    pub of: usize,
    pub version: u64,
}

/// One attempt's destination.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub owner: OwnerIndex,
    pub position: usize,
    pub of: usize,
    pub version: u64,
}

impl Asked {
    pub fn failed(self, error: Error) -> Failure {
        Failure { error, position: self.position, of: self.of, version: self.version }
    }
}

/// What remains to be done when a reply has come that isn't the whole.
pub enum Unfinished {
    /// The chunk ends before, or there is none: what there is.
    Short(Option<Buffer>),
    Failed(Failure),
}

/// A read that was asked for and has no answer yet. Resolves with the verified blocks, or says what remains; see
/// [`Storage::finish`].
pub struct Asking<'a> {
    pub(super) storage: &'a Storage,
    pub place: &'a Place,
    pub entry: ReadEntry,
    pub(super) attempt: Attempt<'a>,
    pub(super) began: Instant,
    /// When another replica is asked, too, if one can be; `None` when it was, or isn't to be.
    pub(super) due: Option<Instant>,
    pub(super) second: Option<Box<Attempt<'a>>>,
}

impl Future for Asking<'_> {
    type Output = Result<Buffer, Unfinished>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let asking = &mut *self;
        let Poll::Ready(reply) = Pin::new(&mut asking.attempt.expected).poll(context) else {
            let late = asking.due.is_some_and(|due| due <= asking.storage.node.now());
            return if late || asking.second.is_some() { asking.poll_late(context) } else { Poll::Pending };
        };
        let (asked, conn) = (asking.attempt.asked, asking.attempt.conn);
        asking.storage.note(asked.owner, conn, &reply);
        if asking.second.is_some() {
            return asking.first_ended(reply, context);
        }
        asking.took();
        Poll::Ready(asking.storage.judge(reply, asking.entry.length.get() as usize, asked))
    }
}

impl Storage {
    /// Whole blocks of one chunk, see [`read_entry`]; at most a frame, into `dest` if all goes well at once, else into
    /// other memory. What was never written is zeros. Every block's checksum has been verified. `ChecksumMismatch` or `Corrupt` when no replica has good bytes.
    #[inline]
    pub async fn read(&self, place: &Place, entry: ReadEntry, dest: Option<Buffer>) -> Result<Buffer> {
        match self.ask_at_once(place, entry, dest) {
            Some(asking) => match asking.await {
                Ok(buffer) => Ok(buffer),
                Err(unfinished) => Box::pin(self.finish(place, entry, unfinished)).await,
            },
            None => Box::pin(self.read_patiently(place, entry)).await,
        }
    }

    /// Asks for a read, unless something must be waited for first: a connection, room at the owner, memory. A reply goes to `dest`,
    /// a unique buffer of the entry's length.
    #[inline]
    pub fn ask_at_once<'a>(
        &'a self,
        place: &'a Place,
        mut entry: ReadEntry,
        dest: Option<Buffer>,
    ) -> Option<Asking<'a>> {
        let asked = self.pick(place, &mut entry, At::Any, Positions::NONE).ok()?;
        let owner = asked.owner;
        if self.load(owner) >= OWNER_READS_MAX {
            return None;
        }
        let conn = self.open(owner)?;
        let length = entry.length.get() as usize;
        let dest = match dest {
            Some(buffer) => Some((buffer, 0)),
            None if self.may_stay(Some(conn), length) => None,
            None => Some((self.ground.pool.get(length)?, 0)),
        };
        let (within, delay) = match asked.of {
            0 | 1 => (ATTEMPT, None),
            _ => (FIRST_ATTEMPT, self.pace.borrow().delay(length)),
        };
        let expected = self.node.expect(conn, dest).ok()?.within(within);
        let began = self.node.now();
        let due = delay.map(|delay| began + delay);
        if let Some(due) = due {
            expected.nudge(due);
        }
        let counted = self.count(owner);
        entry.request = expected.request_id().into();
        self.gather(owner, &entry);
        self.ground.counters.borrow_mut().reads += 1;
        let attempt = Attempt { asked, conn, expected, counted };
        Some(Asking { storage: self, place, entry, attempt, began, due, second: None })
    }

    /// A read that has to wait before it can be asked for.
    #[cold]
    pub async fn read_patiently(&self, place: &Place, mut entry: ReadEntry) -> Result<Buffer> {
        self.ground.counters.borrow_mut().reads += 1;
        match self.try_read(place, &mut entry, At::Any, Positions::NONE).await {
            Ok(buffer) => Ok(buffer),
            Err(failure) => self.read_again(place, entry, failure).await,
        }
    }

    /// What remains of a read.
    #[cold]
    pub async fn finish(&self, place: &Place, entry: ReadEntry, unfinished: Unfinished) -> Result<Buffer> {
        match unfinished {
            Unfinished::Short(sent) => self.lengthen(place, sent, entry.length.get() as usize).await,
            Unfinished::Failed(failure) => self.read_again(place, entry, failure).await,
        }
    }

    /// The road after an error.
    #[cold]
    async fn read_again(&self, place: &Place, mut entry: ReadEntry, mut failure: Failure) -> Result<Buffer> {
        let ground = &self.ground;
        let replicated = ground.routing().replicas > 1;
        let mut tracker = Tracker::new(Work::Read, ground.now() + ground.patience).replicated(replicated);
        loop {
            ground.check_open()?;
            tracker.see_version(failure.version);
            let now = ground.now();
            let Failure { error, position, of, .. } = failure;
            let next = tracker.after(now, error.code, position, of, &mut ground.rng.borrow_mut());
            let Next::Again { at, after, refresh } = next else {
                let attempts = tracker.attempts();
                return Err(error.of(format_args!("reading {} in {attempts} attempts", entry.chunk())));
            };
            ground.counters.borrow_mut().read_retries += 1;
            ground.pause(after, refresh).await;
            match self.try_read(place, &mut entry, at, tracker.failed()).await {
                Ok(buffer) => return Ok(buffer),
                Err(again) => failure = again,
            }
        }
    }

    #[inline]
    async fn try_read(
        &self,
        place: &Place,
        entry: &mut ReadEntry,
        at: At,
        avoid: Positions,
    ) -> Result<Buffer, Failure> {
        let asked = self.pick(place, entry, at, avoid)?;
        let length = entry.length.get() as usize;
        let dest = match self.may_stay(self.open(asked.owner), length) {
            true => None,
            false => Some(self.buffer(length).await.map_err(|error| asked.failed(error))?),
        };
        let others = asked.of > 1 && avoid == Positions::NONE && at == At::Any;
        let within = if others { FIRST_ATTEMPT } else { ATTEMPT };
        let reply = self.ask_read(asked.owner, *entry, dest, within).await;
        match self.judge(reply, length, asked) {
            Ok(buffer) => Ok(buffer),
            Err(Unfinished::Short(sent)) => {
                self.lengthen(place, sent, length).await.map_err(|error| asked.failed(error))
            }
            Err(Unfinished::Failed(failure)) => Err(failure),
        }
    }

    /// What a reply to a read comes to.
    #[inline]
    pub(super) fn judge(
        &self,
        reply: Result<Reply>,
        length: usize,
        asked: Asked,
    ) -> Result<Buffer, Unfinished> {
        let error = match reply.and_then(|reply| verified(reply, length)) {
            Ok(Some(buffer)) if buffer.len() == length => return Ok(buffer),
            Ok(sent) => return Err(Unfinished::Short(sent)),
            Err(error) if error.code == ErrorCode::NoSuchChunk => return Err(Unfinished::Short(None)),
            Err(error) => error,
        };
        if error.code == ErrorCode::ChecksumMismatch {
            self.ground.counters.borrow_mut().checksum_mismatches += 1;
        }
        Err(Unfinished::Failed(asked.failed(error)))
    }

    /// Whether data of a read may stay in the memory that they arrive in, on this connection. That keeps whole blocks of the pool from other use; and
    /// who runs out of memory is to wait here, before anything is asked for. By RDMA a read that its message can't carry is answered sooner if it has a place.
    #[inline]
    pub(super) fn may_stay(&self, conn: Option<ConnId>, length: usize) -> bool {
        let carries = |conn| length <= self.node.carries(conn);
        length <= LENT_MAX && self.ground.pool.is_ample() && conn.is_some_and(carries)
    }

    /// Chooses the replica and writes it into the entry.
    #[inline]
    pub(super) fn pick(
        &self,
        place: &Place,
        entry: &mut ReadEntry,
        at: At,
        avoid: Positions,
    ) -> Result<Asked, Failure> {
        let picked = self.with_chain(place, entry.index.get(), |chain| {
            let of = chain.serving.len();
            let avoid = if at == At::Any { Positions::NONE } else { avoid };
            let position = match at {
                At::Tail => of.checked_sub(1),
                _ => {
                    let rng = &mut self.ground.rng.borrow_mut();
                    choose(&chain.serving, avoid, |owner| self.reluctance(owner), rng)
                }
            };
            entry.chain = chain.id.0.into();
            entry.chain_version = chain.version.into();
            let version = chain.version;
            let nobody = || Failure {
                error: Error::new(ErrorCode::NotServing, format!("no replica of {} serves", chain.id)),
                position: 0,
                of: 0,
                version,
            };
            let position = position.ok_or_else(nobody)?;
            let replica = chain.serving[position];
            entry.target = replica.target.0.into();
            Ok(Asked { owner: replica.owner, position, of, version })
        });
        picked.unwrap_or_else(|error| Err(Failure { error, position: 0, of: 0, version: 0 }))
    }

    /// What was sent, and zeros behind it.
    #[cold]
    async fn lengthen(&self, place: &Place, sent: Option<Buffer>, length: usize) -> Result<Buffer> {
        if sent.is_none() {
            place.missed.set(true);
        }
        let sent = sent.as_deref().unwrap_or_default();
        let mut buffer = self.buffer(length).await?;
        let (front, rest) = buffer.get_mut().ok_or(ErrorCode::Internal)?.split_at_mut(sent.len());
        front.copy_from_slice(sent);
        rest.fill(0);
        Ok(buffer)
    }
}

/// A read of `length` bytes at `offset` of chunk `index`, both whole blocks; whom it is for is not chosen yet.
#[inline]
pub fn read_entry(place: &Place, index: u32, offset: u32, length: u32) -> ReadEntry {
    let entry = ReadEntry {
        inode: place.inode.0.into(),
        index: index.into(),
        offset: offset.into(),
        length: length.into(),
        ..ReadEntry::default()
    };
    debug_assert!(entry.check().is_ok(), "{entry:?}");
    entry
}

/// The blocks of a reply, checked: as many as there were, which may be fewer than `length`. `None`: the reply has no data at all.
#[inline]
fn verified(reply: Reply, length: usize) -> Result<Option<Buffer>> {
    let (head, crcs) = read_reply(&reply.body)?;
    let sent = crcs.len() * BLOCK;
    if sent != reply.data_len || sent > length {
        return Err(bad("a read reply with another length than its checksums say, or than was asked for"));
    }
    if sent == 0 {
        return Ok(None);
    }
    let Some(mut buffer) = reply.data.filter(|buffer| buffer.len() >= sent) else {
        return Err(bad("a read reply without its data"));
    };
    buffer.set_len(sent);
    // What lies behind is often the next reply.
    let behind = buffer.as_ptr_range().end;
    for (at, (found, crc)) in crcs_before(&buffer, behind).zip(crcs).enumerate() {
        if found != crc.get() {
            let what = format!("block {at} of a read at version {}", head.commit_version);
            return Err(Error::mismatch(ErrorCode::ChecksumMismatch, crc.get().into(), found.into(), what));
        }
    }
    Ok(Some(buffer))
}

#[cold]
fn bad(what: &str) -> Error {
    Error::new(ErrorCode::BadFrame, what)
}
