//! A disk with a volatile cache, which can lose power between any two operations.
//!
//! What was flushed stays. Of what was written since, a power cut keeps an arbitrary subset of 512-byte sectors: of
//! a sector written several times, any of its versions. Besides, single bits can rot, writes can be misdirected
//! or fail.

use crate::prng::Prng;
use std::ops::Range;

/// The unit in which a disk is torn (bytes).
pub const SECTOR: usize = 512;

/// The disk's power was cut: nothing works until [`SimDisk::power_on`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PowerCut;

/// A write that isn't durable yet, and what it was written over. While it is in the image, `bytes` are the older ones; where it
/// was taken out again they are its own.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Unflushed {
    offset: usize,
    bytes: Vec<u8>,
}

impl Unflushed {
    fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.bytes.len()
    }

    /// Puts itself into the image, or takes itself out of it.
    fn swap(&mut self, image: &mut [u8]) {
        image[self.range()].swap_with_slice(&mut self.bytes);
    }
}

/// One simulated disk. Everything it does follows from the calls made and the generator given to `power_on`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SimDisk {
    /// What reads see: what is durable, with all unflushed writes over it.
    image: Vec<u8>,
    /// In the order in which they were written.
    unflushed: Vec<Unflushed>,
    /// Writes that the flush in progress covers.
    flushing: Option<usize>,
    /// Operations until the power is cut.
    operations_left: Option<u64>,
    operations: u64,
}

impl SimDisk {
    /// A disk of `bytes` bytes with arbitrary leftovers on it.
    pub fn new(bytes: usize, prng: &mut Prng) -> Self {
        assert_eq!(bytes % SECTOR, 0, "a disk is whole sectors");
        let mut image = vec![0; bytes];
        if prng.chance(1, 2) {
            prng.fill(&mut image);
        }
        Self::from_image(image)
    }

    /// A disk that holds these bytes, all flushed.
    pub fn from_image(image: Vec<u8>) -> Self {
        Self { image, unflushed: Vec::new(), flushing: None, operations_left: None, operations: 0 }
    }

    pub fn len(&self) -> u64 {
        self.image.len() as u64
    }

    pub fn is_empty(&self) -> bool {
        self.image.is_empty()
    }

    /// Cuts the power after so many more operations (0: at the next).
    pub fn cut_after(&mut self, operations: Option<u64>) {
        self.operations_left = operations;
    }

    /// Writes and flushes done so far.
    pub fn operations(&self) -> u64 {
        self.operations
    }

    fn operation(&mut self) -> Result<(), PowerCut> {
        if let Some(left) = &mut self.operations_left {
            *left = left.checked_sub(1).ok_or(PowerCut)?;
        }
        self.operations += 1;
        Ok(())
    }

    pub fn read(&self, offset: u64, len: usize) -> &[u8] {
        &self.image[offset as usize..offset as usize + len]
    }

    /// Writes into the cache. What is given as a vector isn't copied.
    pub fn write(&mut self, offset: u64, bytes: impl Into<Vec<u8>>) -> Result<(), PowerCut> {
        self.operation()?;
        let mut write = Unflushed { offset: offset as usize, bytes: bytes.into() };
        assert!(
            write.offset.is_multiple_of(4096) && write.bytes.len().is_multiple_of(4096),
            "O_DIRECT wants whole blocks"
        );
        write.swap(&mut self.image);
        self.unflushed.push(write);
        Ok(())
    }

    /// Starts a flush of everything written so far.
    pub fn flush_begin(&mut self) -> Result<(), PowerCut> {
        self.operation()?;
        self.flushing = Some(self.unflushed.len());
        Ok(())
    }

    /// The flush is complete.
    pub fn flush_end(&mut self) -> Result<(), PowerCut> {
        self.operation()?;
        let covered = self.flushing.take().unwrap_or(0);
        self.unflushed.drain(..covered);
        Ok(())
    }

    pub fn flush(&mut self) -> Result<(), PowerCut> {
        self.flush_begin()?;
        self.flush_end()
    }

    /// Power comes back: what wasn't flushed is there or not, sector by sector.
    pub fn power_on(&mut self, prng: &mut Prng) {
        let mut lost = std::mem::take(&mut self.unflushed);
        lost.iter_mut().rev().for_each(|write| write.swap(&mut self.image));
        let survive = Survival::pick(prng);
        let last = lost.len();
        for (index, write) in lost.into_iter().enumerate() {
            let whole = survive.whole_write(index, last, prng);
            for (sector, bytes) in write.bytes.chunks(SECTOR).enumerate() {
                if whole.unwrap_or_else(|| survive.sector(prng)) {
                    let at = write.offset + sector * SECTOR;
                    self.image[at..at + bytes.len()].copy_from_slice(bytes);
                }
            }
        }
        self.flushing = None;
        self.operations_left = None;
    }

    /// Flips one bit of a durable byte, one to which nothing is on its way.
    pub fn rot(&mut self, offset: u64, bit: u8) {
        assert!(self.is_flushed(offset), "what isn't durable can't rot");
        self.image[offset as usize] ^= 1 << (bit % 8);
    }

    /// What was meant for `from` went to `to` instead (both flushed at once), as firmware sometimes does.
    pub fn misdirect(&mut self, from: u64, to: u64, len: usize) {
        let (from, to) = (from as usize, to as usize);
        let on_its_way = self.unflushed.iter().map(Unflushed::range);
        assert!(
            on_its_way.into_iter().all(|range| range.end <= to || to + len <= range.start),
            "what is on its way would come after it"
        );
        self.image.copy_within(from..from + len, to);
    }

    /// Whether a block is as it was flushed: nothing that was written to it since is on its way.
    pub fn is_flushed(&self, offset: u64) -> bool {
        !self.unflushed.iter().any(|write| write.range().contains(&(offset as usize)))
    }

    /// The durable bytes.
    pub fn image(&self) -> Vec<u8> {
        let (mut image, mut unflushed) = (self.image.clone(), self.unflushed.clone());
        unflushed.iter_mut().rev().for_each(|write| write.swap(&mut image));
        image
    }
}

/// How a power cut treats what wasn't flushed. Mixed, because each finds other bugs.
#[derive(Clone, Copy, Debug)]
enum Survival {
    /// Nothing, or everything.
    All(bool),
    /// Each sector by itself, so many times of eight.
    Sectors(u64),
    /// Whole writes, so many times of eight.
    Writes(u64),
    /// The first writes, in order, up to this share (of eight); the next one is torn.
    Prefix(u64),
    /// All but the first writes up to this share: late writes overtake early ones.
    Suffix(u64),
}

impl Survival {
    fn pick(prng: &mut Prng) -> Self {
        let share = prng.below(9);
        match prng.below(6) {
            0 => Self::All(share.is_multiple_of(2)),
            1 | 2 => Self::Sectors(share),
            3 => Self::Writes(share),
            4 => Self::Prefix(share),
            _ => Self::Suffix(share),
        }
    }

    /// The fate of a whole write, `None` if its sectors are on their own.
    fn whole_write(self, index: usize, of: usize, prng: &mut Prng) -> Option<bool> {
        match self {
            Self::All(all) => Some(all),
            Self::Sectors(_) => None,
            Self::Writes(share) => Some(prng.chance(share, 8)),
            Self::Prefix(share) | Self::Suffix(share) => {
                let border = of * share as usize / 8;
                let first = matches!(self, Self::Prefix(_));
                (index != border).then_some((index < border) == first)
            }
        }
    }

    fn sector(self, prng: &mut Prng) -> bool {
        match self {
            Self::Sectors(share) => prng.chance(share, 8),
            _ => prng.chance(1, 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushed_bytes_stay_and_others_may_go() {
        let (mut kept, mut lost, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let mut disk = SimDisk::from_image(vec![0; 16384]);
            disk.write(0, [1; 4096]).unwrap();
            disk.flush_begin().unwrap();
            disk.write(4096, [2; 4096]).unwrap();
            disk.flush_end().unwrap();
            assert_eq!(disk.read(4096, 1), [2], "reads see the cache");
            disk.power_on(&mut Prng::new(seed));
            assert_eq!(disk.read(0, 4096), [1; 4096]);
            match disk.read(4096, 4096).iter().filter(|byte| **byte == 2).count() {
                0 => lost += 1,
                4096 => kept += 1,
                part => {
                    assert_eq!(part % SECTOR, 0);
                    torn += 1;
                }
            }
        }
        assert!(kept > 10 && lost > 10 && torn > 10, "{kept} kept, {lost} lost, {torn} torn");
    }

    #[test]
    fn the_power_goes_when_told() {
        let mut disk = SimDisk::from_image(vec![0; 8192]);
        disk.cut_after(Some(1));
        assert_eq!(disk.write(0, [1; 4096]), Ok(()));
        assert_eq!(disk.write(0, [1; 4096]), Err(PowerCut));
        assert_eq!(disk.flush(), Err(PowerCut));
    }
}
