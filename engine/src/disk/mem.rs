//! A disk in memory that knows what a power cut may take: for tests.

use super::BlockingDisk;
use corefs_wire::limits::BLOCK;
use corefs_wire::{Error, ErrorCode, Result};
use std::collections::BTreeMap;

/// Blocks that were never written read as zeros.
#[derive(Clone, Default, Debug)]
pub struct MemDisk {
    bytes: u64,
    flushed: BTreeMap<u64, Box<[u8]>>,
    cached: BTreeMap<u64, Box<[u8]>>,
    /// Operations until everything fails; `None`: never.
    pub fails_after: Option<u64>,
}

impl MemDisk {
    pub fn new(bytes: u64) -> Self {
        Self { bytes, ..Self::default() }
    }

    /// What is left when the power fails and the cache held nothing back.
    #[must_use]
    pub fn power_cut(&self) -> Self {
        Self { cached: BTreeMap::new(), fails_after: None, ..self.clone() }
    }

    fn operate(&mut self, offset: u64, len: usize) -> Result<()> {
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= self.bytes);
        let whole = offset.is_multiple_of(BLOCK as u64) && len.is_multiple_of(BLOCK);
        let left = self.fails_after.as_mut().map(|left| {
            let now = *left;
            *left = left.saturating_sub(1);
            now
        });
        if inside && whole && left != Some(0) {
            return Ok(());
        }
        Err(Error::new(ErrorCode::DiskError, format!("{len} bytes at {offset} of {}", self.bytes)))
    }
}

impl BlockingDisk for MemDisk {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&mut self, offset: u64, to: &mut [u8]) -> Result<()> {
        self.operate(offset, to.len())?;
        for (block, to) in (offset / BLOCK as u64..).zip(to.chunks_mut(BLOCK)) {
            match self.cached.get(&block).or_else(|| self.flushed.get(&block)) {
                Some(bytes) => to.copy_from_slice(bytes),
                None => to.fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, from: &[u8]) -> Result<()> {
        self.operate(offset, from.len())?;
        let blocks = (offset / BLOCK as u64..).zip(from.chunks(BLOCK));
        self.cached.extend(blocks.map(|(block, bytes)| (block, bytes.into())));
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.operate(0, 0)?;
        self.flushed.append(&mut self.cached);
        Ok(())
    }
}
