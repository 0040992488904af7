//! Updates of one chunk: sent to the head under a tag that stays the same over all attempts.

use super::channels::Channel;
use super::read::Asked;
use super::{Place, Storage};
use crate::route::{Next, OwnerIndex, Tracker, Work};
use corefs_net::{Buffer, Payload, Reply};
use corefs_wire::data::{self, Prefix, UpdateKind, UpdateReply, op};
use corefs_wire::{Class, Error, ErrorCode, Result, UpdateTag};
use futures_lite::future;
use std::ops::Range;
use zerocopy::{FromBytes, IntoBytes};

/// A change of one chunk. `offset` and `length` (bytes) as in [`data::Update`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Update {
    pub index: u32,
    pub kind: UpdateKind,
    /// The truncate epoch that the writer knows.
    pub epoch: u32,
    pub offset: u32,
    pub length: u32,
}

const PREFIX: usize = size_of::<Prefix>();
const FIXED: usize = PREFIX + size_of::<data::Update>();

impl Storage {
    /// Does an update once, however often it must be sent. `payload` holds the bytes of a write, at most a frame.
    /// `StaleLayout` (the file was truncated), `NoSpace` and other refusals are the caller's to deal with; after an error
    /// of class Retry or Refresh (patience ended) the update may have happened.
    pub async fn update(
        &self,
        place: &Place,
        update: Update,
        payload: Option<(Buffer, Range<usize>)>,
    ) -> Result<UpdateReply> {
        let ground = &self.ground;
        ground.counters.borrow_mut().updates += 1;
        let mut lease = self.channel().await?;
        let mut body = self.encode(place, update, lease.channel, payload.as_ref());
        let mut tracker: Option<Tracker> = None;
        loop {
            let failure = match self.try_update(place, update.index, &mut body, payload.as_ref()).await {
                Ok(reply) => {
                    lease.give();
                    return Ok(reply);
                }
                Err(failure) => failure,
            };
            let now = ground.now();
            let story = tracker.get_or_insert_with(|| {
                Tracker::new(Work::Update, now + ground.patience).replicated(ground.routing().replicas > 1)
            });
            let next = story.after(
                now,
                failure.error.code,
                failure.position,
                failure.of,
                &mut ground.rng.borrow_mut(),
            );
            let Next::Again { after, refresh, .. } = next else {
                if story.attempts() == 1 && is_refusal(&failure.error) {
                    lease.give();
                }
                let (chunk, attempts) =
                    (corefs_wire::ChunkId::new(place.inode, update.index), story.attempts());
                return Err(failure.error.of(format_args!("updating {chunk} in {attempts} attempts")));
            };
            tracing::debug!(error = %failure.error, inode = %place.inode, index = update.index, "an update is sent again");
            ground.counters.borrow_mut().update_retries += 1;
            ground.pause(after, refresh).await;
            ground.check_open()?;
        }
    }

    /// The frame's body, but for what each attempt fills in.
    fn encode(
        &self,
        place: &Place,
        update: Update,
        channel: Channel,
        payload: Option<&(Buffer, Range<usize>)>,
    ) -> Vec<u8> {
        let bytes = payload.map_or(&[][..], |(buffer, range)| &buffer[range.clone()]);
        let segments = data::segments(update.offset as usize, bytes.len());
        let mut fixed = data::Update {
            inode: place.inode.0.into(),
            index: update.index.into(),
            kind: update.kind as u8,
            epoch: update.epoch.into(),
            offset: update.offset.into(),
            length: update.length.into(),
            chunk_size: place.layout.chunk_size.into(),
            crcs: (segments as u32).into(),
            ..data::Update::default()
        };
        let (client, incarnation) = self.from.get();
        let Channel { number, sequence, .. } = channel;
        fixed.set_tag(UpdateTag { client, sequence, incarnation, channel: number });
        debug_assert!(fixed.check(bytes.len()).is_ok(), "{fixed:?}");
        let mut body = Vec::with_capacity(FIXED + 4 * segments);
        body.extend_from_slice(Prefix::default().as_bytes());
        body.extend_from_slice(fixed.as_bytes());
        data::segment_crcs(update.offset as usize, bytes, |crc| body.extend_from_slice(&crc.to_le_bytes()));
        body
    }

    async fn try_update(
        &self,
        place: &Place,
        index: u32,
        body: &mut [u8],
        payload: Option<&(Buffer, Range<usize>)>,
    ) -> Result<UpdateReply, super::read::Failure> {
        let asked = self.head(place, index, body)?;
        let payload = payload.map(|(buffer, range)| Payload::new(buffer.clone(), range.clone()));
        let asking = self.ask(asked.owner, op::UPDATE, body, payload);
        let reply = future::or(asking, self.deposed(place, index, asked.owner)).await;
        reply.and_then(|reply| UpdateReply::parse(&reply.body)).map_err(|error| asked.failed(error))
    }

    /// Resolves when another replica has become the head: whoever was asked may stand still, and never answer. (If it does its work
    /// all the same, the tag says so.) Waiting costs an entry of a small map for each update, beside a write and a flush.
    async fn deposed(&self, place: &Place, index: u32, owner: OwnerIndex) -> Result<Reply> {
        loop {
            self.ground.news.next().await;
            let head = self.with_chain(place, index, |chain| chain.head.map(|head| head.owner));
            if head.is_ok_and(|head| head.is_some_and(|head| head != owner)) {
                let what = "another replica has become the head";
                return Err(Error::new(ErrorCode::ConnectionLost, what));
            }
        }
    }

    /// Finds the head and writes it into the body.
    fn head(&self, place: &Place, index: u32, body: &mut [u8]) -> Result<Asked, super::read::Failure> {
        let nobody = |error, version| super::read::Failure { error, position: 0, of: 0, version };
        let found = self.with_chain(place, index, |chain| {
            let Some(head) = chain.head else {
                let what = format!("{} has no head that serves", chain.id);
                return Err(nobody(Error::new(ErrorCode::NotServing, what), chain.version));
            };
            if let Ok((fixed, _)) = data::Update::mut_from_prefix(&mut body[PREFIX..]) {
                fixed.chain = chain.id.0.into();
                fixed.chain_version = chain.version.into();
                fixed.target = head.target.0.into();
            }
            Ok(Asked { owner: head.owner, position: 0, of: chain.serving.len(), version: chain.version })
        });
        found.unwrap_or_else(|error| Err(nobody(error, 0)))
    }

    async fn channel(&self) -> Result<Lease<'_>> {
        loop {
            self.ground.check_open()?;
            if let Some(channel) = self.channels.borrow_mut().take() {
                return Ok(Lease { storage: self, channel, known: false });
            }
            self.free_channel.next().await;
        }
    }
}

/// Whether the server itself said no, and not the road to it: then nothing is left of the update anywhere.
fn is_refusal(error: &Error) -> bool {
    error.class() == Class::Fatal || error.code == ErrorCode::StaleLayout
}

/// A channel taken. Dropped without [`give`](Self::give) (also by a caller that stops waiting) it is lost.
struct Lease<'a> {
    storage: &'a Storage,
    channel: Channel,
    known: bool,
}

impl Lease<'_> {
    fn give(&mut self) {
        self.known = true;
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut channels = self.storage.channels.borrow_mut();
        if self.known {
            channels.give(self.channel)
        } else {
            channels.retire(self.channel)
        }
        drop(channels);
        self.storage.free_channel.wake_all();
    }
}
