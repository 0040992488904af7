//! Bit rot and misdirected writes on a slice at rest: whatever is damaged, the store says so or it doesn't matter.
//! It never shows other bytes than were written.

use corefs_engine::store::check::FindingKind;
use corefs_sim::disk::SimDisk;
use corefs_sim::prng::Prng;
use corefs_sim::store::Run;
use corefs_sim::store::model::Model;
use corefs_sim::store::open::{OpenError, check, fetch, open};
use corefs_wire::Uuid;
use std::collections::BTreeSet;

const CLUSTER: Uuid = Uuid(*b"sim power cuts!!");

#[derive(Default, Debug)]
struct Outcomes {
    /// It didn't open.
    refused: u64,
    /// A read failed its CRC.
    caught: u64,
    harmless: u64,
    /// It opened with a superblock copy repaired, or with the older checkpoint.
    superblocks: u64,
    checkpoints: u64,
}

/// Opens the damaged disk and looks at everything.
fn look(disk: &SimDisk, model: &Model, outcomes: &mut Outcomes, what: &str) {
    let report = check(disk);
    let mut disk = disk.clone();
    let (mut store, recovered) = match open(&mut disk, CLUSTER) {
        Ok(opened) => opened,
        Err(OpenError::Damage(_)) => {
            assert!(report.findings.iter().any(|finding| finding.kind == FindingKind::Unusable), "{what}");
            outcomes.refused += 1;
            return;
        }
        Err(OpenError::Cut) => unreachable!("no cut was asked for"),
    };
    outcomes.superblocks += u64::from(recovered.superblock_repaired.is_some());
    outcomes.checkpoints += u64::from(recovered.checkpoint_fallback);
    let targets: Vec<_> = store.targets().map(|(id, _)| id).collect();
    assert!(targets.iter().eq(model.targets.keys()), "{what}: other targets");
    let mut bad = BTreeSet::new();
    for (id, target) in &model.targets {
        for (chunk, expected) in &target.chunks {
            let status = store.status(*id, *chunk).unwrap();
            let forgotten = status.version == 0 && expected.content.is_none();
            assert!(status.version == expected.version || forgotten, "{what}: {chunk} of {id}: {status:?}");
            let Some(content) = &expected.content else { continue };
            let plan = store.read(*id, *chunk, 0, u32::MAX).unwrap();
            match fetch(&disk, &plan) {
                Ok(bytes) => {
                    assert!(bytes[..content.len()] == content[..], "{what}: {chunk} of {id} altered")
                }
                Err(_) => {
                    bad.insert((*id, *chunk));
                }
            }
            store.end_read(plan);
        }
    }
    let found = report.findings.iter().filter(|finding| finding.kind == FindingKind::Block);
    let found: BTreeSet<_> = found.filter_map(|finding| Some((finding.target?, finding.chunk?))).collect();
    assert!(bad.is_subset(&found), "{what}: fsck misses {bad:?}, it finds {found:?}");
    if bad.is_empty() { outcomes.harmless += 1 } else { outcomes.caught += 1 }
}

fn worked(seed: u64) -> (SimDisk, Model) {
    let mut run = Run::new(seed, None).unwrap();
    run.work_and_rest(400).unwrap();
    let (disk, model) = (run.disk().clone(), run.model().clone());
    run.finish();
    (disk, model)
}

#[test]
fn a_flipped_bit_never_goes_unnoticed() {
    let mut outcomes = Outcomes::default();
    for seed in 1..=12 {
        let (disk, model) = worked(seed);
        let mut prng = Prng::new(seed);
        for _ in 0..60 {
            let mut damaged = disk.clone();
            let (offset, bit) = (prng.below(disk.len()), prng.below(8) as u8);
            damaged.rot(offset, bit);
            look(&damaged, &model, &mut outcomes, &format!("seed {seed}, bit {bit} of byte {offset}"));
        }
    }
    assert!(outcomes.refused > 3 && outcomes.caught > 50 && outcomes.harmless > 50, "{outcomes:?}");
    assert!(outcomes.checkpoints > 0 && outcomes.superblocks > 0, "{outcomes:?}");
}

#[test]
fn each_superblock_stands_in_for_the_other() {
    let mut outcomes = Outcomes::default();
    for seed in 1..=20 {
        let (disk, model) = worked(seed);
        let ends = [0, disk.len() - 4096];
        for (copy, offset) in ends.into_iter().enumerate() {
            let mut damaged = disk.clone();
            damaged.rot(offset + 100, 3);
            look(&damaged, &model, &mut outcomes, &format!("seed {seed}, superblock {copy}"));
        }
        let mut damaged = disk.clone();
        ends.into_iter().for_each(|offset| damaged.rot(offset + 100, 3));
        assert!(matches!(open(&mut damaged, CLUSTER), Err(OpenError::Damage(_))), "no superblock is left");
    }
    assert_eq!((outcomes.superblocks, outcomes.refused), (40, 0), "{outcomes:?}");
}

#[test]
fn a_misdirected_write_never_goes_unnoticed() {
    let mut outcomes = Outcomes::default();
    for seed in 1..=18 {
        let (disk, model) = worked(seed);
        let mut prng = Prng::new(seed);
        let blocks = disk.len() / 4096;
        for _ in 0..60 {
            let mut damaged = disk.clone();
            let (from, to) = (prng.below(blocks) * 4096, prng.below(blocks) * 4096);
            damaged.misdirect(from, to, 4096);
            look(&damaged, &model, &mut outcomes, &format!("seed {seed}, block at {from} went to {to}"));
        }
    }
    assert!(outcomes.refused > 10 && outcomes.caught > 50 && outcomes.harmless > 50, "{outcomes:?}");
}

#[test]
fn another_cluster_is_refused() {
    let (mut disk, _) = worked(1);
    let refused = open(&mut disk, Uuid(*b"somebody else's!"));
    assert!(
        matches!(refused, Err(OpenError::Damage(damage)) if format!("{damage:?}").contains("WrongCluster"))
    );
}
