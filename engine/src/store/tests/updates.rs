use super::*;

/// A small slice, with bounds that tests reach.
fn small() -> Slice {
    Slice::new(&Geometry { dedup_rows_max: 2, tombstones_max: 2, ..geometry(1 << 20) })
}

#[test]
fn old_bytes_never_come_back() {
    let mut slice = small();
    slice.write(chunk(0), 0, &[7; 10_000]).unwrap();
    slice.change(chunk(0), UpdateKind::Truncate { len: 5_000 }).unwrap();
    slice.change(chunk(0), UpdateKind::Truncate { len: 12_000 }).unwrap();
    let mut expected = vec![7; 5_000];
    expected.resize(12_000, 0);
    assert_eq!(slice.read(chunk(0)).unwrap(), expected);
    slice.write(chunk(0), 20_000, b"after a gap").unwrap();
    expected.resize(20_000, 0);
    expected.extend_from_slice(b"after a gap");
    assert_eq!(slice.read(chunk(0)).unwrap(), expected);
    slice.reopen();
    assert_eq!(slice.read(chunk(0)).unwrap(), expected);
}

#[test]
fn only_touched_blocks_move() {
    let mut slice = small();
    slice.write(chunk(0), 0, &[1; 16 * BLOCK]).unwrap();
    let places = |slice: &mut Slice| {
        let plan = slice.store.read(TARGET, chunk(0), 0, u32::MAX).unwrap();
        let pieces: Vec<_> = plan.pieces.iter().map(|piece| (piece.disk_offset, piece.blocks)).collect();
        slice.store.end_read(plan);
        pieces
    };
    let before = places(&mut slice);
    assert_eq!(before.len(), 1, "a chunk written at once is contiguous");
    slice.write(chunk(0), 5 * BLOCK as u32 + 10, b"ten bytes!").unwrap();
    let after = places(&mut slice);
    assert_eq!(after.iter().map(|(_, blocks)| *blocks).collect::<Vec<_>>(), [5, 1, 10]);
    assert_eq!((before[0].0, slice.store.stats().fragmented), (after[0].0, 1));
    slice.write(chunk(0), 0, &[2; 16 * BLOCK]).unwrap();
    assert_eq!((places(&mut slice).len(), slice.store.stats().fragmented), (1, 0));
    assert_eq!(slice.store.space().used, 16 * BLOCK as u64);
}

#[test]
fn a_retry_is_recognised_at_every_stage() {
    let mut slice = small();
    let update = slice.tagged(chunk(0), UpdateKind::Write { offset: 0, len: 3 });
    slice.apply(update, b"abc", Finish::Pending).unwrap();
    assert!(matches!(slice.store.begin_update(update), Ok(Begin::InProgress { version: 1 })));
    slice.flush();
    assert!(matches!(slice.store.begin_update(update), Ok(Begin::InProgress { version: 1 })));
    assert_eq!(slice.read(chunk(0)).unwrap_err().code, ErrorCode::NoSuchChunk, "pending isn't visible");
    slice.reopen();
    assert!(matches!(slice.store.begin_update(update), Ok(Begin::InProgress { version: 1 })));
    slice.store.commit(TARGET, chunk(0), 1, 5).unwrap();
    let done = Outcome { version: 1, length: 3 };
    assert!(matches!(slice.store.begin_update(update), Ok(Begin::Done(outcome)) if outcome == done));
    assert_eq!(slice.read(chunk(0)).unwrap(), b"abc");
    slice.checkpoint();
    slice.reopen();
    assert!(matches!(slice.store.begin_update(update), Ok(Begin::Done(outcome)) if outcome == done));
    let later = slice.tagged(chunk(1), UpdateKind::Write { offset: 0, len: 1 });
    slice.apply(later, b"z", Finish::Commit).unwrap();
    slice.flush();
    assert_eq!(slice.store.begin_update(update).unwrap_err().code, ErrorCode::Duplicate);
}

#[test]
fn a_dropped_update_is_new_again() {
    let mut slice = small();
    let update = slice.tagged(chunk(0), UpdateKind::Write { offset: 0, len: 3 });
    slice.apply(update, b"abc", Finish::Pending).unwrap();
    slice.flush();
    let other = slice.update(chunk(0), UpdateKind::Remove);
    assert_eq!(slice.store.begin_update(other).unwrap_err().code, ErrorCode::Pending);
    slice.store.drop_pending(TARGET, chunk(0), 1).unwrap();
    slice.flush();
    slice.reopen();
    let space = slice.store.space();
    assert_eq!((space.used, space.reserved), (0, 0));
    slice.apply(update, b"abc", Finish::Commit).unwrap();
    slice.flush();
    assert_eq!(slice.read(chunk(0)).unwrap(), b"abc");
}

#[test]
fn rows_and_tombstones_are_bounded_and_versions_never_restart() {
    let mut slice = small();
    for index in 0..8 {
        slice.write(chunk(index), 0, b"x").unwrap();
        slice.change(chunk(index), UpdateKind::Remove).unwrap();
    }
    assert_eq!((slice.store.stats().tombstones, slice.store.stats().chunks), (2, 0));
    slice.reopen();
    // The tombstones of all but the last two are forgotten; each had raised the floor above its version.
    let next = |index| slice.store.next_version(TARGET, chunk(index)).unwrap();
    assert_eq!([next(0), next(5), next(99)], [5, 5, 5]);
    assert_eq!([next(6), next(7)], [7, 7]);
    for channel in 0..5 {
        let mut update = slice.tagged(chunk(channel), UpdateKind::Write { offset: 0, len: 1 });
        update.tag.channel = channel;
        slice.apply(update, b"x", Finish::Commit).unwrap();
        slice.flush();
    }
    let channels: Vec<_> =
        slice.store.dedup_rows(TARGET).unwrap().iter().map(|row| row.tag.channel).collect();
    assert_eq!(channels, [3, 4]);
}

#[test]
fn truncate_epochs_refuse_late_writes() {
    let mut slice = small();
    slice.write(chunk(0), 0, b"abc").unwrap();
    let truncate = Update { truncate_epoch: 4, ..slice.update(chunk(0), UpdateKind::Truncate { len: 1 }) };
    slice.apply(truncate, &[], Finish::Commit).unwrap();
    slice.flush();
    slice.checkpoint();
    slice.reopen();
    let late = slice.update(chunk(0), UpdateKind::Write { offset: 1, len: 1 });
    assert_eq!(slice.store.begin_update(late).unwrap_err().code, ErrorCode::StaleLayout);
}

#[test]
fn a_full_slice_refuses_and_recovers() {
    let mut slice = small();
    let mut written = 0;
    let full = loop {
        match slice.write(chunk(written), 0, &[written as u8; 4 * BLOCK]) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full.code, ErrorCode::NoSpace);
    let space = slice.store.space();
    assert_eq!(slice.store.audit(), []);
    assert_eq!(slice.store.space(), space);
    slice.write(chunk(0), 100, b"overwriting still works").unwrap();
    slice.change(chunk(1), UpdateKind::Truncate { len: 5 }).unwrap();
    slice.change(chunk(2), UpdateKind::Remove).unwrap();
    slice.write(chunk(2), 0, &[9; 4 * BLOCK]).unwrap();
    for index in 3..written {
        assert_eq!(slice.read(chunk(index)).unwrap(), [index as u8; 4 * BLOCK]);
    }
    assert_eq!(slice.read(chunk(2)).unwrap(), [9; 4 * BLOCK]);
}

#[test]
fn a_full_journal_waits_for_the_checkpoint_and_never_longer() {
    let mut slice = small();
    let refused = (0..1000u32).find_map(|n| {
        let update = slice.update(chunk(n % 8), UpdateKind::Write { offset: 0, len: 1 });
        let result = slice.apply(update, b"x", Finish::Commit);
        slice.flush();
        result.err()
    });
    let refused = refused.unwrap();
    assert_eq!(refused.code, ErrorCode::Overloaded);
    assert!(slice.store.wants_checkpoint());
    slice.checkpoint();
    for n in 0..100 {
        slice.write(chunk(n % 8), 0, b"y").unwrap();
    }
    assert_eq!(slice.read(chunk(3)).unwrap(), b"y");
}

#[test]
fn the_largest_chunk_fits() {
    let mut slice = Slice::new(&geometry(160 << 20));
    let len = corefs_wire::limits::CHUNK_MAX;
    let bytes: Vec<u8> = (0..len).map(|n| (n / 4096 * 31) as u8).collect();
    let update = slice.update(chunk(0), UpdateKind::FullReplace { len, total: len });
    slice.apply(update, &bytes, Finish::Pending).unwrap();
    slice.flush();
    slice.reopen();
    slice.store.commit(TARGET, chunk(0), 1, 5).unwrap();
    slice.write(chunk(0), len - 1, b"!").unwrap();
    slice.checkpoint();
    slice.reopen();
    let found = slice.read(chunk(0)).unwrap();
    assert!(found[..len as usize - 1] == bytes[..len as usize - 1] && found.last() == Some(&b'!'));
    let beyond = slice.update(chunk(0), UpdateKind::Write { offset: len, len: 1 });
    assert_eq!(slice.store.begin_update(beyond).unwrap_err().code, ErrorCode::InvalidArgument);
}

#[test]
fn pinned_blocks_wait_for_their_readers() {
    let mut slice = small();
    slice.write(chunk(0), 0, &[1; BLOCK]).unwrap();
    let plan = slice.store.read(TARGET, chunk(0), 0, 1).unwrap();
    slice.write(chunk(0), 0, &[2; BLOCK]).unwrap();
    assert_eq!(slice.store.space().reserved, BLOCK as u64);
    slice.store.end_read(plan);
    assert_eq!(slice.store.space().reserved, 0);
}

#[test]
fn a_removed_target_gives_everything_back_and_its_id_is_gone() {
    let mut slice = small();
    slice.write(chunk(0), 0, &[1; 9 * BLOCK]).unwrap();
    let pending = slice.tagged(chunk(1), UpdateKind::Write { offset: 0, len: 1 });
    slice.apply(pending, b"p", Finish::Pending).unwrap();
    slice.store.remove_target(TARGET).unwrap();
    slice.flush();
    let space = slice.store.space();
    assert_eq!((space.used, space.reserved, space.free), (0, 0, space.total));
    slice.reopen();
    assert_eq!(slice.store.targets().count(), 0);
    assert_eq!(slice.store.create_target(TARGET, ChainId(1)).unwrap_err().code, ErrorCode::Exists);
    assert_eq!(slice.store.read(TARGET, chunk(0), 0, 1).unwrap_err().code, ErrorCode::UnknownChain);
}

#[test]
fn listings_are_in_order_and_paged() {
    let mut slice = small();
    for index in [5, 1, 3] {
        slice.write(chunk(index), 0, &vec![0; 10 + index as usize]).unwrap();
    }
    slice.change(chunk(3), UpdateKind::Remove).unwrap();
    let other = ChunkId::new(InodeId(78), 0);
    slice.write(other, 0, b"x").unwrap();
    let list = |from, max| slice.store.list(TARGET, InodeId(77), from, max).unwrap();
    let lengths: Vec<_> = list(0, 9).iter().map(|info| (info.chunk.index, info.length)).collect();
    assert_eq!(lengths, [(1, 11), (5, 15)]);
    assert_eq!(list(2, 9).len(), 1);
    assert_eq!(slice.store.chunks(TARGET, Some(chunk(1)), 1).unwrap()[0].chunk, chunk(5));
    assert_eq!(slice.store.chunks(TARGET, None, 9).unwrap().len(), 3);
}

#[test]
#[should_panic(expected = "neither applied nor abandoned")]
fn a_forgotten_plan_is_a_bug() {
    let mut slice = small();
    let update = slice.update(chunk(0), UpdateKind::Truncate { len: 9 });
    let Ok(Begin::Fresh(staging)) = slice.store.begin_update(update) else { panic!("it is new") };
    let _ = slice.store.stage(staging, &[], Finish::Commit);
}

#[test]
#[should_panic(expected = "was dropped, not ended")]
fn a_forgotten_read_is_a_bug() {
    let mut slice = small();
    slice.write(chunk(0), 0, b"x").unwrap();
    let _ = slice.store.read(TARGET, chunk(0), 0, 1);
}
