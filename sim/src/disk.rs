//! A disk with a volatile cache, which can lose power between any two operations.
//!
//! What was flushed stays. Of what was written since, a power cut keeps an arbitrary subset of 512-byte sectors: of
//! a sector written several times, any of its versions. Besides, single bits can rot, writes can be misdirected
//! or fail.

use crate::prng::Prng;

/// The unit in which a disk is torn (bytes).
pub const SECTOR: usize = 512;

/// The disk's power was cut: nothing works until [`SimDisk::power_on`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PowerCut;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Unflushed {
    offset: usize,
    bytes: Vec<u8>,
}

/// One simulated disk. Everything it does follows from the calls made and the generator given to `power_on`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SimDisk {
    durable: Vec<u8>,
    /// What reads see: durable with all unflushed writes over it.
    view: Vec<u8>,
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
        let mut durable = vec![0; bytes];
        if prng.chance(1, 2) {
            prng.fill(&mut durable);
        }
        Self::from_image(durable)
    }

    /// A disk that holds these bytes, all flushed.
    pub fn from_image(image: Vec<u8>) -> Self {
        let view = image.clone();
        Self {
            durable: image,
            view,
            unflushed: Vec::new(),
            flushing: None,
            operations_left: None,
            operations: 0,
        }
    }

    pub fn len(&self) -> u64 {
        self.view.len() as u64
    }

    pub fn is_empty(&self) -> bool {
        self.view.is_empty()
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
        &self.view[offset as usize..offset as usize + len]
    }

    /// Writes into the cache.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), PowerCut> {
        self.operation()?;
        let offset = offset as usize;
        assert!(
            offset.is_multiple_of(4096) && bytes.len().is_multiple_of(4096),
            "O_DIRECT wants whole blocks"
        );
        self.view[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.unflushed.push(Unflushed { offset, bytes: bytes.to_vec() });
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
        for write in self.unflushed.drain(..covered) {
            self.durable[write.offset..write.offset + write.bytes.len()].copy_from_slice(&write.bytes);
        }
        Ok(())
    }

    pub fn flush(&mut self) -> Result<(), PowerCut> {
        self.flush_begin()?;
        self.flush_end()
    }

    /// Power comes back: what wasn't flushed is there or not, sector by sector.
    pub fn power_on(&mut self, prng: &mut Prng) {
        let survive = Survival::pick(prng);
        let last = self.unflushed.len();
        for (index, write) in self.unflushed.drain(..).enumerate() {
            let whole = survive.whole_write(index, last, prng);
            for (sector, bytes) in write.bytes.chunks(SECTOR).enumerate() {
                if whole.unwrap_or_else(|| survive.sector(prng)) {
                    let at = write.offset + sector * SECTOR;
                    self.durable[at..at + bytes.len()].copy_from_slice(bytes);
                }
            }
        }
        self.view.copy_from_slice(&self.durable);
        self.flushing = None;
        self.operations_left = None;
    }

    /// Flips one bit of a durable byte.
    pub fn rot(&mut self, offset: u64, bit: u8) {
        self.durable[offset as usize] ^= 1 << (bit % 8);
        self.view[offset as usize] ^= 1 << (bit % 8);
    }

    /// What was meant for `from` went to `to` instead (both flushed at once), as firmware sometimes does.
    pub fn misdirect(&mut self, from: u64, to: u64, len: usize) {
        let (from, to) = (from as usize, to as usize);
        self.view.copy_within(from..from + len, to);
        self.durable.copy_within(from..from + len, to);
    }

    /// Whether a block is as it was flushed: nothing that was written to it since is on its way.
    pub fn is_flushed(&self, offset: u64) -> bool {
        let at = offset as usize;
        let covers = |write: &Unflushed| (write.offset..write.offset + write.bytes.len()).contains(&at);
        !self.unflushed.iter().any(covers)
    }

    /// Puts bytes in their place, flushed at once: whoever mends a disk.
    pub fn put(&mut self, offset: u64, bytes: &[u8]) {
        let range = offset as usize..offset as usize + bytes.len();
        self.durable[range.clone()].copy_from_slice(bytes);
        self.view[range].copy_from_slice(bytes);
    }

    /// The durable bytes.
    pub fn image(&self) -> &[u8] {
        &self.durable
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
            disk.write(0, &[1; 4096]).unwrap();
            disk.flush_begin().unwrap();
            disk.write(4096, &[2; 4096]).unwrap();
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
        assert_eq!(disk.write(0, &[1; 4096]), Ok(()));
        assert_eq!(disk.write(0, &[1; 4096]), Err(PowerCut));
        assert_eq!(disk.flush(), Err(PowerCut));
    }
}
