//! Reads of whole blocks of one chunk.

use super::{ATTEMPT, FIRST_ATTEMPT, Place, Storage};
use crate::route::select::{Positions, choose};
use crate::route::{At, Next, OwnerIndex, Tracker, Work};
use corefs_net::{Buffer, Reply};
use corefs_wire::checksum::crc32c;
use corefs_wire::data::{ReadEntry, read_reply};
use corefs_wire::limits::BLOCK;
use corefs_wire::{Error, ErrorCode, Result};

/// An attempt that failed, and which replica of how many it asked.
pub(super) struct Failure {
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

impl Storage {
    /// `length` bytes at `offset` of chunk `index`, both whole blocks, at most a frame. What was never written is zeros.
    /// Every block's checksum has been verified. `ChecksumMismatch` or `Corrupt` when no replica has good bytes.
    #[inline]
    pub async fn read(&self, place: &Place, index: u32, offset: u32, length: u32) -> Result<Buffer> {
        self.ground.counters.borrow_mut().reads += 1;
        let mut entry = ReadEntry {
            inode: place.inode.0.into(),
            index: index.into(),
            offset: offset.into(),
            length: length.into(),
            ..ReadEntry::default()
        };
        debug_assert!(entry.check().is_ok(), "{entry:?}");
        match self.try_read(place, &mut entry, At::Any, Positions::NONE).await {
            Ok(buffer) => Ok(buffer),
            Err(failure) => Box::pin(self.read_again(place, entry, failure)).await,
        }
    }

    /// The road after an error.
    #[cold]
    async fn read_again(&self, place: &Place, mut entry: ReadEntry, mut failure: Failure) -> Result<Buffer> {
        let ground = &self.ground;
        let mut tracker = Tracker::new(Work::Read, ground.now() + ground.patience);
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
        let buffer = match self.ground.pool.get(length) {
            Some(buffer) => buffer,
            None => self.buffer(length).await.map_err(|error| asked.failed(error))?,
        };
        let others = asked.of > 1 && avoid == Positions::NONE && at == At::Any;
        let within = if others { FIRST_ATTEMPT } else { ATTEMPT };
        let reply = match self.ask_read(asked.owner, *entry, buffer, within).await {
            Err(error) if error.code == ErrorCode::NoSuchChunk => {
                return self.zeros(length).await.map_err(|error| asked.failed(error));
            }
            reply => reply.and_then(|reply| verified(reply, length)),
        };
        if matches!(&reply, Err(error) if error.code == ErrorCode::ChecksumMismatch) {
            self.ground.counters.borrow_mut().checksum_mismatches += 1;
        }
        match reply {
            Ok(Some(buffer)) => Ok(buffer),
            Ok(None) => self.zeros(length).await.map_err(|error| asked.failed(error)),
            Err(error) => Err(asked.failed(error)),
        }
    }

    /// Chooses the replica and writes it into the entry.
    #[inline]
    fn pick(&self, place: &Place, entry: &mut ReadEntry, at: At, avoid: Positions) -> Result<Asked, Failure> {
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

    #[cold]
    async fn zeros(&self, length: usize) -> Result<Buffer> {
        let mut buffer = self.buffer(length).await?;
        buffer.zero(0..length).ok_or(ErrorCode::Internal)?;
        Ok(buffer)
    }
}

/// The blocks of a reply, checked; past the end of the chunk there are zeros. `None`: the reply has no data at all.
#[inline]
fn verified(reply: Reply, length: usize) -> Result<Option<Buffer>> {
    let (head, crcs) = read_reply(&reply.body)?;
    let sent = crcs.len() * BLOCK;
    if sent != reply.data_len || sent > length {
        return Err(bad("a read reply with another length than its checksums say, or than was asked for"));
    }
    let Some(mut buffer) = reply.data.filter(|buffer| buffer.capacity() >= length) else {
        return if crcs.is_empty() { Ok(None) } else { Err(bad("a read reply without its data")) };
    };
    buffer.set_len(length);
    let Some(bytes) = buffer.get_mut() else { return Err(ErrorCode::Internal.into()) };
    for (at, (block, crc)) in bytes.chunks_exact(BLOCK).zip(crcs).enumerate() {
        let found = crc32c(block);
        if found != crc.get() {
            let what = format!("block {at} of a read at version {}", head.commit_version);
            return Err(Error::mismatch(ErrorCode::ChecksumMismatch, crc.get().into(), found.into(), what));
        }
    }
    bytes[sent..].fill(0);
    Ok(Some(buffer))
}

#[cold]
fn bad(what: &str) -> Error {
    Error::new(ErrorCode::BadFrame, what)
}
