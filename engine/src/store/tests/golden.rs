//! The bytes of format version 1, kept for ever: one small slice with everything in it. A change of the format
//! needs a new version and a new fixture; this one must still open.

use super::*;

const FIXTURE: &str = include_str!("../golden/slice-v1.txt");
const SLICE_BYTES: u64 = 1 << 20;

/// The non-zero blocks of a slice: a line with the offset, then 64 bytes a line, without trailing zeros.
fn dump(disk: &[u8]) -> String {
    let mut text = String::new();
    for (index, block) in disk.chunks(BLOCK).enumerate() {
        let Some(last) = block.iter().rposition(|byte| *byte != 0) else { continue };
        text.push_str(&format!("@{}\n", index * BLOCK));
        for line in block[..=last].chunks(64) {
            line.iter().for_each(|byte| text.push_str(&format!("{byte:02x}")));
            text.push('\n');
        }
    }
    text
}

fn parse(text: &str) -> Vec<u8> {
    let mut disk = vec![0; SLICE_BYTES as usize];
    let mut at = 0;
    for line in text.lines() {
        if let Some(offset) = line.strip_prefix('@') {
            at = offset.parse().unwrap();
            continue;
        }
        for pair in line.as_bytes().chunks(2) {
            disk[at] = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
            at += 1;
        }
    }
    disk
}

/// One of everything: each record kind, a checkpoint with pages, records after it, a pending update.
fn scripted() -> Slice {
    let mut slice = Slice::new(&Geometry { dedup_rows_max: 1, tombstones_max: 1, ..geometry(SLICE_BYTES) });
    slice.write(chunk(0), 0, b"contiguous, one block").unwrap();
    slice.write(chunk(1), 8192, b"after a hole of two blocks").unwrap();
    for index in [2, 3] {
        slice.write(chunk(index), 0, b"removed").unwrap();
        slice.change(chunk(index), UpdateKind::Remove).unwrap();
    }
    for channel in [1, 2] {
        let mut update = slice.tagged(chunk(4), UpdateKind::FullReplace { len: 6, total: 6 });
        update.tag.channel = channel;
        slice.apply(update, b"tagged", Finish::Commit).unwrap();
        slice.flush();
    }
    slice.store.create_target(TargetId(12), ChainId(22)).unwrap();
    slice.checkpoint();
    slice.store.remove_target(TargetId(12)).unwrap();
    let update = slice.tagged(chunk(5), UpdateKind::Write { offset: 3, len: 4 });
    slice.apply(update, b"gone", Finish::Pending).unwrap();
    slice.flush();
    slice.store.drop_pending(TARGET, chunk(5), slice.store.next_version(TARGET, chunk(5)).unwrap()).unwrap();
    slice.apply(slice.update(chunk(6), UpdateKind::Truncate { len: 9 }), &[], Finish::Pending).unwrap();
    slice.flush();
    let version = slice.store.next_version(TARGET, chunk(6)).unwrap();
    slice.store.commit(TARGET, chunk(6), version, 6).unwrap();
    let update = slice.update(chunk(0), UpdateKind::Write { offset: 0, len: 7 });
    slice.apply(update, b"pending", Finish::Pending).unwrap();
    let tag = UpdateTag { client: ClientId(9), sequence: 4, incarnation: 1, channel: 7 };
    let row = DedupRow { tag, chunk: chunk(0), version: 1, length: 21, dropped: false };
    slice.store.put_dedup_row(TARGET, row).unwrap();
    slice.flush();
    slice
}

#[test]
fn bytes_are_what_they_were() {
    let text = dump(&scripted().disk);
    if text != FIXTURE {
        let differs = text.lines().zip(FIXTURE.lines()).position(|(now, then)| now != then);
        panic!("the format changed, first in line {differs:?} of the fixture: that needs a new version");
    }
}

#[test]
fn version_1_opens() {
    let mut disk = parse(FIXTURE);
    let (store, report) = open(&mut disk).unwrap();
    let mut slice = Slice { disk, store, sequence: 0 };
    assert_eq!((report.epoch, report.checkpoint, report.pendings), (3, 2, 1));
    assert_eq!(slice.read(chunk(0)).unwrap(), b"contiguous, one block");
    assert!(slice.read(chunk(1)).unwrap().ends_with(b"\0after a hole of two blocks"));
    assert_eq!(slice.read(chunk(4)).unwrap(), b"tagged");
    assert_eq!(slice.read(chunk(6)).unwrap(), [0; 9]);
    assert_eq!(slice.store.commit(TARGET, chunk(0), 2, 6).unwrap().length, 21);
    assert_eq!(slice.read(chunk(0)).unwrap(), b"pendingous, one block");
    assert_eq!(slice.store.targets().collect::<Vec<_>>(), [(TARGET, ChainId(21))]);
    assert_eq!(slice.store.next_version(TARGET, chunk(2)).unwrap(), 3);
    assert_eq!(slice.store.status(TARGET, chunk(3)).unwrap().version, 2);
    assert_eq!(slice.store.dedup_rows(TARGET).unwrap().len(), 1);
}

/// Writes the fixture of a new format version: `cargo test -p corefs-engine golden -- --ignored`, then review it.
#[test]
#[ignore = "writes the fixture"]
fn write_fixture() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/store/golden/slice-new.txt");
    std::fs::write(path, dump(&scripted().disk)).unwrap();
}
