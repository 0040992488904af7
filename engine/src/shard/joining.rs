//! Slices of a further disk, that are taken into use while the shard serves.
//!
//! To recover a slice its whole journal is read, which takes longer than a lease runs. So a thread made for it does that, and tries the ways to
//! the disk, while the turns go on; the stores are handed over as a whole. Until then nobody else knows of them: they are no part of the shard.

use super::turn::Ending;
use super::{Shard, SliceSpec, open_slice};
use crate::disk::file::DiskFile;
use crate::disk::open::Extent;
use crate::disk::uring::Trial;
use crate::mesh::{Answer, Awaited, answer};
use crate::store::{RecoveryReport, Store};
use corefs_wire::{Error, ErrorCode, Result, SliceIndex, Uuid};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// A disk that is on its way in.
pub(super) struct Joining {
    disk: DiskFile,
    opened: Awaited<Result<Opened>>,
    /// To whoever gave it.
    answer: Answer<Result<()>>,
}

/// What the thread made of it.
struct Opened {
    slices: Vec<(SliceSpec, Store, RecoveryReport)>,
    trial: Trial,
}

impl Shard {
    /// Begins to take slices of a further disk into use, all or none.
    pub(super) fn add_disk(
        &mut self,
        disk: DiskFile,
        slices: Vec<(SliceIndex, Extent, Uuid)>,
        answer: Answer<Result<()>>,
    ) {
        match self.open_elsewhere(&disk, slices) {
            Ok(opened) => self.joining.push(Joining { disk, opened, answer }),
            Err(error) => answer.send(Err(error)),
        }
    }

    fn open_elsewhere(
        &self,
        disk: &DiskFile,
        slices: Vec<(SliceIndex, Extent, Uuid)>,
    ) -> Result<Awaited<Result<Opened>>> {
        let mut file = disk.share()?;
        let (owner, choice) = ((self.cluster, self.node), self.disks.choice());
        let (tell, opened) = answer();
        let open = move || {
            let one = |(index, extent, store)| {
                let spec = SliceSpec { index, disk: 0, extent, store, format: false };
                let (store, report) = open_slice(&mut file, owner, &spec)
                    .map_err(|error| error.of(format_args!("{}", file.path().display())))?;
                Ok((spec, store, report))
            };
            let slices: Result<Vec<_>> = slices.into_iter().map(one).collect();
            tell.send(slices.map(|slices| Opened { slices, trial: Trial::of(choice, &file) }));
        };
        let thread = std::thread::Builder::new().name(format!("opening-{}", self.shard.0)).spawn(open);
        thread.map_err(|error| Error::from(error).of("a thread that opens slices"))?;
        Ok(opened)
    }

    /// Takes in what has been opened.
    pub(super) fn take_joining(&mut self) {
        let mut at = 0;
        while at < self.joining.len() {
            // Looked at in every turn, and turns come while there is one: nobody is to be woken.
            let mut context = Context::from_waker(Waker::noop());
            match Pin::new(&mut self.joining[at].opened).poll(&mut context) {
                Poll::Pending => at += 1,
                Poll::Ready(opened) => {
                    let Joining { disk, answer, .. } = self.joining.swap_remove(at);
                    let taken =
                        opened.and_then(|opened| opened).and_then(|opened| self.take_in(disk, opened));
                    answer.send(taken);
                }
            }
        }
    }

    fn take_in(&mut self, disk: DiskFile, opened: Opened) -> Result<()> {
        if !matches!(self.ending, Ending::No) {
            // What it has is being closed.
            return Err(ErrorCode::ShuttingDown.into());
        }
        let disk = self.disks.add_tried(&mut self.ring, &self.desk.pool, disk, opened.trial)?;
        for (spec, store, report) in opened.slices {
            self.recovered.push((spec.index, report));
            self.disks.place(spec.index, disk, spec.extent);
            self.desk.targets.add_slice(spec.index, disk, store);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::BlockingDisk;
    use crate::shard::ground::{BYTES, disk, shard};

    fn slices(shard: &Shard) -> Vec<u16> {
        shard.report().slices.iter().map(|slice| slice.index).collect()
    }

    /// Turns until whoever gave a disk has an answer.
    fn turn_until<T>(shard: &mut Shard, mut told: Awaited<T>) -> Result<T> {
        for _ in 0..3000 {
            if let Poll::Ready(told) = Pin::new(&mut told).poll(&mut Context::from_waker(Waker::noop())) {
                return told;
            }
            shard.rest().unwrap();
            shard.turn();
        }
        panic!("nothing comes of the disk");
    }

    #[test]
    fn a_shard_serves_while_a_disk_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let mut shard = shard(dir.path());
        let (file, slice) = disk(dir.path(), 1);
        let (tell, mut told) = answer();
        shard.add_disk(file, vec![slice], tell);
        // It was asked, and is back: nothing has been waited for.
        let early = Pin::new(&mut told).poll(&mut Context::from_waker(Waker::noop()));
        assert!(early.is_pending() && slices(&shard) == [0], "the shard has stood still for the disk");
        turn_until(&mut shard, told).unwrap().unwrap();
        assert_eq!(slices(&shard), [0, 1]);
        assert_eq!(shard.report().recovered.len(), 2);
        shard.dispose();
    }

    #[test]
    fn a_disk_is_taken_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let mut shard = shard(dir.path());
        let (mut file, whole) = disk(dir.path(), 1);
        let (_, (_, extent, _)) = disk(dir.path(), 2);
        let other = (SliceIndex(2), extent, Uuid([99; 16]));
        let (tell, told) = answer();
        shard.add_disk(file.share().unwrap(), vec![whole, other], tell);
        let refused = turn_until(&mut shard, told).unwrap().unwrap_err();
        assert!(refused.code == ErrorCode::WrongCluster && refused.message.contains("slice-1"), "{refused}");
        assert_eq!(slices(&shard), [0]);
        file.write_at(0, &[0; 4096]).unwrap();
        file.write_at(BYTES - 4096, &[0; 4096]).unwrap();
        let (tell, told) = answer();
        shard.add_disk(file, vec![whole], tell);
        assert_eq!(turn_until(&mut shard, told).unwrap().unwrap_err().code, ErrorCode::BadFormat);
        assert_eq!((slices(&shard), shard.joining.len()), (vec![0], 0));
        shard.dispose();
    }

    #[test]
    fn a_shard_that_is_stopping_takes_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut shard = shard(dir.path());
        let (file, slice) = disk(dir.path(), 1);
        let (tell, told) = answer();
        shard.add_disk(file, vec![slice], tell);
        let (stopped, _end) = answer();
        let until = crate::shard::boottime() + 60_000_000_000;
        shard.ending = Ending::Draining { until, answers: vec![stopped] };
        assert_eq!(turn_until(&mut shard, told).unwrap().unwrap_err().code, ErrorCode::ShuttingDown);
        shard.dispose();
    }
}
