//! Formatting and recovering slices, by waiting for the disk: done before a shard's loop begins.

use super::{BlockingDisk, Pages};
use crate::store::{Geometry, Input, Need, READ_MAX, Recovery, RecoveryReport, Store, format};
use corefs_wire::{Error, Result, Uuid};

/// Where a slice lies on its disk (bytes).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Extent {
    pub base: u64,
    pub bytes: u64,
}

/// Writes an empty store and makes it durable. Its journal gets its place on the disk: each batch of the first round through it would pay for that otherwise.
pub fn format_slice(disk: &mut dyn BlockingDisk, base: u64, geometry: &Geometry) -> Result<()> {
    let journal = geometry.journal_offset()..geometry.data_offset(0);
    disk.settle(base + journal.start, journal.end - journal.start)?;
    for write in format::initial_writes(geometry) {
        disk.write_at(base + write.offset, &write.bytes)?;
    }
    disk.flush()
}

/// Opens the slice in `extent`. The error says what is damaged and where; `WrongCluster` for a store of another cluster, or
/// another store than `store`. `progress` hears of the bytes read so far.
pub fn recover_slice(
    disk: &mut dyn BlockingDisk,
    extent: Extent,
    cluster: Uuid,
    store: Uuid,
    progress: &mut dyn FnMut(u64),
) -> Result<(Store, RecoveryReport)> {
    let mut recovery = Recovery::new(extent.bytes, cluster, Some(store));
    let mut memory = Pages::new(READ_MAX);
    let mut need = recovery.step(Input::Start).map_err(Error::from)?;
    let mut read = 0;
    loop {
        let next = match need {
            Need::Read { offset, len } => {
                let bytes = &mut memory.bytes_mut()[..len];
                disk.read_at(extent.base + offset, bytes)?;
                read += len as u64;
                progress(read);
                recovery.step(Input::Bytes(bytes))
            }
            Need::Write { offset, bytes } => {
                disk.write_at(extent.base + offset, &bytes)?;
                recovery.step(Input::Written)
            }
            Need::Flush => {
                disk.flush()?;
                recovery.step(Input::Flushed)
            }
            Need::Done(store, report) => return Ok((*store, report)),
        };
        need = next.map_err(Error::from)?;
    }
}

#[cfg(test)]
mod tests {
    use super::super::mem::MemDisk;
    use super::*;
    use corefs_wire::{ChainId, ErrorCode, NodeId, SliceIndex, TargetId};

    const BYTES: u64 = 4 << 20;
    const CLUSTER: Uuid = Uuid([1; 16]);
    const STORE: Uuid = Uuid([2; 16]);

    fn formatted(base: u64) -> MemDisk {
        let mut disk = MemDisk::new(base + BYTES);
        let geometry = Geometry::for_slice(CLUSTER, STORE, NodeId(1), SliceIndex(0), BYTES).unwrap();
        format_slice(&mut disk, base, &geometry).unwrap();
        disk
    }

    fn recover(disk: &mut MemDisk, base: u64, store: Uuid) -> Result<(Store, RecoveryReport)> {
        recover_slice(disk, Extent { base, bytes: BYTES }, CLUSTER, store, &mut |_| ())
    }

    #[test]
    fn a_formatted_slice_opens_and_keeps_what_was_flushed() {
        let mut disk = formatted(8192);
        let (mut store, _) = recover(&mut disk, 8192, STORE).unwrap();
        store.create_target(TargetId(5), ChainId(6)).unwrap();
        let batch = store.seal_batch().unwrap();
        batch.writes.iter().for_each(|write| disk.write_at(8192 + write.offset, &write.bytes).unwrap());
        let before = disk.power_cut();
        disk.flush().unwrap();
        let targets = |disk: &mut MemDisk| {
            let (store, _) = recover(disk, 8192, STORE).unwrap();
            store.targets().collect::<Vec<_>>()
        };
        assert_eq!(targets(&mut disk.power_cut()), [(TargetId(5), ChainId(6))]);
        assert_eq!(targets(&mut before.clone()), []);
    }

    #[test]
    fn refuses_what_is_not_its_own() {
        let mut disk = formatted(0);
        assert_eq!(recover(&mut disk, 0, Uuid([9; 16])).unwrap_err().code, ErrorCode::WrongCluster);
        let mut empty = MemDisk::new(BYTES);
        assert_eq!(recover(&mut empty, 0, STORE).unwrap_err().code, ErrorCode::BadFormat);
        disk.fails_after = Some(0);
        assert_eq!(recover(&mut disk, 0, STORE).unwrap_err().code, ErrorCode::DiskError);
    }
}
