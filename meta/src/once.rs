//! Exactly once: a mutating operation leaves its outcome in the transaction that carries it out, and a request that
//! comes again is answered from there.
//!
//! A request is named by (client, incarnation, sequence). Its row is read together with the operation's first keys, so
//! being exactly-once costs no round trip. Every attempt has the row as a read conflict and writes it: of two attempts that
//! both commit, each would have to commit before the other, so a commit whose outcome was unknown, however late it lands,
//! and a copy of the request at another server are all harmless (the argument of [`corefs_kv::retry::run_once`]).
//!
//! A client says below which sequence all its requests are answered. Those rows are dropped, and the mark remembered, so
//! that a copy of an old request that was held up in the network is refused instead of being carried out again. When a client's lease has
//! ended, a mark that it did stays for a while after its rows are gone (see [`sweep`](crate::sweep)): requests that it sends again,
//! because it didn't hear the answer to them, are refused too, since nobody knows any more whether they were carried out.
//!
//! A failure changes nothing, so it isn't remembered, and costs no commit, as long as the request was sent once. But a request that comes
//! again has an earlier copy somewhere, perhaps in a server that stands still: that one must not be carried out after the
//! caller was told that it failed, or that there was nothing to do. So whatever is answered to a repeated request is
//! remembered before it is answered.

use crate::encoding::{Reader, Writer};
use crate::inode::{DirectoryState, Inode, Stat};
use crate::mark::Mark;
use crate::namespace::{Namespace, Values};
use crate::outside::Outside;
use corefs_kv::{Isolation, KvEngine, Transaction, retry};
use corefs_wire::control::meta::{AttrReplyT, AttrT, CallerT};
use corefs_wire::{Class, ClientId, Error, ErrorCode, InodeId, Result};

/// Rows are dropped with every so manieth request of a client: one range for many.
const FORGET_EVERY: u64 = 32;

/// The essentials of a reply: all that any operation's reply is made of.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Outcome {
    pub stat: Option<Stat>,
    /// 0: none was begun.
    pub session: u64,
    pub created: bool,
    /// The inode's chunks must be cut before this may be answered.
    pub trim: bool,
    /// Where an append may go.
    pub offset: Option<u64>,
    /// What a name led to that was taken away; 0: none was.
    pub gone: u64,
}

/// What came of one attempt.
pub(crate) enum Attempt {
    /// Commit the transaction, remember the outcome.
    Changed(Outcome),
    /// There was nothing to do: the transaction wrote nothing.
    Unchanged(Outcome),
    /// A truncation of this inode has to be finished first; the transaction wrote nothing.
    Trimming(InodeId),
    /// The length that the chains hold has to be asked for first; the transaction wrote nothing.
    AskLength,
}

const VERSION: u8 = 1;
/// A row that tells of a failure: its number follows the operation.
const FAILURE_VERSION: u8 = 2;
const CREATED: u8 = 1;
const TRIM: u8 = 2;
const HAS_SESSION: u8 = 4;
const HAS_STAT: u8 = 8;
const HAS_OFFSET: u8 = 16;
const HAS_GONE: u8 = 32;

impl Outcome {
    pub fn of(stat: Stat) -> Self {
        Self { stat: Some(stat), ..Self::default() }
    }

    /// `op` is the operation it answers.
    pub fn encode(&self, op: u16) -> Vec<u8> {
        let mut flags = 0;
        flags |= if self.created { CREATED } else { 0 };
        flags |= if self.trim { TRIM } else { 0 };
        flags |= if self.session != 0 { HAS_SESSION } else { 0 };
        flags |= if self.stat.is_some() { HAS_STAT } else { 0 };
        flags |= if self.offset.is_some() { HAS_OFFSET } else { 0 };
        flags |= if self.gone != 0 { HAS_GONE } else { 0 };
        let mut writer = Writer::new(VERSION);
        writer.varint(op.into()).byte(flags);
        if self.session != 0 {
            writer.fixed(self.session);
        }
        if let Some(Stat { id, inode, directory }) = &self.stat {
            writer.varint(id.0);
            inode.write(&mut writer);
            writer.signed(directory.touched).varint(directory.entries).varint(directory.subdirectories);
        }
        if let Some(offset) = self.offset {
            writer.varint(offset);
        }
        if self.gone != 0 {
            writer.varint(self.gone);
        }
        writer.finish()
    }

    /// The row of a failure.
    pub fn encode_failure(op: u16, code: ErrorCode) -> Vec<u8> {
        Writer::new(FAILURE_VERSION).varint(op.into()).varint(u64::from(code as u32)).finish()
    }

    /// What is remembered, which may be a failure: the inner result. `Duplicate` when the row is another operation's: the client gave one
    /// number to two requests.
    pub fn decode(op: u16, value: &[u8]) -> Result<Result<Self, ErrorCode>> {
        let (mut reader, version) = Reader::new("remembered reply", value, FAILURE_VERSION)?;
        let found = reader.varint()?;
        if found != u64::from(op) {
            let what = "the sequence number belongs to another operation";
            return Err(Error::mismatch(ErrorCode::Duplicate, op.into(), found, what));
        }
        if version == FAILURE_VERSION {
            let code = ErrorCode::from_number(reader.varint32()?).ok_or_else(|| reader.corrupt())?;
            return reader.end().map(|()| Err(code));
        }
        let flags = reader.byte()?;
        let session = if flags & HAS_SESSION != 0 { reader.fixed()? } else { 0 };
        let stat = match flags & HAS_STAT != 0 {
            true => Some(read_stat(&mut reader)?),
            false => None,
        };
        let offset = if flags & HAS_OFFSET != 0 { Some(reader.varint()?) } else { None };
        let gone = if flags & HAS_GONE != 0 { reader.varint()? } else { 0 };
        reader.end()?;
        let (created, trim) = (flags & CREATED != 0, flags & TRIM != 0);
        Ok(Ok(Self { stat, session, created, trim, offset, gone }))
    }

    /// Whether a stored row can be read, whichever operation it answers.
    pub fn verify(value: &[u8]) -> Result<()> {
        let (mut reader, _) = Reader::new("remembered reply", value, FAILURE_VERSION)?;
        let op = u16::try_from(reader.varint()?).map_err(|_| reader.corrupt())?;
        Self::decode(op, value).map(drop)
    }

    pub fn attr(&self) -> Result<Box<AttrT>> {
        let missing = || Error::new(ErrorCode::Internal, "an outcome without attributes");
        Ok(Box::new(self.stat.as_ref().ok_or_else(missing)?.to_message()))
    }

    pub fn attr_reply(&self) -> Result<AttrReplyT> {
        let mut reply = AttrReplyT::default();
        reply.attr = self.attr()?;
        Ok(reply)
    }
}

fn read_stat(reader: &mut Reader<'_>) -> Result<Stat> {
    let id = InodeId(reader.varint()?);
    let inode = Inode::read(reader)?;
    let directory = DirectoryState {
        touched: reader.signed()?,
        entries: reader.varint()?,
        subdirectories: reader.varint()?,
    };
    Ok(Stat { id, inode, directory })
}

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// Carries out `body` once for the request that `caller` names, finishing truncations that are in its way, and
    /// the one that it begins.
    pub(crate) async fn once(
        &self,
        op: u16,
        caller: &CallerT,
        keys: &[Vec<u8>],
        body: impl AsyncFn(&mut E::Txn, Values) -> Result<Attempt>,
    ) -> Result<Outcome> {
        loop {
            match self.attempt(op, caller, keys, &body).await? {
                Attempt::Changed(outcome) | Attempt::Unchanged(outcome) => {
                    if let (true, Some(stat)) = (outcome.trim, &outcome.stat) {
                        self.finish_trim(stat.id).await?;
                    }
                    return Ok(outcome);
                }
                Attempt::Trimming(inode) => self.finish_trim(inode).await?,
                Attempt::AskLength => {
                    return Err(Error::new(ErrorCode::Internal, "nobody asks for the length here"));
                }
            }
        }
    }

    /// One transaction of [`once`](Self::once), repeated by the retry loop until its outcome is known. `keys` are read
    /// in one round trip with the request's row and conflict; their values go to `body`.
    pub(crate) async fn attempt(
        &self,
        op: u16,
        caller: &CallerT,
        keys: &[Vec<u8>],
        body: &impl AsyncFn(&mut E::Txn, Values) -> Result<Attempt>,
    ) -> Result<Attempt> {
        if caller.sequence == 0 {
            // Not repeatable: an unknown commit is the caller's to know.
            return retry::run(&self.kv, async |txn: &mut E::Txn| {
                let values = txn.get_many(keys, Isolation::Serializable).await?;
                body(txn, Values::new(values)).await
            })
            .await;
        }
        if caller.low_water > caller.sequence {
            let what = "a request that its sender has done with";
            return Err(Error::mismatch(ErrorCode::InvalidArgument, caller.low_water, caller.sequence, what));
        }
        let client = ClientId(caller.client);
        let row = self.keys.reply(client, caller.incarnation, caller.sequence);
        let low_water = self.keys.low_water(client, caller.incarnation);
        let all: Vec<&Vec<u8>> = keys.iter().chain([&row, &low_water]).collect();
        let attempt = retry::run_repeatable(&self.kv, async |txn: &mut E::Txn| {
            // The low-water mark must not conflict, since every other request of this client moves it.
            let mut values = txn.get_many(&all, Isolation::Snapshot).await?;
            let (mark, remembered) = (values.pop().flatten(), values.pop().flatten());
            if let Some(remembered) = remembered {
                return remembered_as(op, &remembered).map(Attempt::Unchanged);
            }
            let mark = match mark.as_deref().map(Mark::decode).transpose()? {
                None => 0,
                Some(Mark::Below(mark)) => mark,
                Some(Mark::Ended(_)) => {
                    return Err(Error::new(
                        ErrorCode::LeaseExpired,
                        format!("the lease of {client} has ended"),
                    ));
                }
            };
            if caller.sequence < mark {
                let what = "an old request that was answered before";
                return Err(Error::mismatch(ErrorCode::Duplicate, mark, caller.sequence, what));
            }
            keys.iter().chain([&row]).for_each(|key| txn.add_read_conflict_key(key));
            let attempt = body(txn, Values::new(values)).await?;
            match &attempt {
                Attempt::Changed(outcome) => {
                    txn.set(&row, &outcome.encode(op));
                    self.forget_replies(txn, caller, mark);
                }
                Attempt::Unchanged(outcome) if caller.repeated => txn.set(&row, &outcome.encode(op)),
                _ => {}
            }
            Ok(attempt)
        });
        match attempt.await {
            Err(error) if caller.repeated && lasts(&error) => self.remember_failure(op, &row, error).await,
            attempt => attempt,
        }
    }

    /// Remembers that a request failed, unless a copy of it was carried out meanwhile: then that is what became of it.
    async fn remember_failure(&self, op: u16, row: &[u8], error: Error) -> Result<Attempt> {
        retry::run_repeatable(&self.kv, async |txn: &mut E::Txn| {
            match txn.get(row, Isolation::Serializable).await? {
                Some(remembered) => Ok(Some(remembered)),
                None => {
                    txn.set(row, &Outcome::encode_failure(op, error.code));
                    Ok(None)
                }
            }
        })
        .await?
        .map_or(Err(error), |remembered| remembered_as(op, &remembered).map(Attempt::Unchanged))
    }

    /// Drops what the caller says it needs no more; what is below `mark` has been dropped before.
    fn forget_replies(&self, txn: &mut E::Txn, caller: &CallerT, mark: u64) {
        if caller.low_water <= mark || !caller.sequence.is_multiple_of(FORGET_EVERY) {
            return;
        }
        let (client, incarnation) = (ClientId(caller.client), caller.incarnation);
        txn.clear_range(&self.keys.replies_between(client, incarnation, mark, caller.low_water));
        txn.max_u64(&self.keys.low_water(client, incarnation), caller.low_water);
    }
}

/// What is answered to a request of which that is remembered.
fn remembered_as(op: u16, row: &[u8]) -> Result<Outcome> {
    Outcome::decode(op, row)?.map_err(|code| Error::new(code, "as an earlier copy of the request was told"))
}

/// Whether the caller takes a failure for the answer, as opposed to sending the request once more.
fn lasts(error: &Error) -> bool {
    let refused = [ErrorCode::Duplicate, ErrorCode::LeaseExpired];
    error.class() == Class::Fatal && !refused.contains(&error.code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::control::meta::Kind;

    #[test]
    fn outcomes_survive_storage() {
        let directory = DirectoryState { touched: 9, entries: 8, subdirectories: 7 };
        let stat = Stat { id: InodeId(300), inode: Inode::new(Kind::Directory, 5), directory };
        let outcomes = [
            Outcome::default(),
            Outcome {
                stat: Some(stat),
                session: u64::MAX,
                created: true,
                trim: true,
                offset: Some(300),
                gone: 0,
            },
            Outcome { session: 1, gone: 400, ..Outcome::default() },
        ];
        for outcome in outcomes {
            let value = outcome.encode(0x0303);
            assert_eq!(Outcome::decode(0x0303, &value), Ok(Ok(outcome)));
            assert_eq!(Outcome::decode(0x0304, &value).unwrap_err().code, ErrorCode::Duplicate);
            assert!(Outcome::decode(0x0303, &value[..value.len() - 1]).is_err());
        }
        assert_eq!(Outcome::default().encode(0x0308), [1, 0x88, 6, 0]);
        let failure = Outcome::encode_failure(0x0308, ErrorCode::NotFound);
        assert_eq!(failure, [2, 0x88, 6, 0x90, 3]);
        assert_eq!(Outcome::decode(0x0308, &failure), Ok(Err(ErrorCode::NotFound)));
        assert_eq!(Outcome::decode(0x0309, &failure).unwrap_err().code, ErrorCode::Duplicate);
        assert!(Outcome::verify(&failure).is_ok() && Outcome::verify(&failure[..4]).is_err());
    }
}
