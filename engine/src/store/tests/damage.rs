use super::check::{Check, CheckNeed, CheckReport, FindingKind};
use super::*;
use crate::store::format::FORMAT_VERSION;

fn fsck(disk: &[u8]) -> CheckReport {
    let mut check = Check::new(disk.len() as u64);
    let mut need = check.step(None);
    loop {
        need = match need {
            CheckNeed::Read { offset, len } => check.step(Some(&disk[offset as usize..][..len])),
            CheckNeed::Done(report) => return report,
        };
    }
}

/// A slice at rest: one chunk, and a seal.
fn resting() -> Slice {
    let mut slice = Slice::new(&geometry(1 << 20));
    slice.write(chunk(2), 0, &[3; 5 * BLOCK]).unwrap();
    let seal = slice.store.seal_batch().unwrap();
    seal.writes.iter().for_each(|write| put(&mut slice.disk, write.offset, &write.bytes));
    slice.store.batch_flushed(seal.id);
    assert!(!slice.store.wants_seal() && slice.store.seal_batch().is_none());
    slice
}

#[test]
fn a_whole_slice_has_no_findings() {
    let report = fsck(&resting().disk);
    assert_eq!(report.findings, []);
    assert_eq!((report.targets, report.chunks, report.blocks), (1, 1, 5));
    assert_eq!(report.inodes, [(chunk(2).inode, 1)].into());
}

#[test]
fn a_bad_block_is_named() {
    let mut slice = resting();
    let plan = slice.store.read(TARGET, chunk(2), 3 * BLOCK as u32, 1).unwrap();
    let at = plan.pieces[0].disk_offset.unwrap();
    slice.store.end_read(plan);
    slice.disk[at as usize + 17] ^= 1;
    let report = fsck(&slice.disk);
    let [finding] = &report.findings[..] else { panic!("{report:?}") };
    assert_eq!(finding.kind, FindingKind::Block);
    assert_eq!((finding.target, finding.chunk, finding.block), (Some(TARGET), Some(chunk(2)), Some(3)));
    assert_eq!(finding.disk_offset, at);
}

#[test]
fn versions_and_strangers_are_refused_by_name() {
    let slice = resting();
    let mut future = slice.disk.clone();
    for offset in [0, future.len() - BLOCK] {
        let block = &mut future[offset..offset + BLOCK];
        block[8..12].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
        let crc = crc32c(&block[8..]);
        block[4..8].copy_from_slice(&crc.to_le_bytes());
    }
    assert_eq!(open(&mut future).unwrap_err().kind, DamageKind::UnknownVersion(FORMAT_VERSION + 1));
    assert_eq!(open(&mut vec![0; 1 << 20]).unwrap_err().kind, DamageKind::NoSuperblock);
    let mut shorter = slice.disk[..slice.disk.len() - BLOCK].to_vec();
    assert_eq!(open(&mut shorter).unwrap_err().kind, DamageKind::WrongSize);
    let refused = |cluster, store| {
        let mut recovery = Recovery::new(slice.disk.len() as u64, cluster, store);
        let mut need = recovery.step(Input::Start);
        while let Ok(Need::Read { offset, len }) = need {
            need = recovery.step(Input::Bytes(&slice.disk[offset as usize..][..len]));
        }
        need.unwrap_err().kind
    };
    assert_eq!(refused(Uuid::NIL, None), DamageKind::WrongCluster);
    assert_eq!(refused(CLUSTER, Some(Uuid::NIL)), DamageKind::WrongStore);
}

#[test]
fn a_hole_in_the_flushed_journal_is_reported_and_an_unfinished_end_is_not() {
    let mut slice = resting();
    let geometry = *slice.store.geometry();
    let mut hole = slice.disk.clone();
    let at = geometry.journal_block_offset(2) as usize;
    hole[at + 200] ^= 1;
    assert_eq!(open(&mut hole).unwrap_err().kind, DamageKind::Journal);
    let kinds: Vec<_> = fsck(&hole).findings.iter().map(|finding| finding.kind).collect();
    assert_eq!(kinds, [FindingKind::Unusable]);
    // A batch whose data never reached the disk ends the journal, as if it had never been.
    slice.apply(slice.update(chunk(9), UpdateKind::Truncate { len: 7 }), &[], Finish::Commit).unwrap();
    let update = slice.update(chunk(3), UpdateKind::Write { offset: 0, len: BLOCK as u32 });
    let before = slice.disk.clone();
    slice.apply(update, &[5; BLOCK], Finish::Commit).unwrap();
    slice.disk = before;
    slice.flush();
    let report = slice.reopen();
    assert_eq!((report.blocks_discarded, report.chunks), (1, 1));
    assert_eq!(slice.read(chunk(2)).unwrap(), [3; 5 * BLOCK]);
}

#[test]
fn an_older_checkpoint_stands_in_while_the_journal_covers_it() {
    let mut slice = resting();
    slice.checkpoint();
    slice.write(chunk(4), 0, b"after the checkpoint").unwrap();
    let (geometry, newest) = (*slice.store.geometry(), 1);
    let mut damaged = slice.disk.clone();
    damaged[geometry.area_offset(newest) as usize + BLOCK + 300] ^= 1;
    let kinds: Vec<_> = fsck(&damaged).findings.iter().map(|finding| finding.kind).collect();
    assert_eq!(kinds, [FindingKind::Checkpoint]);
    let (store, report) = open(&mut damaged).unwrap();
    assert!(report.checkpoint_fallback && store.stats().chunks == 2);
    // Root rotten: only the journal knows that there was a newer one.
    let mut damaged = slice.disk.clone();
    damaged[geometry.area_offset(newest) as usize + 50] ^= 1;
    assert!(open(&mut damaged).unwrap().1.checkpoint_fallback);
    // Once the journal has gone round, the older one alone is too little.
    for round in 0..4 * geometry.journal_blocks {
        slice.write(chunk(round % 3), 0, b"round and round").unwrap();
    }
    for area in 0..2 {
        let mut damaged = slice.disk.clone();
        damaged[geometry.area_offset(area) as usize + BLOCK + 300] ^= 1;
        match open(&mut damaged) {
            Ok((store, _)) => assert_eq!(store.stats().chunks, 4),
            Err(damage) => assert_eq!(damage.kind, DamageKind::Checkpoint),
        }
    }
}

/// Blocks that pass their CRC and are nonsense all the same: refused or survived, never a panic.
#[test]
fn well_sealed_nonsense_is_refused() {
    let mut slice = resting();
    slice.checkpoint();
    let update = slice.tagged(chunk(7), UpdateKind::Write { offset: 0, len: 9000 });
    slice.apply(update, &[4; 9000], Finish::Pending).unwrap();
    slice.write(chunk(8), 5, b"more").unwrap();
    let metadata: Vec<usize> =
        (0..slice.disk.len()).step_by(BLOCK).filter(|at| slice.disk[*at..].starts_with(b"CFS")).collect();
    assert!(metadata.len() > 8);
    let (mut random, mut refused) = (7u64, 0);
    let mut below = |bound: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % bound
    };
    let interesting = [0u32, 1, 2, 0x7FFF_FFFF, u32::MAX, u32::MAX - 1, 4096, 1 << 16];
    for _ in 0..3000 {
        let mut disk = slice.disk.clone();
        for _ in 0..1 + below(2) {
            let block = &mut disk[metadata[below(metadata.len())]..][..BLOCK];
            let used = block.iter().rposition(|byte| *byte != 0).unwrap_or(0).max(80);
            let at = 8 + below(used);
            let value = interesting[below(interesting.len())].to_le_bytes();
            let width = [1, 2, 4][below(3)];
            block[at..at + width].copy_from_slice(&value[..width]);
            let crc = crc32c(&block[8..]);
            block[4..8].copy_from_slice(&crc.to_le_bytes());
        }
        fsck(&disk);
        refused += usize::from(open(&mut disk).is_err());
    }
    assert!(refused > 500, "{refused} refused");
}
