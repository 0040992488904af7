//! Recovery, verification and reads of a store on a simulated disk.

use crate::disk::{PowerCut, SimDisk};
use corefs_engine::store::check::{Check, CheckNeed, CheckReport};
use corefs_engine::store::{Damage, Input, Need, ReadPlan, Recovery, RecoveryReport, Store};
use corefs_wire::Uuid;
use corefs_wire::checksum::crc32c;
use corefs_wire::limits::BLOCK;

/// Why a slice didn't open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OpenError {
    Cut,
    Damage(Damage),
}

impl From<PowerCut> for OpenError {
    fn from(_: PowerCut) -> Self {
        Self::Cut
    }
}

/// Runs recovery to its end.
pub fn open(disk: &mut SimDisk, cluster: Uuid) -> Result<(Store, RecoveryReport), OpenError> {
    let mut recovery = Recovery::new(disk.len(), cluster, None);
    let mut need = recovery.step(Input::Start);
    loop {
        need = match need.map_err(OpenError::Damage)? {
            Need::Read { offset, len } => recovery.step(Input::Bytes(disk.read(offset, len))),
            Need::Write { offset, bytes } => {
                disk.write(offset, &bytes)?;
                recovery.step(Input::Written)
            }
            Need::Flush => {
                disk.flush()?;
                recovery.step(Input::Flushed)
            }
            Need::Done(store, report) => return Ok((*store, report)),
        };
    }
}

/// Runs fsck to its end.
pub fn check(disk: &SimDisk) -> CheckReport {
    let mut check = Check::new(disk.len());
    let mut need = check.step(None);
    loop {
        need = match need {
            CheckNeed::Read { offset, len } => check.step(Some(disk.read(offset, len))),
            CheckNeed::Done(report) => return report,
        };
    }
}

/// The bytes that a plan asks for, each block verified.
pub fn fetch(disk: &SimDisk, plan: &ReadPlan) -> Result<Vec<u8>, String> {
    let blocks: u32 = plan.pieces.iter().map(|piece| piece.blocks).sum();
    let mut bytes = vec![0; blocks as usize * BLOCK];
    for piece in plan.pieces.iter() {
        if let Some(offset) = piece.disk_offset {
            let (at, len) = (piece.first as usize * BLOCK, piece.blocks as usize * BLOCK);
            bytes[at..at + len].copy_from_slice(disk.read(offset, len));
        }
    }
    if plan.crcs.len() != blocks as usize {
        return Err(format!("{} CRCs for {blocks} blocks", plan.crcs.len()));
    }
    for (index, (block, crc)) in bytes.chunks_exact(BLOCK).zip(plan.crcs.iter()).enumerate() {
        if crc32c(block) != *crc {
            return Err(format!("block {index} of the read at {} doesn't match its CRC", plan.offset));
        }
    }
    Ok(bytes)
}
