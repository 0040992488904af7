//! Two stores, one of which is made what the other is.

use super::*;
use corefs_wire::limits::CHUNK_MAX;

/// Makes `to` hold what `from` has committed of a chunk, in parts of so many bytes.
fn fill(from: &mut Slice, to: &mut Slice, chunk: ChunkId, part: u32) -> corefs_wire::Result<()> {
    let ours = from.store.entry(TARGET, chunk)?.unwrap();
    let base = to.store.entry(TARGET, chunk)?.map_or(0, |entry| entry.digest);
    let bytes = if ours.removed { Vec::new() } else { from.read(chunk)? };
    let bytes = &bytes[..ours.mapped as usize];
    let mut parts = bytes.chunks(part as usize);
    let first = parts.next().unwrap_or_default();
    let kind = if ours.removed {
        UpdateKind::Remove
    } else {
        UpdateKind::FullReplace { len: first.len() as u32, total: ours.length }
    };
    send(to, &ours, kind, base, first)?;
    for (at, rest) in parts.enumerate() {
        let offset = (at as u32 + 1) * part;
        send(to, &ours, UpdateKind::Patch { offset, len: rest.len() as u32 }, base, rest)?;
    }
    Ok(())
}

fn send(to: &mut Slice, entry: &Entry, kind: UpdateKind, base: u64, bytes: &[u8]) -> corefs_wire::Result<()> {
    let (version, truncate_epoch, tag) = (entry.version, entry.epoch, UpdateTag::default());
    let update =
        Update { target: TARGET, chunk: entry.chunk, kind, version, chain_version: 5, truncate_epoch, tag };
    let Begin::Fresh(staging) = to.store.begin_fill(update, base)? else { panic!("fills are no duplicates") };
    assert!(staging.merges.is_empty(), "parts are whole blocks");
    to.finish(staging, bytes, Finish::Commit)?;
    to.flush();
    Ok(())
}

fn digest(slice: &Slice) -> u64 {
    slice.store.digest(TARGET, ChunkId::default(), ChunkId::MAX).unwrap()
}

fn small() -> Slice {
    Slice::new(&geometry(4 << 20))
}

#[test]
fn a_filled_store_has_the_same_digest_also_after_a_restart() {
    let (mut from, mut to) = (small(), small());
    from.write(chunk(0), 0, &[1; 5 * BLOCK + 77]).unwrap();
    from.write(chunk(1), 3 * BLOCK as u32, b"after a hole").unwrap();
    from.change(chunk(1), UpdateKind::Truncate { len: 9 * BLOCK as u32 }).unwrap();
    from.write(chunk(2), 0, b"gone").unwrap();
    from.change(chunk(2), UpdateKind::Remove).unwrap();
    from.change(chunk(3), UpdateKind::Truncate { len: 0 }).unwrap();
    // The other has something else in each place.
    for _ in 0..3 {
        to.write(chunk(0), 0, &[2; 7 * BLOCK]).unwrap();
    }
    to.write(chunk(2), 0, b"there").unwrap();
    assert_ne!(digest(&from), digest(&to));
    for index in 0..4 {
        fill(&mut from, &mut to, chunk(index), 2 * BLOCK as u32).unwrap();
        assert_eq!(to.store.entry(TARGET, chunk(index)), from.store.entry(TARGET, chunk(index)));
    }
    assert_eq!(digest(&from), digest(&to));
    to.reopen();
    assert_eq!(digest(&from), digest(&to));
    to.checkpoint();
    to.reopen();
    assert_eq!(digest(&from), digest(&to));
    assert_eq!(to.read(chunk(0)).unwrap(), from.read(chunk(0)).unwrap());
    assert_eq!(to.read(chunk(1)).unwrap(), from.read(chunk(1)).unwrap());
    assert_eq!(to.store.next_version(TARGET, chunk(2)).unwrap(), 3);
}

#[test]
fn a_fill_that_was_made_for_something_else_changes_nothing() {
    let (mut from, mut to) = (small(), small());
    from.write(chunk(0), 0, &[1; 2 * BLOCK]).unwrap();
    fill(&mut from, &mut to, chunk(0), BLOCK as u32).unwrap();
    let ours = from.store.entry(TARGET, chunk(0)).unwrap().unwrap();
    let code = |result: corefs_wire::Result<()>| result.map_err(|error| error.code);
    // A copy that comes late: the chunk is another by now.
    to.write(chunk(0), 0, b"newer").unwrap();
    let replace = UpdateKind::FullReplace { len: 4096, total: 8192 };
    let patch = UpdateKind::Patch { offset: 4096, len: 4096 };
    for kind in [replace, patch, UpdateKind::Remove] {
        let refused = code(send(&mut to, &ours, kind, 0, &[0; BLOCK]));
        assert_eq!(refused, Err(ErrorCode::BaseDiffers), "{kind:?}");
    }
    assert!(to.read(chunk(0)).unwrap().starts_with(b"newer"));
    for kind in [
        UpdateKind::Patch { offset: 1, len: 4096 },
        UpdateKind::Patch { offset: 0, len: 0 },
        UpdateKind::FullReplace { len: 9, total: 8 },
        UpdateKind::FullReplace { len: 9, total: CHUNK_MAX + 1 },
    ] {
        let update = Update { kind, ..from.update(chunk(0), UpdateKind::Remove) };
        assert_eq!(to.store.begin_fill(update, 0).unwrap_err().code, ErrorCode::InvalidArgument, "{kind:?}");
    }
}

#[test]
fn rows_and_floors_only_get_newer() {
    let mut slice = small();
    let tag = |sequence| UpdateTag { client: ClientId(1), sequence, incarnation: 1, channel: 3 };
    let row =
        |sequence, dropped| DedupRow { tag: tag(sequence), chunk: chunk(0), version: 1, length: 2, dropped };
    let mut put = |row| {
        slice.store.put_dedup_row(TARGET, row).unwrap();
        slice.flush();
        slice.reopen();
        let found = slice.store.dedup_rows(TARGET).unwrap();
        (found[0].tag.sequence, found[0].dropped)
    };
    assert_eq!(put(row(5, true)), (5, true));
    assert_eq!(put(row(5, false)), (5, false));
    assert_eq!(put(row(5, true)), (5, false), "it was taken for new after the row had left, and done");
    assert_eq!(put(row(4, false)), (5, false));
    assert_eq!(put(row(6, false)), (6, false));
    assert_eq!(slice.store.rows_after(TARGET, Some(tag(0)), 9).unwrap(), []);
    for (floor, expected) in [(7, 7), (5, 7), (9, 9)] {
        slice.store.take_floor(TARGET, floor).unwrap();
        slice.flush();
        slice.reopen();
        assert_eq!(slice.store.floor(TARGET), Ok(expected));
    }
    assert_eq!(slice.store.next_version(TARGET, chunk(1)), Ok(10));
}

#[test]
fn ranges_are_cut_in_order() {
    let mut slice = small();
    for index in 0..10 {
        slice.write(chunk(index), 0, b"x").unwrap();
    }
    let entries = |from, last, max| {
        let found = slice.store.entries(TARGET, from, last, max).unwrap();
        found.iter().map(|entry| entry.chunk.index).collect::<Vec<_>>()
    };
    assert_eq!(entries(ChunkId::default(), ChunkId::MAX, 3), [0, 1, 2]);
    assert_eq!(entries(chunk(3), chunk(5), 9), [3, 4, 5]);
    assert_eq!(entries(chunk(5), chunk(3), 9), [0; 0], "nothing, and no panic");
    let parts = [(ChunkId::default(), chunk(4)), (chunk(5), ChunkId::MAX)]
        .map(|(from, last)| slice.store.digest(TARGET, from, last).unwrap());
    assert_ne!(parts[0], parts[1]);
    assert_eq!(slice.store.target_chunks(TARGET), 10);
}
