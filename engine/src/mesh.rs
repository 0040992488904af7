//! The only way between cores: bounded mailboxes of control messages. Data operations never come here.

use crate::event::Nanos;
use crate::store::RecoveryReport;
use corefs_net::mailbox::{Receiver, Refused, Sender, mailbox};
use corefs_net::ring::Alarm;
use corefs_wire::control::mgmtd::{SliceInfoT, TargetHealthT};
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{Error, ErrorCode, Result, ShardIndex, SliceIndex};

/// Messages that may wait for one shard.
pub const MAILBOX: usize = 256;

/// Where a shard puts its answer: runs on the shard's thread and must not wait.
pub struct Answer<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Answer<T> {
    pub fn new(take: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Box::new(take))
    }

    pub fn send(self, value: T) {
        (self.0)(value);
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
