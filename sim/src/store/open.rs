//! Recovery, verification and reads of a store on a simulated disk.

use crate::disk::{PowerCut, SimDisk};
use corefs_engine::store::check::{Check, CheckNeed, CheckReport};
use corefs_engine::store::{Damage, Input, Need, Piece, ReadPlan, Recovery, RecoveryReport, Store};
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
                disk.write(offset, bytes)?;
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
    fetch_blocks(disk, &plan.pieces, &plan.crcs)
        .map_err(|what| format!("{what} of the read at {}", plan.offset))
}

/// The bytes of these pieces, each block verified.
pub fn fetch_blocks(disk: &SimDisk, pieces: &[Piece], crcs: &[u32]) -> Result<Vec<u8>, String> {
    let bytes = raw_blocks(disk, pieces);
    let blocks = bytes.len() / BLOCK;
    if crcs.len() != blocks {
        return Err(format!("{} CRCs for {blocks} blocks", crcs.len()));
    }
    match bytes.chunks_exact(BLOCK).zip(crcs).position(|(block, crc)| crc32c(block) != *crc) {
        Some(index) => Err(format!("a block doesn't match its CRC: number {index}")),
        None => Ok(bytes),
    }
}

/// The bytes of these pieces, whatever they are.
pub fn raw_blocks(disk: &SimDisk, pieces: &[Piece]) -> Vec<u8> {
    let blocks: u32 = pieces.iter().map(|piece| piece.blocks).sum();
    let mut bytes = vec![0; blocks as usize * BLOCK];
    for piece in pieces {
        if let Some(offset) = piece.disk_offset {
            let (at, len) = (piece.first as usize * BLOCK, piece.blocks as usize * BLOCK);
            bytes[at..at + len].copy_from_slice(disk.read(offset, len));
        }
    }
    bytes
}
