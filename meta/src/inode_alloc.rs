//! Inode numbers: taken from the store in blocks, given out without asking it.
//!
//! The numbers are cut into lanes far apart, and each block comes from a random one: neighbouring keys are written by
//! one server at a time and the newest inodes of many servers don't all fall into one range of an ordered store. All
//! numbers stay below 2^53, so that JSON tools hold them exactly. A server that stops loses the rest of its block; no number
//! is ever given out twice.

use crate::gate::Gate;
use crate::namespace::Namespace;
use crate::outside::Outside;
use corefs_kv::{Isolation, KvEngine, Transaction, retry};
use corefs_wire::{Error, ErrorCode, InodeId, Result};
use std::cell::RefCell;
use std::ops::Range;

/// Lanes; the lane is the number's bits above [`LANE_BITS`].
pub const LANES: u8 = 32;
/// Numbers of a lane.
pub const LANE_BITS: u32 = 48;
/// Numbers taken from the store at once: one more commit for so many creates.
pub const BLOCK: u64 = 4096;
/// The first block of lane 0 belongs to the root and what else may get a fixed number.
const FIRST_BLOCK: u64 = 1;

const _: () = assert!((LANES as u64) << LANE_BITS <= 1 << 53, "numbers fit a double");

/// The numbers at hand.
#[derive(Default)]
pub(crate) struct InodeIds {
    rest: RefCell<Range<u64>>,
    refilling: Gate<()>,
}

impl InodeIds {
    fn take(&self) -> Option<InodeId> {
        self.rest.borrow_mut().next().map(InodeId)
    }
}

/// The lane and the block within it that a number belongs to.
pub fn block_of(id: InodeId) -> (u64, u64) {
    (id.0 >> LANE_BITS, (id.0 & ((1 << LANE_BITS) - 1)) / BLOCK)
}

impl<E: KvEngine, O: Outside> Namespace<E, O> {
    /// A number that no inode ever had. One task refills for all that wait.
    pub(crate) async fn new_inode_id(&self) -> Result<InodeId> {
        loop {
            if let Some(id) = self.ids.take() {
                return Ok(id);
            }
            let _alone = self.ids.refilling.enter(()).await;
            if self.ids.rest.borrow().is_empty() {
                let block = self.take_block().await?;
                self.ids.rest.replace(block);
            }
        }
    }

    /// A block whose commit is unknown is lost, and another one taken.
    async fn take_block(&self) -> Result<Range<u64>> {
        let lane = (self.outside.random() % u64::from(LANES)) as u8;
        let block = retry::run_repeatable(&self.kv, async |txn: &mut E::Txn| {
            let key = self.keys.id_lane(lane);
            let value = txn.get(&key, Isolation::Serializable).await?;
            let next = match value.map(<[u8; 8]>::try_from) {
                None => FIRST_BLOCK,
                Some(Ok(bytes)) => u64::from_le_bytes(bytes),
                Some(Err(_)) => return Err(Error::new(ErrorCode::Corrupt, "an id lane can't be read")),
            };
            txn.set(&key, &(next + 1).to_le_bytes());
            Ok(next)
        })
        .await?;
        if block >= (1 << LANE_BITS) / BLOCK {
            return Err(Error::new(ErrorCode::NoSpace, "a lane of inode numbers is used up"));
        }
        let first = (u64::from(lane) << LANE_BITS) + block * BLOCK;
        Ok(first..first + BLOCK)
    }
}
