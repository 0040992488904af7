//! Batches that were flushed though nothing on the disk says so yet, and blocks that they had given away by themselves.

use super::*;

const OTHER: TargetId = TargetId(12);
const PART: u32 = 4 * BLOCK as u32;

/// A part of a fill: applied and written, and committed before its flush.
fn fill(slice: &mut Slice, target: TargetId, kind: UpdateKind, payload: &[u8]) {
    let base = slice.store.entry(target, chunk(0)).unwrap().map_or(0, |entry| entry.digest);
    let update = Update { target, version: 3, ..slice.update(chunk(0), kind) };
    let Begin::Fresh(staging) = slice.store.begin_fill(update, base).unwrap() else { panic!("no duplicate") };
    slice.finish(staging, payload, Finish::Commit).unwrap();
    slice.store.commit_written(target, chunk(0)).unwrap();
}

/// Where the chunk's committed blocks are on the disk.
fn places(slice: &mut Slice, target: TargetId) -> Vec<u64> {
    let plan = slice.store.read(target, chunk(0), 0, u32::MAX).unwrap();
    let piece = |piece: &Piece| {
        let offset = piece.disk_offset.unwrap();
        (0..u64::from(piece.blocks)).map(move |block| offset + block * BLOCK as u64)
    };
    let places = plan.pieces.iter().flat_map(piece).collect();
    slice.store.end_read(plan);
    places
}

/// A batch with an acknowledged update, with a filled chunk of four blocks, and with what gives some of these away. It is flushed;
/// the next one writes over what was given away, and is lost. Returns the slice as it comes back.
fn survives(target: TargetId, give_away: impl FnOnce(&mut Slice)) -> Slice {
    let mut slice = Slice::new(&geometry(1 << 20));
    slice.store.create_target(OTHER, ChainId(22)).unwrap();
    slice.flush();
    let acknowledged = slice.update(chunk(9), UpdateKind::Write { offset: 0, len: 4 });
    slice.apply(acknowledged, b"kept", Finish::Commit).unwrap();
    let replace = UpdateKind::FullReplace { len: PART, total: PART };
    fill(&mut slice, target, replace, &[1; PART as usize]);
    let named = places(&mut slice, target);
    give_away(&mut slice);
    let durable = slice.flush();
    assert!(durable.iter().any(|durable| durable.chunk == chunk(9)), "it is acknowledged");
    let is_new = |slice: &Slice| named.iter().any(|place| slice.disk[*place as usize] == 0xEE);
    let unheard = (100..).take_while(|index| {
        let update = slice.update(chunk(*index), UpdateKind::Write { offset: 0, len: BLOCK as u32 });
        slice.apply(update, &[0xEE; BLOCK], Finish::Commit).unwrap();
        !is_new(&slice)
    });
    assert!(unheard.count() < 100, "what was given away is written again");
    slice.reopen();
    assert_eq!(slice.read(chunk(9)).unwrap(), b"kept");
    slice
}

fn write(offset: u32, byte: u8) -> impl FnOnce(&mut Slice) {
    move |slice| {
        let update = slice.update(chunk(0), UpdateKind::Write { offset, len: BLOCK as u32 });
        slice.apply(update, &[byte; BLOCK], Finish::Commit).unwrap();
    }
}

#[test]
fn a_batch_survives_that_overwrites_its_own_blocks() {
    let mut slice = survives(TARGET, write(2 * BLOCK as u32, 7));
    let expected: Vec<u8> = [1, 1, 7, 1].iter().flat_map(|byte| [*byte; BLOCK]).collect();
    assert_eq!(slice.read(chunk(0)).unwrap(), expected);
}

#[test]
fn a_batch_survives_that_patches_its_own_blocks() {
    let patch = UpdateKind::Patch { offset: 0, len: BLOCK as u32 };
    let mut slice = survives(TARGET, |slice| fill(slice, TARGET, patch, &[7; BLOCK]));
    assert_eq!(slice.read(chunk(0)).unwrap()[..BLOCK], [7; BLOCK]);
}

#[test]
fn a_batch_survives_that_truncates_its_own_blocks() {
    let mut slice = survives(TARGET, |slice| {
        let update = slice.update(chunk(0), UpdateKind::Truncate { len: BLOCK as u32 + 5 });
        slice.apply(update, &[], Finish::Commit).unwrap();
    });
    assert_eq!(slice.read(chunk(0)).unwrap(), [1; BLOCK + 5]);
}

#[test]
fn a_batch_survives_that_removes_its_own_blocks() {
    let mut slice = survives(TARGET, |slice| {
        let update = slice.update(chunk(0), UpdateKind::Remove);
        slice.apply(update, &[], Finish::Commit).unwrap();
    });
    assert_eq!(slice.read(chunk(0)).unwrap_err().code, ErrorCode::NoSuchChunk);
}

#[test]
fn a_batch_survives_that_replaces_its_own_blocks() {
    let replace = UpdateKind::FullReplace { len: BLOCK as u32, total: BLOCK as u32 };
    let mut slice = survives(TARGET, |slice| fill(slice, TARGET, replace, &[7; BLOCK]));
    assert_eq!(slice.read(chunk(0)).unwrap(), [7; BLOCK]);
}

#[test]
fn a_batch_survives_that_removes_a_target_with_its_own_blocks() {
    let slice = survives(OTHER, |slice| {
        slice.store.remove_target(OTHER).unwrap();
    });
    assert!(slice.store.targets().all(|(target, _)| target != OTHER));
}

/// What the batch still names must be there: else its flush never was, and nothing of it was promised.
#[test]
fn a_batch_without_its_data_does_not_count() {
    for block in [0, 2] {
        let mut slice = Slice::new(&geometry(1 << 20));
        let replace = UpdateKind::FullReplace { len: PART, total: PART };
        fill(&mut slice, TARGET, replace, &[1; PART as usize]);
        write(2 * BLOCK as u32, 7)(&mut slice);
        slice.flush();
        let lost = places(&mut slice, TARGET)[block];
        slice.disk[lost as usize] ^= 1;
        assert!(slice.reopen().blocks_discarded > 0);
        assert_eq!(slice.read(chunk(0)).unwrap_err().code, ErrorCode::NoSuchChunk);
    }
}

/// A drop takes back one update, not whatever has that version.
#[test]
fn a_version_that_is_given_again_after_a_drop_must_have_its_data() {
    let mut slice = Slice::new(&geometry(1 << 20));
    let update = slice.update(chunk(0), UpdateKind::Write { offset: 0, len: 3 });
    slice.apply(update, b"abc", Finish::Pending).unwrap();
    slice.store.drop_pending(TARGET, chunk(0), 1).unwrap();
    slice.apply(update, b"xyz", Finish::Commit).unwrap();
    slice.flush();
    let place = places(&mut slice, TARGET)[0] as usize;
    slice.disk[place] ^= 1;
    assert!(slice.reopen().blocks_discarded > 0);
}
