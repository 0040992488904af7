//! The only way between cores: bounded mailboxes of control messages, the answers to them, and whether a disk is lost. Data operations never
//! come here. Everything in the engine that is shared between threads is in this file.

use crate::disk::file::DiskFile;
use crate::disk::open::Extent;
use crate::event::Nanos;
use crate::store::RecoveryReport;
use crate::targets::Upkeep;
use corefs_net::mailbox::{Receiver, Refused, Sender, mailbox};
use corefs_net::ring::Alarm;
use corefs_wire::control::mgmtd::{SliceInfoT, TargetHealthT};
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{Error, ErrorCode, Result, ShardIndex, SliceIndex, Uuid};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Messages that may wait for one shard.
pub const MAILBOX: usize = 256;

/// Where a shard puts its answer: the other end of an [`Awaited`].
pub struct Answer<T>(Arc<Mutex<Slot<T>>>);

/// Resolves with the answer, or `ShuttingDown` if nobody is left to give one.
pub struct Awaited<T>(Arc<Mutex<Slot<T>>>);

struct Slot<T> {
    value: Option<T>,
    gone: bool,
    waker: Option<Waker>,
}

/// A place for one answer, and its two ends.
pub fn answer<T>() -> (Answer<T>, Awaited<T>) {
    let slot = Arc::new(Mutex::new(Slot { value: None, gone: false, waker: None }));
    (Answer(Arc::clone(&slot)), Awaited(slot))
}

/// Nobody panics while holding it, so a poisoned slot is sound.
fn open<T>(slot: &Mutex<Slot<T>>) -> MutexGuard<'_, Slot<T>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Answer<T> {
    pub fn send(self, value: T) {
        open(&self.0).value = Some(value);
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        let mut slot = open(&self.0);
        slot.gone = true;
        let waker = slot.waker.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for Awaited<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let mut slot = open(&self.0);
        if let Some(value) = slot.value.take() {
            return Poll::Ready(Ok(value));
        }
        if slot.gone {
            let what = "the shard ended without an answer";
            return Poll::Ready(Err(Error::new(ErrorCode::ShuttingDown, what)));
        }
        slot.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// What the shards of a node must know together of one disk: whether a flush of it has failed in any of them. A drive that fails a
/// flush may have lost all that was in its cache, whoever wrote it, and the next flush succeeds all the same. Looked at once a
/// flush, and at every report.
#[derive(Clone, Debug, Default)]
pub struct Fate(Arc<AtomicBool>);

impl Fate {
    pub fn seal(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub fn is_sealed(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// What a shard may be told from another core.
pub enum ShardMessage {
    Routing(Box<RoutingInfo>),
    /// The node's lease was renewed (CLOCK_BOOTTIME).
    Lease {
        until: Nanos,
    },
    Report(Answer<ShardReport>),
    /// The node has another disk, with these formatted slices for this shard.
    AddDisk {
        disk: DiskFile,
        slices: Vec<(SliceIndex, Extent, Uuid)>,
        answer: Answer<Result<()>>,
    },
    /// Verify everything now, at that many bytes a second (0: as fast as it goes).
    Scrub {
        rate: u64,
    },
    /// Take nothing new, finish, write everything down, answer, end.
    Drain(Answer<()>),
    /// End at once, as if killed.
    Abort,
}

/// What a shard has done and how it is.
#[derive(Clone, Debug, Default)]
pub struct ShardReport {
    pub shard: ShardIndex,
    pub counters: Vec<(String, u64)>,
    pub slices: Vec<SliceInfoT>,
    pub targets: Vec<TargetHealthT>,
    pub recovered: Vec<(SliceIndex, RecoveryReport)>,
    pub upkeep: Upkeep,
}

/// Reaches one shard from another core.
#[derive(Clone)]
pub struct ShardHandle(Sender<ShardMessage>);

impl ShardHandle {
    /// `Overloaded` when too much waits already, `ShuttingDown` when the shard is gone.
    pub fn send(&self, message: ShardMessage) -> Result<()> {
        self.0.try_send(message).map_err(|refused| match refused {
            Refused::Full(_) => Error::new(ErrorCode::Overloaded, "the shard's mailbox is full"),
            Refused::Closed(_) => Error::new(ErrorCode::ShuttingDown, "the shard has ended"),
        })
    }
}

/// A shard's mailbox: the handle for others, the receiver for the thread whose ring `alarm` wakes.
pub fn mail(alarm: Alarm) -> (ShardHandle, Receiver<ShardMessage>) {
    let (sender, receiver) = mailbox(MAILBOX, alarm);
    (ShardHandle(sender), receiver)
}
